from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_nova.core.bounded import OVERFLOWS, OVERHEAD, BoundedQueue, Overflow, Room


def drained(queue: BoundedQueue[int]) -> list[tuple[int, int | None]]:
    """Take everything out, each item with how many were lost just before it; None is for the end."""
    found: list[tuple[int, int | None]] = []
    while len(queue):
        found.append((queue.take_lost(), queue.pop()))
    return [*found, (queue.take_lost(), None)]


def offer_all(queue: BoundedQueue[int], items: range, size: int = 1) -> None:
    for item in items:
        queue.offer(item, size)


def test_a_queue_without_bounds_is_never_full() -> None:
    queue = BoundedQueue[int]()
    offer_all(queue, range(1000), size=10**9)
    assert (len(queue), queue.full, queue.fill) == (1000, False, 0.0)


def test_a_blocking_queue_refuses_nothing_and_says_when_it_is_full() -> None:
    queue = BoundedQueue[int](max_items=2)
    full = []
    for item in range(3):
        queue.offer(item, 1)
        full.append(queue.full)
    assert full == [False, True, True]
    assert (queue.dropped, queue.size, queue.has_losses) == (0, 3, False)
    assert drained(queue) == [(0, 0), (0, 1), (0, 2), (0, None)]


def test_queues_that_share_a_room_are_full_together() -> None:
    room = Room(100)
    one, other = BoundedQueue[int](room=room), BoundedQueue[int](room=room)
    one.offer_all([1, 2], [30, 30])
    other.offer(3, 40)
    assert (room.held, one.full, other.full, one.size, other.size) == (100, True, True, 60, 40)
    assert one.replace(0, 9, 10)
    assert (room.held, one.full, one.pop_all(), room.held) == (80, False, [9, 2], 40)
    other.move_to(Room())
    assert (room.held, other.size) == (0, 40)


def test_what_waits_is_charged_cheaply_until_much_does_and_then_by_what_it_takes() -> None:
    room = Room(128 * 1000, lambda payload, message: 50 * len(payload))
    assert room.charge("x" * 100, None) == 100 + OVERHEAD
    assert room.charge_all(["x" * 100] * 5, [None] * 5) == [100 + OVERHEAD] * 5
    assert room.charge_all(["x" * 100] * 6, [None] * 6) == [5000 + OVERHEAD] * 6
    assert room.charge("x" * 1000, None) == 50_000 + OVERHEAD
    room.held = 1000
    assert room.charge("x", None) == 50 + OVERHEAD


def test_dropping_the_oldest_keeps_the_newest_and_tells_the_loss_first() -> None:
    queue = BoundedQueue[int](max_items=2, overflow="drop_oldest")
    offer_all(queue, range(5))
    assert queue.dropped == 3
    assert drained(queue) == [(3, 3), (0, 4), (0, None)]


def test_dropping_the_newest_keeps_the_oldest_and_tells_the_loss_where_it_happened() -> None:
    queue = BoundedQueue[int](max_items=2, overflow="drop_newest")
    offer_all(queue, range(5))
    assert queue.pop() == 0
    queue.offer(5, 1)
    assert drained(queue) == [(0, 1), (3, 5), (0, None)]


def test_a_loss_at_the_end_is_told_before_anything_else_comes() -> None:
    queue = BoundedQueue[int](max_items=1, overflow="drop_newest")
    offer_all(queue, range(3))
    assert queue.pop() == 0
    assert queue.has_losses
    assert (queue.take_lost(), queue.take_lost(), queue.has_losses) == (2, 0, False)


def test_a_large_item_drops_as_many_small_ones_as_it_takes() -> None:
    queue = BoundedQueue[int](room=Room(100), overflow="drop_oldest")
    offer_all(queue, range(99))
    for item in range(99, 200):
        queue.offer(item, 1000)
        assert queue.size < 100 + 1000
    assert queue.pop_all() == [199]
    assert queue.dropped == 199


