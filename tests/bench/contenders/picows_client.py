"""picows on uvloop: by the callbacks of its own interface, and by its interface like that of websockets."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from picows.websockets import connect

from tests.bench import loops
from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_asyncio import AsyncioContender
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, Unavailable, WorkWentWrong


class _Listener(WSListener):
    """Lets a task await the next text, where it is not in the callbacks that the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: asyncio.Queue[str] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.writable.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.on_text(transport, frame.get_payload_as_utf8_text())

    def on_text(self, transport: WSTransport, text: str) -> None:
        self._texts.put_nowait(text)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def receive(self) -> str:
        return await self._texts.get()


class _Counter(_Listener):
    """Counts the texts of a flood."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.left, self.size, self.last = job.count, 0, ""
        self.checksum = 0 if job.verify else None
        self.done = asyncio.get_running_loop().create_future()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        text = frame.get_payload_as_utf8_text()
        self.size += len(text)
        if self.checksum is not None:
            self.checksum = zlib.crc32(text.encode(), self.checksum)
        self.left -= 1
        if self.left == 0:
            self.last = text
            self.done.set_result(None)


class _Echoer(_Listener):
    """Sends the text again when it comes back, as often as the job says."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.message = loops.echo_text(job.size)
        self.payload = self.message.encode()
        self.times: list[float] = []
        self.left, self.sent_at = job.count, 0.0
        self.done = asyncio.get_running_loop().create_future()

    def send(self, transport: WSTransport) -> None:
        self.sent_at = time.perf_counter()
        transport.send(WSMsgType.TEXT, self.payload)

    def on_text(self, transport: WSTransport, text: str) -> None:
        self.times.append(time.perf_counter() - self.sent_at)
        self.left -= 1
        if text != self.message:
            self.done.set_exception(WorkWentWrong("the echo is not what was sent"))
        elif self.left:
            self.send(transport)
        else:
            self.done.set_result(None)


@attrs.define(eq=False)
class Picows(AsyncioContender):
    """Its own interface: `ws_connect` with a `WSListener`, whose callbacks do the work; there is nothing to await."""

    distributions = ("picows", "uvloop")
    runtime = "uvloop"

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with _connected(job, _Listener()) as (transport, listener):

            async def send(text: str) -> None:
                transport.send(WSMsgType.TEXT, text.encode())
                if not listener.writable.is_set():
                    await listener.writable.wait()

            yield Ends(receive=listener.receive, send=send)

    async def receive(self, job: Job) -> Lap:
        async with _connected(job, _Counter(job)) as (transport, counter):
            watch = loops.Stopwatch()
            transport.send(WSMsgType.TEXT, f"go {job.count} {job.run}".encode())
            await counter.done
            return watch.lap(job.count - counter.left, counter.size, counter.last, counter.checksum)

    async def receive_batch(self, job: Job) -> Lap:
        return await self.receive(job)

    async def echo(self, job: Job) -> Lap:
        async with _connected(job, _Echoer(job)) as (transport, echoer):
            watch = loops.Stopwatch()
            echoer.send(transport)
            await echoer.done
            figures = loops.percentiles(echoer.times)
            lap = watch.lap(job.count, job.count * job.size, echoer.message, figures=figures)
            transport.send(WSMsgType.TEXT, f"end {job.run}".encode())
            return lap


@attrs.define(eq=False)
class PicowsWebsockets(AsyncioContender):
    """Its interface like that of websockets, which is awaited: `connect`, `recv`, `send`."""

    distributions = ("picows", "uvloop")
    runtime = "uvloop"

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with connect(
            job.url,
            ssl=tls_context(job),
            max_size=MAX_SIZE,
            compression="deflate" if job.compressed else None,
        ) as ws:
            yield Ends(receive=ws.recv, send=ws.send)


L = TypeVar("L", bound=_Listener)


@asynccontextmanager
async def _connected(job: Job, listener: L) -> AsyncIterator[tuple[WSTransport, L]]:
    if job.compressed:
        raise Unavailable("its own interface has no compression")
    transport, _ = await ws_connect(lambda: listener, job.url, ssl_context=tls_context(job), max_frame_size=MAX_SIZE)
    try:
        yield transport, listener
    finally:
        transport.send_close()
        await transport.wait_disconnected()
