"""Networks that squeeze, services that count, callers that change their minds: the limit holds, and is used."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_nova import (
    Gcra,
    Limit,
    ListBackoff,
    OutcomeUnknown,
    RateLimitHandler,
    RollingWindow,
    TokenBucket,
    open_connection,
)
from trio_nova.testing import ClosePayload, Peer, ScriptedServer, echo, worst_window

URL = "ws://server.test/"
LIMIT, PERIOD, JITTER = 50, 10.0, 0.1
SENDS = 1_000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("trio_nova")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@attrs.frozen
class Counted:
    """What the server saw of a run."""

    arrivals: list[float]
    """Of all that was sent, pings too, on all links."""
    took: float
    """Seconds."""
    links: int


async def greedy(limit: Limit, dice: random.Random) -> Counted:
    """Send as much as the limiter admits, over links that end again and again."""

    async def drop_in_mid_window(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_after(dice.uniform(3.0, 40.0)):
            while True:
                await peer.receive()
        await peer.drop()

    began = trio.current_time()
    async with ScriptedServer(then=drop_in_mid_window) as server:
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            rate_limit_handler=RateLimitHandler([limit]),
            ping_interval=dice.uniform(1.0, 20.0),
            backoff=ListBackoff([0.0]),
        ) as conn:
            for number in range(SENDS):
                with suppress(OutcomeUnknown):
                    await conn.send_text(str(number))
            took = trio.current_time() - began
        for dialled in server.dials:
            await dialled.wait_ended()
    arrivals: list[float] = []
    for dialled in server.dials:
        late = (
            received.at + dice.uniform(0.0, JITTER)
            for received in dialled.journal
            if not isinstance(received.frame, ClosePayload)
        )
        arrivals += accumulate(late, max)  # TCP keeps the order of a link: who is late delays all behind
    return Counted(sorted(arrivals), took, len(server.dials))


LIMITS: dict[str, Callable[[], Limit]] = {
    "rolling window": lambda: RollingWindow(LIMIT, PERIOD, margin=JITTER),
    "gcra": lambda: Gcra(LIMIT, PERIOD, burst=1, margin=JITTER),
    "bucket": lambda: TokenBucket.within(LIMIT, PERIOD, burst=1.0, margin=JITTER),
}


@pytest.mark.fault("F94", "F95", "F96", where="memory")
@pytest.mark.parametrize("seeds", [2, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", LIMITS)
async def test_no_window_exceeds_the_limit_though_the_network_squeezes_and_links_end_amid_it(
    autojump_clock: MockClock, name: str, seeds: int
) -> None:
    used: list[float] = []
    for seed in range(seeds):
        counted = await greedy(LIMITS[name](), random.Random(seed))
        assert worst_window(counted.arrivals, PERIOD) <= LIMIT, f"seed {seed}"
        assert counted.links >= 3
        used.append(len(counted.arrivals) / (counted.took / PERIOD * LIMIT))
    assert min(used) >= 0.95


@pytest.mark.fault("F94", where="memory")
async def test_a_burst_at_the_windows_edge_waits_until_the_last_one_has_left_it(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(LIMIT, PERIOD)])
    async with ScriptedServer(echo) as server:
        async with open_connection(
            URL, stream_factory=server.stream_factory, rate_limit_handler=handler, ping_interval=math.inf
        ) as conn:
            for at in (4.0, PERIOD - 0.001, PERIOD, PERIOD + 3.999):
                await trio.sleep_until(at)
                async with trio.open_nursery() as nursery:
                    for number in range(LIMIT // 2 if at == 4.0 else LIMIT):
                        nursery.start_soon(conn.send_text, str(number))
        await server.dials[0].wait_ended()
    arrivals = [received.at for received in server.dials[0].journal if isinstance(received.frame, str)]
    assert len(arrivals) == LIMIT * 7 // 2
    assert worst_window(arrivals, PERIOD) == LIMIT


@pytest.mark.fault("F99", where="memory")
@pytest.mark.parametrize("seed", range(5))
async def test_however_many_takers_change_their_minds_no_token_is_lost_or_minted(
    autojump_clock: MockClock, seed: int
) -> None:
    dice = random.Random(seed)
    sent: list[str] = []
    handler = RateLimitHandler([RollingWindow(LIMIT, PERIOD)])
    async with ScriptedServer(echo) as server:
        async with (
            open_connection(
                URL, stream_factory=server.stream_factory, rate_limit_handler=handler, ping_interval=math.inf
            ) as conn,
            trio.open_nursery() as nursery,
        ):

            async def send(text: str, patience: float) -> None:
                with trio.move_on_after(patience):
                    await conn.send_text(text)
                    sent.append(text)

            for number in range(300):
                nursery.start_soon(send, f"{number}", dice.choice([0.0, 1.0, 15.0, math.inf]))
                await trio.sleep(dice.choice([0.0, 0.0, 0.3]))
        took = trio.current_time()
        await server.dials[0].wait_ended()
    arrivals = [received.at for received in server.dials[0].journal if isinstance(received.frame, str)]
    texts = [frame for frame in server.dials[0].frames if isinstance(frame, str)]
    assert sorted(texts) == sorted(sent)
    assert len(texts) == len(set(texts)) < 300
    assert handler.consumed == len(texts)
    assert worst_window(arrivals, PERIOD) == LIMIT
    # They waited for nothing but the limit: what was given up is used by those behind.
    assert len(arrivals) >= LIMIT * (took // PERIOD)
