"""The timeline of a run: every rank's spans on world rank 0's clock, in one file.

Knows how clocks are compared and where parts lie; the spans come from the work itself.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from janus_hpc.comm.clocks import clock_offsets
from janus_hpc.comm.world import World
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
        self.error_s = 0.0
        self._measured = [self._measure()]

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
    """What fails here is only said: the answers do not depend on it. Collective over the world."""
    clocks.measure_again()
    label = world.label.removesuffix(f"@{world.hostname}") + f" on {world.hostname}"
    failure = ""
    try:
        part = _part(run_dir, world.world_rank)
        write_part(part, events(world.world_rank, label, spans.all(), clocks.shift_ns))
    except OSError as error:
        failure = str(error)
    told = world.gather((failure, clocks.error_s, spans.stride))
    if told is None:
        return
    failures = [failure for failure, _, _ in told if failure]
    if not failures:
        about = {
            "clock_error_us": round(max(error_s for _, error_s, _ in told) * 1e6, 1),
            "every_nth_step": [stride for _, _, stride in told],
        }
        try:
            join_parts([_part(run_dir, rank) for rank in range(world.world_size)], path, about)
        except OSError as error:
            failures = [str(error)]
    if failures:
        log.warning("--trace %s is not written: %s", path, failures[0])
    else:
        log.info("timeline: %s (open it at ui.perfetto.dev)", path)


def _part(run_dir: Path, world_rank: int) -> Path:
    return run_dir / "timeline" / f"rank-{world_rank:05d}.jsonl"
