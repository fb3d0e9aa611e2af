"""The client's books of the demonstration, and what an audit finds in them: all that is wrong, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from trio_nova.demo.audit import Report, audit
from trio_nova.demo.journal import RETRY_AFTER, Fault, Journal, Strike, Visit
from trio_nova.demo.ledger import Hole, Ledger, Orders, Outage, Outcome, Series
from trio_nova.demo.market import BOOK, CHANNELS, DELISTED, Market
from trio_nova.demo.wire import Order
from trio_nova.errors import (
    Expired,
    HandshakeRejected,
    LinkLost,
    NotSent,
    NovaError,
    OutcomeUnknown,
    RequestFailed,
    SessionOver,
)
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


def seen(event: Event, epoch: int, at: float) -> Observation:
    return Observation("demo", epoch, at, at, event)


def gap(lost: int | None, *epochs: int, outcome: Any = "lost", channel: str = "trades") -> Gap:
    before, after = epochs or (1, 2)
    return Gap(
        id=1,
        channel=channel,
        epoch_from=before,
        epoch_to=after,
        since=0.0,
        until=0.0,
        wall_since=0.0,
        wall_until=0.0,
        cause="",
        outcome=outcome,
        lost=lost,
    )


RESUMED = gap(None, outcome="resumed")
UNKNOWN = gap(None, outcome="unknown")


def closed(epoch: int, at: float = 0.0, code: int = 1006) -> Observation:
    return seen(LinkClosed(code=code, reason="", remote=None, duration=1.0), epoch, at)


def dialled(epoch: int, at: float = 0.0) -> Observation:
    return seen(DialStarted(url="ws://127.0.0.1/", attempt=1), epoch, at)


def confirmed(epoch: int, *channels: str) -> list[Observation]:
    return [seen(SubscriptionConfirmed(id=1, channel=channel, restored=epoch > 1), epoch, 0.0) for channel in channels]


def refused(channel: str) -> Observation:
    return seen(SubscriptionRefused(id=1, channel=channel, reason="delisted"), 2, 0.0)


def ready(epoch: int, at: float = 0.0) -> tuple[Observation, ...]:
    return (
        seen(LinkOpened(connect_time=0.0), epoch, at),
        seen(Authenticated(refresh=False, duration=0.0, expires_in=None), epoch, at),
        seen(BecameReady(), epoch, at),
    )


def write_down(ledger: Ledger, event: Observation | Gap) -> None:
    ledger.hear(seen(event, event.epoch_to, 0.0) if isinstance(event, Gap) else event)


def book(*events: Observation | Gap, strikes: tuple[Strike, ...] = ()) -> Ledger:
    """Open books, and write the events down."""
    ledger = Ledger(strikes)
    for event in events:
        write_down(ledger, event)
    return ledger


def series(*items: int | Gap | dict[str, Any]) -> Series:
    """Follow a feed; a number stands for the message that bears it."""
    made = Series("trades")
    for item in items:
        made.hear({"seq": item} if isinstance(item, int) else item)
    return made


# --------------------------------------------------------------------------- feeds


def test_messages_without_a_hole_are_in_order() -> None:
    feed = series(1, 2, 3)
    feed.end(3, link_lost=False)
    assert (feed.received, feed.holes, feed.again) == (3, [], 0)


def test_a_hole_behind_a_notice_that_counts_it_is_announced() -> None:
    feed = series(1, gap(3), 5)
    assert feed.holes == [Hole(2, 4, announced=True)]
    assert (feed.told, feed.missing(announced=True), feed.miscounted) == (3, 3, 0)


@pytest.mark.parametrize("items", [(1, 3), (2,), (1, gap(1), 3, 5), (1, RESUMED, 3)])
def test_a_hole_without_a_notice_before_it_is_a_loss_without_notice(items: tuple[int | Gap, ...]) -> None:
    assert series(*items).missing(announced=False) == 1


@pytest.mark.parametrize(
    "items",
    [(1, gap(2), 3), (1, gap(1), 2), (1, UNKNOWN, 3), (1, gap(1), gap(1), 3)],
    ids=lambda items: repr(len(items)),
)
def test_a_notice_that_says_another_number_is_found(items: tuple[int | Gap, ...]) -> None:
    assert series(*items).miscounted == 1


def test_a_notice_that_nothing_is_missing_is_right_where_nothing_is() -> None:
    feed = series(1, RESUMED, 2)
    assert (feed.miscounted, feed.holes, feed.received) == (0, [], 2)


@pytest.mark.parametrize("items", [(1, 2, 2), (1, 2, 1), (1, gap(2), 4, 3)])
def test_what_comes_twice_or_out_of_order_is_found(items: tuple[int | Gap, ...]) -> None:
    assert series(*items).again == 1


def test_other_notices_are_no_messages() -> None:
    feed = series(1)
    feed.hear(BecameReady())
    assert feed.received == 1


@pytest.mark.parametrize("link_lost", [False, True])
def test_a_missing_end_is_excused_only_by_the_loss_of_a_link(link_lost: bool) -> None:
    feed = series(1)
    feed.end(3, link_lost=link_lost)
    assert feed.holes == [Hole(2, 3, announced=link_lost)]


def test_a_missing_end_is_excused_where_the_feed_has_ended_with_a_refusal() -> None:
    feed = series(1)
    feed.refused = "delisted"
    feed.end(3, link_lost=False)
    assert feed.missing(announced=True) == 2


def snapshot(seq: int, *levels: tuple[int, int]) -> dict[str, Any]:
    return {"seq": seq, "snapshot": True, "levels": list(levels)}


def change(seq: int, price: int, size: int) -> dict[str, Any]:
    return {"seq": seq, "levels": [(price, size)]}


def test_a_snapshot_makes_up_for_the_changes_that_it_contains() -> None:
    feed = series(snapshot(0), change(1, 10, 1), UNKNOWN, snapshot(4, (20, 2)), change(5, 30, 3), change(6, 20, 0))
    assert feed.holes == [Hole(2, 4, announced=True)]
    assert (feed.received, feed.snapshots, feed.again, feed.miscounted) == (3, 2, 0, 0)
    assert feed.book == {30: 3}


def test_a_snapshot_that_contains_nothing_new_is_no_repetition() -> None:
    feed = series(snapshot(0), change(1, 10, 1), UNKNOWN, snapshot(1, (10, 1)))
    assert (feed.holes, feed.again) == ([], 0)


def test_a_change_that_a_snapshot_contains_is_a_repetition() -> None:
    assert series(snapshot(3), change(3, 10, 1)).again == 1


# --------------------------------------------------------------------------- orders

ORDER = Order(1, 100.0, 1)


def placed() -> Orders:
    orders = Orders()
    orders.place(waits=False)
    return orders


def test_an_order_is_open_until_it_is_answered() -> None:
    orders = placed()
    assert (orders.open, orders.placed) == (1, 1)
    orders.answered(ORDER, {"id": 5, "executed": {"number": 1, "price": 100.0, "quantity": 1}})
    assert (orders.open, orders.placed, orders.altered) == (0, 1, 0)
    assert orders.having(Outcome.EXECUTED) == {1}


def test_an_answer_that_belongs_to_another_order_is_found() -> None:
    orders = placed()
    orders.answered(ORDER, {"id": 5, "executed": {"number": 2, "price": 100.0, "quantity": 1}})
    assert orders.altered == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestFailed("too large", reply={}), Outcome.REFUSED),
        (NotSent(), Outcome.NOT_SENT),
        (Expired(), Outcome.NOT_SENT),
        (SessionOver(), Outcome.NOT_SENT),
        (OutcomeUnknown(), Outcome.UNKNOWN),
    ],
)
def test_an_error_of_a_request_is_an_outcome(error: NovaError, outcome: Outcome) -> None:
    orders = placed()
    orders.failed(ORDER, error)
    assert orders.outcomes == {1: outcome}
    assert (orders.open, orders.count(outcome)) == (0, 1)


def test_an_unknown_outcome_belongs_to_the_link_that_was_lost() -> None:
    orders, error = placed(), OutcomeUnknown()
    error.__cause__ = LinkLost(1006, "", 3)
    orders.failed(ORDER, error)
    assert (orders.unknown_on(3), orders.unknown_on(2)) == (1, 0)


def test_an_order_placed_without_a_link_is_counted_for_the_outage() -> None:
    ledger = book(closed(1))
    ledger.place(waits=True)
    ledger.place(waits=False)
    assert (ledger.orders.waited, ledger.outages[0].waited) == (1, 1)


# --------------------------------------------------------------------------- outages


def test_an_outage_is_over_and_priced_when_every_channel_has_spoken() -> None:
    strike = Strike(Fault.DROP, 10.0)
    ledger = book(*confirmed(1, "a", "b", "c"), closed(1, 10.5), dialled(1, 11.0), strikes=(strike,))
    outage = ledger.outage
    assert outage is not None
    assert (outage.began, outage.noticed, outage.strike, outage.back) == (10.0, 10.5, strike, None)
    news: list[Observation | Gap] = [refused("c"), *ready(2, 12.0), gap(3, channel="a")]
    for event in news:
        write_down(ledger, event)
    assert (outage.back, outage.over) == (12.0, False)
    write_down(ledger, gap(4, channel="b"))
    assert (outage.over, outage.lost, outage.dials) == (True, 7, 1)
    assert ledger.outage is None
    assert (ledger.dials, ledger.links, ledger.refused) == (1, 1, ["c"])
    assert (ledger.signed_in, ledger.ready) == ({2}, {2})
    assert ledger.gaps == {"a": 1, "b": 1}


def test_what_two_outages_in_a_row_cost_is_put_down_to_the_first() -> None:
    ledger = book(
        *confirmed(1, "a"), closed(1), *ready(2), *confirmed(2, "a"), closed(2), *ready(3), gap(5, 1, 3, channel="a")
    )
    assert [(outage.lost, outage.over) for outage in ledger.outages] == [(5, True), (0, True)]


def test_an_outage_that_the_exchange_did_not_cause_has_no_strike() -> None:
    ledger = book(closed(1, 5.0))
    assert ledger.outages[0].strike is None
    assert ledger.outages[0].began == 5.0


def test_silence_and_a_refusal_are_told_of_the_outage_they_belong_to() -> None:
    rejected = seen(RetryScheduled(delay=1.0, attempt=1, error=HandshakeRejected(503)), 2, 0.0)
    silent = seen(PeerSilent(clock="pong", silence=0.61), 1, 1.0)
    ledger = book(silent, closed(1), *ready(2), closed(2), rejected)
    assert [outage.sight for outage in ledger.outages] == ["silent 0.61 s", "1006, then 503"]


def test_our_own_goodbye_is_no_outage_and_excuses_nothing() -> None:
    ledger = book()
    ledger.series["trades.BTC"].hear({"seq": 1})
    ledger.closing = True
    ledger.hear(closed(1, code=1000))
    assert ledger.outages == []
    ledger.end({"trades.BTC": 2})
    assert ledger.missing(announced=False) == 1


def test_a_loss_of_which_a_channel_has_spoken_excuses_nothing_after_it() -> None:
    ledger = book(*confirmed(1, "trades.BTC", "status"), closed(1), *ready(2), gap(0, channel="status"))
    ledger.end({"trades.BTC": 2, "status": 3})
    assert (ledger.missing(announced=True), ledger.missing(announced=False)) == (2, 3)


def test_what_the_book_missed_is_counted_by_itself() -> None:
    ledger = book()
    ledger.series["trades.BTC"].hear({"seq": 2})
    ledger.series[BOOK].hear(snapshot(3))
    assert (ledger.missing(announced=False), ledger.series[BOOK].missing(announced=False)) == (1, 3)
    assert (ledger.received, ledger.again) == (1, 0)


def test_what_the_limiter_held_back_is_counted() -> None:
    assert book(seen(RateLimited(wait=0.1), 1, 0.0)).paced == 1


# --------------------------------------------------------------------------- the audit

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
    trades: list[Any] = [{"seq": 1}, gap(3), {"seq": 5}]
    for item in trades:
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


def all_of(*steps: Callable[[Books], object]) -> Callable[[Books], None]:
    def spoil(books: Books) -> None:
        for step in steps:
            step(books)

    return spoil


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
    f"{BTC}: messages lost without notice: 2": all_of(
        lambda books: books.market.emitted.update({BTC: 2}),
        lambda books: books.ledger.end(books.market.emitted),
    ),
    f"{BTC}: messages received twice, or out of order: 1": lambda books: hear(books, {"seq": 5}),
    f"{BTC}: messages that the exchange never emitted: 1": lambda books: hear(books, {"seq": 6}),
    f"{BTC}: gaps that say another number than is missing: 1": spoil_series(miscounted=1),
    f"{BTC}: gaps that only the feed, or only the session, told of: 1": lambda books: books.ledger.gaps.update(
        {BTC: 1}
    ),
    f"{BTC}: messages that the exchange kept back on a healthy link: 2": all_of(
        lambda books: books.market.emitted.update({BTC: 3}),
        lambda books: books.ledger.gaps.update({BTC: 1}),
        lambda books: hear(books, gap(2, 2, 2), {"seq": 8}),
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

REFUSED = seen(RetryScheduled(delay=1.0, attempt=1, error=HandshakeRejected(503)), 1, 0.0)
SEEN: dict[Fault, tuple[Observation, ...]] = {
    Fault.DROP: (closed(1),),
    Fault.RESTART: (closed(1, code=1012),),
    Fault.MUTE: (seen(PeerSilent(clock="pong", silence=0.6), 1, 0.0), closed(1)),
    Fault.REFUSE: (closed(1), dialled(1), REFUSED, dialled(1, RETRY_AFTER)),
    Fault.RESET: (closed(1),),
}


def findings_of(fault: Fault, *events: Observation, heard: bool = True) -> list[str]:
    """Audit nothing but the outages of a run that saw `events`."""
    ledger = book(*events, strikes=(Strike(fault, 0.0),))
    if heard and ledger.outages:
        ledger.outages[0].price(BTC, 0)
    told = audit(ledger, Journal(), Market(random.Random(0)), [fault])
    return [finding for finding in told if finding.startswith(("the exchange", "no outage"))]


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_it_was_is_in_order(fault: Fault) -> None:
    assert findings_of(fault, *SEEN[fault], *ready(2, RETRY_AFTER)) == []


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_something_else_is_found(fault: Fault) -> None:
    other = Fault.MUTE if fault is not Fault.MUTE else Fault.DROP
    (finding,) = findings_of(fault, *SEEN[other], *ready(2))
    assert finding.startswith(f"the exchange {fault.value}, and the client saw ")


def test_a_redial_before_its_time_is_found() -> None:
    assert len(findings_of(Fault.REFUSE, *SEEN[Fault.REFUSE], *ready(2, RETRY_AFTER - 0.1))) == 1


def test_a_fault_that_was_not_seen_is_found() -> None:
    assert findings_of(Fault.MUTE) == ["no outage seen of this kind: went mute"]


def test_a_client_that_did_not_come_back_is_found() -> None:
    assert findings_of(Fault.DROP, closed(1)) == ["the exchange dropped, and not all channels have spoken since"]


# --------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("found", "interrupted", "status"), [([], False, 0), (["x"], False, 1), ([], True, 130), (["x"], True, 130)]
)
def test_the_exit_status_says_how_it_went(books: Books, found: list[str], interrupted: bool, status: int) -> None:
    report = Report(
        ledger=books.ledger, journal=books.journal, market=books.market, findings=found, interrupted=interrupted
    )
    assert report.exit_status == status
