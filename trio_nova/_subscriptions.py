"""Subscriptions: what the program wants to hear, brought to every link, and the feeds it hears it by."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import attrs
import trio

from trio_nova._feeds import Feed, FeedOptions
from trio_nova._mailbox import Mailbox
from trio_nova._outbound import Outbound
from trio_nova._questions import Questions
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Bell, Latch, Signal
from trio_nova.codecs import weigh_message
from trio_nova.core.bounded import OVERHEAD
from trio_nova.core.outbox import Lane
from trio_nova.core.partings import Partings
from trio_nova.core.sequence import BackInStep, Deliver, Duplicate, GapFound, Held, NeedSnapshot, Renewed, Tracker
from trio_nova.core.subscriptions import Book, Subscription, SubscriptionState
from trio_nova.errors import (
    BadMessage,
    ConfigError,
    LinkLost,
    NotSent,
    NovaError,
    OutcomeUnknown,
    RequestFailed,
    RetryAdvice,
    SessionOver,
    SubscriptionRejected,
)
from trio_nova.events import (
    DataUnclaimed,
    Dropped,
    Event,
    FeedStale,
    Gap,
    Resynced,
    SubscriptionConfirmed,
    SubscriptionRefused,
    SubscriptionsRestored,
)
from trio_nova.handlers import Channel, Granted, Refused, SubscriptionHandler

__all__ = ["Subscriptions"]

MAX_FAILURES = 2
"""How often a subscription may go unanswered before it counts as refused."""
MAX_EARLY = 64
"""Data that may wait for the answer which tells whose they are."""
ASK_AGAIN_AFTER = 1.0
"""Seconds after a refusal that says to try again, as a rate limit's does."""


@attrs.define(eq=False)
class _Desk:
    """One subscription and those who read it."""

    id: int
    """The number of the subscription in its session, from 1."""
    subscription: Subscription
    feeds: tuple[Feed, ...] = ()
    newcomers: tuple[Feed, ...] = ()
    """Those of `feeds` that came into a book that others read already: they get nothing before a snapshot."""
    is_late: bool = False
    """Whether a snapshot is wanted that may have come before the answer which is awaited."""
    changed: Bell = attrs.field(factory=Bell)
    """Rung when an answer for it has come."""
    was_confirmed: bool = False
    """Whether it was confirmed on any link."""
    lost: LinkLost | None = None
    """The loss of a link over which messages may have been missed; None once that is told."""
    lost_at: float = 0.0
    last: Any = None
    """The last message, where the handler resumes from it, else only that there was one; None: there was none."""
    heard_at: float = math.inf
    """When data came last, or the confirmation on this link, where somebody wants to know; else inf."""
    is_stale: bool = False
    tracker: Tracker | None = None
    """As its first reader got it."""
    duplicates: int = 0

    @property
    def seated(self) -> Sequence[Feed]:
        """The feeds that get what comes."""
        return [feed for feed in self.feeds if feed not in self.newcomers] if self.newcomers else self.feeds

    @property
    def max_age(self) -> float:
        """Seconds without data that its most impatient reader allows."""
        return min((feed.options.max_age for feed in self.feeds), default=math.inf)


