"""A comparison of two results files as lines of text for a person."""

from typing import Any

from janus_hpc.results.compare import Comparison
from janus_hpc.results.compare_rows import KINDS, RowDifference

_MAX_RANGES = 5
_MAX_CHARACTERS = 160
_WHAT = {
    "id": "other ids: not the same input",
    "prompt": "other prompt tokens: not the same input",
    "error": "other errors",
    "samples": "another number of samples",
    "token_ids": "other tokens",
    "text": "other text",
    "finish_reason": "another finish reason",
    "stop_reason": "another stop reason",
    "logprobs": "other log probabilities",
    "top_logprobs": "other best tokens or their log probabilities",
}


def comparison_lines(found: Comparison, tolerance: float = 0.0) -> list[str]:
    """What was found: the verdict, counts by kind, the first rows that differ, hints."""
    lines = [
        f"{name} {path}: {count} rows"
        for name, path, count in zip("AB", found.paths, found.num_rows, strict=True)
    ]
    if found.same:
        within = f" (log probabilities within {tolerance:g})" if tolerance else ""
        return [*lines, f"same: all {found.num_compared} rows gave the same bytes{within}"]
    if not found.same_input:
        lines.append("the inputs are not the same: rows have other ids or other prompts")
    lines.append(
        f"different: {found.num_different} of {found.num_compared} rows that both have differ"
    )
    lines += [f"  {found.kinds[kind]} with {_WHAT[kind]}" for kind in KINDS if found.kinds[kind]]
    for name, ranges in zip("AB", found.only_in, strict=True):
        if ranges:
            lines.append(f"  {sum(map(len, ranges))} only in {name}: rows {_ranges(ranges)}")
    for its in found.rows:
        lines += _row_lines(its)
    hidden = found.num_different - len(found.rows)
    if hidden:
        lines.append(f"and {hidden} more rows; --limit shows more")
    return lines + _hint_lines(found)


def _row_lines(its: RowDifference) -> list[str]:
    name = repr(its.ids[0]) if its.ids[0] == its.ids[1] else " / ".join(map(repr, its.ids))
    return [
        f"row {its.index} (line {its.index + 1}), id {_short(name)}: {', '.join(its.kinds)};"
        f" first {its.place}",
        *(f"  {side} {_shown(value)}" for side, value in zip("AB", its.found, strict=True)),
    ]


def _hint_lines(found: Comparison) -> list[str]:
    if found.same_fingerprint:
        lines = ["both runs have the same fingerprint, so their answers should be the same"]
    else:
        lines = ["the runs' fingerprints differ, so their answers may"]
    if found.hints:
        lines.append("the runs differ in (A, B):")
    for name, (its, others) in found.hints.items():
        lines.append(f"  {name}: {_short(repr(its))}, {_short(repr(others))}")
    return lines


def _shown(value: Any) -> str:
    """A value; a list or text in context, with the place of the difference marked by brackets."""
    if not isinstance(value, dict) or value.keys() != {"before", "from_here"}:
        return _short(repr(value))
    before, rest = value["before"], value["from_here"]
    if isinstance(before, str):
        return f"{before!r} [{rest!r}]"
    marked = [f"[{rest[0]}]", *map(str, rest[1:])] if rest else ["[end]"]
    return " ".join([*map(str, before), *marked])


def _ranges(ranges: list[range]) -> str:
    told = [f"{its.start} to {its.stop - 1}" if len(its) > 1 else f"{its.start}" for its in ranges]
    more = f" and {len(told) - _MAX_RANGES} more ranges" if len(told) > _MAX_RANGES else ""
    return ", ".join(told[:_MAX_RANGES]) + more


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
