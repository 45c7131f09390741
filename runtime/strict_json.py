"""Strict reading of small JSON documents that come from outside.

`json.loads` alone is too generous for a file that decides what a runtime loads: it keeps the last of two equal keys,
accepts NaN, recurses as deep as the text asks, and turns a long digit string into a huge integer. `parse_object` closes
these doors before any value is looked at, and `Fields` reads the values so that every refusal names the key's path.
All failures are `BundleInvalid`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from .errors import BundleInvalid

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NUMBER_CHARS = 32

# A string runs to its closing quote or, where that is missing, to the end: so each character is visited once.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def invalid(path: str, problem: str) -> BundleInvalid:
    """The error for a manifest value: where, what, and the cure."""
    return BundleInvalid(f"manifest.json: {path}: {problem}. Export the bundle again or fetch a clean copy.")


def shown(text: str) -> str:
    """Foreign text made safe for a message: ASCII, quoted, at most 64 characters."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")


def parse_object(data: bytes) -> dict[str, object]:
    """Parse UTF-8 JSON whose root is an object. Refuses duplicates, NaN, deep nesting, long numbers, too many bytes."""
    if len(data) > MAX_BYTES:
        raise invalid("root", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid("root", f"not UTF-8 at byte {error.start}") from None
    _refuse_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise invalid("root", f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise invalid("root", "not an object")
    return value


def _refuse_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise invalid("root", f"nested deeper than {MAX_DEPTH} levels")
        elif token in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise invalid("root", f"the key {shown(key)} occurs twice in one object")
        result[key] = value
    return result


def _refuse_constant(name: str) -> float:
    raise invalid("root", f"{name} is not a number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARS:
        raise invalid("root", f"a number of {len(digits)} characters, the limit is {MAX_NUMBER_CHARS}")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MAX_NUMBER_CHARS:
        raise invalid("root", f"a number of {len(digits)} characters, the limit is {MAX_NUMBER_CHARS}")
    value = float(digits)
    if not math.isfinite(value):
        raise invalid("root", f"the number {digits} is too large")
    return value


class Fields:
    """One JSON object with exactly the given keys; typed getters that name the path of what they refuse."""

    def __init__(self, value: object, path: str, keys: Iterable[str]) -> None:
        self.path = path
        self.values = as_object(value, path)
        wanted = set(keys)
        for key in self.values:
            if key not in wanted:
                raise invalid(self.at(key), "unknown key")
        for key in sorted(wanted):
            if key not in self.values:
                raise invalid(self.at(key), "missing")

    def at(self, key: str) -> str:
        """The path of a key, for messages: `stages.unet.file`."""
        name = key if key.isascii() and key.isidentifier() else shown(key)
        return f"{self.path}.{name}" if self.path else name

    def text(self, key: str, *, limit: int, pattern: str | None = None) -> str:
        """A string of 1..limit printable characters (it will be printed to terminals), matching `pattern` in full."""
        value = self.values[key]
        if not isinstance(value, str):
            raise invalid(self.at(key), "not a string")
        if not 1 <= len(value) <= limit:
            raise invalid(self.at(key), f"{len(value)} characters, 1 to {limit} are allowed")
        if not value.isprintable():
            raise invalid(self.at(key), "holds characters that cannot be printed")
        if pattern is not None and re.fullmatch(pattern, value) is None:
            raise invalid(self.at(key), f"{shown(value)} is not of the form {pattern}")
        return value

    def choice(self, key: str, allowed: Iterable[str]) -> str:
        """One of a few known words."""
        value = self.values[key]
        options = list(allowed)
        if not isinstance(value, str) or value not in options:
            raise invalid(self.at(key), f"must be one of {', '.join(options)}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number in low..high; true and 1.0 are not whole numbers here."""
        return as_integer(self.values[key], self.at(key), low, high)

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in low..high."""
        return as_number(self.values[key], self.at(key), low, high)

    def array(self, key: str, limit: int) -> list[object]:
        """An array of at most `limit` values."""
        return as_array(self.values[key], self.at(key), limit)


def as_object(value: object, path: str) -> dict[str, object]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise invalid(path or "root", "not an object")
    return value


def as_array(value: object, path: str, limit: int) -> list[object]:
    """`value` if it is a JSON array of at most `limit` values."""
    if not isinstance(value, list):
        raise invalid(path, "not an array")
    if len(value) > limit:
        raise invalid(path, f"{len(value)} values, the limit is {limit}")
    return value


def as_integer(value: object, path: str, low: int, high: int) -> int:
    """`value` if it is a whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(path, "not a whole number")
    if not low <= value <= high:
        raise invalid(path, f"{value} is outside {low}..{high}")
    return value


def as_number(value: object, path: str, low: float, high: float) -> float:
    """`value` as a float if it is a finite number in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(path, "not a number")
    if not low <= value <= high:
        raise invalid(path, f"{value} is outside {low}..{high}")
    return float(value)
