"""Check numbers that users set; what is refused is a ConfigError that names the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import attrs

from trio_nova.errors import ConfigError


def check_number(
    field: str,
    value: object,
    *,
    at_least: float = 0.0,
    above: float = -math.inf,
    at_most: float = math.inf,
    finite: bool = True,
) -> None:
    """Raise ConfigError unless `value` is a number within these bounds; with `finite=False` inf is one too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(field, f"must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ConfigError(field, "is too large") from None
    if math.isnan(number) or (finite and math.isinf(number)):
        raise ConfigError(field, f"must be a finite number, not {number}")
    if number <= above:
        raise ConfigError(field, f"must be above {above:g}, not {number:g}")
    if number < at_least:
        raise ConfigError(field, f"must be at least {at_least:g}, not {number:g}")
    if number > at_most:
        raise ConfigError(field, f"must be at most {at_most:g}, not {number:g}")


def check_text(field: str, value: object, form: str = ".+", what: str = "a text that is not empty") -> str:
    """Return a text that has the form of a regular expression, of which `what` is the name; else raise ConfigError."""
    if not isinstance(value, str) or not re.fullmatch(form, value, re.DOTALL):
        raise ConfigError(field, f"must be {what}, not {value!r}")
    return value


def number(
    *,
    at_least: float = 0.0,
    above: float = -math.inf,
    at_most: float = math.inf,
    finite: bool = True,
    none: bool = False,
) -> Callable[[object, attrs.Attribute[Any], float | None], None]:
    """Return an attrs validator that applies `check_number`, and where `none` may be, lets None pass."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
        if none and value is None:
            return
        check_number(attribute.name, value, at_least=at_least, above=above, at_most=at_most, finite=finite)

    return validate


def check_count(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    """Validate an attrs field that holds a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(attribute.name, f"must be a whole number, not {type(value).__name__}")
    check_number(attribute.name, value, at_least=1)


def check_whole(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    """Validate an attrs field that holds a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(attribute.name, f"must be a whole number, not {type(value).__name__}")
    check_number(attribute.name, value)


def check_bool(instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    """Validate an attrs field that holds True or False."""
    if not isinstance(value, bool):
        raise ConfigError(attribute.name, f"must be True or False, not {value!r}")


def check_callable(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an attrs field that holds a function."""
    if not callable(value):
        raise ConfigError(attribute.name, f"must be callable, not {value!r}")


def one_of(*choices: str | None) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """Return an attrs validator of a field that holds one of `choices`."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            raise ConfigError(attribute.name, f"must be one of {', '.join(map(repr, choices))}, not {value!r}")

    return validate
