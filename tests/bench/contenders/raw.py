"""The limit: a Trio stream, and the bytes that would have been frames. Nothing is parsed while the clock counts."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

from tests.bench import loops
from tests.bench.contenders.base import tls_context
from tests.bench.contenders.on_trio import TrioContender
from tests.bench.frames import CLOSE, TEXT, frame
from tests.bench.job import Job, Lap
from tests.bench.loops import Ends, Unavailable, WorkWentWrong

_CHUNK = 1 << 16
_BIG_CHUNK = 1 << 18
"""For a flood of big messages, which 64 KiB at a time would slow down."""
_MASK = b"\x12\x34\x56\x78"


@attrs.define(eq=False)
class RawStream(TrioContender):
    """`trio.SocketStream`, or `trio.SSLStream`: `receive_some` and `send_all`."""

    distributions = ("trio",)

    @asynccontextmanager
    async def open(self, job: Job) -> AsyncIterator[Ends]:
        async with self._upgraded(job) as stream:
            yield Ends(receive=_no_messages, send=_Sender(stream).send)

    async def receive(self, job: Job) -> Lap:
        async with self._upgraded(job) as stream:
            return await _take_flood(stream, job)

    async def receive_batch(self, job: Job) -> Lap:
        return await self.receive(job)

    async def stalls(self, job: Job) -> Lap:
        async with self._upgraded(job) as stream:
            return await self.with_naps(lambda: _take_flood(stream, job))

    async def echo(self, job: Job) -> Lap:
        message = loops.echo_text(job.size)
        request, expected = frame(TEXT, message.encode(), mask=_MASK), frame(TEXT, message.encode())
        clock, times = time.perf_counter, []
        async with self._upgraded(job) as stream:
            watch = loops.Stopwatch()
            for _ in range(job.count):
                began = clock()
                await stream.send_all(request)
                answer = await stream.receive_some(_CHUNK)
                while len(answer) < len(expected):
                    answer += await stream.receive_some(_CHUNK)
                times.append(clock() - began)
                if answer != expected:
                    raise WorkWentWrong("the echo is not what was sent")
            lap = watch.lap(job.count, job.count * job.size, message, figures=loops.percentiles(times))
            await _Sender(stream).send(f"end {job.run}")
        return lap

    async def send(self, job: Job) -> Lap:
        message, last = (frame(TEXT, letter * job.size, mask=_MASK) for letter in (b"x", b"y"))
        async with self._upgraded(job) as stream:
            await _Sender(stream).send(f"count {job.count} {job.size} {job.run}")
            await _expect(stream, frame(TEXT, b"ready"))
            watch = loops.Stopwatch()
            for _ in range(job.count - 1):
                await stream.send_all(message)
            await stream.send_all(last)
            await _expect(stream, frame(TEXT, b"done"))
            return watch.lap(job.count, job.count * job.size, b"y" * job.size)

    async def send_from_tasks(self, job: Job) -> Lap:
        raise Unavailable("a stream is for one sender at a time")

    async def receive_json(self, job: Job) -> Lap:
        raise Unavailable("it knows no messages")

    @asynccontextmanager
    async def _upgraded(self, job: Job) -> AsyncIterator[trio.abc.Stream]:
        parts = urlsplit(job.url)
        assert parts.hostname is not None
        assert parts.port is not None
        context = tls_context(job)
        stream: trio.abc.Stream
        if context is None:
            stream = await trio.open_tcp_stream(parts.hostname, parts.port)
        else:
            stream = await trio.open_ssl_over_tcp_stream(
                parts.hostname, parts.port, ssl_context=context, https_compatible=True
            )
        async with stream:
            await stream.send_all(
                f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(_CHUNK)
            yield stream
            await stream.send_all(frame(CLOSE, (1000).to_bytes(2, "big"), mask=_MASK))
            await stream.receive_some(_CHUNK)


@attrs.frozen
class _Sender:
    """Sends texts as masked frames."""

    _stream: trio.abc.Stream

    async def send(self, text: str) -> None:
        await self._stream.send_all(frame(TEXT, text.encode(), mask=_MASK))


async def _no_messages() -> str:
    raise Unavailable("it knows no messages")


async def _expect(stream: trio.abc.Stream, expected: bytes) -> None:
    answer = b""
    while len(answer) < len(expected):
        answer += await stream.receive_some(_CHUNK)
    if answer != expected:
        raise WorkWentWrong(f"the server said {answer[:50]!r}")


async def _take_flood(stream: trio.abc.Stream, job: Job) -> Lap:
    """Count the bytes of a flood; keep the last message, and all of them where the job is to verify."""
    head = len(frame(TEXT, bytes(job.size))) - job.size
    chunk = _CHUNK if job.size < _CHUNK else _BIG_CHUNK
    left, tail, chunks = job.count * (head + job.size), b"", []
    watch = loops.Stopwatch()
    await _Sender(stream).send(f"go {job.count} {job.run}")
    while left > 0:
        data = await stream.receive_some(chunk)
        if not data:
            raise WorkWentWrong(f"the stream ended {left} bytes early")
        left -= len(data)
        if job.verify:
            chunks.append(data)
        if left < job.size:
            tail += data
        elif tail:
            tail = b""
    checksum = None
    if job.verify:
        checksum, wire = 0, b"".join(chunks)
        for at in range(head, len(wire), head + job.size):
            checksum = zlib.crc32(wire[at : at + job.size], checksum)
    count = job.count if left == 0 else 0
    return watch.lap(count, count * job.size, tail[-job.size :], checksum)
