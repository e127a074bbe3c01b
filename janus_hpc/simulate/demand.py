"""Tokens a second over time: built-in traces, the same for the same seed, and CSV files.

Knows nothing of plans.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from janus_hpc.errors import UsageError

# Legend: T intervals.

Floats = npt.NDArray[np.float64]

KINDS = ("diurnal", "bursty", "flat")
_HEADER = ["time_s", "rate"]
_DAY_S = 86400.0
# No interval asks for less than this share of the mean.
_FLOOR = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Demand:
    """Interval i starts at starts_T[i] and asks for rates_T[i] tokens a second; `name`: what it is, in words."""

    name: str
    starts_T: Floats
    lengths_T: Floats
    rates_T: Floats

    def hours(self) -> float:
        """From the first start to the last end."""
        return float(self.lengths_T.sum()) / 3600


def built_in(
    kind: str, *, mean_rate: float, peak_ratio: float, hours: float, interval_s: float, seed: int
) -> Demand:
    """A day and night curve, bursts, or the same all the time. Mean and peak are exact.

    Errors: UsageError for an unknown kind, and for a peak that so few intervals cannot have.
    """
    count = round(hours * 3600 / interval_s)
    if count < 1:
        raise UsageError(f"--hours {hours:g}: shorter than one interval of {interval_s / 60:g} min")
    starts_T = np.arange(count, dtype=np.float64) * interval_s
    if kind == "flat" or peak_ratio == 1:
        rates_T = np.full(count, mean_rate)
    else:
        if count <= peak_ratio / (1 - _FLOOR):
            raise UsageError(
                f"--peak-ratio {peak_ratio:g}: needs more than {peak_ratio / (1 - _FLOOR):g} intervals, not {count}"
            )
        rng = np.random.default_rng(seed)
        if kind == "diurnal":
            shape_T, noise_T = _day(starts_T), np.exp(rng.normal(0, 0.08, count))
        else:
            shape_T, noise_T = _bursts(count, rng), np.ones(count)
        rates_T = mean_rate * _stretch(shape_T, noise_T, peak_ratio)
    return Demand(
        name=f"{kind}, mean {mean_rate:g} tokens/s, peak {rates_T.max() / mean_rate:.1f} times that",
        starts_T=starts_T,
        lengths_T=np.full(count, interval_s),
        rates_T=rates_T,
    )


def read_demand(path: Path) -> Demand:
    """A CSV file with header `time_s,rate`: from each time on so many tokens a second, the last for as long as
    the one before. Errors: UsageError naming file, line and fault.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            times, rates = _parse(path, csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"demand {path}: cannot be read: {why}") from error
    except csv.Error as error:
        raise UsageError(f"demand {path}: {error}") from error
    if len(times) < 2:
        raise UsageError(f"demand {path}: has {len(times)} intervals, expected at least 2")
    lengths_T = np.diff(np.array(times))
    return Demand(
        name=path.name,
        starts_T=np.array(times),
        lengths_T=np.append(lengths_T, lengths_T[-1]),
        rates_T=np.array(rates),
    )


def _parse(path: Path, lines: Iterable[list[str]]) -> tuple[list[float], list[float]]:
    times: list[float] = []
    rates: list[float] = []
    for number, cells in enumerate(lines, start=1):
        where = f"demand {path}, line {number}"
        if number == 1:
            if [its.strip() for its in cells] != _HEADER:
                raise UsageError(f"{where}: is {','.join(cells)!r}, expected {','.join(_HEADER)!r}")
            continue
        if not cells:
            continue
        if len(cells) != len(_HEADER):
            raise UsageError(f"{where}: has {len(cells)} values, expected {len(_HEADER)}")
        try:
            time_s, rate = (float(its) for its in cells)
        except ValueError as error:
            raise UsageError(f"{where}: {','.join(cells)!r} are not two numbers") from error
        if not (math.isfinite(time_s) and 0 <= rate < math.inf):
            raise UsageError(f"{where}: rate is {rate:g}, expected a finite number from 0 on")
        if times and time_s <= times[-1]:
            raise UsageError(f"{where}: time_s is {time_s:g}, expected more than {times[-1]:g}")
        times.append(time_s)
        rates.append(rate)
    return times, rates


def _day(starts_T: Floats) -> Floats:
    """A day's swing, highest in the afternoon, with a shoulder before."""
    turn = 2 * math.pi * starts_T / _DAY_S
    swing = 1 - np.cos(turn - 0.4) + 0.3 * np.sin(2 * turn)
    shape: Floats = swing - swing.min() + 0.1
    return shape


def _bursts(count: int, rng: np.random.Generator) -> Floats:
    """Logarithms that drift back to their mean: a burst lasts some intervals."""
    level, levels = 0.0, []
    for step in rng.normal(0, 1, count):
        level = 0.6 * level + float(step)
        levels.append(level)
    shape: Floats = np.exp(np.array(levels))
    return shape


def _stretch(shape_T: Floats, noise_T: Floats, peak_ratio: float) -> Floats:
    """The shape to a power, times the noise except at the peak, such that the largest is peak_ratio times the mean,
    which becomes 1.
    """
    share_T = shape_T / shape_T.max()
    noise_T = np.where(share_T == 1, 1.0, noise_T)

    def rates(power: float) -> Floats:
        part = np.minimum(noise_T * share_T**power, 1.0)
        found: Floats = _FLOOR + (peak_ratio - _FLOOR) * part
        return found

    if rates(0.0).mean() < 1:
        # So flat a demand has no room for noise.
        noise_T = np.ones(len(share_T))
    low, high = 0.0, 1.0
    while rates(high).mean() > 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rates(middle).mean() > 1 else (low, middle)
    return rates(high)
