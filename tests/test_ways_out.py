"""However a connection block is left, what left it leaves alone, and nothing stays behind."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing
from trio._core import _run

import trio_nova
from trio_nova import Connection, MessageHandler, State, Stop, open_connection, run_connection
from trio_nova.messages import Action
from trio_nova.testing import (
    ClosePayload,
    HangDial,
    HangTls,
    MemoryStream,
    Peer,
    Refuse,
    ScriptedServer,
    Step,
)

URL = "ws://server.test/"
CLOSE_TIMEOUT = 2.0
SEEDS = range(3)


class Oops(Exception):
    """What a user's block raises."""


# --------------------------------------------------------------------------- the server's side


async def polite(peer: Peer) -> None:
    await peer.accept()
    await peer.send("tick")
    await peer.serve_until_closed()


async def mute(peer: Peer) -> None:
    await peer.accept()
    await peer.send("tick")
    await peer.mute()


async def deaf(peer: Peer) -> None:
    await peer.accept()
    await peer.send("tick")
    await peer.stop_reading()


async def fickle(peer: Peer) -> None:
    await peer.accept()
    await peer.send("tick")
    await peer.drop()


async def hang_upgrade(peer: Peer) -> None:
    await peer.read_request()
    await peer.hang()


@attrs.define
class Dialler:
    """Dials a server in memory, and remembers the client's ends of its streams."""

    server: ScriptedServer
    streams: list[MemoryStream] = attrs.field(factory=list)

    async def __call__(self, host: str, port: int) -> MemoryStream:
        stream = await self.server.stream_factory(host, port)
        self.streams.append(stream)
        return stream

    async def check_closed(self) -> None:
        for stream in self.streams:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()


# --------------------------------------------------------------------------- what may stay behind


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


def our_tasks() -> list[str]:
    return [name for name in tasks().values() if name.startswith("nova") or "trio_websocket" in name]


