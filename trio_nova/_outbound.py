"""The send side of a session: from a call or a hook's reply to the writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, NoReturn

import attrs
import outcome
import trio

from trio_nova._session import Session
from trio_nova._signal import Bell, Signal
from trio_nova.core.limits import LEAST_WAIT
from trio_nova.core.outbox import Buffer, Idle, Lane, Outbox, Outgoing, Purpose, WaitUntil, Write
from trio_nova.core.verdict import MAX_RETRY_AFTER
from trio_nova.errors import BadMessage, ConfigError, LinkLost, NotSent, NovaError
from trio_nova.events import Dropped, MessageEvent, RateConsumed, RateLimited, RateLimitSlowed, RateRejected
from trio_nova.handlers import MessageHandler, RateLimitHandler, RateRequest
from trio_nova.links import Link
from trio_nova.messages import Allow, Decision, Frame, Ping, Pong, Queue, Reject, frame_kind, frame_size

__all__ = ["Outbound"]

_CONTROL_FRAMES = (Ping, Pong)
_APPLICATION = Lane.APPLICATION  # looking a member up in its enumeration takes a while
_FULL_CHECKPOINT_EVERY = 64
"""Messages that are sent without waiting, one after another."""
MAX_REPLIES = 1024
"""Replies of hooks that may wait to be written; what exceeds them is refused, and reported."""
REPLIES_IN_HAND = 64
"""Unwritten replies with which the dispatcher stops handling messages, so that the peer feels it."""


def check_payload(payload: str | bytes) -> str | bytes:
    """Return what a frame can carry; BadMessage where it is neither bytes nor a text that UTF-8 has a form for."""
    if isinstance(payload, str):
        if not payload.isascii():
            try:
                payload.encode()
            except UnicodeEncodeError as exc:
                raise BadMessage("a text with half a surrogate pair cannot be sent") from exc
    elif not isinstance(payload, bytes):
        raise BadMessage(f"the codec made a {type(payload).__name__}, neither str nor bytes")
    return payload


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not a NaN


WhenSettled = Callable[[Outgoing, NovaError | None], None]
"""Told once what became of a frame: None for written, else why it was not, or is not known to be."""


@attrs.define(eq=False, repr=False)
class Outbound:
    """Accepts messages, and knows what became of each."""

    _session: Session
    outbox: Outbox = attrs.field(factory=Outbox, init=False)
    changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the writer."""
    link: Link | None = attrs.field(default=None, init=False)
    """The link that is up."""
    start_writer: Callable[[], None] | None = attrs.field(default=None, init=False)
    """Starts the writer of the link that is up; None where there is no link, or its writer has begun."""
    _turns: int = attrs.field(default=_FULL_CHECKPOINT_EVERY, init=False)
    """How many messages may be sent before other tasks get to run."""
    _expiry_changed: Signal = attrs.field(factory=Signal, init=False)
    _expires: bool = attrs.field(default=False, init=False)
    """Whether a task settles what waits too long: there is one from the first message that may."""
    draining: bool = attrs.field(default=False, init=False)
    _replies: int = attrs.field(default=0, init=False)
    _unsent_replies: int = attrs.field(default=0, init=False)
    """Those that were still waiting when the session ended."""
    _excuses: bool = attrs.field(default=False, init=False)
    """Whether what is replied just now answers the failure of a reply."""
    settled: Bell = attrs.field(factory=Bell, init=False)
    """Rung when a message, a question or a subscription is settled, for those who want fewer to be on their way."""
    changes_messages: bool = attrs.field(init=False)
    """Whether `encode_message` is overridden."""
    _type_matters: bool = attrs.field(init=False)
    _own_check: bool = attrs.field(init=False)
    _consumed: float = attrs.field(default=0.0, init=False)
    """Tokens that were spent on what is about to be written."""

    def __attrs_post_init__(self) -> None:
        self._session.send_replies = self.reply
        handlers = self._session.handlers
        self.changes_messages = type(handlers.message).encode_message is not MessageHandler.encode_message
        limiter = handlers.rate_limit
        self._own_check = type(limiter).check_rate_limit is not RateLimitHandler.check_rate_limit
        self._type_matters = self._own_check or bool(limiter.costs)

    # ----------------------------------------------------------------- in

    def encode(self, message: Any) -> str | bytes:
        """Return the payload of `message`; BadMessage where there is none."""
        try:
            if self.changes_messages:
                message = self._session.handlers.message.encode_message(message)
            return check_payload(self._session.config.codec.encode(message))
        except NovaError:
            raise
        except Exception as exc:
            raise BadMessage(f"the message could not be encoded: {exc}") from exc

    def kind_of(self, message: Any) -> str:
        """Return the message's type, where a rate limit depends on it or somebody listens to messages."""
        if not self._type_matters and not self._session.hub.hears(MessageEvent):
            return ""
        return self._session.type_of(message)

    async def send(
        self,
        frame: Frame,
        kind: str = "",
        priority: int = 0,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "message",
    ) -> None:
        """Hand `frame` over and wait until the operating system has it.

        Cancelling withdraws it, unless it is being written.

        Raises:
            NotSent, Expired, OutcomeUnknown: as their names say.
            SessionOver: the session has ended.
        """
        if not self._turns:
            self._turns = _FULL_CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        begun = None
        task = trio.lowlevel.current_task()
        if lane is _APPLICATION and self._may_write and not isinstance(frame, _CONTROL_FRAMES):
            self._turns -= 1
            await trio.lowlevel.checkpoint_if_cancelled()
            begun = self._send_nowait(frame, kind)
            if begun is None:
                return

        def settled(outgoing: Outgoing, error: NovaError | None) -> None:
            if error is None:
                trio.lowlevel.reschedule(task)
            else:
                trio.lowlevel.reschedule(task, outcome.Error(error))

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self.withdraw(outgoing)
            return trio.lowlevel.Abort.SUCCEEDED

        outgoing = self._outgoing(frame, lane, kind, priority, purpose, trio.current_time())
        outgoing.when_settled = settled
        try:
            if begun:
                self.outbox.begin(outgoing)
                self.work()
            else:
                self._put(outgoing)
        except NovaError:
            await trio.lowlevel.checkpoint()
            raise
        await trio.lowlevel.wait_task_rescheduled(abort)

    @property
    def _may_write(self) -> bool:
        """Whether the writer would write a message at once, and that alone: then it need not be woken for it."""
        session = self._session
        return (
            session.ready and session.goodbye is None and not self.draining and self._nothing_waits and not self.limited
        )

    @property
    def _nothing_waits(self) -> bool:
        """Whether a link is up, and its writer, if it has begun, would write at once what it is given."""
        return self.link is not None and (self.changed.is_awaited or self.start_writer is not None)

    def _send_nowait(self, frame: Frame, kind: str) -> bool | None:
        """Write a message here and now: None where it has left, else whether a part of it has."""
        assert self.link is not None
        sent = self.link.send_nowait(frame)
        if sent == "whole":
            size = frame_size(frame)
            if self._session.hub.hears(MessageEvent):
                self._tell_sent(frame, kind, size, 0.0)
            self._count(1, size)
            return None
        return sent == "begun"

    def post(
        self,
        frame: Frame,
        when_settled: WhenSettled,
        kind: str = "",
        priority: int = 0,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "message",
        *,
        is_new: bool = True,
    ) -> Outgoing:
        """Accept `frame`, and tell `when_settled` once what became of it; raises like `send` where it is refused.

        What is not new, but a part of what is under way, is accepted while draining too.
        """
        outgoing = self._outgoing(frame, lane, kind, priority, purpose, trio.current_time())
        outgoing.when_settled = when_settled
        if lane is not _APPLICATION or not self._may_write or not self._write_now(outgoing):
            self._put(outgoing, is_new=is_new)
        return outgoing

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a frame back, and tell nobody of it any more; False where it has left, or is leaving."""
        outgoing.when_settled = None
        withdrawn = self.outbox.withdraw(outgoing)
        self.settled.ring()
        return withdrawn

    def reply(self, messages: Sequence[Any], lane: Lane) -> None:
        """Send what a hook answered. Nobody waits for it: one that is not written is reported as an error."""
        for message in messages:
            try:
                if self._replies >= MAX_REPLIES:
                    raise NotSent(f"{MAX_REPLIES} replies of hooks are waiting already")
                frame = message if isinstance(message, Ping | Pong) else self.encode(message)
                purpose: Purpose = "setup" if lane is Lane.SETUP else "message"
                now = trio.current_time()
                outgoing = self._outgoing(frame, lane, self.kind_of(message), 0, purpose, now)
                self._put(outgoing)
            except NovaError as error:
                self._reply_failed(error, self._excuses)
            else:
                self._replies += 1
                outgoing.when_settled = partial(self._reply_settled, is_excuse=self._excuses)

    def control(self, frame: Frame, kind: str = "", when_settled: WhenSettled | None = None) -> None:
        """Send ahead of any queue: heartbeats and what answers them."""
        outgoing = self._outgoing(frame, Lane.CONTROL, kind, 0, "control", trio.current_time())
        outgoing.when_settled = when_settled
        if not self._nothing_waits or self.limited or not self._write_now(outgoing):
            self.outbox.put(outgoing)
            self.work()

    def _write_now(self, outgoing: Outgoing) -> bool:
        """Write a message here and now, or begin to; False where nothing of it has left."""
        assert self.link is not None
        match self.link.send_nowait(outgoing.frame):
            case "whole":
                self._count_written((outgoing,))
                outgoing.settle()
                return True
            case "begun":
                self.outbox.begin(outgoing)
                self.work()
                return True
            case _:
                return False

    def work(self) -> None:
        """Let the writer look at what there is to write; it begins with the first that must wait."""
        if self.start_writer is None:
            self.changed.set()
        elif not self.outbox.idle:
            start, self.start_writer = self.start_writer, None
            start()

    def _outgoing(self, frame: Frame, lane: Lane, kind: str, priority: int, purpose: Purpose, now: float) -> Outgoing:
        return Outgoing(
            frame=frame,
            lane=lane,
            size=frame_size(frame),
            queued_at=now,
            kind=kind,
            priority=priority,
            purpose="control" if isinstance(frame, _CONTROL_FRAMES) else purpose,
        )

    def _put(self, outgoing: Outgoing, *, is_new: bool = True) -> None:
        session = self._session
        ready = session.ready
        if not ready or session.goodbye is not None:
            session.check_open()
        if outgoing.lane is _APPLICATION:
            if is_new:
                self.check_not_draining()
            if not ready:
                outgoing.patient = True
                match session.config.when_down:
                    case "fail":
                        raise NotSent("there is no ready link") from session.last_error
                    case Buffer() as bounds:
                        outgoing.expires_at = outgoing.queued_at + bounds.ttl
                        self.outbox.put(outgoing, bounds)
                        self.work()
                        self._watch_expiry()
                        return
                    case _:
                        pass
        self.outbox.put(outgoing)
        self.work()

    def check_not_draining(self) -> None:
        """Raise NotSent where no new work is taken."""
        if self.draining:
            raise NotSent("the connection is being drained")

    def _reply_settled(self, outgoing: Outgoing, error: NovaError | None, *, is_excuse: bool) -> None:
        self._replies -= 1
        self.settled.ring()
        if error is not None and self._session.is_over:
            self._unsent_replies += 1
        elif error is not None:
            self._reply_failed(error, is_excuse)

    def _reply_failed(self, error: NovaError, is_excuse: bool) -> None:
        session = self._session
        if is_excuse or session.is_closing:
            # What answers the failure of a reply may fail in the same way: asked about that too, a hook
            # that always answers would be asked without end.
            session.note(error, "reply")
            return
        self._excuses = True
        try:
            session.perform(session.report(error, "reply"), session.epoch)
        finally:
            self._excuses = False

    # ----------------------------------------------------------------- out

    def admit(self, outgoing: Outgoing) -> Decision:
        """Ask the rate limiter about a frame that would be written now."""
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
                session.tell(RateRejected(reason=reason))
            case Allow():
                self._consumed += handler.consumed - consumed
                if (wait := self.outbox.held_for(outgoing, now)) > 0.0:
                    session.tell(RateLimited(wait=wait))
            case _:
                pass
        return decision

    @property
    def limited(self) -> bool:
        """Whether the rate limiter must be asked before a frame goes."""
        return self._own_check or self._session.handlers.rate_limit.engaged

    def next_step(self) -> Write | WaitUntil | Idle:
        """Say what the writer is to do now, on a link that is up; see `Outbox.next_step`."""
        session, now = self._session, trio.current_time()
        if not self.limited:
            return self.outbox.next_step(now, session.ready)
        step = self.outbox.next_step(now, session.ready, self.admit)
        if isinstance(step, Write):
            consumed, self._consumed = self._consumed, 0.0
            session.tell(RateConsumed(messages=len(step.batch), cost=consumed))
        reason = f"{session.handlers.rate_limit.queue_size:g} messages are waiting for the rate limit already"
        for _ in range(self.outbox.shed(session.handlers.rate_limit.queue_size, reason)):
            session.tell(RateRejected(reason=reason))
        return step

    def count_pongs(self, pings: int, size: int) -> None:
        """Charge the pongs with which the link has answered `pings` of the peer's, of `size` bytes in all."""
        if not self.limited:
            return
        session, now = self._session, trio.current_time()
        request = RateRequest(kind="", size=size // pings, now=now, purpose="control")
        try:
            for _ in range(pings):
                session.handlers.rate_limit.count_sent(request)
        except Exception as exc:
            session.handler_failed(exc)

    def heed(self, complaint: Any) -> None:
        """Slow down where `complaint`, a reply or a refused upgrade, says that we are too fast."""
        session, now = self._session, trio.current_time()
        handler = session.handlers.rate_limit
        try:
            seconds = handler.feedback(complaint)
            if seconds is None:
                return
            if isinstance(seconds, Decimal):  # as a codec may read it
                seconds = float(seconds)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
                raise ConfigError("feedback", f"answered a {type(seconds).__name__}, not a number of seconds or None")
            until = now + min(max(seconds, 0.0), MAX_RETRY_AFTER)
            handler.slow_down(now, until=until)
            pace = handler.pace(now)
        except Exception as exc:
            session.handler_failed(exc)
        else:
            session.tell(RateLimitSlowed(until=until, factor=pace))
            self.work()

    def written(self, batch: Sequence[Outgoing]) -> None:
        """Settle a batch that the operating system has taken, and count it."""
        self._count_written(batch)
        self.outbox.written()
        self.settled.ring()

    def _count_written(self, batch: Sequence[Outgoing]) -> None:
        session = self._session
        messages = size = 0
        now = trio.current_time()
        wants_events = session.hub.hears(MessageEvent)
        for outgoing in batch:
            if isinstance(outgoing.frame, _CONTROL_FRAMES):
                session.counts.pings_sent += isinstance(outgoing.frame, Ping)
            else:
                messages += 1
                size += outgoing.size
                if wants_events and outgoing.lane is not Lane.CONTROL:
                    self._tell_sent(outgoing.frame, outgoing.kind, outgoing.size, now - outgoing.queued_at)
        if messages:
            self._count(messages, size)

    def _count(self, messages: int, size: int) -> None:
        session = self._session
        session.counts.messages_sent += messages
        session.counts.bytes_sent += size
        session.hub.count("sent", messages, size)

    def _tell_sent(self, frame: Frame, kind: str, size: int, latency: float) -> None:
        self._session.tell(
            MessageEvent(direction="sent", kind=frame_kind(frame), message_type=kind, size=size, latency=latency)
        )

    def link_lost(self, lost: LinkLost) -> None:
        """Settle what was under way on the link that is gone."""
        self.outbox.link_lost(lost)
        if self._session.config.when_down == "fail":
            self.outbox.refuse_waiting("the link was lost before it was written", lost)
        elif isinstance(bounds := self._session.config.when_down, Buffer):
            self.outbox.expire_waiting(trio.current_time() + bounds.ttl)
            self._watch_expiry()
        self.settled.ring()

    def end(self) -> None:
        """Settle all that is left: nothing of it was sent."""
        self.outbox.link_lost(None)
        self.outbox.refuse_waiting("the session ended before it was written", self._session.last_error)
        if self._unsent_replies:
            self._session.tell(Dropped(count=self._unsent_replies, where="replies"))
        self.settled.ring()

    def _watch_expiry(self) -> None:
        if not self._expires:
            self._expires = True
            self._session.start_soon(self._expire, name=self._session.task_name("expiry"))
        self._expiry_changed.set()

    async def _expire(self) -> NoReturn:
        """Settle what waits too long, whether or not there is a link."""
        while True:
            await self._expiry_changed.wait(self.outbox.next_expiry())
            self.outbox.expire(trio.current_time())
            self.settled.ring()

    async def wait_replies_written(self) -> None:
        """Wait until hooks have few unwritten replies: the dispatcher's backpressure."""
        while self._replies >= REPLIES_IN_HAND and not self._session.is_over:
            await self.settled.wait()
