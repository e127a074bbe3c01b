"""Journals: what is written is read back, a torn tail is ignored, damage before valid records is
refused.
"""

import errno
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from janus_hpc.core import (
    FinishReason,
    RowError,
    RowProgress,
    RowResult,
    SampleProgress,
    SampleResult,
    TokenLogprobs,
)
from janus_hpc.errors import JanusError, JournalError, UsageError
from janus_hpc.results.done import load_done
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.scan import (
    JournalScan,
    RecordRef,
    list_journals,
    read_progress,
    read_record,
)

FINGERPRINT = bytes(range(32))


def result(index: int, failed: bool = False) -> RowResult:
    if failed:
        error = RowError(line=index + 1, field="f", reason="r")
        return RowResult(index=index, id=f"i{index}", prompt_token_ids=[], samples=[], error=error)
    logprobs = [TokenLogprobs(chosen=-0.5, top_ids=[3], top_logprobs=[-0.25])]
    sample = SampleResult(
        token_ids=[index, 7],
        text="\0 \U0001f600",
        finish_reason=FinishReason.STOP,
        stop_reason=9,
        logprobs=logprobs,
        token_times_s=[0.5, 1.0],
    )
    return RowResult(index=index, id=f"i{index}", prompt_token_ids=[1], samples=[sample])


def write(folder: Path, results: list[RowResult], launch: int = 0, world_rank: int = 0) -> Path:
    writer = JournalWriter(folder, launch, world_rank, FINGERPRINT)
    for at, each in enumerate(results):
        writer.append(each)
        if at % 3 == 2:
            writer.sync()
    writer.close()
    return writer.path


def scan(path: Path) -> list[RecordRef]:
    return list(JournalScan(path, FINGERPRINT))


def test_round_trip(tmp_path: Path) -> None:
    results = [result(index, failed=index % 4 == 3) for index in (5, 2, 3, 0, 7)]
    path = write(tmp_path, results, launch=2, world_rank=11)
    assert path.name == "journal-0002-00011.jnl"
    whole = JournalScan(path, FINGERPRINT)
    refs = list(whole)
    assert [(ref.row, ref.failed) for ref in refs] == [
        (5, False),
        (2, False),
        (3, True),
        (0, False),
        (7, True),
    ]
    assert (whole.torn_bytes, whole.closed) == (0, True)
    fd = os.open(path, os.O_RDONLY)
    assert [read_record(fd, ref.offset) for ref in refs] == results
    with pytest.raises(JournalError):
        read_record(fd, refs[1].offset + 1)
    os.close(fd)
    assert [each[:2] for each in list_journals(tmp_path)] == [(2, 11)]


def test_appended_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 0, 0, FINGERPRINT)
    writer.append_group([result(0), result(1)])
    seen = JournalScan(writer.path, FINGERPRINT)
    assert ([ref.row for ref in seen], seen.closed) == ([0, 1], False)
    writer.close()


def test_group_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    writer = JournalWriter(tmp_path, 0, 0, FINGERPRINT)
    assert not writer.maybe_sync(100.0)
    writer.append(result(0))
    assert not writer.maybe_sync(100.9)
    assert (writer.num_rows, writer.num_durable) == (1, 0)
    assert writer.maybe_sync(101.0)
    assert writer.num_durable == 1
    assert not writer.maybe_sync(200.0), "nothing new to sync"
    big = result(1)
    big.samples[0].text = "x" * (5 << 20)
    writer.append(big)
    assert writer.maybe_sync(200.1), "4 MiB are synced before the second is over"
    assert len(syncs) == 2
    writer.close()
    writer.close()
    with pytest.raises(JanusError, match="closed"):
        writer.append(result(2))


def test_never_appended_to(tmp_path: Path) -> None:
    write(tmp_path, [])
    with pytest.raises(UsageError, match="exists already"):
        JournalWriter(tmp_path, 0, 0, FINGERPRINT)
    with pytest.raises(UsageError, match="cannot create: No such file"):
        JournalWriter(tmp_path / "absent", 0, 0, FINGERPRINT)


@pytest.mark.parametrize(("call", "verb"), [("write", "write"), ("fdatasync", "sync")])
def test_failed_writes_kill_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, verb: str
) -> None:
    writer = JournalWriter(tmp_path, 0, 0, FINGERPRINT)
    writer.append(result(0))
    calls = []

    def fail(*args: object) -> int:
        calls.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    expected = rf"journal-0000-00000\.jnl: cannot {verb}: No space left on device"
    for _ in range(2):
        with pytest.raises(JanusError, match=expected):
            writer.append(result(1))
            writer.sync()
    assert len(calls) == 1, "a failed call is never tried again"
    assert [ref.row for ref in scan(writer.path)][:1] == [0]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_journal_that_is_removed_while_it_is_written_is_noticed(
    tmp_path: Path, is_replaced: bool
) -> None:
    writer = JournalWriter(tmp_path, 0, 0, FINGERPRINT)
    writer.append(result(0))
    writer.sync()
    writer.append(result(1))
    writer.path.unlink()
    if is_replaced:
        writer.path.write_bytes(b"")
    told = "another file has its name" if is_replaced else "No such file or directory"
    with pytest.raises(JanusError, match=rf"00000\.jnl: cannot sync: {told}"):
        writer.sync()


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    path = write(tmp_path, [result(0), result(1)])
    assert [ref.row for ref in scan(path)] == [0, 1]


