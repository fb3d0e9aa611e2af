"""Headers of the upgrade: of each name there is one on the wire, whichever layer says it and however it is spelt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from trio.testing import MockClock

from trio_nova import Config, ConfigError, ConnectionHandler, ConnectionInfo, open_connection
from trio_nova.links import Transport
from trio_nova.secrets import HeaderMap
from trio_nova.testing import ScriptedServer, echo

URL = "ws://localhost/"
TWICE = {"Authorization": "CANARY-1", "authorization": "CANARY-2"}


class Adds(ConnectionHandler):
    """Adds a header in a spelling of its own."""

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, headers=info.headers | {"authorization": "of the hook", "HOST": "hook.test"})


class Clashes(ConnectionHandler):
    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, headers={**info.headers, "authorization": "CANARY-2"})


async def provide_both() -> Mapping[str, str]:
    return TWICE


async def provide() -> Mapping[str, str]:
    return {"AUTHORIZATION": "of the provider", "host": "provider.test"}


@pytest.mark.parametrize("names", [("Host", "host"), ("Authorization", "AUTHORIZATION"), ("cookie", "Cookie")])
def test_two_spellings_of_one_header_are_refused_by_the_call(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{names[0]} and {names[1]} are one header") as caught:
        open_connection(URL, headers=dict.fromkeys(names, "CANARY"))
    assert caught.value.field == "headers"
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": provide_both},
        {"headers": {"Authorization": "CANARY-1"}, "connection_handler": Clashes},
        {"headers": provide, "connection_handler": Clashes},
    ],
)
async def test_two_spellings_from_a_provider_or_a_hook_are_refused_before_anything_is_dialled(
    options: dict[str, Any],
) -> None:
    async with ScriptedServer() as server:
        with pytest.raises(ConfigError, match="are one header, given twice") as caught:
            async with open_connection(URL, stream_factory=server.stream_factory, **options):
                pass
        assert not server.dials
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "authorization", "host"),
    [
        (URL, {"headers": {"aUTHORIZATION": "mine", "HOST": "mine.test"}}, "mine", "mine.test"),
        (URL, {"headers": provide}, "of the provider", "provider.test"),
        (URL, {"headers": provide, "connection_handler": Adds}, "of the hook", "hook.test"),
        ("ws://me:pw@localhost/", {}, "Basic bWU6cHc=", "localhost"),
        ("ws://me:pw@localhost/", {"headers": {"authorization": "mine"}}, "mine", "localhost"),
        ("ws://me:pw@localhost/", {"connection_handler": Adds}, "of the hook", "hook.test"),
        ("ws://localhost:81/", {}, None, "localhost:81"),
    ],
)
async def test_of_each_header_there_is_one_on_the_wire(
    transport: Transport,
    autojump_clock: MockClock,
    url: str,
    options: dict[str, Any],
    authorization: str | None,
    host: str,
) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(url, transport=transport, stream_factory=server.stream_factory, **options):
            pass
    request = server.dials[0].request
    assert request is not None
    assert request.headers.get_all("authorization") == ([] if authorization is None else [authorization])
    assert request.headers.get_all("host") == [host]
    names = [name.lower() for name, _ in request.headers.pairs]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("Upgrade", "the handshake"),
        ("connection", "the handshake"),
        ("Sec-WebSocket-Key", "the handshake"),
        ("SEC-WEBSOCKET-ACCEPT", "the handshake"),
        ("Sec-WebSocket-Protocol", "the option subprotocols"),
        ("Sec-WebSocket-Extensions", "the option compression"),
        ("Proxy-Authorization", "the option proxy"),
        ("Content-Length", "a body"),
        ("Transfer-Encoding", "a body"),
        ("Expect", "a body"),
        ("Keep-Alive", "used again"),
    ],
)
def test_what_is_not_the_callers_to_set_is_refused_and_says_whose_it_is(name: str, owner: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} belongs to .*{owner}"):
        Config(headers={name: "x"})


def test_a_header_is_found_and_replaced_in_any_spelling() -> None:
    headers = HeaderMap({"X-Key": "1", "Host": "h"})
    assert headers["x-KEY"] == "1"
    assert "HOST" in headers
    assert headers.get("other") is None
    assert dict(headers | {"x-key": "2"}) == {"Host": "h", "x-key": "2"}
    assert "2" not in repr(headers | {"x-key": "2"})
    assert dict(headers) == {"X-Key": "1", "Host": "h"}
