"""Messages that say how long they are, in a stream of binary frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeAlias

import attrs

from trio_nova.codecs._checks import check_codec, check_function, whole
from trio_nova.codecs._framed import OutOfStep, as_bytes, framed, too_big
from trio_nova.codecs._seam import Codec, LinkCodec, StreamCodec
from trio_nova.core import Strategy, one_of
from trio_nova.errors import BadMessage, ConfigError
from trio_nova.messages import M_co

_VARINT = 10
"""Bytes of the longest number of 64 bits, at seven bits each."""

_BATCH = 256
"""Messages that are decoded at once."""

_Measure: TypeAlias = Callable[[bytes], tuple[int, int] | None]
"""From the first bytes of a packet to where its message begins and ends; None: more bytes are needed to tell."""


def _check_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value != "varint" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8):
        raise ConfigError(attribute.name, f'must be a number of bytes from 1 to 8, or "varint", not {value!r}')


@attrs.define(unsafe_hash=True)
class LengthPrefixed(Strategy, Generic[M_co]):
    """Messages with their length before each, in binary frames, of which one may bring several, a half, or none.

    The length counts the bytes that follow it. Text that the codec inside makes is sent as UTF-8; what comes is handed
    to it as bytes. Each message is sent in a frame of its own.

    A length beyond `max_message_size` breaks the stream: most often it is none, as the two sides count otherwise. A
    text frame is a `BadMessage`, and the stream is as it was.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and bytes."""
    size: int | Literal["varint"] = attrs.field(default=4, validator=_check_size)
    """Bytes of the length, from 1 to 8; or "varint", seven bits to a byte, the lowest first, as Protocol Buffers do."""
    byteorder: Literal["big", "little"] = attrs.field(default="big", validator=one_of("big", "little"))
    """The order of these bytes; of a varint it is always the same."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        if self.size == "varint":
            return framed(_Measured(_varint, _to_varint, _VARINT, max_message_size), self.inner, max_message_size)
        size, order = self.size, self.byteorder

        def measure(head: bytes) -> tuple[int, int] | None:
            return (size, size + int.from_bytes(head, order)) if len(head) == size else None

        def prefix(payload: bytes) -> bytes:
            try:
                return len(payload).to_bytes(size, order)
            except OverflowError:
                raise BadMessage(f"a message of {len(payload)} bytes, whose length does not fit in {size}") from None

        return framed(_Measured(measure, prefix, size, max_message_size), self.inner, max_message_size)


def _varint(head: bytes) -> tuple[int, int] | None:
    number = 0
    for at, byte in enumerate(head):
        number |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return at + 1, at + 1 + number
    return None


def _to_varint(payload: bytes) -> bytes:
    number, coded = len(payload), bytearray()
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    coded.append(number)
    return bytes(coded)


@attrs.define(unsafe_hash=True)
class Packets(Strategy, Generic[M_co]):
    """Packets that tell their length in their head, in binary frames, of which one may bring several, a half, or none.

    MQTT is such a protocol (MQTT 5.0 section 6.0). The codec inside is given whole packets, with their heads, and makes
    whole ones. Each is sent in a frame of its own.

    A packet beyond `max_message_size`, or a head without a length, breaks the stream. A text frame is a `BadMessage`,
    and the stream is as it was.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and packets."""
    length: Callable[[bytes], int | None] = attrs.field(validator=check_function)
    """Given the first bytes of a packet, from one to `head` of them, and perhaps of what follows it: returns how many
    bytes the packet has, its head included; None where it needs more bytes to tell. If it raises, the stream is broken.
    """
    head: int = attrs.field(default=16, validator=whole(1, 4096))
    """Bytes of a packet within which its length can be told."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        length = self.length

        def measure(head: bytes) -> tuple[int, int] | None:
            try:
                end = length(head)
            except Exception as exc:
                raise OutOfStep(f"length raised {type(exc).__name__}") from exc
            if end is None:
                return None
            if isinstance(end, bool) or not isinstance(end, int) or end < 1:
                raise OutOfStep(f"length answered {end!r}, which is no number of bytes")
            return 0, end

        cutter = _Measured(measure, lambda packet: b"", self.head, max_message_size)
        return framed(cutter, self.inner, max_message_size)


@attrs.define(eq=False)
class _Measured:
    """Cuts a stream of bytes at the lengths that stand in it."""

    _measure: _Measure
    _prefix: Callable[[bytes], bytes]
    """Returns what is sent before a message."""
    _head: int
    """Bytes that are enough to measure."""
    _limit: int
    _kept: bytearray = attrs.field(factory=bytearray, init=False)
    """The beginning of a packet."""

    @property
    def remembers(self) -> bool:
        return False

    def cut(self, payload: str | bytes) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where there is a stream of binary ones")
        self._kept += payload
        data, at = self._kept, 0
        parts: list[bytes] = []
        try:
            while at < len(data):
                begin, end = self._next(bytes(data[at : at + self._head]))
                if not end or at + end > len(data):
                    break
                parts.append(bytes(data[at + begin : at + end]))
                at += end
                if len(parts) == _BATCH:
                    yield parts
                    parts = []
        except OutOfStep:
            yield parts
            raise
        yield parts
        del data[:at]

    def _next(self, head: bytes) -> tuple[int, int]:
        """Return where the message of a packet begins and ends; (0, 0) where more is needed to tell."""
        measured = self._measure(head)
        if measured is None:
            if len(head) == self._head:
                raise OutOfStep(f"no length within {self._head} bytes")
            return 0, 0
        begin, end = measured
        if end - begin > self._limit:
            raise OutOfStep(too_big(f"a message of {end - begin} bytes", self._limit))
        return measured

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[bytes]:
        return [self._prefix(data) + data for data in map(as_bytes, payloads)]

    def drop(self) -> None:
        self._kept = bytearray()
