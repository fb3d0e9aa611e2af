"""The client's books: what came, what was sent, what it cost when the link was lost. And the audit.

Nothing here waits or reads a clock. A `Ledger` is told every event of a session in order, its messages
among them; `audit` holds it against the books of the exchange.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs

from trio_nova.demo.exchange import RETRY_AFTER, Fault, Strike
from trio_nova.demo.wire import Ack, Order, Tick
from trio_nova.errors import Expired, HandshakeRejected, NotSent, NovaError, SessionOver
from trio_nova.messages import (
    BecameReady,
    DialStarted,
    Event,
    LinkClosed,
    LinkOpened,
    MessageEvent,
    PeerSilent,
    RetryScheduled,
)

__all__ = ["Gap", "Ledger", "Orders", "Outage", "Outcome", "Report", "Ticks", "audit"]


# --------------------------------------------------------------------------- ticks


@attrs.frozen
class Gap:
    """Ticks that never came: `first` to `last`."""

    first: int
    last: int
    announced: bool
    """Whether an event told of the loss of the link before the next tick came."""

    @property
    def size(self) -> int:
        return self.last - self.first + 1


@attrs.define
class Ticks:
    """Follows the numbers of the ticks: a hole is forgiven only across the announced loss of a link."""

    received: int = 0
    again: int = 0
    """Ticks whose number had been passed already."""
    last: int = 0
    gaps: list[Gap] = attrs.field(factory=list)
    _last_epoch: int = 0
    _lost_epoch: int = -1

    def link_lost(self, epoch: int) -> None:
        """Note that an event announced the loss of this link."""
        self._lost_epoch = epoch

    def tick(self, seq: int, epoch: int) -> Gap | None:
        """Note a tick that came on link `epoch`; return the gap before it, if there is one."""
        if seq <= self.last:
            self.again += 1
            return None
        gap = None
        if seq > self.last + 1:
            gap = Gap(self.last + 1, seq - 1, self._last_epoch <= self._lost_epoch < epoch)
            self.gaps.append(gap)
        self.received += 1
        self.last, self._last_epoch = seq, epoch
        return gap

    def end(self, emitted: int) -> Gap | None:
        """Note that no tick follows, and that `emitted` was the last; return the gap before the end, if any."""
        if emitted <= self.last:
            return None
        gap = Gap(self.last + 1, emitted, self._last_epoch <= self._lost_epoch)
        self.gaps.append(gap)
        self.last = emitted
        return gap

    def lost(self, *, announced: bool) -> int:
        """Return how many ticks were lost, with or without notice."""
        return sum(gap.size for gap in self.gaps if gap.announced is announced)


# --------------------------------------------------------------------------- orders


class Outcome(enum.Enum):
    """What became of an order, as far as the client can know."""

    ACKNOWLEDGED = "acknowledged"
    UNKNOWN = "unknown"
    """It may have been executed: the link was lost while it was being sent, or before it was acknowledged."""
    NOT_SENT = "not sent"
    EXPIRED = "expired"


@attrs.define
class Orders:
    """Accounts for every order, by its id. An order is open until it has an outcome."""

    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    waited: int = 0
    """Orders that were placed while there was no link to send them on."""
    altered: int = 0
    """Acknowledgements that did not repeat what was sent."""
    again: int = 0
    """Acknowledgements of orders that had one already, or were never sent."""
    _orders: dict[int, Order] = attrs.field(factory=dict)
    """Those that an acknowledgement may still come for."""
    _sent_on: dict[int, int] = attrs.field(factory=dict)
    """The epoch of every open order that has left."""
    _doubtful: dict[int, int] = attrs.field(factory=dict)
    """The epoch of every order whose outcome is unknown."""
    _lost_epoch: int = 0

    @property
    def placed(self) -> int:
        return len(self.outcomes) + self.open

    @property
    def open(self) -> int:
        """Orders without an outcome."""
        return len(self._orders) - len(self._doubtful)

    @property
    def unsent(self) -> int:
        """Open orders that have not left."""
        return self.open - len(self._sent_on)

    def count(self, outcome: Outcome) -> int:
        return sum(1 for each in self.outcomes.values() if each is outcome)

    def unknown_on(self, epoch: int) -> int:
        """Return how many outcomes are unknown because link `epoch` was lost."""
        return sum(1 for each in self._doubtful.values() if each == epoch)

    def place(self, order: Order, *, waits: bool) -> None:
        """Open an account for `order`, before it is sent."""
        self._orders[order.id] = order
        self.waited += waits

    def sent(self, number: int, epoch: int) -> None:
        """Note that the operating system took the order, on link `epoch`."""
        if number in self.outcomes:
            return  # the acknowledgement was faster
        if epoch <= self._lost_epoch:
            self._doubt(number, epoch)
        else:
            self._sent_on[number] = epoch

    def failed(self, number: int, epoch: int, error: NovaError) -> None:
        """Note that sending the order failed, on link `epoch` or the next."""
        if number in self.outcomes:
            return
        match error:
            case Expired():
                self._settle(number, Outcome.EXPIRED)
            case NotSent() | SessionOver():
                self._settle(number, Outcome.NOT_SENT)
            case _:
                self._doubt(number, epoch)

    def acknowledged(self, order: Order) -> None:
        """Note the exchange's acknowledgement; it also ends a doubt."""
        if (mine := self._orders.get(order.id)) is None:
            self.again += 1
            return
        self.altered += mine != order
        self._settle(order.id, Outcome.ACKNOWLEDGED)

    def link_lost(self, epoch: int) -> None:
        """Give up on the acknowledgements that were due on this link."""
        self._lost_epoch = epoch
        for number in [number for number, sent_on in self._sent_on.items() if sent_on <= epoch]:
            self._doubt(number, epoch)

    def _doubt(self, number: int, epoch: int) -> None:
        self._sent_on.pop(number, None)
        self._doubtful[number] = epoch
        self.outcomes[number] = Outcome.UNKNOWN

    def _settle(self, number: int, outcome: Outcome) -> None:
        self._orders.pop(number, None)
        self._sent_on.pop(number, None)
        self._doubtful.pop(number, None)
        self.outcomes[number] = outcome


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
    status: int | None = None
    """The HTTP status with which a redial was refused."""
    dials: int = 0
    back: float | None = None
    """When the next link was ready."""
    over: bool = False
    """Whether the first tick after it has come, so that the cost is known."""
    lost: int = 0
    """Ticks."""
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


