"""The log: a sentence for each event, with the session's name, or its fields as JSON."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import attrs
import msgspec

from trio_nova import events
from trio_nova.core import Strategy, one_of
from trio_nova.errors import LinkLost, printable
from trio_nova.events import (
    Dropped,
    ErrorEvent,
    Event,
    LinkClosed,
    Observation,
    RetryScheduled,
    SessionEnded,
)
from trio_nova.secrets import redacted

__all__ = ["LoggingHandler", "describe", "describe_event", "level_of", "sentence"]

MAX_A_SECOND = 10
"""Records of one kind; the others of that second are only counted."""

# A library leaves it to the application whether anything is shown.
_logger = logging.getLogger("trio_nova")
_logger.addHandler(logging.NullHandler())

_IN_GOOD_ORDER = (1001, 1012)
"""Close codes of a server that goes away or restarts (RFC 6455 section 7.4.1)."""
_FOLLOWED = ("link", "connect", "auth", "observer")
"""Contexts of errors of which another record tells, and of what follows from them."""

_LEVELS: Mapping[type[Event], int] = {
    **dict.fromkeys(
        (
            events.AuthUnsuccessful,
            events.ClockJumped,
            events.ConsumerLagged,
            events.DataUnclaimed,
            events.Dropped,
            events.FeedStale,
            events.Gap,
            events.RateLimitSlowed,
            events.RateRejected,
            events.SubscriptionRefused,
            events.CircuitOpened,
        ),
        logging.WARNING,
    ),
    **dict.fromkeys(
        (
            events.AnswerUnmatched,
            events.MessageEvent,
            events.PeerSilent,  # the line of the loss says so
            events.PingSent,
            events.PongReceived,
            events.RateConsumed,
            events.RateLimited,
            events.RequestResolved,
            events.RequestSent,
            events.StateChanged,
        ),
        logging.DEBUG,
    ),
}


def level_of(event: Event) -> int:
    """Return the level at which an event is logged."""
    if (level := _LEVELS.get(type(event))) is not None:
        return level
    match event:
        case LinkClosed():
            # Of a loss the line tells that says what follows.
            return logging.INFO if event.remote is False else logging.DEBUG
        case RetryScheduled(error=LinkLost(code=code)) if code in _IN_GOOD_ORDER:
            return logging.INFO
        case RetryScheduled():
            return logging.WARNING
        case SessionEnded():
            return logging.INFO if event.error is None else logging.WARNING
        case ErrorEvent():
            return logging.DEBUG if event.context in _FOLLOWED else logging.WARNING
        case _:
            return logging.INFO


_SENTENCES: Mapping[type[Event], str] = {
    events.StateChanged: "is {new}, and was {old}",
    events.DialQueued: "waits for its turn to dial {url}, as {under_way} dials are under way",
    events.DialStarted: "dials {url}, attempt {attempt}",
    events.CircuitOpened: "dials {origin} no more for now, nor do others: {error}",
    events.CircuitClosed: "has reached {origin}, which may be dialled again",
    events.LinkOpened: "link {epoch} is up after {connect_time} s",
    events.BecameReady: "is ready on link {epoch}",
    events.Reconnected: "is ready again after {outage} s, attempts: {attempts}",
    events.SessionEnded: "is over",
    events.PingSent: "sent a ping",
    events.PongReceived: "got a pong after {rtt} s",
    events.PongMissed: "link {epoch}: nothing came for {silence} s, probes missed: {missed} of {allowed} allowed",
    events.PeerSilent: "link {epoch}: the peer was silent for {silence} s, by the {clock} clock",
    events.ClockJumped: "the machine slept for {seconds} s",
    events.HighWater: "{messages} messages of {size} bytes wait to be received",
    events.LowWater: "only {messages} messages of {size} bytes still wait to be received",
    events.ConsumerLagged: "stopped reading, as too much waits to be received",
    events.ConsumerCaughtUp: "reads again after {stalled} s",
    events.ReadingPaused: "reading was paused",
    events.ReadingResumed: "a pause of reading has ended",
    events.Dropped: "dropped {count} messages ({where})",
    events.Reconfigured: "uses other options from now on: {fields}",
    events.OwnershipTransferred: "the receive side was handed over to {to}",
    events.RateConsumed: "the rate limit let {messages} messages go, which cost {cost}",
    events.RateLimited: "a message has waited {wait} s for the rate limit",
    events.RateHighWater: "the rate limit is nearly used up: {used} of it",
    events.RateLowWater: "the rate limit has room again: {used} of it is used",
    events.RateLimitSlowed: "the service finds us too fast: pace {factor} from now on",
    events.RateRejected: "the rate limit refused a message: {reason}",
    events.RequestSent: "request {id} was written",
    events.RequestResolved: "request {id} was answered after {round_trip} s",
    events.RequestUnresolved: "request {id} got no good answer: {error}",
    events.AnswerUnmatched: "an answer came to no request under way",
    events.SubscriptionConfirmed: "subscription {id} to {channel} is confirmed",
    events.SubscriptionRefused: "subscription {id} to {channel} was refused: {reason}",
    events.SubscriptionEnded: "subscription {id} to {channel} was ended by the service, which says {reason!r}",
    events.MoveAsked: "link {epoch}: the service asks for another one, and says {reason!r}",
    events.SubscriptionsRestored: "{confirmed} subscriptions restored, {rejected} refused, in {duration} s",
    events.Resynced: "{channel} is whole again",
    events.FeedStale: "nothing came on {channel} for {age} s",
    events.DataUnclaimed: "data came for {channel}, to which nobody is subscribed",
    events.AuthStarted: "authenticates",
    events.Authenticated: "is authenticated after {duration} s",
    events.AuthUnsuccessful: "is not authenticated: {error}",
    events.SecretRevealed: "handed {secret} to {to}",
    events.MessageEvent: "{direction} {kind} of {size} bytes, type {message_type!r}",
    events.ErrorEvent: "{category} error ({context}): {error}",
}


def sentence(observation: Observation) -> str:
    """Return what happened as a line for a person: what a peer sent is escaped and cut in it, and no secret shown.

    The loss of a link is one line, with what follows:
    `chat.example.com[3f2a91c4] link 1 lost (1006), next try in 0.06 s`.
    """
    event = observation.event
    match event:
        case RetryScheduled(error=error, delay=delay):
            said = f"{_loss(error)}, next try in {delay:.3g} s"
        case LinkClosed(code=code, reason=reason, detail=detail, duration=duration):
            said = f"link {observation.epoch} closed ({_clean(_how(code, reason, detail))}) after {duration:.3g} s"
        case SessionEnded(error=error) if error is not None:
            said = f"is over: {_loss(error)}"
        case events.Gap(channel=channel, cause=cause):
            said = _clean(f"{_missing(event)} {channel}: {cause}")
        case events.RequestUnresolved(id=id, error=None):
            said = f"request {id} was given up"
        case _ if type(event) in _SENTENCES:
            shown = describe(observation)
            said = _SENTENCES[type(event)].format(**{name: _short(value) for name, value in shown.items()})
        case _:
            shown = describe(observation)
            said = " ".join([type(event).__name__, *(f"{name}={shown[name]}" for name in _fields_of(event))])
    return f"{observation.session} {said}"


def _loss(error: BaseException) -> str:
    match error:
        case LinkLost(code=code, reason=reason, detail=detail, epoch=epoch):
            return _clean(f"link {epoch} lost ({_how(code, reason, detail)})")
        case _:
            return _clean(f"{type(error).__name__}: {error}")


def _missing(gap: events.Gap) -> str:
    match gap.outcome, gap.lost:
        case "resumed", _:
            return "nothing is missing in"
        case "unknown", _:
            return "messages may be missing in"
        case _, None:
            return "messages are missing in"
        case _, lost:
            return f"{lost} messages are missing in"


def _how(code: int, reason: str, detail: str) -> str:
    said = f"{code} {reason}" if reason else f"{code}"
    return f"{said}: {detail}" if detail else said


def _clean(text: str) -> str:
    return printable(redacted(text))


def _short(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else "an unknown number" if value is None else value


@attrs.define(eq=False)
class LoggingHandler(Strategy):
    """The default: the standard library's logging, under the name `trio_nova`.

    What costs service at WARNING, what happens to the connection at INFO, what happens all the time at
    DEBUG, messages without their content. What a peer sent is escaped and cut before it gets there.

    What a peer can cause with every message it sends, errors and drops, is sampled: of one kind at most
    `MAX_A_SECOND` are logged, and then their number.
    """

    logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = _logger
    format: Literal["plain", "json"] = attrs.field(default="plain", validator=one_of("plain", "json"))
    _second_began: float = attrs.field(default=-math.inf, init=False, repr=False, on_setattr=attrs.setters.NO_OP)
    _in_this_second: Counter[tuple[str, str, str]] = attrs.field(factory=Counter, init=False, repr=False)

    def log_connection_event(self, observation: Observation) -> None:
        """Log what happened to the session or its link."""
        self._log(observation)

    def log_message_event(self, observation: Observation) -> None:
        """Log that a message was sent or received; only called where `wants_messages` says so."""
        self._log(observation)

    def log_error_event(self, observation: Observation) -> None:
        """Log that something went wrong."""
        self._log(observation)

    def wants_messages(self) -> bool:
        """Return whether message events are worth making; asked for every batch of them."""
        return self.logger.isEnabledFor(logging.DEBUG)

    def _log(self, observation: Observation) -> None:
        event = observation.event
        # First, as what is not logged itself may be the last event of all.
        if not self._second_began <= observation.at < self._second_began + 1.0 or isinstance(event, SessionEnded):
            if self._in_this_second:
                self._tell_what_was_left_out()
            self._second_began = observation.at
        level = level_of(event)
        if not self.logger.isEnabledFor(level):
            return
        if (kind := _kind_of(observation)) is not None:
            self._in_this_second[kind] += 1
            if self._in_this_second[kind] > MAX_A_SECOND:
                return
        if self.format == "json":
            self._log_json(level, describe(observation))
        else:
            self.logger.log(level, "%s", sentence(observation))

    def _tell_what_was_left_out(self) -> None:
        counted, self._in_this_second = self._in_this_second, Counter()
        for (session, name, kind), count in counted.items():
            left_out = count - MAX_A_SECOND
            if left_out <= 0:
                continue
            if self.format == "json":
                fields = {"event": name, "session": session, "kind": kind, "left_out": left_out}
                self._log_json(logging.WARNING, fields)
            else:
                self.logger.warning("%s %s (%s): %d more in that second", session, name, kind, left_out)

    def _log_json(self, level: int, fields: Mapping[str, object]) -> None:
        self.logger.log(level, "%s", msgspec.json.encode(fields).decode())


def _kind_of(observation: Observation) -> tuple[str, str, str] | None:
    """Return what a record is counted as; None where it is logged however often it comes."""
    match observation.event:
        case ErrorEvent(error=error):
            return observation.session, "ErrorEvent", type(error).__name__
        case Dropped(where=where):
            return observation.session, "Dropped", _clean(where)
        case _:
            return None


def _fields_of(event: Event) -> list[str]:
    return [field.name for field in attrs.fields(type(event)) if field.repr]


def describe(observation: Observation) -> dict[str, object]:
    """Return what `describe_event` does, with where and when it happened."""
    name, *fields = describe_event(observation.event).items()
    where: dict[str, object] = {
        "session": observation.session,
        "epoch": observation.epoch,
        "at": round(observation.at, 6),
        "wall": round(observation.wall, 6),
    }
    return dict([name, *where.items(), *fields])


def describe_event(event: Event) -> dict[str, object]:
    """Return the name of an event's class, as `event`, and its fields, fit for a log.

    The content of messages is left out, secrets are masked, and what a peer sent is escaped and cut.
    """
    fields: dict[str, object] = {"event": type(event).__name__}
    for name in _fields_of(event):
        value = getattr(event, name)
        match value:
            case float():
                fields[name] = round(value, 6)
            case bool() | int() | None:
                fields[name] = value
            case BaseException():
                fields[name] = _clean(f"{type(value).__name__}: {value}")
            case _:
                fields[name] = _clean(str(value))
    return fields
