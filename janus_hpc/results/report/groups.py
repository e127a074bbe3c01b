"""Takes consecutive batches together, so that there are no more than a plot can show."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.results.report.facts import Batches

_MAX_BARS = 96

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Consecutive batches taken together, so that there are no more than can be drawn."""

    bounds: list[tuple[int, int]]
    weights: Floats

    def mean(self, values: Floats) -> list[float]:
        """The mean of each group, weighted by decode steps; NaN where no batch tells."""
        found = []
        for start, stop in self.bounds:
            keep = np.isfinite(values[start:stop])
            weights = self.weights[start:stop][keep]
            its = values[start:stop][keep]
            found.append(float(its @ weights / weights.sum()) if len(its) else math.nan)
        return found


def grouped(batches: Batches) -> Groups:
    size = max(1, math.ceil(batches.count / _MAX_BARS))
    starts = range(0, batches.count, size)
    return Groups(
        bounds=[(start, min(start + size, batches.count)) for start in starts],
        weights=np.maximum(batches.numbers["num_decode_steps"].astype(np.float64), 1.0),
    )


def grouping_note(groups: Groups) -> str:
    size = groups.bounds[0][1] - groups.bounds[0][0]
    return f" Each stands for {size} batches: their mean, by steps." if size > 1 else ""
