"""The standing of subscriptions on a link: asked for, confirmed, and whose a message is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import attrs
import msgspec
import trio

from trio_nova._feeds import Feed, Subscription, acknowledge_unread, share
from trio_nova._link.fills import Fills
from trio_nova._link.life import LinkLife
from trio_nova._link.writer import Writer
from trio_nova._signal import Signal
from trio_nova._subscriptions import Subscriptions
from trio_nova.codecs import weigh_message
from trio_nova.core.bounded import OVERHEAD, BoundedQueue, Room
from trio_nova.core.partings import Partings
from trio_nova.core.sequence import GapFound, Tracker
from trio_nova.core.subscriptions import Book, Entry, SubscriptionState
from trio_nova.errors import LinkLost, RequestFailed, RetryAdvice
from trio_nova.events import DataUnclaimed, SubscriptionConfirmed, SubscriptionEnded, SubscriptionRefused
from trio_nova.handlers import Channel
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.readings import ByServerId, Data, Granted, Many, Reading, Refused, as_step, seconds

__all__ = ["Standing"]

MAX_EARLY = 64
"""Data that may wait for the answer which tells whose they are."""
MAX_EARLY_SIZE = 1024 * 1024
"""Bytes that they may take together, where there are more than one."""
MAX_MATCHED = 65_536
"""Channels of which is remembered whose filters match them; the oldest is forgotten for a new one."""
ASK_AGAIN_AFTER = 1.0
"""Seconds after a refusal that says to try again, as a rate limit's does."""

_S = SubscriptionState


