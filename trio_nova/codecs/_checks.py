"""Check the fields of codecs; what is refused is a ConfigError that names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from trio_nova.errors import ConfigError


def check_codec(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an attrs field that holds a `Codec` or a `StreamCodec`."""
    if isinstance(value, type):
        raise ConfigError(attribute.name, f"must be an instance: write {value.__name__}(...)")
    has = [name for name in ("encode", "decode", "open_link") if callable(getattr(value, name, None))]
    if "open_link" not in has and has != ["encode", "decode"]:
        raise ConfigError(
            attribute.name,
            f"must have the methods encode and decode, or open_link, which a {type(value).__name__} lacks",
        )


def check_function(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an attrs field that holds a function, also one whose name is private."""
    if not callable(value):
        raise ConfigError(attribute.alias or attribute.name, f"must be a function, not {value!r}")


def whole(least: int, most: int) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """Return an attrs validator of a whole number within these bounds."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(attribute.name, f"must be a whole number from {least} to {most}, not {value!r}")

    return validate
