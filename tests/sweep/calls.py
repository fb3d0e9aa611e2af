"""Every public awaitable, made once in a session that is alive with other things; and what it may raise."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import trio

from tests.sweep.service import NEWS
from tests.sweep.world import CLOSE_TIMEOUT, URL, World
from trio_nova import (
    AuthExchange,
    AuthFailed,
    AuthHandler,
    AuthOk,
    Channel,
    ConnectFailed,
    Connection,
    Data,
    Hole,
    LinkLost,
    NotSent,
    NovaError,
    OutcomeUnknown,
    Page,
    Registry,
    SessionOver,
    State,
    Step,
    SubscriptionHandler,
    Tracker,
    open_connection,
    run_connection,
)
from trio_nova.adapters.jsonrpc import JsonRpcClient

__all__ = ["CALLS", "Play"]

Play = Callable[[World], Awaitable[None]]
"""A whole session with one call under test in it."""

LOST = (NotSent, OutcomeUnknown)


async def nothing(world: World) -> None:
    """Arrange nothing."""


@attrs.frozen
class InSession:
    """A call that is made in a session."""

    run: Play
    arrange: Play = nothing
    raises: tuple[type[NovaError], ...] = ()
    """What it may raise where its link is lost."""
    ends: bool = False
    """Whether it ends the session."""
    finish: Play = nothing
    greets: bool = False
    """Whether the service says something first."""
    rpc: bool = False
    """Whether it is one of a JSON-RPC client."""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """What the session is opened with, besides what all are."""

    async def __call__(self, world: World) -> None:
        if self.greets:
            world.service.greet()
        if self.rpc:
            async with JsonRpcClient.open(**world.rpc_options) as client:
                world.client = client
                await self._use(world, client.connection)
        else:
            async with open_connection(URL, **{**world.own_options, **self.options}) as conn:
                await self._use(world, conn)

    async def _use(self, world: World, conn: Connection) -> None:
        world.conn = conn
        async with trio.open_nursery() as beside:
            async with AsyncExitStack() as stack:
                world.beside, world.stack = beside, stack
                await self.arrange(world)
                beside.start_soon(asks_beside, world, self.ends)
                with world.watched(self.raises):
                    await self.run(world)
                if self.ends:
                    await world.is_over()
                else:
                    await world.go_on()
                await self.finish(world)
            if not self.ends:
                await world.wait_unsubscribed()


async def asks_beside(world: World, ends: bool) -> None:
    """Have a question under way all the while: it must settle, and with an answer unless its link goes."""
    try:
        await world.asks("beside", after=0.02)
    except (NotSent, OutcomeUnknown, SessionOver):
        assert ends or world.conn.close_info is not None


# --------------------------------------------------------------------------- sending


async def send(world: World) -> None:
    await world.sends(lambda label: world.conn.send({"say": label}))


async def send_text(world: World) -> None:
    await world.sends(world.conn.send_text)


async def send_bytes(world: World) -> None:
    await world.sends(lambda label: world.conn.send_bytes(label.encode()))


async def send_json(world: World) -> None:
    await world.sends(lambda label: world.conn.send_json({"say": label}))


async def send_several(world: World) -> None:
    for number in range(3):
        await world.sends(world.conn.send_text, f"number {number}")


async def request(world: World) -> None:
    await world.asks("mine")


async def request_idempotent(world: World) -> None:
    await world.asks("mine", idempotent=True)


async def cut_link(world: World) -> None:
    """Arrange: the link has just been lost."""
    world.cut("fin")
    await world.conn.wait_state(State.DISCONNECTED)


# --------------------------------------------------------------------------- receiving


async def receive(world: World) -> None:
    for _ in range(3):
        world.take(await world.conn.receive())


async def receive_batch(world: World) -> None:
    while len(world.ticks) < 3:
        for message in await world.conn.receive_batch():
            world.take(message)


async def iterate(world: World) -> None:
    count = 0
    async for message in world.conn:
        world.take(message)
        count += 1
        if count == 3:
            break


async def hand_over(world: World) -> None:
    """Arrange: somebody else receives from now on."""
    world.receiver = world.conn.hand_over("the sweep")


async def receive_handed_over(world: World) -> None:
    for _ in range(3):
        world.take(await world.receiver.receive())


async def receive_batch_handed_over(world: World) -> None:
    while len(world.ticks) < 3:
        for message in await world.receiver.receive_batch():
            world.take(message)


async def iterate_handed_over(world: World) -> None:
    async for message in world.receiver:
        world.take(message)
        if len(world.ticks) == 3:
            break


async def paused(world: World) -> None:
    async with world.conn.paused():
        await trio.sleep(0.01)
    await trio.lowlevel.checkpoint()


async def listen(world: World) -> None:
    async with world.conn.listen(messages=True) as events:
        for _ in range(3):
            await events.receive()


async def listen_in_batches(world: World) -> None:
    count = 0
    async with world.conn.listen(messages=True) as events:
        while count < 3:
            count += len(await events.receive_batch())


async def listen_iterating(world: World) -> None:
    count = 0
    async with world.conn.listen(messages=True) as events:
        async for _ in events:
            count += 1
            if count == 3:
                break


# --------------------------------------------------------------------------- subscriptions


async def subscribe_enter(world: World) -> None:
    block = world.conn.subscribe("news")
    world.feed = await block.__aenter__()
    world.stack.push_async_exit(block)


async def read_if_subscribed(world: World) -> None:
    if hasattr(world, "feed"):
        await world.read_on()


async def have_block(world: World) -> None:
    """Arrange: a channel is subscribed to, in a block that the call is to leave."""
    world.block = world.conn.subscribe("news")
    world.feed = await world.block.__aenter__()


async def subscribe_leave(world: World) -> None:
    await world.block.__aexit__(None, None, None)
    await world.wait_unsubscribed()


async def feed_receive(world: World) -> None:
    for _ in range(NEWS):
        world.read(await world.feed.receive())


async def feed_receive_batch(world: World) -> None:
    for item in await world.feed.receive_batch():
        world.read(item)


async def feed_iterate(world: World) -> None:
    count = 0
    async for item in world.feed:
        world.read(item)
        count += 1
        if count == NEWS:
            break


async def feed_deliveries(world: World) -> None:
    receiver = world.feed.deliveries()
    for _ in range(NEWS):
        delivery = await receiver.receive()
        world.read(delivery.payload)
        delivery.ack()


async def read_deliveries(world: World) -> None:
    """Take from a feed by deliveries what it still has to bring."""
    receiver = world.feed.deliveries()
    while f"{len(world.ends)}:{NEWS - 1}" not in world.news:
        world.read((await receiver.receive()).payload)


class Prepared(SubscriptionHandler):
    """Asks for channels with what it has asked for elsewhere."""

    async def prepare(self, channel: Channel) -> Channel:
        await trio.sleep(0.002)
        return attrs.evolve(channel, params={"token": "of this link"})


class Filling(SubscriptionHandler):
    """Brings what was missed over the loss of a link, in two pages."""

    async def backfill(self, hole: Hole) -> Page:
        await trio.sleep(0.002)
        missed = Data("news", {"news": "missed" if hole.start is None else "missed as well"})
        return Page([missed], "the second" if hole.start is None else None)


class Booked(SubscriptionHandler):
    """Joins the news to a snapshot: that of a link stands before the news of the link."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = 0

    def read(self, message: Any) -> Data | None:
        match message:
            case {"channel": channel, "news": str(news)}:
                link, number = map(int, news.split(":"))
                self.newest = max(link, self.newest)
                return Data(channel, message, 10 * link + number + 1)
            case _:
                return None

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)

    async def snapshot(self, channel: Channel) -> Data:
        await trio.sleep(0.002)
        return Data(channel.key, {"news": "snapshot"}, Step(10 * self.newest, snapshot=True))


