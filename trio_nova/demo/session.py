"""The client's side of the demonstration, and the comparison of its books with the exchange's."""

from __future__ import annotations

import random
import signal
from collections import deque
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from trio_nova import Connection, ExponentialBackoff, JsonCodec, Listener, NovaError, State, open_connection
from trio_nova.demo.exchange import Exchange, schedule
from trio_nova.demo.ledger import Ledger, Outcome, audit
from trio_nova.demo.show import Display, Report, Snapshot
from trio_nova.demo.wire import FromExchange, Order, Tick

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
    run: _Run | None = None
    async with trio.open_nursery() as nursery:
        port = await nursery.start(exchange.serve)
        async with open_connection(
            f"ws://127.0.0.1:{port}/",
            codec=JsonCodec(FromExchange),
            when_down="wait",
            backoff=ExponentialBackoff(base=0.4, cap=2.0),
            min_uptime=0.1,
            ping_interval=patience,
            pong_timeout=patience,
            spread=random.Random(options.seed).random,
        ) as conn:
            # The listener's bound is the events of about ten seconds; an overflow would be an error, not a gap.
            async with conn.listen(size=4096, overflow="fail", messages=True) as events:
                run = _Run(options, exchange, conn, display)
                await run.play(events)
        nursery.cancel_scope.cancel(reason="the demonstration is over")
    return run.report()


@attrs.define(eq=False)
class _Run:
    """One run: its tasks share the books."""

    _options: Options
    _exchange: Exchange
    _conn: Connection
    _display: Display
    _ledger: Ledger = attrs.field(init=False)
    _delivered: int = attrs.field(default=0, init=False)
    """Ticks that the application received."""
    _interrupted: bool = attrs.field(default=False, init=False)
    _opened: float = attrs.field(factory=trio.current_time, init=False)
    _heard: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        # The first link was there before anybody listened.
        self._ledger = Ledger(self._exchange.strikes, dials=1, links=1)

    async def play(self, events: Listener) -> None:
        """Trade until the time is over and all faults have been played, then settle and close."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_books, events, name="demo:books")
            nursery.start_soon(self._consume, name="demo:consumer")
            shown = await nursery.start(self._show, name="demo:display")
            trading = await nursery.start(self._trade, name="demo:trader")
            self._exchange.open()
            await self._sit_through()
            self._exchange.halt()
            trading.cancel(reason="the market is closed")
            with trio.move_on_after(SETTLING):
                while self._ledger.orders.open or self._ledger.ticks.last < self._exchange.emitted:
                    await self._heard.park()
            await self._conn.aclose()
            shown.cancel(reason="the demonstration is over")
        self._ledger.ticks.end(self._exchange.emitted)

    def report(self) -> Report:
        """Compare the books, and say what came of it."""
        exchange, ledger = self._exchange, self._ledger
        findings = audit(
            ledger,
            emitted=exchange.emitted,
            delivered=self._delivered,
            executed=exchange.executed,
            faults=[strike.fault for strike in exchange.strikes]
            if self._interrupted
            else [fault for _, fault in exchange.faults],
        )
        return Report(ledger, exchange, self._opened, findings, self._interrupted)

    async def _sit_through(self) -> None:
        with trio.move_on_after(self._options.seconds + GRACE), trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:

                async def heed() -> None:
                    async for _ in signals:
                        self._interrupted = True
                        nursery.cancel_scope.cancel(reason="interrupted by the user")

                nursery.start_soon(heed, name="demo:interrupt")
                await trio.sleep(self._options.seconds)
                await self._exchange.played.wait()
                nursery.cancel_scope.cancel(reason="the time is over")

    # ----------------------------------------------------------------- the client's tasks

    async def _keep_books(self, events: Listener) -> None:
        """Note everything that happens, in its order, until the session is over."""
        async for event in events:
            before = self._ledger.outage
            self._ledger.hear(event)
            if before is not None and before.over:
                self._display.outage(self._snapshot_of(before))
            self._heard.unpark_all()

    async def _consume(self) -> None:
        """Receive like any application, until the session is over."""
        async for message in self._conn:
            self._delivered += isinstance(message, Tick)

    async def _trade(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Place an order every now and then, each in a task of its own, whether or not there is a link."""
        with trio.CancelScope() as placing:
            pass
