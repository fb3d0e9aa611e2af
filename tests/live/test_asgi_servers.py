"""Against an application in uvicorn, with each of its WebSocket implementations, and in hypercorn."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import trio_nova
from trio_nova.events import LinkClosed

if TYPE_CHECKING:
    from tests.live.conftest import Server, StartServer

pytestmark = pytest.mark.live

SOON = trio_nova.ListBackoff((0.2,))
HYPERCORN = "hypercorn"
UVICORNS = ("websockets", "websockets-sansio", "wsproto")


@pytest.fixture(scope="module", params=[HYPERCORN, *UVICORNS])
def asgi_server(
    request: pytest.FixtureRequest,
    start_shared: StartServer,
    uvicorn_command: Sequence[str],
    pick_port: Callable[[], int],
) -> Iterator[Server]:
    port = pick_port()
    if request.param == HYPERCORN:
        pytest.importorskip("hypercorn", reason="there is no hypercorn: nox -s live installs it")
        app = os.fspath(Path(__file__).parent / "servers" / "asgi_app.py")
        command: Sequence[str] = (sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", f"{app}:app")
    else:
        # It pings twice a second, and drops who does not answer.
        patience = ("--ws-ping-interval", "0.5", "--ws-ping-timeout", "0.5")
        command = (*uvicorn_command, "--port", str(port), "--ws", request.param, *patience)
    server = start_shared(command, port=port)
    yield server
    server.stop()


async def test_messages_come_back(asgi_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(asgi_server.url()) as conn:
            for message in ("grüße", b"\0\xff", "x" * 2**20):
                await conn.send(message)
                assert await conn.receive() == message
            assert await conn.ping() > 0.0


async def test_compression_is_not_offered(asgi_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(asgi_server.url("/offer")) as conn:
            assert await conn.receive() == ""


async def test_an_application_that_does_not_accept_is_403_and_for_good(asgi_server: Server) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.HandshakeRejected) as caught:
        async with trio_nova.open_connection(asgi_server.url("/forbidden"), retry_first_connect=True):
            raise AssertionError("it was entered")
    assert (caught.value.status, caught.value.retry) == (403, "never")


async def test_a_crash_of_the_application_is_a_lost_link_and_the_session_comes_back(asgi_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(asgi_server.url("/crash"), backoff=SOON) as conn:
            async with conn.listen() as events:
                await conn.send_text("now")
                async for event in events:
                    if isinstance(event, LinkClosed):
                        break
                assert isinstance(event, LinkClosed)
                # hypercorn says so; uvicorn hangs up without a word.
                expected = (1011, True) if HYPERCORN in asgi_server.command else (1006, None)
                assert (event.code, event.remote) == expected
                await conn.wait_ready()
                assert conn.epoch == 2


async def test_its_pings_are_answered_while_we_ping_none(asgi_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(asgi_server.url(), heartbeat="off") as conn:
            await trio.sleep(2.5)
            assert conn.epoch == 1
            await conn.send_text("still here")
            assert await conn.receive() == "still here"


@pytest.mark.parametrize("implementation", UVICORNS)
async def test_a_restart_is_1012_and_the_session_comes_back(
    start_own: StartServer, uvicorn_command: Sequence[str], pick_port: Callable[[], int], implementation: str
) -> None:
    port = pick_port()
    server = start_own((*uvicorn_command, "--port", str(port), "--ws", implementation), port=port)
    with trio.fail_after(30):
        async with trio_nova.open_connection(server.url(), backoff=SOON) as conn:
            async with conn.listen() as events:
                server.signal(signal.SIGTERM)
                async for event in events:
                    if isinstance(event, LinkClosed):
                        break
                assert isinstance(event, LinkClosed)
                assert (event.code, event.remote) == (1012, True)
            await trio.to_thread.run_sync(server.stop)
            await trio.to_thread.run_sync(server.start)
            await conn.send_text("again")
            assert await conn.receive() == "again"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Make a folder whose name is short: a Unix socket's path has about a hundred bytes."""
    folder = Path(tempfile.mkdtemp(prefix="nova"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets in Python")
async def test_a_unix_socket_leads_to_the_server(
    start_own: StartServer, uvicorn_command: Sequence[str], short_folder: Path
) -> None:
    path = short_folder / "app.sock"
    start_own((*uvicorn_command, "--uds", os.fspath(path), "--ws", "websockets-sansio"), socket_path=path)
    with trio.fail_after(20):
        async with trio_nova.open_connection("ws://localhost/echo", stream_factory=trio_nova.unix_stream(path)) as conn:
            await conn.send_text("through the file system")
            assert await conn.receive() == "through the file system"


async def test_a_missing_unix_socket_is_a_failure_of_tcps_phase(short_folder: Path) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.ConnectFailed) as caught:
        async with trio_nova.open_connection(
            "ws://localhost/echo", stream_factory=trio_nova.unix_stream(short_folder / "nobody.sock")
        ):
            raise AssertionError("it was entered")
    assert (caught.value.phase, caught.value.retry) == ("tcp", "backoff")
