"""The judge is judged: for each rule there is a journal, doctored by hand, that it finds at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from tests.sim import test_checks_of_readings
from trio_nova.testing import sim
from trio_nova.testing._frames import encode_frame
from trio_nova.testing.sim._scenario import CANARY, ELSEWHERE, ILLEGAL_NUMBER

SCENARIO = sim.Scenario(length=40.0, tracked=True, limit=200, budget=5, grant=20.0, clients=1)
FAULTS = (
    sim.Fault("reset", 9.0, args={"end": "both"}),
    sim.Fault("http status", 20.0, args={"status": 503, "retry_after": "3", "times": 1}),
)

Records = list[sim.Record]
Forgery = Callable[[Records], Records]

FORGERIES: dict[str, list[Forgery]] = {}


def forgery(rule: str) -> Callable[[Forgery], Forgery]:
    def register(forge: Forgery) -> Forgery:
        FORGERIES.setdefault(rule, []).append(forge)
        return forge

    return register


@pytest.fixture(scope="module")
def honest() -> sim.Run:
    return sim.run(3, scenario=SCENARIO, faults=FAULTS)


def judged(records: Records) -> set[str]:
    return {violation.rule for violation in sim.check(sim.History(records, SCENARIO))}


def first(records: Records, what: str, **fields: Any) -> int:
    """Return where the first record of a kind is that has these fields."""
    return next(
        index
        for index, record in enumerate(records)
        if record.what == what and all(record.get(name) == value for name, value in fields.items())
    )


def last(records: Records, what: str, **fields: Any) -> int:
    return len(records) - 1 - first(records[::-1], what, **fields)


def changed(record: sim.Record, at: float | None = None, **fields: Any) -> sim.Record:
    return attrs.evolve(record, at=record.at if at is None else at, fields={**record.fields, **fields})


def replaced(records: Records, index: int, *by: sim.Record) -> Records:
    return [*records[:index], *by, *records[index + 1 :]]


def with_record(records: Records, what: str, **fields: Any) -> Records:
    return [*records[:-1], sim.Record(records[-1].at, what, fields), records[-1]]


def a_frame(records: Records) -> int:
    """Return where a client writes a message of the workload's, whole, and nothing else."""
    return next(
        index
        for index, record in enumerate(records)
        if record.what == "net.write" and record["end"] == "client" and len(record["data"]) in range(20, 100)
    )


@forgery("S1")
def what_was_done_is_called_not_sent(records: Records) -> Records:
    index = first(records, "client.return", call="request", outcome="ok")
    return replaced(records, index, changed(records[index], outcome="NotSent"))


@forgery("S1")
def what_was_never_done_is_called_ok(records: Records) -> Records:
    index = first(records, "client.return", call="request", outcome="ok")
    return replaced(records, index, changed(records[index], op="op-999999"))


@forgery("S1")
def what_was_sent_on_a_perfect_network_is_lost(records: Records) -> Records:
    healed = records[first(records, "run.healed")].at
    sent = next(r for r in records if r.what == "client.return" and r["call"] == "send" and r.at > healed + 5.0)
    index = first(records, "server.asked", op=sent["op"])
    return replaced(records, index, changed(records[index], op="", done=False))


@forgery("S2")
def a_frame_is_not_masked(records: Records) -> Records:
    index = a_frame(records)
    return replaced(records, index, changed(records[index], data=encode_frame(1, b"{}")))


@forgery("S3")
def a_frame_is_written_twice(records: Records) -> Records:
    op = records[first(records, "client.return", call="request", outcome="ok")]["op"]
    history = sim.History(records, SCENARIO)
    ((link, sent),) = history.ops_written[op]
    index = next(
        index
        for index, record in enumerate(records)
        if record.what == "net.write" and record["end"] == "client" and record["link"] == link.number
        and record.at == sent.at
    )  # fmt: skip
    return replaced(records, index, records[index], records[index])


@forgery("S4")
def an_answer_goes_to_another_question(records: Records) -> Records:
    index = first(records, "client.return", call="request", outcome="ok")
    return replaced(records, index, changed(records[index], answers="op-999999"))


@forgery("D1")
def a_message_is_delivered_twice(records: Records) -> Records:
    index = first(records, "client.data")
    return replaced(records, index, records[index], records[index])


@forgery("D2")
def a_message_is_left_out(records: Records) -> Records:
    index = first(records, "client.data", number=records[first(records, "client.data")]["number"] + 1)
    return replaced(records, index)


