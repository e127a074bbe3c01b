"""Lines of the input file become rows or error rows that name line, field and reason."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.core import Row, SamplingParams
from janus_hpc.rows.ids import row_id, row_key
from janus_hpc.rows.params import PARAM_NAMES
from janus_hpc.rows.parse import parse_row, strip_line

DEFAULTS = SamplingParams(max_tokens=7, seed=5)


def parse(value: Any, index: int = 4) -> Row:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_row(raw, index, index + 1, DEFAULTS)


def test_loose_rows() -> None:
    row = parse({"prompt": "hi \U0001f600", "id": 17, "temperature": 0, "stop": "x"})
    assert (row.text, row.id, row.explicit_id) == ("hi \U0001f600", "17", True)
    assert row.params == SamplingParams(max_tokens=7, seed=5, temperature=0.0, stop=["x"])
    assert parse({"prompt": [1, 2]}).token_ids == [1, 2]
    assert parse({"prompt_token_ids": [3]}).token_ids == [3]
    row = parse({"prompt": "a"})
    assert (row.id, row.explicit_id, row.params) == ("row-4", False, DEFAULTS)


def test_batch_lines() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    body = {
        "model": "any",
        "stream": False,
        "user": "u",
        "metadata": {"k": "v"},
        "store": True,
        "messages": messages,
        "max_completion_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"50": -3},
        "stop": None,
    }
    line = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}
    row = parse(line)
    assert row.error is None
    assert (row.id, row.explicit_id) == ("c", True)
    assert row.messages == [{"role": "user", "content": "a"}]
    assert (row.params.max_tokens, row.params.logprobs) == (3, 2)
    assert (row.params.logit_bias, row.params.stop) == ({50: -3.0}, [])
    completion = {"custom_id": "d", "url": "/v1/completions", "body": {"prompt": "p"}}
    assert parse(completion).text == "p"
    assert parse({"prompt": "p", "logprobs": True}).params.logprobs == 0
    assert parse({"prompt": "p", "logprobs": False}).params.logprobs is None


def test_sampling_params_object() -> None:
    row = parse({"prompt": "p", "n": 2, "sampling_params": {"top_k": 3, "stop": ["a", "b"]}})
    assert (row.params.n, row.params.top_k, row.params.stop) == (2, 3, ["a", "b"])


def test_byte_order_mark_and_line_ends() -> None:
    assert parse_row(b'\xef\xbb\xbf{"prompt":"a"}\r\n', 0, 1, DEFAULTS).text == "a"
    assert parse_row(b'\xef\xbb\xbf{"prompt":"a"}\r\n', 1, 2, DEFAULTS).error is not None


ERRORS = [
    (b"", "", "blank line"),
    (b" \r\n", "", "blank line"),
    (b'{"prompt": "a"', "", "broken JSON"),
    (b'{"prompt": "a\x00b"}', "", "NUL byte at byte 13"),
    (b'{"prompt": "a\xff"}', "", "not UTF-8: byte 0xff at byte 13"),
    (b"[" * 100_000, "", "nested too deeply"),
    (b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}", "", "broken JSON"),
    (b'{"prompt": "a", "temperature": 1e999}', "", "broken JSON"),
    ([1], "", "expected a JSON object"),
    ({"id": "x"}, "prompt", "missing prompt"),
    ({"prompt": None}, "prompt", "missing prompt"),
    ({"prompt": ""}, "prompt", "empty prompt"),
    ({"prompt": []}, "prompt", "empty prompt"),
    ({"messages": []}, "messages", "empty prompt"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages", "give one of"),
    ({"prompt": "a\0"}, "prompt", "NUL byte in the text"),
    ({"messages": [{"role": "user", "content": "\0"}]}, "messages", "NUL byte"),
    ({"messages": [{"role": "user"}]}, "messages", "message 0: content"),
    ({"messages": [{"content": "a"}]}, "messages", "message 0: role"),
    ({"messages": ["a"]}, "messages", "message 0: expected an object"),
    ({"messages": [{"role": "u", "content": [{"type": "image_url"}]}]}, "messages", "text parts"),
    ({"prompt": [1, -2]}, "prompt", "bad token id"),
    ({"prompt": [1, 2**40]}, "prompt", "bad token id"),
    ({"prompt": [1, True]}, "prompt", "bad token id"),
    ({"prompt": ["a"]}, "prompt", "one prompt a row"),
    ({"prompt": 3}, "prompt", "a text or a list of token ids"),
    ({"prompt_token_ids": "a"}, "prompt_token_ids", "a list of token ids"),
    ({"prompt": "a", "temprature": 1}, "temprature", "valid: custom_id, frequency_penalty"),
    ({"prompt": "a", "temperature": -1}, "temperature", ">= 0.0; found -1"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", "got `str`; found 'hot'"),
    ({"prompt": "a", "top_p": 0}, "top_p", "> 0.0"),
    ({"prompt": "a", "top_p": 1.5}, "top_p", "<= 1.0"),
    ({"prompt": "a", "top_k": -2}, "top_k", ">= -1"),
    ({"prompt": "a", "n": 0}, "n", ">= 1"),
    ({"prompt": "a", "n": True}, "n", "got `bool`"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", ">= 1"),
    ({"prompt": "a", "max_tokens": 2.5}, "max_tokens", "got `float`"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "<= 20"),
    ({"prompt": "a", "top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
    ({"prompt": "a", "stop": ["a", ""]}, "stop", "length >= 1"),
    ({"prompt": "a", "stop": [1]}, "stop", "got `int`"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids", ">= 0"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "Expected `int`"),
    ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "<= 100.0"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", ">= 1e-06"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty", "<= 2.0"),
    ({"prompt": "a", "seed": 2**63}, "seed", "Expected `int`"),
    ({"prompt": "a", "min_tokens": 9}, "min_tokens", "above max_tokens 7"),
    ({"prompt": "a", "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "3"),
    ({"prompt": "a", "n": 1, "sampling_params": {"n": 1}}, "n", "given twice"),
    ({"prompt": "a", "sampling_params": {"nn": 1}}, "nn", "unknown parameter"),
    ({"prompt": "a", "sampling_params": 1}, "sampling_params", "expected an object"),
    ({"prompt": "a", "id": 1.5}, "id", "or an integer"),
    ({"prompt": "a", "id": ""}, "id", "not empty"),
    ({"prompt": "a", "id": "a\0"}, "id", "no NUL"),
    ({"prompt": "a", "id": "a", "custom_id": "b"}, "id", "not both"),
    ({"custom_id": "a", "body": 1}, "body", "expected an object"),
    ({"custom_id": "a", "body": {"prompt": "a"}, "method": "GET"}, "method", "POST"),
    ({"custom_id": "a", "body": {"prompt": "a"}, "url": "/v1/x"}, "url", "/v1/completions"),
    (
        {"custom_id": "a", "body": {"prompt": "a"}, "url": "/v1/chat/completions"},
        "body",
        "wants messages",
    ),
    ({"custom_id": "a", "body": {"prompt": "a"}, "extra": 1}, "extra", "batch line"),
    ({"custom_id": "a", "body": {"prompt": "a", "echo": True}}, "echo", "unknown parameter"),
]


@pytest.mark.parametrize(("line", "field", "reason"), ERRORS)
def test_error_rows(line: Any, field: str, reason: str) -> None:
    row = parse(line)
    assert row.error is not None
    assert (row.error.line, row.error.field) == (5, field)
    assert reason in row.error.reason
    assert (row.text, row.token_ids, row.messages) == (None, None, None)


def test_error_row_keeps_the_id() -> None:
    assert parse({"id": "mine", "prompt": ""}).id == "mine"
    assert parse(b'{"id": "mine", "prompt": "\xff"}').id == "mine"


def test_every_sampling_parameter_is_accepted() -> None:
    assert frozenset(SamplingParams.__struct_fields__) <= PARAM_NAMES


def test_key_depends_on_the_id_alone() -> None:
    first, second = parse({"prompt": "a", "id": "x"}, 1), parse({"prompt": "b", "id": "x"}, 9)
    assert row_key(first) == row_key(second) != row_key(parse({"prompt": "a", "id": "y"}))
    assert 0 <= row_key(first) < 2**64


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*sorted(PARAM_NAMES), "prompt", "messages", "prompt_token_ids", "id", "body", "url", "role"]
)


def check(raw: bytes) -> None:
    row = parse_row(raw, 3, 4, DEFAULTS)
    held = [row.text, row.token_ids, row.messages, row.error]
    assert sum(part is not None for part in held) == 1
    assert (row.index, row.line) == (3, 4)
    assert row.id and "\0" not in row.id
    assert (row.id, row.explicit_id) == row_id(strip_line(raw, 4), 3)[:2]
    if row.token_ids is not None:
        assert row.token_ids and all(0 <= token < 2**31 for token in row.token_ids)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes(raw: bytes) -> None:
    check(raw)


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_object(value: dict[str, Any]) -> None:
    check(json.dumps({"prompt": "a", **value}).encode())
    check(json.dumps({"custom_id": "i", "body": {"prompt": "a", **value}}).encode())


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_lines(data: st.DataObject) -> None:
    raw = bytearray(
        json.dumps({"id": "a", "prompt": "text \U0001f600", "n": 2, "stop": ["x"]}).encode()
    )
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    check(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_a_very_long_key_is_named_by_its_start() -> None:
    error = parse({"prompt": "a", "k" * 100_000: 1}).error
    assert error is not None
    assert error.field == "k" * 200 + "..."
    assert len(error.reason) < 2000
