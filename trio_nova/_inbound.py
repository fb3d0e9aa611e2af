"""The receive side of a session: from the reader to the inbox, by way of the message handlers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import attrs
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._outbound import Outbound
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Signal
from trio_nova._subscriptions import Subscriptions
from trio_nova.codecs import batch_decoder
from trio_nova.core.bounded import OVERHEAD
from trio_nova.errors import BadMessage
from trio_nova.events import Dropped, HighWater, LowWater, MessageEvent, ReadingPaused, ReadingResumed
from trio_nova.handlers import ConnectionHandler, Correlation, Heartbeat, MessageHandler
from trio_nova.messages import Frame, Ping, Pong, frame_kind

__all__ = ["Inbound"]

SETUP_ROOM = 1024 * 1024
"""Bytes beyond `inbox_bytes` that may wait while a link is set up: else nobody could answer for it."""


@attrs.frozen
class _Staged:
    frame: Frame = attrs.field(repr=False)
    message: Any = attrs.field(repr=False)
    epoch: int
    charge: int = 0
    is_data: bool = False
    """Whether a feed has it: it does not go to the inbox as well."""
    is_rest: bool = False
    """Whether the frame brought other messages before this one: it has been shown with the first."""


@attrs.define(eq=False, repr=False)
class Inbound:
    """Decodes what the reader got, shows it to the hooks in a task of their own, and keeps it for `receive`."""

    _session: Session
    _outbound: Outbound
    _requests: Requests
    _subscriptions: Subscriptions
    inbox: Mailbox[Any] = attrs.field(init=False)
    receiver: Receiver[Any] = attrs.field(init=False)
    """The receive side, as the connection holds it."""
    pauses: int = attrs.field(default=0, init=False)
    """How many `Connection.paused` blocks are open."""
    resumed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the reader after a pause."""
    _staged: Mailbox[_Staged] | None = attrs.field(default=None, init=False)
    """What waits for hooks; None where there are none."""
    _hears_messages: bool = attrs.field(init=False)
    _hears_frames: bool = attrs.field(init=False)
    _validates: bool = attrs.field(init=False)
    _probed: bool = attrs.field(init=False)
    _splits: bool = attrs.field(init=False)
    _decode_all: Callable[[Sequence[Any]], Sequence[Any]] | None = attrs.field(init=False)
    """Decodes a whole batch of payloads, where no hook wants to see them one by one."""
    _received_at: float = attrs.field(default=-math.inf, init=False)
    """Trio's clock, seconds: the time of the last read that brought something."""
    announced: int = attrs.field(default=0, init=False)
    """Messages that the overflow policy has dropped."""

    def __attrs_post_init__(self) -> None:
        config, handlers = self._session.config, self._session.handlers
        # A hook that is not overridden costs nothing: it is not called.
        self._hears_messages = type(handlers.message).handle_message is not MessageHandler.handle_message
        self._hears_frames = type(handlers.connection).handle_frame is not ConnectionHandler.handle_frame
        self.inbox = Mailbox(
            max_items=config.inbox_size,
            room=self._session.room if config.overflow == "block" else self._session.make_room(),
            overflow=config.overflow,
            on_high_water=self._high_water,
            on_low_water=self._low_water,
            looked=self._session.looked,
        )
        self.receiver = Receiver(self.inbox)
        self._validates = type(handlers.message).validate_message is not MessageHandler.validate_message
        heartbeat = type(config.heartbeat)
        self._probed = (
            heartbeat.answer is not Heartbeat.answer
            or heartbeat.is_answer is not Heartbeat.is_answer
            or heartbeat.is_beat is not Heartbeat.is_beat
        )
        self._splits = type(config.correlation).parts is not Correlation.parts
        hooked = self._hears_messages or self._hears_frames or self._validates or self._probed or self._splits
        self._decode_all = None if hooked else batch_decoder(config.codec)
        if self.has_hooks:
            self._staged = Mailbox(room=self._session.room)

    # ----------------------------------------------------------------- the reader's side

    @property
    def has_hooks(self) -> bool:
        """Whether any hook wants to see messages or frames, so that `dispatch` must run."""
        return self._hears_messages or self._hears_frames

    @property
    def clogged(self) -> bool:
        """Whether reading must stop, as too much of what was received waits."""
        room = self._session.room
        return room.held >= (room.limit if self._session.ready else room.limit + SETUP_ROOM)

    def find_fullest(self) -> tuple[str, int]:
        """Return what holds most of what waits, "inbox", "handlers" or a channel; and how many messages wait there."""
        places: list[tuple[str, Mailbox[Any]]] = [*self._subscriptions.mailboxes, ("inbox", self.inbox)]
        if self._staged is not None:
            places.append(("handlers", self._staged))
        name, mailbox = max(places, key=lambda place: place[1].size)
        return name, len(mailbox)

    def take_in(self, frames: Sequence[Frame], on_probe_answer: Any) -> None:
        """Take in what a link returned, all of it: where it is `clogged` then, read no more."""
        self._received_at = trio.current_time()
        size = 0
        try:
            size = sum(map(len, frames))  # type: ignore[arg-type]
            messages = self._decode_together(frames)
        except TypeError:  # a ping or a pong, which has no length
            messages = None
        if messages is None:
            self._take_in_each(frames, on_probe_answer)
            return
        self._count(len(frames), size)
        if self._requests.expecting or self._subscriptions.active:
            now, owner = trio.current_time(), self._owner
            rest = [each for each in zip(messages, frames, strict=True) if owner(*each, now) is None]  # type: ignore[arg-type]
            if rest:
                messages, frames = zip(*rest, strict=True)
            else:
                return
        if (given := self.inbox.hand(messages)) < len(messages):
            messages = messages[given:] if given else messages
            self._keep(messages, self.inbox.room.charge_all(frames[given:], messages))  # type: ignore[arg-type]

    def _decode_together(self, frames: Sequence[Any]) -> Sequence[Any] | None:
        """Decode the messages of a batch; None where they must be looked at one by one."""
        if self._decode_all is None or self._session.hub.hears(MessageEvent):
            return None
        try:
            return self._decode_all(frames)
        except Exception:
            return None  # one by one it will show which, and why

    def _count(self, messages: int, size: int) -> None:
        session = self._session
        session.counts.messages_received += messages
        session.counts.bytes_received += size
        session.hub.count("received", messages, size)

    def _take_in_each(self, frames: Sequence[Frame], on_probe_answer: Any) -> None:
        session, now = self._session, trio.current_time()
        wants_events = session.hub.hears(MessageEvent)
        decode = session.config.codec.decode
        taken: list[Any] = []
        sizes: list[int] = []
        size = messages = pings = pings_size = 0
        for frame in frames:
            if isinstance(frame, Ping | Pong):
                if isinstance(frame, Ping):
                    pings += 1
                    pings_size += len(frame.payload)
                if self._hears_frames and self._staged is not None:
                    self._staged.put_nowait(_Staged(frame, None, session.epoch), len(frame.payload) + OVERHEAD)
                continue
            length = len(frame)
            messages += 1
            size += length
            try:
                message = decode(frame)
            except Exception as exc:
                self._refuse(exc)
                continue
            if self._validates:
                try:
                    message = session.handlers.message.validate_message(message)
                except BadMessage as exc:
                    self._refuse(exc)
                    continue
                except Exception as exc:
                    session.handler_failed(exc)
                    continue
            parts = self._parts(message, now) if self._splits else None
            charge = None
            if parts:
                length = -(-length // len(parts))  # each has its share of what the frame takes
                charge = session.room.weigh(frame, message) // len(parts) + OVERHEAD
            shown = False
            for part in (message,) if parts is None else parts:
                if self._probed and self._is_heartbeat(part, on_probe_answer):
                    self._watch(part)
                    continue
                if wants_events:
                    session.tell(
                        MessageEvent(
                            direction="received",
                            kind=frame_kind(frame),
                            message_type=session.type_of(part),
                            size=length,
                            message=part,
                        )
                    )
                owner = self._owner(part, frame, now, charge)
                if owner == "answer":
                    continue
                if self._staged is not None:
                    size_here = self._staged.room.charge(frame, part) if charge is None else charge
                    staged = _Staged(frame, part, session.epoch, size_here, owner == "data", shown)
                    self._staged.put_nowait(staged, size_here)
                    shown = True
                elif owner is None:
                    taken.append(part)
                    sizes.append(self.inbox.room.charge(frame, part) if charge is None else charge)
        if pings:
            self._outbound.count_pongs(pings, pings_size)
        if messages:
            self._count(messages, size)
        if taken:
            self._keep(taken, sizes)

    def _parts(self, message: Any, now: float) -> Sequence[Any] | None:
        """Return the messages that came in one frame, unless all together are an answer; None for a single message."""
        try:
            parts = self._session.config.correlation.parts(message)
            if parts is not None and self._requests.take_batch(message, now):
                for part in parts:
                    self._watch(part)
                return ()
        except Exception as exc:
            self._session.handler_failed(exc)
            return None
        return parts

    def _watch(self, message: Any) -> None:
        """Show a message to what watches the sequence of the whole link."""
        if (tracker := self._subscriptions.link_tracker) is not None:
            self._subscriptions.watch(tracker, message)

    def _owner(
        self, message: Any, frame: str | bytes, now: float, charge: int | None = None
    ) -> Literal["answer", "data"] | None:
        """Give a message to whoever asked for it or to the feeds; return which it was, None for an ordinary one.

        `charge` is what it is charged where it waits; None: as what came in `frame` is.
        """
        requests, subscriptions = self._requests, self._subscriptions
        self._watch(message)
        try:
            found = requests.take(message, now, subscriptions.is_data) if requests.expecting else None
            if found == "answer":
                return "answer"
            owner = subscriptions.take(message, now, frame, charge) if subscriptions.active else None
            if owner is None and found == "unmatched":
                requests.unclaimed(message)
            return owner
        except Exception as exc:  # of a hook or a matcher: the reader must not die of it
            self._session.handler_failed(exc)
        return None

    @property
    def crowded(self) -> bool:
        """Whether so much waits that those who receive had better be given turns before more is read."""
        return self.inbox.crowded or self._subscriptions.crowded

    async def give_turns(self) -> None:
        """Let those who receive run: they take few messages at a time."""
        await self.inbox.give_turns()
        await self._subscriptions.give_turns()

    def pause(self) -> None:
        """Stop reading, until `resume` has been called as often: what one read may still bring is kept back."""
        self.pauses += 1
        self._session.tell(ReadingPaused())

    def resume(self) -> None:
        """Take back one `pause`."""
        self.pauses -= 1
        self._session.tell(ReadingResumed())
        self.resumed.set()

    def _refuse(self, exc: Exception) -> None:
        if isinstance(exc, BadMessage):
            error = exc
        else:
            error = BadMessage(f"the message could not be read: {type(exc).__name__}")
            error.__cause__ = exc
        self._session.perform(self._session.report(error, "message"), self._session.epoch)

    def _is_heartbeat(self, message: Any, on_probe_answer: Any) -> bool:
        session = self._session
        heartbeat = session.config.heartbeat
        try:
            if heartbeat.is_answer(message):
                on_probe_answer()
                return True
            answer = heartbeat.answer(message)
            if answer is None:
                return heartbeat.is_beat(message)
            self._outbound.control(self._outbound.encode(answer), self._outbound.kind_of(answer))
        except Exception as exc:
            session.handler_failed(exc)
            return False
        return True

    def _keep(self, messages: Sequence[Any], sizes: Sequence[int]) -> None:
        """Put messages into the inbox; see `_is_forgetful`."""
        inbox = self.inbox
        inbox.overflow = "drop_oldest" if self._is_forgetful else self._session.config.overflow
        inbox.put_all_nowait(messages, sizes)
        if inbox.dropped > self.announced:
            self._tell_dropped()

    @property
    def _is_forgetful(self) -> bool:
        """Whether the program seems to want nothing of the inbox: then the newest `inbox_size` messages are enough.

        It has never received, and gets what it wants in other ways: by handlers or a listener, or by feeds.
        """
        return not self.inbox.claimed and (self._all_are_seen or self._subscriptions.has_feeds)

    @property
    def _all_are_seen(self) -> bool:
        """Whether all messages are shown to handlers or to a listener, so that none is lost that is dropped."""
        return self._hears_messages or self._session.hub.messages_are_heard

    def _tell_dropped(self, *, at_once: bool = False) -> None:
        """Tell how many messages were dropped; while nobody receives, the first, and then so many at a time."""
        inbox = self.inbox
        count = inbox.dropped - self.announced
        if self._all_are_seen and not inbox.claimed:
            self.announced = inbox.dropped
        elif inbox.claimed or at_once or self.announced == 0 or count >= inbox.max_items:
            self.announced = inbox.dropped
            self._session.tell(Dropped(count=count, where="inbox"))

    # ----------------------------------------------------------------- the dispatcher's side

    async def dispatch(self) -> NoReturn:
        """Show frames and messages to the hooks, in order, and pass the messages on."""
        assert self._staged is not None
        receiver = Receiver(self._staged)
        while True:
            self._show(await receiver.receive())
            await self._outbound.wait_replies_written()

    def _show(self, staged: _Staged) -> None:
        session = self._session
        frame, kind = staged.frame, frame_kind(staged.frame)
        if self._hears_frames and not staged.is_rest:
            data = frame.payload if isinstance(frame, Ping | Pong) else frame
            session.perform(session.ask(session.handlers.connection.handle_frame, kind, data), staged.epoch)
        if isinstance(frame, Ping | Pong):
            return
        if self._hears_messages:
            session.perform(session.ask(session.handlers.message.handle_message, kind, staged.message), staged.epoch)
        if not staged.is_data:
            self._keep((staged.message,), (staged.charge,))

    # ----------------------------------------------------------------- ends

    def find_untaken(self) -> list[Mailbox[Any]]:
        """Return the inbox and the feeds whose consumers are busy with what was received, or have more of it to take.

        One who has been given nothing for `close_timeout` counts as one who has stopped receiving.
        """
        feeds = [feed._mailbox for feed in self._subscriptions.feeds]
        is_recent = trio.current_time() <= self._received_at + self._session.config.close_timeout
        found = [
            mailbox
            for mailbox in (self.inbox, *feeds)
            if mailbox.claimed and (mailbox.ready or (is_recent and not mailbox.is_awaited))
        ]
        if self._staged is not None and self._staged.ready and self.inbox.claimed and self.inbox not in found:
            found.append(self.inbox)  # where the end will put it
        return found

    def end(self) -> None:
        """Let what is there be received; after that receiving raises SessionOver."""
        left = [] if self._staged is None else self._staged.pop_all()
        if self._session.goodbye is None:
            for staged in left:
                self._show(staged)
        elif left:
            # We said goodbye: the hooks could do nothing any more. But what was received can be received.
            self._session.tell(Dropped(count=len(left), where="handlers"))
            for staged in left:
                if not staged.is_data and not isinstance(staged.frame, Ping | Pong):
                    self._keep((staged.message,), (staged.charge,))
        if self.inbox.dropped > self.announced:
            self._tell_dropped(at_once=True)
        self.inbox.close(self._session.session_over() if self._session.failure is not None else None)
        self.inbox.on_high_water = self.inbox.on_low_water = None

    def _high_water(self) -> None:
        self._session.tell(HighWater(messages=len(self.inbox), size=self.inbox.size))

    def _low_water(self) -> None:
        self._session.tell(LowWater(messages=len(self.inbox), size=self.inbox.size))
