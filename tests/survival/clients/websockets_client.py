"""The Trio client of websockets, as an infinite iterator of connections, with its own back-off."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import cast

import trio
from websockets.client import backoff
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.survival import settings
from tests.survival.program import Program

DISTRIBUTIONS: Sequence[str] = ("websockets", "trio")


async def run(url: str, tls: ssl.SSLContext | None, program: Program) -> None:
    """Stay connected: `connect` dials again, at once after a connection, with back-off after a failed attempt."""
    connections = connect(
        url,
        ssl=tls,
        proxy=None,
        open_timeout=settings.CONNECT_TIMEOUT,
        ping_interval=settings.PING_INTERVAL,
        ping_timeout=settings.PONG_TIMEOUT,
        close_timeout=settings.CLOSE_TIMEOUT,
        reconnect_delays=delays,
    )
    # A cancellation that leaves the loop does not close an asynchronous generator: aclosing does.
    async with aclosing(cast("AsyncGenerator[ClientConnection, None]", aiter(connections))) as each:
        async for ws in each:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(program.fail)
                    nursery.start_soon(program.send_all, ws.send)
                    async for message in ws:
                        await program.take(message)
                    nursery.cancel_scope.cancel(reason="the connection was closed in good order")
                program.told("closed in good order")
            except* ConnectionClosed as group:
                program.told(group.exceptions[0])


def delays() -> Generator[float]:
    """Yield the delays of its default back-off, shorter."""
    for delay in backoff():
        yield delay / settings.HASTE
