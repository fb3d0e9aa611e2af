"""The process of one client: reads jobs, a line each, and prints what came of them.

`python -m tests.bench.worker NAME [CORE]`
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import sys
from collections.abc import Awaitable, Callable

import msgspec

from tests.bench.contenders.base import Contender, versions
from tests.bench.contenders.table import load
from tests.bench.job import Hello, Job, Lap, encode
from tests.bench.loops import Unavailable


def run(contender: Contender, job: Job) -> Lap:
    """Do the job in an event loop of its own."""
    try:
        if contender.runtime == "trio":
            import trio

            return trio.run(_work, contender, job)
        import asyncio

        if contender.runtime == "asyncio":
            with asyncio.Runner() as runner:
                return runner.run(_work(contender, job))
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_work(contender, job))
    except BaseException as exc:
        return _no_result(exc)


async def _work(contender: Contender, job: Job) -> Lap:
    workload: Callable[[Job], Awaitable[Lap]] = getattr(contender, job.workload)
    async with contender.shared(job):
        return await workload(job)


def _no_result(exc: BaseException) -> Lap:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, Unavailable):
        return Lap(failure=str(exc), unavailable=True)
    return Lap(failure=f"{type(exc).__name__}: {exc}"[:300])


def main() -> None:
    """Say hello, then work until the input ends."""
    name, *core = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {int(core[0])})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What a library prints must not get between the lines of the results.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        contender = load(name)
        out.write(encode(Hello(versions(contender.distributions))))
    except (ImportError, importlib.metadata.PackageNotFoundError) as exc:
        out.write(encode(Hello(failure=f"not installed: {exc}")))
        return
    for line in sys.stdin.buffer:
        out.write(encode(run(contender, msgspec.json.decode(line, type=Job))))


if __name__ == "__main__":
    main()
