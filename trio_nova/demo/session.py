"""The client's side of the demonstration, and the comparison of its books with the exchange's."""

from __future__ import annotations

import itertools
import random
import signal
from collections import deque
from typing import Any

import attrs
import trio

from trio_nova import (
    Channel,
    Connection,
    Data,
    ExponentialBackoff,
    FeedOptions,
    JsonCodec,
    Listener,
    NovaError,
    RateLimitHandler,
    Reading,
    RollingWindow,
    Secret,
    State,
    Step,
    SubscriptionHandler,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.core.sequence import Tracker
from trio_nova.core.session import TERMINAL
from trio_nova.demo.audit import Report, audit
from trio_nova.demo.exchange import LARGEST_ORDER, Exchange
from trio_nova.demo.journal import RateCount, schedule
from trio_nova.demo.ledger import Ledger
from trio_nova.demo.market import BOOK, CHANNELS
from trio_nova.demo.wire import Order
from trio_nova.demo.words import Display, Snapshot

__all__ = ["GRACE", "Numbered", "Options", "run_demo"]

GRACE = 10.0
"""Seconds by which a run may last longer: on a slow machine, so that all faults have their turn."""
SETTLING = 5.0
"""Seconds for which the last answers are awaited."""
ORDER_INTERVAL = 0.05
"""Seconds between two orders."""
MAX_OPEN = 500
"""Orders that may wait for a link, or for their answer; no more are placed then."""
SQUEEZE = 0.25
"""Seconds by which the way to the exchange may squeeze messages together."""
RESERVE = 14
"""Messages of the rate that orders must leave to authentication, pings and subscriptions."""
FRAME_TIME = 0.1
"""Seconds between two looks at the display."""
RATE_FRAMES = 11
"""Looks over which the rate is taken: one second."""


@attrs.define(eq=False)
class Numbered(SubscriptionHandler):
    """Watches the numbers of all channels; of the book's, that they continue a snapshot."""

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"channel": str(channel), "seq": int(seq)}:
                return Data(channel, message, Step(seq, snapshot=message.get("snapshot") is True))
            case _:
                return None

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=channel.name == BOOK)


@attrs.frozen(kw_only=True)
class Options:
    """What the command line can ask for."""

    seconds: float = 20.0
    seed: int = 0
    """Of the prices, and of the jitter in the delays before redials."""
    cheat: bool = False
    """Whether the exchange keeps one tick back on a healthy link, which the audit must find."""


async def run_demo(options: Options, display: Display) -> Report:
    """Trade for a while with an exchange that fails, and report.

    SIGINT ends the run early, with the report so far. Must run in the main thread.
    """
    exchange = Exchange(schedule(options.seconds), cheats=options.cheat, dice=random.Random(options.seed))
    patience = max(0.3, min(0.6, options.seconds / 30))
    run = _Run(options, exchange, display)

    async def new_token() -> Secret[str]:
        return Secret(await exchange.issue_token())

    rate = RateCount()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(exchange.serve)
        async with (
            open_connection(
                f"ws://127.0.0.1:{port}/",
                codec=JsonCodec(),
                credentials=new_token,
                subscription_handler=Numbered(),
                rate_limit_handler=RateLimitHandler(
                    limits=[RollingWindow(rate.limit, rate.period, margin=SQUEEZE)], reserve=RESERVE
                ),
                when_down="wait",
                ping_interval=patience,
                pong_timeout=patience,
                backoff=ExponentialBackoff(base=0.4, cap=2.0),
                min_uptime=0.1,
                spread=random.Random(options.seed).random,
                events=(),  # the display tells what a log would
            ) as conn,
            # Room for more than ten seconds; an overflow is an error, as it would be a hole in the books.
            conn.listen(size=4096, overflow="fail") as events,
        ):
            await run.play(conn, events)
        nursery.cancel_scope.cancel(reason="the demonstration is over")
    return run.report()


