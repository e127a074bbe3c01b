"""Dispatch and combine of every kind of exchange, timed over a sweep, beside what was predicted.

Collective over the world; rank 0 has the records. A configuration is one record.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from janus_hpc.batcher import even_sizes
from janus_hpc.bench.exchange_layers import LayerTimer, Load
from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.exchange import Exchange
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.measure import QUICK, measure_costs
from janus_hpc.comm.staged.make import GateRules
from janus_hpc.comm.world import World
from janus_hpc.planner.exchange_bytes import minimum_bytes
from janus_hpc.planner.exchange_cost import Step, choose_exchange, predict_s
from janus_hpc.topology import Role, Topology, assign_roles, contiguous_experts, parse_split

_NUM_WARMUP = 4
_MIN_LAYERS = 5
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions:
    """The sweep: all combinations of the sequences. `tokens` count over all attention ranks.

    `repeats` layers are timed, fewer where they would take more than `most_s` seconds. `costs` are
    measured, quickly, where none are given.
    """

    kinds: Sequence[str]
    gates: Sequence[str]
    inters: Sequence[str]
    splits: Sequence[str]
    tokens: Sequence[int]
    hidden: int
    row_dtype: torch.dtype
    repeats: int
    most_s: float
    num_microbatches: int
    top_k: int
    num_experts: int
    chunk_bytes: int
    timeout_s: float
    num_threads: int
    ucx_settings: Mapping[str, str]
    costs: ExchangeCosts | None


@dataclass(frozen=True)
class Setting:
    """What stays the same over a row of the sweep: one exchange is built for it."""

    topology: Topology
    split: str
    gate: str
    inter: str
    costs: ExchangeCosts

    @property
    def one_node(self) -> bool:
        """Whether no rank has to cross to another node."""
        return self.topology.same_node(self.topology.active_ranks)


def run_exchange(world: World, options: ExchangeOptions) -> list[Record]:
    """The records, on rank 0; empty elsewhere. Collective over the world."""
    torch.set_num_threads(options.num_threads)
    costs = options.costs or measure_costs(
        world,
        options.inters,
        effort=QUICK,
        timeout_s=options.timeout_s,
        ucx_settings=options.ucx_settings,
    )
    records = []
    for split in options.splits:
        roles = assign_roles(
            parse_split(split, world.world_size, options.num_experts), world.node_ids
        )
        topology = world.topology(roles)
        for gate, inter in itertools.product(options.gates, options.inters):
            setting = Setting(topology, split, gate, inter, costs)
            for record in _run_setting(world, options, setting):
                records.append(record)
                if world.world_rank == 0:
                    print(_line(record), file=sys.stderr, flush=True)
    return records if world.world_rank == 0 else []


def _run_setting(world: World, options: ExchangeOptions, setting: Setting) -> Iterator[Record]:
    """The records of all kinds. "auto" has the times of the kind it takes, measured once."""
    found: dict[tuple[str, int], Record] = {}
    for kind in options.kinds:
        if kind == "host" and (setting.gate == "agate" or setting.inter != options.inters[0]):
            continue
        if kind != "auto":
            for record in _run_kind(world, options, setting, kind, options.tokens):
                found[kind, record["tokens"]] = record
                yield record
    for num_tokens in options.tokens if "auto" in options.kinds else []:
        taken, why = _choose(options, setting, num_tokens)
        if (taken, num_tokens) not in found:
            its = _run_kind(world, options, setting, taken, [num_tokens])
            found[taken, num_tokens] = next(iter(list(its)))
        yield found[taken, num_tokens] | {"kind": "auto", "auto_why": why}


def _run_kind(
    world: World, options: ExchangeOptions, setting: Setting, kind: str, tokens: Sequence[int]
) -> Iterator[Record]:
    """One record for each number of tokens."""
    topology = setting.topology
    exchange = None
    if topology.roles[world.world_rank] is not Role.PARKED:
        exchange = _make(world, options, setting, kind)
    for num_tokens in tokens:
        load = _load(options, topology, num_tokens)
        times_s, num_bytes = _time(world, exchange, topology, load, options)
        yield _facts(world, options, setting, kind, exchange) | {
            "tokens": num_tokens,
            "layers": len(times_s),
            "median_us": round(float(np.median(times_s)) * 1e6, 1),
            "p99_us": round(float(np.percentile(times_s, 99)) * 1e6, 1),
            "predicted_us": _predicted_us(options, setting, kind, num_tokens),
            "bytes_between_nodes": num_bytes,
            "minimum_bytes": _minimum(options, setting, kind, load),
        }
    if exchange is not None:
        exchange.free()


def _choose(options: ExchangeOptions, setting: Setting, num_tokens: int) -> tuple[str, str]:
    """What "auto" takes, and why."""
    if setting.one_node:
        return "shm", "all active ranks share one node"
    step, link = _step(options, setting, num_tokens), _link(setting)
    choice = choose_exchange(setting.topology, step, setting.costs, link)
    return choice.kind, choice.why


def _predicted_us(
    options: ExchangeOptions, setting: Setting, kind: str, num_tokens: int
) -> float | None:
    """None for the exchange over the host, of which there is no plan, and on one node, where there
    is nothing to choose.
    """
    if kind == "host" or setting.one_node:
        return None
    step, link = _step(options, setting, num_tokens), _link(setting)
    return round(predict_s(setting.topology, kind, step, setting.costs, link) * 1e6, 1)


def _step(options: ExchangeOptions, setting: Setting, num_tokens: int) -> Step:
    return Step(
        num_tokens=even_sizes(num_tokens, len(setting.topology.attention_ranks)),
        row_bytes=options.hidden * options.row_dtype.itemsize,
        hidden=options.hidden,
        chunk_bytes=options.chunk_bytes,
        top_k=options.top_k if setting.gate == "agate" else None,
        num_microbatches=options.num_microbatches,
    )


def _link(setting: Setting) -> str:
    """ "auto" takes UCX where it works, which is then in the table."""
    if setting.inter != "auto":
        return setting.inter
    return "ucx" if "ucx" in setting.costs.links else "mpi"


def _make(world: World, options: ExchangeOptions, setting: Setting, kind: str) -> Exchange:
    topology = setting.topology
    return make_exchange(
        world,
        topology,
        kind=kind,
        gate=setting.gate,
        rules=GateRules(top_k=options.top_k),
        inter=setting.inter,
        hidden=options.hidden,
        row_dtype=options.row_dtype,
        max_tokens_per_rank=-(-max(options.tokens) // len(topology.attention_ranks)),
        num_microbatches=options.num_microbatches,
        timeout_s=options.timeout_s,
        chunk_bytes=options.chunk_bytes,
        ucx_settings=options.ucx_settings,
    )


def _load(options: ExchangeOptions, topology: Topology, num_tokens: int) -> Load:
    return Load(
        num_tokens=even_sizes(num_tokens, len(topology.attention_ranks)),
        num_microbatches=options.num_microbatches,
        hidden=options.hidden,
        row_dtype=options.row_dtype,
        top_k=options.top_k,
        placement=contiguous_experts(options.num_experts, len(topology.expert_ranks)),
    )


def _time(
    world: World,
    exchange: Exchange | None,
    topology: Topology,
    load: Load,
    options: ExchangeOptions,
) -> tuple[list[float], int]:
    """Seconds from the slowest rank's end of a layer to that of the next, and bytes between nodes a
    layer. Collective.
    """
    timer = exchange and LayerTimer(exchange, topology, world.world_rank, load)
    run: Callable[[int], list[float]] = timer.run if timer else lambda num_layers: []
    warm_s = min(_layers_s(world.allgather(run(_NUM_WARMUP))))
    num_layers = min(options.repeats, max(_MIN_LAYERS, math.ceil(options.most_s / warm_s)))
    before = getattr(exchange, "bytes_between_nodes", 0)
    times_s = _layers_s(world.allgather(run(num_layers + 1)))
    sent = getattr(exchange, "bytes_between_nodes", 0) - before
    return times_s, sum(world.allgather(sent)) // (num_layers + 1)


def _layers_s(ends_s: list[list[float]]) -> list[float]:
    """From when layers ended on each rank; the first layer is left out, since it follows a pause."""
    last_s = np.max([its for its in ends_s if its], axis=0)
    found: list[float] = np.diff(last_s).tolist()
    return found


def _facts(
    world: World,
    options: ExchangeOptions,
    setting: Setting,
    kind: str,
    exchange: Exchange | None,
) -> Record:
    topology = setting.topology
    return {
        "kind": kind,
        "exchange": exchange.kind if exchange else "",
        "why": exchange.why if exchange else "",
        "gate": setting.gate,
        "inter": setting.inter if kind != "host" else "mpi",
        "split": setting.split,
        "nodes": len(set(topology.node_ids)),
        "ranks_per_node": [world.node_ids.count(n) for n in sorted(set(world.node_ids))],
        "hidden": options.hidden,
        "dtype": str(options.row_dtype).removeprefix("torch."),
        "microbatches": options.num_microbatches,
        "chunk_bytes": options.chunk_bytes,
    }


def _minimum(options: ExchangeOptions, setting: Setting, kind: str, load: Load) -> int:
    """0 for exchanges that have no such minimum."""
    topology = setting.topology
    if kind == "host" or setting.one_node:
        return 0
    routed_AE = None
    if setting.gate == "agate":
        routed_AE = load.routed()
    return minimum_bytes(
        topology,
        kind,
        load.num_tokens,
        row_bytes=options.hidden * options.row_dtype.itemsize,
        hidden=options.hidden,
        routed_AE=routed_AE,
    )


def _line(record: Record) -> str:
    """A record as a line of a table."""
    took = f", took {record['exchange']}" if record["kind"] == "auto" else ""
    return (
        f"{record['split']:>8} {record['gate']} {record['inter']:>4} {record['kind']:>9} "
        f"{record['tokens']:>6} tokens: median {record['median_us']:>10.1f} us, "
        f"P99 {record['p99_us']:>10.1f}, predicted {record['predicted_us'] or 0:>10.1f}, "
        f"{record['bytes_between_nodes']:>10} bytes (least {record['minimum_bytes']}){took}"
    )
