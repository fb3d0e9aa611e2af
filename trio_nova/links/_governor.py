"""One dial at a time to each address, and no more dials than agreed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import attrs
import trio

from trio_nova.core import number
from trio_nova.core.limits import Gcra, Limit, Limits, RollingWindow, as_limits

__all__ = ["ConnectGovernor", "Turn"]


@attrs.define(eq=False)
class Turn:
    """The right to dial one address, while in its block; released when the link is up, or the attempt has failed."""

    _locks: dict[str, trio.Lock]
    _limits: Limits
    _wanted: str
    _address: str | None = attrs.field(default=None, init=False)
    """The one that may be dialled; None: none."""

    async def __aenter__(self) -> Turn:
        await self._wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    async def begin(self, address: str) -> None:
        """Count the dial of `address`, which begins now; one that never begins is not counted.

        Waits for another turn, where that is another address, or others have used the room up meanwhile.
        Cancelled, this has none.
        """
        if self._address != address or not self._has_room:
            self.release()
            self._wanted = address
            await self._wait()
        self._limits.spend(trio.current_time())

    async def _wait(self) -> None:
        # Who waits for room does not hold the address: others may have to leave less of it alone.
        while True:
            if not self._has_room:
                await trio.sleep_until(self._limits.admits_at(trio.current_time()))
            await self._hold(self._wanted)
            if self._has_room:
                return
            self.release()

    @property
    def _has_room(self) -> bool:
        now = trio.current_time()
        return self._limits.admits_at(now) <= now

    async def _hold(self, address: str) -> None:
        lock = self._locks.setdefault(address, trio.Lock())
        try:
            if lock.locked():
                await lock.acquire()
            else:
                lock.acquire_nowait()
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


def _retry_paces(limits: Iterable[Limit], reserve: float) -> Iterator[Limit]:
    """Yield what retries keep to besides `limits`, so that they leave a `reserve` of each window to others.

    A window is open until it is used up, and then shut for long: an outage of a day would spend it in its
    first half, and pass the second without a look at whether the service is back. The other limits refill.
    """
    for limit in limits:
        if isinstance(limit, RollingWindow):
            share = max(1, math.floor(limit.limit * (1.0 - reserve)))
            yield Gcra(share, limit.period, burst=math.ceil(share / 2), margin=limit.margin)


@attrs.define(eq=False)
class ConnectGovernor:
    """Paces the dials of all sessions that share it: RFC 6455 section 4.1 allows one CONNECTING per address.

    Sessions of one `trio.run` share one, unless `Config.governor` says otherwise.
    """

    limits: Sequence[Limit] = attrs.field(default=(), converter=as_limits)
    """How many dials, to whatever address, may begin in what time."""
    reserve: float = attrs.field(default=0.6, kw_only=True, validator=number(at_most=1.0))
    """The share of each `RollingWindow`, from 0 to 1, that retries leave to other dials.

    A retry follows a failed dial; the first dial is none, nor the one after a link that had lasted. Half of
    their share retries may use at once, the other half evenly over the period: in a long outage they
    become slower than the back-off, and never stop.
    """
    _all: Limits = attrs.field(init=False, repr=False)
    _for_retries: Limits = attrs.field(init=False, repr=False)
    _locks: dict[str, trio.Lock] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._all = Limits(self.limits)
        self._for_retries = Limits((*self.limits, *_retry_paces(self.limits, self.reserve)))

    def turn(self, address: str, *, retry: bool = False) -> Turn:
        """Return a block that waits for the right to dial `address`, and gives it back. Cancelling gives the place up.

        Args:
            address: host and port.
            retry: whether the dial before this one failed, so that it must leave the reserve alone.
        """
        return Turn(self._locks, self._for_retries if retry else self._all, address)


_shared: trio.lowlevel.RunVar[ConnectGovernor] = trio.lowlevel.RunVar("trio_nova governor")


def shared_governor() -> ConnectGovernor:
    """Return the governor that the sessions of this `trio.run` share."""
    try:
        return _shared.get()
    except LookupError:
        governor = ConnectGovernor()
        _shared.set(governor)
        return governor
