from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_nova.core.limits import TokenBucket
from trio_nova.core.outbox import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    Admit,
    Backlog,
    Buffer,
    Idle,
    Lane,
    Outbox,
    Outgoing,
    Status,
    WaitUntil,
    Write,
)
from trio_nova.errors import Expired, LinkLost, NotSent, NovaError, OutcomeUnknown
from trio_nova.messages import Allow, Decision, Queue, Reject

CONTROL, SETUP, APPLICATION = Lane

Outcomes = dict[Outgoing, list[NovaError | None]]
"""What was told of each message, in order; it must be one thing."""


def message(frame: str = "hi", lane: Lane = APPLICATION, **fields: Any) -> Outgoing:
    return Outgoing(frame=frame, lane=lane, **{"size": 2, "queued_at": 0.0, **fields})


def filled(*messages: Outgoing) -> Outbox:
    outbox = Outbox()
    for each in messages:
        outbox.put(each)
    return outbox


def watched(*messages: Outgoing) -> Outcomes:
    """Keep a record of what the messages' senders are told."""
    outcomes: Outcomes = {each: [] for each in messages}
    for each in messages:
        each.when_settled = lambda outgoing, error: outcomes[outgoing].append(error)
    return outcomes


def write_all(outbox: Outbox, now: float = 0.0, ready: bool = True, admit: Admit | None = None) -> list[object]:
    """Write until there is nothing more to write now; return the frames."""
    frames: list[object] = []
    while isinstance(step := outbox.next_step(now, ready, admit), Write):
        frames += [outgoing.frame for outgoing in step.batch]
        outbox.written()
    return frames


# --------------------------------------------------------------------------- order


def test_an_empty_outbox_is_idle() -> None:
    assert Outbox().next_step(0.0, ready=True) == Idle()
    assert Outbox().idle


def test_messages_of_one_priority_leave_in_the_order_they_came() -> None:
    assert write_all(filled(*map(message, "abc"))) == ["a", "b", "c"]


def test_a_lower_priority_number_leaves_first_and_keeps_its_own_order() -> None:
    outbox = filled(
        message("a", priority=1), message("b", priority=-1), message("c", priority=1), message("d", priority=-1)
    )
    assert write_all(outbox) == ["b", "d", "a", "c"]


def test_control_leaves_before_setup_and_setup_before_application_whatever_the_priorities() -> None:
    outbox = filled(message("app", priority=-9), message("setup", SETUP), message("control", CONTROL, priority=9))
    assert write_all(outbox) == ["control", "setup", "app"]


def test_application_messages_wait_until_the_link_is_ready() -> None:
    outbox = filled(message("app"), message("setup", SETUP), message("control", CONTROL))
    assert write_all(outbox, ready=False) == ["control", "setup"]
    assert outbox.next_step(0.0, ready=False) == Idle()
    assert (outbox.backlog.length, outbox.backlog.size, outbox.idle) == (1, 2, False)
    assert write_all(outbox) == ["app"]


def test_a_batch_is_bounded_in_frames() -> None:
    step = filled(*(message() for _ in range(MAX_BATCH_FRAMES + 1))).next_step(0.0, ready=True)
    assert isinstance(step, Write)
    assert len(step.batch) == MAX_BATCH_FRAMES


def test_a_batch_is_bounded_in_bytes_but_takes_one_message_of_any_size() -> None:
    outbox = filled(message("a", size=10 * MAX_BATCH_BYTES), message("b", size=MAX_BATCH_BYTES), message("c", size=1))
    sizes = []
    while isinstance(step := outbox.next_step(0.0, ready=True), Write):
        sizes.append([outgoing.frame for outgoing in step.batch])
        outbox.written()
    assert sizes == [["a"], ["b"], ["c"]]


# --------------------------------------------------------------------------- outcomes


