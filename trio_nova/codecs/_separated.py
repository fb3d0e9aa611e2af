"""Messages with a character between them: lines, records, JSON text sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any, Generic

import attrs

from trio_nova.codecs._checks import check_codec
from trio_nova.codecs._framed import Cutter, framed, too_big
from trio_nova.codecs._seam import Codec, LinkCodec, StreamCodec
from trio_nova.core import Strategy, check_bool
from trio_nova.errors import BadMessage, ConfigError
from trio_nova.messages import M_co

_CHUNK = 32_768
"""Characters of a frame that are cut at once, where messages are short."""


@attrs.define(unsafe_hash=True)
class Lines(Strategy, Generic[M_co]):
    r"""Messages that end in a newline; "\r\n" ends one, too. A frame may bring several, a half, or none.

    Text and binary frames are taken; a message is handed to the codec inside as what it came in, without the newline.
    Empty lines are passed over. Each message is sent in a frame of its own, whose newline is the only one.

    A line beyond `max_message_size` (bytes, or characters of text) is a `BadMessage`; what follows the next newline
    is read. So is a line that begins in a text frame and goes on in a binary one, or the other way round.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and lines."""
    over_frames: bool = attrs.field(default=True, validator=check_bool, kw_only=True)
    """Whether a line may go on in the next frame. If not, the end of a frame ends its last line as a newline would."""
    crlf: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    r"""Whether lines are sent with "\r\n"."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        cutter = _Lines("\n", max_message_size, over_frames=self.over_frames, ends="\r\n" if self.crlf else "\n")
        return framed(cutter, self.inner, max_message_size)


