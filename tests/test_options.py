"""The options as type checkers know them are those of `Config`, in name and in type."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import pytest

from trio_nova import Config, ConfigOptions, Heartbeat, ReconfigurableOptions
from trio_nova.config import RECONFIGURABLE, configure
from trio_nova.links import Deflate
from trio_nova.messages import M_co

FIELDS = attrs.fields_dict(Config)
OPTIONS = get_type_hints(ConfigOptions)


def taken(name: str) -> Any:
    """Return the type that `Config` takes for a field: that of its converter's parameter, where it has one."""
    converter = FIELDS[name].converter
    if converter is None:
        return get_type_hints(Config)[name]
    assert inspect.isfunction(converter)
    return get_type_hints(converter)[next(iter(inspect.signature(converter).parameters))]


def test_there_is_an_option_for_each_field_and_no_other() -> None:
    assert sorted(OPTIONS) == sorted(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_option_is_of_the_type_that_its_field_takes(name: str) -> None:
    option = OPTIONS[name]
    assert (option[M_co] if name == "codec" else option) == taken(name)  # a frozen value only gives, a dict can change


def words() -> Iterator[tuple[str, Any]]:
    """Yield the plain values that the types name: texts, and None."""
    for name, kind in OPTIONS.items():
        for part in (kind, *get_args(kind)):
            if get_origin(part) is Literal:
                yield from ((name, word) for word in get_args(part))
            elif part is type(None):
                yield name, None


@pytest.mark.parametrize(("name", "word"), list(words()))
def test_every_word_that_a_type_names_is_taken(name: str, word: Any) -> None:
    kind = {"compression": Deflate | None, "heartbeat": Heartbeat}.get(name, object)
    assert isinstance(getattr(configure(Config(), {name: word}), name), kind)


def test_what_can_be_changed_later_is_what_its_type_says() -> None:
    changeable = get_type_hints(ReconfigurableOptions)
    assert sorted(changeable) == sorted(RECONFIGURABLE)
    assert changeable == {name: OPTIONS[name] for name in changeable}
