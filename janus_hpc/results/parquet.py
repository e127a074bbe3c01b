"""Rows as a Parquet file; the only module that needs pyarrow, and only when it is called."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import msgspec

from janus_hpc.core import RowResult
from janus_hpc.errors import UsageError
from janus_hpc.results.records import row_record

_ROWS_PER_GROUP = 8192


def write_parquet(results: Iterator[RowResult], out: BinaryIO, timing: bool) -> None:
    """Writes one record a row, with the fields of the JSON lines export; `stop_reason` is JSON
    text.

    Raises UsageError if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UsageError("--to parquet needs pyarrow: pip install 'janus-hpc[report]'") from None
    schema = _schema(pa, timing)
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while records := [_record(result, timing) for result in islice(results, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def _record(result: RowResult, timing: bool) -> dict[str, Any]:
    record = row_record(result, timing)
    for sample in (record, *record.get("samples", ())):
        reason = sample["stop_reason"]
        sample["stop_reason"] = None if reason is None else msgspec.json.encode(reason).decode()
    return record


def _schema(pa: Any, timing: bool) -> Any:
    token_ids = pa.list_(pa.int32())
    position = pa.struct(
        [
            ("chosen", pa.float32()),
            ("top_ids", token_ids),
            ("top_logprobs", pa.list_(pa.float32())),
        ]
    )
    sample = [
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        ("text", pa.string()),
        ("token_ids", token_ids),
        ("logprobs", pa.list_(position)),
    ]
    if timing:
        times = pa.list_(pa.float32())
        sample += [("ttft_s", pa.float32()), ("tpot_s", pa.float32()), ("token_times_s", times)]
    finished = [("finished_at_unix_s", pa.float64())] if timing else []
    error = pa.struct([("line", pa.int64()), ("field", pa.string()), ("reason", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("index", pa.int64()),
            *sample,
            *finished,
            ("prompt_token_ids", token_ids),
            ("error", error),
            ("samples", pa.list_(pa.struct(sample))),
        ]
    )
