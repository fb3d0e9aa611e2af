"""The Trio client of websockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
from websockets.trio.client import connect

from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_trio import TrioContender
from tests.bench.job import Job
from tests.bench.loops import Ends


@attrs.define(eq=False)
class WebsocketsTrio(TrioContender):
    """`connect`, `recv`, `send`, with its keepalive."""

    distributions = ("websockets", "trio")

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with connect(
            job.url,
            ssl=tls_context(job),
            max_size=MAX_SIZE,
            compression="deflate" if job.compressed else None,
            proxy=None,
        ) as ws:
            yield Ends(receive=ws.recv, send=ws.send)
