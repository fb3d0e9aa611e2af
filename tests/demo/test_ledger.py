"""The books of the demonstration, and what an audit finds in them."""

from __future__ import annotations

from collections import Counter

import pytest

from trio_nova.demo.exchange import RETRY_AFTER, Fault, Strike
from trio_nova.demo.ledger import Gap, Ledger, Outcome, Report, Ticks, audit
from trio_nova.demo.wire import Ack, Heartbeat, Order, Tick
from trio_nova.errors import Expired, HandshakeRejected, NotSent, OutcomeUnknown, SessionOver
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


def received(message: object, epoch: int = 1, at: float = 0.0) -> Event:
    return MessageEvent(at=at, epoch=epoch, direction="received", kind="text", size=1, message=message)


def closed(epoch: int, at: float = 0.0, code: int = 1006) -> Event:
    return LinkClosed(at=at, epoch=epoch, code=code, reason="", remote=None, duration=1.0)


def dialled(epoch: int, at: float = 0.0) -> Event:
    return DialStarted(at=at, epoch=epoch, url="ws://127.0.0.1/", attempt=1)


def ready(epoch: int, at: float = 0.0) -> tuple[Event, Event]:
    return LinkOpened(at=at, epoch=epoch, connect_time=0.0), BecameReady(at=at, epoch=epoch)


def refused(epoch: int, status: int, at: float = 0.0) -> Event:
    return RetryScheduled(at=at, epoch=epoch, delay=1.0, attempt=1, error=HandshakeRejected(status))


def order(number: int) -> Order:
    return Order(number, 100.0, 1)


def book(*events: Event, strikes: tuple[Strike, ...] = ()) -> Ledger:
    """Open books, and write the events down."""
    ledger = Ledger(strikes)
    for event in events:
        ledger.hear(event)
    return ledger


def findings(ledger: Ledger, emitted: int, *executed: int, delivered: int | None = None) -> list[str]:
    """Audit with nothing but the messages in view."""
    count = ledger.ticks.received if delivered is None else delivered
    ledger.end(emitted)
    return audit(ledger, emitted=emitted, delivered=count, executed=Counter(executed), faults=())


# --------------------------------------------------------------------------- ticks


def test_ticks_without_a_hole_are_in_order() -> None:
    ledger = book(*(received(Tick(seq, 1.0)) for seq in (1, 2, 3)))
    assert findings(ledger, 3) == []
    assert (ledger.ticks.received, ledger.ticks.gaps) == (3, [])


def test_a_hole_across_the_announced_loss_of_a_link_is_forgiven_and_counted() -> None:
    ledger = book(received(Tick(1, 1.0)), closed(1), *ready(2), received(Tick(5, 1.0), 2))
    assert ledger.ticks.gaps == [Gap(2, 4, announced=True)]
    assert ledger.ticks.lost(announced=True) == 3
    assert findings(ledger, 5) == []


def test_a_hole_within_one_link_is_a_loss_without_notice() -> None:
    ledger = book(received(Tick(1, 1.0)), received(Tick(3, 1.0)))
    assert findings(ledger, 3) == ["ticks lost without notice: 1"]


def test_a_hole_within_one_link_is_not_excused_by_an_earlier_outage() -> None:
    ledger = book(received(Tick(1, 1.0)), closed(1), *ready(2), received(Tick(2, 1.0), 2), received(Tick(4, 1.0), 2))
    assert findings(ledger, 4) == ["ticks lost without notice: 1"]


def test_a_hole_across_links_of_which_no_event_told_is_a_loss_without_notice() -> None:
    ledger = book(received(Tick(1, 1.0)), *ready(2), received(Tick(3, 1.0), 2), closed(1))
    assert findings(ledger, 3) == ["ticks lost without notice: 1"]


def test_a_hole_across_two_outages_is_forgiven() -> None:
    ledger = book(received(Tick(1, 1.0)), closed(1), *ready(2), closed(2), *ready(3), received(Tick(9, 1.0), 3))
    assert findings(ledger, 9) == []
    assert [outage.lost for outage in ledger.outages] == [0, 7]


def test_a_missing_first_tick_is_a_loss_without_notice() -> None:
    assert findings(book(received(Tick(2, 1.0))), 2) == ["ticks lost without notice: 1"]


def test_a_tick_that_comes_twice_is_found() -> None:
    ledger = book(*(received(Tick(seq, 1.0)) for seq in (1, 2, 2)))
    assert findings(ledger, 2) == ["ticks received twice, or out of order: 1"]


def test_a_missing_last_tick_is_excused_only_by_an_outage() -> None:
    assert findings(book(received(Tick(1, 1.0))), 3) == ["ticks lost without notice: 2"]
    down = book(received(Tick(1, 1.0)), closed(1))
    assert findings(down, 3) == []
    assert down.outages[0].lost == 2


