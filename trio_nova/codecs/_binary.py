"""A codec of two functions: for Protocol Buffers, CBOR, Avro, and formats of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import attrs

from trio_nova.codecs._checks import check_function
from trio_nova.core import Strategy
from trio_nova.errors import BadMessage
from trio_nova.messages import M_co


@attrs.define(unsafe_hash=True)
class BinaryCodec(Strategy, Generic[M_co]):
    """Binary frames, each of which is one message, by two functions.

    With Protocol Buffers: `BinaryCodec(encode=Order.SerializeToString, decode=Event.FromString)`.

    What the functions raise is a `BadMessage`, with the error as its cause; so is a text frame. What else `decode`
    may take or make is its own to bound: a payload holds at most `max_message_size` bytes.
    """

    _encode: Callable[[Any], bytes | bytearray | memoryview] = attrs.field(
        validator=check_function, kw_only=True, alias="encode"
    )
    """Returns the payload of a message."""
    _decode: Callable[[bytes], M_co] = attrs.field(validator=check_function, kw_only=True, alias="decode")
    """Returns the message of a payload."""
    weigh: Callable[[bytes, Any], int] | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_function), kw_only=True
    )
    """Given a payload and its message, returns the bytes that the message takes in memory; None: as its payload."""

    def encode(self, message: Any) -> bytes:
        try:
            payload = self._encode(message)
        except BadMessage:
            raise
        except Exception as exc:
            raise BadMessage(f"a value of type {type(message).__name__} cannot be sent: {type(exc).__name__}") from exc
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise BadMessage(f"encode made a {type(payload).__name__}, not bytes")
        return bytes(payload)

    def decode(self, payload: str | bytes) -> M_co:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where a binary one was expected")
        try:
            return self._decode(payload)
        except BadMessage:
            raise
        except Exception as exc:
            raise BadMessage(f"not the message that was expected: {type(exc).__name__}") from exc
