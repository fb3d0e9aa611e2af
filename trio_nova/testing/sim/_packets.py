"""Packets over binary frames, which need not begin and end where frames do: two bytes of length, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from trio_nova.errors import BadMessage

__all__ = ["HEADER", "PacketCodec", "PacketReader", "pack"]

HEADER = 2
"""Bytes before each packet: the length of what follows, the most significant byte first."""


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
    """The client's codec: each link has a reader of its own. A long packet is written in two frames."""

    def open_link(self, max_message_size: int) -> _PacketLink:
        """Return the side of the codec that lives with one link."""
        return _PacketLink()


@attrs.define(eq=False)
class _PacketLink:
    _reader: PacketReader = attrs.field(factory=PacketReader, init=False)

    def encode(self, message: Any) -> Sequence[bytes]:
        packet = pack(message)
        return (packet,) if len(packet) < 40 else (packet[:HEADER], packet[HEADER:])

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        if isinstance(payload, str):
            raise BadMessage("a packet comes in binary frames")
        try:
            return [msgspec.json.decode(text) for text in self._reader.feed(payload)]
        except msgspec.MsgspecError as exc:
            raise BadMessage("a packet holds no JSON") from exc