def test_our_own_goodbye_excuses_nothing_and_is_no_outage() -> None:
    ledger = book(received(Tick(1, 1.0)))
    ledger.closing = True
    ledger.hear(closed(1, code=1000))
    assert ledger.outages == []
    assert findings(ledger, 2) == ["ticks lost without notice: 1"]


def test_a_tick_that_nobody_emitted_is_found() -> None:
    assert findings(book(received(Tick(1, 1.0)), received(Tick(2, 1.0))), 1) == [
        "ticks that the exchange never emitted: 1"
    ]


def test_a_tick_that_never_reached_the_application_is_found() -> None:
    ledger = book(received(Tick(1, 1.0)), received(Heartbeat(1)), received(Tick(2, 1.0)))
    assert findings(ledger, 2, delivered=1) == ["ticks heard of, but not received by the application: 1"]


def test_a_gap_has_a_size() -> None:
    ticks = Ticks()
    assert ticks.tick(1, 1) is None
    gap = ticks.tick(4, 1)
    assert gap is not None
    assert gap.size == 2


# --------------------------------------------------------------------------- orders


def test_an_order_is_open_until_it_is_acknowledged() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    assert (ledger.orders.open, ledger.orders.unsent) == (1, 1)
    ledger.orders.sent(1, 1)
    assert (ledger.orders.open, ledger.orders.unsent) == (1, 0)
    ledger.hear(received(Ack(order(1))))
    assert (ledger.orders.open, ledger.orders.placed) == (0, 1)
    assert ledger.orders.outcomes == {1: Outcome.ACKNOWLEDGED}
    assert findings(ledger, 0, 1) == []


def test_an_order_without_an_outcome_is_found() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    assert findings(ledger, 0) == ["orders without an outcome: 1"]


def test_an_order_that_was_sent_but_not_acknowledged_before_its_link_was_lost_is_in_doubt() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.orders.sent(1, 1)
    ledger.hear(closed(1))
    assert ledger.orders.outcomes == {1: Outcome.UNKNOWN}
    assert ledger.orders.unknown_on(1) == 1
    assert findings(ledger, 0, 1) == []


def test_an_order_whose_sender_wakes_only_after_the_loss_is_in_doubt() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(closed(1))
    ledger.orders.sent(1, 1)
    assert ledger.orders.outcomes == {1: Outcome.UNKNOWN}
    assert (ledger.orders.open, ledger.orders.unsent) == (0, 0)


def test_an_order_that_waits_for_a_link_survives_the_loss_of_one() -> None:
    ledger = book(closed(1))
    ledger.place(order(1), waits=True)
    assert (ledger.orders.waited, ledger.outages[0].waited) == (1, 1)
    ledger.hear(closed(2))
    assert ledger.orders.unsent == 1
    ledger.orders.sent(1, 3)
    ledger.hear(received(Ack(order(1)), 3))
    assert ledger.orders.count(Outcome.ACKNOWLEDGED) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotSent(), Outcome.NOT_SENT),
        (SessionOver(), Outcome.NOT_SENT),
        (Expired(), Outcome.EXPIRED),
        (OutcomeUnknown(), Outcome.UNKNOWN),
    ],
)
def test_an_error_of_send_is_an_outcome(error: NotSent, outcome: Outcome) -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.orders.failed(1, 1, error)
    assert ledger.orders.outcomes == {1: outcome}


def test_an_acknowledgement_ends_a_doubt() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.orders.failed(1, 1, OutcomeUnknown())
    ledger.hear(received(Ack(order(1))))
    assert ledger.orders.outcomes == {1: Outcome.ACKNOWLEDGED}
    assert ledger.orders.unknown_on(1) == 0


def test_an_acknowledgement_may_be_faster_than_the_sender() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(received(Ack(order(1))))
    ledger.orders.sent(1, 1)
    ledger.orders.failed(1, 1, OutcomeUnknown())
    assert ledger.orders.outcomes == {1: Outcome.ACKNOWLEDGED}
    assert ledger.orders.open == 0


def test_an_order_executed_twice_is_found() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(received(Ack(order(1))))
    assert findings(ledger, 0, 1, 1) == ["orders executed twice: 1"]


def test_a_second_acknowledgement_is_found() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(received(Ack(order(1))))
    ledger.hear(received(Ack(order(1))))
    assert findings(ledger, 0, 1) == ["acknowledgements of no open order: 1"]


def test_an_acknowledgement_of_something_else_is_found() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(received(Ack(Order(1, 999.0, 1))))
    assert findings(ledger, 0, 1) == ["orders acknowledged as something else than was sent: 1"]


