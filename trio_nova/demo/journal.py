"""The exchange's books: what it did to its client, and what it saw of it. They are what the client is judged by."""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Sequence

import attrs

__all__ = ["RETRY_AFTER", "Fault", "Journal", "RateCount", "Strike", "Visit", "schedule"]

RETRY_AFTER = 1
"""Seconds for which the exchange asks a redial to stay away."""


class Fault(enum.Enum):
    """What the exchange does to its client; the value is for the reader: "the exchange ..."."""

    DROP = "dropped"
    """The stream ends, without a close frame."""
    RESTART = "restarted (1012)"
    """A close frame with code 1012, service restart."""
    MUTE = "went mute"
    """Orders still arrive and are executed; no data, no answer and no pong comes back."""
    REFUSE = "dropped, then 503"
    """The stream ends, and the next dial is refused with status 503 and Retry-After."""
    RESET = "reset"
    """The socket is reset (RST)."""


@attrs.frozen
class Strike:
    """A fault that was played."""

    fault: Fault
    at: float
    """Trio's clock, seconds."""


def schedule(seconds: float) -> list[tuple[float, Fault]]:
    """Spread the faults over a run: (seconds since the market opened, what happens then)."""
    shares = {Fault.DROP: 0.1, Fault.RESTART: 0.24, Fault.MUTE: 0.38, Fault.REFUSE: 0.6, Fault.RESET: 0.85}
    return [(share * seconds, fault) for fault, share in shares.items()]


@attrs.define(eq=False)
class Visit:
    """One link, from the upgrade on, as the exchange saw it."""

    token: str | None = None
    """With which the client signed in; None: it has not."""
    phases: list[str] = attrs.field(factory=list)
    """The types of the messages that came, in order; those of one type in a row count as one."""
    asked: list[str] = attrs.field(factory=list)
    """The channels asked for, in order."""
    granted: list[str] = attrs.field(factory=list)
    """Those that the client has, in the order in which it got them."""
    refused: list[str] = attrs.field(factory=list)

    def note(self, kind: str) -> None:
        """Note that a message of this type came."""
        if self.phases[-1:] != [kind]:
            self.phases.append(kind)


@attrs.define
class RateCount:
    """How often the client speaks, over all its links: at most `limit` messages in any `period` seconds."""

    limit: int = 50
    period: float = 1.0
    worst: int = 0
    """The most that came in any `period`."""
    turned_away: int = 0
    """Messages that were too many."""
    _arrivals: deque[float] = attrs.field(factory=deque, init=False)

    def admit(self, now: float) -> bool:
        """Count a message, and return whether it is one that the exchange will hear."""
        self._arrivals.append(now)
        self.worst = max(self.worst, self.current(now))
        admitted = len(self._arrivals) <= self.limit
        self.turned_away += not admitted
        return admitted

    def current(self, now: float) -> int:
        """Return how many came in the last `period`."""
        while self._arrivals and now - self._arrivals[0] >= self.period:
            self._arrivals.popleft()
        return len(self._arrivals)


@attrs.define(eq=False)
class Journal:
    """All that the exchange writes down."""

    strikes: list[Strike] = attrs.field(factory=list)
    """What has gone wrong so far, oldest first."""
    visits: list[Visit] = attrs.field(factory=list)
    """The links, oldest first."""
    executed: Counter[int] = attrs.field(factory=Counter)
    """How often each order came to be executed, by its number."""
    declined: set[int] = attrs.field(factory=set)
    """The orders that were refused."""
    rate: RateCount = attrs.field(factory=RateCount)

    @property
    def tokens(self) -> Sequence[str]:
        """The tokens with which the client signed in."""
        return [visit.token for visit in self.visits if visit.token is not None]

    @property
    def refused(self) -> set[str]:
        """The channels that were refused on any link."""
        return {channel for visit in self.visits for channel in visit.refused}
