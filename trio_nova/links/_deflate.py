"""The terms of compression (permessage-deflate, RFC 7692)."""

from __future__ import annotations

from typing import Any

import attrs

from trio_nova.core import check_bool
from trio_nova.errors import ConfigError

__all__ = ["Deflate"]


def _between(least: int, most: int) -> Any:
    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError("compression", f"{attribute.name} must be a whole number from {least} to {most}")

    return validate


@attrs.frozen(kw_only=True)
class Deflate:
    """What is offered to the server; it may choose less, or no compression at all.

    A window of n bits takes 2^n bytes here for what is received, and about 2^(n+2) for what is sent.
    Compressing messages that mix secrets with what others can choose gives the secrets away by the
    length (the CRIME attack); `no_context_takeover` makes that harder, not impossible.
    """

    server_max_window_bits: int = attrs.field(default=12, validator=_between(8, 15))
    """The window that the server may use, so what receiving takes: 12 is 4 KiB."""
    client_max_window_bits: int = attrs.field(default=12, validator=_between(9, 15))
    """The window that we use at most."""
    server_no_context_takeover: bool = attrs.field(default=False, validator=check_bool)
    """Whether the server must begin each message with an empty window: less memory, less compression."""
    client_no_context_takeover: bool = attrs.field(default=False, validator=check_bool)
    """Whether we do so."""
    level: int = attrs.field(default=6, validator=_between(0, 9))
    """How hard we try, from 1 to 9; 0 only stores."""
    memory_level: int = attrs.field(default=5, validator=_between(1, 9))
    """What compressing takes besides the window: 2^(n+9) bytes."""
