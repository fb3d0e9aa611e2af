from __future__ import annotations

import gc
from collections.abc import Callable
from collections.abc import Sequence as Messages
from itertools import pairwise
from typing import Any, TypeAlias
from weakref import WeakSet

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.sequence import (
    BackInStep,
    Deliver,
    Duplicate,
    GapFound,
    Held,
    NeedSnapshot,
    Renewed,
    Step,
    Tracker,
    Verdict,
)
from trio_nova.errors import BadMessage, ConfigError
from trio_nova.readings import Data

DELIVER, DUPLICATE, NEED_SNAPSHOT, HELD = Deliver(), Duplicate(), NeedSnapshot(), Held()


@attrs.frozen
class Message:
    """Number `n` of a stream, or a snapshot that contains all up to it; n is None: outside the sequence."""

    n: Any
    snapshot: bool = False


def change(n: int) -> Message:
    return Message(n)


def snap(n: int | None) -> Message:
    return Message(n, snapshot=True)


Kind: TypeAlias = Callable[[Message], Step]


def numbers(message: Message) -> Step:
    """Say where a message of a numbered stream stands."""
    return Step(message.n, snapshot=message.snapshot)


def chain(message: Message) -> Step:
    """Say where it stands in a chain, with ids that jump."""
    previous = None if message.snapshot else (message.n - 1) ** 2
    return Step(message.n**2, previous=previous, snapshot=message.snapshot)


def ranges(message: Message) -> Step:
    """Say where it stands where each message covers ten numbers, of which the last is 10 * n."""
    first = None if message.snapshot else 10 * message.n - 9
    return Step(10 * message.n, first, snapshot=message.snapshot)


EACH_KIND = pytest.mark.parametrize("kind", [numbers, chain, ranges])


def see(tracker: Tracker, message: Message, kind: Kind = numbers) -> Verdict:
    return tracker.see(kind(message), message)


def fetched(tracker: Tracker, message: Message, kind: Kind = numbers) -> Verdict:
    """Show the tracker a snapshot that did not come in the stream."""
    return tracker.snapshot(kind(message), message)


def seen(tracker: Tracker, *ns: int, kind: Kind = numbers) -> list[Verdict]:
    return [see(tracker, change(n), kind) for n in ns]


def in_step(kind: Kind = numbers, at: int = 5, **options: Any) -> Tracker:
    """Return a tracker that resyncs, and has seen a snapshot of `at`."""
    tracker = Tracker(True, **options)
    assert see(tracker, snap(at), kind) == BackInStep((snap(at),), None)
    return tracker


# --------------------------------------------------------------------------- messages that stand alone


def test_messages_that_continue_are_delivered_wherever_they_begin() -> None:
    assert seen(Tracker(), 7, 8, 9) == [DELIVER] * 3


def test_a_gap_tells_what_is_missing_and_delivery_goes_on_behind_it() -> None:
    assert seen(Tracker(), 1, 5, 6) == [DELIVER, GapFound(2, 5, 3), DELIVER]


def test_a_repetition_is_dropped_and_so_is_what_comes_late() -> None:
    assert seen(Tracker(), 1, 2, 2, 1, 3) == [DELIVER, DELIVER, DUPLICATE, DUPLICATE, DELIVER]
    assert seen(Tracker(), 1, 3, 2, 4) == [DELIVER, GapFound(2, 3, 1), DUPLICATE, DELIVER]


def test_a_message_without_a_number_is_delivered_and_changes_nothing() -> None:
    tracker, held = Tracker(), in_step()
    seen(held, 7)
    for step in (None, Step(None)):
        assert tracker.see(step, "a heartbeat") == DELIVER
        assert not tracker.has_begun
        assert held.see(step, "a heartbeat") == DELIVER
    assert seen(tracker, 1) == [DELIVER]
    assert tracker.see(None, "a heartbeat") == DELIVER
    assert seen(tracker, 2) == [DELIVER]
    assert tracker.has_begun


def test_a_checksum_is_of_no_account_where_messages_stand_alone() -> None:
    tracker = Tracker()
    assert tracker.see(Step(None, checksum=1), "a message") == DELIVER
    assert not tracker.has_begun


def test_numbers_may_count_in_steps() -> None:
    tracker = Tracker(step=10)
    assert seen(tracker, 10, 20, 50, 55) == [DELIVER, DELIVER, GapFound(30, 50, 2), GapFound(60, 55, 0)]


@pytest.mark.fault("F115", where="memory")
def test_numbers_that_wrap_go_on_at_zero() -> None:
    assert seen(Tracker(modulus=256), 254, 255, 0, 1) == [DELIVER] * 4
    assert seen(Tracker(modulus=256), 254, 2, 255) == [DELIVER, GapFound(255, 2, 3), DUPLICATE]
    assert seen(Tracker(modulus=256), 255, 2) == [DELIVER, GapFound(0, 2, 2)]


@pytest.mark.fault("F115", where="memory")
def test_a_number_far_behind_shows_that_the_server_began_anew() -> None:
    tracker = Tracker(window=10)
    assert seen(tracker, 100, 90, 89, 90) == [DELIVER, DUPLICATE, GapFound(101, 89, None), DELIVER]


def test_without_a_window_every_step_back_is_a_new_beginning() -> None:
    tracker = Tracker(window=0)
    assert seen(tracker, 2, 2, 1, 2) == [DELIVER, DUPLICATE, GapFound(3, 1, None), DELIVER]


def step_with(field: str, n: Any, *, snapshot: bool = False) -> Step:
    fields: dict[str, Any] = {"last": 2, "snapshot": snapshot, field: n}
    return Step(**fields)


