"""What the clients of a campaign do: everything, at random, through the public API only.

::

    drive
    └─ client                one or two
       └─ session            opened, used, closed and opened again until the faults are over; the last one stays
          ├─ events          every event of the session goes to the journal
          ├─ inbox           receives what belongs to no feed; where the client lags, not for a while
          ├─ feed            one per channel: subscribes, listens, leaves, comes back; lags like the inbox
          ├─ operator        sends and asks; sometimes gives up half-way
          └─ meddler         reconnects, reconfigures, pauses, pings, authenticates
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import attrs
import msgspec
import trio

from trio_nova import (
    Buffer,
    Connection,
    Delivery,
    ExponentialBackoff,
    Feed,
    FeedOptions,
    RateLimitHandler,
    open_connection,
)
from trio_nova.core.limits import RollingWindow
from trio_nova.core.session import State
from trio_nova.errors import NovaError
from trio_nova.events import (
    Dropped,
    FeedStale,
    Gap,
    Observation,
    RequestUnresolved,
    Resynced,
    RetryScheduled,
    SessionEnded,
)
from trio_nova.observe.logging import LoggingHandler, describe_event
from trio_nova.testing.sim._dialects import Dialect
from trio_nova.testing.sim._kinds import DIALECTS
from trio_nova.testing.sim._scenario import (
    BACKOFF_CAP,
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    ILLEGAL_NUMBER,
    INBOX_BYTES,
    LIMIT_PERIOD,
    MAX_MESSAGE,
    MIN_UPTIME,
    PING_INTERVAL,
    PONG_TIMEOUT,
    SETUP_TIMEOUT,
)
from trio_nova.testing.sim._servers import SimServer, find_op
from trio_nova.testing.sim._world import World

__all__ = ["drive"]

STORM_AFTER = 30.0
"""Seconds after the phase with faults."""
HURRY_AFTER = 10.0
"""Seconds after the phase with faults."""
LONGEST_WAIT = 60.0
"""Seconds that a client waits for a dial without a word."""
READ_AHEAD = 256
"""Messages that another transport than the usual one may have read before they were asked for."""
NAP = (1.0, 20.0)
"""Seconds, at least and at most, for which a consumer that lags takes nothing."""
AWAKE = (1.0, 10.0)
"""Seconds that it takes messages in between."""

_NOTICES = (Gap, Resynced, Dropped, FeedStale)
_OVER = (State.CLOSING, State.CLOSED, State.FAILED)


async def drive(world: World) -> None:
    """Let the clients of the scenario live in `world` until its end."""
    host = next(iter(world.servers))
    ops = itertools.count(1)
    async with trio.open_nursery() as nursery:
        for number in range(1, world.scenario.clients + 1):
            nursery.start_soon(Client(world, number, world.servers[host], ops).run, name=f"sim:client {number}")


@attrs.define(eq=False, kw_only=True)
class _Ears(LoggingHandler):
    """Hears the end of a session, which whoever listens in its block does not live to hear."""

    note: Callable[..., object]

    def log_connection_event(self, observation: Observation) -> None:
        super().log_connection_event(observation)
        if isinstance(observation.event, SessionEnded):
            self.note("client.ended")


@attrs.define(eq=False)
class Client:
    """One program with one session at a time."""

    world: World
    number: int
    server: SimServer
    """Only looked at: which channels there are, and what was granted in the end."""
    ops: Iterator[int]
    sessions: int = 0
    outbox_peak: int = 0
    """How many messages waited to be sent at most, in the present session."""
    dials_at: float = 0.0
    """When the session dials again, as it said last."""
    feeds: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    open_feeds: dict[int, Feed[Any]] = attrs.field(factory=dict)
    """Those of the present session whose blocks are entered, by their number."""
    dice: random.Random = attrs.field(init=False)
    dialect: Dialect = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.dice = self.world.dice(f"client {self.number}")
        scenario = self.world.scenario
        self.dialect = DIALECTS[scenario.server](self.server.name, scenario, self.server, self.note)

    def note(self, what: str, **fields: Any) -> None:
        self.world.journal.add(what, client=self.number, session=self.sessions, **fields)

    async def run(self) -> None:
        """Hold one session after the other; the one that lives when the faults are over is the last."""
        while not await self._hold_session():
            await self._nap(1.0, 3.0)

    # ------------------------------------------------------------------- sessions

    def _options(self) -> dict[str, Any]:
        scenario = self.world.scenario
        when_down = Buffer(max_items=50, max_bytes=100_000, ttl=20.0)
        limits = [RollingWindow(scenario.limit, LIMIT_PERIOD)] if scenario.limit else []
        return {
            **self.dialect.options(),
            **(self.dialect.backup_options() if scenario.has_backup else {}),
            **self.world.options,
            "logging_handler": partial(_Ears, note=self.note),
            "stream_factory": partial(self.world.net.stream_factory, owner=f"{self.number}.{self.sessions}"),
            "ping_interval": PING_INTERVAL,
            "pong_timeout": PONG_TIMEOUT,
            "connect_timeout": CONNECT_TIMEOUT,
            "close_timeout": CLOSE_TIMEOUT,
            "auth_timeout": SETUP_TIMEOUT,
            "subscription_timeout": SETUP_TIMEOUT,
            "backoff": ExponentialBackoff(base=2.0, cap=BACKOFF_CAP),
            "min_uptime": MIN_UPTIME,
            "max_message_size": MAX_MESSAGE,
            "inbox_bytes": INBOX_BYTES,
            "when_down": when_down if scenario.when_down == "buffer" else scenario.when_down,
            "retry_first_connect": scenario.patient,
            # Soon at full pace again after a complaint: the storm of the end shall not last.
            "rate_limit_handler": lambda: RateLimitHandler(
                limits, reserve=5.0 if limits else 0.0, queue_size=500, recovery_interval=2.0
            ),
        }

    async def _hold_session(self) -> bool:
        """Open a session and use it; return whether it was the last."""
        self.sessions += 1
        self.outbox_peak = 0
        self.note("client.open", patient=self.world.scenario.patient)
        life = self.dice.choice((20.0, 60.0, math.inf, math.inf, math.inf))
        if trio.current_time() + life >= self.world.scenario.length:
            life = math.inf
        last = False
        try:
            async with open_connection(self.dialect.target(), **self._options()) as conn:
                self.note("client.opened")
                self.world.opened.add(f"{self.number}.{self.sessions}")
                try:
                    async with trio.open_nursery() as nursery:
                        self._use(conn, nursery)
                        last = await self._wait_end(life)
                        if last:
                            self._note_rest(conn)
                        nursery.cancel_scope.cancel(reason="the session has lived long enough")
                finally:
                    self.note("client.peaks", outbox=self.outbox_peak)
                    self.note("client.leave")
        except* NovaError as group:
            self.note("client.left", error=_names(group))
        else:
            self.note("client.left", error=[])
        return last

    def _use(self, conn: Connection, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._watch_events, conn)
        nursery.start_soon(self._empty_inbox, conn)
        for channel in self.server.channels():
            nursery.start_soon(self._listen, conn, channel)
        for _ in range(2):
            nursery.start_soon(self._operate, conn)
        nursery.start_soon(self._meddle, conn)
        nursery.start_soon(self._hurry, conn)
        # Not over a transport that writes frame by frame: what is charged at once then leaves over a while, and
        # the next storm's worth comes too close behind its end.
        if self.world.scenario.limit is not None and self.dialect.sends and self.world.transport is None:
            nursery.start_soon(self._storm, conn, 2 * self.world.scenario.limit)

    async def _wait_end(self, life: float) -> bool:
        """Wait until this session shall end, and return whether that is the end of everything."""
        with trio.move_on_after(life):
            await self.world.healed.wait()
            scenario = self.world.scenario
            await trio.sleep_until(scenario.length + scenario.settle)
            return True
        return False

    def _note_rest(self, conn: Connection) -> None:
        statistics = conn.statistics()
        self.note(
            "client.rest",
            state=conn.state.value,
            epoch=conn.epoch,
            subscriptions=dict(conn.subscriptions()),
            inbox=statistics.inbox_messages,
            outbox=statistics.outbox_messages,
            links=statistics.links,
            granted={str(link): names for link, names in self.server.granted().items()},
            **({"unacked": self.server.unacked()} if self.dialect.acknowledges else {}),
        )

    # ------------------------------------------------------------------- watching

    async def _watch_events(self, conn: Connection) -> None:
        async with conn.listen(size=100_000) as events:
            self.note("client.event", event="Listening", state=conn.state.value, epoch=conn.epoch)
            async for observation in events.observations():
                event = observation.event
                fields = describe_event(event)
                if isinstance(event, RequestUnresolved):
                    del fields["id"]  # Trio cancels the tasks of a nursery in no order that could be repeated
                self.note("client.event", epoch=observation.epoch, **fields)
                self._watch_peaks(conn)
                if isinstance(event, RetryScheduled):
                    self.dials_at = trio.current_time() + event.delay

    async def _empty_inbox(self, conn: Connection) -> None:
        naps = _Naps(self, conn, self.world.dice(f"naps {self.number}"))
        try:
            async for message in conn:
                if str(ILLEGAL_NUMBER) in str(message):
                    self.note("client.unclaimed", number=ILLEGAL_NUMBER)
                await naps.nap_if_tired()
        except NovaError as error:
            self.note("client.inbox", error=_kind(error))

    def _watch_peaks(self, conn: Connection) -> None:
        self.outbox_peak = max(self.outbox_peak, conn.statistics().outbox_messages)

    def note_waiting(self, conn: Connection) -> None:
        """Write down how much waits to be received: bytes in the inbox, messages in the feeds."""
        waiting = sum(feed.waiting for feed in self.open_feeds.values())
        ahead = 0 if self.world.transport is None else READ_AHEAD
        self.note("client.waiting", inbox=conn.statistics().inbox_bytes, feeds=waiting, ahead=ahead)

    # ------------------------------------------------------------------- feeds

    async def _listen(self, conn: Connection, channel: str) -> None:
        """Hear a channel, leave it, and come back, while there are faults; then stay, or stay away."""
        dice = self.world.dice(f"feed {self.number} {channel}")
        naps = _Naps(self, conn, self.world.dice(f"naps {self.number} {channel}"))
        while True:
            await trio.sleep(dice.uniform(0.0, 10.0))
            stays = self.world.healed.is_set()
            if stays and dice.random() < 0.2:
                return
            span = math.inf if stays else dice.choice((0.01, 3.0, 30.0, 60.0, math.inf))
            feed = next(self.feeds)
            about = {"feed": feed, "channel": channel}
            tracked = self.dialect.is_tracked(channel)
            self.note("client.subscribe", **about, until=trio.current_time() + span, tracked=tracked)
            outcome = "left"
            try:
                with trio.move_on_after(span) as scope:
                    async with conn.subscribe(channel, feed=FeedOptions(notices=True)) as items:
                        self.note("client.subscribed", **about)
                        self.open_feeds[feed] = items
                        await self._take_all(about, items, naps)
                        if conn.state not in _OVER:  # the service says that there is no more to come
                            self.note("client.completed", **about)
                            outcome = "completed"
                            await trio.sleep(dice.uniform(0.0, 20.0))
                if scope.cancelled_caught and outcome != "completed":
                    outcome = "cancelled"
            except NovaError as error:
                outcome = _kind(error)
            except trio.Cancelled:
                outcome = "ended"
                raise
            finally:
                self.open_feeds.pop(feed, None)
                self.note("client.unsubscribed", **about, outcome=outcome)

    async def _take_all(self, about: dict[str, Any], feed: Feed[Any], naps: _Naps) -> None:
        """Take all that a feed delivers, until its end; acknowledge it, where that is wanted."""
        if not self.dialect.acknowledges:
            async for item in feed:
                self._note_item(about, item)
                await naps.nap_if_tired()
            return
        async for delivery in feed.deliveries():
            if isinstance(delivery, Delivery):
                await self._process(about, delivery, naps.dice)
            else:
                self._note_item(about, delivery)
            await naps.nap_if_tired()

    async def _process(self, about: dict[str, Any], delivery: Delivery[Any], dice: random.Random) -> None:
        number, again = self.dialect.number(about["channel"], delivery.payload), delivery.payload["again"]
        self.note("client.data", **about, number=number, epoch=delivery.epoch, again=again)
        if not self.world.healed.is_set():
            await trio.sleep(dice.choice((0.0, 0.0, 0.0, 0.05, 0.3)))
        self.note("client.acked", channel=about["channel"], number=number, epoch=delivery.epoch)
        try:
            delivery.ack()
        except NovaError as error:
            self.note("client.unacked", channel=about["channel"], number=number, error=_kind(error))

    def _note_item(self, about: dict[str, Any], item: Any) -> None:
        if isinstance(item, _NOTICES):
            self.note("client.notice", **{**describe_event(item), **about})
        else:
            number, snapshot = self.dialect.number(about["channel"], item), self.dialect.is_snapshot(item)
            book = self.dialect.book(about["feed"], about["channel"], item)
            known = {"snapshot": True} if snapshot else {}
            self.note("client.data", **about, number=number, **known, **({} if book is None else {"book": book}))

    # ------------------------------------------------------------------- operations

    async def _operate(self, conn: Connection) -> None:
        while True:
            await (self._nap(2.0, 8.0) if self.world.healed.is_set() else self._nap(0.2, 3.0))
            op = f"op-{next(self.ops)}"
            call = self.dice.choice(("send", "request", "request", "request idempotent", "burst"))
            patience = self.dice.choice((0.0, 0.005, 0.05, 1.0, math.inf, math.inf, math.inf))
            match call:
                case "send" if self.dialect.sends:
                    await self._attempt(op, "send", partial(conn.send, self.dialect.statement(op)), patience)
                case "burst" if self.dialect.sends:
                    await self._send_together(conn, self.dice.randint(2, 12), patience)
                case "request idempotent":
                    do = partial(conn.request, self.dialect.question(op), idempotent=True)
                    await self._attempt(op, "request idempotent", do, patience)
                case _:
                    await self._attempt(op, "request", partial(conn.request, self.dialect.question(op)), patience)

    async def _send_together(self, conn: Connection, count: int, patience: float) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                op = f"op-{next(self.ops)}"
                do = partial(conn.send, self.dialect.statement(op))
                nursery.start_soon(self._attempt, op, "send", do, patience)
            await trio.sleep(0.001)
            self._watch_peaks(conn)

    async def _storm(self, conn: Connection, count: int) -> None:
        """Send so much at once, when all is well again, that the limit holds it back for longer than a ping may be."""
        await trio.sleep_until(self.world.scenario.length + STORM_AFTER)
        await self._send_together(conn, count, math.inf)

    async def _attempt(self, op: str, call: str, do: Callable[[], Awaitable[Any]], patience: float) -> None:
        """Do one thing, for so long at most, and write down what was asked and how it went."""
        self.note("client.invoke", op=op, call=call, until=trio.current_time() + patience)
        outcome, answers = "ok", ""
        try:
            with trio.move_on_after(patience) as scope:
                answer = await do()
                if call.startswith("request"):
                    answers = find_op(msgspec.json.encode(answer).decode())
            if scope.cancelled_caught:
                outcome = "cancelled"
        except NovaError as error:
            outcome = _kind(error)
        except trio.Cancelled:
            outcome = "ended"
            raise
        finally:
            self.note("client.return", op=op, call=call, outcome=outcome, answers=answers)

    # ------------------------------------------------------------------- meddling

    async def _meddle(self, conn: Connection) -> None:
        while not self.world.healed.is_set():
            await self._nap(2.0, 25.0)
            op = f"meddling-{next(self.ops)}"
            patience = self.dice.choice((0.01, 1.0, 20.0))
            match self.dice.choice(("ping", "ping", "reconnect", "authenticate", "pause", "reconfigure")):
                case "ping":
                    await self._attempt(op, "ping", conn.ping, patience)
                case "reconnect":
                    await self._attempt(op, "reconnect", conn.reconnect, patience)
                case "authenticate":
                    await self._attempt(op, "authenticate", conn.authenticate, patience)
                case "pause":
                    await self._attempt(op, "pause", partial(self._pause, conn), patience)
                case _:
                    conn.reconfigure(ping_interval=self.dice.choice((PING_INTERVAL, PING_INTERVAL / 2)))

    async def _hurry(self, conn: Connection) -> None:
        """Dial at once, when all is well again, where the service has asked for a quarter of an hour."""
        await self.world.healed.wait()
        await trio.sleep(HURRY_AFTER)
        if conn.state is State.RECONNECTING and self.dials_at > trio.current_time() + LONGEST_WAIT:
            await self._attempt(f"meddling-{next(self.ops)}", "reconnect", conn.reconnect, 20.0)

    async def _pause(self, conn: Connection) -> None:
        async with conn.paused():
            await self._nap(0.1, 12.0)

    async def _nap(self, least: float, most: float) -> None:
        await trio.sleep(self.dice.uniform(least, most))


@attrs.define(eq=False)
class _Naps:
    """What one consumer of a client that lags does beside receiving: nothing, for a while, until all is well."""

    client: Client
    conn: Connection
    dice: random.Random
    awake_until: float = 0.0

    async def nap_if_tired(self) -> None:
        """Take nothing for a while, where it is time for that; then write down how much waits."""
        world = self.client.world
        if not world.scenario.lags or world.healed.is_set() or trio.current_time() < self.awake_until:
            return
        with trio.move_on_after(self.dice.uniform(*NAP)):
            await world.healed.wait()
        self.client.note_waiting(self.conn)
        self.awake_until = trio.current_time() + self.dice.uniform(*AWAKE)


def _names(error: BaseException) -> list[str]:
    """Return the kinds of all errors in a group, sorted."""
    if isinstance(error, BaseExceptionGroup):
        return sorted(name for each in error.exceptions for name in _names(each))
    return [_kind(error)]


def _kind(error: BaseException) -> str:
    """Return the name of an error's class, or of that class of `trio_nova.errors` which it specializes."""
    ours = (each.__name__ for each in type(error).__mro__ if each.__module__ == NovaError.__module__)
    return next(ours, type(error).__name__)
