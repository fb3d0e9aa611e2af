"""The subscriber of a link: brings to the service what the program wants to hear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import trio

from trio_nova._feeds import Subscription
from trio_nova._link.grant import Grant
from trio_nova._link.life import LinkLife
from trio_nova._link.places import Places
from trio_nova._link.standing import Standing
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova._subscriptions import Subscriptions
from trio_nova.core.subscriptions import Entry, SubscriptionState
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
)
from trio_nova.events import SubscriptionsRestored
from trio_nova.handlers import Channel
from trio_nova.readings import Granted, Refused

__all__ = ["Subscriber"]

MAX_PREPARED = 16
"""Channels that a hook prepares at once."""
RETRY_AFTER = 1.0
"""Seconds, at least, after which a channel is asked for again that could not be prepared."""
MAX_FAILURES = 2
"""How often a subscription may go unanswered before it counts as refused."""


@attrs.define(eq=False)
class Subscriber:
    """Asks for what is wanted, gives up what is not, and notices what is not answered."""

    _life: LinkLife
    _outbound: Outbound
    _writer: Writer
    _grant: Grant
    _subscriptions: Subscriptions
    _standing: Standing
    _places: Places = attrs.field(init=False)
    _restored: trio.Event | None = attrs.field(alias="restored")
    """Set when all is answered for that was wanted as the link came up; None: there was nothing."""
    _began: float = attrs.field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = Places(self._life)

    @property
    def is_at_work(self) -> bool:
        """Whether the service is still to be told or asked something, or its answer is awaited."""
        standing = self._standing
        if not standing.is_open:
            return False
        is_asked = standing.resyncs or standing.partings.surplus or self._places.under_way or standing.is_filling
        return bool(is_asked) or not standing.book.is_at_rest(trio.current_time())

    async def wait_restored(self) -> None:
        """Wait until every subscription is answered for, or was not for too long."""
        if self._restored is not None:
            await self._restored.wait()

    async def run(self) -> None:
        """Keep what the service knows in step with what the program wants, until the link is left."""
        standing, session = self._standing, self._life.session
        while standing.is_open:
            now = trio.current_time()
            for entry in standing.book.expire(now, session.config.subscription_timeout, MAX_FAILURES):
                if (subscription := self._subscriptions.by_key.get(entry.key)) is not None:
                    standing.answered(subscription)
            try:
                if not await self._ask_for_something(now):
                    await self._rest(now)
            except (NotSent, OutcomeUnknown, SessionOver) as error:
                if isinstance(error, SessionOver) or isinstance(error.__cause__, LinkLost):
                    return  # this link has ended, and this task's time with it
                session.note(error, "subscription")

    async def _ask_for_something(self, now: float) -> bool:
        """Ask for the next thing that is to be asked for, or give it up; False where there is none."""
        standing, handler, hooks = self._standing, self._life.handlers.subscription, self._life.hooks
        if retired := standing.book.next_retirement(1 if handler.unsubscribes_by_id else handler.max_batch):
            await self._give_up(retired)
        elif standing.partings.surplus:
            server_id = standing.partings.surplus.pop(0)
            await self._part(Channel(server_id, ""), server_id)
        elif standing.resyncs:
            subscription = next(iter(standing.resyncs))
            del standing.resyncs[subscription]
            await self._ask_anew(subscription)
        elif batch := standing.book.next_request(max(handler.max_batch, MAX_PREPARED * hooks.prepares), now):
            await self._ask(batch)
        else:
            return False
        return True

    async def _rest(self, now: float) -> None:
        """Wait until there may be something to do."""
        book, session = self._standing.book, self._life.session
        if self._restored is not None and not self._restored.is_set() and book.settled(now):
            self._restored.set()
            self._tell_restored()
        session.settled.ring()
        until = min(book.next_event_at(session.config.subscription_timeout), self._subscriptions.tell_stale(now))
        await self._standing.changed.wait(until)

    def _tell_restored(self) -> None:
        confirmed = self._standing.book.counts()[SubscriptionState.CONFIRMED]
        duration = trio.current_time() - self._began
        self._life.tell(
            SubscriptionsRestored(confirmed=confirmed, rejected=self._subscriptions.refusals, duration=duration)
        )

    # ----------------------------------------------------------------- asking

    async def _ask(self, batch: Sequence[Entry]) -> None:
        handler = self._life.handlers.subscription
        entries = {entry.key: entry for entry in batch}
        channels = [self._channel(entry) for entry in batch]
        if self._life.hooks.prepares:
            channels = await self._prepare(channels, entries)
        for at in range(0, len(channels), handler.max_batch):
            for group in self._split(channels[at : at + handler.max_batch]):
                await self._ask_together([entries[channel.key] for channel in group], group)

    def _split(self, channels: Sequence[Channel]) -> Sequence[Sequence[Channel]]:
        """Return channels in the groups in which to ask for them, none of them empty."""
        handler = self._life.handlers.subscription
        if handler.max_batch == 1:
            return [channels]
        try:
            groups = [list(group) for group in handler.split_batch(channels)]
            if Counter(each.key for group in groups for each in group) != Counter(each.key for each in channels):
                raise ConfigError("split_batch", "answered other channels than those that it was shown")
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return [channels]
        return [group for group in groups if group]

    async def _prepare(self, channels: Sequence[Channel], entries: Mapping[Hashable, Entry]) -> list[Channel]:
        """Return the channels as the hook has them asked for; those that it fails at are refused for now."""
        prepared: dict[Hashable, Channel] = {}

        async def prepare(channel: Channel) -> None:
            try:
                with trio.fail_after(self._life.session.config.subscription_timeout):
                    found = await self._life.handlers.subscription.prepare(channel)
                if not isinstance(found, Channel):
                    raise ConfigError("prepare", f"answered a {type(found).__name__}, which is no Channel")
            except Exception as exc:
                self._life.session.note(exc, "subscription")
                refused = Refused(channel.key, f"it could not be prepared: {type(exc).__name__}", RETRY_AFTER)
                self._standing.apply(refused, entries[channel.key].ask)
            else:
                prepared[channel.key] = attrs.evolve(found, key=channel.key)

        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(prepare, channel)
        return [prepared[channel.key] for channel in channels if channel.key in prepared]

    def _channel(self, entry: Entry) -> Channel:
        subscription = self._subscriptions.by_key.get(entry.key)
        return Channel(entry.key, entry.channel, entry.params) if subscription is None else subscription.asked_as()

    async def _ask_together(self, batch: Sequence[Entry], channels: Sequence[Channel]) -> None:
        """Ask for these with one message."""
        handler = self._life.handlers.subscription
        try:
            if handler.max_batch == 1:
                message = handler.encode_subscription_request(channels[0].name, channels[0].params)
            else:
                message = handler.encode_subscription_batch(channels)
        except Exception as exc:
            self._could_not_ask(exc, channels)
            return
        if handler.correlated:
            asks = {entry.key: entry.ask for entry in batch}
            await self._places.ask(partial(self._ask_and_read, channels, message, asks))
        elif message is not None:
            try:
                await self._writer.send(message, 0, "subscription")
            except BadMessage as error:
                self._could_not_ask(error, channels)
                return
            except NotSent as error:
                if isinstance(error.__cause__, LinkLost):
                    raise
                for channel in channels:
                    self._standing.apply(Refused(channel.key, str(error)))
        self._standing.book.written(batch, trio.current_time())
        if not handler.confirms:
            for channel in channels:
                self._standing.apply(Granted(channel.key))

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
        standing = self._standing
        try:
            await self._grant.ask(
                message,
                "subscription",
                when_written=when_left,
                on_answer=lambda reply: standing.read_grants(reply, channels, asks),
            )
        except RequestFailed as error:
            if len(channels) == 1 or error.retry is not RetryAdvice.NEVER:
                for channel in channels:
                    standing.refuse(channel, error, asks[channel.key])
                return
            # One of them spoils the batch: ask for each alone, to find out which.
            for channel in channels:
                await self._ask_alone(channel, asks[channel.key])
        except NovaError as error:
            self._was_not_asked(error, channels, asks)

    async def _ask_alone(self, channel: Channel, ask: int) -> None:
        standing = self._standing
        try:
            message = self._life.handlers.subscription.encode_subscription_batch([channel])
        except Exception as exc:
            self._could_not_ask(exc, [channel])
            return
        try:
            await self._grant.ask(
                message,
                "subscription",
                on_answer=lambda reply: standing.read_grants(reply, [channel], {channel.key: ask}),
                renews=False,  # the batch has tried that: else each channel would authenticate the link again
            )
        except RequestFailed as error:
            standing.refuse(channel, error, ask)
        except NovaError as error:
            self._was_not_asked(error, [channel], {channel.key: ask})

    def _was_not_asked(self, error: NovaError, channels: Sequence[Channel], asks: Mapping[Hashable, int]) -> None:
        """Treat channels the question for which was not sent, or not answered, as refused, unless the link has gone."""
        if isinstance(error, SessionOver) or isinstance(error.__cause__, LinkLost):
            return  # the next link asks for them, if there is one
        if isinstance(error, BadMessage):
            self._could_not_ask(error, channels)
            return
        for channel in channels:
            self._standing.apply(Refused(channel.key, str(error)), asks[channel.key])

    def _could_not_ask(self, error: Exception, channels: Sequence[Channel]) -> None:
        """Treat a message that could not be made as the hook's failure, and its channels as refused."""
        if isinstance(error, NovaError):
            self._life.session.note(error, "subscription")
            why = str(error)
        else:
            self._life.session.handler_failed(error)
            why = type(error).__name__  # its words may be anything
        for channel in channels:
            self._standing.apply(Refused(channel.key, f"it could not be asked for: {why}"))

    async def _ask_anew(self, subscription: Subscription) -> None:
        """Give a subscription up and ask for it again, where that is still wanted: what comes first is a snapshot."""
        standing, tracker = self._standing, subscription.tracker
        entry = standing.book.find(subscription.key)
        if tracker is None or not tracker.awaits_snapshot or not subscription.is_wanted:
            return
        if entry is not None and entry.state is SubscriptionState.CONFIRMED:
            await self._give_up([entry])
            tracker.renew()  # one may have come meanwhile
            standing.book.reject(subscription.key, trio.current_time(), "a snapshot is wanted", retry_in=0.0)

    # ----------------------------------------------------------------- giving up

    async def _give_up(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._standing.gave_up(entry)
        channels = [Channel(entry.key, entry.channel, entry.params) for entry in entries]
        if len(entries) > 1:
            try:
                message = self._life.handlers.subscription.encode_unsubscription_batch(channels)
            except Exception as exc:
                self._life.session.handler_failed(exc)
                return
            if message is not NotImplemented:
                await self._say(message)
                return
        for channel, entry in zip(channels, entries, strict=True):
            await self._part(channel, entry.server_id)

    async def _part(self, channel: Channel, server_id: Hashable | None) -> None:
        """Send what gives a subscription up."""
        try:
            message = self._life.handlers.subscription.encode_unsubscription(channel, server_id)
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return
        await self._say(message)

    async def _say(self, message: Any) -> None:
        """Send a message whose answer changes nothing; None is none."""
        if message is None:
            return
        if self._life.handlers.subscription.correlated:
            await self._places.ask_quietly(partial(self._request_quietly, message))
            return
        try:
            await self._writer.send(message, 0, "subscription")
        except BadMessage as error:
            self._life.session.note(error, "subscription")

    async def _request_quietly(self, message: Any, when_left: Callable[[], None]) -> None:
        try:
            await self._grant.ask(message, "subscription", when_written=when_left)
        except NovaError as error:
            if not isinstance(error, SessionOver) and not isinstance(error.__cause__, LinkLost):
                self._life.session.note(error, "subscription")
