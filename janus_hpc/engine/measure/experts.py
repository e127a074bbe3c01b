"""Times of the expert side: what an expert rank does in a layer, with made-up choices of experts.

The gate computes as in a run, but what it chose is replaced, so that activated experts, rows and tokens vary
apart from each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from janus_hpc.comm.exchange import Routing
from janus_hpc.engine.measure.bed import Bed
from janus_hpc.engine.measure.pace import Pace, usual_s
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.gate import Gate
from janus_hpc.experts.route_sampler import RouteSampler

# Legend: N tokens of all attention ranks, K choices a token, D hidden.


@dataclass(frozen=True, kw_only=True)
class ExpertTimes:
    """Seconds of a layer in which `activated` experts here get `rows` of all choices of `tokens`; `steps_s`: the
    layers' sum in each pass.
    """

    activated: int
    rows: int
    tokens: int
    seconds: float
    steps_s: tuple[float, ...]


def least(turns: list[ExpertTimes]) -> ExpertTimes:
    """Of the same point measured again and again: what else goes on only makes it longer."""
    steps_s = tuple(step_s for its in turns for step_s in its.steps_s)
    return replace(min(turns, key=lambda its: its.seconds), steps_s=steps_s)


class PinnedGate(Gate):
    """Computes as a gate does, and gives the choices it was told."""

    def __init__(self, gate: Gate) -> None:
        self.ops, self.rule = gate.ops, gate.rule
        self.routers, self.biases = gate.routers, gate.biases
        self.ids_NK = torch.empty(0, dtype=torch.int32)

    def route(self, layer: int, x_ND: torch.Tensor) -> Routing:
        return Routing(self.ids_NK, super().route(layer, x_ND).weights_TK)


def expert_times(bed: Bed, num_sharing: int) -> list[ExpertTimes]:
    """All points, with so many ranks of each node at once. Collective over the world."""
    bed.use_threads(num_sharing)
    gate = PinnedGate(bed.gate)
    experts = make_experts(bed, gate)
    pace = Pace(bed.world, bed.policy, bed.device)
    pace.calibrate(bed.takes_part(num_sharing))
    return [
        _point(bed, pace, experts, gate, ids_NK, num_sharing) for ids_NK in made_up_choices(bed)
    ]


def made_up_choices(bed: Bed) -> Iterator[torch.Tensor]:
    """ids_NK of every point; the experts of this rank are the lowest ones."""
    num_here = bed.placement.num_slots
    seen = set()
    for num_tokens in bed.effort.tokens:
        for share in bed.effort.shares:
            own = own_choices(bed, share)
            for pool in (num_here, max(num_here // 2, own)):
                if (num_tokens, own, pool) not in seen:
                    seen.add((num_tokens, own, pool))
                    yield choices(bed, num_tokens, own, pool)


def own_choices(bed: Bed, share: float) -> int:
    """How many of a token's choices are this rank's, if so large a share of all is, as near as can be."""
    moe, num_here = bed.spec.moe, bed.placement.num_slots
    least = max(moe.top_k - moe.num_experts + num_here, 1)
    return min(max(round(moe.top_k * share), least), num_here, moe.top_k)


def choices(bed: Bed, num_tokens: int, own: int, pool: int) -> torch.Tensor:
    """ids_NK: of each token's choices `own` are of the first `pool` experts here, the others elsewhere."""
    moe, num_here = bed.spec.moe, bed.placement.num_slots
    rng = np.random.default_rng(num_tokens)
    here = _draw(rng, num_tokens, own, pool)
    away = _draw(rng, num_tokens, moe.top_k - own, moe.num_experts - num_here)
    ids_NK = np.concatenate([here, away + num_here], axis=1)
    return torch.from_numpy(np.sort(ids_NK, axis=1).astype(np.int32))


def _draw(
    rng: np.random.Generator, num_tokens: int, count: int, pool: int
) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """`count` of `pool` for each token, none twice."""
    if not count:
        return np.empty((num_tokens, 0), dtype=np.int64)
    return rng.random((num_tokens, pool)).argsort(axis=1)[:, :count]


def make_experts(bed: Bed, gate: Gate) -> ExpertModel:
    """An expert side in this rank's slots, with this gate."""
    moe, layers = bed.spec.moe, bed.spec.sparse_layers
    balancer = Balancer(bed.ops, bed.placement, layers, "aebs", 0, bed.device)
    sampler = RouteSampler(layers, moe.num_experts, moe.top_k)
    return ExpertModel(bed.spec, bed.ops, gate, balancer, 0, bed.experts, sampler)


def _point(
    bed: Bed,
    pace: Pace,
    experts: ExpertModel,
    gate: PinnedGate,
    ids_NK: torch.Tensor,
    num_sharing: int,
) -> ExpertTimes:
    layers, num_tokens = bed.spec.sparse_layers, len(ids_NK)
    gate.ids_NK = ids_NK.to(bed.device)
    generator = torch.Generator().manual_seed(num_tokens)
    x_ND = torch.randn((num_tokens, bed.spec.hidden), generator=generator).to(bed.device, bed.dtype)
    y_ND = torch.zeros(x_ND.shape, dtype=torch.float64, device=bed.device)
    takes_part = bed.takes_part(num_sharing)
    with torch.inference_mode():
        for _ in range(bed.effort.passes + 1):
            for layer in layers:
                pace.begin()
                if takes_part:
                    y_ND.zero_()
                    experts.compute(layer, x_ND, y_ND)
                    pace.end()
    experts.reset()
    spans, size = pace.take_s(), len(layers)
    steps = [spans[at : at + size] for at in range(size, len(spans), size)]
    own = ids_NK[ids_NK < bed.placement.num_slots]
    return ExpertTimes(
        activated=len(own.unique()),
        rows=len(own),
        tokens=num_tokens,
        seconds=usual_s([s for step in steps for s in step]),
        steps_s=tuple(sum(step) for step in steps),
    )
