"""An exchange on loopback that is strict, misbehaves on a schedule, and writes down all it sees of its client.

It listens on a real socket. What goes wrong goes wrong on the line, as it does in the world.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import attrs
import msgspec
import trio

from trio_nova.demo.journal import RETRY_AFTER, Fault, Journal, Strike, Visit
from trio_nova.demo.line import Line
from trio_nova.demo.market import BOOK, DELISTED, STEPS_PER_SECOND, Market
from trio_nova.demo.wire import Auth, FromClient, Order, PlaceOrder, Subscribe, Unsubscribe

__all__ = ["CHEATED", "LARGEST_ORDER", "Exchange"]

CHEATED = ("trades.BTC", 20)
"""The message that a cheating exchange keeps to itself: its channel and its number."""
LARGEST_ORDER = 100
"""Of more than this quantity the exchange wants nothing."""
GRANT = 3600.0
"""Seconds for which a token admits."""
CALM = 0.2
"""Seconds for which a link was restored, and all its channels were heard, before it is struck: a fault upon a fault
would blur the books."""
PATIENCE = 2.0
"""Seconds that the exchange waits for a client in a handshake, at the beginning or the end."""


@attrs.define(eq=False)
class Desk:
    """Where a connected client is served."""

    line: Line
    visit: Visit
    since: float
    """Trio's clock, seconds: when a channel that it has got said something to it for the first time."""
    spoken: set[str] = attrs.field(factory=set, init=False)
    """The channels that have said something to it."""
    attendance: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around all that is heard from the client."""

    @property
    def served(self) -> bool:
        """Whether all the channels that it has got have said something to it."""
        return self.spoken.issuperset(self.visit.granted)

    async def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message, or let it be lost with a client that is gone."""
        await self.line.send(msgspec.json.encode(message))

    async def publish(self, news: Mapping[str, Any]) -> None:
        """Send a message of a channel."""
        await self.tell(news)
        if news["channel"] not in self.spoken:
            self.spoken.add(news["channel"])
            self.since = trio.current_time()

    async def dismiss(self, code: int, reason: str) -> None:
        """Say goodbye, and leave the client a while to answer."""
        self.attendance.deadline = trio.current_time() + PATIENCE
        await self.line.close(code, reason)


