"""Names that lead nowhere, packets that vanish, connections that break before they are worth anything."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import pytest
import trio

from trio_nova import (
    ConnectFailed,
    ConnectTimeout,
    DialStarted,
    ExponentialBackoff,
    ListBackoff,
    RetryScheduled,
    SessionOver,
    State,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.links import _dial as dialling
from trio_nova.testing import Peer, ScriptedServer, echo

BOUND = 100.0
"""Seconds, real ones at sockets, after which a test has failed."""
AT_ONCE = ListBackoff([0.0])


@attrs.define
class Scripted:
    """A resolver that gives one answer after the other, the last one for ever."""

    answers: Sequence[Sequence[str]]
    asked: list[float] = attrs.field(factory=list)

    async def resolve(self, host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Silent:
    """A resolver whose name servers never answer."""

    async def resolve(self, host: str) -> Sequence[str]:
        await trio.sleep_forever()


# --------------------------------------------------------------------------- names


@pytest.mark.fault("F1", where="memory")
@pytest.mark.parametrize("why", [socket.EAI_NONAME, socket.EAI_AGAIN], ids=["no such name", "not now"])
async def test_a_name_that_cannot_be_found_is_asked_for_slower_each_time(
    autojump_clock: trio.abc.Clock, transport: Transport, why: int
) -> None:
    asked: list[float] = []

    class Failing:
        async def resolve(self, host: str) -> Sequence[str]:
            await trio.lowlevel.checkpoint()
            asked.append(trio.current_time())
            raise ConnectFailed(f"cannot look up {host}", phase="dns") from socket.gaierror(why, "no")

    with trio.fail_after(3600), pytest.raises(SessionOver) as caught:
        async with open_connection(
            "ws://nowhere.test/",
            transport=transport,
            resolver=Failing(),
            backoff=ExponentialBackoff(),
            spread=lambda: 0.999,
            retry_first_connect=True,
            max_attempts=5,
        ):
            raise AssertionError("never entered")
    assert isinstance(caught.value.last, ConnectFailed)
    assert (caught.value.last.phase, caught.value.last.retry) == ("dns", "backoff")
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert len(gaps) == 5
    assert min(gaps) >= 0.9
    assert gaps[1:] == sorted(gaps[1:])


@pytest.mark.fault("F2", where="memory")
async def test_silent_name_servers_cost_the_connect_timeout_and_no_more(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    started = trio.current_time()
    with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
        async with open_connection("ws://hole.test/", transport=transport, resolver=Silent(), connect_timeout=10):
            raise AssertionError("never entered")
    assert caught.value.phase == "dns"
    assert trio.current_time() - started == pytest.approx(10)

    with trio.move_on_after(3) as scope:
        async with open_connection("ws://hole.test/", transport=transport, resolver=Silent()):
            raise AssertionError("never entered")
    assert scope.cancelled_caught
    assert trio.current_time() - started == pytest.approx(13)


@pytest.mark.fault("F3", where="memory")
async def test_a_hundred_dead_addresses_share_one_connect_timeout(
    autojump_clock: trio.abc.Clock, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: set[str] = set()
    most = 0

    async def vanish(address: str, port: int) -> trio.socket.SocketType:
        nonlocal most
        under_way.add(address)
        most = max(most, len(under_way))
        try:
            await trio.sleep_forever()
        finally:
            under_way.discard(address)

    monkeypatch.setattr(dialling, "_connect", vanish)
    addresses = [f"192.0.2.{number}" for number in range(1, 101)]
    started = trio.current_time()
    with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
        async with open_connection(
            "ws://many.test/", transport=transport, resolver=Scripted([addresses]), connect_timeout=10
        ):
            raise AssertionError("never entered")
    assert caught.value.phase == "tcp"
    assert trio.current_time() - started == pytest.approx(10)
    assert 1 < most <= 5
    assert under_way == set()


@pytest.mark.fault("F4", where="socket")
async def test_the_next_link_goes_where_the_name_leads_by_then(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    old, new = ScriptedServer(drop), ScriptedServer(echo)
    resolver = Scripted([["192.0.2.1"], ["192.0.2.2"]])
    with trio.fail_after(BOUND):
        async with old.listen() as first, new.listen() as second:
            ports = {"192.0.2.1": first.port, "192.0.2.2": second.port}

            async def connect(address: str, port: int) -> trio.socket.SocketType:
                sock = trio.socket.socket()
                await sock.connect(("127.0.0.1", ports[address]))
                return sock

            monkeypatch.setattr(dialling, "_connect", connect)
            async with open_connection(
                "ws://moving.test/", transport=transport, resolver=resolver, backoff=AT_ONCE
            ) as conn:
                while conn.epoch < 2:
                    await trio.sleep(0.01)
                await conn.send_text("moved")
                assert await conn.receive() == "moved"
    assert [len(old.dials), len(new.dials), len(resolver.asked)] == [1, 1, 2]


# --------------------------------------------------------------------------- TCP


@contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port of this machine at which the kernel drops every further SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        where = listener.getsockname()
        fillers = []
        try:
            while True:
                filler = socket.socket()
                fillers.append(filler)
                filler.settimeout(0.2)
                try:
                    filler.connect(where)
                except TimeoutError:
                    break
            yield where[1]
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.fault("F6", where="socket")
async def test_a_connect_whose_packets_vanish_is_given_up(autojump_clock: trio.abc.Clock, transport: Transport) -> None:
    with full_backlog() as port:
        started = trio.current_time()
        with pytest.raises(ConnectTimeout) as caught:
            async with open_connection(f"ws://127.0.0.1:{port}/", transport=transport, connect_timeout=10.0):
                raise AssertionError("never entered")
        assert caught.value.phase == "tcp"
        assert trio.current_time() - started == pytest.approx(10.0)


async def say_nothing(peer: Peer) -> None:
    await peer.read_request()
    await peer.mute()


async def drip_for_ever(peer: Peer) -> None:
    await peer.read_request()
    await peer.drip(b"HTTP/1.1 101 Switching Protocols\r\nX-Slow: " + b"x" * 1000, interval=1.0)


async def do_not_even_read(peer: Peer) -> None:
    await peer.hang()


@pytest.mark.fault("F7", where="memory")
@pytest.mark.parametrize("script", [say_nothing, drip_for_ever, do_not_even_read])
async def test_a_server_that_does_not_answer_the_upgrade_costs_the_connect_timeout(
    autojump_clock: trio.abc.Clock, transport: Transport, script: Callable[[Peer], Awaitable[object]]
) -> None:
    started = trio.current_time()
    async with ScriptedServer(script) as server:
        with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
            async with open_connection(
                "ws://mute.test/", transport=transport, stream_factory=server.stream_factory, connect_timeout=10
            ):
                raise AssertionError("never entered")
        assert trio.current_time() - started == pytest.approx(10)
    assert (caught.value.phase, caught.value.retry) == ("http", "backoff")


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Let this process open none: those that are free below the limit are taken."""
    import resource  # only where there is a /proc

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest + 1, hard), hard))
    taken: list[int] = []
    try:
        with open(os.devnull, "rb") as null:
            while True:
                try:
                    taken.append(os.dup(null.fileno()))
                except OSError:
                    break
            yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F9", where="socket")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc for what is open")
