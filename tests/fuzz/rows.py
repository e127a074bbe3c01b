"""Rows for the demo model: valid ones by construction, and mutations of them, as lines of a file.

What a line must come to is decided here and in `oracle`, never by the package's own parser.
"""

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.fuzz.odd import NUMBERS, Raw, dump, mutate_bytes, mutate_tree, odd_json

VOCAB = 406
_TEXTS = (
    "Sort: bread =",
    "27+45=",
    "a",
    "Reverse: kamel =",
    "x y\nz",
    "caf\u00e9 \u2028 \U0001f600",
    "<b>&amp;",
)
_ROLES = ("system", "user", "assistant")
_PARAMS = (
    *("n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("max_completion_tokens", "top_logprobs", "model", "stream", "user", "metadata"),
)
# A few rows in a file are as long as no reader expects, one a little below and one above the limit of a line.
_LONG_BYTES = (16 << 20, (64 << 20) - 64, (64 << 20) + 5)


@dataclass
class Line:
    """Bytes without a line end; `must_run` of a valid row: the id and the prompt that must come out."""

    data: bytes
    must_run: dict[str, Any] | None = None


@dataclass
class Lines:
    """A file of lines as it is written, and the valid ones among its lines by number from 0."""

    data: bytearray = field(default_factory=bytearray)
    must_run: dict[int, dict[str, Any]] = field(default_factory=dict)
    num_ends: int = 0

    def add(self, line: Line, end: bytes = b"\n") -> None:
        if line.must_run is not None:
            self.must_run[self.num_ends] = line.must_run
        self.data += line.data + end
        self.num_ends += (line.data + end).count(b"\n")


def make_file(rng: Random, num_lines: int, *, long_lines: bool = False) -> Lines:
    """So many lines or a few more, since a mutation may put line ends into a line."""
    lines = Lines()
    if rng.random() < 0.2:
        lines.data += b"\xef\xbb\xbf"
    earlier: list[bytes] = []
    for number in range(num_lines):
        line = _line(rng, number, earlier)
        earlier.append(line.data[:5000])
        lines.add(line, rng.choice((b"\n", b"\n", b"\n", b"\r\n")))
    if long_lines:
        for length in _LONG_BYTES:
            lines.add(Line(b'{"prompt": "' + b"a" * length + b'"}'))
    if rng.random() < 0.3:
        lines.add(Line(b'{"id": "last", "prompt": "no line end"}'), b"")
    return lines


def _line(rng: Random, number: int, earlier: list[bytes]) -> Line:
    row = valid_row(rng, f"{number}")
    kind = rng.random()
    if kind < 0.2:
        return Line(_encode(rng, row), _expected(row))
    if kind < 0.6:
        return Line(dump(mutate_row(rng, row)).encode("utf-8", "surrogatepass"))
    if kind < 0.87:
        return Line(mutate_bytes(rng, _encode(rng, row)))
    if kind < 0.91 and earlier:
        return Line(mutate_bytes(rng, rng.choice(earlier)))
    if kind < 0.93 and earlier:
        return Line(rng.choice(earlier).replace(b"\n", b" "))
    if kind < 0.95:
        return Line(rng.choice((b"", b" ", b"\t\r ", b"\r", b"\0", b"\xef\xbb\xbf", b" " * 9000)))
    if kind < 0.97:
        return Line(rng.randbytes(rng.choice((1, 10, 100, 1000))))
    return Line(odd_json(rng).encode("utf-8", "surrogatepass"))


def _encode(rng: Random, row: dict[str, Any]) -> bytes:
    """The row as any JSON writer may write it."""
    separators = rng.choice(((",", ":"), (", ", ": "), (" ,\t", " : ")))
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5, separators=separators)
    return (rng.choice(("", "", " ", "\t")) + text).encode()


def _expected(row: dict[str, Any]) -> dict[str, Any]:
    body = row.get("body", row)
    name = row.get("custom_id", row.get("id"))
    return {"id": str(name), "prompt": body.get("prompt"), "messages": body.get("messages")}


