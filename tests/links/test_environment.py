"""Which proxy the environment names, for which URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import trio

import trio_nova
from trio_nova.errors import ConfigError, ConnectFailed
from trio_nova.links._environment import proxy_for
from trio_nova.testing import ScriptedServer, echo
from trio_nova.urls import Url

if TYPE_CHECKING:
    from tests.links.conftest import Peer

P = "http://proxy.test:1"


def chosen(url: str, environ: Mapping[str, str]) -> str | None:
    proxy = proxy_for(Url.parse(url), environ)
    return None if proxy is None else f"{proxy.scheme}://{proxy}"


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("wss://h", {"https_proxy": P, "http_proxy": "http://other"}, P),
        ("ws://h", {"http_proxy": P, "https_proxy": "http://other"}, P),
        ("wss://h", {"HTTPS_PROXY": P}, P),
        ("wss://h", {"https_proxy": P, "HTTPS_PROXY": "http://other"}, P),
        ("wss://h", {"HTTP_PROXY": P}, None),
        ("ws://h", {"HTTPS_PROXY": P}, None),
        ("ws://h", {"ALL_PROXY": "socks5h://proxy.test"}, "socks5h://proxy.test:1080"),
        ("wss://h", {"all_proxy": P, "HTTPS_PROXY": "https://s.test"}, "https://s.test:443"),
        ("wss://h", {"https_proxy": "", "HTTPS_PROXY": P}, None),
        ("wss://h", {"https_proxy": "", "all_proxy": P}, P),
        ("wss://h", {"HTTPS_PROXY": " proxy.test:1 "}, P),
        ("wss://h", {"HTTPS_PROXY": "user:pw@proxy.test:1"}, P),
        ("wss://h", {"HTTPS_PROXY": "proxy.test"}, "http://proxy.test:80"),
        ("ws://h", {"HTTP_PROXY": P}, P),
        ("ws://h", {"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, None),
        ("ws://h", {"http_proxy": P, "REQUEST_METHOD": "GET"}, P),
        ("ws://h", {"HTTP_PROXY": "x", "ALL_PROXY": P, "REQUEST_METHOD": "GET"}, P),
        ("wss://h", {"HTTPS_PROXY": P, "REQUEST_METHOD": "GET"}, P),
        ("wss://h", {}, None),
    ],
)
def test_a_url_is_reached_by_the_proxy_of_its_kind(url: str, environ: Mapping[str, str], proxy: str | None) -> None:
    assert chosen(url, environ) == proxy


@pytest.mark.parametrize(
    ("url", "exempt", "direct"),
    [
        ("ws://a.test", "*", True),
        ("ws://a.test", "b.test,*", True),
        ("ws://a.test", "a.test", True),
        ("ws://a.test", "A.TEST.", True),
        ("ws://sub.a.test", "a.test", True),
        ("ws://sub.a.test", ".a.test", True),
        ("ws://a.test", ".a.test", True),
        ("ws://sub.a.test", "*.a.test", True),
        ("ws://nota.test", "a.test", False),
        ("ws://a.test.evil.test", "a.test", False),
        ("ws://a.test", "b.test, c.test  a.test", True),
        ("ws://a.test", "", False),
        ("ws://a.test", " , ,", False),
        ("ws://a.test:8080", "a.test:8080", True),
        ("ws://a.test:8081", "a.test:8080", False),
        ("ws://a.test", "a.test:80", True),
        ("wss://a.test", "a.test:80", False),
        ("wss://sub.a.test", ".a.test:443", True),
        ("ws://10.1.2.3", "10.1.2.3", True),
        ("ws://10.1.2.3", "2.3", False),
        ("ws://10.1.2.3:9", "10.1.2.3:9", True),
        ("ws://10.1.2.3", "10.0.0.0/8", True),
        ("ws://10.1.2.3", "10.9.9.9/8", True),
        ("ws://11.1.2.3", "10.0.0.0/8", False),
        ("ws://10.1.2.3", "10.0.0.0/99", False),
        ("ws://10.1.2.3", "fe80::/10", False),
        ("ws://a.test", "10.0.0.0/8", False),
        ("ws://[fe80::1]", "fe80::1", True),
        ("ws://[fe80::1]", "[FE80:0::1]", True),
        ("ws://[fe80::1]:81", "[fe80::1]:81", True),
        ("ws://[fe80::1]:82", "[fe80::1]:81", False),
        ("ws://[fe80::1%25eth0]", "fe80::1", True),
        ("ws://[fe80::1%25eth0]", "fe80::/10", True),
        ("ws://fa\u00df.de", "fa\u00df.de", True),
        ("ws://fa\u00df.de", "fass.de", False),
        ("ws://localhost", "localhost", True),
        ("ws://localhost", "127.0.0.1", False),
        ("ws://a.test", "<local>;a..b,[,:::,a.test/,\udcff", False),
    ],
)
def test_an_exempt_host_is_reached_without(url: str, exempt: str, direct: bool) -> None:
    assert (chosen(url, {"ALL_PROXY": P, "NO_PROXY": exempt}) is None) is direct
    assert (chosen(url, {"ALL_PROXY": P, "no_proxy": exempt, "NO_PROXY": "unheard"}) is None) is direct


@pytest.mark.parametrize("value", ["ftp://u:CANARY@h", "http://u:CANARY@h:x", "u:CANARY@", "http://u:CANARY\udcff@h"])
def test_a_variable_that_is_no_proxys_url_is_named_and_not_quoted(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^proxy: HTTPS_PROXY in the environment") as caught:
        chosen("wss://h", {"HTTPS_PROXY": value})
    assert "CANARY" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_the_environment_is_asked_for_every_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    dialled: list[tuple[str, int]] = []
    async with ScriptedServer(echo) as server:

        async def factory(host: str, port: int) -> trio.abc.Stream:
            dialled.append((host, port))
            if host == "proxy.test":
                raise ConnectionRefusedError
            return await server.stream_factory(host, port)

        config = trio_nova.Config(proxy="env", stream_factory=factory)
        monkeypatch.setenv("HTTP_PROXY", "http://u:CANARY@proxy.test:3128")
        with pytest.raises(ConnectFailed) as caught:
            async with trio_nova.open_connection("ws://server.test", config=config):
                pass
        assert caught.value.phase == "proxy"
        assert "CANARY" not in str(caught.value)
        monkeypatch.setenv("NO_PROXY", "server.test")
        async with trio_nova.open_connection("ws://server.test", config=config):
            pass
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTP_PROXY", "CANARY@")
        with pytest.raises(ConfigError, match="HTTP_PROXY"):
            async with trio_nova.open_connection("ws://server.test", config=config):
                pass
    assert dialled == [("proxy.test", 3128), ("server.test", 80)]


async def test_unasked_the_environment_is_not_looked_at(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "no proxy at all")
    async with ScriptedServer(echo) as server:
        async with trio_nova.open_connection("ws://server.test", stream_factory=server.stream_factory):
            pass