async def subscribe_and_lose_the_link(world: World) -> None:
    """Arrange: a channel is subscribed to, and its link has just been lost."""
    await subscribe_enter(world)
    await world.read_on()
    await cut_link(world)


async def feed_filled(world: World) -> None:
    while "missed as well" not in world.news:
        world.read(await world.feed.receive())


async def feed_joined(world: World) -> None:
    await subscribe_enter(world)
    while "snapshot" not in world.news:
        world.read(await world.feed.receive())


# --------------------------------------------------------------------------- the session


async def ping(world: World) -> None:
    assert await world.conn.ping() >= 0.0


async def authenticate(world: World) -> None:
    await world.conn.authenticate()


class InSteps(AuthHandler):
    """Authenticates by a question, and by something that is not answered."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        await exchange.send({"type": "hello"})
        reply = await exchange.request(self.encode_auth_request(credentials))
        assert reply["type"] == "auth_success"
        await exchange.send({"type": "hello again"})
        return AuthOk()


class Greeted(AuthHandler):
    """Authenticates once the service has said something."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        if not exchange.refresh:
            assert "hello" in await exchange.receive()
        return await super().authenticate(exchange, credentials)


async def authenticate_anew(world: World) -> None:
    await world.conn.authenticate("token 1")


async def wait_ready(world: World) -> None:
    await world.conn.wait_ready()


async def wait_state(world: World) -> None:
    await world.conn.wait_state(State.CONNECTED)


async def wait_closed(world: World) -> None:
    world.beside.start_soon(world.conn.aclose)
    await world.conn.wait_closed()


async def reconnect(world: World) -> None:
    await world.conn.reconnect("the sweep")