def test_other_runs_journal(tmp_path: Path) -> None:
    path = write(tmp_path, [result(0)])
    with pytest.raises(JournalError, match="belongs to another run"):
        list(JournalScan(path, bytes(32)))


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path, [result(index) for index in range(5)])
    whole = path.read_bytes()
    refs = scan(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        cut = JournalScan(path, FINGERPRINT)
        found = list(cut)
        kept = [ref for ref in refs if ref.offset + 25 + ref.num_bytes <= length]
        assert found == kept
        assert not cut.closed
        assert 0 <= cut.torn_bytes <= length


@pytest.mark.parametrize("tail", [bytes(512), bytes(3), b"\xff" * 100, b"JNL1" * 30])
def test_torn_tails(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path, [result(0), result(1)])
    refs = scan(path)
    path.write_bytes(path.read_bytes()[:-25] + tail)
    torn = JournalScan(path, FINGERPRINT)
    assert list(torn) == refs
    assert torn.torn_bytes == len(tail)


def test_every_bit_flip_is_found(tmp_path: Path) -> None:
    """All but the last record are followed by a valid one, so any flip in them is refused.

    Four of the eight bits of every byte, in turns.
    """
    path = write(tmp_path, [result(0), result(1, failed=True)])
    whole = path.read_bytes()
    refs = scan(path)
    for at in range(len(whole)):
        for bit in range(at % 2, 8, 2):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            path.write_bytes(flipped)
            if at < len(whole) - 25:
                with pytest.raises(JournalError, match=r"damaged at byte|another run"):
                    scan(path)
            else:
                assert scan(path) == refs


def test_random_damage_gives_a_prefix_or_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, [result(index) for index in range(20)])
    whole = path.read_bytes()
    refs = scan(path)
    rng = random.Random(1)
    for _ in range(200):
        damaged = bytearray(whole[: rng.randrange(len(whole))])
        for _ in range(rng.randrange(3)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            found = scan(path)
        except JournalError:
            continue
        assert found == refs[: len(found)]


def test_done_rows(tmp_path: Path) -> None:
    write(tmp_path, [result(0), result(1, failed=True), result(2, failed=True)])
    write(tmp_path, [result(2), result(4)], launch=1)
    done = load_done(tmp_path, 6, FINGERPRINT)
    assert done.done.tolist() == [True, True, True, False, True, False]
    assert (done.num_done, done.num_failed, done.num_journals) == (4, 1, 2)
    assert done.pending().tolist() == [3, 5]
    again = load_done(tmp_path, 6, FINGERPRINT, retry_failed=True)
    assert again.pending().tolist() == [1, 3, 5]
    assert (again.num_done, again.num_failed) == (3, 0)
    with pytest.raises(JournalError, match="holds row 4; the input has 4 rows"):
        load_done(tmp_path, 4, FINGERPRINT)


def test_done_counts_torn_bytes_and_ignores_other_files(tmp_path: Path) -> None:
    path = write(tmp_path, [result(0)])
    path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "journal-x.jnl.tmp").write_bytes(b"?")
    done = load_done(tmp_path, 1, FINGERPRINT)
    assert (done.torn_bytes, done.num_done) == (22, 1)


def progress(index: int, num_tokens: int) -> RowProgress:
    sample = SampleProgress(
        token_ids=list(range(num_tokens)),
        logprobs=[],
        token_times_s=[0.5 * token for token in range(num_tokens)],
    )
    return RowProgress(index=index, samples=[sample], elapsed_s=3.0)


def test_rows_in_flight_are_kept_until_they_are_done(tmp_path: Path) -> None:
    """The last launch's tokens count, a finished row's not, and neither is a row's result."""
    for launch, tokens in ((0, 4), (1, 9)):
        with closing(JournalWriter(tmp_path, launch, 0, FINGERPRINT)) as writer:
            writer.append_progress([progress(2, tokens), progress(5, 1)])
    with closing(JournalWriter(tmp_path, 2, 0, FINGERPRINT)) as writer:
        writer.append(result(5))
    done = load_done(tmp_path, 8, FINGERPRINT)
    assert done.num_done == 1
    assert [its.row for its in done.in_flight] == [2]
    found = done.in_flight[0]
    assert read_progress(tmp_path / found.journal, found.offset) == progress(2, 9)
    with pytest.raises(JournalError, match=found.journal):
        read_progress(tmp_path / found.journal, found.offset + 1)
