"""The subscriptions of a program, and the feeds in which their messages wait, each for one consumer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._session import Session
from trio_nova._signal import Bell
from trio_nova.codecs import weigh_message
from trio_nova.core import check_bool, check_callable, check_count, number, one_of
from trio_nova.core.bounded import OVERHEAD, Room
from trio_nova.core.sequence import BackInStep, Deliver, Duplicate, GapFound, Held, NeedSnapshot, Renewed, Tracker
from trio_nova.errors import Lagged, LinkLost, SubscriptionRejected
from trio_nova.events import Dropped, Event, FeedStale, Gap, HighWater, LowWater, Resynced
from trio_nova.handlers import Channel

__all__ = ["Feed", "FeedOptions", "Subscription"]

NOTICE_SIZE = 512
"""Bytes that a notice between the messages of a feed is charged."""
FeedOverflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "fail"]


@attrs.frozen(kw_only=True)
class FeedOptions:
    """How one feed holds what its consumer has not yet taken."""

    size: int = attrs.field(default=1024, validator=check_count)
    """Messages that may wait; with "block", only the mark by which `HighWater` and `LowWater` are told."""
    overflow: FeedOverflow = attrs.field(
        default="block", validator=one_of("block", "drop_oldest", "drop_newest", "fail")
    )
    """When full: "drop_oldest" or "drop_newest"; "fail" ends the feed with Lagged. "block" keeps all that comes.

    What waits in the feeds that block, and in the inbox, has one bound, `Config.inbox_bytes`: there reading stops.
    Each of the others holds at most as many bytes, too.
    """
    conflate: Callable[[Any], Hashable] | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_callable)
    )
    """Of the messages that wait with the same key, as this returns it, only the newest is kept.

    What it raises ends the feed, and is raised there.
    """
    notices: bool = attrs.field(default=False, validator=check_bool)
    """Whether `Gap`, `Resynced` and `Dropped` stand between the messages, in their place."""
    max_age: float = attrs.field(default=math.inf, validator=number(above=0.0, finite=False))
    """Seconds without data after which a `FeedStale` is told."""


@attrs.define(eq=False)
class Feed(Receiver[Any]):
    """The messages of one subscription, for one consumer. Made by `Connection.subscribe`.

    Iteration ends with the session, or with the block. It raises SubscriptionRejected where the service takes
    the subscription back, and Lagged where the consumer is too slow for a feed that may not drop. Once what
    waited is taken, `receive` raises SessionOver after the session's end, and trio.ClosedResourceError after
    the block's.
    """

    channel: str = ""
    options: FeedOptions = attrs.field(factory=FeedOptions)
    _latest: dict[Hashable, int] = attrs.field(factory=dict, init=False)
    """Of each conflation key, the serial number of its message in the queue."""

    _crowds: dict[Mailbox[Any], None] = attrs.field(factory=dict, kw_only=True, alias="crowds")
    """The mailboxes in which much waits, as the session notes them."""

    @classmethod
    def _of(cls, channel: str, options: FeedOptions, session: Session) -> Feed:
        def tell(kind: type[HighWater | LowWater]) -> None:
            session.tell(kind(messages=len(mailbox), size=mailbox.size, where=channel))

        blocks = options.overflow == "block"
        mailbox: Mailbox[Any] = Mailbox(
            max_items=options.size,
            room=session.room if blocks else session.make_room(),
            overflow="block" if options.overflow == "fail" else options.overflow,
            notice=(lambda count: Dropped(count=count, where=channel)) if options.notices else None,
            taken=session.taken,
            on_high_water=partial(tell, HighWater) if blocks else None,
            on_low_water=partial(tell, LowWater) if blocks else None,
        )
        mailbox.prepare()
        return cls(mailbox, channel, options, crowds=session.crowds)

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped."""
        return self._mailbox.dropped

    @property
    def waiting(self) -> int:
        """Messages that wait to be received."""
        return len(self._mailbox)

    # ----------------------------------------------------------------- the session's side

    def _give(self, data: Any, payload: str | bytes | None, charge: int | None) -> None:
        """Take in a message that came in `payload`, and is charged `charge`; None: that is not known."""
        mailbox = self._mailbox
        if mailbox.is_awaited:
            charge = 0  # it will not wait
        elif payload is None:
            charge = weigh_message(data) + OVERHEAD
        elif charge is None:
            charge = mailbox.room.charge(payload, data)
        self._put(data, charge)
        if mailbox.crowded:
            self._crowds[mailbox] = None

    def _put(self, message: Any, size: int) -> None:
        """Take a message in."""
        mailbox = self._mailbox
        if self.options.conflate is not None:
            try:
                key = self.options.conflate(message)
                serial = self._latest.get(key)
            except Exception as error:
                self._end(error)  # a matter between that function and the consumer
                return
            if serial is not None and mailbox.replace(serial, message, size):
                return
            self._latest[key] = mailbox.next_serial
            if len(self._latest) > 2 * max(self.options.size, len(mailbox)):
                taken = mailbox.next_serial - len(mailbox)
                self._latest = {key: serial for key, serial in self._latest.items() if serial >= taken}
        if self.options.overflow == "fail" and mailbox.full:
            self._end(Lagged(f"the consumer of {self.channel!r} did not keep up"))
        mailbox.put_nowait(message, size)

    def _tell(self, notice: Any) -> None:
        """Put a notice between the messages, where the consumer asked for notices."""
        if self.options.notices:
            self._mailbox.put_nowait(notice, NOTICE_SIZE)

    def _end(self, error: Exception | None = None) -> None:
        """Let what is there be received; after that raise `error`, or end."""
        self._mailbox.close(error)

    def _leave(self) -> None:
        """End with the block of the subscription; what still waits may be taken, and holds up nobody."""
        self._end(trio.ClosedResourceError("the block of this subscription was left"))
        self._mailbox.forget_marks()  # what tells of them holds the mailbox
        self._mailbox.move_to(Room())


