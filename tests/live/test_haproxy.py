"""Through haproxy: it ends live tunnels, closes for maintenance, and speaks HTTP/2 to whoever lets it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

import trio_nova
from trio_nova.events import LinkClosed, RetryScheduled

if TYPE_CHECKING:
    from tests.live.conftest import Authority, Server, StartServer

pytestmark = pytest.mark.live

SOON = trio_nova.ListBackoff((0.2,))

CONFIG = """
global
    stats socket {socket} level admin
    log /dev/null local0
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout tunnel 30s
frontend tls
    bind 127.0.0.1:{port} ssl crt {both} alpn h2,http/1.1
    default_backend app
backend app
    server one 127.0.0.1:{upstream}
"""


@attrs.frozen
class Balancer:
    server: Server
    admin: Path

    def url(self) -> str:
        return self.server.url(scheme="wss")

    async def order(self, command: str) -> None:
        """Give an order by the admin socket; haproxy answers only what it objects to."""
        async with await trio.open_unix_socket(self.admin) as stream:
            await stream.send_all(command.encode() + b"\n")
            answer = b"".join([part async for part in stream])
        assert answer.strip() == b"", answer


@pytest.fixture
def haproxy(
    start_own: StartServer,
    tmp_path: Path,
    ws_server: Server,
    authority: Authority,
    program: Callable[[str], str],
    pick_port: Callable[[], int],
) -> Iterator[Balancer]:
    command = program("haproxy")
    folder = Path(tempfile.mkdtemp(prefix="nova"))  # a Unix socket's path has about a hundred bytes
    admin, port = folder / "admin.sock", pick_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(socket=admin, port=port, both=authority.both, upstream=ws_server.port))
    yield Balancer(start_own((command, "-W", "-db", "-f", os.fspath(config)), port=port), admin)
    shutil.rmtree(folder)


async def test_a_tunnel_that_is_shut_down_is_replaced(haproxy: Balancer, authority: Authority) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            haproxy.url(), ssl_context=authority.context("http/1.1"), backoff=SOON
        ) as conn:
            async with conn.listen() as events:
                await conn.send_text("before")
                assert await conn.receive() == "before"
                await haproxy.order("shutdown sessions server app/one")
                async for event in events:
                    if isinstance(event, LinkClosed):
                        break
                assert isinstance(event, LinkClosed)
                assert (event.code, event.remote) == (1006, None)
                await conn.send_text("after")
                assert await conn.receive() == "after"
                assert conn.epoch == 2


async def test_maintenance_is_503_until_it_is_over(haproxy: Balancer, authority: Authority) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            haproxy.url(), ssl_context=authority.context("http/1.1"), backoff=SOON
        ) as conn:
            async with conn.listen() as events:
                await haproxy.order("set server app/one state maint")
                await haproxy.order("shutdown sessions server app/one")
                async for event in events:
                    if isinstance(event, RetryScheduled) and isinstance(event.error, trio_nova.HandshakeRejected):
                        break
                assert isinstance(event, RetryScheduled)
                assert isinstance(event.error, trio_nova.HandshakeRejected)
                assert event.error.status == 503
                await haproxy.order("set server app/one state ready")
                await conn.send_text("back")
                assert await conn.receive() == "back"


async def test_http_2_beside_http_1_is_no_trouble_for_a_context_without_alpn(
    haproxy: Balancer, authority: Authority
) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(haproxy.url(), ssl_context=authority.context()) as conn:
            await conn.send_text("one")
            assert await conn.receive() == "one"


async def test_a_context_that_lets_the_server_choose_http_2_is_told_so(haproxy: Balancer, authority: Authority) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.TlsFailed, match="'h2'"):
        async with trio_nova.open_connection(haproxy.url(), ssl_context=authority.context("h2", "http/1.1")):
            raise AssertionError("it was entered")
