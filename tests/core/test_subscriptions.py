from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable
from itertools import count
from types import FrameType
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import trio_nova.core.subscriptions
from trio_nova.core.subscriptions import Book, Entry, SubscriptionState

WANTED, REQUESTED, CONFIRMED, REJECTED, RETIRED = SubscriptionState

ALL = 1_000_000
TIMEOUT = 30.0


def book_of(keys: str = "", *, unsubscribes_by_id: bool = False) -> Book:
    """Return a book that wants one subscription for each letter, "a" in the first place."""
    book = Book(unsubscribes_by_id=unsubscribes_by_id)
    for key in keys:
        want(book, key)
    return book


def want(book: Book, key: str, now: float = 0.0, *, order: int | None = None, **params: Any) -> Entry:
    return book.want(key, key, params, ord(key) - ord("a") if order is None else order, now)


def confirmed_book(keys: str) -> Book:
    book = book_of(keys)
    book.next_request(ALL, 0.0)
    for key in keys:
        assert book.confirm(key)
    return book


def names(entries: list[Entry]) -> str:
    return "".join(entry.channel for entry in entries)


def asked(book: Book, now: float = 0.0, max_batch: int = ALL) -> str:
    return names(book.next_request(max_batch, now))


def retired(book: Book, max_batch: int = ALL) -> str:
    return names(book.next_retirement(max_batch))


def state_of(book: Book, key: Hashable) -> SubscriptionState | None:
    entry = book.find(key)
    return None if entry is None else entry.state


# --------------------------------------------------------------------------- wanting and asking


def test_what_is_wanted_is_asked_for_in_order_and_in_batches() -> None:
    book = book_of("abcde")
    assert [asked(book, max_batch=2) for _ in range(4)] == ["ab", "cd", "e", ""]
    assert {entry.state for entry in book} == {REQUESTED}


def test_what_is_wanted_again_is_no_second_subscription() -> None:
    book = book_of("a")
    first, second = book.find("a"), book.want("a", "other", {"x": 1}, 7, 0.0)
    assert first is second
    assert (second.channel, second.params, second.order) == ("a", {}, 0)
    assert asked(book) == "a"


def test_what_came_first_in_the_program_is_asked_for_first_whenever_it_came_into_the_book() -> None:
    book = book_of("dbeac")
    assert asked(book) == "abcde"


def test_a_request_leaves_a_trace_of_when_it_was_and_of_its_number() -> None:
    first, second = book_of("ab").next_request(ALL, 3.0)
    assert (first.asked_at, second.asked_at, first.ask, second.ask) == (3.0, 3.0, 1, 2)


# --------------------------------------------------------------------------- answers


def test_only_the_answer_to_a_request_of_this_link_confirms() -> None:
    old, book = book_of("a"), book_of("a")
    asked(old)
    assert not book.confirm("a")  # not asked for on this link
    assert not book.confirm("b")  # not wanted
    asked(book, 2.0)
    assert old.confirm("a")
    assert (state_of(old, "a"), state_of(book, "a")) == (CONFIRMED, REQUESTED)
    assert book.confirm("a")
    assert state_of(book, "a") is CONFIRMED
    assert not book.confirm("a")  # a second answer


def test_an_answer_that_names_another_request_than_the_last_changes_nothing() -> None:
    book = book_of("a")
    [first] = book.next_request(ALL, 0.0)
    book.release("a")
    assert retired(book) == "a"
    want(book, "a", 2.0)
    [second] = book.next_request(ALL, 2.0)
    assert not book.reject("a", 3.0, "no", ask=first.ask)
    assert not book.confirm("a", ask=first.ask)
    assert second.state is REQUESTED
    assert book.confirm("a", ask=second.ask)


def test_a_rejected_subscription_stays_so_and_the_others_stand() -> None:
    book = book_of("ab")
    asked(book)
    assert book.reject("a", 1.0, "unknown channel")
    assert book.confirm("b")
    entry = book.find("a")
    assert entry is not None
    assert (entry.state, entry.reason, entry.failures) == (REJECTED, "unknown channel", 1)
    assert book.settled(1.0)
    assert asked(book, 1e9) == ""
    assert (state_of(book, "a"), state_of(book, "b")) == (REJECTED, CONFIRMED)


