"""The subscriptions of a program, and the feeds in which their messages wait, each for one consumer."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeAlias

import attrs
import msgspec
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._session import Session
from trio_nova._signal import Bell
from trio_nova.codecs import encode_json, weigh_message
from trio_nova.core import check_bool, check_callable, check_count, number, one_of
from trio_nova.core.bounded import OVERHEAD, Room
from trio_nova.core.sequence import BackInStep, Deliver, Duplicate, GapFound, Held, NeedSnapshot, Renewed, Tracker
from trio_nova.errors import BadMessage, Lagged, LinkLost, NovaError, SubscriptionRejected
from trio_nova.events import (
    Dropped,
    Event,
    FeedStale,
    Gap,
    HighWater,
    LowWater,
    Resynced,
    SubscriptionEnded,
    SubscriptionRefused,
)
from trio_nova.handlers import Channel, Hole
from trio_nova.messages import M_co
from trio_nova.readings import Data, Step, as_step

__all__ = [
    "Carrier",
    "Delivery",
    "Feed",
    "FeedOptions",
    "Subscription",
    "acknowledge_unread",
    "receive_plainly",
    "share",
]

MAX_KNOWN_IDS = 10_000
"""Ids of messages of a channel that can be back-filled, by which repetitions are told; the oldest is forgotten."""
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


class Carrier(Protocol):
    """The link that has brought a message, or the one on which a message came to be asked for elsewhere."""

    @property
    def epoch(self) -> int:
        """The number of the link that brought the message; 0: none did."""
        ...

    @property
    def link(self) -> Carrier:
        """The carrier of what the link itself brings."""
        ...

    def acknowledge(self, message: Any) -> None:
        """Send what acknowledges a message, on this link or not at all; raises NotSent where it is gone."""
        ...


class SharedAck:
    """The acknowledgement of a message that several read: it leaves when the last of them is done with the message."""

    __slots__ = ("_message", "_readers")

    def __init__(self, message: Any, readers: int) -> None:
        self._message, self._readers = message, readers

    def done(self) -> Any:
        """Take note that one more is done with the message; return what to send, with the last of them."""
        self._readers -= 1
        return None if self._readers else self._message


def share(data: Data, readers: int) -> Data:
    """Return data as so many may have them, each with an acknowledgement of its own, of which the last leaves."""
    if data.ack is None or readers == 1:
        return data
    return msgspec.structs.replace(data, ack=SharedAck(data.ack, readers))


def acknowledge(ack: Any, carrier: Carrier) -> None:
    """Acknowledge a message on the link that brought it; raises NotSent where that is gone."""
    while isinstance(ack, SharedAck):
        ack = ack.done()
    if ack is not None:
        carrier.acknowledge(ack)


def acknowledge_unread(data: Data, carrier: Carrier) -> None:
    """Acknowledge a message that nobody will read: the service would wait for it, and bring it again on each link."""
    with suppress(NovaError):
        acknowledge(data.ack, carrier)


class Delivery(msgspec.Struct, Generic[M_co]):
    """A message, and what is known about it."""

    payload: M_co
    channel: str
    """The channel of the feed that it belongs to; "" for an ordinary message."""
    step: Step | None
    """Its place in the channel's sequence; None: it does not say."""
    id: Hashable | None
    """Its name, by which repetitions are told; None: it has none."""
    epoch: int
    """The number of the link that brought it; 0: it was asked for elsewhere."""
    at: float
    """Trio's clock, seconds: when it was read."""
    wall: float
    """Unix time, seconds: when it was read."""
    _carrier: Carrier | None = None
    _ack: Any = None

    def ack(self) -> None:
        """Acknowledge it to the service, where that wants it, on the link that brought it. The first call counts.

        Where several feeds have the message, it is acknowledged when all of them have done so.

        Raises:
            NotSent: that link is gone; the service will deliver the message again.
        """
        ack, self._ack = self._ack, None
        if ack is not None and self._carrier is not None:
            acknowledge(ack, self._carrier)

    def __repr__(self) -> str:
        return f"Delivery({self.payload!r}, channel={self.channel!r}, step={self.step!r}, epoch={self.epoch})"


