"""What messages take in memory, by what they were written as."""

from __future__ import annotations

from sys import getsizeof
from typing import Any

import msgspec

MARK_WEIGHT = 64
"""Bytes that an array, an object, or one of their items takes in memory beside its text."""


def weigh_json(payload: str | bytes) -> int:
    """Return about what a JSON text takes in memory once decoded: tens of times its size, if it is all brackets."""
    size = getsizeof(payload)
    # One character beyond ASCII makes all of its text as wide: text that is escaped, or in UTF-8, does not show it.
    if isinstance(payload, bytes):
        marks = payload.count(b"[") + payload.count(b"{") + payload.count(b",")
        widens = not payload.isascii() or b"\\u" in payload
    else:
        marks = payload.count("[") + payload.count("{") + payload.count(",")
        widens = "\\u" in payload
    return (4 * len(payload) if widens else size) + MARK_WEIGHT * marks


def weigh_message(message: Any) -> int:
    """Return about what a message takes in memory whose payload is not at hand."""
    if isinstance(message, str | bytes):
        return getsizeof(message)
    try:
        return weigh_json(msgspec.json.encode(message))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return getsizeof(message)
