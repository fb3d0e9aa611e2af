from __future__ import annotations

from collections.abc import Sequence as Messages
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.sequence import (
    BackInStep,
    ChangeChain,
    Checksum,
    Deliver,
    Duplicate,
    GapFound,
    Held,
    NeedSnapshot,
    Renewed,
    Sequence,
    SequenceNumber,
    Tracker,
    Verdict,
)
from trio_nova.errors import BadMessage, ConfigError

DELIVER, DUPLICATE, NEED_SNAPSHOT, HELD = Deliver(), Duplicate(), NeedSnapshot(), Held()


@attrs.frozen
class Message:
    """Number `n` of a stream, or a snapshot that contains all up to it; as a chain, it has ids of its own."""

    n: Any
    snapshot: bool = False

    @property
    def id(self) -> int:
        return int(self.n) ** 2

    @property
    def previous(self) -> int | None:
        return None if self.snapshot else (self.n - 1) ** 2


def change(n: int) -> Message:
    return Message(n)


def snap(n: int | None) -> Message:
    return Message(n, snapshot=True)


def is_snapshot(message: Message) -> bool:
    return message.snapshot


def number_of(message: Message) -> int | None:
    return message.n  # type: ignore[no-any-return]


NUMBERS = SequenceNumber(number_of, is_snapshot=is_snapshot)
CHAIN = ChangeChain(lambda message: message.id, lambda message: message.previous, is_snapshot)


def seen(tracker: Tracker, *numbers: int) -> list[Verdict]:
    return [tracker.see(change(n)) for n in numbers]


def in_step(sequence: Sequence = NUMBERS, at: int = 5, **options: Any) -> Tracker:
    """Return a tracker that resyncs, and has seen a snapshot of `at`."""
    tracker = Tracker(sequence, resync=True, **options)
    assert tracker.see(snap(at)) == BackInStep((snap(at),), None)
    return tracker


# --------------------------------------------------------------------------- messages that stand alone


def test_messages_that_continue_are_delivered_wherever_they_begin() -> None:
    assert seen(Tracker(NUMBERS), 7, 8, 9) == [DELIVER] * 3


def test_a_gap_tells_what_is_missing_and_delivery_goes_on_behind_it() -> None:
    assert seen(Tracker(NUMBERS), 1, 5, 6) == [DELIVER, GapFound(2, 5, 3), DELIVER]


def test_a_repetition_is_dropped_and_so_is_what_comes_late() -> None:
    assert seen(Tracker(NUMBERS), 1, 2, 2, 1, 3) == [DELIVER, DELIVER, DUPLICATE, DUPLICATE, DELIVER]
    assert seen(Tracker(NUMBERS), 1, 3, 2, 4) == [DELIVER, GapFound(2, 3, 1), DUPLICATE, DELIVER]


def test_a_message_without_a_number_is_delivered_and_changes_nothing() -> None:
    tracker = Tracker(NUMBERS)
    assert [tracker.see(Message(n)) for n in (None, 1, None, 2)] == [DELIVER] * 4
    held = in_step()
    seen(held, 7)
    assert held.see(Message(None)) == DELIVER


def test_numbers_may_count_in_steps() -> None:
    tracker = Tracker(attrs.evolve(NUMBERS, step=10))
    assert seen(tracker, 10, 20, 50, 55) == [DELIVER, DELIVER, GapFound(30, 50, 2), GapFound(60, 55, 0)]


@pytest.mark.fault("F115", where="memory")
def test_numbers_that_wrap_go_on_at_zero() -> None:
    sequence = attrs.evolve(NUMBERS, modulus=256)
    assert seen(Tracker(sequence), 254, 255, 0, 1) == [DELIVER] * 4
    assert seen(Tracker(sequence), 254, 2, 255) == [DELIVER, GapFound(255, 2, 3), DUPLICATE]
    assert seen(Tracker(sequence), 255, 2) == [DELIVER, GapFound(0, 2, 2)]


@pytest.mark.fault("F115", where="memory")
def test_a_number_far_behind_shows_that_the_server_began_anew() -> None:
    tracker = Tracker(attrs.evolve(NUMBERS, window=10))
    assert seen(tracker, 100, 90, 89, 90) == [DELIVER, DUPLICATE, GapFound(101, 89, None), DELIVER]


def test_without_a_window_every_step_back_is_a_new_beginning() -> None:
    tracker = Tracker(attrs.evolve(NUMBERS, window=0))
    assert seen(tracker, 2, 2, 1, 2) == [DELIVER, DUPLICATE, GapFound(3, 1, None), DELIVER]


