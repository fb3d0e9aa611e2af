"""A market that moves by hand, the same way every time, and remembers all that it said."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import attrs
import trio

__all__ = ["Book", "Channel", "Market", "epoch_ms", "parse_channel"]

EPOCH = 1_700_000_000.0
"""Unix time at which the market's clock stands when Trio's stands at 0."""

Kind: TypeAlias = Literal["ticker", "trades", "book", "user"]

_INTERVAL = r"(?P<interval>raw|agg2|100ms|1s)"
_GRAMMAR: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("ticker", re.compile(rf"ticker\.(?P<instrument>[^.]+)\.{_INTERVAL}")),
    ("trades", re.compile(rf"trades\.(?P<instrument>[^.]+)\.{_INTERVAL}")),
    ("book", re.compile(rf"book\.(?P<instrument>[^.]+)(\.[^.]+\.[0-9]+)?\.{_INTERVAL}")),
    ("user", re.compile(rf"user\.(?P<topic>orders|trades)\.(?P<instrument>[^.]+)(\.[^.]+)?\.{_INTERVAL}")),
)


def epoch_ms() -> int:
    """Return milliseconds since 1970 as the market stamps them: by Trio's clock, so that runs are alike."""
    return round((EPOCH + trio.current_time()) * 1000)


@attrs.frozen
class Channel:
    """A channel's name, taken apart."""

    name: str
    kind: Kind
    instrument: str
    """For a user's channels maybe `any`."""
    interval: str
    topic: str = ""
    """Of a user's channels: orders or trades."""

    @property
    def private(self) -> bool:
        """Whether only its owner may hear it."""
        return self.kind == "user"

    @property
    def raw(self) -> bool:
        """Whether it is one of those that need authentication for their cost."""
        return self.interval == "raw" and not self.private


def parse_channel(name: str) -> Channel | None:
    """Take a channel's name apart; None where there is no such channel."""
    for kind, pattern in _GRAMMAR:
        if found := pattern.fullmatch(name):
            parts = found.groupdict()
            return Channel(name, kind, parts["instrument"], parts["interval"], parts.get("topic") or "")
    return None


@attrs.define
class Book:
    """An order book: what a client's own must equal."""

    bids: dict[float, float] = attrs.field(factory=lambda: {30_000.0 - 0.5 * n: 10.0 * n for n in range(1, 6)})
    """Amounts by price."""
    asks: dict[float, float] = attrs.field(factory=lambda: {30_000.0 + 0.5 * n: 10.0 * n for n in range(1, 6)})
    change_id: int = 1_000

    def change(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """Move one level: another one each time; every sixth change takes a level away. Return bids, asks."""
        self.change_id += 1
        number = self.change_id
        side, sign = (self.bids, -1) if number % 2 else (self.asks, 1)
        price = 30_000.0 + sign * 0.5 * (1 + number * 7 % 10)
        if number % 6 == 0 and len(side) > 1:
            price = next(iter(side))
            del side[price]
            entry: list[Any] = ["delete", price, 0.0]
        else:
            entry = ["change" if price in side else "new", price, 10.0 * (1 + number % 5)]
            side[price] = entry[2]
        return ([entry], []) if side is self.bids else ([], [entry])

    def levels(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """Return bids and asks as pairs of price and amount, the best first."""
        bids = [[price, self.bids[price]] for price in sorted(self.bids, reverse=True)]
        return bids, [[price, self.asks[price]] for price in sorted(self.asks)]


@attrs.define(eq=False)
class Market:
    """Every channel's truth. Each channel of books has a book of its own."""

    instruments: tuple[str, ...]
    emitted: dict[str, list[Any]] = attrs.field(factory=dict)
    """All data of each channel but snapshots, oldest first, heard or not."""
    books: dict[str, Book] = attrs.field(factory=dict)
    """By channel."""
    first: int = 1
    """The number that trades begin with; books begin a thousand later."""

    def has(self, channel: Channel) -> bool:
        """Return whether the channel is about something that is traded here."""
        return channel.instrument in self.instruments or (channel.private and channel.instrument == "any")

    def book(self, name: str) -> Book:
        """Return the book of a channel, which begins with five levels on each side."""
        return self.books.setdefault(name, Book(change_id=self.first + 999))

    def begin_anew(self, first: int) -> None:
        """Forget all that was, and count from `first`."""
        self.first = first
        self.emitted.clear()
        self.books.clear()

    def emit(self, name: str, data: Any) -> Any:
        """Keep `data` as a channel's truth, and return it."""
        self.emitted.setdefault(name, []).append(data)
        return data

    def move(self, name: str) -> Any:
        """Let something happen on a channel; return its data.

        Raises:
            ValueError: there is no such channel, or it moves by orders only.
        """
        channel = parse_channel(name)
        if channel is None or channel.private or not self.has(channel):
            raise ValueError(f"no market data on {name!r}")
        number = self.first + len(self.emitted.get(name, ()))
        about = {"instrument_name": channel.instrument, "timestamp": epoch_ms()}
        price = 30_000.0 + 0.5 * number
        if channel.kind == "ticker":
            quote = {"last_price": price, "best_bid_price": price - 0.5, "best_ask_price": price + 0.5}
            return self.emit(name, {**about, **quote, "state": "open"})
        if channel.kind == "trades":
            trade = {"trade_seq": number, "trade_id": f"{channel.instrument}-{number}", "price": price, "amount": 10.0}
            return self.emit(name, [{**about, **trade, "direction": "buy" if number % 2 else "sell"}])
        book = self.book(name)
        before = book.change_id
        bids, asks = book.change()
        ids = {"prev_change_id": before, "change_id": book.change_id}
        return self.emit(name, {"type": "change", **about, **ids, "bids": bids, "asks": asks})

    def snapshot(self, channel: Channel) -> Any:
        """Return the whole book, as the first notification after subscribing has it."""
        book = self.book(channel.name)
        bids, asks = ([["new", *level] for level in side] for side in book.levels())
        about = {"instrument_name": channel.instrument, "timestamp": epoch_ms(), "change_id": book.change_id}
        return {"type": "snapshot", **about, "bids": bids, "asks": asks}
