"""A link over trio-websocket with its guard: both directions, and every way it can end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_nova.errors import BadMessage, LinkLost
from trio_nova.links import Link, TrioWebsocketTransport
from trio_nova.links._handshake import CHUNK
from trio_nova.messages import Frame, Ping, Pong

if TYPE_CHECKING:
    from tests.links.conftest import Peer

CLOSE = 8


@asynccontextmanager
async def linked(peer: Peer, *, glued: bytes = b"", **fields: Any) -> AsyncIterator[Link]:
    """Open a link to `peer`, in a nursery that wraps what the block raises."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: peer.accept(glued=glued))
        async with TrioWebsocketTransport().open(peer.dial(**fields)) as link:
            yield link


async def received_until_lost(link: Link) -> tuple[list[Frame], LinkLost]:
    frames: list[Frame] = []
    while True:
        try:
            frames += await link.receive_some()
        except LinkLost as exc:
            return frames, exc


async def next_frames(link: Link) -> Sequence[Frame]:
    """Skip mere signs of life."""
    while not (frames := await link.receive_some()):
        pass
    return frames


# --------------------------------------------------------------------------- receiving


async def test_what_arrives_together_is_handed_out_together_and_in_order(peer: Peer) -> None:
    async with linked(peer) as link:
        await peer.send(
            peer.frame(1, b"a")
            + peer.frame(9, b"p")
            + peer.frame(2, b"b")
            + peer.frame(1, b"c", fin=False)
            + peer.frame(10, b"q")
            + peer.frame(0, b"d")
        )
        assert await link.receive_some() == ["a", Ping(b"p"), b"b", Pong(b"q"), "cd"]
        assert await peer.read_frame() == (10, b"p")


@pytest.mark.fault("F29", where="memory")
async def test_frames_glued_to_the_response_are_received(peer: Peer) -> None:
    async with linked(peer, glued=b"\x81\x02hi") as link:
        assert await link.receive_some() == ["hi"]


async def test_bytes_without_a_complete_frame_are_a_sign_of_life(peer: Peer) -> None:
    async with linked(peer) as link:
        await peer.send(b"\x81\x05he")
        assert await link.receive_some() == []
        await peer.send(b"llo")
        assert await link.receive_some() == ["hello"]


async def test_a_batch_holds_at_most_256_frames(peer: Peer) -> None:
    async with linked(peer) as link:
        await peer.send(peer.frame(2, b"x") * 600)
        sizes: list[int] = []
        while sum(sizes) < 600:
            sizes.append(len(await link.receive_some()))
        assert max(sizes) <= 256


async def test_cancelling_receive_some_loses_nothing(peer: Peer) -> None:
    got: list[Frame] = []
    async with linked(peer) as link, trio.open_nursery() as nursery:

        async def send() -> None:
            for i in range(200):
                await peer.send(peer.frame(1, str(i).encode()))
                if i % 3 == 0:
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(send)
        ticks = 0
        while len(got) < 200:
            ticks += 1
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_after, scope, ticks % 5)
                got += await link.receive_some()
    assert got == [str(i) for i in range(200)]


async def cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_while_nobody_receives_a_bounded_amount_is_read(unread_peer: Peer) -> None:
    peer = unread_peer
    sent = 0
    async with linked(peer) as link, trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal sent
            while True:
                await peer.send(peer.frame(2, bytes(10_000)))
                sent += 1

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < sent < 60
        stuck = sent
        for _ in range(100):
            await link.receive_some()
        assert sent > stuck
        nursery.cancel_scope.cancel()
        link.abort()


@pytest.mark.fault("F54", where="memory")
async def test_a_flood_of_pings_is_bounded_while_nobody_receives(unread_peer: Peer) -> None:
    peer = unread_peer
    sent = 0
    async with linked(peer) as link, trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal sent
            while True:
                await peer.send(peer.frame(9, b"x") * 100)
                sent += 100

        nursery.start_soon(flood)
        nursery.start_soon(peer.read_to_the_end)
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < sent < 1000
        assert Ping(b"x") in await link.receive_some()
        nursery.cancel_scope.cancel()
        link.abort()


# --------------------------------------------------------------------------- sending


async def test_all_kinds_of_frames_are_sent_in_order(peer: Peer) -> None:
    async with linked(peer) as link:
        await link.send_all(["tëxt", Ping(b"1"), b"bytes", Pong(b"2"), Ping(b"1")])
        assert [await peer.read_frame() for _ in range(5)] == [
            (1, "tëxt".encode()),
            (9, b"1"),
            (2, b"bytes"),
            (10, b"2"),
            (9, b"1"),
        ]


