"""A breaker that sessions share: when nobody dials any more, who tries again, and what each of them is told."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    CircuitBreaker,
    CircuitClosed,
    CircuitOpen,
    CircuitOpened,
    CircuitState,
    Event,
    HandshakeRejected,
    JsonCodec,
    ListBackoff,
    Observation,
    State,
    open_connection,
)
from trio_nova.testing import Peer, Script, ScriptedServer, echo

URL = "ws://server.test/"
ORIGIN = "ws://server.test"
busy = partial(Peer.reject, status=503)


@attrs.define
class Told:
    """Observes a circuit, of all the sessions that share it."""

    seen: list[tuple[float, Event]] = attrs.field(factory=list)
    hears: tuple[type[Event], ...] = (CircuitOpened, CircuitClosed)

    def __call__(self, observation: Observation) -> None:
        self.seen.append((observation.at, observation.event))

    @property
    def story(self) -> list[tuple[float, str]]:
        return [(round(at, 2), type(event).__name__) for at, event in self.seen]


def connect(server: ScriptedServer, breaker: CircuitBreaker, **options: Any) -> trio_nova.ConnectionBlock:
    calm: dict[str, Any] = {"backoff": ListBackoff([1.0]), "ping_interval": math.inf, "retry_first_connect": True}
    return open_connection(URL, stream_factory=server.stream_factory, breaker=breaker, **(calm | options))


def dials(server: ScriptedServer) -> list[float]:
    return [round(each.at, 2) for each in server.dials]


async def test_after_too_many_failures_nobody_dials_until_one_tries_and_succeeds(autojump_clock: MockClock) -> None:
    told, breaker = Told(), CircuitBreaker(3, within=60.0, open_for=30.0)
    async with (
        ScriptedServer(busy, busy, busy, echo) as server,
        connect(server, breaker, observers=[told]) as conn,
    ):
        assert dials(server) == [0.0, 1.0, 2.0, 33.0]  # half a minute, and the back-off, after the third
        assert breaker.state(ORIGIN) is CircuitState.CLOSED
        assert conn.statistics().dials == 4
    assert told.story == [(2.0, "CircuitOpened"), (33.0, "CircuitClosed")]
    (_, opened), _ = told.seen
    assert isinstance(opened, CircuitOpened)
    assert (opened.origin, opened.until) == (ORIGIN, 32.0)
    assert isinstance(opened.error, HandshakeRejected)


async def test_what_one_session_learns_keeps_all_others_from_dialling(autojump_clock: MockClock) -> None:
    told, breaker = Told(), CircuitBreaker(5, within=60.0, open_for=30.0)
    draws = iter(range(10**6))

    async def hold(server: ScriptedServer) -> None:
        delays = ListBackoff([1.0 + next(draws) / 100])
        async with connect(server, breaker, observers=[told], backoff=delays):
            await trio.sleep_forever()

    async with ScriptedServer(then=busy) as server, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(hold, server)
        await trio.sleep(300.0)
        nursery.cancel_scope.cancel()
    assert len([at for at in dials(server) if at < 1.0]) <= 20  # those were under way already
    assert len([at for at in dials(server) if at >= 1.0]) == 9  # one in each 30 s and its back-off
    assert {name for _, name in told.story} == {"CircuitOpened"}


async def test_a_first_connect_that_may_not_dial_fails_at_once_and_says_for_how_long(
    autojump_clock: MockClock,
) -> None:
    breaker = CircuitBreaker(1, open_for=30.0)
    async with ScriptedServer(then=busy) as server:
        with pytest.raises(HandshakeRejected):
            async with connect(server, breaker, retry_first_connect=False):
                raise AssertionError("it was entered")
        await trio.sleep(10.0)
        with pytest.raises(CircuitOpen) as caught:
            async with connect(server, breaker, retry_first_connect=False):
                raise AssertionError("it was entered")
        assert caught.value.retry_after == 20.0
        assert trio_nova.explain(caught.value).splitlines()[:2] == [
            f"CircuitOpen: nobody dials {ORIGIN} for 20 s: too much has failed there",
            "  phase: turn",
        ]
        assert len(server.dials) == 1


async def test_dials_that_were_not_made_are_no_attempts(autojump_clock: MockClock) -> None:
    breaker = CircuitBreaker(2, open_for=5.0)
    async with ScriptedServer(busy, busy, busy, echo) as server:
        async with connect(server, breaker, max_attempts=3) as conn:
            assert conn.state is State.READY
        assert len(server.dials) == 4


async def _log_in_in_vain(peer: Peer) -> None:
    await peer.accept()
    await peer.receive()
    await peer.close(3000, "unauthorized")


async def _close_at_once(peer: Peer) -> None:
    await peer.accept()
    await peer.close(1011, "not now")


async def _hang(peer: Peer) -> None:
    await peer.hang()


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (_close_at_once, {}),
        (_hang, {"connect_timeout": 2.0}),
        (partial(Peer.reject, status=429), {}),
    ],
    ids=["accepts and closes", "hangs", "too many requests"],
)
async def test_a_service_that_is_no_use_is_dialled_a_few_times_in_an_hour(
    script: Script, options: dict[str, Any], autojump_clock: MockClock
) -> None:
    told, breaker = Told(), CircuitBreaker(5, within=60.0, open_for=600.0)
    async with ScriptedServer(then=script) as server:
        with trio.move_on_after(3600.0):
            async with connect(server, breaker, observers=[told], min_uptime=10.0, **options):
                await trio.sleep_forever()
    assert 8 <= len(server.dials) <= 36
    assert told.story[0][1] == "CircuitOpened"


async def test_logins_that_are_refused_count_as_services_ban_for_them(autojump_clock: MockClock) -> None:
    breaker = CircuitBreaker(1, open_for=600.0)
    async with ScriptedServer(then=_log_in_in_vain) as server:
        with pytest.raises(trio_nova.NovaError):
            async with connect(
                server,
                breaker,
                codec=JsonCodec(),
                credentials={"token": "x"},
                allow_plaintext_credentials=True,
                retry_first_connect=False,
            ):
                raise AssertionError("it was entered")
    assert breaker.state(ORIGIN) is CircuitState.OPEN


async def test_the_loss_of_links_that_had_lasted_is_no_failure(autojump_clock: MockClock) -> None:
    async def serve_a_minute(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(30.0)
        await peer.drop()

    told, breaker = Told(), CircuitBreaker(2, within=3600.0)
    async with (
        ScriptedServer(then=serve_a_minute) as server,
        connect(server, breaker, observers=[told], min_uptime=10.0) as conn,
    ):
        await trio.sleep(1000.0)
        assert conn.epoch > 20
    assert told.story == []


async def test_a_probe_whose_block_is_left_lets_another_session_try(autojump_clock: MockClock) -> None:
    breaker = CircuitBreaker(1, open_for=30.0)
    async with ScriptedServer(busy, _hang, echo) as server:
        with trio.move_on_after(32.0):  # its probe, at 31, is still under way
            async with connect(server, breaker):
                raise AssertionError("it was entered")
        assert breaker.state(ORIGIN) is CircuitState.OPEN
        async with connect(server, breaker):
            assert trio.current_time() == pytest.approx(32.0)
        assert dials(server) == [0.0, 31.0, 32.0]