@pytest.mark.parametrize("n", ["1", 1.0, True, [1]])
@pytest.mark.parametrize("field", ["last", "first", "previous", "checksum"])
def test_a_number_that_is_none_is_a_bad_message_and_changes_nothing(n: Any, field: str) -> None:
    tracker = Tracker()
    seen(tracker, 1)
    for snapshot in (False, True):
        with pytest.raises(BadMessage, match="whole number"):
            tracker.see(step_with(field, n, snapshot=snapshot), "bad")
    with pytest.raises(BadMessage, match="whole number"):
        tracker.snapshot(step_with(field, n), "bad")
    assert seen(tracker, 2) == [DELIVER]


@pytest.mark.parametrize("n", [-1, 256])
@pytest.mark.parametrize("field", ["last", "first", "previous"])
def test_a_number_beyond_the_modulus_is_a_bad_message(n: int, field: str) -> None:
    tracker = Tracker(modulus=256)
    seen(tracker, 1)
    with pytest.raises(BadMessage, match="from 0 to 255"):
        tracker.see(step_with(field, n), "bad")
    assert seen(tracker, 2) == [DELIVER]
    assert tracker.see(Step(3, checksum=n), "good") == DELIVER


def test_a_range_that_ends_before_it_begins_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="cannot cover the sequence numbers 3 to 2"):
        Tracker().see(Step(2, first=3), "bad")
    assert Tracker(modulus=256).see(Step(2, first=254), "good") == DELIVER


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("resync", {"resync": 1}),
        ("step", {"step": 0}),
        ("modulus", {"modulus": 0}),
        ("modulus", {"step": 4, "modulus": 8}),
        ("window", {"window": -1}),
        ("max_held", {"max_held": 0}),
        ("build", {"resync": True, "build": 1}),
        ("build", {"build": list}),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Tracker(**options)
    assert caught.value.field == field


# --------------------------------------------------------------------------- chains


def test_a_chain_is_followed_by_what_each_change_names() -> None:
    tracker = in_step(chain)
    assert seen(tracker, 6, 7, 7, 6, kind=chain) == [DELIVER, DELIVER, DUPLICATE, DUPLICATE]
    assert seen(tracker, 9, kind=chain) == [GapFound(49, 64, None, held=True)]


def test_a_change_of_a_chain_that_names_none_before_it_is_judged_by_its_number() -> None:
    assert in_step(chain).see(Step(36), "unnamed") == GapFound(26, 36, 10, held=True)
    assert in_step(chain).see(Step(26), "unnamed") == DELIVER


def test_ids_that_begin_anew_are_a_gap_and_a_chain_may_go_back_by_itself() -> None:
    assert seen(in_step(chain, window=8), 4, kind=chain) == [GapFound(25, 9, None, held=True)]
    tracker = in_step(chain)
    assert tracker.see(Step(1, previous=25), "anew") == DELIVER  # it names the last one, so nothing is missing
    assert tracker.see(Step(2, previous=1), "next") == DELIVER


def test_a_change_that_names_itself_says_that_nothing_has_changed() -> None:
    tracker = in_step(chain)
    assert tracker.see(Step(25, previous=25), "a sign of life") == DELIVER
    assert seen(tracker, 6, kind=chain) == [DELIVER]


def test_ids_jump_so_that_the_window_of_chains_and_ranges_is_wide_and_that_of_numbers_is_narrow() -> None:
    assert seen(Tracker(), 500, 501, 499, 301, kind=chain) == [DELIVER, DELIVER, DUPLICATE, DUPLICATE]
    assert seen(Tracker(), 500, 460, kind=ranges) == [DELIVER, DUPLICATE]
    assert seen(Tracker(), 500, 244) == [DELIVER, DUPLICATE]
    assert seen(Tracker(), 500, 243) == [DELIVER, GapFound(501, 243, None)]
    tracker = Tracker(window=20)
    assert seen(tracker, 500, 498, kind=ranges) == [DELIVER, DUPLICATE]
    assert seen(tracker, 497, kind=ranges) == [GapFound(5001, 4961, None)]


# --------------------------------------------------------------------------- ranges


def test_ranges_are_followed_by_what_they_cover() -> None:
    tracker = Tracker()
    assert tracker.see(Step(103, first=101), "three") == DELIVER
    assert tracker.see(Step(104, first=104), "one") == DELIVER
    assert tracker.see(Step(104, first=102), "behind") == DUPLICATE
    assert tracker.see(Step(105), "one, and no range") == DELIVER
    assert tracker.see(Step(110, first=108), "ahead") == GapFound(106, 108, 2)
    assert tracker.last == 110


def test_a_range_of_which_a_part_is_new_is_delivered() -> None:
    tracker = in_step(at=100)
    assert tracker.see(Step(103, first=99), "new from 101 on") == DELIVER
    assert tracker.see(Step(104, first=103), "new from 104 on") == DELIVER
    assert tracker.last == 104


def test_ranges_may_wrap_and_count_in_steps() -> None:
    tracker = Tracker(modulus=256)
    assert tracker.see(Step(254), 0) == DELIVER
    assert tracker.see(Step(1, first=253), 0) == DELIVER
    assert tracker.see(Step(255, first=250), 0) == DUPLICATE
    assert tracker.see(Step(8, first=5), 0) == GapFound(2, 5, 3)
    tracker = Tracker(step=10)
    assert tracker.see(Step(10), 0) == DELIVER
    assert tracker.see(Step(40, first=20), 0) == DELIVER
    assert tracker.see(Step(90, first=70), 0) == GapFound(50, 70, 2)
    assert tracker.see(Step(95, first=85), 0) == DELIVER


def test_where_a_range_also_names_what_it_follows_that_decides() -> None:
    tracker = in_step(at=100)
    assert tracker.see(Step(120, first=110, previous=100), "a") == DELIVER
    assert tracker.see(Step(140, first=119, previous=115), "b") == GapFound(120, 115, None, held=True)