async def test_without_a_file_descriptor_the_dial_fails_and_the_next_one_succeeds(transport: Transport) -> None:
    server = ScriptedServer(echo)
    with trio.fail_after(BOUND):
        async with server.listen() as listening:
            with no_more_descriptors(), pytest.raises(ConnectFailed) as caught:
                async with open_connection(listening.url, transport=transport):
                    raise AssertionError("never entered")
            assert caught.value.retry == "backoff"
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EMFILE
            async with open_connection(listening.url, transport=transport) as conn:
                await conn.send_text("here again")
                assert await conn.receive() == "here again"


@pytest.mark.fault("F9", where="socket")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc for what is open")
async def test_a_session_without_a_file_descriptor_waits_between_its_dials_and_recovers(transport: Transport) -> None:
    async def drop_when_asked(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    server = ScriptedServer(drop_when_asked, echo)
    with trio.fail_after(BOUND):
        async with (
            server.listen() as listening,
            open_connection(listening.url, transport=transport, backoff=ListBackoff([0.2])) as conn,
            conn.listen() as events,
        ):
            await conn.send_text("drop me")
            await conn.wait_state(State.DISCONNECTED)
            with no_more_descriptors():
                await trio.sleep(1.0)
            await conn.wait_ready()
            await conn.send_text("here again")
            assert await conn.receive() == "here again"
            told = await events.receive_batch()
    dials = [event for event in told if isinstance(event, DialStarted)]
    failures = [event.error for event in told if isinstance(event, RetryScheduled)][1:]  # the first is the drop
    assert 1 <= len(failures) <= 5
    assert len(dials) == len(failures) + 1
    for failure in failures:
        assert isinstance(failure.__cause__, OSError)
        assert failure.__cause__.errno == errno.EMFILE


@pytest.mark.fault("F10", where="memory")
@pytest.mark.parametrize("why", [errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT])
async def test_a_network_that_goes_down_amid_the_connect_may_come_back(
    autojump_clock: trio.abc.Clock, transport: Transport, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    dials = 0

    async def fail(address: str, port: int) -> trio.socket.SocketType:
        nonlocal dials
        dials += 1
        await trio.sleep(1)
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(dialling, "_connect", fail)
    with trio.fail_after(3600), pytest.raises(SessionOver) as caught:
        async with open_connection(
            "ws://down.test/",
            transport=transport,
            resolver=Scripted([["192.0.2.1"]]),
            retry_first_connect=True,
            max_attempts=3,
        ):
            raise AssertionError("never entered")
    last = caught.value.last
    assert isinstance(last, ConnectFailed)
    assert (last.phase, last.retry) == ("tcp", "backoff")
    assert os.strerror(why) in str(last)
    assert dials == 4


async def reset_at_once(peer: Peer) -> None:
    await peer.reset()


async def reset_amid_the_status_line(peer: Peer) -> None:
    await peer.read_request()
    await peer.send_raw(b"HTTP/1.1 101 Sw")
    await peer.reset()


@pytest.mark.parametrize(
    ("script", "phases"),
    [
        # A reset may be seen before the request is written.
        pytest.param(reset_at_once, {"tcp", "http"}, marks=pytest.mark.fault("F11", where="socket")),
        pytest.param(reset_amid_the_status_line, {"http"}, marks=pytest.mark.fault("F12", where="socket")),
    ],
)
async def test_a_connection_that_is_reset_in_the_upgrade_fails_at_once(
    transport: Transport, script: Callable[[Peer], Awaitable[object]], phases: set[str]
) -> None:
    server = ScriptedServer(script)
    with trio.fail_after(BOUND):
        async with server.listen() as listening:
            with pytest.raises(ConnectFailed) as caught:
                async with open_connection(listening.url, transport=transport, connect_timeout=600):
                    raise AssertionError("never entered")
    assert type(caught.value) is ConnectFailed
    assert caught.value.phase in phases
    assert caught.value.retry == "backoff"
