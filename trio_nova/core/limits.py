"""How often we may send: limits that say when, and remember what was spent.

`admits_at` asks and changes nothing; `spend` takes. Whoever is admitted at a time is
admitted at exactly that time: rounding never turns the answer into an endless row of tiny waits.

All three limits hold the line the server draws, in every window and not only in those that begin on
the minute. A bucket of 120 that refills 2 a second lets 240 through in one minute; `TokenBucket.within`,
`Gcra` and `RollingWindow` do not.

A clock that steps back counts as one that stands still until it is where it was: nothing is minted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from typing import Protocol

import attrs

from trio_nova.core._checks import check_count, check_number, number
from trio_nova.core._strategy import Strategy
from trio_nova.errors import ConfigError

__all__ = ["Gcra", "Limit", "Limits", "RollingWindow", "TokenBucket", "UseMark", "as_limits"]

LEAST_WAIT = 0.001
"""Seconds: whoever is told to wait at all waits that long.

"In a moment", said again and again, must not keep the machine busy; and we are woken no more exactly than that.
"""
MAX_ROUNDS = 100
"""How often limits are asked again for a time on which all agree."""
LOOK_AGAIN = 60.0
"""Seconds after which limits that name no time at which they have room again are asked how much they have."""
_LEFT_AT_MARK = 0.1
_LEFT_WHEN_EASED = 0.5
_COARSE = 10.0
"""Units: of a limit that lets fewer go at once no use is told, as nearly each message would reach the mark."""
_LONGEST = 1e9
"""Seconds, over 30 years: periods beyond are mistakes, and would overflow."""


class Limit(Protocol):
    """A limit on what may be spent. Times are seconds on one monotonic clock, costs are in the limit's unit."""

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        """Return the earliest time from `now` on at which `cost` may be spent and leave `reserve`; inf: never."""
        ...

    def spend(self, now: float, cost: float = 1.0) -> None:
        """Take `cost`, which the caller knows to be admitted.

        Raises:
            ValueError: it is not; nothing was taken.
        """

    def available(self, now: float) -> float:
        """Return what may be spent at `now`."""
        ...


@attrs.define
class TokenBucket(Strategy):
    """A bucket of tokens that refills steadily: in any window of `w` seconds at most capacity + rate * w."""

    capacity: float = attrs.field(default=60.0, validator=number(above=0.0))
    """Tokens; the largest burst. The bucket starts full."""
    rate: float = attrs.field(default=1.0, validator=number(above=0.0))
    """Tokens per second."""
    _tokens: float = attrs.field(init=False, default=attrs.Factory(lambda self: self.capacity, takes_self=True))
    _at: float = attrs.field(init=False, default=-math.inf)
    """When `_tokens` was right."""

    @classmethod
    def within(cls, limit: float, period: float, burst: float, margin: float = 0.0) -> TokenBucket:
        """Return the fastest bucket with this `burst` that never lets more than `limit` through in `period` seconds.

        Args:
            limit: what the server allows in any window of `period` seconds.
            period: seconds.
            burst: the bucket's capacity; what it leaves of `limit` is the refill of one period.
            margin: seconds by which the network may squeeze messages together.

        Raises:
            ConfigError: `burst` leaves nothing to refill, or a number is out of range.
        """
        check_number("limit", limit, above=0.0)
        check_number("period", period, above=0.0, at_most=_LONGEST)
        check_number("burst", burst, above=0.0)
        check_number("margin", margin, at_most=_LONGEST)
        if burst >= limit:
            raise ConfigError("burst", f"must be below the limit of {limit:g}: burst + rate * period may not exceed it")
        horizon = period + margin
        rate = (limit - burst) / horizon
        while burst + rate * horizon > limit:
            rate = math.nextafter(rate, 0.0)
        if rate == 0.0:
            raise ConfigError("limit", "is too small for this period: the rate would round to 0")
        return cls(capacity=burst, rate=rate)

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        _check_cost(cost, reserve)
        needed = cost + reserve
        if needed > self.capacity:
            return math.inf
        missing = needed - self.available(now)
        if missing <= 0.0:
            return now
        return _first_admitted(max(now, self._at) + missing / self.rate, lambda at: self.available(at) >= needed)

    def spend(self, now: float, cost: float = 1.0) -> None:
        _check_cost(cost)
        available = self.available(now)
        if cost > available:
            raise _debt(cost, available)
        self._set(now, available - cost)

    def available(self, now: float) -> float:
        return min(self.capacity, self._tokens + max(0.0, now - self._at) * self.rate)

    def _set(self, now: float, tokens: float) -> None:
        self._tokens = tokens
        self._at = max(now, self._at)


_TICKS = 2**30
"""Ticks per second. A power of two: scaling a float by it is exact."""


def _check_burst(instance: Gcra, attribute: attrs.Attribute[int], value: int) -> None:
    if value > instance.limit:
        raise ConfigError(attribute.name, f"must be at most the limit of {instance.limit}")


