"""One dial at a time to each address, and no more dials than agreed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from trio_nova.core.limits import Limit, Limits

__all__ = ["ConnectGovernor", "Turn"]


@attrs.define(eq=False)
class Turn:
    """The right to dial one address; released when the link is up, or the attempt has failed."""

    _locks: dict[str, trio.Lock]
    _address: str | None = attrs.field(default=None, init=False)
    """The one that may be dialled; None: none."""

    async def move(self, address: str) -> None:
        """Let the next one dial, and wait for the right to dial `address`. Cancelled, this has none."""
        self.release()
        lock = self._locks.setdefault(address, trio.Lock())
        try:
            await lock.acquire()
        except BaseException:
            self._forget(address)
            raise
        self._address = address

    def release(self) -> None:
        """Let the next one dial. May be called more than once."""
        if self._address is not None:
            address, self._address = self._address, None
            self._locks[address].release()
            self._forget(address)

    def _forget(self, address: str) -> None:
        lock = self._locks.get(address)
        if lock is not None and not lock.locked():
            del self._locks[address]


def _as_tuple(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    return tuple(limits)


@attrs.define(eq=False)
class ConnectGovernor:
    """Paces the dials of all sessions that share it: RFC 6455 section 4.1 allows one CONNECTING per address.

    Sessions of one `trio.run` share one, unless `Config.governor` says otherwise.
    """

    limits: Sequence[Limit] = attrs.field(default=(), converter=_as_tuple)
    """How many dials, to whatever address, may begin in what time."""
    _all: Limits = attrs.field(init=False, repr=False)
    _locks: dict[str, trio.Lock] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._all = Limits(self.limits)

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[Turn]:
        """Wait for the right to dial `address`; leaving the block releases it. Cancelling gives the place up."""
        turn = Turn(self._locks)
        try:
            await turn.move(address)
            await self._wait_for_room()
            yield turn
        finally:
            turn.release()

    async def _wait_for_room(self) -> None:
        # Others who share the limits, for other addresses, may take the room while we wait for it.
        while True:
            now = trio.current_time()
            when = self._all.admits_at(now)
            if when <= now:
                self._all.spend(now)
                return
            await trio.sleep_until(when)


_shared: trio.lowlevel.RunVar[ConnectGovernor] = trio.lowlevel.RunVar("trio_nova governor")


def shared_governor() -> ConnectGovernor:
    """Return the governor that the sessions of this `trio.run` share."""
    try:
        return _shared.get()
    except LookupError:
        governor = ConnectGovernor()
        _shared.set(governor)
        return governor