_DUE: Mapping[Fault, Callable[[Outage], bool]] = {
    Fault.DROP: lambda outage: outage.code == 1006 and outage.silence is None,
    Fault.RESTART: lambda outage: outage.code == 1012,
    Fault.MUTE: lambda outage: outage.silence is not None,
    Fault.REFUSE: lambda outage: (
        outage.status == 503
        and outage.dials > 1
        and outage.back is not None
        and outage.back - outage.noticed >= RETRY_AFTER
    ),
    Fault.RESET: lambda outage: outage.code == 1006 and outage.silence is None,
}
"""How an outage must have looked to the client, for what the exchange did."""


@attrs.define
class Ledger:
    """All books of one session."""

    strikes: Sequence[Strike]
    """What the exchange did so far, as it goes on: the truth about when an outage began."""
    ticks: Ticks = attrs.field(factory=Ticks)
    orders: Orders = attrs.field(factory=Orders)
    outages: list[Outage] = attrs.field(factory=list)
    dials: int = 0
    links: int = 0
    closing: bool = False
    """Whether we are closing the session ourselves: then the end of the link is no outage, and excuses no loss."""
    _silence: float | None = None

    @property
    def outage(self) -> Outage | None:
        """The outage that is not over yet."""
        return self.outages[-1] if self.outages and not self.outages[-1].over else None

    def place(self, order: Order, *, waits: bool) -> None:
        """Open an account for an order; `waits` where there is no link to send it on."""
        self.orders.place(order, waits=waits)
        if waits and self.outage is not None:
            self.outage.waited += 1

    def hear(self, event: Event) -> None:
        """Note one event of the session; messages that came are events too."""
        match event:
            case MessageEvent(direction="received", message=Tick(seq)):
                gap = self.ticks.tick(seq, event.epoch)
                if self.outage is not None and self.outage.back is not None:
                    self.outage.lost = gap.size if gap is not None else 0
                    self.outage.over = True
            case MessageEvent(direction="received", message=Ack(order)):
                self.orders.acknowledged(order)
            case PeerSilent(silence=silence):
                self._silence = silence
            case LinkClosed():
                self._link_lost(event)
            case RetryScheduled(error=HandshakeRejected(status=status)) if self.outage is not None:
                self.outage.status = status
            case DialStarted():
                self.dials += 1
                if self.outage is not None:
                    self.outage.dials += 1
            case LinkOpened():
                self.links += 1
            case BecameReady() if self.outage is not None:
                self.outage.back = event.at
            case _:
                pass

    def end(self, emitted: int) -> None:
        """Note that nothing follows, and that tick `emitted` was the exchange's last."""
        gap = self.ticks.end(emitted)
        if gap is not None and self.outage is not None:
            self.outage.lost = gap.size

    def _link_lost(self, event: LinkClosed) -> None:
        self.orders.link_lost(event.epoch)
        if self.closing:
            return
        self.ticks.link_lost(event.epoch)
        if self.outage is not None:
            self.outage.over = True
        claimed = sum(outage.strike is not None for outage in self.outages)
        strike = self.strikes[claimed] if claimed < len(self.strikes) else None
        self.outages.append(Outage(event.epoch, event.at, event.code, strike, self._silence))
        self._silence = None


