"""Frames on the wire (RFC 6455 section 5), from the server's side: strict when reading, free to lie when writing.

Deliberately a codec of its own: a peer that judges clients must not share their library's mistakes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TypeAlias

import attrs

from trio_nova.errors import ConfigError
from trio_nova.messages import Frame, Ping, Pong, check_close

__all__ = ["ClientFrames", "ClosePayload", "FromClient", "Opcode", "ProtocolBreach", "encode", "encode_frame"]

MAX_MESSAGE = 64 * 2**20
"""Bytes of the longest message the server takes: more is a client gone wild."""

_MASK_KEY = b"\x0f\xf0\x55\xaa"


class ProtocolBreach(AssertionError):
    """The client broke a rule of RFC 6455. An assertion: let out of a script, it fails the test."""


class Opcode(enum.IntEnum):
    """What a frame is (RFC 6455 section 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


@attrs.frozen
class ClosePayload:
    """What a close frame says (RFC 6455 section 5.5.1); code 1005 stands for a frame that says nothing."""

    code: int = 1005
    reason: str = ""


FromClient: TypeAlias = Frame | ClosePayload
"""What a client can send: whole messages, pings, pongs and its goodbye."""


# --------------------------------------------------------------------------- writing


def encode(frame: FromClient) -> bytes:
    """Return `frame` as an honest server writes it: whole, unmasked, with the shortest length."""
    match frame:
        case str():
            return encode_frame(Opcode.TEXT, frame.encode())
        case bytes():
            return encode_frame(Opcode.BINARY, frame)
        case Ping():
            return encode_frame(Opcode.PING, frame.payload)
        case Pong():
            return encode_frame(Opcode.PONG, frame.payload)
        case ClosePayload(code=1005):
            return encode_frame(Opcode.CLOSE)
        case ClosePayload():
            return encode_frame(Opcode.CLOSE, frame.code.to_bytes(2, "big") + frame.reason.encode())


def encode_frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = False, length: int | None = None
) -> bytes:
    """Return one frame, however wrong.

    Args:
        opcode: 0 to 15; those not in `Opcode` are reserved.
        payload: sent as it is.
        fin: whether this is the last frame of its message.
        rsv: the three reserved bits, 0 to 7; RSV1 is 4.
        mask: whether to mask, which a server must not.
        length: the length to claim in place of the payload's.
    """
    claimed = len(payload) if length is None else length
    masked = 0x80 if mask else 0
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if claimed < 126:
        head += bytes([masked | claimed])
    elif claimed < 2**16:
        head += bytes([masked | 126]) + claimed.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + claimed.to_bytes(8, "big")
    return head + (_MASK_KEY + _masked(payload, _MASK_KEY) if mask else payload)


def _masked(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask (RFC 6455 section 5.3): one XOR of two long integers, as a loop over bytes is 100 times slower."""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(len(payload))


# --------------------------------------------------------------------------- reading


@attrs.frozen
class _Head:
    """The header of a client's frame, checked."""

    fin: bool
    opcode: Opcode
    key: bytes
    start: int
    """Where the payload begins, counted from the frame's first byte."""
    end: int


@attrs.define(eq=False)
class ClientFrames:
    """Reads what a client sends, and holds it to the rules; knows nothing of where the bytes come from."""

    _pending: bytearray = attrs.field(factory=bytearray)
    _message: bytearray = attrs.field(factory=bytearray)
    _message_kind: Opcode | None = None
    """TEXT or BINARY while the fragments of a message are being put together."""
    _closed: bool = False

    def feed(self, data: bytes) -> Iterator[tuple[FromClient, bytes]]:
        """Yield what `data` completes, each with the mask key of its last frame.

        Raises:
            ProtocolBreach: where the client breaks a rule, after what was right before it.
        """
        self._pending += data
        while (head := self._parse_head()) is not None and len(self._pending) >= head.end:
            payload = _masked(bytes(self._pending[head.start : head.end]), head.key)
            del self._pending[: head.end]
            if (frame := self._complete(head, payload)) is not None:
                yield frame, head.key

    def _parse_head(self) -> _Head | None:
        """Return the header of the frame that `_pending` begins with, or None if there is not enough of it."""
        data = self._pending
        if len(data) < 2:
            return None
        _require(not self._closed, "no frame follows the close frame", "5.5.1")
        _require(data[0] & 0x70 == 0, "reserved bits are 0 where no extension was agreed on", "5.2")
        _require(data[0] & 0x0F in Opcode.__members__.values(), f"opcode {data[0] & 0x0F:#x} is reserved", "5.2")
        _require(bool(data[1] & 0x80), "a client masks every frame", "5.1")
        fin, opcode, size = bool(data[0] & 0x80), Opcode(data[0] & 0x0F), data[1] & 0x7F
        start = 2
        if size >= 126:
            if opcode >= Opcode.CLOSE:
                raise ProtocolBreach("a control frame holds at most 125 bytes (RFC 6455 section 5.5)")
            start, least = (4, 126) if size == 126 else (10, 2**16)
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start])
            _require(size >= least, "a length takes the fewest bytes that hold it", "5.2")
        _require(fin or opcode < Opcode.CLOSE, "a control frame is not fragmented", "5.5")
        _require((opcode == Opcode.CONTINUATION) == (self._message_kind is not None) or opcode >= Opcode.CLOSE,
                 "fragments of two messages are not mixed, and none comes without a first", "5.4")  # fmt: skip
        if size + len(self._message) > MAX_MESSAGE:
            raise ProtocolBreach(f"a message of more than {MAX_MESSAGE} bytes")
        if len(data) < start + 4:
            return None
        return _Head(fin, opcode, bytes(data[start : start + 4]), start + 4, start + 4 + size)

    def _complete(self, head: _Head, payload: bytes) -> FromClient | None:
        """Return what this frame completes, or None if it is a fragment and more follow."""
        match head.opcode:
            case Opcode.PING:
                return Ping(payload)
            case Opcode.PONG:
                return Pong(payload)
            case Opcode.CLOSE:
                self._closed = True
                return _parse_close(payload)
            case Opcode.TEXT | Opcode.BINARY:
                self._message_kind = head.opcode
            case Opcode.CONTINUATION:
                pass
        self._message += payload
        if not head.fin:
            return None
        kind, message = self._message_kind, bytes(self._message)
        self._message_kind = None
        self._message.clear()
        return _utf8(message, "text") if kind == Opcode.TEXT else message


def _parse_close(payload: bytes) -> ClosePayload:
    if not payload:
        return ClosePayload()
    _require(len(payload) >= 2, "a close frame holds nothing or at least a code", "5.5.1")
    goodbye = ClosePayload(int.from_bytes(payload[:2]), _utf8(payload[2:], "a close reason"))
    try:
        check_close(goodbye.code, goodbye.reason)
    except ConfigError as exc:
        raise ProtocolBreach(f"a close frame with code {goodbye.code} (RFC 6455 section 7.4)") from exc
    return goodbye


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolBreach(f"{what} is UTF-8 (RFC 6455 section 8.1): {exc}") from exc


def _require(held: bool, rule: str, section: str) -> None:
    if not held:
        raise ProtocolBreach(f"the client broke a rule: {rule} (RFC 6455 section {section})")
