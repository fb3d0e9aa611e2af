"""The loops whose laps are timed: the same for every client that has an awaitable `receive` and `send`."""

from __future__ import annotations

import gc
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from tests.bench.job import Job, Lap

Receive = Callable[[], Awaitable[str | bytes]]
Send = Callable[[str], Awaitable[object]]
JsonMessage = dict[str, Any]


class Unavailable(Exception):
    """The client does not have what the workload needs."""


class WorkWentWrong(Exception):
    """The client did not get, or do, what it was to."""


@attrs.frozen(kw_only=True)
class Ends:
    """Both directions of an open connection, as the client's documentation says to use them."""

    receive: Receive
    send: Send
    receive_batch: Callable[[], Awaitable[Sequence[str | bytes]]] | None = None
    """All messages there are, at least one."""


@attrs.define
class Stopwatch:
    """Real time and processor time since it was made."""

    _began: float = attrs.field(init=False)
    _cpu: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # A collection that the lap before has earned is not this one's to pay.
        gc.collect()
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def lap(
        self,
        count: int,
        size: int,
        last: str | bytes,
        checksum: int | None = None,
        figures: dict[str, float] | None = None,
    ) -> Lap:
        """Return the result that ends now."""
        seconds = time.perf_counter() - self._began
        return Lap(
            seconds=seconds,
            cpu=time.process_time() - self._cpu,
            count=count,
            size=size,
            last=zlib.crc32(as_bytes(last)),
            checksum=checksum,
            figures=figures or {},
        )


def as_bytes(payload: str | bytes) -> bytes:
    """Return the payload as it was on the wire."""
    return payload.encode() if isinstance(payload, str) else payload


async def receive_each(ends: Ends, job: Job) -> Lap:
    """Ask for a flood and await its messages one by one."""
    receive, size = ends.receive, 0
    message: str | bytes = ""
    watch = Stopwatch()
    await ends.send(f"go {job.count} {job.run}")
    if job.verify:
        checksum = 0
        for _ in range(job.count):
            message = await receive()
            size += len(message)
            checksum = zlib.crc32(as_bytes(message), checksum)
        return watch.lap(job.count, size, message, checksum)
    for _ in range(job.count):
        message = await receive()
        size += len(message)
    return watch.lap(job.count, size, message)


async def receive_batches(ends: Ends, job: Job) -> Lap:
    """Ask for a flood and take all that is there, again and again; one by one where the client has no batches."""
    if ends.receive_batch is None:
        return await receive_each(ends, job)
    receive_batch, count, size, checksum = ends.receive_batch, 0, 0, 0
    batch: Sequence[str | bytes] = ()
    watch = Stopwatch()
    await ends.send(f"go {job.count} {job.run}")
    while count < job.count:
        batch = await receive_batch()
        for message in batch:
            size += len(message)
            if job.verify:
                checksum = zlib.crc32(as_bytes(message), checksum)
        count += len(batch)
    return watch.lap(count, size, batch[-1], checksum if job.verify else None)


async def take_json(receive: Callable[[], Awaitable[JsonMessage]], job: Job, watch: Stopwatch) -> Lap:
    """Await so many decoded messages. Their bytes and checksums are those of the texts that they came from."""
    size, checksum, message = 0, 0, JsonMessage()
    if job.verify:
        for _ in range(job.count):
            message = await receive()
            text = json_text(message).encode()
            size += len(text)
            checksum = zlib.crc32(text, checksum)
        return watch.lap(job.count, size, json_text(message), checksum)
    for _ in range(job.count):
        message = await receive()
    return watch.lap(job.count, job.count * len(json_text(message)), json_text(message))


def json_text(message: JsonMessage) -> str:
    """Return a message as the server wrote it."""
    return json.dumps(message, separators=(",", ":"))


async def echo(ends: Ends, job: Job) -> Lap:
    """Send a text and await it again, one after the other."""
    receive, send, clock = ends.receive, ends.send, time.perf_counter
    message = echo_text(job.size)
    times = []
    watch = Stopwatch()
    for _ in range(job.count):
        began = clock()
        await send(message)
        answer = await receive()
        times.append(clock() - began)
        if answer != message:
            raise WorkWentWrong("the echo is not what was sent")
    lap = watch.lap(job.count, job.count * job.size, message, figures=percentiles(times))
    await send(f"end {job.run}")
    return lap


async def send_each(ends: Ends, job: Job) -> Lap:
    """Send texts one after the other; the lap ends when the server says that it has them all."""
    send, message, last = ends.send, "x" * job.size, "y" * job.size
    await begin_count(ends, job)
    watch = Stopwatch()
    for _ in range(job.count - 1):
        await send(message)
    await send(last)
    await expect(ends, "done")
    return watch.lap(job.count, job.count * job.size, last)


async def begin_count(ends: Ends, job: Job) -> None:
    """Let the server get ready to count."""
    await ends.send(f"count {job.count} {job.size} {job.run}")
    await expect(ends, "ready")


async def expect(ends: Ends, word: str) -> None:
    """Await a certain word of the server's."""
    answer = await ends.receive()
    if answer != word:
        raise WorkWentWrong(f"the server said {answer!r} in place of {word!r}")


def echo_text(size: int) -> str:
    """Return the text that is sent to and fro."""
    return ("round and round and round it goes " * (size // 30 + 1))[:size]


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[min(last, int(last * 0.99 + 0.5))], "max": ordered[last]}
