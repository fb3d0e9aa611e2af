"""The simulated network does what a real one does, to the tick, and breaks as a real one breaks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from trio_nova.errors import ConnectFailed
from trio_nova.testing.sim import DirectSimStream, Host, Journal, SimLink, SimNet, SimStream, Weather

HOST = "server.test"


@attrs.define(eq=False)
class Place:
    """A network with one host."""

    net: SimNet
    host: Host
    taken: list[SimStream] = attrs.field(factory=list)

    async def connect(self) -> SimLink:
        """Return a new link."""
        stream = await self.net.stream_factory(HOST, 80)
        return stream.link


@asynccontextmanager
async def a_place(latency: float = 1.0) -> AsyncIterator[Place]:
    net = SimNet(Journal(), random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(net.run)
        taken: list[SimStream] = []
        host = net.listen(HOST, lambda stream, name, port: taken.append(stream))
        host.c2s.latency = host.s2c.latency = latency
        yield Place(net, host, taken)
        nursery.cancel_scope.cancel()


async def test_it_keeps_the_contract_of_streams(autojump_clock: trio.abc.Clock) -> None:
    async with a_place(latency=0.0) as place:

        async def streams() -> tuple[SimStream, SimStream]:
            link = await place.connect()
            return link.client, link.server

        async def clogged_streams() -> tuple[SimStream, SimStream]:
            link = await place.connect()
            link.c2s.weather = link.s2c.weather = Weather(latency=0.0, window=1)
            await link.client.send_all(b"x")
            await link.server.send_all(b"x")
            return link.client, link.server

        await check_half_closeable_stream(streams, clogged_streams)


async def test_a_direct_stream_takes_at_once_what_there_is_room_for(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        assert not hasattr((await place.connect()).client, "send_some_nowait")
        place.net.direct = True
        link = await place.connect()
        assert isinstance(link.client, DirectSimStream)
        link.c2s.weather = Weather(latency=1.0, window=10)
        assert link.client.send_some_nowait(b"question") == 8
        assert link.client.send_some_nowait(b"question") == 2
        assert link.client.send_some_nowait(b"question") == 0
        assert await link.server.receive_some() == b"questionqu"
        assert [
            (record["taken"], record["left"]) for record in place.net.journal.records if record.what == "net.part"
        ] == [(2, 6)]
        link.reset()
        assert link.client.send_some_nowait(b"question") == 0  # send_all tells why


async def test_bytes_take_the_latency_of_their_direction(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        place.host.s2c.latency = 5.0
        link = await place.connect()
        start = trio.current_time()
        await link.client.send_all(b"question")
        assert trio.current_time() == start
        assert await link.server.receive_some() == b"question"
        assert trio.current_time() == pytest.approx(start + 1.0)
        await link.server.send_all(b"answer")
        assert await link.client.receive_some() == b"answer"
        assert trio.current_time() == pytest.approx(start + 6.0)


async def test_a_dial_takes_a_look_up_and_a_round_trip(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        await place.connect()
        assert trio.current_time() == pytest.approx(3.0)
        assert len(place.taken) == 1


async def test_nothing_overtakes_however_large_the_jitter(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        place.host.c2s.jitter = 10.0
        link = await place.connect()
        sent = bytes(range(200))
        for number in sent:
            await link.client.send_all(bytes([number]))
        received = b""
        while len(received) < len(sent):
            received += await link.server.receive_some()
        assert received == sent


async def receive(stream: trio.abc.ReceiveStream, size: int) -> None:
    while size > 0:
        size -= len(await stream.receive_some())


async def test_a_narrow_way_takes_time_by_the_byte(autojump_clock: trio.abc.Clock) -> None:
    async with a_place(latency=0.0) as place:
        place.host.c2s.bandwidth = 1000.0
        link = await place.connect()
        start = trio.current_time()
        await link.client.send_all(bytes(10_000))
        await receive(link.server, 10_000)
        assert trio.current_time() == pytest.approx(start + 10.0)


async def test_what_is_under_way_gains_by_a_way_that_is_made_wider(autojump_clock: trio.abc.Clock) -> None:
    async with a_place(latency=0.0) as place:
        place.host.c2s.bandwidth = 100.0
        link = await place.connect()
        start = trio.current_time()
        await link.client.send_all(bytes(10_000))
        await trio.sleep(50.0)
        place.host.c2s.bandwidth = 1000.0
        for way in link.client.link.ways:
            way.widen()
        await receive(link.server, 10_000)
        assert trio.current_time() - start == pytest.approx(55.0, abs=2.0)
        await link.client.send_all(b"on time")
        assert await link.server.receive_some() == b"on time"
        assert trio.current_time() - start == pytest.approx(55.0, abs=2.1)


async def test_a_read_returns_a_slice_at_most(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        place.host.c2s.slice_size = 3
        link = await place.connect()
        await link.client.send_all(b"abcdefgh")
        assert [await link.server.receive_some() for _ in range(3)] == [b"abc", b"def", b"gh"]


async def test_a_full_window_stops_the_sender_until_something_is_read(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place, trio.open_nursery() as nursery:
        place.host.c2s.window = 10
        link = await place.connect()
        done = trio.Event()

        async def send() -> None:
            await link.client.send_all(bytes(15))
            done.set()

        nursery.start_soon(send)
        await trio.sleep(1000)
        assert not done.is_set()
        assert len(await link.server.receive_some()) == 10
        await wait_all_tasks_blocked()
        assert done.is_set()


async def test_what_is_held_arrives_when_the_way_is_free_again(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        link = await place.connect()
        link.c2s.held = True
        await link.client.send_all(b"late")
        with trio.move_on_after(1000) as silence:
            await link.server.receive_some()
        assert silence.cancelled_caught
        link.c2s.held = False
        link.c2s.release()
        start = trio.current_time()
        assert await link.server.receive_some() == b"late"
        assert trio.current_time() == pytest.approx(start + 1.0)


async def test_a_cut_lets_so_many_bytes_through_and_then_resets(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        link = await place.connect()
        link.c2s.cut_at = 5
        await link.client.send_all(b"abcdefgh")
        assert await link.server.receive_some() == b"abcde"
        with pytest.raises(trio.BrokenResourceError):
            await link.server.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await link.client.send_all(b"more")


async def test_one_end_may_be_reset_and_the_other_learn_it_when_it_sends(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        link = await place.connect()
        link.client.break_off()
        with pytest.raises(trio.BrokenResourceError):
            await link.client.receive_some()
        await link.server.send_all(b"are you there?")
        with pytest.raises(trio.BrokenResourceError):
            await link.server.receive_some()


async def test_what_was_sent_before_a_close_arrives_and_what_is_sent_to_it_is_answered_by_a_reset(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with a_place() as place:
        link = await place.connect()
        await link.server.send_all(b"last words")
        link.server.close()
        assert await link.client.receive_some() == b"last words"
        assert await link.client.receive_some() == b""
        await link.client.send_all(b"too late")
        await trio.sleep(3)
        with pytest.raises(trio.BrokenResourceError):
            await link.client.send_all(b"again")


async def test_half_a_close_leaves_the_other_direction_open(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        link = await place.connect()
        link.end_way("s2c")
        assert await link.client.receive_some() == b""
        await link.client.send_all(b"still here")
        assert await link.server.receive_some() == b"still here"


@pytest.mark.parametrize(("fate", "phase"), [("dns failure", "dns"), ("tls failure", "tls")], ids=["dns", "tls"])
async def test_a_dial_fails_in_the_phase_that_was_ordered(
    autojump_clock: trio.abc.Clock, fate: str, phase: str
) -> None:
    async with a_place() as place:
        place.host.next_fates.append(fate)  # type: ignore[arg-type]
        with pytest.raises(ConnectFailed) as caught:
            await place.connect()
        assert caught.value.phase == phase
        await place.connect()


async def test_a_refused_dial_raises_what_a_socket_would(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        place.host.fate = "refused"
        with pytest.raises(ConnectionRefusedError):
            await place.connect()


@pytest.mark.parametrize("fate", ["silence", "dns silence"])
async def test_a_silent_dial_lasts_until_it_is_given_up(autojump_clock: trio.abc.Clock, fate: str) -> None:
    async with a_place() as place:
        place.host.fate = fate  # type: ignore[assignment]
        with trio.move_on_after(100) as patience:
            await place.connect()
        assert patience.cancelled_caught
        assert not place.net.links


async def test_a_name_that_nobody_bears_has_no_address(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        with pytest.raises(ConnectFailed):
            await place.net.stream_factory("nobody.test", 80)
        with pytest.raises(ConnectFailed):
            await place.net.resolve("nobody.test")


async def test_a_link_is_forgotten_when_both_ends_have_closed_it(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        link = await place.connect()
        link.client.close()
        assert place.net.links
        link.server.close()
        assert not place.net.links


async def test_an_idle_network_waits_for_ever_and_is_woken(autojump_clock: trio.abc.Clock) -> None:
    async with a_place() as place:
        await trio.sleep(10_000.0)
        await place.net.pause(5.0)
        assert trio.current_time() == pytest.approx(10_005.0)
