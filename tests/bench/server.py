"""The server of the benchmarks: one process, blocking sockets, no WebSocket library.

What a client asks for by the path of its URL is framed before the clock starts, so that this process
is never what a benchmark measures. Over its standard input it is asked what it did; a client's result
counts only if both sides tell the same story.

`python -m tests.bench.server CERTIFICATE` prints its two ports and serves until its input ends.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import select
import socket
import ssl
import sys
import threading
import zlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

from tests.bench.frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Script,
    accept_key,
    frame,
    json_texts,
    masked_length,
    mixed_texts,
    parse,
    plain_texts,
)

_BLOCK = 1 << 18
"""Bytes of a script, about: enough for one write to take long, few enough to stay in the cache."""
_STDIN_GRACE = 10.0
"""Seconds in which what was asked about must have been done."""
_GOODBYE_GRACE = 0.5
"""Seconds that the goodbyes of connections may take to arrive."""


@attrs.frozen
class Request:
    """What a client wants: the path and query of its URL."""

    verb: str
    size: int
    kind: str
    channels: int
    deflate: bool
    run: str

    @classmethod
    def of(cls, target: str) -> Request:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return cls(
            parts.path.strip("/"),
            int(query.get("size", "0")),
            query.get("kind", "plain"),
            int(query.get("channels", "1")),
            query.get("deflate", "0") == "1",
            query.get("run", ""),
        )


@attrs.define(eq=False)
class Books:
    """What was done for each run, as all threads of the server write it down."""

    _done: dict[str, dict[str, int]] = attrs.field(factory=dict)
    _changed: threading.Condition = attrs.field(factory=threading.Condition)

    def enter(self, run: str, **figures: int) -> None:
        with self._changed:
            self._done[run] = figures
            self._changed.notify_all()

    def add(self, run: str, name: str) -> None:
        with self._changed:
            figures = self._done.setdefault(run, {"opened": 0, "closed": 0})
            figures[name] += 1
            self._changed.notify_all()

    def wait_for(self, run: str) -> dict[str, int]:
        with self._changed:
            self._changed.wait_for(lambda: run in self._done, _STDIN_GRACE)
            figures = self._done.get(run, {})
            # A client that does not wait for the answer to its goodbye may be quicker than we are.
            self._changed.wait_for(lambda: figures.get("opened") == figures.get("closed"), _GOODBYE_GRACE)
            return self._done.pop(run, {})


@attrs.define(eq=False)
class Scripts:
    """Floods that were framed once, by what they are made of."""

    _made: dict[tuple[int, str, int, bool], Script] = attrs.field(factory=dict)

    def get(self, request: Request) -> Script:
        key = (request.size, request.kind, request.channels, request.deflate)
        if key not in self._made:
            self._made[key] = make_script(*key)
        return self._made[key]


def make_script(size: int, kind: str, channels: int, compressed: bool) -> Script:
    """Return the flood for these wishes. A multiple of `channels` long, so that all of them have the same share."""
    count = max(2, _BLOCK // (size + 8))
    if kind == "plain":
        return Script.of(plain_texts(size, count), compressed=compressed)
    if kind == "mixed":
        return Script.of(mixed_texts(size, count), compressed=compressed)
    count = max(channels, count // channels * channels)
    return Script.of(json_texts(size, count, channels), compressed=compressed)


# --------------------------------------------------------------------------- one connection


def upgrade(sock: socket.socket, head: bytes) -> Request:
    """Answer a client's upgrade (RFC 6455 section 4.2).

    Raises:
        ValueError: it offers no compression where its URL asks for some.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    request = Request.of(first.split()[1])
    extension = ""
    if request.deflate:
        offer = headers.get("sec-websocket-extensions", "")
        if "permessage-deflate" not in offer:
            sock.sendall(b"HTTP/1.1 400 No compression offered\r\nContent-Length: 0\r\n\r\n")
            raise ValueError("no compression was offered")
        bits = re.search(r"server_max_window_bits=(\d+)", offer)
        extension = (
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            f"{'; server_max_window_bits=12' if bits else ''}\r\n"
        )
    sock.sendall(
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(headers['sec-websocket-key'])}\r\n{extension}\r\n"
        ).encode()
    )
    return request


