"""Twists: what a venue does to an answer before it leaves, from late to hostile.

A twist takes the honest answer and returns what is said in its place. Those here are ready-made; any
function of that shape will do, a lambda too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs

from trio_nova.testing._venue_link import CUT

__all__ = [
    "UNKNOWN_ID",
    "Later",
    "Twist",
    "after",
    "cut_after",
    "cut_before",
    "followed_by",
    "in_batch",
    "lookalike",
    "never",
    "preceded_by",
    "twice",
    "with_fields",
    "with_result",
    "with_unknown_id",
]

UNKNOWN_ID = 987_654_321
"""An id that no client uses."""


@attrs.frozen
class Later:
    """A message to be sent in `seconds`."""

    seconds: float
    message: Any


Twist: TypeAlias = Callable[[dict[str, Any]], Iterable[Any]]
"""Takes an answer and returns the messages to send in its place; a `str` goes out as it is, all else as JSON."""


def never(answer: dict[str, Any]) -> list[Any]:
    """Say nothing: the request was executed all the same."""
    return []


def twice(answer: dict[str, Any]) -> list[Any]:
    """Say it two times."""
    return [answer, answer]


def after(seconds: float) -> Twist:
    """Answer late; what is asked meanwhile is answered first, so that answers come out of order."""
    return lambda answer: [Later(seconds, answer)]


def preceded_by(*messages: Any) -> Twist:
    """Send `messages`, notifications for example, between the request and its answer."""
    return lambda answer: [*messages, answer]


def followed_by(*messages: Any) -> Twist:
    """Send `messages` right behind the answer."""
    return lambda answer: [answer, *messages]


def cut_before(answer: dict[str, Any]) -> list[Any]:
    """Drop the link in place of answering: the request was executed."""
    return [CUT]


def cut_after(answer: dict[str, Any]) -> list[Any]:
    """Answer, and drop the link behind it."""
    return [answer, CUT]


def with_unknown_id(answer: dict[str, Any]) -> list[Any]:
    """Answer first what nobody asked."""
    return [{**answer, "id": UNKNOWN_ID}, answer]


def lookalike(answer: dict[str, Any]) -> list[Any]:
    """Send notifications that look like the answer, and then none: who takes one for it is deceived.

    To be followed by the true answer, or by an error, use `preceded_by` with messages of your own.
    """
    stripped = {key: value for key, value in answer.items() if key != "id"}
    event = {"method": "subscription", "params": {"channel": "auth", "data": answer.get("result", stripped)}}
    return [{**stripped, **event}, {"jsonrpc": "2.0", **event}, {**stripped, "id": None}]


def in_batch(answer: dict[str, Any]) -> list[Any]:
    """Wrap the answer in an array, as a JSON-RPC batch would."""
    return [[answer]]


def with_fields(**fields: Any) -> Twist:
    """Replace fields of the answer: `with_fields(id=None)`, `with_fields(error="no object")`."""
    return lambda answer: [{**answer, **fields}]


def with_result(**fields: Any) -> Twist:
    """Replace fields of the answer's `result`: `with_result(expires_in=-1)`."""
    return lambda answer: [{**answer, "result": {**answer.get("result", {}), **fields}}]
