"""Odd values and odd bytes: what parsers stumble over, as JSON text and as mutations of any file.

Knows nothing of what is fuzzed; everything is drawn from the generator given.
"""

import json
from random import Random
from typing import Any

NUMBERS = (
    *("0", "-0", "-0.0", "1", "-1", "2", "3", "20", "21", "405", "406", "1024", "1025"),
    *("0.5", "1.0", "2.5", "1e0", "1E+2", "-2", "-2.1", "100", "100.5", "1e-5", "1e-6"),
    *("1e39", "1e300", "1e308", "-1e308", "1e400", "-1e400", "5e-324", "1e-46", "1e-400"),
    *("2147483647", "2147483648", "1000000000", "1000000000000", "9223372036854775807"),
    *("9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("18446744073709551615", "18446744073709551616", "1" + "0" * 400, "9" * 5000),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "00",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "1_0",
        "1e",
        "--1",
    ),
)
TEXTS = (
    *('""', '"a"', '" "', '"\\n"', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"'),
    *('"\\ud83d\\ude00"', '"\u2028\u2029\u0085"', '"\x01"', '"\x7f"', '"\ufeff"', '"\u202eabc"'),
    *(
        "'a'",
        '"\\x41"',
        '"\\uZZZZ"',
        '"unended',
        '"<script>alert(1)</script>"',
        '"../../etc/passwd"',
    ),
    *(
        '"1"',
        '"true"',
        '"null"',
        '"NaN"',
        '"e\u0301\u0301\u0301"',
        '"\U0010ffff"',
        '"%s%n{0}{{x}}"',
    ),
)
WORDS = ("true", "false", "null", "None", "True", "undefined", "")
SMALL = (
    *(
        "[]",
        "{}",
        "[null]",
        "[[]]",
        '{"":null}',
        '["a","a"]',
        '[""]',
        "[0]",
        "[-1]",
        "[406]",
        "[1,2,]",
    ),
    *("[1e0]", "[true]", '{"a":1,"a":2}', '{"1":1,"1":2}', '{"-1":1}', '{"1.5":1}', '{"01":1}'),
    *('{"999999999999999999999":1}', '{"\uff11":1}', '{" 1":1}', '{"1":NaN}', '{"1":1e400}'),
    *('{"1":-101}', '{"405":-100,"404":100}', '{"type":"text","text":"a"}', '[{"type":"text"}]'),
)
DEPTHS = (10, 300, 1100, 100_000)
LENGTHS = (300, 5_000, 70_000)

SPECIAL_BYTES = (
    *(
        b"\0",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\t",
        b" " * 40,
        b"\x1a",
        b"\x7f",
        b"\x01",
    ),
    *(
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\xe2",
    ),
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-",
        b"e",
        b"NaN",
        b"null",
        b"\\ud800",
        b"\\u0000",
    ),
    *(b"\xff\xfe", b"\xfe\xff", b"9" * 400, b"[" * 2000, b'{"a":' * 2000),
)


class Raw(str):
    """JSON text that `dump` writes as it stands."""


def odd_json(rng: Random) -> Raw:
    """One odd value as JSON text, or as what is nearly JSON."""
    kind = rng.random()
    if kind < 0.45:
        return Raw(rng.choice(NUMBERS))
    if kind < 0.65:
        return Raw(rng.choice(TEXTS))
    if kind < 0.75:
        return Raw(rng.choice(WORDS))
    if kind < 0.93:
        return Raw(rng.choice(SMALL))
    if kind < 0.96:
        depth = rng.choice(DEPTHS)
        return Raw(rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))
    length = rng.choice(LENGTHS)
    return Raw(rng.choice((f'"{"a" * length}"', "[" + "1," * length + "1]", "1" * length)))


class Pairs(list[tuple[str, Any]]):
    """An object as its pairs in order, so that a key can come twice."""


def dump(value: Any) -> str:
    """JSON text of plain values, `Raw` text and `Pairs`."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        parts = (f"{k if isinstance(k, Raw) else json.dumps(k)}: {dump(v)}" for k, v in value)
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def mutate_tree(rng: Random, value: Any) -> Any:
    """A copy of plain JSON values with one place changed, mostly deep inside."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        return _mutate_object(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        change = rng.random()
        if change < 0.1:
            return value[:at] + value[at + 1 :]
        if change < 0.2:
            return [*value, value[at]]
        return [*value[:at], mutate_tree(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int | float) and rng.random() < 0.3:
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**9, value / 3))
    if rng.random() < 0.1:
        return rng.choice(([value], {"a": value}, [value] * 3, str(value)))
    return odd_json(rng)


def _mutate_object(rng: Random, value: dict[str, Any]) -> Any:
    key = rng.choice(list(value))
    change = rng.random()
    if change < 0.1:
        return {name: its for name, its in value.items() if name != key}
    if change < 0.2:
        return Pairs([*value.items(), (key, mutate_tree(rng, value[key]))])
    if change < 0.3:
        other = rng.choice(
            (key.upper(), key + " ", "", Raw(rng.choice(TEXTS)), "x" * rng.choice((300, 9000)))
        )
        return Pairs([*value.items(), (other, odd_json(rng))])
    return {**value, key: mutate_tree(rng, value[key])}


def mutate_number(rng: Random, value: Any) -> Any:
    """A copy of plain JSON values with one number scaled, negated or made another of its type."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return {**value, key: mutate_number(rng, value[key])}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_number(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float):
        return rng.choice((0.0, -value, value * 10.0 ** rng.randint(-40, 40), 1e-300, 9999.0))
    return rng.choice(
        (0, 1, -value, value + 1, value * 10 ** rng.randint(0, 20), 2**31, 2**62, 2**70)
    )


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Some bytes flipped, cut, doubled, moved, or odd ones put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 64))
        kind = rng.randrange(8)
        if kind == 0:
            del out[at : at + length]
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at:at] = rng.choice(SPECIAL_BYTES)
        elif kind == 4:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 5:
            source = rng.randrange(len(out) + 1)
            out[at : at + length] = out[source : source + length]
        elif at < len(out):
            out[at] ^= 1 << rng.randrange(8)
    return bytes(out)
