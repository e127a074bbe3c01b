"""A row's id and its 64-bit hash: the only place that says what they are.

The index and the parser both ask here, so that they cannot disagree on which rows are duplicates.
"""

import hashlib
from typing import Annotated

import msgspec

from janus_hpc.core import Row

RowId = str | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None
_ABSENT = msgspec.Raw(b"null")


class _Ids(msgspec.Struct):
    id: RowId = None
    custom_id: RowId = None


class _Body(msgspec.Struct):
    messages: msgspec.Raw = _ABSENT


class _IdsAndBody(_Ids):
    messages: msgspec.Raw = _ABSENT
    body: _Body | None = None


_decode_ids = msgspec.json.Decoder(_Ids).decode
_decode_ids_and_body = msgspec.json.Decoder(_IdsAndBody).decode
_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def default_id(index: int) -> str:
    """The id of a row that names none."""
    return f"row-{index}"


def is_valid_id(value: str | int | None) -> bool:
    """True if `value` can stand as an id."""
    return value is not None and value != "" and not (isinstance(value, str) and "\0" in value)


def row_id(line_bytes: bytes, index: int) -> tuple[str, bool, bool]:
    """Id of the row in `line_bytes`, whether the row names it, and whether the row holds chat
    messages.

    A line that cannot be read, or whose id is no id, has the default one. Never raises.
    """
    try:
        fields, chat = _decode(line_bytes)
    except _NOT_READABLE:
        return default_id(index), False, False
    given = fields.custom_id if fields.custom_id is not None else fields.id
    if given is None or not is_valid_id(given):
        return default_id(index), False, chat
    return str(given), True, chat


def _decode(line_bytes: bytes) -> tuple[_Ids, bool]:
    try:
        fields = _decode_ids_and_body(line_bytes)
    except msgspec.ValidationError:
        # A body of another type must not cost the row its id.
        return _decode_ids(line_bytes), False
    messages = fields.messages if fields.body is None else fields.body.messages
    return fields, bytes(messages) != b"null"


def hash_id(id_text: str) -> int:
    """64-bit hash of an id, the same on every host: blake2b, little-endian."""
    digest = hashlib.blake2b(id_text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def row_key(row: Row) -> int:
    """The unsigned 64-bit key that seeds a row's sampling: it depends on the id alone."""
    return hash_id(row.id)
