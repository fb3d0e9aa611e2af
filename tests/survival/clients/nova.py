"""trio_nova: a session, and a listener to what it tells."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import trio

import trio_nova
from tests.survival import settings
from tests.survival.program import Program
from trio_nova.events import Dropped, LinkClosed

DISTRIBUTIONS: Sequence[str] = ("trio-nova", "trio", "websockets")


async def run(url: str, tls: ssl.SSLContext | None, program: Program) -> None:
    """Stay connected, which is what a session does."""
    async with (
        trio_nova.open_connection(
            url,
            ssl_context=tls,
            connect_timeout=settings.CONNECT_TIMEOUT,
            ping_interval=settings.PING_INTERVAL,
            pong_timeout=settings.PONG_TIMEOUT,
            close_timeout=settings.CLOSE_TIMEOUT,
            backoff=trio_nova.ExponentialBackoff(base=settings.FIRST_DELAY, cap=settings.LONGEST_DELAY),
        ) as conn,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hear_notices, conn, program)
        nursery.start_soon(program.fail)
        nursery.start_soon(program.send_all, conn.send, (trio_nova.NotSent, trio_nova.OutcomeUnknown))
        async for message in conn:
            await program.take(message)


async def hear_notices(conn: trio_nova.Connection, program: Program) -> None:
    """Tell the program of each loss of a link, and of dropped messages."""
    async with conn.listen() as events:
        async for event in events:
            match event:
                case LinkClosed() | Dropped():
                    program.told(event)
