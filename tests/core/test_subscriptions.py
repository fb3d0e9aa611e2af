from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from types import FrameType
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import trio_nova.core.subscriptions
from trio_nova.core.subscriptions import HISTORY, Book, Subscription, SubscriptionState
from trio_nova.errors import ConfigError

WANTED, REQUESTED, CONFIRMED, REJECTED, RETIRED = SubscriptionState

ALL = 1_000_000
TIMEOUT = 30.0


def book_of(keys: str = "", *, epoch: int = 1, unsubscribes_by_id: bool = False) -> Book:
    """Return a book with a link up (unless `epoch` is 0), which wants one subscription for each letter."""
    book = Book(unsubscribes_by_id=unsubscribes_by_id)
    if epoch:
        book.link_up(epoch)
    for key in keys:
        book.want(key, key, {}, 0.0)
    return book


def confirmed_book(keys: str) -> Book:
    book = book_of(keys)
    book.next_request(ALL, 0.0)
    for key in keys:
        assert book.confirm(key, 1, 0.0)
    return book


def names(entries: list[Subscription]) -> str:
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


def test_nothing_is_asked_for_while_no_link_is_up() -> None:
    book = book_of("a", epoch=0)
    assert asked(book) == ""
    book.link_up(1)
    assert asked(book) == "a"


def test_a_second_user_is_no_second_subscription() -> None:
    book = book_of("a")
    first, second = book.find("a"), book.want("a", "other", {"x": 1}, 0.0)
    assert first is second
    assert (second.users, second.channel, second.params) == (2, "a", {})
    assert asked(book) == "a"
    book.release("a", 1.0)
    assert (second.users, second.state, retired(book)) == (1, REQUESTED, "")


def test_params_are_those_of_the_moment_they_were_wanted() -> None:
    params = {"depth": 10}
    entry = Book().want("a", "a", params, 0.0)
    params["depth"] = 20
    assert entry.params == {"depth": 10}


def test_a_request_leaves_a_trace_of_when_and_where() -> None:
    book = book_of("ab", epoch=7)
    first, second = book.next_request(ALL, 3.0)
    assert (first.asked_at, first.asked_epoch, first.ask, second.ask) == (3.0, 7, 1, 2)
    assert first.history == [(0.0, WANTED), (3.0, REQUESTED)]


def test_the_history_is_bounded() -> None:
    book = book_of("a")
    for _ in range(HISTORY):
        asked(book)
        book.reject("a", 1, 0.0, "busy", 0.0)
    entry = book.find("a")
    assert entry is not None
    assert len(entry.history) == HISTORY
    assert entry.history[-1] == (0.0, WANTED)


# --------------------------------------------------------------------------- answers


def test_only_the_answer_to_a_request_of_this_link_confirms() -> None:
    book = book_of("a")
    assert not book.confirm("a", 1, 0.0)  # not asked for
    assert not book.confirm("b", 1, 0.0)  # not wanted
    asked(book)
    book.link_lost(1.0)
    assert not book.confirm("a", 1, 1.0)  # the link is gone
    book.link_up(2)
    asked(book, 2.0)
    assert not book.confirm("a", 1, 2.0)  # the answer of the link before comes late
    assert state_of(book, "a") is REQUESTED
    assert book.confirm("a", 2, 2.0)
    assert state_of(book, "a") is CONFIRMED
    assert not book.confirm("a", 2, 2.0)  # a second answer


def test_an_answer_that_names_another_request_than_the_last_changes_nothing() -> None:
    book = book_of("a")
    [first] = book.next_request(ALL, 0.0)
    book.release("a", 1.0)
    assert retired(book) == "a"
    book.want("a", "a", {}, 2.0)
    [second] = book.next_request(ALL, 2.0)
    assert not book.reject("a", 1, 3.0, "no", ask=first.ask)
    assert not book.confirm("a", 1, 3.0, ask=first.ask)
    assert second.state is REQUESTED
    assert book.confirm("a", 1, 3.0, ask=second.ask)


def test_a_rejected_subscription_stays_so_and_the_others_stand() -> None:
    book = book_of("ab")
    asked(book)
    assert book.reject("a", 1, 1.0, "unknown channel")
    assert book.confirm("b", 1, 1.0)
    entry = book.find("a")
    assert entry is not None
    assert (entry.state, entry.reason, entry.failures) == (REJECTED, "unknown channel", 1)
    assert book.degraded
    assert book.settled(1.0)
    book.link_lost(2.0)
    book.link_up(2)
    assert asked(book, 1e9) == "b"
    assert state_of(book, "a") is REJECTED


