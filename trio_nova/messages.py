"""The values that travel: frames, what hooks answer, and what happened.

A text message *is* its `str` and a binary one *is* its `bytes`: nothing is wrapped on the way.
Answers of hooks are imperative (`Reply`, `Stop`); events are in the past tense (`LinkOpened`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import attrs

from trio_nova.errors import ConfigError, LinkLost

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
"""What a hook may answer; None is: go on."""

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


# --------------------------------------------------------------------------- what happened


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a session."""

    at: float
    """Trio's clock, seconds."""
    epoch: int
    """The number of the link it happened on, or of the last one; 0 before the first."""


@attrs.frozen(kw_only=True)
class ConnectionEvent(Event):
    """About the session or its link: logged by `log_connection_event`."""


@attrs.frozen(kw_only=True)
class StateChanged(ConnectionEvent):
    """The session moved from one state to another; see `State`."""

    old: str
    """The value of a `State`."""
    new: str
    """The value of a `State`."""


@attrs.frozen(kw_only=True)
class DialQueued(ConnectionEvent):
    """An attempt to connect waits for its turn; see `ConnectGovernor`. `DialStarted` follows, or a `ConnectTimeout`."""

    url: str
    """Without secrets."""
    under_way: int
    """Dials to the same address at this moment."""


@attrs.frozen(kw_only=True)
class DialStarted(ConnectionEvent):
    """An attempt to connect begins."""

    url: str
    """Without secrets."""
    attempt: int
    """1, and one more for each that has failed in a row before."""


@attrs.frozen(kw_only=True)
class LinkOpened(ConnectionEvent):
    """The upgrade is done: a link is up. It is not set up yet; see `BecameReady`."""

    connect_time: float
    """Seconds from the start of the dial to the upgrade."""
    subprotocol: str | None = None
    """The one that the server chose; None: none."""


@attrs.frozen(kw_only=True)
class BecameReady(ConnectionEvent):
    """The link is set up; application messages flow."""


@attrs.frozen(kw_only=True)
class Reconnected(ConnectionEvent):
    """A link is ready again, after one was lost."""

    attempts: int
    """Dials that it took."""
    outage: float
    """Seconds without a ready link."""


@attrs.frozen(kw_only=True)
class LinkClosed(ConnectionEvent):
    """A link has ended, however that came."""

    code: int
    """Of the close frame (RFC 6455 section 7.4); 1006 where there was none."""
    reason: str
    """Of the close frame."""
    remote: bool | None
    """True: the peer's close frame ended it; False: ours; None: there was none."""
    duration: float
    """Seconds that the link was up."""
    detail: str = ""
    """What else is known, such as how the connection broke."""


@attrs.frozen(kw_only=True)
class RetryScheduled(ConnectionEvent):
    """The session will dial again, by itself."""

    delay: float
    """Seconds until the next dial."""
    attempt: int
    """How many dials have failed in a row."""
    error: Exception
    """Why the link was lost, or did not come up."""


@attrs.frozen(kw_only=True)
class SessionEnded(ConnectionEvent):
    """The session is over: no event follows."""

    error: BaseException | None
    """None where it was closed on purpose."""


@attrs.frozen(kw_only=True)
class PingSent(ConnectionEvent):
    """A ping was handed to the operating system."""


@attrs.frozen(kw_only=True)
class PongReceived(ConnectionEvent):
    """The peer answered a ping, or the heartbeat in its place."""

    rtt: float
    """Seconds from the ping to its pong."""


@attrs.frozen(kw_only=True)
class PeerSilent(ConnectionEvent):
    """The link was declared dead; `clock` names the clock that ran out: "pong", "write" or "idle"."""

    clock: str
    silence: float
    """Seconds without a sign of life."""


@attrs.frozen(kw_only=True)
class ClockJumped(ConnectionEvent):
    """The wall clock moved on while the monotonic one stood still: the machine slept."""

    seconds: float
    """How far the wall clock outran the monotonic one."""


