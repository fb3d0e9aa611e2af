"""Every call can be cancelled at every moment, and its link lost: nothing is torn, lost, doubled, or left behind.

This is a sample of the sweep in `tests/sweep`, and in the soak the whole of it for the default transport on a
fast link. The whole sweep has many times the points: `nox -s sweep`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import trio
import trio.testing
from trio._core import _run

import trio_nova
from tests.sweep.calls import CALLS
from tests.sweep.points import TWINS, Point, lanes_of, points
from tests.sweep.streams import LANES
from trio_nova import PeerSilent, open_connection
from trio_nova.testing import ClosePayload, Peer, ScriptedServer

URL = "ws://server.test/"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trio_nova")


# --------------------------------------------------------------------------- a sample of the sweep

APART = {"fast": 16, "sliced": 96, "back_pressured": 48, "socket": 16}
"""How many moments lie between two of the sample, by the kind of link."""


@pytest.mark.fault("F79", where="memory")
@pytest.mark.parametrize("apart", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_can_be_cancelled_at_every_moment(call: str, apart: int) -> None:
    first = list(CALLS).index(call) % apart
    assert len(list(points(call, "fast/wire", "cancel", first=first, step=apart))) >= 5 // apart


@pytest.mark.fault("F79", where="socket")
def test_every_call_can_be_cancelled_on_any_link() -> None:
    others = [lane for lane in lanes_of("cancel") if lane != "fast/wire"]
    assert len(list(sample([("cancel", lane) for lane in others]))) >= 50


@pytest.mark.fault("F111", where="memory")
@pytest.mark.parametrize("way", ["break", "cut"])
def test_every_call_survives_what_happens_to_its_link(way: str) -> None:
    assert len(list(sample([(twin, lane) for twin in TWINS if twin.startswith(way) for lane in lanes_of(twin)]))) >= 25


def sample(disturbances: Sequence[tuple[str, str]]) -> Iterator[Point]:
    """Play some points of every call, each disturbed in another way than the one before."""
    for number, call in enumerate(CALLS):
        twin, lane = disturbances[number % len(disturbances)]
        apart = APART[LANES[lane].kind] // (1 if twin == "cancel" else 8)
        yield from points(call, lane, twin, first=number % apart, step=apart)


# --------------------------------------------------------------------------- pauses


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
        async with (
            open_connection(URL, stream_factory=server.stream_factory) as conn,
            trio.open_nursery() as nursery,
        ):
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


async def polite(peer: Peer) -> None:
    await peer.accept()
    await peer.serve_until_closed()


@pytest.mark.fault("F63", "F64", where="memory")
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

    async with ScriptedServer(deaf, polite) as server:
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
                silent = [
                    (seen.event.clock, seen.at)
                    async for seen in until_link_closed(events)
                    if isinstance(seen.event, PeerSilent)
                ]
                await conn.wait_ready()
        await server.dials[1].wait_ended()
    assert silent == [(clock, noticed_at)]
    assert server.dials[1].at == noticed_at
    assert server.dials[1].frames == [*(["queued"] if sending_from is not None else []), ClosePayload(1000)]


async def until_link_closed(events: trio_nova.Listener) -> AsyncIterator[trio_nova.Observation]:
    async for seen in events.observations():
        yield seen
        if isinstance(seen.event, trio_nova.LinkClosed):
            return


@pytest.mark.fault("F77", where="memory")
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
