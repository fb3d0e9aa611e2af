"""Peers that fall silent, stop reading, vanish, or are merely slow: who is given up, and when exactly."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from tests.hostile.conftest import at_a_socket
from trio_nova import (
    ClockJumped,
    Connection,
    Event,
    LinkClosed,
    LinkLost,
    ListBackoff,
    Listener,
    NotSent,
    Observation,
    OutcomeUnknown,
    PeerSilent,
    Ping,
    Pong,
    RateLimitHandler,
    RollingWindow,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import ClosePayload, Opcode, Peer, ScriptedServer, echo, encode_frame, worst_window

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])
PING_INTERVAL = 5.0
PONG_TIMEOUT = 3.0
LARGE = 8_000_000
"""Bytes, more than the kernel takes, and few enough to be masked in no time."""
BOUND = 100.0
"""Seconds, real ones at sockets, after which a test has failed."""


async def deaf(peer: Peer) -> None:
    await peer.accept()
    await peer.stop_reading()


async def mute(peer: Peer) -> None:
    await peer.accept()
    await peer.mute()


async def until_closed(events: Listener) -> list[Observation]:
    """Return all that is told up to the end of the link, that included."""
    told: list[Observation] = []
    async for observation in events.observations():
        told.append(observation)
        if isinstance(observation.event, LinkClosed):
            break
    return told


def silences(told: list[Observation]) -> list[tuple[str, float]]:
    """Return by which clock, and when, the peer was found silent."""
    return [(each.event.clock, each.at) for each in told if isinstance(each.event, PeerSilent)]


# --------------------------------------------------------------------------- exactly when


@attrs.frozen
class Death:
    """How a peer dies, and what its client does meanwhile."""

    at: float
    ping_interval: float
    pong_timeout: float
    reads: bool
    """Whether it goes on reading, and says nothing; else it does nothing at all."""
    sender: str
    """"none", "chatty" with small messages, or "blocked" with one that does not fit in what lies between."""
    sends_at: float

    @classmethod
    def draw(cls, dice: random.Random) -> Death:
        return cls(
            at=round(dice.uniform(0.0, 60.0), 3),
            ping_interval=round(dice.uniform(0.5, 30.0), 3),
            pong_timeout=round(dice.uniform(0.5, 30.0), 3),
            reads=dice.random() < 0.5,
            sender=dice.choice(["none", "chatty", "blocked"]),
            sends_at=round(dice.uniform(0.0, 90.0), 3),
        )


async def noticed_after(death: Death) -> float:
    """Return how many seconds after its death a peer is given up."""

    async def die(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_at(born + death.at):
            while True:
                await peer.receive()
        await (peer.mute() if death.reads else peer.stop_reading())

    async def send() -> None:
        with suppress(OutcomeUnknown, NotSent):
            match death.sender:
                case "chatty":
                    while True:
                        await conn.send_text("are you there?")
                        await trio.sleep(0.7)
                case "blocked":
                    await trio.sleep_until(born + death.sends_at)
                    await conn.send_bytes(bytes(200_000))

    born = trio.current_time()
    async with ScriptedServer(die) as server:
        with trio.fail_after(300.0):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    ping_interval=death.ping_interval,
                    pong_timeout=death.pong_timeout,
                    backoff=ListBackoff([1000.0]),
                ) as conn,
                conn.listen(size=4096) as events,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(send)
                silent = [at for _, at in silences(await until_closed(events))]
                nursery.cancel_scope.cancel(reason="it was noticed")
    assert len(silent) == 1
    return silent[0] - born - death.at


@pytest.mark.fault("F63", "F64", "F65", where="memory")
@pytest.mark.parametrize("deaths", [100, pytest.param(1_000, marks=pytest.mark.soak)])
async def test_a_dead_peer_is_always_noticed_within_an_interval_and_a_patience(
    autojump_clock: MockClock, deaths: int
) -> None:
    dice = random.Random(63)
    for _ in range(deaths):
        death = Death.draw(dice)
        assert 0.0 <= await noticed_after(death) <= death.ping_interval + death.pong_timeout + 1e-6, death


@pytest.mark.fault("F65", where="memory")
async def test_no_more_than_one_message_of_each_sender_waits_for_a_peer_that_does_not_read(
    autojump_clock: MockClock, transport: Transport
) -> None:
    senders, waiting = 5, [0]

    async def send() -> None:
        with suppress(OutcomeUnknown, NotSent):
            while True:
                await conn.send_bytes(bytes(100_000))

    async with ScriptedServer(deaf) as server:
        with trio.fail_after(BOUND):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    transport=transport,
                    ping_interval=PING_INTERVAL,
                    pong_timeout=PONG_TIMEOUT,
                    when_down="fail",
                    backoff=ListBackoff([1000.0]),
                ) as conn,
                conn.listen() as events,
                trio.open_nursery() as nursery,
            ):
                for _ in range(senders):
                    nursery.start_soon(send)
                with trio.move_on_after(PONG_TIMEOUT - 0.1):
                    while True:
                        await trio.sleep(0.1)
                        waiting.append(conn.statistics().outbox_messages)
                silent = silences(await until_closed(events))
    assert 1 <= max(waiting) <= senders
    assert silent == [("write", PONG_TIMEOUT)]


@pytest.mark.fault("F63", "F64", "F65", where="socket")
@pytest.mark.parametrize(
    ("step", "sends", "clock"), [(mute, False, "pong"), (deaf, False, "pong"), (deaf, True, "write")]
)
async def test_a_black_hole_is_noticed_in_time_at_a_socket_whether_or_not_somebody_sends(
    autojump_clock: MockClock,
    transport: Transport,
    step: Callable[[Peer], Awaitable[None]],
    sends: bool,
    clock: str,
) -> None:
    outcomes: dict[int, type[Exception]] = {}

    async def send(size: int) -> None:
        try:
            await conn.send_bytes(bytes(size))
        except trio_nova.NovaError as error:
            outcomes[size] = type(error)

    with trio.fail_after(BOUND):
        async with ScriptedServer(step, echo) as server:
            async with (
                open_connection(
                    URL,
                    stream_factory=at_a_socket(server),
                    transport=transport,
                    ping_interval=2.0,
                    pong_timeout=3.0,
                    backoff=AT_ONCE,
                    when_down="fail",
                ) as conn,
                conn.listen() as events,
                trio.open_nursery() as nursery,
            ):
                ready = trio.current_time()
                if sends:
                    nursery.start_soon(send, LARGE)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(send, 5)
                silent = silences(await until_closed(events))
                await conn.wait_ready()
                await conn.send_text("the next link is well")
                assert await conn.receive() == "the next link is well"
    assert [name for name, _ in silent] == [clock]
    assert outcomes == ({LARGE: OutcomeUnknown, 5: NotSent} if sends else {})
    assert silent[0][1] - ready <= 2.0 + 3.0


# --------------------------------------------------------------------------- both sides full


@pytest.mark.fault("F66", where="memory")
async def test_two_sides_that_flood_each_other_and_do_not_read_are_no_dead_lock(
    autojump_clock: MockClock, transport: Transport
) -> None:
    async def flood(peer: Peer) -> None:
        await peer.accept()
        while True:
            await peer.send("x" * 1000)

    async def answer_all() -> None:
        async for message in conn:
            with suppress(OutcomeUnknown):
                await conn.send(message * 20)

    async with ScriptedServer(flood, echo, max_buffer=4096) as server:
        with trio.fail_after(BOUND):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    transport=transport,
                    inbox_size=10,
                    inbox_bytes=2**17,  # until it is full, no time passes
                    max_message_size=2**16,
                    ping_interval=PING_INTERVAL,
                    pong_timeout=PONG_TIMEOUT,
                    backoff=AT_ONCE,
                ) as conn,
                conn.listen() as events,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(answer_all)
                silent = silences(await until_closed(events))
                await conn.wait_ready()
                nursery.cancel_scope.cancel(reason="it was noticed")
    assert silent == [("write", PONG_TIMEOUT)]


# --------------------------------------------------------------------------- ends without a word


@pytest.mark.fault("F67", where="memory")
@pytest.mark.parametrize("sends_at", [None, 1.0])
async def test_a_peer_that_has_vanished_is_known_by_the_first_write(
    autojump_clock: MockClock, transport: Transport, sends_at: float | None
) -> None:
    async def reboot(peer: Peer) -> None:
        await peer.accept()
        peer.answer_pings = False
        await peer.receive()
        await peer.reset()

    async with ScriptedServer(reboot, echo) as server:
        with trio.fail_after(BOUND):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    transport=transport,
                    ping_interval=PING_INTERVAL,
                    pong_timeout=PONG_TIMEOUT,
                    backoff=AT_ONCE,
                ) as conn,
                conn.listen() as events,
            ):
                if sends_at is not None:
                    await trio.sleep(sends_at)
                    await conn.send_text("anybody there?")
                last = (await until_closed(events))[-1]
                closed = last.event
                assert isinstance(closed, LinkClosed)
                await conn.wait_ready()
    assert (closed.code, closed.remote, last.at) == (1006, None, sends_at or PING_INTERVAL)


CUTS = {
    "between frames": b"",
    "in a header": encode_frame(Opcode.TEXT, bytes(300))[:3],
    "in a payload": encode_frame(Opcode.TEXT, b"partial")[:6],
    "between fragments": encode_frame(Opcode.TEXT, b"partial", fin=False),
}


@pytest.mark.fault("F68", where="memory")
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("cut", CUTS)
async def test_what_was_whole_is_delivered_before_the_end_and_what_was_cut_is_not(
    autojump_clock: MockClock, transport: Transport, cut: str, how: str
) -> None:
    async def end(peer: Peer) -> None:
        await peer.accept()
        await peer.send("one", b"two", "three")
        await peer.send_raw(CUTS[cut])
        await trio.sleep(1.0)  # a reset discards what is still under way
        await (peer.drop() if how == "fin" else peer.reset())

    received: list[Any] = []
    async with ScriptedServer(end) as server:
        with trio.fail_after(BOUND), pytest.raises(LinkLost) as caught:
            async with open_connection(
                URL, stream_factory=server.stream_factory, transport=transport, max_attempts=0
            ) as conn:
                async for message in conn:
                    received.append(message)
    assert received == ["one", b"two", "three"]
    assert (caught.value.code, caught.value.remote) == (1006, None)


async def end_half(peer: Peer, *, accepted: bool = False) -> None:
    """End our direction, and go on reading for as long as there is somebody."""
    if not accepted:
        await peer.accept()
    stream = peer._stream
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_eof()
    await peer.mute()


async def check_half_close(server: ScriptedServer, url: str, **options: Any) -> None:
    with trio.fail_after(BOUND):
        async with open_connection(url, backoff=ListBackoff([0.1]), **options) as conn:
            await server.dials[0].wait_ended()  # it has hung up, though it could still write
            await conn.send_text("for somebody who can answer")
            assert await conn.receive() == "for somebody who can answer"
    assert not any(isinstance(frame, str | bytes) for frame in server.dials[0].frames)
    assert [frame for frame in server.dials[1].frames if isinstance(frame, str)] == ["for somebody who can answer"]


@pytest.mark.fault("F69", where="memory")
async def test_half_a_close_is_the_end_and_no_send_is_accepted_after_it(
    autojump_clock: MockClock, transport: Transport
) -> None:
    async with ScriptedServer(end_half, echo) as server:
        await check_half_close(server, URL, stream_factory=server.stream_factory, transport=transport)


@pytest.mark.fault("F69", where="memory")
async def test_half_a_close_is_noticed_the_moment_it_comes(autojump_clock: MockClock, transport: Transport) -> None:
    async def end_half_later(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(3.25)
        await end_half(peer, accepted=True)

    async with ScriptedServer(end_half_later, echo) as server:
        with trio.fail_after(BOUND):
            async with (
                open_connection(
                    URL, stream_factory=server.stream_factory, transport=transport, backoff=ListBackoff([0.1])
                ) as conn,
                conn.listen() as events,
            ):
                last = (await until_closed(events))[-1]
    assert isinstance(last.event, LinkClosed)
    assert (last.event.code, last.at) == (1006, 3.25)


@pytest.mark.fault("F69", where="socket")
async def test_half_a_close_of_a_socket_is_the_end(transport: Transport) -> None:
    server = ScriptedServer(end_half, echo)
    async with server.listen() as listening:
        await check_half_close(server, listening.url, transport=transport)


# --------------------------------------------------------------------------- slow, and alive

SLOW = 1_000
"""Bytes a second: 8 kbit/s."""


@pytest.mark.fault("F70", where="memory")
async def test_a_message_that_takes_a_minute_to_arrive_keeps_its_link(
    autojump_clock: MockClock, transport: Transport
) -> None:
    async def drip(peer: Peer) -> None:
        await peer.accept()
        await peer.drip(encode_frame(Opcode.BINARY, bytes(65_536)), SLOW, 1.0)
        await peer.serve_until_closed()

    async with ScriptedServer(drip) as server:
        with trio.fail_after(120.0):
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                transport=transport,
                ping_interval=PING_INTERVAL,
                pong_timeout=PONG_TIMEOUT,
                max_attempts=0,
            ) as conn:
                assert await conn.receive() == bytes(65_536)
                assert trio.current_time() == 65.0
                assert conn.epoch == 1


@pytest.mark.fault("F70", where="memory")
@pytest.mark.parametrize(("pong_timeout", "lives"), [(70.0, True), (30.0, False)])
async def test_a_peer_must_take_64_kib_of_a_write_within_its_patience(
    autojump_clock: MockClock, transport: Transport, pong_timeout: float, lives: bool
) -> None:
    async def sip(peer: Peer) -> None:
        await peer.accept()
        with suppress(trio.BrokenResourceError):
            while await peer._stream.receive_some(SLOW):
                await trio.sleep(1.0)
        await peer.drop()

    async with ScriptedServer(sip, max_buffer=SLOW) as server, trio.open_nursery() as nursery:
        with trio.fail_after(300.0):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    transport=transport,
                    ping_interval=math.inf,
                    pong_timeout=pong_timeout,
                    backoff=ListBackoff([1000.0]),
                ) as conn,
                conn.listen() as events,
            ):
                if lives:
                    await conn.send_bytes(bytes(150_000))
                    assert conn.epoch == 1
                else:
                    with pytest.raises(OutcomeUnknown):
                        await conn.send_bytes(bytes(150_000))
                    silent = silences(await until_closed(events))
                    assert silent == [("write", pong_timeout)]
        nursery.cancel_scope.cancel(reason="it was seen")


@pytest.mark.fault("F71", where="memory")
@pytest.mark.parametrize(
    ("latency", "ping_interval", "pong_timeout"), [(4.0, 1.0, 5.0), (30.0, 1.0, 40.0), (4.0, 10.0, 5.0)]
)
@pytest.mark.parametrize("jitter", [0.0, 0.9])
async def test_a_late_pong_kills_nobody_and_pings_do_not_pile_up(
    autojump_clock: MockClock, latency: float, ping_interval: float, pong_timeout: float, jitter: float
) -> None:
    dice = random.Random(71)
    under_way = most = pings = 0

    async def answer_late(peer: Peer) -> None:
        nonlocal under_way, most, pings
        await peer.accept()
        peer.answer_pings = False

        async def answer(payload: bytes) -> None:
            nonlocal under_way
            await trio.sleep(latency * (1.0 - jitter * dice.random()))
            await peer.send(Pong(payload))
            under_way -= 1

        async with trio.open_nursery() as nursery:
            while not isinstance(frame := await peer.receive(), ClosePayload):
                assert isinstance(frame, Ping)
                under_way, pings = under_way + 1, pings + 1
                most = max(most, under_way)
                nursery.start_soon(answer, frame.payload)
            nursery.cancel_scope.cancel(reason="the client left")

    async with ScriptedServer(answer_late) as server:
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            ping_interval=ping_interval,
            pong_timeout=pong_timeout,
            max_attempts=0,
        ) as conn:
            await trio.sleep(600.0)
            assert conn.epoch == 1
            assert conn.latency is not None
    assert most == 1
    assert pings >= 600.0 / (latency + ping_interval) - 1


# --------------------------------------------------------------------------- clocks


@pytest.mark.fault("F73", where="memory")
@pytest.mark.parametrize("amid", ["the wait", "a probe"])
async def test_eight_hours_asleep_are_one_verdict_one_dial_and_no_burst(autojump_clock: MockClock, amid: str) -> None:
    async def sleep_through() -> None:
        await trio.sleep(2.0 if amid == "the wait" else PING_INTERVAL + 1.0)
        autojump_clock.jump(8 * 3600.0)

    limiter = RateLimitHandler([RollingWindow(10, 10.0)])
    async with ScriptedServer(mute, echo) as server, trio.open_nursery() as nursery:
        with trio.fail_after(9 * 3600.0):
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    ping_interval=PING_INTERVAL,
                    pong_timeout=PONG_TIMEOUT,
                    rate_limit_handler=limiter,
                    backoff=AT_ONCE,
                ) as conn,
                conn.listen() as events,
            ):
                nursery.start_soon(sleep_through)
                silent = silences(await until_closed(events))
                await conn.wait_ready()
                for number in range(30):
                    await conn.send_text(str(number))
                await trio.sleep(60.0)
                assert conn.epoch == 2
        await server.dials[1].wait_ended()
    assert len(silent) == 1
    assert silent[0][1] <= 8 * 3600.0 + PING_INTERVAL + 2 * PONG_TIMEOUT
    assert len(server.dials) == 2
    assert len([frame for frame in server.dials[0].frames if isinstance(frame, Ping)]) == 1
    arrivals = [received.at for received in server.dials[1].journal if not isinstance(received.frame, ClosePayload)]
    assert worst_window(arrivals, 10.0) <= 10


def steady(now: float) -> float:
    return now


def an_hour_back(now: float) -> float:
    return now - (3600.0 if now >= 30.0 else 0.0)


def an_hour_ahead(now: float) -> float:
    return now + (3600.0 if now >= 30.0 else 0.0)


def slewed(now: float) -> float:
    return now * 1.0005


async def what_the_server_saw(wall: Callable[[float], float]) -> tuple[list[Any], list[Event]]:
    """Return what a session sends by a wall clock, and when; and what it says of clocks."""
    began = trio.current_time()
    limiter = RateLimitHandler([RollingWindow(10, 10.0)])

    async def drop_later(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_at(began + 61.5):
            while True:
                await peer.receive()
        await peer.drop()

    async def note(conn: Connection) -> None:
        async with conn.listen(size=4096) as events:
            async for event in events:
                if isinstance(event, ClockJumped | PeerSilent):
                    told.append(event)

    told: list[Event] = []
    async with ScriptedServer(drop_later, echo) as server, trio.open_nursery() as nursery:
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            ping_interval=17.3,  # never due at the moment of a send
            rate_limit_handler=limiter,
            wall_clock=lambda: 1e9 + wall(trio.current_time() - began),
            backoff=ListBackoff([3.0]),
        ) as conn:
            nursery.start_soon(note, conn)
            for number in range(100):
                with suppress(OutcomeUnknown):
                    await conn.send_text(str(number))
        for dialled in server.dials:
            await dialled.wait_ended()
    seen = [
        (round(received.at - began, 6), "ping" if isinstance(received.frame, Ping) else received.frame)
        for dialled in server.dials
        for received in dialled.journal
    ]
    return seen, told


@pytest.mark.fault("F74", where="memory")
async def test_a_wall_clock_that_is_set_changes_nothing_but_a_probe(autojump_clock: MockClock) -> None:
    expected, told = await what_the_server_saw(steady)
    assert told == []
    for wall in (an_hour_back, slewed):
        assert await what_the_server_saw(wall) == (expected, [])
    seen, told = await what_the_server_saw(an_hour_ahead)
    assert [type(event) for event in told] == [ClockJumped]
    assert [entry for entry in seen if entry[1] != "ping"] == [entry for entry in expected if entry[1] != "ping"]
    assert len(seen) <= len(expected) + 1


# --------------------------------------------------------------------------- an uplink that has become slow


@pytest.mark.skipif(sys.platform != "linux", reason="the operating system does not tell")
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize(("clock", "size"), [("pong", 150_000), ("write", 60_000_000)])
async def test_a_peer_that_takes_what_is_in_the_kernel_bit_by_bit_is_alive_and_dead_once_it_takes_no_more(
    clock: str, size: int, tls: bool, transport: Transport, autojump_clock: MockClock
) -> None:
    last_taken = 0.0

    async def take_little(peer: Peer) -> None:
        nonlocal last_taken
        await peer.accept()
        while trio.current_time() < 60.0:  # all that the kernel holds before the ping is taken by then
            await trio.sleep(1.0)
            with trio.move_on_after(0.5):
                await peer._stream.receive_some(4096)
                last_taken = trio.current_time()
        await trio.sleep_forever()

    async def dial(host: str, port: int) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(host, port)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 1_000_000)
        return stream

    told: list[Observation] = []
    server = ScriptedServer(take_little)
    async with server, server.listen(tls=tls, receive_buffer=4096) as listening, trio.open_nursery() as nursery:
        options: dict[str, Any] = {"ssl_context": listening.client_ssl_context} if tls else {}
        options |= {"ping_interval": 2.0, "pong_timeout": 5.0, "max_attempts": 0, "transport": transport}
        with pytest.raises(trio_nova.LinkLost, match=f"by the {clock} clock"):
            async with trio_nova.open_connection(listening.url, stream_factory=dial, **options) as conn:

                async def listen() -> None:
                    async with conn.listen() as heard:
                        told.extend([each async for each in heard.observations()])

                nursery.start_soon(listen)
                with suppress(trio_nova.OutcomeUnknown):
                    await conn.send(bytes(size))
                await conn.wait_closed()
    ((_, lost_at),) = silences(told)
    assert lost_at > 30.0
    assert lost_at <= (last_taken if clock == "pong" else 60.0) + 8.0