@pytest.mark.parametrize("n", ["1", 1.0, True, [1]])
def test_a_number_that_is_none_is_a_bad_message_and_changes_nothing(n: object) -> None:
    tracker = Tracker(NUMBERS)
    seen(tracker, 1)
    for snapshot in (False, True):
        with pytest.raises(BadMessage, match="whole number"):
            tracker.see(Message(n, snapshot))
    assert seen(tracker, 2) == [DELIVER]


@pytest.mark.parametrize("n", [-1, 256])
def test_a_number_beyond_the_modulus_is_a_bad_message(n: int) -> None:
    with pytest.raises(BadMessage, match="from 0 to 255"):
        Tracker(attrs.evolve(NUMBERS, modulus=256)).see(change(n))


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("step", {"step": 0}),
        ("modulus", {"modulus": 0}),
        ("modulus", {"step": 4, "modulus": 8}),
        ("window", {"window": -1}),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        SequenceNumber(number_of, **options)
    assert caught.value.field == field


# --------------------------------------------------------------------------- chains


def test_a_chain_is_followed_by_what_each_change_names() -> None:
    tracker = in_step(CHAIN)
    assert seen(tracker, 6, 7, 7, 6) == [DELIVER, DELIVER, DUPLICATE, DUPLICATE]
    assert seen(tracker, 9) == [GapFound(49, 64, None, held=True)]


def test_a_change_that_names_none_before_it_continues_nothing() -> None:
    unnamed = attrs.evolve(CHAIN, read_previous=lambda message: None)
    assert seen(in_step(unnamed), 6) == [GapFound(25, None, None, held=True)]


def test_ids_that_begin_anew_are_a_gap_and_a_chain_may_go_back_by_itself() -> None:
    assert seen(in_step(attrs.evolve(CHAIN, window=8), at=5), 4) == [GapFound(25, 9, None, held=True)]
    tracker = in_step(attrs.evolve(CHAIN, read_previous=lambda message: 25), at=5)
    assert tracker.see(change(1)) == DELIVER  # it names the last one, so nothing is missing


# --------------------------------------------------------------------------- getting back in step


@pytest.mark.parametrize("sequence", [NUMBERS, CHAIN], ids=["numbers", "chain"])
def test_changes_behind_a_gap_wait_for_a_snapshot_and_those_that_continue_it_follow(sequence: Sequence) -> None:
    tracker = in_step(sequence)
    [gap] = seen(tracker, 7)
    assert isinstance(gap, GapFound)
    assert gap.held
    assert seen(tracker, 8, 9, 8) == [HELD, HELD, DUPLICATE]
    assert not tracker.in_step
    assert tracker.snapshot(snap(7)) == BackInStep((snap(7), change(8), change(9)), gap)
    assert tracker.in_step
    assert seen(tracker, 9, 10) == [DUPLICATE, DELIVER]


@pytest.mark.parametrize(("at", "followers"), [(6, [7, 8]), (8, []), (20, [])])
def test_a_snapshot_takes_the_place_of_what_it_contains(at: int, followers: list[int]) -> None:
    tracker = in_step()
    seen(tracker, 7, 8)
    verdict = tracker.see(snap(at))
    assert isinstance(verdict, BackInStep)
    assert verdict.messages == (snap(at), *map(change, followers))
    assert tracker.last == max(at, 8)


def test_a_snapshot_older_than_what_is_held_is_of_no_use_and_the_next_one_may_be() -> None:
    tracker = in_step()
    seen(tracker, 8)
    assert tracker.snapshot(snap(6)) == NEED_SNAPSHOT
    assert seen(tracker, 9) == [HELD]
    assert tracker.snapshot(snap(7)) == BackInStep((snap(7), change(8), change(9)), GapFound(6, 8, 2, held=True))


def test_the_first_message_of_a_state_is_to_be_a_snapshot() -> None:
    tracker = Tracker(NUMBERS, resync=True)
    assert seen(tracker, 3, 4) == [NEED_SNAPSHOT, HELD]
    assert tracker.snapshot(snap(3)) == BackInStep((snap(3), change(4)), None)


def test_a_hole_in_what_is_held_makes_all_before_it_useless() -> None:
    tracker = in_step()
    assert seen(tracker, 7, 8, 10) == [GapFound(6, 7, 1, held=True), HELD, HELD]
    assert tracker.snapshot(snap(7)) == NEED_SNAPSHOT
    assert tracker.snapshot(snap(9)) == BackInStep((snap(9), change(10)), GapFound(6, 7, 1, held=True))