def test_a_rejected_subscription_that_is_wanted_again_is_asked_for_again() -> None:
    book = book_of("a")
    asked(book)
    book.reject("a", 1.0, "no rights")
    entry = want(book, "a", 2.0)
    assert (entry.state, entry.failures, entry.reason) == (WANTED, 0, "")
    assert asked(book, 2.0) == "a"


@pytest.mark.parametrize("retry_in", [5.0, 0.0, -1.0, math.nan])
def test_a_temporary_rejection_is_retried_when_its_time_has_come(retry_in: float) -> None:
    book = book_of("a")
    asked(book)
    assert book.reject("a", 1.0, "too many requests", retry_in)
    due = 6.0 if retry_in == 5.0 else 1.0
    if due > 1.0:
        assert (asked(book, due - 0.1), book.settled(due - 0.1), book.next_event_at(TIMEOUT)) == ("", True, due)
    assert not book.settled(due)
    [entry] = book.next_request(ALL, due)
    assert (entry.failures, entry.reason) == (1, "too many requests")
    book.confirm("a")
    assert (entry.failures, entry.reason) == (0, "")


def test_the_earliest_of_several_retries_is_the_next_event_unless_it_was_given_up() -> None:
    book = book_of("abcd")
    asked(book)
    for key, retry_in in zip("abcd", (60.0, 50.0, 30.0, 40.0), strict=True):
        book.reject(key, 0.0, "later", retry_in)
    assert book.next_event_at(TIMEOUT) == 30.0
    book.release("c")
    assert book.next_event_at(TIMEOUT) == 40.0


def test_a_retry_takes_its_old_place_among_those_that_are_due() -> None:
    book = book_of("abc")
    assert asked(book, max_batch=2) == "ab"
    book.reject("a", 0.0, "later", 1.0)
    assert asked(book, 1.0) == "ac"


def test_a_confirmed_subscription_that_the_server_takes_back_is_rejected() -> None:
    book = book_of("a")
    [entry] = book.next_request(ALL, 0.0)
    book.confirm("a", "x")
    assert book.reject("a", 1.0, "rights revoked")
    assert (entry.state, entry.server_id, book.by_server_id("x")) == (REJECTED, None, None)
    book.release("a")
    assert (state_of(book, "a"), retired(book)) == (None, "")  # the server does not have it: nothing to tell


# --------------------------------------------------------------------------- releasing


def test_what_the_server_has_is_unsubscribed_when_nobody_wants_it_any_more() -> None:
    book = confirmed_book("abc")
    book.release("c")
    book.release("a")
    assert state_of(book, "a") is RETIRED
    assert [retired(book, 1) for _ in range(3)] == ["c", "a", ""]
    assert [entry.key for entry in book] == ["b"]


def test_a_request_without_an_answer_is_unsubscribed_too() -> None:
    book = book_of("a")
    asked(book)
    book.release("a")
    assert book.next_event_at(TIMEOUT) == math.inf
    assert retired(book) == "a"
    assert not book.confirm("a")
    assert state_of(book, "a") is None


def test_what_was_never_asked_for_is_forgotten_without_a_word() -> None:
    book = book_of("ab")
    entry = book.find("a")
    book.release("a")
    assert entry is not None
    assert entry.state is RETIRED
    assert (retired(book), asked(book), state_of(book, "a")) == ("", "b", None)


def test_to_give_up_what_is_not_in_the_book_or_given_up_already_changes_nothing() -> None:
    book = confirmed_book("a")
    book.release("b")
    assert (state_of(book, "a"), retired(book)) == (CONFIRMED, "")
    for _ in range(2):
        book.release("a")
    assert (retired(book), retired(book)) == ("a", "")
    book.release("a")
    assert list(book) == []


def test_a_retired_subscription_that_is_wanted_before_the_server_is_told_stays_as_it_is() -> None:
    book = confirmed_book("ab")
    entry = book.find("a")
    book.release("a")
    assert want(book, "a", 2.0) is entry
    assert (state_of(book, "a"), retired(book), asked(book, 2.0)) == (CONFIRMED, "", "")
    assert [each.key for each in book] == ["a", "b"]


