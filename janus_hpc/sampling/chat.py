"""Chat templates: from messages to a prompt's text, with the rules of transformers' Jinja set-up.

The template is untrusted code of the model folder and runs in Jinja's immutable sandbox, with bounded time.
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from janus_hpc.errors import ModelError
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.folder import read_json_object, read_text, special_tokens
from janus_hpc.sampling.template_limits import BoundedEnvironment, render

_MAX_REASON = 500


class ChatTemplate:
    """A model folder's template with its special tokens; `now` is what strftime_now formats."""

    def __init__(self, source: str, tokens: dict[str, str], now: Callable[[], datetime]) -> None:
        self._tokens = tokens
        self._problem = ""
        try:
            self._template = _environment(now).from_string(source)
        # Jinja compiles to Python, which raises errors of its own, such as for too many blocks in each other.
        except Exception as error:
            # Rows of text or tokens still run with such a folder.
            self._problem = f"the model's chat template cannot be compiled: {_reason(error)}"

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt's text, up to the assistant's turn. RowRejected: the template refuses."""
        if self._problem:
            raise RowRejected("messages", self._problem)
        if not messages:
            raise RowRejected("messages", "expected at least one message, got none")
        try:
            values = {
                "messages": [_plain(m, i) for i, m in enumerate(messages)],
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
                **self._tokens,
            }
            return render(self._template, values)
        except RowRejected:
            raise
        # The template is code that ran on the row's data: whatever it raises is about this row.
        except Exception as error:
            what = f"the chat template refuses them: {_reason(error)}"
            raise RowRejected("messages", what) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_REASON]


def load_chat_template(
    model_dir: Path, now: Callable[[], datetime] = datetime.now
) -> ChatTemplate | None:
    """From chat_template.jinja, else tokenizer_config.json's chat_template; None without."""
    source = read_text(model_dir / "chat_template.jinja")
    if source is None:
        path = model_dir / "tokenizer_config.json"
        source = _default_template((read_json_object(path) or {}).get("chat_template"), path)
    if source is None:
        return None
    return ChatTemplate(source, special_tokens(model_dir), now)


def _default_template(value: Any, path: Path) -> str | None:
    """A template given as text, or the one called default of a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        named = [t for t in value if isinstance(t, dict) and t.get("name") == "default"]
        default = named[-1].get("template") if named else None
        if default is None or isinstance(default, str):
            return default
    raise ModelError(f"{path}: chat_template: expected text or a list of name and template")


def _plain(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message without null keys, its text parts joined: templates of text models expect text."""
    out = {key: value for key, value in message.items() if value is not None}
    content = out.get("content")
    if isinstance(content, list):
        out["content"] = "\n".join(_part_text(part, index) for part in content)
    return out


def _part_text(part: Any, index: int) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
    if isinstance(text, str):
        return text
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RowRejected(f"messages[{index}].content", f"expected text parts, got {kind!r}")


class _Generation(Extension):
    """The block that marks assistant text for training: rendered as if the marks were absent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment(now: Callable[[], datetime]) -> BoundedEnvironment:
    env = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return env


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter, which a model would see."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