@attrs.define(eq=False)
class Feed(Receiver[M_co]):
    """The messages of one subscription, or of several, for one consumer. Made by `Connection.subscribe`.

    Iteration ends with the session, with the block, or where the service says that there is no more to come. It raises
    SubscriptionRejected where the service takes the subscription back, and Lagged where the consumer is too slow for
    a feed that may not drop. Once what waited is taken, `receive` raises SessionOver after the session's end,
    trio.EndOfChannel after the channel's, and trio.ClosedResourceError after the block's.

    A message that wants to be acknowledged is so when it comes, unless it is taken by `deliveries`.
    """

    channel: str = ""
    """The channel; of several, the first and how many more."""
    options: FeedOptions = attrs.field(factory=FeedOptions)
    _latest: dict[Hashable, int] = attrs.field(factory=dict, init=False)
    """Of each conflation key, the serial number of its message in the queue."""
    _session: Session = attrs.field(kw_only=True, alias="session")
    _type: Any = attrs.field(kw_only=True, alias="type")
    """The type to which payloads are converted; None: they stay as they are."""
    _sources: set[int] = attrs.field(factory=set, init=False)
    """The ids of its subscriptions that have not ended."""

    @classmethod
    def _of(cls, channel: str, options: FeedOptions, session: Session, type: Any = None) -> Feed[Any]:
        def tell(kind: builtins.type[HighWater | LowWater]) -> None:
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
            mode="undecided",
            strip=receive_plainly,
            let_go=receive_plainly,
        )
        mailbox.prepare()
        return cls(mailbox, channel=channel, options=options, session=session, type=type)

    def deliveries(self) -> Receiver[Delivery[M_co]]:
        """Return the feed as a receiver of `Delivery`, each with what is known about it, and with its `ack`.

        To be called before anything is received, and once for all: then payloads are not to be had by `receive`.

        Raises:
            ConfigError: something has been received already.
        """
        self._mailbox.decide("deliveries")
        mailbox: Mailbox[Any] = self._mailbox
        return Receiver(mailbox, takes="deliveries")

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped."""
        return self._mailbox.dropped

    @property
    def waiting(self) -> int:
        """Messages that wait to be received."""
        return len(self._mailbox)

    # ----------------------------------------------------------------- the session's side

    def _give(self, data: Data, frame: str | bytes | None, charge: int | None, now: float, carrier: Carrier) -> None:
        """Take in data that came in `frame`, and are charged `charge`; None: that is not known."""
        payload, mailbox = data.payload, self._mailbox
        if self._type is not None:
            try:
                payload = msgspec.convert(payload, self._type)
            except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as exc:
                error = BadMessage(f"a message of {self.channel!r} is not of the type that was asked for: {exc}")
                self._session.note(error, "message")
                acknowledge_unread(data, carrier)
                return
        if mailbox.is_awaited:
            charge = 0  # it will not wait
        elif frame is None:
            charge = weigh_message(data.payload) + OVERHEAD
        elif charge is None:
            charge = mailbox.room.charge(frame, payload)
        if mailbox.mode == "payloads":
            self._put(payload, payload, charge)
            acknowledge_unread(data, carrier)  # when it is read nobody could
        else:
            self._put(payload, self._delivery(data, payload, now, carrier), charge)
        if mailbox.crowded:
            self._session.crowds[mailbox] = None

    def _delivery(self, data: Data, payload: Any, now: float, carrier: Carrier) -> Delivery[Any]:
        wall, channel = self._session.config.wall_clock(), data.channel
        name = channel if isinstance(channel, str) else self.channel
        return Delivery(payload, name, as_step(data.step), data.id, carrier.epoch, now, wall, carrier, data.ack)

    def _put(self, payload: Any, item: Any, size: int) -> None:
        """Take a message in, which waits as `item`."""
        mailbox = self._mailbox
        if self.options.conflate is not None:
            try:
                key = self.options.conflate(payload)
                serial = self._latest.get(key)
            except Exception as error:
                self._end(error)  # a matter between that function and the consumer
                return
            if serial is not None and mailbox.replace(serial, item, size):
                return
            self._latest[key] = mailbox.next_serial
            if len(self._latest) > 2 * max(self.options.size, len(mailbox)):
                taken = mailbox.next_serial - len(mailbox)
                self._latest = {key: serial for key, serial in self._latest.items() if serial >= taken}
        if self.options.overflow == "fail" and mailbox.full:
            self._end(Lagged(f"the consumer of {self.channel!r} did not keep up"))
        mailbox.put_nowait(item, size)

    def _joined(self, id: int) -> None:
        """Take note of a subscription whose messages come here."""
        self._sources.add(id)

    def _source_ended(self, id: int, notice: Event, error: Exception | None) -> None:
        """Take note that a subscription brings nothing any more: with the last, let what is there be received.

        After that raise `error`, or end in good order.
        """
        self._sources.discard(id)
        if not self._sources:
            self._end(trio.EndOfChannel("the service says that there is no more to come") if error is None else error)
        else:
            self._tell(notice)

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
    feeds: tuple[Feed[Any], ...] = attrs.field(default=(), init=False)
    newcomers: tuple[Feed[Any], ...] = attrs.field(default=(), init=False)
    """The ones of `feeds` that came into a book that others read already: they get nothing before a snapshot."""
    is_imported: bool = attrs.field(default=False, init=False)
    """Whether it is wanted without a feed, too."""
    refusal: str | None = attrs.field(default=None, init=False)
    """Why the service does not have it; None: it has not said so. It is not asked for on any link."""
    was_confirmed: bool = attrs.field(default=False, init=False)
    """Whether it was confirmed on any link."""
    changed: Bell = attrs.field(factory=Bell, init=False)
    """Rung when an answer for it has come."""
    is_complete: bool = attrs.field(default=False, init=False)
    """Whether the service has said that there is no more to come, and all is well."""
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
    _lost_wall: float = attrs.field(default=0.0, init=False)
    _is_filling: bool = attrs.field(default=False, init=False)
    """Whether the message at hand was missed, and is brought now: the gap is told when all are."""
    _known: dict[Hashable, None] = attrs.field(factory=dict, init=False)
    """Ids of messages that were delivered, where they may be brought again by a back-fill."""

    @property
    def label(self) -> str:
        """Its name in events and errors: the channel, and the params where there are some."""
        if not self.params:
            return self.channel
        try:
            return f"{self.channel} {encode_json(dict(self.params))}"
        except BadMessage:
            return f"{self.channel} {dict(self.params)!r}"

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
            and not self._session.hooks.backfills
        )

    @property
    def refused(self) -> SubscriptionRejected:
        """The error for those who want it, where the service does not have it."""
        return SubscriptionRejected(f"{self.label!r}: {self.refusal or 'no reason given'}")

    # ----------------------------------------------------------------- those who read it

    def join(self, feed: Feed[Any], tracker: Tracker | None) -> bool:
        """Let a feed hear it; return whether a snapshot must be asked for, as a book is heard from one on.

        `tracker` is what watches its sequence, for the first feed; later ones are given None.
        """
        is_first = not self.feeds
        if is_first:
            self.tracker, self.last, self._lost = tracker, None, None
        self.feeds += (feed,)
        feed._joined(self.id)
        self.max_age = min(self.max_age, feed.options.max_age)
        if self.heard_at < math.inf:
            self.heard_at = trio.current_time()  # nobody may have kept count
        if self.tracker is None or not self.tracker.resync:
            return False
        if is_first:
            return True
        if not self.tracker.has_begun and not self.tracker.in_step:
            return False  # nobody has had a snapshot: the first that comes is for all
        self.newcomers += (feed,)
        is_awaited = self.tracker.awaits_snapshot
        self.tracker.renew()
        return not is_awaited

    def leave(self, feed: Feed[Any]) -> None:
        """Let a feed hear it no longer."""
        self.feeds = tuple(each for each in self.feeds if each is not feed)
        self.newcomers = tuple(each for each in self.newcomers if each is not feed)
        self.max_age = min((each.options.max_age for each in self.feeds), default=math.inf)

    def load(self, *, imported: bool) -> None:
        """Want it without a feed, or not any more."""
        self.is_imported = imported

    def want_again(self) -> None:
        """Ask a service that does not have it again."""
        self.refusal, self.is_complete = None, False

    def end(self) -> None:
        """End all feeds with the session."""
        self.changed.ring()
        for feed in self.feeds:
            feed._end()

    def complete(self, reason: str) -> None:
        """Take note that the service has ended it: in good order, unless there is a reason."""
        self.refusal, self.is_complete = reason or "it is complete", not reason
        ended = SubscriptionEnded(id=self.id, channel=self.label, reason=reason)
        for feed in self.feeds:
            feed._source_ended(self.id, ended, self.refused if reason else None)

    # ----------------------------------------------------------------- what the service says of it

    def confirmed(self, now: float, *, fills: bool = False) -> None:
        """Take note that the service tells us of it from now on; `fills`: what was missed is being brought."""
        if self._lost is not None and self.tracker is None and not fills:
            self.tell_gap("unknown")
        self.was_confirmed, self.refusal = True, None  # one that was not answered in time counts as refused
        for feed in self.feeds:
            feed._joined(self.id)
        self.heard_at, self.is_stale = now, False

    def refuse(self, reason: str) -> None:
        """Take note that the service does not have it, or not any more."""
        is_news, self.refusal = self.refusal is None, reason
        if self.was_confirmed and is_news:
            refused = SubscriptionRefused(id=self.id, channel=self.label, reason=reason, restoring=True)
            for feed in self.feeds:
                feed._source_ended(self.id, refused, self.refused)

    def link_lost(self, lost: LinkLost, *, was_confirmed: bool) -> None:
        """Take note that messages may be missed from now on, as no link brings them."""
        # Data may come before the confirmation, or without one; from then on they may be missed.
        if (was_confirmed or self.last is not None) and self._lost is None:
            self._lost, self._lost_at = lost, trio.current_time()
            self._lost_wall = self._session.config.wall_clock()
        self.heard_at = math.inf
        if self.tracker is not None:
            self.tracker.restart(resumed=self._session.handlers.subscription.resumes)

    def stale_at(self) -> float:
        """Return when it will have been silent for too long; inf where nobody wants to know, or was told."""
        return math.inf if self.is_stale else self.heard_at + self.max_age

    def tell_stale(self, now: float) -> None:
        """Tell that it has been silent for too long."""
        self.is_stale = True
        self._notify(FeedStale(id=self.id, channel=self.label, age=now - self.heard_at), self.feeds)

    def asked_as(self) -> Channel:
        """Return the channel as it is to be asked for: to go on after the last message, where the handler can."""
        channel = self.wanted_channel
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

    # ----------------------------------------------------------------- holes

    @property
    def has_hole(self) -> bool:
        """Whether messages may be missing over the loss of a link, which could be brought from elsewhere."""
        return self._lost is not None and bool(self.feeds) and self._is_filled

    @property
    def _is_filled(self) -> bool:
        """Whether what is missed is brought from elsewhere: not so of a book, which a snapshot mends."""
        return self._session.hooks.backfills and (self.tracker is None or not self.tracker.resync)

    @property
    def wanted_channel(self) -> Channel:
        """The channel, as hooks are shown it."""
        return Channel(self.key, self.channel, self.params)

    def hole(self) -> Hole:
        """Return what is missing over the loss of a link."""
        after = None if self.tracker is None else self.tracker.last
        return Hole(
            channel=self.wanted_channel, after=after, since=self._lost_wall, until=self._session.config.wall_clock()
        )

    def fill(self, data: Data, carrier: Carrier) -> None:
        """Give a message that was missed to those who read, unless they have it."""
        step = as_step(data.step)
        if self.tracker is not None and step is not None and step.last is not None and not self.tracker.is_ahead(step):
            acknowledge_unread(data, carrier)
            return
        self._is_filling = True
        try:
            self.deliver(data, None, None, trio.current_time(), carrier)
        finally:
            self._is_filling = False

    def filled(self, *, is_whole: bool) -> None:
        """Tell the gap over a loss, when what was missed has been brought, or cannot be.

        Where there are numbers, that of the next message tells what became of it.
        """
        if self._lost is not None and self.tracker is None:
            self.tell_gap("unknown" if is_whole else "lost")

    # ----------------------------------------------------------------- data

    def deliver(self, data: Data, frame: str | bytes | None, charge: int | None, now: float, carrier: Carrier) -> bool:
        """Give a message to those who read; return whether a snapshot must be asked for. See `Feed._give`."""
        if self.max_age < math.inf:
            self.heard_at, self.is_stale = now, False
        if data.id is not None and self._is_filled and self._knows(data.id):
            self.duplicates += 1
            acknowledge_unread(data, carrier)
            return False
        if self.tracker is not None:
            return self._deliver_in_sequence(self.tracker, data, frame, charge, now, carrier)
        if self._lost is not None and not self._is_filling:
            self.tell_gap("unknown")
        self._put(data, frame, charge, now, carrier)
        return False

    def _knows(self, id: Hashable) -> bool:
        """Return whether a message of this id was delivered; from now on it is known."""
        if id in self._known:
            return True
        self._known[id] = None
        if len(self._known) > MAX_KNOWN_IDS:
            del self._known[next(iter(self._known))]
        return False

    def _deliver_in_sequence(
        self,
        tracker: Tracker,
        data: Data,
        frame: str | bytes | None,
        charge: int | None,
        now: float,
        carrier: Carrier,
    ) -> bool:
        try:
            verdict = tracker.see(as_step(data.step), data)
        except Exception as exc:
            self._session.note(exc, "message")
            self._put(data, frame, charge, now, carrier)
            return False
        match verdict:
            case Deliver():
                if self._lost is not None and not self._is_filling:
                    self.tell_gap("unknown" if self.last is None else "resumed")
                self._put(data, frame, charge, now, carrier)
            case Duplicate():
                self.duplicates += 1
                acknowledge_unread(data, carrier)
            case GapFound(held=held):
                self._tell_found(verdict)
                if held:
                    return True
                self._put(data, frame, charge, now, carrier)
            case NeedSnapshot():
                return True
            case Held():
                pass
            case Renewed(known, following):
                newcomers, self.newcomers = self.newcomers, ()
                self._put(data, frame, charge, now, carrier, newcomers if known else self.feeds)
                for each in following:
                    self._put(each, None, None, now, carrier.link, newcomers)
            case BackInStep(messages, gap):
                if self._lost is not None or (gap is not None and not gap.held):
                    self.tell_gap("lost" if gap is not None else "unknown")
                if self.last is not None:
                    self._notify(Resynced(id=self.id, channel=self.label))
                self.newcomers = ()
                for each in messages:
                    self._put(each, None, None, now, carrier if each is data else carrier.link)
        return False

    def _put(
        self,
        data: Data,
        frame: str | bytes | None,
        charge: int | None,
        now: float,
        carrier: Carrier,
        feeds: Sequence[Feed[Any]] | None = None,
    ) -> None:
        """Give a message to `feeds`; None: to all but the newcomers."""
        # Only who resumes from a message needs it kept: each would be cold when it is freed.
        self.last = data.payload if self._session.hooks.resumes_after else True
        readers = self._seated if feeds is None else feeds
        if data.ack is not None:
            if not readers:
                acknowledge_unread(data, carrier)
            data = share(data, len(readers))
        for feed in readers:
            feed._give(data, frame, charge, now, carrier)

    @property
    def _seated(self) -> Sequence[Feed[Any]]:
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

    def _tell_found(self, found: GapFound) -> None:
        """Say that messages are missing, as the steps show, or that a checksum does not hold."""
        first = last = None
        if found.lost is not None and found.expected is not None and found.got is not None:
            first, last = found.expected, found.got - 1
        cause = found.cause or "its messages were broken off"
        self.tell_gap("lost", found.lost, cause, first=first, last=last)

    def tell_gap(
        self,
        result: Literal["resumed", "lost", "unknown"],
        count: int | None = None,
        cause: str = "its messages were broken off",
        *,
        first: int | None = None,
        last: int | None = None,
    ) -> None:
        """Say that messages may be missing here: over the loss of a link, or in the middle of one."""
        lost, self._lost = self._lost, None
        wall = self._session.config.wall_clock()
        now, epoch = trio.current_time(), self._session.epoch
        gap = Gap(
            id=self.id,
            channel=self.label,
            epoch_from=epoch if lost is None else lost.epoch,
            epoch_to=epoch,
            since=now if lost is None else self._lost_at,
            until=now,
            cause=cause if lost is None else str(lost),
            outcome=result,
            lost=count,
            first=first,
            last=last,
            wall_since=wall if lost is None else self._lost_wall,
            wall_until=wall,
        )
        self._notify(gap)

    def _notify(self, notice: Event, feeds: Sequence[Feed[Any]] | None = None) -> None:
        self._session.tell(notice)
        for feed in self._seated if feeds is None else feeds:
            feed._tell(notice)


def receive_plainly(item: Any) -> Any:
    """Return the payload of a delivery, and acknowledge it, as nobody else will.

    Where its link is gone the service delivers it again.
    """
    if not isinstance(item, Delivery):
        return item
    with suppress(NovaError):
        item.ack()
    return item.payload
