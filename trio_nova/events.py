"""What happens in a session, and the record in which observers are told of it.

An event is a value in the past tense (`LinkOpened`): it says what happened, and not where or when. That is said by
the `Observation` around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import attrs

T = TypeVar("T")

Family: TypeAlias = Literal["connection", "message", "error", "audit"]


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a session."""

    family: ClassVar[Family] = "connection"
    """What `Config.events` goes by."""


@attrs.frozen
class Observation:
    """An event, and where and when it happened."""

    session: str
    """The name of the session: its host, and a part of its id."""
    epoch: int
    """The number of the link that it happened on, or of the last one; 0 before the first."""
    at: float
    """Trio's clock, seconds."""
    wall: float
    """Unix time, seconds."""
    event: Event


Observer: TypeAlias = Callable[[Observation], object]
"""A plain function that is told what happens, as it happens, and in order. A strategy: `Config.observers`.

It hears what `hears` has named, else all but the `ONLY_WHERE_NAMED` events. It must not call into the session. One that
raises is told nothing any more; that it failed is told to the others, as an `ErrorEvent`.
"""


def hears(*kinds: type[Event]) -> Callable[[T], T]:
    """Return a decorator that names the kinds of events, subclasses included, that an observer is told."""

    def name(observer: T) -> T:
        observer.hears = kinds  # type: ignore[attr-defined]
        return observer

    return name


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
class CircuitOpened(ConnectionEvent):
    """Too much has failed at an origin: the sessions that share the `CircuitBreaker` do not dial it for a while.

    Told by the one whose failure it was.
    """

    origin: str
    until: float
    """Trio's clock, seconds: when one of them may try."""
    error: Exception
    """The failure that was one too many."""


@attrs.frozen(kw_only=True)
class CircuitClosed(ConnectionEvent):
    """A dial to an origin has succeeded after `CircuitOpened`: it is dialled again. Told by the one whose it was."""

    origin: str


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
class PongMissed(ConnectionEvent):
    """Nothing answered a probe within `pong_timeout`; the link lives on, as `max_missed_pongs` allows it."""

    missed: int
    """Probes in a row that nothing has answered."""
    allowed: int
    """How many the link outlives."""
    silence: float
    """Seconds without a sign of life."""


@attrs.frozen(kw_only=True)
class PeerSilent(ConnectionEvent):
    """The link was declared dead; `clock` names the clock that ran out: "pong", "write" or "idle"."""

    clock: str
    silence: float
    """Seconds without a sign of life."""
    missed: int = 0
    """By the clock "pong": probes in a row that nothing has answered."""


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
    """A block of `Connection.paused` was left."""


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
class RateHighWater(ConnectionEvent):
    """A rate limit is used to 0.9: little more can go before messages have to wait. Told once; see `RateLowWater`.

    No use is told of limits that let fewer than ten units go at once.
    """

    used: float
    """What is used of the limit of which most is, as a fraction of it."""


@attrs.frozen(kw_only=True)
class RateLowWater(ConnectionEvent):
    """At least half of each rate limit is free again, after `RateHighWater`."""

    used: float
    """What is used of the limit of which most is, as a fraction of it."""


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

    id: int
    """The number of the request in its session, from 1."""


@attrs.frozen(kw_only=True)
class RequestResolved(ConnectionEvent):
    """A question has got its answer."""

    id: int
    """The number of the request in its session, from 1."""
    round_trip: float
    """Seconds from the call to the answer."""


@attrs.frozen(kw_only=True)
class RequestUnresolved(ConnectionEvent):
    """A request ended without a good answer."""

    id: int
    """The number of the request in its session, from 1."""
    error: Exception | None
    """None where its caller was cancelled."""


@attrs.frozen(kw_only=True)
class AnswerUnmatched(ConnectionEvent):
    """An answer came to no request under way. `late`: to one that had been given up; it goes no further.

    Any other goes on as an ordinary message: services repeat the id of a command in the events that it asked for.
    """

    id: str
    """The id that the answer bears, escaped and cut; "" where it bears none."""
    late: bool


@attrs.frozen(kw_only=True)
class SubscriptionConfirmed(ConnectionEvent):
    """The service has confirmed a subscription."""

    id: int
    """The number of the subscription in its session, from 1."""
    channel: str
    restored: bool
    """Whether it was confirmed before, on an earlier link."""


@attrs.frozen(kw_only=True)
class SubscriptionRefused(ConnectionEvent):
    """The service has refused a subscription, or taken it back; or it could not be asked for."""

    id: int
    """The number of the subscription in its session, from 1."""
    channel: str
    reason: str
    """The service's, or ours; escaped and cut."""
    restoring: bool = False
    """Whether it was confirmed before, on this link or an earlier one."""
    retry_in: float | None = None
    """Seconds after which it is asked for again; None: not until somebody wants it again."""


@attrs.frozen(kw_only=True)
class SubscriptionEnded(ConnectionEvent):
    """The service has ended a subscription."""

    id: int
    """The number of the subscription in its session, from 1."""
    channel: str
    reason: str
    """The service's, escaped and cut; "": it is complete."""


@attrs.frozen(kw_only=True)
class MoveAsked(ConnectionEvent):
    """The service asks for another link in place of this one."""

    within: float | None
    """Seconds until it closes this one; None: it did not say."""
    to: str
    """The address that it names; "": none."""
    reason: str


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

    id: int
    """The number of the subscription in its session, from 1."""
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
    first: int | None = None
    """The number of the first message that is missing, where that is known."""
    last: int | None = None
    """The number of the last one."""
    wall_since: float
    """Unix time, seconds: as `since`."""
    wall_until: float
    """Unix time, seconds: as `until`."""


@attrs.frozen(kw_only=True)
class Resynced(ConnectionEvent):
    """A feed is whole again: the next message is a snapshot."""

    id: int
    """The number of the subscription in its session, from 1."""
    channel: str


@attrs.frozen(kw_only=True)
class FeedStale(ConnectionEvent):
    """No data came on a confirmed subscription for longer than its `max_age`."""

    id: int
    """The number of the subscription in its session, from 1."""
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

    family: ClassVar[Family] = "message"

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
class SecretRevealed(Event):
    """A secret was handed on: to who writes it to the network, or to a hook. Never its value. Only told who names it.

    Of a dial it is told where the bytes of the request are made, for each request, those of redirects included.
    """

    family: ClassVar[Family] = "audit"

    secret: str
    """In words, by its place or name: "header authorization", "parameter token", "login of the URL", "credentials"."""
    to: str
    """The origin of the server, the URL of the proxy without its login, or the hook."""


@attrs.frozen(kw_only=True)
class ErrorEvent(Event):
    """Something went wrong: logged by `log_error_event`."""

    family: ClassVar[Family] = "error"

    error: Exception
    category: str
    context: str


Category: TypeAlias = Literal[
    "network", "timeout", "authentication", "rate_limit", "protocol", "ssl", "handshake", "unknown"
]


PER_MESSAGE: tuple[type[Event], ...] = (MessageEvent, RateConsumed)
"""Events that would be made for each message, or batch of them: made only where an observer names them."""

ONLY_WHERE_NAMED: tuple[type[Event], ...] = (*PER_MESSAGE, SecretRevealed)
"""Events that observers and listeners are told only if they name them."""
