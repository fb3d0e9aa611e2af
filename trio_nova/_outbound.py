"""The send side of a session: what the application wants to say, until a link writes it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import attrs
import outcome
import trio

from trio_nova._limiter import Limiter
from trio_nova._session import Session
from trio_nova._signal import Bell, Signal
from trio_nova.codecs import as_plain, weigh_message
from trio_nova.core.outbox import Backlog, Buffer, Idle, Lane, Outbox, Outgoing, Purpose, Status, WaitUntil, Write
from trio_nova.errors import BadMessage, LinkLost, NotSent, NovaError
from trio_nova.events import MessageEvent
from trio_nova.handlers.correlation import count_ids
from trio_nova.messages import Frame, Ping, Pong, frame_kind, frame_size

if TYPE_CHECKING:
    from trio_nova._link import LiveLink

__all__ = ["Outbound", "WhenSettled", "check_payload", "encode_with", "wait_settled"]

E = TypeVar("E")

_CONTROL_FRAMES = (Ping, Pong)
_FULL_CHECKPOINT_EVERY = 64
"""Messages that are sent without waiting, one after another."""

WhenSettled = Callable[[Outgoing, NovaError | None], None]
"""Told once what became of a frame: None for written, else why it was not, or is not known to be."""


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


def encode_with(encode: Callable[[Any], E], message: Any) -> E:
    """Return what an encoder makes of a message; BadMessage where that fails."""
    try:
        return encode(message)
    except NovaError:
        raise
    except Exception as exc:
        raise BadMessage(f"the message could not be encoded: {exc}") from exc


def _make(message: Any, link: Any) -> Sequence[Frame]:
    frames: Sequence[Frame] = link.encode(message)
    return frames


async def wait_settled(outgoing: Outgoing, put: Callable[[Outgoing], None], withdrawn: Bell) -> None:
    """Hand a frame over with `put`, and wait until it is settled; raises what it was settled with.

    Cancelling withdraws it, unless it is being written, and rings `withdrawn`: somebody may wait until nothing waits.
    """
    try:
        put(outgoing)
    except NovaError:
        await trio.lowlevel.checkpoint()
        raise
    if outgoing.status is Status.SETTLED:  # it has left: nothing must reschedule a task that does not wait
        await trio.lowlevel.cancel_shielded_checkpoint()
        return
    task = trio.lowlevel.current_task()

    def settled(outgoing: Outgoing, error: NovaError | None) -> None:
        trio.lowlevel.reschedule(task, outcome.Value(None) if error is None else outcome.Error(error))

    def abort(raise_cancel: object) -> trio.lowlevel.Abort:
        outgoing.withdraw()
        withdrawn.ring()
        return trio.lowlevel.Abort.SUCCEEDED

    outgoing.on_settled(settled)
    await trio.lowlevel.wait_task_rescheduled(abort)


@attrs.define(eq=False, repr=False)
class Outbound:
    """Accepts messages of the application, and knows what became of each."""

    _session: Session
    limiter: Limiter
    backlog: Backlog = attrs.field(factory=Backlog, init=False)
    """What waits for a link that is ready."""
    ids: Iterator[int] = attrs.field(init=False)
    """Ids for questions, on any link, in the range of the service; each comes round only after all others."""
    draining: bool = attrs.field(default=False, init=False)
    """Whether no new work is taken."""
    _turns: int = attrs.field(default=_FULL_CHECKPOINT_EVERY, init=False)
    """How many messages may be sent before other tasks get to run."""
    _expiry_changed: Signal | None = attrs.field(default=None, init=False)
    """Wakes the task that settles what waits too long; None: there is none yet."""
    _type_matters: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        correlation = self._session.handlers.correlation
        self.ids = count_ids(correlation)
        self._type_matters = self._session.hooks.checks_rate or bool(self._session.handlers.rate_limit.costs)

    # ----------------------------------------------------------------- what is sent

    def encode(self, message: Any) -> str | bytes:
        """Return the payload of a message whose encoding is the same on any link; BadMessage where there is none."""
        return check_payload(encode_with(as_plain(self._session.config.codec).encode, message))

    def kind_of(self, message: Any) -> str:
        """Return the message's type, where a rate limit depends on it or somebody listens to messages."""
        if not self._type_matters and not self._session.hub.hears(MessageEvent):
            return ""
        return self._session.type_of(message)

    def outgoing(
        self,
        frame: Frame,
        kind: str = "",
        priority: int = 0,
        *,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "message",
        epoch: int = 0,
    ) -> Outgoing:
        """Return a frame that is ready to leave."""
        return Outgoing(
            frame=frame,
            lane=lane,
            size=frame_size(frame),
            queued_at=trio.current_time(),
            kind=kind,
            priority=priority,
            purpose="control" if isinstance(frame, _CONTROL_FRAMES) else purpose,
            epoch=epoch,
        )

    def outgoing_message(
        self,
        message: Any,
        priority: int = 0,
        *,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "message",
        epoch: int = 0,
    ) -> Outgoing:
        """Return a message that is encoded when it leaves, where that depends on its link; else now.

        Raises:
            BadMessage: it cannot be encoded.
        """
        if isinstance(message, _CONTROL_FRAMES):
            return self.outgoing(message, priority=priority, lane=lane, purpose=purpose, epoch=epoch)
        kind = self.kind_of(message)
        if not self._session.hooks.encodes:
            return self.outgoing(self.encode(message), kind, priority, lane=lane, purpose=purpose, epoch=epoch)
        return self.unmade(message, _make, kind, priority, lane=lane, purpose=purpose, epoch=epoch)

    def unmade(
        self,
        message: Any,
        make: Callable[[Any, Any], Sequence[Frame]],
        kind: str,
        priority: int,
        *,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "message",
        epoch: int = 0,
    ) -> Outgoing:
        """Return a message that `make` makes into a frame when it leaves."""
        return Outgoing(
            frame=b"",
            lane=lane,
            size=0,
            queued_at=trio.current_time(),
            kind=kind,
            priority=priority,
            purpose=purpose,
            epoch=epoch,
            message=message,
            make=make,
        )

    # ----------------------------------------------------------------- in

    async def send(self, frame: Frame, kind: str = "", priority: int = 0) -> None:
        """Hand `frame` over and wait until the operating system has it.

        Cancelling withdraws it, unless it is being written.

        Raises:
            NotSent, Expired, OutcomeUnknown: as their names say.
            SessionOver: the session has ended.
        """
        if not self._turns:
            self._turns = _FULL_CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        session, link = self._session, self._session.current
        if link is None or not self._may_write_on(link) or isinstance(frame, _CONTROL_FRAMES):
            await wait_settled(self.outgoing(frame, kind, priority), self._put, session.settled)
            return
        self._turns -= 1
        await trio.lowlevel.checkpoint_if_cancelled()
        match link.stream.send_nowait(frame):
            case "whole":
                size = frame_size(frame)
                if session.hub.hears(MessageEvent):
                    self._tell_sent(frame, kind, size, 0.0)
                self._count(1, size)
            case "begun":
                await wait_settled(self.outgoing(frame, kind, priority), link.writer.go_on, session.settled)
            case _:
                await wait_settled(self.outgoing(frame, kind, priority), self._put, session.settled)

    async def send_message(self, message: Any, priority: int = 0, epoch: int = 0) -> None:
        """Send a message through the hook that encodes it, if there is one, and the codec; otherwise like `send`.

        With an `epoch` it leaves on that link, or not at all.
        """
        session = self._session
        if epoch and (session.current is None or session.current.life.epoch != epoch):
            await trio.lowlevel.checkpoint()
            raise NotSent("the link that it was for is gone") from session.last_error
        if session.hooks.encodes or epoch:
            await trio.lowlevel.checkpoint_if_cancelled()
            await wait_settled(self.outgoing_message(message, priority, epoch=epoch), self.post, session.settled)
        else:
            await self.send(self.encode(message), self.kind_of(message), priority)

    def post(self, outgoing: Outgoing, *, is_new: bool = True) -> None:
        """Accept a message; raises like `send` where it is refused.

        What is not new, but a part of what is under way, is accepted while draining too.
        """
        link = self._session.current
        if link is not None and self._may_write_on(link):
            if link.writer.write_now(outgoing):
                return
        elif outgoing.make is not None:
            self._keep(outgoing)
        self._put(outgoing, is_new=is_new)

    def _may_write_on(self, link: LiveLink) -> bool:
        """Whether the link would write a message at once, and that alone: then its writer need not be woken for it."""
        return link.life.is_ready and self._session.goodbye is None and not self.draining and link.writer.is_free

    def _keep(self, outgoing: Outgoing) -> None:
        """Let a message that is to be encoded later be what it is now.

        Raises:
            BadMessage: that cannot be, or it cannot be encoded.
        """
        try:
            message = copy.deepcopy(outgoing.message)
        except Exception as exc:
            raise BadMessage(f"the message cannot be copied, and it has to wait for its link: {exc}") from exc
        outgoing.keep(message, self.weigh(message))

    def weigh(self, message: Any) -> int:
        """Return about the size of the frame that will be made of a message; BadMessage where there will be none."""
        return weigh_message(message) if self._session.hooks.encodes else frame_size(self.encode(message))

    def put(self, outgoing: Outgoing) -> None:
        """Take in a message that need not be accepted: nobody waits for it."""
        if outgoing.make is not None:
            self._keep(outgoing)
        self._put(outgoing)

    def _put(self, outgoing: Outgoing, *, is_new: bool = True) -> None:
        session = self._session
        ready, within = session.ready, None
        if not ready or session.goodbye is not None:
            session.check_open()
        if is_new:
            self.check_not_draining()
        if not ready:
            when_down = session.config.when_down
            if when_down == "fail":
                raise NotSent("there is no ready link") from session.last_error
            within = when_down if isinstance(when_down, Buffer) else None
            outgoing.wait_for_link(math.inf if within is None else outgoing.queued_at + within.ttl)
        self.backlog.put(outgoing, within)
        if session.current is not None:
            session.current.writer.wake()
        if within is not None:
            self._watch_expiry()

    def check_not_draining(self) -> None:
        """Raise NotSent where no new work is taken."""
        if self.draining:
            raise NotSent("the connection is being drained")

    def drain(self) -> None:
        """Take no new work from now on."""
        self.draining = True

    # ----------------------------------------------------------------- out

    def next_step(self, outbox: Outbox, *, ready: bool) -> Write | WaitUntil | Idle:
        """Say what a link is to write now; see `Outbox.next_step`."""
        now = trio.current_time()
        if not self.limiter.engaged:
            return outbox.next_step(now, ready)
        return self.limiter.next_step(outbox, now, ready=ready)

    def count_written(self, batch: Sequence[Outgoing]) -> None:
        """Count what the operating system has taken, and tell of it."""
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

    def give_up_questions(self, why: str, asked_by: float) -> float:
        """Settle the questions that wait and were asked by then; return when the first of the others was."""
        waiting = [outgoing for outgoing in self.backlog if outgoing.purpose == "query"]
        for outgoing in waiting:
            if outgoing.queued_at <= asked_by:
                outgoing.settle(NotSent(why))
        return min((outgoing.queued_at for outgoing in waiting if outgoing.queued_at > asked_by), default=math.inf)

    # ----------------------------------------------------------------- ends

    def link_lost(self, lost: LinkLost) -> None:
        """Let what waits wait on, as `when_down` says, but for what was for that link."""
        session, when_down = self._session, self._session.config.when_down
        if not session.is_closing:  # then the end settles it
            self.backlog.refuse("the link that it was for was lost", lost, epoch=lost.epoch)
        if session.current is not None:
            return
        self.backlog.go()
        if when_down == "fail":
            self.backlog.refuse("the link was lost before it was written", lost)
        elif isinstance(when_down, Buffer):
            self.backlog.expire_by(when_down.ttl, trio.current_time())
            self._watch_expiry()

    def end(self) -> None:
        """Settle all that is left: nothing of it was sent."""
        self.backlog.refuse("the session ended before it was written", self._session.last_error)
        self._session.settled.ring()

    def _watch_expiry(self) -> None:
        if self._expiry_changed is None:
            self._expiry_changed = Signal()
            self._session.start_soon(self._expire, "expiry")
        self._expiry_changed.set()

    async def _expire(self) -> NoReturn:
        """Settle what waits too long, whether or not there is a link."""
        assert self._expiry_changed is not None
        while True:
            await self._expiry_changed.wait(self.backlog.next_expiry())
            self.backlog.expire(trio.current_time())
            self._session.settled.ring()
