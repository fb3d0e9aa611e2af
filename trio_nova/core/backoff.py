"""How long to wait before the next dial.

Strategies are values without state: the attempt's number, a random draw and the last delay come from
the caller. Jitter is applied after the cap: without it, all clients of a service that is down for long
would end up waiting the same `cap` seconds, and come back together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from trio_nova.core._checks import check_number, number
from trio_nova.core._strategy import Strategy
from trio_nova.errors import ConfigError

__all__ = [
    "Backoff",
    "DecorrelatedBackoff",
    "ExponentialBackoff",
    "FibonacciBackoff",
    "Jitter",
    "LinearBackoff",
    "ListBackoff",
    "NoBackoff",
]


class Backoff(Protocol):
    """Says how long to wait before an attempt."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float | None:
        """Return the seconds to wait before retry number `attempt`, or None to give up.

        Args:
            attempt: counts the failures in a row, from 1. The loss of a link that had lasted is a first one.
            spread: a uniform random draw from [0, 1).
            previous: the last delay in this row of failures, in seconds; 0 before the first.
        """


Jitter: TypeAlias = Literal["full", "equal"] | float
"""Which part of a delay is random: "full" all of it, "equal" its upper half, a fraction its upper fraction."""


def _random_share(jitter: Jitter) -> float:
    match jitter:
        case "full":
            return 1.0
        case "equal":
            return 0.5
        case _:
            return jitter


def _jittered(value: float, jitter: Jitter, spread: float) -> float:
    share = _random_share(jitter)
    return value * (1.0 - share) + value * share * spread


def _check_jitter(instance: object, attribute: attrs.Attribute[Jitter], value: Jitter) -> None:
    if isinstance(value, str):
        if value not in ("full", "equal"):
            raise ConfigError(attribute.name, f'must be "full", "equal" or a fraction, not {value!r}')
    else:
        check_number(attribute.name, value, at_most=1.0)


def _first_delay() -> Any:
    return attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(number()))


@attrs.define(unsafe_hash=True)
class ExponentialBackoff(Strategy):
    """Multiply the delay by `factor` after each failure: truncated binary exponential back-off.

    That is what RFC 6455 section 7.2.3 asks for. `Config` has it with a `first_delay` of 2 s.
    """

    base: float = attrs.field(default=5.0, validator=number())
    """Seconds before jitter, first retry."""
    cap: float = attrs.field(default=150.0, validator=number())
    """Seconds before jitter, at most."""
    factor: float = attrs.field(default=2.0, validator=number(at_least=1.0))
    jitter: Jitter = attrs.field(default="full", validator=_check_jitter)
    first_delay: float | None = _first_delay()
    """Seconds within which the first retry of a row comes, at a random moment; None: as the other fields say."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float:
        if attempt == 1 and self.first_delay is not None:
            return spread * self.first_delay
        try:
            grown = self.base * float(self.factor) ** (attempt - 1)
        except OverflowError:  # 2.0 ** 1024: with the defaults an outage of 17 hours gets there
            grown = self.cap if self.base else 0.0
        return _jittered(min(grown, self.cap), self.jitter, spread)


@attrs.define(unsafe_hash=True)
class LinearBackoff(Strategy):
    """Add `step` seconds to the delay after each failure."""

    base: float = attrs.field(default=1.0, validator=number())
    """Seconds before jitter, first retry."""
    step: float | None = attrs.field(default=None, validator=attrs.validators.optional(number()))
    """Seconds; None: the same as `base`."""
    cap: float = attrs.field(default=60.0, validator=number())
    """Seconds before jitter, at most."""
    jitter: Jitter = attrs.field(default="full", validator=_check_jitter)
    first_delay: float | None = _first_delay()
    """Seconds within which the first retry of a row comes, at a random moment; None: as the other fields say."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float:
        if attempt == 1 and self.first_delay is not None:
            return spread * self.first_delay
        step = self.base if self.step is None else self.step
        return _jittered(min(self.base + step * (attempt - 1), self.cap), self.jitter, spread)


@attrs.define(unsafe_hash=True)
class FibonacciBackoff(Strategy):
    """Wait `base` times 1, 1, 2, 3, 5, 8, ... seconds: gentler than doubling."""

    base: float = attrs.field(default=1.0, validator=number())
    """Seconds before jitter, first and second retry."""
    cap: float = attrs.field(default=60.0, validator=number())
    """Seconds before jitter, at most."""
    jitter: Jitter = attrs.field(default="full", validator=_check_jitter)
    first_delay: float | None = _first_delay()
    """Seconds within which the first retry of a row comes, at a random moment; None: as the other fields say."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float:
        if attempt == 1 and self.first_delay is not None:
            return spread * self.first_delay
        value, following = float(self.base), float(self.base)
        for _ in range(attempt - 1):
            if not 0.0 < value < self.cap:  # so that attempt 1,000,000 costs no more than the way to the cap
                break
            value, following = following, value + following
        return _jittered(min(value, self.cap), self.jitter, spread)


@attrs.define(unsafe_hash=True)
class DecorrelatedBackoff(Strategy):
    """Draw each delay between `base` and three times the last one: clients drift apart by their own history."""

    base: float = attrs.field(default=1.0, validator=number())
    """Seconds, at least."""
    cap: float = attrs.field(default=60.0, validator=number())
    """Seconds, at most."""
    first_delay: float | None = _first_delay()
    """Seconds within which the first retry of a row comes, at a random moment; None: as the other fields say."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float:
        if attempt == 1 and self.first_delay is not None:
            return spread * self.first_delay
        longest = 3.0 * max(self.base, previous)
        return min(self.cap, self.base + spread * (longest - self.base))


def _check_delays(instance: object, attribute: attrs.Attribute[tuple[float, ...]], value: tuple[float, ...]) -> None:
    if not value:
        raise ConfigError(attribute.name, "must not be empty; to never retry, use NoBackoff")
    for delay in value:
        check_number(attribute.name, delay)


def _as_tuple(delays: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(delays)
    except TypeError:
        raise ConfigError("delays", "must be a sequence of seconds") from None


@attrs.define(unsafe_hash=True)
class ListBackoff(Strategy):
    """Wait as the list says; after its end, the last delay again, or give up."""

    delays: tuple[float, ...] = attrs.field(converter=_as_tuple, validator=_check_delays)
    """Seconds before jitter, one for each retry."""
    then_last: bool = True
    """Whether the last delay serves for all further retries; else the session gives up."""
    jitter: Jitter = attrs.field(default=0.0, validator=_check_jitter)

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float | None:
        if attempt > len(self.delays) and not self.then_last:
            return None
        return _jittered(self.delays[min(attempt, len(self.delays)) - 1], self.jitter, spread)


@attrs.define(unsafe_hash=True)
class NoBackoff(Strategy):
    """Never retry."""

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float | None:
        return None
