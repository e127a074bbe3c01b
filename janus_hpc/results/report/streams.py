"""Sums, exact quantiles and histograms of columns of any length, block by block in bounded memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus_hpc.results.access import Columns

BLOCK_ITEMS = 1 << 16
_HALF_BITS = 16
_HALF = 1 << _HALF_BITS
_SIGN = np.uint32(1 << 31)

# Yields one-dimensional arrays; called anew for every pass.
Stream = Callable[[], Iterator[npt.NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of the values that are a number: how many, their mean, smallest and largest; NaN of none."""

    count: int = 0
    mean: float = math.nan
    least: float = math.nan
    most: float = math.nan


def column_stream(columns: Columns, name: str) -> Stream:
    """The values of a plain column."""

    def blocks() -> Iterator[npt.NDArray[Any]]:
        count = len(columns.dataset(name))
        for start in range(0, count, BLOCK_ITEMS):
            yield columns.read(name, start, min(start + BLOCK_ITEMS, count))

    return blocks


def length_stream(columns: Columns, offsets: str) -> Stream:
    """The lengths of the items of a ragged column, from its offsets."""

    def blocks() -> Iterator[npt.NDArray[Any]]:
        count = len(columns.dataset(offsets)) - 1
        for start in range(0, count, BLOCK_ITEMS):
            bounds = columns.read(offsets, start, min(start + BLOCK_ITEMS, count) + 1)
            yield np.diff(bounds.astype(np.int64))

    return blocks


def known(stream: Stream, unknown: float = math.nan) -> Stream:
    """The values without those that stand for "unknown": NaN, and `unknown`."""

    def blocks() -> Iterator[npt.NDArray[Any]]:
        for values in stream():
            keep = values != unknown
            if values.dtype.kind == "f":
                keep &= np.isfinite(values)
            yield values[keep]

    return blocks


def summarize(stream: Stream) -> Summary:
    """One pass over a stream of numbers."""
    count, total, least, most = 0, 0.0, math.inf, -math.inf
    for values in stream():
        if len(values):
            count += len(values)
            total += float(values.sum(dtype=np.float64))
            least, most = min(least, float(values.min())), max(most, float(values.max()))
    return Summary(count=count, mean=total / count, least=least, most=most) if count else Summary()


def quantiles(stream: Stream, shares: Sequence[float]) -> list[float]:
    """For each share the smallest float32 value that at least this share of the values do not exceed
    (nearest rank); NaN of no values. Exact: counts the upper halves of the values' bits, then the
    lower ones of those that matter.
    """
    upper = np.zeros(_HALF, np.int64)
    for values in stream():
        upper += np.bincount(_ordered(values) >> _HALF_BITS, minlength=_HALF)
    count = int(upper.sum())
    if not count:
        return [math.nan] * len(shares)
    ranks = [max(math.ceil(share * count), 1) for share in shares]
    ends = np.cumsum(upper)
    tops = [int(np.searchsorted(ends, rank)) for rank in ranks]
    lower = {top: np.zeros(_HALF, np.int64) for top in tops}
    for values in stream():
        bits = _ordered(values)
        for top in lower:
            its = bits[bits >> _HALF_BITS == top] & (_HALF - 1)
            lower[top] += np.bincount(its, minlength=_HALF)
    found = []
    for rank, top in zip(ranks, tops, strict=True):
        within = rank - int(ends[top] - upper[top])
        low = int(np.searchsorted(np.cumsum(lower[top]), within))
        found.append(_value(top << _HALF_BITS | low))
    return found


def _ordered(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The bits of float32 values as integers that are ordered as the values are."""
    bits = values.astype("<f4").view("<u4")
    flipped = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return flipped.astype(np.int64)


def _value(ordered: int) -> float:
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array([bits], "<u4").view("<f4")[0])


def histogram(
    stream: Stream, edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], int, int]:
    """Values between edges, the last one included, and how many lie below and above all."""
    counts = np.zeros(len(edges) - 1, np.int64)
    below = above = 0
    for values in stream():
        counts += np.histogram(values, edges)[0]
        below += int(np.count_nonzero(values < edges[0]))
        above += int(np.count_nonzero(values > edges[-1]))
    return counts, below, above
