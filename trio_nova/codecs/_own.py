"""What no message may hold: the values of this library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from typing import Any

import attrs
import msgspec

from trio_nova.errors import BadMessage

_PLAIN = frozenset({str, int, float, bool, bytes, type(None), Decimal})


def refuse_own(message: Any) -> None:
    """Raise BadMessage where an object of this library is in a message: msgspec would write its fields."""
    parts = [message]
    for part in parts:  # which grows meanwhile
        kind = type(part)
        if kind is dict:
            part = part.values()
        elif kind is not list:
            if _is_own(kind):
                raise BadMessage(
                    f"a {kind.__name__} of trio_nova is no message, nor part of one: a ping is sent by itself, and "
                    "what hooks answer is for them to return"
                )
            part = _contents(part)
        for value in part:
            if type(value) not in _PLAIN:
                parts.append(value)


def _is_own(kind: type) -> bool:
    """Return whether objects of a class are this library's: the values that `attrs` makes, and msgspec.

    Those that stand for the messages of one service are none.
    """
    is_value = attrs.has(kind) or issubclass(kind, msgspec.Struct)
    return is_value and any(_is_ours(base.__module__.split(".")) for base in kind.__mro__)


def _is_ours(module: list[str]) -> bool:
    return module[0] == "trio_nova" and module[1:2] not in (["demo"], ["adapters"])


def _contents(part: Any) -> Iterable[Any]:
    """Return what msgspec writes of an object that is no plain dict or list."""
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set | frozenset):
        return part
    if isinstance(part, msgspec.Struct):
        names: Iterable[str] = part.__struct_fields__
    elif is_dataclass(part) or attrs.has(type(part)):
        names = [*getattr(part, "__dict__", ()), *_slots_of(type(part))]
    else:
        return ()
    return [getattr(part, name, None) for name in names]


def _slots_of(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
