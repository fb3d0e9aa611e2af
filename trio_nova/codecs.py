"""Codecs: between a message, as the program knows it, and the payload of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import msgspec

from trio_nova.errors import BadMessage

__all__ = ["Codec", "JsonCodec", "MixedCodec", "RawCodec"]


class Codec(Protocol):
    """Turns messages into payloads and back. A strategy: `Config.codec`.

    A codec may also have a method `decode_all`, from a sequence of payloads to their messages, in their
    order. It is asked instead of `decode` where no hook wants to see each payload; if it raises, `decode`
    is asked about each. So it must be pure. A subclass that overrides `decode` alone is asked that.
    """

    def encode(self, message: Any) -> str | bytes:
        """Return the payload: `str` makes a text frame, `bytes` a binary one.

        Raises:
            BadMessage: the message cannot be encoded.
        """
        ...

    def decode(self, payload: str | bytes) -> Any:
        """Return the message.

        Raises:
            BadMessage: the payload is not a message.
        """
        ...


@attrs.frozen
class RawCodec:
    """The default: text stays `str`, binary stays `bytes`; what else is sent goes as JSON text, as `JsonCodec` does."""

    def encode(self, message: Any) -> str | bytes:
        match message:
            case str() | bytes():
                return message
            case bytearray() | memoryview():
                return bytes(message)
            case _:
                return encode_json(message)

    def decode(self, payload: str | bytes) -> str | bytes:
        return payload

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        """Return the messages of all `payloads`."""
        return payloads


@attrs.frozen
class JsonCodec:
    """JSON in text frames (RFC 8259), both ways.

    `type` makes decoding typed: any type that msgspec knows, a Struct say. Decoding is strict: no
    NaN, no trailing bytes, bounded nesting. A binary payload is decoded too: some services send JSON so.
    Encoding is as strict, and knows the types that msgspec does; bytes become base64.
    """

    type: Any = Any
    _decoder: msgspec.json.Decoder[Any] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_decoder", msgspec.json.Decoder(self.type))

    def encode(self, message: Any) -> str:
        return encode_json(message)

    def decode(self, payload: str | bytes) -> Any:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[Any]:
        """Return the messages of all `payloads`; raises like `decode`, if any of them is bad."""
        try:
            return list(map(self._decoder.decode, payloads))
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc


@attrs.frozen
class MixedCodec:
    """For services that mix JSON with other text: a text that is a JSON object or array becomes that.

    All else stays as it is: "7" and "true" are texts here. What is sent goes as `RawCodec` sends it.
    """

    _raw: RawCodec = attrs.field(factory=RawCodec, init=False, repr=False)

    def encode(self, message: Any) -> str | bytes:
        return self._raw.encode(message)

    def decode(self, payload: str | bytes) -> Any:
        if isinstance(payload, str) and payload.lstrip()[:1] in ("{", "["):
            try:
                return msgspec.json.decode(payload)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return payload
        return payload


def batch_decoder(codec: Codec) -> Callable[[Sequence[str | bytes]], Sequence[Any]] | None:
    """Return the codec's `decode_all`; None where it has none, or a subclass has overridden only `decode`."""
    for cls in type(codec).__mro__:
        if "decode_all" in vars(cls):
            decode_all: Callable[[Sequence[str | bytes]], Sequence[Any]] = vars(cls)["decode_all"].__get__(codec)
            return decode_all
        if "decode" in vars(cls):
            return None
    return None


def encode_json(message: Any) -> str:
    """Return `message` as JSON text.

    Raises:
        BadMessage: JSON has no form for it, or for a number in it: NaN, or an infinity.
    """
    try:
        encoded = msgspec.json.encode(message)
        # msgspec writes null for them: an order without a price, say, in place of one with a wrong price.
        if b"null" in encoded and _has_nonfinite(message):
            raise BadMessage("NaN and the infinities cannot be sent as JSON")
        return encoded.decode()
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise BadMessage(f"a value of type {type(message).__name__} cannot be sent as JSON: {exc}") from exc


def _has_nonfinite(message: Any) -> bool:
    unseen = [msgspec.to_builtins(message, enc_hook=lambda raw: None)]  # msgspec.Raw is text already
    while unseen:
        match unseen.pop():
            case float() as number if not math.isfinite(number):
                return True
            case dict() as mapping:
                unseen += mapping.values()
            case list() | tuple() as sequence:
                unseen += sequence
    return False