def test_what_the_operating_system_has_taken_is_settled_well() -> None:
    sent = message()
    outcomes, outbox = watched(sent), filled(sent)
    outbox.next_step(0.0, ready=True)
    assert sent.status is Status.WRITING
    assert outcomes[sent] == []
    outbox.written()
    assert outcomes[sent] == [None]
    assert outbox.idle


def test_what_was_being_written_when_the_link_was_lost_has_an_unknown_outcome_and_is_not_repeated() -> None:
    sent = message()
    outcomes, outbox, lost = watched(sent), filled(sent), LinkLost(1006)
    outbox.next_step(0.0, ready=True)
    outbox.end(lost)
    [error] = outcomes[sent]
    assert isinstance(error, OutcomeUnknown)
    assert error.__cause__ is lost
    assert write_all(Outbox(outbox.backlog, epoch=2)) == []


def test_application_messages_survive_the_loss_of_a_link_and_what_belonged_to_it_does_not() -> None:
    app, setup, control = message("app"), message("setup", SETUP), message("control", CONTROL)
    outcomes, outbox, lost = watched(app, setup, control), filled(app, setup, control), LinkLost(1006)
    outbox.end(lost)
    assert outcomes[app] == []
    for each in (setup, control):
        [error] = outcomes[each]
        assert isinstance(error, NotSent)
        assert error.__cause__ is lost
    assert write_all(Outbox(outbox.backlog, epoch=2)) == ["app"]


def test_waiting_messages_can_be_refused() -> None:
    app, control = message("app"), message("control", CONTROL)
    outcomes, outbox = watched(app, control), filled(app, control)
    cause = LinkLost(1006)
    outbox.backlog.refuse("the session ended", cause)
    [error] = outcomes[app]
    assert isinstance(error, NotSent)
    assert (str(error), error.__cause__) == ("the session ended", cause)
    assert outcomes[control] == []


def test_a_message_that_waits_can_be_withdrawn_and_nobody_is_told() -> None:
    app = message()
    outcomes, outbox = watched(app), filled(app)
    assert app.withdraw()
    assert not app.withdraw()
    assert outcomes[app] == []
    assert outbox.idle
    assert write_all(outbox) == []


def test_a_message_that_is_being_written_cannot_be_withdrawn() -> None:
    app = message()
    outcomes, outbox = watched(app), filled(app)
    outbox.next_step(0.0, ready=True)
    assert not app.withdraw()
    outbox.written()
    assert not app.withdraw()
    assert outcomes[app] == []  # whoever wanted it back has left


def test_a_message_is_settled_once_and_its_sender_told_once() -> None:
    app = message()
    outcomes, outbox = watched(app), filled(app)
    app.settle()
    app.settle(NotSent("too late"))
    assert outcomes[app] == [None]
    assert outbox.idle


# --------------------------------------------------------------------------- links


def test_a_frame_that_has_left_in_part_goes_on_before_all_others() -> None:
    begun = message("begun")
    outcomes, outbox = watched(begun), filled(message("control", CONTROL))
    outbox.begin(begun)
    assert (begun.status, outbox.idle, begun.withdraw()) == (Status.WRITING, False, False)
    assert write_all(outbox) == ["begun", "control"]
    assert outcomes[begun] == []  # it was withdrawn: it left whole, and nobody is told


def test_two_links_have_one_backlog_and_write_no_message_twice() -> None:
    backlog = Backlog()
    old, new = Outbox(backlog, epoch=1), Outbox(backlog, epoch=2)
    old.put(message("bye", SETUP))
    new.put(message("hello", SETUP))
    app = message("app")
    outcomes = watched(app)
    backlog.put(app)
    assert write_all(new, ready=False) == ["hello"]
    assert write_all(old) == ["bye", "app"]
    assert (new.idle, outcomes[app]) == (True, [None])


def test_what_is_for_one_link_is_written_on_no_other() -> None:
    bound, free = message("bound", epoch=1), message("free")
    outcomes, outbox = watched(bound, free), Outbox(epoch=2)
    for each in (bound, free):
        outbox.put(each)
    assert write_all(outbox) == ["free"]
    [error] = outcomes[bound]
    assert isinstance(error, NotSent)
    assert "another link" in str(error)


