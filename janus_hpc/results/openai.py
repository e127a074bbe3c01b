"""A stored row as an OpenAI batch output line."""

from typing import Any

from janus_hpc.core import RowResult, SampleResult, TokenLogprobs
from janus_hpc.results.records import shortest


def batch_line(result: RowResult, *, chat: bool, model: str, created: int) -> dict[str, Any]:
    """The output line of a row: a chat completion if its prompt was messages, else a completion."""
    line: dict[str, Any] = {
        "id": f"batch_req_{result.index}",
        "custom_id": result.id,
        "response": None,
        "error": None,
    }
    error = result.error
    if error is not None:
        where = f"line {error.line}" + (f", {error.field}" if error.field else "")
        line["error"] = {"code": "invalid_request", "message": f"{where}: {error.reason}"}
        return line
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{result.index}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [_choice(at, sample, chat) for at, sample in enumerate(result.samples)],
        "usage": _usage(result),
    }
    line["response"] = {"status_code": 200, "request_id": f"req_{result.index}", "body": body}
    return line


def _usage(result: RowResult) -> dict[str, int]:
    num_prompt = len(result.prompt_token_ids)
    num_completion = sum(len(sample.token_ids) for sample in result.samples)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def _choice(index: int, sample: SampleResult, chat: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": sample.finish_reason.value}
    if chat:
        choice["message"] = {"role": "assistant", "content": sample.text}
    else:
        choice["text"] = sample.text
    logprobs = _chat_logprobs(sample) if chat else _completion_logprobs(sample)
    choice["logprobs"] = None if sample.logprobs is None else logprobs
    return choice


def _token(token_id: int) -> str:
    """A token's name. The results file holds ids alone, so this is vLLM's form for ids as
    tokens.
    """
    return f"token_id:{token_id}"


def _positions(sample: SampleResult) -> list[tuple[int, TokenLogprobs]]:
    return list(zip(sample.token_ids, sample.logprobs or (), strict=False))


def _chat_logprobs(sample: SampleResult) -> dict[str, Any]:
    return {
        "content": [
            _chat_token(token_id, position.chosen)
            | {
                "top_logprobs": [
                    _chat_token(top_id, logprob)
                    for top_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True)
                ]
            }
            for token_id, position in _positions(sample)
        ]
    }


def _chat_token(token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": _token(token_id), "logprob": shortest(logprob), "bytes": None}


def _completion_logprobs(sample: SampleResult) -> dict[str, Any]:
    positions = _positions(sample)
    return {
        "tokens": [_token(token_id) for token_id, _ in positions],
        "token_logprobs": [shortest(position.chosen) for _, position in positions],
        "top_logprobs": [
            {
                _token(top_id): shortest(logprob)
                for top_id, logprob in zip(position.top_ids, position.top_logprobs, strict=True)
            }
            for _, position in positions
        ],
    }