def test_one_item_fits_into_an_empty_queue_however_large() -> None:
    queue = BoundedQueue[int](room=Room(10), overflow="drop_newest")
    queue.offer(0, 10**6)
    assert queue.full
    queue.offer(1, 0)
    assert drained(queue) == [(0, 0), (1, None)]


def test_a_loss_nobody_asks_about_is_forgotten_with_the_item_it_stood_before() -> None:
    queue = BoundedQueue[int](max_items=1, overflow="drop_oldest")
    for _ in range(100):
        offer_all(queue, range(3))
        queue.pop()
    assert not queue.has_losses
    assert queue.dropped == 200


def test_taking_all_keeps_the_loss_that_stands_at_the_end() -> None:
    queue = BoundedQueue[int](max_items=2, overflow="drop_newest")
    offer_all(queue, range(5))
    assert queue.pop_all() == [0, 1]
    assert (queue.size, queue.take_lost()) == (0, 3)


def test_popping_from_an_empty_queue_raises_and_changes_nothing() -> None:
    queue = BoundedQueue[int](max_items=1, overflow="drop_newest")
    offer_all(queue, range(2))
    queue.pop()
    with pytest.raises(IndexError):
        queue.pop()
    assert (len(queue), queue.size, queue.take_lost()) == (0, 0, 1)


@given(st.integers(1, 20), st.integers(1, 100), st.lists(st.integers(0, 50), max_size=20))
def test_the_fill_is_1_exactly_when_it_is_full(max_items: int, max_bytes: int, sizes: list[int]) -> None:
    queue = BoundedQueue[int](max_items, Room(max_bytes))
    for size in sizes:
        queue.offer(0, size)
        assert (queue.fill >= 1.0) == queue.full


class AnyUse(RuleBasedStateMachine):
    """Every item that was accepted is taken, in order, or told as lost, once and in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BoundedQueue[int] = BoundedQueue()
        self.sizes: list[int] = []
        """By item; items are numbered."""
        self.next_out = 0
        """Every number below was taken, or told as lost."""

    @initialize(
        max_items=st.one_of(st.just(math.inf), st.integers(1, 5)),
        max_bytes=st.one_of(st.just(math.inf), st.integers(1, 40)),
        overflow=st.sampled_from(OVERFLOWS),
    )
    def make(self, max_items: float, max_bytes: float, overflow: Overflow) -> None:
        self.queue = BoundedQueue(max_items, Room(max_bytes), overflow)

    @rule(size=st.integers(0, 50))
    def offer(self, size: int) -> None:
        self.queue.offer(len(self.sizes), size)
        self.sizes.append(size)

    @rule()
    def take(self) -> None:
        self.next_out += self.queue.take_lost()
        if len(self.queue):
            assert self.queue.pop() == self.next_out
            self.next_out += 1

    @precondition(lambda self: not self.queue.has_losses)
    @rule()
    def take_all(self) -> None:
        items = self.queue.pop_all()
        assert items == list(range(self.next_out, self.next_out + len(items)))
        self.next_out += len(items)

    @invariant()
    def bounded(self) -> None:
        queue = self.queue
        if queue.overflow != "block":
            assert 0 <= len(queue) <= queue.max_items
            assert 0 <= queue.size < queue.room.limit + 50
        assert queue.size == queue.room.held
        assert queue.size == 0 or len(queue)

    @invariant()
    def nothing_is_held_back(self) -> None:
        queue = self.queue
        if queue.dropped == 0:
            assert queue.size == sum(self.sizes[self.next_out :])
        if queue.overflow == "block":
            assert queue.dropped == 0

    def teardown(self) -> None:
        while len(self.queue):
            self.take()
        self.take()
        assert self.next_out == len(self.sizes)
        assert self.queue.size == 0
        assert not self.queue.has_losses


TestAnyUse = AnyUse.TestCase
