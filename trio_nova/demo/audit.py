"""The audit: the client's books are held against the exchange's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from trio_nova.demo.journal import RETRY_AFTER, Fault, Journal, Visit
from trio_nova.demo.ledger import Ledger, Outage, Outcome, Series
from trio_nova.demo.market import BOOK, CHANNELS, Market

__all__ = ["Report", "audit", "well_begun", "well_restored"]

PHASES = ["auth", "subscribe", "order"]
"""What comes on a link, in this order."""

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


def audit(ledger: Ledger, journal: Journal, market: Market, faults: Sequence[Fault] = ()) -> list[str]:
    """Hold the client's books against those of the exchange, and return what is wrong: nothing, it is hoped.

    Args:
        ledger: the client's books, after the session and `Ledger.end`.
        journal: the exchange's books.
        market: what there was to be heard.
        faults: what was to go wrong, each once.
    """
    return [
        *_links(ledger, journal),
        *_channels(ledger, journal),
        *(finding for series in ledger.series.values() for finding in _feed(series, ledger, market)),
        *_orders(ledger, journal),
        *_pace(journal),
        *_outages(ledger, faults),
    ]


def well_begun(visit: Visit) -> bool:
    """Return whether authentication came first on a link, once, then subscriptions, and only then orders."""
    return visit.phases == PHASES[: len(visit.phases)]


def well_restored(number: int, journal: Journal) -> bool:
    """Return whether on link `number` all subscriptions still wanted were asked for in their order, once each."""
    earlier = {channel for visit in journal.visits[: number - 1] for channel in visit.refused}
    return journal.visits[number - 1].asked == [channel for channel in CHANNELS if channel not in earlier]


# --------------------------------------------------------------------------- the findings


def _count(what: str, count: int) -> Iterator[str]:
    if count:
        yield f"{what}: {count:,}"


def _links(ledger: Ledger, journal: Journal) -> Iterator[str]:
    yield from _count("links of which only one side knows", abs(ledger.links - len(journal.visits)))
    for number, visit in enumerate(journal.visits, 1):
        if not well_begun(visit):
            yield f"on link {number} came, in this order: {', '.join(visit.phases)}"
        if number in ledger.ready and number not in ledger.signed_in:
            yield f"link {number} was ready without authentication"
        if number in ledger.ready and not well_restored(number, journal):
            yield f"on link {number} was asked for, in this order: {', '.join(visit.asked) or 'nothing'}"
        if number in ledger.ready and ledger.confirmed.get(number, []) != visit.granted:
            yield f"on link {number} the client counts as confirmed what the exchange has not granted, or not in order"
    yield from _count("tokens used twice", len(journal.tokens) - len(set(journal.tokens)))


def _channels(ledger: Ledger, journal: Journal) -> Iterator[str]:
    if sorted(ledger.refused) != sorted(journal.refused):
        yield f"the exchange refused {sorted(journal.refused)}, and the client knows of {sorted(ledger.refused)}"
    for channel in journal.refused:
        if not ledger.series[channel].refused:
            yield f"the feed of {channel}, which was refused, did not say so"
    if ledger.subscribed is not None:
        if ledger.subscribed != journal.visits[-1].granted:
            yield f"the exchange has {journal.visits[-1].granted}, and the client {ledger.subscribed} confirmed"
        if ledger.health != ("degraded" if journal.refused else "ok"):
            yield f"the session called itself {ledger.health}, with {len(journal.refused)} channels refused"
    yield from _count("messages that belonged to no feed and no request", ledger.stray)


def _feed(series: Series, ledger: Ledger, market: Market) -> Iterator[str]:
    name = series.channel
    lost_links = {outage.epoch for outage in ledger.outages}
    yield from _count(f"{name}: messages lost without notice", series.missing(announced=False))
    yield from _count(f"{name}: messages received twice, or out of order", series.again)
    yield from _count(f"{name}: messages that the exchange never emitted", series.last - market.emitted[name])
    yield from _count(f"{name}: gaps that say another number than is missing", series.miscounted)
    half_told = abs(len(series.gaps) - ledger.gaps[name])
    yield from _count(f"{name}: gaps that only the feed, or only the session, told of", half_told)
    kept_back = [gap.lost or 1 for gap in series.gaps if gap.epoch_from == gap.epoch_to]
    yield from _count(f"{name}: messages that the exchange kept back on a healthy link", sum(kept_back))
    beyond = [gap for gap in series.gaps if gap.epoch_from != gap.epoch_to and gap.epoch_from not in lost_links]
    yield from _count(f"{name}: gaps over the loss of a link that was not lost", len(beyond))
    if name == BOOK and ledger.subscribed is not None and series.book != market.levels:
        yield f"{name}: the client's book is not the exchange's"


def _orders(ledger: Ledger, journal: Journal) -> Iterator[str]:
    orders, executed = ledger.orders, journal.executed
    yield from _count("orders without an outcome", orders.open)
    yield from _count("orders answered as something else than was asked", orders.altered)
    yield from _count("orders executed twice", sum(count - 1 for count in executed.values()))
    unheard = orders.having(Outcome.EXECUTED) - executed.keys()
    yield from _count("orders answered as executed, but never executed", len(unheard))
    for outcome in (Outcome.NOT_SENT, Outcome.REFUSED):
        yield from _count(f"orders executed, although {outcome.value}", len(orders.having(outcome) & executed.keys()))
    yield from _count("orders called refused that were not", len(orders.having(Outcome.REFUSED) - journal.declined))


def _pace(journal: Journal) -> Iterator[str]:
    rate = journal.rate
    if rate.worst > rate.limit:
        yield f"the client sent {rate.worst} messages within {rate.period:g} s, where {rate.limit} are allowed"
    yield from _count("messages turned away as too many", rate.turned_away)


def _outages(ledger: Ledger, faults: Sequence[Fault]) -> Iterator[str]:
    for fault in faults:
        seen = [outage for outage in ledger.outages if outage.strike is not None and outage.strike.fault is fault]
        if not seen:
            yield f"no outage seen of this kind: {fault.value}"
        elif not _DUE[fault](seen[0]):
            yield f"the exchange {fault.value}, and the client saw {seen[0].sight}"
        elif not seen[0].over:
            yield f"the exchange {fault.value}, and not all channels have spoken since"


# --------------------------------------------------------------------------- what came of it


@attrs.frozen(kw_only=True)
class Report:
    """What came of a run."""

    ledger: Ledger
    journal: Journal
    market: Market
    findings: list[str]
    """What is wrong; nothing, it is hoped."""
    interrupted: bool = False
    """Whether the user ended it early."""

    @property
    def exit_status(self) -> int:
        """0 where all is well; 1 where it is not; 130 where the user ended it, as shells have it."""
        return 130 if self.interrupted else 1 if self.findings else 0
