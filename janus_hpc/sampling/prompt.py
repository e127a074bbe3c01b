"""From a checked row to the token ids of its prompt, with the checks that need the model.

Knows nothing of how rows are read or run.
"""

from collections.abc import Iterable

from janus_hpc.core import Row, SamplingParams
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.tokenizer import TextCodec, TooManyTokens

_NO_TOKENIZER = "the model folder has no tokenizer.json; use token ids"


def prompt_ids(row: Row, codec: TextCodec | None, vocab_size: int, max_total_len: int) -> list[int]:
    """The row's prompt as ids below `vocab_size`, shorter than `max_total_len`.

    RowRejected: no tokenizer for text, an empty or too long prompt, ids out of range, or parameters
    that the model cannot follow.
    """
    check_params(row.params, codec, vocab_size)
    field = "prompt" if row.messages is None else "messages"
    try:
        ids = _encode(row, field, codec, max_total_len)
    except TooManyTokens as error:
        raise _too_long(field, max_total_len, f"more than {error.num_tokens}") from None
    if not ids:
        raise RowRejected(field, "expected at least one token, got an empty prompt")
    if len(ids) >= max_total_len:
        raise _too_long(field, max_total_len, str(len(ids)))
    _check_range(ids, field, vocab_size)
    return ids


def _too_long(field: str, max_total_len: int, found: str) -> RowRejected:
    return RowRejected(
        field,
        f"expected at most {max_total_len - 1} tokens, so that one more fits the context of "
        f"{max_total_len}, got {found}",
    )


def check_params(params: SamplingParams, codec: TextCodec | None, vocab_size: int) -> None:
    """RowRejected where the parameters name tokens that the model lacks or need its text."""
    if params.stop and codec is None:
        raise RowRejected("stop", f"stop strings need text: {_NO_TOKENIZER}")
    _check_range(params.stop_token_ids, "stop_token_ids", vocab_size)
    _check_range(params.logit_bias, "logit_bias", vocab_size)


def _encode(row: Row, field: str, codec: TextCodec | None, most: int) -> list[int]:
    if row.token_ids is not None:
        return row.token_ids
    if codec is None:
        raise RowRejected(field, _NO_TOKENIZER)
    if row.messages is not None:
        return codec.encode_chat(row.messages, most)
    assert row.text is not None, row
    return codec.encode(row.text, most)


def _check_range(ids: Iterable[int], field: str, vocab_size: int) -> None:
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise RowRejected(field, f"expected token ids from 0 to {vocab_size - 1}, got {wrong}")
