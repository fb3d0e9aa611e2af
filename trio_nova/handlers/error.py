"""What to do about errors: the single source of reconnection policy."""

from __future__ import annotations

import logging

import attrs

from trio_nova.core import Strategy, number
from trio_nova.core.verdict import categorize
from trio_nova.errors import printable
from trio_nova.events import Category
from trio_nova.messages import Answered, Retry, Stop
from trio_nova.secrets import redacted

__all__ = ["AlwaysReconnect", "ErrorHandler", "FailFast", "LogAndContinue"]

_logger = logging.getLogger("trio_nova.errors")


@attrs.define(eq=False)
class ErrorHandler(Strategy):
    """The default: what the tables of `trio_nova.core.verdict` and the back-off advise."""

    def handle_error(self, error: Exception, context: str) -> Answered:
        """Answer an error. `context` is "connect", "link", "message" or "reply"."""
        return None

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        """Return whether, and when, to dial again after `attempt` failures in a row."""
        return advice

    def classify_error(self, error: Exception) -> Category:
        """Return the category under which the error is counted."""
        return categorize(error)

    def log_error(self, error: Exception, context: str) -> None:
        """Record an error somewhere of your own; the default leaves it to the logging handler.

        `context` may also be "handler": the error is what another hook raised.
        """


@attrs.define(eq=False)
class AlwaysReconnect(ErrorHandler):
    """Dial again after any error, also where the advice is to stop."""

    delay: float = attrs.field(default=5.0, validator=number())
    """Seconds to wait where the advice was to stop."""

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return advice if isinstance(advice, Retry) else Retry(self.delay)


@attrs.define(eq=False)
class FailFast(ErrorHandler):
    """Never dial again: the first loss ends the session with its error."""

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return Stop(error)


@attrs.define(eq=False)
class LogAndContinue(ErrorHandler):
    """Log every error as a warning, and follow the advice."""

    def log_error(self, error: Exception, context: str) -> None:
        _logger.warning("%s: %s: %s", context, type(error).__name__, printable(redacted(str(error))))
