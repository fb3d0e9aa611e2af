"""The reader of a link: what arrives, for as long as there is room for it, and where each message belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from trio_nova._inbound import Inbound
from trio_nova._link.answers import Answers
from trio_nova._link.grant import Grant
from trio_nova._link.heartbeat import Heartbeat
from trio_nova._link.life import LinkLife
from trio_nova._link.readings import Readings
from trio_nova._link.standing import Standing
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova.codecs import BadFrame, StreamBroken, as_plain, batch_decoder, share_of
from trio_nova.core.bounded import OVERHEAD
from trio_nova.errors import BadMessage, LinkLost
from trio_nova.events import ConsumerCaughtUp, ConsumerLagged, MessageEvent, MoveAsked
from trio_nova.links import Link
from trio_nova.messages import Frame, Ping, Pong, Reconnect, frame_kind
from trio_nova.readings import (
    Answer,
    AuthOk,
    AuthRefused,
    Beat,
    Call,
    Data,
    Done,
    Ended,
    GoAway,
    Granted,
    HeartbeatAsked,
    Item,
    Many,
    Other,
    Position,
    Reading,
    Refused,
    Throttled,
    Welcome,
    is_key,
    seconds,
)
from trio_nova.secrets import secrets_in

__all__ = ["Intake", "Reader"]

PATIENCE = 20.0
"""Seconds for which an answer is awaited that cannot be read, while nothing is taken; or `pong_timeout`, if less."""


Rest: TypeAlias = list[tuple[Any, str | bytes | int]]
"""Messages for the inbox, each with what came, or with what it is charged."""


@attrs.frozen
class _Arrived:
    """A message that has arrived, and its share of what its frame takes."""

    frame: str | bytes
    message: Any
    at: float
    """Trio's clock, seconds: when it was read."""
    charge: int | None = None
    """Bytes that it is charged where it waits; None: as what came as the whole frame is."""
    is_part: bool = False
    """Whether it is a part of what the codec decoded: then its payload is all that hooks can be shown."""


