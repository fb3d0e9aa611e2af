"""Compression (permessage-deflate, RFC 7692): what is offered, what is accepted, and what it may cost."""

from __future__ import annotations

import functools
import os
import socket
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode as WebSocketOpcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.trio.server import ServerConnection
from websockets.trio.server import serve as serve_websockets

from tests.links.conftest import Peer
from tests.links.wire_oracle import open_protocol
from trio_nova import ConfigError, Deflate, LinkLost, TrioWebsocketTransport, WireTransport, open_connection
from trio_nova.errors import HandshakeInvalid, MessageTooBig
from trio_nova.links import Dial
from trio_nova.links._wire import WireProtocol
from trio_nova.messages import Frame, Ping
from trio_nova.testing import encode_frame, make_dial

BOUND = 20.0
"""Seconds, real ones, after which a test has failed."""
RSV1 = 4
TAIL = b"\0\0\xff\xff"
ALL_TERMS = Deflate(
    server_max_window_bits=10,
    client_max_window_bits=11,
    server_no_context_takeover=True,
    client_no_context_takeover=True,
)


def offer(terms: Deflate | None) -> str | None:
    """Return the Sec-WebSocket-Extensions of an upgrade request."""
    dial: Dial = attrs.evolve(make_dial(url="ws://peer.test/"), compression=terms)
    head = WireProtocol(dial).request().decode()
    values = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Extensions")]
    return values[0] if values else None


# --------------------------------------------------------------------------- the terms


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (None, None),
        (Deflate(), "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"),
        (
            Deflate(server_max_window_bits=15, client_max_window_bits=15),
            "permessage-deflate; client_max_window_bits=15",
        ),
        (
            ALL_TERMS,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover;"
            " server_max_window_bits=10; client_max_window_bits=11",
        ),
    ],
)
def test_what_is_offered(terms: Deflate | None, said: str | None) -> None:
    assert offer(terms) == said


@pytest.mark.parametrize(
    ("terms", "answer", "agreed"),
    [
        # (their window, ours, they forget, we forget)
        (Deflate(), "permessage-deflate; server_max_window_bits=12", (12, 12, False, False)),
        (Deflate(), "permessage-deflate; server_max_window_bits=9", (9, 12, False, False)),
        (Deflate(), "permessage-deflate; server_max_window_bits=12; client_max_window_bits=10", (12, 10, False, False)),
        (Deflate(), "permessage-deflate; server_max_window_bits=12; client_max_window_bits=15", (12, 12, False, False)),
        (Deflate(server_max_window_bits=15), "permessage-deflate", (15, 12, False, False)),
        (
            Deflate(server_max_window_bits=15),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            (15, 12, True, True),
        ),
        (
            ALL_TERMS,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10;"
            " client_max_window_bits=9",
            (10, 9, True, True),
        ),
    ],
)
def test_terms_within_the_offer_are_accepted(terms: Deflate, answer: str, agreed: tuple[Any, ...]) -> None:
    protocol = open_protocol(1_000, terms, [answer])
    (extension,) = protocol._extensions
    assert isinstance(extension, PerMessageDeflate)
    assert agreed == (
        extension.remote_max_window_bits,
        extension.local_max_window_bits,
        extension.remote_no_context_takeover,
        extension.local_no_context_takeover,
    )