def test_a_rejected_subscription_that_is_wanted_again_is_asked_for_again() -> None:
    book = book_of("a")
    asked(book)
    book.reject("a", 1, 1.0, "no rights")
    entry = book.want("a", "a", {}, 2.0)
    assert (entry.state, entry.users, entry.failures, entry.reason) == (WANTED, 2, 0, "")
    assert not book.degraded
    assert asked(book, 2.0) == "a"


@pytest.mark.parametrize("retry_in", [5.0, 0.0, -1.0, math.nan])
def test_a_temporary_rejection_is_retried_when_its_time_has_come(retry_in: float) -> None:
    book = book_of("a")
    asked(book)
    assert book.reject("a", 1, 1.0, "too many requests", retry_in)
    due = 6.0 if retry_in == 5.0 else 1.0
    if due > 1.0:
        assert (asked(book, due - 0.1), book.settled(due - 0.1), book.next_event_at(TIMEOUT)) == ("", True, due)
    assert not book.settled(due)
    [entry] = book.next_request(ALL, due)
    assert (entry.failures, entry.reason) == (1, "too many requests")
    book.confirm("a", 1, due)
    assert (entry.failures, entry.reason) == (0, "")


def test_a_time_to_retry_is_kept_on_the_next_link() -> None:
    book = book_of("ab")
    asked(book)
    book.reject("a", 1, 0.0, "later", 60.0)
    book.link_lost(1.0)
    book.link_up(2)
    assert (asked(book, 2.0), asked(book, 59.9), asked(book, 60.0)) == ("b", "", "a")


def test_the_earliest_of_several_retries_is_the_next_event_of_a_new_link() -> None:
    book = book_of("abcd")
    asked(book)
    for key, retry_in in zip("abcd", (60.0, 50.0, 30.0, 40.0), strict=True):
        book.reject(key, 1, 0.0, "later", retry_in)
    book.link_lost(1.0)
    book.link_up(2)
    assert book.next_event_at(TIMEOUT) == 30.0


def test_a_retry_takes_its_old_place_among_those_that_are_due() -> None:
    book = book_of("abc")
    assert asked(book, max_batch=2) == "ab"
    book.reject("a", 1, 0.0, "later", 1.0)
    assert asked(book, 1.0) == "ac"


def test_a_confirmed_subscription_that_the_server_takes_back_is_rejected() -> None:
    book = book_of("a")
    [entry] = book.next_request(ALL, 0.0)
    book.confirm("a", 1, 0.0, "x")
    assert book.reject("a", 1, 1.0, "rights revoked")
    assert (entry.state, entry.server_id, book.by_server_id("x")) == (REJECTED, None, None)
    book.release("a", 2.0)
    assert (state_of(book, "a"), retired(book)) == (None, "")  # the server does not have it: nothing to tell


# --------------------------------------------------------------------------- releasing


def test_what_the_server_has_is_unsubscribed_when_its_last_user_leaves() -> None:
    book = confirmed_book("abc")
    book.release("c", 1.0)
    book.release("a", 1.0)
    assert state_of(book, "a") is RETIRED
    assert [retired(book, 1) for _ in range(3)] == ["c", "a", ""]
    assert [entry.key for entry in book] == ["b"]


def test_a_request_without_an_answer_is_unsubscribed_too() -> None:
    book = book_of("a")
    asked(book)
    book.release("a", 1.0)
    assert book.next_event_at(TIMEOUT) == math.inf
    assert retired(book) == "a"
    assert not book.confirm("a", 1, 2.0)
    assert state_of(book, "a") is None


def test_what_was_never_asked_for_is_forgotten_without_a_word() -> None:
    book = book_of("ab")
    entry = book.find("a")
    book.release("a", 0.0)
    assert entry is not None
    assert entry.state is RETIRED
    assert (retired(book), asked(book), state_of(book, "a")) == ("", "b", None)


def test_what_is_given_up_while_the_link_is_down_is_never_asked_for_again() -> None:
    book = confirmed_book("ab")
    book.link_lost(1.0)
    book.release("a", 2.0)
    book.link_up(2)
    assert (retired(book), asked(book, 2.0)) == ("", "b")


def test_what_was_not_unsubscribed_when_the_link_was_lost_went_with_it() -> None:
    book = confirmed_book("ab")
    book.release("a", 1.0)
    book.link_lost(1.0)
    book.link_up(2)
    assert (retired(book), asked(book, 1.0), state_of(book, "a")) == ("", "b", None)