def test_what_is_for_a_link_that_is_lost_is_refused_and_the_rest_waits_on() -> None:
    bound, other, free = message("bound", epoch=1), message("other", epoch=2), message("free")
    outcomes, outbox, lost = watched(bound, other, free), Outbox(epoch=2), LinkLost(1006)
    for each in (bound, other, free):
        outbox.put(each)
    outbox.backlog.refuse("it is gone", lost, epoch=1)
    [error] = outcomes[bound]
    assert isinstance(error, NotSent)
    assert error.__cause__ is lost
    assert write_all(outbox) == ["other", "free"]


def test_a_frame_is_made_once_for_the_link_that_writes_it() -> None:
    made: list[tuple[Any, Any]] = []

    def make(what: Any, link: Any) -> list[str]:
        made.append((what, link))
        return ["frame", "and its rest"]

    late = message("", size=0, message={"n": 1}, make=make)
    for link in ("first", "second"):
        late.prepare(link)
    assert made == [({"n": 1}, "first")]
    assert (late.frame, late.rest, late.size, late.message) == ("frame", ["and its rest"], 17, None)


# --------------------------------------------------------------------------- bounds and expiry


def test_a_buffer_refuses_a_message_too_many() -> None:
    backlog, bounds = filled(message(), message()).backlog, Buffer(max_items=3)
    backlog.put(message(), bounds)
    with pytest.raises(NotSent, match="3 messages of 6 bytes are waiting"):
        backlog.put(message(), bounds)
    assert backlog.length == 3


def test_a_buffer_refuses_bytes_too_many_but_takes_one_message_of_any_size() -> None:
    backlog, bounds = Backlog(), Buffer(max_bytes=10)
    backlog.put(message(size=11), bounds)
    with pytest.raises(NotSent):
        backlog.put(message(size=1), bounds)
    backlog.refuse("")
    backlog.put(message(size=9), bounds)
    backlog.put(message(size=1), bounds)
    assert backlog.size == 10


@pytest.mark.parametrize("bounds", [{"max_items": 0}, {"max_bytes": 0}, {"ttl": 0}, {"ttl": -1.0}])
def test_a_buffer_without_room_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Buffer(**bounds)


def test_a_message_that_waited_too_long_expires_and_is_not_written() -> None:
    early, late = message("early", expires_at=5.0), message("late", expires_at=7.0)
    outcomes, outbox = watched(early, late), filled(late, early)
    assert outbox.backlog.next_expiry() == 5.0
    outbox.backlog.expire(4.9)
    assert outcomes[early] == []
    assert write_all(outbox, now=5.0) == ["late"]
    [error] = outcomes[early]
    assert isinstance(error, Expired)
    assert "5 s" in str(error)


def test_the_writer_wakes_when_the_next_message_expires() -> None:
    outbox = filled(message(expires_at=5.0))
    assert outbox.next_step(0.0, ready=False) == WaitUntil(5.0)
    assert outbox.next_step(5.0, ready=False) == Idle()


def test_a_message_that_left_or_was_withdrawn_does_not_expire() -> None:
    sent, taken_back = message("sent", expires_at=5.0), message("back", expires_at=5.0)
    outcomes, outbox = watched(sent, taken_back), filled(sent, taken_back)
    taken_back.withdraw()
    write_all(outbox)
    outbox.backlog.expire(6.0)
    assert outcomes == {sent: [None], taken_back: []}
    assert outbox.backlog.next_expiry() == math.inf


def test_an_outage_gives_waiting_messages_an_end_but_never_a_later_one() -> None:
    never, soon = message("never"), message("soon", expires_at=3.0)
    backlog = filled(never, soon).backlog
    backlog.expire_by(5.0, now=0.0)
    backlog.expire_by(8.0, now=1.0)
    assert (never.expires_at, soon.expires_at) == (5.0, 3.0)
    backlog.expire(5.0)
    assert backlog.length == 0


