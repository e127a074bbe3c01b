"""Tables of the report: failed rows, decisions, provenance. All text from the file is escaped."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from janus_hpc.results.report.facts import Facts
from janus_hpc.results.report.streams import BLOCK_ITEMS
from janus_hpc.results.report.svg import duration, element, escape, number

MAX_ERRORS = 50
_MAX_DECISIONS = 200
_OPEN_DECISIONS = 20
_MAX_CHARACTERS = 300
# Attributes of the run that are told elsewhere on the page.
_TOLD = frozenset({"energy", "num_rows", "num_failed", "num_samples", "schema_name"})


def errors_section(facts: Facts) -> str:
    """The first rows that failed: line, id, field, reason."""
    if not facts.num_failed:
        return element("p", "No row failed.", class_="nothing")
    rows = [_error(facts, at) for at in _failed(facts, MAX_ERRORS)]
    hidden = facts.num_failed - len(rows)
    more = (
        f"{number(hidden)} more failed; janus-hpc results export lists all of them."
        if hidden
        else ""
    )
    note = element("p", escape(more), class_="note") if more else ""
    return _table(("line", "id", "field", "reason"), rows) + note


def _failed(facts: Facts, most: int) -> list[int]:
    """Places in the file of the first rows that failed."""
    found: list[int] = []
    for start in range(0, facts.num_rows, BLOCK_ITEMS):
        stop = min(start + BLOCK_ITEMS, facts.num_rows)
        status = facts.columns.read("rows/status", start, stop)
        found += (start + np.flatnonzero(status)).tolist()
        if len(found) >= most:
            break
    return found[:most]


def _error(facts: Facts, at: int) -> tuple[str, ...]:
    line = int(facts.columns.read("rows/error_line", at, at + 1)[0])
    texts = [
        facts.columns.read_texts(f"rows/{name}", at, at + 1, errors="replace")[0]
        for name in ("id", "error_field", "error_reason")
    ]
    return (f"{line}", *map(_short, texts))


def decisions_section(facts: Facts) -> str:
    """What was decided at the borders between batches; many of them are folded."""
    batches = facts.batches
    if not batches.count:
        return element("p", "The file tells of no batches.", class_="nothing")
    numbers = batches.numbers
    shown = min(batches.count, _MAX_DECISIONS)
    rows = [
        (
            f"{at}",
            split,
            _short(decision),
            f"{numbers['slots_moved'][at]:,}",
            duration(float(numbers["move_s"][at])) if numbers["move_s"][at] else "",
        )
        for at, (split, decision) in enumerate(
            zip(batches.splits[:shown], batches.texts("decision", 0, shown), strict=True)
        )
    ]
    head = ("before batch", "split", "decision", "slots filled", "took")
    table = _table(head, rows)
    if batches.count > shown:
        note = f"{number(batches.count - shown)} more; janus-hpc results batches lists all of them."
        table += element("p", escape(note), class_="note")
    if shown > _OPEN_DECISIONS:
        return _folded(f"{number(batches.count)} decisions", table)
    return table


def provenance_section(facts: Facts) -> str:
    """Configuration, versions and everything else the run says of itself, folded."""
    attrs = {name: its for name, its in facts.attrs.items() if name not in _TOLD}
    nested = {name: its for name, its in attrs.items() if isinstance(its, dict) and its}
    plain = {name: its for name, its in attrs.items() if name not in nested}
    hosts = plain.get("hosts")
    if isinstance(hosts, list):
        plain["hosts"] = ", ".join(
            f"{name} ({count} ranks)" for name, count in Counter(map(str, hosts)).items()
        )
    parts = [
        _folded("configuration", _pairs(nested.pop("config", {}))),
        _folded("the run", _pairs(plain)),
        *(_folded(name.replace("_", " "), _pairs(its)) for name, its in sorted(nested.items())),
        _folded("starts", _launches(facts)),
    ]
    return "".join(parts)


def _launches(facts: Facts) -> str:
    rows = list(_launch_rows(facts))
    head = ("start", "rows kept from it", "what it says of itself")
    return _table(head, rows) if rows else element("p", "Not known.", class_="nothing")


def _launch_rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    columns = facts.columns
    count = min(len(columns.dataset("launches/number")), _MAX_DECISIONS)
    numbers = columns.read("launches/number", 0, count).tolist()
    kept = columns.read("launches/num_rows", 0, count).tolist()
    texts = columns.read_texts("launches/info", 0, count, errors="replace")
    for at, text in enumerate(texts):
        yield f"{numbers[at]}", f"{kept[at]:,}", _short(text, 2000)


def _pairs(values: dict[str, Any]) -> str:
    return _table(("name", "value"), [(name, _plain(its)) for name, its in sorted(values.items())])


def _plain(value: Any) -> str:
    if isinstance(value, dict | list):
        return _short(msgspec.json.encode(value).decode(), 2000)
    return _short(str(value), 2000)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = element("tr", "".join(element("th", escape(name)) for name in head))
    body = [element("tr", "".join(element("td", escape(cell)) for cell in row)) for row in rows]
    table = element("table", element("thead", first) + element("tbody", "".join(body)))
    return element("div", table, class_="table")


def _folded(name: str, content: str) -> str:
    return element("details", element("summary", escape(name)) + content)


def _short(text: str, most: int = _MAX_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}\u2026"