def test_a_release_without_a_user_is_an_error() -> None:
    book = confirmed_book("a")
    with pytest.raises(KeyError):
        book.release("b", 0.0)
    book.release("a", 0.0)
    with pytest.raises(KeyError):
        book.release("a", 0.0)
    assert retired(book) == "a"


def test_a_retired_subscription_that_is_wanted_before_the_server_is_told_stays_as_it_is() -> None:
    book = confirmed_book("ab")
    entry = book.find("a")
    book.release("a", 1.0)
    assert book.want("a", "a", {}, 2.0) is entry
    assert (state_of(book, "a"), retired(book), asked(book, 2.0)) == (CONFIRMED, "", "")
    assert [each.key for each in book] == ["a", "b"]


@pytest.mark.parametrize("by_id", [False, True])
def test_a_retired_request_that_is_wanted_again_waits_for_its_answer_anew(by_id: bool) -> None:
    book = book_of("ab", unsubscribes_by_id=by_id)
    asked(book)
    book.release("a", 1.0)
    book.want("a", "a", {}, 2.0)
    assert (state_of(book, "a"), retired(book), asked(book, 2.0)) == (REQUESTED, "", "")
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "b"
    assert names(book.expire(TIMEOUT + 2.0, TIMEOUT, 3)) == "a"


def test_what_the_server_was_told_to_drop_is_asked_for_anew_at_the_end() -> None:
    book = confirmed_book("ab")
    first = book.find("a")
    book.release("a", 1.0)
    assert retired(book) == "a"
    assert book.want("a", "a", {}, 2.0) is not first
    assert asked(book, 2.0) == "a"
    assert [entry.key for entry in book] == ["b", "a"]


@pytest.mark.parametrize("by_id", [False, True])
def test_a_retired_request_that_is_refused_leaves_nothing_to_unsubscribe(by_id: bool) -> None:
    book = book_of("a", unsubscribes_by_id=by_id)
    asked(book)
    book.release("a", 1.0)
    assert book.reject("a", 1, 2.0, "no")
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


def test_failures_of_one_link_are_not_held_against_the_next() -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, 2)
    book.link_lost(TIMEOUT)
    book.link_up(2)
    asked(book, TIMEOUT)
    [entry] = book.expire(2 * TIMEOUT, TIMEOUT, 2)
    assert entry.state is WANTED


@pytest.mark.parametrize("max_failures", [1, 2])
def test_an_answer_that_comes_late_still_counts(max_failures: int) -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, max_failures)
    assert book.confirm("a", 1, TIMEOUT + 1.0)
    assert (state_of(book, "a"), asked(book, 1e9), book.degraded) == (CONFIRMED, "", False)


def test_a_refusal_that_comes_late_still_puts_off_the_retry() -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, 2)
    assert book.reject("a", 1, TIMEOUT, "too many requests", 60.0)
    assert (asked(book, TIMEOUT), book.settled(TIMEOUT)) == ("", True)
    assert asked(book, TIMEOUT + 60.0) == "a"


@pytest.mark.parametrize("max_failures", [1, 2])
def test_what_the_server_may_have_is_unsubscribed_though_it_never_answered(max_failures: int) -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, max_failures)
    book.release("a", TIMEOUT)
    assert retired(book) == "a"


def test_what_never_got_an_answer_is_asked_for_again_when_it_is_taken_back() -> None:
    book = book_of("a")
    asked(book)
    book.expire(TIMEOUT, TIMEOUT, 1)
    book.release("a", TIMEOUT)
    entry = book.want("a", "a", {}, TIMEOUT)
    assert (entry.state, entry.reason, entry.failures) == (WANTED, "", 0)
    assert (retired(book), asked(book, TIMEOUT)) == ("", "a")


def test_no_event_is_due_while_no_link_is_up() -> None:
    book = book_of("ab")
    asked(book)
    book.reject("a", 1, 0.0, "later", 5.0)
    assert book.next_event_at(TIMEOUT) == 5.0
    book.link_lost(1.0)
    assert book.next_event_at(TIMEOUT) == math.inf
    book.link_up(2)
    assert book.next_event_at(TIMEOUT) == 5.0
    book.release("a", 2.0)
    assert book.next_event_at(TIMEOUT) == math.inf


# --------------------------------------------------------------------------- the server's ids


