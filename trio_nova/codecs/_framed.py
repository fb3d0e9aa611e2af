"""One link's side of all codecs that cut messages out of frames, whatever they cut at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs

from trio_nova.codecs._seam import (
    BadFrame,
    Codec,
    LinkCodec,
    Plain,
    StreamBroken,
    StreamCodec,
    batch_decoder,
    open_link_codec,
    share_of,
    weigher,
)
from trio_nova.errors import BadMessage
from trio_nova.messages import M

MAX_BAD = 64
"""Messages of one frame that may be unreadable: a peer that sends more does not speak the codec's format.

To make an error takes longer than to read a message: without a bound, one frame of short garbage would hold up
everything else for half a minute.
"""


MAX_MESSAGES = 65_536
"""Messages that one frame may bring: while they are decoded nothing else runs."""


class Cutter(Protocol):
    """Cuts payloads into those of single messages, over the frames of one link, and the other way round."""

    def cut(self, payload: str | bytes) -> Iterator[Sequence[str | bytes] | BadMessage]:
        """Yield the messages that a frame completes, some at a time, and an error for each that was left out.

        Raises:
            BadMessage: the frame is none of this stream, which is as it was.
            OutOfStep: what comes next is not known.
        """
        ...

    @property
    def remembers(self) -> bool:
        """Whether what is sent refers to what was sent before."""
        ...

    def wrap(self, payloads: Sequence[str | bytes]) -> Sequence[str | bytes]:
        """Return the frames for payloads; BadMessage, and nothing is remembered, where one of them cannot be sent."""
        ...

    def drop(self) -> None:
        """Forget what is kept between frames: nothing more will be cut."""
        ...


class OutOfStep(Exception):
    """A cutter cannot go on; its message says why."""


def framed(cutter: Cutter, codec: Codec[M] | StreamCodec[M], max_message_size: int) -> LinkCodec[M]:
    """Return what cuts messages out of the frames of one new link, for `codec` to decode them."""
    inner = open_link_codec(codec, max_message_size)
    if inner is not None:
        return FramedLink(cutter, inner)
    return FramedLink(cutter, Plain(codec), batch_decoder(codec), weigher(codec))  # type: ignore[arg-type]


@attrs.define(eq=False)
class FramedLink:
    """A `LinkCodec` of what a cutter cuts, and the codec inside it."""

    _cutter: Cutter
    _inner: LinkCodec
    _decode_all: Callable[[Sequence[str | bytes]], Sequence[Any]] | None = None
    """Decodes many messages at once, as a plain codec may."""
    _weigh: Callable[[str | bytes, Any], int] = lambda part, message: 0
    """Weighs one of these."""
    _broken: str = attrs.field(default="", init=False)
    """Why nothing more can be read; "": it can."""
    _mute: str = attrs.field(default="", init=False)
    """Why nothing more can be sent; "": it can."""
    _weight: int = attrs.field(default=0, init=False)
    """Bytes in memory of the messages that came last."""

    @property
    def remembers(self) -> bool:
        """Whether what is sent refers to what was sent before; of a codec that does not say so, it may."""
        return self._cutter.remembers or bool(getattr(self._inner, "remembers", True))

    def encode(self, message: Any) -> Sequence[str | bytes]:
        if self._mute:
            raise BadMessage(self._mute)
        payloads = self._inner.encode(message)
        try:
            return self._cutter.wrap(payloads)
        except BadMessage as exc:
            if getattr(self._inner, "remembers", True):  # what it made is not sent, and what it makes next refers to it
                self._mute = f"nothing more can be sent on this link: {exc}"
            raise

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        if self._broken:
            raise StreamBroken(self._broken)
        self._weight = 0
        messages: list[Any] = []
        bad: list[BadMessage] = []
        try:
            self._read_all(payload, messages, bad)
            if not bad:
                return messages
            raise self._verdict(messages, bad)
        except OutOfStep as exc:
            raise self._give_up(str(exc), messages, bad) from exc.__cause__
        except StreamBroken as exc:  # of the codec inside
            raise self._give_up(str(exc), messages, bad) from exc
        finally:
            bad.clear()  # their tracebacks lead here: in a circle they would hold the payload until it is collected

    def weigh(self, payload: str | bytes, message: Any) -> int:
        """Return about the bytes in memory of all messages that came last."""
        return self._weight

    def _read_all(self, payload: str | bytes, messages: list[Any], bad: list[BadMessage]) -> None:
        """Decode what a frame completes, into `messages` or into `bad`."""
        for parts in self._cutter.cut(payload):
            if isinstance(parts, BadMessage):
                self._refuse(parts, bad)
            elif not self._read_at_once(parts, messages):
                for part in parts:
                    self._read(part, messages, bad)
            if len(messages) > MAX_MESSAGES:
                raise OutOfStep(f"one frame brings more than {MAX_MESSAGES} messages")

    def _read_at_once(self, parts: Sequence[str | bytes], messages: list[Any]) -> bool:
        """Decode parts; False where they are to be decoded one by one: that shows which is bad, and why."""
        if self._decode_all is None:
            return False
        try:
            read = self._decode_all(parts)
        except Exception:
            return False
        messages += read
        self._weight += sum(map(self._weigh, parts, read))
        return True

    def _read(self, part: str | bytes, messages: list[Any], bad: list[BadMessage]) -> None:
        read = self._decode_one(part)
        try:
            if isinstance(read, BadFrame):
                self._add(part, read.messages, messages)
                bad += read.bad
                if isinstance(read, StreamBroken):
                    raise read
                self._check(bad)
            elif isinstance(read, BadMessage):
                self._refuse(read, bad)
            else:
                self._add(part, read, messages)
        finally:
            del read  # no circle here either

    def _decode_one(self, part: str | bytes) -> Sequence[Any] | BadMessage:
        try:
            return self._inner.decode(part)
        except BadMessage as exc:
            return exc
        except Exception as exc:  # of a codec of the user's: the rest of the frame is to be read all the same
            return _of_foreign(exc)

    def _add(self, part: str | bytes, read: Sequence[Any], messages: list[Any]) -> None:
        if read:
            messages += read
            self._weight += share_of(self._inner, part, read) * len(read)

    def _refuse(self, error: BadMessage, bad: list[BadMessage]) -> None:
        bad.append(error)
        self._check(bad)

    def _check(self, bad: list[BadMessage]) -> None:
        if len(bad) > MAX_BAD:
            raise OutOfStep(f"more than {MAX_BAD} messages of one frame are bad; the first: {bad[0]}")

    def _verdict(self, messages: list[Any], bad: list[BadMessage]) -> BadMessage:
        if len(bad) == 1 and not messages:
            return bad[0]
        which = f"{len(bad)} of {len(bad) + len(messages)}"
        return BadFrame(f"{which} messages of a frame are bad; the first: {bad[0]}", messages=messages, bad=bad)

    def _give_up(self, why: str, messages: list[Any], bad: list[BadMessage]) -> StreamBroken:
        self._broken = f"nothing more can be read on this link: {why}"
        self._cutter.drop()
        return StreamBroken(self._broken, messages=messages, bad=bad)


def too_big(what: str, limit: int) -> str:
    """Return the words for a message beyond the limit."""
    return f"{what} exceeds max_message_size, {limit} bytes"


def as_bytes(payload: str | bytes) -> bytes:
    """Return a payload as bytes, text as UTF-8; BadMessage for half a surrogate pair."""
    try:
        return payload.encode() if isinstance(payload, str) else payload
    except UnicodeEncodeError as exc:
        raise BadMessage("text that UTF-8 has no form for cannot be sent") from exc


def _of_foreign(exc: Exception) -> BadMessage:
    error = BadMessage(f"the message could not be read: {type(exc).__name__}")
    error.__cause__ = exc
    return error
