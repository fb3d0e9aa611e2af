"""Through squid, tinyproxy and microsocks: with a login, with a wrong one, and to where they do not let us."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
import pytest
import trio

import trio_nova

if TYPE_CHECKING:
    from tests.live.conftest import Authority, Front, Server, StartServer

pytestmark = pytest.mark.live

PASSWORD = "opensesame"
WRONG = "CANARY"

SQUID = """
http_port 127.0.0.1:{port}
pid_filename {room}/squid.pid
cache_log {room}/squid.log
access_log none
cache deny all
coredump_dir {room}
shutdown_lifetime 0 seconds
auth_param basic program /bin/sh {room}/login.sh
auth_param basic children 1 startup=1
acl known proxy_auth REQUIRED
acl ours port {ours}
http_access deny !known
http_access allow ours
http_access deny all
"""

# Squid asks it once for each login, "user password", percent-encoded where a character is none of a URL's.
LOGIN = """
while read -r user password; do
    if [ "$user $password" = "alice {password}" ]; then echo OK; else echo ERR; fi
done
"""

TINYPROXY = """
Listen 127.0.0.1
Port {port}
Timeout 30
MaxClients 20
BasicAuth alice {password}
ConnectPort {ws}
ConnectPort {wss}
"""


@attrs.frozen
class Proxy:
    """A proxy, and whom it lets in."""

    scheme: str
    port: int
    password: str

    def url(self, password: str | None = None) -> str:
        return f"{self.scheme}://alice:{quote(password or self.password, safe='')}@127.0.0.1:{self.port}"

    @property
    def anonymous(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def squid(
    start_shared: StartServer,
    ws_server: Server,
    nginx: Front,
    program: Callable[[str], str],
    pick_port: Callable[[], int],
) -> Iterator[Proxy]:
    command, port = program("squid"), pick_port()
    room = Path(tempfile.mkdtemp(prefix="nova"))
    room.chmod(0o777)  # where root starts it, it goes on as somebody else
    password = "open:sesame@50%"
    (room / "login.sh").write_text(LOGIN.format(password=quote(password, safe=":@")))
    config = room / "squid.conf"
    config.write_text(SQUID.format(room=room, port=port, ours=f"{ws_server.port} {nginx.server.port}"))
    server = start_shared((command, "-N", "-f", os.fspath(config)), port=port)
    yield Proxy("http", port, password)
    server.stop()
    shutil.rmtree(room)


@pytest.fixture(scope="module")
def tinyproxy(
    start_shared: StartServer,
    room: Path,
    ws_server: Server,
    nginx: Front,
    program: Callable[[str], str],
    pick_port: Callable[[], int],
) -> Proxy:
    command, port = program("tinyproxy"), pick_port()
    config = room / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, password=PASSWORD, ws=ws_server.port, wss=nginx.server.port))
    start_shared((command, "-d", "-c", os.fspath(config)), port=port)
    return Proxy("http", port, PASSWORD)


@pytest.fixture(scope="module")
def microsocks(start_shared: StartServer, program: Callable[[str], str], pick_port: Callable[[], int]) -> Proxy:
    command, port = program("microsocks"), pick_port()
    start_shared((command, "-i", "127.0.0.1", "-p", str(port), "-u", "alice", "-P", PASSWORD), port=port)
    return Proxy("socks5", port, PASSWORD)


@pytest.fixture(params=["squid", "tinyproxy", "microsocks"])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    """Give each of the three in turn."""
    given: Proxy = request.getfixturevalue(request.param)
    return given


async def failure(url: str, proxy: str) -> trio_nova.ConnectFailed:
    """Fail to open a connection; retries would run into the time limit."""
    with trio.fail_after(20), pytest.raises(trio_nova.ConnectFailed) as caught:
        async with trio_nova.open_connection(url, proxy=proxy):
            raise AssertionError("it was entered")
    said = trio_nova.explain(caught.value) + "".join(traceback.format_exception(caught.value))
    assert WRONG not in said
    assert PASSWORD not in said
    assert caught.value.phase == "proxy"
    return caught.value


async def test_messages_pass_the_proxy(ws_server: Server, proxy: Proxy) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url(), proxy=proxy.url()) as conn:
            for message in ("grüße", b"\x80" * 2**20):
                await conn.send(message)
                assert await conn.receive() == message


async def test_tls_passes_the_proxy(nginx: Front, authority: Authority, proxy: Proxy) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            nginx.url(), proxy=proxy.url(), ssl_context=authority.context("http/1.1")
        ) as conn:
            await conn.send_text("within two layers")
            assert await conn.receive() == "within two layers"


async def test_verification_goes_on_behind_the_proxy(nginx: Front, proxy: Proxy) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.TlsFailed) as caught:
        async with trio_nova.open_connection(nginx.url(), proxy=proxy.url()):
            raise AssertionError("it was entered")
    assert caught.value.reason == "untrusted"


@pytest.mark.parametrize("login", ["wrong", "none"])
async def test_a_login_that_is_refused_is_not_tried_again(ws_server: Server, proxy: Proxy, login: str) -> None:
    refused = await failure(ws_server.url(), proxy.url(WRONG) if login == "wrong" else proxy.anonymous)
    assert refused.retry == "never"
    assert "credentials" in str(refused)


async def test_a_port_that_the_proxy_does_not_allow_is_403(
    squid: Proxy, tinyproxy: Proxy, pick_port: Callable[[], int]
) -> None:
    for proxy in (squid, tinyproxy):
        refused = await failure(f"ws://127.0.0.1:{pick_port()}/", proxy.url())
        assert "403" in str(refused)


async def test_a_server_that_the_proxy_does_not_reach_may_be_there_later(
    microsocks: Proxy, pick_port: Callable[[], int]
) -> None:
    refused = await failure(f"ws://127.0.0.1:{pick_port()}/", microsocks.url())
    assert refused.retry == "backoff"


async def test_a_proxy_that_is_not_there_may_be_there_later(ws_server: Server, pick_port: Callable[[], int]) -> None:
    refused = await failure(ws_server.url(), f"http://alice:{PASSWORD}@127.0.0.1:{pick_port()}")
    assert refused.retry == "backoff"