def test_what_is_held_is_bounded_and_beyond_the_bound_a_snapshot_is_asked_for_again() -> None:
    tracker = in_step(max_held=2)
    assert seen(tracker, 7, 8, 9, 10, 11)[1:] == [HELD, NEED_SNAPSHOT, HELD, NEED_SNAPSHOT]
    verdict = tracker.snapshot(snap(10))
    assert isinstance(verdict, BackInStep)
    assert verdict.messages == (snap(10), change(11))


def test_a_snapshot_in_step_is_delivered_unless_it_is_older_than_what_was() -> None:
    tracker = in_step()
    assert tracker.see(snap(5)) == DELIVER
    assert tracker.see(snap(4)) == DUPLICATE
    assert tracker.see(snap(9)) == DELIVER
    assert seen(tracker, 9, 10) == [DUPLICATE, DELIVER]


def test_a_snapshot_far_behind_shows_that_the_server_began_anew() -> None:
    tracker = in_step(attrs.evolve(NUMBERS, window=10), at=100)
    assert tracker.see(snap(5)) == BackInStep((snap(5),), GapFound(101, 5, None))
    assert seen(tracker, 6) == [DELIVER]


def test_a_snapshot_without_a_position_is_trusted() -> None:
    tracker = in_step()
    seen(tracker, 7)
    assert tracker.see(snap(None)) == BackInStep((snap(None),), GapFound(6, 7, 1, held=True))
    assert seen(tracker, 20, 21, 23)[:2] == [DELIVER, DELIVER]
    assert not tracker.in_step


# --------------------------------------------------------------------------- a new link


@pytest.mark.parametrize(
    ("sequence", "at", "expected"),
    [
        (NUMBERS, 5, Renewed(known=True)),
        (NUMBERS, 6, Renewed(known=False)),
        (NUMBERS, 7, BackInStep((snap(7),), GapFound(6, 7, None))),
        (CHAIN, 5, Renewed(known=True)),
        (CHAIN, 6, BackInStep((snap(6),), GapFound(25, None, None))),
        (NUMBERS, None, BackInStep((snap(None),), None)),
        (NUMBERS, 4, NEED_SNAPSHOT),
    ],
)
def test_a_snapshot_that_was_asked_for_though_all_was_well_tells_what_it_skips(
    sequence: Sequence, at: int | None, expected: Verdict
) -> None:
    tracker = in_step(sequence, at=5)
    assert not tracker.awaits_snapshot
    tracker.renew()
    assert tracker.awaits_snapshot
    assert tracker.see(snap(at)) == expected
    assert tracker.awaits_snapshot is (expected == NEED_SNAPSHOT)
    after = 6 if at is None else max(at, 5) + 1
    assert seen(tracker, after) == [DELIVER]


def test_what_comes_before_a_snapshot_that_was_asked_for_though_all_was_well_is_delivered() -> None:
    tracker = in_step(at=5)
    tracker.renew()
    assert seen(tracker, 6, 7) == [DELIVER, DELIVER]
    assert tracker.see(snap(7)) == Renewed(known=True)
    assert tracker.see(snap(7)) == DELIVER


def test_a_gap_before_a_snapshot_that_is_to_come_anyway_is_closed_by_it() -> None:
    tracker = in_step(at=5)
    tracker.renew()
    assert seen(tracker, 8) == [GapFound(6, 8, 2, held=True)]
    assert tracker.see(snap(7)) == BackInStep((snap(7), change(8)), GapFound(6, 8, 2, held=True))
    assert not tracker.awaits_snapshot


def test_a_new_link_owes_a_snapshot_unless_the_service_resumes() -> None:
    tracker = in_step(at=5)
    tracker.restart(resumed=True)
    assert not tracker.awaits_snapshot
    tracker.restart()
    assert tracker.awaits_snapshot
    tracker.renew()
    assert seen(tracker, 6) == [DELIVER]
    assert tracker.awaits_snapshot
    assert tracker.see(snap(6)) == Renewed(known=True)
    plain = Tracker(NUMBERS)
    plain.restart()
    assert not plain.awaits_snapshot


def test_a_stream_that_goes_on_after_a_new_link_lost_nothing() -> None:
    tracker = Tracker(NUMBERS)
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 3, 3) == [DELIVER, DUPLICATE]


def test_numbers_tell_how_many_were_lost_between_two_links() -> None:
    tracker = Tracker(NUMBERS)
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 10) == [GapFound(3, 10, 7)]


def test_a_count_that_begins_anew_with_a_new_link_is_a_gap_of_unknown_size() -> None:
    tracker = Tracker(NUMBERS)
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 1, 2, 1) == [GapFound(3, 1, None), DELIVER, DUPLICATE]


