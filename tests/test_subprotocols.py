"""A token among the subprotocols, where services take one that browsers are to send: it is used, and never shown."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from trio_nova import (
    Config,
    ConfigError,
    ConnectionHandler,
    ConnectionInfo,
    HandshakeInvalid,
    LinkOpened,
    NovaError,
    Secret,
    open_connection,
)
from trio_nova.errors import explain
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.secrets import hide_tokens, secrets_in_subprotocols
from trio_nova.testing import Peer, ScriptedServer, make_dial

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2lnbmF0dXJlMTIzNDU2-_x"
URL = "wss://server.test/"


@pytest.mark.parametrize(
    "name",
    [
        "graphql-transport-ws",
        "graphql-ws",
        "v12.stomp",
        "mqtt",
        "wamp.2.json",
        "wamp.2.msgpack.batched",
        "ocpp2.0.1",
        "v4.base64.channel.k8s.io",
        "actioncable-unsupported",
        "json.reliable.webpubsub.azure.v1",
        "com.microsoft.minecraft.wsencrypt",
        "graphql-transport-ws-v2-with-a-long-name",
        "soap",
        "bearer",
        "access_token",
        "Authorization",
    ],
)
def test_a_protocols_name_is_no_token(name: str) -> None:
    assert hide_tokens([name]) == (name,)
    assert not list(secrets_in_subprotocols(hide_tokens([name])))


@pytest.mark.parametrize(
    ("name", "token"),
    [
        (JWT, "c2lnbmF0dXJlMTIzNDU2-_x"),
        (f"bearer.{JWT}", JWT),
        ("bearer-0123456", "0123456"),
        (
            "base64url.bearer.authorization.k8s.io.b3BhcXVlIQ",
            "b3BhcXVlIQ",
        ),
        ("openai-insecure-api-key.sk-live", "sk-live"),
        ("access_token.abcdef", "abcdef"),
        ("JWT_abcdef", "abcdef"),
        ("header-eyJhbGciOiJIUzI1NiJ9", "header-eyJhbGciOiJIUzI1NiJ9"),
        ("9f86d081884c7d659a2feaa0c55ad015", "9f86d081884c7d659a2feaa0c55ad015"),
        ("v1.9f86d081884c7d659a2feaa0c55ad015.json", "9f86d081884c7d659a2feaa0c55ad015"),
        ("Zm9v-YmFy_MTIz-NDU2_", "Zm9v-YmFy_MTIz-NDU2_"),
    ],
)
def test_what_looks_like_a_token_is_one_and_the_token_in_it_is_known_by_itself(name: str, token: str) -> None:
    hidden = hide_tokens(["mqtt", name])
    assert hidden == ("mqtt", Secret(name))
    assert {name} <= set(secrets_in_subprotocols(hidden))
    assert any(token.endswith(known) or token == known for known in secrets_in_subprotocols(hidden))


@pytest.mark.parametrize("mark", ["bearer", "Bearer", "access_token", "token", "Authorization", "jwt", "api-key"])
def test_what_comes_after_a_name_that_announces_a_token_is_one(mark: str) -> None:
    assert hide_tokens(["mqtt", mark, "abc", "json"]) == ("mqtt", mark, Secret("abc"), "json")


def test_what_is_given_as_a_secret_stays_one() -> None:
    given = Secret("mqtt")
    assert hide_tokens([given]) == (given,)
    assert hide_tokens(hide_tokens(["bearer", "abc"])) == ("bearer", Secret("abc"))


@pytest.mark.parametrize("names", [["bearer", "CANARY"], [Secret("CANARY")], ["bearer.CANARY-2"]])
def test_neither_options_nor_dials_show_a_token(names: list[Any]) -> None:
    config = Config(subprotocols=names)
    info = ConnectionInfo(url=URL, subprotocols=config.subprotocols)
    dial = attrs.evolve(make_dial(url=URL), subprotocols=tuple(names))
    assert "CANARY" not in f"{config!r} {info!r} {dial!r}"
    assert "CANARY" in " ".join(dial.offered)


@pytest.mark.parametrize(
    "names", [["bearer", "CANARY=="], [Secret("CANARY a")], ["bearer.CANARY=="], "bearer.CANARY-2"]
)
def test_a_token_that_cannot_be_a_name_is_refused_and_not_shown(names: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        open_connection(URL, subprotocols=names)
    assert caught.value.field == "subprotocols"
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("names", [["bearer", "CANARY"], [Secret("CANARY")], ["bearer.CANARY-2"]])
def test_a_token_does_not_travel_in_plain_text_unasked(names: list[Any]) -> None:
    with pytest.raises(ConfigError, match="plain text") as caught:
        open_connection("ws://server.test/", subprotocols=names)
    assert caught.value.field == "subprotocols"
    open_connection("ws://localhost/", subprotocols=names)
    open_connection(URL, subprotocols=names)
    open_connection("ws://server.test/", subprotocols=names, allow_plaintext_credentials=True)


async def test_a_hook_adds_no_token_in_plain_text_and_takes_none_along_to_another_origin() -> None:
    class Wanders(ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            if info.url.secure:
                return attrs.evolve(info, url="wss://other.test/")
            return attrs.evolve(info, subprotocols=("bearer", "CANARY"))

    for url, names in (("ws://server.test/", []), (URL, ["bearer", "CANARY"])):
        with pytest.raises(ConfigError, match=r"plain text|would go to") as caught:
            async with open_connection(url, subprotocols=names, connection_handler=Wanders):
                pass
        assert "CANARY" not in str(caught.value)


async def accept_the_last(peer: Peer) -> None:
    request = await peer.read_request()
    await peer.accept(subprotocol=request.subprotocols[-1])
    await peer.echo()


async def test_a_token_that_the_server_chooses_reaches_the_hook_masked_and_no_log(
    transport: Transport, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[ConnectionInfo] = []
    events: list[Any] = []

    class Looks(ConnectionHandler):
        def handle_connect(self, info: ConnectionInfo) -> Action:
            seen.append(info)
            return None

    async with ScriptedServer(accept_the_last, then=accept_the_last, tls=True) as server:
        async with open_connection(
            URL,
            transport=transport,
            subprotocols=["bearer", "CANARY-token"],
            connection_handler=Looks,
            stream_factory=server.stream_factory,
            ssl_context=server.client_ssl_context,
        ) as conn:
            async with conn.listen() as listener:
                await conn.reconnect()
                while not isinstance(event := listener.receive_nowait(), LinkOpened):
                    pass
                events.append(event)
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("bearer", "CANARY-token")
    assert [info.subprotocol for info in seen] == [Secret("CANARY-token")] * 2
    assert [event.subprotocol for event in events] == ["***"]
    assert "CANARY" not in f"{seen!r} {events!r} {caplog.text}"


async def test_a_server_that_repeats_a_token_in_its_refusal_is_not_repeated(
    transport: Transport, autojump_clock: MockClock
) -> None:
    async def repeat(peer: Peer) -> None:
        await peer.read_request()
        await peer.reject(400, body=b"no such protocol: CANARY-token")

    async def choose_another(peer: Peer) -> None:
        await peer.accept(subprotocol="CANARY-token.v2")

    for script, kind in ((repeat, NovaError), (choose_another, HandshakeInvalid)):
        async with ScriptedServer(script, tls=True) as server:
            with pytest.raises(kind) as caught:
                async with open_connection(
                    URL,
                    transport=transport,
                    subprotocols=["bearer", "CANARY-token"],
                    stream_factory=server.stream_factory,
                    ssl_context=server.client_ssl_context,
                ):
                    pass
        assert "CANARY" not in explain(caught.value)
