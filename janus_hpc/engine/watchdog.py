"""A thread beside the work: tells where this rank is, and ends a run that stands still, with a report.

Reads the rank's pulse and writes one small file; takes no part in steps. What counts as a stall is
`watch.stall`'s to say.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from janus_hpc.comm.pulse import Pulse
from janus_hpc.comm.world import World
from janus_hpc.errors import ExitCode
from janus_hpc.watch.beat import Beat, BeatFile, read_beats
from janus_hpc.watch.graph import describe
from janus_hpc.watch.stall import Observer, Stall

log = logging.getLogger(__name__)

LEAST_INTERVAL_S, MOST_INTERVAL_S = 0.1, 5.0
# Heartbeats within the time that makes a stall.
BEATS_A_STALL = 8
# Ranks of a node that look at all others' files, should one of them be the one that is stopped.
OBSERVERS_A_NODE = 4
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Watchdog:
    """Runs while it is entered. `stall_s` of 0: heartbeats only. `end` is called with a report and an exit code,
    and must not return; `on_beat` with every heartbeat.
    """

    def __init__(
        self,
        world: World,
        run_dir: Path,
        launch: int,
        stall_s: float,
        end: Callable[[str, int], None],
        on_beat: Callable[[], None],
    ) -> None:
        self._world = world
        self._pulse: Pulse = world.pulse
        self._run_dir = run_dir
        self._launch = launch
        self._stall_s = stall_s
        self._end = end
        self._on_beat = on_beat
        interval_s = stall_s / BEATS_A_STALL if stall_s else MOST_INTERVAL_S
        self.interval_s = min(max(interval_s, LEAST_INTERVAL_S), MOST_INTERVAL_S)
        # Several nodes see the folder over a network.
        is_synced = len(set(world.node_ids)) > 1
        self._file = BeatFile(run_dir, world.world_rank, is_synced=is_synced)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._started_s = time.monotonic()
        self._number = 0
        self._now_s = 0.0
        self._count, self._count_since_s = -1, 0.0
        self._observer: Observer | None = None
        # A stack of an earlier launch goes with the first look.
        self._has_dumped = True
        self._has_failed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        last_s = time.monotonic()
        while True:
            try:
                self._look()
            except Exception as error:
                # What only watches must not end a run; a rank that cannot write its heartbeat looks silent.
                if not self._has_failed:
                    log.warning("the watchdog cannot do its work: %s", error)
                self._has_failed = True
            if self._stopped.wait(self.interval_s):
                self._file.close()
                return
            now_s = time.monotonic()
            # Time in which this process was stopped is no time in which others did nothing.
            self._now_s += min(now_s - last_s, 2 * self.interval_s)
            last_s = now_s

    def _look(self) -> None:
        self._on_beat()
        if self._stall_s:
            self._watch()
        self._file.write(self._beat())

    def _beat(self) -> Beat:
        pulse, wait = self._pulse, self._pulse.wait
        waiting = None if wait is None else wait.describe()
        self._number += 1
        return Beat(
            world_rank=self._world.world_rank,
            launch=self._launch,
            label=self._world.label,
            host=self._world.hostname,
            pid=os.getpid(),
            number=self._number,
            count=pulse.count,
            at_unix_s=time.time(),
            elapsed_s=time.monotonic() - self._started_s,
            where=pulse.where,
            waiting="" if waiting is None else waiting.text,
            waits_for=() if waiting is None else waiting.world_ranks,
            waiting_s=0.0 if wait is None else time.monotonic() - wait.since_s,
            in_steps=pulse.in_steps,
            num_steps=pulse.num_steps,
            attention_s=pulse.attention_s,
            experts_s=pulse.experts_s,
            rss_bytes=_rss_bytes(),
        )

    def _watch(self) -> None:
        if self._pulse.count != self._count:
            self._count, self._count_since_s = self._pulse.count, self._now_s
            self._observer = None
            if self._has_dumped:
                _stack_path(self._run_dir, self._world.world_rank).unlink(missing_ok=True)
                self._has_dumped = False
            return
        quiet_s = self._now_s - self._count_since_s
        if quiet_s >= self._stall_s and not self._has_dumped:
            self._dump_stacks()
        # Not all ranks read all files, unless those that should have done it are gone.
        first_s = self._stall_s * (0.25 if self._world.local_rank < OBSERVERS_A_NODE else 2.0)
        if quiet_s >= first_s:
            self._observe()

    def _observe(self) -> None:
        if self._observer is None:
            self._observer = Observer(self._stall_s)
        beats = {
            rank: beat
            for rank, beat in read_beats(self._run_dir).items()
            if beat.launch == self._launch and rank < self._world.world_size
        }
        stall = self._observer.look(beats, self._now_s)
        if stall is None:
            return
        # Where the one who is to tell does not, another one does a little later.
        is_late = stall.quiet_s > 1.5 * self._stall_s
        if stall.reporter == self._world.world_rank or is_late:
            self._report(stall)

    def _report(self, stall: Stall) -> None:
        path = self._run_dir / f"stall-{self._launch:04d}.txt"
        head = f"no rank got on for {stall.quiet_s:.0f} s; who waits for whom:"
        lines = [head, *(f"  {line}" for line in describe(stall.beats, stall.silent))]
        missing = [rank for rank in range(self._world.world_size) if rank not in stall.beats]
        if missing:
            lines.append(f"  world ranks without any heartbeat: {', '.join(map(str, missing))}")
        # The others write their stacks meanwhile.
        if self._stopped.wait(2 * self.interval_s) or self._pulse.count != self._count:
            return
        stacks = [_stacks_of(self._run_dir, rank) for rank in sorted(stall.beats)]
        try:
            path.write_text("\n".join([*lines, "", *stacks]) + "\n", encoding="utf-8")
            lines.append(f"the stacks of all ranks are in {path}")
        except OSError as error:
            lines.append(f"{path} cannot be written ({error.strerror})")
        lines.append("the same command resumes")
        self._end("\n".join(lines), int(ExitCode.TIMEOUT))

    def _dump_stacks(self) -> None:
        self._has_dumped = True
        with _stack_path(self._run_dir, self._world.world_rank).open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)


def _stack_path(run_dir: Path, world_rank: int) -> Path:
    return run_dir / "beats" / f"rank-{world_rank:05d}.stack"


def _stacks_of(run_dir: Path, world_rank: int) -> str:
    try:
        text = _stack_path(run_dir, world_rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = "none was written: the process is stopped or gone\n"
    return f"== stack of world rank {world_rank}\n{text}"


def _rss_bytes() -> int:
    """Resident memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0