@attrs.define(eq=False)
class Intake:
    """Decodes what was read, and gives each message to whom it belongs: who asked, the feeds, or the inbox."""

    _life: LinkLife
    _readings: Readings
    _inbound: Inbound
    _outbound: Outbound
    _writer: Writer
    _answers: Answers
    _standing: Standing
    _grant: Grant
    _heartbeat: Heartbeat
    _decode_all: Callable[[Sequence[Any]], Sequence[Any]] | None = attrs.field(init=False)
    """Decodes a whole batch of payloads, where no hook wants to see them one by one."""
    _is_shown: bool = attrs.field(default=False, init=False)
    """Whether hooks have been shown the frame whose messages are being taken in."""
    _is_broken: bool = attrs.field(default=False, init=False)
    """Whether nothing more can be read on the link, and that has been reported."""

    def __attrs_post_init__(self) -> None:
        life = self._life
        looks = life.hooks.dispatches or life.hooks.validates or life.coder is not None
        self._decode_all = None if looks else batch_decoder(life.session.config.codec)

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
        now = trio.current_time()
        inbound.count(len(frames), size)
        if not self._readings.matter:
            inbound.take(messages, frames, self._life.epoch, now)  # type: ignore[arg-type]
            return
        take, settle = self._standing.take, self._answers.settle_by_content
        watches = self._standing.link_tracker is not None
        rest: Rest = []
        for reading, message, frame in zip(self._readings.read_all(messages), messages, frames, strict=True):
            if watches:
                self._standing.watch(message)
            if type(reading) is not Data:
                self._hand_on(reading, _Arrived(frame, message, now), rest)  # type: ignore[arg-type]
                continue
            try:  # as in `_hand_on`, but what is most frequent first
                if take(reading, frame, None, now) or settle(message, now):  # type: ignore[arg-type]
                    continue
            except Exception as exc:
                self._life.session.handler_failed(exc)
            self._let_receive(message, _Arrived(frame, message, now), rest)  # type: ignore[arg-type]
        if rest:
            self._take(rest, now)

    def _decode_together(self, frames: Sequence[Any]) -> Sequence[Any] | None:
        """Decode the messages of a batch; None where they must be looked at one by one."""
        if self._decode_all is None or self._life.session.hub.hears(MessageEvent):
            return None
        try:
            return self._decode_all(frames)
        except Exception:
            return None  # one by one it will show which, and why

    def _take_in_each(self, frames: Sequence[Frame]) -> None:
        now = trio.current_time()
        size = messages = pings = pings_size = 0
        for frame in frames:
            if isinstance(frame, Ping | Pong):
                if isinstance(frame, Pong):
                    self._heartbeat.pong(frame.payload)
                else:
                    pings += 1
                    pings_size += len(frame.payload)
                self._inbound.stage(frame, None, self._life, len(frame.payload) + OVERHEAD, now)
                continue
            size += len(frame)
            messages += self._take_in_one(frame, now)
        if pings:
            self._outbound.limiter.count_pongs(pings, pings_size)
        if size or messages:
            self._inbound.count(messages, size)

    def _take_in_one(self, frame: str | bytes, now: float) -> int:
        """Take in what came in one frame; return the number of messages that it has brought."""
        if self._is_broken:
            return 0
        broken: BadFrame | None = None
        try:
            messages = self._decode(frame)
        except BadFrame as exc:
            messages, broken = exc.messages, exc
        except Exception as exc:
            self._refuse(exc)
            return 1
        rest: Rest = []
        self._is_shown = False
        if messages:
            coder, size = self._life.coder, len(frame) // len(messages)
            charge = None if coder is None else share_of(coder, frame, messages) + OVERHEAD
            for message in messages:
                self._take_in_message(_Arrived(frame, message, now, charge), size, rest)
        if rest:
            self._take(rest, now)
        if broken is not None:
            self._refuse_parts(broken)
        return len(messages)

    def _decode(self, frame: str | bytes) -> Sequence[Any]:
        coder = self._life.coder
        return (as_plain(self._life.session.config.codec).decode(frame),) if coder is None else coder.decode(frame)

    def _refuse_parts(self, broken: BadFrame) -> None:
        """Report what could not be read of a frame, and end a link on which nothing more can be."""
        for error in broken.bad:
            self._refuse(error)
        if isinstance(broken, StreamBroken):
            self._is_broken = True
            self._refuse(broken)
            life = self._life
            life.lose(LinkLost(1006, "", life.epoch, detail=f"nothing more can be read: {broken}"))

    def _take_in_message(self, arrived: _Arrived, size: int, rest: Rest) -> None:
        life = self._life
        if life.hooks.validates:
            try:
                arrived = attrs.evolve(arrived, message=self._validate(arrived.message))
            except _HookFailed:
                return
            except BadMessage as exc:
                self._refuse(exc)
                return
        if self._standing.link_tracker is not None:
            self._standing.watch(arrived.message)
        reading = self._readings.read(arrived.message) if self._readings.matter else Other(arrived.message)
        if life.session.hub.hears(MessageEvent) and not isinstance(reading, Beat | HeartbeatAsked):
            self._tell_received(arrived, size)
        self._hand_on(reading, arrived, rest)

    def _validate(self, message: Any) -> Any:
        session = self._life.session
        try:
            return session.handlers.message.validate_message(message)
        except BadMessage:
            raise
        except Exception as exc:
            session.handler_failed(exc)
            raise _HookFailed from None

    def _refuse(self, exc: Exception) -> None:
        error = exc
        if not isinstance(exc, BadMessage):
            error = BadMessage(f"the message could not be read: {type(exc).__name__}")
            error.__cause__ = exc
        self._inbound.refuse(error, self._life)

    def _tell_received(self, arrived: _Arrived, size: int) -> None:
        message = arrived.message
        kind, message_type = frame_kind(arrived.frame), self._life.session.type_of(message)
        self._life.tell(
            MessageEvent(direction="received", kind=kind, message_type=message_type, size=size, message=message)
        )

    # ----------------------------------------------------------------- where a message belongs

    def _hand_on(self, reading: Reading, arrived: _Arrived, rest: Rest) -> None:
        """Give a message to whom it belongs; what is for the inbox, and waits for no hook, is added to `rest`."""
        try:
            if self._is_taken(reading, arrived, rest):
                return
        except Exception as exc:  # of a hook or a matcher: the reader must not die of it
            self._life.session.handler_failed(exc)
        payload = reading.payload if isinstance(reading, Other | Welcome) else arrived.message
        self._let_receive(payload, arrived, rest)

    def _is_taken(self, reading: Reading, arrived: _Arrived, rest: Rest) -> bool:
        """Give a message to whom it belongs; False where it is an ordinary one."""
        now = arrived.at
        match reading:
            case Data():
                if self._standing.take(reading, arrived.frame, arrived.charge, now):
                    self._show(reading.payload if arrived.is_part else arrived.message, arrived, is_data=True)
                    return True
                return self._answers.settle_by_content(arrived.message, now)
            case Answer(id=id) | Item(id) | Done(id) if not is_key(id):
                return False
            case Granted(channel) | Refused(channel) | Ended(channel) if not is_key(channel):
                return False
            case Granted(server_id=name) if not is_key(name):
                return False
            case Answer(id=id):
                if self._answers.settle(reading, now):
                    return True
                if id is not None:
                    self._answers.unclaimed(id)
                return False
            case Granted() | Refused():
                if not self._standing.knows(reading) and self._answers.settle_by_content(arrived.message, now):
                    return True
                self._standing.apply(reading)
            case Ended(channel, reason):
                self._standing.ended(channel, reason)
            case HeartbeatAsked(reply, asks):
                if reply is not None:
                    self._heartbeat.answer(reply, asks=asks)
            case Beat(answers):
                if answers:
                    self._heartbeat.probe_answered()
            case Many(readings):
                self._hand_on_many(readings, arrived, rest)
            case Item(id) | Done(id):
                self._answers.unclaimed(id)
                return False
            case AuthOk() | AuthRefused():
                return self._grant.take(reading)
            case Welcome(payload) | Other(payload):
                return self._answers.settle_by_content(payload, now)
            case Call():
                self._receive(reading, arrived, rest)
            case Position(token):
                self._life.session.redactor.keep("position", secrets_in(token))
                self._life.session.route.keep_position(token)
            case GoAway():
                self._move(reading)
            case Throttled(retry_after):
                self._outbound.limiter.slow_down(seconds(retry_after))
            case _:
                raise TypeError(f"read answered a {type(reading).__name__}, which is no reading")
        return True

    def _hand_on_many(self, readings: Sequence[Reading], arrived: _Arrived, rest: Rest) -> None:
        """Hand on the readings of one message, each with its share."""
        if not readings:
            return
        whole = self._weigh(arrived) if arrived.charge is None else arrived.charge
        charge = whole // len(readings) + OVERHEAD
        for reading in readings:
            part = getattr(reading, "payload", arrived.message)
            self._hand_on(reading, _Arrived(arrived.frame, part, arrived.at, charge, is_part=True), rest)

    def _move(self, asked: GoAway) -> None:
        """Take another link, as the service wants."""
        life, session = self._life, self._life.session
        show = session.redactor.show
        life.tell(MoveAsked(within=seconds(asked.within), to=show(asked.url), reason=show(asked.reason)))
        if asked.url is not None and life.is_current:
            session.route.move_to(str(asked.url))
        session.go_elsewhere(Reconnect(), life.epoch)

    def _let_receive(self, message: Any, arrived: _Arrived, rest: Rest) -> None:
        """Let the login have an ordinary message, where it may want to read it; else let it be received."""
        if self._grant.listens:
            size = self._weigh(arrived) if arrived.charge is None else arrived.charge
            self._grant.take_early(message, size, partial(self._receive_late, message, arrived))
        else:
            self._receive(message, arrived, rest)

    def _weigh(self, arrived: _Arrived) -> int:
        return self._life.session.room.weigh(arrived.frame, arrived.message) + OVERHEAD

    def _receive(self, message: Any, arrived: _Arrived, rest: Rest) -> None:
        """Let an ordinary message be received, by way of the hooks that want to see it."""
        if self._life.hooks.dispatches:
            self._show(message, arrived, is_data=False)
        else:
            rest.append((message, arrived.frame if arrived.charge is None else arrived.charge))

    def _take(self, rest: Rest, at: float) -> None:
        """Give ordinary messages to the inbox, in their order."""
        inbound, epoch = self._inbound, self._life.epoch
        if any(isinstance(came_as, int) for _, came_as in rest):
            charge = inbound.inbox.room.charge
            for message, came_as in rest:
                inbound.take_one(message, came_as if isinstance(came_as, int) else charge(came_as, message), epoch, at)
        else:
            messages, payloads = zip(*rest, strict=True)
            inbound.take(messages, payloads, epoch, at)

    def _receive_late(self, message: Any, arrived: _Arrived) -> None:
        rest: Rest = []
        self._receive(message, arrived, rest)
        if rest:
            self._take(rest, arrived.at)

    def _show(self, message: Any, arrived: _Arrived, *, is_data: bool) -> None:
        if not self._life.hooks.dispatches:
            return
        size = self._life.session.room.charge(arrived.frame, message) if arrived.charge is None else arrived.charge
        self._inbound.stage(
            arrived.frame, message, self._life, size, arrived.at, is_data=is_data, is_rest=self._is_shown
        )
        self._is_shown = True


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
