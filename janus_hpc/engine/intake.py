"""From claimed row numbers to rows in flight, or to error rows: reading, tokenising, checking against the model.

Runs on attention ranks; knows nothing of steps or of other ranks.
"""

import time
from collections.abc import Callable

from janus_hpc.core import Row, RowError, RowProgress, RowResult
from janus_hpc.engine.active import ActiveRow
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.prompt import prompt_ids
from janus_hpc.sampling.tokenizer import TextCodec


class Intake:
    """Reads rows by number. `capacity_tokens` is the most one sequence can have cached on this rank; `progress`
    gives what an earlier launch left of a row.
    """

    def __init__(
        self,
        reader: RowReader,
        codec: TextCodec | None,
        eos_token_ids: list[int],
        vocab_size: int,
        max_context: int,
        capacity_tokens: int,
        seed: int,
        progress: Callable[[int], RowProgress | None],
    ) -> None:
        self.reader = reader
        self.codec = codec
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.capacity_tokens = capacity_tokens
        self.seed = seed
        self.progress = progress

    def admit(self, index: int) -> ActiveRow | RowResult:
        """A row that can run, or the result of one that cannot."""
        row = self.reader.read(index)
        try:
            return self._admit(row)
        except RowRejected as rejection:
            error = RowError(line=row.line, field=rejection.field, reason=rejection.reason)
            return error_result(row, error)

    def _admit(self, row: Row) -> ActiveRow:
        if row.error is not None:
            raise RowRejected(row.error.field, row.error.reason)
        token_ids = prompt_ids(row, self.codec, self.vocab_size, self.max_context)
        longest = min(len(token_ids) + row.params.max_tokens, self.max_context)
        if longest > self.capacity_tokens:
            raise RowRejected(
                "max_tokens",
                f"prompt and answer may need {longest} cached tokens, this run's KV cache holds "
                f"{self.capacity_tokens}; a larger --kv-memory or a smaller max_tokens helps",
            )
        active = ActiveRow(
            row,
            token_ids,
            self.codec,
            self.eos_token_ids,
            self.vocab_size,
            self.max_context,
            self.seed,
        )
        begun = self.progress(row.index)
        if begun is not None:
            active.restore(begun)
        return active


def error_result(row: Row, error: RowError) -> RowResult:
    """What is recorded of a row without an answer."""
    return RowResult(
        index=row.index,
        id=row.id,
        prompt_token_ids=[],
        samples=[],
        error=error,
        finished_at_unix_s=time.time(),
    )
