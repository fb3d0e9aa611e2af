"""The WebSocket client of aiohttp."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import aiohttp
import attrs

from tests.bench import loops
from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_asyncio import AsyncioContender
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends


@attrs.define(eq=False)
class Aiohttp(AsyncioContender):
    """One `ClientSession`, `ws_connect`, `send_str`, `async for` over a flood, else `receive_str`.

    It sends no pings of itself.
    """

    distributions = ("aiohttp",)

    _session: aiohttp.ClientSession = attrs.field(init=False)

    @asynccontextmanager
    async def shared(self, job: Job) -> AsyncIterator[None]:
        # Its pool would hold a WebSocket to be one of 100 connections.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._session:
            yield

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with self._open_socket(job) as ws:
            yield Ends(receive=ws.receive_str, send=ws.send_str)

    async def receive(self, job: Job) -> Lap:
        if job.verify:
            return await super().receive(job)
        size, text, left = 0, "", job.count
        async with self._open_socket(job) as ws:
            watch = loops.Stopwatch()
            await ws.send_str(f"go {job.count} {job.run}")
            async for message in ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    text = message.data
                    size += len(text)
                    left -= 1
                    if not left:
                        break
            return watch.lap(job.count - left, size, text)

    async def receive_batch(self, job: Job) -> Lap:
        return await self.receive(job)

    @asynccontextmanager
    async def _open_socket(self, job: Job) -> AsyncIterator[aiohttp.ClientWebSocketResponse[Literal[True]]]:
        context = tls_context(job)
        async with self._session.ws_connect(
            job.url,
            ssl=True if context is None else context,
            max_msg_size=MAX_SIZE,
            compress=15 if job.compressed else 0,
        ) as ws:
            yield ws
