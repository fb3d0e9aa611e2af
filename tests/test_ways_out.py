"""However a connection block is left, what left it leaves alone, and nothing stays behind."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing
from trio._core import _run

import trio_nova
from trio_nova import Connection, ConnectionHandler, MessageHandler, State, Stop, open_connection, run_connection
from trio_nova.messages import Action, ReadingResumed
from trio_nova.testing import (
    ClosePayload,
    Dialled,
    HangDial,
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
    return [name for name in tasks().values() if name.startswith("nova:") or "trio_websocket" in name]


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


@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
async def test_what_leaves_the_block_leaves_bare_and_in_time_and_nothing_stays(
    autojump_clock: trio.testing.MockClock, situation: Situation, way: Callable[[Scene], Awaitable[None]]
) -> None:
    before, threads = tasks(), set(threading.enumerate())
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
    assert set(threading.enumerate()) == threads