def test_a_retired_subscription_that_is_wanted_with_other_params_is_given_up_and_asked_for_anew() -> None:
    book = confirmed_book("ab")
    first = book.find("a")
    book.release("a")
    second = want(book, "a", 2.0, order=7, depth=2)
    assert (second.state, second.params, book.by_server_id("a")) == (WANTED, {"depth": 2}, None)
    assert book.next_retirement(ALL) == [first]
    assert book.next_request(ALL, 2.0) == [second]
    assert book.confirm("a", "new")
    assert book.by_server_id("new") is second
    assert book.counts() == {WANTED: 0, REQUESTED: 0, CONFIRMED: 2, REJECTED: 0, RETIRED: 0}


def test_a_retired_request_whose_successor_has_other_params_is_not_confirmed_by_its_late_answer() -> None:
    book = book_of("a", unsubscribes_by_id=True)
    [first] = book.next_request(ALL, 0.0)
    book.release("a")
    second = want(book, "a", 2.0, order=7, depth=2)
    assert not book.confirm("a", "x", ask=first.ask)
    assert book.next_request(ALL, 2.0) == [second]
    assert not book.confirm("a", "x", ask=first.ask)
    assert (second.state, retired(book)) == (REQUESTED, "")
    assert book.confirm("a", "y", ask=second.ask)


@pytest.mark.parametrize("by_id", [False, True])
def test_a_retired_request_that_is_wanted_again_waits_for_its_answer_anew(by_id: bool) -> None:
    book = book_of("ab", unsubscribes_by_id=by_id)
    asked(book)
    book.release("a")
    want(book, "a", 2.0)
    assert (state_of(book, "a"), retired(book), asked(book, 2.0)) == (REQUESTED, "", "")
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "b"
    assert names(book.expire(TIMEOUT + 2.0, TIMEOUT, 3)) == "a"


def test_what_the_server_was_told_to_drop_is_asked_for_anew_at_the_end() -> None:
    book = confirmed_book("ab")
    first = book.find("a")
    book.release("a")
    assert retired(book) == "a"
    assert want(book, "a", 2.0, order=7) is not first
    assert asked(book, 2.0) == "a"
    assert [entry.key for entry in book] == ["b", "a"]


@pytest.mark.parametrize("by_id", [False, True])
def test_a_retired_request_that_is_refused_leaves_nothing_to_unsubscribe(by_id: bool) -> None:
    book = book_of("a", unsubscribes_by_id=by_id)
    asked(book)
    book.release("a")
    assert book.reject("a", 2.0, "no")
    assert book.next_event_at(TIMEOUT) == math.inf
    assert (retired(book), state_of(book, "a")) == ("", None)


# --------------------------------------------------------------------------- answers that do not come


def test_a_request_without_an_answer_is_repeated_and_at_last_rejected() -> None:
    book = book_of("a")
    asked(book)
    assert book.next_event_at(TIMEOUT) == TIMEOUT
    assert book.expire(TIMEOUT - 0.1, TIMEOUT, 2) == []
    [entry] = book.expire(TIMEOUT, TIMEOUT, 2)
    assert (entry.state, entry.failures) == (WANTED, 1)
    assert asked(book, TIMEOUT) == "a"
    assert book.expire(2 * TIMEOUT, TIMEOUT, 2) == [entry]
    assert (entry.state, entry.reason) == (REJECTED, "no answer")
    assert (asked(book, 1e9), book.next_event_at(TIMEOUT)) == ("", math.inf)


@pytest.mark.parametrize("max_failures", [1, 2])
def test_an_answer_that_comes_late_still_counts(max_failures: int) -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, max_failures)
    assert book.confirm("a")
    assert (state_of(book, "a"), asked(book, 1e9)) == (CONFIRMED, "")


def test_a_refusal_that_comes_late_still_puts_off_the_retry() -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, 2)
    assert book.reject("a", TIMEOUT, "too many requests", 60.0)
    assert (asked(book, TIMEOUT), book.settled(TIMEOUT)) == ("", True)
    assert asked(book, TIMEOUT + 60.0) == "a"


@pytest.mark.parametrize("max_failures", [1, 2])
def test_what_the_server_may_have_is_unsubscribed_though_it_never_answered(max_failures: int) -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, max_failures)
    book.release("a")
    assert retired(book) == "a"


def test_what_never_got_an_answer_is_asked_for_again_when_it_is_taken_back() -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, 1)
    book.release("a")
    entry = want(book, "a", TIMEOUT)
    assert (entry.state, entry.reason, entry.failures) == (WANTED, "", 0)
    assert (retired(book), asked(book, TIMEOUT)) == ("", "a")


