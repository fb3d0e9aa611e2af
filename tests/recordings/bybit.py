"""Bybit's feed of inverse perpetuals, before version 5, as https://bybit-exchange.github.io/docs-legacy/futuresv2/inverse/
("Websocket Data") has it.

Changes of a book bear no number that follows the one before (`cross_seq` skips what other books have), and no
checksum. But they say of each level that it is new, changed or gone, and that must fit what was there before: so most
of what may be missing is found, if late. A lost change of a size alone is not, until the service sends a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trio_nova import (
    Adapter,
    Beat,
    Channel,
    ConfigError,
    Data,
    Granted,
    JsonCodec,
    Many,
    MessageHeartbeat,
    Other,
    Reading,
    Refused,
    Step,
    Tracker,
)


class Bybit(Adapter):
    host = "stream.bybit.com"
    path = "/realtime"
    max_batch = 10

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "heartbeat": MessageHeartbeat({"op": "ping"}), "ping_interval": 30.0}

    def key(self, channel: str, params: Mapping[str, Any]) -> str:
        if "*" in channel or "|" in channel:
            raise ConfigError("channel", f"must be of one symbol, as 'trade.BTCUSD', not {channel!r}")
        return channel

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "subscribe", "args": [channel.name for channel in channels]}

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "unsubscribe", "args": [channel.name for channel in channels]}

    def encode_unsubscription(self, channel: Channel, server_id: object) -> Any:
        return self.encode_unsubscription_batch([channel])

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"topic": str(topic), "data": _}:
                step = Step(None, snapshot=message["type"] == "snapshot") if "type" in message else None
                return Data(topic, message, step)
            case {"success": True, "request": {"op": "subscribe", "args": topics}}:
                return Many([Granted(topic) for topic in topics])
            case {"success": False, "request": {"op": "subscribe", "args": topics}}:
                return Many([Refused(topic, message.get("ret_msg", "")) for topic in topics])
            case {"ret_msg": "pong"} | {"request": {"op": "ping"}}:
                return Beat(answers=True)
            case {"request": {"op": "unsubscribe"}}:
                return Many([])
            case _:
                return Other(message)

    def tracker(self, channel: Channel) -> Tracker | None:
        match channel.name.partition(".")[0]:
            case "orderBookL2_25" | "orderBook_200":
                return Tracker(resync=True, build=Book)
            case "instrument_info":
                return Tracker(resync=True)
            case _:
                return None


class Book:
    """The book of a symbol: the sizes by side and price."""

    def __init__(self) -> None:
        self.levels: dict[tuple[str, str], Any] = {}

    def apply(self, message: Any, snapshot: bool) -> None:
        data = message["data"]
        if snapshot:
            levels = data if isinstance(data, list) else data["order_book"]  # the latter of linear perpetuals
            self.levels = {_place(level): level["size"] for level in levels}
            return
        for kind, is_there in (("delete", True), ("update", True), ("insert", False)):
            for level in data[kind]:
                place = _place(level)
                if (place in self.levels) is not is_there:
                    raise ValueError(f"{kind} does not fit what the book has at {place}")
                if kind == "delete":
                    del self.levels[place]
                else:
                    self.levels[place] = level["size"]

    def checksum(self) -> int:
        raise NotImplementedError("Bybit sends none")


def _place(level: Mapping[str, Any]) -> tuple[str, str]:
    return level["side"], level["price"]