async def test_a_ping_does_not_wait_for_its_pong_and_the_pong_is_received(peer: Peer) -> None:
    async with linked(peer) as link:
        await link.send_all([Ping(b"now")])
        assert await peer.read_frame() == (9, b"now")
        await peer.send(peer.frame(10, b"now"))
        assert await next_frames(link) == [Pong(b"now")]


async def test_half_a_surrogate_pair_is_the_callers_mistake_and_the_link_stays(peer: Peer) -> None:
    async with linked(peer) as link:
        with pytest.raises(BadMessage):
            await link.send_all(["\ud800"])
        await link.send_all(["fine"])
        assert await peer.read_frame() == (1, b"fine")


async def test_progress_of_a_long_write_is_timed_by_the_slice(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked(peer) as link, trio.open_nursery() as nursery:
        assert link.stalled_since is None
        slices: list[int] = []

        async def slow() -> None:
            slices.append(1)
            await trio.sleep(2)

        assert isinstance(peer.client, trio.StapledStream)
        assert isinstance(peer.client.send_stream, trio.testing.MemorySendStream)
        peer.client.send_stream.send_all_hook = slow
        begun = trio.current_time()
        nursery.start_soon(link.send_all, [bytes(3 * CHUNK - 100)])
        await trio.sleep(0.5)
        assert link.stalled_since == begun
        await trio.sleep(4)
        assert link.stalled_since == begun + 4
        await trio.sleep(4)
        assert link.stalled_since is None
        assert len(slices) == 3


async def test_a_cancelled_write_leaves_no_link_to_write_to(peer: Peer) -> None:
    async with linked(peer) as link:
        assert isinstance(peer.client, trio.StapledStream)
        assert isinstance(peer.client.send_stream, trio.testing.MemorySendStream)
        peer.client.send_stream.send_all_hook = trio.sleep_forever
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.send_all, ["torn"])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with pytest.raises(LinkLost):
            await link.send_all(["lost"])


async def test_a_failed_write_is_a_lost_link_and_what_arrived_is_still_received(peer: Peer) -> None:
    async with linked(peer) as link:
        assert isinstance(peer.stream, trio.StapledStream)
        await peer.send(peer.frame(1, b"last words") * 600)  # more than the inbox takes: the rest is on its way
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.receive_stream.aclose()
        with pytest.raises(LinkLost) as caught:
            await link.send_all(["x"])
        assert (caught.value.code, caught.value.remote, caught.value.epoch) == (1006, None, 1)
        await peer.hang_up()
        frames, lost = await received_until_lost(link)
        assert frames == ["last words"] * 600
        assert lost.code == 1006


# --------------------------------------------------------------------------- the peer's faults

