"""The nouns every part of the package shares: sampling parameters, a row in, a row out.

Plain data only: no behaviour, no torch, no MPI.
"""

from enum import StrEnum
from typing import Any

import msgspec


class FinishReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen, under vLLM's names and meanings.

    `stop_token_ids`, `stop`, `logit_bias` are always lists / a dict here; None never stands for empty.
    `top_k` of 0 or -1 keeps all tokens; `logprobs` None means none, k means the chosen token's and the k best.
    """

    n: int = 1
    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


class RowError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row has no answer: `line` counts from 1; `field` is the JSON key at fault, "" for the whole line."""

    line: int
    field: str
    reason: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of the input file, checked. Exactly one of text, token_ids, messages, error is not None."""

    index: int
    line: int
    id: str
    explicit_id: bool
    params: SamplingParams
    text: str | None = None
    token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    error: RowError | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log probabilities at one position: the chosen token's, and the best tokens in falling order."""

    chosen: float
    top_ids: list[int]
    top_logprobs: list[float]


class SampleResult(msgspec.Struct, kw_only=True):
    """One of a row's n answers. Times are seconds since the row was admitted."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    token_times_s: list[float] = []


class SampleProgress(msgspec.Struct, kw_only=True):
    """The tokens that one of a row's answers has so far, as in `SampleResult`."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    token_times_s: list[float]


class RowProgress(msgspec.Struct, kw_only=True):
    """A row in flight when its run was stopped: what a later launch goes on from.

    `elapsed_s`: since the row was admitted, the time between launches left out.
    """

    index: int
    samples: list[SampleProgress]
    elapsed_s: float


class RowResult(msgspec.Struct, kw_only=True):
    """All that came of one row: what a journal record holds. An error row has no samples.

    `finished_at_unix_s` is when it was finished, in seconds since 1970; 0 where unknown.
    """

    index: int
    id: str
    prompt_token_ids: list[int]
    samples: list[SampleResult]
    error: RowError | None = None
    finished_at_unix_s: float = 0.0
