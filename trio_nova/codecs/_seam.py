"""The seam between a session and its codec: one message for one frame, or n messages for m frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Any, ClassVar, Protocol, cast

import attrs

from trio_nova.codecs._weights import weigh_message
from trio_nova.errors import BadMessage
from trio_nova.messages import M, M_co


class Codec(Protocol[M_co]):
    """Turns messages into payloads and back. A strategy: `Config.codec`.

    A codec may also have a method `decode_all`, from a sequence of payloads to their messages, in their
    order. It is asked instead of `decode` where no hook wants to see each payload; if it raises, `decode`
    is asked about each. So it must be pure. A subclass that overrides `decode` alone is asked that.

    And it may have a method `weigh(payload, message) -> int`, which returns how many bytes the message takes
    in memory. It is asked where many wait to be received; a codec without one is taken to make messages that
    are no larger than their payloads.
    """

    def encode(self, message: Any) -> str | bytes:
        """Return the payload: `str` makes a text frame, `bytes` a binary one.

        Raises:
            BadMessage: the message cannot be encoded.
        """
        ...

    def decode(self, payload: str | bytes) -> M_co:
        """Return the message.

        Raises:
            BadMessage: the payload is not a message.
        """
        ...


class LinkCodec(Protocol[M_co]):
    """The side of a codec that lives and dies with one link, and may remember what that link has said.

    It may have an attribute `remembers`, False where what is sent never refers to what was sent before.

    And it may have a method `weigh(payload, message) -> int`, which returns how many bytes all messages together take
    in memory that `payload` has completed, `message` being one of them. It is asked right after `decode` of that
    payload; see `share_of`.
    """

    def encode(self, message: Any) -> Sequence[str | bytes]:
        """Return the payloads of the frames, in the order in which they must leave.

        All of them must be sent, as what is encoded later may refer to them.

        Raises:
            BadMessage: the message cannot be encoded; nothing is remembered of it.
        """
        ...

    def decode(self, payload: str | bytes) -> Sequence[M_co]:
        """Return the messages that a frame completes, in their order: none, one or several.

        Raises:
            BadMessage: the frame is no message, nor part of one.
            BadFrame: some of its messages cannot be read; the error has the others.
            StreamBroken: nothing more can be read on this link.
        """
        ...


class StreamCodec(Protocol[M_co]):
    """A codec of n messages for m frames. A strategy: `Config.codec`."""

    def open_link(self, max_message_size: int) -> LinkCodec[M_co]:
        """Return what encodes and decodes on one new link.

        Args:
            max_message_size: the bytes that one message may hold, decompressed, and that may be kept between frames.
        """
        ...


class BadFrame(BadMessage):
    """Some messages of a frame cannot be read. `messages` are the others, in their order.

    `bad` has the errors, one for each that is lost. What follows on the link is read as before.
    """

    def __init__(self, message: str, *, messages: Sequence[Any] = (), bad: Sequence[BadMessage] = ()) -> None:
        super().__init__(message)
        self.messages = tuple(messages)
        self.bad = tuple(bad)


class StreamBroken(BadFrame):
    """Nothing more can be read on a link, as the beginning of the next message is not known any more.

    `messages` are those that came before, in the same frame. Only a new link helps.
    """

    hint = "The peer breaks the format of the codec, or speaks another one. Check what the service says it sends."


def open_link_codec(codec: Codec[M] | StreamCodec[M], max_message_size: int) -> LinkCodec[M] | None:
    """Return what encodes and decodes on one new link; None for a plain codec, which is the same on all."""
    open_link: Callable[[int], LinkCodec[M]] | None = getattr(codec, "open_link", None)
    return None if open_link is None else open_link(max_message_size)


def as_plain(codec: Codec[M] | StreamCodec[M]) -> Codec[M]:
    """Return a codec that is known to be the same on all links as one."""
    return cast(Codec[M], codec)


@attrs.frozen(eq=False)
class Plain:
    """A plain codec, as one of a link."""

    remembers: ClassVar[bool] = False
    _codec: Codec
    _weigh: Callable[[str | bytes, Any], int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_weigh", weigher(self._codec))

    def encode(self, message: Any) -> Sequence[str | bytes]:
        return (self._codec.encode(message),)

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return (self._codec.decode(payload),)

    def weigh(self, payload: str | bytes, message: Any) -> int:
        return self._weigh(payload, message)


def share_of(codec: LinkCodec, payload: str | bytes, messages: Sequence[Any]) -> int:
    """Return about the bytes in memory that each of `messages` takes, which `payload` has just completed.

    A frame that completes a message may be much smaller than that: so what a codec of a link makes is charged by
    this, and never by the size of the frame.
    """
    weigh: Callable[[str | bytes, Any], int] | None = getattr(codec, "weigh", None)
    if weigh is not None:
        return weigh(payload, messages[0]) // len(messages)
    return max(getsizeof(payload), sum(map(weigh_message, messages))) // len(messages)


def weigher(codec: Codec | StreamCodec) -> Callable[[str | bytes, Any], int]:
    """Return what weighs the codec's messages: its own `weigh`, where it has one."""
    weigh: Callable[[str | bytes, Any], int] | None = getattr(codec, "weigh", None)
    return _size_of if weigh is None else weigh


def _size_of(payload: str | bytes, message: Any) -> int:
    return getsizeof(payload)


def batch_decoder(codec: Codec | StreamCodec) -> Callable[[Sequence[str | bytes]], Sequence[Any]] | None:
    """Return the codec's `decode_all`; None where it has none, or a subclass has overridden only `decode`."""
    for cls in type(codec).__mro__:
        if "decode_all" in vars(cls):
            decode_all: Callable[[Sequence[str | bytes]], Sequence[Any]] = vars(cls)["decode_all"].__get__(codec)
            return decode_all
        if "decode" in vars(cls):
            return None
    return None
