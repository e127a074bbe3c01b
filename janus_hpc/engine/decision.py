"""What is decided at the border between two batches: plain values, made on world rank 0 and broadcast.

Knows neither how a decision is found nor how it is carried out.
"""

import math
from dataclasses import dataclass, field

from janus_hpc.placement.placement import Placement
from janus_hpc.topology import Role, Split


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of the coming batch, in seconds a step but for the last two; NaN where nothing is predicted.

    `move_s`: what the change takes; `gain_s`: what the rest of the run gets shorter by it.
    """

    tpot_s: float = math.nan
    attention_s: float = math.nan
    moe_s: float = math.nan
    comm_s: float = math.nan
    move_s: float = math.nan
    gain_s: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A split, the role of every world rank under it, and why it was taken, which is not compared."""

    split: Split
    roles: tuple[Role, ...]
    why: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class BorderDecision:
    """How to go on, and why. None: as before.

    `placement` is over the expert ranks of the coming batch, in any order of slots: with an `assignment` it is
    needed. `num_microbatches` None with one: as many as before, where the new split has both roles.
    """

    why: str
    assignment: Assignment | None = None
    placement: Placement | None = None
    num_microbatches: int | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if self.assignment is not None:
            num_ranks = sum(role.does_experts for role in self.assignment.roles)
            assert self.placement is not None, f"{self.assignment.split} without a placement"
            assert self.placement.num_ranks == num_ranks, (
                f"{self.placement.num_ranks=} {num_ranks=}"
            )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the batch before the border ran. `number`: of the coming batch, from 0 in this launch."""

    number: int
    assignment: Assignment
    placement: Placement
    num_microbatches: int
    num_rows_left: int
