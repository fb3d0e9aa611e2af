"""Codecs of n messages for m frames on a link: what is kept goes with it, and what is bad is told and loses nothing."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import ErrorEvent, JsonCodec, LinkLost, ListBackoff, open_connection
from trio_nova.codecs import LengthPrefixed, Lines, StreamBroken, ZlibStream
from trio_nova.links import Transport
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"


def connect(server: ScriptedServer, transport: Transport, codec: Any, **options: Any) -> Any:
    return open_connection(
        URL,
        stream_factory=server.stream_factory,
        transport=transport,
        codec=codec,
        backoff=ListBackoff([0.0]),
        min_uptime=0.0,
        **options,
    )


async def soon(awaitable: Any) -> Any:
    with trio.fail_after(10.0):
        return await awaitable


async def test_a_message_in_two_frames_is_whole_and_half_of_one_is_dropped_with_its_link(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send('{"n": 1}\n{"n"', ': 2}\n{"n": 3')
        await peer.drop()

    async def second(peer: Peer) -> None:
        await peer.accept()
        await peer.send('{"n": 4}\n')
        await peer.serve_until_closed()

    async with ScriptedServer(first, second) as server, connect(server, transport, Lines(JsonCodec())) as conn:
        assert [await soon(conn.receive()) for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 4}]
        assert conn.statistics().errors == 1  # the loss of the link


async def test_what_cannot_be_read_in_a_frame_is_told_and_the_rest_of_it_is_received(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send('{"n": 1}\nnonsense\n{"n": 2}\n')
        await peer.serve_until_closed()

    async with (
        ScriptedServer(serve) as server,
        connect(server, transport, Lines(JsonCodec())) as conn,
    ):
        assert [await soon(conn.receive()) for _ in range(2)] == [{"n": 1}, {"n": 2}]
        assert conn.statistics().errors == 1
        assert conn.epoch == 1


async def test_a_link_on_which_nothing_more_can_be_read_is_left_for_another(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(len(b'{"n":1}').to_bytes(4, "big") + b'{"n":1}' + b"\xff\xff\xff\xff")
        await peer.serve_until_closed()

    async def second(peer: Peer) -> None:
        await peer.accept()
        await peer.send(len(b'{"n":2}').to_bytes(4, "big") + b'{"n":2}')
        await peer.serve_until_closed()

    codec = LengthPrefixed(JsonCodec())
    async with (
        ScriptedServer(first, second) as server,
        connect(server, transport, codec, max_message_size=1000) as conn,
        conn.listen(ErrorEvent) as events,
    ):
        assert [await soon(conn.receive()) for _ in range(2)] == [{"n": 1}, {"n": 2}]
        assert conn.epoch == 2
        assert any("nothing more can be read" in str(event.error) for event in await events.receive_batch())


async def test_a_compressed_stream_begins_anew_on_each_link_and_is_written_in_its_order(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer, n: int) -> None:
        await peer.accept()
        squeeze, unsqueeze = zlib.compressobj(), zlib.decompressobj()
        said = []
        for _ in range(2):
            frame = await peer.receive()
            assert isinstance(frame, bytes)
            said.append(json.loads(unsqueeze.decompress(frame)))
        assert said == [{"id": n, "ask": n}, {"tell": n}]
        answers = [{"id": n, "result": n}, {"other": n}]
        await peer.send(
            *(squeeze.compress(json.dumps(each).encode()) + squeeze.flush(zlib.Z_SYNC_FLUSH) for each in answers)
        )
        await (peer.drop() if n == 1 else peer.serve_until_closed())

    async def first(peer: Peer) -> None:
        await serve(peer, 1)

    async def second(peer: Peer) -> None:
        await serve(peer, 2)

    codec = ZlibStream(JsonCodec(), both_ways=True)
    async with ScriptedServer(first, second) as server, connect(server, transport, codec) as conn:
        for n in (1, 2):
            async with trio.open_nursery() as nursery:
                got: list[Any] = []

                async def ask(n: int = n, got: list[Any] = got) -> None:
                    got.append(await soon(conn.request({"ask": n})))

                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                await soon(conn.send({"tell": n}))
            assert got == [{"id": n, "result": n}]
            assert await soon(conn.receive()) == {"other": n}
            await trio.sleep(1.0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cancelled_send_leaves_a_compressed_stream_whole(autojump_clock: trio.abc.Clock, when: str) -> None:
    got: list[Any] = []

    async def serve(peer: Peer) -> None:
        await peer.accept()
        unsqueeze = zlib.decompressobj()
        while isinstance(frame := await peer.receive(), bytes):
            got.append(json.loads(unsqueeze.decompress(frame)))
        await peer.finish()

    codec = ZlibStream(JsonCodec(), both_ways=True)
    async with ScriptedServer(serve) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, codec=codec) as conn:
            with trio.CancelScope() as scope:
                if when == "before":
                    scope.cancel()
                await conn.send({"n": 1})
                scope.cancel()
            await conn.send({"n": 2})
    assert got == ([{"n": 2}] if when == "before" else [{"n": 1}, {"n": 2}])


def test_a_frame_of_millions_of_messages_is_not_decoded_to_its_end() -> None:
    codec = Lines(JsonCodec()).open_link(16 * 1024 * 1024)
    with pytest.raises(StreamBroken, match="more than 65536 messages") as broken:
        codec.decode("1\n" * 8_000_000)
    assert len(broken.value.messages) < 200_000
    with pytest.raises(StreamBroken):
        codec.decode("1\n")


async def test_a_stream_that_is_broken_is_told_once_and_what_follows_is_not_looked_at(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def breaks(peer: Peer) -> None:
        await peer.accept()
        await peer.send("1\n" * 100_000, "2\n", "3\n")
        await peer.serve_until_closed()

    async def goes_on(peer: Peer) -> None:
        await peer.accept()
        await peer.serve_until_closed()

    errors: list[Exception] = []

    def observe(observation: Any) -> None:
        if isinstance(observation.event, ErrorEvent):
            errors.append(observation.event.error)

    async with (
        ScriptedServer(breaks, goes_on) as server,
        connect(server, transport, Lines(JsonCodec()), observers=[observe]) as conn,
    ):
        await trio.sleep(1.0)
        assert conn.epoch == 2
        assert [type(error) for error in errors] == [StreamBroken, LinkLost]