@pytest.mark.parametrize(
    ("at", "followers"),
    [
        (98, None),
        (99, None),
        (100, "abc"),
        (101, "abc"),
        (102, "abc"),
        (103, "bc"),
        (104, "c"),
        (105, "c"),
        (106, "c"),
        (107, "c"),
        (108, ""),
        (120, ""),
    ],
)
def test_a_snapshot_at_any_place_joins_the_ranges_that_were_held_back(at: int, followers: str | None) -> None:
    tracker = Tracker(True)
    assert tracker.see(Step(103, first=101), "a") == NEED_SNAPSHOT
    assert tracker.see(Step(104, first=104), "b") == HELD
    assert tracker.see(Step(108, first=105), "c") == HELD
    verdict = tracker.snapshot(Step(at, snapshot=True), "snapshot")
    if followers is None:
        assert verdict == NEED_SNAPSHOT
        return
    assert verdict == BackInStep(("snapshot", *followers), None)
    last = max(at, 108)
    assert tracker.last == last
    assert tracker.see(Step(last + 2, first=last), "next") == DELIVER


@pytest.mark.parametrize("at", [25, 26, 35])
def test_a_snapshot_inside_of_what_a_change_covers_is_continued_by_it(at: int) -> None:
    snapshot = Step(at, snapshot=True)
    tracker = Tracker(True)
    seen(tracker, 7, 8, kind=chain)
    assert tracker.snapshot(snapshot, "snapshot") == NEED_SNAPSHOT
    tracker = Tracker(True)
    seen(tracker, 6, 7, kind=chain)
    assert tracker.snapshot(snapshot, "snapshot") == BackInStep(("snapshot", change(6), change(7)), None)
    tracker = Tracker(True)
    assert tracker.snapshot(snapshot, "snapshot") == BackInStep(("snapshot",), None)
    assert seen(tracker, 5, 6, 7, kind=chain) == [DUPLICATE, DELIVER, DELIVER]


def test_a_change_that_covers_more_than_the_last_change_does_not_continue_it() -> None:
    tracker = in_step(chain, at=5)
    seen(tracker, 6, kind=chain)
    assert tracker.see(Step(49, previous=30), "forked") == GapFound(36, 30, None, held=True)
    tracker = Tracker(True)
    seen(tracker, 6, kind=chain)
    assert fetched(tracker, snap(5), chain) == BackInStep((snap(5), change(6)), None)
    assert tracker.see(Step(49, previous=30), "forked") == GapFound(36, 30, None, held=True)


def test_a_snapshot_in_step_may_also_stand_inside_of_what_the_next_change_covers() -> None:
    tracker = in_step(chain)
    assert tracker.see(Step(30, snapshot=True), "snapshot") == DELIVER
    assert seen(tracker, 6, kind=chain) == [DELIVER]


def test_a_chain_that_begins_anew_while_a_snapshot_is_awaited_is_joined_where_it_does() -> None:
    tracker = Tracker(True)
    seen(tracker, 5, 6, kind=chain)
    assert tracker.see(Step(1, previous=36), "anew") == HELD
    assert tracker.see(Step(2, previous=1), "next") == HELD
    assert fetched(tracker, snap(6), chain) == BackInStep((snap(6), "anew", "next"), None)
    assert tracker.see(Step(3, previous=2), "after") == DELIVER


# --------------------------------------------------------------------------- getting back in step


@EACH_KIND
def test_changes_behind_a_gap_wait_for_a_snapshot_and_those_that_continue_it_follow(kind: Kind) -> None:
    tracker = in_step(kind)
    [gap] = seen(tracker, 7, kind=kind)
    assert isinstance(gap, GapFound)
    assert gap.held
    assert seen(tracker, 8, 9, 8, kind=kind) == [HELD, HELD, DUPLICATE]
    assert not tracker.in_step
    assert fetched(tracker, snap(7), kind) == BackInStep((snap(7), change(8), change(9)), gap)
    assert tracker.in_step
    assert seen(tracker, 9, 10, kind=kind) == [DUPLICATE, DELIVER]


@pytest.mark.parametrize(("at", "followers"), [(6, [7, 8]), (8, []), (20, [])])
def test_a_snapshot_takes_the_place_of_what_it_contains(at: int, followers: list[int]) -> None:
    tracker = in_step()
    seen(tracker, 7, 8)
    verdict = see(tracker, snap(at))
    assert isinstance(verdict, BackInStep)
    assert verdict.messages == (snap(at), *map(change, followers))
    assert tracker.last == max(at, 8)


def test_a_snapshot_older_than_what_is_held_is_of_no_use_and_the_next_one_may_be() -> None:
    tracker = in_step()
    seen(tracker, 8)
    assert fetched(tracker, snap(6)) == NEED_SNAPSHOT
    assert seen(tracker, 9) == [HELD]
    assert fetched(tracker, snap(7)) == BackInStep((snap(7), change(8), change(9)), GapFound(6, 8, 2, held=True))


def test_the_first_message_of_a_state_is_to_be_a_snapshot() -> None:
    tracker = Tracker(True)
    assert seen(tracker, 3, 4) == [NEED_SNAPSHOT, HELD]
    assert fetched(tracker, snap(3)) == BackInStep((snap(3), change(4)), None)


def test_a_hole_in_what_is_held_makes_all_before_it_useless() -> None:
    tracker = in_step()
    assert seen(tracker, 7, 8, 10) == [GapFound(6, 7, 1, held=True), HELD, HELD]
    assert fetched(tracker, snap(7)) == NEED_SNAPSHOT
    assert fetched(tracker, snap(9)) == BackInStep((snap(9), change(10)), GapFound(6, 7, 1, held=True))


def test_what_is_held_is_bounded_and_beyond_the_bound_a_snapshot_is_asked_for_again() -> None:
    tracker = in_step(max_held=2)
    assert seen(tracker, 7, 8, 9, 10, 11)[1:] == [HELD, NEED_SNAPSHOT, HELD, NEED_SNAPSHOT]
    verdict = fetched(tracker, snap(10))
    assert isinstance(verdict, BackInStep)
    assert verdict.messages == (snap(10), change(11))


