"""The client's side of the demonstration, and the comparison of its books with the exchange's."""

from __future__ import annotations

import itertools
import random
import signal
from collections import deque

import attrs
import trio

from trio_nova import Connection, ExponentialBackoff, JsonCodec, Listener, NovaError, State, open_connection
from trio_nova.core.session import TERMINAL
from trio_nova.demo.exchange import Exchange, schedule
from trio_nova.demo.ledger import Ledger, Report, audit
from trio_nova.demo.wire import FromExchange, Order, Tick
from trio_nova.demo.words import Display, Snapshot

__all__ = ["GRACE", "Options", "run_demo"]

GRACE = 10.0
"""Seconds by which a run may last longer: on a slow machine, so that all faults have their turn."""
SETTLING = 2.0
"""Seconds for which the last answers are awaited."""
ORDER_INTERVAL = 0.04
"""Seconds between two orders."""
MAX_UNSENT = 500
"""Orders that may wait for a link; no more are placed then."""
FRAME_TIME = 0.1
"""Seconds between two looks at the display."""
RATE_FRAMES = 11
"""Looks over which the rate is taken: one second."""


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
    async with trio.open_nursery() as nursery:
        port = await nursery.start(exchange.serve)
        async with (
            open_connection(
                f"ws://127.0.0.1:{port}/",
                codec=JsonCodec(FromExchange),
                when_down="wait",
                ping_interval=patience,
                pong_timeout=patience,
                backoff=ExponentialBackoff(base=0.4, cap=2.0),
                min_uptime=0.1,
                spread=random.Random(options.seed).random,
                events=(),  # the display tells what a log would
            ) as conn,
            # Room for more than ten seconds; an overflow is an error, as it would be a hole in the books.
            conn.listen(size=4096, overflow="fail", messages=True) as events,
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
    _delivered: int = attrs.field(default=0, init=False)
    """Ticks that the application received."""
    _closing: bool = attrs.field(default=False, init=False)
    """No more orders are placed."""
    _interrupted: bool = attrs.field(default=False, init=False)
    _heard: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        # The first link was there before anybody listened.
        self._ledger = Ledger(self._exchange.strikes, dials=1, links=1)

    async def play(self, conn: Connection, events: Listener) -> None:
        """Trade until the time is over and all faults have been played, then settle and close."""
        self._opened = trio.current_time()
        self._display.begin(conn.url, self._opened, self._ledger)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_books, events, name="demo:books")
            nursery.start_soon(self._consume, conn, name="demo:consumer")
            nursery.start_soon(self._trade, conn, name="demo:trader")
            nursery.start_soon(self._show, conn, name="demo:display")
            self._exchange.open()
            await self._sit_through()
            self._exchange.halt()
            self._closing = True
            with trio.move_on_after(SETTLING):
                while self._ledger.orders.open or self._ledger.ticks.last < self._exchange.emitted:
                    await self._heard.park()
            self._ledger.closing = True
            await conn.aclose()
        self._ledger.end(self._exchange.emitted)

    def report(self) -> Report:
        """Hold the books against those of the exchange."""
        exchange = self._exchange
        findings = audit(
            self._ledger,
            emitted=exchange.emitted,
            delivered=self._delivered,
            executed=exchange.executed,
            faults=() if self._interrupted else [fault for _, fault in exchange.faults],
        )
        return Report(
            ledger=self._ledger,
            emitted=exchange.emitted,
            executed=exchange.executed,
            findings=findings,
            interrupted=self._interrupted,
        )

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
        async for event in events:
            outage = self._ledger.outage
            self._ledger.hear(event)
            if outage is not None and outage.over:
                self._display.show_outage(outage)
            self._heard.unpark_all()

    async def _consume(self, conn: Connection) -> None:
        """Receive like any application, until the session is over."""
        async for message in conn:
            self._delivered += isinstance(message, Tick)

    async def _trade(self, conn: Connection) -> None:
        """Place an order every now and then, each in a task of its own, whether or not there is a link."""
        async with trio.open_nursery() as nursery:
            for number in itertools.count(1):
                if self._closing:
                    break
                if self._ledger.orders.unsent < MAX_UNSENT:
                    nursery.start_soon(self._place, conn, Order(number, 30_000.0 + number % 100, 1 + number % 9))
                await trio.sleep(ORDER_INTERVAL)

    async def _place(self, conn: Connection, order: Order) -> None:
        orders = self._ledger.orders
        self._ledger.place(order, waits=conn.state is not State.READY)
        try:
            await conn.send(order)
        except NovaError as error:
            orders.failed(order.id, conn.epoch, error)
        else:
            orders.sent(order.id, conn.epoch)
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
                )
            )
            await trio.sleep(FRAME_TIME)
