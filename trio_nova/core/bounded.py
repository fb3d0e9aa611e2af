"""A bounded queue, and what happens when it is full.

The inbox, every listener and every feed hold one of these. The bound counts messages and bytes; one
message always fits into an empty queue, so the bytes can exceed their bound by at most one message.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, Literal, TypeAlias, TypeVar

import attrs

__all__ = ["OVERFLOWS", "BoundedQueue", "Overflow"]

T = TypeVar("T")

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest"]
"""What a full queue does: make the one who puts wait, or drop and count."""
OVERFLOWS: tuple[Overflow, ...] = ("block", "drop_oldest", "drop_newest")


@attrs.define
class BoundedQueue(Generic[T]):
    """Items in order, with their sizes."""

    max_items: float = math.inf
    max_bytes: float = math.inf
    overflow: Overflow = "block"
    size: int = attrs.field(default=0, init=False)
    """Bytes held."""
    dropped: int = attrs.field(default=0, init=False)
    """Items dropped since the queue was made."""
    _items: deque[T] = attrs.field(factory=deque, init=False, repr=False)
    _sizes: deque[int] = attrs.field(factory=deque, init=False)
    _lost: deque[int] = attrs.field(factory=lambda: deque([0]), init=False)
    """How many were dropped just before each item, and, last, before the one to come."""
    _first: int = attrs.field(default=0, init=False)
    """The serial number of the oldest item."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self._items) >= self.max_items or self.size >= self.max_bytes

    @property
    def fill(self) -> float:
        """How full it is: 0.0 is empty, 1.0 is at a bound."""
        return max(len(self._items) / self.max_items, self.size / self.max_bytes)

    def offer(self, item: T, size: int) -> bool:
        """Take `item` in, as the overflow policy says; False where it is full and the policy is to block."""
        if self.full:
            if self.overflow == "block":
                return False
            if self.overflow == "drop_newest":
                self.dropped += 1
                self._lost[-1] += 1
                return True
            while self.full:  # one large item may stand where many small ones did
                self._drop_oldest()
        self._items.append(item)
        self._sizes.append(size)
        self._lost.append(0)
        self.size += size
        return True

    @property
    def next_serial(self) -> int:
        """The serial number of the next item that is taken in."""
        return self._first + len(self._items)

    def replace(self, serial: int, item: T, size: int) -> bool:
        """Put `item` in the place of the one with this serial number; False where that has been taken."""
        place = serial - self._first
        if not 0 <= place < len(self._items):
            return False
        self.size += size - self._sizes[place]
        self._items[place] = item
        self._sizes[place] = size
        return True

    def take_lost(self) -> int:
        """Return, once, how many items were dropped just before the one that comes next; after it, it is forgotten."""
        lost, self._lost[0] = self._lost[0], 0
        return lost

    def pop(self) -> T:
        """Remove and return the oldest item; raises IndexError where there is none."""
        item = self._items.popleft()
        self.size -= self._sizes.popleft()
        self._lost.popleft()
        self._first += 1
        return item

    def pop_all(self) -> list[T]:
        """Remove and return all items, oldest first."""
        items = list(self._items)
        self._first += len(items)
        self._items.clear()
        self._sizes.clear()
        self._lost = deque([self._lost[-1]])
        self.size = 0
        return items

    @property
    def has_losses(self) -> bool:
        """Whether `take_lost` has something to tell, now or after some items."""
        return any(self._lost)

    def _drop_oldest(self) -> None:
        lost = self._lost[0] + 1
        self.pop()
        self._lost[0] += lost
        self.dropped += 1
