"""Kraken's public feed, version 1, as https://docs.kraken.com/api/docs/websocket-v1/ and "Spot Websockets (v1) Book
Checksum", https://docs.kraken.com/api/docs/guides/spot-ws-book-v1, have it.

A channel is called as Kraken names it in its messages, with the pair: "trade XBT/USD", "book-1000 XBT/USD".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

from tests.recordings.books import asks, bids
from trio_nova import (
    Adapter,
    Beat,
    Channel,
    ConfigError,
    Data,
    Ended,
    Granted,
    JsonCodec,
    Many,
    Other,
    Reading,
    Refused,
    Step,
    Tracker,
)

SIZES = {"book": "depth", "ohlc": "interval"}
"""The option of a subscription that stands in the name of its channel."""
OURS = 1
"""The id of requests to give something up: without it, Kraken has taken it from us."""


class Kraken(Adapter):
    host = "ws.kraken.com"
    max_batch = 100

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec()}

    def key(self, channel: str, params: Mapping[str, Any]) -> str:
        name, _, pair = channel.partition(" ")
        if not pair or name in SIZES:
            raise ConfigError("channel", f"must be as 'trade XBT/USD' or 'book-1000 XBT/USD', not {channel!r}")
        return channel

    def split_batch(self, channels: Sequence[Channel]) -> Iterator[Sequence[Channel]]:
        """Group the channels that differ in the pair alone."""
        names = dict.fromkeys(channel.name.partition(" ")[0] for channel in channels)
        return ([each for each in channels if each.name.startswith(f"{name} ")] for name in names)

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"event": "subscribe", **_about(channels)}

    def encode_unsubscription(self, channel: Channel, server_id: object) -> Any:
        return {"event": "unsubscribe", "reqid": OURS, **_about([channel])}

    def read(self, message: Any) -> Reading | None:
        match message:
            case [_, *parts, str(name), str(pair)]:
                return Data(f"{name} {pair}", message, _step(parts) if name.startswith("book-") else None)
            case {"event": "heartbeat" | "pong"}:
                return Beat()
            case {"event": "subscriptionStatus"}:
                return _read_status(message)
            case _:
                return Other(message)

    def tracker(self, channel: Channel) -> Tracker | None:
        kind, _, depth = channel.name.partition(" ")[0].partition("-")
        return Tracker(resync=True, build=partial(Book, int(depth))) if kind == "book" else None


def _about(channels: Sequence[Channel]) -> dict[str, Any]:
    kind, _, size = channels[0].name.partition(" ")[0].partition("-")
    pairs = [channel.name.partition(" ")[2] for channel in channels]
    return {"pair": pairs, "subscription": {"name": kind, **({SIZES[kind]: int(size)} if size else {})}}


def _read_status(message: Mapping[str, Any]) -> Reading:
    about = message.get("subscription") or {}
    size = next((f"-{about[each]}" for each in SIZES.values() if each in about), "")
    channel = f"{message.get('channelName') or about.get('name', '') + size} {message.get('pair', '')}"
    match message["status"]:
        case "subscribed":
            return Granted(channel)
        case "error":
            return Refused(channel, message.get("errorMessage", ""))
        case "unsubscribed" if message.get("reqid") != OURS:
            return Ended(channel, "Kraken has taken the subscription back")
        case _:
            return Many([])


def _step(parts: Sequence[Mapping[str, Any]]) -> Step:
    """Return where a message of a book stands: there are no numbers, but changes bear a checksum."""
    if "as" in parts[0] or "bs" in parts[0]:
        return Step(None, snapshot=True)
    checksum = parts[-1].get("c")
    return Step(None, checksum=None if checksum is None else int(checksum))


class Book:
    """The book of a pair, of which the ten best levels of each side are in the checksum."""

    def __init__(self, depth: int) -> None:
        self.depth, self.asks, self.bids = depth, asks(), bids()

    def apply(self, message: Any, snapshot: bool) -> None:
        for part in message[1:-2]:
            for side, names in ((self.asks, ("as", "a")), (self.bids, ("bs", "b"))):
                for price, size, *_ in (level for name in names for level in part.get(name, ())):
                    side.put(price, size)
                side.cut(self.depth)

    def checksum(self) -> int:
        levels = [*self.asks.best(10), *self.bids.best(10)]
        return crc32("".join(text.replace(".", "").lstrip("0") for level in levels for text in level).encode())