def test_a_resumed_stream_may_replay_any_amount_of_what_was_delivered() -> None:
    tracker = Tracker(attrs.evolve(NUMBERS, window=2))
    seen(tracker, *range(100))
    tracker.restart(resumed=True)
    assert seen(tracker, *range(100), 100) == [DUPLICATE] * 100 + [DELIVER]
    assert seen(tracker, 1) == [GapFound(101, 1, None)]  # the replay is over, the rule is in force again


@pytest.mark.fault("F115", where="memory")
def test_a_resumed_stream_that_begins_too_late_has_a_gap() -> None:
    tracker = Tracker(NUMBERS)
    seen(tracker, 1, 2)
    tracker.restart(resumed=True)
    assert seen(tracker, 2, 5) == [DUPLICATE, GapFound(3, 5, 2)]


def test_a_link_before_the_first_message_changes_nothing() -> None:
    tracker = Tracker(NUMBERS)
    tracker.restart()
    assert seen(tracker, 5, 6) == [DELIVER, DELIVER]


def test_a_snapshot_that_begins_a_new_link_is_accepted_whatever_its_position() -> None:
    for at in (3, 5, 9):
        tracker = in_step()
        tracker.restart()
        assert tracker.see(snap(at)) == BackInStep((snap(at),), None)
        assert seen(tracker, at + 1) == [DELIVER]


def test_an_old_snapshot_of_a_resumed_stream_is_a_repetition() -> None:
    tracker = in_step(attrs.evolve(NUMBERS, window=1))
    tracker.restart(resumed=True)
    assert tracker.see(snap(2)) == DUPLICATE
    assert tracker.see(snap(5)) == BackInStep((snap(5),), None)


def test_a_snapshot_that_was_awaited_when_the_link_was_lost_is_asked_for_again() -> None:
    tracker = in_step()
    [gap, _] = seen(tracker, 7, 8)
    assert isinstance(gap, GapFound)
    tracker.restart()
    assert seen(tracker, 1, 2) == [NEED_SNAPSHOT, HELD]
    assert tracker.snapshot(snap(1)) == BackInStep((snap(1), change(2)), gap)


# --------------------------------------------------------------------------- checksums


@attrs.frozen
class Summed:
    n: int
    checksum: int | None


def test_a_checksum_that_is_wrong_leads_to_a_snapshot() -> None:
    built: list[int] = []
    checksum = Checksum(lambda message: message.checksum, lambda: sum(built))
    tracker = Tracker(SequenceNumber(lambda message: message.n))
    for message in (Summed(1, 1), Summed(2, None), Summed(3, 6)):
        assert tracker.see(message) == DELIVER
        built.append(message.n)
        assert checksum.matches(message)
    assert not checksum.matches(Summed(3, 7))
    tracker.distrust()
    assert [tracker.see(Summed(n, None)) for n in (4, 5)] == [HELD, HELD]
    tracker.distrust()  # of no effect: what follows is held back already
    snapshot = Summed(4, None)
    assert tracker.snapshot(snapshot) == BackInStep((snapshot, Summed(5, None)), None)


def test_a_snapshot_older_than_what_is_distrusted_is_of_no_use() -> None:
    tracker = in_step()
    tracker.distrust()
    assert tracker.snapshot(snap(4)) == NEED_SNAPSHOT
    assert tracker.snapshot(snap(5)) == BackInStep((snap(5),), None)


def test_a_snapshot_that_is_too_old_on_a_new_link_was_the_first_to_be_asked_for() -> None:
    tracker = in_step()
    tracker.distrust()
    tracker.restart(resumed=True)
    assert tracker.snapshot(snap(4)) == NEED_SNAPSHOT
    assert seen(tracker, 6) == [HELD]


def test_a_gap_is_closed_once() -> None:
    tracker = in_step()
    [gap] = seen(tracker, 7)
    assert isinstance(gap, GapFound)
    assert tracker.snapshot(snap(7)) == BackInStep((snap(7),), gap)
    tracker.distrust()
    assert tracker.snapshot(snap(8)) == BackInStep((snap(8),), None)


def test_a_checksum_that_is_no_number_is_a_bad_message() -> None:
    with pytest.raises(BadMessage):
        Checksum(lambda message: message, lambda: 0).matches("7")


# --------------------------------------------------------------------------- any stream


