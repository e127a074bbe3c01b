"""Check `output`: the folder of the results, tried out from every node at once."""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from janus_hpc.doctor import probe
from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, note, size, some, warning
from janus_hpc.doctor.mounts import MEMORY_KINDS, file_system_of

if TYPE_CHECKING:
    from janus_hpc.comm.world import World

_LEAST_BYTES, _FEW_BYTES = 100 << 20, 1 << 30
_LEAST_FILES, _FEW_FILES = 50, 1000
# How long a new file may take to be seen by another host (NFS remembers names for some time).
_SEEN_S = 20.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class OutputFacts:
    """What one node's first rank met in `folder`; `problem` ends the trial there.

    `sees_first`: it saw rank 0's file; `missing`: on rank 0, the ranks whose files it did not see.
    `locked`: another node's lock is seen here, None where that cannot be told.
    """

    folder: str
    kind: str = ""
    problem: str = ""
    unsafe: str = ""
    sees_first: bool = True
    missing: tuple[int, ...] = ()
    locked: bool | None = None
    free_bytes: int = 0
    free_files: int | None = None


def gather(context: Context) -> OutputFacts | None:
    """None on ranks that are not their node's first. Collective over the world."""
    world = context.world
    folder = probe.folder_of(context.target.output)
    token = f".janus-doctor-{uuid.uuid4().hex[:12]}"
    token = world.bcast(token) if world is not None else token
    name = f"{token}.{context.world_rank}"
    facts: OutputFacts | None = None
    limit_s = min(_SEEN_S, context.timeout_s / 4)
    fd = -1
    try:
        if context.is_first_on_node:
            try:
                facts = _try_alone(context.target.output, folder, name)
            except OSError as error:
                # The other ranks wait for what this one has found.
                problem = f"{folder}: {error.strerror or error}"
                facts = OutputFacts(folder=str(folder), problem=problem)
        writers = _writers(world, facts)
        if context.world_rank == 0 and facts is not None and not facts.problem:
            fd, _ = probe.hold_lock(folder, name)
        held = world.bcast(fd >= 0) if world is not None else False
        if facts is not None and not facts.problem and world is not None:
            facts = _look_around(facts, context, token, writers, limit_s, held)
        if world is not None:
            # Nobody's file goes before all have looked.
            world.barrier()
    finally:
        if fd >= 0:
            os.close(fd)
        probe.remove(folder, name)
    return facts


def _try_alone(output: Path, folder: Path, name: str) -> OutputFacts:
    facts = OutputFacts(folder=str(folder), kind=file_system_of(folder))
    if output.is_dir():
        return replace(facts, problem=f"{output} is a folder; name a file")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        return replace(facts, problem=f"{folder} {what}")
    problem = probe.try_write(folder, name)
    free_bytes, free_files = probe.room(folder)
    facts = replace(facts, free_bytes=free_bytes, free_files=free_files)
    if problem:
        return replace(facts, problem=f"{folder} cannot be written to: {problem}")
    unsafe = probe.try_exclusive(folder, name)
    spare = f"{name}.rename"
    try:
        unsafe = unsafe or probe.try_write(folder, spare) or probe.try_rename(folder, spare)
    finally:
        probe.remove(folder, spare)
        probe.remove(folder, f"{spare}.tmp")
    return replace(facts, unsafe=unsafe)


def _writers(world: "World | None", facts: OutputFacts | None) -> list[int]:
    """World ranks that have written a file."""
    wrote = facts is not None and not facts.problem
    every = world.allgather(wrote) if world is not None else [wrote]
    return [r for r, its in enumerate(every) if its]


def _look_around(
    facts: OutputFacts,
    context: Context,
    token: str,
    writers: Sequence[int],
    limit_s: float,
    held: bool,
) -> OutputFacts:
    """Whether the others' files are here, too: rank 0 looks for all, the others for rank 0's."""
    folder = Path(facts.folder)
    wanted = writers if context.world_rank == 0 else [r for r in writers if r == 0]
    unseen = [f"{token}.{r}" for r in wanted]

    def look() -> bool:
        unseen[:] = [name for name in unseen if not probe.read_back(folder, name)]
        return not unseen

    _poll(look, limit_s)
    missing = tuple(int(name.rsplit(".", 1)[1]) for name in unseen)
    if context.world_rank == 0:
        return replace(facts, missing=missing)
    if missing or not held:
        return replace(facts, sees_first=not missing)
    try:
        return replace(facts, locked=probe.is_locked(folder, f"{token}.0"))
    except OSError:
        return replace(facts, locked=False)


