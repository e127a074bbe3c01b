"""Every policy's plan with the most tokens per second and GPU at given batch sizes (Janus, Fig. 8)."""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_hpc.planner.policies import Policy, best_at_batch
from janus_hpc.planner.search import Judged

Record = dict[str, Any]


def fixed_batch(
    policies: Mapping[str, Policy], batches: Sequence[int], slo_s: float
) -> list[Record]:
    """A record a batch and policy; without a plan that meets the SLO its fields are None."""
    return [
        {"batch": batch, "policy": name, **_record(*best_at_batch(policy, batch, slo_s))}
        for batch in batches
        for name, policy in policies.items()
    ]


def batch_table(records: Sequence[Record], names: Sequence[str]) -> str:
    """Tokens per second and GPU with the plan and its step time, and how many times the first policy's is another's."""
    lines = ["batch  " + "".join(f"{name:>26}" for name in names) + "   " + "  ".join(names[1:])]
    for batch in dict.fromkeys(its["batch"] for its in records):
        row = {its["policy"]: its for its in records if its["batch"] == batch}
        cells = "".join(f"{_cell(row[name]):>26}" for name in names)
        ratios = [f"{_ratio(row[names[0]], row[name]):>{len(name)}}" for name in names[1:]]
        lines.append(f"{batch:>5}  {cells}   " + "  ".join(ratios))
    lines.append(f"(tokens/s per GPU, split, ms a token; right: {names[0]} over the others)")
    return "\n".join(lines)


def _record(judged: Judged, best: int | None) -> Record:
    if best is None:
        names = ("split", "gpus", "slots", "microbatches", "tpot_s", "tpg")
        return dict.fromkeys(names) | {"tpg": None}
    grid, times = judged.grid, judged.times
    experts = int(grid.num_expert[best])
    split = f"{int(grid.num_attention[best])}a{experts}e"
    return {
        "split": f"colocated {experts}" if grid.colocated[best] else split,
        "gpus": int(grid.num_ranks()[best]),
        "slots": int(grid.num_slots[best]),
        "microbatches": int(times.microbatches[best]),
        "tpot_s": float(times.tpot_s[best]),
        "attention_s": float(times.attention_s[best]),
        "moe_s": float(times.moe_s[best]),
        "comm_s": float(times.comm_s[best]),
        "tpg": float(judged.tokens_per_s[best]) / int(grid.num_ranks()[best]),
    }


def _cell(record: Record) -> str:
    if record["tpg"] is None:
        return "-"
    return f"{record['tpg']:.0f} {record['split']} {record['tpot_s'] * 1e3:.1f}"


def _ratio(one: Record, other: Record) -> str:
    if one["tpg"] is None or other["tpg"] is None:
        return "-"
    return f"{one['tpg'] / other['tpg']:.2f}"