def test_messages_that_were_withdrawn_are_let_go_of_though_an_older_one_waits() -> None:
    outbox = filled(message(expires_at=10.0))
    alive: weakref.WeakSet[Outgoing] = weakref.WeakSet()
    for _ in range(1000):
        outgoing = message(expires_at=20.0)
        alive.add(outgoing)
        outbox.put(outgoing)
        outgoing.withdraw()
    del outgoing
    gc.collect()
    assert len(alive) < 100


# --------------------------------------------------------------------------- the rate limiter


def test_what_the_limiter_holds_back_waits_until_then_and_nothing_overtakes_it() -> None:
    first, second = message("first"), message("second")
    outbox = filled(first, second)
    assert outbox.next_step(0.0, ready=True, admit=lambda outgoing: Queue(8.0)) == WaitUntil(8.0)
    assert (outbox.held_for(first, 8.0), outbox.held_for(second, 8.0)) == (8.0, 8.0)
    assert write_all(outbox, now=8.0, admit=lambda outgoing: Allow()) == ["first", "second"]


def test_the_writer_wakes_for_an_expiry_before_the_limiter_lets_go() -> None:
    outbox = filled(message(expires_at=3.0))
    assert outbox.next_step(0.0, ready=True, admit=lambda outgoing: Queue(8.0)) == WaitUntil(3.0)


def test_what_was_admitted_is_written_though_the_next_one_must_wait() -> None:
    outbox = filled(message("a"), message("b"))
    step = outbox.next_step(0.0, ready=True, admit=lambda outgoing: Allow() if outgoing.frame == "a" else Queue(8.0))
    assert isinstance(step, Write)
    assert [outgoing.frame for outgoing in step.batch] == ["a"]


def test_what_the_limiter_rejects_was_not_sent_and_the_rest_goes_on() -> None:
    bad, good = message("bad"), message("good")
    outcomes, outbox = watched(bad, good), filled(bad, good)
    assert write_all(outbox, admit=lambda each: Reject("too dear") if each is bad else Allow()) == ["good"]
    [error] = outcomes[bad]
    assert isinstance(error, NotSent)
    assert "too dear" in str(error)
    assert outcomes[good] == [None]


def test_the_limiter_is_not_asked_about_what_may_not_go_yet() -> None:
    asked: list[Outgoing] = []

    def admit(outgoing: Outgoing) -> Decision:
        asked.append(outgoing)
        return Allow()

    setup = message("setup", SETUP)
    filled(message("app"), setup).next_step(0.0, ready=False, admit=admit)
    assert asked == [setup]


def test_a_dear_setup_message_is_not_starved_by_a_stream_of_cheap_application_messages() -> None:
    bucket, cost = TokenBucket(capacity=5.0, rate=1.0), {SETUP: 5.0, APPLICATION: 1.0}
    bucket.spend(0.0, 5.0)
    outbox, now = filled(message("subscribe", SETUP)), 0.0

    def admit(outgoing: Outgoing) -> Decision:
        when = bucket.admits_at(now, cost[outgoing.lane])
        if when > now:
            return Queue(when)
        bucket.spend(now, cost[outgoing.lane])
        return Allow()

    sent: list[object] = []
    for second in range(1, 11):
        now = float(second)
        outbox.put(message("tick"))
        sent += write_all(outbox, now, admit=admit)
    assert sent[0] == "subscribe"
    assert sent[1:] == ["tick"] * 5


