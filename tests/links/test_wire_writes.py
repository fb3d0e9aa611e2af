"""What `WireTransport` writes, byte for byte: over socket pairs whose buffers are so small that frames are torn."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as WebSocketFrame
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tests.links.conftest import Peer
from tests.links.wire_oracle import open_protocol
from trio_nova.errors import BadMessage, LinkLost
from trio_nova.links import Deflate, Link, WireTransport
from trio_nova.messages import Frame, Ping, Pong
from trio_nova.testing import ClosePayload, FromClient, memory_streams
from trio_nova.testing._frames import ClientFrames, encode

BOUND = 100.0
"""Seconds, real ones, after which a test has failed."""
LARGE = bytes(range(256)) * 800
"""More than the buffers between the two ends of a pair hold."""


# --------------------------------------------------------------------------- encoding


def heard(data: bytes, *, deflated: bool = False) -> list[WebSocketFrame]:
    """Return the frames that a server of the package websockets hears."""
    protocol = ServerProtocol(state=OPEN, max_size=None)
    if deflated:
        protocol.extensions = [PerMessageDeflate(False, False, 12, 12)]
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    events = protocol.events_received()
    assert all(isinstance(event, WebSocketFrame) for event in events)
    return [event for event in events if isinstance(event, WebSocketFrame)]


SIZES = st.one_of(st.integers(0, 300), st.sampled_from([125, 126, 127, 65_535, 65_536, 65_537]))
MESSAGES: st.SearchStrategy[Frame] = st.one_of(
    st.text(),
    st.builds(lambda size, text: (text * size)[:size], SIZES, st.text(min_size=1)),
    st.builds(lambda size, data: (data * size)[:size], SIZES, st.binary(min_size=1)),
    st.builds(Ping, st.binary(max_size=125)),
    st.builds(Pong, st.binary(max_size=125)),
)


@pytest.mark.parametrize("deflated", [False, True])
@given(messages=st.lists(MESSAGES, max_size=6))
def test_what_is_encoded_is_heard_by_a_server(deflated: bool, messages: list[Frame]) -> None:
    compression, extensions = (Deflate(), ["permessage-deflate; server_max_window_bits=12"]) if deflated else (None, [])
    protocol = open_protocol(2**20, compression, extensions)
    frames = heard(b"".join(map(protocol.encode, messages)), deflated=deflated)
    kinds = {1: lambda data: data.decode(), 2: bytes, 9: Ping, 10: Pong}
    assert [kinds[int(frame.opcode)](bytes(frame.data)) for frame in frames] == messages
    assert all(frame.fin for frame in frames)


@pytest.mark.parametrize("message", ["same", "same" * 100, b"s" * 70_000, Ping(b"same")], ids=["7", "16", "64", "ping"])
def test_no_two_frames_have_the_same_mask(message: Frame) -> None:
    protocol = open_protocol(2**20)
    assert len({protocol.encode(message) for _ in range(200)}) == 200


# --------------------------------------------------------------------------- torn frames


@attrs.define
class Server:
    """The far end of a pair: reads what it is told to, and puts it together."""

    stream: trio.abc.Stream
    heard: list[FromClient] = attrs.field(factory=list)
    raw: bytearray = attrs.field(factory=bytearray)
    _frames: ClientFrames = attrs.field(factory=ClientFrames)
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    async def read_some(self, most: int = 65_536) -> bool:
        """Read once; return whether there may be more. Raises ProtocolBreach where a frame is torn."""
        try:
            data = await self.stream.receive_some(most)
        except trio.BrokenResourceError:  # a socket that is closed with something unread
            return False
        self._take_in(bytes(data))
        return bool(data)

    def read_now(self) -> None:
        """Read what is there, before anybody else gets to run."""
        assert isinstance(self.stream, trio.SocketStream)
        self._take_in(os.read(self.stream.socket.fileno(), 65_536))

    def _take_in(self, data: bytes) -> None:
        self.raw += data
        self.heard += [frame for frame, _ in self._frames.feed(data)]

    async def read_until(self, count: int) -> None:
        while len(self.heard) < count:
            assert await self.read_some(), f"the client left after {len(self.heard)} frames"

    async def send(self, *frames: FromClient) -> None:
        async with self._sending:
            await self.stream.send_all(b"".join(map(encode, frames)))

    async def read_and_part(self) -> None:
        """Read to the goodbye, answer it, and hang up."""
        while not any(isinstance(frame, ClosePayload) for frame in self.heard):
            assert await self.read_some(), "the client left without a goodbye"
        await self.send(ClosePayload())
        assert not await self.read_some(), "nothing follows a close frame"
        await self.stream.aclose()


def socket_pair(buffer: int) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Return streams of which the first has room for about so many bytes that the second has not read."""
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return trio.SocketStream(ours), trio.SocketStream(theirs)