@forgery("D3")
def two_messages_change_places(records: Records) -> Records:
    one = records[first(records, "client.data")]
    fields = {"feed": one["feed"], "number": one["number"] + 1}
    index = first(records, "client.data", **fields)
    two = records[index]
    return replaced(replaced(records, index, changed(one)), first(records, "client.data"), changed(two))


@forgery("D4")
def an_illegal_frame_is_delivered(records: Records) -> Records:
    index = first(records, "client.data")
    return replaced(records, index, changed(records[index], number=ILLEGAL_NUMBER))


@forgery("D4")
def what_stands_behind_an_illegal_frame_is_received(records: Records) -> Records:
    about = {"client": 1, "session": 1, "number": ILLEGAL_NUMBER}
    return with_record(records, "client.unclaimed", **about)


@forgery("D4")
def the_link_of_an_illegal_frame_is_kept(records: Records) -> Records:
    index = first(records, "net.open")
    illegal = sim.Record(
        records[index].at, "server.illegal", {"link": records[index]["link"], "how": "x", "code": 1002, "end": 1}
    )
    return replaced(records, index, records[index], illegal)


@forgery("D5")
def the_last_messages_are_missing(records: Records) -> Records:
    rest = records[first(records, "client.rest")].at
    return [record for record in records if record.what != "client.data" or record.at < rest - 15.0]


@forgery("U1")
def the_service_grants_nothing(records: Records) -> Records:
    index = first(records, "client.rest")
    return replaced(records, index, changed(records[index], granted={}))


@forgery("U2")
def a_channel_is_asked_for_twice(records: Records) -> Records:
    index = first(records, "server.asked", verb="subscribe")
    auth = next(i for i, r in enumerate(records) if r.what == "server.asked" and r["verb"] not in ("auth", "subscribe"))
    return replaced(records, auth, changed(records[auth], **records[index].fields))


@forgery("U2")
def a_channel_is_asked_for_before_authentication(records: Records) -> Records:
    index = first(records, "server.asked", verb="auth")
    return replaced(records, index, changed(records[index], verb="subscribe", channels=["ticks.0"]))


@forgery("U2")
def a_channel_is_asked_for_before_the_authentication_is_confirmed(records: Records) -> Records:
    index = next(i for i, r in enumerate(records) if r.what == "net.write" and b"auth_success" in r["data"])
    data = records[index]["data"].replace(b"auth_success", b"auth_delayed")
    return replaced(records, index, changed(records[index], data=data))


@forgery("U3")
def a_channel_that_nobody_wants_is_asked_for(records: Records) -> Records:
    index = first(records, "server.asked", verb="subscribe")
    return replaced(records, index, changed(records[index], channels=["nobody.wants"]))


@forgery("U4")
def a_block_is_entered_before_the_service_is_asked(records: Records) -> Records:
    return replaced(records, first(records, "server.asked", verb="subscribe"))


@forgery("R1")
def a_hundred_frames_are_sent_at_once(records: Records) -> Records:
    index = a_frame(records)
    return replaced(records, index, *[records[index]] * 250)


@forgery("R2")
def a_dial_comes_before_its_time(records: Records) -> Records:
    index = first(records, "client.event", event="RetryScheduled")
    dial = first(records, "net.dial")
    early = changed(records[dial], at=records[index].at + 0.001, dial=999)
    return replaced(records, index, records[index], early)


@forgery("R2")
def what_the_service_asks_for_is_not_heeded(records: Records) -> Records:
    index = first(records, "server.refused")
    return replaced(records, index, changed(records[index], retry_after="60"))


@forgery("R2")
def there_are_dials_without_end(records: Records) -> Records:
    index = first(records, "net.dial")
    return replaced(records, index, *[records[index]] * 60)


@forgery("R2")
def there_are_more_dials_than_agreed(records: Records) -> Records:
    index = first(records, "client.event", event="DialStarted")
    return replaced(records, index, *[records[index]] * 6)


@forgery("R2")
def retries_leave_no_reserve(records: Records) -> Records:
    index = first(records, "client.event", event="DialStarted")
    return replaced(records, index, *[changed(records[index], attempt=3)] * 3)


@forgery("R4")
def all_waits_are_equal(records: Records) -> Records:
    index = first(records, "client.event", event="RetryScheduled")
    return replaced(records, index, *[records[index]] * 3)


@forgery("R5")
def a_back_off_starts_over_at_once(records: Records) -> Records:
    index = first(records, "client.event", event="RetryScheduled")
    return replaced(records, index, changed(records[index], attempt=5), records[index])


