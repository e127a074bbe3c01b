"""Turns a results file into JSON lines, OpenAI batch output lines or Parquet, in input order, or
takes its routing trace out.
"""

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from janus_hpc.errors import UsageError
from janus_hpc.results.openai import batch_line
from janus_hpc.results.parquet import write_parquet
from janus_hpc.results.reader import ResultsFile, StoredRow
from janus_hpc.results.records import row_record
from janus_hpc.routing.trace_file import read_trace, trace_bytes

FORMATS = ("jsonl", "openai", "parquet", "trace")


def export(path: Path, to: str, out: BinaryIO, timing: bool = True) -> None:
    """Writes the results file `path` to `out` in format `to`.

    Without `timing` no field depends on the clock, so that two runs can be compared byte by byte.
    Raises UsageError for an unknown format, a missing library or a run without a routing trace,
    JournalError for a damaged file.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown export format {to!r}; known: {', '.join(FORMATS)}")
    with ResultsFile(path) as results:
        if to == "parquet":
            write_parquet(iter(results), out, timing)
            return
        if to == "trace":
            out.write(trace_bytes(read_trace(path), **_origin(results.attrs, timing)))
            return
        encoder = msgspec.json.Encoder()
        for stored in results.stored_rows(0, results.num_rows):
            record = _record(stored, to, timing, results.attrs)
            out.write(encoder.encode(record) + b"\n")


def _record(stored: StoredRow, to: str, timing: bool, attrs: dict[str, Any]) -> dict[str, Any]:
    if to == "jsonl":
        return row_record(stored.result, timing)
    return batch_line(stored.result, chat=stored.chat, **_origin(attrs, timing))


def _origin(attrs: dict[str, Any], timing: bool) -> dict[str, Any]:
    """Which model gave the results, and when in seconds since 1970 (0 without `timing`)."""
    created = attrs.get("created", 0) if timing else 0
    return {"model": str(attrs.get("model", "")), "created": created}
