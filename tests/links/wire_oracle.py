"""What `WireProtocol` must do with a stream of bytes, as the package websockets does it by itself.

`expected` feeds a server's bytes to a plain `ClientProtocol`, frame by frame, and puts messages together
in the plainest way. `observed` feeds the same bytes to `WireProtocol`, cut up in any way. They agree, but
for what is documented, which stands in `_Plain.verdict`:

* a header is judged as soon as it is there: what is illegal whatever follows is not waited for, and is
  illegal (1002) even where it is also too big;
* a length not in its shortest form is illegal (RFC 6455 section 5.2), and so is one with its top bit set;
* a fragment is charged 64 bytes besides its payload;
* a close frame between two fragments is a close frame like any other (RFC 6455 section 5.4), and a ping or
  pong there does not count as a part of the message.

What is compressed is undone by `PlainDeflate` in its place: message by message, each from its beginning.
"""

from __future__ import annotations

import codecs
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import attrs
from websockets.client import ClientProtocol
from websockets.exceptions import PayloadTooBig
from websockets.extensions import Extension
from websockets.frames import Frame as WebSocketFrame
from websockets.protocol import OPEN
from websockets.typing import ExtensionName
from websockets.uri import parse_uri

from trio_nova.errors import BadMessage, MessageTooBig
from trio_nova.links import Deflate
from trio_nova.links._upgrade import Response, accept_token
from trio_nova.links._wire import WireProtocol
from trio_nova.messages import Frame, Ping, Pong
from trio_nova.testing import ClosePayload, FromClient
from trio_nova.testing._frames import ClientFrames
from trio_nova.testing.link_contract import make_dial

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "OVERHEAD",
    "TEXT",
    "ByteFrame",
    "Outcome",
    "PlainDeflate",
    "cut_frames",
    "expected",
    "observed",
    "open_protocol",
]

FIN, RSV1 = 0x80, 0x40
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
OVERHEAD = 64

_silent = logging.Logger("tests.wire")
_silent.disabled = True


@attrs.frozen
class Outcome:
    """What came of a stream."""

    frames: list[Frame]
    answers: list[FromClient]
    """What was sent, unmasked."""
    code: int | None = None
    """How it ended, if it did."""
    reason: str = ""
    """The peer's."""
    remote: bool | None = None
    kind: type[Exception] | None = None
    detail: str = ""

    @property
    def in_substance(self) -> Outcome:
        """The same, without the words in which a breach is told."""
        answers: list[FromClient] = [
            ClosePayload(each.code) if isinstance(each, ClosePayload) and not self.remote else each
            for each in self.answers
        ]
        return attrs.evolve(self, answers=answers, detail="")


# --------------------------------------------------------------------------- ours


def open_protocol(limit: int, compression: Deflate | None = None, extensions: Sequence[str] = ()) -> WireProtocol:
    """Return a protocol whose upgrade has been agreed to, with these values of Sec-WebSocket-Extensions."""
    dial = make_dial(url="ws://peer.test/", max_message_size=limit)
    protocol = WireProtocol(attrs.evolve(dial, compression=compression))
    request = protocol.request().decode("latin-1")
    (key,) = (line.split(": ")[1] for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key:"))
    agreed = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept_token(key))]
    protocol.upgraded(Response("1.1", 101, (*agreed, *(("sec-websocket-extensions", each) for each in extensions))))
    return protocol


def observed(pieces: Sequence[bytes], limit: int, *, deflated: bool = False, forgets: bool = False) -> Outcome:
    """Return what `WireProtocol` makes of the pieces of a stream."""
    if deflated:
        terms = "permessage-deflate" + "; server_no_context_takeover" * forgets
        protocol = open_protocol(limit, Deflate(), [terms])
    else:
        protocol = open_protocol(limit)
    frames: list[Frame] = []
    sent = b""
    for piece in pieces:
        frames += protocol.feed(piece)
        sent += b"".join(protocol.data_to_send())
    answers = [frame for frame, _ in ClientFrames().feed(sent)]
    ending = protocol.ending
    if ending is None:
        return Outcome(frames, answers)
    kind = None if ending.cause is None else type(ending.cause)
    assert kind is None or issubclass(kind, Exception)
    return Outcome(frames, answers, ending.code, ending.reason, ending.remote, kind, ending.detail)


