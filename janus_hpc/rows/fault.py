"""The one way a row is found wrong while it is parsed: a field and a reason, turned into an error
row by the parser.
"""

import re
from typing import Any

import msgspec

# msgspec ends its messages with the path of the value: "... - at `$.stop[0]`" or "... - at `key` in
# `$.logit_bias`".
_PATH = re.compile(r"^(?P<what>.*) - at (?:`key` in )?`\$\.?(?P<field>[^`.\[]*)[^`]*`$", re.DOTALL)
_MAX_SHOWN = 60
_MAX_FIELD = 200


class RowFault(Exception):
    """A row that cannot be run: `field` is the JSON key at fault (the start of a very long one), "" for the whole
    line.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field if len(field) <= _MAX_FIELD else field[:_MAX_FIELD] + "..."
        self.reason = reason


def show(value: Any) -> str:
    """`value` as a short text for a message; containers by type only, since they may be deep."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def fault_of(error: msgspec.ValidationError, given: dict[str, Any]) -> RowFault:
    """The fault that `error`, raised while `given` was checked, stands for."""
    match = _PATH.match(str(error))
    if match is None:
        return RowFault("", str(error))
    field = match["field"]
    return RowFault(field, f"{match['what']}; found {show(given.get(field))}")
