"""Goodbyes that are impossible, unanswered, crossed or interrupted: leaving is always bounded and said once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio._core import _run
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from tests.hostile.conftest import at_a_socket
from trio_nova import (
    AuthHandler,
    ConfigError,
    Connection,
    ConnectionHandler,
    JsonCodec,
    LinkClosed,
    LinkLost,
    ListBackoff,
    MessageHandler,
    OutcomeUnknown,
    SessionEnded,
    State,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.testing import ClosePayload, Opcode, Peer, Script, ScriptedServer, echo, encode_frame

URL = "ws://server.test/"
CLOSE_TIMEOUT = 2.0


# --------------------------------------------------------------------------- what may be said


@pytest.mark.fault("F75", where="memory")
@pytest.mark.parametrize(
    ("code", "reason", "field"),
    [
        *((code, "", "code") for code in (-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 2**16 + 1000)),
        ("1000", "", "code"),
        (1000.0, "", "code"),
        (None, "", "code"),
        (True, "", "code"),
        (1000, "x" * 124, "reason"),
        (1000, "ü" * 62, "reason"),
        (1000, b"bytes", "reason"),
        (1000, None, "reason"),
        (1000, "half a pair: \ud800", "reason"),
    ],
)
async def test_a_goodbye_that_no_frame_can_say_is_refused_and_nothing_is_said(
    autojump_clock: MockClock, code: Any, reason: Any, field: str
) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            with pytest.raises(ConfigError) as caught:
                await conn.aclose(code, reason)
            assert caught.value.field == field
            with pytest.raises(ConfigError):
                trio_nova.Close(code, reason)
            if field == "reason":
                with pytest.raises(ConfigError):
                    await conn.reconnect(reason)
            await conn.send_text("still here")
            assert await conn.receive() == "still here"
        await server.dials[0].wait_ended()
    assert server.dials[0].frames == ["still here", ClosePayload(1000)]


@pytest.mark.fault("F75", where="memory")
@pytest.mark.parametrize("reason", ["x" * 123, "ü" * 61 + "x", "€" * 41])
async def test_a_reason_of_123_bytes_is_said_whole(
    autojump_clock: MockClock, transport: Transport, reason: str
) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, transport=transport) as conn:
            await conn.aclose(4999, reason)
        await server.dials[0].wait_ended()
    assert server.dials[0].frames == [ClosePayload(4999, reason)]


# --------------------------------------------------------------------------- what a close frame says, or does not


async def close_when_open(peer: Peer, payload: bytes) -> None:
    await peer.accept()
    await peer.send("last words")
    await peer.send_frame(Opcode.CLOSE, payload)
    await peer.mute()


async def close_instead_of_an_answer(peer: Peer, payload: bytes) -> None:
    await peer.accept()
    await peer.receive()
    await peer.send_frame(Opcode.CLOSE, payload)
    await peer.mute()


async def close_in_answer_to_ours(peer: Peer, payload: bytes) -> None:
    await peer.accept()
    await peer.send("last words")
    await peer.expect_close()
    await peer.send_frame(Opcode.CLOSE, payload)
    await peer.mute()


class Login(AuthHandler):
    async def authenticate(self, exchange: Any, credentials: Any) -> Any:
        return await exchange.ask("login", lambda message: None)


@pytest.mark.parametrize("say", [close_when_open, close_instead_of_an_answer, close_in_answer_to_ours])
async def test_a_close_frame_that_says_nothing_ends_a_session_as_1000_does(
    autojump_clock: MockClock, transport: Transport, say: Callable[..., Awaitable[None]]
) -> None:
    """Browsers and npm ws send one where no code is given."""
    ends = []
    for payload in (b"", (1000).to_bytes(2)):
        received, error = [], None
        options: dict[str, Any] = {"auth_handler": Login} if say is close_instead_of_an_answer else {}
        async with ScriptedServer(partial(say, payload=payload)) as server:
            began = trio.current_time()
            try:
                async with open_connection(
                    URL, transport=transport, stream_factory=server.stream_factory, max_attempts=0, **options
                ) as conn:
                    if say is close_in_answer_to_ours:
                        received.append(await conn.receive())
                        await conn.aclose()
                    received += [message async for message in conn]
            except trio_nova.NovaError as exc:
                error = exc
            ends.append((received, type(error), trio.current_time() - began))
    assert ends[0] == ends[1]
    assert ends[0][1] is (LinkLost if say is close_instead_of_an_answer else type(None))  # no first link came up


async def test_a_link_that_is_closed_without_a_code_is_dialled_again(
    autojump_clock: MockClock, transport: Transport
) -> None:
    async with (
        ScriptedServer(partial(close_when_open, payload=b""), echo) as server,
        open_connection(URL, transport=transport, stream_factory=server.stream_factory) as conn,
    ):
        assert await conn.receive() == "last words"
        await conn.wait_state(State.DISCONNECTED)
        assert conn.close_info == trio_nova.CloseInfo(1005, "", True, 1)
        await conn.wait_state(State.READY)
        assert server.dials[0].frames == [ClosePayload(1005)]


ILLEGAL_GOODBYES: dict[str, tuple[bytes, int, str]] = {
    "1006": ((1006).to_bytes(2) + b"going down at 12:00", 1002, "close-code: 1006 'going down at 12:00'"),
    "5000": ((5000).to_bytes(2) + "schönen Tag".encode(), 1002, "close-code: 5000 'schönen Tag'"),
    "0": ((0).to_bytes(2) + b"x" * 123, 1002, f"close-code: 0 '{'x' * 123}'"),
    "1005 without a reason": ((1005).to_bytes(2), 1002, "close-code: 1005"),
    "one byte": (b"\x03", 1002, "close-length: 3"),
    "no UTF-8": ((1001).to_bytes(2) + b"caf\xe9", 1007, r"close-reason: 1001 'caf\\xe9'"),
    "what a terminal would obey": ((999).to_bytes(2) + b"\x1b[2J\n", 1002, r"close-code: 999 '\\x1b[2J\\n'"),
    "a secret": ((999).to_bytes(2) + b"bad token t0k3n-of-mine", 1002, "close-code: 999 'bad token ***'"),
}


@pytest.mark.fault("F47", where="memory")
@pytest.mark.parametrize("goodbye", ILLEGAL_GOODBYES)
async def test_what_an_illegal_close_frame_says_is_kept_and_the_link_is_dialled_again(
    autojump_clock: MockClock, transport: Transport, goodbye: str
) -> None:
    payload, code, said = ILLEGAL_GOODBYES[goodbye]
    events: list[trio_nova.Event] = []

    class Log(trio_nova.LoggingHandler):
        def log_connection_event(self, observation: trio_nova.Observation) -> None:
            events.append(observation.event)

    async with (
        ScriptedServer(partial(close_when_open, payload=payload), echo) as server,
        open_connection(
            URL,
            transport=transport,
            stream_factory=server.stream_factory,
            headers={"Authorization": "Bearer t0k3n-of-mine"},
            allow_plaintext_credentials=True,
            logging_handler=Log,
        ) as conn,
    ):
        assert await conn.receive() == "last words"
        await conn.wait_state(State.DISCONNECTED)
        assert conn.close_info == trio_nova.CloseInfo(code, "", False, 1, said)
        lost = conn.health().last_error
        assert isinstance(lost, LinkLost)
        assert lost.detail == said
        assert said in str(lost)
        await conn.wait_state(State.READY)
        assert [event.detail for event in events if isinstance(event, LinkClosed)] == [said]
        (answer,) = server.dials[0].frames
        assert isinstance(answer, ClosePayload)
        assert answer.code == code


@pytest.mark.parametrize("payload", [b"", (5000).to_bytes(2) + b"bye", b"\x03"])
async def test_whatever_answers_our_goodbye_the_end_is_ours(
    autojump_clock: MockClock, transport: Transport, payload: bytes
) -> None:
    async with ScriptedServer(partial(close_in_answer_to_ours, payload=payload)) as server:
        async with open_connection(URL, transport=transport, stream_factory=server.stream_factory) as conn:
            before = trio.current_time()
            await conn.aclose(4000, "done")
            assert trio.current_time() == before
            assert conn.close_info == trio_nova.CloseInfo(4000, "done", False, 1)


# --------------------------------------------------------------------------- however the peer behaves


async def deaf(peer: Peer) -> None:
    await peer.accept()
    await peer.stop_reading()


async def mute(peer: Peer) -> None:
    await peer.accept()
    await peer.mute()


async def answer_and_stay(peer: Peer) -> None:
    await peer.accept()
    peer.answer_pings = False
    while not isinstance(frame := await peer.receive(), ClosePayload):
        pass
    await peer.send(frame)
    await peer.mute()


async def flood(peer: Peer) -> None:
    await peer.accept()
    while True:
        await peer.send("x" * 10_000)
        await trio.sleep(0.01)


async def ping_without_end(peer: Peer) -> None:
    await peer.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.mute)
        while True:
            await peer.send(trio_nova.Ping(b"x" * 100))
            await trio.sleep(0.01)


async def stop_amid_a_frame(peer: Peer) -> None:
    await peer.accept()
    await peer.send_raw(encode_frame(Opcode.BINARY, bytes(1000))[:500])
    await peer.mute()


async def drip_the_answer(peer: Peer) -> None:
    await peer.accept()
    peer.answer_pings = False
    while not isinstance(await peer.receive(), ClosePayload):
        pass
    await peer.drip(encode_frame(Opcode.CLOSE, b"\x03\xe8" + b"x" * 100), 1, 1.0)
    await peer.mute()


async def end_half(peer: Peer) -> None:
    await peer.accept()
    await trio.sleep(1.0)
    stream = peer._stream
    assert isinstance(stream, trio.abc.HalfCloseableStream)
    await stream.send_eof()
    await peer.mute()


async def vanish_at_the_goodbye(peer: Peer) -> None:
    await peer.accept()
    peer.answer_pings = False
    while not isinstance(await peer.receive(), ClosePayload):
        pass
    await peer.reset()


PEERS: list[Script] = [
    deaf,
    mute,
    answer_and_stay,
    flood,
    ping_without_end,
    stop_amid_a_frame,
    drip_the_answer,
    end_half,
    vanish_at_the_goodbye,
]


async def close(conn: Connection) -> None:
    await conn.aclose()


async def leave(conn: Connection) -> None:
    pass


async def be_cancelled(conn: Connection) -> None:
    with trio.CancelScope() as scope:
        scope.cancel(reason="the user had enough")
        await conn.aclose()


async def raise_an_error(conn: Connection) -> None:
    raise KeyError("from the block")


@pytest.mark.fault("F76", "F77", where="memory")
@pytest.mark.parametrize("blocked", [False, True], ids=["idle", "a_sender_blocked"])
@pytest.mark.parametrize("way", [close, leave, be_cancelled, raise_an_error], ids=lambda way: way.__name__)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
async def test_leaving_takes_close_timeout_at_most_and_everybody_who_waits_is_told(
    autojump_clock: MockClock,
    transport: Transport,
    peer: Script,
    way: Callable[[Connection], Awaitable[None]],
    blocked: bool,
) -> None:
    woken: dict[str, float] = {}

    async def wait(name: str, call: Callable[..., Awaitable[object]], *args: Any) -> None:
        with suppress(trio_nova.NovaError):
            while True:
                await call(*args)
                if name in ("wait_closed", "send"):
                    break
        woken[name] = trio.current_time()

    async def subscribe(conn: Connection) -> None:
        async with conn.subscribe("a"):
            pass

    async with ScriptedServer(peer) as server, trio.open_nursery() as outside:
        with trio.fail_after(60.0), suppress(KeyError):
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                transport=transport,
                codec=JsonCodec(),
                close_timeout=CLOSE_TIMEOUT,
                ping_interval=0.7,
                pong_timeout=100.0,
                backoff=ListBackoff([1000.0]),
            ) as conn:
                outside.start_soon(wait, "receive", conn.receive)
                outside.start_soon(wait, "request", conn.request, {"n": 1})
                outside.start_soon(wait, "subscribe", subscribe, conn)
                outside.start_soon(wait, "ping", conn.ping)
                outside.start_soon(wait, "reconnected", conn.wait_state, State.RESTORING)
                outside.start_soon(wait, "wait_closed", conn.wait_closed)
                if blocked:
                    outside.start_soon(wait, "send", conn.send_bytes, bytes(200_000))
                await trio.sleep(1.5)
                began = trio.current_time()
                await way(conn)
        assert trio.current_time() - began <= CLOSE_TIMEOUT
        await wait_all_tasks_blocked()
        assert set(woken) == {"receive", "request", "subscribe", "ping", "reconnected", "wait_closed"} | (
            {"send"} if blocked else set()
        )
        assert max(woken.values()) - began <= CLOSE_TIMEOUT
        outside.cancel_scope.cancel(reason="the server may go")


@pytest.mark.fault("F76", "F77", where="socket")
@pytest.mark.parametrize(
    ("peer", "blocked"),
    [(deaf, True), (deaf, False), (mute, False), (answer_and_stay, False), (vanish_at_the_goodbye, False)],
)
async def test_leaving_is_bounded_at_a_socket_too(
    autojump_clock: MockClock, transport: Transport, peer: Script, blocked: bool
) -> None:
    async def send() -> None:
        with suppress(OutcomeUnknown):
            await conn.send_bytes(bytes(50_000_000))

    async with ScriptedServer(peer) as server, trio.open_nursery() as outside:
        async with open_connection(
            URL,
            stream_factory=at_a_socket(server),
            transport=transport,
            close_timeout=CLOSE_TIMEOUT,
            pong_timeout=1000.0,
        ) as conn:
            if blocked:
                outside.start_soon(send)
                await wait_all_tasks_blocked()
            began = trio.current_time()
        assert trio.current_time() - began <= CLOSE_TIMEOUT
    assert conn.state is State.CLOSED


@pytest.mark.fault("F79", where="socket")
@pytest.mark.parametrize("call", ["send", "receive"])
async def test_a_call_that_waits_at_a_socket_returns_at_once_when_it_is_cancelled(
    autojump_clock: MockClock, transport: Transport, call: str
) -> None:
    async with (
        ScriptedServer(deaf) as server,
        open_connection(
            URL,
            stream_factory=at_a_socket(server),
            transport=transport,
            close_timeout=CLOSE_TIMEOUT,
            pong_timeout=1000.0,
        ) as conn,
    ):
        began = trio.current_time()
        with trio.move_on_at(began + 0.25) as scope:
            await (conn.receive() if call == "receive" else conn.send_bytes(bytes(8_000_000)))
        assert scope.cancelled_caught
        assert trio.current_time() == began + 0.25


# --------------------------------------------------------------------------- crossed, and torn


@pytest.fixture(params=range(6))
def scheduling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks in an order that is random, and the same every time."""
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    _run._r.seed(request.param)


