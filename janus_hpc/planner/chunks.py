"""Judging many candidates a part at a time: arrays of a part stay in the processor's cache. Pure."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np

from janus_hpc.planner.search import Judged
from janus_hpc.planner.system import Floats, Grid
from janus_hpc.planner.tpot import StepTimes

CHUNK = 4096


def in_chunks(grid: Grid, judge: Callable[[Grid], Judged]) -> Judged:
    """What `judge` says of all candidates; it must judge each by itself."""
    starts = range(0, max(len(grid), 1), CHUNK)
    parts = [judge(grid.pick(np.arange(at, min(at + CHUNK, len(grid))))) for at in starts]
    if len(parts) == 1:
        return parts[0]
    times = StepTimes(
        **{
            its.name: np.concatenate([getattr(part.times, its.name) for part in parts])
            for its in fields(StepTimes)
        }
    )
    seconds: list[Floats] = [part.job_s for part in parts if part.job_s is not None]
    columns = {
        its.name: np.concatenate([getattr(part, its.name) for part in parts])
        for its in fields(Judged)
        if its.name not in ("grid", "times", "job_s")
    }
    return Judged(
        grid=grid, times=times, job_s=np.concatenate(seconds) if seconds else None, **columns
    )
