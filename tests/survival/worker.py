"""The process of one client: runs its loop, and answers each line with a line.

`python -m tests.survival.worker NAME`. The first line holds the job; "tell" asks for the diary, "cancel" cancels
the loop, "raise" makes the program raise in it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import trio

from tests.bench.contenders.base import versions
from tests.bench.job import Hello, encode
from tests.survival.clients.table import Client, load
from tests.survival.diary import Job, Left
from tests.survival.program import Program


async def work(client: Client, out: int) -> None:
    """Do the job that the first line holds, until told to leave."""
    lines = read_lines()
    job = msgspec.json.decode(await anext(lines), type=Job)
    tls = ssl.create_default_context(cafile=job.certificate) if job.certificate else None
    program = Program(job)
    os.write(out, encode(program.diary()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program.watch_memory)
        scope, over = trio.CancelScope(), trio.Event()
        last_words: list[str] = []

        async def live() -> None:
            try:
                with scope:
                    await client.run(job.url, tls, program)
                    last_words.append("its loop ended")
            except Exception as exc:
                last_words.append(describe(exc))
            if not (scope.cancel_called or program.enough.is_set()):
                program.death = last_words[-1]
            over.set()

        nursery.start_soon(live)
        async for line in lines:
            if line == b"tell":
                os.write(out, encode(program.diary()))
                continue
            began = time.monotonic()
            if line == b"raise":
                program.enough.set()
            else:
                scope.cancel(reason="told to leave")
            await over.wait()
            os.write(out, encode(Left(seconds=time.monotonic() - began, error="".join(last_words))))
            break
        nursery.cancel_scope.cancel(reason="the work is done")


async def read_lines() -> AsyncIterator[bytes]:
    """Yield the lines of the standard input."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        buffer = b""
        async for data in stream:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield line


def describe(exc: BaseException) -> str:
    """Return type and text of an exception, out of its groups."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}".strip(": ")[:200]


def main() -> None:
    """Say hello, then work."""
    # What a library prints must not get between the lines of the results.
    out = os.dup(1)
    os.dup2(2, 1)
    logging.disable()
    try:
        client = load(sys.argv[1])
        hello = Hello(versions(client.DISTRIBUTIONS))
    except (ImportError, importlib.metadata.PackageNotFoundError) as exc:
        os.write(out, encode(Hello(failure=f"not installed: {exc}")))
        return
    os.write(out, encode(hello))
    trio.run(work, client, out)


if __name__ == "__main__":
    main()