@attrs.define(eq=False)
class Subscriptions:
    """Keeps what the service knows in step with what the program wants."""

    _session: Session
    _outbound: Outbound
    _requests: Requests
    book: Book = attrs.field(init=False)
    _questions: Questions = attrs.field(init=False)
    changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the subscriber."""
    _desks: dict[Hashable, _Desk] = attrs.field(factory=dict, init=False)
    _direct: dict[Hashable, Feed] = attrs.field(factory=dict, init=False)
    """Of messages of these names, the feeds that get them, where nothing else is to be done: no look at their desk."""
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    """Where the subscriber runs: that of a link that may be asked."""
    _running: bool = attrs.field(default=False, init=False)
    link_tracker: Tracker | None = attrs.field(default=None, init=False)
    """What is to be shown every message of this link; see `watch`."""
    _at_rest: bool = attrs.field(default=True, init=False)
    """Whether the subscriber has nothing to ask for, and no answer to wait for."""
    _restored: Latch = attrs.field(factory=Latch, init=False)
    _restore_began: float = attrs.field(default=0.0, init=False)
    _unclaimed_told: bool = attrs.field(default=False, init=False)
    # These are seldom used: an empty dict is much smaller than an empty set.
    _imported: dict[Hashable, None] = attrs.field(factory=dict, init=False)
    """What is wanted without a feed."""
    _crowded: dict[Feed, None] = attrs.field(factory=dict, init=False)
    """Feeds in which much waits."""
    _aging: dict[_Desk, None] = attrs.field(factory=dict, init=False)
    """Those of which some reader wants to know when they fall silent."""
    _resyncs: list[_Desk] = attrs.field(factory=list, init=False)
    """Those that are to be asked for anew, to get a snapshot."""
    _early: list[tuple[Hashable, Any]] = attrs.field(factory=list, init=False)
    """Data under names of the service's own that it has not told yet: an answer that is awaited may."""
    _payload: str | bytes | None = attrs.field(default=None, init=False)
    """What the message came in that is being taken in; None where that is not known any more."""
    _known_charge: int | None = attrs.field(default=None, init=False)
    """What it is charged, where it was not alone in that payload."""
    _partings: Partings | None = attrs.field(default=None, init=False)
    """What was given up on this link; None: nothing yet."""
    _last_id: int = attrs.field(default=0, init=False)
    unclaimed: int = attrs.field(default=0, init=False)
    """Messages of channels that nobody is subscribed to."""
    _data_of: Callable[[Any], Any] | None = attrs.field(init=False)
    """None: the consumer gets the message as it is."""
    _looks_back: bool = attrs.field(init=False)
    """Whether the handler resumes from the last message: else none is kept, as each would be cold when it is freed."""

    def __attrs_post_init__(self) -> None:
        handler = self._session.handlers.subscription
        self._data_of = None if type(handler).data_of is SubscriptionHandler.data_of else handler.data_of
        self._looks_back = type(handler).resume is not SubscriptionHandler.resume
        self._questions = Questions(self._session)
        self.book = Book(unsubscribes_by_id=handler.unsubscribes_by_id)

    # ----------------------------------------------------------------- the program's side

    @asynccontextmanager
    async def subscribe(
        self, channel: str, options: FeedOptions, params: Mapping[str, Any]
    ) -> AsyncGenerator[Feed, None]:
        """Hold a subscription while the block lasts; see `Connection.subscribe`."""
        session = self._session
        session.check_open()
        self._outbound.check_not_draining()
        self._check_readable()
        handler = session.handlers.subscription
        key = handler.key(channel, params)
        desk = self._desks.get(key)
        if desk is not None and dict(desk.subscription.params) != dict(params):
            raise ConfigError("params", f"{channel!r} is subscribed to already, with other params")
        is_first = desk is None or not desk.feeds
        tracker = handler.tracker(Channel(key, channel, params)) if is_first else None
        feed = Feed._of(channel, options, session, lambda count: self._dropped(count, channel))
        subscription = self.book.want(key, channel, params, trio.current_time())
        if desk is None:
            desk = self._desks[key] = _Desk(self._next_id(), subscription)
        if is_first:
            desk.tracker, desk.last, desk.lost = tracker, None, None
        self._seat(desk, feed, is_first)
        if options.max_age < math.inf and desk not in self._aging:
            self._aging[desk] = None
            if desk.heard_at < math.inf:
                desk.heard_at = trio.current_time()  # nobody has kept count
        try:
            self._ask_soon()
            await self._wait_confirmed(desk)
            yield feed
        finally:
            self._look_at(desk)
            desk.feeds = tuple(each for each in desk.feeds if each is not feed)
            desk.newcomers = tuple(each for each in desk.newcomers if each is not feed)
            feed._leave()
            self._release(key)

    def _seat(self, desk: _Desk, feed: Feed, is_first: bool) -> None:
        """Let a feed hear its channel: a book from a snapshot of its own on, which is asked for if need be."""
        self._look_at(desk)
        desk.feeds += (feed,)
        tracker = desk.tracker
        if tracker is None or not tracker.resync:
            return
        if not is_first:
            if tracker.last is None and not tracker.in_step:
                return  # nobody has had a snapshot: the first that comes is for all
            desk.newcomers += (feed,)
            is_awaited = tracker.awaits_snapshot
            tracker.renew()
            if is_awaited:
                return
        self._resync(desk)

    def load(self, rows: Sequence[object]) -> None:
        """Want what an export holds, without a feed."""
        self._check_readable()
        handler = self._session.handlers.subscription
        for subscription in self.book.load(rows, handler.key, trio.current_time()):
            if subscription.key in self._imported:
                self.book.release(subscription.key, trio.current_time())
                continue
            self._imported[subscription.key] = None
            if subscription.key not in self._desks:
                self._desks[subscription.key] = _Desk(self._next_id(), subscription)
        self._ask_soon()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _check_readable(self) -> None:
        """Refuse, with a ConfigError, a subscription whose confirmation could never be understood."""
        handler = self._session.handlers.subscription
        reads = type(handler).handle_subscription_response is not SubscriptionHandler.handle_subscription_response
        if self._session.reads_text_only and not reads and not handler.correlated:
            raise ConfigError(
                "codec",
                "the default hooks cannot read a confirmation in a text: set codec=JsonCodec(), or a "
                "subscription_handler",
            )

    def unload(self, channel: str, params: Mapping[str, Any]) -> None:
        """Give up what was loaded."""
        key = self._session.handlers.subscription.key(channel, params)
        if key not in self._imported:
            raise ConfigError("channel", f"{channel!r} was not imported")
        del self._imported[key]
        self._release(key)

    def _release(self, key: Hashable) -> None:
        desk = self._desks[key]
        self.book.release(key, trio.current_time())
        if not desk.feeds and not desk.subscription.users:
            del self._desks[key]
            self._aging.pop(desk, None)
        self._ask_soon()

    async def _wait_confirmed(self, desk: _Desk) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while desk.subscription.state is not SubscriptionState.CONFIRMED:
            if desk.subscription.state is SubscriptionState.REJECTED:
                raise SubscriptionRejected(_refusal(desk.subscription))
            self._session.check_open()
            await desk.changed.wait()

    def _dropped(self, count: int, channel: str) -> Dropped:
        return Dropped(count=count, where=channel)

    # ----------------------------------------------------------------- the link's side

    @property
    def wanted(self) -> bool:
        """Whether a new link has to be told anything."""
        return bool(self._desks)

    @property
    def active(self) -> bool:
        """Whether `take` must be asked about what arrives."""
        handler = self._session.handlers.subscription
        return bool(self._desks) or handler.drops_unclaimed or self.link_tracker is not None

    def open(self, nursery: trio.Nursery) -> None:
        """The link may be asked from now on: it is authenticated, where it must be."""
        self.book.link_up(self._session.epoch)
        self._nursery = nursery
        self._questions.forget()
        try:
            self.link_tracker = self._session.handlers.subscription.link_tracker()
        except Exception as exc:
            self._session.handler_failed(exc)
        self._restored = Latch()
        self._restore_began = trio.current_time()
        self._unclaimed_told = False
        if self._desks:
            self._ask_soon()
        else:
            self._restored.set()

    async def wait_restored(self) -> None:
        """Wait until every subscription is answered for on this link, or was not for too long."""
        await self._restored.wait()

    @property
    def at_work(self) -> bool:
        """Whether the present link is still to be told or asked something, or its answer is awaited."""
        return self._nursery is not None and not self._at_rest

    def stop_asking(self) -> None:
        """The link's nursery is about to close: whoever subscribes from now on waits for the next link."""
        self._nursery = None

    def link_lost(self, lost: LinkLost) -> None:
        """Forget what the service knew; what is wanted stays so."""
        session, now = self._session, trio.current_time()
        for desk in self._desks.values():
            # Data may come before the confirmation, or without one; from then on they may be missed.
            has_begun = desk.subscription.state is SubscriptionState.CONFIRMED or desk.last is not None
            if has_begun and desk.lost is None:
                desk.lost, desk.lost_at = lost, now
            desk.heard_at = math.inf
            desk.is_late = False
            if desk.tracker is not None:
                desk.tracker.restart(resumed=session.handlers.subscription.resumes)
        self.book.link_lost(now)
        self._resyncs.clear()
        self._direct.clear()
        self._early.clear()
        self._partings = self.link_tracker = None
        self._nursery, self._running = None, False

    def end(self) -> None:
        """End all feeds: the session is over."""
        for desk in self._desks.values():
            desk.changed.ring()
            for feed in desk.feeds:
                feed._end()

    def _ask_soon(self) -> None:
        self.changed.set()
        self._at_rest = False
        if self._nursery is not None and not self._running:
            self._running = True
            self._nursery.start_soon(
                self._keep_in_step, self._nursery, name=self._session.task_name("subscriber", self._session.epoch)
            )

    async def _keep_in_step(self, nursery: trio.Nursery) -> None:
        """Ask for what is wanted, give up what is not, and notice what is not answered."""
        session, book, handler = self._session, self.book, self._session.handlers.subscription
        while self._nursery is nursery:  # else the link is being left, though we were just woken
            now, timeout = trio.current_time(), session.config.subscription_timeout
            for subscription in book.expire(now, timeout, MAX_FAILURES):
                self._answered(subscription)
            try:
                if retired := book.next_retirement(1):
                    await self._give_up(retired[0])
                elif self._partings is not None and self._partings.surplus:
                    server_id = self._partings.surplus.pop(0)
                    await self._part(Channel(server_id, ""), server_id)
                elif self._resyncs:
                    await self._ask_anew(self._resyncs.pop(0))
                elif batch := book.next_request(handler.max_batch, now):
                    await self._ask(batch, nursery)
                else:
                    if not self._restored.is_set and book.settled(now):
                        self._finish_restore()
                    self._at_rest = book.settled(now)
                    self._outbound.settled.ring()
                    await self.changed.wait(min(book.next_event_at(timeout), self._tell_stale(now)))
            except (NotSent, OutcomeUnknown, SessionOver) as error:
                if isinstance(error, SessionOver) or isinstance(error.__cause__, LinkLost):
                    return  # this link has ended, and this task's time with it
                session.note(error, "subscription")

    def _tell_stale(self, now: float) -> float:
        """Tell of every feed that has grown stale, and return when the next one may."""
        next_at = math.inf
        for desk in self._aging:
            if desk.is_stale or not desk.feeds:
                continue
            stale_at = desk.heard_at + desk.max_age
            if stale_at <= now:
                desk.is_stale = True
                age = now - desk.heard_at
                self._notify(desk, FeedStale(id=desk.id, channel=desk.subscription.channel, age=age))
            else:
                next_at = min(next_at, stale_at)
        return next_at

    def _finish_restore(self) -> None:
        counts = self.book.counts()
        self._restored.set()
        self._session.tell(
            SubscriptionsRestored(
                confirmed=counts.get(SubscriptionState.CONFIRMED, 0),
                rejected=counts.get(SubscriptionState.REJECTED, 0),
                duration=trio.current_time() - self._restore_began,
            )
        )

    async def _ask(self, batch: Sequence[Subscription], nursery: trio.Nursery) -> None:
        handler = self._session.handlers.subscription
        entries = {subscription.key: subscription for subscription in batch}
        channels = [self._channel(subscription) for subscription in batch]
        try:
            groups = [channels] if handler.max_batch == 1 else list(handler.split_batch(channels))
        except Exception as exc:
            self._session.handler_failed(exc)
            groups = [channels]
        for group in groups:
            await self._ask_together([entries[channel.key] for channel in group], group, nursery)

    async def _ask_together(
        self, batch: Sequence[Subscription], channels: Sequence[Channel], nursery: trio.Nursery
    ) -> None:
        """Ask for these with one message."""
        handler = self._session.handlers.subscription
        try:
            if handler.max_batch == 1:
                message = handler.encode_subscription_request(channels[0].name, channels[0].params)
            else:
                message = handler.encode_subscription_batch(channels)
            frame, kind = self._outbound.encode(message), self._outbound.kind_of(message)
        except Exception as exc:
            self._could_not_ask(exc, channels)
            return
        if handler.correlated:
            asks = {subscription.key: subscription.ask for subscription in batch}
            await self._questions.ask(nursery, partial(self._ask_and_read, channels, message, asks))
        else:
            try:
                await self._outbound.send(frame, kind, lane=Lane.SETUP, purpose="subscription")
            except NotSent as error:
                if isinstance(error.__cause__, LinkLost):
                    raise
                for channel in channels:
                    self._apply(Refused(channel.key, str(error)))
        self.book.written(batch, trio.current_time())

    def _channel(self, subscription: Subscription) -> Channel:
        desk = self._desks.get(subscription.key)
        channel = Channel(subscription.key, subscription.channel, subscription.params)
        if desk is None or desk.last is None or not self._looks_back:
            return channel
        if desk.newcomers or (desk.tracker is not None and not desk.tracker.in_step):
            return channel  # from the beginning: changes would not do
        try:
            params = self._session.handlers.subscription.resume(channel, desk.last)
        except Exception as exc:
            self._session.handler_failed(exc)
            return channel
        return attrs.evolve(channel, params=params)

    async def _ask_and_read(
        self,
        channels: Sequence[Channel],
        message: Any,
        asks: Mapping[Hashable, int],
        when_left: Callable[[], None],
    ) -> None:
        """Ask as one asks a question, and read from the answer what is granted.

        `asks` tells this request for a channel from an earlier or a later one for the same.
        """
        try:
            await self._requests.request(
                message,
                lane=Lane.SETUP,
                purpose="subscription",
                when_written=when_left,
                on_answer=lambda reply: self._read_grants(reply, channels, asks),
            )
        except RequestFailed as error:
            if len(channels) == 1 or error.retry is not RetryAdvice.NEVER:
                for channel in channels:
                    self._refuse(channel, error, asks[channel.key])
                return
            # One of them spoils the batch: ask for each alone, to find out which.
            for channel in channels:
                await self._ask_alone(channel, asks[channel.key])
        except SessionOver:
            pass
        except (NotSent, OutcomeUnknown) as error:
            if not isinstance(error.__cause__, LinkLost):
                for channel in channels:
                    self._apply(Refused(channel.key, str(error)), asks[channel.key])

    def _could_not_ask(self, error: Exception, channels: Sequence[Channel]) -> None:
        """Treat a message that could not be made as the hook's failure, and its channels as refused."""
        if isinstance(error, NovaError):
            self._session.note(error, "subscription")
            why = str(error)
        else:
            self._session.handler_failed(error)
            why = type(error).__name__  # its words may be anything
        for channel in channels:
            self._apply(Refused(channel.key, f"it could not be asked for: {why}"))

    async def _ask_alone(self, channel: Channel, ask: int) -> None:
        try:
            message = self._session.handlers.subscription.encode_subscription_batch([channel])
        except Exception as exc:
            self._could_not_ask(exc, [channel])
            return
        try:
            await self._requests.request(
                message,
                lane=Lane.SETUP,
                purpose="subscription",
                on_answer=lambda reply: self._read_grants(reply, [channel], {channel.key: ask}),
                renews=False,  # the batch has tried that: else each channel would authenticate the link again
            )
        except RequestFailed as error:
            self._refuse(channel, error, ask)

    def _read_grants(self, reply: Any, channels: Sequence[Channel], asks: Mapping[Hashable, int]) -> None:
        """Write down what an answer grants: at once, since data may follow under names that only it tells."""
        session = self._session
        answers: dict[Hashable, Granted | Refused] = {}
        otherwise = "the service did not grant it"
        try:
            if session.config.correlation.failure(reply) is not None:
                return
            answers = {answer.key: answer for answer in session.handlers.subscription.read_grants(reply, channels)}
        except Exception as exc:
            session.handler_failed(exc)
            otherwise = f"its answer could not be read: {type(exc).__name__}"
        for channel in channels:
            self._apply(answers.get(channel.key) or Refused(channel.key, otherwise), asks[channel.key])

    def _refuse(self, channel: Channel, error: RequestFailed, ask: int) -> None:
        """Write down that the service refuses; where it may think better of it, ask again later."""
        if error.retry is RetryAdvice.NEVER:
            self._apply(Refused(channel.key, str(error)), ask)
        else:
            now = trio.current_time()
            self.book.reject(channel.key, self._session.epoch, now, str(error), ASK_AGAIN_AFTER, ask=ask)
            self.changed.set()

    async def _give_up(self, subscription: Subscription) -> None:
        self._partings = self._partings or Partings()
        self._partings.gave_up(subscription.key, subscription.server_id, trio.current_time())
        await self._part(Channel(subscription.key, subscription.channel, subscription.params), subscription.server_id)

    def _give_back(self, server_id: Hashable) -> None:
        """Tell the service that nobody wants what it calls so: the answer that named it was lost, or came too late."""
        if not self.book.unsubscribes_by_id or self.book.by_server_id(server_id) is not None:
            return
        self._partings = self._partings or Partings()
        if self._partings.give_back(server_id):
            self._ask_soon()

    async def _part(self, channel: Channel, server_id: Hashable | None) -> None:
        """Send what gives a subscription up."""
        handler = self._session.handlers.subscription
        try:
            message = handler.encode_unsubscription(channel, server_id)
        except Exception as exc:
            self._session.handler_failed(exc)
            return
        if message is None:
            return
        if handler.correlated:
            assert self._nursery is not None
            await self._questions.ask_quietly(self._nursery, partial(self._request_quietly, message))
        else:
            try:
                frame, kind = self._outbound.encode(message), self._outbound.kind_of(message)
            except BadMessage as error:
                self._session.note(error, "subscription")
                return
            await self._outbound.send(frame, kind, lane=Lane.SETUP, purpose="subscription")

    async def _ask_anew(self, desk: _Desk) -> None:
        """Give a subscription up and ask for it again, where that is still wanted: what comes first is a snapshot."""
        subscription, tracker, epoch = desk.subscription, desk.tracker, self._session.epoch
        is_wanted = tracker is not None and tracker.awaits_snapshot and self._desks.get(subscription.key) is desk
        if tracker is not None and is_wanted and subscription.state is SubscriptionState.CONFIRMED:
            await self._give_up(subscription)
            tracker.renew()  # one may have come meanwhile
            self.book.reject(subscription.key, epoch, trio.current_time(), "a snapshot is wanted", retry_in=0.0)

    async def _request_quietly(self, message: Any, when_left: Callable[[], None]) -> None:
        try:
            await self._requests.request(message, lane=Lane.SETUP, purpose="subscription", when_written=when_left)
        except NovaError as error:
            if not isinstance(error, SessionOver) and not isinstance(error.__cause__, LinkLost):
                self._session.note(error, "subscription")

    # ----------------------------------------------------------------- the reader's side

    @property
    def has_feeds(self) -> bool:
        """Whether the program reads any feed."""
        return any(desk.feeds for desk in self._desks.values())

    @property
    def feeds(self) -> Sequence[Feed]:
        """Those that the program reads."""
        return [feed for desk in self._desks.values() for feed in desk.feeds]

    @property
    def mailboxes(self) -> Sequence[tuple[str, Mailbox[Any]]]:
        """Where the messages of all feeds wait that may not drop any, each with the name of its channel."""
        return [(feed.channel, feed._mailbox) for feed in self.feeds if feed.options.overflow == "block"]

    @property
    def crowded(self) -> bool:
        """Whether much waits in some feed."""
        return bool(self._crowded)

    async def give_turns(self) -> None:
        """Let the consumers of crowded feeds run; see `Inbound.give_turns`."""
        while self._crowded:
            await self._crowded.popitem()[0]._give_turns()

    def is_data(self, message: Any) -> bool:
        """Whether `message` is of a channel of ours, or one given up a moment ago: data, or a grant that is awaited."""
        handler, book = self._session.handlers.subscription, self.book
        if (key := handler.channel_of(message)) is not None:
            return (
                handler.drops_unclaimed
                or (book.by_server_id(key) or book.find(key)) is not None
                or (self._partings is not None and self._partings.may_be_under_way(key, trio.current_time()))
            )
        if not book.requested or handler.correlated:
            return False
        answers = handler.handle_subscription_response(message) or ()
        named = [answers] if isinstance(answers, Granted | Refused) else answers
        entries = [book.find(answer.key) for answer in named]
        return any(entry is not None and entry.state is SubscriptionState.REQUESTED for entry in entries)

    def watch(self, tracker: Tracker, message: Any) -> None:
        """Tell every channel that cannot tell by itself where something is missing before a message of the link."""
        try:
            verdict = tracker.see(message)
        except Exception as exc:
            self._session.note(exc, "message")
            return
        if not isinstance(verdict, GapFound):
            return
        for desk in list(self._desks.values()):
            has_begun = desk.subscription.state is SubscriptionState.CONFIRMED or desk.last is not None
            if has_begun and (desk.tracker is None or (desk.tracker.resync and desk.tracker.in_step)):
                self._tell_gap(
                    desk, "unknown", cause="messages of this link are missing, nobody knows of which channel"
                )
                if desk.tracker is not None:
                    desk.tracker.distrust()
                    self._resync(desk)

    def take(
        self, message: Any, now: float, payload: str | bytes, charge: int | None = None
    ) -> Literal["answer", "data"] | None:
        """Take in what belongs to a subscription, and return what it is; None where it goes further.

        `charge` is what it is charged where it waits; None: as what came as `payload` is.
        """
        self._payload, self._known_charge = payload, charge
        try:
            return self._take(message, now)
        finally:
            self._payload = None  # it may be large

    def _take(self, message: Any, now: float) -> Literal["answer", "data"] | None:
        handler = self._session.handlers.subscription
        if self.book.requested and self._take_answer(message):
            return "answer"
        key = handler.channel_of(message)
        if key is None:
            return "answer" if self._take_answer(message) else None
        if (feed := self._direct.get(key)) is not None:
            self._give(feed, message if self._data_of is None else self._data_of(message))
            return "data"
        desk = self._desk(key)
        if desk is None:
            if handler.drops_unclaimed and handler.correlated and self.book.requested:
                self._early.append((key, message))
                if len(self._early) > MAX_EARLY:
                    self._unclaimed(self._early.pop(0)[0])
                return "data"
            self._unclaimed(key)
            return "data" if handler.drops_unclaimed else None
        if not desk.feeds:
            return None
        self._deliver(desk, message, now)
        if desk.tracker is None and len(desk.feeds) == 1 and not self._looks_back and desk not in self._aging:
            self._direct[key] = desk.feeds[0]
        return "data"

    def _unclaimed(self, key: Hashable) -> None:
        self.unclaimed += 1
        if not self._unclaimed_told:
            self._unclaimed_told = True
            self._session.tell(DataUnclaimed(channel=self._session.redactor.show(str(key))))
        if self._session.handlers.subscription.drops_unclaimed and not self.book.requested:
            self._give_back(key)

    def _claim_early(self, server_id: Hashable, desk: _Desk) -> None:
        """Deliver what came under a name before the answer that tells it."""
        waiting, self._early = self._early, []
        self._payload = None
        for key, message in waiting:
            if key == server_id:
                self._deliver(desk, message, trio.current_time())
            else:
                self._early.append((key, message))

    def _take_answer(self, message: Any) -> bool:
        handler = self._session.handlers.subscription
        answers = None if handler.correlated else handler.handle_subscription_response(message)
        if answers is None:
            return False
        for answer in [answers] if isinstance(answers, Granted | Refused) else answers:
            self._apply(answer)
        return True

    def _desk(self, key: Hashable | None) -> _Desk | None:
        if key is None:
            return None
        named = self.book.by_server_id(key)
        return self._desks.get(key if named is None else named.key)

    def _deliver(self, desk: _Desk, message: Any, now: float) -> None:
        if desk in self._aging:
            desk.heard_at = now
            if desk.is_stale:
                desk.is_stale = False
                self.changed.set()
        if desk.tracker is None:
            if desk.lost is not None:
                self._tell_gap(desk, "unknown")
            self._put(desk, message)
        else:
            self._deliver_in_sequence(desk, desk.tracker, message)

    def _deliver_in_sequence(self, desk: _Desk, tracker: Tracker, message: Any) -> None:
        try:
            verdict = tracker.see(message)
        except Exception as exc:
            self._session.note(exc, "message")
            self._put(desk, message)
            return
        match verdict:
            case Deliver():
                if desk.lost is not None:
                    self._tell_gap(desk, "unknown" if desk.last is None else "resumed")
                self._put(desk, message)
            case Duplicate():
                desk.duplicates += 1
            case GapFound(lost=count, held=held):
                self._tell_gap(desk, "lost", count)
                if held:
                    self._resync(desk)
                else:
                    self._put(desk, message)
            case NeedSnapshot():
                if tracker.last is not None or desk.subscription.state is SubscriptionState.CONFIRMED:
                    self._resync(desk)  # else this is from before we asked, and the snapshot is still to come
            case Held():
                pass
            case Renewed(known):
                newcomers, desk.newcomers = desk.newcomers, ()
                self._put(desk, message, newcomers if known else desk.feeds)
            case BackInStep(messages, gap):
                if desk.lost is not None or (gap is not None and not gap.held):
                    self._tell_gap(desk, "lost" if gap is not None else "unknown")
                if desk.last is not None:
                    self._notify(desk, Resynced(id=desk.id, channel=desk.subscription.channel))
                desk.newcomers = ()
                for each in messages:
                    self._payload = None
                    self._put(desk, each)

    def _put(self, desk: _Desk, message: Any, feeds: Sequence[Feed] | None = None) -> None:
        """Give a message to `feeds`; None: to all but the newcomers."""
        desk.last = message if self._looks_back else True
        data = message if self._data_of is None else self._data_of(message)
        if feeds is None:
            feeds = desk.seated
        for feed in feeds:
            self._give(feed, data)

    def _give(self, feed: Feed, data: Any) -> None:
        feed._put(data, self._charge(feed, data))
        if feed._crowded:
            self._crowded[feed] = None

    def _charge(self, feed: Feed, data: Any) -> int:
        """Return what a message is charged that is to wait in `feed`; what is awaited there never does."""
        mailbox, payload = feed._mailbox, self._payload
        if mailbox.is_awaited:
            return 0
        if payload is None:
            return weigh_message(data) + OVERHEAD
        return mailbox.room.charge(payload, data) if self._known_charge is None else self._known_charge

    def _look_at(self, desk: _Desk) -> None:
        """Let the next message look at its desk again, as that is about to change."""
        self._direct.pop(desk.subscription.key, None)
        self._direct.pop(desk.subscription.server_id, None)

    def _resync(self, desk: _Desk) -> None:
        """See to it that a snapshot comes: what is to be asked for anyway brings one."""
        match desk.subscription.state:
            case SubscriptionState.CONFIRMED if desk not in self._resyncs:
                self._resyncs.append(desk)
                self._ask_soon()
            case SubscriptionState.REQUESTED:
                desk.is_late = True
            case _:
                pass

    def _apply(self, answer: Granted | Refused, ask: int | None = None) -> None:
        """Write an answer into the book, and tell those whom it concerns."""
        now, epoch = trio.current_time(), self._session.epoch
        desk = self._desks.get(answer.key)
        if isinstance(answer, Refused):
            if desk is not None:
                self._look_at(desk)
            self.book.reject(answer.key, epoch, now, self._session.redactor.show(answer.reason), ask=ask)
        elif self._partings is not None and self._partings.was_surplus(answer.server_id):
            self.book.reject(answer.key, epoch, now, "given back before it was named", retry_in=0.0, ask=ask)
        elif self.book.confirm(answer.key, epoch, now, answer.server_id, ask=ask):
            if desk is not None:
                self._confirmed(desk, answer.server_id, now)
        elif answer.server_id is not None:
            self._give_back(answer.server_id)
        elif desk is not None and desk.subscription.state is SubscriptionState.CONFIRMED:
            self._tell_restart(desk, now)
        if desk is not None:
            self._answered(desk.subscription)
        else:
            self.changed.set()  # given up meanwhile: now that the service has told its name for it, so can we
        while self._early and not self.book.requested:
            self._unclaimed(self._early.pop(0)[0])

    def _confirmed(self, desk: _Desk, server_id: Hashable | None, now: float) -> None:
        if server_id is not None:
            self._direct.pop(server_id, None)
        if desk.lost is not None and desk.tracker is None:
            self._tell_gap(desk, "unknown")
        else:
            self._tell_restart(desk, now)
        self._session.tell(
            SubscriptionConfirmed(id=desk.id, channel=desk.subscription.channel, restored=desk.was_confirmed)
        )
        desk.was_confirmed = True
        desk.heard_at, desk.is_stale = now, False
        if server_id is not None:
            self._claim_early(server_id, desk)
        replays = self._session.handlers.subscription.resumes and not self._looks_back
        is_late, desk.is_late = desk.is_late or (replays and bool(desk.newcomers)), False
        if is_late and desk.tracker is not None and desk.tracker.awaits_snapshot:
            self._resync(desk)

    def _answered(self, subscription: Subscription) -> None:
        desk = self._desks.get(subscription.key)
        if desk is not None:
            if subscription.state is SubscriptionState.REJECTED:
                self._session.tell(
                    SubscriptionRefused(
                        id=desk.id,
                        channel=subscription.channel,
                        reason=subscription.reason,
                        restoring=desk.was_confirmed,
                    )
                )
                if desk.was_confirmed:
                    for feed in desk.feeds:
                        feed._end(SubscriptionRejected(_refusal(subscription)))
            desk.changed.ring()
        self.changed.set()

    def _tell_gap(
        self,
        desk: _Desk,
        result: Literal["resumed", "lost", "unknown"],
        count: int | None = None,
        cause: str = "its messages were broken off",
    ) -> None:
        """Say that messages may be missing here: over the loss of a link, or in the middle of one."""
        lost, desk.lost = desk.lost, None
        now, epoch = trio.current_time(), self._session.epoch
        gap = Gap(
            id=desk.id,
            channel=desk.subscription.channel,
            epoch_from=epoch if lost is None else lost.epoch,
            epoch_to=epoch,
            since=now if lost is None else desk.lost_at,
            until=now,
            cause=cause if lost is None else str(lost),
            outcome=result,
            lost=count,
        )
        self._notify(desk, gap)

    def _tell_restart(self, desk: _Desk, now: float) -> None:
        """Where a grant may belong to a request from before it was given up, or end what does: tell the gap.

        Services that go by our names for what we want do not say which request they answer, or whose data they send.
        """
        partings = self._partings
        if partings is None or not partings.may_be_from_before(desk.subscription.key, now):
            return
        if desk.last is not None and desk.tracker is None:
            self._tell_gap(desk, "unknown")

    def _notify(self, desk: _Desk, notice: Event) -> None:
        self._session.tell(notice)
        for feed in desk.feeds if isinstance(notice, FeedStale) else desk.seated:
            feed._tell(notice)


def _refusal(subscription: Subscription) -> str:
    return f"{subscription.channel!r}: {subscription.reason or 'no reason given'}"
