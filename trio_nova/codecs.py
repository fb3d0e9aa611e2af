"""Codecs: between a message, as the program knows it, and the payload of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from decimal import Decimal
from sys import getsizeof
from typing import Any, Protocol

import attrs
import msgspec

from trio_nova.core import check_bool
from trio_nova.errors import BadMessage

__all__ = ["Codec", "JsonCodec", "MixedCodec", "RawCodec"]


class Codec(Protocol):
    """Turns messages into payloads and back. A strategy: `Config.codec`.

    A codec may also have a method `decode_all`, from a sequence of payloads to their messages, in their
    order. It is asked instead of `decode` where no hook wants to see each payload; if it raises, `decode`
    is asked about each. So it must be pure. A subclass that overrides `decode` alone is asked that.

    And it may have a method `weigh(payload, message) -> int`, which returns how many bytes the message takes
    in memory. It is asked where many wait to be received; a codec without one is taken to make messages that
    are no larger than their payloads.
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


# What msgspec raises at a payload; an exponent of 19 digits is too much even for a Decimal.
_UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)


def _float_hook(decimals: bool) -> Callable[[str], Any] | None:
    return Decimal if decimals else None


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
    Encoding is as strict, and knows the types that msgspec does; bytes become base64, and a `Decimal` the number that
    it is, digit for digit.
    """

    type: Any = Any
    decimals: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether numbers with a fraction or an exponent become `Decimal`, with all their digits, where the type leaves
    open what they become. A fixed type may ask for `Decimal` by itself.
    """
    _decoder: msgspec.json.Decoder[Any] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_decoder", msgspec.json.Decoder(self.type, float_hook=_float_hook(self.decimals)))

    def encode(self, message: Any) -> str:
        return encode_json(message)

    def decode(self, payload: str | bytes) -> Any:
        try:
            return self._decoder.decode(payload)
        except _UNREADABLE as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[Any]:
        """Return the messages of all `payloads`; raises like `decode`, if any of them is bad."""
        try:
            return list(map(self._decoder.decode, payloads))
        except _UNREADABLE as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about what the message takes in memory."""
        return weigh_json(payload)


@attrs.frozen
class MixedCodec:
    """For services that mix JSON with other text: a text that is a JSON object or array becomes that.

    All else stays as it is: "7" and "true" are texts here. What is sent goes as `RawCodec` sends it.
    """

    decimals: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """As of `JsonCodec`."""
    _decoder: msgspec.json.Decoder[Any] = attrs.field(init=False, repr=False, eq=False)
    _raw: RawCodec = attrs.field(factory=RawCodec, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_decoder", msgspec.json.Decoder(float_hook=_float_hook(self.decimals)))

    def encode(self, message: Any) -> str | bytes:
        return self._raw.encode(message)

    def decode(self, payload: str | bytes) -> Any:
        if isinstance(payload, str) and payload.lstrip()[:1] in ("{", "["):
            try:
                return self._decoder.decode(payload)
            except _UNREADABLE:
                return payload
        return payload

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about what the message takes in memory."""
        return getsizeof(payload) if message is payload else weigh_json(payload)


MARK_WEIGHT = 64
"""Bytes that an array, an object, or one of their items takes in memory beside its text."""


def weigh_json(payload: str | bytes) -> int:
    """Return about what a JSON text takes in memory once decoded: tens of times its size, if it is all brackets."""
    size = getsizeof(payload)
    # One character beyond ASCII makes all of its text as wide: text that is escaped, or in UTF-8, does not show it.
    if isinstance(payload, bytes):
        marks = payload.count(b"[") + payload.count(b"{") + payload.count(b",")
        widens = not payload.isascii() or b"\\u" in payload
    else:
        marks = payload.count("[") + payload.count("{") + payload.count(",")
        widens = "\\u" in payload
    return (4 * len(payload) if widens else size) + MARK_WEIGHT * marks


def weigh_message(message: Any) -> int:
    """Return about what a message takes in memory whose payload is not at hand."""
    if isinstance(message, str | bytes):
        return getsizeof(message)
    try:
        return weigh_json(msgspec.json.encode(message))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return getsizeof(message)


