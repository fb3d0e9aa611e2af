"""An HTTP client that runs on Trio brings snapshots: the one of the page on order books, which `http` installs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_nova import Adapter, Channel, Data, JsonCodec, ListBackoff, Reading, Step, Tracker, open_connection
from trio_nova.testing import GenericVenue

httpx2 = pytest.importorskip("httpx2", reason="it is installed by the extra `http`")

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "keep-an-order-book.md"


@attrs.define(eq=False, kw_only=True, slots=False)
class Books(Adapter):
    """Numbered changes of books, whose snapshots are asked for by HTTP."""

    host: str = "venue.test"
    secure: bool = False
    fetch: Callable[[str], Awaitable[Any]]

    def defaults(self) -> dict[str, Any]:
        return {"codec": JsonCodec(), "backoff": ListBackoff([0.01])}

    def read(self, message: Any) -> Reading | None:
        return Data(message["channel"], message["seq"], message["seq"]) if "seq" in message else None

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)

    async def snapshot(self, channel: Channel) -> Data:
        book = await self.fetch(f"/depth?market={channel.name}")
        return Data(channel.key, book, Step(book["last"], snapshot=True))


@attrs.define(eq=False)
class HttpServer:
    """Answers each request on loopback with the next of its answers; None: with nothing, for ever."""

    answers: Sequence[tuple[int, Any] | None]
    asked: list[str] = attrs.field(factory=list, init=False)
    """The first line of each request."""
    left: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the client has hung up on a request that was not answered."""

    async def serve(self, stream: trio.SocketStream) -> None:
        request = b""
        async for part in stream:
            request += part
            if not request.endswith(b"\r\n\r\n"):
                continue
            self.asked.append(request.partition(b"\r\n")[0].decode())
            request = b""
            answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
            if answer is None:
                assert await stream.receive_some() == b""
                self.left.set()
                return
            status, body = answer[0], json.dumps(answer[1]).encode()
            fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            await stream.send_all(f"HTTP/1.1 {status} As It Is\r\n{fields}\r\n".encode() + body)


def from_page() -> dict[str, Any]:
    """Return what the page's program defines."""
    (text,) = (block for block in PAGE.read_text("utf-8").split("```") if block.startswith("py\n"))
    defined: dict[str, Any] = {}
    exec(compile(text.removeprefix("py\n"), str(PAGE), "exec"), defined)
    return defined


async def started(nursery: trio.Nursery, server: HttpServer) -> str:
    """Let the server listen, and return its address."""
    listeners: list[trio.SocketListener] = await nursery.start(
        partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
    )
    return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def test_a_book_is_joined_to_a_snapshot_that_is_asked_for_by_http_until_it_is_had() -> None:
    server = HttpServer([(503, {}), (200, {"last": 2})])
    with trio.fail_after(30):
        async with GenericVenue() as venue, trio.open_nursery() as nursery:
            api = await started(nursery, server)
            async with httpx2.AsyncClient(base_url=api) as http:
                adapter = Books(fetch=partial(from_page()["ask"], http))
                async with open_connection(adapter, stream_factory=venue.stream_factory) as conn:
                    venue.skip("BTC")
                    venue.skip("BTC")
                    async with conn.subscribe("BTC") as feed:
                        venue.publish("BTC")
                        assert [await feed.receive(), await feed.receive()] == [{"last": 2}, 3]
            nursery.cancel_scope.cancel()
    assert server.asked == ["GET /depth?market=BTC HTTP/1.1"] * 2


async def test_a_request_is_cancelled_with_the_link() -> None:
    server = HttpServer([None, (200, {"last": 0})])
    with trio.fail_after(30):
        async with GenericVenue() as venue, trio.open_nursery() as nursery:
            api = await started(nursery, server)
            async with httpx2.AsyncClient(base_url=api) as http:
                adapter = Books(fetch=partial(from_page()["ask"], http))
                async with open_connection(adapter, stream_factory=venue.stream_factory) as conn:
                    async with conn.subscribe("BTC") as feed:
                        while not server.asked:
                            await trio.lowlevel.checkpoint()
                        venue.drop()
                        await server.left.wait()
                        assert await feed.receive() == {"last": 0}
                        assert conn.epoch == 2
            nursery.cancel_scope.cancel()


async def test_the_program_of_the_page_prints_what_comes(capsys: pytest.CaptureFixture[str]) -> None:
    server, venue = HttpServer([(200, {"last": 0})]), GenericVenue()
    with trio.fail_after(30):
        async with venue.listen() as there, trio.open_nursery() as nursery:
            api = await started(nursery, server)
            nursery.start_soon(from_page()["main"], Books, there.url, api)
            await venue.wait_link(1)
            await venue.wait_until(lambda: venue.subscribed() == ["BTC"])
            venue.publish("BTC")
            out = ""
            while out != "{'last': 0}\n1\n":
                await trio.lowlevel.checkpoint()
                out += capsys.readouterr().out
            nursery.cancel_scope.cancel()
