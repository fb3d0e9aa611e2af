"""What a text reads like once its escapes are undone: a peer that repeats a secret may write it in another way.

A reading knows where in the text each of its characters stands, so that what is found in the one can be masked in
the other. Layers are undone one by one (JSON in JSON, percent forms in HTML), in every order that changes anything.
"""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Callable, Sequence

import attrs

__all__ = ["Reading", "readings"]

MAX_READINGS = 32
"""Readings of one text that are tried, the plainest first."""
MAX_READ = 262_144
"""Characters of all these readings: of a long text fewer are tried."""

_DISGUISED = re.compile("[%+\\\\&\x80-\xff\udc80-\udcff]")


@attrs.frozen
class Reading:
    """A text as somebody may have meant it."""

    text: str
    begins: Sequence[int]
    """Where in the first text each character begins."""
    ends: Sequence[int]
    """Where each ends there."""


def readings(text: str) -> list[Reading]:
    """Return `text` as it is, and as it reads with escapes undone."""
    found = [Reading(text, range(len(text)), range(1, len(text) + 1))]
    if _DISGUISED.search(text) is None:
        return found
    known, size, waiting = {text}, len(text), deque(found)
    while waiting:
        reading = waiting.popleft()
        for pattern, undo in _DISGUISES:
            other = _undone(reading, pattern, undo)
            if other is None or other.text in known:
                continue
            size += len(other.text)
            if len(found) == MAX_READINGS or size > MAX_READ:
                return found
            known.add(other.text)
            found.append(other)
            waiting.append(other)
    return found


def _undone(reading: Reading, pattern: re.Pattern[str], undo: Callable[[str, bool], str]) -> Reading | None:
    pieces: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    at = 0
    for match in pattern.finditer(reading.text):
        start, end = match.span()
        plain = undo(match[0], end == len(reading.text) or reading.text[end] in _ENDS)
        pieces += (reading.text[at:start], plain)
        # All that was escaped in one go counts as one: it is masked as a whole.
        begins += (*reading.begins[at:start], *[reading.begins[start]] * len(plain))
        ends += (*reading.ends[at:start], *[reading.ends[end - 1]] * len(plain))
        at = end
    if not at:
        return None
    pieces.append(reading.text[at:])
    return Reading("".join(pieces), [*begins, *reading.begins[at:]], [*ends, *reading.ends[at:]])


_ENDS = "…"
"""What stands behind a text that was cut."""


def _decoded(data: bytes, is_last: bool) -> str:
    """Read bytes as UTF-8, without the beginning of a character where they may have been cut, or else as Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        is_cut = is_last and exc.reason == "unexpected end of data"
        return data[: exc.start].decode() if is_cut else data.decode("latin-1")


def _unpercent(escaped: str, is_last: bool) -> str:
    return _decoded(bytes.fromhex(escaped.replace("%", "")), is_last)


_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def _unbackslash(escaped: str, is_last: bool) -> str:
    """Undo what JSON (RFC 8259 section 7), `repr` and `printable` write with a backslash."""
    match escaped[1]:
        case "u":
            return bytes.fromhex(escaped.replace("\\u", "")).decode("utf-16-be", "ignore")
        case "x":
            return _decoded(bytes.fromhex(escaped.replace("\\x", "")), is_last)
        case "U":
            point = int(escaped[2:], 16)
            return chr(point) if point < 0x110000 else escaped
        case plain:
            return _CONTROLS.get(plain, plain)


def _unhtml(escaped: str, is_last: bool) -> str:
    if escaped[1] != "#":
        return html.unescape(escaped)
    point = int(escaped[3:-1], 16) if escaped[2] in "xX" else int(escaped[2:-1])
    return chr(point) if point < 0x110000 else escaped


def _unmistaken(misread: str, is_last: bool) -> str:
    """Read as UTF-8, or else as Latin-1, what was taken for the other one of them."""
    return _decoded(bytes(ord(character) & 0xFF for character in misread), is_last)


_DISGUISES: tuple[tuple[re.Pattern[str], Callable[[str, bool], str]], ...] = (
    (re.compile(r"(?:%[0-9A-Fa-f]{2})+"), _unpercent),
    (
        re.compile(r"(?:\\u[0-9A-Fa-f]{4})+|(?:\\x[0-9A-Fa-f]{2})+|\\U[0-9A-Fa-f]{8}|\\[^uUx]", re.DOTALL),
        _unbackslash,
    ),
    (re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});"), _unhtml),
    (re.compile("[\x80-\xff]+|[\udc80-\udcff]+"), _unmistaken),
    (re.compile(r"\+"), lambda plus, is_last: " "),
)
