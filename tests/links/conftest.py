"""The other end of a link, played by hand."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_nova.links import Dial, SystemResolver
from trio_nova.urls import Url

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = False, form: int | None = None
) -> bytes:
    """Encode a server's frame, or one that no server may send; `form` forces the length form (125, 126, 127)."""
    length = len(payload)
    form = form or (125 if length < 126 else 126 if length < 65536 else 127)
    size = {125: bytes((length,)) if length < 126 else b"", 126: b"\x7e", 127: b"\x7f"}[form]
    tail = {125: b"", 126: length.to_bytes(2, "big") if length < 65536 else b"", 127: length.to_bytes(8, "big")}[form]
    mask = b"\0\0\0\0" if masked else b""
    return bytes((fin << 7 | rsv << 4 | opcode, size[0] | masked << 7)) + tail + mask + payload


@attrs.define(eq=False)
class Peer:
    """A server at the end of a memory stream."""

    stream: trio.abc.Stream
    client: trio.abc.Stream
    request: bytes = b""
    dialled: bool = False
    """The client has taken its end: it is the client's to close."""
    _buffer: bytearray = attrs.field(factory=bytearray)

    frame = staticmethod(frame)

    def dial(self, url: str = "ws://peer.test/path", **fields: Any) -> Dial:
        async def hand_out(host: str, port: int) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            self.dialled = True
            return self.client

        default: dict[str, Any] = {
            "url": Url.parse(url),
            "epoch": 1,
            "resolver": SystemResolver(),
            "max_message_size": 2**20,
            "close_timeout": 5.0,
            "stream_factory": hand_out,
        }
        return Dial(**(default | fields))

    async def read_request(self) -> bytes:
        while b"\r\n\r\n" not in self.request:
            data = await self.stream.receive_some(4096)
            assert data, "the client hung up before its request was complete"
            self.request += data
        return self.request

    @property
    def accept_token(self) -> bytes:
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", self.request)
        assert key is not None
        return base64.b64encode(hashlib.sha1(key[1] + GUID).digest())

    def response(self, *headers: bytes) -> bytes:
        return b"\r\n".join(
            (
                b"HTTP/1.1 101 Switching Protocols",
                b"Upgrade: websocket",
                b"Connection: Upgrade",
                b"Sec-WebSocket-Accept: " + self.accept_token,
                *headers,
                b"",
                b"",
            )
        )

    async def accept(self, *headers: bytes, glued: bytes = b"") -> None:
        await self.read_request()
        await self.send(self.response(*headers) + glued)

    async def answer(self, response: bytes) -> None:
        await self.read_request()
        await self.send(response)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def hang_up(self) -> None:
        await self.stream.aclose()

    async def read_frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the client's next whole frame."""
        opcode, length = (await self._exactly(2))[:2]
        assert length & 0x80, "a client's frames are masked"
        length &= 0x7F
        if length > 125:
            length = int.from_bytes(await self._exactly(2 if length == 126 else 8), "big")
        mask = await self._exactly(4)
        payload = await self._exactly(length)
        assert opcode & 0x80
        return opcode & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))

    async def read_to_the_end(self) -> bytes:
        rest = bytes(self._buffer)
        while data := await self.stream.receive_some(65536):
            rest += data
        return rest

    async def _exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken


@pytest.fixture
def peer() -> Peer:
    client, server = trio.testing.memory_stream_pair()
    return Peer(server, client)


@pytest.fixture
def unread_peer() -> Peer:
    """A peer whose stream holds nothing: a write waits until it is read."""
    client, server = trio.testing.lockstep_stream_pair()
    return Peer(server, client)