async def drain(world: World) -> None:
    await world.conn.drain()


async def send_two(world: World) -> None:
    """Arrange: two messages are on their way."""

    async def send_beside(label: str) -> None:
        with suppress(*LOST):  # where the drain was cut short, the session is closed in the middle of it
            await world.sends(world.conn.send_text, label)

    world.beside.start_soon(send_beside, "first")
    world.beside.start_soon(send_beside, "second")
    while len(world.tries) < 2:
        await trio.lowlevel.checkpoint()


async def aclose(world: World) -> None:
    await world.conn.aclose(1000, "the sweep")


# --------------------------------------------------------------------------- a client of one's own


async def client_call(world: World) -> None:
    with world.trying("mine") as attempt:
        result = await world.client.call("ask", {"q": "mine"})
        attempt.answered = True
    assert result == {"q": "mine"}


async def client_notify(world: World) -> None:
    with world.trying("mine"):
        await world.client.notify("ask", {"q": "mine"})


async def client_batch(world: World) -> None:
    with world.trying("mine") as attempt:
        results = await world.client.batch([("ask", {"q": "mine"}), ("ask", {"q": "my other one"})])
        attempt.answered = True
    assert results == [{"q": "mine"}, {"q": "my other one"}]


async def client_subscribe_enter(world: World) -> None:
    block = world.client.subscribe("news")
    world.feed = await block.__aenter__()
    world.stack.push_async_exit(block)


async def client_aclose(world: World) -> None:
    await world.client.aclose(1000, "the sweep")


# --------------------------------------------------------------------------- ways in and out

ENTERING = (ConnectFailed, AuthFailed, LinkLost, SessionOver)


async def settle_down(world: World, conn: Connection) -> None:
    """Let the session alone that has been entered, and use it, whatever was cancelled."""
    world.injection.disarm()
    world.conn = conn
    with trio.CancelScope(shield=True):
        await world.go_on()


async def come_to_the_end(world: World, conn: Connection) -> None:
    """Use the session; from now on it is the way out that is under test."""
    world.conn = conn
    await world.go_on()
    world.used_to_its_end = False
    world.injection.arm()


@attrs.frozen
class Enter:
    """Entering a block is under test."""

    open: Callable[[World], AbstractAsyncContextManager[Connection]]
    raises: tuple[type[NovaError], ...] = ENTERING

    async def __call__(self, world: World) -> None:
        with world.watched(self.raises, within=CLOSE_TIMEOUT):
            async with self.open(world) as conn:
                await settle_down(world, conn)


@attrs.frozen
class Leave:
    """Leaving a block is under test."""

    open: Callable[[World], AbstractAsyncContextManager[Connection]]

    async def __call__(self, world: World) -> None:
        with world.watched(within=CLOSE_TIMEOUT, armed=False):
            async with self.open(world) as conn:
                await come_to_the_end(world, conn)


def block(world: World) -> AbstractAsyncContextManager[Connection]:
    return open_connection(URL, **world.own_options)


def block_greeted(world: World) -> AbstractAsyncContextManager[Connection]:
    world.service.greet()
    options: dict[str, Any] = {**world.own_options, "auth_handler": Greeted}
    return open_connection(URL, **options)


def block_retrying(world: World) -> AbstractAsyncContextManager[Connection]:
    return open_connection(URL, retry_first_connect=True, **world.own_options)


@asynccontextmanager
async def block_of_client(world: World) -> AsyncGenerator[Connection, None]:
    async with JsonRpcClient.open(**world.rpc_options) as client:
        yield client.connection


@asynccontextmanager
async def block_of_registry(world: World) -> AsyncGenerator[Connection, None]:
    registry = Registry()
    try:
        async with registry.open_connection("one", URL, **world.own_options) as conn:
            assert registry["one"] is conn
            yield conn
    finally:
        assert "one" not in registry
        # The id is free again: to make another block of it is no error.
        registry.open_connection("one", URL, **world.own_options)


Start = Callable[[World, trio.Nursery], Awaitable[Connection]]


async def start_run_connection(world: World, nursery: trio.Nursery) -> Connection:
    conn: Connection = await nursery.start(partial(run_connection, URL, **world.own_options))
    return conn


async def start_client(world: World, nursery: trio.Nursery) -> Connection:
    client: JsonRpcClient = await nursery.start(partial(JsonRpcClient.run, **world.rpc_options))
    return client.connection


@attrs.frozen
class Run:
    """Starting a session as a task is under test."""

    start: Start

    async def __call__(self, world: World) -> None:
        async with trio.open_nursery() as nursery:
            with world.watched(ENTERING, within=CLOSE_TIMEOUT):
                world.conn = await self.start(world, nursery)
            if hasattr(world, "conn"):
                await world.go_on()
                await world.conn.aclose()
            nursery.cancel_scope.cancel(reason="whether or not it had just come up when it was cancelled")