def test_what_waited_for_the_limiter_waited_since_it_came_or_since_the_limiter_held_it() -> None:
    old, held, late = message("old", queued_at=0.0), message("held", queued_at=1.0), message("late", queued_at=6.0)
    outbox = filled(old, held)
    assert outbox.next_step(5.0, ready=True, admit=lambda outgoing: Queue(8.0)) == WaitUntil(8.0)
    outbox.put(late)
    assert [outbox.held_for(each, 8.0) for each in (old, held, late)] == [3.0, 3.0, 2.0]
    assert write_all(outbox, now=8.0, admit=lambda outgoing: Allow()) == ["old", "held", "late"]
    assert outbox.held_for(message("next", queued_at=8.0), 9.0) == 0.0


def test_the_loss_of_the_last_link_ends_the_wait_for_the_limiter() -> None:
    first = message("first")
    outbox = filled(first)
    outbox.next_step(0.0, ready=True, admit=lambda outgoing: Queue(8.0))
    outbox.end(None)
    outbox.backlog.go()  # unless another link is up, which may hold it back
    assert Outbox(outbox.backlog, epoch=2).held_for(first, 8.0) == 0.0
    assert outbox.backlog.shed(0, "too many") == 0


def test_a_link_that_is_not_ready_yet_does_not_end_the_wait_on_the_one_that_is() -> None:
    first = message("first")
    old = filled(first)
    old.next_step(0.0, ready=True, admit=lambda outgoing: Queue(8.0))
    assert Outbox(old.backlog, epoch=2).next_step(4.0, ready=False) == Idle()
    assert old.held_for(first, 8.0) == 8.0


def test_the_newest_of_the_least_urgent_are_shed_and_the_patient_are_not() -> None:
    patient = message("patient", patient=True)
    low, urgent, normal, newest = (
        message("low", priority=5),
        message("urgent", priority=-1),
        message("normal"),
        message("newest"),
    )
    outcomes, outbox = watched(low, newest), filled(patient, low, urgent, normal, newest)
    assert outbox.backlog.shed(2, "too many") == 0  # nobody waits for the limiter
    assert outbox.next_step(0.0, ready=True, admit=lambda outgoing: Queue(8.0)) == WaitUntil(8.0)
    assert outbox.backlog.shed(math.inf, "too many") == 0
    assert outbox.backlog.shed(2, "too many") == 2
    assert all(isinstance(outcomes[each][0], NotSent) for each in (low, newest))
    assert outbox.backlog.shed(2, "too many") == 0
    assert write_all(outbox, now=8.0) == ["urgent", "patient", "normal"]


# --------------------------------------------------------------------------- user code in the middle of a step


def test_a_limiter_that_takes_back_what_it_is_asked_about_is_survived() -> None:
    doomed, other = message("doomed"), message("other")
    outcomes, outbox = watched(doomed, other), filled(doomed, other)

    def admit(outgoing: Outgoing) -> Decision:
        if outgoing is doomed:
            assert doomed.withdraw()
            return Reject("the limiter failed")
        return Allow()

    assert write_all(outbox, admit=admit) == ["other"]
    assert outcomes == {doomed: [], other: [None]}


def test_what_is_in_a_batch_under_construction_cannot_be_withdrawn_any_more() -> None:
    first, second = message("first"), message("second")
    outbox = filled(first, second)

    def admit(outgoing: Outgoing) -> Decision:
        if outgoing is second:
            assert not first.withdraw()
        return Allow()

    assert write_all(outbox, admit=admit) == ["first", "second"]


@pytest.mark.parametrize("lane", Lane)
def test_whoever_is_told_of_a_refusal_may_withdraw_others(lane: Lane) -> None:
    told, other = message("told", lane), message("other", lane)
    outbox = filled(told, other)

    def take_back(outgoing: Outgoing, error: NovaError | None) -> None:
        other.withdraw()

    told.when_settled = take_back
    outbox.end(None)
    outbox.backlog.refuse("over")
    assert outbox.idle
    assert other.status is Status.SETTLED


def test_whoever_is_told_of_an_end_may_send_again_without_end() -> None:
    backlog = Backlog()

    def again(outgoing: Outgoing, error: NovaError | None) -> None:
        following = message()
        following.when_settled = again
        backlog.put(following)

    first = message()
    first.when_settled = again
    backlog.put(first)
    backlog.refuse("over")
    assert backlog.length == 1


