"""The WebSocket protocol of a client, without I/O: bytes in, messages out, and back (RFC 6455, RFC 7692).

Reading a frame's header costs less than a fifth of a microsecond, if nothing is done but that. So what is
frequent is done in one loop over what arrived, and all else frame by frame::

    bytes ──► WireProtocol.feed ──┬─ whole messages, one frame each ──► messages
                                  ├─ fragments, compressed frames   ──► parts of messages
                                  ├─ control frames                 ──► pongs, the closing handshake
                                  └─ what is illegal                ──► a close frame

The package websockets masks; its protocol object is what a test compares this one with. Some rules of ours
are stricter, or wiser: a length must be written in its shortest form (RFC 6455 section 5.2); fragments are
charged by bytes, 64 more each, not counted; a close frame between two fragments is a close frame like any
other (section 5.4); a compressed message may end with a final block, and none may end within a block.
"""

from __future__ import annotations

import base64
import codecs
import os
from struct import Struct
from typing import NoReturn

from trio_nova.errors import BadMessage, MessageTooBig
from trio_nova.links._deflate import Deflater, Inflater, agree, offer
from trio_nova.links._ending import Ending
from trio_nova.links._frames import (
    BINARY,
    CLOSE,
    FRAGMENT_OVERHEAD,
    PING,
    PONG,
    TEXT,
    FrameViolation,
    close_payload,
    judge_close,
)
from trio_nova.links._seam import Dial
from trio_nova.links._upgrade import Response, judge_upgrade, upgrade_request
from trio_nova.messages import Frame, Ping, Pong

try:
    from websockets.speedups import apply_mask
except ImportError:  # no wheel for this platform, and no compiler
    from websockets.utils import apply_mask

__all__ = ["WireProtocol"]

_CONTINUATION = 0x0
_FIN, _RSV1, _RSV = 0x80, 0x40, 0x70
_WHOLE_TEXT, _WHOLE_BINARY = _FIN | TEXT, _FIN | BINARY
_WHOLE_CLOSE, _WHOLE_PING, _WHOLE_PONG = _FIN | CLOSE, _FIN | PING, _FIN | PONG

_START = Struct("!BBH")
"""How a frame begins: its bits and opcode, a length, and, if that is 126, the length (RFC 6455 section 5.2)."""
_SHORT, _MEDIUM, _LONG = Struct("!BB4s"), Struct("!BBH4s"), Struct("!BBQ4s")

_utf8 = codecs.getincrementaldecoder("utf-8")


