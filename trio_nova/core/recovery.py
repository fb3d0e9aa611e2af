"""What to do after a dial failed or a link was lost."""

from __future__ import annotations

from trio_nova.core.backoff import Backoff, NoBackoff
from trio_nova.core.verdict import IN_GOOD_ORDER, Attempts, Disposition, of_error
from trio_nova.errors import LinkLost, NovaError, SessionOver
from trio_nova.messages import Close, Retry, Stop

__all__ = ["advise", "wait_wished_for"]

UNHURRIED = 1.0
"""Seconds before a dial that a hook wishes for where the back-off itself would not dial again."""


def advise(
    error: Exception,
    attempts: Attempts,
    backoff: Backoff,
    spread: float,
    *,
    may_retry: bool = True,
    once_more: bool = False,
) -> Retry | Stop | Close:
    """Say what follows from `error`, after `Attempts.failed` has counted it.

    Retry where another dial can help; Close where the peer ended the session in good order and we are
    not to dial again; else Stop, with the error that the user is to see.

    `spread` is a uniform draw from [0, 1); `may_retry` is False for a first connect that is to fail fast;
    `once_more` is True for an error which is final by itself, but may be due to what is asked for afresh before each
    dial, or to a service that is being deployed.
    """
    if not may_retry or (of_error(error) is Disposition.FATAL and not once_more):
        return Stop(error)
    if attempts.max_attempts == 0 or isinstance(backoff, NoBackoff):
        in_good_order = isinstance(error, LinkLost) and error.remote and error.code in IN_GOOD_ORDER
        return Close() if in_good_order else Stop(error)
    delay = backoff.delay(attempts.made, spread, attempts.previous)
    if attempts.exhausted or delay is None:
        over = SessionOver(f"gave up after {attempts.made} failures in a row", attempts=attempts.made, last=error)
        over.__cause__ = error
        return Stop(over)
    attempts.drew(delay)
    asked = (error.retry_after or 0.0) if isinstance(error, NovaError) else 0.0
    # The whole crowd was told the same time: come after it, each at a moment of its own. And "in 0
    # seconds", which is what a date in the past says too, is no leave to dial without a pause.
    return Retry(asked + delay)


def wait_wished_for(attempts: Attempts, backoff: Backoff, spread: float) -> float:
    """Say how many seconds to wait before a dial that a hook wishes for, after `Attempts.failed` has counted it.

    It waits as one after a failure would, so that a hook which wishes for another link on every link does
    not dial without a pause. But it never gives up: the wish is explicit.
    """
    delay = backoff.delay(attempts.made, spread, attempts.previous)
    if delay is None:
        return UNHURRIED
    attempts.drew(delay)
    return delay