def test_a_snapshot_in_step_is_delivered_unless_it_is_older_than_what_was() -> None:
    tracker = in_step()
    assert see(tracker, snap(5)) == DELIVER
    assert see(tracker, snap(4)) == DUPLICATE
    assert see(tracker, snap(9)) == DELIVER
    assert seen(tracker, 9, 10) == [DUPLICATE, DELIVER]


def test_a_snapshot_far_behind_shows_that_the_server_began_anew() -> None:
    tracker = in_step(at=100, window=10)
    assert see(tracker, snap(5)) == BackInStep((snap(5),), GapFound(101, 5, None))
    assert seen(tracker, 6) == [DELIVER]


def test_a_snapshot_without_a_position_is_trusted() -> None:
    tracker = in_step()
    seen(tracker, 7)
    assert see(tracker, snap(None)) == BackInStep((snap(None),), GapFound(6, 7, 1, held=True))
    assert tracker.snapshot(None, "without a step") == DELIVER
    assert seen(tracker, 20, 21, 23)[:2] == [DELIVER, DELIVER]
    assert not tracker.in_step


# --------------------------------------------------------------------------- a new link


@pytest.mark.parametrize(
    ("kind", "at", "expected"),
    [
        (numbers, 5, Renewed(known=True)),
        (numbers, 6, Renewed(known=False)),
        (numbers, 7, BackInStep((snap(7),), GapFound(6, 7, None))),
        (chain, 5, Renewed(known=True)),
        (chain, 6, BackInStep((snap(6),), GapFound(26, 36, None))),
        (ranges, 5, Renewed(known=True)),
        (ranges, 6, BackInStep((snap(6),), GapFound(51, 60, None))),
        (numbers, None, BackInStep((snap(None),), None)),
        (numbers, 4, NEED_SNAPSHOT),
    ],
)
def test_a_snapshot_that_was_asked_for_though_all_was_well_tells_what_it_skips(
    kind: Kind, at: int | None, expected: Verdict
) -> None:
    tracker = in_step(kind, at=5)
    assert not tracker.awaits_snapshot
    tracker.renew()
    assert tracker.awaits_snapshot
    assert see(tracker, snap(at), kind) == expected
    assert tracker.awaits_snapshot is (expected == NEED_SNAPSHOT)
    after = 6 if at is None else max(at, 5) + 1
    assert seen(tracker, after, kind=kind) == [DELIVER]


def test_what_comes_before_a_snapshot_that_was_asked_for_though_all_was_well_is_delivered() -> None:
    tracker = in_step(at=5)
    tracker.renew()
    assert seen(tracker, 6, 7) == [DELIVER, DELIVER]
    assert see(tracker, snap(7)) == Renewed(known=True)
    assert see(tracker, snap(7)) == DELIVER


def test_a_snapshot_from_elsewhere_is_joined_for_who_waits_to_what_others_got_since_it_was_announced() -> None:
    tracker = in_step(at=500)
    tracker.renew()
    assert seen(tracker, *range(501, 1000)) == [DELIVER] * 499
    assert see(tracker, snap(499)) == NEED_SNAPSHOT  # 500 was delivered before
    assert tracker.awaits_snapshot
    joined = Renewed(known=True, following=tuple(map(change, range(601, 1000))))
    assert see(tracker, snap(600)) == joined  # however far behind it is
    assert not tracker.awaits_snapshot
    assert see(tracker, snap(998)) == DUPLICATE
    assert seen(tracker, 1000) == [DELIVER]


def test_no_more_is_kept_for_a_snapshot_that_was_announced_than_may_be_held_back() -> None:
    tracker = Tracker(True, max_held=3)
    see(tracker, snap(5))
    tracker.renew()
    seen(tracker, 6, 7, 8, 9)
    assert see(tracker, snap(5)) == NEED_SNAPSHOT
    assert see(tracker, snap(6)) == Renewed(known=True, following=(change(7), change(8), change(9)))


def test_what_came_on_the_link_before_is_not_joined_to_a_snapshot() -> None:
    tracker = in_step(at=5)
    tracker.renew()
    seen(tracker, 6, 7)
    tracker.restart()
    assert see(tracker, snap(6)) == BackInStep((snap(6),), None)


def test_a_gap_before_a_snapshot_that_is_to_come_anyway_is_closed_by_it() -> None:
    tracker = in_step(at=5)
    tracker.renew()
    assert seen(tracker, 8) == [GapFound(6, 8, 2, held=True)]
    assert see(tracker, snap(7)) == BackInStep((snap(7), change(8)), GapFound(6, 8, 2, held=True))
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
    assert see(tracker, snap(6)) == Renewed(known=True)
    plain = Tracker()
    plain.restart()
    assert not plain.awaits_snapshot


def test_a_stream_that_goes_on_after_a_new_link_lost_nothing() -> None:
    tracker = Tracker()
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 3, 3) == [DELIVER, DUPLICATE]


def test_numbers_tell_how_many_were_lost_between_two_links() -> None:
    tracker = Tracker()
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 10) == [GapFound(3, 10, 7)]


def test_a_count_that_begins_anew_with_a_new_link_is_a_gap_of_unknown_size() -> None:
    tracker = Tracker()
    seen(tracker, 1, 2)
    tracker.restart()
    assert seen(tracker, 1, 2, 1) == [GapFound(3, 1, None), DELIVER, DUPLICATE]


def test_a_resumed_stream_may_replay_any_amount_of_what_was_delivered() -> None:
    tracker = Tracker(window=2)
    seen(tracker, *range(100))
    tracker.restart(resumed=True)
    assert seen(tracker, *range(100), 100) == [DUPLICATE] * 100 + [DELIVER]
    assert seen(tracker, 1) == [GapFound(101, 1, None)]  # the replay is over, the rule is in force again


