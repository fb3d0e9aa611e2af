"""Compression (permessage-deflate, RFC 7692): its terms, and messages deflated and inflated, without I/O.

zlib does the work. What it does not know is that a message may go on behind a final block, and the next one too
(section 7.2.3.4): it then needs another decompressor, and that one the window of the last.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, NoReturn

import attrs
from websockets.exceptions import InvalidHeaderFormat
from websockets.headers import parse_extension

from trio_nova.core import check_bool
from trio_nova.errors import ConfigError, HandshakeInvalid
from trio_nova.links._frames import FrameViolation

__all__ = ["Agreed", "Deflate", "Deflater", "Inflater", "agree", "offer"]

_NAME = "permessage-deflate"
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS = ("server_max_window_bits", "client_max_window_bits")
_WIDEST = 15
_BITS = {str(bits): bits for bits in range(8, _WIDEST + 1)}
_ANSWER_LIMIT = 1024
"""Characters of Sec-WebSocket-Extensions; what an honest server says is far shorter."""
_TAIL = b"\0\0\xff\xff"
"""What a sender leaves out at the end of a message (section 7.2.1): the rest of an empty block."""
_EMPTY_FINAL = b"\x01\0\0\xff\xff"
_FINAL_BLOCKS = 16
"""Final blocks that any message may hold; each costs another decompressor."""
_SIZE_OF_FINAL_BLOCK = 1024
"""Bytes of `max_message_size` that allow for one final block more."""
_STEP = 4096
"""Bytes that are inflated at a time behind a final block: what follows the next one is copied, and may be as large."""


def _between(least: int, most: int) -> Any:
    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError("compression", f"{attribute.name} must be a whole number from {least} to {most}")

    return validate


@attrs.frozen(kw_only=True)
class Deflate:
    """What is offered to the server; it may choose less, or no compression at all.

    A window of n bits takes twice 2^n bytes here for what is received, and about 2^(n+2) for what is sent.
    A server that cannot choose its window, as many cannot, may accept all the rest and use one of 15 bits.
    Compressing messages that mix secrets with what others can choose gives the secrets away by the
    length (the CRIME attack); `no_context_takeover` makes that harder, not impossible.
    """

    server_max_window_bits: int = attrs.field(default=12, validator=_between(8, 15))
    """The window that the server is asked to use, so what receiving takes: 12 is 4 KiB."""
    client_max_window_bits: int = attrs.field(default=12, validator=_between(9, 15))
    """The window that we use at most."""
    server_no_context_takeover: bool = attrs.field(default=False, validator=check_bool)
    """Whether the server must begin each message with an empty window: less memory, less compression."""
    client_no_context_takeover: bool = attrs.field(default=False, validator=check_bool)
    """Whether we do so."""
    level: int = attrs.field(default=6, validator=_between(0, 9))
    """How hard we try, from 1 to 9; 0 only stores."""
    memory_level: int = attrs.field(default=5, validator=_between(1, 9))
    """What compressing takes besides the window: 2^(n+9) bytes."""


# --------------------------------------------------------------------------- the terms


@attrs.frozen
class Agreed:
    """The terms that both sides keep."""

    server_bits: int
    client_bits: int
    server_forgets: bool
    """Whether the server begins each message with an empty window."""
    client_forgets: bool


def offer(terms: Deflate) -> str:
    """Return the value of Sec-WebSocket-Extensions: the terms, then the same without windows.

    A server that cannot choose its window must decline the first, and may take the second (RFC 7692 section 7.1.3).
    """
    flags = "".join(f"; {flag}" for flag in _FLAGS if getattr(terms, flag))
    server = (
        f"; server_max_window_bits={terms.server_max_window_bits}" if terms.server_max_window_bits < _WIDEST else ""
    )
    return f"{_NAME}{flags}{server}; client_max_window_bits={terms.client_max_window_bits}, {_NAME}{flags}"


def agree(terms: Deflate, answer: str) -> Agreed | None:
    """Return what a server's Sec-WebSocket-Extensions agrees to; None where it declines.

    Its word on our window is a limit, not a duty to use all of it; so it may say it to either offer.

    Raises:
        HandshakeInvalid: RFC 7692 section 7.1 does not allow this answer; the message names what is wrong with it.
    """
    if not answer:
        return None
    if len(answer) > _ANSWER_LIMIT or not answer.isascii():
        _refuse("Sec-WebSocket-Extensions is too long, or not ASCII")
    try:
        extensions = parse_extension(answer)
    except InvalidHeaderFormat:
        _refuse("no list of extensions", answer)
    for extension, _ in extensions:
        if extension != _NAME:
            _refuse("an extension that was not offered", extension)
    if len(extensions) > 1:
        _refuse(f"{_NAME} is there twice")
    said: dict[str, str | None] = {}
    for name, value in extensions[0][1]:
        if name in said:
            _refuse(f"{name} is there twice")
        if name in _FLAGS and value is not None:
            _refuse(f"{name} takes no value", value)
        if name in _WINDOWS and value not in _BITS:
            _refuse(f"{name} must be a number from 8 to {_WIDEST}", value or "nothing")
        if name not in _FLAGS + _WINDOWS:
            _refuse(f"{_NAME} has no such parameter", name)
        said[name] = value
    if terms.server_no_context_takeover and "server_no_context_takeover" not in said:
        _refuse("server_no_context_takeover is missing, though it was asked for")
    server, client = (_BITS[said.get(name) or str(_WIDEST)] for name in _WINDOWS)
    return Agreed(
        server_bits=server,
        client_bits=min(client, terms.client_max_window_bits),
        server_forgets="server_no_context_takeover" in said,
        client_forgets=terms.client_no_context_takeover or "client_no_context_takeover" in said,
    )


def _refuse(problem: str, said: str = "") -> NoReturn:
    raise HandshakeInvalid(f"an illegal answer to the offer of compression: {problem}", rule="extension", said=said)


# --------------------------------------------------------------------------- messages


@attrs.define(eq=False)
class Deflater:
    """Deflate the messages of one link, each as one frame."""

    terms: Deflate
    bits: int
    forgets: bool
    """Whether each message begins with an empty window."""
    _encoder: Any = attrs.field(default=None, init=False)

    def deflate(self, payload: bytes) -> bytes:
        """Return the payload of a frame that says `payload`; it must be sent, as the next may refer to it."""
        encoder = self._encoder
        if encoder is None:
            encoder = zlib.compressobj(self.terms.level, zlib.DEFLATED, -self.bits, self.terms.memory_level)
            self._encoder = None if self.forgets else encoder
        data: bytes = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
        return data[: -len(_TAIL)]


@attrs.define(eq=False)
class Inflater:
    """Inflate the messages of one link, fragment by fragment.

    Memory does not depend on what the peer sends, but for what is returned: zlib's window, and a copy of it
    for a decompressor that may have to follow.
    """

    bits: int
    forgets: bool
    """Whether each message begins with an empty window."""
    limit: int
    """Bytes that one message may hold."""
    _decoder: Any = attrs.field(default=None, init=False)
    """None: at the very beginning, or behind a final block."""
    _window: bytearray = attrs.field(factory=bytearray, init=False)
    """What was inflated last: more than a window is never referred to."""
    _size: int = attrs.field(init=False)
    """Bytes of the window."""
    _room: int = attrs.field(init=False)
    """Bytes that the message under way may still hold."""
    _finals: int = attrs.field(default=0, init=False)
    _begun: bool = attrs.field(default=False, init=False)
    """Whether fragments of the message under way have said anything."""

    def __attrs_post_init__(self) -> None:
        self._size = 1 << self.bits
        self._room = self.limit = min(self.limit, sys.maxsize - 1)  # zlib would not take it

    def inflate(self, fragment: bytes, final: bool) -> bytes:
        """Return what one fragment of a message says, `final` for its last.

        Raises:
            FrameViolation: it is not DEFLATE, or the message ends within a block (1007), or exceeds the limit (1009).
        """
        data, tail = fragment, 0
        # A tail that was left in its place is enough: another would begin a block of 65,280 bytes.
        if final and fragment[-4:] != _TAIL and (fragment or (self._begun and self._decoder is not None)):
            data, tail = fragment + _TAIL, len(_TAIL)
        try:
            said = self._inflate(data, tail)
            if final:
                self._end_message()
            elif fragment:
                self._begun = True
        except zlib.error as exc:
            raise FrameViolation(1007, "a message that cannot be inflated") from exc
        return said

    def _inflate(self, data: bytes, tail: int) -> bytes:
        """Inflate `data`, of which the last `tail` bytes are ours, to complete a block that has begun."""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        step = end
        while at < end:
            if (decoder := self._decoder) is None:
                if end - at == tail:
                    break
                decoder = self._decoder = zlib.decompressobj(-self.bits, zdict=bytes(self._window))
            piece = decoder.decompress(data[at : at + step], self._room + 1)
            pieces.append(piece)
            self._room -= len(piece)
            if self._room < 0:
                raise FrameViolation(1009, "")
            self._window += piece[-self._size :]
            if len(self._window) > self._size * 5 // 4:
                del self._window[: -self._size]
            at += step
            if decoder.eof:
                at = min(at, end) - len(decoder.unused_data)
                self._decoder, step = None, _STEP
                self._finals += 1
                if self._finals > _FINAL_BLOCKS + self.limit // _SIZE_OF_FINAL_BLOCK:
                    raise FrameViolation(1009, "")
                if end - at < tail:
                    raise zlib.error("a final block is cut short")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _end_message(self) -> None:
        """Make ready for the next message; raises zlib.error where this one ends within a block."""
        if (decoder := self._decoder) is not None:
            probe = decoder if self.forgets else decoder.copy()
            if probe.decompress(_EMPTY_FINAL, 1) or not probe.eof:
                raise zlib.error("a block is cut short")
        if self.forgets:
            self._decoder = None
            self._window.clear()
        self._room, self._finals, self._begun = self.limit, 0, False
