"""Coinbase's exchange feed, as https://docs.cdp.coinbase.com/exchange/websocket-feed/overview and .../channels have it.

The `sequence` of a message counts all that happens to a product, which only the channel `full` tells: of the others no
gap can be counted by it. `level2` "guarantees delivery of all updates". The trades of a product, which `matches` tells,
have numbers of their own without holes, by which, as "Heartbeat Channel" says, missed ones can be found.

A channel is called by its name and the product: "level2 BTC-USD".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trio_nova import (
    Adapter,
    Channel,
    Data,
    Granted,
    JsonCodec,
    Many,
    Other,
    Reading,
    Refused,
    Step,
    Tracker,
)

LEVELS = ("level2", "level2_batch")
CHANNELS: Mapping[str, Sequence[str]] = {
    "snapshot": LEVELS,
    "l2update": LEVELS,
    "match": ("matches", "full"),
    "last_match": ("matches",),
    "ticker": ("ticker", "ticker_batch"),
    "heartbeat": ("heartbeat",),
    "status": ("status",),
    "auction": ("auctionfeed",),
    **dict.fromkeys(("received", "open", "done", "change", "activate"), ("full",)),
}
"""For each type of message, the channels that send it."""


class Coinbase(Adapter):
    host = "ws-feed.exchange.coinbase.com"
    max_batch = 100

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec()}

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"type": "subscribe", "channels": _about(channels)}

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"type": "unsubscribe", "channels": _about(channels)}

    def encode_unsubscription(self, channel: Channel, server_id: object) -> Any:
        return self.encode_unsubscription_batch([channel])

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"type": str(kind)} if kind in CHANNELS:
                product = message.get("product_id", "")
                return Data([f"{name} {product}".rstrip() for name in CHANNELS[kind]], message, _step(kind, message))
            case {"type": "subscriptions", "channels": about}:
                return Many([Granted(name) for name in _names(about)])  # all so far, those known already too
            case {"type": "error"}:
                reason = f"{message.get('message', '')}: {message.get('reason', '')}"
                products = re.findall(r"\b[A-Z0-9]+-[A-Z0-9]+\b", reason)
                names = dict.fromkeys(name for names in CHANNELS.values() for name in names)
                refused = [Refused(f"{name} {product}", reason) for product in products for name in names]
                return Many(refused) if refused else Other(message)
            case _:
                return Other(message)

    def tracker(self, channel: Channel) -> Tracker | None:
        name = channel.name.partition(" ")[0]
        if name in LEVELS:
            return Tracker(resync=True)
        return Tracker() if name == "matches" else None


def _step(kind: str, message: Mapping[str, Any]) -> Step | None:
    if kind in ("match", "last_match"):
        return Step(message["trade_id"])
    return Step(None, snapshot=True) if kind == "snapshot" else None


def _about(channels: Sequence[Channel]) -> list[dict[str, Any]]:
    products: dict[str, list[str]] = {}
    for channel in channels:
        name, _, product = channel.name.partition(" ")
        products.setdefault(name, []).extend([product] if product else [])
    return [{"name": name, "product_ids": each} for name, each in products.items()]


def _names(about: Sequence[Any]) -> list[str]:
    """Return the channels that a confirmation lists."""
    return [f"{each['name']} {product}".rstrip() for each in about for product in (each.get("product_ids") or [""])]
