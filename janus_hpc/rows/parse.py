"""One line of the input file to one checked `Row`: OpenAI batch lines and loose rows.

A line that cannot be run becomes a row with an error; nothing here raises, whatever the bytes.
"""

from typing import Any

import msgspec

from janus_hpc.core import Row, RowError, SamplingParams
from janus_hpc.rows.fault import RowFault, show
from janus_hpc.rows.ids import is_valid_id, row_id
from janus_hpc.rows.params import IGNORED_NAMES, PARAM_NAMES, parse_params
from janus_hpc.rows.prompt import PROMPT_NAMES, parse_prompt

MAX_LINE_BYTES = 64 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_ID_NAMES = frozenset({"id", "custom_id"})
_BATCH_NAMES = frozenset({"custom_id", "method", "url", "body"})
_BODY_NAMES = PARAM_NAMES | IGNORED_NAMES | frozenset(PROMPT_NAMES)
_LOOSE_NAMES = _BODY_NAMES | _ID_NAMES | {"sampling_params"}
_URL_PROMPTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}

_decode = msgspec.json.Decoder().decode


def strip_line(raw: bytes, line: int) -> bytes:
    """`raw` without its line end and, on line 1, without a byte order mark."""
    if line == 1:
        raw = raw.removeprefix(BYTE_ORDER_MARK)
    return raw.strip(b" \t\r\n")


def parse_row(raw: bytes, index: int, line: int, defaults: SamplingParams) -> Row:
    """The row in `raw`, the bytes of line `line` (from 1), with or without their line end."""
    stripped = strip_line(raw, line)
    try:
        prompt, params = _parse(stripped, defaults)
    except RowFault as fault:
        return error_row(raw, index, line, defaults, fault)
    id_text, explicit, _ = row_id(stripped, index)
    return Row(index=index, line=line, id=id_text, explicit_id=explicit, params=params, **prompt)


def error_row(raw: bytes, index: int, line: int, defaults: SamplingParams, fault: RowFault) -> Row:
    """The row in `raw`, refused for `fault`."""
    id_text, explicit, _ = row_id(strip_line(raw, line), index)
    error = RowError(line=line, field=fault.field, reason=fault.reason)
    return Row(
        index=index, line=line, id=id_text, explicit_id=explicit, params=defaults, error=error
    )


def _parse(stripped: bytes, defaults: SamplingParams) -> tuple[dict[str, Any], SamplingParams]:
    given = _decode_object(stripped)
    if "body" in given or "url" in given or "method" in given:
        body = _batch_body(given)
        _refuse_unknown(body, _BODY_NAMES, "body")
        return parse_prompt(body), parse_params(_only_params(body), defaults)
    _refuse_unknown(given, _LOOSE_NAMES, "row")
    _check_ids(given)
    return parse_prompt(given), parse_params(_loose_params(given), defaults)


def _decode_object(stripped: bytes) -> dict[str, Any]:
    if not stripped:
        raise RowFault("", "blank line")
    if b"\0" in stripped:
        raise RowFault("", f"NUL byte at byte {stripped.index(0)} of the line")
    try:
        stripped.decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{stripped[error.start]:02x} at byte {error.start} of the line"
        raise RowFault("", reason) from None
    try:
        value = _decode(stripped)
    except msgspec.DecodeError as error:
        raise RowFault("", f"broken JSON: {error}") from None
    except RecursionError:
        raise RowFault("", "broken JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise RowFault("", f"expected a JSON object; found {show(value)}")
    return value


def _batch_body(given: dict[str, Any]) -> dict[str, Any]:
    """The body of an OpenAI batch line, with the outer fields checked."""
    _refuse_unknown(given, _BATCH_NAMES, "batch line")
    _check_ids(given)
    method, url, body = given.get("method", "POST"), given.get("url"), given.get("body")
    if method != "POST":
        raise RowFault("method", f"expected POST; found {show(method)}")
    if not isinstance(body, dict):
        raise RowFault("body", f"expected an object; found {show(body)}")
    if url is None:
        return body
    if not isinstance(url, str) or url not in _URL_PROMPTS:
        raise RowFault("url", f"expected one of {', '.join(_URL_PROMPTS)}; found {show(url)}")
    expected = _URL_PROMPTS[url]
    if (expected == "messages") != (body.get("messages") is not None):
        raise RowFault("body", f"{url} wants {expected}")
    return body


def _check_ids(given: dict[str, Any]) -> None:
    names = [name for name in ("id", "custom_id") if given.get(name) is not None]
    if len(names) > 1:
        raise RowFault("id", "give id or custom_id, not both")
    for name in names:
        value = given[name]
        is_id = isinstance(value, str) or (type(value) is int and -(2**63) <= value < 2**63)
        if not is_id or not is_valid_id(value):
            expected = "a text that is not empty and has no NUL, or an integer"
            raise RowFault(name, f"expected {expected}; found {show(value)}")


def _refuse_unknown(given: dict[str, Any], valid: frozenset[str], where: str) -> None:
    unknown = given.keys() - valid
    if unknown:
        name = min(unknown)
        reason = f"unknown parameter {show(name)} in the {where}; valid: {', '.join(sorted(valid))}"
        raise RowFault(name, reason)


def _only_params(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in PARAM_NAMES}


def _loose_params(given: dict[str, Any]) -> dict[str, Any]:
    """Sampling parameters of a loose row: at its top level and under `sampling_params`, never
    twice.
    """
    top = _only_params(given)
    nested = given.get("sampling_params")
    if nested is None:
        return top
    if not isinstance(nested, dict):
        raise RowFault("sampling_params", f"expected an object; found {show(nested)}")
    _refuse_unknown(nested, PARAM_NAMES, "sampling_params")
    twice = top.keys() & nested.keys()
    if twice:
        raise RowFault(min(twice), "given twice: in the row and in sampling_params")
    return {**top, **nested}