def valid_row(rng: Random, name: str) -> dict[str, Any]:
    """A row that must run, of any form, with a unique id."""
    prompt, params = _prompt(rng), valid_params(rng)
    names = {
        "custom_id" if rng.random() < 0.3 else "id": rng.choice(
            (f"v-{name}", 10 * int(name) + 10**7)
        )
    }
    form = rng.random()
    if form < 0.4:
        url = "/v1/chat/completions" if "messages" in prompt else "/v1/completions"
        outer = {"method": "POST"} if rng.random() < 0.8 else {}
        if rng.random() < 0.8 and "prompt_token_ids" not in prompt:
            outer["url"] = url
        name_value = next(iter(names.values()))
        return {"custom_id": name_value, **outer, "body": {**prompt, **params}}
    if form < 0.6:
        ours = {k: v for k, v in params.items() if k not in ("model", "stream", "user", "metadata")}
        return {**names, **prompt, "sampling_params": ours}
    return {**names, **prompt, **params}


def _prompt(rng: Random) -> dict[str, Any]:
    kind = rng.random()
    if kind < 0.4:
        return {"prompt": rng.choice(_TEXTS)}
    if kind < 0.6:
        ids = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
        return {rng.choice(("prompt", "prompt_token_ids")): ids}
    messages = []
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(_TEXTS)
        content: Any = text if rng.random() < 0.7 else [{"type": "text", "text": text}]
        messages.append({"role": rng.choice(_ROLES), "content": content})
    return {"messages": messages}


def valid_params(rng: Random) -> dict[str, Any]:
    """Some sampling parameters, each inside its range."""
    makers: dict[str, Any] = {
        "n": lambda: rng.randint(1, 3),
        "max_tokens": lambda: rng.choice((1, 2, 5, 2**31 - 1)),
        "temperature": lambda: rng.choice((0, 0.0, 1e-6, 0.7, 1, 5.5, 1e39, 1e300)),
        "top_p": lambda: rng.choice((1, 0.9, 1e-9, 5e-324)),
        "top_k": lambda: rng.choice((-1, 0, 1, 5, 2**31 - 1)),
        "min_p": lambda: rng.choice((0, 0.1, 1)),
        "seed": lambda: rng.choice((0, -1, 7, 2**63 - 1, -(2**63))),
        "stop": lambda: rng.choice(("\n", ["a", "zz"], [], ["\t"], ["a" * 1000])),
        "stop_token_ids": lambda: [rng.randrange(VOCAB)] if rng.random() < 0.5 else [],
        "ignore_eos": lambda: rng.random() < 0.5,
        "include_stop_str_in_output": lambda: rng.random() < 0.5,
        "skip_special_tokens": lambda: rng.random() < 0.5,
        "logprobs": lambda: rng.choice((0, 1, 20, True, False, None)),
        "logit_bias": lambda: {str(rng.randrange(VOCAB)): rng.choice((-100, 0, 0.5, 100))},
        "presence_penalty": lambda: rng.choice((-2, 0, 2.0)),
        "frequency_penalty": lambda: rng.choice((-2, 0, 2.0)),
        "repetition_penalty": lambda: rng.choice((0.5, 1, 1.3)),
        "user": lambda: "someone",
        "metadata": lambda: {"a": [1, None]},
    }
    chosen = rng.sample(sorted(makers), rng.choice((0, 1, 2, 4, 8)))
    params = {name: makers[name]() for name in chosen}
    if "max_tokens" in params and rng.random() < 0.5:
        params["min_tokens"] = min(2, params["max_tokens"])
    return params


def mutate_row(rng: Random, row: dict[str, Any]) -> Any:
    """Mostly one field changed: its value, its type, its name, or a field put in."""
    kind = rng.random()
    if kind < 0.5:
        name = rng.choice(_PARAMS)
        value = Raw(rng.choice(NUMBERS)) if rng.random() < 0.3 else odd_json(rng)
        inside = next((key for key in ("body", "sampling_params") if key in row), None)
        if inside is None:
            return {**row, name: value}
        return {**row, inside: {**row[inside], name: value}}
    if kind < 0.6:
        name = rng.choice(
            ("id", "custom_id", "prompt", "prompt_token_ids", "messages", "body", "url", "method")
        )
        return {**row, name: odd_json(rng)}
    return mutate_tree(rng, row)
