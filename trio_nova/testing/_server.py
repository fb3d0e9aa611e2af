"""A WebSocket server that follows a script for each dial, in memory and on loopback."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import NoReturn, Self, TypeAlias

import attrs
import trio

from trio_nova.testing._memory import MemoryStream, memory_streams
from trio_nova.testing._peer import Dialled, Disconnected, Peer, Transport
from trio_nova.testing._tls import client_context, server_context

__all__ = ["HangDial", "HangTls", "Listening", "Refuse", "Script", "ScriptedServer", "Step"]

LOOPBACK = "127.0.0.1"


@attrs.frozen
class Refuse:
    """Refuse the dial: `stream_factory` raises OSError with `errno`; on loopback the connection is reset at once."""

    errno: int = errno.ECONNREFUSED


@attrs.frozen
class HangDial:
    """Leave the dial hanging: `stream_factory` never returns. On loopback, where the kernel answers, as `HangTls`."""


@attrs.frozen
class HangTls:
    """Take the connection and leave it at that: with TLS the client waits for the server's hello."""


Script: TypeAlias = Callable[[Peer], Awaitable[object]]
"""What the server does with one connection."""

Step: TypeAlias = Script | Refuse | HangDial | HangTls
"""What becomes of one dial."""


@attrs.frozen
class Listening:
    """Where a server listens."""

    port: int
    secure: bool

    @property
    def url(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{LOOPBACK}:{self.port}/"

    @property
    def client_ssl_context(self) -> ssl.SSLContext:
        """A context that trusts this server, and nobody else."""
        return client_context()


class ScriptedServer:
    """A server that speaks WebSocket and does to each dial what its step says.

    The first dial gets the first step, the second the second; later ones get `then`, which by default
    refuses them. In memory, for virtual time::

        async with ScriptedServer(script) as server:
            stream = await server.stream_factory("server.test", 80)

    and on loopback, where the block above is not needed::

        async with ScriptedServer(script).listen() as listening:
            stream = await trio.open_tcp_stream("127.0.0.1", listening.port)

    When a script returns, its connection is closed with 1000 unless it has ended already; where the
    script had not accepted, it is dropped. When a script raises, an assertion for example, the error
    leaves the server's block; only `Disconnected` does not. Leaving the block cancels the scripts that
    are still under way: `Dialled.wait_ended` waits for one to play to its end.

    Args:
        steps: one for each dial.
        then: for every dial after them.
        tls: whether dials in memory speak TLS; `client_ssl_context` trusts the server.
        max_buffer: bytes under way in each direction of a stream in memory.
        slice_size: bytes that one read of a stream in memory returns at most.
        max_dials: how many dials are too many: an endless retry would make virtual time run for ever.
    """

    def __init__(
        self,
        *steps: Step,
        then: Step | None = None,
        tls: bool = False,
        max_buffer: int = 65_536,
        slice_size: int | None = None,
        max_dials: int = 1_000,
    ) -> None:
        self.dials: list[Dialled] = []
        """Every dial so far, oldest first."""
        self._steps = steps
        self._then = Refuse() if then is None else then
        self._tls = tls
        self._max_buffer = max_buffer
        self._slice_size = slice_size
        self._max_dials = max_dials
        self._dialled = trio.lowlevel.ParkingLot()
        self._block: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        if self._block is not None:
            raise RuntimeError("this server is running already")
        self._block = _open_stage()
        self._nursery = await self._block.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        block, self._block, self._nursery = self._block, None, None
        return await block.__aexit__(kind, exc, traceback)

    @property
    def client_ssl_context(self) -> ssl.SSLContext:
        """A context that trusts this server, and nobody else."""
        return client_context()

    async def stream_factory(self, host: str, port: int) -> MemoryStream:
        """Dial the server in memory, under any name, and return the client's end.

        Cancelling this leaves nothing but the record of the dial.

        Raises:
            OSError: as the step of this dial says.
        """
        if self._nursery is None:
            raise RuntimeError("the server is not running: dial it within `async with`")
        await trio.lowlevel.checkpoint()
        if len(self.dials) >= self._max_dials:
            # Raised in a task of the server's, where no client can take it for one more failure to retry after.
            self._nursery.start_soon(self._protest)
            await trio.sleep_forever()
        dialled, step = self._next(host, port)
        if isinstance(step, Refuse):
            dialled.end("refused")
            dialled.end_script()
            raise OSError(step.errno, os.strerror(step.errno))
        if isinstance(step, HangDial):
            await _hold(dialled)
        client, server = memory_streams(self._max_buffer, self._slice_size)
        self._start(step, dialled, server, host)
        return client

    def serve_stream(self, stream: Transport, host: str, port: int) -> Dialled:
        """Play the next step on the server's end of a stream that somebody else has made; return the record of it."""
        dialled, step = self._next(host, port)
        self._start(step, dialled, stream, host)
        return dialled

    @asynccontextmanager
    async def listen(
        self, *, tls: bool = False, port: int = 0, receive_buffer: int | None = None
    ) -> AsyncGenerator[Listening, None]:
        """Listen on 127.0.0.1 for as long as the block lasts.

        Args:
            tls: whether to speak TLS, with a certificate for 127.0.0.1.
            port: 0 for any that is free; the port of an earlier block to come back at the same address.
            receive_buffer: bytes the kernel shall take before a client's writes stall; by default it takes megabytes.
        """
        context = server_context(LOOPBACK) if tls else None
        (listener,) = await trio.open_tcp_listeners(port, host=LOOPBACK)
        if receive_buffer is not None:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        bound: int = listener.socket.getsockname()[1]

        async def take(stream: trio.SocketStream) -> None:
            if len(self.dials) >= self._max_dials:
                await self._protest()
            dialled, step = self._next(LOOPBACK, bound)
            await _play(step, dialled, stream, context)

        async with _open_stage() as nursery:
            await nursery.start(partial(trio.serve_listeners, take, [listener], handler_nursery=nursery))
            yield Listening(bound, tls)

    async def wait_dialled(self, number: int) -> Dialled:
        """Wait until there have been `number` dials, and return the last of these."""
        await trio.lowlevel.checkpoint()
        while len(self.dials) < number:
            await self._dialled.park()
        return self.dials[number - 1]

    def _start(self, step: Step, dialled: Dialled, stream: Transport, host: str) -> None:
        if self._nursery is None:
            raise RuntimeError("the server is not running: dial it within `async with`")
        context = server_context(host) if self._tls else None
        self._nursery.start_soon(_play, step, dialled, stream, context, name=f"script of dial {dialled.number}")

    def _next(self, host: str, port: int) -> tuple[Dialled, Step]:
        dialled = Dialled(len(self.dials) + 1, trio.current_time(), host, port)
        self.dials.append(dialled)
        self._dialled.unpark_all()
        return dialled, self._steps[dialled.number - 1] if dialled.number <= len(self._steps) else self._then

    async def _protest(self) -> NoReturn:
        raise AssertionError(f"the client has dialled {self._max_dials} times: is this a retry without end?")


@asynccontextmanager
async def _open_stage() -> AsyncGenerator[trio.Nursery, None]:
    """Hold the tasks of scripts; leaving cancels them, and a lone error leaves as itself rather than in a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel(reason="the server's block was left")
    except BaseExceptionGroup as group:
        _, errors = group.split(trio.Cancelled)
        if errors is None or len(errors.exceptions) != 1:
            raise
        lone = errors.exceptions[0]
        context = lone.__context__
        try:
            raise lone
        finally:
            lone.__context__ = context


async def _play(step: Step, dialled: Dialled, transport: Transport, context: ssl.SSLContext | None) -> None:
    """Do to one connection what its step says, and leave nothing of it."""
    try:
        match step:
            case Refuse():
                dialled.end("refused")
                await Peer(dialled, transport, transport).reset()
            case HangDial() | HangTls():
                await trio.sleep_forever()
            case _:
                stream = transport if context is None else await _wrap(transport, context)
                dialled.peer = peer = Peer(dialled, stream, transport)
                await step(peer)
                await peer.finish()
    except Disconnected:
        dialled.end("client gone")
    except BaseExceptionGroup as group:
        # A script that has a nursery of its own wraps what would be a quiet ending.
        _, errors = group.split(Disconnected)
        if errors is not None:
            dialled.end("failed")
            raise errors from group.__cause__
    except Exception:
        dialled.end("failed")
        raise
    finally:
        dialled.end("cancelled")
        dialled.end_script()
        await trio.aclose_forcefully(transport)


async def _wrap(transport: Transport, context: ssl.SSLContext) -> trio.SSLStream[Transport]:
    # https_compatible: scripts end connections as rudely as the web does, without TLS's own goodbye.
    stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as exc:
        raise Disconnected("the client gave up the TLS handshake") from exc
    return stream


async def _hold(dialled: Dialled) -> NoReturn:
    try:
        await trio.sleep_forever()
    finally:
        dialled.end("cancelled")
        dialled.end_script()
