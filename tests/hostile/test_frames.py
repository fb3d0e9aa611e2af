"""Breaches of the protocol by a peer that keeps the connection open, over real sockets; and the masks of our own."""

from __future__ import annotations

import itertools
import zlib

import attrs
import pytest
import trio

from trio_nova import LinkLost, open_connection
from trio_nova.links import Transport
from trio_nova.testing import Disconnected, Opcode, Peer, ScriptedServer, echo, encode_frame

BOUND = 100.0
"""Seconds, real ones at sockets, after which a test has failed."""

CLOSE_1000 = (1000).to_bytes(2, "big")

BREACHES: dict[str, tuple[bytes, int]] = {
    "F42 masked": (encode_frame(Opcode.TEXT, b"x", mask=True), 1002),
    "F42 RSV1": (encode_frame(Opcode.TEXT, b"x", rsv=4), 1002),
    "F42 RSV2": (encode_frame(Opcode.TEXT, b"x", rsv=2), 1002),
    "F42 RSV3": (encode_frame(Opcode.BINARY, b"x", rsv=1), 1002),
    "F42 opcode 3": (encode_frame(3), 1002),
    "F42 opcode 15": (encode_frame(15), 1002),
    "F43 long ping": (encode_frame(Opcode.PING, bytes(126)), 1002),
    "F43 fragmented pong": (encode_frame(Opcode.PONG, b"x", fin=False), 1002),
    "F43 continuation of nothing": (encode_frame(Opcode.CONTINUATION, b"x"), 1002),
    "F43 a message in a message": (encode_frame(Opcode.TEXT, b"x", fin=False) * 2, 1002),
    "F44 2^63": (b"\x82\x7f" + (2**63).to_bytes(8, "big"), 1002),
    "F44 2^62": (b"\x82\x7f" + (2**62).to_bytes(8, "big"), 1009),
    "F44 2 GiB": (b"\x82\x7f" + (2**31).to_bytes(8, "big") + b"and nothing more", 1009),
    "F45 16 bits for 1": (b"\x82\x7e\x00\x01x", 1002),
    "F45 64 bits for 200": (b"\x82\x7f" + (200).to_bytes(8, "big") + bytes(200), 1002),
    "F46 invalid": (encode_frame(Opcode.TEXT, b"\xff"), 1007),
    "F46 bad at its end": (encode_frame(Opcode.TEXT, b"x" * 1000 + b"\xce"), 1007),
    "F46 split and bad": (
        encode_frame(Opcode.TEXT, b"\xce", fin=False) + encode_frame(Opcode.CONTINUATION, b"\xce"),
        1007,
    ),
    "F47 one byte": (encode_frame(Opcode.CLOSE, b"\x03"), 1002),
    "F47 1006": (encode_frame(Opcode.CLOSE, (1006).to_bytes(2, "big")), 1002),
    "F47 5001": (encode_frame(Opcode.CLOSE, (5001).to_bytes(2, "big")), 1002),
    "F47 bad reason": (encode_frame(Opcode.CLOSE, CLOSE_1000 + b"\xff"), 1007),
    "F47 long reason": (encode_frame(Opcode.CLOSE, CLOSE_1000 + bytes(124)), 1002),
}


@pytest.mark.fault("F42", "F43", "F44", "F45", "F46", "F47", where="socket")
@pytest.mark.parametrize("breach", BREACHES)
async def test_a_breach_is_told_to_the_peer_and_ends_the_link_though_the_peer_stays(
    transport: Transport, breach: str
) -> None:
    wire, code = BREACHES[breach]
    hung_up = trio.Event()

    async def act(peer: Peer) -> None:
        await peer.accept()
        await peer.send_raw(encode_frame(Opcode.TEXT, b"good") + wire + encode_frame(Opcode.TEXT, b"never"))
        try:
            while True:  # answers nothing, closes nothing
                await peer.receive()
        except Disconnected:
            hung_up.set()

    received: list[object] = []
    server = ScriptedServer(act)
    with trio.fail_after(BOUND):
        async with server.listen() as listening:
            with pytest.raises(LinkLost) as caught:
                async with open_connection(
                    listening.url, transport=transport, max_attempts=0, close_timeout=600, ping_interval=600
                ) as conn:
                    async for message in conn:
                        received.append(message)
            await hung_up.wait()
    (goodbye,) = server.dials[0].frames
    assert getattr(goodbye, "code", None) == code
    assert received == ["good"]
    assert (caught.value.code, caught.value.remote) == (code, False)


