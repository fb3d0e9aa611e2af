"""A day, and ten thousand links: nothing grows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
import trio
from trio._core._run import CancelReason

from trio_nova import ListBackoff, open_connection
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("trio_nova")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


def live_objects(server: ScriptedServer) -> int:
    """Count what is alive, but for what the server remembers of dials past.

    Trio forgets the deadlines of scopes that were left when it comes to it, up to a thousand of them later.
    """
    del server.dials[:]
    gc.collect()
    of_deadlines = (trio.CancelScope, CancelReason, tuple)
    return sum(1 for each in gc.get_objects() if type(each) not in of_deadlines)


async def test_a_day_with_an_outage_every_ten_minutes(autojump_clock: trio.abc.Clock) -> None:
    async def live_ten_minutes(peer: Peer) -> None:
        await peer.accept()
        for number in range(59):
            await trio.sleep(10)
            await peer.send(f"tick {number}")
        await trio.sleep(9)
        await peer.drop()

    received = 0
    counts: list[int] = []
    async with ScriptedServer(then=live_ten_minutes) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn, trio.open_nursery() as nursery:

            async def consume() -> None:
                nonlocal received
                async for _ in conn:
                    received += 1

            nursery.start_soon(consume)
            for _ in range(24):
                await trio.sleep(3600)
                counts.append(live_objects(server))
            links = conn.statistics().links
            pings = conn.statistics().pings_sent
            nursery.cancel_scope.cancel()
    assert 140 <= links <= 145
    assert received >= (links - 1) * 59
    assert pings >= (links - 1) * 28
    assert max(counts[6:]) - min(counts[6:]) <= 300


@pytest.mark.fault("F125", where="memory")
@pytest.mark.parametrize("cycles", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_thousands_of_reconnects(autojump_clock: trio.abc.Clock, cycles: int) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    counts: list[int] = []
    async with (
        ScriptedServer(then=drop) as server,
        open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([0.001])) as conn,
    ):
        for tenth in range(1, 11):
            while conn.epoch < tenth * cycles // 10:
                await trio.sleep(0.1)
                del server.dials[:]
            counts.append(live_objects(server))
        assert conn.statistics().links >= cycles
    assert max(counts[2:]) - min(counts[2:]) <= 300
