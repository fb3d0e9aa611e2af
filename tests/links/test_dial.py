"""Names, TCP and its race, stream factories and Unix sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from trio_nova.errors import ConfigError, ConnectFailed, RetryAdvice
from trio_nova.links import Dial, SystemResolver, Transport, TrioWebsocketTransport, unix_stream
from trio_nova.links import _dial as dialling
from trio_nova.links._dial import open_stream
from trio_nova.testing import ScriptedServer, echo, make_dial
from trio_nova.urls import Url

if TYPE_CHECKING:
    from tests.links.conftest import Peer


@attrs.frozen
class Answers:
    """A resolver that knows all answers beforehand."""

    addresses: Sequence[str]

    async def resolve(self, host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return self.addresses


def dial_to(url: str, **fields: Any) -> Dial:
    default: dict[str, Any] = {
        "url": Url.parse(url),
        "epoch": 1,
        "resolver": SystemResolver(),
        "max_message_size": 2**20,
        "close_timeout": 1.0,
    }
    return Dial(**(default | fields))


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --------------------------------------------------------------------------- TCP


async def test_a_link_over_a_socket_announces_each_phase() -> None:
    phases: list[str] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as stream:
                await stream.receive_some(4096)
                await stream.send_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

        nursery.start_soon(serve)
        with pytest.raises(ConnectFailed):
            async with TrioWebsocketTransport().open(dial_to(f"ws://localhost:{port}/", on_phase=phases.append)):
                pass
    await listener.aclose()
    assert phases == ["dns", "tcp", "http"]


@pytest.mark.fault("F5", where="socket")
async def test_a_refused_connection_names_host_and_port_and_no_secret() -> None:
    port = closed_port()
    with pytest.raises(ConnectFailed) as caught:
        await open_stream(dial_to(f"ws://user:CANARY@127.0.0.1:{port}/?t=CANARY"))
    exc = caught.value
    assert (exc.phase, exc.retry) == ("tcp", RetryAdvice.BACKOFF)
    assert f"127.0.0.1:{port}" in str(exc)
    assert "CANARY" not in str(exc)
    assert isinstance(exc.__cause__, ConnectionRefusedError)


@pytest.mark.fault("F8", where="socket")
async def test_the_second_address_is_tried_when_the_first_is_dead() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    stream = await open_stream(dial_to(f"ws://two.test:{port}/", resolver=Answers(["127.0.0.2", "127.0.0.1"])))
    assert isinstance(stream, trio.SocketStream)
    assert stream.socket.getpeername()[0] == "127.0.0.1"
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await stream.aclose()
    await listener.aclose()


async def test_every_dead_address_is_in_the_cause() -> None:
    port = closed_port()
    with pytest.raises(ConnectFailed) as caught:
        await open_stream(dial_to(f"ws://two.test:{port}/", resolver=Answers(["127.0.0.2", "127.0.0.1"])))
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


class Wire:
    """Connects as told: each address with a delay and an outcome; keeps books of what is open."""

    def __init__(self, script: Mapping[str, float | OSError | trio.Event]) -> None:
        self.script = script
        self.begun: dict[str, float] = {}
        self.at_once = self.most_at_once = 0
        self.sockets: list[socket.socket] = []

    async def connect(self, address: str, port: int) -> trio.socket.SocketType:
        self.begun[address] = trio.current_time()
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            delay = self.script.get(address, float("inf"))
            if isinstance(delay, OSError):
                raise delay
            if isinstance(delay, trio.Event):
                await delay.wait()
            else:
                await trio.sleep(delay)
        finally:
            self.at_once -= 1
        sock = socket.socket()
        sock.setblocking(False)
        self.sockets.append(sock)
        return trio.socket.from_stdlib_socket(sock)


@pytest.mark.fault("F8", where="memory")
async def test_attempts_are_staggered_and_losers_are_closed(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = trio.Event()
    wire = Wire({"10.0.0.2": answered, "10.0.0.3": answered})  # both arrive in the same instant
    monkeypatch.setattr(dialling, "_connect", wire.connect)
    before = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await trio.sleep(0.6)
            answered.set()

        nursery.start_soon(answer)
        dial = dial_to("ws://many.test/", resolver=Answers([f"10.0.0.{i}" for i in range(1, 5)]))
        stream = await open_stream(dial)
    assert [when - before for when in wire.begun.values()] == pytest.approx([0, 0.25, 0.5])
    await stream.aclose()
    assert [sock.fileno() for sock in wire.sockets] == [-1, -1]
    assert wire.at_once == 0


@pytest.mark.fault("F8", where="memory")
async def test_a_failed_attempt_starts_the_next_one_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire({"10.0.0.1": OSError(101, "down"), "10.0.0.2": 0.1})
    monkeypatch.setattr(dialling, "_connect", wire.connect)
    before = trio.current_time()
    stream = await open_stream(dial_to("ws://many.test/", resolver=Answers(["10.0.0.1", "10.0.0.2"])))
    assert trio.current_time() - before == pytest.approx(0.1)
    await stream.aclose()


@pytest.mark.fault("F3", where="memory")
async def test_at_most_a_handful_of_addresses_is_tried_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire({})
    monkeypatch.setattr(dialling, "_connect", wire.connect)
    with trio.move_on_after(60):
        await open_stream(dial_to("ws://many.test/", resolver=Answers([f"10.0.0.{i}" for i in range(100)])))
    assert wire.most_at_once == 5
    assert wire.at_once == 0


# --------------------------------------------------------------------------- zones


async def test_an_address_with_a_zone_is_dialled_with_it_and_named_without(transport: Transport) -> None:
    dialled: list[tuple[str, int]] = []
    async with ScriptedServer(echo) as server:

        async def factory(host: str, port: int) -> trio.abc.Stream:
            dialled.append((host, port))
            return await server.stream_factory(host, port)

        dial = attrs.evolve(make_dial(server, "ws://[fe80::1%25eth0]:99/"), stream_factory=factory)
        async with transport.open(dial) as link:
            await link.aclose()
    assert dialled == [("fe80::1%eth0", 99)]
    assert server.dials[0].request is not None
    assert server.dials[0].request.headers["host"] == "[fe80::1]:99"


async def test_a_socket_is_connected_in_the_zone_that_the_url_names(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire({"fe80::1%7": 0})
    monkeypatch.setattr(dialling, "_connect", wire.connect)
    await (await open_stream(dial_to("ws://[fe80::1%257]/"))).aclose()
    assert list(wire.begun) == ["fe80::1%7"]


async def test_an_address_in_a_zone_of_this_machine_can_be_reached() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="::1")
    async with listener:
        port = listener.socket.getsockname()[1]
        zone = socket.if_nametoindex("lo")
        await (await open_stream(dial_to(f"ws://[::1%25{zone}]:{port}/"))).aclose()


async def test_a_zone_that_is_none_is_a_failed_dial() -> None:
    with pytest.raises(ConnectFailed, match=r"fe80::1%nowhere:80") as caught:
        await open_stream(dial_to("ws://[fe80::1%25nowhere]/"))
    assert caught.value.phase == "tcp"


async def test_the_zone_of_an_address_that_was_looked_up_is_kept() -> None:
    answer = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 0, 0, zone)) for zone in (2, 3, 2, 0)]
    resolver = SystemResolver(getaddrinfo=lambda host: answer)
    assert await resolver.resolve("printer.local") == ["fe80::1%2", "fe80::1%3", "fe80::1"]


# --------------------------------------------------------------------------- factories


@pytest.mark.parametrize(
    ("failure", "retry"),
    [(OSError(111, "refused"), "backoff"), (trio.BrokenResourceError(), "backoff"), (TypeError("bug"), "never")],
)
async def test_what_a_stream_factory_raises_becomes_ours(peer: Peer, failure: Exception, retry: str) -> None:
    async def fail(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise failure

    with pytest.raises(ConnectFailed) as caught:
        await open_stream(peer.dial(stream_factory=fail))
    assert (caught.value.phase, caught.value.retry) == ("tcp", retry)
    assert caught.value.__cause__ is failure


async def test_a_stream_factory_that_makes_something_else_is_refused(peer: Peer) -> None:
    async def make(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return object()  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=r"^stream_factory: it must return a trio.abc.Stream, not a object"):
        await open_stream(peer.dial(stream_factory=make))


async def test_a_unix_socket_can_be_dialled(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    stream = await open_stream(dial_to("ws://anything/", stream_factory=unix_stream(path)))
    await stream.aclose()
    listener.close()


# --------------------------------------------------------------------------- names


def info(address: str) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, 0))


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.9", ["127.0.0.9"]),
        ("::1", ["::1"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("a.localhost", ["127.0.0.1", "::1"]),
    ],
)
async def test_literals_and_localhost_need_no_thread(host: str, addresses: list[str]) -> None:
    def never(host: str) -> Any:
        raise AssertionError

    assert list(await SystemResolver(getaddrinfo=never).resolve(host)) == addresses


async def test_families_take_turns_and_the_systems_favourite_begins() -> None:
    answer = [info(address) for address in ("::2", "::3", "::2", "10.0.0.1", "::4")]
    resolver = SystemResolver(getaddrinfo=lambda host: answer)
    assert await resolver.resolve("x.test") == ["::2", "10.0.0.1", "::3", "::4"]


@pytest.mark.fault("F1", where="memory")
@pytest.mark.parametrize("failure", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label")])
async def test_a_failed_look_up_names_the_host_and_its_phase(failure: Exception) -> None:
    def fail(host: str) -> Any:
        raise failure

    with pytest.raises(ConnectFailed, match=r"x\.test") as caught:
        await SystemResolver(getaddrinfo=fail).resolve("x.test")
    assert caught.value.phase == "dns"
    assert caught.value.__cause__ is failure


async def test_no_address_at_all_is_a_failed_look_up() -> None:
    with pytest.raises(ConnectFailed, match="no address"):
        await SystemResolver(getaddrinfo=lambda host: []).resolve("x.test")


class BlackHole:
    """A name server that is silent until it is opened."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = threading.Event()
        self.began = threading.Semaphore(0)

    def __call__(self, host: str) -> Any:
        self.asked.append(host)
        self.began.release()
        assert self.open.wait(100)
        return [info("10.0.0.1")]

    async def wait_begun(self) -> None:
        await trio.to_thread.run_sync(self.began.acquire)