def test_an_acknowledged_order_that_never_came_is_found() -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.hear(received(Ack(order(1))))
    assert findings(ledger, 0) == ["orders acknowledged, but never executed: 1"]


@pytest.mark.parametrize("error", [NotSent(), Expired()])
def test_an_order_said_to_be_not_sent_that_came_is_found(error: NotSent | Expired) -> None:
    ledger = book()
    ledger.place(order(1), waits=False)
    ledger.orders.failed(1, 1, error)
    assert findings(ledger, 0, 1) == [f"orders executed, although {ledger.orders.outcomes[1].value}: 1"]


# --------------------------------------------------------------------------- outages


def test_an_outage_is_over_and_priced_with_the_first_tick_after_it() -> None:
    strike = Strike(Fault.DROP, 10.0)
    ledger = book(received(Tick(1, 1.0)), closed(1, 10.5), dialled(1, 11.0), strikes=(strike,))
    outage = ledger.outage
    assert outage is not None
    assert (outage.began, outage.noticed, outage.strike, outage.back) == (10.0, 10.5, strike, None)
    for event in (*ready(2, 12.0), received(Heartbeat(4), 2)):
        ledger.hear(event)
    assert (outage.back, outage.over) == (12.0, False)
    ledger.hear(received(Tick(5, 1.0), 2))
    assert (outage.over, outage.lost, outage.dials) == (True, 3, 1)
    assert ledger.outage is None
    assert (ledger.dials, ledger.links) == (1, 1)


def test_an_outage_that_the_exchange_did_not_cause_has_no_strike() -> None:
    ledger = book(closed(1, 5.0))
    assert ledger.outages[0].strike is None
    assert ledger.outages[0].began == 5.0


def test_silence_and_a_refusal_are_told_of_the_outage_they_belong_to() -> None:
    ledger = book(
        PeerSilent(at=1.0, epoch=1, clock="pong", silence=0.61),
        closed(1),
        *ready(2),
        received(Tick(1, 1.0), 2),
        closed(2),
        refused(2, 503),
    )
    assert [outage.sight for outage in ledger.outages] == ["silent 0.61 s", "1006, then 503"]


SEEN: dict[Fault, tuple[Event, ...]] = {
    Fault.DROP: (closed(1),),
    Fault.RESTART: (closed(1, code=1012),),
    Fault.MUTE: (PeerSilent(at=0.0, epoch=1, clock="pong", silence=0.6), closed(1)),
    Fault.REFUSE: (closed(1), dialled(1), refused(1, 503), dialled(1, RETRY_AFTER)),
    Fault.RESET: (closed(1),),
}


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_it_was_is_in_order(fault: Fault) -> None:
    events = (*SEEN[fault], *ready(2, RETRY_AFTER), received(Tick(1, 1.0), 2))
    ledger = book(*events, strikes=(Strike(fault, 0.0),))
    assert audit(ledger, emitted=1, delivered=1, executed=Counter(), faults=[fault]) == []


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_that_was_seen_as_something_else_is_found(fault: Fault) -> None:
    events = (*SEEN[Fault.MUTE if fault is not Fault.MUTE else Fault.DROP], *ready(2), received(Tick(1, 1.0), 2))
    ledger = book(*events, strikes=(Strike(fault, 0.0),))
    (finding,) = audit(ledger, emitted=1, delivered=1, executed=Counter(), faults=[fault])
    assert finding.startswith(f"the exchange {fault.value}, and the client saw ")


def test_a_redial_before_its_time_is_found() -> None:
    events = (*SEEN[Fault.REFUSE], *ready(2, RETRY_AFTER - 0.1), received(Tick(1, 1.0), 2))
    ledger = book(*events, strikes=(Strike(Fault.REFUSE, 0.0),))
    assert len(audit(ledger, emitted=1, delivered=1, executed=Counter(), faults=[Fault.REFUSE])) == 1


def test_a_fault_that_was_not_seen_is_found() -> None:
    assert audit(book(), emitted=0, delivered=0, executed=Counter(), faults=[Fault.MUTE]) == [
        "no outage seen of this kind: went mute"
    ]


def test_a_client_that_did_not_come_back_is_found() -> None:
    ledger = book(closed(1), strikes=(Strike(Fault.DROP, 0.0),))
    assert audit(ledger, emitted=0, delivered=0, executed=Counter(), faults=[Fault.DROP]) == [
        "the exchange dropped, and no tick has come since"
    ]


# --------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("found", "interrupted", "status"), [([], False, 0), (["x"], False, 1), ([], True, 130), (["x"], True, 130)]
)
def test_the_exit_status_says_how_it_went(found: list[str], interrupted: bool, status: int) -> None:
    report = Report(ledger=book(), emitted=0, executed=Counter(), findings=found, interrupted=interrupted)
    assert report.exit_status == status
