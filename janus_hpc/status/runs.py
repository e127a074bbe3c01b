"""Finds runs by the files beside their results and reads what they say of themselves. Reads only."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_hpc.errors import UsageError
from janus_hpc.watch.beat import Beat, read_beats

PROGRESS = ".progress.json"
RUN = ".run"
# Progress is written every two seconds while a run lives.
STALE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run. `state` as progress.json has it, or `no news` where that is old, or `starting`, or `complete`.

    `beats`: of the launch that writes them now; `progress` is {} before the first step.
    """

    output: Path
    state: str
    age_s: float
    progress: dict[str, Any]
    beats: dict[int, Beat]


def find_runs(place: Path) -> list[Path]:
    """Results files, written or to be written: `place` itself, or those whose runs lie in the folder `place`.

    Errors: UsageError where there is none.
    """
    if place.name.endswith(RUN) and place.is_dir():
        return [place.with_name(place.name.removesuffix(RUN))]
    if not place.is_dir():
        if place.exists() or _has_run(place):
            return [place]
        raise UsageError(f"{place}: no results file, run folder or folder of runs")
    names = {its.name.removesuffix(PROGRESS) for its in place.glob(f"*{PROGRESS}")}
    names |= {its.name.removesuffix(RUN) for its in place.glob(f"*{RUN}") if its.is_dir()}
    if not names:
        raise UsageError(f"{place}: no runs here (no *{PROGRESS}, no *{RUN} folder)")
    return [place / name for name in sorted(names)]


def read_run(output: Path, now_unix_s: float) -> RunStatus:
    """What the run that writes `output` says now. Errors: UsageError for a progress file that is none."""
    path = output.with_name(output.name + PROGRESS)
    progress = _read_progress(path)
    beats = _last_launch(read_beats(output.with_name(output.name + RUN)))
    newest = max([its.at_unix_s for its in beats.values()], default=-math.inf)
    newest = max(newest, float(progress.get("updated_at_unix_s", -math.inf)))
    age_s = now_unix_s - newest
    state = str(progress.get("state", "starting"))
    if state in ("running", "merging", "starting") and age_s > STALE_S:
        state = "no news"
    return RunStatus(output=output, state=state, age_s=age_s, progress=progress, beats=beats)


def _has_run(output: Path) -> bool:
    return any(output.with_name(output.name + end).exists() for end in (PROGRESS, RUN))


def _read_progress(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected an object, got {type(values).__name__}")
    return values


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