@attrs.define(eq=False)
class Standing:
    """The standing of the subscriptions on one link."""

    _life: LinkLife
    _subscriptions: Subscriptions
    _writer: Writer
    _fills: Fills | None
    """None: no hook brings anything from elsewhere."""
    book: Book = attrs.field(init=False)
    changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the subscriber."""
    is_open: bool = attrs.field(default=False, init=False)
    """Whether the service may be asked: the link is authenticated, where it must be, and not being left."""
    link_tracker: Tracker | None = attrs.field(default=None, init=False)
    """The tracker that is shown every message of this link; see `watch`."""
    partings: Partings = attrs.field(factory=Partings, init=False)
    """The subscriptions that were given up on this link."""
    resyncs: dict[Subscription, None] = attrs.field(factory=dict, init=False)
    """Subscriptions that are to be asked for anew, to get a snapshot."""
    _late: dict[Subscription, None] = attrs.field(factory=dict, init=False)
    """Subscriptions of which a snapshot is wanted that may have come before the answer which is awaited."""
    _direct: dict[Hashable, Feed[Any]] = attrs.field(factory=dict, init=False)
    """Of messages of these names, the feeds that get them, where nothing else is to be done."""
    _matched: dict[Hashable, Sequence[Subscription]] = attrs.field(factory=dict, init=False)
    """The subscriptions whose filters match a channel, for the channels of which data came last."""
    _early: BoundedQueue[tuple[Data, int]] = attrs.field(
        factory=lambda: BoundedQueue(room=Room(MAX_EARLY_SIZE)), init=False
    )
    """Data under names of the service's own that it has not told yet, and what each takes: an answer may tell them."""
    _told_unclaimed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.book = Book(unsubscribes_by_id=self._life.handlers.subscription.unsubscribes_by_id)

    # ----------------------------------------------------------------- what is wanted

    def open(self) -> None:
        """Ask for all that is wanted, from now on."""
        if self._life.hooks.steps_links:
            self.link_tracker = Tracker()
        self.is_open = True
        for subscription in list(self._subscriptions.by_key.values()):
            self.want(subscription)

    def want(self, subscription: Subscription) -> None:
        """Ask for a subscription, unless that was done, or the service has refused it."""
        if self.is_open and subscription.refusal is None:
            now, key, channel, params = trio.current_time(), subscription.key, subscription.channel, subscription.params
            entry = self.book.want(key, channel, params, subscription.id, now)
            if entry.state is _S.CONFIRMED and not subscription.was_confirmed:
                subscription.confirmed(now)  # it was given up a moment ago, and the service had not been told
            self.changed.set()

    def release(self, subscription: Subscription) -> None:
        """Give up a subscription that nobody wants any more."""
        self._late.pop(subscription, None)
        if self.is_open:
            self.book.release(subscription.key)
            self.changed.set()

    def look_at(self, subscription: Subscription) -> None:
        """Let its next message look at its readers again, as these are about to change."""
        if self._life.hooks.filters:
            self._direct.clear()
            self._matched.clear()
            return
        self._direct.pop(subscription.key, None)
        if (entry := self.book.find(subscription.key)) is not None:
            self._direct.pop(ByServerId(entry.server_id), None)

    def resync(self, subscription: Subscription) -> None:
        """See to it that a snapshot comes: what is to be asked for anyway brings one."""
        entry = self.book.find(subscription.key)
        if entry is None:
            return
        if self._life.hooks.fetches_snapshots:
            if entry.state is _S.CONFIRMED:
                self._fetch(subscription)
        elif entry.state is _S.CONFIRMED:
            self.resyncs[subscription] = None
            self.changed.set()
        elif entry.state is _S.REQUESTED:
            self._late[subscription] = None

    @property
    def is_filling(self) -> bool:
        """Whether something is being brought from elsewhere."""
        return self._fills is not None and self._fills.under_way

    def _fetch(self, subscription: Subscription) -> None:
        tracker = subscription.tracker
        assert self._fills is not None
        self._fills.fetch(subscription, lambda: tracker is None or not tracker.awaits_snapshot)

    def gave_up(self, entry: Entry) -> None:
        """Take note that the service is told that nobody wants it any more."""
        self.partings.gave_up(entry.key, entry.server_id, trio.current_time())

    # ----------------------------------------------------------------- whose a message is

    @property
    def active(self) -> bool:
        """Whether messages may be of a subscription, or about one."""
        return (
            bool(self._subscriptions.by_key)
            or self._life.handlers.subscription.drops_unclaimed
            or self.link_tracker is not None
        )

    def knows(self, reading: Reading) -> bool:
        """Whether a reading is of a channel of ours, or one given up a moment ago, or grants what is asked for."""
        match reading:
            case Data(channel):
                return self._knows_channel(channel)
            case Granted(channel) | Refused(channel):
                entry = self.book.find(channel)
                return entry is not None and entry.state is _S.REQUESTED
            case Many(readings):
                return any(map(self.knows, readings))
            case _:
                return True

    def _knows_channel(self, channel: Any) -> bool:
        if isinstance(channel, list):
            return any(not isinstance(each, list) and self._knows_channel(each) for each in channel)
        if not isinstance(channel, Hashable):
            return False
        return (
            self._life.handlers.subscription.drops_unclaimed
            or bool(self._find(channel))
            or self.book.find(channel) is not None
            or self.partings.may_be_under_way(channel, trio.current_time())
        )

    def take(self, data: Data, frame: str | bytes | None, charge: int | None, now: float) -> bool:
        """Take in data of a subscription; False where there is none whose they are.

        `charge` is what they are charged where they wait; None: as what came as `frame` is.
        """
        channel: Any = data.channel
        if type(channel) is list:
            data = share(data, len(channel))
            taken = [
                # A list in the list names no channel: a service may nest as many as Python can stand.
                type(each) is not list and self.take(msgspec.structs.replace(data, channel=each), frame, charge, now)
                for each in channel
            ]
            for _ in range(taken.count(False) if any(taken) else 0):
                acknowledge_unread(data, self._writer)  # the share of a channel that nobody reads
            return any(taken)
        try:
            feed = self._direct.get(channel)
        except TypeError:  # a name that a service made up: nothing of ours could be called so
            return False
        if feed is not None:
            feed._give(data, frame, charge, now, self._writer)
            return True
        found = self._find(channel)
        if not found:
            return self._take_unclaimed(data)
        heard = [subscription for subscription in found if subscription.feeds]
        if not heard:
            return False
        data = share(data, len(heard))
        for subscription in heard:
            if self._life.is_superseded and subscription.tracker is None:
                continue  # nobody can tell whether the other link brought it, too: that one is heard
            self._deliver(subscription, data, frame, charge, now)
        is_fixed = not self._life.hooks.filters and not self._life.is_superseded
        if is_fixed and len(found) == 1 and found[0].is_plain:
            self._direct[channel] = found[0].feeds[0]
        return True

    def _find(self, channel: Any) -> Sequence[Subscription]:
        """Return the subscriptions that data of a channel belong to: one, or those whose filters match it."""
        by_key = self._subscriptions.by_key
        if isinstance(channel, ByServerId):
            entry = self.book.by_server_id(channel.id)
            found = None if entry is None else by_key.get(entry.key)
        else:
            found = by_key.get(channel)
        if found is not None and not self._life.hooks.filters:
            return (found,)
        return () if isinstance(channel, ByServerId) or not self._life.hooks.filters else self._match(channel)

    def _match(self, channel: Hashable) -> Sequence[Subscription]:
        matched = self._matched.get(channel)
        if matched is None:
            matched = self._find_matching(channel)
            if len(self._matched) >= MAX_MATCHED:
                del self._matched[next(iter(self._matched))]
            self._matched[channel] = matched
        return matched

    def _find_matching(self, channel: Hashable) -> Sequence[Subscription]:
        return [each for each in self._subscriptions.by_key.values() if self._matches(each.channel, channel)]

    def _matches(self, filter: str, channel: Hashable) -> bool:
        try:
            return self._life.handlers.subscription.matches(filter, channel)
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return False

    def _deliver(
        self, subscription: Subscription, data: Data, frame: str | bytes | None, charge: int | None, now: float
    ) -> None:
        was_stale = subscription.is_stale
        if self._fills is not None and self._fills.hold(subscription, data, frame, charge):
            return
        wants_snapshot = subscription.deliver(data, frame, charge, now, self._writer)
        if was_stale and not subscription.is_stale:
            self.changed.set()
        if wants_snapshot:
            entry, tracker = self.book.find(subscription.key), subscription.tracker
            is_confirmed = entry is not None and entry.state is _S.CONFIRMED
            if is_confirmed or (tracker is not None and tracker.has_begun):
                self.resync(subscription)  # else this is from before we asked, and the snapshot is still to come

    def watch(self, message: Any) -> None:
        """Tell every channel that cannot tell by itself where something is missing before a message of the link."""
        if self.link_tracker is None:
            return
        try:
            step = self._life.handlers.subscription.link_step(message)
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return
        try:
            verdict = self.link_tracker.see(as_step(step), message)
        except Exception as exc:
            self._life.session.note(exc, "message")
            return
        if isinstance(verdict, GapFound):
            for subscription in list(self._subscriptions.by_key.values()):
                if subscription.distrust(was_confirmed=self._has(subscription)):
                    self.resync(subscription)

    def _has(self, subscription: Subscription) -> bool:
        entry = self.book.find(subscription.key)
        return entry is not None and entry.state is _S.CONFIRMED

    # ----------------------------------------------------------------- what nobody claims

    def _take_unclaimed(self, data: Data) -> bool:
        handler = self._life.handlers.subscription
        if not handler.drops_unclaimed:
            self._unclaimed(data.channel)
            return False
        if handler.correlated and self.book.requested and isinstance(data.channel, ByServerId):
            early, size = self._early, weigh_message(data.payload) + OVERHEAD
            early.offer((data, size), size)
            while len(early) > MAX_EARLY or (len(early) > 1 and early.room.is_full):
                self._drop(early.pop()[0])
        else:
            self._drop(data)
        return True

    def _drop(self, data: Data) -> None:
        acknowledge_unread(data, self._writer)
        self._unclaimed(data.channel)

    def _unclaimed(self, channel: Any) -> None:
        name = channel.id if isinstance(channel, ByServerId) else channel
        if not self._told_unclaimed:
            self._told_unclaimed = True
            self._life.tell(DataUnclaimed(channel=self._life.session.redactor.show(str(name))))
        if (
            isinstance(channel, ByServerId)
            and self._life.handlers.subscription.drops_unclaimed
            and not self.book.requested
        ):
            self._give_back(name)

    def _claim_early(self, server_id: Hashable, subscription: Subscription) -> None:
        """Deliver what came under a name before the answer that tells it."""
        for data, size in self._early.pop_all():
            if data.channel == ByServerId(server_id):
                self._deliver(subscription, data, None, size, trio.current_time())
            else:
                self._early.offer((data, size), size)

    def _give_back(self, server_id: Hashable) -> None:
        """Tell the service that nobody wants what it calls so: the answer that named it was lost, or came too late."""
        if not self.book.unsubscribes_by_id or self.book.by_server_id(server_id) is not None:
            return
        if self.partings.give_back(server_id):
            self.changed.set()

    # ----------------------------------------------------------------- what the service answers

    def read_grants(self, reply: Any, channels: Sequence[Channel], asks: Mapping[Hashable, int]) -> None:
        """Write down what an answer grants: at once, since data may follow under names that only it tells."""
        life, grants = self._life, dict[Hashable, SubscriptionAnswer]()
        otherwise = "the service did not grant it"
        try:
            answers = (
                life.handlers.subscription.handle_subscription_response(reply) if life.hooks.reads_grants else None
            )
            if answers is None:
                grants = {channel.key: Granted(channel.key) for channel in channels}
            else:
                grants = _by_key([answers] if isinstance(answers, Granted | Refused) else answers, channels)
        except Exception as exc:
            life.session.handler_failed(exc)
            otherwise = f"its answer could not be read: {type(exc).__name__}"
        for channel in channels:
            self.apply(grants.get(channel.key) or Refused(channel.key, otherwise), asks[channel.key])

    def refuse(self, channel: Channel, error: RequestFailed, ask: int) -> None:
        """Write down that the service refuses; where it may think better of it, ask again later."""
        retry_after = None if error.retry is RetryAdvice.NEVER else ASK_AGAIN_AFTER
        self.apply(Refused(channel.key, str(error), retry_after), ask)

    def apply(self, answer: Granted | Refused, ask: int | None = None) -> None:
        """Write an answer into the book, and tell those whom it concerns."""
        now, session = trio.current_time(), self._life.session
        subscription = self._subscriptions.by_key.get(answer.channel)
        if isinstance(answer, Refused):
            if subscription is not None:
                self.look_at(subscription)
            retry_in = None if answer.retry_after is None else self._again_after(answer.channel, answer.retry_after)
            self.book.reject(answer.channel, now, session.redactor.show(answer.reason), retry_in, ask=ask)
        elif self.partings.was_surplus(answer.server_id):
            self.book.reject(answer.channel, now, "given back before it was named", retry_in=0.0, ask=ask)
        elif self.book.confirm(answer.channel, answer.server_id, ask=ask):
            if subscription is not None:
                self._confirmed(subscription, answer.server_id, now)
        elif answer.server_id is not None:
            self._give_back(answer.server_id)
        elif subscription is not None and self._has(subscription):
            self._tell_restart(subscription, now)
        if subscription is not None:
            self.answered(subscription)
        else:
            self.changed.set()  # given up meanwhile: now that the service has told its name for it, so can we
        while self._early.items and not self.book.requested:
            self._drop(self._early.pop()[0])

    def _again_after(self, key: Hashable, retry_after: float) -> float:
        """Return after how many seconds to ask again for what is refused for now: no sooner than the service says."""
        entry, config = self.book.find(key), self._life.session.config
        delay = config.backoff.delay(1 if entry is None else entry.failures + 1, config.spread())
        return max(seconds(retry_after) or 0.0, delay or 0.0)

    def ended(self, channel: Hashable, reason: str) -> None:
        """Take note that the service has ended a subscription."""
        if isinstance(channel, ByServerId):
            entry = self.book.by_server_id(channel.id)
            channel = None if entry is None else entry.key
        subscription = self._subscriptions.by_key.get(channel)
        shown = self._life.session.redactor.show(reason)
        if not self.book.reject(channel, trio.current_time(), shown or "it is complete") or subscription is None:
            return
        self.look_at(subscription)
        subscription.complete(shown)
        self._life.tell(SubscriptionEnded(id=subscription.id, channel=subscription.label, reason=shown))
        subscription.changed.ring()
        self.changed.set()

    def _confirmed(self, subscription: Subscription, server_id: Hashable | None, now: float) -> None:
        self._direct.pop(ByServerId(server_id), None)
        self._tell_restart(subscription, now)
        restored = subscription.was_confirmed
        subscription.confirmed(now, fills=self._fills is not None and self._fills.begin(subscription))
        self._life.tell(SubscriptionConfirmed(id=subscription.id, channel=subscription.label, restored=restored))
        if server_id is not None:
            self._claim_early(server_id, subscription)
        if self._life.hooks.fetches_snapshots and subscription.tracker is not None and subscription.tracker.resync:
            self._fetch(subscription)
        replays = self._life.handlers.subscription.resumes and not self._life.hooks.resumes_after
        is_late = subscription in self._late or (replays and bool(subscription.newcomers))
        self._late.pop(subscription, None)
        if is_late and subscription.tracker is not None and subscription.tracker.awaits_snapshot:
            self.resync(subscription)

    def answered(self, subscription: Subscription) -> None:
        """Tell whoever waits for a subscription what became of it."""
        entry, now = self.book.find(subscription.key), trio.current_time()
        is_final = entry is not None and entry.state is _S.REJECTED
        if entry is not None and (is_final or (entry.state is _S.WANTED and entry.retry_at > now)):
            self._life.tell(
                SubscriptionRefused(
                    id=subscription.id,
                    channel=subscription.label,
                    reason=entry.reason,
                    restoring=subscription.was_confirmed,
                    retry_in=None if is_final else entry.retry_at - now,
                )
            )
            if is_final:
                subscription.refuse(entry.reason)
        subscription.changed.ring()
        self.changed.set()

    def _tell_restart(self, subscription: Subscription, now: float) -> None:
        """Tell the gap, where a grant may belong to a request from before it was given up, or end what does.

        Services that go by our names for what we want do not say which request they answer, or whose data they send.
        """
        may_be_from_before = self.partings.may_be_from_before(subscription.key, now)
        if may_be_from_before and subscription.last is not None and subscription.tracker is None:
            subscription.tell_gap("unknown")

    # ----------------------------------------------------------------- ends

    def take_over(self) -> None:
        """Be heard from now on, in place of another link."""
        for subscription in self._subscriptions.by_key.values():
            subscription.changed.ring()  # it may have been confirmed on this link before it was on that
            if subscription.tracker is None and subscription.last is not None and self._has(subscription):
                subscription.tell_gap("unknown", cause="another link took the place of the one before")

    def leave(self) -> None:
        """Look at each message that still comes: another link may be heard in place of this one."""
        self._direct.clear()

    def close(self) -> None:
        """Ask for nothing any more: whoever subscribes from now on waits for the next link."""
        self.is_open = False
        self.changed.set()

    def end(self, lost: LinkLost) -> None:
        """Take note that nothing more will be heard on this link."""
        current = self._life.session.current
        for subscription in self._subscriptions.by_key.values():
            if current is None or not current.standing._has(subscription):
                subscription.link_lost(lost, was_confirmed=self._has(subscription))
        self._direct.clear()
        self._early.pop_all()


def _by_key(answers: Sequence[SubscriptionAnswer], channels: Sequence[Channel]) -> dict[Hashable, SubscriptionAnswer]:
    """Return the answers by key: one that names no channel is about the next of those that were asked for."""
    places = iter(channels)
    found: dict[Hashable, SubscriptionAnswer] = {}
    for answer in answers:
        if answer.channel is not None:
            found[answer.channel] = answer
        elif (channel := next(places, None)) is not None:
            found[channel.key] = msgspec.structs.replace(answer, channel=channel.key)
    return found
