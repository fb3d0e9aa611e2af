"""What strategies have in common: a subclass may have an `__init__` of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

__all__ = ["Strategy", "derive"]


class Strategy:
    """The base of the strategies that a program may subclass.

    A subclass may be a plain class with an `__init__` that sets attributes of its own, and need not call the one that
    attrs made: the fields that it leaves alone have their defaults.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # what a class is called with is for its `__init__` to say

        def __new__(cls, *args, **named):
            self = super().__new__(cls)
            made = next((each for each in cls.__mro__ if "__attrs_attrs__" in vars(each)), None)
            if made is not None and cls.__init__ is not made.__init__:
                _set_defaults(self, made)
            return self


def _set_defaults(strategy: Any, made: type[attrs.AttrsInstance]) -> None:
    """Do what the `__init__` that attrs made does, as far as nothing needs to be given."""
    is_complete = True
    for field in attrs.fields(made):
        value: Any = field.default
        if value is attrs.NOTHING:
            is_complete &= not field.init
            continue
        if (factory := getattr(value, "factory", None)) is not None:
            value = factory(strategy) if value.takes_self else factory()
        converter: Any = field.converter
        if isinstance(converter, attrs.Converter):
            value = converter.__call__(value, strategy, field)  # type: ignore[operator]
        elif converter is not None:
            value = converter(value)
        object.__setattr__(strategy, field.name, value)
    if is_complete and hasattr(strategy, "__attrs_post_init__"):
        strategy.__attrs_post_init__()


def derive(strategy: Any, attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Return the new value of a field, once `__attrs_post_init__` has derived what depends on it: for `on_setattr`."""
    before = getattr(strategy, attribute.name)
    object.__setattr__(strategy, attribute.name, value)
    try:
        strategy.__attrs_post_init__()
    except Exception:
        object.__setattr__(strategy, attribute.name, before)
        strategy.__attrs_post_init__()
        raise
    return value
