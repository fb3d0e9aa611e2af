"""Through nginx: TLS in front of the server, its time-outs, and the answers of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

import trio_nova
from trio_nova.events import LinkClosed
from trio_nova.handlers import ConnectionHandler, ConnectionInfo
from trio_nova.messages import Action

if TYPE_CHECKING:
    from tests.live.conftest import Authority, Front

pytestmark = pytest.mark.live

SOON = trio_nova.ListBackoff((0.1,))


@attrs.define
class Headers(ConnectionHandler):
    """Keeps the headers of the last upgrade."""

    seen: dict[str, str] = attrs.field(factory=dict)

    def handle_connect(self, info: ConnectionInfo) -> Action:
        self.seen = dict(info.response_headers)
        return None


async def failure(url: str, **options: Any) -> trio_nova.ConnectFailed:
    with trio.fail_after(20), pytest.raises(trio_nova.ConnectFailed) as caught:
        async with trio_nova.open_connection(url, **options):
            raise AssertionError("it was entered")
    return caught.value


async def test_an_unknown_authority_is_refused_by_default(nginx: Front) -> None:
    refused = await failure(nginx.url(), retry_first_connect=True)
    assert isinstance(refused, trio_nova.TlsFailed)
    assert (refused.reason, refused.retry) == ("untrusted", "never")


async def test_a_certificate_for_another_name_is_refused(nginx: Front, authority: Authority) -> None:
    refused = await failure(
        f"wss://127.0.0.1:{nginx.misnamed}/echo", ssl_context=authority.context(), retry_first_connect=True
    )
    assert isinstance(refused, trio_nova.TlsFailed)
    assert (refused.reason, refused.retry) == ("hostname", "never")


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["no ALPN", "http/1.1"])
async def test_a_trusted_authority_lets_messages_through(
    nginx: Front, authority: Authority, protocols: tuple[str, ...]
) -> None:
    headers = Headers()
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            nginx.url(), ssl_context=authority.context(*protocols), connection_handler=headers
        ) as conn:
            assert headers.seen.get("x-alpn", "") == "".join(protocols)
            for message in ("grüße", b"\x80" * 2**20):
                await conn.send(message)
                assert await conn.receive() == message


DEFAULTS = """
import sys, trio, trio_nova
from trio_nova.handlers import ConnectionHandler

class Show(ConnectionHandler):
    def handle_connect(self, info):
        print(dict(info.response_headers)["x-alpn"])

async def main():
    with trio.fail_after(20):
        async with trio_nova.open_connection(sys.argv[1], connection_handler=Show) as conn:
            await conn.send_text("trusted")
            print(await conn.receive())

trio.run(main)
"""


async def test_the_default_context_trusts_what_the_system_trusts_and_asks_for_http_1(
    nginx: Front, authority: Authority
) -> None:
    # In a process of its own: the default context is built once.
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, "-c", DEFAULTS, nginx.url()],
            env={**os.environ, "SSL_CERT_FILE": os.fspath(authority.certificate)},
            capture_stdout=True,
        )
    assert done.stdout.split() == [b"http/1.1", b"trusted"]


async def test_a_context_that_lets_the_server_choose_http_2_is_told_so(nginx: Front, authority: Authority) -> None:
    refused = await failure(nginx.url(), ssl_context=authority.context("h2", "http/1.1"))
    assert isinstance(refused, trio_nova.TlsFailed)
    assert (refused.reason, refused.retry) == ("protocol", "never")
    assert "'h2'" in str(refused)


async def test_plain_text_to_the_port_of_tls_is_refused(nginx: Front) -> None:
    refused = await failure(nginx.server.url())
    assert isinstance(refused, trio_nova.HandshakeRejected)
    assert (refused.status, refused.retry) == (400, "never")


async def test_an_idle_tunnel_is_dropped_and_replaced(nginx: Front, authority: Authority) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            nginx.url("/impatient"), ssl_context=authority.context(), backoff=SOON, heartbeat="off"
        ) as conn:
            async with conn.listen() as events:
                async for event in events:
                    if isinstance(event, LinkClosed):
                        break
                assert isinstance(event, LinkClosed)
                assert (event.code, event.remote) == (1006, None)
                await conn.wait_ready()
                assert conn.epoch == 2


async def test_pings_keep_a_tunnel_that_would_be_dropped_idle(nginx: Front, authority: Authority) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            nginx.url("/impatient"), ssl_context=authority.context(), ping_interval=0.3
        ) as conn:
            await trio.sleep(2.5)
            assert conn.epoch == 1


async def test_502_and_503_are_worth_another_attempt(nginx: Front, authority: Authority) -> None:
    context = authority.context()
    nobody = await failure(nginx.url("/nobody"), ssl_context=context)
    assert isinstance(nobody, trio_nova.HandshakeRejected)
    assert (nobody.status, nobody.retry) == (502, "backoff")
    closed = await failure(nginx.url("/closed"), ssl_context=context)
    assert isinstance(closed, trio_nova.HandshakeRejected)
    assert (closed.status, closed.retry, closed.retry_after) == (503, "after", 3.0)
    assert closed.body == b"closed for today"


async def test_attempts_at_503_go_on_until_they_are_used_up(nginx: Front, authority: Authority) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.SessionOver) as caught:
        async with trio_nova.open_connection(
            nginx.url("/nobody"),
            ssl_context=authority.context(),
            retry_first_connect=True,
            max_attempts=3,
            backoff=SOON,
        ):
            raise AssertionError("it was entered")
    assert caught.value.attempts == 4
    assert isinstance(caught.value.last, trio_nova.HandshakeRejected)


async def test_a_limit_on_requests_is_429(nginx: Front, authority: Authority) -> None:
    context = authority.context()
    with trio.fail_after(20):
        async with trio_nova.open_connection(nginx.url("/narrow"), ssl_context=context) as conn:
            await conn.send_text("the first of this minute")
            assert await conn.receive() == "the first of this minute"
    refused = await failure(nginx.url("/narrow"), ssl_context=context)
    assert isinstance(refused, trio_nova.HandshakeRejected)
    assert (refused.status, refused.retry) == (429, "backoff")
