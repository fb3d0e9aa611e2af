"""The block that holds an open link: how every transport's `open` is entered and left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

import trio

from trio_nova.errors import HandshakeRejected
from trio_nova.links._redirect import redirected
from trio_nova.links._seam import Dial, Link

__all__ = ["LinkBlock"]


class Startable(Link, Protocol):
    """A link that needs a nursery for what it does on its own account."""

    async def start(self, nursery: trio.Nursery) -> None:
        """Bring the link up; raises ConnectFailed where that fails."""
        ...


class LinkBlock:
    """The block of `Transport.open`: follows redirects, opens the link, and aborts it in the end.

    Written out, not an `asynccontextmanager` around a nursery: that would wrap what the user's block
    raises into a group. Here the nursery is left as if all were well, and the user's exception goes on
    its way.
    """

    def __init__(self, dial: Dial, make: Callable[[Dial], Awaitable[Startable]]) -> None:
        self._dial = dial
        self._make = make

    # Left in the middle by a KeyboardInterrupt, either of these would leave Trio's scopes misnested.
    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Link:
        dial, hops = self._dial, 0
        while True:
            try:
                return await self._open(dial)
            except HandshakeRejected as exc:
                rejection = exc
            dial, hops = redirected(dial, rejection, hops), hops + 1

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    async def _open(self, dial: Dial) -> Link:
        self._link = await self._make(dial)
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        try:
            await self._link.start(self._nursery)
        except BaseException:
            await self._leave()
            raise
        return self._link

    async def _leave(self) -> None:
        self._link.abort()
        if self._nursery.child_tasks:
            # Shielded, as what the block raised must not give way to a Cancelled; bounded, as all is cancelled.
            self._nursery.cancel_scope.shield = True
            self._nursery.cancel_scope.cancel(reason="the link's block was left")
        await self._manager.__aexit__(None, None, None)
