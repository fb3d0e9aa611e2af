"""One Zstandard stream for all messages of a link."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Generic

import attrs

from trio_nova.codecs._checks import check_codec, whole
from trio_nova.codecs._framed import OutOfStep, as_bytes, framed, too_big
from trio_nova.codecs._seam import Codec, LinkCodec, StreamCodec
from trio_nova.codecs._zlib import as_text
from trio_nova.core import Strategy, check_bool
from trio_nova.errors import BadMessage, ConfigError
from trio_nova.messages import M_co

MAX_FRAMES = 16
"""Zstandard frames that one WebSocket frame may hold: a reader is made for each, and they can be 9 bytes long."""


def _library() -> Any:
    """Return Python's module for Zstandard, there from 3.14 on, or its backport: imported where it is needed."""
    try:
        return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise ConfigError("codec", 'ZstdStream needs another package: pip install "trio-nova[zstd]"') from None


@attrs.define(unsafe_hash=True)
class ZstdStream(Strategy, Generic[M_co]):
    """Messages in one Zstandard stream that lasts as long as the link (RFC 8878), as Discord's `compress=zstd-stream`.

    Each binary frame ends a message: the service flushes it. Frames of Zstandard may end anywhere between messages, or
    with each. Where one frame brings several messages, or a part, put a framing inside: `ZstdStream(Lines(...))`. A
    message is handed to the codec inside as bytes. A text frame is a `BadMessage`, and the stream is as it was.

    What cannot be decompressed, or exceeds `max_message_size` when it is, breaks the stream: later messages refer to
    what came before. No more than that is ever decompressed of a bomb.

    Raises:
        ConfigError: a field is wrong, or the package is missing that Python needs before 3.14.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and what is compressed."""
    both_ways: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether what is sent is compressed, too, in a stream of its own; else it is sent as the codec inside makes it."""
    text: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether messages are UTF-8 text and handed on as `str`, for a codec that tells text and bytes apart."""
    window_log: int = attrs.field(default=23, validator=whole(10, 30), kw_only=True)
    """The memory that the peer may have us keep to refer to, as a power of two: 23 are 8 MiB, which RFC 8878 section
    3.1.1.1.2 recommends to support. A stream that wants more is broken.
    """
    level: int = attrs.field(default=3, validator=whole(1, 22), kw_only=True)
    """How hard to try, from 1 to 22, at what is sent."""

    def __attrs_post_init__(self) -> None:
        _library()  # now, and not on the first link

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        limit = min(max_message_size, sys.maxsize - 1)  # it would not take more
        return framed(_Stream(self, _library(), limit), self.inner, max_message_size)


@attrs.define(eq=False)
class _Stream:
    """The two streams of one link."""

    _terms: ZstdStream
    _zstd: Any
    _limit: int
    _decoder: Any = attrs.field(default=None, init=False)
    """None: between frames of Zstandard."""
    _encoder: Any = attrs.field(default=None, init=False)

    def cut(self, payload: str | bytes) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where there is a compressed stream")
        try:
            whole = self._decompress(payload)
        except self._zstd.ZstdError as exc:
            raise OutOfStep("what came cannot be decompressed") from exc
        if whole:
            yield as_text(whole) if self._terms.text else (whole,)

    def _decompress(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        room, frames = self._limit, 0
        while data:
            if self._decoder is None:
                frames += 1
                if frames > MAX_FRAMES:
                    raise OutOfStep(f"more than {MAX_FRAMES} frames of Zstandard came at once")
                bound = {self._zstd.DecompressionParameter.window_log_max: self._terms.window_log}
                self._decoder = self._zstd.ZstdDecompressor(options=bound)
            piece = self._decoder.decompress(data, room + 1)
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise OutOfStep(too_big("a message, decompressed,", self._limit))
            data = b""
            if self._decoder.eof:
                data, self._decoder = self._decoder.unused_data, None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def remembers(self) -> bool:
        return self._terms.both_ways

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        return list(map(self._compress, list(map(as_bytes, payloads)))) if self._terms.both_ways else payloads

    def _compress(self, data: bytes) -> bytes:
        if self._encoder is None:
            self._encoder = self._zstd.ZstdCompressor(level=self._terms.level)
        compressed: bytes = self._encoder.compress(data, self._encoder.FLUSH_BLOCK)
        return compressed

    def drop(self) -> None:
        self._decoder = None
