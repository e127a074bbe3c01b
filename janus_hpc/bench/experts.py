"""The routed experts of one rank against torch's grouped matrix product and a loop over experts, over token counts.

One process, random weights, routing uniform over all experts of the model; no ranks and no exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_hpc.bench.expert_peers import Layout, PeerExperts
from janus_hpc.bench.timing import Call, memory_speeds, times_us
from janus_hpc.errors import UsageError
from janus_hpc.kernels.ops import Ops, PackedExperts
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.models.shapes import shape_config

# Legend: T tokens, J choices a token, S slots, D hidden, I expert width.

# A fit takes runs in which reading weights can be what counts: rows an activated expert, on average.
MAX_ROWS_FITTED = 4.0
# Of the largest value; all compute with the same rounded inputs.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExpertsOptions:
    """The sweep. `num_slots`: experts on this rank, the first ones; None for all of the model."""

    shapes: Sequence[str]
    num_slots: int | None
    tokens: Sequence[int]
    dtype: torch.dtype
    repeats: int


@dataclass(frozen=True)
class Sizes:
    """What the experts of a shape are, `num_slots` of them here."""

    name: str
    hidden: int
    inter: int
    num_experts: int
    top_k: int
    num_slots: int

    @classmethod
    def of_shape(cls, name: str, num_slots: int | None) -> "Sizes":
        """Errors: UsageError for an unknown shape, or for more slots than experts."""
        spec = spec_of(ConfigFile(Path(name), shape_config(name)))
        num_experts = spec.moe.num_experts
        if num_slots is not None and num_slots > num_experts:
            raise UsageError(f"--slots {num_slots}: {name} has {num_experts} experts")
        return cls(
            name=name,
            hidden=spec.hidden,
            inter=spec.moe.width,
            num_experts=num_experts,
            top_k=spec.moe.top_k,
            num_slots=num_slots or num_experts,
        )


def run_experts(ops: Ops, device: torch.device, options: ExpertsOptions) -> list[Record]:
    """For each shape a record a token count, then one of its fit. Errors: UsageError, MemoryError."""
    all_sizes = [Sizes.of_shape(name, options.num_slots) for name in options.shapes]
    speeds = memory_speeds(device, options.repeats)
    records = []
    with torch.inference_mode():
        for sizes in all_sizes:
            bench = _ShapeBench(ops, device, sizes, options)
            found = [bench.record(num_tokens) for num_tokens in options.tokens]
            records += [*found, _fit(found, speeds)]
    return records


class _ShapeBench:
    """The weights of one shape, in the operation's order and in that of the peers."""

    def __init__(
        self, ops: Ops, device: torch.device, sizes: Sizes, options: ExpertsOptions
    ) -> None:
        self.ops, self.device, self.sizes, self.options = ops, device, sizes, options
        self.peers = PeerExperts.random(
            sizes.num_slots, sizes.hidden, sizes.inter, options.dtype, device
        )
        self.packed = pack(ops, self.peers)

    def record(self, num_tokens: int) -> Record:
        """Times of all for one batch."""
        sizes, dtype = self.sizes, self.options.dtype
        slots_TJ = uniform_slots(sizes, num_tokens).to(self.device)
        activated = len(slots_TJ[slots_TJ >= 0].unique())
        calls = self._calls(num_tokens, slots_TJ)
        found = times_us(calls, self.device, self.options.repeats)
        weight_bytes = activated * 3 * sizes.hidden * sizes.inter * dtype.itemsize
        best = min(time for name, time in found.items() if name != "janus")
        return {
            "shape": sizes.name,
            "slots": sizes.num_slots,
            "tokens": num_tokens,
            "entries": int((slots_TJ >= 0).sum()),
            "activated": activated,
            "dtype": str(dtype).removeprefix("torch."),
            "kernels": self.ops.name,
            "device": str(self.device),
            "time_us": found,
            "ratio": {name: time / found["janus"] for name, time in found.items()},
            "ratio_to_best": best / found["janus"],
            "weight_bytes": weight_bytes,
            "gb_s": weight_bytes / found["janus"] / 1e3,
        }

    def _calls(self, num_tokens: int, slots_TJ: Tensor) -> dict[str, Call]:
        """What to time, each seen to give the same sums."""
        generator = torch.Generator().manual_seed(num_tokens)
        shape = (num_tokens, self.sizes.hidden)
        x_TD = torch.randn(shape, generator=generator).to(self.device, self.options.dtype)
        rows_TD = x_TD.float()
        weights_TJ = torch.rand(slots_TJ.shape, generator=generator).to(self.device)
        sums_TD = torch.zeros(shape, dtype=torch.float64, device=self.device)
        layout = Layout.sorted(slots_TJ, self.sizes.num_slots)
        num_entries, x_PD = len(layout.entries_P), x_TD[layout.tokens_P]
        peers = self.peers
        calls: dict[str, Call] = {
            "janus": lambda: self.ops.experts(rows_TD, slots_TJ, weights_TJ, self.packed, sums_TD),
            "grouped_mm": lambda: peers.grouped(layout, x_PD, weights_TJ, num_tokens),
            "grouped_mm_sorting": lambda: peers.sorting(x_TD, slots_TJ, weights_TJ, num_entries),
            "loop": peers.loop(layout, x_TD, weights_TJ),
        }
        calls["janus"]()
        for name in list(calls)[1:]:
            error = (torch.as_tensor(calls[name]()) - sums_TD).abs().max() / sums_TD.abs().max()
            assert error <= TOLERANCE[self.options.dtype], f"{name=} {float(error)=}"
        return calls


