"""What the program wants to hear, over all links."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Hashable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import attrs
import trio

from trio_nova._feeds import Feed, FeedOptions, Subscription
from trio_nova._mailbox import Mailbox
from trio_nova._outbound import Outbound
from trio_nova._session import Session
from trio_nova.core.subscriptions import SubscriptionState
from trio_nova.errors import ConfigError, SubscriptionRejected

__all__ = ["Subscriptions"]


MAX_NAMED = 5
"""Channels that the words of an error name, where there are many."""
_SETTLED = (SubscriptionState.CONFIRMED, SubscriptionState.REJECTED)


@attrs.define(eq=False)
class Subscriptions:
    """Every subscription of a session: each link asks for all of them."""

    _session: Session
    _outbound: Outbound
    by_key: dict[Hashable, Subscription] = attrs.field(factory=dict, init=False)
    """In the order in which they were first wanted."""
    _ids: Iterator[int] = attrs.field(factory=lambda: count(1), init=False)
    _aging: dict[Subscription, None] = attrs.field(factory=dict, init=False)
    """Subscriptions of which some reader wants to know when they fall silent; told in the order of a dict."""

    # ----------------------------------------------------------------- the program's side

    @asynccontextmanager
    async def subscribe(
        self, channels: Sequence[str], options: FeedOptions, params: Mapping[str, Any], type: Any
    ) -> AsyncGenerator[Feed[Any], None]:
        """Hold subscriptions while the block lasts, all read by one feed; see `Connection.subscribe`."""
        session = self._session
        session.check_open()
        self._outbound.check_not_draining()
        self._check_readable()
        keys = [self._check_params(channel, params) for channel in channels]
        more = f" and {len(channels) - 1} more" if len(channels) > 1 else ""
        feed = Feed._of(channels[0] + more, options, session, type)
        joined: dict[Subscription, None] = {}
        try:
            for key, channel in zip(keys, channels, strict=True):
                subscription = self._want(key, channel, params)
                if subscription not in joined:
                    joined[subscription] = None
                    self._join(subscription, feed)
            await self._wait_confirmed(list(joined))
            yield feed
        finally:
            for subscription in joined:
                self._look_at(subscription)
                subscription.leave(feed)
                self._release(subscription)
            feed._leave()

    def _check_params(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return the key of a subscription; ConfigError where it is held with other params."""
        key = self._session.handlers.subscription.key(channel, params)
        known = self.by_key.get(key)
        if known is not None and dict(known.params) != dict(params):
            raise ConfigError("params", f"{channel!r} is subscribed to already, with other params")
        return key

    def _join(self, subscription: Subscription, feed: Feed[Any]) -> None:
        tracker = None
        if not subscription.feeds:
            tracker = self._session.handlers.subscription.tracker(subscription.wanted_channel)
        self._look_at(subscription)
        wants_snapshot = subscription.join(feed, tracker)
        if feed.options.max_age < math.inf:
            self._aging[subscription] = None
        for link in self._session.links:
            link.want(subscription)
            if wants_snapshot:
                link.standing.resync(subscription)

    def load(self, rows: Sequence[object]) -> None:
        """Want what an export holds, without a feed; see `Connection.import_subscriptions`."""
        self._check_readable()
        handler = self._session.handlers.subscription
        for channel, params in [_read_row(number, row) for number, row in enumerate(rows)]:
            subscription = self._want(handler.key(channel, params), channel, params)
            subscription.load(imported=True)
            for link in self._session.links:
                link.want(subscription)

    def unload(self, channel: str, params: Mapping[str, Any]) -> None:
        """Give up what was loaded."""
        subscription = self.by_key.get(self._session.handlers.subscription.key(channel, params))
        if subscription is None or not subscription.is_imported:
            raise ConfigError("channel", f"{channel!r} was not imported")
        subscription.load(imported=False)
        self._release(subscription)

    def export(self) -> list[dict[str, Any]]:
        """Return the channel and parameters of all that is wanted, in order, for `load`."""
        return [{"channel": each.channel, "params": dict(each.params)} for each in self.by_key.values()]

    def states(self) -> Mapping[str, str]:
        """Return the state of each on the current link, by channel and params."""
        return {each.label: "ended" if each.is_complete else self.state_of(each).value for each in self.by_key.values()}

    def state_of(self, subscription: Subscription) -> SubscriptionState:
        """Return the state of one on the current link."""
        if subscription.refusal is not None:
            return SubscriptionState.REJECTED
        current = self._session.current
        entry = None if current is None else current.standing.book.find(subscription.key)
        return SubscriptionState.WANTED if entry is None else entry.state

    @property
    def degraded(self) -> bool:
        """Whether something that is wanted is refused."""
        return self.refusals > 0

    def _want(self, key: Hashable, channel: str, params: Mapping[str, Any]) -> Subscription:
        subscription = self.by_key.get(key)
        if subscription is None:
            subscription = self.by_key[key] = Subscription(self._session, next(self._ids), key, channel, dict(params))
        subscription.want_again()
        return subscription

    def _look_at(self, subscription: Subscription) -> None:
        for link in self._session.links:
            link.standing.look_at(subscription)

    def _release(self, subscription: Subscription) -> None:
        if subscription.is_wanted:
            return
        del self.by_key[subscription.key]
        self._aging.pop(subscription, None)
        for link in self._session.links:
            link.standing.release(subscription)

    def _check_readable(self) -> None:
        """Refuse, with a ConfigError, a subscription whose confirmation could never be understood."""
        hooks = self._session.hooks
        if (
            hooks.reads_text_only
            and not hooks.reads_confirmations
            and not self._session.handlers.subscription.correlated
        ):
            raise ConfigError(
                "codec",
                "the default hooks cannot read a confirmation in a text: set codec=JsonCodec(), or a "
                "subscription_handler",
            )

    async def _wait_confirmed(self, subscriptions: Sequence[Subscription]) -> None:
        """Wait until the service has confirmed all, or has ended what it had.

        Raises:
            SubscriptionRejected: it refuses some of them, once all are answered for.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        refused: list[Subscription] = []
        for subscription in subscriptions:
            while (state := self.state_of(subscription)) not in _SETTLED:
                self._session.check_open()
                await subscription.changed.wait()
            if state is SubscriptionState.REJECTED and not subscription.is_complete:
                refused.append(subscription)
        if len(refused) == 1:
            raise refused[0].refused
        if refused:
            named = "; ".join(f"{each.label!r}: {each.refusal}" for each in refused[:MAX_NAMED])
            more = f"; and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
            raise SubscriptionRejected(f"{len(refused)} of {len(subscriptions)} channels: {named}{more}")

    # ----------------------------------------------------------------- what a link asks

    @property
    def refusals(self) -> int:
        """The number of them that the service does not have, and is not asked for any more."""
        return sum(each.refusal is not None and not each.is_complete for each in self.by_key.values())

    def tell_stale(self, now: float) -> float:
        """Tell of every subscription that has been silent for too long, and return when the next one may be."""
        next_at = math.inf
        for subscription in self._aging:
            stale_at = subscription.stale_at() if subscription.feeds else math.inf
            if stale_at <= now:
                subscription.tell_stale(now)
            else:
                next_at = min(next_at, stale_at)
        return next_at

    # ----------------------------------------------------------------- those who read

    @property
    def has_feeds(self) -> bool:
        """Whether the program reads any feed."""
        return any(each.feeds for each in self.by_key.values())

    @property
    def feeds(self) -> Sequence[Feed[Any]]:
        """Those that the program reads."""
        return list(dict.fromkeys(feed for each in self.by_key.values() for feed in each.feeds))

    @property
    def mailboxes(self) -> Sequence[tuple[str, Mailbox[Any]]]:
        """Where the messages of all feeds wait that may not drop any, each with the name of its channel."""
        return [(feed.channel, feed._mailbox) for feed in self.feeds if feed.options.overflow == "block"]

    def end(self) -> None:
        """End all feeds: the session is over."""
        for subscription in self.by_key.values():
            subscription.end()


def _read_row(number: int, row: object) -> tuple[str, Mapping[str, Any]]:
    match row:
        case {"channel": str(channel), "params": Mapping() as params}:
            return channel, params
        case _:
            raise ConfigError("subscriptions", f"row {number} must have a channel and a mapping of params")
