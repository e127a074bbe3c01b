"""The attributes of the results file's root: provenance as plain values, nested ones as JSON text,
all under one hash.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import h5py
import msgspec
import numpy as np

HASH_NAME = "attributes_sha256"


def write_attributes(file: h5py.File, attrs: Mapping[str, Any]) -> None:
    """Writes `attrs` and their hash to the root of `file`."""
    for name in sorted(attrs):
        file.attrs[name] = _storable(attrs[name])
    file.attrs[HASH_NAME] = np.bytes_(_hash(read_attributes(file)))


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """The attributes as Python values, without their hash. Nested ones stay JSON text."""
    return {name: _plain(file.attrs[name]) for name in sorted(file.attrs) if name != HASH_NAME}


def decoded(value: Any) -> Any:
    """A nested attribute as it was before it became JSON text."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return None if value == "null" else value


def attributes_are_intact(file: h5py.File) -> bool:
    """True if the attributes are those that were written."""
    stored = file.attrs.get(HASH_NAME)
    return isinstance(stored, bytes) and stored.decode() == _hash(read_attributes(file))


def _storable(value: Any) -> str | int | float | bool:
    if isinstance(value, str) and "\0" not in value:
        return value
    if isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return msgspec.json.encode(value).decode()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _hash(plain: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
