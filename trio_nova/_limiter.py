"""The rate limit of a session: what may leave now, and what slows it down."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import trio

from trio_nova._session import Session
from trio_nova.core.limits import LEAST_WAIT, UseMark
from trio_nova.core.outbox import Idle, Outbox, Outgoing, WaitUntil, Write
from trio_nova.core.verdict import MAX_RETRY_AFTER
from trio_nova.errors import ConfigError
from trio_nova.events import RateConsumed, RateHighWater, RateLimited, RateLimitSlowed, RateLowWater, RateRejected
from trio_nova.handlers import RateRequest
from trio_nova.handlers.rate_limit import DEFAULT_WAIT
from trio_nova.messages import Allow, Decision, Queue, Reject

__all__ = ["Limiter"]


@attrs.define(eq=False, repr=False)
class Limiter:
    """Asks the rate limit handler about each frame, on whichever link it leaves."""

    _session: Session
    _consumed: float = attrs.field(default=0.0, init=False)
    """Tokens that were spent on what is about to be written."""
    _mark: UseMark = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._mark = UseMark(tuple(self._session.handlers.rate_limit.limits))

    @property
    def engaged(self) -> bool:
        """Whether the handler must be asked before a frame goes."""
        return self._session.hooks.checks_rate or self._session.handlers.rate_limit.engaged

    def next_step(self, outbox: Outbox, now: float, *, ready: bool) -> Write | WaitUntil | Idle:
        """Say what a link is to write now, and charge it; see `Outbox.next_step`."""
        session, handler = self._session, self._session.handlers.rate_limit
        step = outbox.next_step(now, ready, lambda outgoing: self._admit(outgoing, outbox))
        if isinstance(step, Write):
            consumed, self._consumed = self._consumed, 0.0
            session.tell(RateConsumed(messages=len(step.batch), cost=consumed), outbox.epoch)
            self._look_at_use(now)
        reason = f"{handler.queue_size:g} messages are waiting for the rate limit already"
        for _ in range(outbox.backlog.shed(handler.queue_size, reason)):
            session.tell(RateRejected(reason=reason), outbox.epoch)
        return step

    def _admit(self, outgoing: Outgoing, outbox: Outbox) -> Decision:
        """Ask about a frame that would be written now."""
        session = self._session
        now = trio.current_time()
        request = RateRequest(kind=outgoing.kind, size=outgoing.size, now=now, purpose=outgoing.purpose)
        handler = session.handlers.rate_limit
        consumed = handler.consumed
        try:
            decision: Decision = handler.check_rate_limit(request)
            if not isinstance(decision, Allow | Queue | Reject):
                raise ConfigError(
                    "check_rate_limit", f"answered a {type(decision).__name__}, not Allow, Queue or Reject"
                )
            if isinstance(decision, Queue) and not _is_time(decision.until):
                raise ConfigError(
                    "check_rate_limit",
                    f"answered Queue with a {type(decision.until).__name__}, not a time of Trio's clock",
                )
        except Exception as exc:
            session.handler_failed(exc)
            return Reject("the rate limiter failed")
        match decision:
            case Queue(until):
                decision = Queue(max(until, now + LEAST_WAIT))  # asked again at once, or in a moment, we would spin
            case Reject(reason):
                session.tell(RateRejected(reason=reason), outbox.epoch)
            case Allow():
                self._consumed += handler.consumed - consumed
                if (wait := outbox.held_for(outgoing, now)) > 0.0:
                    session.tell(RateLimited(wait=wait), outbox.epoch)
            case _:
                pass
        return decision

    def count_pongs(self, pings: int, size: int) -> None:
        """Charge the pongs with which a link has answered `pings` of the peer's, of `size` bytes in all."""
        if not self.engaged:
            return
        session, now = self._session, trio.current_time()
        request = RateRequest(kind="", size=size // pings, now=now, purpose="control")
        try:
            for _ in range(pings):
                session.handlers.rate_limit.count_sent(request)
        except Exception as exc:
            session.handler_failed(exc)
        self._look_at_use(now)

    # ----------------------------------------------------------------- the mark

    def _look_at_use(self, now: float) -> None:
        """Tell where the limits are nearly used up, if anybody hears it, and watch until they are not."""
        session, mark = self._session, self._mark
        if mark.is_reached or not mark.limits or not session.hub.hears(RateHighWater):
            return
        try:
            if mark.crossed(now):
                session.tell(RateHighWater(used=mark.used(now)))
                session.start_soon(self._watch_use, "rate")
        except Exception as exc:
            self._give_up_mark(exc)

    async def _watch_use(self) -> None:
        """Wait until the limits are free enough again, and tell."""
        try:
            while self._mark.is_reached:
                await trio.sleep_until(self._mark.eases_at(trio.current_time()))
                now = trio.current_time()
                if self._mark.crossed(now):
                    self._session.tell(RateLowWater(used=self._mark.used(now)))
        except Exception as exc:
            self._give_up_mark(exc)

    def _give_up_mark(self, exc: Exception) -> None:
        """Report that a limit cannot be asked what is left, once, and ask no more."""
        self._mark = UseMark(())
        self._session.handler_failed(exc)

    # ----------------------------------------------------------------- complaints

    def heed(self, complaint: Any) -> None:
        """Slow down where `complaint`, a reply or a refused upgrade, says that we are too fast."""
        session = self._session
        try:
            seconds = session.handlers.rate_limit.feedback(complaint)
        except Exception as exc:
            session.handler_failed(exc)
            return
        if seconds is not None:
            self.slow_down(seconds)

    def slow_down(self, seconds: Any) -> None:
        """Be silent for so many seconds, and slower after that; None: for as long as the handler sees fit."""
        session, now = self._session, trio.current_time()
        handler = session.handlers.rate_limit
        try:
            if seconds is None:
                seconds = DEFAULT_WAIT
            if isinstance(seconds, Decimal):  # as a codec may read it
                seconds = float(seconds)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
                raise ConfigError("feedback", f"answered a {type(seconds).__name__}, not a number of seconds or None")
            until = now + min(max(seconds, 0.0), MAX_RETRY_AFTER)
            handler.slow_down(now, until=until)
            pace = handler.pace(now)
        except Exception as exc:
            session.handler_failed(exc)
            return
        session.tell(RateLimitSlowed(until=until, factor=pace))
        for link in session.links:
            link.writer.wake()


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not a NaN