def pack(ops: Ops, peers: PeerExperts) -> PackedExperts:
    """The peers' weights in the order of an implementation."""
    num_slots, hidden, inter = peers.down_SDI.shape
    packed = ops.alloc_experts(num_slots, hidden, inter, peers.down_SDI.dtype)
    for slot in range(num_slots):
        gate_ID, up_ID = peers.gate_up_SND[slot].chunk(2)
        ops.pack_expert(packed, slot, gate_ID, up_ID, peers.down_SDI[slot])
    return packed


def uniform_slots(sizes: Sizes, num_tokens: int) -> Tensor:
    """[T, J] int32: each token's experts drawn among all, -1 for those not here; at least one is here."""
    slots_TJ = torch.full((num_tokens, sizes.top_k), -1, dtype=torch.int32)
    generator = torch.Generator().manual_seed(num_tokens)
    while bool((slots_TJ < 0).all()):
        order = torch.rand(num_tokens, sizes.num_experts, generator=generator).argsort(dim=1)
        ids_TJ = order[:, : sizes.top_k].int()
        slots_TJ = torch.where(ids_TJ < sizes.num_slots, ids_TJ, -1)
    return slots_TJ


def _fit(records: Sequence[Record], speeds: dict[str, float]) -> Record:
    """Least squares of t = t0 + s * activated; null with fewer than two numbers of activated experts."""
    first = records[0]
    fitted = [its for its in records if its["entries"] / its["activated"] <= MAX_ROWS_FITTED]
    record = {
        "shape": first["shape"],
        "slots": first["slots"],
        "dtype": first["dtype"],
        "tokens_fitted": [its["tokens"] for its in fitted],
        "memory": speeds,
        "t0_us": None,
        "us_per_expert": None,
        "gb_s": None,
        "share_of_memory_speed": None,
        "rms_us": None,
    }
    activated = np.array([its["activated"] for its in fitted], dtype=np.float64)
    if len(set(activated)) < 2:
        return record
    found_us = np.array([its["time_us"]["janus"] for its in fitted])
    per_expert_us, t0_us = np.polyfit(activated, found_us, 1)
    rms_us = np.sqrt(np.mean((t0_us + per_expert_us * activated - found_us) ** 2))
    gb_s = first["weight_bytes"] / first["activated"] / per_expert_us / 1e3
    return record | {
        "t0_us": float(t0_us),
        "us_per_expert": float(per_expert_us),
        "gb_s": float(gb_s),
        "share_of_memory_speed": float(gb_s / max(speeds.values())),
        "rms_us": float(rms_us),
    }