def _poll(happened: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not happened() and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def judge(facts: Sequence[OutputFacts | None], context: Context) -> list[Finding]:
    """Pure."""
    found = {r: its for r, its in enumerate(facts) if its is not None}
    findings = [*_unwritable(found), *_apart(found), *_unsafe(found), *_space(found)]
    findings += _lock(found)
    first = found[0]
    if first.kind in MEMORY_KINDS and not findings:
        findings.append(_memory(first))
    seen = f", seen by all {len(found)} nodes" if len(found) > 1 else ""
    return findings or [
        fine(
            f"{first.folder} ({first.kind or 'unknown kind'}){seen}; {size(first.free_bytes)} free"
        )
    ]


def _unwritable(found: dict[int, OutputFacts]) -> list[Finding]:
    problems = sorted({its.problem for its in found.values() if its.problem})
    return [
        error(
            f"results cannot go there: {problem}",
            why="every attention rank writes a journal beside the results file, rank 0 the file itself",
            fix="make room, or the folder, on a file system that all hosts mount for writing, or name "
            "another one with --output",
            ranks=[r for r, its in found.items() if its.problem == problem],
        )
        for problem in problems
    ]


def _apart(found: dict[int, OutputFacts]) -> list[Finding]:
    blind = [r for r, its in found.items() if not its.sees_first]
    lost = sorted({*blind, *found[0].missing})
    if not lost:
        return []
    kinds = sorted({its.kind or "unknown" for its in found.values()})
    return [
        error(
            f"{found[0].folder} is not the same folder on all hosts ({some(kinds)}): files of one are "
            "not seen by another",
            why="rank 0 merges the journals of all ranks: rows of other hosts would be lost",
            fix="put the results on a file system that all hosts share (not /tmp, not a local disk)",
            ranks=lost,
        )
    ]


def _unsafe(found: dict[int, OutputFacts]) -> list[Finding]:
    texts = sorted({its.unsafe for its in found.values() if its.unsafe})
    return [
        error(
            f"{found[0].folder} ({found[0].kind}): {text}",
            why="a crash may then leave half a results file, or two runs write the same one",
            fix="choose another file system for the results",
            ranks=[r for r, its in found.items() if its.unsafe == text],
        )
        for text in texts
    ]


def _space(found: dict[int, OutputFacts]) -> list[Finding]:
    checked = {r: its for r, its in found.items() if not its.problem}
    if not checked:
        return []
    r, least = min(checked.items(), key=lambda item: item[1].free_bytes)
    findings = []
    if least.free_bytes < _FEW_BYTES:
        say = error if least.free_bytes < _LEAST_BYTES else warning
        findings.append(
            say(
                f"{least.folder} has {size(least.free_bytes)} free",
                why="journals and the results file take some 10 bytes a token and a copy while they are merged",
                fix="make room, or write elsewhere with --output; see your quota as well",
                ranks=[r],
            )
        )
    counted = [its.free_files for its in checked.values() if its.free_files is not None]
    if counted and min(counted) < _FEW_FILES:
        say = error if min(counted) < _LEAST_FILES else warning
        findings.append(
            say(
                f"{least.folder} has room for {min(counted)} more files (inodes)",
                why="a run makes a few files a rank",
                fix="remove files you do not need, or write elsewhere with --output",
            )
        )
    return findings


def _lock(found: dict[int, OutputFacts]) -> list[Finding]:
    ignored = [r for r, its in found.items() if its.locked is False]
    if not ignored:
        return []
    return [
        warning(
            f"{found[0].folder} ({found[0].kind}): a lock held on one host is not seen on others",
            why="a second run with the same output, started elsewhere, would not be refused",
            fix="mount with locks for all hosts (Lustre: flock, not localflock; NFS: not nolock), or take care "
            "that no two runs share an output",
            ranks=ignored,
        )
    ]


def _memory(first: OutputFacts) -> Finding:
    return note(
        f"{first.folder} is {first.kind}: results live in the host's memory, {size(first.free_bytes)} free",
        why="they are gone when the host restarts, and count as memory of the job",
        fix="name a file on a disk with --output",
    )


CHECK = Check(name="output", gather=gather, judge=judge, communicates=True)
