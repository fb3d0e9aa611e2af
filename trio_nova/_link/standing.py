"""The standing of subscriptions on a link: asked for, confirmed, and whose a message is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import attrs
import trio

from trio_nova._feeds import Feed, Subscription
from trio_nova._link.life import LinkLife
from trio_nova._signal import Signal
from trio_nova._subscriptions import Subscriptions
from trio_nova.core.partings import Partings
from trio_nova.core.sequence import GapFound, Tracker
from trio_nova.core.subscriptions import Book, Entry, SubscriptionState
from trio_nova.errors import LinkLost, RequestFailed, RetryAdvice
from trio_nova.events import DataUnclaimed, SubscriptionConfirmed, SubscriptionRefused
from trio_nova.handlers import Channel, Granted, Refused

__all__ = ["Standing"]

MAX_EARLY = 64
"""Data that may wait for the answer which tells whose they are."""
ASK_AGAIN_AFTER = 1.0
"""Seconds after a refusal that says to try again, as a rate limit's does."""

_S = SubscriptionState


@attrs.define(eq=False)
class Standing:
    """The standing of the subscriptions on one link."""

    _life: LinkLife
    _subscriptions: Subscriptions
    book: Book = attrs.field(init=False)
    changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the subscriber."""
    is_open: bool = attrs.field(default=False, init=False)
    """Whether the service may be asked: the link is authenticated, where it must be, and not being left."""
    link_tracker: Tracker | None = attrs.field(default=None, init=False)
    """The tracker that is shown every message of this link; see `watch`."""
    partings: Partings = attrs.field(factory=Partings, init=False)
    """The subscriptions that were given up on this link."""
    resyncs: list[Subscription] = attrs.field(factory=list, init=False)
    """Subscriptions that are to be asked for anew, to get a snapshot."""
    _late: set[Subscription] = attrs.field(factory=set, init=False)
    """Subscriptions of which a snapshot is wanted that may have come before the answer which is awaited."""
    _direct: dict[Hashable, Feed] = attrs.field(factory=dict, init=False)
    """Of messages of these names, the feeds that get them, where nothing else is to be done."""
    _early: list[tuple[Hashable, Any]] = attrs.field(factory=list, init=False)
    """Data under names of the service's own that it has not told yet: an answer that is awaited may."""
    _told_unclaimed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.book = Book(unsubscribes_by_id=self._life.session.handlers.subscription.unsubscribes_by_id)

    # ----------------------------------------------------------------- what is wanted

    def open(self) -> None:
        """Ask for all that is wanted, from now on."""
        session = self._life.session
        try:
            self.link_tracker = session.handlers.subscription.link_tracker()
        except Exception as exc:
            session.handler_failed(exc)
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
        self._late.discard(subscription)
        if self.is_open:
            self.book.release(subscription.key)
            self.changed.set()

    def look_at(self, subscription: Subscription) -> None:
        """Let its next message look at its readers again, as these are about to change."""
        self._direct.pop(subscription.key, None)
        if (entry := self.book.find(subscription.key)) is not None:
            self._direct.pop(entry.server_id, None)

    def resync(self, subscription: Subscription) -> None:
        """See to it that a snapshot comes: what is to be asked for anyway brings one."""
        entry = self.book.find(subscription.key)
        if entry is None:
            return
        if entry.state is _S.CONFIRMED and subscription not in self.resyncs:
            self.resyncs.append(subscription)
            self.changed.set()
        elif entry.state is _S.REQUESTED:
            self._late.add(subscription)

    def gave_up(self, entry: Entry) -> None:
        """Take note that the service is told that nobody wants it any more."""
        self.partings.gave_up(entry.key, entry.server_id, trio.current_time())

    # ----------------------------------------------------------------- whose a message is

    @property
    def active(self) -> bool:
        """Whether `take` must be asked about what arrives."""
        return (
            bool(self._subscriptions.by_key)
            or self._life.session.handlers.subscription.drops_unclaimed
            or self.link_tracker is not None
        )

    def is_data(self, message: Any) -> bool:
        """Whether `message` is of a channel of ours, or one given up a moment ago: data, or a grant that is awaited."""
        handler, book = self._life.session.handlers.subscription, self.book
        if (key := handler.channel_of(message)) is not None:
            return (
                handler.drops_unclaimed
                or (book.by_server_id(key) or book.find(key)) is not None
                or self.partings.may_be_under_way(key, trio.current_time())
            )
        if not book.requested or handler.correlated:
            return False
        answers = handler.handle_subscription_response(message) or ()
        named = [answers] if isinstance(answers, Granted | Refused) else answers
        entries = [book.find(answer.key) for answer in named]
        return any(entry is not None and entry.state is _S.REQUESTED for entry in entries)

    def take(
        self, message: Any, now: float, payload: str | bytes, charge: int | None = None
    ) -> Literal["answer", "data"] | None:
        """Take in what belongs to a subscription, and return what it is; None where it goes further.

        `charge` is what it is charged where it waits; None: as what came as `payload` is.
        """
        session, handler = self._life.session, self._life.session.handlers.subscription
        if self.book.requested and self._take_answer(message):
            return "answer"
        key = handler.channel_of(message)
        if key is None:
            return "answer" if self._take_answer(message) else None
        if (feed := self._direct.get(key)) is not None:
            data_of = session.hooks.data_of
            feed._give(message if data_of is None else data_of(message), payload, charge)
            return "data"
        subscription = self._find(key)
        if subscription is None:
            return self._take_unclaimed(key, message)
        if not subscription.feeds:
            return None
        if self._life.is_superseded and subscription.tracker is None:
            return "data"  # nobody can tell whether the other link brought it, too: that one is heard
        self._deliver(subscription, message, payload, charge, now)
        if subscription.is_plain:
            self._direct[key] = subscription.feeds[0]
        return "data"

    def _find(self, name: Hashable) -> Subscription | None:
        entry = self.book.by_server_id(name)
        return self._subscriptions.by_key.get(name if entry is None else entry.key)

    def _deliver(
        self, subscription: Subscription, message: Any, payload: str | bytes | None, charge: int | None, now: float
    ) -> None:
        was_stale = subscription.is_stale
        wants_snapshot = subscription.deliver(message, payload, charge, now)
        if was_stale and not subscription.is_stale:
            self.changed.set()
        if wants_snapshot:
            entry, tracker = self.book.find(subscription.key), subscription.tracker
            is_confirmed = entry is not None and entry.state is _S.CONFIRMED
            if is_confirmed or (tracker is not None and tracker.last is not None):
                self.resync(subscription)  # else this is from before we asked, and the snapshot is still to come

    def watch(self, message: Any) -> None:
        """Tell every channel that cannot tell by itself where something is missing before a message of the link."""
        if self.link_tracker is None:
            return
        try:
            verdict = self.link_tracker.see(message)
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

    def _take_unclaimed(self, key: Hashable, message: Any) -> Literal["data"] | None:
        handler = self._life.session.handlers.subscription
        if handler.drops_unclaimed and handler.correlated and self.book.requested:
            self._early.append((key, message))
            if len(self._early) > MAX_EARLY:
                self._unclaimed(self._early.pop(0)[0])
            return "data"
        self._unclaimed(key)
        return "data" if handler.drops_unclaimed else None

    def _unclaimed(self, key: Hashable) -> None:
        session = self._life.session
        if not self._told_unclaimed:
            self._told_unclaimed = True
            self._life.tell(DataUnclaimed(channel=session.redactor.show(str(key))))
        if session.handlers.subscription.drops_unclaimed and not self.book.requested:
            self._give_back(key)

    def _claim_early(self, server_id: Hashable, subscription: Subscription) -> None:
        """Deliver what came under a name before the answer that tells it."""
        waiting, self._early = self._early, []
        for key, message in waiting:
            if key == server_id:
                self._deliver(subscription, message, None, None, trio.current_time())
            else:
                self._early.append((key, message))

    def _give_back(self, server_id: Hashable) -> None:
        """Tell the service that nobody wants what it calls so: the answer that named it was lost, or came too late."""
        if not self.book.unsubscribes_by_id or self.book.by_server_id(server_id) is not None:
            return
        if self.partings.give_back(server_id):
            self.changed.set()

    # ----------------------------------------------------------------- what the service answers

    def _take_answer(self, message: Any) -> bool:
        handler = self._life.session.handlers.subscription
        answers = None if handler.correlated else handler.handle_subscription_response(message)
        if answers is None:
            return False
        for answer in [answers] if isinstance(answers, Granted | Refused) else answers:
            self.apply(answer)
        return True

    def read_grants(self, reply: Any, channels: Sequence[Channel], asks: Mapping[Hashable, int]) -> None:
        """Write down what an answer grants: at once, since data may follow under names that only it tells."""
        session = self._life.session
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
            self.apply(answers.get(channel.key) or Refused(channel.key, otherwise), asks[channel.key])

    def refuse(self, channel: Channel, error: RequestFailed, ask: int) -> None:
        """Write down that the service refuses; where it may think better of it, ask again later."""
        if error.retry is RetryAdvice.NEVER:
            self.apply(Refused(channel.key, str(error)), ask)
        else:
            self.book.reject(channel.key, trio.current_time(), str(error), ASK_AGAIN_AFTER, ask=ask)
            self.changed.set()

    def apply(self, answer: Granted | Refused, ask: int | None = None) -> None:
        """Write an answer into the book, and tell those whom it concerns."""
        now, session = trio.current_time(), self._life.session
        subscription = self._subscriptions.by_key.get(answer.key)
        if isinstance(answer, Refused):
            if subscription is not None:
                self.look_at(subscription)
            self.book.reject(answer.key, now, session.redactor.show(answer.reason), ask=ask)
        elif self.partings.was_surplus(answer.server_id):
            self.book.reject(answer.key, now, "given back before it was named", retry_in=0.0, ask=ask)
        elif self.book.confirm(answer.key, answer.server_id, ask=ask):
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
        while self._early and not self.book.requested:
            self._unclaimed(self._early.pop(0)[0])

    def _confirmed(self, subscription: Subscription, server_id: Hashable | None, now: float) -> None:
        self._direct.pop(server_id, None)
        self._tell_restart(subscription, now)
        restored = subscription.was_confirmed
        subscription.confirmed(now)
        self._life.tell(SubscriptionConfirmed(id=subscription.id, channel=subscription.channel, restored=restored))
        if server_id is not None:
            self._claim_early(server_id, subscription)
        session = self._life.session
        replays = session.handlers.subscription.resumes and not session.hooks.resumes_after
        is_late = subscription in self._late or (replays and bool(subscription.newcomers))
        self._late.discard(subscription)
        if is_late and subscription.tracker is not None and subscription.tracker.awaits_snapshot:
            self.resync(subscription)

    def answered(self, subscription: Subscription) -> None:
        """Tell whoever waits for a subscription what became of it."""
        entry = self.book.find(subscription.key)
        if entry is not None and entry.state is _S.REJECTED:
            self._life.tell(
                SubscriptionRefused(
                    id=subscription.id,
                    channel=subscription.channel,
                    reason=entry.reason,
                    restoring=subscription.was_confirmed,
                )
            )
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
        self._early.clear()
