"""Compares two results files row by row, in bounded memory: whether their runs gave the same bytes,
and if not, where and what else about the runs differs.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus_hpc.core import RowResult
from janus_hpc.results.attributes import decoded
from janus_hpc.results.compare_rows import INPUT_KINDS, KINDS, RowDifference, compare_rows
from janus_hpc.results.reader import ResultsFile
from janus_hpc.results.shards import ROW_FIELDS

# What differs between any two runs and explains nothing.
_NO_HINT = frozenset(
    {
        "created",
        "exchange_measured_s",
        "first_row",
        "num_duplicates",
        "num_failed",
        "num_rows",
        "num_samples",
        "shards",
        "slurm",
        "energy",
    }
)
_NO_HINT_IN = {
    "config": frozenset({"output", "overwrite", "fresh", "shard"}),
    "fingerprint": frozenset(ROW_FIELDS),
}


@dataclass(kw_only=True)
class Comparison:
    """What two files have in common and what not. Numbers are of rows; `kinds` counts rows that
    differ in each of KINDS, `rows` are the first of them, `hints` name -> both values.
    """

    paths: tuple[Path, Path]
    num_rows: tuple[int, int]
    num_compared: int = 0
    num_different: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    rows: list[RowDifference] = field(default_factory=list)
    only_in: tuple[list[range], list[range]] = field(default_factory=lambda: ([], []))
    hints: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    same_fingerprint: bool = False

    @property
    def same(self) -> bool:
        """Both files hold the same rows, and every one of them is the same."""
        return not self.num_different and not any(self.only_in)

    @property
    def same_input(self) -> bool:
        """No row has another id or another prompt."""
        return not any(self.kinds[kind] for kind in INPUT_KINDS)

    def record(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "same": self.same,
            "same_input": self.same_input,
            "same_fingerprint": self.same_fingerprint,
            "files": [str(path) for path in self.paths],
            "num_rows": list(self.num_rows),
            "num_compared": self.num_compared,
            "num_different": self.num_different,
            "kinds": {kind: self.kinds[kind] for kind in KINDS if self.kinds[kind]},
            "only_in": [[[its.start, its.stop - 1] for its in ranges] for ranges in self.only_in],
            "rows": [
                {
                    "index": its.index,
                    "ids": list(its.ids),
                    "kinds": list(its.kinds),
                    "place": its.place,
                    "found": [_finite(value) for value in its.found],
                }
                for its in self.rows
            ],
            "hints": {name: [_finite(its) for its in both] for name, both in self.hints.items()},
        }


def compare(one: Path, other: Path, *, limit: int = 10, tolerance: float = 0.0) -> Comparison:
    """Compares the rows of both files by their place in the input; keeps the first `limit` that
    differ. Log probabilities may differ by `tolerance`. Raises UsageError for no results file,
    JournalError for a damaged one.
    """
    with ResultsFile(one) as first, ResultsFile(other) as second:
        found = Comparison(paths=(one, other), num_rows=(first.num_rows, second.num_rows))
        found.hints = _hints(first.attrs, second.attrs)
        prints = [_fingerprint(its.attrs) for its in (first, second)]
        found.same_fingerprint = None not in prints and prints[0] == prints[1]
        for pair in _pairs(iter(first), iter(second)):
            _add(found, *pair, limit=limit, tolerance=tolerance)
    return found


def _pairs(
    one: Iterator[RowResult], other: Iterator[RowResult]
) -> Iterator[tuple[RowResult | None, RowResult | None]]:
    """Rows with one index together, both files being in rising order; None where a file has none."""
    its, others = next(one, None), next(other, None)
    while its is not None or others is not None:
        if others is None or (its is not None and its.index < others.index):
            yield its, None
            its = next(one, None)
        elif its is None or others.index < its.index:
            yield None, others
            others = next(other, None)
        else:
            yield its, others
            its, others = next(one, None), next(other, None)


def _add(
    found: Comparison,
    its: RowResult | None,
    others: RowResult | None,
    *,
    limit: int,
    tolerance: float,
) -> None:
    if its is None or others is None:
        present = its or others
        assert present is not None
        _add_index(found.only_in[its is None], present.index)
        return
    found.num_compared += 1
    difference = compare_rows(its, others, tolerance)
    if difference is None:
        return
    found.num_different += 1
    found.kinds.update(difference.kinds)
    if len(found.rows) < limit:
        found.rows.append(difference)


def _add_index(ranges: list[range], index: int) -> None:
    if ranges and ranges[-1].stop == index:
        ranges[-1] = range(ranges[-1].start, index + 1)
    else:
        ranges.append(range(index, index + 1))


def _fingerprint(attrs: dict[str, Any]) -> Any:
    """What decides answers, without which rows were answered; None where the file does not say."""
    found = decoded(attrs.get("fingerprint"))
    if isinstance(found, dict):
        return {key: its for key, its in found.items() if key not in ROW_FIELDS}
    return found


def _hints(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the runs say of themselves and differ in, nested values field by field."""
    hints: dict[str, tuple[Any, Any]] = {}
    for name in sorted((one.keys() | other.keys()) - _NO_HINT):
        its, others = decoded(one.get(name)), decoded(other.get(name))
        if isinstance(its, dict) and isinstance(others, dict):
            for key in sorted((its.keys() | others.keys()) - _NO_HINT_IN.get(name, frozenset())):
                if its.get(key) != others.get(key):
                    hints[f"{name}.{key}"] = its.get(key), others.get(key)
        elif its != others:
            hints[name] = its, others
    return hints


def _finite(value: Any) -> Any:
    """Numbers that JSON does not have become text, inside lists and objects, too."""
    if isinstance(value, list):
        return [_finite(its) for its in value]
    if isinstance(value, dict):
        return {name: _finite(its) for name, its in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
