"""Finds runs by the files beside their results and reads what they say of themselves. Reads only."""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.watch.beat import Beat, read_beats

PROGRESS = ".progress.json"
RUN = ".run"
# Progress is written every two seconds while a run lives.
STALE_S = 60.0
ENDED = ("complete", "interrupted")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The content of progress.json."""

    state: str
    rows: int
    rows_done: int
    rows_failed: int
    rows_in_flight: int
    tokens_generated: int
    tokens_per_s: float
    elapsed_s: float
    eta_s: float | None
    first_row_s: float | None
    updated_at_unix_s: float


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run. `state` as progress.json has it, or `no news` where that is old, or `starting`, or `complete`.

    `beats`: of the launch that writes them now; `progress` is None before the first step.
    """

    output: Path
    state: str
    age_s: float
    progress: Told | None
    beats: dict[int, Beat]


def find_runs(place: Path) -> list[Path]:
    """Results files, written or to be written: `place` itself, or those whose runs lie in the folder `place`.

    Errors: UsageError where there is none.
    """
    if place.name.endswith(RUN) and place.is_dir():
        return [place.with_name(place.name.removesuffix(RUN))]
    if not place.is_dir():
        if _has_run(place) or (place.is_file() and is_hdf5(place)):
            return [place]
        raise UsageError(f"{place}: no results file, run folder or folder of runs")
    names = {its.name.removesuffix(PROGRESS) for its in place.glob(f"*{PROGRESS}")}
    names |= {its.name.removesuffix(RUN) for its in place.glob(f"*{RUN}") if its.is_dir()}
    if not names:
        raise UsageError(f"{place}: no runs here (no *{PROGRESS}, no *{RUN} folder)")
    return [place / name for name in sorted(names)]


def read_run(output: Path, now_unix_s: float) -> RunStatus:
    """What the run that writes `output` says now. Errors: UsageError for a progress file that is none."""
    progress = _read_progress(output.with_name(output.name + PROGRESS))
    run_dir = output.with_name(output.name + RUN)
    beats = _last_launch(read_beats(run_dir))
    heard_s = max([its.at_unix_s for its in beats.values()], default=_touched_s(run_dir))
    told_s = progress.updated_at_unix_s if progress is not None else -math.inf
    age_s = now_unix_s - max(heard_s, told_s)
    state = "starting" if progress is None else progress.state
    if output.is_file() and not run_dir.is_dir():
        state = "complete"
    elif _is_newer(beats, told_s):
        # Another launch, on its way to its first step: what was told is of the one before.
        state, progress = "starting", None
    if state not in ENDED and age_s > STALE_S:
        state = "no news"
    return RunStatus(output=output, state=state, age_s=age_s, progress=progress, beats=beats)


def _is_newer(beats: dict[int, Beat], told_s: float) -> bool:
    """Whether the launch of these heartbeats began after that was told; both by the clock of world rank 0's host."""
    first = beats.get(0)
    return first is not None and first.at_unix_s - first.elapsed_s > told_s > -math.inf


def _touched_s(run_dir: Path) -> float:
    """When a run that has no heartbeat yet last made a file."""
    try:
        return max(its.stat().st_mtime for its in (run_dir, *run_dir.iterdir()))
    except OSError:
        return -math.inf


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as a results file does."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _has_run(output: Path) -> bool:
    return any(output.with_name(output.name + end).exists() for end in (PROGRESS, RUN))


def _read_progress(path: Path) -> Told | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Told)
    except OSError:
        # There is none yet, or a file server lost sight of it while it was replaced.
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _last_launch(beats: dict[int, Beat]) -> dict[int, Beat]:
    last = max((its.launch for its in beats.values()), default=-1)
    return {rank: its for rank, its in beats.items() if its.launch == last}


def role_of(beat: Beat) -> str:
    """The first word of the rank's name."""
    return beat.label.split(" ", maxsplit=1)[0]


def utilisation(now: dict[int, Beat], before: dict[int, Beat]) -> dict[str, tuple[int, float]]:
    """Role -> number of ranks, and the mean share of time that they computed since `before`; since their start
    where that is {}.
    """
    shares: dict[str, list[float]] = {}
    for rank, beat in now.items():
        then = before.get(rank)
        if then is not None and then.launch != beat.launch:
            then = None
        elapsed_s = beat.elapsed_s - (then.elapsed_s if then else 0.0)
        busy_s = beat.attention_s + beat.experts_s
        busy_s -= then.attention_s + then.experts_s if then else 0.0
        share = busy_s / elapsed_s if elapsed_s > 0 else 0.0
        shares.setdefault(role_of(beat), []).append(min(max(share, 0.0), 1.0))
    return {role: (len(its), sum(its) / len(its)) for role, its in sorted(shares.items())}
