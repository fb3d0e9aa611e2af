"""WebSocket frames by hand (RFC 6455 section 5.2): the server of the benchmarks uses no library."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence

import attrs

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

_ACCEPT_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_WINDOW_BITS = 12
"""Small enough for every client's offer, so that all of them inflate the very same bytes (RFC 7692 section 7.1.2)."""


def accept_key(key: str) -> str:
    """Return the answer to a client's Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _ACCEPT_KEY).encode()).digest()).decode()


def frame(opcode: int, payload: bytes, *, mask: bytes | None = None, compressed: bool = False) -> bytes:
    """Return one whole frame; a client's is masked."""
    first = 0x80 | (0x40 if compressed else 0) | opcode
    masked = 0 if mask is None else 0x80
    if len(payload) < 126:
        head = bytes((first, masked | len(payload)))
    elif len(payload) < 1 << 16:
        head = bytes((first, masked | 126)) + len(payload).to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + len(payload).to_bytes(8, "big")
    return head + payload if mask is None else head + mask + unmask(payload, mask)


def masked_length(size: int) -> int:
    """Return how many bytes a client's frame with `size` bytes of payload takes on the wire."""
    return size + 4 + (2 if size < 126 else 4 if size < 1 << 16 else 10)


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Mask a payload, or take its mask off: it is the same (RFC 6455 section 5.3)."""
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")


@attrs.frozen
class Received:
    """A frame that the server has parsed."""

    opcode: int
    payload: bytes
    end: int
    """Where the next one begins."""
    final: bool = True


def parse(buffer: bytes | bytearray, start: int = 0) -> Received | None:
    """Return the client's frame that begins at `start`, unmasked and inflated; None while it is not complete."""
    if len(buffer) < start + 2:
        return None
    first, second = buffer[start], buffer[start + 1]
    at, length = start + 2, second & 0x7F
    if length >= 126:
        width = 2 if length == 126 else 8
        length = int.from_bytes(buffer[at : at + width], "big")
        at += width
    if not second & 0x80:
        raise ValueError("a frame of the client is not masked")
    end = at + 4 + length
    if len(buffer) < end:
        return None
    payload = unmask(bytes(buffer[at + 4 : end]), bytes(buffer[at : at + 4]))
    if first & 0x40:
        payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
    return Received(first & 0x0F, payload, end, bool(first & 0x80))


def deflate(payload: bytes) -> bytes:
    """Return a payload as permessage-deflate without context takeover has it (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-_WINDOW_BITS)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def plain_texts(size: int, count: int) -> list[bytes]:
    """Return `count` different texts of exactly `size` bytes."""
    filler = b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 " * (size // 60 + 1)
    return [b"%08d" % index + filler[: size - 8] for index in range(count)]


def mixed_texts(size: int, count: int) -> list[bytes]:
    """Return `count` different texts of `size` bytes on average: hardly two in a row are of one length."""
    longest = plain_texts(size + size // 2, count)
    return [text[: size // 2 + index * 7919 % (size + 1)] for index, text in enumerate(longest)]


def json_texts(size: int, count: int, channels: int) -> list[bytes]:
    """Return `count` trades as JSON of exactly `size` bytes, of so many channels in turn."""
    texts = []
    for index in range(count):
        trade = {
            "channel": channel_name(index % channels),
            "seq": index,
            "price": 50_000 + index % 997 / 10,
            "amount": 1 + index % 89 / 100,
            "side": "sell" if index % 3 else "buy",
            "note": "",
        }
        short = json.dumps(trade, separators=(",", ":"))
        filler = "the quick brown fox jumps over the lazy dog " * (size // 40 + 1)
        trade["note"] = filler[: size - len(short)]
        texts.append(json.dumps(trade, separators=(",", ":")).encode())
    return texts


def channel_name(index: int) -> str:
    """Return what a channel of the benchmarks is called; all names are of one length."""
    return f"ch.{index:05d}"


@attrs.frozen
class Script:
    """What the server floods a client with: `texts`, over and over."""

    texts: Sequence[bytes]
    wire: bytes
    """All of them, framed."""
    ends: Sequence[int]
    """Where each frame ends in `wire`."""

    @classmethod
    def of(cls, texts: Sequence[bytes], *, compressed: bool = False) -> Script:
        frames = [frame(TEXT, deflate(text) if compressed else text, compressed=compressed) for text in texts]
        ends, end = [], 0
        for one in frames:
            end += len(one)
            ends.append(end)
        return cls(texts, b"".join(frames), ends)

    def bytes_of(self, count: int) -> int:
        """Return the payload bytes of the first `count` messages of a flood."""
        laps, rest = divmod(count, len(self.texts))
        return laps * sum(map(len, self.texts)) + sum(map(len, self.texts[:rest]))

    def last(self, count: int) -> int:
        """Return the checksum of the message that ends a flood of `count`."""
        return zlib.crc32(self.texts[(count - 1) % len(self.texts)])

    def checksum(self, count: int) -> int:
        """Return the checksum of a flood of `count`, from its first byte of payload to its last."""
        crc = 0
        for index in range(count):
            crc = zlib.crc32(self.texts[index % len(self.texts)], crc)
        return crc
