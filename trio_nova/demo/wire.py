"""What the exchange and its client say to each other: JSON objects, told apart by their `channel`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = ["Ack", "FromExchange", "Heartbeat", "Order", "Tick"]


class Tick(msgspec.Struct, frozen=True, tag_field="channel", tag="trades"):
    """A trade on the market. The numbers go on whether or not anybody listens."""

    seq: int
    """From 1, without holes."""
    price: float


class Heartbeat(msgspec.Struct, frozen=True, tag_field="channel", tag="heartbeat"):
    """A sign of life, with the number of the last tick."""

    seq: int


class Order(msgspec.Struct, frozen=True, tag_field="channel", tag="order"):
    """What the client sends, under a number of its own."""

    id: int
    price: float
    quantity: int


class Ack(msgspec.Struct, frozen=True, tag_field="channel", tag="ack"):
    """The exchange has executed this order: an echo of what it got."""

    order: Order


FromExchange: TypeAlias = Tick | Heartbeat | Ack
