"""Every call can be cancelled at every moment: nothing is torn, lost, doubled, or left behind.

The sweep cancels a call after the k-th step that any task takes while the call is under way, for k = 0, 1,
2, ... until the call completes before its turn comes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import attrs
import pytest
import trio
import trio.testing
from trio._core import _run

import trio_nova
from trio_nova import Connection, MessageEvent, PeerSilent, State, open_connection
from trio_nova.testing import ClosePayload, FromClient, Peer, ScriptedServer

URL = "ws://server.test/"
COUNT = 4
"""Messages that the server sends on every link."""
TEXT = "a message of some length: " + "0123456789" * 3
END_OF_SWEEP = 2_000
"""No call takes that many steps."""


# --------------------------------------------------------------------------- the sweep


@attrs.define(eq=False)
class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of any task."""

    step: int
    steps: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _counts: bool = False

    @property
    def fired(self) -> bool:
        return self.steps >= self.step

    def start(self) -> None:
        self._counts = True
        if self.step == 0:
            self.scope.cancel(reason="the sweep: before the first step")

    def stop(self) -> None:
        self._counts = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._counts:
            self.steps += 1
            if self.steps == self.step:
                self.scope.cancel(reason=f"the sweep: after step {self.step}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Cancel what runs in the block, when its turn comes."""
        with self.scope:
            self.start()
            try:
                yield
            finally:
                self.stop()


@contextmanager
def instrumented(instrument: trio.abc.Instrument) -> Iterator[None]:
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


def tasks() -> dict[trio.lowlevel.Task, str]:
    """Return every task of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, rest = {}, [root]
    while rest:
        task = rest.pop()
        found[task] = task.name
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


# --------------------------------------------------------------------------- the server's side


@attrs.frozen
class Counter:
    """Counts on every link, while it reads; answers the goodbye when it has counted to the end."""

    pause: float
    """Seconds before each read."""

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count, peer)
            goodbye = await self._read(peer)
        await peer.close(goodbye.code, goodbye.reason)

    async def _count(self, peer: Peer) -> None:
        for number in range(COUNT):
            await peer.send(f"{peer.dialled.number}:{number}")
            await trio.sleep(0.001 if number % 2 else 0.0)

    async def _read(self, peer: Peer) -> ClosePayload:
        while True:
            await trio.sleep(self.pause)
            frame = await peer.receive()
            if isinstance(frame, ClosePayload):
                return frame


@attrs.frozen
class Links:
    """What the links of a sweep are like."""

    points: int
    """At least so many moments must be swept, so that the sweep cannot come to nothing unnoticed."""
    max_buffer: int = 65_536
    slice_size: int | None = None
    pause: float = 0.0

    def server(self) -> ScriptedServer:
        return ScriptedServer(then=Counter(self.pause), max_buffer=self.max_buffer, slice_size=self.slice_size)


LINKS = {
    "fast": Links(points=450),
    "sliced": Links(points=800, slice_size=3),
    "back_pressured": Links(points=800, max_buffer=16, pause=0.01),
}


# --------------------------------------------------------------------------- the calls


@attrs.define
class Log:
    """What a call under test tried and achieved."""

    server: ScriptedServer
    listener: trio_nova.Listener
    beside: trio.Nursery
    """For calls beside the one under test."""
    tried: list[FromClient] = attrs.field(factory=list)
    sent: list[FromClient] = attrs.field(factory=list)
    refused: list[FromClient] = attrs.field(factory=list)
    """Those that NotSent was raised for."""
    received: list[str] = attrs.field(factory=list)
    heard: list[str] = attrs.field(factory=list)

    def hear(self, event: trio_nova.Event) -> None:
        if isinstance(event, MessageEvent) and event.direction == "received":
            self.heard.append(event.message)


async def sends(log: Log, frame: FromClient, send: Callable[[], Awaitable[None]]) -> None:
    log.tried.append(frame)
    try:
        await send()
    except trio_nova.NotSent:
        log.refused.append(frame)
    except trio_nova.OutcomeUnknown:
        pass
    else:
        log.sent.append(frame)


async def send_text(conn: Connection, log: Log) -> None:
    await sends(log, TEXT, partial(conn.send_text, TEXT))


async def send_bytes(conn: Connection, log: Log) -> None:
    await sends(log, TEXT.encode(), partial(conn.send_bytes, TEXT.encode()))


async def send_json(conn: Connection, log: Log) -> None:
    await sends(log, json.dumps([TEXT]), partial(conn.send_json, [TEXT]))


async def send(conn: Connection, log: Log) -> None:
    await sends(log, TEXT, partial(conn.send, TEXT))


async def receive(conn: Connection, log: Log) -> None:
    log.received.append(await conn.receive())


async def receive_batch(conn: Connection, log: Log) -> None:
    log.received.extend(await conn.receive_batch())


async def iterate(conn: Connection, log: Log) -> None:
    async for message in conn:
        log.received.append(message)
        if len(log.received) == 3:
            break


async def ping(conn: Connection, log: Log) -> None:
    assert await conn.ping() >= 0.0


async def listen(conn: Connection, log: Log) -> None:
    for _ in range(4):
        log.hear(await log.listener.receive())


async def paused(conn: Connection, log: Log) -> None:
    async with conn.paused():
        await trio.sleep(0.01)
    await trio.lowlevel.checkpoint()


async def lose_link(conn: Connection, log: Log) -> None:
    """Arrange: the first link has just been lost."""
    peer = log.server.dials[0].peer
    assert peer is not None
    log.beside.start_soon(peer.drop)
    await conn.wait_state(State.DISCONNECTED)


async def wait_ready(conn: Connection, log: Log) -> None:
    await conn.wait_ready()


async def wait_state(conn: Connection, log: Log) -> None:
    await conn.wait_state(State.CONNECTED)


async def reconnect(conn: Connection, log: Log) -> None:
    await conn.reconnect("the sweep")


async def aclose(conn: Connection, log: Log) -> None:
    await conn.aclose(1000, "the sweep")


async def drain(conn: Connection, log: Log) -> None:
    await conn.drain()


async def fill_outbox(conn: Connection, log: Log) -> None:
    """Arrange: two messages are on their way."""
    log.beside.start_soon(send_text, conn, log)
    log.beside.start_soon(send_bytes, conn, log)
    while len(log.tried) < 2:
        await trio.lowlevel.checkpoint()


async def nothing(conn: Connection, log: Log) -> None:
    """Arrange nothing."""


@attrs.frozen
class Call:
    """One public call, and what becomes of the session meanwhile."""

    run: Callable[[Connection, Log], Awaitable[None]]
    arrange: Callable[[Connection, Log], Awaitable[None]] = nothing
    links: int = 1
    """How many links there are at the end."""
    ends: bool = False
    """Whether it ends the session."""


CALLS = [
    Call(send_text),
    Call(send_bytes),
    Call(send_json),
    Call(send),
    Call(receive),
    Call(receive_batch),
    Call(iterate),
    Call(ping),
    Call(listen),
    Call(paused),
    Call(wait_ready, lose_link, links=2),
    Call(wait_state, lose_link, links=2),
    Call(reconnect, links=2),
    Call(drain, ends=True),
    Call(aclose, ends=True),
]


def open_at(server: ScriptedServer) -> trio_nova.ConnectionBlock:
    return open_connection(
        URL, stream_factory=server.stream_factory, backoff=trio_nova.ListBackoff([0.0]), events=(), close_timeout=1.0
    )


async def cancel_call(call: Call, links: Links, step: int) -> bool:
    """Cancel `call` after `step` steps and see what became of all; return whether it was still under way."""
    cancel = CancelAt(step)
    async with links.server() as server:
        async with (
            open_at(server) as conn,
            conn.listen(messages=True) as listener,
            trio.open_nursery() as beside,
        ):
            log = Log(server, listener, beside)
            await call.arrange(conn, log)
            with instrumented(cancel), cancel.watching():
                await call.run(conn, log)
            with trio.fail_after(60.0):
                if call.ends:
                    with pytest.raises((trio_nova.SessionOver, trio_nova.NotSent)):
                        await conn.send_text("after")
                    await conn.aclose()
                else:
                    await conn.send_text("after")
                    while f"{call.links}:{COUNT - 1}" not in log.received:
                        log.received.append(await conn.receive())
        for event in drained(listener):
            log.hear(event)
        for dialled in server.dials:
            await dialled.wait_ended()
    check(call, log, conn, cancel.fired)
    return cancel.fired


def drained(listener: trio_nova.Listener) -> Iterator[trio_nova.Event]:
    while True:
        try:
            yield listener.receive_nowait()
        except trio_nova.SessionOver:
            return


def check(call: Call, log: Log, conn: Connection, fired: bool) -> None:
    """Hold what the client says against what the server saw."""
    dials = log.server.dials
    frames = [frame for dialled in dials for frame in dialled.frames]
    assert conn.state is State.CLOSED
    assert len(dials) == call.links
    assert dials[-1].ended == "closed"
    assert dials[-1].frames[-1] == ClosePayload(1000, "the sweep" if call.run is aclose else "")
    assert frames.count("after") == (0 if call.ends else 1)
    for frame in log.tried:
        assert frames.count(frame) <= 1, "sent twice"
        assert frame not in log.sent or frame in frames, "acknowledged, and not delivered"
        assert frame not in log.refused or frame not in frames, "delivered, and called not sent"
    assert fired or len(log.sent) == len(log.tried)
    for number in range(1, call.links + 1):
        everything = [f"{number}:{n}" for n in range(COUNT)]
        for got in (log.received, log.heard):
            of_link = [message for message in got if message.startswith(f"{number}:")]
            assert of_link == everything[: len(of_link)], "lost, doubled or out of order"
            if number == call.links and not call.ends:
                assert of_link == everything


async def cancel_entering(links: Links, step: int) -> bool:
    """Cancel the way into the block after `step` steps."""
    cancel = CancelAt(step)
    entered = False
    async with links.server() as server:
        with instrumented(cancel), cancel.watching():
            async with open_at(server) as conn:
                cancel.stop()
                entered = True
                with trio.CancelScope(shield=True), trio.fail_after(60.0):
                    await conn.send_text("after")
                    received = [await conn.receive() for _ in range(COUNT)]
                    assert received == [f"1:{n}" for n in range(COUNT)]
        for dialled in server.dials:
            await dialled.wait_ended()
    assert entered or cancel.fired
    if entered:
        assert server.dials[0].frames == ["after", ClosePayload(1000)]
        assert server.dials[0].ended == "closed"
    return cancel.fired


async def cancel_leaving(links: Links, step: int) -> bool:
    """Cancel the way out of the block after `step` steps."""
    cancel = CancelAt(step)
    async with links.server() as server:
        with instrumented(cancel), cancel.scope:
            async with open_at(server) as conn:
                await conn.send_text("before")
                cancel.start()
            cancel.stop()
        for dialled in server.dials:
            await dialled.wait_ended()
    assert conn.state is State.CLOSED
    assert server.dials[0].frames == ["before", ClosePayload(1000)]
    assert server.dials[0].ended == "closed"
    return cancel.fired


async def cancel_wait_closed(links: Links, step: int) -> bool:
    """Cancel a task that waits for the end, which another task brings about."""
    cancel = CancelAt(step)
    async with links.server() as server:
        async with open_at(server) as conn, trio.open_nursery() as nursery:
            nursery.start_soon(conn.aclose)
            with instrumented(cancel), cancel.watching():
                await conn.wait_closed()
        for dialled in server.dials:
            await dialled.wait_ended()
    assert server.dials[0].frames == [ClosePayload(1000)]
    assert server.dials[0].ended == "closed"
    return cancel.fired


Sweep = Callable[[Links, int], Awaitable[bool]]

SWEEPS: dict[str, Sweep] = {
    **{call.run.__name__: partial(cancel_call, call) for call in CALLS},
    "drain_what_is_under_way": partial(cancel_call, Call(drain, fill_outbox, ends=True)),
    "enter": cancel_entering,
    "leave": cancel_leaving,
    "wait_closed": cancel_wait_closed,
}


@pytest.mark.parametrize(
    ("kind", "seed"), [("fast", 0), ("fast", 1), ("fast", 2), ("sliced", 0), ("back_pressured", 1)]
)
async def test_every_call_can_be_cancelled_at_every_moment(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    before = tasks()
    points: dict[str, int] = {}
    for name, sweep in SWEEPS.items():
        for step in range(END_OF_SWEEP):
            _run._r.seed(seed)
            try:
                fired = await sweep(LINKS[kind], step)
                assert tasks() == before
            except BaseException as exc:
                exc.add_note(f"{name}, cancelled after step {step}, on a {kind} link")
                raise
            if not fired:
                points[name] = step
                break
    assert min(points.values()) >= 5
    assert sum(points.values()) >= LINKS[kind].points


@pytest.mark.parametrize("seed", range(5))
async def test_a_pause_at_any_moment_loses_nothing(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    _run._r.seed(seed)

    async def count(peer: Peer) -> None:
        await peer.accept()
        for number in range(200):
            await peer.send(str(number))
        await peer.serve_until_closed()

    async def stutter() -> None:
        for _ in range(2_000):  # bounded: while it lasts, virtual time stands still
            async with conn.paused():
                await trio.lowlevel.checkpoint()
            for _ in range(seed + 1):
                await trio.lowlevel.checkpoint()

    async with ScriptedServer(count) as server:
        async with open_at(server) as conn, trio.open_nursery() as nursery:
            nursery.start_soon(stutter)
            with trio.fail_after(60.0):
                received = [await conn.receive() for _ in range(200)]
            nursery.cancel_scope.cancel(reason="all has come")
    assert received == [str(number) for number in range(200)]


# --------------------------------------------------------------------------- a blocked sender blinds nobody

PING_INTERVAL = 5.0
PONG_TIMEOUT = 3.0
BIG = bytes(200_000)


async def deaf(peer: Peer) -> None:
    await peer.accept()
    await peer.stop_reading()


@pytest.mark.parametrize(
    ("sending_from", "noticed_at", "clock"),
    [
        (None, PING_INTERVAL + PONG_TIMEOUT, "pong"),
        (0.0, PONG_TIMEOUT, "write"),
        (4.0, 4.0 + PONG_TIMEOUT, "write"),
        (6.0, PING_INTERVAL + PONG_TIMEOUT, "pong"),
    ],
    ids=["idle", "sending", "sending_before_the_ping", "sending_after_the_ping"],
)
async def test_a_dead_peer_is_noticed_in_time_whatever_the_senders_do(
    autojump_clock: trio.testing.MockClock, sending_from: float | None, noticed_at: float, clock: str
) -> None:
    async def send_two(since: float) -> None:
        await trio.sleep(since)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_late)
            with pytest.raises(trio_nova.OutcomeUnknown):
                await conn.send_bytes(BIG)

    async def send_late() -> None:
        await trio.sleep(0.5)
        await conn.send_text("queued")

    async with ScriptedServer(deaf, Counter(0.0)) as server:
        with trio.fail_after(60.0):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    ping_interval=PING_INTERVAL,
                    pong_timeout=PONG_TIMEOUT,
                    backoff=trio_nova.ListBackoff([0.0]),
                ) as conn,
                conn.listen() as events,
                trio.open_nursery() as nursery,
            ):
                if sending_from is not None:
                    nursery.start_soon(send_two, sending_from)
                silent = [event async for event in until_link_closed(events) if isinstance(event, PeerSilent)]
                await conn.wait_ready()
        await server.dials[1].wait_ended()
    assert [event.at for event in silent] == [noticed_at]
    assert [event.clock for event in silent] == [clock]
    assert server.dials[1].at == noticed_at
    assert server.dials[1].frames == [*(["queued"] if sending_from is not None else []), ClosePayload(1000)]


async def until_link_closed(events: trio_nova.Listener) -> AsyncIterator[trio_nova.Event]:
    async for event in events:
        yield event
        if isinstance(event, trio_nova.LinkClosed):
            return


@pytest.mark.parametrize("close_timeout", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_keeps_its_bound_while_a_sender_is_blocked(
    autojump_clock: trio.testing.MockClock, close_timeout: float, cancelled: bool
) -> None:
    async def send() -> None:
        with pytest.raises(trio_nova.OutcomeUnknown):
            await conn.send_bytes(BIG)

    async with ScriptedServer(deaf) as server, trio.open_nursery() as nursery:
        async with open_connection(URL, stream_factory=server.stream_factory, close_timeout=close_timeout) as conn:
            nursery.start_soon(send)
            await trio.sleep(1.0)
            began = trio.current_time()
            with trio.CancelScope() as scope:
                if cancelled:
                    scope.cancel(reason="the user had enough")
                await conn.aclose()
        took = trio.current_time() - began
    assert took == close_timeout
    assert scope.cancelled_caught == cancelled