@attrs.define
class Gcra(Strategy):
    """The generic cell rate algorithm: evenly spaced, after a burst; at most `limit` in any `period`.

    Counts whole units; a fraction of a cost is rounded up. Kept in whole ticks, so that the bound is
    exact: in floating point a long row of additions comes out a hair early, and the server counts one more.
    """

    limit: int = attrs.field(validator=check_count)
    """Units that the server allows in any window of `period` seconds."""
    period: float = attrs.field(validator=number(above=0.0, at_most=_LONGEST))
    """Seconds."""
    burst: int = attrs.field(default=1, validator=[check_count, _check_burst])
    """Units that may go at once; the larger, the slower what follows."""
    margin: float = attrs.field(default=0.0, kw_only=True, validator=number(at_most=_LONGEST))
    """Seconds by which the network may squeeze messages together."""
    _paid_at: int = attrs.field(init=False, default=0)
    """The tick at which all that was spent will have been earned: the theoretical arrival time."""
    _seen: int = attrs.field(init=False, default=0)
    """The latest tick of a spend."""

    @property
    def _interval(self) -> int:
        # In the d ticks after a first unit at most burst + d / interval units go, the first included. That is
        # below limit + 1, hence at most limit, while d < interval * (limit - burst + 1). One tick more than the
        # period, because times less than a period apart may be a whole period apart in floored ticks.
        window = math.ceil((self.period + self.margin) * _TICKS) + 1
        return -(-window // (self.limit - self.burst + 1))

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        _check_cost(cost, reserve)
        needed = _units(cost, self.burst) + _units(reserve, self.burst)
        if needed > self.burst:
            return math.inf
        earliest = self._paid_at - (self.burst - needed) * self._interval
        if needed == 0 or self._tick(now) >= earliest:
            return now
        return _first_admitted(earliest / _TICKS, lambda at: _ticks(at) >= earliest)

    def spend(self, now: float, cost: float = 1.0) -> None:
        _check_cost(cost)
        units, available = _units(cost, self.burst), self.available(now)
        if units > available:
            raise _debt(cost, available)
        self._seen = self._tick(now)
        self._paid_at = max(self._paid_at, self._seen) + units * self._interval

    def available(self, now: float) -> float:
        owed = max(0, self._paid_at - self._tick(now))
        return float(self.burst + -owed // self._interval)

    def _tick(self, now: float) -> int:
        return max(_ticks(now), self._seen)


@attrs.define
class RollingWindow(Strategy):
    """The exact log of what was spent: at most `limit` in any `period`, in whatever bursts that allows.

    Counts whole units; a fraction of a cost is rounded up, so that the log holds at most `limit` entries.
    """

    limit: int = attrs.field(validator=check_count)
    """Units that the server allows in any window of `period` seconds."""
    period: float = attrs.field(validator=number(above=0.0, at_most=_LONGEST))
    """Seconds."""
    margin: float = attrs.field(default=0.0, kw_only=True, validator=number(at_most=_LONGEST))
    """Seconds by which the network may squeeze messages together: a spend is remembered that much longer."""
    _log: deque[tuple[float, int]] = attrs.field(init=False, factory=deque[tuple[float, int]])
    """(time, units) of each spend that may still count, oldest first."""
    _logged: int = attrs.field(init=False, default=0)
    """The units in the log: kept, because adding them up for each message would cost the limit's square."""
    _seen: float = attrs.field(init=False, default=-math.inf)
    """The latest time of a spend."""

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        _check_cost(cost, reserve)
        needed = _units(cost, self.limit) + _units(reserve, self.limit)
        if needed > self.limit:
            return math.inf
        missing = needed - (self.limit - self._logged)
        for spent_at, units in self._log:
            if missing <= 0:
                break
            missing -= units
            if missing <= 0 and not self._is_past(spent_at, now):
                leaves = spent_at + self.period + self.margin
                return _first_admitted(max(now, leaves), partial(self._is_past, spent_at))
        return now

    def spend(self, now: float, cost: float = 1.0) -> None:
        _check_cost(cost)
        units, available = _units(cost, self.limit), self.available(now)
        if units > available:
            raise _debt(cost, available)
        self._seen = max(now, self._seen)
        while self._log and self._is_past(self._log[0][0], now):
            self._logged -= self._log.popleft()[1]
        if units:
            self._log.append((self._seen, units))
            self._logged += units

    def available(self, now: float) -> float:
        past = takewhile(lambda entry: self._is_past(entry[0], now), self._log)
        return float(self.limit - self._logged + sum(units for _, units in past))

    def _is_past(self, spent_at: float, now: float) -> bool:
        # fsum rounds once, so the sign is exact; a plain difference may round up to the period a hair early.
        return math.fsum((max(now, self._seen), -spent_at, -self.period, -self.margin)) >= 0.0


def as_limits(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Return limits as a tuple; raises ConfigError where they are none."""
    try:
        given = tuple(limits)
    except TypeError:
        raise ConfigError("limits", f"must be a collection of limits, not {limits!r}: write [...]") from None
    for limit in given:
        if isinstance(limit, type) or not all(
            callable(getattr(limit, name, None)) for name in ("admits_at", "spend", "available")
        ):
            raise ConfigError("limits", f"{limit!r} is no limit, such as TokenBucket(...)")
    return given


@attrs.frozen
class Limits:
    """Several limits at once: what is spent is spent in all of them, or in none. Without any, all is admitted."""

    limits: tuple[Limit, ...] = attrs.field(default=(), converter=as_limits)

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        if not self.limits:
            return now
        first = at = self._latest(now, cost, reserve)
        if len(self.limits) == 1 or at in (now, math.inf):
            return at
        # Again from the latest answer, until all agree: a limit may close again after it has opened. But one may
        # also say "not yet" at any time: then whoever waits asks again when it is its first answer's time.
        for _ in range(MAX_ROUNDS):
            later = self._latest(at, cost, reserve)
            if later in (at, math.inf):
                return later
            at = later
        return first

    def _latest(self, now: float, cost: float, reserve: float) -> float:
        at = now
        for limit in self.limits:
            answer = limit.admits_at(now, cost, reserve)
            if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != answer:
                raise ConfigError("limits", f"{type(limit).__name__}.admits_at answered {answer!r}, which is no time")
            at = max(at, answer)
        return at if at == now else max(at, now + LEAST_WAIT)

    def spend(self, now: float, cost: float = 1.0) -> None:
        if self.admits_at(now, cost) > now:
            raise _debt(cost, self.available(now))
        for limit in self.limits:
            limit.spend(now, cost)

    def available(self, now: float) -> float:
        return min((limit.available(now) for limit in self.limits), default=math.inf)


@attrs.define
class UseMark:
    """Says when one of several limits is used to 0.9, and then when each of them is at least half free again.

    Nothing is said twice: who is at the limit all the time, with breaks too short for it to recover, hears of it once.
    """

    limits: tuple[Limit, ...]
    is_reached: bool = attrs.field(default=False, init=False)
    _most: tuple[float, ...] | None = attrs.field(default=None, init=False)
    """What each limit lets go at once when nothing was spent; None: not asked yet."""

    def crossed(self, now: float) -> bool:
        """Look at what is left at `now`; return whether the mark was reached by that, or left."""
        left, share = self._left(now), _LEFT_WHEN_EASED if self.is_reached else _LEFT_AT_MARK
        if self.is_reached:
            crosses = all(free >= most * share for free, most in left)
        else:
            crosses = any(free <= most * share for free, most in left)
        self.is_reached ^= crosses
        return crosses

    def used(self, now: float) -> float:
        """Return what is used of the limit of which most is, as a fraction of it."""
        return max((1.0 - min(max(free / most, 0.0), 1.0) for free, most in self._left(now)), default=0.0)

    def eases_at(self, now: float) -> float:
        """Return when to look whether the mark was left: as soon as can be, where nothing is spent until then.

        A moment later, rather: whoever waits for a window to open takes what comes free at that very time.
        """
        marked = zip(self.limits, self._fill(now), strict=True)
        times = (limit.admits_at(now, most * _LEFT_WHEN_EASED) for limit, most in marked if most >= _COARSE)
        return min(max(now, *times) + LEAST_WAIT, now + LOOK_AGAIN)

    def _left(self, now: float) -> list[tuple[float, float]]:
        """Return of each limit that can be told of what is left, and how much there can be."""
        marked = zip(self.limits, self._fill(now), strict=True)
        return [(limit.available(now), most) for limit, most in marked if most >= _COARSE]

    def _fill(self, now: float) -> tuple[float, ...]:
        if self._most is None:
            self._most = tuple(limit.available(now + _LONGEST) for limit in self.limits)
        return self._most


def _check_cost(cost: float, reserve: float = 0.0) -> None:
    check_number("cost", cost, finite=False)
    check_number("reserve", reserve, finite=False)


def _units(cost: float, most: int) -> int:
    """Round up to whole units. All that exceeds `most` is equally impossible, inf included."""
    return math.ceil(min(cost, most + 1))


def _ticks(now: float) -> int:
    return math.floor(now * _TICKS)


def _debt(cost: float, available: float) -> ValueError:
    return ValueError(f"{cost:g} may not be spent: {available:g} is available")


def _first_admitted(at: float, admitted: Callable[[float], bool]) -> float:
    """Return `at`, or where rounding made it a hair too early, a time just after it that is `admitted`."""
    step = math.ulp(at)  # doubled at each step: close to time 0 it is 5e-324, and a sum of those gets nowhere
    while not admitted(at):
        at += step
        step *= 2.0
    return at
