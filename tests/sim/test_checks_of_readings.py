"""As `test_checks`, for the rules that only the broker and the exchange can show."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import attrs
import pytest

from trio_nova.testing import sim

Records = list[sim.Record]
Forgery = Callable[[Records], Records]

BROKER = sim.Scenario(server="broker", length=40.0, interval=0.5)
EXCHANGE = sim.Scenario(server="exchange", length=60.0, interval=0.5, channels=3)
PLAYS = {
    "broker": (
        BROKER,
        (
            sim.Fault("refused for now", 9.0, args={"count": 4}),
            sim.Fault("streams ended", 25.0, args={"drop": False}),
            sim.Fault("reset", 35.0, args={"end": "both"}),
        ),
    ),
    "exchange": (
        EXCHANGE,
        (
            sim.Fault("refused", 12.0, 8.0, args={"drop": True}),
            sim.Fault("too fast", 35.0, args={"retry_after": 2.0}),
            sim.Fault("go away", 45.0, args={"to": "/moved", "within": None}),
        ),
    ),
}
FORGERIES: dict[str, tuple[str, Forgery]] = {}
"""By rule: the kind of service, and what is done to its journal."""


def forgery(rule: str, kind: str) -> Callable[[Forgery], Forgery]:
    def register(forge: Forgery) -> Forgery:
        FORGERIES[rule] = kind, forge
        return forge

    return register


@cache
def honest(kind: str) -> sim.Run:
    scenario, faults = PLAYS[kind]
    return sim.run(3, scenario=scenario, faults=faults)


def changed(record: sim.Record, **fields: object) -> sim.Record:
    return attrs.evolve(record, fields={**record.fields, **fields})


def without(records: Records, *gone: sim.Record) -> Records:
    return [record for record in records if not any(record is each for each in gone)]


def all_of(records: Records, what: str) -> Records:
    return [record for record in records if record.what == what]


@forgery("A1", "broker")
def what_was_acknowledged_was_not_processed(records: Records) -> Records:
    return without(records, all_of(records, "client.acked")[0])


@forgery("A2", "broker")
def a_message_is_never_acknowledged(records: Records) -> Records:
    rest = all_of(records, "client.rest")[0]
    said = next(record for record in all_of(records, "server.data")[::-1] if record.at < rest.at - 20.0)
    (link,) = rest["granted"]
    unacked = [[feed["channel"], said["number"]] for feed in all_of(records, "client.subscribed")]
    told = [changed(said, channel=channel) for channel, _ in unacked]
    index = records.index(rest)
    return [*records[:index], *told, changed(rest, unacked={link: unacked}), *records[index + 1 :]]


@forgery("U5", "broker")
def an_end_swallows_what_came_before(records: Records) -> Records:
    completed = all_of(records, "client.completed")[0]
    data = [each for each in all_of(records, "client.data") if each["feed"] == completed["feed"]]
    return without(records, data[-1])


@forgery("U6", "broker")
def a_service_is_asked_again_before_it_wants_that(records: Records) -> Records:
    return [changed(each, retry_after=20.0) if each.what == "server.busy" else each for each in records]


@forgery("F1", "broker")
def a_farewell_is_said_though_nobody_leaves(records: Records) -> Records:
    return without(records, *all_of(records, "client.leave"))


@forgery("P1", "broker")
def a_session_goes_on_from_somewhere_else(records: Records) -> Records:
    resumed = all_of(records, "server.resume")[-1]
    return [changed(each, channel="another") if each is resumed else each for each in records]


@forgery("G1", "exchange")
def a_link_is_not_left(records: Records) -> Records:
    return without(records, *(each for each in all_of(records, "net.close") if each["end"] == "client"))


@forgery("R6", "exchange")
def a_service_had_wanted_silence_for_longer(records: Records) -> Records:
    return [
        changed(each, data=each["data"].replace(b'"retry_after":2.0', b'"retry_after":9.0'))
        if each.what == "net.write"
        else each
        for each in records
    ]


@forgery("K1", "exchange")
def a_message_is_read_twice(records: Records) -> Records:
    misread = sim.Record(records[-1].at, "client.misread", {"client": 1, "session": 1, "number": 2, "expected": 3})
    return [*records[:-1], misread, records[-1]]


@forgery("B1", "exchange")
def a_book_is_not_the_services(records: Records) -> Records:
    data = next(each for each in all_of(records, "client.data") if "book" in each.fields)
    return [changed(each, book="1:1") if each is data else each for each in records]


@forgery("B2", "exchange")
def what_the_store_has_brought_is_not_delivered(records: Records) -> Records:
    page = next(each for each in all_of(records, "client.page") if each["numbers"])
    return without(
        records,
        *(
            each
            for each in all_of(records, "client.data")
            if each["channel"] == page["channel"] and each["number"] == page["numbers"][0]
        ),
    )


@forgery("B3", "exchange")
def the_second_page_is_not_asked_for(records: Records) -> Records:
    first = next(each for each in all_of(records, "client.page") if each["more"] is not None)
    later = [each for each in all_of(records, "client.page") if each.at > first.at]
    # Long before anything else happens: what is told of the restore would excuse it.
    return [
        attrs.evolve(each, at=each.at + 7.0) if each.what == "client.event" and each.at >= first.at else each
        for each in without(records, *later)
    ]


@pytest.mark.parametrize("kind", PLAYS)
def test_an_honest_journal_is_found_so(kind: str) -> None:
    assert not honest(kind).violations, honest(kind)


@pytest.mark.parametrize("rule", FORGERIES)
def test_a_forged_journal_is_found_out(rule: str) -> None:
    kind, forge = FORGERIES[rule]
    history = sim.History(forge(list(honest(kind).journal.records)), PLAYS[kind][0])
    assert sim.check(history, [rule])