SINS: list[tuple[bytes, int, str]] = [
    (b"\x81\x81\0\0\0\0x", 1002, "masked"),
    (b"\xc1\x01x", 1002, "rsv"),
    (b"\x83\x00", 1002, "opcode"),
    (b"\x09\x00", 1002, "control-fragmented"),
    (b"\x89\x7e\x00\x7e" + bytes(126), 1002, "control-length"),
    (b"\x80\x01x", 1002, "continuation"),
    (b"\x01\x01a\x81\x01b", 1002, "interleaved"),
    (b"\x81\x7e\x00\x01x", 1002, "length-form"),
    (b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", 1002, "length-range"),
    (b"\x82\x7f\x00\x00\x00\x00\x80\x00\x00\x00", 1009, "too-big"),
    (b"\x81\x02\xc3\x28", 1007, "utf-8"),
    (b"\x88\x01x", 1002, "close-length: 120"),
    (b"\x88\x02\x03\xed", 1002, "close-code: 1005"),
    (b"\x88\x03\x03\xe8\xff", 1007, r"close-reason: 1000 '\\xff'"),
]


@pytest.mark.fault("F42", "F43", "F44", "F45", "F46", "F47", where="memory")
@pytest.mark.parametrize(("wire", "code", "rule"), SINS)
async def test_a_violation_ends_the_link_after_what_was_good_and_the_peer_is_told_why(
    peer: Peer, autojump_clock: trio.testing.MockClock, wire: bytes, code: int, rule: str
) -> None:
    async with linked(peer) as link:
        before = trio.current_time()
        await peer.send(peer.frame(1, b"good") + peer.frame(9, b"!") + wire + peer.frame(1, b"never seen"))
        frames, lost = await received_until_lost(link)
        assert frames == ["good", Ping(b"!")]
        assert (lost.code, lost.detail, lost.remote) == (code, rule, False)
        assert await peer.read_frame() == (10, b"!")
        opcode, payload = await peer.read_frame()
        assert (opcode, payload[:2]) == (CLOSE, code.to_bytes(2, "big"))
        assert await peer.read_to_the_end() == b""  # closed, though the peer keeps its end open
        assert trio.current_time() == before
        with pytest.raises(LinkLost):
            await link.send_all(["x"])


@pytest.mark.fault("F42", where="memory")
async def test_a_violation_that_cannot_be_answered_ends_the_link_within_a_second(
    unread_peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    peer = unread_peer
    async with linked(peer) as link, trio.open_nursery() as nursery:

        async def stuck() -> None:
            with pytest.raises(LinkLost):
                await link.send_all(["stuck"])

        nursery.start_soon(stuck)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await peer.send(b"\x83\x00")
        _, lost = await received_until_lost(link)
        assert lost.detail == "opcode"
        assert trio.current_time() - before <= 1.0
        link.abort()


@pytest.mark.fault("F49", where="memory")
async def test_one_frame_of_exactly_the_limit_is_received(peer: Peer) -> None:
    async with linked(peer, max_message_size=1000) as link:
        await peer.send(peer.frame(2, bytes(1000)) + peer.frame(1, "ü".encode() * 500))
        assert await next_frames(link) == [bytes(1000), "ü" * 500]


@pytest.mark.fault("F51", where="memory")
async def test_endless_empty_fragments_end_with_1009(peer: Peer) -> None:
    async with linked(peer) as link:
        await peer.send(peer.frame(2, b"", fin=False) + peer.frame(0, b"", fin=False) * 20_000)
        frames, lost = await received_until_lost(link)
        assert frames == []
        assert (lost.code, lost.detail) == (1009, "too-big")


@pytest.mark.fault("F48", where="memory")
async def test_bytes_after_a_close_frame_are_dropped(peer: Peer) -> None:
    async with linked(peer) as link:
        await peer.send(peer.frame(8, b"\x03\xe8") + peer.frame(1, b"late") + b"\xff\xff")
        frames, lost = await received_until_lost(link)
        assert frames == []
        assert (lost.code, lost.remote) == (1000, True)


# --------------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [(b"\x0f\xa0bye", 4000, "bye"), (b"\x03\xf6", 1014, ""), (b"", 1005, "")],
)
async def test_the_peers_close_frame_is_answered_and_its_code_reported(
    peer: Peer, autojump_clock: trio.testing.MockClock, payload: bytes, code: int, reason: str
) -> None:
    async with linked(peer, epoch=7) as link:
        before = trio.current_time()
        await peer.send(peer.frame(1, b"first") + peer.frame(8, payload))
        frames, lost = await received_until_lost(link)
        assert frames == ["first"]
        assert (lost.code, lost.reason, lost.remote, lost.epoch) == (code, reason, True, 7)
        assert await peer.read_frame() == (CLOSE, payload)
        assert await peer.read_to_the_end() == b""  # a peer that keeps TCP open is not waited for
        assert trio.current_time() == before
        with pytest.raises(LinkLost) as caught:
            await link.send_all(["x"])
        assert caught.value.code == code


@pytest.mark.fault("F68", where="memory")
@pytest.mark.parametrize(("cut", "where"), [(b"", "between two messages"), (b"\x81\x05he", "inside a message")])
async def test_an_end_without_a_close_frame_is_1006(peer: Peer, cut: bytes, where: str) -> None:
    async with linked(peer) as link:
        await peer.send(peer.frame(1, b"whole") + cut)
        await peer.hang_up()
        frames, lost = await received_until_lost(link)
        assert frames == ["whole"]
        assert (lost.code, lost.remote) == (1006, None)
        assert where in lost.detail


async def test_aclose_says_goodbye_and_needs_no_reader(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    async def answer() -> None:
        assert await peer.read_frame() == (CLOSE, b"\x0f\xa1done")
        await peer.send(peer.frame(2, bytes(100_000)) * 20 + peer.frame(9, b"x"))  # nobody receives this
        await trio.sleep(1)
        await peer.send(peer.frame(8, b"\x0f\xa1done"))
        assert await peer.read_to_the_end() == b""

    async with linked(peer) as link, trio.open_nursery() as nursery:
        await peer.send(peer.frame(2, bytes(100_000)) * 20)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(answer)
        before = trio.current_time()
        await link.aclose(4001, "done")
        assert trio.current_time() - before == pytest.approx(1.0)
        await link.aclose(1000, "again")
        _, lost = await received_until_lost(link)
        assert (lost.code, lost.reason, lost.remote) == (4001, "done", False)
        with pytest.raises(LinkLost) as caught:
            await link.send_all(["x"])
        assert (caught.value.code, caught.value.remote) == (4001, False)


async def test_what_arrives_during_aclose_reaches_a_reader_that_is_there(peer: Peer) -> None:
    async with linked(peer) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose)
        assert (await peer.read_frame())[0] == CLOSE
        nursery.start_soon(peer.send, peer.frame(8, b"\x03\xe8"))
        _, lost = await received_until_lost(link)
        assert (lost.code, lost.remote) == (1000, False)


async def test_aclose_waits_no_longer_than_close_timeout_for_the_answer(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked(peer, close_timeout=3.0) as link:
        before = trio.current_time()
        await link.aclose()
        assert trio.current_time() - before == pytest.approx(3.0)
        assert (await peer.read_frame())[0] == CLOSE
        assert await peer.read_to_the_end() == b""


@pytest.mark.fault("F75", where="memory")
async def test_a_reason_too_long_for_a_close_frame_is_cut_between_two_characters(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked(peer) as link:
        await link.aclose(1000, "x" + "ü" * 100)
        assert await peer.read_frame() == (CLOSE, b"\x03\xe8x" + "ü".encode() * 61)


async def test_aclose_is_bounded_while_a_write_is_stuck_and_frees_the_writer(
    unread_peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked(unread_peer, close_timeout=3.0) as link, trio.open_nursery() as nursery:
        caught: list[LinkLost] = []

        async def write() -> None:
            try:
                await link.send_all(["stuck"])
            except LinkLost as exc:
                caught.append(exc)

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await link.aclose(1001, "leaving")
        assert trio.current_time() - before == pytest.approx(3.0)
        await trio.testing.wait_all_tasks_blocked()
        assert [exc.code for exc in caught] == [1001]


async def test_cancelling_aclose_aborts_the_link(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    async with linked(peer) as link:
        with trio.move_on_after(1):
            await link.aclose()
        assert (await peer.read_frame())[0] == CLOSE
        assert await peer.read_to_the_end() == b""


async def test_a_peer_that_pings_and_floods_after_our_goodbye_does_not_break_the_close(
    peer: Peer, autojump_clock: trio.testing.MockClock
) -> None:
    async with linked(peer) as link, trio.open_nursery() as nursery:
        await peer.send((peer.frame(1, b"m") + peer.frame(9, b"p")) * 1000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.aclose)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await peer.send(peer.frame(9, b"p") * 1000 + peer.frame(8, b"\x03\xe8"))
        _, lost = await received_until_lost(link)
        assert (lost.code, lost.remote) == (1000, False)
        assert trio.current_time() == before


async def test_abort_ends_both_directions_at_once(unread_peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    lost: list[LinkLost] = []

    async def note(link: Link, write: bool) -> None:
        try:
            await link.send_all(["stuck"]) if write else await link.receive_some()
        except LinkLost as exc:
            lost.append(exc)

    async with linked(unread_peer) as link, trio.open_nursery() as nursery:
        nursery.start_soon(note, link, True)
        nursery.start_soon(note, link, False)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        link.abort()
        link.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert [(exc.code, exc.remote) for exc in lost] == [(1006, None)] * 2
        await link.aclose()
        assert trio.current_time() == before


# --------------------------------------------------------------------------- the block


async def test_what_the_block_raises_leaves_bare(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept)
        with pytest.raises(KeyError, match="mine") as caught:
            async with TrioWebsocketTransport().open(peer.dial()):
                raise KeyError("mine")
        assert caught.value.__cause__ is None
    assert await peer.read_to_the_end() == b""


async def test_what_the_block_raises_outranks_a_cancellation(peer: Peer) -> None:
    caught: KeyError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept)
        with trio.CancelScope() as scope:
            try:
                async with TrioWebsocketTransport().open(peer.dial()):
                    scope.cancel()
                    raise KeyError("mine")
            except KeyError as exc:
                caught = exc
    assert caught is not None


async def test_a_lost_link_does_not_end_the_block_by_itself(peer: Peer) -> None:
    async with linked(peer):
        await peer.hang_up()
        await trio.testing.wait_all_tasks_blocked()


async def test_leaving_the_block_leaves_no_task_and_no_socket(peer: Peer) -> None:
    task = trio.lowlevel.current_task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept)
        with trio.CancelScope() as scope:
            async with TrioWebsocketTransport().open(peer.dial()) as link:
                await link.send_all([Ping(b"unanswered")])
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert task.child_nurseries[-1] is nursery
    with pytest.raises(trio.ClosedResourceError):
        await peer.client.send_all(b"x")


async def test_a_link_is_cancelled_at_every_checkpoint_of_its_opening_without_a_trace(peer: Peer) -> None:
    for ticks in range(60):
        client, server = trio.testing.memory_stream_pair()
        other = type(peer)(server, client)
        up = False

        async def accept(other: Peer = other) -> None:
            with contextlib.suppress(AssertionError):  # it hung up, as it may
                await other.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_after, scope, ticks)
                async with TrioWebsocketTransport().open(other.dial()):
                    up = True
            nursery.cancel_scope.cancel()
        if up:
            break
        if other.dialled:
            with pytest.raises(trio.ClosedResourceError):
                await client.send_all(b"x")
    assert ticks > 3
    assert up
