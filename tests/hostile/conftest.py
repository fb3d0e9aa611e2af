"""What the tests of hostile peers share: each transport in turn, and a bound on real time."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from trio_nova import TrioWebsocketTransport, WireTransport
from trio_nova.links import Transport
from trio_nova.testing import ScriptedServer

TRANSPORTS: dict[str, Transport] = {"wire": WireTransport(), "trio-websocket": TrioWebsocketTransport()}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    """Return a transport: what is promised of hostile peers is promised of each."""
    return TRANSPORTS[request.param]


def at_a_socket(server: ScriptedServer) -> Callable[[str, int], Awaitable[trio.SocketStream]]:
    """Return a `stream_factory` that reaches the server over a pair of sockets, which hold some kilobytes.

    The kernel hands over at once what is written to one, so time can still be virtual.
    """

    async def dial(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        server.serve_stream(trio.SocketStream(theirs), host, port)
        return trio.SocketStream(ours)

    return dial
