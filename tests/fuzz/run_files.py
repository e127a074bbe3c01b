"""Kinds of files in a run folder: journals, the manifest, the index of the input."""

import json
from functools import partial
from pathlib import Path
from random import Random

import msgspec

from janus_hpc.core import (
    FinishReason,
    RowError,
    RowProgress,
    RowResult,
    SampleProgress,
    SampleResult,
    SamplingParams,
    TokenLogprobs,
)
from janus_hpc.errors import JournalError
from janus_hpc.results.done import load_done
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.manifest import began_at_unix_s, load_manifest, start_launch
from janus_hpc.results.record import HEADER_BYTES, RecordType, encode_record
from janus_hpc.results.scan import read_progress
from janus_hpc.results.sources import RecordReader, choose_records
from janus_hpc.rows.index import build_index
from janus_hpc.rows.index_file import InputIndex
from janus_hpc.rows.reader import RowReader
from tests.fuzz.kinds import Kind, rewrite
from tests.fuzz.odd import dump, mutate_bytes, mutate_tree
from tests.fuzz.oracle import Finding
from tests.fuzz.rows import valid_row

FINGERPRINT = bytes(range(32))
FIELDS = {"input_sha256": "ab" * 32, "seed": 0, "temperature": 1.0, "max_tokens": 16}
NUM_ROWS = 40
RECORD_HEAD_BYTES = 25
# What any journal may hold of a row, as bytes.
Truth = dict[int, set[bytes]]

_encode = msgspec.msgpack.Encoder().encode


def kinds(folder: Path) -> list[Kind]:
    """All of them, with their originals made below `folder`."""
    for name in ("journal", "manifest", "index"):
        (folder / name).mkdir()
    truth = _write_journals(folder / "journal")
    _write_manifest(folder / "manifest")
    _write_index(folder / "index")
    return [
        Kind(
            name="journal",
            originals=folder / "journal",
            mutate=_journal,
            read=partial(_read_journals, truth),
        ),
        Kind(name="manifest", originals=folder / "manifest", mutate=_manifest, read=_read_manifest),
        Kind(name="index", originals=folder / "index", mutate=_index, read=_read_index),
    ]


def _result(row: int, length: int) -> RowResult:
    ids = [row, *range(length)]
    sample = SampleResult(
        token_ids=ids,
        text="caf\u00e9 \0" * length,
        finish_reason=FinishReason.STOP,
        logprobs=[TokenLogprobs(chosen=-0.5, top_ids=[3], top_logprobs=[-0.5])] * len(ids),
        token_times_s=[0.5] * len(ids),
    )
    return RowResult(index=row, id=f"i{row}", prompt_token_ids=[1, 2], samples=[sample])


def _write_journals(folder: Path) -> Truth:
    """Two launches of two ranks: rows, failures, rows in flight, syncs; one launch that was killed."""
    rng, truth = Random(0), Truth()
    for launch, world_rank in ((0, 0), (0, 1), (1, 0)):
        writer = JournalWriter(folder, launch, world_rank, FINGERPRINT)
        for row in range(world_rank, NUM_ROWS, 2 + launch):
            result = _result(row, rng.randint(1, 30))
            if rng.random() < 0.2:
                error = RowError(line=row + 1, field="f", reason="r")
                result = msgspec.structs.replace(result, samples=[], error=error)
            writer.append(result)
            truth.setdefault(row, set()).add(_encode(result))
            if row % 7 == 0:
                writer.sync()
        sample = SampleProgress(token_ids=[1, 2], logprobs=[], token_times_s=[0.1, 0.2])
        begun = RowProgress(index=NUM_ROWS + launch, samples=[sample], elapsed_s=0.5)
        writer.append_progress([begun])
        truth.setdefault(begun.index, set()).add(_encode(begun))
        if launch:
            writer.close()
    return truth


def _write_manifest(folder: Path) -> None:
    start_launch(
        folder, FIELDS, {"started_at_unix_s": 1_790_000_000, "hosts": ["a"], "split": "1a3e"}
    )


def _write_index(folder: Path) -> None:
    rng, path = Random(0), folder / "rows.jsonl"
    lines = [json.dumps(valid_row(rng, str(number % 30))) for number in range(NUM_ROWS)]
    path.write_text("\n".join(lines))
    build_index(path, folder / "index.bin")


def _journal(rng: Random, folder: Path) -> list[Path]:
    path = rng.choice(sorted(folder.glob("*.jnl")))
    data = path.read_bytes()
    kind = rng.random()
    if kind < 0.4:
        data = mutate_bytes(rng, data)
    elif kind < 0.5:
        data = data[: rng.randrange(len(data))] + bytes(rng.choice((0, 1, 30, 5000)))
    elif kind < 0.55:
        data = data + bytes(rng.choice((1, 30, 5000)))
    elif kind < 0.6:
        other = rng.choice(sorted(folder.glob("*.jnl"))).read_bytes()
        data = rng.choice((other, data + other, data[:HEADER_BYTES] + other[HEADER_BYTES:]))
    elif kind < 0.65:
        return [
            rewrite(
                folder / f"journal-{rng.choice(('0009', '999999999999999999999'))}-00000.jnl", data
            )
        ]
    else:
        data = _changed_records(rng, data)
    return [rewrite(path, data)]


