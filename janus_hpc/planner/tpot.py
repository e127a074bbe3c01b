"""The time of a decode step for many candidates at once (Janus, section 3.5, Eq. 1). Pure.

Stages come from `stage_costs`; here they are put together over layers, with or without microbatches.
"""

from dataclasses import dataclass

import numpy as np

from janus_hpc.planner.stage_costs import (
    Nodes,
    attention_s,
    exchange_s,
    experts_s,
    nodes_of,
    rest_s,
)
from janus_hpc.planner.system import Bools, Floats, Grid, Ints, System

# Legend: X candidates.


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTimes:
    """Of a step, a value a candidate. The three parts are sums over layers, what is outside the layers counted
    as attention; tpot_s is less than their sum where microbatches overlap. `kind`: an index into KINDS.
    """

    tpot_s: Floats
    attention_s: Floats
    moe_s: Floats
    comm_s: Floats
    microbatches: Ints
    kind: Ints


def step_times(
    system: System, grid: Grid, batch: Floats | Ints, *, context: float | None = None
) -> StepTimes:
    """`batch`: tokens of the step over all attention ranks, at least one each counted; `context`: tokens
    behind each, by default the system's. The number of microbatches is the fastest.
    """
    nodes = nodes_of(system, grid)
    tokens = np.maximum(np.asarray(batch, dtype=np.float64), 1.0)
    # What colocated ranks run with, and steps that cannot be cut so often.
    one = _with_microbatches(system, grid, nodes, tokens, 1, context)
    best = one if 1 in system.microbatches else None
    for number in system.microbatches:
        if number == 1:
            continue
        found = _with_microbatches(system, grid, nodes, tokens, number, context)
        can = ~grid.colocated & (tokens >= number)
        # Where one is not asked for the first that can be had stands.
        is_better = can if best is None else can & (found.tpot_s < best.tpot_s)
        best = _merged(is_better, found, one if best is None else best)
    assert best is not None, f"{system.microbatches=}"
    return best


def _merged(which: Bools, these: StepTimes, those: StepTimes) -> StepTimes:
    """Candidate by candidate one or the other."""
    return StepTimes(
        **{
            name: np.where(which, getattr(these, name), getattr(those, name))
            for name in StepTimes.__dataclass_fields__
        }
    )


def _with_microbatches(
    system: System, grid: Grid, nodes: Nodes, tokens: Floats, number: int, context: float | None
) -> StepTimes:
    """A period of a layer lasts as long as the busiest stage has work, or as one microbatch needs to come
    round (MegaScale-Infer, Eq. 5); with one microbatch it is the sum.
    """
    # The slowest attention rank has its share of the tokens, rounded up.
    b = np.ceil(tokens / grid.num_attention)
    behind = np.full(len(grid), system.context.mean if context is None else context)
    if context is None and system.context.std:
        behind = behind + _slowest(grid.num_attention) * system.context.std / np.sqrt(b)
    attending, serving = nodes.attention_local, nodes.expert_local
    if number > 1:
        together = np.minimum(grid.num_ranks(), system.node_size)
        attending, serving = together, together
    rest = rest_s(system, nodes.attention_local, b, behind)
    attention = attention_s(system, attending, b / number, behind)
    moe = experts_s(system, grid, serving, tokens / number, b / number)
    comm, kind = exchange_s(system, grid, nodes, b / number, tokens / number)
    round_s = attention + moe + comm
    # The two directions of an exchange do not share a link.
    busiest = np.maximum(np.maximum(attention, moe), comm / 2)
    period = np.maximum(number * busiest, round_s)
    layers = system.attention.model.num_sparse_layers
    tpot = rest + round_s
    # Not times 0: an exchange without a link takes forever.
    if layers > 1:
        tpot = tpot + (layers - 1) * period
    if number > 1:
        tpot = tpot + (number - 1) * busiest
    return StepTimes(
        tpot_s=tpot,
        attention_s=rest + layers * number * attention,
        moe_s=layers * number * moe,
        comm_s=layers * number * comm,
        microbatches=np.full(len(grid), number, dtype=np.int64),
        kind=kind,
    )


def _slowest(num_ranks: Ints) -> Floats:
    """Expected largest of so many standard normal draws: what the slowest attention rank has more than the
    mean (2601.21351, the barrier term), by Blom's formula with a logistic stand-in for the normal quantile.
    """
    share = (num_ranks - 0.375) / (num_ranks + 0.25)
    largest: Floats = np.log(share / (1 - share)) / 1.702
    return np.maximum(largest, 0.0)