@pytest.mark.fault("F78", where="memory")
@pytest.mark.usefixtures("scheduling")
@pytest.mark.parametrize("then", ["waits", "drops", "resets"])
async def test_two_goodbyes_that_cross_are_one_end(autojump_clock: MockClock, transport: Transport, then: str) -> None:
    async def close_too(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send(ClosePayload(4002, "theirs"))
        match then:
            case "waits":
                await peer.mute()
            case "drops":
                await peer.drop()
            case "resets":
                await peer.reset()

    async with ScriptedServer(close_too) as server:
        with trio.fail_after(20.0), suppress(LinkLost):
            async with open_connection(
                URL, stream_factory=server.stream_factory, transport=transport, close_timeout=CLOSE_TIMEOUT
            ) as conn:
                async with conn.listen() as events:
                    await trio.sleep(1.0)
                    await conn.aclose(4001, "ours")
                    ends = [event async for event in events if isinstance(event, LinkClosed | SessionEnded)]
        assert trio.current_time() == 1.0
    assert [type(event) for event in ends] == [LinkClosed, SessionEnded]
    closed = ends[0]
    assert isinstance(closed, LinkClosed)
    assert (closed.code, closed.reason, closed.remote) in [
        (4001, "ours", False),
        (4002, "theirs", True),
        *([(1006, "", None)] if then == "resets" else []),
    ]
    assert len([frame for frame in server.dials[0].frames if isinstance(frame, ClosePayload)]) <= 1


@pytest.mark.fault("F78", where="memory")
async def test_a_goodbye_before_a_reset_is_what_counts(autojump_clock: MockClock, transport: Transport) -> None:
    async def close_and_break(peer: Peer) -> None:
        await peer.accept()
        await peer.send("last words", ClosePayload(4003, "theirs"))
        await trio.sleep(1.0)
        await peer.reset()

    async with ScriptedServer(close_and_break, echo) as server:
        async with (
            open_connection(
                URL, stream_factory=server.stream_factory, transport=transport, backoff=ListBackoff([5.0])
            ) as conn,
            conn.listen() as events,
        ):
            assert await conn.receive() == "last words"
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            closed = [event for event in await events.receive_batch() if isinstance(event, LinkClosed)]
    assert [(event.code, event.reason, event.remote) for event in closed] == [(4003, "theirs", True)]


# --------------------------------------------------------------------------- what handlers do to it


class Fragile(MessageHandler, ConnectionHandler):
    """Raises in one of its hooks."""

    def __init__(self, hook: str, error: Exception) -> None:
        self.hook, self.error = hook, error

    def _maybe(self, hook: str) -> Action:
        if hook == self.hook:
            raise self.error
        return None

    def handle_message(self, kind: str, message: Any) -> Action:
        return self._maybe("handle_message")

    def handle_frame(self, kind: str, data: str | bytes) -> Action:
        return self._maybe("handle_frame")

    def handle_connect(self, info: trio_nova.ConnectionInfo) -> Action:
        return self._maybe("handle_connect")

    def handle_disconnect(self, lost: LinkLost) -> Action:
        return self._maybe("handle_disconnect")


@pytest.mark.fault("F82", where="memory")
@pytest.mark.parametrize("hook", ["handle_message", "handle_frame", "handle_connect", "handle_disconnect"])
@pytest.mark.parametrize("kind", ["one", "a group", "a group within a group"])
async def test_what_a_handler_raises_leaves_as_it_is_with_its_cause(
    autojump_clock: MockClock, hook: str, kind: str
) -> None:
    async def talk_and_drop(peer: Peer) -> None:
        await peer.accept()
        await peer.send("hello")
        await trio.sleep(1.0)
        await peer.drop()

    cause = KeyError("deep down")
    error: Exception = ValueError("no")
    if kind != "one":
        error = ExceptionGroup("two", [error, TypeError("neither")])
    if kind == "a group within a group":
        error = ExceptionGroup("outer", [error, LookupError("and this")])
    error.__cause__ = cause
    fragile = Fragile(hook, error)
    async with ScriptedServer(talk_and_drop, echo) as server:
        with trio.fail_after(20.0), pytest.raises((ValueError, ExceptionGroup)) as caught:
            async with open_connection(
                URL, stream_factory=server.stream_factory, message_handler=fragile, connection_handler=fragile
            ):
                await trio.sleep_forever()
        assert trio.current_time() <= 1.0 + CLOSE_TIMEOUT
    assert caught.value is error
    assert caught.value.__cause__ is cause
    assert len(server.dials) == 1
