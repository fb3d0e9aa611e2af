"""The server's side of one connection, and the record of what happened on it."""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections import deque
from typing import Any, Literal, NoReturn, TypeAlias

import attrs
import trio

from trio_nova.errors import printable
from trio_nova.messages import Frame, Ping, Pong
from trio_nova.testing._frames import ClientFrames, ClosePayload, FromClient, ProtocolBreach, encode, encode_frame
from trio_nova.testing._memory import ResettableStream
from trio_nova.testing._upgrade import (
    MAX_HEAD,
    HeadersLike,
    Request,
    accept_key,
    format_response,
    pairs_of,
    parse_request,
)

__all__ = ["Dialled", "Disconnected", "Ending", "Peer", "Received", "echo"]

_LINGER = "hh" if sys.platform == "win32" else "ii"
"""C's `struct linger`: on, and for how long."""

Transport: TypeAlias = ResettableStream | trio.SocketStream
"""What lies under a connection, and under its TLS."""

Ending: TypeAlias = Literal["closed", "rejected", "dropped", "reset", "client gone", "refused", "cancelled", "failed"]
"""How a connection ended: by a close handshake, by an HTTP answer, by the server's FIN or RST, by the client's; because
the dial was refused, the server's block was left, or the script failed."""


class Disconnected(Exception):
    """The client hung up, or another task ended the connection. A script may let it out: that ends it quietly."""


@attrs.frozen
class Received:
    """One frame of the client."""

    at: float
    """Trio's clock, seconds, when the server read it."""
    frame: FromClient
    mask: bytes = attrs.field(repr=False)
    """The mask key of its last frame: a client draws a fresh one for each (RFC 6455 section 5.3)."""


@attrs.define(eq=False)
class Dialled:
    """One dial, and what became of it."""

    number: int
    """From 1."""
    at: float
    """Trio's clock, seconds."""
    host: str
    port: int
    peer: Peer | None = attrs.field(default=None, repr=False)
    """The connection; None where the dial was refused or left hanging."""
    request: Request | None = None
    """What the client asked for, once the script has read it."""
    journal: list[Received] = attrs.field(factory=list, repr=False)
    """All that the client sent, pings included, kept whole."""
    ended: Ending | None = None
    """None while it lasts."""
    ended_at: float | None = None
    _script_over: trio.Event = attrs.field(factory=trio.Event, repr=False)

    @property
    def frames(self) -> list[FromClient]:
        """All that the client sent, without the times."""
        return [received.frame for received in self.journal]

    async def wait_ended(self) -> None:
        """Wait until the script of this dial is over, whatever way it went."""
        await self._script_over.wait()

    def end(self, how: Ending) -> None:
        """Note how the connection ended; what ended it first stands."""
        if self.ended is None:
            self.ended, self.ended_at = how, trio.current_time()

    def end_script(self) -> None:
        """Wake who waits for the end."""
        self._script_over.set()