@pytest.mark.parametrize(
    ("terms", "answers"),
    [
        (Deflate(), ["permessage-deflate"]),  # it may use any window, we have room for 4 KiB
        (Deflate(), ["permessage-deflate; server_max_window_bits=13"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=7"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=12; client_max_window_bits=16"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=12; server_max_window_bits=12"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=12; unheard_of"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=12, permessage-deflate; server_max_window_bits=12"]),
        (Deflate(), ["permessage-deflate; server_max_window_bits=12"] * 2),
        (Deflate(), ["permessage-bzip2"]),
        (Deflate(), ["x-webkit-deflate-frame"]),
        (Deflate(), ["permessage-deflate;;;"]),
        (Deflate(), ["\xff\xfe"]),
        (Deflate(), ["permessage-deflate; " + "x" * 2_000]),
        (ALL_TERMS, ["permessage-deflate; server_max_window_bits=10"]),
        (None, ["permessage-deflate"]),
    ],
)
def test_other_terms_are_refused(terms: Deflate | None, answers: Sequence[str]) -> None:
    with pytest.raises(HandshakeInvalid) as caught:
        open_protocol(1_000, terms, answers)
    assert caught.value.rule == "extension"


def test_a_server_that_declines_gets_plain_frames() -> None:
    protocol = open_protocol(1_000, Deflate())
    assert not protocol.compresses
    assert protocol.encode("x" * 100)[0] == 0x81
    assert protocol.feed(encode_frame(1, b"plain")) == ["plain"]


@pytest.mark.parametrize("terms", [None, Deflate()], ids=["not offered", "declined"])
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("fin", [True, False])
def test_what_is_compressed_without_agreement_is_a_breach(terms: Deflate | None, opcode: int, fin: bool) -> None:
    protocol = open_protocol(1_000, terms)
    assert protocol.feed(encode_frame(opcode, deflated(b"hello"), rsv=RSV1, fin=fin)) == []
    assert protocol.ending is not None
    assert (protocol.ending.code, protocol.ending.remote) == (1002, False)


async def test_a_transport_that_cannot_compress_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_connection(
            "ws://127.0.0.1:1/", transport=TrioWebsocketTransport(), compression="deflate", connect_timeout=1.0
        ):
            raise AssertionError("never entered")
    assert caught.value.field == "compression"


# --------------------------------------------------------------------------- messages


def deflated(payload: bytes, encoder: Any = None) -> bytes:
    encoder = encoder or zlib.compressobj(wbits=-12)
    data: bytes = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(TAIL)


def compressing(limit: int, *terms: str) -> Any:
    said = "; ".join(["permessage-deflate", "server_max_window_bits=12", *terms])
    return open_protocol(limit, Deflate(), [said])


def test_the_servers_window_goes_on_from_message_to_message() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    payload = os.urandom(1_000).hex()
    first, second = (deflated(payload.encode(), encoder) for _ in range(2))
    assert len(second) < 100 < len(first)
    for data in (first, second):
        assert protocol.feed(encode_frame(1, data, rsv=RSV1)) == [payload]


def test_our_window_goes_on_from_message_to_message_unless_it_must_not() -> None:
    payload = os.urandom(1_000).hex()
    going_on, forgetful = compressing(100_000), compressing(100_000, "client_no_context_takeover")
    assert [len(going_on.encode(payload)) < 100 for _ in range(3)] == [False, True, True]
    assert [len(forgetful.encode(payload)) < 100 for _ in range(3)] == [False] * 3


@pytest.mark.parametrize("takeover", [True, False])
def test_all_that_is_sent_is_understood(takeover: bool) -> None:
    protocol = compressing(2**20, *([] if takeover else ["client_no_context_takeover"]))
    server = ServerProtocol(state=OPEN, max_size=None)
    server.extensions = [PerMessageDeflate(not takeover, False, 12, 12)]
    messages: list[Frame] = ["", b"", "hällo ☂", Ping(b"plain"), b"\0" * 5_000, os.urandom(5_000), "same", "same"]
    server.receive_data(b"".join(map(protocol.encode, messages)))
    assert server.parser_exc is None
    events = [event for event in server.events_received() if isinstance(event, WebSocketFrame)]
    kinds: dict[int, Any] = {1: lambda data: data.decode(), 2: bytes, 9: Ping}
    assert [kinds[int(event.opcode)](bytes(event.data)) for event in events] == messages


def test_fragments_of_a_compressed_message_are_put_together_around_a_ping() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    data = deflated("☂".encode() * 500, encoder)
    first = encode_frame(1, data[:3], fin=False, rsv=RSV1)
    frames = protocol.feed(first + encode_frame(9, b"?") + encode_frame(0, b"", fin=False) + encode_frame(0, data[3:]))
    assert frames == [Ping(b"?"), "☂" * 500]
    assert protocol.feed(encode_frame(1, b"plain")) == ["plain"]
    assert protocol.feed(encode_frame(2, deflated(b"again", encoder), rsv=RSV1)) == [b"again"]


@pytest.mark.parametrize(
    "frames",
    [
        encode_frame(1, b"\xff\xff\xff", rsv=RSV1),
        encode_frame(1, deflated(b"x"), rsv=RSV1 | 2),
        encode_frame(1, deflated(b"x"), rsv=RSV1 | 1),
        encode_frame(9, deflated(b"x"), rsv=RSV1),
        encode_frame(1, deflated(b"x" * 99)[:2], rsv=RSV1, fin=False) + encode_frame(0, b"", rsv=RSV1),
    ],
    ids=["no deflate", "RSV2", "RSV3", "a ping", "a continuation"],
)
def test_what_is_wrongly_compressed_is_a_breach(frames: bytes) -> None:
    protocol = compressing(1_000)
    assert [frame for frame in protocol.feed(frames) if not isinstance(frame, Ping)] == []
    assert protocol.ending is not None
    assert protocol.ending.code == 1002


# --------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("size", [0, 1, 2_043, 2_044, 50_000, 99_935, 99_936, 99_999, 100_000])
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("stored", [False, True])
def test_a_message_within_the_limit_passes(size: int, opcode: int, stored: bool) -> None:
    encoder = zlib.compressobj(wbits=-12)
    payload = (os.urandom(size // 2 + 1).hex().encode() if stored else b"z" * size)[:size]
    (message,) = compressing(100_000).feed(encode_frame(opcode, deflated(payload, encoder), rsv=RSV1))
    assert message == (payload.decode() if opcode == 1 else payload)


@functools.cache
def bomb(size: int) -> bytes:
    return deflated(bytes(size), zlib.compressobj(9, wbits=-12))


@pytest.mark.fault("F53", where="memory")
@pytest.mark.parametrize("shape", ["one frame", "fragments", "a few bytes at a time", "one byte too many"])
def test_a_bomb_ends_at_the_limit_with_1009(shape: str) -> None:
    protocol = compressing(100_000)
    data = bomb(100_001 if shape == "one byte too many" else 30_000_000)
    if shape == "fragments":
        pieces = [data[at : at + 50] for at in range(0, len(data), 50)]
        stream = encode_frame(2, pieces[0], rsv=RSV1, fin=False)
        stream += b"".join(encode_frame(0, piece, fin=False) for piece in pieces[1:])
    else:
        stream = encode_frame(2, data, rsv=RSV1)
    step = 40 if shape == "a few bytes at a time" else len(stream)
    tracemalloc.start()
    try:
        frames: list[Frame] = []
        for at in range(0, len(stream), step):
            frames += protocol.feed(stream[at : at + step])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == []
    assert protocol.ending is not None
    assert protocol.ending.code == 1009
    assert isinstance(protocol.ending.cause, MessageTooBig)
    assert peak < 1_000_000


def test_every_message_has_the_whole_limit() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    for number in range(20):
        payload = bytes([number]) * 100_000
        assert protocol.feed(encode_frame(2, deflated(payload, encoder), rsv=RSV1)) == [payload]


# --------------------------------------------------------------------------- over sockets


async def test_a_message_that_did_not_fit_is_not_missing_from_the_window(peer: Peer) -> None:
    """What was compressed once must leave: later messages refer to it."""
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far = trio.SocketStream(theirs)
    peer = Peer(far, trio.SocketStream(ours))
    answer = b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12"
    server = ServerProtocol(state=OPEN, max_size=None)
    server.extensions = [PerMessageDeflate(False, False, 12, 12)]
    heard: list[str] = []
    sent = [f"{number}:{os.urandom(400).hex()}" for number in range(200)]

    async def read() -> None:
        while len(heard) < 2 * len(sent):
            server.receive_data(await far.receive_some(65_536))
            assert server.parser_exc is None
            for event in server.events_received():
                assert isinstance(event, WebSocketFrame)
                assert event.opcode is WebSocketOpcode.TEXT
                heard.append(bytes(event.data).decode())

    with trio.fail_after(BOUND):
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(peer.accept, answer))
            async with WireTransport().open(peer.dial(compression=Deflate())) as link:
                rest = [message for message in sent for _ in range(2)]
                unread = True
                while rest:
                    match link.send_nowait(rest[0]):
                        case "whole":
                            rest.pop(0)
                        case "begun" | "not":
                            if unread:
                                nursery.start_soon(read)
                                unread = False
                            await link.send_all([rest.pop(0)])
                if unread:
                    nursery.start_soon(read)
    assert heard == [message for message in sent for _ in range(2)]


@pytest.mark.parametrize(
    ("terms", "factory"),
    [
        (Deflate(), ServerPerMessageDeflateFactory()),
        (Deflate(server_max_window_bits=15, client_max_window_bits=15, level=1), ServerPerMessageDeflateFactory()),
        (ALL_TERMS, ServerPerMessageDeflateFactory()),
        (Deflate(), ServerPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9)),
        (
            Deflate(),
            ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True),
        ),
        (Deflate(), None),
        (None, ServerPerMessageDeflateFactory()),
    ],
    ids=["defaults", "wide", "all terms", "narrow", "forgetful", "declined", "not offered"],
)
async def test_a_server_over_loopback_echoes_what_it_was_sent(
    terms: Deflate | None, factory: ServerPerMessageDeflateFactory | None
) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    messages = ["", b"", "hällo ☂", "x" * 70_000, os.urandom(70_000), *["tick " * 20] * 50]
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            serving = functools.partial(
                serve_websockets, echo, 0, host="127.0.0.1", compression=None, extensions=[factory] if factory else None
            )
            server = await nursery.start(serving)
            port = server.listeners[0].socket.getsockname()[1]
            async with open_connection(f"ws://127.0.0.1:{port}/", compression=terms) as conn:
                for message in messages:
                    await conn.send(message)
                    assert await conn.receive() == message
            nursery.cancel_scope.cancel()


async def test_a_session_ends_a_link_that_sends_a_bomb() -> None:
    async def explode(connection: ServerConnection) -> None:
        await connection.send(bytes(2_000_000))
        await connection.wait_closed()

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(serve_websockets, explode, 0, host="127.0.0.1"))
            port = server.listeners[0].socket.getsockname()[1]
            with pytest.raises(LinkLost) as caught:
                async with open_connection(
                    f"ws://127.0.0.1:{port}/", compression="deflate", max_message_size=1_000_000, max_attempts=0
                ) as conn:
                    await conn.receive()
            nursery.cancel_scope.cancel()
    assert caught.value.code == 1009