@pytest.mark.fault("F115", where="memory")
def test_a_resumed_stream_that_begins_too_late_has_a_gap() -> None:
    tracker = Tracker()
    seen(tracker, 1, 2)
    tracker.restart(resumed=True)
    assert seen(tracker, 2, 5) == [DUPLICATE, GapFound(3, 5, 2)]


def test_a_link_before_the_first_message_changes_nothing() -> None:
    tracker = Tracker()
    tracker.restart()
    assert seen(tracker, 5, 6) == [DELIVER, DELIVER]


def test_a_snapshot_that_begins_a_new_link_is_accepted_whatever_its_position() -> None:
    for at in (3, 5, 9):
        tracker = in_step()
        tracker.restart()
        assert see(tracker, snap(at)) == BackInStep((snap(at),), None)
        assert seen(tracker, at + 1) == [DELIVER]


def test_an_old_snapshot_of_a_resumed_stream_is_a_repetition() -> None:
    tracker = in_step(window=1)
    tracker.restart(resumed=True)
    assert see(tracker, snap(2)) == DUPLICATE
    assert see(tracker, snap(5)) == BackInStep((snap(5),), None)


def test_a_snapshot_that_was_awaited_when_the_link_was_lost_is_asked_for_again() -> None:
    tracker = in_step()
    [gap, _] = seen(tracker, 7, 8)
    assert isinstance(gap, GapFound)
    tracker.restart()
    assert seen(tracker, 1, 2) == [NEED_SNAPSHOT, HELD]
    assert fetched(tracker, snap(1)) == BackInStep((snap(1), change(2)), gap)


# --------------------------------------------------------------------------- distrust


def test_what_follows_a_distrusted_message_waits_for_a_snapshot() -> None:
    tracker = in_step(at=3)
    tracker.distrust()
    assert seen(tracker, 4, 5) == [HELD, HELD]
    tracker.distrust()  # of no effect: what follows is held back already
    assert fetched(tracker, snap(4)) == BackInStep((snap(4), change(5)), None)


def test_a_snapshot_older_than_what_is_distrusted_is_of_no_use() -> None:
    tracker = in_step()
    tracker.distrust()
    assert fetched(tracker, snap(4)) == NEED_SNAPSHOT
    assert fetched(tracker, snap(5)) == BackInStep((snap(5),), None)


def test_what_a_snapshot_contains_is_not_held_back_any_more_even_if_it_is_too_old() -> None:
    tracker = in_step()
    tracker.distrust()
    assert seen(tracker, 4) == [HELD]
    assert fetched(tracker, snap(4)) == NEED_SNAPSHOT
    assert seen(tracker, 4, 6) == [HELD, HELD]


def test_a_snapshot_that_is_too_old_on_a_new_link_was_the_first_to_be_asked_for() -> None:
    tracker = in_step()
    tracker.distrust()
    tracker.restart(resumed=True)
    assert fetched(tracker, snap(4)) == NEED_SNAPSHOT
    assert seen(tracker, 6) == [HELD]


def test_a_gap_is_closed_once() -> None:
    tracker = in_step()
    [gap] = seen(tracker, 7)
    assert isinstance(gap, GapFound)
    assert fetched(tracker, snap(7)) == BackInStep((snap(7),), gap)
    tracker.distrust()
    assert fetched(tracker, snap(8)) == BackInStep((snap(8),), None)


# --------------------------------------------------------------------------- checksums


@attrs.define(eq=False)
class Total:
    """The state of a stream of amounts: their sum, which is its checksum as well."""

    amounts: list[int] = attrs.field(factory=list)

    def apply(self, message: int, snapshot: bool) -> None:
        assert snapshot is not bool(self.amounts)
        if message == ILL:
            raise ValueError("it is ill")
        self.amounts.append(message)

    def checksum(self) -> int:
        return sum(self.amounts)


ILL = -1


def summed(**options: Any) -> Tracker:
    return Tracker(True, build=Total, **options)


def amount(n: int, checksum: int | None, last: int | None = None) -> tuple[Step, int]:
    return Step(last, checksum=checksum), n


def first(n: int, last: int | None = None, checksum: int | None = None) -> tuple[Step, int]:
    return Step(last, snapshot=True, checksum=checksum), n


def wrong(checksum: int, expected: int) -> str:
    return f"the checksum of the book is {checksum}, not {expected}"


def test_a_stream_of_checksums_alone_begins_with_a_snapshot_and_goes_on_as_long_as_they_hold() -> None:
    tracker = summed()
    assert tracker.see(*amount(5, 5)) == NEED_SNAPSHOT
    assert tracker.see(*amount(6, 11)) == HELD
    assert not tracker.has_begun
    assert tracker.see(*first(100)) == BackInStep((100,), None)
    assert tracker.has_begun
    assert tracker.last is None
    assert tracker.see(*amount(5, 105)) == DELIVER
    assert tracker.see(*amount(6, None)) == DELIVER
    assert tracker.see(None, "a heartbeat") == DELIVER
    assert tracker.see(*amount(7, 118)) == DELIVER


def test_a_checksum_that_does_not_hold_leads_to_a_snapshot() -> None:
    tracker = summed()
    tracker.see(*first(100))
    gap = GapFound(None, None, None, held=True, checksum=True, cause=wrong(105, 106))
    assert tracker.see(*amount(5, 106)) == gap
    assert not tracker.in_step
    assert tracker.see(*amount(6, 112)) == HELD
    assert tracker.see(None, "a heartbeat") == DELIVER
    assert tracker.see(*first(112)) == BackInStep((112,), gap)
    assert tracker.see(*amount(7, 119)) == DELIVER


def test_an_error_of_the_builder_is_a_checksum_that_does_not_hold_and_is_told_in_words() -> None:
    tracker = summed()
    tracker.see(*first(100))
    words = "the book cannot be built: ValueError: it is ill"
    assert tracker.see(*amount(ILL, None)) == GapFound(None, None, None, held=True, checksum=True, cause=words)
    assert tracker.see(*first(ILL)) == GapFound(None, None, None, held=True, checksum=True, cause=words)
    assert isinstance(tracker.see(*first(1)), BackInStep)


