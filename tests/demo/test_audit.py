"""The audit of the demonstration: each thing that could be wrong is found, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from tests.demo.test_ledger import book, closed, dialled, gap, ready, snapshot
from trio_nova.demo.audit import Report, audit
from trio_nova.demo.journal import RETRY_AFTER, Fault, Journal, Strike, Visit
from trio_nova.demo.ledger import Ledger, Outage, Outcome
from trio_nova.demo.market import BOOK, CHANNELS, DELISTED, Market
from trio_nova.errors import HandshakeRejected
from trio_nova.messages import Event, PeerSilent, RetryScheduled

BTC = "trades.BTC"


@attrs.define
class Books:
    """The books of a run without blame: two links, on the second of which a channel was refused."""

    ledger: Ledger
    journal: Journal
    market: Market

    def findings(self) -> list[str]:
        return audit(self.ledger, self.journal, self.market)


def visit(token: str, *without: str) -> Visit:
    granted = [channel for channel in CHANNELS if channel not in without]
    return Visit(token, ["auth", "subscribe", "order"], list(CHANNELS), granted, list(without))


@pytest.fixture
def books() -> Books:
    market, journal = Market(random.Random(0)), Journal(visits=[visit("a"), visit("b", DELISTED)])
    market.emitted.update({BTC: 5, BOOK: 3})
    market.levels.update({10: 1})
    journal.executed.update({1: 1, 2: 1})
    journal.declined.add(3)
    left = journal.visits[1].granted
    ledger = Ledger(
        (),
        outages=[Outage(1, 0.0, 1006, over=True)],
        links=2,
        signed_in={1, 2},
        ready={1, 2},
        confirmed={1: list(CHANNELS), 2: left},
        refused=[DELISTED],
        subscribed=left,
        health="degraded",
    )
    ledger.gaps.update({BTC: 1})
    ledger.series[DELISTED].refused = "delisted"
    for item in ({"seq": 1}, gap(3), {"seq": 5}):
        ledger.series[BTC].hear(item)
    for item in (snapshot(0), {"seq": 1, "levels": [(9, 9)]}, gap(None, outcome="unknown"), snapshot(3, (10, 1))):
        ledger.series[BOOK].hear(item)
    ledger.gaps.update({BOOK: 1})
    ledger.orders.placed = 4
    ledger.orders.outcomes.update({1: Outcome.EXECUTED, 2: Outcome.UNKNOWN, 3: Outcome.REFUSED, 4: Outcome.NOT_SENT})
    return Books(ledger, journal, market)


def test_books_without_blame_are_in_order(books: Books) -> None:
    assert books.findings() == []


def hear(books: Books, *items: Any) -> None:
    for item in items:
        books.ledger.series[BTC].hear(item)


def spoil_series(**fields: Any) -> Callable[[Books], None]:
    def spoil(books: Books) -> None:
        for name, value in fields.items():
            setattr(books.ledger.series[BTC], name, value)

    return spoil


SPOILT: dict[str, Callable[[Books], object]] = {
    # links
    "links of which only one side knows: 1": lambda books: setattr(books.ledger, "links", 3),
    "on link 2 came, in this order: subscribe, auth": lambda books: setattr(
        books.journal.visits[1], "phases", ["subscribe", "auth"]
    ),
    "on link 1 came, in this order: auth, order, subscribe": lambda books: setattr(
        books.journal.visits[0], "phases", ["auth", "order", "subscribe"]
    ),
    "link 2 was ready without authentication": lambda books: books.ledger.signed_in.discard(2),
    "tokens used twice: 1": lambda books: setattr(books.journal.visits[1], "token", "a"),
    "on link 2 was asked for, in this order: nothing": lambda books: books.journal.visits[1].asked.clear(),
    f"on link 2 was asked for, in this order: {', '.join(reversed(CHANNELS))}": (
        lambda books: books.journal.visits[1].asked.reverse()
    ),
    f"on link 2 was asked for, in this order: {', '.join(CHANNELS)}, status": (
        lambda books: books.journal.visits[1].asked.append("status")
    ),
    "on link 1 the client counts as confirmed what the exchange has not granted, or not in order": (
        lambda books: books.journal.visits[0].granted.reverse()
    ),
    # channels
    f"the exchange refused ['{DELISTED}'], and the client knows of []": lambda books: books.ledger.refused.clear(),
    f"the feed of {DELISTED}, which was refused, did not say so": lambda books: setattr(
        books.ledger.series[DELISTED], "refused", ""
    ),
    "the exchange has ['trades.BTC', 'trades.ETH', 'ticker.BTC', 'book.BTC', 'status'], and the client [] confirmed": (
        lambda books: setattr(books.ledger, "subscribed", [])
    ),
    "the session called itself ok, with 1 channels refused": lambda books: setattr(books.ledger, "health", "ok"),
    "messages that belonged to no feed and no request: 1": lambda books: setattr(books.ledger, "stray", 1),
    # data
    f"{BTC}: messages lost without notice: 2": lambda books: (
        books.market.emitted.update({BTC: 2}),
        books.ledger.end(books.market.emitted),
    ),
    f"{BTC}: messages received twice, or out of order: 1": lambda books: hear(books, {"seq": 5}),
    f"{BTC}: messages that the exchange never emitted: 1": lambda books: hear(books, {"seq": 6}),
    f"{BTC}: gaps that say another number than is missing: 1": spoil_series(miscounted=1),
    f"{BTC}: gaps that only the feed, or only the session, told of: 1": lambda books: books.ledger.gaps.update(
        {BTC: 1}
    ),
    f"{BTC}: messages that the exchange kept back on a healthy link: 2": lambda books: (
        books.market.emitted.update({BTC: 3}),
        books.ledger.gaps.update({BTC: 1}),
        hear(books, gap(2, 2, 2), {"seq": 8}),
    ),
    f"{BTC}: gaps over the loss of a link that was not lost: 1": lambda books: books.ledger.outages.clear(),
    f"{BOOK}: the client's book is not the exchange's": lambda books: books.market.levels.update({11: 1}),
    # orders
    "orders without an outcome: 1": lambda books: setattr(books.ledger.orders, "placed", 5),
    "orders answered as something else than was asked: 1": lambda books: setattr(books.ledger.orders, "altered", 1),
    "orders executed twice: 1": lambda books: books.journal.executed.update({1: 1}),
    "orders answered as executed, but never executed: 1": lambda books: books.journal.executed.pop(1),
    "orders executed, although not sent: 1": lambda books: books.journal.executed.update({4: 1}),
    "orders executed, although refused: 1": lambda books: books.journal.executed.update({3: 1}),
    "orders called refused that were not: 1": lambda books: books.journal.declined.clear(),
    # pace
    "the client sent 51 messages within 1 s, where 50 are allowed": lambda books: setattr(
        books.journal.rate, "worst", 51
    ),
    "messages turned away as too many: 2": lambda books: setattr(books.journal.rate, "turned_away", 2),
}


@pytest.mark.parametrize(("finding", "spoil"), SPOILT.items(), ids=list(SPOILT))
def test_what_is_wrong_is_found(books: Books, finding: str, spoil: Callable[[Books], object]) -> None:
    spoil(books)
    assert finding in books.findings()


def test_a_link_that_was_lost_before_it_was_ready_need_not_be_restored(books: Books) -> None:
    books.ledger.ready.discard(2)
    books.ledger.subscribed = None
    books.journal.visits[1].asked = books.journal.visits[1].granted = ["trades.BTC"]
    assert books.findings() == []


# --------------------------------------------------------------------------- outages

REFUSED = RetryScheduled(at=0.0, epoch=1, delay=1.0, attempt=1, error=HandshakeRejected(503))
SEEN: dict[Fault, tuple[Event, ...]] = {
    Fault.DROP: (closed(1),),
    Fault.RESTART: (closed(1, code=1012),),
    Fault.MUTE: (PeerSilent(at=0.0, epoch=1, clock="pong", silence=0.6), closed(1)),
    Fault.REFUSE: (closed(1), dialled(1), REFUSED, dialled(1, RETRY_AFTER)),
    Fault.RESET: (closed(1),),
}


def findings(fault: Fault, *events: Event, heard: bool = True) -> list[str]:
    """Audit nothing but the outages of a run that saw `events`."""
    ledger = book(*events, strikes=(Strike(fault, 0.0),))
    if heard and ledger.outages:
        ledger.outages[0].price(BTC, 0)
    told = audit(ledger, Journal(), Market(random.Random(0)), [fault])
    return [finding for finding in told if finding.startswith(("the exchange", "no outage"))]


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_it_was_is_in_order(fault: Fault) -> None:
    assert findings(fault, *SEEN[fault], *ready(2, RETRY_AFTER)) == []


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_something_else_is_found(fault: Fault) -> None:
    other = Fault.MUTE if fault is not Fault.MUTE else Fault.DROP
    (finding,) = findings(fault, *SEEN[other], *ready(2))
    assert finding.startswith(f"the exchange {fault.value}, and the client saw ")


def test_a_redial_before_its_time_is_found() -> None:
    assert len(findings(Fault.REFUSE, *SEEN[Fault.REFUSE], *ready(2, RETRY_AFTER - 0.1))) == 1


def test_a_fault_that_was_not_seen_is_found() -> None:
    assert findings(Fault.MUTE) == ["no outage seen of this kind: went mute"]


def test_a_client_that_did_not_come_back_is_found() -> None:
    assert findings(Fault.DROP, closed(1)) == ["the exchange dropped, and not all channels have spoken since"]


# --------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("found", "interrupted", "status"), [([], False, 0), (["x"], False, 1), ([], True, 130), (["x"], True, 130)]
)
def test_the_exit_status_says_how_it_went(books: Books, found: list[str], interrupted: bool, status: int) -> None:
    report = Report(
        ledger=books.ledger, journal=books.journal, market=books.market, findings=found, interrupted=interrupted
    )
    assert report.exit_status == status
