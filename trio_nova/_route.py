"""The way to the next link: its address, and what it resumes, by what failed and what the service said before."""

from __future__ import annotations

from typing import Any

import attrs

from trio_nova.urls import Url

__all__ = ["Route"]


@attrs.define(eq=False, repr=False)
class Route:
    """The facts about the next link that are known before it is dialled."""

    stand_by: Url | None = attrs.field(default=None, init=False)
    """The one of the `failover` addresses that is in use; None: the target is."""
    position: Any = attrs.field(default=None, init=False)
    """The token that resumes the service's session; None: it gave none."""
    _address: str | None = attrs.field(default=None, init=False)

    def use(self, stand_by: Url | None) -> None:
        """Dial one of the `failover` addresses from now on; None: the target."""
        self.stand_by = stand_by

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