def test_a_builder_that_cannot_be_made_is_told_in_words() -> None:
    def build() -> Total:
        raise OSError("no room")

    tracker = Tracker(True, build=build)
    words = "the book cannot be built: OSError: no room"
    assert tracker.see(*first(1)) == GapFound(None, None, None, held=True, checksum=True, cause=words)


def test_each_snapshot_begins_a_book_of_its_own() -> None:
    tracker = summed()
    tracker.see(*first(100, 1))
    assert tracker.see(*first(50, 2, checksum=50)) == DELIVER
    tracker.renew()
    assert tracker.see(*first(60, 2, checksum=60)) == Renewed(known=True)
    assert tracker.see(*amount(5, 65, 3)) == DELIVER
    tracker.restart()
    assert tracker.see(*first(70, 3)) == BackInStep((70,), None)
    assert tracker.see(*amount(5, 75, 4)) == DELIVER


def test_a_snapshot_that_does_not_fit_what_was_delivered_since_leaves_those_who_read_as_they_are() -> None:
    tracker = summed()
    tracker.see(*first(100, 1))
    tracker.renew()
    assert tracker.see(*amount(5, 105, 2)) == DELIVER
    assert tracker.see(*first(99, 1)) == NEED_SNAPSHOT
    assert tracker.see(*amount(5, 110, 3)) == DELIVER
    assert tracker.see(*first(105, 2)) == Renewed(known=True, following=(5,))
    assert tracker.see(*amount(5, 115, 4)) == DELIVER


def test_a_book_is_built_of_what_the_consumer_gets_of_a_reading() -> None:
    tracker = summed()
    assert tracker.see(Step(None, snapshot=True), Data("book", 100)) == BackInStep((Data("book", 100),), None)
    assert tracker.see(Step(None, checksum=105), Data("book", 5)) == DELIVER


@pytest.mark.parametrize("renewing", [False, True])
def test_a_snapshot_whose_checksum_does_not_hold_is_not_delivered(renewing: bool) -> None:
    tracker = summed()
    tracker.see(*first(100, 5))
    if renewing:
        tracker.renew()
    gap = GapFound(6, 8, None, held=True, checksum=True, cause=wrong(101, 102))
    assert tracker.see(*first(101, 8, checksum=102)) == gap
    assert tracker.last == 5
    again = GapFound(6, 9, None, held=True, checksum=True, cause=wrong(103, 104))
    assert tracker.see(*first(103, 9, checksum=104)) == again
    assert tracker.see(*first(105, 9, checksum=105)) == BackInStep((105,), gap)


def test_a_message_whose_checksum_does_not_hold_is_tried_again_on_an_older_snapshot() -> None:
    tracker = summed()
    tracker.see(*first(100, 5))
    gap = GapFound(6, 6, None, held=True, checksum=True, cause=wrong(103, 203))
    assert tracker.see(*amount(3, 203, 6)) == gap
    assert tracker.see(*amount(4, 207, 7)) == HELD
    assert tracker.see(*amount(4, 207, 7)) == DUPLICATE
    assert tracker.snapshot(*first(150, 4)) == NEED_SNAPSHOT
    assert tracker.snapshot(*first(200, 5)) == BackInStep((200, 3, 4), gap)
    assert tracker.see(*amount(1, 208, 8)) == DELIVER


def test_what_was_held_back_is_checked_as_it_joins_and_a_message_that_does_not_fit_asks_for_a_newer_snapshot() -> None:
    tracker = summed()
    for n in (6, 7, 8):
        tracker.see(*amount(1, 201 if n == 7 else 100 + n, n))
    gap = GapFound(7, 7, None, held=True, checksum=True, cause=wrong(107, 201))
    assert tracker.snapshot(*first(105, 5)) == gap
    assert not tracker.has_begun
    assert tracker.snapshot(*first(106, 6)) == NEED_SNAPSHOT
    assert tracker.snapshot(*first(107, 7)) == BackInStep((107, 1), gap)
    assert tracker.last == 8


def test_a_message_that_does_not_fit_and_is_the_last_leaves_nothing_that_is_held_back() -> None:
    tracker = summed()
    tracker.see(*amount(1, 0, 6))
    gap = GapFound(6, 6, None, held=True, checksum=True, cause=wrong(106, 0))
    assert tracker.snapshot(*first(105, 5)) == gap
    assert tracker.see(*amount(1, 107, 7)) == HELD
    assert tracker.snapshot(*first(106, 6)) == BackInStep((106, 1), gap)


def test_a_gap_that_a_checksum_follows_is_closed_as_the_gap_that_it_was() -> None:
    tracker = summed()
    tracker.see(*first(100, 5))
    gap = GapFound(6, 8, 2, held=True)
    assert tracker.see(*amount(1, 108, 8)) == gap
    assert isinstance(tracker.snapshot(*first(107, 7, checksum=0)), GapFound)
    assert tracker.snapshot(*first(107, 7, checksum=107)) == BackInStep((107, 1), gap)


def test_a_message_without_a_number_goes_with_the_one_before_it() -> None:
    tracker = summed()
    tracker.see(*amount(0, None))
    tracker.see(*amount(1, None, 6))
    tracker.see(*amount(2, None))
    tracker.see(*amount(3, None, 7))
    tracker.see(*amount(4, 110))
    assert tracker.snapshot(*first(103, 6)) == BackInStep((103, 3, 4), None)
    assert tracker.last == 7
    assert tracker.see(*amount(0, 110, 8)) == DELIVER