def _changed_records(rng: Random, data: bytes) -> bytes:
    """Whole records doubled, swapped, left out, or written by another program."""
    records, at = [], HEADER_BYTES
    while at < len(data):
        end = at + RECORD_HEAD_BYTES + int.from_bytes(data[at : at + 4], "little")
        records.append(data[at:end])
        at = end
    one, other = rng.randrange(len(records)), rng.randrange(len(records))
    kind = rng.randrange(5)
    if kind == 0:
        records.insert(one, records[other])
    elif kind == 1:
        records[one], records[other] = records[other], records[one]
    elif kind == 2:
        del records[one]
    else:
        # With a right checksum and in its place: only its content is wrong.
        row = rng.choice((0, 1, NUM_ROWS - 1, NUM_ROWS + 1, 2**63, 2**64 - 1))
        payload = records[other][RECORD_HEAD_BYTES:]
        if kind == 4:
            payload = mutate_bytes(rng, payload)
        records[one] = encode_record(rng.choice(list(RecordType)), one, row, payload)
    return data[:HEADER_BYTES] + b"".join(records)


def _manifest(rng: Random, folder: Path) -> list[Path]:
    path = folder / "manifest.json"
    data = path.read_bytes()
    if rng.random() < 0.8:
        data = dump(mutate_tree(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    else:
        data = mutate_bytes(rng, data)
    return [rewrite(path, data)]


def _index(rng: Random, folder: Path) -> list[Path]:
    path = folder / "index.bin"
    data = path.read_bytes()
    if rng.random() < 0.4:
        header = mutate_tree(rng, json.loads(data[:256]))
        text = dump(header).encode("utf-8", "surrogatepass")[:256]
        data = text.ljust(256) + data[256:]
    elif rng.random() < 0.5:
        values = json.loads(data[:256])
        rows = rng.choice((-1, 0, 16, 17, -17, -16))
        values["num_rows"] += rows
        values["num_duplicates"] -= (rows * 17) // 16
        data = json.dumps(values).encode().ljust(256) + data[256:]
    else:
        data = data[:256] + mutate_bytes(rng, data[256:])
    return [rewrite(path, data), folder / "rows.jsonl"]


def _read_journals(truth: Truth, folder: Path) -> None:
    """Rows that come out are some of those that went in; a refusal says where the damage is."""
    try:
        done = load_done(folder, NUM_ROWS + 2, FINGERPRINT)
        chosen = choose_records(folder, NUM_ROWS + 2, FINGERPRINT)
        found: list[RowResult | RowProgress] = []
        with RecordReader(chosen.journals) as reader:
            for row, position in enumerate(chosen.journal.tolist()):
                if position >= 0:
                    found.append(reader.read(position, int(chosen.offset[row])))
                    _expect_row(found[-1], row)
        for its in done.in_flight:
            found.append(read_progress(folder / its.journal, its.offset))
            _expect_row(found[-1], its.row)
    except JournalError as error:
        if not any(
            word in str(error) for word in ("byte", "fingerprint", "holds row", "record of row")
        ):
            raise Finding(f"refusal does not say where: {error}") from error
        raise
    if {its.index for its in found} != set(map(int, done.done.nonzero()[0])) | {
        its.row for its in done.in_flight
    }:
        raise Finding("the rows that are done are not those that can be read")
    for its in found:
        if _encode(its) not in truth.get(its.index, ()):
            _refuse_forged(folder, its)


def _expect_row(found: RowResult | RowProgress, row: int) -> None:
    if found.index != row:
        raise Finding(f"the record of row {row} holds row {found.index}")


def _refuse_forged(folder: Path, found: RowResult | RowProgress) -> None:
    """A record that another program wrote with right checksums cannot be told from ours."""
    text = _encode(found)
    crafted = any(text in path.read_bytes() for path in folder.glob("*.jnl"))
    if not crafted:
        raise Finding(f"row {found.index} is none that was written: {found}")


def _read_manifest(folder: Path) -> None:
    manifest = load_manifest(folder)
    if manifest is None:
        raise Finding("there is a manifest, but it is not found")
    fields = manifest.fingerprint
    written, launch = start_launch(folder, fields, {"started_at_unix_s": 1})
    began_at_unix_s(folder, written)
    JournalWriter(folder, launch.number, 0, FINGERPRINT).close()


def _read_index(folder: Path) -> None:
    index = InputIndex.open(folder / "index.bin")
    with RowReader(folder / "rows.jsonl", index, SamplingParams()) as reader:
        for row in reader.read_range(0, reader.num_rows):
            if not isinstance(row.id, str):
                raise Finding(f"row without an id: {row}")
