"""The client's books: what came, what was said to be missing, what became of the orders, what an outage cost.

Nothing here waits or reads a clock. A `Ledger` is told every event of a session in order; each of its
`Series` every item of one feed in order.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from trio_nova.demo.journal import Strike
from trio_nova.demo.market import BOOK, CHANNELS, apply_levels
from trio_nova.demo.wire import Order
from trio_nova.errors import Expired, HandshakeRejected, LinkLost, NotSent, NovaError, RequestFailed, SessionOver
from trio_nova.events import (
    Authenticated,
    BecameReady,
    DialStarted,
    Event,
    Gap,
    LinkClosed,
    LinkOpened,
    Observation,
    PeerSilent,
    RateLimited,
    RetryScheduled,
    SubscriptionConfirmed,
    SubscriptionRefused,
)

__all__ = ["Hole", "Ledger", "Orders", "Outage", "Outcome", "Series"]


# --------------------------------------------------------------------------- feeds


@attrs.frozen
class Hole:
    """Messages of a channel that never came: `first` to `last`."""

    first: int
    last: int
    announced: bool
    """Whether the feed, or at its end the session, told of it before the next message came."""

    @property
    def size(self) -> int:
        return self.last - self.first + 1


@attrs.define
class Series:
    """One feed: follows the numbers of its messages, and holds every hole against the notice before it."""

    channel: str
    received: int = 0
    snapshots: int = 0
    again: int = 0
    """Messages whose number had been passed already."""
    last: int = 0
    holes: list[Hole] = attrs.field(factory=list)
    gaps: list[Gap] = attrs.field(factory=list)
    """The notices, as they came."""
    miscounted: int = 0
    """Notices of a number of messages that is not the number of those missing."""
    refused: str = ""
    """Why the exchange took the subscription back; "" where it did not."""
    book: dict[int, int] = attrs.field(factory=dict)
    """What was built of snapshots and changes, where the messages are such."""
    _notice: Gap | None = None
    """The last one, behind which no message has come yet."""

    def hear(self, item: Mapping[str, Any] | Event) -> None:
        """Note the next item of the feed: a message, or a notice in its place."""
        if isinstance(item, Gap):
            self.miscounted += self._notice is not None
            self._notice = item
            self.gaps.append(item)
        elif isinstance(item, Mapping):
            self._message(item["seq"], item)

    def end(self, emitted: int, *, link_lost: bool) -> None:
        """Note that no message follows, and that `emitted` was the last; `link_lost` where none came since a loss."""
        if emitted > self.last:
            self.holes.append(Hole(self.last + 1, emitted, link_lost or bool(self.refused)))
            self.last = emitted

    @property
    def told(self) -> int:
        """How many messages are missing, by what the notices say."""
        return sum(gap.lost or 0 for gap in self.gaps)

    def missing(self, *, announced: bool) -> int:
        """Return how many messages are missing, with or without notice."""
        return sum(hole.size for hole in self.holes if hole.announced is announced)

    def _message(self, seq: int, message: Mapping[str, Any]) -> None:
        is_snapshot = message.get("snapshot") is True
        # A snapshot contains the change whose number it bears, and those before it.
        first, last = self.last + 1, seq if is_snapshot else seq - 1
        if seq < first and not (is_snapshot and seq == self.last):
            self.again += 1
            return
        notice, self._notice = self._notice, None
        size = last - first + 1
        if size:
            self.holes.append(Hole(first, last, notice is not None and notice.outcome != "resumed"))
        if notice is not None and not is_snapshot:
            self.miscounted += (notice.lost or 0) != size
        self.received += not is_snapshot
        self.snapshots += is_snapshot
        self.last = seq
        if "levels" in message:
            if is_snapshot:
                self.book.clear()
            apply_levels(self.book, message["levels"])


# --------------------------------------------------------------------------- orders


class Outcome(enum.Enum):
    """What became of an order, as far as the client can know."""

    EXECUTED = "executed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """It may have been executed: the link was lost while it was being sent, or before it was answered."""
    NOT_SENT = "not sent"


@attrs.define
class Orders:
    """Accounts for every order, by its number. An order is open until it has an outcome."""

    placed: int = 0
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    waited: int = 0
    """Orders that were placed while there was no link to send them on."""
    altered: int = 0
    """Answers that did not repeat what was asked."""
    _unknown_on: Counter[int] = attrs.field(factory=Counter)
    """Unknown outcomes, by the link whose loss left them so."""

    @property
    def open(self) -> int:
        """Orders without an outcome."""
        return self.placed - len(self.outcomes)

    def count(self, outcome: Outcome) -> int:
        return sum(1 for each in self.outcomes.values() if each is outcome)

    def having(self, outcome: Outcome) -> set[int]:
        """Return the numbers of the orders with this outcome."""
        return {number for number, each in self.outcomes.items() if each is outcome}

    def unknown_on(self, epoch: int) -> int:
        """Return how many outcomes are unknown because link `epoch` was lost."""
        return self._unknown_on[epoch]

    def place(self, *, waits: bool) -> None:
        """Open an account, before the order is sent."""
        self.placed += 1
        self.waited += waits

    def answered(self, order: Order, reply: Mapping[str, Any]) -> None:
        """Note the answer to `order`, which repeats it."""
        self.altered += reply.get("executed") != msgspec.to_builtins(order)
        self.outcomes[order.number] = Outcome.EXECUTED

    def failed(self, order: Order, error: NovaError) -> None:
        """Note what the failure of a request says of its order."""
        match error:
            case RequestFailed():
                self.outcomes[order.number] = Outcome.REFUSED
            case NotSent() | Expired() | SessionOver():
                self.outcomes[order.number] = Outcome.NOT_SENT
            case _:
                self.outcomes[order.number] = Outcome.UNKNOWN
                if isinstance(error.__cause__, LinkLost):
                    self._unknown_on[error.__cause__.epoch] += 1


# --------------------------------------------------------------------------- outages


@attrs.define
class Outage:
    """The time from the end of one link until another is ready. Times are Trio's clock, seconds."""

    epoch: int
    """The link that was lost."""
    noticed: float
    """When the client knew."""
    code: int
    """The close code that the client saw."""
    strike: Strike | None = None
    """What the exchange did; None where it did nothing."""
    silence: float | None = None
    """Seconds of silence after which the client gave the peer up, if that is what it did."""
    unpriced: set[str] = attrs.field(factory=set)
    """The channels that have not yet said what was missed."""
    status: int | None = None
    """The HTTP status with which a redial was refused."""
    dials: int = 0
    back: float | None = None
    """When the next link was ready: signed in, and all subscriptions restored."""
    over: bool = False
    """Whether every channel has spoken since, so that the cost is known."""
    lost: int = 0
    """Messages that the channels say were missed."""
    waited: int = 0
    """Orders that waited for it to end."""

    @property
    def began(self) -> float:
        return self.noticed if self.strike is None else self.strike.at

    @property
    def sight(self) -> str:
        """What the client saw of it, in a few words."""
        if self.status is not None:
            return f"{self.code}, then {self.status}"
        return f"code {self.code}" if self.silence is None else f"silent {self.silence:.2f} s"

    def price(self, channel: str, lost: int) -> None:
        """Note what the outage cost on one channel."""
        self.unpriced.discard(channel)
        self.lost += lost
        self.over = self.back is not None and not self.unpriced


