"""A bounded queue, and what happens when it is full.

The inbox, every listener and every feed hold one of these. The bound counts messages and bytes; one
message always fits into an empty queue, so the bytes can exceed their bound by at most one message.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
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
    sized: bool = attrs.field(default=True, kw_only=True)
    """Whether items have sizes; else each counts as 0 bytes, whatever is said."""
    size: int = attrs.field(default=0, init=False)
    """Bytes held."""
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
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self) >= self.max_items or self.size >= self.max_bytes

    @property
    def fill(self) -> float:
        """How full it is: 0.0 is empty, 1.0 is at a bound."""
        return max(len(self) / self.max_items, self.size / self.max_bytes)

    def offer(self, item: T, size: int) -> bool:
        """Take `item` in, as the overflow policy says; False where it is full and the policy is to block."""
        if self.full:
            if self.overflow == "block":
                return False
            if self.overflow == "drop_newest":
                self.dropped += 1
                self._lose(self._taken_in, 1)
                return True
            while self.full:  # one large item may stand where many small ones did
                self._drop_oldest()
        (self.items if self.items is not None else self.prepare()).append(item)
        if self.sized:
            self.sizes.append(size)
            self.size += size
        self._taken_in += 1
        return True

    def prepare(self) -> deque[T]:
        """Make now what else the first item makes, and return the empty `items`."""
        self.items = deque()
        if self.sized:
            self.sizes = deque()
        return self.items

    def offer_all(self, items: Sequence[T], sizes: Sequence[int], size: int) -> bool:
        """Take items in, of `size` bytes together, if there is room for all of them; else none."""
        if len(self) + len(items) > self.max_items or self.size + size > self.max_bytes:
            return False
        (self.items if self.items is not None else self.prepare()).extend(items)
        if self.sized:
            self.sizes.extend(sizes)
            self.size += size
        self._taken_in += len(items)
        return True

    @property
    def next_serial(self) -> int:
        """The serial number of the next item that is taken in."""
        return self._taken_in

    def replace(self, serial: int, item: T, size: int) -> bool:
        """Put `item` in the place of the one with this serial number; False where that has been taken."""
        place = serial - self._first
        if not self.items or not 0 <= place < len(self.items):
            return False
        self.items[place] = item
        if self.sized:
            self.size += size - self.sizes[place]
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
            self.size -= self.sizes.popleft()
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
                self.sizes.clear()
                self.size = 0
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

    def _drop_oldest(self) -> None:
        lost = self.take_lost() + 1
        self.pop()
        self._lose(self._first, lost)
        self.dropped += 1
