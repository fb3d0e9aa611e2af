"""OKX's public feed, version 5, as https://www.okx.com/docs-v5/en/#websocket-api and its "WS / Order book channel"
have it. By "OKX Order Book Channels Checksum Field Deprecation" (21 May 2026) the checksums, a CRC32 with a sign over
the 25 best levels of each side, are 0 from June 2026 on, and only `prevSeqId` tells whether something is missing.

A channel is called by its arguments: "books instId=BTC-USDT", "instruments instType=SPOT".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any
from zlib import crc32

from tests.recordings.books import asks, bids
from trio_nova import (
    Adapter,
    Beat,
    Channel,
    ConfigError,
    Data,
    GoAway,
    Granted,
    Many,
    MessageHeartbeat,
    Other,
    Reading,
    Refused,
    Step,
    Tracker,
)

BOOKS = frozenset({"books", "books-l2-tbt", "books50-l2-tbt"})
"""Channels of changes to a book; the others send the whole each time."""
UPGRADE = "64008"
"""The code of the notice that the link will be closed soon."""


class Okx(Adapter):
    host = "ws.okx.com"
    port = 8443
    path = "/ws/v5/public"
    max_batch = 50

    def defaults(self) -> Mapping[str, Any]:
        # A link on which nothing came for 30 s is closed, unless we ask.
        return {"heartbeat": MessageHeartbeat("ping"), "ping_interval": 20.0}

    def key(self, channel: str, params: Mapping[str, Any]) -> str:
        if _name(_argument(channel)) != channel:
            raise ConfigError("channel", f"must be as 'books instId=BTC-USDT', its arguments sorted, not {channel!r}")
        return channel

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "subscribe", "args": [_argument(channel.name) for channel in channels]}

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "unsubscribe", "args": [_argument(channel.name) for channel in channels]}

    def encode_unsubscription(self, channel: Channel, server_id: object) -> Any:
        return self.encode_unsubscription_batch([channel])

    def read(self, message: Any) -> Reading | None:
        match message:
            case "pong":
                return Beat(answers=True)
            case {"arg": {"channel": channel} as about, "data": list(data)}:
                is_book = channel in BOOKS and data
                return Data(_name(about), message, _step(message.get("action"), data) if is_book else None)
            case {"event": "subscribe", "arg": about}:
                return Granted(_name(about))
            case {"event": "unsubscribe"}:
                return Many([])
            case {"event": "error", "msg": str(reason)} if "channel:" in reason:
                return Refused(_name(dict(re.findall(r"(\w+):([\w-]+)", reason))), reason)
            case {"event": "notice", "code": code} if code == UPGRADE:
                return GoAway(reason=message.get("msg", ""))
            case _:
                return Other(message)

    def tracker(self, channel: Channel) -> Tracker | None:
        # Numbers may begin anew, and nothing is ever repeated: so what is behind means that something is missing.
        return Tracker(resync=True, build=Book, window=0) if channel.name.partition(" ")[0] in BOOKS else None


def _name(about: Mapping[str, str]) -> str:
    rest = sorted((name, value) for name, value in about.items() if name.startswith("inst") or name == "ccy")
    return " ".join([about.get("channel", ""), *(f"{name}={value}" for name, value in rest)])


def _argument(channel: str) -> dict[str, str]:
    name, *rest = channel.split(" ")
    return {"channel": name, **dict(each.split("=", 1) for each in rest if "=" in each)}


def _step(action: str | None, data: Sequence[Mapping[str, Any]]) -> Step:
    """Return where a message of a book stands: numbers name the one before, which is -1 for a snapshot."""
    last, is_whole, checksum = data[-1].get("seqId"), action == "snapshot", data[-1].get("checksum")
    previous = None if is_whole else data[0].get("prevSeqId")
    return Step(last, previous=previous, snapshot=is_whole, checksum=checksum or None)


class Book:
    """The book of an instrument."""

    def __init__(self) -> None:
        self.bids, self.asks = bids(), asks()

    def apply(self, message: Any, snapshot: bool) -> None:
        for data in message["data"]:
            for side, name in ((self.bids, "bids"), (self.asks, "asks")):
                for price, size, *_ in data[name]:
                    side.put(price, size)

    def checksum(self) -> int:
        pairs = zip_longest(self.bids.best(25), self.asks.best(25), fillvalue=())
        checksum = crc32(":".join(chain.from_iterable(chain.from_iterable(pairs))).encode())
        return checksum - 2**32 if checksum >= 2**31 else checksum
