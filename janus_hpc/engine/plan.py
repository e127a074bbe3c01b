"""What rank 0 decides before the work begins and every rank receives: one frozen value, broadcast.

Plain data: no decisions are taken here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from janus_hpc.config import RunConfig
from janus_hpc.engine.claims import RowIds
from janus_hpc.engine.decision import Assignment, BorderDecision, Prediction
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.placement import Placement
from janus_hpc.planner.profile_data import Profile
from janus_hpc.results.done import InFlight
from janus_hpc.topology import Role, Split


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What the ranks have: node and host of every world rank, the kind of device, and the memory of
    the rank that has least; cores of the first node.
    """

    node_ids: Sequence[int]
    hosts: Sequence[str]
    device: str
    room_bytes: int
    num_cores: int = 1


@dataclass(frozen=True)
class RunProfile:
    """A profile and where it is from, in words."""

    profile: Profile
    origin: str


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything ranks must agree on. `done` is a bit-packed array: 1 for rows with nothing left to do.

    Of the input's `num_rows`, rows `first_row` to `stop_row` - 1 are this run's. `in_flight`: rows that an earlier
    launch left unfinished. `job_left_s`: until the job's end, in seconds from when this is received; None where
    nothing limits the job.
    `turns`: the splits that batches take in turn, empty where the first one stays or a planner decides.
    `room_bytes`: as in `Allocation`.
    """

    config: RunConfig
    spec: ModelSpec
    model_dir: Path
    output: Path
    run_dir: Path
    index_path: Path
    split: Split
    split_why: str
    roles: tuple[Role, ...]
    turns: tuple[Assignment, ...]
    room_bytes: int
    placement: Placement
    slots_why: str
    dtype: str
    device: str
    max_context: int
    launch: int
    began_at_unix_s: int
    fingerprint: bytes
    fingerprint_fields: dict[str, str | int | float | bool | None]
    num_rows: int
    first_row: int
    stop_row: int
    in_flight: tuple[InFlight, ...]
    job_left_s: float | None
    num_resumed: int
    num_failed: int
    done: bytes
    prediction: Prediction | None = None
    profile: RunProfile | None = None

    @property
    def assignment(self) -> Assignment:
        """The split of the first batch."""
        return Assignment(split=self.split, roles=self.roles, why=self.split_why)

    @property
    def first(self) -> BorderDecision:
        """What was decided for the first batch."""
        why = f"split {self.split} ({self.split_why}), {self.placement.kind} placement"
        return BorderDecision(why=f"{why} ({self.placement.why})", prediction=self.prediction)

    @property
    def num_own_rows(self) -> int:
        """Rows that this run answers, finished ones included."""
        return self.stop_row - self.first_row

    def pending_rows(self) -> RowIds:
        """Indices of the rows still to compute, ascending; the same on every rank."""
        packed = np.frombuffer(self.done, dtype=np.uint8)
        done = np.unpackbits(packed, count=self.num_rows)
        return np.flatnonzero(done == 0)

    def batches(self) -> list[RowIds]:
        """The pending rows in the batches they are run in: at least one, which may be empty."""
        pending, size = self.pending_rows(), self.config.batch_rows
        if size == 0 or len(pending) == 0:
            return [pending]
        return [pending[start : start + size] for start in range(0, len(pending), size)]
