"""Where the next link is dialled, and what it resumes, as the service has said on the links before."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Route"]


@attrs.define(eq=False, repr=False)
class Route:
    """The wishes of the service for the next link."""

    position: Any = attrs.field(default=None, init=False)
    """The token that resumes the service's session; None: it gave none."""
    _address: str | None = attrs.field(default=None, init=False)

    def keep_position(self, token: Any) -> None:
        """Take note of what resumes the service's session."""
        self.position = token

    def move_to(self, address: str) -> None:
        """Let the next link be dialled at another address, once."""
        self._address = address

    def take_address(self) -> str | None:
        """Return where the next link is to be dialled; None: at the session's own address."""
        address, self._address = self._address, None
        return address