@asynccontextmanager
async def linked(
    near: trio.abc.Stream | None = None, far: trio.abc.Stream | None = None
) -> AsyncGenerator[tuple[Link, Server]]:
    if near is None or far is None:
        near, far = socket_pair(4096)
    peer = Peer(far, near)
    with trio.fail_after(BOUND):
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(peer.accept)
            async with WireTransport().open(peer.dial()) as link:
                await trio.testing.wait_all_tasks_blocked()  # for the peer to be done
                yield link, Server(far)


async def test_what_fits_leaves_whole() -> None:
    async with linked() as (link, server):
        assert [link.send_nowait(frame) for frame in ("one", b"two", Ping(b"3"))] == ["whole"] * 3
        await server.read_until(3)
        assert server.heard == ["one", b"two", Ping(b"3")]


async def test_where_nothing_fits_nothing_leaves() -> None:
    async with linked() as (link, server):
        assert link.send_nowait(LARGE) == "begun"
        assert link.send_nowait("not yet") == "not"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_until, 1)
            await link.send_all([LARGE])
        assert server.heard == [LARGE]
        count = 0
        while link.send_nowait("x" * 1000) == "whole":
            count += 1
        assert 0 < count < 1000
        await server.read_until(1 + count)
        assert server.heard == [LARGE, *["x" * 1000] * count]


async def test_a_torn_frame_goes_on_where_it_was_torn() -> None:
    async with linked() as (link, server):
        assert link.send_nowait(LARGE) == "begun"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_until, 3)
            await link.send_all([LARGE, "next", Ping(b"last")])
        assert server.heard == [LARGE, "next", Ping(b"last")]
        assert link.send_nowait("and again") == "whole"
        await server.read_until(4)


async def test_nothing_gets_between_the_pieces_of_a_write_under_way() -> None:
    async with linked() as (link, server), trio.open_nursery() as nursery:
        nursery.start_soon(link.send_all, [LARGE])
        await trio.testing.wait_all_tasks_blocked()
        server.read_now()  # there is room, of which the writer does not know yet
        assert link.send_nowait("later") == "not"
        await server.read_until(1)
        await trio.testing.wait_all_tasks_blocked()
        assert link.send_nowait("now") == "whole"
        await server.read_until(2)
    assert server.heard == [LARGE, "now"]


async def test_an_equal_frame_is_not_taken_for_the_torn_one() -> None:
    twin = bytes(bytearray(LARGE))
    async with linked() as (link, server):
        assert link.send_nowait(LARGE) == "begun"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_until, 2)
            await link.send_all([LARGE, twin])
        assert server.heard == [LARGE, LARGE]


async def test_a_pong_waits_for_the_rest_of_a_torn_frame() -> None:
    async with linked() as (link, server):
        assert link.send_nowait(LARGE) == "begun"
        await server.send(Ping(b"between"), "told")
        frames: list[Frame] = []
        while len(frames) < 2:
            frames += await link.receive_some()
        assert frames == [Ping(b"between"), "told"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read_until, 3)
            await link.send_all([LARGE, "next"])
        assert server.heard == [LARGE, "next", Pong(b"between")]


async def test_a_goodbye_waits_for_the_rest_of_a_torn_frame() -> None:
    async with linked() as (link, server), trio.open_nursery() as nursery:
        assert link.send_nowait(LARGE) == "begun"
        nursery.start_soon(server.read_and_part)
        await link.aclose(4001, "enough")
    assert server.heard == [LARGE, ClosePayload(4001, "enough")]


async def test_no_pong_follows_a_goodbye() -> None:
    async with linked() as (link, server), trio.open_nursery() as nursery:
        assert link.send_nowait(LARGE) == "begun"
        await server.send(Ping(b"between"))
        assert list(await link.receive_some()) == [Ping(b"between")]
        nursery.start_soon(server.read_and_part)
        await link.aclose(4001, "enough")
    assert server.heard == [LARGE, Pong(b"between"), ClosePayload(4001, "enough")]


@pytest.mark.parametrize("said", [ClosePayload(4001, "enough"), b"\x03\x00"], ids=["a goodbye", "a breach"])
async def test_the_peers_end_is_answered_after_the_rest_of_a_torn_frame(said: ClosePayload | bytes) -> None:
    async with linked() as (link, server), trio.open_nursery() as nursery:
        assert link.send_nowait(LARGE) == "begun"
        await server.stream.send_all(encode(said) if isinstance(said, ClosePayload) else said)
        nursery.start_soon(server.read_until, 2)
        with pytest.raises(LinkLost):
            while True:
                await link.receive_some()
    torn, goodbye = server.heard
    assert torn == LARGE
    assert goodbye == said or (isinstance(goodbye, ClosePayload) and goodbye.code == 1002)