@pytest.mark.fault("F2", where="memory")
async def test_callers_of_one_host_share_a_look_up_and_one_leaving_does_not_end_it() -> None:
    hole = BlackHole()
    resolver = SystemResolver(getaddrinfo=hole)
    answers: list[Sequence[str]] = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await resolver.resolve("x.test"))

    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(3)]
        for scope in scopes:
            nursery.start_soon(ask, scope)
        await hole.wait_begun()
        await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        hole.open.set()
    assert answers == [["10.0.0.1"]] * 2
    assert hole.asked == ["x.test"]
    await resolver.resolve("x.test")
    assert hole.asked == ["x.test"] * 2  # nothing is remembered beyond the look-up


@pytest.mark.fault("F2", where="memory")
async def test_a_black_hole_holds_four_threads_and_none_of_trios() -> None:
    hole = BlackHole()
    resolver = SystemResolver(getaddrinfo=hole)
    for _ in range(3):  # whoever comes back finds the look-up under way
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for i in range(50):
                    nursery.start_soon(resolver.resolve, f"h{i}.test")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    for _ in range(4):
        await hole.wait_begun()
    assert len(hole.asked) == 4
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    await trio.to_thread.run_sync(lambda: None)  # who needs a thread for something else gets one, while all four wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, "late.test")
        await trio.testing.wait_all_tasks_blocked()
        hole.open.set()
    assert len(hole.asked) == 5  # those that were queued and left alone were never asked for


def test_a_resolver_outlives_a_run_that_left_its_threads_behind() -> None:
    hole = BlackHole()
    resolver = SystemResolver(getaddrinfo=hole)

    async def give_up() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for i in range(4):
                    nursery.start_soon(resolver.resolve, f"h{i}.test")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    async def ask() -> Sequence[str]:
        return await resolver.resolve("h0.test")

    trio.run(give_up)
    hole.open.set()
    assert trio.run(ask) == ["10.0.0.1"]