@attrs.frozen
class EndRun:
    """Ending a session that is a task is under test."""

    start: Start

    async def __call__(self, world: World) -> None:
        with world.watched(within=CLOSE_TIMEOUT, armed=False):
            async with trio.open_nursery() as nursery:
                conn = await self.start(world, nursery)
                await come_to_the_end(world, conn)
                await conn.aclose()


PINGED, SIGNED_IN = (NotSent, LinkLost), (AuthFailed, ConnectFailed, *LOST)

CALLS: dict[str, Play] = {
    "send": InSession(send, raises=LOST),
    "send_text": InSession(send_text, raises=LOST),
    "send_bytes": InSession(send_bytes, raises=LOST),
    "send_json": InSession(send_json, raises=LOST),
    "send_text, three in a row": InSession(send_several, raises=LOST),
    "send_text, while down": InSession(send_text, cut_link, raises=LOST),
    "request": InSession(request, raises=LOST),
    "request, idempotent": InSession(request_idempotent),
    "request, while down": InSession(request, cut_link, raises=LOST),
    "receive": InSession(receive),
    "receive_batch": InSession(receive_batch),
    "iteration": InSession(iterate),
    "receive, handed over": InSession(receive_handed_over, hand_over),
    "receive_batch, handed over": InSession(receive_batch_handed_over, hand_over),
    "iteration, handed over": InSession(iterate_handed_over, hand_over),
    "subscribe, entering": InSession(subscribe_enter, finish=read_if_subscribed),
    "subscribe, while down": InSession(subscribe_enter, cut_link, finish=read_if_subscribed),
    "subscribe, leaving": InSession(subscribe_leave, have_block),
    "feed.receive": InSession(feed_receive, subscribe_enter, finish=read_if_subscribed),
    "feed.receive_batch": InSession(feed_receive_batch, subscribe_enter, finish=read_if_subscribed),
    "feed iteration": InSession(feed_iterate, subscribe_enter, finish=read_if_subscribed),
    "feed.deliveries": InSession(feed_deliveries, subscribe_enter, finish=read_deliveries),
    "feed, of a prepared channel": InSession(
        subscribe_enter, finish=read_if_subscribed, options={"subscription_handler": Prepared}
    ),
    "feed, filled": InSession(
        feed_filled, subscribe_and_lose_the_link, finish=read_if_subscribed, options={"subscription_handler": Filling}
    ),
    "feed, joined with a snapshot": InSession(
        feed_joined, finish=read_if_subscribed, options={"subscription_handler": Booked}
    ),
    "listen": InSession(listen),
    "listen, in batches": InSession(listen_in_batches),
    "listen, iteration": InSession(listen_iterating),
    "paused": InSession(paused),
    "ping": InSession(ping, raises=PINGED),
    "authenticate": InSession(authenticate, raises=SIGNED_IN),
    "authenticate, anew": InSession(authenticate_anew, raises=SIGNED_IN),
    "authenticate, in steps": InSession(authenticate, raises=SIGNED_IN, options={"auth_handler": InSteps}),
    "wait_ready": InSession(wait_ready, cut_link),
    "wait_state": InSession(wait_state, cut_link),
    "wait_closed": InSession(wait_closed, ends=True),
    "reconnect": InSession(reconnect),
    "reconnect, while down": InSession(reconnect, cut_link),
    "reconnect, to be greeted": InSession(reconnect, greets=True, options={"auth_handler": Greeted}),
    "drain": InSession(drain, ends=True),
    "drain, with two under way": InSession(drain, send_two, ends=True),
    "aclose": InSession(aclose, ends=True),
    "open_connection, entering": Enter(block),
    "open_connection, entering, retried": Enter(block_retrying, raises=()),
    "open_connection, entering, greeted": Enter(block_greeted),
    "open_connection, leaving": Leave(block),
    "run_connection, starting": Run(start_run_connection),
    "run_connection, ending": EndRun(start_run_connection),
    "Client.open, entering": Enter(block_of_client),
    "Client.open, leaving": Leave(block_of_client),
    "Client.run, starting": Run(start_client),
    "Client.run, ending": EndRun(start_client),
    "Client.call": InSession(client_call, raises=LOST, rpc=True),
    "Client.notify": InSession(client_notify, raises=LOST, rpc=True),
    "Client.batch": InSession(client_batch, raises=LOST, rpc=True),
    "Client.subscribe, entering": InSession(client_subscribe_enter, finish=read_if_subscribed, rpc=True),
    "Client.aclose": InSession(client_aclose, ends=True, rpc=True),
    "Registry.open_connection, entering": Enter(block_of_registry),
    "Registry.open_connection, leaving": Leave(block_of_registry),
}