@attrs.frozen(kw_only=True)
class HighWater(ConnectionEvent):
    """The inbox, or a feed that blocks, is filled to 0.8 of its mark; or what waits in all of them, of its bound."""

    messages: int
    size: int
    where: str = "inbox"
    """"inbox", or the channel of a feed."""


@attrs.frozen(kw_only=True)
class LowWater(ConnectionEvent):
    """It has emptied to half of that again."""

    messages: int
    size: int
    where: str = "inbox"
    """"inbox", or the channel of a feed."""


@attrs.frozen(kw_only=True)
class ConsumerLagged(ConnectionEvent):
    """`inbox_bytes` wait: reading has stopped, and the peer feels it. Its silence is not held against it."""

    where: str = ""
    """What holds most of it: "inbox", the channel of a feed, or "handlers"."""
    waiting: int = 0
    """Messages that wait there."""


@attrs.frozen(kw_only=True)
class ConsumerCaughtUp(ConnectionEvent):
    """There is room again, and reading goes on."""

    stalled: float
    """Seconds that reading stood still."""


@attrs.frozen(kw_only=True)
class ReadingPaused(ConnectionEvent):
    """A block of `Connection.paused` was entered."""


@attrs.frozen(kw_only=True)
class ReadingResumed(ConnectionEvent):
    """The last block of `Connection.paused` was left."""


@attrs.frozen(kw_only=True)
class Dropped(ConnectionEvent):
    """`count` messages were dropped, since the last such event.

    By an overflow policy, where `where` is "inbox", "listener" or a channel. When the session ends: "replies"
    are those of hooks that were not sent, "handlers" what the hooks were not shown (it can be received).
    """

    count: int
    where: str


@attrs.frozen(kw_only=True)
class Reconfigured(ConnectionEvent):
    """Options of the living session were changed."""

    fields: tuple[str, ...]
    """The names of these options."""


@attrs.frozen(kw_only=True)
class OwnershipTransferred(ConnectionEvent):
    """The receive side was handed to somebody else, by `Connection.hand_over`."""

    to: str
    """What `hand_over` was told of the new owner."""


@attrs.frozen(kw_only=True)
class RateConsumed(ConnectionEvent):
    """Messages within the rate limit were handed to the writer. Listeners hear it only if they hear messages."""

    messages: int
    cost: float
    """Tokens; 0 where the limiter's own arithmetic is not the default's."""


@attrs.frozen(kw_only=True)
class RateLimited(ConnectionEvent):
    """A message had to wait for the limiter, which now lets it go."""

    wait: float
    """Seconds that the limiter held it, or what goes before it."""


@attrs.frozen(kw_only=True)
class RateLimitSlowed(ConnectionEvent):
    """The peer complained of our pace, and is obeyed."""

    until: float
    """Trio's clock, seconds: nothing but control frames and authentication is sent before."""
    factor: float
    """The pace from then on, as a fraction of the full one."""


@attrs.frozen(kw_only=True)
class RateRejected(ConnectionEvent):
    """A message was refused by the rate limit, and its sender told so."""

    reason: str
    """The limiter's."""


@attrs.frozen(kw_only=True)
class RequestSent(ConnectionEvent):
    """A question was handed to the operating system."""


@attrs.frozen(kw_only=True)
class RequestResolved(ConnectionEvent):
    """A question has got its answer."""

    round_trip: float
    """Seconds from the call to the answer."""


@attrs.frozen(kw_only=True)
class RequestUnresolved(ConnectionEvent):
    """A request ended without a good answer."""

    error: Exception | None
    """None where its caller was cancelled."""


@attrs.frozen(kw_only=True)
class AnswerUnmatched(ConnectionEvent):
    """An answer came to no request under way. `late`: to one that had been given up; it goes no further.

    Any other goes on as an ordinary message: services repeat the id of a command in the events that it asked for.
    """

    late: bool
    id: str = ""
    """Of a late one, the id that it bears, escaped and cut; "" where it bears none."""


