"""Several addresses for one session: which is dialled when, what goes along, and what says where the session is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    CircuitBreaker,
    ConfigError,
    ConnectFailed,
    ConnectionHandler,
    ConnectionInfo,
    DialStarted,
    HandshakeRejected,
    ListBackoff,
    Observation,
    SessionOver,
    State,
    open_connection,
)
from trio_nova.testing import Peer, Script, ScriptedServer, echo

A, B, C = (f"ws://{name}.example/ws" for name in "abc")
busy = partial(Peer.reject, status=503)


@attrs.define
class Dialled:
    """Observes dials: when, and to which host."""

    seen: list[tuple[float, str]] = attrs.field(factory=list)
    hears: tuple[type[trio_nova.Event], ...] = (DialStarted,)

    def __call__(self, observation: Observation) -> None:
        assert isinstance(observation.event, DialStarted)
        host = observation.event.url.removeprefix("ws://").partition(".")[0]
        self.seen.append((round(observation.at, 2), host))


@attrs.define
class Fleet:
    """A server behind each name, with scripts of its own."""

    servers: dict[str, ScriptedServer]

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        return await self.servers[host.partition(".")[0]].stream_factory(host, port)


async def down(peer: Peer) -> None:
    await peer.drop()


def connect(fleet: Fleet, dialled: Dialled, **options: Any) -> trio_nova.ConnectionBlock:
    usual: dict[str, Any] = {
        "failover": [B, C],
        "backoff": ListBackoff([10.0]),
        "ping_interval": math.inf,
        "stream_factory": fleet.dial,
        "observers": [dialled],
    }
    return open_connection(A, **(usual | options))


def server(*scripts: Script, then: Script | None = None) -> ScriptedServer:
    return ScriptedServer(*scripts, then=then)


async def test_where_the_first_address_fails_the_next_is_dialled_at_once_and_told(autojump_clock: MockClock) -> None:
    dialled = Dialled()
    async with server(then=busy) as a, server(then=echo) as b, server(then=echo) as c:
        async with connect(Fleet({"a": a, "b": b, "c": c}), dialled) as conn:
            assert conn.url == B
            assert dialled.seen == [(0.0, "a"), (0.0, "b")]
            await conn.send_text("hello")
            assert await conn.receive() == "hello"


async def test_the_address_that_works_is_kept_and_left_only_when_it_fails(autojump_clock: MockClock) -> None:
    async def serve_a_while(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(100.0)
        await peer.drop()

    dialled = Dialled()
    async with (
        server(busy, then=echo) as a,
        server(serve_a_while, serve_a_while, then=busy) as b,
        server(then=busy) as c,
        connect(Fleet({"a": a, "b": b, "c": c}), dialled) as conn,
    ):
        await trio.sleep(300.0)
        assert conn.url == A
        assert conn.state is State.READY
    assert dialled.seen == [(0.0, "a"), (0.0, "b"), (110.0, "b"), (220.0, "b"), (220.0, "c"), (220.0, "a")]


async def test_a_round_is_one_failure_for_the_back_off_and_for_the_attempts(autojump_clock: MockClock) -> None:
    dialled = Dialled()
    async with server(then=busy) as a, server(then=busy) as b, server(then=busy) as c:
        with pytest.raises(SessionOver) as caught:
            async with connect(
                Fleet({"a": a, "b": b, "c": c}),
                dialled,
                backoff=ListBackoff([1.0, 5.0]),
                retry_first_connect=True,
                max_attempts=2,
            ):
                raise AssertionError("it was entered")
    assert caught.value.attempts == 3
    assert dialled.seen == [(at, host) for at in (0.0, 1.0, 6.0) for host in "abc"]


async def test_a_first_connect_takes_one_round_before_it_fails(autojump_clock: MockClock) -> None:
    dialled = Dialled()
    async with server(then=busy) as a, server(then=down) as b, server(then=partial(Peer.reject, status=502)) as c:
        with pytest.raises(HandshakeRejected, match="502"):
            async with connect(Fleet({"a": a, "b": b, "c": c}), dialled):
                raise AssertionError("it was entered")
    assert dialled.seen == [(0.0, "a"), (0.0, "b"), (0.0, "c")]


@pytest.mark.parametrize("status", [401, 403])
async def test_what_no_other_address_would_mend_ends_the_session_at_the_first(
    status: int, autojump_clock: MockClock
) -> None:
    dialled = Dialled()
    async with server(then=partial(Peer.reject, status=status)) as a, server(then=echo) as b:
        with pytest.raises(HandshakeRejected):
            async with connect(Fleet({"a": a, "b": b}), dialled, failover=[B]):
                raise AssertionError("it was entered")
    assert dialled.seen == [(0.0, "a")]


async def test_an_address_that_asks_for_patience_gets_it(autojump_clock: MockClock) -> None:
    patience = partial(Peer.reject, status=503, headers={"Retry-After": "60"})
    dialled = Dialled()
    async with (
        server(patience, then=echo) as a,
        server(*[busy] * 6, then=busy) as b,
        connect(Fleet({"a": a, "b": b}), dialled, failover=[B], retry_first_connect=True),
    ):
        pass
    assert [at for at, host in dialled.seen if host == "a"] == [0.0, 60.0]
    assert [at for at, host in dialled.seen if host == "b"] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


async def test_an_address_that_accepts_and_closes_is_left_after_the_second_time(autojump_clock: MockClock) -> None:
    async def close_at_once(peer: Peer) -> None:
        await peer.accept()
        await peer.close(1011, "not now")

    dialled = Dialled()
    async with (
        server(then=close_at_once) as a,
        server(then=echo) as b,
        connect(Fleet({"a": a, "b": b}), dialled, failover=[B]) as conn,
    ):
        await trio.sleep(100.0)
        assert conn.url == B
    assert dialled.seen == [(0.0, "a"), (10.0, "a"), (10.0, "b")]


async def test_an_origin_whose_circuit_is_open_is_passed_by(autojump_clock: MockClock) -> None:
    breaker = CircuitBreaker(1, open_for=1000.0)
    breaker.failed("ws://a.example", 0.0)
    dialled = Dialled()
    async with server(then=echo) as a, server(then=echo) as b:
        async with connect(Fleet({"a": a, "b": b}), dialled, failover=[B], breaker=breaker) as conn:
            assert conn.url == B
    assert dialled.seen == [(0.0, "b")]


async def test_whoever_leaves_amid_a_round_leaves_at_once_and_nobody_else_is_dialled(
    autojump_clock: MockClock,
) -> None:
    dialled = Dialled()
    async with server(then=busy) as a, server(then=Peer.hang) as b, server(then=echo) as c:
        with trio.move_on_after(3.0):
            async with connect(Fleet({"a": a, "b": b, "c": c}), dialled, connect_timeout=5.0):
                raise AssertionError("it was entered")
        assert trio.current_time() == 3.0
    assert dialled.seen == [(0.0, "a"), (0.0, "b")]


async def test_an_address_that_hangs_costs_its_connect_timeout(autojump_clock: MockClock) -> None:
    dialled = Dialled()
    async with server(then=Peer.hang) as a, server(then=echo) as b:
        async with connect(Fleet({"a": a, "b": b}), dialled, failover=[B], connect_timeout=5.0):
            pass
    assert dialled.seen == [(0.0, "a"), (5.0, "b")]


# --------------------------------------------------------------------------- what goes along


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"headers": {"X-Desk": "7"}}, "headers"),
        ({"headers": {"Authorization": "Bearer abcdef"}}, "headers"),
        ({"subprotocols": ["bearer", "abcdefghijkl"]}, "token among the subprotocols"),
        ({"credentials": {"token": "abcdef"}, "codec": trio_nova.JsonCodec()}, "credentials"),
    ],
)
def test_what_belongs_to_the_target_goes_to_no_other_origin_that_nobody_vouches_for(
    options: dict[str, Any], kept: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"failover: the {kept} meant for wss://a.example would go to wss://b.example"
    ):
        open_connection("wss://a.example/", failover=["wss://b.example/"], **options)
    open_connection("wss://a.example/", failover=["wss://a.example/other"], **options)
    open_connection("wss://a.example/", failover=["wss://b.example/"], redirect_origins=["wss://b.example"], **options)


async def test_headers_that_are_vouched_for_go_along_and_a_hook_may_bring_others(autojump_clock: MockClock) -> None:
    class ByAddress(ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            return attrs.evolve(info, headers={"X-Desk": info.url.host})

    class AsGiven(ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            return info

    async def desk_at_b(**options: Any) -> str | None:
        async with server(then=busy) as a, server(then=echo) as b:
            fleet = Fleet({"a": a, "b": b})
            async with connect(fleet, Dialled(), failover=[B], headers={"X-Desk": "7"}, **options):
                return dict(b.dials[0].request.headers).get("x-desk") if b.dials[0].request else None

    assert await desk_at_b(redirect_origins=["ws://b.example"]) == "7"
    assert await desk_at_b(connection_handler=ByAddress) == "b.example"
    with pytest.raises(ConfigError, match=r"the headers meant for ws://a\.example would go to ws://b\.example"):
        await desk_at_b(connection_handler=AsGiven)


async def test_a_login_in_an_address_goes_there_alone_and_is_shown_nowhere(autojump_clock: MockClock) -> None:
    dialled = Dialled()
    async with server(then=busy) as a, server(then=echo) as b:
        async with connect(
            Fleet({"a": a, "b": b}),
            dialled,
            failover=["ws://me:swordfish12@b.example/ws?token=marlin3456"],
            allow_plaintext_credentials=True,
        ) as conn:
            assert conn.url == "ws://***@b.example/ws?token=***"
            assert "swordfish" not in repr(conn.config)
        requests = [each.dials[0].request for each in (a, b)]
    assert all(request is not None for request in requests)
    assert ["authorization" in {name.lower() for name in dict(request.headers)} for request in requests if request] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("failover", "said"),
    [
        (["ws://me:pw@b.example/"], "its login would travel in plain text"),
        ([A], "is the target itself"),
        (["ftp://b.example"], "failover"),
        ("wss://b.example", "must be a collection"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused_by_the_call(failover: Sequence[str] | str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_connection(A, failover=failover)


async def test_options_that_are_changed_later_keep_to_the_rule(autojump_clock: MockClock) -> None:
    async with server(then=echo) as a, connect(Fleet({"a": a}), Dialled(), failover=[B]) as conn:
        with pytest.raises(ConfigError, match="failover"):
            conn.reconfigure(headers={"X-Desk": "7"})
        assert conn.config.headers == {}


async def test_all_addresses_down_is_told_by_the_last_error(autojump_clock: MockClock) -> None:
    async with server(then=down) as a, server(then=down) as b:
        with pytest.raises(ConnectFailed):
            async with connect(Fleet({"a": a, "b": b}), Dialled(), failover=[B]):
                raise AssertionError("it was entered")
