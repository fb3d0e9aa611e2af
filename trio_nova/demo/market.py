"""What happens on the market, whether or not anybody listens. Nothing here waits or reads a clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

__all__ = ["BOOK", "CHANNELS", "DELISTED", "STATUS", "STEPS_PER_SECOND", "Market", "apply_levels"]

BOOK = "book.BTC"
"""The one whose messages are changes to a state: each is worth nothing without those before it."""
STATUS = "status"
DELISTED = "trades.LUNA"
"""The one that the exchange takes off the market."""

STEPS_PER_SECOND = 200
_EVERY: dict[str, int] = {"trades.BTC": 2, "trades.ETH": 3, DELISTED: 20, "ticker.BTC": 10, BOOK: 5, STATUS: 40}
"""After how many steps each channel has something to say."""
CHANNELS = tuple(_EVERY)


@attrs.define(eq=False)
class Market:
    """The truth: the messages of each channel, numbered from 1 without holes."""

    dice: random.Random = attrs.field(factory=random.Random)
    emitted: Counter[str] = attrs.field(factory=Counter, init=False)
    """The number of each channel's last message, heard or not."""
    levels: dict[int, int] = attrs.field(factory=dict, init=False)
    """The order book: how much is offered at which price."""
    listed: set[str] = attrs.field(factory=lambda: set(CHANNELS), init=False)
    """The channels that there are."""
    _price: float = attrs.field(default=30_000.0, init=False)

    def step(self, number: int) -> Iterator[Mapping[str, Any]]:
        """Let time pass, and yield what happened."""
        self._price += self.dice.gauss(0.0, 0.5)
        for channel, every in _EVERY.items():
            if channel in self.listed and number % every == 0:
                yield self._news(channel)

    def close(self) -> Mapping[str, Any]:
        """Return the last that there is to say: the market is closed."""
        self.emitted[STATUS] += 1
        return {"channel": STATUS, "seq": self.emitted[STATUS], "state": "closed"}

    def snapshot(self) -> Mapping[str, Any]:
        """Return the whole order book, with the number of the last change that is in it."""
        return {
            "channel": BOOK,
            "seq": self.emitted[BOOK],
            "snapshot": True,
            "levels": sorted(self.levels.items()),
        }

    def _news(self, channel: str) -> Mapping[str, Any]:
        self.emitted[channel] += 1
        news = {"channel": channel, "seq": self.emitted[channel]}
        if channel == BOOK:
            changed = [(30_000 + self.dice.randrange(-20, 20), self.dice.randrange(10))]
            apply_levels(self.levels, changed)
            return {**news, "levels": changed}
        if channel == STATUS:
            return {**news, "state": "open"}
        return {**news, "price": round(self._price, 2)}


def apply_levels(book: dict[int, int], levels: list[tuple[int, int]]) -> None:
    """Write changed levels into a book; a size of 0 ends the level."""
    for price, size in levels:
        if size:
            book[price] = size
        else:
            book.pop(price, None)
