"""Links over real sockets: what only a kernel does."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_nova.errors import LinkLost
from trio_nova.links import Dial, Link, SystemResolver, TrioWebsocketTransport
from trio_nova.messages import Frame
from trio_nova.urls import Url

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@asynccontextmanager
async def linked(serve: Callable[[trio.SocketStream], Awaitable[object]], close_timeout: float) -> AsyncIterator[Link]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def accept() -> None:
        async with await listener.accept() as stream:
            request = bytes(await stream.receive_some(4096))
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
            assert key is not None
            token = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
            head = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n"
            await stream.send_all(head % token)
            await serve(stream)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        dial = Dial(
            url=Url.parse(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/"),
            epoch=1,
            resolver=SystemResolver(),
            max_message_size=2**20,
            close_timeout=close_timeout,
        )
        with trio.fail_after(100):
            async with TrioWebsocketTransport().open(dial) as link:
                yield link
        nursery.cancel_scope.cancel()


@pytest.mark.fault("F68", where="socket")
async def test_what_arrived_before_a_reset_is_received() -> None:
    received = trio.Event()

    async def reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x81\x03one\x81\x05tw")
        await received.wait()
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))

    frames: list[Frame] = []
    lost: LinkLost | None = None
    async with linked(reset, close_timeout=1) as link:
        while lost is None:
            try:
                frames += await link.receive_some()
                received.set()
            except LinkLost as exc:
                lost = exc
    assert frames == ["one"]
    assert (lost.code, lost.remote) == (1006, None)
    assert "broke inside a message" in lost.detail


@pytest.mark.fault("F77", where="socket")
async def test_a_write_to_a_peer_that_does_not_read_is_seen_to_stall_and_freed_by_aclose() -> None:
    lost: list[LinkLost] = []

    async def hold(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with linked(hold, close_timeout=0.05) as link, trio.open_nursery() as nursery:

        async def write() -> None:
            try:
                await link.send_all([bytes(50_000_000)])
            except LinkLost as exc:
                lost.append(exc)

        nursery.start_soon(write)
        while link.stalled_since is None:
            await trio.lowlevel.checkpoint()
        await link.aclose(1001, "leaving")
    assert [(exc.code, exc.remote) for exc in lost] == [(1001, False)]