# --------------------------------------------------------------------------- any use


@attrs.define(eq=False)
class Expected:
    """What the oracle knows of one message."""

    serial: int
    outgoing: Outgoing
    where: str = "waiting"
    """waiting, writing, written, unknown, refused, expired or withdrawn."""
    sender_left: bool = False
    """Whether its sender wanted it back too late, and so wants to hear no more of it."""


SIZES = st.sampled_from([0, 1, 100, MAX_BATCH_BYTES // 2, 2 * MAX_BATCH_BYTES])


class AnyUse(RuleBasedStateMachine):
    """Every message is written, withdrawn or refused: one of them, once, and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(epoch=1)
        self.now = 0.0
        self.known: list[Expected] = []
        self.told: Counter[Outgoing] = Counter()
        self.last_told: dict[Outgoing, NovaError | None] = {}

    def settled(self, outgoing: Outgoing, error: NovaError | None) -> None:
        self.told[outgoing] += 1
        self.last_told[outgoing] = error

    def those(self, where: str, *lanes: Lane) -> list[Expected]:
        return [each for each in self.known if each.where == where and each.outgoing.lane in (lanes or tuple(Lane))]

    def expect_expired(self) -> None:
        for each in self.those("waiting", APPLICATION):
            if each.outgoing.expires_at <= self.now:
                each.where = "expired"

    def in_order(self, ready: bool) -> list[Outgoing]:
        lanes = tuple(Lane) if ready else (CONTROL, SETUP)
        queue = sorted(
            self.those("waiting", *lanes),
            key=lambda each: (each.outgoing.lane, each.outgoing.priority, each.serial),
        )
        return [each.outgoing for each in queue]

    def message(self, lane: Lane, size: int, priority: int, ttl: float = math.inf) -> Outgoing:
        return Outgoing(
            frame=str(len(self.known)),
            lane=lane,
            size=size,
            priority=priority,
            queued_at=self.now,
            expires_at=self.now + ttl,
            when_settled=self.settled,
        )

    def know(self, outgoing: Outgoing) -> None:
        self.known.append(Expected(len(self.known), outgoing))

    @rule(lane=st.sampled_from([CONTROL, SETUP]), size=SIZES, priority=st.integers(-2, 2))
    def put_for_the_link(self, lane: Lane, size: int, priority: int) -> None:
        outgoing = self.message(lane, size, priority)
        self.outbox.put(outgoing)
        self.know(outgoing)

    @rule(
        size=SIZES,
        priority=st.integers(-2, 2),
        ttl=st.one_of(st.just(math.inf), st.floats(0.0, 20.0)),
        within=st.one_of(st.none(), st.builds(Buffer, max_items=st.integers(1, 6), max_bytes=st.integers(1, 200_000))),
    )
    def put_for_the_application(self, size: int, priority: int, ttl: float, within: Buffer | None) -> None:
        outgoing = self.message(APPLICATION, size, priority, ttl)
        mates = [each.outgoing.size for each in self.those("waiting", APPLICATION)]
        fits = within is None or (
            len(mates) < within.max_items and (not mates or sum(mates) + size <= within.max_bytes)
        )
        if fits:
            self.outbox.backlog.put(outgoing, within)
            self.know(outgoing)
        else:
            with pytest.raises(NotSent):
                self.outbox.backlog.put(outgoing, within)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.known), label="message")
        assert each.outgoing.withdraw() is (each.where == "waiting")
        match each.where:
            case "waiting":
                each.where = "withdrawn"
            case "writing":
                each.sender_left = True

    @precondition(lambda self: not self.those("writing"))
    @rule(ready=st.booleans(), decisions=st.lists(st.sampled_from(["allow", "queue", "reject"]), max_size=8))
    def next_step(self, ready: bool, decisions: list[str]) -> None:
        self.expect_expired()
        expected = self.in_order(ready)
        asked: list[tuple[Outgoing, str]] = []

        def admit(outgoing: Outgoing) -> Decision:
            decision = decisions[len(asked)] if len(asked) < len(decisions) else "allow"
            asked.append((outgoing, decision))
            answers: dict[str, Decision] = {"allow": Allow(), "queue": Queue(self.now + 1.0), "reject": Reject("no")}
            return answers[decision]

        step = self.outbox.next_step(self.now, ready, admit)
        assert [outgoing for outgoing, _ in asked] == expected[: len(asked)]
        where = {"allow": "writing", "queue": "waiting", "reject": "refused"}
        for each in self.known:
            for outgoing, decision in asked:
                if each.outgoing is outgoing:
                    each.where = where[decision]
        batch = [outgoing for outgoing, decision in asked if decision == "allow"]
        held = any(decision == "queue" for _, decision in asked)
        match step:
            case Write(written):
                assert written == batch != []
                assert len(batch) == 1 or sum(outgoing.size for outgoing in batch) <= MAX_BATCH_BYTES
            case WaitUntil(until):
                assert not batch
                assert self.now < until <= (self.now + 1.0 if held else math.inf)
                assert held or len(asked) == len(expected)
            case Idle():
                assert not batch
                assert not held
                assert len(asked) == len(expected)

    @precondition(lambda self: self.those("writing"))
    @rule()
    def written(self) -> None:
        self.outbox.written()
        for each in self.those("writing"):
            each.where = "written"

    @rule()
    def another_link(self) -> None:
        self.outbox.end(LinkLost(1006))
        self.outbox = Outbox(self.outbox.backlog, self.outbox.epoch + 1)
        for each in self.those("writing"):
            each.where = "unknown"
        for each in self.those("waiting", CONTROL, SETUP):
            each.where = "refused"

    @rule()
    def refuse(self) -> None:
        self.outbox.backlog.refuse("no")
        for each in self.those("waiting", APPLICATION):
            each.where = "refused"

    @rule(after=st.floats(0.0, 20.0))
    def expire_by(self, after: float) -> None:
        before = {each: each.outgoing.expires_at for each in self.known}
        self.outbox.backlog.expire_by(after, self.now)
        for each, expires_at in before.items():
            waits = each.where == "waiting" and each.outgoing.lane is APPLICATION
            assert each.outgoing.expires_at == (min(expires_at, self.now + after) if waits else expires_at)

    @rule(seconds=st.floats(0.0, 10.0))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.outbox.backlog.expire(self.now)
        self.expect_expired()

    @invariant()
    def everybody_was_told_the_truth_once(self) -> None:
        kinds: dict[str, type[NovaError | None]] = {
            "written": type(None),
            "unknown": OutcomeUnknown,
            "refused": NotSent,
            "expired": Expired,
        }
        for each in self.known:
            is_told = each.where in kinds and not each.sender_left
            assert self.told[each.outgoing] == is_told, each
            if is_told:
                assert type(self.last_told[each.outgoing]) is kinds[each.where], each

    @invariant()
    def the_counts_are_right(self) -> None:
        waiting = self.those("waiting", APPLICATION)
        assert self.outbox.backlog.length == len(waiting)
        assert self.outbox.backlog.size == sum(each.outgoing.size for each in waiting)
        assert self.outbox.idle is not bool(self.those("waiting") or self.those("writing"))

    @invariant()
    def nobody_is_woken_later_than_the_first_expiry(self) -> None:
        waiting = self.those("waiting", APPLICATION)
        assert self.outbox.backlog.next_expiry() <= min(
            (each.outgoing.expires_at for each in waiting), default=math.inf
        )

    def teardown(self) -> None:
        self.outbox.end(None)
        self.outbox.backlog.refuse("over")
        assert self.outbox.idle
        assert all(each.outgoing.status is Status.SETTLED for each in self.known)


TestAnyUse = AnyUse.TestCase