@given(st.lists(st.integers(0, 40), max_size=60))
def test_any_numbers_are_delivered_in_order_and_once_and_what_is_missing_is_reported(numbers: list[int]) -> None:
    tracker = Tracker(NUMBERS)
    delivered: list[int] = []
    missing: set[int] = set()
    for n in numbers:
        match tracker.see(change(n)):
            case Deliver():
                delivered.append(n)
            case GapFound(expected, got, lost, held):
                assert (got, lost, held) == (n, n - expected, False)
                missing.update(range(expected, n))
                delivered.append(n)
            case verdict:
                assert verdict == DUPLICATE
    assert all(one < other for one, other in pairwise(delivered))
    assert not missing.intersection(delivered)
    if numbers:
        assert missing.union(delivered) == set(range(numbers[0], max(numbers) + 1))


@given(st.lists(st.integers(-5, 5), max_size=60), st.integers(0, 15))
def test_numbers_that_wrap_are_judged_as_those_that_do_not(steps: list[int], start: int) -> None:
    plain, wrapping = Tracker(NUMBERS), Tracker(attrs.evolve(NUMBERS, modulus=2**8))
    n = start + 1000
    for step in steps:
        n = max(n, plain.last or n) + step
        one, other = plain.see(change(n)), wrapping.see(change(n % 2**8))
        if isinstance(one, GapFound):
            assert one.got is not None
            one = attrs.evolve(one, expected=one.expected % 2**8, got=one.got % 2**8)
        assert one == other


def streams() -> st.SearchStrategy[list[Message]]:
    """Make streams of changes that lose, repeat and reorder some, with snapshots, old ones too, in between."""
    steps = st.one_of(
        st.just(("next", 0)),
        st.just(("next", 0)),
        st.just(("swap", 0)),
        st.tuples(st.just("lose"), st.integers(1, 4)),
        st.tuples(st.just("repeat"), st.integers(0, 6)),
        st.tuples(st.just("snapshot"), st.integers(0, 4)),
    )
    return st.lists(steps, max_size=60).map(stream_of)


def stream_of(steps: list[tuple[str, int]]) -> list[Message]:
    stream: list[Message] = []
    n = 10
    for what, amount in steps:
        match what:
            case "next":
                n += 1
                stream.append(change(n))
            case "swap":
                n += 2
                stream += [change(n), change(n - 1)]
            case "lose":
                n += amount
            case "repeat":
                stream.append(change(n - amount))
            case _:
                stream.append(snap(n - amount))
    return stream


@pytest.mark.parametrize("sequence", [NUMBERS, CHAIN], ids=["numbers", "chain"])
@given(stream=streams(), max_held=st.integers(1, 5), distrust_at=st.sets(st.integers(0, 60), max_size=3))
def test_any_stream_is_delivered_as_an_unbroken_chain(
    sequence: Sequence, stream: Messages[Message], max_held: int, distrust_at: set[int]
) -> None:
    tracker = Tracker(sequence, resync=True, max_held=max_held)
    at: int | None = None  # what the user's state contains
    accounted: set[int] = set()
    for index, message in enumerate(stream):
        if index in distrust_at:
            tracker.distrust()
        match tracker.see(message):
            case Deliver() if message.snapshot:
                assert at is not None
                assert message.n >= at
                accounted.update(range(at + 1, message.n + 1))
                at = message.n
            case Deliver():
                assert at is not None
                assert message.n == at + 1
                at = message.n
                accounted.add(at)
            case BackInStep((first, *rest), gap):
                assert first is message
                assert at is None or message.n >= at or distrust_at
                assert [each.n for each in rest] == list(range(message.n + 1, message.n + 1 + len(rest)))
                begin = message.n if at is None else at + 1
                if gap is not None:
                    assert at is not None
                    assert gap.expected == (at + 1 if sequence is NUMBERS else at**2)
                if gap is not None or at is None or distrust_at:
                    accounted.update(range(begin, message.n + 1))
                at = message.n + len(rest)
                accounted.update(range(message.n + 1, at + 1))
            case GapFound(held=held):
                assert held
                assert not tracker.in_step
            case Duplicate():
                # What is dropped was delivered already, or comes before what is held back.
                assert tracker._held or (at is not None and message.n <= at)
            case NeedSnapshot() | Held():
                assert not tracker.in_step
        assert len(tracker._held or ()) <= max_held
        if at is not None:
            assert accounted >= set(range(min(accounted), at + 1)), "lost without a report"


@pytest.mark.parametrize("sequence", [NUMBERS, CHAIN], ids=["numbers", "chain"])
@given(stream=streams())
def test_a_fresh_snapshot_ends_any_trouble(sequence: Sequence, stream: Messages[Message]) -> None:
    tracker = Tracker(sequence, resync=True)
    for message in stream:
        tracker.see(message)
    tracker.see(snap(1000))
    assert tracker.in_step
    assert seen(tracker, 1001, 1002) == [DELIVER, DELIVER]
