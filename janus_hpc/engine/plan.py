"""What rank 0 decides before the work begins and every rank receives: one frozen value, broadcast.

Plain data: no decisions are taken here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from janus_hpc.config import RunConfig
from janus_hpc.engine.claims import RowIds
from janus_hpc.models.spec import ModelSpec
from janus_hpc.topology import Role, Split


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything ranks must agree on. `done` is a bit-packed array: 1 for rows with nothing left to do."""

    config: RunConfig
    spec: ModelSpec
    model_dir: Path
    output: Path
    run_dir: Path
    index_path: Path
    split: Split
    split_why: str
    roles: tuple[Role, ...]
    dtype: str
    device: str
    max_context: int
    launch: int
    began_at_unix_s: int
    fingerprint: bytes
    fingerprint_fields: dict[str, str | int | float | bool | None]
    num_rows: int
    num_resumed: int
    num_failed: int
    done: bytes

    def pending_rows(self) -> RowIds:
        """Indices of the rows still to compute, ascending; the same on every rank."""
        packed = np.frombuffer(self.done, dtype=np.uint8)
        done = np.unpackbits(packed, count=self.num_rows)
        return np.flatnonzero(done == 0)
