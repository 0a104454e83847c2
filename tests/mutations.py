"""Damage to valid files, as hypothesis makes it up: to bytes, to numbers in text, to values in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_HUGE, _DEEP = "a number of 5000 digits", "a hundred thousand lists, one in the other"
_STAND_INS = {
    json.dumps(_HUGE): "9" * 5000,
    json.dumps(_DEEP): "[" * 100_000 + "]" * 100_000,
}

_BYTES = (b"", b"\0", b"\xff", b"\n", b"\r\n", b"{", b'"', b"\xed\xa0\x80", b"\0" * 300, b"[" * 5000)
_NUMBERS = (
    *(b"0", b"-1", b"-0", b"1e400", b"-1e400", b"1e-400", b"NaN", b"nan", b"Infinity", b"-inf", b"1_0"),
    *(b"0x10", b"2147483648", b"4294967295", b"4294967296", b"18446744073709551616", b"999999999999"),
    *(b"9" * 400, b"9" * 5000, b"0." + b"0" * 400 + b"1", b"1 2", b"1\\2", b"", b"%s", b"1e99", b"true"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 255, 256, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, _HUGE, _DEEP),
    *(float("nan"), float("inf"), "", " ", ".", "..", "/", "\0", "a\0b", "a\nb", "../../a", "s3://x/y", "~"),
    *("\ud800", "é", "٣", "9" * 5000, "x" * 5000, "1", "-1", "1.5", "imagesTr/", "/a.nii.gz", "a.tar!/b"),
    *("a\0.nii.gz", "a\nb.nii.gz", "\ud800.nii.gz", "x" * 300 + ".nii.gz", [], {}, [[]], {"": ""}),
    *({"0": "a", "1": "b"}, {"9" * 5000: "a"}, {"-1": "a"}, {"a": -1}, {"a": [1, 2]}, {"a": _HUGE}),
    *({"a\nb": "a"}, {"\ud800": ["a"]}),
)


@st.composite
def damaged(draw: st.DrawFn, plain: bytes, most: int = 3) -> bytes:
    """The bytes after one to `most` damages."""
    data = plain
    for _ in range(draw(st.integers(1, most))):
        data = draw(st.sampled_from(_DAMAGES))(draw, data)
    return data


def _flip(draw: st.DrawFn, data: bytes) -> bytes:
    if not data:
        return data
    place, bit = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 7))
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    return data[: draw(st.integers(0, len(data)))]


def _splice(draw: st.DrawFn, data: bytes) -> bytes:
    """A piece of the file, or what is no part of one, stands in place of another piece."""
    low, high, begin, end = (draw(st.integers(0, len(data))) for _ in range(4))
    piece = draw(st.sampled_from(_BYTES)) if draw(st.booleans()) else data[begin : max(begin, end)][:4096]
    return data[:low] + piece + data[max(low, min(high, low + 64)) :]


def _renumber(draw: st.DrawFn, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    number = found[draw(st.integers(0, len(found) - 1))]
    return data[: number.start()] + draw(st.sampled_from(_NUMBERS)) + data[number.end() :]


_DAMAGES: tuple[Callable[[st.DrawFn, bytes], bytes], ...] = (_flip, _cut, _splice, _renumber, _renumber)


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> bytes:
    """A document's JSON with something else in it, taken away or added; or with damaged bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(json.dumps(document).encode()))
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        changed = _change(draw, changed)
    text = json.dumps(changed)
    for stand_in, meant in _STAND_INS.items():
        text = text.replace(stand_in, meant)
    return text.encode()


def _change(draw: st.DrawFn, value: Any) -> Any:
    """The value with one of its parts changed, or another in its place."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(_VALUES))
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _change(draw, value[place]), *value[place + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    kind = draw(st.sampled_from(["change", "change", "change", "remove", "rename", "add"]))
    if kind == "change":
        return {**value, key: _change(draw, value[key])}
    if kind == "add":
        return {**value, draw(st.sampled_from(["", "x", "1", "9" * 5000, "\ud800"])): value[key]}
    rest = {other: part for other, part in value.items() if other != key}
    return rest if kind == "remove" else {**rest, draw(st.sampled_from(["", "x", "-7", "٣"])): value[key]}