def our_threads() -> set[threading.Thread]:
    """Return those that work for a session now. Trio keeps idle ones, and ends them when it likes."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("nova:")}


@attrs.frozen(eq=False)
class Seen:
    """An exception as it was when it left the user's code."""

    error: BaseException
    cause: BaseException | None
    context: BaseException | None

    @classmethod
    def of(cls, error: BaseException) -> Seen:
        return cls(error, error.__cause__, error.__context__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and all(
            mine is theirs
            for mine, theirs in (
                (self.error, other.error),
                (self.cause, other.cause),
                (self.context, other.context),
            )
        )


@pytest.fixture(params=SEEDS)
def scheduling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks in an order that is random, and the same every time."""
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    _run._r.seed(request.param)


# --------------------------------------------------------------------------- situations


@attrs.frozen
class Scene:
    """What a way out may play with."""

    conn: Connection
    around: trio.CancelScope
    """Around the connection block."""
    outside: trio.Nursery
    """For tasks that outlive the block."""


async def settled(scene: Scene, server: ScriptedServer) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert scene.conn.state is State.READY


async def sender_blocked(scene: Scene, server: ScriptedServer) -> None:
    async def send() -> None:
        with pytest.raises(trio_nova.OutcomeUnknown):
            await scene.conn.send_bytes(bytes(200_000))

    scene.outside.start_soon(send)
    await settled(scene, server)
    assert scene.conn.statistics().messages_sent == 0


async def redialling(scene: Scene, server: ScriptedServer) -> None:
    await server.wait_dialled(2)
    await trio.testing.wait_all_tasks_blocked()
    assert scene.conn.state is State.CONNECTING


async def backing_off(scene: Scene, server: ScriptedServer) -> None:
    await scene.conn.wait_state(State.RECONNECTING)
    await trio.sleep(0.125)
    assert scene.conn.state is State.RECONNECTING


async def closing(scene: Scene, server: ScriptedServer) -> None:
    scene.outside.start_soon(scene.conn.aclose)
    await trio.sleep(0.5)
    assert scene.conn.state is State.CLOSING


@attrs.frozen
class Situation:
    """Where a session stands when its block is left."""

    name: str
    arrange: Callable[[Scene, ScriptedServer], Awaitable[None]]
    steps: tuple[Step, ...]
    takes: float
    """Seconds that leaving takes."""
    first_link: str
    """How the first connection ends, as the server sees it."""
    backoff: float = 0.0


SITUATIONS = [
    Situation("ready_at_a_polite_peer", settled, (polite,), 0.0, "closed"),
    Situation("ready_at_a_mute_peer", settled, (mute,), CLOSE_TIMEOUT, "client gone"),
    Situation("a_sender_blocked", sender_blocked, (deaf,), CLOSE_TIMEOUT, "cancelled"),
    Situation("dialling_again", redialling, (fickle, HangDial()), 0.0, "dropped"),
    Situation("handshaking_again", redialling, (fickle, hang_upgrade), 0.0, "dropped"),
    Situation("backing_off", backing_off, (fickle,), 0.0, "dropped", backoff=5.0),
    Situation("closing", closing, (mute,), CLOSE_TIMEOUT - 0.5, "client gone"),
]


# --------------------------------------------------------------------------- ways out


async def return_(scene: Scene) -> None:
    await trio.lowlevel.checkpoint()


async def raise_(scene: Scene) -> None:
    await trio.lowlevel.checkpoint()
    raise Oops("from the block")


async def raise_with_a_history(scene: Scene) -> None:
    await trio.lowlevel.checkpoint()
    try:
        raise KeyError("context")
    except KeyError:
        raise Oops("from the block") from ValueError("cause")


async def break_out_of_the_loop(scene: Scene) -> None:
    async for message in scene.conn:
        assert message == "tick"
        break


async def raise_in_the_loop(scene: Scene) -> None:
    async for message in scene.conn:
        raise Oops(message)


async def cancelled_from_outside(scene: Scene) -> None:
    async def cancel() -> None:
        scene.around.cancel(reason="the user had enough")

    scene.outside.start_soon(cancel)
    await trio.sleep_forever()


async def cancelled_in_the_loop(scene: Scene) -> None:
    async for _ in scene.conn:
        scene.around.cancel(reason="the user had enough")
    await trio.lowlevel.checkpoint()


async def deadline(scene: Scene) -> None:
    scene.around.deadline = trio.current_time()
    await trio.sleep_forever()


async def keyboard_interrupt(scene: Scene) -> None:
    await trio.lowlevel.checkpoint()
    raise KeyboardInterrupt


async def own_nursery_with_one_error(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_, scene)
        nursery.start_soon(scene.conn.wait_closed)


async def own_nursery_with_two_errors(scene: Scene) -> None:
    async def raise_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Oops("too")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_late)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(raise_with_a_history, scene)


WAYS: list[Callable[[Scene], Awaitable[None]]] = [
    return_,
    raise_,
    raise_with_a_history,
    break_out_of_the_loop,
    raise_in_the_loop,
    cancelled_from_outside,
    cancelled_in_the_loop,
    deadline,
    keyboard_interrupt,
    own_nursery_with_one_error,
    own_nursery_with_two_errors,
]


@pytest.mark.fault("F76", "F83", where="memory")
@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
async def test_what_leaves_the_block_leaves_bare_and_in_time_and_nothing_stays(
    autojump_clock: trio.testing.MockClock, situation: Situation, way: Callable[[Scene], Awaitable[None]]
) -> None:
    before, threads = tasks(), our_threads()
    raised: Seen | None = None
    left: Seen | None = None
    began = math.nan
    async with ScriptedServer(*situation.steps) as server, trio.open_nursery() as outside:
        dialler = Dialler(server)
        with trio.CancelScope() as around:
            try:
                async with open_connection(
                    URL,
                    stream_factory=dialler,
                    close_timeout=CLOSE_TIMEOUT,
                    backoff=trio_nova.ListBackoff([situation.backoff], jitter=0.0),
                ) as conn:
                    scene = Scene(conn, around, outside)
                    await situation.arrange(scene, server)
                    began = trio.current_time()
                    try:
                        await way(scene)
                    except BaseException as exc:
                        raised = Seen.of(exc)
                        raise
            except trio.Cancelled as exc:
                left = Seen.of(exc)
                raise
            except BaseException as exc:
                left = Seen.of(exc)
        took = trio.current_time() - began
        assert our_tasks() == []
        await dialler.check_closed()
        if situation.first_link != "cancelled":
            await server.dials[0].wait_ended()
    assert left == raised
    assert took == situation.takes
    assert conn.state is State.CLOSED
    assert around.cancelled_caught == (left is not None and isinstance(left.error, trio.Cancelled))
    assert server.dials[0].ended == situation.first_link
    if situation.first_link in ("closed", "client gone"):
        assert server.dials[0].frames == [ClosePayload(1000)]
    assert tasks() == before
    assert our_threads() <= threads


# --------------------------------------------------------------------------- before the block is entered


async def cancel_soon(scope: trio.CancelScope) -> None:
    await trio.sleep(1.0)
    scope.cancel(reason="the user had enough")


@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize("step", [HangDial(), hang_upgrade], ids=["dialling", "handshaking"])
async def test_a_first_connect_can_be_given_up_at_once(
    autojump_clock: trio.testing.MockClock, step: Step, how: str
) -> None:
    before = tasks()
    left: BaseException | None = None
    async with ScriptedServer(step) as server, trio.open_nursery() as outside:
        dialler = Dialler(server)
        began = trio.current_time()
        with trio.CancelScope() as around:
            if how == "deadline":
                around.deadline = began + 1.0
            else:
                outside.start_soon(cancel_soon, around)
            try:
                async with open_connection(URL, stream_factory=dialler):
                    pytest.fail("the block was entered")
            except BaseException as exc:
                left = exc
                raise
        took = trio.current_time() - began
        stayed = our_tasks()
        await dialler.check_closed()
    assert isinstance(left, trio.Cancelled)
    assert around.cancelled_caught
    assert took == 1.0
    assert stayed == []
    assert tasks() == before


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (Refuse(), trio_nova.ConnectFailed),
        (HangDial(), trio_nova.ConnectTimeout),
        (hang_upgrade, trio_nova.ConnectTimeout),
        (lambda peer: peer.reject(403), trio_nova.HandshakeRejected),
        (lambda peer: peer.accept(key="a lie"), trio_nova.HandshakeInvalid),
    ],
    ids=["refused", "dial_hangs", "upgrade_hangs", "rejected", "invalid"],
)
async def test_a_failed_first_connect_leaves_bare(
    autojump_clock: trio.testing.MockClock, step: Step, error: type[trio_nova.NovaError]
) -> None:
    before = tasks()
    async with ScriptedServer(step) as server:
        dialler = Dialler(server)
        with pytest.raises(error) as caught:
            async with open_connection(URL, stream_factory=dialler, connect_timeout=4.0):
                pytest.fail("the block was entered")
        assert our_tasks() == []
        await dialler.check_closed()
    assert type(caught.value) is error
    assert caught.value.__context__ is caught.value.__cause__
    assert trio.current_time() in (0.0, 4.0)
    assert tasks() == before


# --------------------------------------------------------------------------- KeyboardInterrupt

INTERRUPTED = """
import itertools, logging, signal, sys
import trio, trio.testing
from trio._core import _run
import trio_nova
from trio_nova.testing import HangDial, ScriptedServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

logging.getLogger("trio_nova").addHandler(logging.NullHandler())
_run._ALLOW_DETERMINISTIC_SCHEDULING = True

async def polite(peer):
    await peer.accept()
    await peer.send("tick")
    await peer.serve_until_closed()

async def mute(peer):
    await peer.accept()
    await peer.send("tick")
    await peer.mute()

async def hang_upgrade(peer):
    await peer.read_request()
    await peer.hang()

async def fickle(peer):
    await peer.accept()
    await peer.send("tick")
    await peer.drop()

class Interrupt(trio.abc.Instrument):
    # Trio's own mechanism: its frames are protected, so the interrupt goes to the main task.
    def __init__(self, at):
        self.at, self.steps, self.on = at, 0, False

    def after_task_step(self, task):
        self.steps += self.on
        if self.on and self.steps == self.at:
            signal.raise_signal(signal.SIGINT)

def our_tasks():
    found, rest = [], [trio.lowlevel.current_root_task()]
    while rest:
        task = rest.pop()
        found.append(task.name)
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [name for name in found if name.startswith("nova") or "trio_websocket" in name]

async def visit(step, interrupt):
    left = None
    async with ScriptedServer(step) as server:
        interrupt.on = True
        try:
            async with trio_nova.open_connection(
                "ws://server.test/",
                stream_factory=server.stream_factory,
                close_timeout=1.0,
                backoff=trio_nova.ListBackoff([5.0]),
            ) as conn:
                await conn.receive()
                await trio.sleep(3.0)
        except BaseException as exc:
            left = exc
        interrupt.on = False
        assert our_tasks() == [], our_tasks()
    return left

points = 0
step = {"polite": polite, "mute": mute, "dialling": HangDial(), "handshaking": hang_upgrade, "backing_off": fickle}
for at in itertools.count(1):
    _run._r.seed(0)
    interrupt = Interrupt(at)
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        left = trio.run(visit, step[sys.argv[1]], interrupt, clock=clock, instruments=[interrupt])
    except KeyboardInterrupt as exc:
        left = exc  # it came when the block was as good as left
    except BaseExceptionGroup as group:
        left = group.exceptions[0]  # the same, within a nursery of the server
    if interrupt.steps < at:
        break
    assert isinstance(left, KeyboardInterrupt), f"interrupted at step {at}, but {left!r} left"
    points += 1
print(points)
"""


@pytest.mark.fault("F81", where="memory")
@pytest.mark.parametrize("state", ["polite", "mute", "dialling", "handshaking", "backing_off"])
def test_an_interrupt_at_any_moment_leaves_bare_and_leaves_nothing_behind(state: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, state],
        cwd=Path(trio_nova.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.stderr == ""
    assert int(result.stdout) >= 6


@pytest.mark.fault("F81", where="memory")
@pytest.mark.parametrize("where", ["a hook", "the dial", "the reader"])
def test_an_interrupt_in_one_of_our_own_tasks_ends_the_session_and_leaves_bare(where: str) -> None:
    program = """
import signal, sys
import trio, trio.testing
import trio_nova
from trio_nova.links import _wire
from trio_nova.testing import ScriptedServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

where = sys.argv[1]

async def chat(peer):
    await peer.accept()
    await peer.send("tick")
    await peer.serve_until_closed()

class Hook(trio_nova.MessageHandler):
    def handle_message(self, kind, message):
        signal.raise_signal(signal.SIGINT)

feed = _wire.WireProtocol.feed

def interrupted_feed(self, data):
    _wire.WireProtocol.feed = feed
    signal.raise_signal(signal.SIGINT)
    return feed(self, data)

if where == "the reader":
    _wire.WireProtocol.feed = interrupted_feed

async def main():
    async with ScriptedServer(chat) as server:
        async def dial(host, port):
            if where == "the dial":
                signal.raise_signal(signal.SIGINT)
            return await server.stream_factory(host, port)

        handler = Hook if where == "a hook" else trio_nova.MessageHandler
        with trio.fail_after(10.0):
            async with trio_nova.open_connection("ws://server.test/", stream_factory=dial, message_handler=handler):
                await trio.sleep_forever()

try:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, where],
        cwd=Path(trio_nova.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.stdout == "interrupted\n", result.stderr


@attrs.define(eq=False, kw_only=True)
class InterruptedAt(trio_nova.LoggingHandler):
    """Is interrupted while it logs that the session gets into a state."""

    state: State

    def log_connection_event(self, observation: trio_nova.Observation) -> None:
        event = observation.event
        if isinstance(event, trio_nova.StateChanged) and event.new == self.state:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (polite, State.CONNECTING),
        (polite, State.READY),
        (fickle, State.DISCONNECTED),
        (fickle, State.RECONNECTING),
        (Refuse(), State.FAILED),
    ],
    ids=lambda value: value.value if isinstance(value, State) else "",
)
async def test_an_interrupt_amid_a_change_of_state_leaves_bare(
    autojump_clock: trio.testing.MockClock, step: Step, state: State
) -> None:
    left = None
    async with ScriptedServer(step) as server:
        with trio.fail_after(10.0):
            try:
                async with open_connection(
                    URL, stream_factory=server.stream_factory, logging_handler=lambda: InterruptedAt(state=state)
                ):
                    await trio.sleep_forever()
            except BaseException as exc:
                left = exc
        assert our_tasks() == []
    assert isinstance(left, KeyboardInterrupt)