# --------------------------------------------------------------------------- theirs


@attrs.frozen
class ByteFrame:
    """One frame of a stream, or its beginning."""

    data: bytes
    length: int | None
    """Of the payload, as announced; None where the stream ends before that."""
    form: int
    """How the length is written: in 125, 126 or 127's way."""
    whole: bool

    @property
    def opcode(self) -> int:
        return self.data[0] & 0x0F


def cut_frames(stream: bytes) -> Iterator[ByteFrame]:
    """Cut a server's stream into frames; what is masked is cut as if it were not."""
    at = 0
    while len(stream) - at >= 2:
        short = stream[at + 1] & 0x7F
        start = at + (2 if short < 126 else 4 if short == 126 else 10)
        if start > len(stream):
            yield ByteFrame(stream[at:], None, short, whole=False)
            return
        length = short if short < 126 else int.from_bytes(stream[at + 2 : start])
        stop = start + length
        yield ByteFrame(stream[at:stop], length, min(max(short, 125), 127), stop <= len(stream))
        at = stop


def expected(stream: bytes, limit: int, *, deflated: bool = False, forgets: bool = False) -> Outcome:
    """Return what the package websockets makes of a stream, under the documented rules."""
    plain = _Plain(limit, PlainDeflate(forgets) if deflated else None)
    for frame in cut_frames(stream):
        plain.take(frame)
        if plain.over:
            break
    return plain.outcome()


def _plain_protocol(limit: int | None = None, extension: Extension | None = None) -> ClientProtocol:
    protocol = ClientProtocol(parse_uri("ws://peer.test/"), state=OPEN, max_size=limit, logger=_silent)
    protocol.extensions = [extension] if extension else []
    return protocol


_TAIL, _EMPTY_FINAL, _WINDOW = b"\0\0\xff\xff", b"\x01\0\0\xff\xff", 32_768


class PlainDeflate(Extension):
    """What a server with the largest window compressed, undone in the plainest way (RFC 7692 section 7.2.2)."""

    name = ExtensionName("permessage-deflate")

    def __init__(self, forgets: bool) -> None:
        self.forgets = forgets
        self.history = b""
        """All messages before this one, as far as the window reaches."""
        self.compressed = False
        self.payload = self.said = b""

    def encode(self, frame: WebSocketFrame) -> WebSocketFrame:
        return frame

    def decode(self, frame: WebSocketFrame, *, max_size: int | None = None) -> WebSocketFrame:
        if frame.opcode >= CLOSE:
            return frame
        if frame.opcode != CONTINUATION:
            self.compressed, self.payload, self.said = frame.rsv1, b"", b""
        if not self.compressed:
            return frame
        assert max_size is not None
        self.payload += frame.data
        whole = frame.fin and not bytes(frame.data).endswith(_TAIL) and self.payload != b""
        try:
            said = self.inflated(_TAIL if whole else b"", frame.fin, len(self.said) + max_size)
        except zlib.error as exc:
            # For no other error does the protocol object close with 1007.
            raise UnicodeDecodeError("deflate", b"?", 0, 1, str(exc)) from exc
        more, self.said = said[len(self.said) :], said
        if frame.fin and not self.forgets:
            self.history = (self.history + said)[-_WINDOW:]
        return replace(frame, data=more, rsv1=frame.opcode == CONTINUATION and frame.rsv1)

    def inflated(self, tail: bytes, final: bool, most: int) -> bytes:
        """Return what has come of the message, from its beginning: one decompressor for each final block."""
        said, rest, decoder = b"", self.payload + tail, None
        while rest and rest != tail:
            decoder = zlib.decompressobj(-15, zdict=(self.history + said)[-_WINDOW:])
            said += decoder.decompress(rest, most + 1 - len(said))
            if len(said) > most:
                raise PayloadTooBig(None, most)
            if not decoder.eof:
                break
            rest, decoder = decoder.unused_data, None
            if len(rest) < len(tail):
                raise zlib.error("a final block that is cut short")
        if final and decoder is not None:
            end = decoder.decompress(_EMPTY_FINAL, 1)
            if end or not decoder.eof or decoder.unused_data:
                raise zlib.error("a block that is cut short")
        return said