@attrs.frozen(kw_only=True)
class SubscriptionConfirmed(ConnectionEvent):
    """The service has confirmed a subscription."""

    channel: str
    restored: bool
    """Whether it was confirmed before, on an earlier link."""


@attrs.frozen(kw_only=True)
class SubscriptionRefused(ConnectionEvent):
    """The service has refused a subscription, or taken it back; or it could not be asked for."""

    channel: str
    reason: str
    """The service's, or ours; escaped and cut."""
    restoring: bool = False
    """Whether it was confirmed before, on this link or an earlier one."""


@attrs.frozen(kw_only=True)
class SubscriptionsRestored(ConnectionEvent):
    """All subscriptions were asked for again, and answered, on a new link."""

    confirmed: int
    """How many the service has confirmed."""
    rejected: int
    """How many it has refused."""
    duration: float
    """Seconds from when the first was to be asked for."""


@attrs.frozen(kw_only=True)
class Gap(ConnectionEvent):
    """Messages may be, or are known to be, missing between the one before and the one after this notice.

    A feed that asked for notices receives it in its place, before the next message.
    """

    channel: str
    epoch_from: int
    """The link of the message before."""
    epoch_to: int
    """The link of the message after; the same where it is a gap in one link."""
    since: float
    """Trio's clock, seconds: when the channel was lost, or now."""
    until: float
    """Trio's clock, seconds."""
    cause: str
    """In words."""
    outcome: Literal["resumed", "lost", "unknown"]
    """"resumed": nothing is missing after all; "lost": something is; "unknown": the service gives no means to tell."""
    lost: int | None = None
    """How many messages are missing, where that is known."""


@attrs.frozen(kw_only=True)
class Resynced(ConnectionEvent):
    """A feed is whole again: the next message is a snapshot."""

    channel: str


@attrs.frozen(kw_only=True)
class FeedStale(ConnectionEvent):
    """No data came on a confirmed subscription for longer than its `max_age`."""

    channel: str
    age: float
    """Seconds since the last data."""


@attrs.frozen(kw_only=True)
class DataUnclaimed(ConnectionEvent):
    """Data came for a channel that nobody is subscribed to; told for the first of each link, then only counted."""

    channel: str


@attrs.frozen(kw_only=True)
class AuthStarted(ConnectionEvent):
    """The link is being authenticated."""

    refresh: bool
    """Whether a living link is authenticated again."""


@attrs.frozen(kw_only=True)
class Authenticated(ConnectionEvent):
    """The service has accepted our credentials."""

    refresh: bool
    """Whether it was a living link that was authenticated again."""
    duration: float
    """Seconds that it took."""
    expires_in: float | None
    """Seconds until what was granted expires; None: never."""


@attrs.frozen(kw_only=True)
class AuthUnsuccessful(ConnectionEvent):
    """The service has not accepted our credentials, or did not answer."""

    refresh: bool
    """Whether it was a living link that was to be authenticated again."""
    error: Exception
    """`AuthFailed`, or why there was no answer."""


@attrs.frozen(kw_only=True)
class MessageEvent(Event):
    """About one message: logged by `log_message_event`. Only made where somebody listens."""

    direction: Literal["sent", "received"]
    kind: str
    """"text" or "binary"."""
    message_type: str = ""
    """As `MessageHandler.message_type` says; a peer may put anything there."""
    size: int
    latency: float = 0.0
    """Seconds that a sent message waited before the operating system took it; 0 for a received one."""
    message: Any = attrs.field(default=None, repr=False)
    """A received message, decoded; None for a sent one."""


@attrs.frozen(kw_only=True)
class ErrorEvent(Event):
    """Something went wrong: logged by `log_error_event`."""

    error: Exception
    category: str
    context: str


Category: TypeAlias = Literal[
    "network", "timeout", "authentication", "rate_limit", "protocol", "ssl", "handshake", "unknown"
]


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