# --------------------------------------------------------------------------- the server's ids


def test_the_servers_id_is_known_until_the_server_is_told_to_drop_it() -> None:
    book = book_of("a")
    asked(book)
    book.confirm("a", "0xcd0")
    entry = book.find("a")
    book.release("a")
    assert book.by_server_id("0xcd0") is entry
    assert book.next_retirement(ALL) == [entry]
    assert book.by_server_id("0xcd0") is None


@pytest.mark.parametrize("other", [1.0, True, "1"])
def test_ids_of_different_types_are_different_ids(other: Hashable) -> None:
    book = book_of("ab")
    asked(book)
    book.confirm("a", 1)
    assert book.by_server_id(other) is None
    book.confirm("b", other)
    assert (book.by_server_id(1), book.by_server_id(other)) == (book.find("a"), book.find("b"))


def test_an_id_that_the_server_gives_twice_belongs_to_the_last() -> None:
    book = book_of("ab")
    asked(book)
    book.confirm("a", "x")
    book.confirm("b", "x")
    book.release("a")
    retired(book)
    assert book.by_server_id("x") is book.find("b")


def test_an_id_that_cannot_be_hashed_changes_nothing() -> None:
    book = book_of("a")
    asked(book)
    with pytest.raises(TypeError):
        book.confirm("a", ["x"])  # type: ignore[arg-type]
    assert state_of(book, "a") is REQUESTED
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "a"


def test_a_subscription_that_is_dropped_by_its_id_waits_for_the_id() -> None:
    book = book_of("ab", unsubscribes_by_id=True)
    asked(book)
    book.release("a")
    assert retired(book) == ""
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "b"  # nobody waits for the other any more
    assert book.confirm("a", "x")
    assert not book.confirm("a", "y")
    [entry] = book.next_retirement(ALL)
    assert entry.server_id == "x"
    assert book.by_server_id("x") is None


def test_a_retired_request_whose_id_came_meanwhile_is_confirmed_when_it_is_taken_back() -> None:
    book = book_of("a", unsubscribes_by_id=True)
    asked(book)
    book.release("a")
    book.confirm("a", "x")
    want(book, "a", 3.0)
    assert (state_of(book, "a"), retired(book), asked(book, 3.0)) == (CONFIRMED, "", "")
    assert book.by_server_id("x") is book.find("a")


# --------------------------------------------------------------------------- totals and cost


def test_the_book_is_settled_when_no_answer_is_awaited_and_nothing_is_due() -> None:
    book = book_of()
    assert book.settled(0.0)
    want(book, "a", 0.0)
    assert not book.settled(0.0)
    asked(book)
    assert not book.settled(0.0)
    book.confirm("a")
    assert book.settled(0.0)
    assert book.counts() == {WANTED: 0, REQUESTED: 0, CONFIRMED: 1, REJECTED: 0, RETIRED: 0}


def test_what_waits_in_the_queues_is_bounded_by_what_is_wanted() -> None:
    book = book_of("ab")
    for turn in range(10_000):
        book.want(turn, "c", {}, 2 + turn, 0.0)
        book.release(turn)
    asked(book)
    for _ in range(10_000):
        book.reject("a", 0.0, "later", 1e6)
        book.release("a")
        want(book, "a", 0.0)
        asked(book)
    assert len(book._due) + len(book._later) <= 2 * 2 + 64
    assert len(book._by_order) == len(book._entries) == 2


def test_the_order_is_kept_though_the_queues_are_cleared_of_what_was_given_up() -> None:
    book = book_of("dcba")
    for turn in range(200):
        book.want(turn, "c", {}, 10 + turn, 0.0)
        book.release(turn)
    assert asked(book) == "abcd"


def lines_run(call: Callable[[], object]) -> int:
    """Count the lines of the module under test that `call` runs: a measure of its cost that no load distorts."""
    ran = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal ran
        if frame.f_code.co_filename != trio_nova.core.subscriptions.__file__:
            return None
        ran += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return ran