@attrs.define(eq=False)
class Conversation:
    """One connection that works, in a thread of its own."""

    sock: socket.socket
    request: Request
    books: Books
    script: Script | None = None
    buffer: bytearray = attrs.field(factory=bytearray)

    def serve(self) -> None:
        """Do what the client says until it leaves."""
        with contextlib.suppress(OSError, EOFError), self.sock:
            if self.request.verb == "echo":
                self._echo()
            while True:
                text = self._next_text().decode()
                match text.split():
                    case ["go", count, run]:
                        self._flood(int(count), run)
                    case ["count", count, size, run]:
                        self._count(int(count), int(size), run)
                    case _:
                        self._confirm(json.loads(text))

    def _next_text(self) -> bytes:
        while True:
            received = parse(self.buffer)
            if received is None:
                self._read()
                continue
            del self.buffer[: received.end]
            if received.opcode == TEXT:
                return received.payload
            self._control(received.opcode, received.payload)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.sock.sendall(frame(PONG, payload))
        elif opcode == CLOSE:
            self.sock.sendall(frame(CLOSE, payload))
            raise EOFError

    def _read(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise EOFError
        self.buffer += data

    def _flood(self, count: int, run: str) -> None:
        assert self.script is not None
        script, (laps, rest) = self.script, divmod(count, len(self.script.texts))
        for _ in range(laps):
            self.sock.sendall(script.wire)
        if rest:
            self.sock.sendall(memoryview(script.wire)[: script.ends[rest - 1]])
        self.books.enter(run, count=count, size=script.bytes_of(count), last=script.last(count))

    def _confirm(self, message: dict[str, Any]) -> None:
        answer = {"type": "subscribed" if message["type"] == "subscribe" else "unsubscribed"}
        self.sock.sendall(frame(TEXT, json.dumps({**answer, "channel": message["channel"]}).encode()))

    def _count(self, count: int, size: int, run: str) -> None:
        """Take in so many messages of that size, tell the client, then look at what they were."""
        length = masked_length(size)
        self.sock.sendall(frame(TEXT, b"ready"))
        while len(self.buffer) < count * length:
            self._read()
        self.sock.sendall(frame(TEXT, b"done"))
        taken = bytes(self.buffer[: count * length])
        del self.buffer[: count * length]
        found, total, last, at = 0, 0, b"", 0
        while at < len(taken):
            received = parse(taken, at)
            if received is None:
                break
            at = received.end
            if received.opcode == TEXT:
                found, total, last = found + 1, total + len(received.payload), received.payload
        self.books.enter(run, count=found, size=total, last=zlib.crc32(last))

    def _echo(self) -> None:
        """Send back each text, until one says `end RUN`."""
        sock, count, size, last = self.sock, 0, 0, b""
        while True:
            data = sock.recv(1 << 18)
            if not data:
                raise EOFError
            self.buffer += data
            at = 0
            while (received := parse(self.buffer, at)) is not None:
                at, payload = received.end, received.payload
                if received.opcode != TEXT:
                    self._control(received.opcode, payload)
                elif payload.startswith(b"end "):
                    self.books.enter(payload[4:].decode(), count=count, size=size, last=zlib.crc32(last))
                    count, size = 0, 0
                else:
                    sock.sendall(frame(TEXT, payload))
                    count, size, last = count + 1, size + len(payload), payload
            del self.buffer[:at]


# --------------------------------------------------------------------------- all connections


@attrs.define(eq=False)
class Waiting:
    """A connection that has no thread: it upgrades, or is idle."""

    sock: socket.socket
    buffer: bytearray = attrs.field(factory=bytearray)
    request: Request | None = None


@attrs.define(eq=False)
class Reception:
    """Takes all plain connections in; keeps those that are idle, and gives each other one a thread."""

    listener: socket.socket
    books: Books
    scripts: Scripts
    _poll: select.epoll = attrs.field(factory=select.epoll)
    _waiting: dict[int, Waiting] = attrs.field(factory=dict)

    def serve(self) -> None:
        """Serve for ever."""
        self._poll.register(self.listener, select.EPOLLIN)
        while True:
            for fileno, _ in self._poll.poll():
                if fileno == self.listener.fileno():
                    sock, _ = self.listener.accept()
                    self._waiting[sock.fileno()] = Waiting(sock)
                    self._poll.register(sock, select.EPOLLIN)
                else:
                    self._advance(self._waiting[fileno])

    def _advance(self, one: Waiting) -> None:
        try:
            data = one.sock.recv(1 << 16)
            one.buffer += data
            if not data or not (self._upgrade(one) if one.request is None else self._attend(one)):
                self._drop(one)
        except (OSError, ValueError):
            self._drop(one)

    def _upgrade(self, one: Waiting) -> bool:
        head, end, rest = bytes(one.buffer).partition(b"\r\n\r\n")
        if not end:
            return True
        request = upgrade(one.sock, head)
        one.buffer[:] = rest
        if request.verb == "idle":
            one.request = request
            self.books.add(request.run, "opened")
            return True
        self._poll.unregister(one.sock)
        del self._waiting[one.sock.fileno()]
        one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        script = self.scripts.get(request) if request.verb == "flood" else None
        conversation = Conversation(one.sock, request, self.books, script, one.buffer)
        threading.Thread(target=conversation.serve, daemon=True).start()
        return True

    def _attend(self, one: Waiting) -> bool:
        assert one.request is not None
        while (received := parse(one.buffer)) is not None:
            del one.buffer[: received.end]
            if received.opcode == PING:
                one.sock.sendall(frame(PONG, received.payload))
            elif received.opcode == CLOSE:
                self.books.add(one.request.run, "closed")
                one.sock.sendall(frame(CLOSE, received.payload))
                return False
        return True

    def _drop(self, one: Waiting) -> None:
        self._poll.unregister(one.sock)
        del self._waiting[one.sock.fileno()]
        one.sock.close()


@attrs.define(eq=False)
class TlsReception:
    """Takes TLS connections in; each has a thread from the start."""

    listener: socket.socket
    books: Books
    scripts: Scripts
    context: ssl.SSLContext

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def _converse(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self.context.wrap_socket(sock, server_side=True)
            buffer = bytearray()
            while b"\r\n\r\n" not in buffer:
                data = tls.recv(1 << 16)
                if not data:
                    return
                buffer += data
            head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
            request = upgrade(tls, head)
            Conversation(tls, request, self.books, self.scripts.get(request), bytearray(rest)).serve()


def main() -> None:
    """Print the ports, then answer for each run named on standard input what was done for it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    books, scripts = Books(), Scripts()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[1])
    plain = socket.create_server(("127.0.0.1", 0), backlog=4096)
    tls = socket.create_server(("127.0.0.1", 0), backlog=4096)
    for reception in (Reception(plain, books, scripts), TlsReception(tls, books, scripts, context)):
        threading.Thread(target=reception.serve, daemon=True).start()
    print(json.dumps({"plain": plain.getsockname()[1], "tls": tls.getsockname()[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(books.wait_for(line.strip())), flush=True)


if __name__ == "__main__":
    main()
