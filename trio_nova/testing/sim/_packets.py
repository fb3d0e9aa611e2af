"""Packets over binary frames, which need not begin and end where frames do: two bytes of length, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from trio_nova.codecs import JsonCodec, LengthPrefixed, LinkCodec

__all__ = ["HEADER", "PacketCodec", "PacketReader", "pack"]

HEADER = 2
"""Bytes before each packet: the length of what follows, the most significant byte first."""
LONG = 40
"""Bytes of a packet from which on it is long."""


def pack(message: Any) -> bytes:
    """Return a message as a packet."""
    text = msgspec.json.encode(message)
    return len(text).to_bytes(HEADER) + text


@attrs.define(eq=False)
class PacketReader:
    """Reads packets out of the payloads of one link."""

    _rest: bytearray = attrs.field(factory=bytearray, init=False)

    def feed(self, payload: bytes) -> list[bytes]:
        """Return the JSON of the packets that this payload completes."""
        rest, whole = self._rest, list[bytes]()
        rest += payload
        while len(rest) >= HEADER and len(rest) >= (end := HEADER + int.from_bytes(rest[:HEADER])):
            whole.append(bytes(rest[HEADER:end]))
            del rest[:end]
        return whole


@attrs.frozen
class PacketCodec:
    """The client's codec: `LengthPrefixed`, but that a long packet is written in two frames."""

    def open_link(self, max_message_size: int) -> LinkCodec:
        """Return the side of the codec that lives with one link."""
        return _PacketLink(LengthPrefixed(JsonCodec(), size=HEADER).open_link(max_message_size))


@attrs.define(eq=False)
class _PacketLink:
    _whole: LinkCodec

    def encode(self, message: Any) -> Sequence[str | bytes]:
        (packet,) = self._whole.encode(message)
        return (packet,) if len(packet) < LONG else (packet[:HEADER], packet[HEADER:])

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return self._whole.decode(payload)