class WireProtocol:
    """One connection: first the upgrade, then `feed` what is received, and send what `encode` returns."""

    def __init__(self, dial: Dial) -> None:
        self._key = base64.b64encode(os.urandom(16)).decode()
        """The Sec-WebSocket-Key of the upgrade (RFC 6455 section 4.1)."""
        self._dial = dial
        self.subprotocol: str | None = None
        self._limit = dial.max_message_size
        self._inflater: Inflater | None = None
        self._deflater: Deflater | None = None
        """None: what we send is not compressed."""
        self._deflated = 0
        """The bit of a first byte that says so, where compression was agreed on."""
        self._partial = bytearray()
        """The beginning of a frame."""
        self._wanted = 0
        """How long `_partial` must grow before it is worth another look."""
        self._opcode = _CONTINUATION
        """Of the message whose fragments are being received; 0 between messages."""
        self._compressed = False
        self._charged = 0
        self._texts: list[str] = []
        self._decoder = _utf8()
        self._bytes = bytearray()
        self._masks = b""
        self._masked = 0
        """How much of `_masks` has been used."""
        self._answers: list[bytes] = []
        self._parted = False
        """Whether we have sent a close frame."""
        self.ending: Ending | None = None
        """Why no message will come any more."""

    # ----------------------------------------------------------------- the upgrade

    def request(self) -> bytes:
        """Return the upgrade request."""
        terms = self._dial.compression
        return upgrade_request(self._dial, self._key, offer(terms) if terms is not None else "")

    def upgraded(self, response: Response) -> None:
        """Take in the server's 101 response; `feed` what follows it.

        Raises:
            HandshakeInvalid: it is not what RFC 6455 section 4.1 asks for, or RFC 7692 where compression was offered.
        """
        terms = self._dial.compression
        self.subprotocol = judge_upgrade(response, self._key, self._dial.offered, extensions=terms is not None)
        if terms is None:
            return
        agreed = agree(terms, ", ".join(response.values("sec-websocket-extensions")))
        if agreed is None:
            return
        self._deflated = _RSV1
        self._inflater = Inflater(agreed.server_bits, agreed.server_forgets, self._limit)
        if agreed.client_bits > 8:  # zlib cannot deflate for a window of 8 bits, and nobody must compress
            self._deflater = Deflater(terms, agreed.client_bits, agreed.client_forgets)

    # ----------------------------------------------------------------- receiving

    @property
    def between_messages(self) -> bool:
        """Whether nothing is cut in half if the stream ends here."""
        return not self._partial and self._opcode == _CONTINUATION

    def feed(self, data: bytes) -> list[Frame]:
        """Take in what was received and return the frames that are complete.

        Afterwards `ending` tells whether any more will come, and `data_to_send` what is to be answered.
        """
        if self.ending is not None:
            return []
        frames: list[Frame] = []
        try:
            self._split(data, frames)
        except UnicodeDecodeError as exc:
            self._fail(FrameViolation(1007, f"{exc.reason} at position {exc.start}"))
        except FrameViolation as violation:
            self._fail(violation)
        return frames

    def _split(self, data: bytes, frames: list[Frame]) -> None:
        at = self._complete(data, frames) if self._partial else 0
        while self.ending is None:
            if self._opcode == _CONTINUATION:
                at = self._take_messages(data, at, frames)
                if at == len(data):
                    return
            stop = self._take_frame(data, at, frames)
            if stop == at:
                break
            at = stop
        if at < len(data) and self.ending is None:
            self._partial += memoryview(data)[at:]
            self._wanted = _length_of(data, at)

    def _complete(self, data: bytes, frames: list[Frame]) -> int:
        """Go on with the frame that has begun; return how many bytes of `data` belong to it."""
        partial, at = self._partial, 0
        while at < len(data):
            more = data[at : at + self._wanted - len(partial)]
            partial += more
            at += len(more)
            if len(partial) == self._wanted:
                if self._take_frame(partial, 0, frames):
                    self._partial = bytearray()
                    break
                self._wanted = _length_of(partial, 0)
        return at

    def _take_messages(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Take in messages of one frame, for as long as nothing else comes; return where something else begins."""
        limit, append, unpack = self._limit, frames.append, _START.unpack_from
        text, binary, too_long = _WHOLE_TEXT, _WHOLE_BINARY, min(126, limit + 1)
        end = len(data)
        last = end - _START.size
        while at <= last:
            first, length, longer = unpack(data, at)
            if length < too_long:
                start = at + 2
            elif length == 126 and 125 < longer <= limit:
                start = at + 4
                length = longer
            else:
                break
            stop = start + length
            if stop > end:
                break
            if first == text:
                append(data[start:stop].decode())
            elif first == binary:
                append(data[start:stop])
            else:
                break
            at = stop
        return at

    def _take_frame(self, data: bytes | bytearray, at: int, frames: list[Frame]) -> int:
        """Take in one frame of any kind; return where it ends, or `at` if not all of it has come."""
        here = len(data) - at
        if here < 2:
            return at
        first, length = data[at], data[at + 1]
        head = 2
        if length >= 126:
            if length > 127:
                self._refuse(first, "incorrect masking")
            head = 4 if length == 126 else 10
            if here < head:
                self._judge_start(first)
                return at
            length = int.from_bytes(data[at + 2 : at + head], "big")
            if length < (126 if head == 4 else 65536):
                self._refuse(first, "length not in its shortest form")
            if length >> 63:
                self._refuse(first, "length with its top bit set")
        self._judge_start(first)
        self._judge_size(first, length)
        start, stop = at + head, at + head + length
        if length > self._limit:
            raise FrameViolation(1009, "")  # a ping, where messages must be shorter than pings may be
        if length > here - head:
            return at
        view = memoryview(data)  # it may be large: the less often it is copied, the better
        if first & 0x0F >= CLOSE:
            self._control(first, bytes(view[start:stop]), frames)
        elif first == _WHOLE_TEXT:
            frames.append(str(view[start:stop], "utf-8"))
        elif first == _WHOLE_BINARY:
            frames.append(bytes(view[start:stop]))
        else:
            self._assemble(first, bytes(view[start:stop]), frames)
        return stop

    def _control(self, first: int, payload: bytes, frames: list[Frame]) -> None:
        """Take in a control frame, and answer it (RFC 6455 section 5.5)."""
        if first == _WHOLE_PING:
            frames.append(Ping(payload))
            self._answers.append(self._frame(_WHOLE_PONG, payload))
        elif first == _WHOLE_PONG:
            frames.append(Pong(payload))
        else:
            close = judge_close(payload)
            self._part(payload)
            self.ending = Ending(close.code, close.reason, remote=True)
            self._forget()

    def _part(self, payload: bytes) -> None:
        """Let a close frame be the last of what is sent."""
        if not self._parted:
            self._parted = True
            self._answers.append(self._frame(_WHOLE_CLOSE, payload))

    def _assemble(self, first: int, payload: bytes, frames: list[Frame]) -> None:
        fin, opcode = first >= _FIN, first & 0x0F
        begins = opcode != _CONTINUATION
        if begins:
            self._opcode = opcode
            self._compressed = bool(first & _RSV1)
            self._charged = 0
        alone = begins and fin
        if self._compressed and self._inflater is not None:
            payload = self._inflater.inflate(payload, fin)
        self._charged += len(payload) if alone else len(payload) + FRAGMENT_OVERHEAD
        if self._charged > self._limit:
            raise FrameViolation(1009, "")
        if self._opcode == TEXT:
            self._texts.append(payload.decode() if alone else self._decoder.decode(payload, fin))
        elif not alone:
            self._bytes += payload
        if fin:
            if self._opcode == TEXT:
                frames.append("".join(self._texts))
            else:
                frames.append(payload if alone else bytes(self._bytes))
            self._texts.clear()
            self._bytes = bytearray()
            self._decoder.reset()
            self._opcode = _CONTINUATION

    def _refuse(self, first: int, rule: str) -> NoReturn:
        """Refuse a frame: for its first byte, if that is illegal too, as how much of it has come must not matter."""
        self._judge_start(first)
        raise FrameViolation(1002, rule)

    def _judge_start(self, first: int) -> None:
        """Judge the first byte of a frame's header by what came before it."""
        opcode = first & 0x0F
        if 0x2 < opcode < CLOSE or opcode > 0xA:
            raise FrameViolation(1002, "invalid opcode")
        if opcode >= CLOSE:
            if first & _RSV:
                raise FrameViolation(1002, "reserved bits must be 0")
            if first < _FIN:
                raise FrameViolation(1002, "fragmented control frame")
        else:
            allowed = self._deflated if opcode != _CONTINUATION else 0
            if first & _RSV & ~allowed:
                raise FrameViolation(1002, "reserved bits must be 0")
            if opcode == _CONTINUATION and self._opcode == _CONTINUATION:
                raise FrameViolation(1002, "unexpected continuation frame")
            if opcode != _CONTINUATION and self._opcode != _CONTINUATION:
                raise FrameViolation(1002, "expected a continuation frame")

    def _judge_size(self, first: int, length: int) -> None:
        """Judge the announced length of a frame."""
        if first & 0x0F >= CLOSE:
            if length > 125:
                raise FrameViolation(1002, "control frame too long")
            return
        charged = self._charged + FRAGMENT_OVERHEAD if first & 0x0F == _CONTINUATION else 0
        if charged + length > self._limit:
            raise FrameViolation(1009, "")

    def give_up(self, rule: str) -> None:
        """End with code 1008, for a `rule` about time, which this object knows nothing of."""
        if self.ending is None:
            self._fail(FrameViolation(1008, rule))

    def _fail(self, violation: FrameViolation) -> None:
        """Answer an illegal frame with a close frame."""
        rule = violation.rule or f"a message of more than {self._limit} bytes"
        self._part(close_payload(violation.code, rule))
        kind = MessageTooBig if violation.code == 1009 else BadMessage
        cause = kind(f"the peer broke a rule: {rule}")
        detail = f"{rule}: {violation.said}" if violation.said else rule
        self.ending = Ending(violation.code, detail=detail, remote=False, cause=cause)
        self._forget()

    def _forget(self) -> None:
        self._partial = bytearray()
        self._texts.clear()
        self._bytes = bytearray()

    # ----------------------------------------------------------------- sending

    @property
    def compresses(self) -> bool:
        """Whether messages are compressed: then what was encoded must be sent, as what follows may refer to it."""
        return self._deflater is not None

    def data_to_send(self) -> list[bytes]:
        """Return, once, the pongs and close frames that answer what was fed."""
        answers, self._answers = self._answers, []
        return answers

    def encode(self, frame: Frame) -> bytes:
        """Return the frame as bytes; raises UnicodeEncodeError for half a surrogate pair."""
        if isinstance(frame, str):
            first, payload = _WHOLE_TEXT, frame.encode()
        elif isinstance(frame, bytes):
            first, payload = _WHOLE_BINARY, frame
        elif isinstance(frame, Ping):
            first, payload = _WHOLE_PING, frame.payload
        else:
            first, payload = _WHOLE_PONG, frame.payload
        if self._deflater is not None and first & 0x0F < CLOSE:
            first, payload = first | _RSV1, self._deflater.deflate(payload)
        return self._frame(first, payload)

    def _frame(self, first: int, payload: bytes) -> bytes:
        length, mask = len(payload), self._mask()
        if length < 126:
            head = _SHORT.pack(first, 0x80 | length, mask)
        elif length < 65536:
            head = _MEDIUM.pack(first, 0xFE, length, mask)
        else:
            head = _LONG.pack(first, 0xFF, length, mask)
        return head + apply_mask(payload, mask)

    def _mask(self) -> bytes:
        """Return a mask of the system's entropy, afresh for each frame (RFC 6455 section 5.3)."""
        at = self._masked
        if at == len(self._masks):
            self._masks, at = os.urandom(64), 0
        self._masked = at + 4
        return self._masks[at : at + 4]

    def goodbye(self, code: int, reason: str) -> bytes:
        """Begin the closing handshake: return the close frame."""
        self._part(close_payload(code, reason))
        return b"".join(self.data_to_send())


def _length_of(data: bytes | bytearray, at: int) -> int:
    """Return how many bytes the frame that begins at `at` has, as far as can be told."""
    here = len(data) - at
    if here < 2:
        return 2
    length, head = data[at + 1], 2
    if length >= 126:
        head = 4 if length == 126 else 10
        if here < head:
            return head
        length = int.from_bytes(data[at + 2 : at + head], "big")
    return head + length
