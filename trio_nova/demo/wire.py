"""What the client says to the exchange: JSON objects, told apart by their `type`.

The exchange answers in the forms that the library's own defaults read, and its data are objects with a
`channel` and a `seq`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = ["Auth", "FromClient", "Order", "PlaceOrder", "Subscribe", "Unsubscribe"]


class Auth(msgspec.Struct, frozen=True, tag_field="type", tag="auth"):
    """Who the client is: to be said before anything else, on every link."""

    token: str


class Subscribe(msgspec.Struct, frozen=True, tag_field="type", tag="subscribe"):
    """The client wants to hear a channel."""

    channel: str


class Unsubscribe(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """The client has heard enough of a channel."""

    channel: str


class Order(msgspec.Struct, frozen=True):
    """What the client wants to buy, under a number of its own."""

    number: int
    price: float
    quantity: int


class PlaceOrder(msgspec.Struct, frozen=True, tag_field="type", tag="order"):
    """A request, which is answered under its id: with the order as executed, or with an error."""

    id: int
    order: Order


FromClient: TypeAlias = Auth | Subscribe | Unsubscribe | PlaceOrder