@attrs.define(eq=False)
class Exchange:
    """One market, one account."""

    faults: Sequence[tuple[float, Fault]]
    """When to do what, in seconds since the market opened; a fault waits for a client that is well connected."""
    cheats: bool = False
    """Whether one message is kept back on a healthy link: what a client's books must find out."""
    dice: random.Random = attrs.field(factory=random.Random)
    """Draws the prices."""
    market: Market = attrs.field(init=False)
    journal: Journal = attrs.field(factory=Journal, init=False)
    played: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when all faults are over, and the client is well connected again."""
    _valid: set[str] = attrs.field(factory=set, init=False)
    """Tokens that were issued and not used."""
    _refuse_next: bool = attrs.field(default=False, init=False)
    _opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    _halted: bool = attrs.field(default=False, init=False)
    _silent: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the market has said its last word."""
    _desk: Desk | None = attrs.field(default=None, init=False)
    """Of the client that has signed in."""
    _arrivals: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        self.market = Market(self.dice)

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Listen on 127.0.0.1 until cancelled; report the port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick, name="exchange:ticks")
            nursery.start_soon(self._misbehave, name="exchange:faults")
            task_status.started(listener.socket.getsockname()[1])
            await trio.serve_listeners(self._admit, [listener], handler_nursery=nursery)

    async def issue_token(self) -> str:
        """Issue a token that is good for one link, as a service does over its other interfaces."""
        await trio.lowlevel.checkpoint()
        token = secrets.token_hex(8)
        self._valid.add(token)
        return token

    def open(self) -> None:
        """Open the market: the first message follows, and the schedule begins."""
        self._opened.set()

    async def halt(self) -> None:
        """Close the market, and wait until its last word has been sent. Orders are still answered."""
        self._halted = True
        await self._silent.wait()

    # ----------------------------------------------------------------- the market

    async def _tick(self) -> None:
        await self._opened.wait()
        due = trio.current_time()
        for step in itertools.count(1):
            if self._halted:
                await self._publish(self.market.close())
                self._silent.set()
                return
            for news in self.market.step(step):
                if not (self.cheats and (news["channel"], news["seq"]) == CHEATED):
                    await self._publish(news)
            due += 1.0 / STEPS_PER_SECOND
            await trio.sleep_until(due)

    async def _publish(self, news: Mapping[str, Any]) -> None:
        if self._desk is not None and news["channel"] in self._desk.visit.granted:
            await self._desk.publish(news)

    # ----------------------------------------------------------------- the client

    async def _admit(self, stream: trio.SocketStream) -> None:
        line = Line(stream)
        try:
            accepted = False
            with trio.move_on_after(PATIENCE):
                accepted = await self._answer_dial(line)
            if accepted:
                await self._attend(Desk(line, Visit(), trio.current_time()))
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer_dial(self, line: Line) -> bool:
        """Accept a client; return whether it is there, neither refused nor gone."""
        if not self._refuse_next:
            return await line.accept()
        self._refuse_next = False
        await line.refuse(503, "the market is overloaded", Retry_After=str(RETRY_AFTER))
        return False

    async def _attend(self, desk: Desk) -> None:
        """Hear what a client wants until it is gone."""
        self.journal.visits.append(desk.visit)
        try:
            with desk.attendance, suppress(msgspec.MsgspecError):
                while (data := await desk.line.receive()) is not None:
                    message = msgspec.json.decode(data, type=FromClient)
                    desk.visit.note(str(message.__struct_config__.tag))
                    await self._serve(desk, message)
        finally:
            if self._desk is desk:
                self._desk = None

    async def _serve(self, desk: Desk, message: FromClient) -> None:
        if not self.journal.rate.admit(trio.current_time()):
            await desk.dismiss(1008, "too many messages")
            return
        match message:
            case Auth(token):
                await self._sign_in(desk, token)
            case _ if desk.visit.token is None:
                await desk.dismiss(1008, "authenticate first")
            case Subscribe(channel):
                await self._grant(desk, channel)
            case Unsubscribe(channel):
                with suppress(ValueError):
                    desk.visit.granted.remove(channel)
            case PlaceOrder(id, order):
                await self._execute(desk, id, order)

    async def _sign_in(self, desk: Desk, token: str) -> None:
        if token not in self._valid:
            await desk.tell({"type": "auth_error", "reason": "the token is not valid"})
            await desk.dismiss(1008, "the token is not valid")
            return
        self._valid.remove(token)
        desk.visit.token, desk.since = token, trio.current_time()
        self._desk = desk
        self._arrivals.unpark_all()
        await desk.tell({"type": "auth_success", "expires_in": GRANT})

    async def _grant(self, desk: Desk, channel: str) -> None:
        visit = desk.visit
        again = channel in visit.asked
        visit.asked.append(channel)
        if again or channel not in self.market.listed:
            visit.refused.append(channel)
            reason = "asked for already" if again else "delisted"
            await desk.tell({"type": "error", "channel": channel, "reason": reason})
            return
        await desk.tell({"type": "subscribed", "channel": channel})
        # From here to the first wait: what is published next is sent after the snapshot that it changes.
        visit.granted.append(channel)
        desk.since = trio.current_time()
        if channel == BOOK:
            await desk.publish(self.market.snapshot())

    async def _execute(self, desk: Desk, id: int, order: Order) -> None:
        if order.quantity > LARGEST_ORDER:
            self.journal.declined.add(order.number)
            await desk.tell({"id": id, "error": {"message": "the order is too large"}})
            return
        self.journal.executed[order.number] += 1
        await desk.tell({"id": id, "executed": order})

    # ----------------------------------------------------------------- what goes wrong

    async def _misbehave(self) -> None:
        await self._opened.wait()
        opened = trio.current_time()
        for due, fault in self.faults:
            await trio.sleep_until(opened + due)
            desk = await self._wait_calm()
            self.journal.strikes.append(Strike(fault, trio.current_time()))
            self._desk = None
            self.market.listed.discard(DELISTED)
            match fault:
                case Fault.RESTART:
                    await desk.dismiss(1012, "service restart")
                case Fault.MUTE:
                    desk.line.mute()
                case Fault.RESET:
                    await desk.line.reset()
                case Fault.DROP | Fault.REFUSE:
                    self._refuse_next = fault is Fault.REFUSE
                    await desk.line.drop()
        await self._wait_calm()
        self.played.set()

    async def _wait_calm(self) -> Desk:
        """Wait until one client has had all it wants for a while."""
        while True:
            while (desk := self._desk) is None:
                await self._arrivals.park()
            for _ in range(4):  # by steps: what was sent is to be read, however long the process stood still
                await trio.sleep(CALM / 4)
            if desk is self._desk and desk.served and trio.current_time() >= desk.since + CALM:
                return desk