def day_of(size: int, max_batch: int) -> None:
    """On each of two links subscribe with some refused and some unanswered, and hear data; at last give all up."""
    book = Book()
    for epoch in (1, 2):
        book, now = Book(), epoch * 1000.0
        for key in range(size):
            book.want(key, "c", {}, key, now)
        while not book.settled(now):
            batch = book.next_request(max_batch, now)
            book.written(batch, now)
            for entry in batch:
                if entry.key % 10 == 7 and not entry.failures:  # type: ignore[operator]
                    book.reject(entry.key, now, "later", 5.0)
                elif entry.key % 10 != 8:  # type: ignore[operator]
                    book.confirm(entry.key, entry.key)
            if not batch:
                now += TIMEOUT
            book.expire(now, TIMEOUT, 2)
            book.next_event_at(TIMEOUT)
        for key in range(size):
            book.by_server_id(key)
            book.settled(now)
            book.counts()
    for key in range(size):
        book.release(key)
    while book.next_retirement(max_batch):
        pass
    assert list(book) == []


def test_the_work_grows_with_the_number_of_subscriptions_and_not_with_its_square() -> None:
    small, large = lines_run(lambda: day_of(500, 20)), lines_run(lambda: day_of(10_000, 20))
    assert large < 21 * small


# --------------------------------------------------------------------------- any interleaving


@attrs.define
class Slot:
    """What the model knows of one key on this link."""

    order: int
    params: dict[str, int]
    wanted: bool = True
    may_be_held: bool = False
    """Whether the server has it, or may have it because a request is unanswered."""


@attrs.frozen
class Request:
    """What the server has not processed yet."""

    key: str
    ask: int
    """0 for an unsubscription."""
    params: dict[str, int]


@attrs.frozen
class Answer:
    key: str
    ask: int
    accepted: bool
    retry_in: float | None = None


