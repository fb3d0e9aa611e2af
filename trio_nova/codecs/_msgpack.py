"""MessagePack."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, overload

import attrs
import msgspec
from attrs.setters import validate

from trio_nova.codecs._json import UNREADABLE
from trio_nova.codecs._own import refuse_own
from trio_nova.codecs._weights import MARK_WEIGHT, weigh_json
from trio_nova.core import Strategy, check_callable, derive
from trio_nova.errors import BadMessage, ConfigError
from trio_nova.messages import M_co

_ExtHook: TypeAlias = Callable[[int, memoryview], Any]
_EncHook: TypeAlias = Callable[[Any], Any] | None


def _refuse_extension(code: int, data: memoryview) -> Any:
    raise BadMessage(f"MessagePack of the extension type {code}, for which there is no ext_hook")


@attrs.define(unsafe_hash=True, init=False)
class MsgpackCodec(Strategy, Generic[M_co]):
    """MessagePack in binary frames, both ways.

    `type` makes decoding typed: any type that msgspec knows, a Struct say. Decoding is strict: no trailing bytes,
    bounded nesting, text that is UTF-8. A text frame is a `BadMessage`, and so is an extension type that the hook
    does not know. Timestamps, extension type -1, are `datetime` without a hook.
    """

    type: Any = attrs.field(default=Any, on_setattr=derive)
    ext_hook: _ExtHook = attrs.field(
        default=_refuse_extension, validator=check_callable, kw_only=True, on_setattr=[validate, derive]
    )
    """Given the code and the bytes of an extension type, returns its value; what it raises is a `BadMessage`."""
    enc_hook: _EncHook = attrs.field(
        default=None, validator=attrs.validators.optional(check_callable), kw_only=True, on_setattr=[validate, derive]
    )
    """Given an object that MessagePack has no form for, returns one that it has, `msgspec.msgpack.Ext` say."""
    _decoder: msgspec.msgpack.Decoder[M_co] = attrs.field(init=False, repr=False, eq=False)
    _encoder: msgspec.msgpack.Encoder = attrs.field(init=False, repr=False, eq=False)

    @overload
    def __init__(
        self, type: builtins.type[M_co], *, ext_hook: _ExtHook = _refuse_extension, enc_hook: _EncHook = None
    ) -> None: ...
    @overload  # a union is no `type`
    def __init__(
        self: MsgpackCodec[Any], type: Any = Any, *, ext_hook: _ExtHook = _refuse_extension, enc_hook: _EncHook = None
    ) -> None: ...
    def __init__(self, type: Any = Any, *, ext_hook: _ExtHook = _refuse_extension, enc_hook: _EncHook = None) -> None:
        self.__attrs_init__(type, ext_hook=ext_hook, enc_hook=enc_hook)  # pyright: ignore[reportAttributeAccessIssue]

    def __attrs_post_init__(self) -> None:
        try:
            decoder = msgspec.msgpack.Decoder(self.type, ext_hook=self.ext_hook)
        except TypeError as exc:
            raise ConfigError("type", str(exc)) from exc
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self.enc_hook)

    def encode(self, message: Any) -> bytes:
        try:
            payload = self._encoder.encode(message)
            refuse_own(message)
        except BadMessage:
            raise
        except Exception as exc:  # of the hook, too
            kind = type(message).__name__
            raise BadMessage(f"a value of type {kind} cannot be sent as MessagePack: {exc}") from exc
        return payload

    def decode(self, payload: str | bytes) -> M_co:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where MessagePack was expected")
        try:
            return self._decoder.decode(payload)
        except BadMessage:
            raise
        except Exception as exc:
            raise BadMessage(f"not the MessagePack that was expected: {type(exc).__name__}") from exc

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[M_co]:
        """Return the messages of all `payloads`; raises like `decode`, if any of them is bad."""
        return list(map(self.decode, payloads))

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about what the message takes in memory."""
        try:
            return max(len(payload), weigh_json(_as_json.encode(message)))
        except (*UNREADABLE, TypeError):
            return MARK_WEIGHT * len(payload)  # each byte an array


_as_json = msgspec.json.Encoder(enc_hook=lambda value: None)
