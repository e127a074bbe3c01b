"""Sampling parameters as a row gives them: names, types and ranges, under vLLM's and OpenAI's
names.

Knows nothing of prompts; whether a token id is inside the vocabulary is the engine's to say.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from janus_hpc.core import SamplingParams
from janus_hpc.rows.fault import RowFault, fault_of

MAX_SAMPLES = 1024
MAX_LOGPROBS = 20
MAX_INT = 2**31 - 1

TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_INT)]
StopText = Annotated[str, Meta(min_length=1)]


class GivenParams(msgspec.Struct, kw_only=True):
    """The sampling parameters of one row, each None where the row leaves it to the run's
    defaults.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] | None = None
    max_tokens: NumTokens | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None
    min_p: Fraction | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | list[StopText] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: bool | TopLogprobs | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # Beyond these, float32 logits times the penalty can be infinite.
    repetition_penalty: Annotated[float, Meta(ge=1e-6, le=1e6)] | None = None
    max_completion_tokens: NumTokens | None = None
    top_logprobs: TopLogprobs | None = None


PARAM_NAMES = frozenset(GivenParams.__struct_fields__)
_CORE_NAMES = frozenset(SamplingParams.__struct_fields__)

# What OpenAI clients send along and what changes no answer here.
IGNORED_NAMES = frozenset(
    {
        "metadata",
        "model",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)


def parse_params(given: dict[str, Any], defaults: SamplingParams) -> SamplingParams:
    """`defaults` with what `given` (a subset of PARAM_NAMES) sets; null leaves the default. Raises
    RowFault.
    """
    if not given:
        return defaults
    try:
        checked = msgspec.convert(given, GivenParams, str_keys=True)
    except msgspec.ValidationError as error:
        raise fault_of(error, given) from None
    present = [name for name, value in given.items() if value is not None and name in _CORE_NAMES]
    values = {name: getattr(checked, name) for name in present}
    if isinstance(checked.stop, str):
        values["stop"] = [checked.stop]
    _set_max_tokens(checked, values)
    _set_logprobs(checked, values)
    params = msgspec.structs.replace(defaults, **values)
    if params.min_tokens > params.max_tokens:
        reason = f"min_tokens {params.min_tokens} is above max_tokens {params.max_tokens}"
        raise RowFault("min_tokens", reason)
    return params


def _set_max_tokens(checked: GivenParams, values: dict[str, Any]) -> None:
    if checked.max_completion_tokens is None:
        return
    if checked.max_tokens not in (None, checked.max_completion_tokens):
        reason = f"{checked.max_completion_tokens} contradicts max_tokens {checked.max_tokens}"
        raise RowFault("max_completion_tokens", reason)
    values["max_tokens"] = checked.max_completion_tokens


def _set_logprobs(checked: GivenParams, values: dict[str, Any]) -> None:
    """OpenAI's chat bodies say `logprobs: true` and the number apart; completions and vLLM say the
    number.
    """
    if checked.logprobs is True:
        values["logprobs"] = checked.top_logprobs or 0
        return
    if checked.top_logprobs:
        raise RowFault("top_logprobs", "needs logprobs: true")
    if checked.logprobs is False:
        values["logprobs"] = None
