"""What every client is measured doing."""

from __future__ import annotations

import abc
import importlib.metadata
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, Literal, TypeAlias

import attrs

from tests.bench import loops
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, Unavailable

OURS = "trio-nova"
TASKS = 100
"""Tasks that send at once."""
OPENING = 20
"""Connections that are opened at a time, where many are."""
MAX_SIZE = 16 * 1024 * 1024
"""Bytes of a message that every client is told to accept."""
Runtime: TypeAlias = Literal["trio", "asyncio", "uvloop"]


@attrs.define(eq=False)
class Contender(abc.ABC):
    """A client library, used as its documentation says. Each workload is a method, named in `Job.workload`."""

    distributions: ClassVar[Sequence[str]]
    """Whose versions count: the library, and what it runs on."""
    runtime: ClassVar[Runtime]

    @asynccontextmanager
    async def shared(self, job: Job) -> AsyncIterator[None]:
        """Hold what all connections of a job share, where the library's documentation says to share something."""
        yield

    @abc.abstractmethod
    def open(self, job: Job) -> AbstractAsyncContextManager[Ends]:
        """Return a block that holds one connection; raises Unavailable where the client cannot do what is asked."""

    @abc.abstractmethod
    async def send_from_tasks(self, job: Job) -> Lap:
        """Send from 100 tasks at once."""

    @abc.abstractmethod
    async def receive_json(self, job: Job) -> Lap:
        """Receive JSON; one task decodes and routes it by channel, another consumes what is routed to it."""

    @abc.abstractmethod
    async def stalls(self, job: Job) -> Lap:
        """Receive a flood, while another task sleeps 1 ms again and again, and notes how late it wakes."""

    @abc.abstractmethod
    async def idle(self, job: Job) -> Lap:
        """Open so many connections, and see what they take of memory."""

    async def receive(self, job: Job) -> Lap:
        """Receive a flood, message by message."""
        return await self._with_ends(loops.receive_each, job)

    async def receive_batch(self, job: Job) -> Lap:
        """Receive a flood in the biggest pieces that the client gives."""
        return await self._with_ends(loops.receive_batches, job)

    async def echo(self, job: Job) -> Lap:
        """Measure round trips."""
        return await self._with_ends(loops.echo, job)

    async def send(self, job: Job) -> Lap:
        """Send one message after the other."""
        return await self._with_ends(loops.send_each, job)

    async def connect(self, job: Job) -> Lap:
        """Open and close connections, one after the other."""
        watch = loops.Stopwatch()
        for _ in range(job.count):
            async with self.open(job):
                pass
        return watch.lap(job.count, 0, "")

    async def feeds(self, job: Job) -> Lap:
        """Receive JSON of many channels, each through a feed of its own."""
        raise Unavailable("it has no subscriptions")

    async def _with_ends(self, loop: Callable[[Ends, Job], Awaitable[Lap]], job: Job) -> Lap:
        async with self.open(job) as ends:
            return await loop(ends, job)


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Return the installed versions by name; our own may be a source tree.

    Raises:
        PackageNotFoundError: another one is not installed.
    """
    found = {name: importlib.metadata.version(name) for name in distributions if name != OURS}
    if OURS in distributions:
        try:
            found[OURS] = importlib.metadata.version(OURS)
        except importlib.metadata.PackageNotFoundError:
            found[OURS] = "source tree"
    return found


def tls_context(job: Job) -> ssl.SSLContext | None:
    """Return what trusts the server's certificate; None where the job is without TLS."""
    return ssl.create_default_context(cafile=job.certificate) if job.certificate else None


def resident_bytes() -> int:
    """Return what this process has in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
