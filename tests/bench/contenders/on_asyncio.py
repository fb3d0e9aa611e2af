"""The workloads with tasks, for the clients on asyncio."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import AsyncExitStack
from typing import ClassVar

import attrs

from tests.bench import loops
from tests.bench.contenders.base import OPENING, TASKS, Contender, Runtime, resident_bytes
from tests.bench.frames import channel_name
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, JsonMessage, Unavailable


@attrs.define(eq=False)
class AsyncioContender(Contender):
    """A client on asyncio's own event loop."""

    runtime: ClassVar[Runtime] = "asyncio"

    async def send_from_tasks(self, job: Job) -> Lap:
        async with self.open(job) as ends:
            return await _send_from_tasks(ends, job)

    async def receive_json(self, job: Job) -> Lap:
        async with self.open(job) as ends:
            return await _receive_json(ends, job)

    async def stalls(self, job: Job) -> Lap:
        raise Unavailable("it does not run on Trio")

    async def idle(self, job: Job) -> Lap:
        gc.collect()
        before = resident_bytes()
        async with AsyncExitStack() as stack:
            left = job.count
            while left:
                some = min(OPENING, left)
                async with asyncio.TaskGroup() as group:
                    for _ in range(some):
                        group.create_task(self._hold(stack, job))
                left -= some
            await asyncio.sleep(0.1)
            gc.collect()
            grown = resident_bytes() - before
            return Lap(count=job.count, figures={"bytes": grown / job.count})

    async def _hold(self, stack: AsyncExitStack, job: Job) -> None:
        await stack.enter_async_context(self.open(job))


async def _send_from_tasks(ends: Ends, job: Job) -> Lap:
    send, message, last = ends.send, "x" * job.size, "y" * job.size
    await loops.begin_count(ends, job)
    share, rest = divmod(job.count - 1, TASKS)

    async def send_share(count: int) -> None:
        for _ in range(count):
            await send(message)

    watch = loops.Stopwatch()
    async with asyncio.TaskGroup() as group:
        for index in range(TASKS):
            group.create_task(send_share(share + (index < rest)))
    await send(last)
    await loops.expect(ends, "done")
    return watch.lap(job.count, job.count * job.size, last)


async def _receive_json(ends: Ends, job: Job) -> Lap:
    channel = channel_name(0)
    await ends.send(json.dumps({"type": "subscribe", "channel": channel}))
    await ends.receive()
    queue: asyncio.Queue[JsonMessage] = asyncio.Queue(1024)
    routes = {channel: queue}

    async def route() -> None:
        receive = ends.receive
        for _ in range(job.count):
            message = json.loads(await receive())
            await routes[message["channel"]].put(message)

    async with asyncio.TaskGroup() as group:
        watch = loops.Stopwatch()
        await ends.send(f"go {job.count} {job.run}")
        group.create_task(route())
        return await loops.take_json(queue.get, job, watch)