@pytest.mark.fault("F48", where="socket")
@pytest.mark.parametrize(
    "more",
    [
        encode_frame(Opcode.TEXT, b"never"),
        encode_frame(Opcode.PING, b"!"),
        encode_frame(Opcode.CLOSE, (1001).to_bytes(2, "big")),
        b"\xff\xff\xff",
    ],
    ids=["data", "ping", "second close", "junk"],
)
async def test_what_follows_a_close_frame_is_never_seen(transport: Transport, more: bytes) -> None:
    async def act(peer: Peer) -> None:
        await peer.accept()
        await peer.send_raw(
            encode_frame(Opcode.TEXT, b"good") + encode_frame(Opcode.CLOSE, (4001).to_bytes(2, "big") + b"bye") + more
        )
        await peer.mute()

    received: list[object] = []
    server = ScriptedServer(act)
    with trio.fail_after(BOUND):
        async with server.listen() as listening:
            with pytest.raises(LinkLost) as caught:
                async with open_connection(
                    listening.url, transport=transport, max_attempts=0, close_timeout=600
                ) as conn:
                    async for message in conn:
                        received.append(message)
            await server.dials[0].wait_ended()
    assert received == ["good"]
    assert (caught.value.code, caught.value.reason, caught.value.remote) == (4001, "bye", True)
    assert [getattr(frame, "code", frame) for frame in server.dials[0].frames] == [4001]


@pytest.mark.fault("F53", where="memory")
async def test_a_bomb_that_nobody_offered_to_inflate_is_a_breach(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    squeezed = zlib.compressobj(9, wbits=-15)
    bomb = squeezed.compress(bytes(64 * 2**20)) + squeezed.flush(zlib.Z_SYNC_FLUSH)

    async def act(peer: Peer) -> None:
        await peer.accept()
        await peer.send_frame(Opcode.BINARY, bomb[:-4], rsv=4)
        await peer.expect_close(1002)

    async with ScriptedServer(act) as server:
        with trio.fail_after(60), pytest.raises(LinkLost) as caught:
            async with open_connection(
                "ws://server.test/", transport=transport, stream_factory=server.stream_factory, max_attempts=0
            ) as conn:
                await conn.receive()
        await server.dials[0].wait_ended()
    assert caught.value.code == 1002


@attrs.frozen
class Tap(trio.abc.SendStream):
    """Notes what is sent through it."""

    stream: trio.abc.SendStream
    heard: bytearray

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.heard.extend(data)
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.fault("F59", where="memory")
async def test_every_frame_has_a_fresh_mask_and_shows_nothing_of_what_it_holds(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    smuggled = "GET /admin HTTP/1.1\r\nHost: inner.test\r\n\r\n"
    wire = bytearray()

    async with ScriptedServer(echo) as server:

        async def tap(host: str, port: int) -> trio.abc.Stream:
            stream = await server.stream_factory(host, port)
            return trio.StapledStream(Tap(stream, wire), stream)

        with trio.fail_after(3600):
            async with open_connection("ws://server.test/", transport=transport, stream_factory=tap) as conn:
                for _ in range(2_500):
                    await conn.send_text(smuggled)
                    await conn.send_bytes(b"")
                    assert await conn.receive() == smuggled
                    assert await conn.receive() == b""
        masks = [received.mask for received in server.dials[0].journal]
    assert len(masks) > 5_000
    # Of 5,000 draws from 2^32 three pairs of equal ones are not to be expected in a thousand lives.
    assert len(set(masks)) >= len(masks) - 2
    assert all(len(set(position)) == 256 for position in zip(*masks, strict=True))
    assert smuggled.encode() not in wire
    assert not [pair for pair in itertools.pairwise(masks) if pair[0] == pair[1]]