@pytest.mark.parametrize("resumed", [False, True])
def test_a_stream_of_checksums_alone_goes_on_over_a_new_link_only_where_the_service_resumes(resumed: bool) -> None:
    tracker = summed()
    tracker.see(*first(100))
    tracker.restart(resumed=resumed)
    if resumed:
        assert tracker.see(*amount(1, 101)) == DELIVER
        assert tracker.see(*first(200)) == DELIVER
    else:
        assert tracker.see(*amount(1, 101)) == NEED_SNAPSHOT
        assert tracker.see(*first(200)) == BackInStep((200,), None)
    assert tracker.see(*amount(1, 201)) == DELIVER


def test_a_snapshot_of_checksums_alone_that_was_asked_for_though_all_was_well_is_for_all() -> None:
    tracker = summed()
    tracker.see(*first(100))
    tracker.renew()
    assert tracker.see(*amount(1, 101)) == DELIVER
    assert tracker.see(*first(101)) == BackInStep((101,), None)
    assert not tracker.awaits_snapshot


def test_changes_without_numbers_that_are_held_back_are_bounded_and_a_snapshot_is_asked_for_again() -> None:
    tracker = summed(max_held=2)
    verdicts = [tracker.see(*amount(n, n)) for n in range(5)]
    assert verdicts == [NEED_SNAPSHOT, HELD, NEED_SNAPSHOT, HELD, NEED_SNAPSHOT]


def test_a_checksum_without_a_builder_shows_a_change_and_is_not_compared() -> None:
    tracker = Tracker(True)
    assert tracker.see(*amount(1, 1)) == NEED_SNAPSHOT
    assert tracker.see(*first(100)) == BackInStep((100,), None)
    assert tracker.see(*amount(1, 1)) == DELIVER
    tracker.distrust()
    assert tracker.see(*amount(1, 1)) == HELD


def test_a_book_that_is_wrong_is_let_go() -> None:
    for is_distrusted in (False, True):
        books: WeakSet[Total] = WeakSet()

        def build(books: WeakSet[Total] = books) -> Total:
            book = Total()
            books.add(book)
            return book

        tracker = Tracker(True, build=build)
        tracker.see(*first(100))
        gc.collect()
        assert len(books) == 1
        if is_distrusted:
            tracker.distrust()
        else:
            tracker.see(*amount(1, 0))
        gc.collect()
        assert not books


def test_what_is_not_delivered_does_not_go_into_the_book() -> None:
    tracker = summed()
    tracker.see(*first(100, 5))
    assert tracker.see(*amount(9, 0, 5)) == DUPLICATE
    assert tracker.see(*first(9, 4)) == DUPLICATE
    assert tracker.see(None, 9) == DELIVER
    assert tracker.see(*amount(1, 101, 6)) == DELIVER


# --------------------------------------------------------------------------- any stream


@given(st.lists(st.integers(0, 40), max_size=60))
def test_any_numbers_are_delivered_in_order_and_once_and_what_is_missing_is_reported(numbers: list[int]) -> None:
    tracker = Tracker()
    delivered: list[int] = []
    missing: set[int] = set()
    for n in numbers:
        match see(tracker, change(n)):
            case Deliver():
                delivered.append(n)
            case GapFound(expected, got, lost, held):
                assert expected is not None
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
    plain, wrapping = Tracker(), Tracker(modulus=2**8)
    n = start + 1000
    for step in steps:
        n = max(n, plain.last or n) + step
        one, other = see(plain, change(n)), see(wrapping, change(n % 2**8))
        if isinstance(one, GapFound):
            assert one.expected is not None
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


def expected_after(n: int, kind: Kind) -> int:
    if kind is chain:
        return n**2
    return n + 1 if kind is numbers else 10 * n + 1


def missing_between(n: int, other: int, kind: Kind) -> int | None:
    if kind is chain:
        return None
    return (other - n - 1) * (1 if kind is numbers else 10)


@EACH_KIND
@given(stream=streams(), max_held=st.integers(1, 5), distrust_at=st.sets(st.integers(0, 60), max_size=3))
def test_any_stream_is_delivered_as_an_unbroken_chain(
    kind: Kind, stream: Messages[Message], max_held: int, distrust_at: set[int]
) -> None:
    tracker = Tracker(True, max_held=max_held)
    at: Any = None  # what the user's state contains
    accounted: set[int] = set()
    for index, message in enumerate(stream):
        if index in distrust_at:
            tracker.distrust()
        match see(tracker, message, kind):
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
                    assert gap.expected == expected_after(at, kind)
                if gap is not None or at is None or distrust_at:
                    accounted.update(range(begin, message.n + 1))
                at = message.n + len(rest)
                accounted.update(range(message.n + 1, at + 1))
            case GapFound(lost=lost, held=held):
                assert held
                assert not tracker.in_step
                assert at is not None
                assert lost == missing_between(at, message.n, kind)
            case Duplicate():
                # What is dropped was delivered already, or comes before what is held back.
                assert tracker._held is not None or (at is not None and message.n <= at)
            case NeedSnapshot() | Held():
                assert not tracker.in_step
        assert tracker._held is None or len(tracker._held.entries) <= max_held
        if at is not None:
            assert accounted >= set(range(min(accounted), at + 1)), "lost without a report"


@EACH_KIND
@given(stream=streams())
def test_a_fresh_snapshot_ends_any_trouble(kind: Kind, stream: Messages[Message]) -> None:
    tracker = Tracker(True)
    for message in stream:
        see(tracker, message, kind)
    see(tracker, snap(1000), kind)
    assert tracker.in_step
    assert seen(tracker, 1001, 1002, kind=kind) == [DELIVER, DELIVER]


# --------------------------------------------------------------------------- any book


Levels: TypeAlias = dict[int, int]


@attrs.define
class Book:
    """A book of prices and sizes, as a client builds it."""

    levels: Levels = attrs.field(factory=dict)

    def apply(self, message: BookMessage, snapshot: bool) -> None:
        assert snapshot is message.step.snapshot
        self.levels.update(message.levels)

    def checksum(self) -> int:
        return checksum_of(self.levels)