async def test_a_text_that_utf_8_cannot_say_is_left_for_send_all_to_refuse() -> None:
    async with linked() as (link, server):
        assert link.send_nowait("\ud800") == "not"
        with pytest.raises(BadMessage):
            await link.send_all(["\ud800"])
        assert link.send_nowait("fine") == "whole"
        await server.read_until(1)
        assert server.heard == ["fine"]


async def test_after_a_cancelled_write_nothing_more_is_written() -> None:
    async with linked() as (link, server):
        assert link.send_nowait(LARGE) == "begun"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send_all, [LARGE])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert link.send_nowait("never") == "not"
        with pytest.raises(LinkLost):
            await link.send_all(["never"])
        link.abort()
        while await server.read_some():
            pass
        assert server.heard == []


# --------------------------------------------------------------------------- at random


@attrs.define
class Sender:
    """The one task that writes: what it knows to have left, and what may have."""

    link: Link
    chance: random.Random
    left: list[Frame] = attrs.field(factory=list)
    torn: Frame | None = None
    tried: list[Frame] = attrs.field(factory=list)
    """What was being written when the link was lost."""

    def frame(self) -> Frame:
        size = self.chance.choice([0, 5, 5, 200, 3_000, 30_000])
        body = f"{len(self.left)}:" + "x" * size
        kinds: list[Frame] = [body, body.encode(), Ping(body.encode()[:100])]
        return self.chance.choice(kinds)

    async def work(self, steps: int) -> None:
        try:
            for _ in range(steps):
                await self.step()
            if self.torn is not None:
                await self.write([self.torn])
        except LinkLost:
            pass

    async def step(self) -> None:
        if self.torn is not None:
            await self.write([self.torn, *(self.frame() for _ in range(self.chance.randrange(3)))])
        elif self.chance.random() < 0.25:
            await self.write([self.frame() for _ in range(self.chance.randrange(4))])
        else:
            frame = self.frame()
            match self.link.send_nowait(frame):
                case "whole":
                    self.left.append(frame)
                case "begun":
                    self.torn = frame
                case "not":
                    if self.chance.random() < 0.5:
                        await self.write([frame])
        for _ in range(self.chance.randrange(3)):
            await trio.lowlevel.checkpoint()

    async def write(self, frames: Sequence[Frame]) -> None:
        self.tried = list(frames)
        await self.link.send_all(frames)
        self.left += frames
        self.tried, self.torn = [], None


async def run_at_random(seed: int) -> None:
    chance = random.Random(seed)
    pings = [Ping(b"%d" % number) for number in range(chance.randrange(6))]
    in_memory = chance.random() < 0.25  # where nothing can be written without waiting
    pair = (
        memory_streams(chance.choice([1_000, 20_000])) if in_memory else socket_pair(chance.choice([1, 4096, 16_384]))
    )
    async with linked(*pair) as (link, server):
        sender = Sender(link, chance)

        async def ping() -> None:
            for each in pings:
                for _ in range(chance.randrange(6)):
                    await trio.lowlevel.checkpoint()
                with contextlib.suppress(trio.BrokenResourceError):  # the client may have left
                    await server.send(each)

        async def read() -> None:
            while not any(isinstance(frame, ClosePayload) for frame in server.heard):
                assert await server.read_some(chance.choice([1, 1_000, 65_536]) if len(server.raw) < 100 else 65_536)
                for _ in range(chance.randrange(4)):
                    await trio.lowlevel.checkpoint()
            await server.send(ClosePayload())
            assert not await server.read_some(), "nothing follows a close frame"

        async def receive() -> None:
            try:
                while True:
                    await link.receive_some()
            except LinkLost:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(receive)
            async with trio.open_nursery() as busy:
                busy.start_soon(ping)
                busy.start_soon(sender.work, chance.randrange(1, 9))
                if chance.random() < 0.5:  # in the middle of it, whatever that is
                    for _ in range(chance.randrange(20)):
                        await trio.lowlevel.checkpoint()
                    busy.start_soon(link.aclose)
            await link.aclose()
    *frames, goodbye = server.heard
    assert goodbye == ClosePayload(1000)
    own = [frame for frame in frames if not isinstance(frame, Pong)]
    torn = [] if sender.torn is None or sender.tried else [sender.torn]
    certain = [*sender.left, *torn]
    assert own[: len(certain)] == certain
    assert own[len(certain) :] == sender.tried[: len(own) - len(certain)]
    pongs = iter([frame.payload for frame in frames if isinstance(frame, Pong)])
    answered = [ping.payload for ping in pings]
    assert all(payload in answered for payload in pongs)


@pytest.mark.parametrize("first", range(0, 2_000, 200))
async def test_in_any_order_of_events_the_peer_hears_whole_frames(first: int) -> None:
    for seed in range(first, first + 200):
        try:
            await run_at_random(seed)
        except Exception as exc:
            exc.add_note(f"seed {seed}")
            raise
