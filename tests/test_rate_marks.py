"""When it is told that a rate limit is nearly used up, and that it has room again: once each, and to those who hear."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    Event,
    Limit,
    ListBackoff,
    Observation,
    RateHighWater,
    RateLimitHandler,
    RateLowWater,
    RollingWindow,
    State,
    TokenBucket,
)
from trio_nova.testing import Peer, ScriptedServer, echo

URL = "ws://server.test/"


@attrs.define
class Told:
    """Observes both events: the times at which they came, and what they said."""

    seen: list[tuple[float, Event]] = attrs.field(factory=list)
    hears: tuple[type[Event], ...] = (RateHighWater, RateLowWater)

    def __call__(self, observation: Observation) -> None:
        self.seen.append((observation.at, observation.event))


def connect(server: ScriptedServer, limits: list[Limit], **options: Any) -> trio_nova.ConnectionBlock:
    calm: dict[str, Any] = {"backoff": ListBackoff([0.0]), "ping_interval": math.inf, "min_uptime": 0.0}
    handler = RateLimitHandler(limits)
    return trio_nova.open_connection(
        URL, stream_factory=server.stream_factory, rate_limit_handler=handler, **(calm | options)
    )


async def test_a_bucket_that_is_nearly_empty_is_told_once_and_again_when_half_of_it_is_back(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with ScriptedServer(echo) as server, connect(server, [TokenBucket(20.0, 2.0)], observers=[told]) as conn:
        for _ in range(17):
            await conn.send_text("x")
        assert told.seen == []
        for _ in range(3):
            await conn.send_text("x")
        await trio.sleep(100.0)
        assert [(round(at, 2), type(event)) for at, event in told.seen] == [(0.0, RateHighWater), (5.0, RateLowWater)]
        await conn.send_text("x")
        await trio.sleep(100.0)
        assert len(told.seen) == 2


async def test_who_sends_at_the_limit_for_long_hears_of_it_once(autojump_clock: MockClock) -> None:
    told = Told()
    async with ScriptedServer(echo) as server, connect(server, [RollingWindow(10, 1.0)], observers=[told]) as conn:
        for _ in range(300):
            await conn.send_text("x")
        ended = trio.current_time()
        await trio.sleep(100.0)
    assert [type(event) for _, event in told.seen] == [RateHighWater, RateLowWater]
    assert ended <= told.seen[1][0] <= ended + 1.01


async def test_of_several_limits_the_fullest_counts_and_all_must_have_room_again(autojump_clock: MockClock) -> None:
    told = Told()
    limits: list[Limit] = [TokenBucket(100.0, 50.0), RollingWindow(10, 30.0)]
    async with ScriptedServer(echo) as server, connect(server, limits, observers=[told]) as conn:
        for _ in range(9):
            await conn.send_text("x")
        await trio.sleep(100.0)
    assert [(round(at, 2), type(event)) for at, event in told.seen] == [(0.0, RateHighWater), (30.0, RateLowWater)]


async def test_of_a_limit_of_a_few_at_once_nothing_is_told(autojump_clock: MockClock) -> None:
    told = Told()
    async with ScriptedServer(echo) as server, connect(server, [RollingWindow(9, 1.0)], observers=[told]) as conn:
        for _ in range(30):
            await conn.send_text("x")
    assert told.seen == []


async def test_a_lost_link_gives_nothing_back_and_the_mark_is_not_told_again(autojump_clock: MockClock) -> None:
    async def hang_up_at_the_tenth(peer: Peer) -> None:
        await peer.accept()
        for _ in range(10):
            await peer.receive()
        await peer.drop()

    told = Told()
    async with (
        ScriptedServer(hang_up_at_the_tenth, echo) as server,
        connect(server, [TokenBucket(10.0, 1.0)], observers=[told]) as conn,
    ):
        for _ in range(10):
            await conn.send_text("x")
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        await conn.send_text("x")
        assert [type(event) for _, event in told.seen] == [RateHighWater]
        await trio.sleep(100.0)
    assert [type(event) for _, event in told.seen] == [RateHighWater, RateLowWater]
    assert told.seen[1][0] == pytest.approx(6.0, abs=0.01)


async def test_whoever_leaves_before_there_is_room_again_leaves_at_once(autojump_clock: MockClock) -> None:
    told = Told()
    async with ScriptedServer(echo) as server:
        with trio.move_on_after(1.0):
            async with connect(server, [RollingWindow(10, 1000.0)], observers=[told]) as conn:
                for _ in range(10):
                    await conn.send_text("x")
                await trio.sleep_forever()
        assert trio.current_time() == 1.0
    assert [type(event) for _, event in told.seen] == [RateHighWater]


@attrs.define
class Counting:
    """A limit that counts how often it was asked what is left, and may be unable to tell."""

    inner: TokenBucket = attrs.field(factory=lambda: TokenBucket(10.0, 1.0))
    asked: int = 0
    fails: bool = False

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        return self.inner.admits_at(now, cost, reserve)

    def spend(self, now: float, cost: float = 1.0) -> None:
        self.inner.spend(now, cost)

    def available(self, now: float) -> float:
        self.asked += 1
        if self.fails:
            raise LookupError("the other machine does not answer")
        return self.inner.available(now)


async def test_where_nobody_hears_of_it_no_limit_is_asked_what_is_left(autojump_clock: MockClock) -> None:
    limit = Counting()
    async with (
        ScriptedServer(echo) as server,
        connect(server, [limit], events=()) as conn,
    ):
        limit.asked = 0
        for _ in range(30):
            await conn.send_text("x")
        assert limit.asked == 0


async def test_a_limit_that_cannot_tell_what_is_left_is_an_error_once_and_asked_no_more(
    autojump_clock: MockClock,
) -> None:
    limit, told = Counting(), Told()
    errors: list[Event] = []

    @trio_nova.hears(trio_nova.ErrorEvent)
    def note(observation: Observation) -> None:
        errors.append(observation.event)

    async with (
        ScriptedServer(echo) as server,
        connect(server, [limit], observers=[told, note], on_handler_error="log") as conn,
    ):
        limit.fails, limit.asked = True, 0
        for _ in range(30):
            await conn.send_text("x")
    assert limit.asked == 1
    assert len(errors) == 1
    assert told.seen == []
