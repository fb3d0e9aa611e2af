"""Probes that nobody answers: how many a link outlives, who is told, and what forgets them."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    ConfigError,
    Connection,
    ConnectionHandler,
    Event,
    JsonCodec,
    ListBackoff,
    MessageHeartbeat,
    Observation,
    PeerSilent,
    Ping,
    Pong,
    PongMissed,
    State,
    open_connection,
)
from trio_nova.testing import Peer, ScriptedServer, echo

URL = "ws://server.test/"


async def fall_silent(peer: Peer) -> None:
    await peer.accept()
    await peer.mute()


def told_of(kinds: tuple[type[Event], ...]) -> tuple[list[tuple[float, Event]], trio_nova.Observer]:
    """Return an observer of these kinds of events, and the list of times and events that it fills."""
    told: list[tuple[float, Event]] = []

    @trio_nova.hears(*kinds)
    def watch(observation: Observation) -> None:
        told.append((observation.at, observation.event))

    return told, watch


async def until_lost(conn: Connection) -> float:
    """Return when the link is lost."""
    await conn.wait_state(State.DISCONNECTED)
    return trio.current_time()


async def test_a_link_outlives_as_many_missed_pongs_as_are_allowed_and_no_more(
    autojump_clock: MockClock,
) -> None:
    told, watch = told_of((PongMissed, PeerSilent))
    async with ScriptedServer(fall_silent, echo) as server:
        began = trio.current_time()
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            observers=[watch],
            ping_interval=10.0,
            pong_timeout=4.0,
            max_missed_pongs=3,
            backoff=ListBackoff([2.0]),
        ) as conn:
            await trio.sleep(14.5)
            assert (conn.state, conn.health().pongs_missed) == (State.READY, 1)
            assert await until_lost(conn) - began == pytest.approx(22.0)
            assert conn.statistics().pongs_missed == 3
            await conn.wait_ready()  # what one link missed is not held against the next
            assert (conn.epoch, conn.health().pongs_missed) == (2, 0)
            await trio.sleep(30.0)
            assert (conn.epoch, conn.statistics().pongs_missed) == (2, 3)
    assert [(at - began, event) for at, event in told] == [
        (14.0, PongMissed(missed=1, allowed=2, silence=14.0)),
        (18.0, PongMissed(missed=2, allowed=2, silence=18.0)),
        (22.0, PeerSilent(clock="pong", silence=22.0, missed=3)),
    ]
    assert [type(frame) for frame in server.dials[0].frames] == [Ping] * 3


async def test_a_pong_that_comes_after_one_was_missed_makes_the_count_begin_anew(
    autojump_clock: MockClock,
) -> None:
    async def answer_each_second_ping(peer: Peer) -> None:
        await peer.accept()
        peer.answer_pings = False
        while True:
            await peer.receive()
            match await peer.receive():
                case Ping(payload):
                    await peer.send(Pong(payload))
                case _:
                    return

    told, watch = told_of((PongMissed, PeerSilent))
    async with (
        ScriptedServer(answer_each_second_ping) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            observers=[watch],
            ping_interval=10.0,
            pong_timeout=4.0,
            max_missed_pongs=2,
        ) as conn,
    ):
        await trio.sleep(100.0)
        assert conn.epoch == 1
        assert {type(event) for _, event in told} == {PongMissed}
        assert [event.missed for _, event in told if isinstance(event, PongMissed)] == [1] * len(told)
        assert conn.statistics().pongs_missed == len(told) > 3


async def test_a_single_miss_is_the_end_where_nothing_else_was_asked_for(
    autojump_clock: MockClock,
) -> None:
    told, watch = told_of((PongMissed, PeerSilent))
    async with ScriptedServer(fall_silent, echo) as server:
        began = trio.current_time()
        async with open_connection(
            URL, stream_factory=server.stream_factory, observers=[watch], ping_interval=10.0, pong_timeout=4.0
        ) as conn:
            assert await until_lost(conn) - began == pytest.approx(14.0)
    assert [event for _, event in told] == [PeerSilent(clock="pong", silence=14.0, missed=1)]


async def test_how_many_may_be_missed_can_be_changed_while_the_peer_is_silent(
    autojump_clock: MockClock,
) -> None:
    async with ScriptedServer(fall_silent, echo) as server:
        began = trio.current_time()
        async with open_connection(
            URL, stream_factory=server.stream_factory, ping_interval=10.0, pong_timeout=4.0, max_missed_pongs=100
        ) as conn:
            await trio.sleep(20.0)
            conn.reconfigure(max_missed_pongs=2)
            assert await until_lost(conn) - began == pytest.approx(22.0)


async def test_an_answer_to_a_heartbeat_message_that_is_missed_is_counted_too(
    autojump_clock: MockClock,
) -> None:
    async with ScriptedServer(fall_silent, echo) as server:
        began = trio.current_time()
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            codec=JsonCodec(),
            heartbeat=MessageHeartbeat(message={"op": "ping"}, expects=lambda message: "pong" in message),
            ping_interval=10.0,
            pong_timeout=4.0,
            max_missed_pongs=2,
        ) as conn:
            assert await until_lost(conn) - began == pytest.approx(18.0)
            assert conn.statistics().pongs_missed == 2


async def test_whoever_leaves_between_two_missed_pongs_leaves_at_once(autojump_clock: MockClock) -> None:
    asked: list[str] = []

    class Watcher(ConnectionHandler):
        def handle_timeout(self, clock: str) -> None:
            asked.append(clock)

    async with ScriptedServer(fall_silent) as server:
        began = trio.current_time()
        with trio.move_on_after(15.0):
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                connection_handler=Watcher,
                ping_interval=10.0,
                pong_timeout=4.0,
                max_missed_pongs=1000,
                close_timeout=1.0,
            ):
                await trio.sleep_forever()
        assert trio.current_time() - began == pytest.approx(16.0)
    assert asked == []


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, math.inf, "2"])
def test_a_number_of_missed_pongs_is_a_whole_one_from_1(wrong: object) -> None:
    with pytest.raises(ConfigError, match="max_missed_pongs"):
        trio_nova.Config(max_missed_pongs=wrong)  # type: ignore[arg-type]