def _check_separator(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or len(value) != 1 or not value.isascii():
        raise ConfigError(attribute.name, f"must be one ASCII character, not {value!r}")


@attrs.define(unsafe_hash=True)
class Records(Strategy, Generic[M_co]):
    """Messages with a separator behind each, as SignalR has it, or before each: JSON text sequences (RFC 7464).

    Text and binary frames are taken, and what is too long or of both kinds is refused, as `Lines` does it. Empty
    records are passed over. Each message is sent in a frame of its own.
    """

    inner: Codec[M_co] | StreamCodec[M_co] = attrs.field(validator=check_codec)
    """Between messages and records."""
    separator: str = attrs.field(default="\x1e", validator=_check_separator)
    """One ASCII character, which no message may hold."""
    leading: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether the separator begins a message. A newline at the end of a frame ends one then, or the next separator."""
    over_frames: bool = attrs.field(default=True, validator=check_bool, kw_only=True)
    """Whether a record may go on in the next frame. If not, the end of a frame ends its last record."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        cutter: Cutter
        if self.leading:
            cutter = _Led(self.separator, max_message_size, over_frames=self.over_frames)
        else:
            cutter = _Terminated(self.separator, max_message_size, over_frames=self.over_frames, ends=self.separator)
        return framed(cutter, self.inner, max_message_size)


# --------------------------------------------------------------------------- what is kept between frames


@attrs.define(eq=False)
class _Kept:
    """The beginning of a message: text or bytes, never both."""

    size: int = attrs.field(default=0, init=False)
    """Characters, or bytes."""
    kind: type = attrs.field(default=str, init=False)
    # Not lists of pieces: each may be one character, and takes fifty bytes.
    _text: StringIO = attrs.field(factory=StringIO, init=False)
    _bytes: bytearray = attrs.field(factory=bytearray, init=False)

    def add(self, piece: str | bytes) -> None:
        self.kind = type(piece)
        self.size += len(piece)
        if isinstance(piece, str):
            self._text.write(piece)
        else:
            self._bytes += piece

    def take(self, piece: str | bytes) -> str | bytes:
        """Return all that was added, and `piece` behind it; and forget it."""
        if not self.size:
            return piece
        self.add(piece)
        whole = self._text.getvalue() if isinstance(piece, str) else bytes(self._bytes)
        self.drop()
        return whole

    def drop(self) -> None:
        self.size = 0
        self._text, self._bytes = StringIO(), bytearray()


def _like(payload: str | bytes, text: str) -> Any:
    """Return ASCII text as what a payload is, text or bytes."""
    return text if isinstance(payload, str) else text.encode()


@attrs.define(eq=False)
class _Separated:
    """Both ways to separate: how they keep the beginning of a message, and lose one."""

    separator: str
    limit: int
    """Characters, or bytes, of a message."""
    over_frames: bool = attrs.field(kw_only=True)
    """Whether a message may go on in the next frame."""
    _kept: _Kept = attrs.field(factory=_Kept, init=False)
    _is_lost: bool = attrs.field(default=False, init=False)
    """Whether the message under way has been refused: the rest of it is passed over."""

    @property
    def remembers(self) -> bool:
        return False

    def drop(self) -> None:
        self._kept.drop()

    def cut(self, payload: str | bytes) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if self._kept.size and type(payload) is not self._kept.kind:
            yield self._lose("a message goes on in a frame of another kind, text or binary, than it began in")
        mark, at = _like(payload, self.separator), 0
        # Some at a time: all pieces of a frame, if they are short, take tens of times its size.
        while (end := self._find(payload, mark, at)) >= 0:
            yield from self._separate(payload[at:end].split(mark))
            at = end + 1
        yield from self._end_frame(payload[at:])

    def _find(self, payload: str | bytes, mark: Any, at: int) -> int:
        """Return where a separator stands, with not too many others before it; -1 where there is none."""
        end = payload.rfind(mark, at, at + _CHUNK)
        return end if end >= 0 else payload.find(mark, at + _CHUNK)

    def _separate(self, pieces: list[Any]) -> Iterator[Sequence[str | bytes] | BadMessage]:
        """Yield what pieces complete that have a separator behind each; the first belongs to what is under way."""
        return self._complete(pieces)

    def _end_frame(self, tail: Any) -> Iterator[Sequence[str | bytes] | BadMessage]:
        """Keep what stands behind the last separator, or yield what it completes."""
        return self._keep(tail) if self.over_frames else self._complete([tail])

    def _complete(self, pieces: list[Any]) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if self._is_lost:
            self._is_lost = False
            del pieces[0]
        elif self._kept.size:
            pieces[0] = self._kept.take(pieces[0])
        whole = [trimmed for piece in pieces if piece and (trimmed := self._trim(piece))]
        if max(map(len, whole), default=0) > self.limit:
            for piece in whole:
                yield BadMessage(too_big("a message", self.limit)) if len(piece) > self.limit else (piece,)
        else:
            yield whole

    def _trim(self, piece: Any) -> str | bytes:
        """Return a message without what may stand about it; empty where nothing else is there."""
        trimmed: str | bytes = piece
        return trimmed

    def _keep(self, tail: str | bytes) -> Iterator[BadMessage]:
        """Keep the beginning of a message, or the middle of it."""
        if self._is_lost or not tail:
            return
        if self._kept.size + len(tail) > self.limit:
            yield self._lose(too_big("a message", self.limit))
        else:
            self._kept.add(tail)

    def _lose(self, why: str) -> BadMessage:
        self._kept.drop()
        self._is_lost = True
        return BadMessage(why)

    def _refuse_separator(self, payloads: Sequence[str | bytes]) -> None:
        if any(_like(payload, self.separator) in payload for payload in payloads):
            raise BadMessage(f"a message that holds {self.separator!r} would be taken for two")


@attrs.define(eq=False)
class _Terminated(_Separated):
    """Messages with the separator behind each."""

    ends: str = attrs.field(kw_only=True)
    """What is sent behind each."""

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        self._refuse_separator(payloads)
        return [payload + _like(payload, self.ends) for payload in payloads]


@attrs.define(eq=False)
class _Lines(_Terminated):
    """Messages with a newline behind each, and perhaps a carriage return before that."""

    def _trim(self, piece: Any) -> str | bytes:
        trimmed: str | bytes = piece.removesuffix(_like(piece, "\r"))
        return trimmed


@attrs.define(eq=False)
class _Led(_Separated):
    """Messages with the separator before each, and a newline behind it (RFC 7464 section 2.1)."""

    _is_open: bool = attrs.field(default=False, init=False)
    """Whether there was a separator, and no end yet."""

    def _separate(self, pieces: list[Any]) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if not self._is_open:
            yield from self._pass_over(pieces.pop(0))
            self._is_open = True
        if pieces:
            yield from self._complete(pieces)

    def _end_frame(self, tail: Any) -> Iterator[Sequence[str | bytes] | BadMessage]:
        if not self._is_open:
            yield from self._pass_over(tail)
        elif self.over_frames and not tail.endswith(_like(tail, "\n")):
            yield from self._keep(tail)
        else:
            self._is_open = False
            yield from self._complete([tail])

    def _pass_over(self, piece: str | bytes) -> Iterator[BadMessage]:
        """Pass over what stands between messages: white space."""
        if piece.strip():
            yield BadMessage(f"a message without {self.separator!r} before it")

    def _trim(self, piece: Any) -> str | bytes:
        trimmed: str | bytes = piece.strip(_like(piece, " \t\r\n"))  # the white space of JSON
        return trimmed

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        self._refuse_separator(payloads)
        return [_like(payload, self.separator) + payload + _like(payload, "\n") for payload in payloads]