class _Plain:
    """A `ClientProtocol`, and what puts its fragments together."""

    def __init__(self, limit: int, extension: PlainDeflate | None) -> None:
        self.limit = limit
        self.deflated = extension is not None
        self.protocol = _plain_protocol(limit, extension)
        self.frames: list[Frame] = []
        self.sent = b""
        self.kind = 0
        """The opcode of the message being put together."""
        self.parts: list[str | bytes] = []
        self.charged = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    @property
    def over(self) -> bool:
        return self.protocol.close_sent is not None or self.protocol.close_rcvd is not None

    def take(self, frame: ByteFrame) -> None:
        code = self.verdict(frame)
        if code is None:
            if frame.opcode == CLOSE and self.kind:
                self.replace_protocol()
            protocol = self.protocol
            if self.kind and frame.opcode > CLOSE and frame.whole and not frame.data[1] & 0x80:
                protocol = _plain_protocol(self.limit)
            protocol.receive_data(frame.data)
            for event in protocol.events_received():
                assert isinstance(event, WebSocketFrame)
                code = self.assemble(event) or code
            if protocol is not self.protocol:
                code = int(protocol.close_sent.code) if protocol.close_sent else code
                self.sent += b"".join(protocol.data_to_send()) if code is None else b""
        if code is not None:
            self.protocol.fail(code)
        self.sent += b"".join(self.protocol.data_to_send())

    def verdict(self, frame: ByteFrame) -> int | None:
        """Return the code for a frame that the rules above refuse by its header."""
        if not self.may_begin(frame.data[0]):
            return 1002
        if frame.data[1] & 0x80 or frame.length is None:
            return None  # the object judges by itself
        shortest = {125: 0, 126: 126, 127: 65536}[frame.form]
        if frame.length < shortest or frame.length >> 63 or (frame.opcode >= CLOSE and frame.form > 125):
            return 1002
        if frame.opcode == CONTINUATION and self.charged + OVERHEAD + frame.length > self.limit:
            return 1009
        return None

    def may_begin(self, first: int) -> bool:
        """Ask the object itself, by an empty frame that begins so."""
        opcode = first & 0x0F
        probe = _plain_protocol()
        if self.kind and opcode != CLOSE:
            probe.receive_data(b"\x01\x00")
        if self.deflated and opcode in (TEXT, BINARY):
            first &= ~RSV1
        probe.receive_data(bytes((first, 0)))
        return probe.parser_exc is None

    def replace_protocol(self) -> None:
        """Go on with an object that saw no fragments."""
        self.protocol = _plain_protocol(self.limit)

    def assemble(self, event: WebSocketFrame) -> int | None:
        """Take in one frame; return the code to close with if it breaks a rule."""
        data = bytes(event.data)
        if event.opcode == PING:
            self.frames.append(Ping(data))
        elif event.opcode == PONG:
            self.frames.append(Pong(data))
        if event.opcode >= CLOSE:
            return None
        alone = event.fin and event.opcode != CONTINUATION
        self.kind = self.kind or int(event.opcode)
        self.charged += len(data) + (0 if alone else OVERHEAD)
        if self.charged > self.limit:
            return 1009
        try:
            self.parts.append(self.decoder.decode(data, event.fin) if self.kind == TEXT else data)
        except UnicodeDecodeError:
            return 1007
        if event.fin:
            empty: str | bytes = "" if self.kind == TEXT else b""
            self.frames.append(empty.join(self.parts))  # type: ignore[arg-type]
            self.kind, self.charged, self.parts = 0, 0, []
            self.decoder.reset()
        return None

    def outcome(self) -> Outcome:
        answers = [frame for frame, _ in ClientFrames().feed(self.sent)]
        protocol = self.protocol
        received, sent = protocol.close_rcvd, protocol.close_sent
        failed = protocol.parser_exc is not None or (sent is not None and received is None)
        if failed:
            assert sent is not None
            kind = MessageTooBig if sent.code == 1009 else BadMessage
            return Outcome(self.frames, answers, int(sent.code), remote=False, kind=kind)
        if received is not None:
            return Outcome(self.frames, answers, int(received.code), received.reason, remote=True)
        return Outcome(self.frames, answers)