# --------------------------------------------------------------------------- the audit


def audit(
    ledger: Ledger, *, emitted: int, delivered: int, executed: Counter[int], faults: Sequence[Fault]
) -> list[str]:
    """Hold the client's books against those of the exchange, and return what is wrong: nothing, it is hoped.

    Args:
        ledger: the client's books, after the session and `Ledger.end`.
        emitted: ticks, by the exchange's count.
        delivered: ticks that the application received.
        executed: how often each order came to the exchange.
        faults: what was to go wrong, each once.
    """
    ticks, orders = ledger.ticks, ledger.orders
    findings: list[str] = []

    def find(what: str, count: int) -> None:
        if count:
            findings.append(f"{what}: {count:,}")

    find("ticks lost without notice", ticks.lost(announced=False))
    find("ticks received twice, or out of order", ticks.again)
    find("ticks that the exchange never emitted", ticks.last - emitted)
    find("ticks heard of, but not received by the application", ticks.received - delivered)
    find("orders without an outcome", orders.open)
    find("orders acknowledged as something else than was sent", orders.altered)
    find("acknowledgements of no open order", orders.again)
    find("orders executed twice", sum(count - 1 for count in executed.values()))
    by_outcome = {outcome: {id for id, each in orders.outcomes.items() if each is outcome} for outcome in Outcome}
    find("orders acknowledged, but never executed", len(by_outcome[Outcome.ACKNOWLEDGED] - executed.keys()))
    for outcome in (Outcome.NOT_SENT, Outcome.EXPIRED):
        find(f"orders executed, although {outcome.value}", len(by_outcome[outcome] & executed.keys()))
    for fault in faults:
        seen = [outage for outage in ledger.outages if outage.strike is not None and outage.strike.fault is fault]
        if not seen:
            findings.append(f"no outage seen of this kind: {fault.value}")
        elif not _DUE[fault](seen[0]):
            findings.append(f"the exchange {fault.value}, and the client saw {seen[0].sight}")
        elif not seen[0].over:
            findings.append(f"the exchange {fault.value}, and no tick has come since")
    return findings


@attrs.frozen(kw_only=True)
class Report:
    """What came of a run."""

    ledger: Ledger
    emitted: int
    """Ticks, by the exchange's count."""
    executed: Counter[int]
    """How often each order came to the exchange."""
    findings: list[str]
    """What is wrong; nothing, it is hoped."""
    interrupted: bool = False
    """Whether the user ended it early."""

    @property
    def exit_status(self) -> int:
        """0 where all is well; 1 where it is not; 130 where the user ended it, as shells have it."""
        return 130 if self.interrupted else 1 if self.findings else 0
