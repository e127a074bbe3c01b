"""Turns a results file into JSON lines, OpenAI batch output lines or Parquet, in input order."""

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.results.openai import batch_line
from janus_hpc.results.parquet import write_parquet
from janus_hpc.results.reader import ResultsFile, StoredRow
from janus_hpc.results.records import row_record

FORMATS = ("jsonl", "openai", "parquet")


def export(path: Path, to: str, out: BinaryIO, timing: bool = True) -> None:
    """Writes the results file `path` to `out` in format `to`.

    Without `timing` no field depends on the clock, so that two runs can be compared byte by byte.
    Raises UsageError for an unknown format or a missing library, JournalError for a damaged file.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown export format {to!r}; known: {', '.join(FORMATS)}")
    with ResultsFile(path) as results:
        if to == "parquet":
            write_parquet(iter(results), out, timing)
            return
        encoder = msgspec.json.Encoder()
        for stored in results.stored_rows(0, results.num_rows):
            record = _record(stored, to, timing, results.attrs)
            out.write(encoder.encode(record) + b"\n")


def _record(stored: StoredRow, to: str, timing: bool, attrs: dict[str, Any]) -> dict[str, Any]:
    if to == "jsonl":
        return row_record(stored.result, timing)
    created = attrs.get("created", 0) if timing else 0
    model = str(attrs.get("model", ""))
    return batch_line(stored.result, chat=stored.chat, model=model, created=created)