@attrs.define(eq=False)
class Peer:
    """The server's side of one connection: what a script plays on.

    A script reads and writes in its own order and at its own pace; nothing is read behind its back. So
    a client's pings are answered, its frames journalled and judged, when the script gets to read them.

    Every method that reads raises `ProtocolBreach` where the client breaks a rule, and `Disconnected`
    when the connection has ended. Cancelling a method that reads loses no message; cancelling one that
    writes may leave a part of a frame on the wire.
    """

    dialled: Dialled
    """The record of this connection."""
    _stream: trio.abc.Stream
    _transport: Transport
    answer_pings: bool = True
    """Whether reading answers the client's pings, and passes over them. If False, `receive` returns them."""
    _head: bytearray = attrs.field(factory=bytearray)
    """The request, as far as it has come."""
    _decoder: ClientFrames = attrs.field(factory=ClientFrames)
    _inbox: deque[FromClient] = attrs.field(factory=deque)
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    _accepted: bool = False
    _goodbye: ClosePayload | None = None
    """The client's close frame, while it is not answered."""

    # ------------------------------------------------------------------- the opening handshake

    @property
    def request(self) -> Request:
        """The client's upgrade request, as `read_request` found it."""
        if self.dialled.request is None:
            raise RuntimeError("the request has not been read yet: await read_request() or accept() first")
        return self.dialled.request

    async def read_request(self) -> Request:
        """Read the upgrade request, check it, and leave the client waiting; a second call returns it again."""
        while self.dialled.request is None:
            self._head += await self._read()
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if rest:
                raise ProtocolBreach("the client sends more before its request is answered (RFC 6455 section 4.1)")
            if len(head) > MAX_HEAD:
                raise ProtocolBreach(f"a request head of more than {MAX_HEAD} bytes")
            if end:
                self.dialled.request = parse_request(bytes(head + end))
        return self.dialled.request

    async def accept(
        self,
        headers: HeadersLike = (),
        subprotocol: str | None = None,
        *,
        key: str | None = None,
        glued: bytes = b"",
    ) -> None:
        """Read the upgrade request and agree to it.

        Args:
            headers: sent beside those of the handshake.
            subprotocol: the one chosen; need not be one that the client offered.
            key: a lie to tell as Sec-WebSocket-Accept.
            glued: bytes to send in one write with the answer, such as a first frame.
        """
        await self.read_request()
        await self.send_raw(self.upgrade_response(headers, subprotocol, key=key) + glued)
        self._accepted = True

    def upgrade_response(
        self, headers: HeadersLike = (), subprotocol: str | None = None, *, key: str | None = None
    ) -> bytes:
        """Return what `accept` would send, to be cut up or dripped."""
        right = accept_key(self.request.headers["sec-websocket-key"])
        answer = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", key or right)]
        if subprotocol is not None:
            answer.append(("Sec-WebSocket-Protocol", subprotocol))
        return format_response(101, [*answer, *pairs_of(headers)])

    async def reject(self, status: int, headers: HeadersLike = (), body: bytes = b"") -> None:
        """Read the upgrade request, answer it with another status than 101, and close the connection."""
        await self.read_request()
        frame = [("Content-Length", str(len(body))), ("Connection", "close")]
        await self.send_raw(format_response(status, [*frame, *pairs_of(headers)], body))
        await self._shut("rejected")

    # ------------------------------------------------------------------- reading

    async def receive(self) -> FromClient:
        """Wait for the client's next message or control frame and return it; fragments come as one message."""
        await trio.lowlevel.checkpoint()
        while True:
            while not self._inbox:
                await self._read_frames()
            frame = self._inbox.popleft()
            if isinstance(frame, ClosePayload):
                self._goodbye = frame
            if not (isinstance(frame, Ping) and self.answer_pings):
                return frame
            await self.send(Pong(frame.payload))

    async def receive_json(self) -> Any:
        """Wait for the client's next message and decode it from JSON."""
        message = await self._next("a message")
        assert isinstance(message, str | bytes), f"expected a message, the client sent {message!r}"
        return json.loads(message)

    async def expect(self, frame: Frame) -> None:
        """Wait for the client's next frame and assert that it equals `frame`."""
        sent = await self._next(printable(repr(frame)))
        assert sent == frame, f"expected {printable(repr(frame))}, the client sent {printable(repr(sent))}"

    async def expect_close(self, code: int | None = None) -> ClosePayload:
        """Wait for the client's next frame, assert that it is a goodbye (with `code`), answer it and close."""
        wanted = "a close frame" if code is None else f"a close frame with code {code}"
        goodbye = await self._next(wanted)
        assert isinstance(goodbye, ClosePayload), f"expected {wanted}, the client sent {printable(repr(goodbye))}"
        assert code in (None, goodbye.code), f"expected {wanted}, the client sent {goodbye}"
        await self.close(goodbye.code, goodbye.reason)
        return goodbye

    async def serve_until_closed(self) -> ClosePayload:
        """Read and discard until the client says goodbye, answer it, close, and return what it said."""
        while not isinstance(frame := await self.receive(), ClosePayload):
            pass
        await self.close(frame.code, frame.reason)
        return frame

    async def echo(self) -> ClosePayload:
        """Send each message back until the client says goodbye, answer it, close, and return what it said."""
        while not isinstance(frame := await self.receive(), ClosePayload):
            if isinstance(frame, str | bytes):
                await self.send(frame)
        await self.close(frame.code, frame.reason)
        return frame

    # ------------------------------------------------------------------- writing

    async def send(self, *frames: FromClient) -> None:
        """Send frames, all in one write."""
        await self.send_raw(b"".join(encode(frame) for frame in frames))

    async def send_json(self, value: Any) -> None:
        """Send `value` as JSON in a text message."""
        await self.send(json.dumps(value, separators=(",", ":")))

    async def send_frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        mask: bool = False,
        length: int | None = None,
    ) -> None:
        """Send one frame, however wrong: see `encode_frame`."""
        await self.send_raw(encode_frame(opcode, payload, fin=fin, rsv=rsv, mask=mask, length=length))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        async with self._writing:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise self._disconnected() from exc

    async def drip(self, data: bytes, chunk: int = 1, interval: float = 0.0) -> None:
        """Send bytes as they are, `chunk` at a time, with `interval` seconds between the chunks."""
        for start in range(0, len(data), chunk):
            if start:
                await trio.sleep(interval)
            await self.send_raw(data[start : start + chunk])

    # ------------------------------------------------------------------- silence

    async def mute(self) -> None:
        """Read and journal all that comes, answer nothing, not even a goodbye; return when the client has hung up."""
        try:
            while True:
                await (self._read() if self.dialled.request is None else self._read_frames())
                self._inbox.clear()
        except Disconnected:
            return

    async def stop_reading(self) -> NoReturn:
        """Read no more, for ever: once the buffers between are full, the client's writes stall."""
        await trio.sleep_forever()

    async def hang(self) -> NoReturn:
        """Do nothing, for ever. Before `accept`, the client is left waiting for its upgrade."""
        await trio.sleep_forever()

    # ------------------------------------------------------------------- endings

    async def close(self, code: int = 1000, reason: str = "", *, within: float = 5.0) -> ClosePayload | None:
        """Say goodbye, or answer the client's, and close the connection.

        Args:
            code: 1005 for a close frame that says nothing.
            reason: at most 123 bytes of UTF-8.
            within: seconds to wait for the client's answer; what else it sends is journalled.

        Returns:
            What the client said, before or after; None if it said nothing in time.
        """
        with trio.move_on_after(within):
            try:
                await self.send(ClosePayload(code, reason))
                while self._goodbye is None:
                    await self.receive()
            except Disconnected:
                return self._goodbye
        await self._shut("dropped" if self._goodbye is None else "closed")
        return self._goodbye

    async def drop(self) -> None:
        """Close the connection without a goodbye. What was sent before still arrives: on a socket it ends with FIN."""
        self.dialled.end("dropped")
        if isinstance(self._transport, trio.SocketStream):
            _discard_unread(self._transport)
        await trio.aclose_forcefully(self._transport)

    async def reset(self) -> None:
        """Break the connection: RST on a socket; in memory the client's next call raises BrokenResourceError."""
        self.dialled.end("reset")
        if isinstance(self._transport, ResettableStream):
            self._transport.reset()
        else:
            self._transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        await trio.aclose_forcefully(self._transport)

    async def finish(self) -> None:
        """Do what is left when a script has returned: close, or answer a close; drop what was not accepted."""
        if self.dialled.ended is not None:
            return
        if not self._accepted:
            await self.drop()
        elif self._goodbye is not None:
            await self.close(self._goodbye.code, self._goodbye.reason)
        else:
            await self.close()

    # ------------------------------------------------------------------- pieces

    async def _next(self, wanted: str) -> FromClient:
        try:
            return await self.receive()
        except Disconnected as exc:
            raise AssertionError(f"expected {wanted}, the client hung up") from exc

    async def _read_frames(self) -> None:
        data = await self._read()
        now = trio.current_time()
        for frame, mask in self._decoder.feed(data):
            self.dialled.journal.append(Received(now, frame, mask))
            self._inbox.append(frame)

    async def _read(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(65_536))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._disconnected() from exc
        if not data:
            raise self._disconnected()
        return data

    async def _shut(self, how: Ending) -> None:
        self.dialled.end(how)
        if isinstance(self._transport, trio.SocketStream):
            _discard_unread(self._transport)
        # Bounded, as TLS has something to say before it closes, and the client may not be reading.
        with trio.move_on_after(1.0):
            await self._stream.aclose()

    def _disconnected(self) -> Disconnected:
        self.dialled.end("client gone")
        return Disconnected(f"the connection has ended: {self.dialled.ended}")


async def echo(peer: Peer) -> None:
    """Accept, and send every message back: the smallest useful script."""
    await peer.accept()
    await peer.echo()


def _discard_unread(stream: trio.SocketStream) -> None:
    """Empty the socket's receive buffer: to close with bytes unread sends RST in place of FIN."""
    if (number := stream.socket.fileno()) < 0:
        return
    borrowed = socket.socket(fileno=number)  # Trio's sockets cannot be read without a chance to be cancelled
    try:
        for _ in range(256):  # bounded: a client may send faster than this discards
            if not borrowed.recv(65_536):
                break
    except OSError:
        pass
    finally:
        borrowed.detach()
