"""One side of an order book, with prices and sizes kept as the text that the service sent: checksums are made of it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from decimal import Decimal

import attrs

__all__ = ["Side", "asks", "bids"]


@attrs.define(eq=False)
class Side:
    """The levels of one side, the best first."""

    _sign: int
    """Which way is better: 1 where the lowest price is the best, as for asks, -1 for bids."""
    _order: list[Decimal] = attrs.field(factory=list, init=False)
    _levels: dict[Decimal, tuple[str, str]] = attrs.field(factory=dict, init=False)

    def put(self, price: str, size: str) -> None:
        """Set the size at a price; nothing is left at a price whose size is 0."""
        place = self._sign * Decimal(price)
        if not Decimal(size):
            if self._levels.pop(place, None) is not None:
                del self._order[bisect_left(self._order, place)]
            return
        if place not in self._levels:
            insort(self._order, place)
        self._levels[place] = (price, size)

    def cut(self, depth: int) -> None:
        """Forget what is worse than the `depth` best levels."""
        for place in self._order[depth:]:
            del self._levels[place]
        del self._order[depth:]

    def best(self, count: int) -> Sequence[tuple[str, str]]:
        """Return price and size of the best levels, at most `count`."""
        return [self._levels[place] for place in self._order[:count]]


def asks() -> Side:
    return Side(1)


def bids() -> Side:
    return Side(-1)
