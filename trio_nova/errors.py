"""Every exception that can leave trio_nova.

::

    NovaError
    ├── ConfigError              an option is wrong; also a ValueError
    ├── ConnectFailed            no link came up
    │   ├── ConnectTimeout       the whole attempt took longer than connect_timeout
    │   ├── CircuitOpen          not dialled: the circuit breaker is open
    │   ├── TlsFailed            the peer's certificate or TLS version was refused
    │   ├── HandshakeInvalid     what answered does not speak WebSocket
    │   └── HandshakeRejected    the server answered with another HTTP status than 101
    │       └── RedirectRefused  that was a redirect, and not one to follow
    ├── LinkLost                 a link that was up is gone
    ├── AuthFailed               the service refused the credentials
    ├── SessionOver              the session has ended, or gave up
    ├── NotSent                  nothing left this machine: safe to send again
    ├── OutcomeUnknown           it may have left: only the service knows
    ├── Expired                  it waited longer than it was allowed to, and was not sent
    ├── RequestFailed            the service answered a request with an error
    ├── SubscriptionRejected     the service refused a subscription
    ├── Lagged                   a consumer was too slow for a feed that may not drop
    ├── MessageTooBig            a message exceeds a size limit
    ├── BadMessage               a message could not be encoded, decoded or validated
    └── ReceiverMoved            the receive side was handed to another task

Nothing else leaves but what Trio itself raises (`trio.Cancelled`, `trio.WouldBlock`) and what the
user's own code raised. Each carries the `phase` it happened in, the advice whether trying again can
help (`retry`), and its cause. None holds a secret.
"""

from __future__ import annotations

import copyreg
import enum
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

__all__ = [
    "AuthFailed",
    "BadMessage",
    "CircuitOpen",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimeout",
    "Expired",
    "HandshakeInvalid",
    "HandshakeRejected",
    "Lagged",
    "LinkLost",
    "MessageTooBig",
    "NotSent",
    "NovaError",
    "OutcomeUnknown",
    "Phase",
    "ReceiverMoved",
    "RedirectRefused",
    "RequestFailed",
    "RetryAdvice",
    "SessionOver",
    "SubscriptionRejected",
    "TlsFailed",
    "explain",
    "printable",
]

Phase: TypeAlias = Literal[
    "config", "turn", "dns", "tcp", "proxy", "tls", "http", "connect", "auth", "restore", "ready", "closing", "closed"
]


class RetryAdvice(enum.StrEnum):
    """Whether doing the same again can help; compares equal to its plain string."""

    NOW = "now"
    BACKOFF = "backoff"
    AFTER = "after"
    """Not before `NovaError.retry_after` seconds have passed."""
    NEVER = "never"


SHOWN = 200
"""Characters of what a peer said that are shown at once, in an error or a log."""


def printable(text: str | bytes, limit: int = SHOWN) -> str:
    """Return what a peer sent, fit for a log: control and bidi characters escaped, cut at `limit`.

    It knows no secrets: what a session shows of a peer's goes through its `Redactor`, first. An error that quotes
    a peer keeps what it quotes in a field, and makes its message by `NovaError.words`.
    """
    if isinstance(text, bytes):
        text = text[: limit * 4 + 1].decode("utf-8", "backslashreplace")
    cut = text[:limit]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return shown if len(text) <= limit else shown + "…"