def test_the_servers_id_is_known_for_as_long_as_the_link_lasts() -> None:
    book = book_of("a")
    asked(book)
    book.confirm("a", 1, 0.0, "0xcd0")
    assert book.by_server_id("0xcd0") is book.find("a")
    book.link_lost(1.0)
    assert book.by_server_id("0xcd0") is None
    entry = book.find("a")
    assert entry is not None
    assert entry.server_id is None


@pytest.mark.parametrize("other", [1.0, True, "1"])
def test_ids_of_different_types_are_different_ids(other: Hashable) -> None:
    book = book_of("ab")
    asked(book)
    book.confirm("a", 1, 0.0, 1)
    assert book.by_server_id(other) is None
    book.confirm("b", 1, 0.0, other)
    assert (book.by_server_id(1), book.by_server_id(other)) == (book.find("a"), book.find("b"))


def test_an_id_that_the_server_gives_twice_belongs_to_the_last() -> None:
    book = book_of("ab")
    asked(book)
    book.confirm("a", 1, 0.0, "x")
    book.confirm("b", 1, 0.0, "x")
    book.release("a", 1.0)
    retired(book)
    assert book.by_server_id("x") is book.find("b")


def test_an_id_that_cannot_be_hashed_changes_nothing() -> None:
    book = book_of("a")
    asked(book)
    with pytest.raises(TypeError):
        book.confirm("a", 1, 0.0, ["x"])  # type: ignore[arg-type]
    assert state_of(book, "a") is REQUESTED
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "a"


def test_a_subscription_that_is_dropped_by_its_id_waits_for_the_id() -> None:
    book = book_of("ab", unsubscribes_by_id=True)
    asked(book)
    book.release("a", 1.0)
    assert retired(book) == ""
    assert names(book.expire(TIMEOUT, TIMEOUT, 3)) == "b"  # nobody waits for the other any more
    assert book.confirm("a", 1, TIMEOUT, "x")
    assert not book.confirm("a", 1, TIMEOUT, "y")
    [entry] = book.next_retirement(ALL)
    assert entry.server_id == "x"
    assert book.by_server_id("x") is None


def test_a_retired_request_whose_id_came_meanwhile_is_confirmed_when_it_is_taken_back() -> None:
    book = book_of("a", unsubscribes_by_id=True)
    asked(book)
    book.release("a", 1.0)
    book.confirm("a", 1, 2.0, "x")
    book.want("a", "a", {}, 3.0)
    assert (state_of(book, "a"), retired(book), asked(book, 3.0)) == (CONFIRMED, "", "")
    assert book.by_server_id("x") is book.find("a")


# --------------------------------------------------------------------------- links, totals, rows


@pytest.mark.parametrize("epoch", [0, -1, 3])
def test_a_link_does_not_begin_before_the_last_one_ends(epoch: int) -> None:
    book = book_of(epoch=2 if epoch == 3 else 0)
    with pytest.raises(ValueError, match="cannot begin"):
        book.link_up(epoch)
    assert book.epoch == (2 if epoch == 3 else 0)


def test_a_new_link_restores_all_in_the_original_order() -> None:
    book = book_of("abcdef")
    asked(book, max_batch=4)
    for key in "db":
        book.confirm(key, 1, 0.0)
    book.expire(TIMEOUT, TIMEOUT, 3)
    book.link_lost(TIMEOUT)
    book.link_up(2)
    assert asked(book, TIMEOUT) == "abcdef"


def test_the_book_is_settled_when_no_answer_is_awaited_and_nothing_is_due() -> None:
    book = book_of()
    assert book.settled(0.0)
    book.want("a", "a", {}, 0.0)
    assert not book.settled(0.0)
    asked(book)
    assert not book.settled(0.0)
    book.confirm("a", 1, 0.0)
    assert book.settled(0.0)
    assert book.counts() == {WANTED: 0, REQUESTED: 0, CONFIRMED: 1, REJECTED: 0, RETIRED: 0}


def key_of(channel: str, params: Mapping[str, Any]) -> Hashable:
    return channel, tuple(sorted(params.items()))


def test_what_is_wanted_survives_as_json() -> None:
    book = book_of(epoch=0)
    for channel, params in [("b", {"depth": 10}), ("gone", {}), ("a", {})]:
        book.want(key_of(channel, params), channel, params, 0.0)
    book.release(key_of("gone", {}), 0.0)
    rows = json.loads(json.dumps(book.export()))
    assert rows == [{"channel": "b", "params": {"depth": 10}}, {"channel": "a", "params": {}}]
    other = book_of()
    loaded = other.load(rows, key_of, 0.0)
    assert [entry.users for entry in loaded] == [1, 1]
    assert other.export() == rows
    assert asked(other) == "ba"


