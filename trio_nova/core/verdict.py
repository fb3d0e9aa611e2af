"""What follows from a failure: tables of statuses and close codes, and the count of failures in a row."""

from __future__ import annotations

import email.utils
import enum
import ssl
from collections.abc import Mapping
from datetime import UTC
from typing import NamedTuple

import attrs

from trio_nova.core._checks import number
from trio_nova.errors import (
    AuthFailed,
    BadMessage,
    ConnectFailed,
    ConnectTimeout,
    Expired,
    HandshakeInvalid,
    HandshakeRejected,
    LinkLost,
    MessageTooBig,
    NotSent,
    NovaError,
    OutcomeUnknown,
    RetryAdvice,
    SessionOver,
    TlsFailed,
)
from trio_nova.events import Category

__all__ = [
    "CLOSE_CODES",
    "IN_GOOD_ORDER",
    "MAX_RETRY_AFTER",
    "STATUSES",
    "STATUS_CLASSES",
    "Attempts",
    "Disposition",
    "Ruling",
    "categorize",
    "may_pass",
    "of_close_code",
    "of_error",
    "of_status",
    "parse_retry_after",
    "refuses_login",
]


class Disposition(enum.Enum):
    """What a failure asks for."""

    FATAL = "fatal"
    """Give up: the same again would fail the same way."""
    TRANSIENT = "transient"
    """Dial again, after a back-off."""
    REFRESH = "refresh"
    """Dial again, after a back-off, with new credentials."""


class Ruling(NamedTuple):
    """A row of a table: what to do, which category it is, and why."""

    disposition: Disposition
    category: Category
    reason: str


_FATAL, _TRANSIENT, _REFRESH = Disposition.FATAL, Disposition.TRANSIENT, Disposition.REFRESH

STATUSES: Mapping[int, Ruling] = {
    401: Ruling(_FATAL, "authentication", "the server asks for credentials, or refuses those it got"),
    403: Ruling(_FATAL, "authentication", "the credentials do not permit this"),
    404: Ruling(_FATAL, "handshake", "nothing lives at this path"),
    407: Ruling(_FATAL, "authentication", "the proxy asks for credentials, or refuses those it got"),
    408: Ruling(_TRANSIENT, "timeout", "the server waited too long for the request"),
    421: Ruling(_TRANSIENT, "handshake", "a server was reached that does not answer for this host: another may"),
    425: Ruling(_TRANSIENT, "handshake", "the request came in early data, which the next will not"),
    429: Ruling(_TRANSIENT, "rate_limit", "too many requests: come back later"),
    504: Ruling(_TRANSIENT, "timeout", "a gateway waited too long for the server behind it"),
}
"""Statuses of a refused upgrade (RFC 9110 section 15, RFC 6585, RFC 8470) that differ from their class."""

STATUS_CLASSES: Mapping[int, Ruling] = {
    1: Ruling(_FATAL, "handshake", "an interim response is no answer to the upgrade"),
    2: Ruling(_FATAL, "handshake", "it answers, but does not speak WebSocket"),
    3: Ruling(_FATAL, "handshake", "the redirect is not one to follow"),
    4: Ruling(_FATAL, "handshake", "the server finds fault with the request"),
    5: Ruling(_TRANSIENT, "handshake", "the server, or a gateway before it, is in trouble"),
}
"""Rulings by a status' first digit."""

_NO_STATUS = Ruling(_FATAL, "handshake", "not a status of HTTP")

CLOSE_CODES: Mapping[int, Ruling] = {
    1000: Ruling(_TRANSIENT, "network", "closed in good order, but not by us"),
    1001: Ruling(_TRANSIENT, "network", "the server goes away"),
    1002: Ruling(_TRANSIENT, "protocol", "the server saw a protocol error"),
    1003: Ruling(_TRANSIENT, "protocol", "the server does not take this kind of data"),
    1005: Ruling(_TRANSIENT, "network", "closed in good order, by a close frame that says nothing"),
    1006: Ruling(_TRANSIENT, "network", "lost without a close frame"),
    1007: Ruling(_TRANSIENT, "protocol", "the server saw data that does not fit its type"),
    1008: Ruling(_TRANSIENT, "protocol", "a policy of the server's; which one, only its adapter can know"),
    1009: Ruling(_TRANSIENT, "protocol", "a message was too big"),
    1010: Ruling(_FATAL, "handshake", "an extension was missed that will be missed again"),
    1011: Ruling(_TRANSIENT, "network", "the server met an internal error"),
    1012: Ruling(_TRANSIENT, "network", "the server restarts"),
    1013: Ruling(_TRANSIENT, "network", "the server is overloaded: try again later"),
    1014: Ruling(_TRANSIENT, "network", "a gateway had a bad response from the server behind it"),
    1015: Ruling(_TRANSIENT, "ssl", "TLS failed on a link"),
    3000: Ruling(_REFRESH, "authentication", "unauthorized: the credentials are missing or have expired"),
    3003: Ruling(_FATAL, "authentication", "forbidden: the credentials do not permit this"),
    3008: Ruling(_TRANSIENT, "timeout", "the server waited too long for us"),
}
"""Close codes of RFC 6455 section 7.4.1 and of the IANA registry of WebSocket close codes."""

IN_GOOD_ORDER = frozenset({1000, 1001, 1005})
"""Close codes by which a peer ends a session that is not to dial again: browsers, and more, send a frame with none."""

_UNKNOWN_CODE = Ruling(_TRANSIENT, "unknown", "not a code that all servers agree on; an adapter may know better")


def of_status(status: int) -> Disposition:
    """Say what follows from the HTTP status of a refused upgrade."""
    return _rule_status(status).disposition


