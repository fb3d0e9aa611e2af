"""Snapshots and missed messages of channels, asked for elsewhere, while what the link brings is held back."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import msgspec
import trio

from trio_nova._feeds import Carrier, Subscription
from trio_nova._link.life import LinkLife
from trio_nova._link.writer import Writer
from trio_nova.codecs import weigh_message
from trio_nova.core.bounded import OVERHEAD, BoundedQueue
from trio_nova.errors import ConfigError, NovaError
from trio_nova.handlers import Channel, Page
from trio_nova.readings import Data, Step, as_step

__all__ = ["Fills"]


@attrs.define(eq=False)
class _Fill:
    """The back-fill of one channel, and what the link brings meanwhile."""

    held: BoundedQueue[tuple[Data, str | bytes | None, int]]
    scope: trio.CancelScope


@attrs.frozen
class _Elsewhere:
    """The carrier of a message that was asked for elsewhere, while a link brings the others."""

    link: Carrier
    epoch: int = 0

    def acknowledge(self, message: Any) -> None:
        self.link.acknowledge(message)


@attrs.define(eq=False)
class Fills:
    """Asks the hooks `snapshot` and `backfill`, each in a task of the link, so that other channels do not wait."""

    _life: LinkLife
    _writer: Writer
    _fills: dict[Subscription, _Fill] = attrs.field(factory=dict, init=False)
    _tried: set[Subscription] = attrs.field(factory=set, init=False)
    """Subscriptions whose hole was filled on this link, or could not be."""
    _fetching: set[Subscription] = attrs.field(factory=set, init=False)
    """Subscriptions whose snapshot is being asked for."""

    @property
    def under_way(self) -> bool:
        """Whether something is being asked for."""
        return bool(self._fills or self._fetching)

    def hold(self, subscription: Subscription, data: Data, frame: str | bytes | None, charge: int | None) -> bool:
        """Hold back data of a channel that is being filled; False where it is not, and they are to be delivered."""
        if not self._life.hooks.backfills or not self.begin(subscription):
            return False
        fill = self._fills[subscription]
        if charge is None:
            came, room = data.payload, fill.held.room
            charge = weigh_message(came) + OVERHEAD if frame is None else room.charge(frame, came)
        fill.held.offer((data, frame, charge), charge)
        if fill.held.full:
            fill.scope.cancel(reason="there is no more room for what is held back meanwhile")
        return True

    # ----------------------------------------------------------------- what was missed

    def begin(self, subscription: Subscription) -> bool:
        """Fill the hole that the loss of a link has left in a channel; False where there is none to be filled."""
        if subscription in self._fills:
            return True
        if not subscription.has_hole or subscription in self._tried:
            return False
        session = self._life.session
        scope = trio.CancelScope(deadline=trio.current_time() + session.config.subscription_timeout)
        self._fills[subscription] = _Fill(BoundedQueue(room=session.room), scope)
        self._life.start_soon(self._fill, subscription, verb="backfill")
        return True

    async def _fill(self, subscription: Subscription) -> None:
        life, fill = self._life, self._fills[subscription]
        is_whole = False
        try:
            with fill.scope:
                is_whole = await self._fetch_pages(subscription, fill)
            if not is_whole:
                error = NovaError(f"the back-fill of {subscription.label!r} was given up: it took too long or too much")
                life.session.note(error, "subscription")
        except Exception as exc:
            life.session.note(exc, "subscription")
        except BaseException:  # the link has ended: the next one fills the hole, from where it began
            fill.held.pop_all()
            raise
        finally:
            del self._fills[subscription]
        self._tried.add(subscription)
        subscription.filled(is_whole=is_whole)
        now = trio.current_time()
        while fill.held.items:
            data, frame, size = fill.held.pop()
            subscription.deliver(data, frame, size, now, self._writer)
        life.session.settled.ring()  # a drain waits for this, too

    async def _fetch_pages(self, subscription: Subscription, fill: _Fill) -> bool:
        """Ask for what was missed, page by page; return whether that was all, or nobody wants it any more."""
        hole, carrier = subscription.hole(), _Elsewhere(self._writer)
        while subscription.feeds:
            first = as_step(fill.held.items[0][0].step) if fill.held.items else None
            before = None if first is None else (first.last if first.first is None else first.first)
            page = await self._life.handlers.subscription.backfill(attrs.evolve(hole, before=before))
            if not isinstance(page, Page):
                raise ConfigError("backfill", f"answered a {type(page).__name__}, which is no Page")
            for data in page.readings:
                subscription.fill(data, carrier)
            if page.more is None:
                return True
            hole = attrs.evolve(hole, start=page.more)
            await self._wait_for_room(subscription, fill)
        return True

    async def _wait_for_room(self, subscription: Subscription, fill: _Fill) -> None:
        """Wait until less waits to be taken: that is the consumer's time, and not the back-fill's."""
        await trio.lowlevel.checkpoint()
        session, scope = self._life.session, fill.scope
        left, scope.deadline = scope.deadline - trio.current_time(), math.inf
        while session.room.is_full and subscription.feeds:
            await session.taken.wait()
        scope.deadline = trio.current_time() + left

    # ----------------------------------------------------------------- snapshots

    def fetch(self, subscription: Subscription, is_joined: Callable[[], bool]) -> None:
        """Ask for the snapshot of a channel, until `is_joined`, or nobody wants it any more."""
        if subscription not in self._fetching:
            self._fetching.add(subscription)
            self._life.start_soon(self._fetch, subscription, is_joined, verb="snapshot")

    async def _fetch(self, subscription: Subscription, is_joined: Callable[[], bool]) -> None:
        life, config, failures = self._life, self._life.session.config, 0
        try:
            while subscription.is_wanted and not is_joined():
                data = await self._within(life.handlers.subscription.snapshot, subscription.wanted_channel)
                if data is not None and not is_joined():
                    subscription.deliver(_whole(data), None, None, trio.current_time(), _Elsewhere(self._writer))
                if is_joined():
                    return
                failures += 1
                await trio.sleep(config.backoff.delay(failures, config.spread()) or 1.0)
        finally:
            self._fetching.discard(subscription)
            life.session.settled.ring()

    async def _within(self, hook: Callable[[Channel], Awaitable[Any]], channel: Channel) -> Data | None:
        """Ask a hook, and return its answer; None where there is none in time, or it fails, which is reported."""
        session = self._life.session
        try:
            with trio.fail_after(session.config.subscription_timeout):
                data = await hook(channel)
            if not isinstance(data, Data):
                raise ConfigError("snapshot", f"answered a {type(data).__name__}, which is no Data")
        except trio.TooSlowError:
            session.note(NovaError(f"no snapshot of {channel.name!r} in time"), "subscription")
        except Exception as exc:
            session.note(exc, "subscription")
        else:
            return data
        return None


def _whole(data: Data) -> Data:
    """Return data as a snapshot, which the answer of that hook is, whether it says so or not."""
    step = as_step(data.step) or Step(None)
    return data if step.snapshot else msgspec.structs.replace(data, step=msgspec.structs.replace(step, snapshot=True))
