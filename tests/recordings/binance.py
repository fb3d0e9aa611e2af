"""Binance's spot market streams, as "WebSocket Streams for Binance" has them, and "How to manage a local order book
correctly" there: https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams.

A channel is called as the stream: "btcusdt@depth@100ms". The changes of a book are joined to a snapshot that is asked
for by HTTP: each covers the numbers `U` to `u`, and continues the one before, or the snapshot, where the next number is
among them. Futures name the `u` of the one before, `pu`, too.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from trio_nova import (
    Adapter,
    Answer,
    Channel,
    Data,
    JsonCodec,
    RateLimitHandler,
    Reading,
    Step,
    TokenBucket,
    Tracker,
)

CHANGES = re.compile(r"[^@]+@depth(@\d+ms)?")
"""Streams of changes to a book; those with a number of levels send these whole each time."""


@attrs.define(eq=False, kw_only=True, slots=False)
class Binance(Adapter):
    host: str = "stream.binance.com"
    port: int | None = 9443
    path: str = "/stream"
    http: str = "https://api.binance.com/api/v3"
    """Where to ask for snapshots."""
    fetch: Callable[[str], Awaitable[Any]]
    """Asks for a URL by HTTP, and returns the JSON of the answer."""

    correlated = True
    max_batch = 200

    def defaults(self) -> Mapping[str, Any]:
        limits = [TokenBucket.within(5, 1.0, burst=2.0)]  # pings and pongs count, too
        return {"codec": JsonCodec(), "rate_limit_handler": partial(RateLimitHandler, limits)}

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"method": "SUBSCRIBE", "params": [channel.name for channel in channels]}

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"method": "UNSUBSCRIBE", "params": [channel.name for channel in channels]}

    def encode_unsubscription(self, channel: Channel, server_id: object) -> Any:
        return self.encode_unsubscription_batch([channel])

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"stream": str(stream), "data": data}:
                return Data(stream, data, _step(data) if CHANGES.fullmatch(stream) else None)
            case {"id": id, "msg": str(reason)} | {"id": id, "error": {"msg": str(reason)}}:
                return Answer(message, id, error=reason)
            case _:
                return None

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker(resync=True) if CHANGES.fullmatch(channel.name) else None

    async def snapshot(self, channel: Channel) -> Data:
        symbol = channel.name.partition("@")[0].upper()
        book = await self.fetch(f"{self.http}/depth?symbol={symbol}&limit=1000")
        return Data(channel.key, book, Step(book["lastUpdateId"], snapshot=True))


def _step(change: Mapping[str, Any]) -> Step:
    return Step(change["u"], first=change["U"], previous=change.get("pu"))