@attrs.define(eq=False)
class Subscription:
    """One channel that the program wants to hear, and those who read it: the same object over all links."""

    _session: Session
    id: int
    """The number of the subscription in its session, from 1: they are asked for in this order."""
    key: Hashable
    channel: str
    params: Mapping[str, Any]
    feeds: tuple[Feed, ...] = attrs.field(default=(), init=False)
    newcomers: tuple[Feed, ...] = attrs.field(default=(), init=False)
    """The ones of `feeds` that came into a book that others read already: they get nothing before a snapshot."""
    is_imported: bool = attrs.field(default=False, init=False)
    """Whether it is wanted without a feed, too."""
    refusal: str | None = attrs.field(default=None, init=False)
    """Why the service does not have it; None: it has not said so. It is not asked for on any link."""
    was_confirmed: bool = attrs.field(default=False, init=False)
    """Whether it was confirmed on any link."""
    changed: Bell = attrs.field(factory=Bell, init=False)
    """Rung when an answer for it has come."""
    tracker: Tracker | None = attrs.field(default=None, init=False)
    """As its first reader got it."""
    last: Any = attrs.field(default=None, init=False)
    """The last message, where the handler resumes from it, else only that there was one; None: there was none."""
    heard_at: float = attrs.field(default=math.inf, init=False)
    """Trio's clock, seconds: the time of the last data, or of the confirmation on this link; inf: not known."""
    max_age: float = attrs.field(default=math.inf, init=False)
    """Seconds without data that its most impatient reader allows."""
    is_stale: bool = attrs.field(default=False, init=False)
    duplicates: int = attrs.field(default=0, init=False)
    _lost: LinkLost | None = attrs.field(default=None, init=False)
    """The loss of a link over which messages may have been missed; None once that is told."""
    _lost_at: float = attrs.field(default=0.0, init=False)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody wants it."""
        return self.is_imported or bool(self.feeds)

    @property
    def is_plain(self) -> bool:
        """Whether its messages go to one feed, and nothing else is to be done about them."""
        return (
            self.tracker is None
            and len(self.feeds) == 1
            and self._lost is None
            and self.max_age == math.inf
            and not self._session.hooks.resumes_after
        )

    @property
    def refused(self) -> SubscriptionRejected:
        """The error for those who want it, where the service does not have it."""
        return SubscriptionRejected(f"{self.channel!r}: {self.refusal or 'no reason given'}")

    # ----------------------------------------------------------------- those who read it

    def join(self, feed: Feed, tracker: Tracker | None) -> bool:
        """Let a feed hear it; return whether a snapshot must be asked for, as a book is heard from one on.

        `tracker` is what watches its sequence, for the first feed; later ones are given None.
        """
        is_first = not self.feeds
        if is_first:
            self.tracker, self.last, self._lost = tracker, None, None
        self.feeds += (feed,)
        self.max_age = min(self.max_age, feed.options.max_age)
        if self.heard_at < math.inf:
            self.heard_at = trio.current_time()  # nobody may have kept count
        if self.tracker is None or not self.tracker.resync:
            return False
        if is_first:
            return True
        if self.tracker.last is None and not self.tracker.in_step:
            return False  # nobody has had a snapshot: the first that comes is for all
        self.newcomers += (feed,)
        is_awaited = self.tracker.awaits_snapshot
        self.tracker.renew()
        return not is_awaited

    def leave(self, feed: Feed) -> None:
        """Let a feed hear it no longer."""
        self.feeds = tuple(each for each in self.feeds if each is not feed)
        self.newcomers = tuple(each for each in self.newcomers if each is not feed)
        self.max_age = min((each.options.max_age for each in self.feeds), default=math.inf)
        feed._leave()

    def load(self, *, imported: bool) -> None:
        """Want it without a feed, or not any more."""
        self.is_imported = imported

    def want_again(self) -> None:
        """Ask a service that does not have it again."""
        self.refusal = None

    def end(self, error: Exception | None = None) -> None:
        """End all feeds: with the session, or with `error`."""
        self.changed.ring()
        for feed in self.feeds:
            feed._end(error)

    # ----------------------------------------------------------------- what the service says of it

    def confirmed(self, now: float) -> None:
        """Take note that the service tells us of it from now on."""
        if self._lost is not None and self.tracker is None:
            self.tell_gap("unknown")
        self.was_confirmed, self.refusal = True, None  # one that was not answered in time counts as refused
        self.heard_at, self.is_stale = now, False

    def refuse(self, reason: str) -> None:
        """Take note that the service does not have it, or not any more."""
        self.refusal = reason
        if self.was_confirmed:
            self.end(self.refused)

    def link_lost(self, lost: LinkLost, *, was_confirmed: bool) -> None:
        """Take note that messages may be missed from now on, as no link brings them."""
        # Data may come before the confirmation, or without one; from then on they may be missed.
        if (was_confirmed or self.last is not None) and self._lost is None:
            self._lost, self._lost_at = lost, trio.current_time()
        self.heard_at = math.inf
        if self.tracker is not None:
            self.tracker.restart(resumed=self._session.handlers.subscription.resumes)

    def stale_at(self) -> float:
        """Return when it will have been silent for too long; inf where nobody wants to know, or was told."""
        return math.inf if self.is_stale else self.heard_at + self.max_age

    def tell_stale(self, now: float) -> None:
        """Tell that it has been silent for too long."""
        self.is_stale = True
        self._notify(FeedStale(id=self.id, channel=self.channel, age=now - self.heard_at), self.feeds)

    def asked_as(self) -> Channel:
        """Return the channel as it is to be asked for: to go on after the last message, where the handler can."""
        channel = Channel(self.key, self.channel, self.params)
        if self.last is None or not self._session.hooks.resumes_after:
            return channel
        if self.newcomers or (self.tracker is not None and not self.tracker.in_step):
            return channel  # from the beginning: changes would not do
        try:
            params = self._session.handlers.subscription.resume(channel, self.last)
        except Exception as exc:
            self._session.handler_failed(exc)
            return channel
        return attrs.evolve(channel, params=params)

    # ----------------------------------------------------------------- data

    def deliver(self, message: Any, payload: str | bytes | None, charge: int | None, now: float) -> bool:
        """Give a message to those who read; return whether a snapshot must be asked for. See `Feed._give`."""
        if self.max_age < math.inf:
            self.heard_at, self.is_stale = now, False
        if self.tracker is not None:
            return self._deliver_in_sequence(self.tracker, message, payload, charge)
        if self._lost is not None:
            self.tell_gap("unknown")
        self._put(message, payload, charge)
        return False

    def _deliver_in_sequence(
        self, tracker: Tracker, message: Any, payload: str | bytes | None, charge: int | None
    ) -> bool:
        try:
            verdict = tracker.see(message)
        except Exception as exc:
            self._session.note(exc, "message")
            self._put(message, payload, charge)
            return False
        match verdict:
            case Deliver():
                if self._lost is not None:
                    self.tell_gap("unknown" if self.last is None else "resumed")
                self._put(message, payload, charge)
            case Duplicate():
                self.duplicates += 1
            case GapFound(lost=count, held=held):
                self.tell_gap("lost", count)
                if held:
                    return True
                self._put(message, payload, charge)
            case NeedSnapshot():
                return True
            case Held():
                pass
            case Renewed(known):
                newcomers, self.newcomers = self.newcomers, ()
                self._put(message, payload, charge, newcomers if known else self.feeds)
            case BackInStep(messages, gap):
                if self._lost is not None or (gap is not None and not gap.held):
                    self.tell_gap("lost" if gap is not None else "unknown")
                if self.last is not None:
                    self._notify(Resynced(id=self.id, channel=self.channel))
                self.newcomers = ()
                for each in messages:
                    self._put(each, None, None)
        return False

    def _put(
        self, message: Any, payload: str | bytes | None, charge: int | None, feeds: Sequence[Feed] | None = None
    ) -> None:
        """Give a message to `feeds`; None: to all but the newcomers."""
        hooks = self._session.hooks
        # Only who resumes from a message needs it kept: each would be cold when it is freed.
        self.last = message if hooks.resumes_after else True
        data = message if hooks.data_of is None else hooks.data_of(message)
        for feed in self._seated if feeds is None else feeds:
            feed._give(data, payload, charge)

    @property
    def _seated(self) -> Sequence[Feed]:
        return [feed for feed in self.feeds if feed not in self.newcomers] if self.newcomers else self.feeds

    # ----------------------------------------------------------------- notices

    def distrust(self, *, was_confirmed: bool) -> bool:
        """Take note that messages of the link are missing, nobody knows of which channel; return as `deliver` does."""
        has_begun = was_confirmed or self.last is not None
        if not has_begun or not (self.tracker is None or (self.tracker.resync and self.tracker.in_step)):
            return False
        self.tell_gap("unknown", cause="messages of this link are missing, nobody knows of which channel")
        if self.tracker is not None:
            self.tracker.distrust()
        return self.tracker is not None

    def tell_gap(
        self,
        result: Literal["resumed", "lost", "unknown"],
        count: int | None = None,
        cause: str = "its messages were broken off",
    ) -> None:
        """Say that messages may be missing here: over the loss of a link, or in the middle of one."""
        lost, self._lost = self._lost, None
        now, epoch = trio.current_time(), self._session.epoch
        gap = Gap(
            id=self.id,
            channel=self.channel,
            epoch_from=epoch if lost is None else lost.epoch,
            epoch_to=epoch,
            since=now if lost is None else self._lost_at,
            until=now,
            cause=cause if lost is None else str(lost),
            outcome=result,
            lost=count,
        )
        self._notify(gap)

    def _notify(self, notice: Event, feeds: Sequence[Feed] | None = None) -> None:
        self._session.tell(notice)
        for feed in self._seated if feeds is None else feeds:
            feed._tell(notice)
