"""A stored row as the plain record that exports write: names, order and rounding of its fields."""

import math
from typing import Any

import numpy as np

from janus_hpc.core import FinishReason, RowResult, SampleResult, TokenLogprobs
from janus_hpc.results.stats import tpot_s, ttft_s

_NO_SAMPLE = SampleResult(token_ids=[], text="", finish_reason=FinishReason.ERROR)
# Times are kept in float32, so digits beyond a microsecond are noise.
_TIME_DECIMALS = 6


def row_record(result: RowResult, timing: bool) -> dict[str, Any]:
    """The record of a row: the fields of sample 0 at the top, all samples under `samples` if
    more.
    """
    first = result.samples[0] if result.samples else _NO_SAMPLE
    record: dict[str, Any] = {"id": result.id, "index": result.index}
    record.update(_sample_record(first, timing))
    if timing:
        record["finished_at_unix_s"] = _known_time(result.finished_at_unix_s)
    record["prompt_token_ids"] = result.prompt_token_ids
    error = result.error
    record["error"] = None
    if error is not None:
        record["finish_reason"] = FinishReason.ERROR.value
        record["error"] = {"line": error.line, "field": error.field, "reason": error.reason}
    if len(result.samples) > 1:
        record["samples"] = [_sample_record(sample, timing) for sample in result.samples]
    return record


def _sample_record(sample: SampleResult, timing: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "finish_reason": sample.finish_reason.value,
        "stop_reason": sample.stop_reason,
        "text": sample.text,
        "token_ids": sample.token_ids,
    }
    if sample.logprobs is not None:
        record["logprobs"] = [_position_record(position) for position in sample.logprobs]
    if timing:
        times_s = sample.token_times_s
        record["ttft_s"] = _rounded(ttft_s(times_s))
        record["tpot_s"] = _rounded(tpot_s(times_s))
        record["token_times_s"] = [round(time_s, _TIME_DECIMALS) for time_s in times_s]
    return record


def _position_record(position: TokenLogprobs) -> dict[str, Any]:
    return {
        "chosen": shortest(position.chosen),
        "top_ids": position.top_ids,
        "top_logprobs": [shortest(value) for value in position.top_logprobs],
    }


def shortest(value: float) -> float | None:
    """The float32 `value` as the shortest decimal that reads back as it; None if it is not
    finite.
    """
    return float(str(np.float32(value))) if math.isfinite(value) else None


def _known_time(time_s: float) -> float | None:
    return round(time_s, _TIME_DECIMALS) if time_s else None


def _rounded(time_s: float) -> float | None:
    return None if math.isnan(time_s) else round(time_s, _TIME_DECIMALS)