# --------------------------------------------------------------------------- failures in the background


@attrs.define(eq=False)
class Stopper(MessageHandler):
    """Ends the session at the first message, one way or the other."""

    error: Exception
    stops: bool

    def handle_message(self, kind: str, message: Any) -> Action:
        if self.stops:
            return Stop(self.error)
        raise self.error


def failing(server: ScriptedServer, error: Exception, how: str) -> trio_nova.ConnectionBlock:
    """Return the block of a session that fails as soon as it is ready."""
    if how == "gives up":
        return open_connection(
            URL, stream_factory=server.stream_factory, max_attempts=2, backoff=trio_nova.ListBackoff([1.0])
        )
    return open_connection(
        URL, stream_factory=server.stream_factory, message_handler=lambda: Stopper(error, how == "stops")
    )


@pytest.fixture(params=["gives up", "handler raises", "stops"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check_failure(caught: BaseException | None, error: Exception, how: str) -> None:
    if how == "gives up":
        assert isinstance(caught, trio_nova.SessionOver)
        assert isinstance(caught.__cause__, trio_nova.ConnectFailed)
        assert caught.__context__ is None
    else:
        assert caught is error
        assert (caught.__cause__, caught.__context__) == (None, None)


@pytest.mark.usefixtures("scheduling")
async def test_a_failure_in_the_background_cancels_the_block_and_leaves_bare(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    before = tasks()
    error, inside = Oops("in a hook"), None
    async with ScriptedServer(fickle if how == "gives up" else polite) as server:
        with pytest.raises((Oops, trio_nova.SessionOver)) as caught:
            async with failing(server, error, how) as conn:
                try:
                    await trio.sleep_forever()
                except BaseException as exc:
                    inside = exc
                    raise
        stayed = our_tasks()
    check_failure(caught.value, error, how)
    assert isinstance(inside, trio.Cancelled)
    assert stayed == []
    assert conn.state is State.FAILED
    assert trio.current_time() == (2.0 if how == "gives up" else 0.0)
    assert tasks() == before


@pytest.mark.usefixtures("scheduling")
async def test_a_failure_and_a_genuine_error_of_the_block_leave_as_a_group(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    error, mine = Oops("in a hook"), Oops("mine")
    async with ScriptedServer(fickle if how == "gives up" else polite) as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with failing(server, error, how):
                try:
                    await trio.sleep_forever()
                finally:
                    raise mine
    first, second = caught.value.exceptions
    assert first is mine
    check_failure(second, error, how)
    assert caught.value.__cause__ is None


async def consume(conn: Connection) -> None:
    while True:
        await conn.receive()


async def produce(conn: Connection) -> None:
    while True:
        with suppress(trio_nova.OutcomeUnknown):
            await conn.send_text("tock")
        await trio.sleep(0.25)


async def probe(conn: Connection) -> None:
    while True:
        with suppress(trio_nova.NotSent, trio_nova.LinkLost):
            await conn.ping()
        await trio.sleep(0.25)


async def consume_and_produce(conn: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume, conn)
        nursery.start_soon(produce, conn)


async def wait_and_swallow(conn: Connection) -> None:
    with trio.CancelScope(shield=True):
        await conn.wait_closed()
    await conn.send_text("too late")


@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize(
    "body", [consume, produce, probe, consume_and_produce, wait_and_swallow], ids=lambda body: body.__name__
)
async def test_what_follows_from_a_failure_makes_no_group(
    autojump_clock: trio.testing.MockClock, how: str, body: Callable[[Connection], Awaitable[None]]
) -> None:
    error = Oops("in a hook")
    async with ScriptedServer(fickle if how == "gives up" else polite) as server:
        with pytest.raises((Oops, trio_nova.NovaError)) as caught:
            async with failing(server, error, how) as conn:
                await body(conn)
    check_failure(caught.value, error, how)


async def drop_amid_a_message(peer: Peer) -> None:
    await peer.accept()
    await trio.sleep(1.0)
    await peer.drop()


@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("call", ["send", "ping"])
async def test_a_lost_link_that_nobody_replaces_is_never_a_group(
    autojump_clock: trio.testing.MockClock, call: str, lingers: bool
) -> None:
    lost = None
    async with ScriptedServer(drop_amid_a_message, max_buffer=64) as server:
        try:
            async with open_connection(URL, stream_factory=server.stream_factory, max_attempts=0) as conn:
                try:
                    await (conn.send_bytes(bytes(1000)) if call == "send" else conn.ping())
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1.0 if lingers else 0.0)
        except Exception as exc:
            lost = exc
    assert isinstance(lost, trio_nova.LinkLost | trio_nova.OutcomeUnknown)
    assert isinstance(lost, trio_nova.LinkLost) or not lingers


# --------------------------------------------------------------------------- the supervisor form


async def test_run_connection_reports_when_ready_and_ends_with_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = tasks()
    async with ScriptedServer(polite) as server:
        async with trio.open_nursery() as nursery:
            conn = await nursery.start(partial(run_connection, URL, stream_factory=server.stream_factory))
            assert conn.state is State.READY
            assert await conn.receive() == "tick"
            await conn.aclose()
        assert our_tasks() == []
    assert server.dials[0].frames == [ClosePayload(1000)]
    assert tasks() == before


async def test_cancelling_the_nursery_of_run_connection_says_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    async with ScriptedServer(polite) as server:
        async with trio.open_nursery() as nursery:
            conn = await nursery.start(partial(run_connection, URL, stream_factory=server.stream_factory))
            nursery.cancel_scope.cancel(reason="the user had enough")
        assert our_tasks() == []
        await server.dials[0].wait_ended()
    assert conn.state is State.CLOSED
    assert server.dials[0].frames == [ClosePayload(1000)]


@pytest.mark.parametrize("step", [HangDial(), hang_upgrade], ids=["dialling", "handshaking"])
async def test_cancelling_the_start_of_run_connection_leaves_nothing(
    autojump_clock: trio.testing.MockClock, step: Step
) -> None:
    before = tasks()
    async with ScriptedServer(step) as server, trio.open_nursery() as nursery:
        dialler = Dialler(server)
        with trio.move_on_after(1.0) as scope:
            await nursery.start(partial(run_connection, URL, stream_factory=dialler))
        now = trio.current_time()
        stayed = our_tasks()
        await dialler.check_closed()
    assert scope.cancelled_caught
    assert now == 1.0
    assert stayed == []
    assert tasks() == before


async def test_a_failed_first_connect_leaves_the_start_of_run_connection_bare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    caught = None
    async with ScriptedServer(Refuse()) as server, trio.open_nursery() as nursery:
        try:
            await nursery.start(partial(run_connection, URL, stream_factory=server.stream_factory))
        except trio_nova.ConnectFailed as exc:
            caught = exc
    assert caught is not None


# --------------------------------------------------------------------------- several at once


async def chatty(peer: Peer) -> None:
    await peer.accept()
    await peer.send("one", "two", "three")
    await peer.echo()


async def test_after_a_break_the_connection_is_as_good_as_before(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[str | bytes] = []
    async with (
        ScriptedServer(chatty) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        async for message in conn:
            seen.append(message)
            break
        seen.append(await conn.receive())
        with suppress(Oops):
            async for message in conn:
                seen.append(message)
                raise Oops
        await conn.send_text("four")
        async for message in conn:
            seen.append(message)
            break
    assert seen == ["one", "two", "three", "four"]


@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_nested_connections_are_left_one_after_the_other(
    autojump_clock: trio.testing.MockClock, way: Callable[[Scene], Awaitable[None]]
) -> None:
    raised = left = None
    async with ScriptedServer(mute, mute) as server, trio.open_nursery() as outside:
        block = partial(open_connection, URL, stream_factory=server.stream_factory, close_timeout=CLOSE_TIMEOUT)
        with trio.CancelScope() as around:
            try:
                async with block() as outer, block() as inner:
                    await trio.testing.wait_all_tasks_blocked()
                    try:
                        await way(Scene(inner, around, outside))
                    except BaseException as exc:
                        raised = Seen.of(exc)
                        raise
            except trio.Cancelled as exc:
                left = Seen.of(exc)
                raise
            except BaseException as exc:
                left = Seen.of(exc)
        took = trio.current_time()
        stayed = our_tasks()
    assert left == raised
    assert took == 2 * CLOSE_TIMEOUT
    assert stayed == []
    assert (outer.state, inner.state) == (State.CLOSED, State.CLOSED)


async def test_the_failure_of_an_outer_connection_passes_an_inner_one_bare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    error = Oops("in a hook")

    async def late(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send("tick")
        await peer.serve_until_closed()

    async with ScriptedServer(late, polite) as server:
        with pytest.raises(Oops) as caught:
            async with (
                failing(server, error, "handler raises"),
                open_connection(URL, stream_factory=server.stream_factory) as inner,
            ):
                await trio.sleep_forever()
        await server.dials[1].wait_ended()
    assert caught.value is error
    assert inner.state is State.CLOSED
    assert server.dials[1].frames == [ClosePayload(1000)]


@pytest.mark.fault("F80", where="memory")
async def test_a_hundred_connections_cancelled_at_once_all_say_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    before = tasks()
    ready = 0

    async def visit() -> None:
        nonlocal ready
        async with open_connection(URL, stream_factory=dialler, close_timeout=CLOSE_TIMEOUT) as conn:
            ready += 1
            async for _ in conn:
                pass

    steps = [polite if number % 2 else mute for number in range(100)]
    async with ScriptedServer(*steps) as server:
        dialler = Dialler(server)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(visit)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the user had enough")
        took = trio.current_time()
        stayed = our_tasks()
        await dialler.check_closed()
        for dialled in server.dials:
            await dialled.wait_ended()
    assert ready == 100
    assert took == CLOSE_TIMEOUT
    assert stayed == []
    assert [dialled.frames for dialled in server.dials] == [[ClosePayload(1000)]] * 100
    assert [dialled.ended for dialled in server.dials] == ["client gone", "closed"] * 50
    assert tasks() == before


# --------------------------------------------------------------------------- real sockets


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in /proc")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("steps", "arrange", "tls"),
    [
        ((polite,), settled, False),
        ((polite,), settled, True),
        ((mute,), settled, False),
        ((mute,), settled, True),
        ((fickle, hang_upgrade), redialling, False),
        ((fickle, HangTls()), redialling, True),
    ],
    ids=["polite", "polite_tls", "mute", "mute_tls", "handshaking", "handshaking_tls"],
)
async def test_no_socket_stays_open(
    steps: tuple[Step, ...],
    arrange: Callable[[Scene, ScriptedServer], Awaitable[None]],
    tls: bool,
    way: Callable[[Scene], Awaitable[None]],
) -> None:
    before, files, threads = tasks(), open_files(), our_threads()
    server = ScriptedServer(*steps, then=HangTls())
    async with server.listen(tls=tls) as listening, trio.open_nursery() as outside:
        with trio.CancelScope() as around, suppress(Oops, KeyboardInterrupt, BaseExceptionGroup):
            async with open_connection(
                listening.url,
                ssl_context=listening.client_ssl_context if tls else None,
                close_timeout=0.05,
                backoff=trio_nova.ListBackoff([0.0]),
            ) as conn:
                while not conn.statistics().inbox_messages:
                    await trio.sleep(0.001)
                scene = Scene(conn, around, outside)
                await arrange(scene, server)
                await way(scene)
        assert our_tasks() == []
    assert conn.state is State.CLOSED
    assert open_files() <= files
    assert our_threads() <= threads
    assert tasks() == before


async def test_a_name_look_up_that_hangs_holds_nobody_back() -> None:
    answer, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def ask(host: str) -> NoReturn:
        token.run_sync_soon(asked.set)
        answer.wait()
        raise OSError("no such host")

    before = tasks()
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(run_connection, "ws://nowhere.test/", resolver=trio_nova.SystemResolver(ask))
                )
                await asked.wait()
                scope.cancel(reason="the user had enough")
        assert our_tasks() == []
        assert tasks() == before
    finally:
        answer.set()
