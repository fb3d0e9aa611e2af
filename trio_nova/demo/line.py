"""The exchange's end of one WebSocket: what it says, and how it fails.

The protocol is the sans-I/O one of websockets. It answers a ping whenever one comes, also between the
exchange's goodbye and the client's, and fails the link rather than raise at what a client sends.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections import deque
from contextlib import suppress

import attrs
import trio
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

__all__ = ["Line"]

_DATA = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
_LINGER = "hh" if sys.platform == "win32" else "ii"
"""C's `struct linger`: on, and for how long."""


@attrs.define(eq=False)
class Line:
    """A client that has dialled. One task reads, any may write; what is written to a client that is gone is lost."""

    _stream: trio.SocketStream
    _protocol: ServerProtocol = attrs.field(factory=ServerProtocol, init=False)
    _heard: deque[bytes] = attrs.field(factory=deque, init=False)
    """Messages that were read and not received yet: no more than one read brings."""
    _fragments: bytearray = attrs.field(factory=bytearray, init=False)
    """What has come of the next one."""
    _carries_out: bool = attrs.field(default=True, init=False)
    _listens: bool = attrs.field(default=True, init=False)
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def accept(self) -> bool:
        """Read the client's request and agree to it; return whether there is a link now."""
        if (request := await self._read_request()) is not None:
            self._protocol.send_response(self._protocol.accept(request))
            await self._flush()
        return self._protocol.state is State.OPEN

    async def refuse(self, status: int, text: str, **headers: str) -> None:
        """Read the client's request and answer with an HTTP status; `_` stands for `-` in the names of headers."""
        if await self._read_request() is not None:
            response = self._protocol.reject(status, text)
            for name, value in headers.items():
                response.headers[name.replace("_", "-")] = value
            self._protocol.send_response(response)
            await self._flush()

    async def receive(self) -> bytes | None:
        """Wait for the client's next message, answering its pings; None: the link is over.

        Nothing more is heard once the exchange has said goodbye, but for the client's own.
        """
        while not self._heard:
            if not await self._read():
                return None
            for event in self._protocol.events_received():
                if self._listens and isinstance(event, Frame) and event.opcode in _DATA:
                    self._fragments += event.data
                    if event.fin:
                        self._heard.append(bytes(self._fragments))
                        self._fragments.clear()
            await self._flush()
        return self._heard.popleft()

    async def send(self, message: bytes) -> None:
        """Send a text message."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(message)
        await self._flush()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye. Whoever reads hears the client's answer, and then that the link is over."""
        self._hang_up()
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
        await self._flush()

    # ----------------------------------------------------------------- what goes wrong

    def mute(self) -> None:
        """Carry nothing more to the client."""
        self._carries_out = False

    async def drop(self) -> None:
        """End the stream with FIN, without a goodbye, and hear nothing more."""
        self._hang_up()
        self.mute()
        async with self._writing:  # a message may be on its way
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()

    async def reset(self) -> None:
        """End the stream with RST."""
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        await trio.aclose_forcefully(self._stream)

    # ----------------------------------------------------------------- pieces

    def _hang_up(self) -> None:
        self._listens = False
        self._heard.clear()

    async def _read_request(self) -> Request | None:
        while await self._read():
            for event in self._protocol.events_received():
                if isinstance(event, Request):
                    return event
        return None

    async def _read(self) -> bool:
        """Let the protocol have what comes next; return whether more may come."""
        if self._protocol.eof_sent:  # both goodbyes are said, or the client broke the rules
            return False
        try:
            data = await self._stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if data:
            self._protocol.receive_data(data)
        return bool(data)

    async def _flush(self) -> None:
        async with self._writing:
            data = b"".join(self._protocol.data_to_send())
            if data and self._carries_out:
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.mute()
