"""Rate limits as a server counts them: by the times at which messages arrive.

Deliberately not the limiters of the client, which they judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import attrs

__all__ = ["Counter", "RateLimit", "RollingWindow", "TokenBucket", "worst_window"]

_SLACK = 1e-9
"""Seconds, or messages, by which floating point may err: a client is not refused for a rounding."""


def worst_window(arrivals: Sequence[float], period: float) -> int:
    """Return the largest number of `arrivals` in any half-open window of `period` seconds.

    Args:
        arrivals: times in seconds, oldest first.
        period: seconds; two arrivals exactly so far apart are not in one window.
    """
    worst = start = 0
    for index, at in enumerate(arrivals):
        while at - arrivals[start] >= period - _SLACK:
            start += 1
        worst = max(worst, index - start + 1)
    return worst


class Counter(Protocol):
    """What counts the messages of one account or link."""

    def admit(self, now: float) -> bool:
        """Count a message that arrives at `now`, and return whether it is within the limit."""
        ...


@attrs.frozen
class RollingWindow:
    """At most `limit` messages in any `period` seconds; what is refused is not counted."""

    limit: int = attrs.field(validator=attrs.validators.ge(1))
    period: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))

    def counter(self) -> Counter:
        """Return a counter that has counted nothing yet."""
        return _Window(self)


@attrs.frozen
class TokenBucket:
    """A bucket that holds `capacity` messages and regains `refill` per second, as Deribit's credits do."""

    capacity: float = attrs.field(validator=attrs.validators.ge(1.0))
    refill: float = attrs.field(validator=attrs.validators.gt(0.0))

    def counter(self) -> Counter:
        """Return a counter whose bucket is full."""
        return _Bucket(self, self.capacity)


Rule: TypeAlias = RollingWindow | TokenBucket


@attrs.frozen
class RateLimit:
    """How many messages a venue takes."""

    rule: Rule
    by: Literal["account", "connection"] = "account"
    """Whose messages are counted together: those of all links, or those of each."""
    closes: bool = False
    """Whether a message too many also costs the link."""


@attrs.define
class _Window:
    _rule: RollingWindow
    _admitted: deque[float] = attrs.field(factory=deque)

    def admit(self, now: float) -> bool:
        while self._admitted and now - self._admitted[0] >= self._rule.period - _SLACK:
            self._admitted.popleft()
        if len(self._admitted) >= self._rule.limit:
            return False
        self._admitted.append(now)
        return True


@attrs.define
class _Bucket:
    _rule: TokenBucket
    _level: float
    _counted_at: float | None = None

    def admit(self, now: float) -> bool:
        if self._counted_at is not None:
            gained = (now - self._counted_at) * self._rule.refill
            self._level = min(self._rule.capacity, self._level + gained)
        self._counted_at = now
        if self._level < 1.0 - _SLACK:
            return False
        self._level -= 1.0
        return True
