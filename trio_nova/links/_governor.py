"""Turns to dial: many at once to an address that answers, fewer to one that fails, and no more than agreed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import attrs
import trio

from trio_nova._signal import Signal
from trio_nova.core import check_count, number
from trio_nova.core.limits import Gcra, Limit, Limits, RollingWindow, TokenBucket, as_limits
from trio_nova.core.verdict import Disposition, of_error
from trio_nova.errors import CircuitOpen, ConnectFailed, ConnectTimeout

__all__ = ["ConnectGovernor", "Turn"]

HANGS_AFTER = 1.0
"""Seconds after which a dial that is under way keeps nobody else from an address."""
AT_FIRST = 100
"""Dials to an address that may be under way before it has answered one: a common length of a listener's queue."""
_NAMED = 3
"""Dials that the error of one which had no turn names."""


@attrs.define(eq=False)
class _Line:
    """Who dials one address, and who waits for that; forgotten when nobody does."""

    address: str
    at_once: int
    width: int = attrs.field(init=False)
    """How many dials may be under way, not counting those that hang: one more after each that succeeds, up to
    `at_once`; half as many after one that fails."""
    members: int = attrs.field(default=0, init=False)
    dialling: dict[Turn, float] = attrs.field(factory=dict, init=False)
    """The turns that are held, and since when; oldest first."""
    waiting: dict[Turn, Signal] = attrs.field(factory=dict, init=False)
    """Who waits for room, and what wakes them; the first come first. The first one alone looks at the clock."""
    last_failure: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.width = min(AT_FIRST, self.at_once)

    def opens_at(self, now: float) -> float:
        """Return from when on one more may dial, unless a dial ends before."""
        too_many = len(self.dialling) - self.width
        if too_many < 0:
            return now
        # Once this one hangs, and with it all that began before, fewer than `width` do not.
        last = next(itertools.islice(self.dialling.values(), too_many, None))
        return max(last + HANGS_AFTER, now)

    async def enter(self, turn: Turn) -> None:
        """Wait for room, behind those who came before. Cancelling gives the place up."""
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        signal = self.waiting[turn] = Signal()
        try:
            self.admit(now)
            while turn not in self.dialling:
                first = next(iter(self.waiting)) is turn
                await signal.wait(self.opens_at(now) if first else math.inf)
                now = trio.current_time()
                self.admit(now)
        except BaseException:
            if turn in self.dialling:  # let in when it was too late
                self.end(turn, None)
            else:
                del self.waiting[turn]
                self.wake_first()
            raise

    def admit(self, now: float) -> None:
        """Let in as many of those who wait as there is room for: at once, or each would take a turn of Trio's loop."""
        if not self.waiting or self.opens_at(now) > now:
            return
        while self.waiting and self.opens_at(now) <= now:
            turn = next(iter(self.waiting))
            self.dialling[turn] = now
            self.waiting.pop(turn).set()
        self.wake_first()

    def wake_first(self) -> None:
        """Let the first who waits look how long it has to."""
        if self.waiting:
            next(iter(self.waiting.values())).set()

    def end(self, turn: Turn, failure: str | None) -> None:
        """Let go of a turn; `failure` is "" where the dial has succeeded, None where it says nothing of the address."""
        del self.dialling[turn]
        if failure == "":
            self.width = min(self.width + 1, self.at_once)
        elif failure is not None:
            self.width = max(self.width // 2, 1)
            self.last_failure = failure
        self.admit(trio.current_time())
        self.wake_first()

    def describe(self, now: float) -> str:
        """Say what stands in the way of those who wait."""
        longest = [f"{turn.by} for {now - since:.3g} s" for turn, since in self.dialling.items()][:_NAMED]
        under_way = f"{len(self.dialling)} dials are under way" + (f", of {', '.join(longest)}" if longest else "")
        return under_way + (f"; the last that failed: {self.last_failure}" if self.last_failure else "")


@attrs.define(eq=False)
class _Pace:
    """What dials of one kind keep to."""

    limits: Limits
    gate: trio.Lock = attrs.field(factory=trio.Lock)
    """Held by the first of those who wait: a crowd does not wake for each."""

    @property
    def holds_back(self) -> bool:
        now = trio.current_time()
        return self.gate.locked() or self.limits.admits_at(now) > now

    async def wait(self) -> None:
        if not self.limits.limits:
            return
        async with self.gate:
            while True:
                now = trio.current_time()
                at = self.limits.admits_at(now)
                if at <= now:
                    return
                await trio.sleep_until(at)


@attrs.define(eq=False)
class Turn:
    """The right to dial one address, while in its block; given back when the link is up, or the attempt has failed."""

    _governor: ConnectGovernor
    _address: str
    _pace: _Pace
    _within: float
    by: str
    """Who dials, for the words of an error."""
    deadline: float = attrs.field(default=math.inf, init=False)
    """When the dial that has begun is to have succeeded: what of `within` was not spent on waiting for others."""
    _line: _Line | None = attrs.field(default=None, init=False)

    @property
    def under_way(self) -> int:
        """How many others dial that address now."""
        line = self._governor._lines.get(self._address)
        return 0 if line is None else len(line.dialling)

    @property
    def must_wait(self) -> bool:
        """Whether the block cannot be entered at once."""
        line, now = self._governor._lines.get(self._address), trio.current_time()
        return self._pace.holds_back or (line is not None and (bool(line.waiting) or line.opens_at(now) > now))

    async def __aenter__(self) -> Turn:
        line = self._governor._join(self._address)
        try:
            await self._wait(line)
        except BaseException:
            self._governor._leave(line)
            raise
        self._line = line
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        match exc:
            case CircuitOpen():  # there was no dial
                self._end(None)
            case ConnectFailed() if of_error(exc) is not Disposition.FATAL:
                self._end(type(exc).__name__)
            case trio.Cancelled() if trio.current_time() >= self.deadline:
                self._end("ConnectTimeout")
            case _:
                self._end(None)

    def release(self) -> None:
        """Let another one dial, as the link is up. May be called more than once."""
        self._end("")

    async def _wait(self, line: _Line) -> None:
        """Wait until the limits agree, however long, and for room at the address, for as long as `within` says.

        Who waits for a limit holds no place: others may have to leave less of it alone.
        """
        left = self._within
        while True:
            await self._pace.wait()
            started = at = trio.current_time()
            with trio.move_on_after(left) as scope:
                await line.enter(self)
            now = trio.current_time()
            if scope.cancelled_caught:
                raise ConnectTimeout(
                    f"no turn to dial {self._address} within {self._within:g} s: {line.describe(now)}", phase="turn"
                )
            at = self._pace.limits.admits_at(now)
            if at <= now:
                self._pace.limits.spend(now)
                self.deadline = started + left
                return
            line.end(self, None)
            left = max(left - (now - started), 0.0)
            await trio.sleep_until(at)  # others were faster

    def _end(self, failure: str | None) -> None:
        if self._line is not None:
            line, self._line = self._line, None
            line.end(self, failure)
            self._governor._leave(line)


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
    """Gives the sessions that share it their turns to dial.

    Sessions of one `trio.run` share one, unless `Config.governor` says otherwise. Dials to one address wait for each
    other, in the order in which they came: at first 100 may be under way, one more for each that succeeds, half as
    many after one that fails. One that has been under way for 1 s keeps nobody waiting any more.
    """

    limits: Sequence[Limit] = attrs.field(default=(), converter=as_limits)
    """How many dials, to whatever address, may begin in what time."""
    at_once: int = attrs.field(default=500, kw_only=True, validator=check_count)
    """How many dials to one address may be under way at most, not counting those that have been for 1 s."""
    redials: Sequence[Limit] = attrs.field(
        factory=lambda: [TokenBucket(capacity=20, rate=200.0)], kw_only=True, converter=as_limits
    )
    """How many dials that follow the loss of a link, or a failure, may begin in what time, besides `limits`."""
    reserve: float = attrs.field(default=0.6, kw_only=True, validator=number(at_most=1.0))
    """The share of each `RollingWindow`, from 0 to 1, that retries leave to other dials.

    A retry follows a failed dial; the first dial is none, nor the one after a link that had lasted. Half of
    their share retries may use at once, the other half evenly over the period: in a long outage they
    become slower than the back-off, and never stop.
    """
    _first: _Pace = attrs.field(init=False, repr=False)
    _redial: _Pace = attrs.field(init=False, repr=False)
    _retry: _Pace = attrs.field(init=False, repr=False)
    _lines: dict[str, _Line] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._first = _Pace(Limits(self.limits))
        self._redial = _Pace(Limits((*self.limits, *self.redials)))
        self._retry = _Pace(Limits((*self.limits, *self.redials, *_retry_paces(self.limits, self.reserve))))

    def turn(
        self, address: str, *, redial: bool = False, retry: bool = False, within: float = math.inf, by: str = "another"
    ) -> Turn:
        """Return a block that waits for the right to dial `address`, and gives it back. Cancelling gives the place up.

        Entering it counts the dial, which is to begin then. It raises ConnectTimeout, which names the dials that stand
        in the way, where these do so for longer than `within`. What the limits ask for is waited for, however long.

        Args:
            address: host and port.
            redial: whether there was a link, or a dial, before this one.
            retry: whether the dial before this one failed, so that it must leave the reserve alone.
            within: seconds for waiting for other dials, and for the dial itself, which is cancelled by the caller at
                `Turn.deadline`.
            by: who dials, for the words of an error.
        """
        pace = self._retry if retry else self._redial if redial else self._first
        return Turn(self, address, pace, within, by)

    def _join(self, address: str) -> _Line:
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line(address, self.at_once)
        line.members += 1
        return line

    def _leave(self, line: _Line) -> None:
        line.members -= 1
        if not line.members:
            del self._lines[line.address]


_shared: trio.lowlevel.RunVar[ConnectGovernor] = trio.lowlevel.RunVar("trio_nova governor")


def shared_governor() -> ConnectGovernor:
    """Return the governor that the sessions of this `trio.run` share."""
    try:
        return _shared.get()
    except LookupError:
        governor = ConnectGovernor()
        _shared.set(governor)
        return governor
