"""The values that travel: frames, and what hooks answer.

A text message *is* its `str` and a binary one *is* its `bytes`: nothing is wrapped on the way.
Answers of hooks are imperative (`Reply`, `Stop`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from trio_nova.errors import ConfigError, LinkLost

if TYPE_CHECKING:  # checkers know defaults of TypeVars for every version of Python, and bring the module that has them
    from typing_extensions import TypeVar

    M = TypeVar("M", default=Any)
    """A message as a program gets it; where nothing says of what type, Any: `Target` is short for `Target[Any]`."""
    M_co = TypeVar("M_co", covariant=True, default=Any)
    """The same for classes that only give messages: a `Connection[Trade]` is a `Connection[Trade | Quote]`, too."""
    MessageOrRaw = TypeVar("MessageOrRaw", default=str | bytes)
    """The same for calls that make do without a codec: a message is then what `RawCodec` leaves as it is."""
else:
    from typing import TypeVar

    M, M_co, MessageOrRaw = TypeVar("M"), TypeVar("M_co", covariant=True), TypeVar("MessageOrRaw")

# --------------------------------------------------------------------------- frames


@attrs.frozen
class Ping:
    """A ping (RFC 6455 section 5.5.2); at most 125 bytes of payload."""

    payload: bytes = b""

    def __attrs_post_init__(self) -> None:
        _check_control(self.payload)


@attrs.frozen
class Pong:
    """A pong (RFC 6455 section 5.5.3); at most 125 bytes of payload."""

    payload: bytes = b""

    def __attrs_post_init__(self) -> None:
        _check_control(self.payload)


Frame: TypeAlias = str | bytes | Ping | Pong
"""What a link carries: text, binary, and the two control frames that are not a goodbye."""


def _check_control(payload: bytes) -> None:
    if len(payload) > 125:
        raise ConfigError("payload", "a control frame holds at most 125 bytes (RFC 6455 section 5.5)")


def frame_kind(frame: Frame) -> str:
    """Return "text", "binary", "ping" or "pong"."""
    match frame:
        case str():
            return "text"
        case bytes():
            return "binary"
        case Ping():
            return "ping"
        case Pong():
            return "pong"


_CONTROL = (Ping, Pong)  # asked about every message: isinstance is faster with a tuple than with a union


def frame_size(frame: Frame) -> int:
    """Return the payload's size in bytes; for text the number of characters, a lower bound that costs nothing."""
    return len(frame.payload) if isinstance(frame, _CONTROL) else len(frame)


# --------------------------------------------------------------------------- what hooks answer


@attrs.frozen
class Reply:
    """Send `message`, through the codec."""

    message: Any


def _as_tuple(messages: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(messages)


@attrs.frozen
class ReplyMany:
    """Send all `messages`, in order, through the codec."""

    messages: Sequence[Any] = attrs.field(converter=_as_tuple)


def is_close_code(code: int) -> bool:
    """Return whether a close frame may carry `code` (RFC 6455 section 7.4 and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def check_close(code: int, reason: str) -> None:
    """Raise ConfigError unless a close frame may carry `code` and `reason` (RFC 6455 sections 5.5.1 and 7.4)."""
    if not isinstance(code, int) or not is_close_code(code):
        raise ConfigError("code", f"{code!r} may not be sent: use 1000-1003, 1007-1014 or 3000-4999")
    if not isinstance(reason, str):
        raise ConfigError("reason", f"must be a str, not a {type(reason).__name__}")
    try:
        size = len(reason.encode())
    except UnicodeEncodeError:
        raise ConfigError("reason", "is no valid Unicode: a close frame is UTF-8") from None
    if size > 123:
        raise ConfigError("reason", "a close reason holds at most 123 bytes of UTF-8")


@attrs.frozen
class Close:
    """Close the session with this code: no reconnect. Iteration ends; later calls raise SessionOver."""

    code: int = 1000
    reason: str = ""

    def __attrs_post_init__(self) -> None:
        check_close(self.code, self.reason)


@attrs.frozen
class Stop:
    """End the session with `error`: it leaves the user's block, bare."""

    error: Exception = attrs.field(validator=attrs.validators.instance_of(Exception))


@attrs.frozen
class Reconnect:
    """Close this link and open another, with the usual back-off."""

    reason: str = ""

    def __attrs_post_init__(self) -> None:
        check_close(1000, self.reason)


def _as_float(seconds: float | Decimal) -> float:
    return float(seconds) if isinstance(seconds, Decimal) else seconds


@attrs.frozen
class Retry:
    """Give this link up, if it is not lost already, and dial again `delay` seconds from now."""

    delay: float = attrs.field(
        converter=_as_float, validator=[attrs.validators.ge(0.0), attrs.validators.lt(float("inf"))]
    )


Action: TypeAlias = Reply | ReplyMany | Close | Stop | Reconnect | Retry | None
"""What is to be done; None is: go on."""
Answered: TypeAlias = Action | Sequence[Action]
"""What a hook may answer: one action, or several, which are done in their order."""

ACTIONS = (Reply, ReplyMany, Close, Stop, Reconnect, Retry)


@attrs.frozen
class Allow:
    """Send it now, whatever the limits say."""


@attrs.frozen
class Queue:
    """Let it wait, at most until `until` (Trio's clock, seconds), then ask again."""

    until: float


@attrs.frozen
class Reject:
    """Do not send it: whoever waits gets NotSent with this reason."""

    reason: str = ""


Decision: TypeAlias = Allow | Queue | Reject
"""What a rate-limit handler answers."""


# --------------------------------------------------------------------------- how a link ended


@attrs.frozen
class CloseInfo:
    """How the last link ended."""

    code: int
    reason: str
    remote: bool | None
    epoch: int
    detail: str = ""
    """What else is known: which rule the peer broke, or what an illegal close frame said."""

    @classmethod
    def of(cls, lost: LinkLost) -> CloseInfo:
        return cls(lost.code, lost.reason, lost.remote, lost.epoch, lost.detail)