@forgery("R3")
def heartbeats_stop(records: Records) -> Records:
    rest = records[first(records, "client.rest")].at
    return [
        record
        for record in records
        if not (record.what == "net.write" and record["end"] == "client" and rest - 25.0 < record.at < rest)
    ]


@forgery("R3")
def an_authentication_waits_behind_others(records: Records) -> Records:
    index = last(records, "client.event", event="AuthStarted", refresh=True)
    return replaced(records, index, changed(records[index], at=records[index].at - 1.1))


@forgery("L1")
def a_silent_peer_is_kept(records: Records) -> Records:
    return [record for record in records if not (record.what == "net.read" and 45.0 < record.at < 90.0)]


@forgery("L1")
def a_stuck_write_is_waited_for(records: Records) -> Records:
    index = first(records, "net.write", end="client")
    return replaced(records, index, changed(records[index], since=records[index].at - 15.0))


@forgery("L2")
def the_session_is_ready_late(records: Records) -> Records:
    index = last(records, "client.event", event="StateChanged", new="ready")
    healed = records[first(records, "run.healed")].at
    return replaced(records, index, changed(records[index], at=healed + 80.0))


@forgery("L2")
def the_session_is_not_ready_in_the_end(records: Records) -> Records:
    index = first(records, "client.rest")
    return replaced(records, index, changed(records[index], state="reconnecting"))


@forgery("L3")
def a_cancelled_call_returns_late(records: Records) -> Records:
    index = next(
        index for index, record in enumerate(records) if record.what == "client.return" and record["outcome"] == "ok"
    )
    invoked = first(records, "client.invoke", op=records[index]["op"])
    records = replaced(records, invoked, changed(records[invoked], until=records[index].at - 1.0))
    return replaced(records, index, changed(records[index], outcome="cancelled"))


@forgery("L3")
def leaving_takes_long(records: Records) -> Records:
    index = first(records, "client.left")
    return replaced(records, index, changed(records[index], at=records[index].at + 10.0))


@forgery("L4")
def the_run_is_stuck(records: Records) -> Records:
    return with_record(records, "run.stuck")


@forgery("L4")
def time_stands_still(records: Records) -> Records:
    return with_record(records, "run.spins", steps=1, task="nova[1]:x")


@forgery("L4")
def a_question_outlives_its_link(records: Records) -> Records:
    return replaced(records, first(records, "client.return", call="request", outcome="ok"))


@forgery("L4")
def a_send_is_never_settled(records: Records) -> Records:
    rest = records[first(records, "client.rest")].at
    index = next(
        index
        for index, record in enumerate(records)
        if record.what == "client.return" and record["call"] == "send" and record.at < rest - 40.0
    )
    return replaced(records, index)


@forgery("M1")
def a_queue_is_full_in_the_end(records: Records) -> Records:
    index = first(records, "client.rest")
    return replaced(records, index, changed(records[index], outbox=1000))


@forgery("M1")
def more_waits_to_be_sent_than_was_asked_for(records: Records) -> Records:
    index = first(records, "client.peaks")
    return replaced(records, index, changed(records[index], outbox=2000))


@forgery("M1")
def more_waits_to_be_received_than_may(records: Records) -> Records:
    return with_record(records, "client.waiting", client=1, session=1, inbox=0, feeds=1000, ahead=0)


@forgery("M3")
def tasks_run_without_need(records: Records) -> Records:
    index = first(records, "run.steps")
    return replaced(records, index, changed(records[index], session=1_000_000))


@forgery("M2")
def a_link_is_left_open(records: Records) -> Records:
    index = first(records, "run.end")
    return replaced(records, index, changed(records[index], links=[1]))


@forgery("M2")
def a_task_is_left(records: Records) -> Records:
    index = first(records, "run.end")
    return replaced(records, index, changed(records[index], tasks=["nova[1]:reader#1"]))


@forgery("E1")
def a_foreign_exception_leaves(records: Records) -> Records:
    index = first(records, "client.return", call="request", outcome="ok")
    return replaced(records, index, changed(records[index], outcome="BrokenResourceError"))


@forgery("E1")
def something_leaves_the_clients(records: Records) -> Records:
    return with_record(records, "run.crashed", error="ValueError")


@forgery("E2")
def a_session_ends_of_a_lost_link(records: Records) -> Records:
    index = first(records, "client.left")
    return replaced(records, index, changed(records[index], error=["LinkLost"]))


