"""The workloads with tasks, for the clients on Trio."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import attrs
import trio
import trio.testing

from tests.bench import loops
from tests.bench.contenders.base import OPENING, TASKS, Contender, resident_bytes
from tests.bench.frames import channel_name
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, JsonMessage

_NAP = 0.001
"""Seconds that the task sleeps which notes how late it wakes."""


@attrs.define(eq=False)
class TrioContender(Contender):
    """A client on Trio."""

    runtime = "trio"

    async def send_from_tasks(self, job: Job) -> Lap:
        async with self.open(job) as ends:
            return await _send_from_tasks(ends, job)

    async def receive_json(self, job: Job) -> Lap:
        async with self.open(job) as ends:
            return await _receive_json(ends, job)

    async def stalls(self, job: Job) -> Lap:
        async with self.open(job) as ends:
            return await self.with_naps(lambda: loops.receive_each(ends, job))

    async def with_naps(self, work: Callable[[], Awaitable[Lap]]) -> Lap:
        """Do the work; its figures are how late a task wakes meanwhile that sleeps 1 ms."""
        lateness: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note_lateness, lateness)
            # The first nap begins before the work, or a short flood would be over before any.
            await trio.testing.wait_all_tasks_blocked()
            lap = await work()
            await trio.sleep(2 * _NAP)
            nursery.cancel_scope.cancel(reason="the flood is over")
        return attrs.evolve(lap, figures=loops.percentiles(lateness))

    async def idle(self, job: Job) -> Lap:
        gc.collect()
        before = resident_bytes()
        async with trio.open_nursery() as nursery:
            up, room, all_up = 0, trio.CapacityLimiter(OPENING), trio.Event()

            async def hold() -> None:
                nonlocal up
                async with AsyncExitStack() as stack:
                    async with room:
                        await stack.enter_async_context(self.open(job))
                    up += 1
                    if up == job.count:
                        all_up.set()
                    await trio.sleep_forever()

            for _ in range(job.count):
                nursery.start_soon(hold)
            await all_up.wait()
            await trio.sleep(0.1)
            gc.collect()
            grown = resident_bytes() - before
            nursery.cancel_scope.cancel(reason="measured")
        return Lap(count=up, figures={"bytes": grown / up})


async def _send_from_tasks(ends: Ends, job: Job) -> Lap:
    """Send the job's messages from 100 tasks; then a last one, and await the server's word that all have come."""
    send, message, last = ends.send, "x" * job.size, "y" * job.size
    await loops.begin_count(ends, job)
    share, rest = divmod(job.count - 1, TASKS)

    async def send_share(count: int) -> None:
        for _ in range(count):
            await send(message)

    watch = loops.Stopwatch()
    async with trio.open_nursery() as nursery:
        for index in range(TASKS):
            nursery.start_soon(send_share, share + (index < rest))
    await send(last)
    await loops.expect(ends, "done")
    return watch.lap(job.count, job.count * job.size, last)


async def _receive_json(ends: Ends, job: Job) -> Lap:
    """Subscribe, then decode and route in one task what another takes from a memory channel."""
    channel = channel_name(0)
    await ends.send(json.dumps({"type": "subscribe", "channel": channel}))
    await ends.receive()
    put, get = trio.open_memory_channel[JsonMessage](1024)
    routes = {channel: put}

    async def route() -> None:
        receive = ends.receive
        for _ in range(job.count):
            message = json.loads(await receive())
            await routes[message["channel"]].send(message)

    async with trio.open_nursery() as nursery:
        watch = loops.Stopwatch()
        await ends.send(f"go {job.count} {job.run}")
        nursery.start_soon(route)
        return await loops.take_json(get.receive, job, watch)


async def _note_lateness(lateness: list[float]) -> None:
    """Sleep 1 ms again and again, and note the seconds by which it took longer."""
    while True:
        began = time.perf_counter()
        await trio.sleep(_NAP)
        lateness.append(time.perf_counter() - began - _NAP)
