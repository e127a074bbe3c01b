"""Elements of SVG and HTML as text, escaped, and numbers as a person reads them."""

import html
import math
import re

_JOULES_PER_KWH = 3.6e6
_MILLIONS_FROM = 10_000_000
# Not allowed in HTML or XML, invisible, or turning the direction of what follows.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)
_TIME_UNITS = ((1e-3, 1e6, "\u00b5s"), (1.0, 1e3, "ms"), (180.0, 1.0, "s"), (7200.0, 1 / 60, "min"))


def escape(text: object) -> str:
    """Text from anywhere, safe inside an element or a quoted attribute."""
    return html.escape(_CONTROL.sub("\ufffd", str(text)), quote=True)


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """One element; `content` is markup already. `class_` is class, other underscores are dashes."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_coordinate(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{told}>{content}</{name}>"


def _coordinate(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def rect(x: float, y: float, width: float, height: float, hint: str = "", **more: object) -> str:
    """A filled rectangle; `hint` is shown where the pointer rests."""
    content = element("title", escape(hint)) if hint else ""
    return element("rect", content, x=x, y=y, width=width, height=height, **more)


def line(x1: float, y1: float, x2: float, y2: float, **more: object) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **more)


def path(points: list[tuple[float, float]], **more: object) -> str:
    """An open line through points."""
    return element("path", d="M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points), **more)


def label(x: float, y: float, text: object, **more: object) -> str:
    """A line of text."""
    return element("text", escape(text), x=x, y=y, **more)


def number(value: float) -> str:
    """Three significant digits, thousands apart; a dash for NaN."""
    if not math.isfinite(value):
        return "\u2013"
    if abs(value) >= 999.5 or value == 0:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int) -> str:
    """All digits of a count, or of many the millions."""
    return f"{value:,}" if value < _MILLIONS_FROM else f"{number(value / 1e6)}\u202fM"


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return "\u2013" if not math.isfinite(share) else f"{share:.1%}".replace("%", "\u202f%")


def time_unit(most_s: float) -> tuple[float, str]:
    """What to multiply seconds with where `most_s` is the largest, and the unit's name."""
    for limit_s, factor, name in _TIME_UNITS:
        if most_s < limit_s:
            return factor, name
    return 1 / 3600, "h"


def energy(joules: float) -> str:
    """Joules, or kilowatt-hours of many."""
    if joules >= _JOULES_PER_KWH:
        return f"{number(joules / _JOULES_PER_KWH)}\u202fkWh"
    return f"{number(joules)}\u202fJ"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if not math.isfinite(seconds):
        return "\u2013"
    factor, name = time_unit(abs(seconds) * (1 + 1e-9))
    return f"{number(seconds * factor)}\u202f{name}"
