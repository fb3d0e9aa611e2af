"""One zlib stream for all messages of a link."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal

import attrs

from trio_nova.codecs._checks import check_codec, whole
from trio_nova.codecs._framed import OutOfStep, as_bytes, framed, too_big
from trio_nova.codecs._seam import Codec, LinkCodec, StreamCodec
from trio_nova.core import Strategy, check_bool, one_of
from trio_nova.errors import BadMessage
from trio_nova.messages import M_co

_FLUSH = b"\x00\x00\xff\xff"
"""The end of what Z_SYNC_FLUSH writes: an empty block, on a border of bytes."""
_EMPTY_FINAL = b"\x03\x00"
"""A block that ends a stream: read where a block begins, and nowhere else, it makes an end and nothing more."""
_DICTIONARY = 0x20
_WIDEST = 15


@attrs.define(unsafe_hash=True)
class ZlibStream(Strategy, Generic[M_co]):
    """Messages in one zlib stream that lasts as long as the link (RFC 1950), as Discord's `compress=zlib-stream`.

    A message ends where a frame ends in a Z_SYNC_FLUSH, bytes 00 00 FF FF; it may lie in several binary frames. It is
    handed to the codec inside as bytes. A text frame is a `BadMessage`, and the stream is as it was.

    What cannot be inflated, or exceeds `max_message_size` when it is, breaks the stream: later messages refer to what
    came before. No more than that is ever inflated of a bomb.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and what is compressed."""
    both_ways: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether what is sent is compressed, too, in a stream of its own; else it is sent as the codec inside makes it."""
    text: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether messages are UTF-8 text and handed on as `str`, for a codec that tells text and bytes apart."""
    format: Literal["zlib", "deflate"] = attrs.field(default="zlib", validator=one_of("zlib", "deflate"), kw_only=True)
    """"zlib", with a header at the beginning of the stream (RFC 1950), or bare "deflate" (RFC 1951)."""
    level: int = attrs.field(default=6, validator=whole(0, 9), kw_only=True)
    """How hard to try, from 0 to 9, at what is sent."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        limit = min(max_message_size, sys.maxsize - 1)  # zlib would not take more
        return framed(_Stream(self, limit), self.inner, max_message_size)


@attrs.define(eq=False)
class _Stream:
    """The two streams of one link."""

    _terms: ZlibStream
    _limit: int
    _decoder: Any = attrs.field(factory=lambda: zlib.decompressobj(-_WIDEST), init=False)
    _encoder: Any = attrs.field(default=None, init=False)
    _head: bytes = attrs.field(default=b"", init=False)
    """The header, as far as it is there: read here, as the bare stream that follows can be probed for its borders."""
    _last: bytes = attrs.field(default=b"", init=False)
    """The last bytes that came."""
    _kept: bytearray = attrs.field(factory=bytearray, init=False)
    """What is there of a message, inflated."""

    def cut(self, payload: str | bytes) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where there is a compressed stream")
        data = self._behind_head(payload)
        if data and self._decoder.eof:
            raise OutOfStep("the compressed stream has ended")
        try:
            self._kept += self._decoder.decompress(data, self._limit - len(self._kept) + 1)
        except zlib.error as exc:
            raise OutOfStep("what came cannot be inflated") from exc
        if len(self._kept) > self._limit:
            raise OutOfStep(too_big("a message, inflated,", self._limit))
        self._last = (self._last + data[-len(_FLUSH) :])[-len(_FLUSH) :]
        if self._kept and self._is_at_end():
            whole = bytes(self._kept)
            self._kept = bytearray()
            yield as_text(whole) if self._terms.text else (whole,)

    def _behind_head(self, payload: bytes) -> bytes:
        """Return what of a payload follows the header of the stream (RFC 1950 section 2.2)."""
        if self._terms.format == "deflate" or len(self._head) == 2:
            return payload
        missing = 2 - len(self._head)
        self._head += payload[:missing]
        if len(self._head) == 2:
            method, flags = self._head
            if method & 0x0F != zlib.DEFLATED or method >> 4 > 7 or (method * 256 + flags) % 31:
                raise OutOfStep("what came does not begin as a zlib stream does")
            if flags & _DICTIONARY:
                raise OutOfStep("the zlib stream wants a dictionary")
        return payload[missing:]

    def _is_at_end(self) -> bool:
        """Whether a message ends here: these four bytes may also stand within a block, by chance."""
        if self._decoder.eof:
            return True
        if self._last != _FLUSH:
            return False
        probe = self._decoder.copy()
        try:
            return not probe.decompress(_EMPTY_FINAL, 1) and probe.eof
        except zlib.error:
            return False

    @property
    def remembers(self) -> bool:
        return self._terms.both_ways

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        return list(map(self._deflate, list(map(as_bytes, payloads)))) if self._terms.both_ways else payloads

    def _deflate(self, data: bytes) -> bytes:
        if self._encoder is None:
            bits = _WIDEST if self._terms.format == "zlib" else -_WIDEST
            self._encoder = zlib.compressobj(self._terms.level, zlib.DEFLATED, bits)
        compressed: bytes = self._encoder.compress(data) + self._encoder.flush(zlib.Z_SYNC_FLUSH)
        return compressed

    def drop(self) -> None:
        self._kept, self._decoder = bytearray(), None


def as_text(message: bytes) -> Sequence[str] | BadMessage:
    """Return a message as text, or the error that it is none."""
    try:
        return (message.decode(),)
    except UnicodeDecodeError:
        return BadMessage("a message is not UTF-8")