@attrs.define(eq=False)
class _Run:
    """One run, whose tasks share the books."""

    _options: Options
    _exchange: Exchange
    _display: Display
    _opened: float = attrs.field(default=0.0, init=False)
    """Trio's clock, seconds: when the market opened."""
    _ledger: Ledger = attrs.field(init=False)
    _closing: bool = attrs.field(default=False, init=False)
    """No more orders are placed."""
    _closed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _interrupted: bool = attrs.field(default=False, init=False)
    _heard: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        # The first link was there before anybody listened.
        self._ledger = Ledger(self._exchange.journal.strikes, dials=1, links=1, signed_in={1}, ready={1})

    async def play(self, conn: Connection, events: Listener) -> None:
        """Subscribe, trade until the time is over and all faults have been played, then settle and close."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_books, events, name="demo:books")
            for channel in CHANNELS:
                await nursery.start(self._follow, conn, channel, name=f"demo:{channel}")
            self._opened = trio.current_time()
            self._display.begin(conn.url, self._opened, self._ledger)
            nursery.start_soon(self._trade, conn, name="demo:trader")
            nursery.start_soon(self._show, conn, name="demo:display")
            self._exchange.open()
            await self._sit_through()
            self._closing = True
            with trio.move_on_after(SETTLING):
                while self._ledger.outage is not None:  # where it was interrupted: let the channels say what it cost
                    await self._heard.park()
            with trio.move_on_after(SETTLING):
                await self._exchange.halt()
                while self._unsettled():
                    await self._heard.park()
            self._take_stock(conn)
            await conn.aclose()
            self._closed.set()
        self._ledger.end(self._exchange.market.emitted)

    def report(self) -> Report:
        """Hold the books against those of the exchange."""
        exchange = self._exchange
        faults = () if self._interrupted else [fault for _, fault in exchange.faults]
        return Report(
            ledger=self._ledger,
            journal=exchange.journal,
            market=exchange.market,
            findings=audit(self._ledger, exchange.journal, exchange.market, faults),
            interrupted=self._interrupted,
        )

    def _unsettled(self) -> bool:
        emitted = self._exchange.market.emitted
        behind = any(each.last < emitted[name] for name, each in self._ledger.series.items() if not each.refused)
        return behind or self._ledger.orders.open > 0

    def _take_stock(self, conn: Connection) -> None:
        """Write down how things are before the session is closed."""
        ledger = self._ledger
        ledger.closing = True
        ledger.stray = conn.statistics().inbox_messages
        if conn.state is State.READY:
            ledger.subscribed, ledger.health = _confirmed(conn), conn.health().status

    async def _sit_through(self) -> None:
        """Wait for the end of the show, or for SIGINT."""
        with (
            trio.move_on_after(self._options.seconds + GRACE) as show,
            trio.open_signal_receiver(signal.SIGINT) as signals,
        ):

            async def heed() -> None:
                async for _ in signals:
                    self._interrupted = True
                    show.cancel(reason="interrupted by the user")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(heed, name="demo:interrupt")
                await trio.sleep(self._options.seconds)
                await self._exchange.played.wait()
                nursery.cancel_scope.cancel(reason="all has been played")

    # ----------------------------------------------------------------- the client's tasks

    async def _keep_books(self, events: Listener) -> None:
        """Note everything that happens, in its order, until the session is over."""
        async for observation in events.observations():
            outage = self._ledger.outage
            self._ledger.hear(observation)
            if outage is not None and outage.over:
                self._display.show_outage(outage)
            self._heard.unpark_all()

    async def _follow(
        self, conn: Connection, channel: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hear a channel until the session is over."""
        series = self._ledger.series[channel]
        async with conn.subscribe(channel, feed=FeedOptions(notices=True)) as feed:
            task_status.started()
            try:
                async for item in feed:
                    series.hear(item)
                    self._heard.unpark_all()
            except SubscriptionRejected as error:
                series.refused = str(error)
                # We still want it, and say so as long as we are in the block: the session is degraded.
                await self._closed.wait()

    async def _trade(self, conn: Connection) -> None:
        """Place an order every now and then, each in a task of its own, whether or not there is a link."""
        async with trio.open_nursery() as nursery:
            for number in itertools.count(1):
                if self._closing:
                    break
                if self._ledger.orders.open < MAX_OPEN:
                    quantity = 1 + number % 9 if number % 40 else LARGEST_ORDER + 1
                    nursery.start_soon(self._place, conn, Order(number, 30_000.0 + number % 100, quantity))
                await trio.sleep(ORDER_INTERVAL)

    async def _place(self, conn: Connection, order: Order) -> None:
        orders = self._ledger.orders
        self._ledger.place(waits=conn.state is not State.READY)
        try:
            reply = await conn.request({"type": "order", "order": order})
        except NovaError as error:
            orders.failed(order, error)
        else:
            orders.answered(order, reply)
        self._heard.unpark_all()

    async def _show(self, conn: Connection) -> None:
        """Keep the display up to date until the session is over."""
        window: deque[tuple[float, int]] = deque(maxlen=RATE_FRAMES)
        while conn.state not in TERMINAL:
            now, received = trio.current_time(), conn.statistics().messages_received
            window.append((now, received))
            since, before = window[0]
            rate = (received - before) / (now - since) if now > since else 0.0
            self._display.refresh(
                Snapshot(
                    elapsed=now - self._opened,
                    seconds=self._options.seconds,
                    state=conn.state,
                    epoch=conn.epoch,
                    rate=rate,
                    rtt=conn.latency,
                    health=conn.health().status,
                    confirmed=len(_confirmed(conn)),
                    pace=self._exchange.journal.rate.current(now),
                )
            )
            await trio.sleep(FRAME_TIME)


def _confirmed(conn: Connection) -> list[str]:
    return [channel for channel, state in conn.subscriptions().items() if state == "confirmed"]
