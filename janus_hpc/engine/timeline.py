"""The timeline of a run: every rank's spans on world rank 0's clock, in one file.

Knows how clocks are compared and where parts lie; the spans come from the work itself.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from janus_hpc.comm.clocks import clock_offsets
from janus_hpc.comm.world import World
from janus_hpc.errors import JanusError
from janus_hpc.watch.chrome import events, join_parts, write_part
from janus_hpc.watch.spans import Spans

log = logging.getLogger(__name__)

# Spans of all ranks together: a file that a browser still opens.
MAX_SPANS = 1_000_000
LEAST_SPANS_A_RANK = 2_000

Offsets = Mapping[int, tuple[float, float]]


class Clocks:
    """How far this rank's steady clock is ahead of world rank 0's, as it was measured at two moments."""

    def __init__(self, world: World) -> None:
        """The first of them. Collective over the world."""
        self._world = world
        self._measured = [self._measure()]
        self.error_s = 0.0

    def measure_again(self) -> None:
        """The second. Collective over the world."""
        self._measured.append(self._measure())

    def _measure(self) -> tuple[float, float]:
        """When it was measured, by this rank's clock, and seconds ahead."""
        offsets: Offsets = self._world.bcast(clock_offsets(self._world, clock=time.perf_counter))
        ahead_s, self.error_s = offsets.get(self._world.node_id, (0.0, 0.0))
        return time.perf_counter(), ahead_s

    def shift_ns(self, moment_ns: int) -> float:
        """What to add to a moment of this rank's; clocks drift apart evenly between the two measurements."""
        (first_s, ahead_s), (last_s, later_s) = self._measured[0], self._measured[-1]
        drift = (later_s - ahead_s) / (last_s - first_s) if last_s > first_s else 0.0
        return -1e9 * (ahead_s + drift * (moment_ns / 1e9 - first_s))


def max_spans(world_size: int) -> int:
    """Most spans that one rank keeps."""
    return max(LEAST_SPANS_A_RANK, MAX_SPANS // world_size)


def write_timeline(world: World, spans: Spans, clocks: Clocks, run_dir: Path, path: Path) -> None:
    """Collective over the world. JanusError on every rank where a part or the file cannot be written."""
    clocks.measure_again()
    label = world.label.removesuffix(f"@{world.hostname}") + f" on {world.hostname}"
    error: JanusError | None = None
    try:
        part = _part(run_dir, world.world_rank)
        write_part(part, events(world.world_rank, label, spans.all(), clocks.shift_ns))
    except OSError as problem:
        error = JanusError(f"--trace: {problem}")
    world.agree(error)
    errors_s = world.gather(clocks.error_s)
    strides = world.gather(spans.stride)
    if errors_s is not None and strides is not None:
        parts = [_part(run_dir, rank) for rank in range(world.world_size)]
        about = {"clock_error_us": round(max(errors_s) * 1e6, 1), "every_nth_step": strides}
        try:
            join_parts(parts, path, about)
            log.info("timeline: %s (open it at ui.perfetto.dev)", path)
        except OSError as problem:
            error = JanusError(f"--trace {path}: {problem}")
    world.agree(error)


def _part(run_dir: Path, world_rank: int) -> Path:
    return run_dir / "timeline" / f"rank-{world_rank:05d}.jsonl"
