"""Whether two results of one row are the same, bit by bit, and where they part. Times do not count.

Pure: knows neither files nor how differences are shown.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from janus_hpc.core import RowResult, SampleResult, TokenLogprobs

# In the order in which they are looked for; the first two say that the inputs differ.
KINDS = (
    "id",
    "prompt",
    "error",
    "samples",
    "token_ids",
    "text",
    "finish_reason",
    "stop_reason",
    "logprobs",
    "top_logprobs",
)
INPUT_KINDS = ("id", "prompt")
_CONTEXT_TOKENS = 5
_CONTEXT_CHARACTERS = 30


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """In which `kinds` two results of the input's row `index` differ, and where they do first:
    `place` and what either has there, as plain values.
    """

    index: int
    ids: tuple[str, str]
    kinds: tuple[str, ...]
    place: str
    found: tuple[Any, Any]


@dataclass(frozen=True, kw_only=True)
class _Found:
    kind: str
    place: str
    found: tuple[Any, Any]


def compare_rows(one: RowResult, other: RowResult, tolerance: float = 0.0) -> RowDifference | None:
    """None if both are the same. Log probabilities may differ by `tolerance`; where that is 0 they
    are compared bit by bit.
    """
    found = _row_differences(one, other)
    for number, (its, others) in enumerate(zip(one.samples, other.samples, strict=False)):
        found += _sample_differences(number, its, others, tolerance)
    if not found:
        return None
    kinds = {its.kind for its in found}
    first = min(found, key=lambda its: KINDS.index(its.kind))
    return RowDifference(
        index=one.index,
        ids=(one.id, other.id),
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        place=first.place,
        found=first.found,
    )


def _row_differences(one: RowResult, other: RowResult) -> list[_Found]:
    found = []
    if one.id != other.id:
        found.append(_Found(kind="id", place="id", found=(one.id, other.id)))
    if one.prompt_token_ids != other.prompt_token_ids:
        found.append(_lists("prompt", "prompt", one.prompt_token_ids, other.prompt_token_ids))
    if one.error != other.error:
        told = tuple(
            None if its is None else {"line": its.line, "field": its.field, "reason": its.reason}
            for its in (one.error, other.error)
        )
        found.append(_Found(kind="error", place="error", found=(told[0], told[1])))
    if len(one.samples) != len(other.samples):
        counts = len(one.samples), len(other.samples)
        found.append(_Found(kind="samples", place="number of samples", found=counts))
    return found


def _sample_differences(
    number: int, one: SampleResult, other: SampleResult, tolerance: float
) -> list[_Found]:
    where = f"sample {number}"
    found = []
    if one.token_ids != other.token_ids:
        found.append(_lists("token_ids", where, one.token_ids, other.token_ids))
    if one.text != other.text:
        found.append(_texts(where, one.text, other.text))
    for kind, its, others in (
        ("finish_reason", one.finish_reason.value, other.finish_reason.value),
        ("stop_reason", one.stop_reason, other.stop_reason),
    ):
        # A stop token 1 is no stop text "1", nor is it True.
        if (type(its), its) != (type(others), others):
            found.append(_Found(kind=kind, place=f"{kind} of {where}", found=(its, others)))
    return found + _logprob_differences(where, one.logprobs, other.logprobs, tolerance)


def _logprob_differences(
    where: str,
    one: Sequence[TokenLogprobs] | None,
    other: Sequence[TokenLogprobs] | None,
    tolerance: float,
) -> list[_Found]:
    if one is None or other is None:
        if one is other:
            return []
        told = tuple("none" if its is None else f"{len(its)} positions" for its in (one, other))
        place = f"log probabilities of {where}"
        return [_Found(kind="logprobs", place=place, found=(told[0], told[1]))]
    found: dict[str, _Found] = {}
    for at, (its, others) in enumerate(zip_longest(one, other)):
        place = f"token {at} of {where}"
        if its is None or others is None or not _same([its.chosen], [others.chosen], tolerance):
            values = tuple(None if of is None else of.chosen for of in (its, others))
            new = _Found(
                kind="logprobs",
                place=f"log probability of {place}",
                found=(values[0], values[1]),
            )
            found.setdefault("logprobs", new)
        if its is not None and others is not None and not _same_tops(its, others, tolerance):
            new = _Found(
                kind="top_logprobs",
                place=f"best tokens at {place}",
                found=(_tops(its), _tops(others)),
            )
            found.setdefault("top_logprobs", new)
        if len(found) == 2:
            break
    return list(found.values())


def _same_tops(one: TokenLogprobs, other: TokenLogprobs, tolerance: float) -> bool:
    same = one.top_ids == other.top_ids
    return same and _same(one.top_logprobs, other.top_logprobs, tolerance)


def _tops(position: TokenLogprobs) -> list[list[float]]:
    return [list(pair) for pair in zip(position.top_ids, position.top_logprobs, strict=True)]


def _same(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    """Float32 values widen to distinct doubles, so their bits may be compared as doubles."""
    pattern = f"<{len(one)}d"
    if len(one) == len(other) and struct.pack(pattern, *one) == struct.pack(pattern, *other):
        return True
    return (
        tolerance > 0
        and len(one) == len(other)
        and all(
            a == b or abs(a - b) <= tolerance or (math.isnan(a) and math.isnan(b))
            for a, b in zip(one, other, strict=True)
        )
    )


def _lists(kind: str, where: str, one: Sequence[int], other: Sequence[int]) -> _Found:
    at = _parting(one, other)
    start = max(at - _CONTEXT_TOKENS, 0)
    parts = tuple(
        {"before": list(its[start:at]), "from_here": list(its[at : at + _CONTEXT_TOKENS])}
        for its in (one, other)
    )
    return _Found(kind=kind, place=f"token {at} of {where}", found=(parts[0], parts[1]))


def _texts(where: str, one: str, other: str) -> _Found:
    at = _parting(one, other)
    start = max(at - _CONTEXT_CHARACTERS, 0)
    parts = tuple(
        {"before": its[start:at], "from_here": its[at : at + _CONTEXT_CHARACTERS]}
        for its in (one, other)
    )
    return _Found(kind="text", place=f"character {at} of {where}", found=(parts[0], parts[1]))


def _parting(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first place where two unequal sequences differ, or where the shorter ends."""
    shared = min(len(one), len(other))
    return next((at for at in range(shared) if one[at] != other[at]), shared)
