"""trio-websocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio_websocket

from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_trio import TrioContender
from tests.bench.job import Job
from tests.bench.loops import Ends, Unavailable


@attrs.define(eq=False)
class TrioWebsocket(TrioContender):
    """`open_websocket_url`, `get_message`, `send_message`; it sends no pings of itself."""

    distributions = ("trio-websocket", "wsproto", "trio")

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        if job.compressed:
            raise Unavailable("it has no compression")
        async with trio_websocket.open_websocket_url(
            job.url, ssl_context=tls_context(job), max_message_size=MAX_SIZE
        ) as ws:
            yield Ends(receive=ws.get_message, send=ws.send_message)