class NovaError(Exception):
    """The root of everything trio_nova raises."""

    phase: Phase | None = None
    """Where in the life of a session it happened."""
    retry: RetryAdvice = RetryAdvice.NEVER
    """Whether trying the same again can help."""
    retry_after: float | None = None
    """Seconds the peer asked us to wait, if it did."""
    session: str = ""
    """The name of the session that it happened in; "" where that is not known."""
    hint: str = ""
    """What the reader of a traceback can do about it: the last line of `explain`."""

    def __init__(
        self,
        message: str = "",
        *,
        phase: Phase | None = None,
        retry: RetryAdvice | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        if phase is not None:
            self.phase = phase
        if retry is not None:
            self.retry = retry
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def __notes__(self) -> list[str]:
        """What `explain` adds to the message, for the traceback; and what `add_note` adds.

        Made when it is first looked at: phase and hint may be set after the error was made.
        """
        notes: list[str] = self.__dict__.setdefault("__notes__", [])
        if not notes:
            notes.append("\n".join(_advice(self)))
        return notes

    @__notes__.setter
    def __notes__(self, notes: list[str]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["__notes__"] = notes

    def words(self) -> str | None:
        """Return the message, made anew from the fields; None where it quotes none of them.

        Asked again once the fields have been rid of secrets: what was cut from a field before that could show
        the beginning of one.
        """
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled without the initializer: those of most kinds take other things than `args`.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(NovaError, ValueError):
    """An option is wrong. Raised before any I/O; `field` names the option."""

    phase = "config"
    hint = "Correct the option that the message names."

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ConnectFailed(NovaError):
    """No link came up. `phase` says how far the attempt got: turn, dns, tcp, proxy, tls or http."""

    retry = RetryAdvice.BACKOFF
    hint = "Check that the address is right and the service is reachable."


class ConnectTimeout(ConnectFailed):
    """The attempt took longer than `connect_timeout`: from what is asked before it to the upgrade.

    In phase "turn" it had not begun: other dials to the same address, which the message names, stood in its way.
    """

    hint = "The peer is slow or silent. Raise connect_timeout if it is known to be slow."

    def __init__(self, message: str = "", *, phase: Phase) -> None:
        super().__init__(message or f"no connection in time; got as far as {phase!r}", phase=phase)


class CircuitOpen(ConnectFailed):
    """Nobody dials this origin for now, as too much has failed there: see `CircuitBreaker`.

    `retry_after` says for how many seconds. It counts as no attempt, as none was made.
    """

    phase = "turn"
    retry = RetryAdvice.AFTER
    hint = "Wait as long as it says. What failed is told by the errors before it, and by CircuitOpened."


class TlsFailed(ConnectFailed):
    """TLS could not vouch for the peer.

    `reason` is "expired", "hostname", "untrusted", "pin", "client-certificate" or "protocol". A
    handshake that was merely cut off is a plain `ConnectFailed`, which is worth another attempt.
    """

    phase: Phase | None = "tls"
    retry = RetryAdvice.NEVER
    security = True
    hint = "Do not turn verification off: fix the certificate, or trust its authority in ssl_context."

    def __init__(self, message: str, *, reason: str, retry: RetryAdvice | None = None) -> None:
        super().__init__(message, retry=retry)
        self.reason = reason


class HandshakeInvalid(ConnectFailed):
    """The answer to the upgrade breaks the rules of RFC 6455 section 4.1 or of HTTP; `rule` names which.

    With rule "extension" it is a WebSocket server that answers, but one that will break this rule each time.
    """

    phase = "http"
    hint = "What answers at this address is not a WebSocket server, or something on the way rewrites it."

    def __init__(self, message: str, *, rule: str, said: str | bytes = b"") -> None:
        super().__init__()
        self.rule = rule
        self.problem = message
        self.said = said[:4096]
        """What broke the rule: of the peer's, as it came, where that is worth a look."""
        self.args = (self.words(),)
        if rule == "extension":
            self.retry = RetryAdvice.NEVER
            self.hint = "The server breaks the rules of extensions: tell who runs it, or try without compression."

    def words(self) -> str:
        return f"{self.problem}: {printable(self.said, 40)!r}" if self.said else self.problem


class HandshakeRejected(ConnectFailed):
    """The server answered the upgrade with an HTTP status of its own."""

    phase = "http"
    hint = "401 and 403: check credentials. 404: check the path. 429 and 503: the service asks for patience."

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        retry_after: float | None = None,
        *,
        retry: RetryAdvice | None = None,
    ) -> None:
        super().__init__(retry=retry)
        self.status = status
        self.headers = tuple(headers)
        self.body = body
        """At most the first 4,096 bytes of the response's body."""
        self.retry_after = retry_after
        self.args = (self.words(),)

    def words(self) -> str:
        excerpt = f": {printable(self.body)}" if self.body else ""
        return f"server rejected the upgrade with status {self.status}{excerpt}"


class RedirectRefused(HandshakeRejected):
    """The server redirected the upgrade to where it must not follow; `why` says what speaks against it."""

    retry = RetryAdvice.NEVER
    security = True
    hint = "Connect to the new address yourself, or vouch for its origin with redirect_origins."

    def __init__(self, rejection: HandshakeRejected, why: str) -> None:
        self.why = why
        super().__init__(rejection.status, rejection.headers, rejection.body, rejection.retry_after)

    def words(self) -> str:
        return f"the server redirected the upgrade with status {self.status}, which was refused: {self.why}"


class LinkLost(NovaError):
    """A link that was up is gone.

    `code` and `reason` are those of the close frame (RFC 6455 section 7.4): 1006 where none was
    received, else the peer's, or ours where we closed it. `remote` tells whose it was: True for the
    peer's close frame, False for ours, None where the link ended without one.
    """

    phase = "ready"
    retry = RetryAdvice.BACKOFF
    hint = (
        "A session reconnects by itself, and reports what was lost with the link to whoever waited for it. "
        "Where this error ended yours, open another, or raise max_attempts."
    )

    def __init__(
        self,
        code: int = 1006,
        reason: str = "",
        epoch: int = 0,
        *,
        detail: str = "",
        remote: bool | None = None,
    ) -> None:
        super().__init__()
        self.code = code
        self.reason = reason
        self.epoch = epoch
        self.detail = detail
        self.remote = remote
        self.args = (self.words(),)

    def words(self) -> str:
        said = f" {printable(self.reason)!r}" if self.reason else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"link {self.epoch} lost, code {self.code}{said}{detail}"


class AuthFailed(NovaError):
    """The service refused the credentials."""

    phase = "auth"
    hint = "Check the credentials; the service's own words are in the message."


class SessionOver(NovaError):
    """The session has ended: it was closed, or it gave up after `attempts`, the `last` being its cause."""

    phase = "closed"
    hint = "Open a new connection. If the session gave up, raise max_attempts to let it try longer."

    def __init__(
        self, message: str = "the session is over", *, attempts: int = 0, last: Exception | None = None
    ) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.last = last


class NotSent(NovaError):
    """Nothing of the message left this machine."""

    phase = "ready"
    retry = RetryAdvice.BACKOFF
    hint = "It is safe to send it again."


class OutcomeUnknown(NovaError):
    """The message may have arrived: the link was lost while it was being written, or its answer cannot be read.

    The latter is so where reading stands still: `where` is then what nobody takes from, "inbox" or the channel of
    a feed, and `waiting` how many messages wait there.
    """

    phase = "ready"
    hint = "Ask the service whether it arrived before you send it again."

    def __init__(self, message: str = "", *, where: str = "", waiting: int = 0) -> None:
        super().__init__(message)
        self.where = where
        self.waiting = waiting


class Expired(NovaError):
    """The message waited longer than it was allowed to and was not sent."""

    phase = "ready"
    retry = RetryAdvice.NOW
    hint = "Nothing left this machine. Send it again if it still matters."


class RequestFailed(NovaError):
    """The service answered a request with an error; `reply` is its answer."""

    phase = "ready"
    hint = "The service received the request and refused it."

    def __init__(
        self,
        message: str = "the service refused the request",
        *,
        reply: object = None,
        retry: RetryAdvice | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry=retry, retry_after=retry_after)
        self.reply = reply


class SubscriptionRejected(NovaError):
    """The service refused a subscription; the others stand."""

    phase = "restore"
    hint = "Check the channel's name and your rights to it."


class Lagged(NovaError):
    """A consumer was too slow for a queue whose policy is to fail rather than to drop."""

    phase = "ready"
    hint = "Consume faster, raise the buffer, or choose an overflow policy that drops."


class MessageTooBig(NovaError):
    """A message exceeds a size limit."""

    phase = "ready"
    hint = "Raise max_message_size if the message is legitimate."


class BadMessage(NovaError):
    """A message could not be encoded, decoded or validated."""

    phase = "ready"
    hint = "The codec or the message handler refused it; the cause says why."


class ReceiverMoved(NovaError):
    """The receive side of this connection was handed to another task."""

    phase = "ready"
    hint = "Receive through the `Receiver` that hand_over() returned."


def explain(exc: BaseException) -> str:
    """Say in a few lines what happened, whether trying again can help, and what to do next."""
    lines = [f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__]
    seen, cause = {exc}, exc.__cause__
    while cause is not None and cause not in seen:
        said = printable(str(cause))
        if not said:
            lines.append(f"  because of {type(cause).__name__}")
        elif said not in lines[-1]:
            lines.append(f"  because of {type(cause).__name__}: {said}")
        seen.add(cause)
        cause = cause.__cause__
    if isinstance(exc, NovaError):
        lines += _advice(exc)
    return "\n".join(lines)


def _advice(exc: NovaError) -> list[str]:
    after = f" {exc.retry_after:g} s" if exc.retry_after is not None else ""
    lines = [f"  phase: {exc.phase}"] if exc.phase is not None else []
    lines.append(f"  retry: {exc.retry}{after}")
    return [*lines, f"  {exc.hint}"] if exc.hint else lines
