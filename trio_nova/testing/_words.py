"""The words of a hook: what its code looks for in a message, and the messages that can be made of them.

A hook that reads `message["op"] == "joined"` has the words "op" and "joined" among its constants. That is
enough to find messages which it understands, and, by leaving out or twisting their parts, those at which it
stumbles.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from types import CodeType, FunctionType, MethodType
from typing import Any

from trio_nova.adapter import Adapter
from trio_nova.handlers import AuthHandler, SubscriptionHandler

__all__ = ["HOSTILE_PAYLOADS", "JUNK", "broken", "messages_of", "words_of"]

MAX_WORDS = 12
MAX_MESSAGES = 10_000
"""That are made of the words of one hook."""

JUNK: tuple[Any, ...] = (None, True, 0, -1, 1.5, "", "x", [], ["x"], [[]], {}, {"x": None})
"""What may stand where something else should."""

HOSTILE_PAYLOADS: tuple[str | bytes, ...] = (
    "",
    " ",
    "x",
    "\x00",
    "\ufeff{}",
    "5",
    "1e400",
    "9" * 4000,
    "null",
    "true",
    '"text"',
    "[]",
    "[1, null, [], {}]",
    "[[[]]]",
    "{}",
    '{"": ""}',
    '{"id": NaN}',
    '{"id": 1}',
    '{"id": null, "result": null, "error": null}',
    '{"id": 1, "error": []}',
    '{"id": 1, "result": [], "error": "both"}',
    '{"id": [], "method": {}}',
    '{"type": []}',
    '{"method": "x", "params": []}',
    '{"method": "x", "params": "x"}',
    '{"channel": []}',
    '{"a": 1',
    '{"a": 1} x',
    "[" * 400 + "]" * 400,
    '{"a":' * 400 + "1" + "}" * 400,
    "[" * 100_000,
    b"",
    b"x",
    b"{}",
    b"[]",
    b"\x00\xff\xfe",
)
"""What a service may say that no service should."""

_ASKED = (Adapter, AuthHandler, SubscriptionHandler)
"""Who may be asked in place of the one that is asked first."""
_WORD = re.compile(r"\S{1,40}")


def words_of(*methods: Any) -> list[str]:
    """Return the texts that methods, and what they call in their own modules, compare messages to."""
    found: dict[str, None] = {}
    owners: list[Any] = [method.__self__ for method in methods if isinstance(method, MethodType)]
    todo: list[Any] = list(methods)
    seen: set[CodeType] = set()
    while todo:
        function = inspect.unwrap(getattr(todo[0], "__func__", todo[0]))
        del todo[0]
        if not isinstance(function, FunctionType) or function.__code__ in seen:
            continue
        for code in _codes(function.__code__):
            seen.add(code)
            found.update(dict.fromkeys(text for text in _texts(code.co_consts) if text != function.__doc__))
            for name in code.co_names:
                known = [function.__globals__.get(name)]
                for owner in owners:
                    known += _known(owner, name, by_all="super" in code.co_names)
                for value in known:
                    if isinstance(value, _ASKED):
                        owners.append(value)
                        todo += [getattr(value, each) for each in code.co_names if hasattr(value, each)]
                    elif inspect.isfunction(value) and value.__module__ == function.__module__:
                        todo.append(value)
                    else:
                        found.update(dict.fromkeys(_texts([value])))
    return list(found)[:MAX_WORDS]


def _known(owner: Any, name: str, *, by_all: bool) -> Iterator[Any]:
    """Yield what an instance has under a name, or what all its classes have, without running a property's code."""
    if name in getattr(owner, "__dict__", {}):
        yield owner.__dict__[name]
    members = (vars(kind)[name] for kind in type(owner).__mro__ if name in vars(kind))
    for member in members if by_all else islice(members, 1):
        yield getattr(owner, name, None) if inspect.ismemberdescriptor(member) else member


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            if _WORD.fullmatch(value):
                yield value
        elif isinstance(value, tuple | frozenset | list | set):
            yield from _texts(value)
        elif isinstance(value, dict):
            yield from _texts(value.keys())


def messages_of(words: Sequence[str], names: Sequence[Any]) -> Iterator[Any]:
    """Yield messages that are made of words, and of `names` that may stand among them: the likely ones first."""
    return islice(_messages_of(words, names), MAX_MESSAGES)


def _messages_of(words: Sequence[str], names: Sequence[Any]) -> Iterator[Any]:
    values = [*words, *names, True, 1]
    yield from words
    for word, name in product(words, names):
        yield f"{word} {name}"
        yield [word, name]
    fillings = [dict.fromkeys(words, name) for name in names]
    for word, value in product(words, values):
        yield {word: value}
        yield from ({**filling, word: value} for filling in fillings)
    for (one, two), first, filling in product(_ordered_pairs(words), words, fillings):
        yield {one: first, two: filling}
    for (one, two), first, second in product(combinations(words, 2), values, values):
        yield {one: first, two: second}
        yield from ({**filling, one: first, two: second} for filling in fillings)
    for word, value in product(words, JUNK):
        yield {word: value}
    for (one, two), first, value in product(_ordered_pairs(words), words, JUNK):
        yield {one: first, two: value}


def _ordered_pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((one, two) for one, two in product(words, words) if one != two)


def broken(message: Any) -> Iterator[Any]:
    """Yield a message once without each of its parts, and once with each kind of junk in its place."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(message, Mapping):
        parts = message.items()
    elif isinstance(message, list):
        parts = enumerate(message)
    else:
        return
    for key, part in parts:
        less = dict(message) if isinstance(message, Mapping) else list(message)
        del less[key]
        yield less
        for twisted in (*JUNK, *broken(part)):
            changed = dict(message) if isinstance(message, Mapping) else list(message)
            changed[key] = twisted
            yield changed