class AnyInterleaving(RuleBasedStateMachine):
    """A book between a program and a server that may refuse, ignore, and take its time."""

    KEYS = "abcdef"

    def __init__(self) -> None:
        super().__init__()
        self.orders = count()
        self.wanted: dict[str, Slot] = {}
        """What the program wants: on any link, in this order, but for what was refused."""
        self.now = 0.0
        self.begin_link()

    def begin_link(self) -> None:
        self.book = Book()
        self.slots: dict[str, Slot] = {}
        self.held: dict[str, dict[str, int]] = {}
        """What the server has, with which params."""
        self.inbox: list[Request] = []
        self.answers: list[Answer] = []
        self.open: set[str] = set()
        """What was asked for on this link, and has not failed or been given up since."""

    # the program

    @rule(key=st.sampled_from(KEYS), depth=st.integers(1, 2))
    def want(self, key: str, depth: int) -> None:
        if key not in self.wanted:
            self.wanted[key] = Slot(next(self.orders), {"depth": depth})
        wanted, slot = self.wanted[key], self.slots.get(key)
        entry = self.book.want(key, key, wanted.params, wanted.order, self.now)
        if slot is None or slot.params != wanted.params:
            self.slots.pop(key, None)
            self.slots[key] = Slot(wanted.order, wanted.params)
        else:
            slot.wanted = True
        assert entry.params == wanted.params

    @rule(key=st.sampled_from(KEYS))
    def release(self, key: str) -> None:
        self.wanted.pop(key, None)
        slot = self.slots.get(key)
        if slot is not None:
            slot.wanted = False
            if not slot.may_be_held:
                del self.slots[key]
        self.book.release(key)

    # the link

    @rule()
    def another_link(self) -> None:
        refused = {entry.key for entry in self.book if entry.state is REJECTED}
        known = set(self.slots)
        self.begin_link()
        for key in self.wanted:
            if key in known and key not in refused:
                self.want(key, 0)

    @rule(max_batch=st.integers(1, 4))
    def write(self, max_batch: int) -> None:
        batch = self.book.next_retirement(max_batch)
        for entry in batch:
            if (other := self.book.find(entry.channel)) is None:
                slot = self.slots.pop(entry.channel, None)
                assert slot is None or not slot.wanted, "what somebody wants is unsubscribed"
            else:
                assert (other.state, other.asked_at) == (WANTED, None), "it is unsubscribed after it was asked for"
            self.inbox.append(Request(entry.channel, 0, {}))
            self.open.discard(entry.channel)
        if len(batch) == max_batch:
            return  # unsubscriptions first
        due = [entry for entry in self.book if entry.state is WANTED and entry.retry_at <= self.now]
        due.sort(key=lambda entry: entry.order)
        batch = self.book.next_request(max_batch, self.now)
        assert batch == due[:max_batch]
        for entry in batch:
            slot = self.slots[entry.channel]
            assert slot.wanted, "what nobody wants is asked for"
            assert entry.channel not in self.open, "asked for twice on one link, without a failure in between"
            self.open.add(entry.channel)
            slot.may_be_held = True
            self.inbox.append(Request(entry.channel, entry.ask, slot.params))

    # the server

    @precondition(lambda self: self.inbox)
    @rule(answer=st.sampled_from(["accept", "accept", "reject", "later", "ignore"]))
    def process(self, answer: str) -> None:
        request = self.inbox.pop(0)
        if not request.ask:
            self.held.pop(request.key, None)
        elif answer == "accept":
            self.held[request.key] = request.params
            self.answers.append(Answer(request.key, request.ask, True))
        elif answer != "ignore":
            self.held.pop(request.key, None)
            self.answers.append(Answer(request.key, request.ask, False, 5.0 if answer == "later" else None))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        # In any order: to separate requests a server may answer as it likes.
        self.hear(self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1))))

    def hear(self, answer: Answer) -> None:
        entry = self.book.find(answer.key)
        counts = entry is not None and entry.ask == answer.ask
        if answer.accepted:
            heard = self.book.confirm(answer.key, answer.ask, ask=answer.ask)
        else:
            heard = self.book.reject(answer.key, self.now, "no", answer.retry_in, ask=answer.ask)
        assert heard is counts
        if heard and not answer.accepted:
            self.open.discard(answer.key)
            slot = self.slots[answer.key]
            slot.may_be_held = False
            if not slot.wanted:
                del self.slots[answer.key]

    @rule(key=st.sampled_from(KEYS))
    def hear_what_was_not_asked(self, key: str) -> None:
        entry = self.book.find(key)
        if entry is None or entry.asked_at is None:
            assert not self.book.confirm(key)
            assert not self.book.reject(key, self.now, "no")

    # time

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(max_failures=st.integers(1, 3))
    def expire(self, max_failures: int) -> None:
        due = self.book.next_event_at(TIMEOUT)
        expired = self.book.expire(self.now, TIMEOUT, max_failures)
        assert not expired or due <= self.now
        self.open -= {entry.channel for entry in expired}

    # what always holds

    @invariant()
    def it_holds_what_is_wanted_and_what_the_server_may_have_in_the_order_in_which_it_came(self) -> None:
        assert [entry.key for entry in self.book] == list(self.slots)
        assert {key for key, slot in self.slots.items() if slot.wanted} <= set(self.wanted)
        assert all(entry.params == self.slots[entry.channel].params for entry in self.book)

    @invariant()
    def the_totals_are_those_of_a_scan(self) -> None:
        entries = list(self.book)
        assert Counter(entry.state for entry in entries) == Counter(self.book.counts())
        due = [entry for entry in entries if entry.state is WANTED and entry.retry_at <= self.now]
        asked = [entry for entry in entries if entry.state is REQUESTED]
        assert self.book.requested == len(asked)
        assert self.book.settled(self.now) is not bool(due or asked)
        assert not self.book.is_at_rest(self.now) or not any(entry.state is RETIRED for entry in entries)
        retries = [entry.retry_at for entry in entries if entry.state is WANTED and entry.retry_at > self.now]
        assert self.book.next_event_at(TIMEOUT) <= min(retries, default=math.inf)
        confirmed = [entry for entry in entries if entry.state is CONFIRMED]
        assert all(self.book.by_server_id(entry.server_id) is entry for entry in confirmed)

    def teardown(self) -> None:
        """Let it come to rest, under a server that accepts: both sides have the same then."""
        for _ in range(100):
            self.write(10)
            while self.inbox:
                self.process("accept")
            while self.answers:
                self.hear(self.answers.pop(0))
            self.now += 5.0
            self.expire(3)
        rejected = {entry.key for entry in self.book if entry.state is REJECTED}
        assert self.held == {
            key: slot.params for key, slot in self.slots.items() if slot.wanted and key not in rejected
        }
        assert {entry.key for entry in self.book if entry.state is CONFIRMED} == set(self.held)
        assert self.book.is_at_rest(self.now)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(stateful_step_count=40)
