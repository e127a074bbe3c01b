"""Reads a results file row by row in bounded memory, without knowing who wrote it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy.typing as npt

from janus_hpc.core import FinishReason, RowError, RowResult, SampleResult, TokenLogprobs
from janus_hpc.errors import JournalError
from janus_hpc.results.access import Columns, open_results
from janus_hpc.results.attributes import read_attributes
from janus_hpc.results.schema import FINISH_REASONS, TOP_OFFSETS
from janus_hpc.routing.storage import H5_ERRORS

_ROWS_PER_BLOCK = 1024
_FINISH_REASONS = tuple(FinishReason(name) for name in FINISH_REASONS)


class StoredRow(NamedTuple):
    """A row as the file holds it; `chat` says that its prompt was messages."""

    result: RowResult
    chat: bool


class ResultsFile:
    """A results file opened for reading. Raises UsageError or JournalError for what is no such file
    or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_results(path)
        self._columns = Columns(self._file)
        try:
            self.attrs = read_attributes(self._file)
            self.num_rows = len(self._file["rows/index"])
        except H5_ERRORS as error:
            self._file.close()
            raise JournalError(f"{path}: damaged: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __iter__(self) -> Iterator[RowResult]:
        return self.rows(0, self.num_rows)

    def rows(self, start: int, stop: int) -> Iterator[RowResult]:
        """Rows start .. stop - 1 of the file, in input order."""
        return (stored.result for stored in self.stored_rows(start, stop))

    def stored_rows(self, start: int, stop: int) -> Iterator[StoredRow]:
        """Rows start .. stop - 1 of the file with what it knows beyond their results."""
        stop = min(stop, self.num_rows)
        for block in range(start, stop, _ROWS_PER_BLOCK):
            try:
                yield from self._block(block, min(block + _ROWS_PER_BLOCK, stop))
            except (UnicodeDecodeError, msgspec.DecodeError) as error:
                raise JournalError(f"{self.path}: damaged near row {block}: {error}") from None

    def _block(self, start: int, stop: int) -> Iterator[StoredRow]:
        offsets = self._columns.read("rows/sample_offsets", start, stop + 1).tolist()
        samples = self._samples(offsets[0], offsets[-1])
        index = self._column("rows/index", start, stop)
        status = self._column("rows/status", start, stop)
        chat = self._column("rows/chat", start, stop)
        line = self._column("rows/error_line", start, stop)
        finished: list[float] = self._columns.read("rows/finished_at_unix_s", start, stop).tolist()
        ids, fields, reasons = (
            self._text(f"rows/{name}", start, stop)
            for name in ("id", "error_field", "error_reason")
        )
        prompts = self._lists("rows/prompt_token_ids", start, stop)
        for at in range(stop - start):
            error = None
            if status[at]:
                error = RowError(line=line[at], field=fields(at), reason=reasons(at))
            result = RowResult(
                index=index[at],
                id=ids(at),
                prompt_token_ids=prompts(at),
                samples=samples[offsets[at] - offsets[0] : offsets[at + 1] - offsets[0]],
                error=error,
                finished_at_unix_s=finished[at],
            )
            yield StoredRow(result, bool(chat[at]))

    def _samples(self, start: int, stop: int) -> list[SampleResult]:
        codes = self._column("samples/finish_reason", start, stop)
        if any(code >= len(_FINISH_REASONS) for code in codes):
            raise JournalError(f"{self.path}: unknown finish reason near sample {start}")
        texts = self._text("samples/text", start, stop)
        reasons = self._text("samples/stop_reason", start, stop)
        token_ids = self._lists("samples/token_ids", start, stop)
        times = self._lists("samples/token_times_s", start, stop)
        logprobs = self._logprobs(start, stop)
        return [
            SampleResult(
                token_ids=token_ids(at),
                text=texts(at),
                finish_reason=_FINISH_REASONS[codes[at]],
                stop_reason=_stop_reason(reasons(at)),
                logprobs=logprobs[at],
                token_times_s=times(at),
            )
            for at in range(stop - start)
        ]

    def _logprobs(self, start: int, stop: int) -> list[list[TokenLogprobs] | None]:
        present = self._column("samples/logprobs_present", start, stop)
        if not any(present):
            return [None] * len(present)
        chosen, bounds = self._ragged("samples/logprobs", start, stop)
        first = int(self._columns.read("samples/logprobs_offsets", start, start + 1)[0])
        last = first + len(chosen)
        offsets = f"samples/{TOP_OFFSETS}"
        read = self._columns.read_ragged
        ids, tops = read("samples/top_token_ids_values", offsets, first, last)
        best, _ = read("samples/top_logprobs_values", offsets, first, last)
        positions = [
            TokenLogprobs(
                chosen=float(chosen[at]),
                top_ids=ids[tops[at] : tops[at + 1]].tolist(),
                top_logprobs=best[tops[at] : tops[at + 1]].tolist(),
            )
            for at in range(len(chosen))
        ]
        return [
            positions[bounds[at] : bounds[at + 1]] if present[at] else None
            for at in range(stop - start)
        ]

    def _column(self, name: str, start: int, stop: int) -> list[int]:
        values: list[int] = self._columns.read(name, start, stop).tolist()
        return values

    def _ragged(self, name: str, start: int, stop: int) -> tuple[npt.NDArray[Any], list[int]]:
        return self._columns.read_ragged(f"{name}_values", f"{name}_offsets", start, stop)

    def _text(self, name: str, start: int, stop: int) -> Callable[[int], str]:
        values, offsets = self._ragged(name, start, stop)
        data = values.tobytes()
        return lambda at: data[offsets[at] : offsets[at + 1]].decode()

    def _lists(self, name: str, start: int, stop: int) -> Callable[[int], list[Any]]:
        values, offsets = self._ragged(name, start, stop)
        return lambda at: values[offsets[at] : offsets[at + 1]].tolist()


def _stop_reason(text: str) -> str | int | None:
    return msgspec.json.decode(text, type=str | int) if text else None
