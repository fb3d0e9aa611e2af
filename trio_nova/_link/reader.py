"""The reader of a link: what arrives, for as long as there is room for it, and where each message belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import trio

from trio_nova._inbound import Inbound
from trio_nova._link.answers import Answers
from trio_nova._link.heartbeat import Heartbeat
from trio_nova._link.life import LinkLife
from trio_nova._link.standing import Standing
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova.codecs import batch_decoder
from trio_nova.core.bounded import OVERHEAD
from trio_nova.errors import BadMessage, LinkLost
from trio_nova.events import ConsumerCaughtUp, ConsumerLagged, MessageEvent
from trio_nova.links import Link
from trio_nova.messages import Frame, Ping, Pong, frame_kind

__all__ = ["Intake", "Reader"]

PATIENCE = 20.0
"""Seconds for which an answer is awaited that cannot be read, while nothing is taken; or `pong_timeout`, if less."""


@attrs.define(eq=False)
class Intake:
    """Decodes what was read, and gives each message to whom it belongs: who asked, the feeds, or the inbox."""

    _life: LinkLife
    _inbound: Inbound
    _outbound: Outbound
    _writer: Writer
    _answers: Answers
    _standing: Standing
    _heartbeat: Heartbeat
    _decode_all: Callable[[Sequence[Any]], Sequence[Any]] | None = attrs.field(init=False)
    """Decodes a whole batch of payloads, where no hook wants to see them one by one."""

    def __attrs_post_init__(self) -> None:
        hooks = self._life.session.hooks
        looks = hooks.dispatches or hooks.validates or hooks.reads_heartbeats or hooks.splits
        self._decode_all = None if looks else batch_decoder(self._life.session.config.codec)

    def take_in(self, frames: Sequence[Frame]) -> None:
        """Take in what a link returned, all of it: where the inbox is `clogged` then, read no more."""
        inbound = self._inbound
        size = 0
        try:
            size = sum(map(len, frames))  # type: ignore[arg-type]
            messages = self._decode_together(frames)
        except TypeError:  # a ping or a pong, which has no length
            messages = None
        if messages is None:
            self._take_in_each(frames)
            return
        inbound.count(len(frames), size)
        if self._answers.expecting or self._standing.active:
            now, owner = trio.current_time(), self._owner
            rest = [each for each in zip(messages, frames, strict=True) if owner(*each, now) is None]  # type: ignore[arg-type]
            if not rest:
                return
            messages, frames = zip(*rest, strict=True)
        inbound.take(messages, frames)  # type: ignore[arg-type]

    def _decode_together(self, frames: Sequence[Any]) -> Sequence[Any] | None:
        """Decode the messages of a batch; None where they must be looked at one by one."""
        if self._decode_all is None or self._life.session.hub.hears(MessageEvent):
            return None
        try:
            return self._decode_all(frames)
        except Exception:
            return None  # one by one it will show which, and why

    def _take_in_each(self, frames: Sequence[Frame]) -> None:
        taken: list[Any] = []
        sizes: list[int] = []
        now, tells = trio.current_time(), self._life.session.hub.hears(MessageEvent)
        size = messages = pings = pings_size = 0
        for frame in frames:
            if isinstance(frame, Ping | Pong):
                if isinstance(frame, Pong):
                    self._heartbeat.pong(frame.payload)
                else:
                    pings += 1
                    pings_size += len(frame.payload)
                self._inbound.stage(frame, None, self._life, len(frame.payload) + OVERHEAD)
                continue
            messages += 1
            size += len(frame)
            self._take_in_one(frame, now, taken, sizes, tells=tells)
        if pings:
            self._outbound.limiter.count_pongs(pings, pings_size)
        if messages:
            self._inbound.count(messages, size)
        if taken:
            self._inbound.keep(taken, sizes)

    def _take_in_one(self, frame: str | bytes, now: float, taken: list[Any], sizes: list[int], *, tells: bool) -> None:
        """Take in what came in one frame; what is for the inbox, and waits for no hook, is added to `taken`.

        `tells` says whether each message is told as an event.
        """
        session = self._life.session
        try:
            message = session.config.codec.decode(frame)
            if session.hooks.validates:
                message = self._validate(message)
        except _HookFailed:
            return
        except Exception as exc:
            self._refuse(exc)
            return
        parts = self._parts(message, now) if session.hooks.splits else None
        length, charge = len(frame), None
        if parts:
            length = -(-length // len(parts))  # each has its share of what the frame takes
            charge = session.room.weigh(frame, message) // len(parts) + OVERHEAD
        shown = False
        for part in (message,) if parts is None else parts:
            if session.hooks.reads_heartbeats and self._is_heartbeat(part):
                self._standing.watch(part)
                continue
            if tells:
                self._tell_received(frame, part, length)
            owner = self._owner(part, frame, now, charge)
            if owner == "answer":
                continue
            if session.hooks.dispatches:
                size = session.room.charge(frame, part) if charge is None else charge
                self._inbound.stage(frame, part, self._life, size, is_data=owner == "data", is_rest=shown)
                shown = True
            elif owner is None:
                taken.append(part)
                sizes.append(self._inbound.inbox.room.charge(frame, part) if charge is None else charge)

    def _refuse(self, exc: Exception) -> None:
        error = exc
        if not isinstance(exc, BadMessage):
            error = BadMessage(f"the message could not be read: {type(exc).__name__}")
            error.__cause__ = exc
        self._inbound.refuse(error, self._life)

    def _validate(self, message: Any) -> Any:
        session = self._life.session
        try:
            return session.handlers.message.validate_message(message)
        except BadMessage:
            raise
        except Exception as exc:
            session.handler_failed(exc)
            raise _HookFailed from None

    def _tell_received(self, frame: str | bytes, message: Any, size: int) -> None:
        session = self._life.session
        kind, message_type = frame_kind(frame), session.type_of(message)
        self._life.tell(
            MessageEvent(direction="received", kind=kind, message_type=message_type, size=size, message=message)
        )

    def _parts(self, message: Any, now: float) -> Sequence[Any] | None:
        """Return the messages that came in one frame, unless all together are an answer; None for a single message."""
        session = self._life.session
        try:
            parts = session.config.correlation.parts(message)
            if parts is not None and self._answers.take_batch(message, now):
                for part in parts:
                    self._standing.watch(part)
                return ()
        except Exception as exc:
            session.handler_failed(exc)
            return None
        return parts

    def _owner(
        self, message: Any, frame: str | bytes, now: float, charge: int | None = None
    ) -> Literal["answer", "data"] | None:
        """Give a message to whoever asked for it or to the feeds; return which it was, None for an ordinary one.

        `charge` is what it is charged where it waits; None: as what came in `frame` is.
        """
        answers, standing = self._answers, self._standing
        if standing.link_tracker is not None:
            standing.watch(message)
        try:
            found = answers.take(message, now, standing.is_data) if answers.expecting else None
            if found == "answer":
                return "answer"
            owner = standing.take(message, now, frame, charge) if standing.active else None
            if owner is None and found == "unmatched":
                answers.unclaimed(message)
            return owner
        except Exception as exc:  # of a hook or a matcher: the reader must not die of it
            self._life.session.handler_failed(exc)
        return None

    def _is_heartbeat(self, message: Any) -> bool:
        session = self._life.session
        heartbeat = session.config.heartbeat
        try:
            if heartbeat.is_answer(message):
                self._heartbeat.probe_answered()
                return True
            answer = heartbeat.answer(message)
            if answer is None:
                return heartbeat.is_beat(message)
            self._writer.control(self._outbound.encode(answer), self._outbound.kind_of(answer))
        except Exception as exc:
            session.handler_failed(exc)
            return False
        return True


class _HookFailed(Exception):
    """A hook raised, which has been dealt with: its message goes nowhere."""


@attrs.define(eq=False)
class Reader:
    """Reads one link until it ends."""

    _life: LinkLife
    _stream: Link
    _intake: Intake
    _inbound: Inbound
    _outbound: Outbound
    _answers: Answers
    _heartbeat: Heartbeat
    _held: Sequence[Frame] = attrs.field(default=(), init=False)
    """What arrived when reading had just been paused."""
    is_reading: bool = attrs.field(default=False, init=False)
    """Whether it waits for what comes next."""

    async def run(self) -> None:
        """Read until the link ends."""
        inbound, in_vain = self._inbound, False
        try:
            while not self._life.ending.is_set():
                if inbound.pauses or inbound.clogged:
                    await self._stand_still()
                elif self._held:
                    self._take_held()
                elif inbound.crowded and not in_vain:
                    await inbound.give_turns()
                    in_vain = inbound.crowded
                else:
                    in_vain = False
                    await self._read()
        except LinkLost as lost:
            self._life.lose(lost)

    async def _read(self) -> None:
        """Wait for what comes next, and take it in; raises LinkLost."""
        self.is_reading = True
        try:
            frames = await self._stream.receive_some()
        finally:
            self.is_reading = False
        self._heartbeat.heard()
        if self._inbound.pauses:
            self._held = frames
        elif frames and not self._life.session.is_closing:
            self._intake.take_in(frames)

    def _take_held(self) -> None:
        held, self._held = self._held, ()  # whoever comes next must not take it in again
        self._intake.take_in(held)

    async def take_the_rest(self) -> None:
        """Take in what came while goodbye was said: the session goes on, so nothing of it may be lost.

        Nothing is taken that would wait for room: each reconnect would leave more of it behind.
        """
        self._take_held()
        try:
            while not self._inbound.clogged:
                self._intake.take_in(await self._stream.receive_some())
        except LinkLost:
            return

    async def _stand_still(self) -> None:
        """Do not read for as long as the user's side wants, or has no room; nobody's silence counts meanwhile."""
        life, inbound, since = self._life, self._inbound, trio.current_time()
        self._heartbeat.hold()
        lagged = inbound.clogged
        if lagged:
            where, waiting = inbound.find_fullest()
            life.tell(ConsumerLagged(where=where, waiting=waiting))
        try:
            while inbound.pauses:
                await inbound.resumed.wait()
            await self._wait_for_room()
        finally:
            self._heartbeat.release()
        if lagged:
            life.tell(ConsumerCaughtUp(stalled=trio.current_time() - since))

    async def _wait_for_room(self) -> None:
        """Wait until less waits. Where nothing at all is taken, let nobody wait for an answer that cannot be read.

        Who asks may be the very one who alone could make room.
        """
        session, inbound = self._life.session, self._inbound
        taken_at = trio.current_time()
        self._answers.stand_still(still=True)
        try:
            while inbound.clogged:
                patience = min(session.config.pong_timeout, PATIENCE)
                with trio.CancelScope(deadline=self._give_up_hope(taken_at, patience)) as scope:
                    await session.taken.wait()
                if not scope.cancelled_caught:
                    taken_at = trio.current_time()
        finally:
            self._answers.stand_still(still=False)

    def _give_up_hope(self, taken_at: float, patience: float) -> float:
        """Settle what has waited in vain for so long; return when to look again."""
        now = trio.current_time()
        where, waiting = self._inbound.find_fullest()
        look_again = self._answers.give_up_hope(taken_at, patience, where, waiting)
        if taken_at + patience <= now:
            why = f"reading stands still: {waiting} messages wait in {where!r}, and nobody takes them"
            return min(look_again, self._outbound.give_up_questions(why, now - patience) + patience)
        return min(look_again, taken_at + patience)
