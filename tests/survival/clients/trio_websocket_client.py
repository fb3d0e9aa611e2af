"""trio-websocket, in the reconnecting loop that its users write, with the heartbeat of its documentation."""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from typing import NoReturn

import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, open_websocket_url

from tests.survival import settings
from tests.survival.program import Program

DISTRIBUTIONS: Sequence[str] = ("trio-websocket", "wsproto", "trio")


async def run(url: str, tls: ssl.SSLContext | None, program: Program) -> None:
    """Stay connected: after each loss wait for a random time, which grows until messages flow again."""
    failures = 0
    while True:
        try:
            async with open_websocket_url(
                url,
                tls,
                connect_timeout=settings.CONNECT_TIMEOUT,
                disconnect_timeout=settings.CLOSE_TIMEOUT,
            ) as ws:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(heartbeat, ws, settings.PONG_TIMEOUT, settings.PING_INTERVAL)
                    nursery.start_soon(program.fail)
                    nursery.start_soon(program.send_all, ws.send_message)
                    while True:
                        await program.take(await ws.get_message())
                        failures = 0
        except* (HandshakeError, ConnectionClosed, trio.TooSlowError) as group:
            program.told(group.exceptions[0])
        await trio.sleep(random.uniform(0, min(settings.LONGEST_DELAY, settings.FIRST_DELAY * 2**failures)))
        failures += 1


async def heartbeat(ws: WebSocketConnection, timeout: float, interval: float) -> NoReturn:  # noqa: ASYNC109
    """Send periodic pings: the recipe of trio-websocket's documentation."""
    while True:
        with trio.fail_after(timeout):
            await ws.ping()
        await trio.sleep(interval)
