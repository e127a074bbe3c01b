"""What must come out of a file of lines, decided from its bytes with the standard library's JSON alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fuzz.rows import Lines

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A reason is for a person to read.
MOST_REASON_BYTES = 4000


class Finding(Exception):
    """Something that is a bug: what was seen, in a line."""


@dataclass(frozen=True)
class Expected:
    """`must_fail`: numbers of lines that hold no JSON object; `must_run`: of valid rows, with id and prompt."""

    lines: list[bytes]
    must_fail: set[int]
    must_run: Mapping[int, Mapping[str, Any]]


def expect(made: Lines) -> Expected:
    """Of a file as it lies on disk."""
    lines = [line.strip(b" \t\r\n") for line in bytes(made.data).split(b"\n")]
    lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK).strip(b" \t\r\n")
    while lines and not lines[-1]:
        lines.pop()
    must_fail = {number for number, line in enumerate(lines) if _is_no_object(line)}
    return Expected(lines, must_fail, made.must_run)


def _is_no_object(line: bytes) -> bool:
    """False also where the standard library gives up: then either outcome is right."""
    try:
        value = json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    except (RecursionError, ValueError):
        return False
    return not isinstance(value, dict)


def check_row(
    expected: Expected, number: int, row_id: str, error: Mapping[str, Any] | None
) -> None:
    """One row as it came out. Raises Finding. `error`: line, field and reason, None for a row that runs."""
    if error is not None:
        _check_error(expected, number, error)
    elif number in expected.must_fail:
        raise Finding(f"line {number + 1} is no JSON object, but runs")
    wanted = expected.must_run.get(number)
    if wanted is None:
        return
    if error is not None and not _repeats(expected, error, str(wanted["id"])):
        raise Finding(f"line {number + 1} is valid, but refused: {error}")
    if error is None and row_id != wanted["id"]:
        raise Finding(f"line {number + 1} has id {wanted['id']!r}, but came out as {row_id!r}")


def _check_error(expected: Expected, number: int, error: Mapping[str, Any]) -> None:
    if error["line"] != number + 1:
        raise Finding(f"line {number + 1}: its error row names line {error['line']}")
    reason, field = error["reason"], error["field"]
    if not reason or not isinstance(field, str):
        raise Finding(f"line {number + 1}: error row without a reason: {error}")
    size = len(reason.encode("utf-8", "surrogatepass")) + len(
        field.encode("utf-8", "surrogatepass")
    )
    if size > MOST_REASON_BYTES:
        raise Finding(f"line {number + 1}: field and reason of {size} bytes: {reason[:100]!r}")
    if "Traceback" in reason or "object at 0x" in reason:
        raise Finding(f"line {number + 1}: a reason of the program's, not of the row: {reason!r}")


def _repeats(expected: Expected, error: Mapping[str, Any], row_id: str) -> bool:
    """Whether a mutation made an earlier line with the same id: then this one is rightly refused."""
    words = str(error["reason"]).split()
    if not str(error["reason"]).startswith("duplicate id: first given on line "):
        return False
    return row_id.encode() in expected.lines[int(words[-1]) - 1]
