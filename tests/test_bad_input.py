"""What hostile or broken peers send: a documented error, the right close code, bounded memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio

from trio_nova import BadMessage, ErrorEvent, HandshakeInvalid, JsonCodec, LinkLost, open_connection
from trio_nova.links import Transport
from trio_nova.testing import Disconnected, Opcode, Peer, ScriptedServer, echo, encode_frame

URL = "ws://server.test/"

Hostility = Callable[[Peer], Awaitable[None]]


def frame(opcode: int, payload: bytes = b"", **lies: object) -> Hostility:
    async def send(peer: Peer) -> None:
        await peer.send_frame(opcode, payload, **lies)  # type: ignore[arg-type]

    return send


def raw(data: bytes) -> Hostility:
    async def send(peer: Peer) -> None:
        await peer.send_raw(data)

    return send


async def endless_empty_fragments(peer: Peer) -> None:
    await peer.send_frame(Opcode.TEXT, b"", fin=False)
    chunk = encode_frame(Opcode.CONTINUATION, b"", fin=False) * 1000
    while True:
        await peer.send_raw(chunk)


async def endless_one_byte_fragments(peer: Peer) -> None:
    await peer.send_frame(Opcode.BINARY, b"x", fin=False)
    chunk = encode_frame(Opcode.CONTINUATION, b"x", fin=False) * 1000
    while True:
        await peer.send_raw(chunk)


async def fragments_beyond_the_limit(peer: Peer) -> None:
    await peer.send_frame(Opcode.BINARY, b"x" * 60_000, fin=False)
    await peer.send_frame(Opcode.CONTINUATION, b"x" * 60_000, fin=True)


FRAMES: dict[str, tuple[Hostility, int]] = {
    "invalid UTF-8": (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
    "overlong UTF-8": (frame(Opcode.TEXT, b"\xc0\xaf"), 1007),
    "half a surrogate pair": (frame(Opcode.TEXT, b"\xed\xa0\x80"), 1007),
    "truncated UTF-8": (frame(Opcode.TEXT, b"\xce"), 1007),
    "a masked frame": (frame(Opcode.TEXT, b"x", mask=True), 1002),
    "a reserved bit": (frame(Opcode.TEXT, b"x", rsv=4), 1002),
    "a reserved opcode": (frame(3, b"x"), 1002),
    "a reserved control opcode": (frame(11, b"x"), 1002),
    "a fragmented ping": (frame(Opcode.PING, b"x", fin=False), 1002),
    "a long ping": (frame(Opcode.PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(Opcode.CONTINUATION, b"x"), 1002),
    "a frame of 2^62 bytes": (raw(b"\x82\x7f" + (2**62).to_bytes(8, "big")), 1009),
    "a frame of 2^63 bytes": (raw(b"\x82\x7f" + (2**63).to_bytes(8, "big")), 1002),
    "a length in too many bytes": (raw(b"\x82\x7e\x00\x01x"), 1002),
    "a lying length of 2 GiB": (raw(b"\x82\x7f" + (2**31).to_bytes(8, "big") + b"x" * 100), 1009),
    "endless empty fragments": (endless_empty_fragments, 1009),
    "endless fragments of a byte": (endless_one_byte_fragments, 1009),
    "fragments beyond the limit": (fragments_beyond_the_limit, 1009),
    "a close of one byte": (frame(Opcode.CLOSE, b"\x03"), 1002),
    "a close code that must not be sent": (frame(Opcode.CLOSE, (1005).to_bytes(2, "big")), 1002),
    "a close code that does not exist": (frame(Opcode.CLOSE, (999).to_bytes(2, "big")), 1002),
    "a close reason that is no UTF-8": (frame(Opcode.CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007),
}


@pytest.mark.fault("F42", "F43", "F44", "F45", "F46", "F47", "F50", "F51", where="memory")
@pytest.mark.parametrize("hostility", FRAMES)
async def test_a_bad_frame_gets_its_close_code_and_a_documented_error(
    autojump_clock: trio.abc.Clock, transport: Transport, hostility: str
) -> None:
    act, code = FRAMES[hostility]
    told: list[int] = []

    async def attack(peer: Peer) -> None:
        await peer.accept()
        await peer.send("good")
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                try:
                    await act(peer)
                    await peer.send("never to be delivered")
                except Disconnected:
                    pass

            nursery.start_soon(go_on)
            told.append((await peer.expect_close()).code)
            nursery.cancel_scope.cancel()

    received: list[object] = []
    async with ScriptedServer(attack) as server:
        with pytest.raises(LinkLost) as caught:
            async with open_connection(
                URL,
                transport=transport,
                stream_factory=server.stream_factory,
                max_attempts=0,
                max_message_size=100_000,
            ) as conn:
                tracemalloc.start()
                try:
                    async for message in conn:
                        received.append(message)
                finally:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
        await server.dials[0].wait_ended()
    assert told == [code]
    assert (caught.value.code, caught.value.remote) == (code, False)
    assert received == ["good"]
    assert peak < 4 * 1024 * 1024


async def test_a_bad_frame_is_survived_by_the_session(autojump_clock: trio.abc.Clock, transport: Transport) -> None:
    async def attack(peer: Peer) -> None:
        await peer.accept()
        await peer.send_frame(Opcode.TEXT, b"\xff")
        await peer.expect_close(1007)

    async with ScriptedServer(attack, echo) as server:
        async with open_connection(URL, transport=transport, stream_factory=server.stream_factory) as conn:
            while conn.epoch < 2:
                await trio.sleep(1)
            await conn.send_text("still here")
            assert await conn.receive() == "still here"


@pytest.mark.fault("F28", "F30", where="memory")
@pytest.mark.parametrize("what", ["wrong accept key", "3 MB of headers", "an endless header", "junk", "no upgrade"])
async def test_a_bad_answer_to_the_upgrade_is_told_as_such(
    autojump_clock: trio.abc.Clock, transport: Transport, what: str
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.read_request()
        try:
            match what:
                case "wrong accept key":
                    await peer.accept(key="dGhlIHNhbXBsZSBub25jZQ==")
                case "3 MB of headers":
                    await peer.send_raw(
                        b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-Pad: 0123456789abcdef\r\n" * 120_000
                    )
                case "an endless header":
                    await peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nX-Pad: ")
                    while True:
                        await peer.send_raw(b"x" * 10_000)
                case "junk":
                    await peer.send_raw(os.urandom(64).replace(b"\n", b"") + b"\r\n\r\n")
                case _:
                    await peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            await peer.hang()
        except Disconnected:
            pass

    async with ScriptedServer(answer) as server:
        started = trio.current_time()
        with pytest.raises(HandshakeInvalid) as caught:
            async with open_connection(URL, transport=transport, stream_factory=server.stream_factory):
                raise AssertionError("never entered")
        assert trio.current_time() == started
    assert (caught.value.phase, caught.value.retry) == ("http", "backoff")
    assert caught.value.rule


@pytest.mark.fault("F60", where="memory")
@pytest.mark.parametrize(
    "payload",
    ["{", "NaN", "1e999", "[" * 100_000, "9" * 5_000, "", "[1]"],
    ids=["truncated", "NaN", "infinite", "deep", "5000 digits", "empty", "another type"],
)
async def test_a_message_that_cannot_be_decoded_is_reported_and_skipped(
    autojump_clock: trio.abc.Clock, payload: str
) -> None:
    async def send(peer: Peer) -> None:
        await peer.accept()
        await peer.send('{"n": 1}', payload, '{"n": 2}')
        await peer.serve_until_closed()

    async with (
        ScriptedServer(send) as server,
        open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec(type=dict)) as conn,
        conn.listen() as events,
    ):
        assert await conn.receive() == {"n": 1}
        assert await conn.receive() == {"n": 2}
        errors = [event for event in await events.receive_batch() if isinstance(event, ErrorEvent)]
        assert [type(event.error) for event in errors] == [BadMessage]
        assert conn.epoch == 1


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
async def test_a_text_that_utf_8_cannot_say_is_refused_and_nothing_is_sent(
    autojump_clock: trio.abc.Clock, transport: Transport, text: str
) -> None:
    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, transport=transport, stream_factory=server.stream_factory) as conn,
    ):
        with pytest.raises(BadMessage):
            await conn.send_text(text)
        with pytest.raises(BadMessage):
            await conn.send(text)
        with pytest.raises(BadMessage):
            await conn.send_json({"text": text})
        await conn.send_text("still here")
        assert await conn.receive() == "still here"
        assert conn.epoch == 1