def weigher(codec: Codec) -> Callable[[str | bytes, Any], int]:
    """Return what weighs the codec's messages: its own `weigh`, where it has one."""
    weigh: Callable[[str | bytes, Any], int] | None = getattr(codec, "weigh", None)
    return _size_of if weigh is None else weigh


def _size_of(payload: str | bytes, message: Any) -> int:
    return getsizeof(payload)


def batch_decoder(codec: Codec) -> Callable[[Sequence[str | bytes]], Sequence[Any]] | None:
    """Return the codec's `decode_all`; None where it has none, or a subclass has overridden only `decode`."""
    for cls in type(codec).__mro__:
        if "decode_all" in vars(cls):
            decode_all: Callable[[Sequence[str | bytes]], Sequence[Any]] = vars(cls)["decode_all"].__get__(codec)
            return decode_all
        if "decode" in vars(cls):
            return None
    return None


_encoder = msgspec.json.Encoder(decimal_format="number")
_sorting_encoder = msgspec.json.Encoder(decimal_format="number", order="deterministic")


def encode_json(message: Any, *, is_sorted: bool = False) -> str:
    """Return `message` as JSON text, the members of its objects in their order, or `is_sorted`.

    Raises:
        BadMessage: JSON has no form for it, or for a number in it: NaN, or an infinity; or it is, or holds, an object
            of this library, such as what a hook answers with.
    """
    try:
        text = (_sorting_encoder if is_sorted else _encoder).encode(message).decode()
        _refuse_own(message)
        # msgspec writes null for them: an order without a price, say, in place of one with a wrong price. Of a
        # Decimal, its older versions write the name.
        may_be_nonfinite = "null" in text or "NaN" in text or "Infinity" in text
        if may_be_nonfinite and _has_nonfinite(message):
            raise BadMessage("NaN and the infinities cannot be sent as JSON")
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise BadMessage(f"a value of type {type(message).__name__} cannot be sent as JSON: {exc}") from exc
    return text


def _has_nonfinite(message: Any) -> bool:
    plain = msgspec.to_builtins(message, builtin_types=(Decimal,), enc_hook=lambda raw: None)  # Raw is text already
    unseen = [plain]
    while unseen:
        match unseen.pop():
            case float() as number if not math.isfinite(number):
                return True
            case Decimal() as number if not number.is_finite():
                return True
            case dict() as mapping:
                unseen += mapping.values()
            case list() | tuple() as sequence:
                unseen += sequence
    return False


_PLAIN = frozenset({str, int, float, bool, bytes, type(None), Decimal})


def _refuse_own(message: Any) -> None:
    """Raise BadMessage where an object of this library is in a message: msgspec would write its fields as JSON."""
    parts = [message]
    for part in parts:  # which grows meanwhile
        kind = type(part)
        if kind is dict:
            part = part.values()
        elif kind is not list:
            if _is_own(kind):
                raise BadMessage(
                    f"a {kind.__name__} of trio_nova is no message, nor part of one: a ping is sent by itself, and "
                    "what hooks answer is for them to return"
                )
            part = _contents(part)
        for value in part:
            if type(value) not in _PLAIN:
                parts.append(value)


def _is_own(kind: type) -> bool:
    """Return whether objects of a class are this library's: the values that `attrs` makes."""
    return attrs.has(kind) and any(base.__module__.partition(".")[0] == "trio_nova" for base in kind.__mro__)


def _contents(part: Any) -> Iterable[Any]:
    """Return what msgspec writes of an object that is no plain dict or list."""
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set | frozenset):
        return part
    if isinstance(part, msgspec.Struct):
        names: Iterable[str] = part.__struct_fields__
    elif is_dataclass(part) or attrs.has(type(part)):
        names = [*getattr(part, "__dict__", ()), *_slots_of(type(part))]
    else:
        return ()
    return [getattr(part, name, None) for name in names]


def _slots_of(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]


class LinkCodec(Protocol):
    """The side of a codec that lives and dies with one link."""

    def encode(self, message: Any) -> Sequence[str | bytes]: ...

    def decode(self, payload: str | bytes) -> Sequence[Any]: ...


def open_link_codec(codec: Any, max_message_size: int) -> LinkCodec | None:
    open_link = getattr(codec, "open_link", None)
    return None if open_link is None else open_link(max_message_size)