def of_close_code(code: int) -> Disposition:
    """Say what follows from the code that a link was closed with. Codes that no table lists are transient."""
    return CLOSE_CODES.get(code, _UNKNOWN_CODE).disposition


def of_error(error: Exception) -> Disposition:
    """Say what follows from `error`: by its status or close code, else by its own advice.

    An exception that is not ours is a bug, here or in the user's code: trying again does not mend it.
    """
    match error:
        case HandshakeRejected():
            return of_status(error.status)
        case LinkLost():
            return of_close_code(error.code)
        case NovaError() if error.retry != RetryAdvice.NEVER:
            return _TRANSIENT
        case _:
            return _FATAL


def refuses_login(code: int) -> bool:
    """Return whether a link that is closed with this code amid the login was closed because of it.

    That is what 1008, 3000, 3003 and the codes of the service's own are for; which of these mean what, only its
    adapter can know.
    """
    return code in (1008, 3000, 3003) or 4000 <= code <= 4999


def may_pass(error: Exception) -> bool:
    """Return whether a dial that failed as no other would mend may yet do so, where the service was there before.

    While a service is deployed, or its gateway restarts, what answers at its address for some seconds knows neither its
    paths nor its users, redirects to a page of excuses, uses extensions as it must not, or speaks no TLS; and so does a
    proxy. A certificate that is refused is another matter: somebody may be in the middle, and you are to hear of that
    at once.
    """
    match error:
        case HandshakeRejected() | HandshakeInvalid():
            return True
        case TlsFailed():
            return error.reason == "protocol"
        case ConnectFailed():
            return error.phase == "proxy"
        case _:
            return False


def _rule_status(status: int) -> Ruling:
    return STATUSES.get(status) or STATUS_CLASSES.get(status // 100, _NO_STATUS)


# --------------------------------------------------------------------------- categories

_CATEGORIES: Mapping[type[BaseException], Category] = {
    ConnectTimeout: "timeout",
    TlsFailed: "ssl",
    HandshakeInvalid: "handshake",
    ConnectFailed: "network",
    AuthFailed: "authentication",
    NotSent: "network",
    OutcomeUnknown: "network",
    Expired: "timeout",
    MessageTooBig: "protocol",
    BadMessage: "protocol",
    TimeoutError: "timeout",
    ssl.SSLError: "ssl",
    OSError: "network",
}
"""By class; the nearest ancestor listed decides."""


def categorize(error: BaseException) -> Category:
    """Name the kind of trouble that `error` is, for handlers, logs and metrics."""
    match error:
        case HandshakeRejected():
            return _rule_status(error.status).category
        case LinkLost():
            return CLOSE_CODES.get(error.code, _UNKNOWN_CODE).category
        case SessionOver(last=Exception() as last):
            return categorize(last)
        case _:
            for kind in type(error).__mro__:
                if kind in _CATEGORIES:
                    return _CATEGORIES[kind]
            return "unknown"


# --------------------------------------------------------------------------- Retry-After

MAX_RETRY_AFTER = 900.0
"""Seconds that a server may ask for; one that asks for more gets this."""

_LONGEST_RETRY_AFTER = 64
"""Characters. The longest date of HTTP has 33; a longer value is junk, and costs no more than its length."""


def parse_retry_after(value: str, wall: float) -> float | None:
    """Read a Retry-After header (RFC 9110 section 10.2.3): seconds from now, at most MAX_RETRY_AFTER; None: junk.

    Args:
        value: the header's value, untrusted: a number of seconds or one of the three date forms of HTTP
            (RFC 9110 section 5.6.7). A date in the past gives 0.
        wall: the time now, in seconds since the epoch of Unix.
    """
    if len(value) > _LONGEST_RETRY_AFTER or not value.isascii():
        return None
    value = value.strip(" \t")
    if value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        date = email.utils.parsedate_to_datetime(value)
        if date.tzinfo is None:  # asctime() names no zone; in HTTP it is always UTC
            date = date.replace(tzinfo=UTC)
        seconds = date.timestamp() - wall
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


# --------------------------------------------------------------------------- counting


@attrs.define
class Attempts:
    """Count the failures in a row.

    A link that came up proves little: a server that accepts and then closes would be dialled without end
    if that were enough to start over. The count starts over only after a session was READY for `min_uptime`.
    """

    max_attempts: float = attrs.field(validator=number(finite=False))
    """Retries after which to give up; 0: none, inf: never give up."""
    min_uptime: float = attrs.field(validator=number(finite=False))
    """Seconds at READY after which a loss is the first failure of a new row."""
    made: int = attrs.field(init=False, default=0)
    """Failures in a row."""
    previous: float = attrs.field(init=False, default=0.0)
    """Seconds of the last delay in this row."""
    _ready_since: float | None = attrs.field(init=False, default=None)

    @property
    def exhausted(self) -> bool:
        """Whether the last failure was one more than there are retries."""
        return self.made > self.max_attempts

    def reconfigure(self, max_attempts: float, min_uptime: float) -> None:
        """Use other options from now on."""
        self.max_attempts, self.min_uptime = max_attempts, min_uptime

    def drew(self, delay: float) -> None:
        """Note the delay that was drawn for the next attempt, in seconds: the one after it may depend on it."""
        self.previous = delay

    def ready(self, now: float) -> None:
        """Note that the session became READY."""
        self._ready_since = now

    def unready(self, now: float) -> None:
        """Note that the session is READY no more, for whatever reason: until it is again, no time counts as uptime."""
        if self._ready_since is not None and now - self._ready_since >= self.min_uptime:
            self.made = 0
            self.previous = 0.0
        self._ready_since = None

    def failed(self, now: float) -> int:
        """Note that a dial failed or a link was lost; return which failure in a row it is, from 1."""
        self.unready(now)
        self.made += 1
        return self.made
