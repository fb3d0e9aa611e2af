"""What to write to the log."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import attrs
import msgspec

from trio_nova.core import one_of
from trio_nova.errors import LinkLost, printable
from trio_nova.messages import (
    AnswerUnmatched,
    AuthUnsuccessful,
    ClockJumped,
    ConnectionEvent,
    ConsumerLagged,
    DataUnclaimed,
    Dropped,
    ErrorEvent,
    Event,
    FeedStale,
    Gap,
    LinkClosed,
    MessageEvent,
    PeerSilent,
    PingSent,
    PongReceived,
    RateConsumed,
    RateLimited,
    RateLimitSlowed,
    RateRejected,
    RequestResolved,
    RequestSent,
    RetryScheduled,
    SessionEnded,
    StateChanged,
    SubscriptionRefused,
)
from trio_nova.secrets import redacted

__all__ = ["LoggingHandler", "describe", "level_of"]

MAX_A_SECOND = 10
"""Records of one kind; the others of that second are only counted."""

# A library leaves it to the application whether anything is shown.
_logger = logging.getLogger("trio_nova")
_logger.addHandler(logging.NullHandler())

_LOUD = (
    AuthUnsuccessful,
    ClockJumped,
    ConsumerLagged,
    DataUnclaimed,
    Dropped,
    FeedStale,
    Gap,
    PeerSilent,
    RateLimitSlowed,
    RateRejected,
    RetryScheduled,
    SubscriptionRefused,
)
_IN_GOOD_ORDER = (1001, 1012)
"""Close codes of a server that goes away or restarts (RFC 6455 section 7.4.1): the retry is warning enough."""
_QUIET = (
    AnswerUnmatched,
    PingSent,
    PongReceived,
    RateConsumed,
    RateLimited,
    RequestResolved,
    RequestSent,
    StateChanged,
)


_LEVELS: Mapping[type[Event], int] = {
    **dict.fromkeys(_LOUD, logging.WARNING),
    **dict.fromkeys(_QUIET, logging.DEBUG),
    MessageEvent: logging.DEBUG,
}


def level_of(event: Event) -> int:
    """Return the level at which an event is logged."""
    match event:
        case LinkClosed():
            return logging.INFO if event.remote is False or event.code in _IN_GOOD_ORDER else logging.WARNING
        case ErrorEvent(error=LinkLost(code=code)) if code in _IN_GOOD_ORDER:
            return logging.INFO
        case SessionEnded():
            return logging.INFO if event.error is None else logging.WARNING
        case ErrorEvent():
            return logging.WARNING
        case _:
            return _LEVELS.get(type(event), logging.INFO)


@attrs.define(eq=False)
class LoggingHandler:
    """The default: the standard library's logging, under the name `trio_nova`.

    What costs service at WARNING, what happens to the connection at INFO, what happens all the time at
    DEBUG, messages without their content. What a peer sent is escaped and cut before it gets there.

    What a peer can cause with every message it sends, errors and drops, is sampled: of one kind at most
    `MAX_A_SECOND` are logged, and then their number.
    """

    logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = _logger
    format: Literal["plain", "json"] = attrs.field(default="plain", validator=one_of("plain", "json"))
    _second_began: float = attrs.field(default=-math.inf, init=False, repr=False, on_setattr=attrs.setters.NO_OP)
    _in_this_second: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False, repr=False)

    def log_connection_event(self, event: ConnectionEvent) -> None:
        """Log what happened to the session or its link."""
        self._log(event)

    def log_message_event(self, event: MessageEvent) -> None:
        """Log that a message was sent or received; only called where `wants_messages` says so."""
        self._log(event)

    def log_error_event(self, event: ErrorEvent) -> None:
        """Log that something went wrong."""
        self._log(event)

    def wants_messages(self) -> bool:
        """Return whether message events are worth making; asked for every batch of them."""
        return self.logger.isEnabledFor(logging.DEBUG)

    def _log(self, event: Event) -> None:
        # First, as what is not logged itself may be the last event of all.
        if not self._second_began <= event.at < self._second_began + 1.0 or isinstance(event, SessionEnded):
            if self._in_this_second:
                self._tell_what_was_left_out()
            self._second_began = event.at
        level = level_of(event)
        if not self.logger.isEnabledFor(level):
            return
        if (kind := _kind_of(event)) is not None:
            self._in_this_second[kind] += 1
            if self._in_this_second[kind] > MAX_A_SECOND:
                return
        self._write(level, describe(event))

    def _tell_what_was_left_out(self) -> None:
        counted, self._in_this_second = self._in_this_second, Counter()
        for (name, kind), count in counted.items():
            if count > MAX_A_SECOND:
                self._write(logging.WARNING, {"event": name, "kind": kind, "left_out": count - MAX_A_SECOND})

    def _write(self, level: int, fields: dict[str, object]) -> None:
        if self.format == "json":
            self.logger.log(level, "%s", msgspec.json.encode(fields).decode())
        else:
            name = fields.pop("event")
            self.logger.log(level, "%s %s", name, " ".join(f"{key}={value}" for key, value in fields.items()))


def _kind_of(event: Event) -> tuple[str, str] | None:
    """Return what a record is counted as; None where it is logged however often it comes."""
    match event:
        case ErrorEvent():
            return "ErrorEvent", type(event.error).__name__
        case Dropped():
            return "Dropped", printable(redacted(event.where))
        case _:
            return None


def describe(event: Event) -> dict[str, object]:
    """Return the event's name and fields, fit for a log: no message content, no secret, peer's text escaped and cut."""
    fields: dict[str, object] = {"event": type(event).__name__}
    for field in attrs.fields(type(event)):
        if not field.repr:
            continue
        value = getattr(event, field.name)
        match value:
            case float():
                fields[field.name] = round(value, 6)
            case bool() | int() | None:
                fields[field.name] = value
            case BaseException():
                fields[field.name] = printable(redacted(f"{type(value).__name__}: {value}"))
            case _:
                fields[field.name] = printable(redacted(str(value)))
    return fields