def checksum_of(levels: Levels) -> int:
    return hash(tuple(sorted(levels.items())))


@attrs.frozen
class BookMessage:
    """What the service tells: all levels, or those that have changed."""

    step: Step
    levels: Levels


@attrs.frozen
class Venue:
    """A service whose book changes one level at a time; `history[n]` is the book after change n."""

    changes: list[tuple[int, int]]

    def history(self) -> list[Levels]:
        books: list[Levels] = [{}]
        for price, size in self.changes:
            books.append({**books[-1], price: size})
        return books


venues = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=30).map(Venue)


def told(venue: Venue, widths: list[int], *, numbered: bool = True, summed: bool = False) -> list[BookMessage]:
    """Cut the changes of a venue into messages, each of which covers as many as `widths` says."""
    history, at, index, messages = venue.history(), 0, 0, []
    while at < len(venue.changes):
        end = min(at + widths[index % len(widths)], len(venue.changes))
        last, first = (end, at + 1) if numbered else (None, None)
        checksum = checksum_of(history[end]) if summed else None
        messages.append(BookMessage(Step(last, first, checksum=checksum), dict(venue.changes[at:end])))
        at, index = end, index + 1
    return messages


def widened(venue: Venue, message: BookMessage) -> BookMessage:
    """Let a message cover two changes more, which were told before."""
    assert message.step.last is not None
    assert message.step.first is not None
    first = max(message.step.first - 2, 1)
    return BookMessage(Step(message.step.last, first), dict(venue.changes[first - 1 : message.step.last]))


def snapshot_of(venue: Venue, at: int, *, numbered: bool = True, summed: bool = False) -> BookMessage:
    levels = venue.history()[at]
    step = Step(at if numbered else None, snapshot=True, checksum=checksum_of(levels) if summed else None)
    return BookMessage(step, levels)


@attrs.define
class Reader:
    """A client that believes a tracker, and builds a book of what it delivers."""

    tracker: Tracker
    book: Levels | None = None
    at: int | None = None
    applied: list[BookMessage] = attrs.field(factory=list)

    def take(self, message: BookMessage, verdict: Verdict) -> None:
        match verdict:
            case Deliver():
                self.apply(message)
            case BackInStep(messages):
                for each in messages:
                    self.apply(each)
            case GapFound(held=held):
                assert held

    def apply(self, message: BookMessage) -> None:
        assert not any(message is each for each in self.applied), "delivered twice"
        if message.step.snapshot:
            self.book, self.applied = dict(message.levels), [message]
        else:
            assert self.book is not None, "a change without a book"
            self.book.update(message.levels)
            self.applied.append(message)
        self.at = message.step.last


@given(
    venue=venues,
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    fates=st.lists(st.sampled_from(["come", "come", "be lost", "come twice", "come late", "come wider"]), max_size=30),
    snapshots=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=4),
    max_held=st.integers(1, 6),
)
def test_any_stream_of_ranges_with_a_snapshot_anywhere_builds_the_book_of_the_service(
    venue: Venue, widths: list[int], fates: list[str], snapshots: list[tuple[int, int]], max_held: int
) -> None:
    stream: list[BookMessage] = []
    late: list[BookMessage] = []
    for index, message in enumerate(told(venue, widths)):
        match fates[index] if index < len(fates) else "come":
            case "come":
                stream += [message, *late]
                late = []
            case "come twice":
                stream += [message, message]
            case "come late":
                late.append(message)
            case "come wider":
                stream.append(widened(venue, message))
    for place, at in snapshots:
        stream.insert(min(place, len(stream)), snapshot_of(venue, min(at, len(venue.changes))))
    reader, history = Reader(Tracker(True, max_held=max_held)), venue.history()
    for message in stream:
        reader.take(message, reader.tracker.see(message.step, message))
        assert reader.tracker.in_step is False or reader.at == reader.tracker.last
        assert reader.book == (None if reader.at is None else history[reader.at])
    end = snapshot_of(venue, len(venue.changes))
    reader.take(end, reader.tracker.see(end.step, end))
    assert reader.tracker.in_step
    assert reader.book == history[-1]


@pytest.mark.parametrize("numbered", [False, True])
@given(
    venue=venues,
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    lost=st.sets(st.integers(0, 30), max_size=6),
    garbled=st.sets(st.integers(0, 30), max_size=3),
    snapshot_after=st.integers(0, 3),
)
def test_checksums_find_whatever_makes_a_book_that_is_not_the_service_s(
    numbered: bool, venue: Venue, widths: list[int], lost: set[int], garbled: set[int], snapshot_after: int
) -> None:
    reader, history = Reader(Tracker(True, build=Book)), venue.history()
    begin = snapshot_of(venue, 0, numbered=numbered, summed=True)
    reader.take(begin, reader.tracker.see(begin.step, begin))
    end, is_wrong, waited = 0, False, 0
    messages = told(venue, widths, numbered=numbered, summed=True)
    for index, (message, numbers_of) in enumerate(zip(messages, told(venue, widths), strict=True)):
        assert numbers_of.step.last is not None
        end = numbers_of.step.last
        if index in lost:
            continue
        if index in garbled:
            message = attrs.evolve(message, levels={**message.levels, 0: 77})
        verdict = reader.tracker.see(message.step, message)
        reader.take(message, verdict)
        if isinstance(verdict, Deliver):
            assert reader.book == history[end]
        else:
            assert not reader.tracker.in_step
            waited += 1
        if not reader.tracker.in_step and waited > snapshot_after:
            is_wrong, waited = True, 0
            snapshot = snapshot_of(venue, end, numbered=numbered, summed=True)
            reader.take(snapshot, reader.tracker.see(snapshot.step, snapshot))
            assert reader.tracker.in_step
            assert reader.book == history[end]
    if not lost and not garbled:
        assert not is_wrong
        assert reader.book == history[-1]
