"""Makes the checks one after another on all ranks, and says on rank 0 what was found.

Knows no particular check. A check that fails is a finding like another.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, Level, error, note, some
from janus_hpc.doctor.watchdog import Watchdog
from janus_hpc.errors import JanusError

Answer = tuple[str, Any]
FACTS, SKIPPED, FAILED = "facts", "skipped", "failed"
# What a check does beside waiting: torch alone may take many seconds to import.
_WORK_S = 30.0
# Of the time in which all must answer, what waits inside a check may take.
_CHECK_SHARE = 0.8


class SomeRanksSilent(Exception):
    """Ranks did not answer in time, so no further check can be made."""


def examine(
    context: Context, checks: Sequence[Check], say: Callable[[Finding], None], watchdog: Watchdog
) -> list[Finding]:
    """All findings on rank 0, each given to `say` at once; [] elsewhere. Collective over the world.

    SomeRanksSilent on rank 0, after a finding that names them.
    """
    ask = _Asker(context)
    findings: list[Finding] = []
    for number, check in enumerate(checks):
        watchdog.expect(f"check {check.name}", _limit_s(context))
        answer = _answer(check, context)
        answers = ask.everybody(number, answer)
        if answers is None:
            continue
        found, is_over = _found(check, answers, context)
        for finding in found:
            filled = _filled(finding, check, context)
            findings.append(filled)
            say(filled)
        if is_over:
            raise SomeRanksSilent
    watchdog.expect("the end of the checks", len(checks) * _limit_s(context))
    ask.finish()
    return findings


def _limit_s(context: Context) -> float:
    """After which a check is hopeless. Rank 0 gets to name the others before they are ended."""
    own_s = 2 * context.timeout_s + _WORK_S
    return own_s if context.world_rank == 0 else 2 * own_s


class _Asker:
    """Brings answers to rank 0, with or without MPI."""

    def __init__(self, context: Context) -> None:
        self._rank = context.world_rank
        self._calls: Any = None
        if context.world is not None and context.world.world_size > 1:
            from janus_hpc.comm.roll_call import RollCall

            self._calls = RollCall(context.world, context.timeout_s)

    def everybody(self, question: int, answer: Answer) -> dict[int, Answer] | None:
        """World rank -> answer on rank 0, None elsewhere."""
        if self._calls is None:
            return {0: answer}
        if self._rank == 0:
            found: dict[int, Answer] = self._calls.collect(question, answer)
            return found
        self._calls.answer(question, answer)
        return None

    def finish(self) -> None:
        if self._calls is not None:
            self._calls.finish()


def _answer(check: Check, context: Context) -> Answer:
    """What this rank gathered, or why it could not."""
    try:
        if check.communicates and context.world is not None:
            from janus_hpc.comm.roll_call import private_world

            # A rank that waits here for one that failed must answer before rank 0 stops listening.
            limit_s = _CHECK_SHARE * context.timeout_s
            context = replace(context, world=private_world(context.world, limit_s))
        return FACTS, check.gather(context)
    except Skip as reason:
        return SKIPPED, str(reason)
    except JanusError as problem:
        return FAILED, str(problem)
    # A check meets broken machines: whatever it stumbles over is worth a line, not the end.
    except Exception as problem:
        return FAILED, f"{type(problem).__name__}: {problem}"


def _found(
    check: Check, answers: dict[int, Answer], context: Context
) -> tuple[list[Finding], bool]:
    """The findings of a check, and whether ranks were silent."""
    size = context.places.world_size
    failed = {r: text for r, (kind, text) in answers.items() if kind == FAILED}
    silent = [r for r in range(size) if r not in answers]
    if silent:
        return [_silent(silent, context), *_failures(failed)], True
    if failed:
        return _failures(failed), False
    skipped = [text for kind, text in answers.values() if kind == SKIPPED]
    if skipped:
        return [note(f"skipped: {skipped[0]}")], False
    try:
        return check.judge([answers[r][1] for r in range(size)], context), False
    except Exception as problem:
        return _failures({0: f"{type(problem).__name__}: {problem}"}), False


def _silent(silent: Sequence[int], context: Context) -> Finding:
    named = some([f"{r} on {context.places.hosts[r]}" for r in silent])
    return error(
        f"no answer in {context.timeout_s:g} s from {len(silent)} of {context.places.world_size} ranks: {named}",
        why="they hang in this check, or are gone; the checks that follow cannot be made",
        fix="look at these hosts (a file server that does not answer, a GPU that is gone), or leave them out; "
        "raise --timeout-s if they are only slow",
        ranks=silent,
    )


def _failures(failed: dict[int, str]) -> list[Finding]:
    return [
        error(
            f"the check failed: {text}",
            why="what it looks at is not known now",
            fix="mend what it says, or leave it out with --skip",
            ranks=[r for r, its in failed.items() if its == text],
        )
        for text in dict.fromkeys(failed.values())
    ]


def _filled(finding: Finding, check: Check, context: Context) -> Finding:
    hosts = tuple(dict.fromkeys(context.places.hosts[r] for r in finding.ranks))
    return msgspec.structs.replace(finding, check=check.name, hosts=hosts)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 for nothing but ok and info, 1 for warnings, 2 for errors."""
    worst = max(
        (finding.level for finding in findings), key=lambda its: its.badness, default=Level.OK
    )
    return {Level.WARNING: 1, Level.ERROR: 2}.get(worst, 0)