# --------------------------------------------------------------------------- all of it


@attrs.define
class Ledger:
    """All books of one session."""

    strikes: Sequence[Strike]
    """What the exchange did so far, as it goes on: the truth about when an outage began."""
    series: Mapping[str, Series] = attrs.field(factory=lambda: {channel: Series(channel) for channel in CHANNELS})
    orders: Orders = attrs.field(factory=Orders)
    outages: list[Outage] = attrs.field(factory=list)
    dials: int = 0
    links: int = 0
    signed_in: set[int] = attrs.field(factory=set)
    """The links on which the exchange accepted us."""
    ready: set[int] = attrs.field(factory=set)
    """The links that were ready."""
    confirmed: dict[int, list[str]] = attrs.field(factory=dict)
    """For each link the channels that were confirmed, in order."""
    refused: list[str] = attrs.field(factory=list)
    """The channels that were refused."""
    gaps: Counter[str] = attrs.field(factory=Counter)
    """How many gaps the session told of, by channel."""
    paced: int = 0
    """Messages that waited for the limiter."""
    closing: bool = False
    """Whether we are closing the session ourselves: then the end of the link is no outage, and excuses no loss."""
    subscribed: list[str] | None = None
    """The channels confirmed when we closed; None where there was no link then."""
    health: str = ""
    """How the session was when we closed."""
    stray: int = 0
    """Messages that belonged to no feed and no request."""
    _silence: float | None = None

    @property
    def outage(self) -> Outage | None:
        """The outage that is not over yet."""
        return self.outages[-1] if self.outages and not self.outages[-1].over else None

    @property
    def received(self) -> int:
        return sum(each.received for each in self.series.values())

    @property
    def again(self) -> int:
        return sum(each.again for each in self.series.values())

    def missing(self, *, announced: bool) -> int:
        """Return how many messages of all channels but the book's are missing, with or without notice."""
        return sum(each.missing(announced=announced) for name, each in self.series.items() if name != BOOK)

    @property
    def told(self) -> int:
        """How many messages are missing, by what the feeds of all channels but the book's say."""
        return sum(each.told for name, each in self.series.items() if name != BOOK)

    def place(self, *, waits: bool) -> None:
        """Open an account for an order; `waits` where there is no link to send it on."""
        self.orders.place(waits=waits)
        if waits and self.outage is not None:
            self.outage.waited += 1

    def hear(self, observation: Observation) -> None:
        """Note one event of the session."""
        event, epoch, outage = observation.event, observation.epoch, self.outage
        match event:
            case Authenticated():
                self.signed_in.add(epoch)
            case SubscriptionConfirmed(channel=channel):
                self.confirmed.setdefault(epoch, []).append(channel)
            case SubscriptionRefused(channel=channel):
                self.refused.append(channel)
                if outage is not None:
                    outage.price(channel, 0)
            case Gap(channel=channel):
                self.gaps[channel] += 1
                for each in self.outages:
                    if event.epoch_from <= each.epoch < event.epoch_to:
                        each.price(channel, (event.lost or 0) if each.epoch == event.epoch_from else 0)
            case RateLimited():
                self.paced += 1
            case PeerSilent(silence=silence):
                self._silence = silence
            case LinkClosed():
                self._link_lost(event, epoch, observation.at)
            case RetryScheduled(error=HandshakeRejected(status=status)) if outage is not None:
                outage.status = status
            case DialStarted():
                self.dials += 1
                if outage is not None:
                    outage.dials += 1
            case LinkOpened():
                self.links += 1
            case BecameReady():
                self.ready.add(epoch)
                if outage is not None:
                    outage.back = observation.at
            case _:
                pass

    def end(self, emitted: Mapping[str, int]) -> None:
        """Note that nothing follows, and which message of each channel was the exchange's last."""
        # Of a link that was lost an event has told; what a feed missed by it, it says only before its next message.
        unheard = set[str]() if self.outage is None else self.outage.unpriced
        for channel, series in self.series.items():
            series.end(emitted.get(channel, 0), link_lost=channel in unheard)

    def _link_lost(self, event: LinkClosed, epoch: int, at: float) -> None:
        if self.closing:
            return
        if self.outage is not None:
            self.outage.over = True
        claimed = sum(outage.strike is not None for outage in self.outages)
        strike = self.strikes[claimed] if claimed < len(self.strikes) else None
        channels = {*self.confirmed.get(epoch, ())}
        self.outages.append(Outage(epoch, at, event.code, strike, self._silence, channels))
        self._silence = None
