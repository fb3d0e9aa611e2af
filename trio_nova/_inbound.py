"""The receive side of a session: what waits to be received, by way of the message handlers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import trio

from trio_nova._actions import Actions
from trio_nova._feeds import Delivery, receive_plainly
from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._session import Session
from trio_nova._signal import Bell
from trio_nova._subscriptions import Subscriptions
from trio_nova.events import Dropped, HighWater, LowWater, ReadingPaused, ReadingResumed
from trio_nova.messages import Frame, Ping, Pong, frame_kind

if TYPE_CHECKING:
    from trio_nova._link import LinkLife

__all__ = ["Inbound"]

SETUP_ROOM = 1024 * 1024
"""Bytes beyond `inbox_bytes` that may wait while a link is set up: else nobody could answer for it."""


@attrs.frozen
class _Staged:
    frame: Frame = attrs.field(repr=False)
    message: Any = attrs.field(repr=False)
    link: LinkLife
    charge: int
    at: float
    """Trio's clock, seconds: when it was read."""
    is_data: bool = False
    """Whether a feed has it: it does not go to the inbox as well."""
    is_rest: bool = False
    """Whether the frame brought other messages before this one: it has been shown with the first."""


@attrs.define(eq=False, repr=False)
class Inbound:
    """Shows what the readers got to the hooks, in a task of their own, and keeps it for `receive`."""

    _session: Session
    _actions: Actions
    _subscriptions: Subscriptions
    inbox: Mailbox[Any] = attrs.field(init=False)
    receiver: Receiver[Any] = attrs.field(init=False)
    """The receive side, as the connection holds it."""
    pauses: int = attrs.field(default=0, init=False)
    """How many `Connection.paused` blocks are open."""
    resumed: Bell = attrs.field(factory=Bell, init=False)
    """Rung after a pause, for the readers."""
    _staged: Mailbox[_Staged] | None = attrs.field(default=None, init=False)
    """What waits for hooks; None where there are none."""
    _received_at: float = attrs.field(default=-math.inf, init=False)
    """Trio's clock, seconds: the time of the last read that brought something."""
    announced: int = attrs.field(default=0, init=False)
    """Messages that the overflow policy has dropped."""

    def __attrs_post_init__(self) -> None:
        session, config = self._session, self._session.config
        self.inbox = Mailbox(
            max_items=config.inbox_size,
            room=session.room if config.overflow == "block" else session.make_room(),
            overflow=config.overflow,
            on_high_water=self._high_water,
            on_low_water=self._low_water,
            taken=session.taken,
            mode="undecided",
            strip=receive_plainly,
        )
        self.receiver = Receiver(self.inbox)
        if session.hooks.dispatches:
            self._staged = Mailbox(room=session.room, taken=session.taken)

    # ----------------------------------------------------------------- whether there is room

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

    @property
    def crowded(self) -> bool:
        """Whether so much waits that those who receive had better be given turns before more is read."""
        return self.inbox.crowded or bool(self._session.crowds)

    async def give_turns(self) -> None:
        """Let those who receive run: they take few messages at a time."""
        await self.inbox.give_turns()
        while self._session.crowds:
            await self._session.crowds.popitem()[0].give_turns()

    def pause(self) -> None:
        """Stop reading, until `resume` has been called as often: what one read may still bring is kept back."""
        self.pauses += 1
        self._session.tell(ReadingPaused())

    def resume(self) -> None:
        """Take back one `pause`."""
        self.pauses -= 1
        self._session.tell(ReadingResumed())
        self.resumed.ring()

    # ----------------------------------------------------------------- the reader's side

    def count(self, messages: int, size: int) -> None:
        """Count messages that have arrived."""
        session = self._session
        self._received_at = trio.current_time()
        session.counts.messages_received += messages
        session.counts.bytes_received += size
        session.hub.count("received", messages, size)

    def take(self, messages: Sequence[Any], payloads: Sequence[str | bytes], epoch: int, at: float) -> None:
        """Give ordinary messages to whoever waits, and keep the others.

        `epoch` is the number of the link that brought them, and `at` the time when they were read, of Trio's clock.
        """
        items = messages if self.inbox.mode == "payloads" else [self._delivery(each, epoch, at) for each in messages]
        if given := self.inbox.hand(items):
            items, messages, payloads = items[given:], messages[given:], payloads[given:]
        if items:
            self.keep(items, self.inbox.room.charge_all(payloads, messages))

    def take_one(self, message: Any, charge: int, epoch: int, at: float) -> None:
        """Give an ordinary message to whoever waits, or keep it; it is charged `charge`. The rest is as of `take`."""
        item = message if self.inbox.mode == "payloads" else self._delivery(message, epoch, at)
        self.keep((item,), (charge,))

    def _delivery(self, message: Any, epoch: int, at: float) -> Delivery[Any]:
        wall = self._session.config.wall_clock() - (trio.current_time() - at)
        return Delivery(message, "", None, None, epoch, at, wall)

    def stage(
        self,
        frame: Frame,
        message: Any,
        link: LinkLife,
        charge: int,
        at: float,
        *,
        is_data: bool = False,
        is_rest: bool = False,
    ) -> None:
        """Let the hooks see a frame, if there are any that hear of its kind."""
        if self._staged is not None and (self._session.hooks.hears_frames or not isinstance(frame, Ping | Pong)):
            self._staged.put_nowait(_Staged(frame, message, link, charge, at, is_data, is_rest), charge)

    def refuse(self, error: Exception, link: LinkLife) -> None:
        """Report a message that cannot be read, or is not valid."""
        self._actions.perform(self._session.report(error, "message"), link)

    def keep(self, messages: Sequence[Any], sizes: Sequence[int]) -> None:
        """Put messages into the inbox; see `_is_forgetful`."""
        inbox = self.inbox
        inbox.set_overflow("drop_oldest" if self._is_forgetful else self._session.config.overflow)
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
        return self._session.hooks.hears_messages or self._session.hub.messages_are_heard

    def _tell_dropped(self, *, at_once: bool = False) -> None:
        """Tell how many messages were dropped; while nobody receives, the first, and then so many at a time."""
        inbox = self.inbox
        count = inbox.dropped - self.announced
        if self._all_are_seen and not inbox.claimed:
            self.announced = inbox.dropped
        elif inbox.claimed or at_once or self.announced == 0 or count >= inbox.max_items:
            self.announced = inbox.dropped
            self._session.tell(Dropped(count=count, where="inbox"))

    def hand_over(self) -> Receiver[Any]:
        """Return a new receiver, in place of the one before."""
        self.receiver = self.receiver.move()
        return self.receiver

    def deliveries(self) -> Receiver[Any]:
        """Return a receiver of ordinary messages with all that is known of each, in place of the one before."""
        self.receiver.check_held()
        self.inbox.decide("deliveries")
        return Receiver(self.inbox, takes="deliveries")

    # ----------------------------------------------------------------- the dispatcher's side

    async def dispatch(self) -> NoReturn:
        """Show frames and messages to the hooks, in order, and pass the messages on."""
        assert self._staged is not None
        receiver = Receiver(self._staged)
        while True:
            self._show(await receiver.receive())
            await self._actions.wait_replies_written()

    def _show(self, staged: _Staged) -> None:
        session, hooks = self._session, self._session.hooks
        frame, kind = staged.frame, frame_kind(staged.frame)
        if hooks.hears_frames and not staged.is_rest:
            data = frame.payload if isinstance(frame, Ping | Pong) else frame
            self._actions.perform(session.ask(session.handlers.connection.handle_frame, kind, data), staged.link)
        if isinstance(frame, Ping | Pong):
            return
        if hooks.hears_messages:
            answer = session.ask(session.handlers.message.handle_message, kind, staged.message)
            self._actions.perform(answer, staged.link)
        if not staged.is_data:
            self.take_one(staged.message, staged.charge, staged.link.epoch, staged.at)

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
                    self.take_one(staged.message, staged.charge, staged.link.epoch, staged.at)
        if self.inbox.dropped > self.announced:
            self._tell_dropped(at_once=True)
        self.inbox.close(self._session.session_over() if self._session.failure is not None else None)
        self.inbox.forget_marks()

    def _high_water(self) -> None:
        self._session.tell(HighWater(messages=len(self.inbox), size=self.inbox.size))

    def _low_water(self) -> None:
        self._session.tell(LowWater(messages=len(self.inbox), size=self.inbox.size))