@pytest.mark.parametrize("row", [None, "a", {}, {"channel": 1, "params": {}}, {"channel": "a", "params": []}])
def test_rows_that_are_none_change_nothing(row: object) -> None:
    book = Book()
    with pytest.raises(ConfigError, match="row 1"):
        book.load([{"channel": "a", "params": {}}, row], key_of, 0.0)
    assert list(book) == []


def test_what_waits_in_the_queues_is_bounded_by_what_is_wanted() -> None:
    book = book_of("ab")
    for turn in range(10_000):
        book.want(turn, "c", {}, 0.0)
        book.release(turn, 0.0)
    asked(book)
    for _ in range(10_000):
        book.reject("a", 1, 0.0, "later", 1e6)
        book.release("a", 0.0)
        book.want("a", "a", {}, 0.0)
        asked(book)
    assert len(book._due) + len(book._later) <= 2 * 2 + 64
    assert len(book._by_order) == len(book._entries) == 2


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
    """Subscribe, lose the link, restore with some refused and some unanswered, hear data, give all up."""
    book = book_of()
    for key in range(size):
        book.want(key, "c", {}, 0.0)
    for epoch in (1, 2):
        now = epoch * 1000.0
        while not book.settled(now):
            batch = book.next_request(max_batch, now)
            for entry in batch:
                if entry.key % 10 == 7 and not entry.failures:  # type: ignore[operator]
                    book.reject(entry.key, epoch, now, "later", 5.0)
                elif entry.key % 10 != 8:  # type: ignore[operator]
                    book.confirm(entry.key, epoch, now, entry.key)
            if not batch:
                now += TIMEOUT
            book.expire(now, TIMEOUT, 2)
            book.next_event_at(TIMEOUT)
        for key in range(size):
            book.by_server_id(key)
            book.settled(now)
            book.counts()
        if epoch == 1:
            book.link_lost(now)
            book.link_up(2)
    for key in range(size):
        book.release(key, 1e6)
    while book.next_retirement(max_batch):
        pass
    assert list(book) == []


def test_the_work_grows_with_the_number_of_subscriptions_and_not_with_its_square() -> None:
    small, large = lines_run(lambda: day_of(500, 20)), lines_run(lambda: day_of(10_000, 20))
    assert large < 21 * small


# --------------------------------------------------------------------------- any interleaving


@attrs.define
class Slot:
    """What the model knows of one key."""

    users: int = 0
    may_be_held: bool = False
    """Whether the server has it, or may have it because a request of this link is unanswered."""


@attrs.frozen
class Answer:
    key: str
    epoch: int
    ask: int
    accepted: bool
    retry_in: float | None = None


