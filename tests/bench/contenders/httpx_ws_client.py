"""httpx-ws, on Trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import httpx
import httpx_ws

from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_trio import TrioContender
from tests.bench.job import Job
from tests.bench.loops import Ends, Unavailable


@attrs.define(eq=False)
class HttpxWs(TrioContender):
    """One `AsyncClient`, `aconnect_ws`, `receive_text`, `send_text`, with its keepalive."""

    distributions = ("httpx-ws", "httpx", "anyio", "trio")

    _client: httpx.AsyncClient = attrs.field(init=False)

    @asynccontextmanager
    async def shared(self, job: Job) -> AsyncIterator[None]:
        # Its pool would hold a WebSocket to be one of 100 connections.
        async with httpx.AsyncClient(
            verify=tls_context(job) or False, limits=httpx.Limits(max_connections=None)
        ) as self._client:
            yield

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        if job.compressed:
            raise Unavailable("it has no compression")
        url = "http" + job.url.removeprefix("ws")
        ws: httpx_ws.AsyncWebSocketSession
        async with httpx_ws.aconnect_ws(url, self._client, max_message_size_bytes=MAX_SIZE) as ws:
            yield Ends(receive=ws.receive_text, send=ws.send_text)
