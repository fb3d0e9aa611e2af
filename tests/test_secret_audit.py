"""An audit of secrets: which were handed to whom and when, told to those who ask for it, and never their values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import JsonCodec, ListBackoff, Observation, SecretRevealed, open_connection
from trio_nova.links import Transport, TrioWebsocketTransport, WireTransport
from trio_nova.testing import Peer, ScriptedServer, echo

VALUES = ("swordfish12", "marlin3456", "barracuda78", "abcdefghijklmnop")


@attrs.define
class Audit:
    seen: list[tuple[float, str, str]] = attrs.field(factory=list)
    hears: tuple[type[trio_nova.Event], ...] = (SecretRevealed,)

    def __call__(self, observation: Observation) -> None:
        event = observation.event
        assert isinstance(event, SecretRevealed)
        assert not any(value in repr(observation) for value in VALUES)
        self.seen.append((round(observation.at, 2), event.secret, event.to))


def connect(server: ScriptedServer, audit: Audit, url: str = "ws://a.example/", **options: Any) -> Any:
    usual: dict[str, Any] = {"stream_factory": server.stream_factory, "allow_plaintext_credentials": True}
    return open_connection(url, observers=[audit], backoff=ListBackoff([1.0]), **(usual | options))


@pytest.mark.parametrize("transport", [WireTransport, TrioWebsocketTransport])
async def test_each_secret_of_a_dial_is_told_with_where_it_goes_at_each_dial(
    transport: Callable[[], Transport], autojump_clock: MockClock
) -> None:
    audit = Audit()
    async with (
        ScriptedServer(partial(Peer.reject, status=503), then=echo) as server,
        connect(
            server,
            audit,
            "ws://me:swordfish12@a.example/?token=marlin3456&depth=5",
            headers={"X-Api-Key": "barracuda78", "X-Desk": "7"},
            transport=transport(),
            retry_first_connect=True,
        ),
    ):
        pass
    secrets = ["header x-api-key", "login of the URL", "parameter token"]
    assert audit.seen == [(at, secret, "ws://a.example") for at in (0.0, 1.0) for secret in secrets]


async def test_a_redirect_that_is_followed_is_told_with_its_own_origin(autojump_clock: MockClock) -> None:
    audit = Audit()
    there = partial(Peer.reject, status=302, headers={"Location": "ws://b.example/", "Set-Cookie": "sid=marlin3456"})
    async with (
        ScriptedServer(there, echo) as server,
        connect(server, audit, headers={"Authorization": "Bearer swordfish12"}, redirect_origins=["ws://b.example"]),
    ):
        pass
    assert audit.seen == [
        (0.0, "header authorization", "ws://a.example"),
        (0.0, "header authorization", "ws://b.example"),
    ]


async def test_credentials_that_are_handed_to_the_auth_handler_are_told_on_each_link(
    autojump_clock: MockClock,
) -> None:
    async def let_in(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "auth_success"})
        await trio.sleep(5.0)
        await peer.drop()

    audit = Audit()
    async with (
        ScriptedServer(then=let_in) as server,
        connect(server, audit, codec=JsonCodec(), credentials={"token": "swordfish12"}),
    ):
        await trio.sleep(8.0)
    assert audit.seen == [(at, "credentials", "AuthHandler.authenticate") for at in (0.0, 6.0)]


async def test_a_token_among_the_subprotocols_is_told(autojump_clock: MockClock) -> None:
    async def choose(peer: Peer) -> None:
        await peer.accept({"Sec-WebSocket-Protocol": "bearer"})
        await peer.serve_until_closed()

    audit = Audit()
    async with (
        ScriptedServer(choose) as server,
        connect(server, audit, subprotocols=["bearer", "abcdefghijklmnop"]),
    ):
        pass
    assert audit.seen == [(0.0, "token among the subprotocols", "ws://a.example")]


async def test_who_does_not_ask_for_the_audit_hears_nothing_of_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def all_there_is(observation: Observation) -> None:
        heard.append(type(observation.event).__name__)

    caplog.set_level("DEBUG", "trio_nova")
    metrics = trio_nova.MetricsCollector()
    audit = Audit()
    async with (
        ScriptedServer(then=echo) as server,
        open_connection(
            "ws://a.example/",
            stream_factory=server.stream_factory,
            observers=[all_there_is, audit],
            metrics_collector=metrics,
            headers={"X-Api-Key": "barracuda78"},
            allow_plaintext_credentials=True,
        ) as conn,
        conn.listen() as events,
    ):
        await conn.reconnect()
        told = await events.receive_batch()
    assert len(audit.seen) == 2
    assert "DialStarted" in heard
    assert "SecretRevealed" not in heard
    assert not any(isinstance(event, SecretRevealed) for event in told)
    assert "events.SecretRevealed" not in metrics.snapshot()
    assert "barracuda78" not in caplog.text
    assert "handed" not in caplog.text


async def test_an_audit_that_fails_harms_nobody(autojump_clock: MockClock) -> None:
    @trio_nova.hears(SecretRevealed)
    def fail(observation: Observation) -> None:
        raise LookupError("the audit is full")

    async with (
        ScriptedServer(echo) as server,
        open_connection(
            "ws://a.example/",
            stream_factory=server.stream_factory,
            observers=[fail],
            headers={"X-Api-Key": "barracuda78"},
            allow_plaintext_credentials=True,
        ) as conn,
    ):
        await conn.send_text("hello")
        assert await conn.receive() == "hello"
