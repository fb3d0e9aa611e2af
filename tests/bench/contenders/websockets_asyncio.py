"""The asyncio client of websockets, on asyncio's event loop and on uvloop's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import attrs
from websockets.asyncio.client import connect

from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_asyncio import AsyncioContender
from tests.bench.job import Job
from tests.bench.loops import Ends


@attrs.define(eq=False)
class WebsocketsAsyncio(AsyncioContender):
    """`connect`, `recv`, `send`, with its keepalive."""

    distributions: ClassVar[Sequence[str]] = ("websockets",)

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


@attrs.define(eq=False)
class WebsocketsUvloop(WebsocketsAsyncio):
    """The same on uvloop."""

    distributions = ("websockets", "uvloop")
    runtime = "uvloop"