class AnyInterleaving(RuleBasedStateMachine):
    """A book between users and a server that may refuse, ignore, and take its time."""

    KEYS = "abcdef"

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.now = 0.0
        self.epoch = 0
        self.slots: dict[str, Slot] = {}
        self.held: set[str] = set()
        self.inbox: list[tuple[str, int]] = []
        """What the server has not processed yet: a key, and the ask, or 0 for an unsubscription."""
        self.answers: list[Answer] = []
        self.open: set[str] = set()
        """What was asked for on this link, and has not failed or been given up since."""

    @property
    def up(self) -> bool:
        return self.book.epoch > 0

    # the users

    @rule(key=st.sampled_from(KEYS))
    def want(self, key: str) -> None:
        self.slots.setdefault(key, Slot()).users += 1
        assert self.book.want(key, key, {}, self.now).users == self.slots[key].users

    @rule(key=st.sampled_from(KEYS))
    def release(self, key: str) -> None:
        slot = self.slots.get(key, Slot())
        if not slot.users:
            with pytest.raises(KeyError):
                self.book.release(key, self.now)
            return
        slot.users -= 1
        if not slot.users and not slot.may_be_held:
            del self.slots[key]
        self.book.release(key, self.now)

    # the link

    @precondition(lambda self: not self.up)
    @rule()
    def link_up(self) -> None:
        self.epoch += 1
        self.book.link_up(self.epoch)

    @precondition(lambda self: self.up)
    @rule()
    def link_lost(self) -> None:
        self.book.link_lost(self.now)
        self.held.clear()
        self.inbox.clear()
        self.open.clear()
        self.slots = {key: Slot(slot.users) for key, slot in self.slots.items() if slot.users}

    @rule(max_batch=st.integers(1, 4))
    def write(self, max_batch: int) -> None:
        for entry in self.book.next_retirement(max_batch):
            assert self.slots.pop(entry.channel).users == 0, "what somebody wants is unsubscribed"
            self.inbox.append((entry.channel, 0))
            self.open.discard(entry.channel)
        if any(entry.state is RETIRED for entry in self.book):
            return  # unsubscriptions first
        due = [entry for entry in self.book if entry.state is WANTED and entry.retry_at <= self.now]
        batch = self.book.next_request(max_batch, self.now)
        assert batch == (due[:max_batch] if self.up else [])
        for entry in batch:
            slot = self.slots[entry.channel]
            assert slot.users, "what nobody wants is asked for"
            assert entry.channel not in self.open, "asked for twice on one link, without a failure in between"
            self.open.add(entry.channel)
            slot.may_be_held = True
            self.inbox.append((entry.channel, entry.ask))

    # the server

    @precondition(lambda self: self.inbox)
    @rule(answer=st.sampled_from(["accept", "accept", "reject", "later", "ignore"]))
    def process(self, answer: str) -> None:
        key, ask = self.inbox.pop(0)
        if not ask:
            self.held.discard(key)
        elif answer == "accept":
            self.held.add(key)
            self.answers.append(Answer(key, self.epoch, ask, True))
        elif answer != "ignore":
            self.held.discard(key)
            self.answers.append(Answer(key, self.epoch, ask, False, 5.0 if answer == "later" else None))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        # In any order: to separate requests a server may answer as it likes; those of dead links come too.
        self.hear(self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1))))

    def hear(self, answer: Answer) -> None:
        entry = self.book.find(answer.key)
        counts = entry is not None and entry.ask == answer.ask and answer.epoch == self.book.epoch
        if answer.accepted:
            heard = self.book.confirm(answer.key, answer.epoch, self.now, answer.ask, ask=answer.ask)
        else:
            heard = self.book.reject(answer.key, answer.epoch, self.now, "no", answer.retry_in, ask=answer.ask)
        assert heard is counts
        if heard and not answer.accepted:
            self.open.discard(answer.key)
            slot = self.slots[answer.key]
            slot.may_be_held = False
            if not slot.users:
                del self.slots[answer.key]

    @rule(key=st.sampled_from(KEYS), epoch=st.integers(0, 3))
    def hear_what_was_not_asked(self, key: str, epoch: int) -> None:
        entry = self.book.find(key)
        if entry is None or entry.asked_at is None or epoch != self.book.epoch:
            assert not self.book.confirm(key, epoch, self.now)
            assert not self.book.reject(key, epoch, self.now, "no")

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
    def the_order_is_that_of_wanting(self) -> None:
        assert [entry.key for entry in self.book] == list(self.slots)
        assert [row["channel"] for row in self.book.export()] == [key for key, slot in self.slots.items() if slot.users]

    @invariant()
    def the_totals_are_those_of_a_scan(self) -> None:
        entries = list(self.book)
        assert Counter(entry.state for entry in entries) == Counter(self.book.counts())
        assert self.book.degraded is any(entry.state is REJECTED for entry in entries)
        due = [entry for entry in entries if entry.state is WANTED and entry.retry_at <= self.now]
        asked = [entry for entry in entries if entry.state is REQUESTED]
        assert self.book.settled(self.now) is not bool(due or asked)
        retries = [entry.retry_at for entry in entries if entry.state is WANTED and entry.retry_at > self.now]
        assert not self.up or self.book.next_event_at(TIMEOUT) <= min(retries, default=math.inf)
        confirmed = [entry for entry in entries if entry.state is CONFIRMED]
        assert all(self.book.by_server_id(entry.server_id) is entry for entry in confirmed)

    def teardown(self) -> None:
        """Let it come to rest, under a server that accepts: both sides have the same then."""
        if not self.up:
            self.link_up()
        for _ in range(100):
            self.write(10)
            while self.inbox:
                self.process("accept")
            while self.answers:
                self.hear(self.answers.pop(0))
            self.now += 5.0
            self.expire(3)
        rejected = {entry.key for entry in self.book if entry.state is REJECTED}
        wanted = {key for key, slot in self.slots.items() if slot.users}
        assert self.held == wanted - rejected
        assert {entry.key for entry in self.book if entry.state is CONFIRMED} == self.held
        assert self.book.settled(self.now)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(stateful_step_count=40)
