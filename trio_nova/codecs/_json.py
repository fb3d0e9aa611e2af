"""JSON, and text and bytes as they are."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from sys import getsizeof
from typing import Any, Generic, overload

import attrs
import msgspec
from attrs.setters import validate

from trio_nova.codecs._own import refuse_own
from trio_nova.codecs._weights import weigh_json
from trio_nova.core import Strategy, check_bool, derive
from trio_nova.errors import BadMessage
from trio_nova.messages import M_co

# What msgspec raises at a payload; an exponent of 19 digits is too much even for a Decimal.
UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)


def _float_hook(decimals: bool) -> Callable[[str], Any] | None:
    return Decimal if decimals else None


@attrs.define(unsafe_hash=True)
class RawCodec(Strategy):
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


@attrs.define(unsafe_hash=True, init=False)
class JsonCodec(Strategy, Generic[M_co]):
    """JSON in text frames (RFC 8259), both ways.

    `type` makes decoding typed: any type that msgspec knows, a Struct say. Decoding is strict: no
    NaN, no trailing bytes, bounded nesting. A binary payload is decoded too: some services send JSON so.
    Encoding is as strict, and knows the types that msgspec does; bytes become base64, and a `Decimal` the number that
    it is, digit for digit.
    """

    type: Any = attrs.field(default=Any, on_setattr=derive)
    decimals: bool = attrs.field(default=False, validator=check_bool, kw_only=True, on_setattr=[validate, derive])
    """Whether numbers with a fraction or an exponent become `Decimal`, with all their digits, where the type leaves
    open what they become. A fixed type may ask for `Decimal` by itself.
    """
    _decoder: msgspec.json.Decoder[M_co] = attrs.field(init=False, repr=False, eq=False)

    @overload
    def __init__(self, type: builtins.type[M_co], *, decimals: bool = False) -> None: ...
    @overload
    def __init__(self: JsonCodec[Any], type: Any = Any, *, decimals: bool = False) -> None: ...  # a union is no `type`
    def __init__(self, type: Any = Any, *, decimals: bool = False) -> None:
        self.__attrs_init__(type, decimals=decimals)  # pyright: ignore[reportAttributeAccessIssue]

    def __attrs_post_init__(self) -> None:
        self._decoder = msgspec.json.Decoder(self.type, float_hook=_float_hook(self.decimals))

    def encode(self, message: Any) -> str:
        return encode_json(message)

    def decode(self, payload: str | bytes) -> M_co:
        try:
            return self._decoder.decode(payload)
        except UNREADABLE as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[M_co]:
        """Return the messages of all `payloads`; raises like `decode`, if any of them is bad."""
        try:
            return list(map(self._decoder.decode, payloads))
        except UNREADABLE as exc:
            raise BadMessage(f"not the JSON that was expected: {type(exc).__name__}") from exc

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about what the message takes in memory."""
        return weigh_json(payload)


@attrs.define(unsafe_hash=True)
class MixedCodec(Strategy):
    """For services that mix JSON with other text: a text that is a JSON object or array becomes that.

    All else stays as it is: "7" and "true" are texts here. What is sent goes as `RawCodec` sends it.
    """

    decimals: bool = attrs.field(default=False, validator=check_bool, kw_only=True, on_setattr=[validate, derive])
    """As of `JsonCodec`."""
    _decoder: msgspec.json.Decoder[Any] = attrs.field(init=False, repr=False, eq=False)
    _raw: RawCodec = attrs.field(factory=RawCodec, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = msgspec.json.Decoder(float_hook=_float_hook(self.decimals))

    def encode(self, message: Any) -> str | bytes:
        return self._raw.encode(message)

    def decode(self, payload: str | bytes) -> Any:
        if isinstance(payload, str) and payload.lstrip()[:1] in ("{", "["):
            try:
                return self._decoder.decode(payload)
            except UNREADABLE:
                return payload
        return payload

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about what the message takes in memory."""
        return getsizeof(payload) if message is payload else weigh_json(payload)


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
        refuse_own(message)
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
