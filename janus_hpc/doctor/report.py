"""Findings as text for people, and as JSON. Pure."""

import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec

from janus_hpc.doctor.finding import Finding, Level

WIDTH = 100
_NAME_WIDTH = 10
_MARGIN = len("warning  ") + _NAME_WIDTH + 1


def lines_of(finding: Finding, num_ranks: int) -> list[str]:
    """One line for what is fine; else what, why, fix and where, wrapped."""
    head = f"{finding.level:<8} {finding.check:<{_NAME_WIDTH}} "
    lines = _wrap(finding.what, head, " " * len(head))
    if finding.level == Level.OK:
        return lines
    for word, text in (
        ("why", finding.why),
        ("fix", finding.fix),
        ("where", _where(finding, num_ranks)),
    ):
        if text:
            start = " " * _MARGIN + f"{word}: "
            lines += _wrap(text, start, " " * len(start))
    return lines


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _where(finding: Finding, num_ranks: int) -> str:
    """Ranks as ranges, and their hosts; nothing where it concerns all of them."""
    if not finding.ranks or (len(finding.ranks) == num_ranks):
        return ""
    ranks = ranges(finding.ranks)
    hosts = ", ".join(finding.hosts[:6]) + (" ..." if len(finding.hosts) > 6 else "")
    return f"rank{'s' if len(finding.ranks) > 1 else ''} {ranks} on {hosts}"


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5` of ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{its[0]}-{its[-1]}" if len(its) > 1 else str(its[0]) for its in parts)


def summary(findings: Sequence[Finding], num_ranks: int, num_nodes: int) -> str:
    """The last line: how many of what, and what that means."""
    counts = Counter(finding.level for finding in findings)
    texts = [
        f"{counts[level]} {name}{'s' if counts[level] != 1 and level != Level.OK else ''}"
        for level, name in (
            (Level.ERROR, "error"),
            (Level.WARNING, "warning"),
            (Level.INFO, "note"),
            (Level.OK, "fine"),
        )
        if counts[level]
    ]
    ranks = f"{num_ranks} rank{'s' if num_ranks > 1 else ''} on {num_nodes} node{'s' if num_nodes > 1 else ''}"
    verdict = "ready to run"
    if counts[Level.ERROR]:
        verdict = "a run would fail or go wrong"
    elif counts[Level.WARNING]:
        verdict = "a run works, but see the warnings"
    return f"doctor: {', '.join(texts)} on {ranks}: {verdict}"


def to_json(findings: Sequence[Finding]) -> bytes:
    """The list of findings, indented."""
    return msgspec.json.format(msgspec.json.encode(list(findings)), indent=1) + b"\n"
