"""What a service may say that no service should: messages that are broken in all ways, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from random import Random
from typing import Any, cast

__all__ = ["HOSTILE_PAYLOADS", "mutants"]

MAX_MUTANTS = 500
"""Of one message."""
SEED = 20


def _nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


JUNK: tuple[Any, ...] = (None, True, 0, -1, 1.5, 2**60, "", "x", "\x00", [], ["x"], [[]], {}, {"x": None}, _nested(200))
"""What may stand where something else should."""

HOSTILE_PAYLOADS: tuple[str | bytes, ...] = (
    *("", " ", "x", "\x00", "\ufeff{}", "5", "1e400", "9" * 4000, "null", "true", '"text"', "[]", "{}", "[[[]]]"),
    *("[1, null, [], {}]", '{"": ""}', '{"id": NaN}', '{"id": 1}', '{"a": 1', '{"a": 1} x', '{"channel": []}'),
    *('{"id": null, "result": null, "error": null}', '{"id": 1, "error": []}', '{"id": [], "method": {}}'),
    *('{"id": 1, "result": [], "error": "both"}', '{"type": []}', '{"method": "x", "params": []}'),
    *('{"method": "x", "params": "x"}', "[" * 400 + "]" * 400, '{"a":' * 400 + "1" + "}" * 400, "[" * 100_000),
    *(b"", b"x", b"{}", b"[]", b"\x00\xff\xfe"),
)


def mutants(message: Any, others: Sequence[Any]) -> Iterator[Any]:
    """Yield what becomes of a message whose parts are left out, renamed or replaced: first one, then two at once.

    Args:
        message: a text or bytes, a tuple of these, or what JSON has a form for.
        others: messages of other kinds, which may stand in it, or lend it their fields.
    """
    random, broken = Random(f"{SEED} {message!r}"), list(islice(_altered(message, ()), MAX_MUTANTS // 2))
    ways = list(_altered(message, JUNK))
    for other in others:
        if isinstance(message, Mapping) and isinstance(other, Mapping):
            ways += [{**message, **other}, *({**message, name: other} for name in message)]
    ways = broken + random.sample(ways, min(len(ways), MAX_MUTANTS // 2 - len(broken)))
    for way in ways:
        yield way
        yield next(islice(_altered(random.choice(ways), JUNK), random.randrange(60), None), way)


def _altered(message: Any, junk: Sequence[Any]) -> Iterator[Any]:
    """Yield a message without each of its parts, with each of them renamed, and with all of `junk` in its place."""
    match message:
        case str() | bytes() if message:
            message, step = cast("str", message), max(1, len(message) // 40)
            for at in range(0, len(message), step):
                yield message[:at]
                yield message[:at] + message[at + step :]
                yield message[:at] + message[at : at + step] * 2 + message[at + step :]
        case Mapping():
            for name, part in message.items():
                rest = {other: value for other, value in message.items() if other != name}
                yield rest
                yield {**rest, f"{name}x": part}
                for twisted in chain(junk, _altered(part, junk)):
                    yield {**message, name: twisted}
        case list() | tuple():
            kind = type(message)
            for at, part in enumerate(message):
                yield kind([*message[:at], *message[at + 1 :]])
                yield kind([*message[:at], part, *message[at:]])
                # The frames of a message stay frames.
                for twisted in chain(() if kind is tuple else junk, _altered(part, junk)):
                    yield kind([*message[:at], twisted, *message[at + 1 :]])
