"""A bounded queue, and what happens when it is full.

The inbox, every listener and every feed hold one of these. A queue that drops is bounded in items and in
bytes; one item always fits into an empty queue, so the bytes can exceed their bound by at most one item.

A queue that blocks refuses nothing: what has been received must not be lost. Whoever fills it stops while
its room, which it may share with other queues, is full.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import attrs

__all__ = ["OVERFLOWS", "OVERHEAD", "BoundedQueue", "Overflow", "Room"]

T = TypeVar("T")

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest"]
"""What a full queue does: make the one who puts wait, or drop and count."""
OVERHEAD = 96
"""Bytes that each message which waits is charged beside its own: an object and its places in queues."""
CHEAP = 128
"""What part of a room is filled by the sizes that messages had on the wire: beyond it they are weighed."""
OVERFLOWS: tuple[Overflow, ...] = ("block", "drop_oldest", "drop_newest")


@attrs.define(eq=False)
class Room:
    """The bytes that one queue may hold, or several together."""

    limit: float = math.inf
    weigh: Callable[[str | bytes, Any], int] = lambda payload, message: getsizeof(payload)
    """Returns what a message takes in memory, from its payload and itself."""
    held: int = attrs.field(default=0, init=False)
    """Bytes held."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be taken in."""
        return self.held >= self.limit

    def take(self, size: int) -> None:
        """Take so many bytes for what is held elsewhere."""
        self.held += size

    def give_back(self, size: int) -> None:
        """Give them back."""
        self.held -= size

    def charge(self, payload: str | bytes, message: Any) -> int:
        """Return what one message is charged that is to wait here.

        To weigh it may take longer than all else that is done to it, so that is done only where much waits.
        """
        size = len(payload) + OVERHEAD
        if (self.held + size) * CHEAP <= self.limit:
            return size
        return self.weigh(payload, message) + OVERHEAD

    def charge_all(self, payloads: Sequence[str | bytes], messages: Sequence[Any]) -> list[int]:
        """Return what each of several messages is charged; see `charge`."""
        sizes = [len(payload) + OVERHEAD for payload in payloads]
        if (self.held + sum(sizes)) * CHEAP <= self.limit:
            return sizes
        weigh = self.weigh
        return [weigh(payload, message) + OVERHEAD for payload, message in zip(payloads, messages, strict=True)]


@attrs.define(eq=False)
class BoundedQueue(Generic[T]):
    """Items in order, with their sizes."""

    max_items: float = math.inf
    """Where it blocks this is no bound: only `full` and `fill` heed it."""
    room: Room = attrs.field(factory=Room)
    """What its items take room in."""
    overflow: Overflow = "block"
    sized: bool = attrs.field(default=True, kw_only=True)
    """Whether items have sizes; else each counts as 0 bytes, whatever is said."""
    let_go: Callable[[T], object] | None = attrs.field(default=None, kw_only=True)
    """Told of each item that is dropped, or that another one replaces."""
    dropped: int = attrs.field(default=0, init=False)
    """Items dropped since the queue was made."""
    items: deque[T] | None = attrs.field(default=None, init=False, repr=False)
    """What it holds; None before the first item, as an empty deque is large. For those who look; `pop` takes."""
    sizes: deque[int] = attrs.field(init=False)
    """The size of each item: there with `items`, where items have sizes."""
    _taken_in: int = attrs.field(default=0, init=False)
    """How many items were ever taken in: the serial number of the next one."""
    _lost: dict[int, int] = attrs.field(factory=dict, init=False)
    """How many were dropped just before the item of each serial number, where any were."""

    def __len__(self) -> int:
        return len(self.items) if self.items else 0

    @property
    def size(self) -> int:
        """Bytes that it holds itself."""
        return sum(self.sizes) if self.sized and self.items else 0

    @property
    def full(self) -> bool:
        """Whether it is at a bound."""
        return len(self) >= self.max_items or self.room.is_full

    @property
    def fill(self) -> float:
        """How full it is: 0.0 is empty, 1.0 is at a bound."""
        return max(len(self) / self.max_items, self.room.held / self.room.limit)

    def offer(self, item: T, size: int) -> None:
        """Take `item` in, as the overflow policy says."""
        if self.overflow != "block" and self.full:
            if self.overflow == "drop_newest":
                self.dropped += 1
                self._lose(self._taken_in, 1)
                self._let_go(item)
                return
            while self.items and self.full:  # one large item may stand where many small ones did
                self.drop_oldest()
        (self.items if self.items is not None else self.prepare()).append(item)
        if self.sized:
            self.sizes.append(size)
            self.room.held += size
        self._taken_in += 1

    def set_overflow(self, overflow: Overflow) -> None:
        """Do this from now on where it is full."""
        self.overflow = overflow

    def prepare(self) -> deque[T]:
        """Make now what else the first item makes, and return the empty `items`."""
        self.items = deque()
        if self.sized:
            self.sizes = deque()
        return self.items

    def offer_all(self, items: Sequence[T], sizes: Sequence[int]) -> None:
        """Take items in, oldest first, each as the overflow policy says."""
        if self.overflow != "block":
            for item, size in zip(items, sizes, strict=True):
                self.offer(item, size)
            return
        (self.items if self.items is not None else self.prepare()).extend(items)
        if self.sized:
            self.sizes.extend(sizes)
            self.room.held += sum(sizes)
        self._taken_in += len(items)

    @property
    def next_serial(self) -> int:
        """The serial number of the next item that is taken in."""
        return self._taken_in

    def replace(self, serial: int, item: T, size: int) -> bool:
        """Put `item` in the place of the one with this serial number; False where that has been taken."""
        place = serial - self._first
        if not self.items or not 0 <= place < len(self.items):
            return False
        replaced, self.items[place] = self.items[place], item
        self._let_go(replaced)
        if self.sized:
            self.room.held += size - self.sizes[place]
            self.sizes[place] = size
        return True

    def take_lost(self) -> int:
        """Return, once, how many items were dropped just before the one that comes next; after it, it is forgotten."""
        return self._lost.pop(self._first, 0)

    def pop(self) -> T:
        """Remove and return the oldest item; raises IndexError where there is none."""
        if not self.items:
            raise IndexError("nothing is in the queue")
        item = self.items.popleft()
        if self.sized:
            self.room.held -= self.sizes.popleft()
        if self._lost:
            self._lost.pop(self._first - 1, None)
        return item

    def pop_all(self) -> list[T]:
        """Remove and return all items, oldest first."""
        items: list[T] = []
        if self.items:
            items += self.items
            self.items.clear()
            if self.sized:
                self.room.held -= sum(self.sizes)
                self.sizes.clear()
        if self._lost:
            self._lost = {serial: lost for serial, lost in self._lost.items() if serial == self._taken_in}
        return items

    @property
    def has_losses(self) -> bool:
        """Whether `take_lost` has something to tell, now or after some items."""
        return bool(self._lost)

    @property
    def _first(self) -> int:
        """The serial number of the oldest item."""
        return self._taken_in - len(self)

    def _lose(self, serial: int, count: int) -> None:
        self._lost[serial] = self._lost.get(serial, 0) + count

    def move_to(self, room: Room) -> None:
        """Hold what it holds in another room from now on."""
        self.room.held -= self.size
        self.room = room
        room.held += self.size

    def drop_oldest(self) -> None:
        """Drop the oldest item, and count it."""
        lost = self.take_lost() + 1
        item = self.pop()
        self._lose(self._first, lost)
        self.dropped += 1
        self._let_go(item)

    def _let_go(self, item: T) -> None:
        if self.let_go is not None:
            self.let_go(item)