@forgery("E2")
def a_session_ends_of_something_else_than_its_fault(records: Records) -> Records:
    index, begun = first(records, "client.left"), first(records, "fault.begin")
    records = replaced(records, begun, changed(records[begun], ends_with=["TlsFailed"]))
    return replaced(records, index, changed(records[index], error=["HandshakeRejected"]))


@forgery("E3")
def a_state_is_skipped(records: Records) -> Records:
    index = first(records, "client.event", event="StateChanged", new="connecting")
    return replaced(records, index, changed(records[index], new="ready"))


@forgery("E3")
def a_change_of_state_is_not_told(records: Records) -> Records:
    return replaced(records, first(records, "client.event", event="StateChanged", new="connecting"))


@forgery("E3")
def two_links_live_at_once(records: Records) -> Records:
    index = first(records, "client.event", event="LinkClosed")
    return replaced(records, index)


@forgery("E3")
def a_session_ends_twice(records: Records) -> Records:
    index = first(records, "client.ended")
    return replaced(records, index, records[index], records[index])


@forgery("E3")
def a_session_does_not_tell_of_its_end(records: Records) -> Records:
    return replaced(records, first(records, "client.ended"))


@forgery("X1")
def a_secret_is_in_an_event(records: Records) -> Records:
    index = first(records, "client.event", event="LinkClosed")
    return replaced(records, index, changed(records[index], reason=f"bad token {CANARY}"))


@forgery("X2")
def a_secret_goes_elsewhere(records: Records) -> Records:
    index = first(records, "net.open")
    return replaced(records, index, changed(records[index], host=ELSEWHERE))


@forgery("X3")
def every_mask_is_the_same(records: Records) -> Records:
    index = a_frame(records)
    return replaced(records, index, *[records[index]] * 200)


@forgery("X5")
def a_peers_text_is_logged_as_it_is(records: Records) -> Records:
    index = first(records, "client.event", event="LinkClosed")
    return replaced(records, index, changed(records[index], reason="go\naway"))


@forgery("X5")
def a_peers_text_is_logged_whole(records: Records) -> Records:
    index = first(records, "client.event", event="LinkClosed")
    return replaced(records, index, changed(records[index], reason="go away" * 200))


@forgery("X6")
def a_service_makes_a_session_wait_for_an_hour(records: Records) -> Records:
    index = first(records, "client.event", event="RetryScheduled")
    return replaced(records, index, changed(records[index], delay=3600.0))


@forgery("X6")
def a_service_silences_a_session_for_an_hour(records: Records) -> Records:
    index = first(records, "client.event", event="RetryScheduled")
    return replaced(records, index, changed(records[index], event="RateLimitSlowed", until=3600.0 + records[index].at))


@forgery("X6")
def a_redirect_is_remembered(records: Records) -> Records:
    index = first(records, "net.write", end="client", link=2)
    request = records[index]["data"].replace(b"/stream", b"/detour")
    return replaced(records, index, changed(records[index], data=request))


@forgery("X7")
def a_rule_of_the_service_is_broken(records: Records) -> Records:
    return with_record(records, "server.breach", text="a batch of 101 channels")


@forgery("X7")
def an_authentication_is_used_after_its_end(records: Records) -> Records:
    index = first(records, "client.event", event="Authenticated")
    failed = changed(records[index], at=records[index].at + 0.001, event="AuthUnsuccessful")
    return replaced(records, index, changed(records[index], expires_in=0.001), failed)


def test_an_honest_journal_is_found_so(honest: sim.Run) -> None:
    assert not honest.violations, honest
    assert {"server.refused", "client.rest"} <= {record.what for record in honest.journal.records}


def test_every_rule_has_a_forgery() -> None:
    assert {*FORGERIES, *test_checks_of_readings.FORGERIES} == set(sim.CHECKS)


@pytest.mark.parametrize(
    ("rule", "forge"),
    [
        pytest.param(rule, forge, id=f"{rule}-{forge.__name__}")
        for rule, forges in FORGERIES.items()
        for forge in forges
    ],
)
def test_a_forged_journal_is_found_out(honest: sim.Run, rule: str, forge: Forgery) -> None:
    assert rule in judged(forge(list(honest.journal.records)))


def test_a_journal_is_judged_from_its_lines_too(honest: sim.Run) -> None:
    records = sim.read_journal(honest.journal.lines())
    assert judged(records) == set()
    assert "D1" in judged(a_message_is_delivered_twice(records))
