"""trio_nova: with its default transport, and over trio-websocket."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import attrs
import trio

import trio_nova
from tests.bench import loops
from tests.bench.contenders.base import MAX_SIZE, tls_context
from tests.bench.contenders.on_trio import TrioContender
from tests.bench.frames import channel_name
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, JsonMessage, Unavailable

_ASKING = 50
"""Subscriptions that are asked for at a time, where there are many."""


class Routed(trio_nova.Adapter):
    """The service of these measurements: JSON, whose data name their channel and have no type."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": trio_nova.JsonCodec()}

    def read(self, message: Any) -> trio_nova.Reading | None:
        return trio_nova.Data(message["channel"], message) if "type" not in message else None


@attrs.define(eq=False)
class Nova(TrioContender):
    """trio_nova with its default transport."""

    distributions: ClassVar[Sequence[str]] = ("trio-nova", "trio", "websockets")

    def options(self, job: Job) -> dict[str, Any]:
        """Return what the session is opened with, besides what every one is; raises Unavailable like `open`."""
        return {}

    def connection(
        self, job: Job, target: trio_nova.Adapter | None = None, **more: Any
    ) -> AbstractAsyncContextManager[trio_nova.Connection]:
        """Return the block of a session."""
        return trio_nova.open_connection(
            target or job.url,
            ssl_context=tls_context(job),
            max_message_size=MAX_SIZE,
            compression="deflate" if job.compressed else None,
            **self.options(job),
            **more,
        )

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with self.connection(job) as conn:
            yield Ends(receive=conn.receive, send=conn.send_text, receive_batch=conn.receive_batch)

    async def receive_json(self, job: Job) -> Lap:
        return await self._through_feeds(attrs.evolve(job, channels=1), lambda feeds: feeds[0].receive)

    async def feeds(self, job: Job) -> Lap:
        return await self._through_feeds(job, _in_turn)

    async def _through_feeds(
        self, job: Job, receive_of: Callable[[Sequence[trio_nova.Feed]], Callable[[], Awaitable[JsonMessage]]]
    ) -> Lap:
        names = [channel_name(index) for index in range(job.channels)]
        async with self.connection(job, Routed(url=job.url)) as conn, AsyncExitStack() as stack:
            feeds: dict[str, trio_nova.Feed[JsonMessage]] = {}

            async def subscribe(some: Sequence[str]) -> None:
                for name in some:
                    feeds[name] = await stack.enter_async_context(conn.subscribe(name))

            async with trio.open_nursery() as nursery:
                for first in range(_ASKING):
                    nursery.start_soon(subscribe, names[first::_ASKING])
            watch = loops.Stopwatch()
            await conn.send_text(f"go {job.count} {job.run}")
            lap = await loops.take_json(receive_of([feeds[name] for name in names]), job, watch)
            # Or each of thousands of blocks would say its own goodbye.
            await conn.aclose()
            return lap


def _in_turn(feeds: Sequence[trio_nova.Feed]) -> Callable[[], Awaitable[JsonMessage]]:
    """Return what receives from each feed in turn, also where there is one: so that taking costs the same."""
    turns = itertools.cycle(feeds)
    return lambda: next(turns).receive()


@attrs.define(eq=False)
class NovaOverTrioWebsocket(Nova):
    """trio_nova over trio-websocket."""

    distributions = ("trio-nova", "trio", "trio-websocket")

    def options(self, job: Job) -> dict[str, Any]:
        if job.compressed:
            raise Unavailable("this transport has no compression")
        return {"transport": trio_nova.TrioWebsocketTransport()}
