"""The prompt of a row: one text, one list of token ids, or one list of chat messages."""

from typing import Any

import msgspec

from janus_hpc.rows.fault import RowFault, fault_of, show
from janus_hpc.rows.params import TokenId

PROMPT_NAMES = ("prompt", "prompt_token_ids", "messages")


class _TokenPrompt(msgspec.Struct):
    prompt: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None


def parse_prompt(given: dict[str, Any]) -> dict[str, Any]:
    """The prompt in `given` as the one field of `Row` that holds it. Raises RowFault."""
    present = [name for name in PROMPT_NAMES if given.get(name) is not None]
    if not present:
        raise RowFault("prompt", f"missing prompt: give one of {', '.join(PROMPT_NAMES)}")
    if len(present) > 1:
        raise RowFault(present[1], f"give one of {', '.join(PROMPT_NAMES)}; found {present}")
    name = present[0]
    value = given[name]
    if name == "messages":
        return {"messages": _messages(value)}
    if name == "prompt" and isinstance(value, str):
        return {"text": _text(name, value)}
    if isinstance(value, list) and value and isinstance(value[0], str):
        raise RowFault(name, "a list of texts: give one prompt a row")
    return {"token_ids": _token_ids(name, value)}


def _text(name: str, value: str) -> str:
    if not value:
        raise RowFault(name, "empty prompt")
    _refuse_nul(name, value)
    return value


def _refuse_nul(name: str, value: str) -> None:
    position = value.find("\0")
    if position >= 0:
        raise RowFault(name, f"NUL byte in the text, at character {position}")


def _token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        expected = "a text or a list of token ids" if name == "prompt" else "a list of token ids"
        raise RowFault(name, f"expected {expected}; found {show(value)}")
    if not value:
        raise RowFault(name, "empty prompt")
    try:
        checked = msgspec.convert({name: value}, _TokenPrompt)
    except msgspec.ValidationError as error:
        raise RowFault(name, f"bad token id: {fault_of(error, {name: value}).reason}") from None
    token_ids: list[int] = getattr(checked, name)
    return token_ids


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowFault("messages", f"expected a list of messages; found {show(value)}")
    if not value:
        raise RowFault("messages", "empty prompt: no messages")
    return [_message(position, message) for position, message in enumerate(value)]


def _message(position: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowFault("messages", f"message {position}: expected an object; found {show(message)}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RowFault("messages", f"message {position}: role must be a text; found {show(role)}")
    return {**message, "content": _content(position, message)}


def _content(position: int, message: dict[str, Any]) -> str:
    """Content as one text: parts of type text are joined by line ends."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        content = "\n".join(_part_text(position, part) for part in content)
    if not isinstance(content, str):
        raise RowFault(
            "messages", f"message {position}: content must be a text; found {show(content)}"
        )
    _refuse_nul("messages", content)
    return content


def _part_text(position: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
    if not isinstance(text, str):
        raise RowFault(
            "messages", f"message {position}: only text parts are known; found {show(part)}"
        )
    return text
