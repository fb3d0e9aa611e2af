"""The ordinary uses in which earlier session clients failed, each with what must happen instead."""

from __future__ import annotations

import logging
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    AuthHandler,
    Close,
    ConnectFailed,
    HandshakeInvalid,
    HandshakeRejected,
    JsonCodec,
    LinkLost,
    ListBackoff,
    MessageHandler,
    MessageTooBig,
    NotSent,
    Ping,
    RateLimitHandler,
    Reply,
    ReplyMany,
    SessionOver,
    State,
    TokenBucket,
    open_connection,
    profiles,
)
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.testing import (
    Asked,
    GenericVenue,
    HangDial,
    Peer,
    Refuse,
    Script,
    ScriptedServer,
    VenueLink,
    after,
    cut_before,
    echo,
    preceded_by,
)

URL = "ws://server.test/feed?book=abc&mode=full"

AT_ONCE = ListBackoff([0.0])
"""For tests in which the wait between two links is not the point."""


async def drop_at_once(peer: Peer) -> None:
    await peer.accept()
    await peer.drop()


async def close_at_once(peer: Peer) -> None:
    await peer.accept()
    await peer.close(1013, "try again later")


# --------------------------------------------------------------------------- how the original failed


async def test_send_text_puts_exactly_that_text_on_the_wire(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await conn.send_text("Hello")
            assert await conn.receive() == "Hello"
        await server.dials[0].wait_ended()
    assert server.dials[0].frames[0] == "Hello"


async def test_ping_returns_the_round_trip_time(autojump_clock: trio.abc.Clock) -> None:
    async def answer_late(peer: Peer) -> None:
        await peer.accept()
        peer.answer_pings = False
        while True:
            frame = await peer.receive()
            if isinstance(frame, Ping):
                await trio.sleep(0.25)
                await peer.send(trio_nova.Pong(frame.payload))

    async with (
        ScriptedServer(answer_late) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        assert await conn.ping() == pytest.approx(0.25)
        assert conn.latency == pytest.approx(0.25)


async def test_pings_are_text_to_those_who_read_them_so_and_never_the_same_twice(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(
            URL, transport=transport, stream_factory=server.stream_factory, ping_interval=1.0
        ) as conn:
            for _ in range(10):
                await conn.ping()
                await trio.sleep(2.0)
        await server.dials[0].wait_ended()
    payloads = [frame.payload for frame in server.dials[0].frames if isinstance(frame, Ping)]
    assert len(payloads) >= 20
    assert len(set(payloads)) == len(payloads)
    assert all(len(bytes.fromhex(payload.decode("ascii"))) == 8 for payload in payloads)


@pytest.mark.fault("F55", where="memory")
async def test_only_the_matching_pong_counts(autojump_clock: trio.abc.Clock) -> None:
    async def lie(peer: Peer) -> None:
        await peer.accept()
        peer.answer_pings = False
        while True:
            frame = await peer.receive()
            if isinstance(frame, Ping):
                await peer.send(trio_nova.Pong(b"something else"))

    async with ScriptedServer(lie) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        with trio.move_on_after(5) as scope:
            await conn.ping()
        assert scope.cancelled_caught
        assert conn.latency is None


async def test_a_listener_does_not_disturb_the_connection(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        async with conn.listen(messages=True) as first, conn.listen() as second:
            await conn.send_text("Hello")
            assert await conn.receive() == "Hello"
            sent = await first.receive()
            received = await first.receive()
            assert isinstance(sent, trio_nova.MessageEvent)
            assert sent.direction == "sent"
            assert isinstance(received, trio_nova.MessageEvent)
            assert received.message == "Hello"
            with pytest.raises(trio.WouldBlock):
                second.receive_nowait()
        await conn.send_text("still here")
        assert await conn.receive() == "still here"


async def test_after_a_server_close_it_backs_off_and_then_works_and_says_so(autojump_clock: trio.abc.Clock) -> None:
    async def go_away(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(60)
        await peer.close(1001, "maintenance")

    async with ScriptedServer(go_away, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([3.0])) as conn:
            await conn.wait_state(State.DISCONNECTED)
            assert conn.health().status == "down"
            lost_at = trio.current_time()
            await conn.send_text("waits for the link")
            assert await conn.receive() == "waits for the link"
            assert conn.state is State.READY
            assert conn.epoch == 2
        assert server.dials[1].at - lost_at == pytest.approx(3.0)


async def test_the_second_upgrade_is_like_the_first_and_no_send_in_between_is_lost(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def once(peer: Peer) -> None:
        await peer.accept(subprotocol="v2")
        await peer.expect("first")
        await peer.drop()

    async def again(peer: Peer) -> None:
        await peer.accept(subprotocol="v2")
        await peer.expect("second")
        await peer.expect("third")
        await peer.serve_until_closed()

    async with ScriptedServer(once, again) as server:
        async with open_connection(
            URL, stream_factory=server.stream_factory, headers={"X-Tenant": "blue"}, subprotocols=["v2", "v1"]
        ) as conn:
            await conn.send_text("first")
            await conn.wait_state(State.RECONNECTING)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.send_text, "second")
                await wait_all_tasks_blocked()
                nursery.start_soon(conn.send_text, "third")
        await server.dials[1].wait_ended()
    first, second = (dial.request for dial in server.dials)
    assert first is not None
    assert second is not None
    assert first.target == second.target == "/feed?book=abc&mode=full"
    assert first.headers["x-tenant"] == second.headers["x-tenant"] == "blue"
    assert first.headers["sec-websocket-protocol"] == second.headers["sec-websocket-protocol"]


@pytest.mark.fault("F35", where="memory")
async def test_a_401_is_reported_at_once_in_full_and_dialled_once(autojump_clock: trio.abc.Clock) -> None:
    async def reject(peer: Peer) -> None:
        await peer.reject(401, {"WWW-Authenticate": "Bearer"}, b"who are you?")

    async with ScriptedServer(then=reject) as server:
        started = trio.current_time()
        with pytest.raises(HandshakeRejected) as caught:
            async with open_connection(URL, stream_factory=server.stream_factory, retry_first_connect=True):
                raise AssertionError("never entered")
        assert trio.current_time() - started < 2
        await trio.sleep(3600)
    error = caught.value
    assert (error.status, error.body, dict(error.headers)["www-authenticate"]) == (401, b"who are you?", "Bearer")
    assert error.phase == "http"
    assert error.retry == "never"
    assert len(server.dials) == 1


async def test_a_refused_connection_is_an_error_that_names_where(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(Refuse()) as server:
        with pytest.raises(ConnectFailed, match=r"server\.test:80") as caught:
            async with open_connection(URL, stream_factory=server.stream_factory):
                raise AssertionError("never entered")
    assert "abc" not in str(caught.value)
    assert len(server.dials) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ping_interval": -1}, "ping_interval"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        ({"overflow": "explode"}, "overflow"),
        ({"message_handler": 42}, "message_handler"),
        ({"ping_intervall": 3}, "did you mean ping_interval"),
    ],
)
def test_a_wrong_option_fails_at_once_and_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(trio_nova.ConfigError, match=field):
        open_connection(URL, **options)


async def test_any_task_may_send_and_ping(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        trio.open_nursery() as nursery,
    ):
        for number in range(20):
            nursery.start_soon(conn.send_text, str(number))
            nursery.start_soon(conn.ping)
        assert {await conn.receive() for _ in range(20)} == {str(number) for number in range(20)}


async def test_a_rate_limit_is_obeyed(autojump_clock: trio.abc.Clock) -> None:
    arrivals: list[float] = []

    async def note(peer: Peer) -> None:
        await peer.accept()
        while len(arrivals) < 8:
            await peer.receive()
            arrivals.append(trio.current_time())

    async with ScriptedServer(note) as server:
        limited = RateLimitHandler(limits=[TokenBucket(capacity=3, rate=1.0)])
        async with open_connection(URL, stream_factory=server.stream_factory, rate_limit_handler=limited) as conn:
            for number in range(8):
                await conn.send_text(str(number))
            await server.dials[0].wait_ended()
    offsets = [arrival - arrivals[0] for arrival in arrivals]
    assert offsets == pytest.approx([0, 0, 0, 1, 2, 3, 4, 5], abs=0.01)


async def test_the_seventh_drop_of_a_lifetime_is_like_the_first(autojump_clock: trio.abc.Clock) -> None:
    async def live_a_while(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(100)
        await peer.drop()

    async with (
        ScriptedServer(*[live_a_while] * 12, echo) as server,
        open_connection(
            URL, stream_factory=server.stream_factory, max_attempts=3, min_uptime=30, backoff=AT_ONCE
        ) as conn,
    ):
        while conn.epoch < 13:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
        await conn.send_text("alive")
        assert await conn.receive() == "alive"


@pytest.mark.fault("F91", where="memory")
async def test_attempts_are_counted_and_the_session_gives_up_loudly(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(drop_at_once) as server:
        with pytest.raises(SessionOver) as caught:
            async with open_connection(
                URL, stream_factory=server.stream_factory, max_attempts=4, backoff=ListBackoff([1.0])
            ):
                await trio.sleep_forever()
    assert caught.value.attempts == 5
    assert isinstance(caught.value.last, ConnectFailed)
    assert len(server.dials) == 5


async def test_handlers_given_at_the_call_are_the_ones_asked(autojump_clock: trio.abc.Clock) -> None:
    @attrs.define(eq=False)
    class Collector(MessageHandler):
        messages: list[tuple[str, object]] = attrs.field(factory=list)

        def handle_message(self, kind: str, message: object) -> Action:
            self.messages.append((kind, message))
            return None

    collector = Collector()
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, message_handler=collector) as conn:
            await conn.send_text("Hello")
            await conn.send_bytes(b"\x00\x01")
            assert await conn.receive() == "Hello"
            assert await conn.receive() == b"\x00\x01"
    assert collector.messages == [("text", "Hello"), ("binary", b"\x00\x01")]


async def test_reply_many_sends_all_in_order_and_stop_stops(autojump_clock: trio.abc.Clock) -> None:
    class Answering(MessageHandler):
        def handle_message(self, kind: str, message: object) -> Action:
            return ReplyMany(["one", "two", {"n": 3}]) if message == "go" else Close(4000, "enough")

    async def ask(peer: Peer) -> None:
        await peer.accept()
        await peer.send("go")
        await peer.expect("one")
        await peer.expect("two")
        await peer.expect('{"n":3}')
        await peer.send("stop")
        await peer.expect_close(4000)

    async with ScriptedServer(ask) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, message_handler=Answering) as conn:
            await conn.wait_closed()
        await server.dials[0].wait_ended()
    assert conn.state is State.CLOSED


async def test_a_queued_send_is_not_overtaken(autojump_clock: trio.abc.Clock) -> None:
    async def once(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async with ScriptedServer(once, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await conn.wait_state(State.RECONNECTING)
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(conn.send_text, str(number))
                    await wait_all_tasks_blocked()
                    # The session must still be down, or this proves nothing.
                    assert conn.state is not State.READY
                await conn.wait_ready()
                nursery.start_soon(conn.send_text, "late")
            received = [await conn.receive() for _ in range(51)]
    assert received == [*map(str, range(50)), "late"]


@pytest.mark.fault("F103", where="memory")
async def test_no_secret_of_headers_url_or_credentials_is_logged(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    class Unasked(AuthHandler):
        def encode_auth_request(self, credentials: object) -> None:
            return None

    async def reject(peer: Peer) -> None:
        await peer.reject(503)

    async def drop_soon(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1)
        await peer.drop()

    async with (
        ScriptedServer(drop_soon, reject, echo) as server,
        open_connection(
            "ws://user:s3cret-one@server.test/x?token=s3cret-two",
            stream_factory=server.stream_factory,
            headers={"Authorization": "Bearer s3cret-three"},
            credentials={"key": "s3cret-four"},
            auth_handler=Unasked,
            allow_plaintext_credentials=True,
            backoff=AT_ONCE,
        ) as conn,
    ):
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        await conn.send_text("s3cret-five")
        shown = [repr(conn), conn.url, repr(conn.config), repr(conn.health()), repr(conn.statistics())]
    assert "s3cret" not in "\n".join([record.getMessage() for record in caplog.records] + shown)


# --------------------------------------------------------------------------- what its successor still lacked


async def test_the_callers_cancel_scope_is_the_time_out(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, HangDial()) as server,
        open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE, connect_timeout=100) as conn,
    ):
        await conn.wait_state(State.CONNECTING)
        started = trio.current_time()
        with trio.move_on_after(7) as scope:
            await conn.send_text("in vain")
        assert scope.cancelled_caught
        assert trio.current_time() - started == pytest.approx(7)
        assert conn.statistics().outbox_messages == 0


@pytest.mark.fault("F84", where="memory")
@pytest.mark.parametrize("script", [drop_at_once, close_at_once])
async def test_a_server_that_accepts_and_closes_is_not_stormed(autojump_clock: trio.abc.Clock, script: Script) -> None:
    async with ScriptedServer(then=script) as server:
        with trio.move_on_after(6.0):
            async with open_connection(URL, config=profiles.STANDARD, stream_factory=server.stream_factory):
                await trio.sleep_forever()
    assert 2 <= len(server.dials) <= 10


@pytest.mark.fault("F84", where="memory")
async def test_an_hour_of_accept_then_close_costs_few_dials(autojump_clock: trio.abc.Clock) -> None:
    for seed in range(5):
        async with ScriptedServer(then=drop_at_once) as server:
            with trio.move_on_after(3600):
                async with open_connection(
                    URL, stream_factory=server.stream_factory, spread=random.Random(seed).random
                ):
                    await trio.sleep_forever()
        first_minute = [dial for dial in server.dials if dial.at - server.dials[0].at <= 60]
        assert len(first_minute) <= 12
        assert len(server.dials) <= 80


@pytest.mark.fault("F86", where="memory")
@pytest.mark.soak
async def test_a_crowd_that_was_dropped_does_not_come_back_at_once(autojump_clock: trio.abc.Clock) -> None:
    draw = random.Random(1)

    async def live(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep_until(dropped_at)
        await peer.drop()

    dropped_at = trio.current_time() + 1000
    async with ScriptedServer(*[live] * 200, then=echo) as server, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(_hold_open, server, draw)
        await trio.sleep_until(dropped_at + 8)
        nursery.cancel_scope.cancel()
    returns = sorted(dial.at - dropped_at for dial in server.dials[200:])
    assert len(returns) == 200
    assert returns[-1] <= 5.01
    assert max(sum(1 for at in returns if start <= at < start + 0.1) for start in returns) <= 20


async def _hold_open(server: ScriptedServer, draw: random.Random) -> None:
    async with open_connection(URL, stream_factory=server.stream_factory, spread=draw.random):
        await trio.sleep_forever()


@pytest.mark.fault("F63", where="memory")
async def test_missed_pongs_end_the_link_which_is_aborted_and_redialled(autojump_clock: trio.abc.Clock) -> None:
    async def fall_silent(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(fall_silent, echo) as server:
        started = trio.current_time()
        async with (
            open_connection(
                URL,
                stream_factory=server.stream_factory,
                ping_interval=10,
                pong_timeout=4,
                backoff=ListBackoff([2.0]),
            ) as conn,
            conn.listen() as events,
        ):
            await conn.wait_state(State.DISCONNECTED)
            assert trio.current_time() - started == pytest.approx(14, abs=0.01)
            await conn.wait_ready()
            assert server.dials[1].at - started == pytest.approx(16, abs=0.01)
            seen = [events.receive_nowait() for _ in range(4)]
    assert any(isinstance(event, trio_nova.PeerSilent) and event.clock == "pong" for event in seen)
    assert server.dials[0].frames == [frame for frame in server.dials[0].frames if isinstance(frame, Ping)]


async def _say_hello(peer: Peer) -> None:
    await peer.send_raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello")
    await peer.drop()


async def _use_an_extension(peer: Peer) -> None:
    await peer.accept({"Sec-WebSocket-Extensions": "x-of-yesterday"})
    await peer.drop()


def _rejects(status: int, **headers: str) -> Script:
    return partial(Peer.reject, status=status, headers=headers)


@pytest.mark.fault("F35", where="memory")
@pytest.mark.parametrize(
    "answer",
    [
        *[
            pytest.param(_rejects(status), id=str(status))
            for status in (200, 204, 301, 400, 401, 403, 404, 405, 407, 410)
        ],
        pytest.param(_rejects(301, Location="https://status.example/"), id="redirect elsewhere"),
        pytest.param(_rejects(302, Location="/busy"), id="redirects without end"),
        pytest.param(_say_hello, id="a page"),
        pytest.param(_use_an_extension, id="an extension"),
    ],
)
async def test_a_session_that_was_ready_outlives_the_deployment_of_its_service(
    answer: Script, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    serve: Script = drop_at_once

    async def service(peer: Peer) -> None:
        await serve(peer)

    async with ScriptedServer(then=service) as server:
        started = trio.current_time()
        options: dict[str, Any] = {"backoff": ListBackoff([1.0]), "transport": transport, "max_redirects": 2}
        async with open_connection(URL, stream_factory=server.stream_factory, **options) as conn:
            serve = answer
            await trio.sleep(8.5)
            assert len(server.dials) >= 9
            serve = echo
            await conn.wait_ready()
            assert conn.epoch == 2
            assert trio.current_time() - started <= 11.0


@pytest.mark.fault("F35", where="memory")
@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 407])
async def test_a_session_outlives_no_more_refusals_than_its_max_attempts(
    status: int, autojump_clock: trio.abc.Clock
) -> None:
    async with ScriptedServer(drop_at_once, then=_rejects(status)) as server:
        with pytest.raises(SessionOver) as caught:
            async with open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE, max_attempts=3):
                await trio.sleep_forever()
        assert caught.value.attempts == 4
        assert isinstance(caught.value.last, HandshakeRejected)
        assert caught.value.last.status == status
        assert len(server.dials) == 4


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("answer", [_rejects(404), _use_an_extension], ids=["404", "an extension"])
async def test_a_first_connect_outlives_no_refusal(
    patient: bool, answer: Script, autojump_clock: trio.abc.Clock
) -> None:
    async with ScriptedServer(then=answer) as server:
        with pytest.raises(HandshakeInvalid if answer is _use_an_extension else HandshakeRejected):
            async with open_connection(
                URL, stream_factory=server.stream_factory, backoff=AT_ONCE, retry_first_connect=patient
            ):
                raise AssertionError("never entered")
        assert len(server.dials) == 1


@pytest.mark.fault("F37", where="memory")
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
async def test_a_redial_that_is_rejected_for_now_is_tried_again(autojump_clock: trio.abc.Clock, status: int) -> None:
    async def reject(peer: Peer) -> None:
        await peer.reject(status)

    async with ScriptedServer(drop_at_once, reject, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE) as conn:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
    assert len(server.dials) == 3


@pytest.mark.fault("F36", where="memory")
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("30", 30.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("1000000000", 900.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
)
async def test_retry_after_is_honoured_and_the_back_off_comes_on_top(
    autojump_clock: trio.abc.Clock, status: int, value: str, asked: float
) -> None:
    async def reject(peer: Peer) -> None:
        await peer.reject(status, {"Retry-After": value})

    async with (
        ScriptedServer(drop_at_once, reject, echo) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            backoff=ListBackoff([0.0, 2.0]),
            wall_clock=lambda: 784111777.0 - 30.0,  # 30 s before the first date above
        ) as conn,
    ):
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
    assert server.dials[2].at - server.dials[1].at == asked + 2.0


async def test_the_close_code_and_reason_are_kept(autojump_clock: trio.abc.Clock) -> None:
    async def leave(peer: Peer) -> None:
        await peer.accept()
        await peer.close(4321, "because")

    async with ScriptedServer(leave, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE) as conn:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            info = conn.close_info
    assert info == trio_nova.CloseInfo(4321, "because", True, 1)


@pytest.mark.fault("F82", where="memory")
async def test_a_handler_that_raises_does_not_kill_the_reader_silently(autojump_clock: trio.abc.Clock) -> None:
    class Fragile(MessageHandler):
        def handle_message(self, kind: str, message: object) -> Action:
            if message == "bad":
                raise ValueError("no")
            return Reply(f"got {message}")

    async def feed(peer: Peer) -> None:
        await peer.accept()
        await peer.send("bad", "good")
        await peer.expect("got good")

    async with (
        ScriptedServer(feed) as server,
        open_connection(
            URL, stream_factory=server.stream_factory, message_handler=Fragile, on_handler_error="log"
        ) as conn,
    ):
        await server.dials[0].wait_ended()
        assert conn.statistics().errors >= 1

    async def feed_to_the_end(peer: Peer) -> None:
        await peer.accept()
        await peer.send("bad")
        await peer.expect_close(1011)

    async with ScriptedServer(feed_to_the_end) as server:
        with pytest.raises(ValueError, match="no"):
            async with open_connection(URL, stream_factory=server.stream_factory, message_handler=Fragile):
                await trio.sleep_forever()


async def test_nothing_is_blocked_while_it_dials(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, HangDial()) as server,
        open_connection(
            URL, stream_factory=server.stream_factory, backoff=AT_ONCE, connect_timeout=1000, when_down="fail"
        ) as conn,
    ):
        await conn.wait_state(State.CONNECTING)
        started = trio.current_time()
        with pytest.raises(NotSent):
            await conn.send_text("x")
        with pytest.raises(NotSent):
            await conn.ping()
        conn.reconfigure(ping_interval=3.0)
        async with conn.listen():
            pass
        assert conn.health().status == "down"
        assert trio.current_time() == started
    assert trio.current_time() - started <= 2.0


async def test_the_first_connect_is_retried_as_long_as_was_asked(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(*[Refuse()] * 6, echo) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            retry_first_connect=True,
            backoff=ListBackoff([30.0]),
            connect_timeout=5,
        ) as conn,
    ):
        assert conn.epoch == 1
        assert server.dials[-1].at - server.dials[0].at == pytest.approx(180)


async def test_a_connection_reset_is_not_fatal(autojump_clock: trio.abc.Clock) -> None:
    async def reset(peer: Peer) -> None:
        await peer.accept()
        await peer.send("before")
        await trio.sleep(1)  # a reset discards what is still under way
        await peer.reset()

    async with ScriptedServer(reset, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE) as conn:
            assert await conn.receive() == "before"
            await conn.wait_state(State.DISCONNECTED)
            await conn.send_text("after")
            assert await conn.receive() == "after"
            assert conn.close_info is not None
            assert conn.close_info.code == 1006


async def test_a_connection_reset_over_a_real_socket_is_not_fatal_and_leaves_no_socket() -> None:
    async def reset(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("first")
        await peer.reset()

    async with ScriptedServer(reset, echo).listen() as listening:
        with trio.fail_after(100):
            async with open_connection(listening.url, backoff=AT_ONCE) as conn:
                await conn.send_text("first")
                await conn.wait_state(State.DISCONNECTED)
                await conn.wait_ready()
                await conn.send_text("after")
                assert await conn.receive() == "after"


async def test_tls_is_verified_and_works_with_a_trusted_certificate() -> None:
    async with ScriptedServer(then=echo).listen(tls=True) as listening:
        with trio.fail_after(100):
            with pytest.raises(trio_nova.TlsFailed) as caught:
                async with open_connection(listening.url, retry_first_connect=True):
                    raise AssertionError("never entered")
            assert caught.value.reason == "untrusted"
            async with open_connection(listening.url, ssl_context=listening.client_ssl_context) as conn:
                await conn.send_text("Hello")
                assert await conn.receive() == "Hello"


async def test_subprotocol_and_size_options_are_used(autojump_clock: trio.abc.Clock) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(subprotocol="v1")
        await peer.send("x" * 100)
        await peer.send("x" * 101)
        await peer.expect_close(1009)

    async with ScriptedServer(talk) as server:
        with pytest.raises(LinkLost) as caught:
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                subprotocols=["v1"],
                max_message_size=100,
                max_attempts=0,
            ) as conn:
                assert await conn.receive() == "x" * 100
                await trio.sleep_forever()
        await server.dials[0].wait_ended()
    assert caught.value.code == 1009
    assert isinstance(caught.value.__cause__, MessageTooBig)
    assert caught.value.remote is False


@pytest.mark.fault("F56", where="memory")
async def test_an_inbox_is_bounded_and_a_flood_is_felt_by_the_peer(autojump_clock: trio.abc.Clock) -> None:
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.accept()
        for number in range(10_000):
            await peer.send(str(number))
            sent = number

    async with (
        ScriptedServer(flood, max_buffer=1024) as server,
        open_connection(URL, stream_factory=server.stream_factory, inbox_bytes=8192) as conn,
    ):
        await trio.sleep(10)
        assert 50 < conn.statistics().inbox_messages < 500
        assert sent < 2000
        assert [await conn.receive() for _ in range(3000)] == [str(number) for number in range(3000)]


# --------------------------------------------------------------------------- slow consumers, silent peers


@pytest.mark.fault("F62", where="memory")
async def test_a_consumer_of_5_a_second_keeps_its_link_to_a_feed_of_1000_a_second(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def feed(peer: Peer) -> None:
        await peer.accept()
        for number in range(10_000_000):
            await peer.send(str(number))
            if number % 100 == 99:
                await trio.sleep(0.1)

    async with (
        ScriptedServer(feed, max_buffer=4096) as server,
        open_connection(
            URL, stream_factory=server.stream_factory, ping_interval=5, pong_timeout=5, inbox_bytes=16_384
        ) as conn,
        conn.listen() as events,
    ):
        for number in range(1500):  # five minutes
            assert await conn.receive() == str(number)
            await trio.sleep(0.2)
        assert conn.epoch == 1
        assert len(server.dials) == 1
        lagged = [event for event in await events.receive_batch() if isinstance(event, trio_nova.ConsumerLagged)]
        assert lagged


async def test_data_without_pongs_keeps_the_link(autojump_clock: trio.abc.Clock) -> None:
    async def tick(peer: Peer) -> None:
        await peer.accept()
        peer.answer_pings = False
        for number in range(1000):
            await peer.send(str(number))
            await trio.sleep(1)

    async with (
        ScriptedServer(tick) as server,
        open_connection(URL, stream_factory=server.stream_factory, ping_interval=5, pong_timeout=2) as conn,
    ):
        for number in range(900):
            assert await conn.receive() == str(number)
        assert conn.epoch == 1


async def test_idle_timeout_ends_a_link_on_which_nothing_comes(autojump_clock: trio.abc.Clock) -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(say_nothing, echo) as server:
        started = trio.current_time()
        async with open_connection(
            URL, stream_factory=server.stream_factory, heartbeat="off", idle_timeout=33, backoff=AT_ONCE
        ) as conn:
            await conn.wait_state(State.DISCONNECTED)
            assert trio.current_time() - started == pytest.approx(33)


@pytest.mark.fault("F73", where="memory")
async def test_a_machine_that_slept_probes_at_once(autojump_clock: trio.abc.Clock) -> None:
    wall = 1000.0

    async with (
        ScriptedServer(echo) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            ping_interval=math.inf,
            pong_timeout=10,
            wall_clock=lambda: wall + trio.current_time(),
        ) as conn,
        conn.listen() as events,
    ):
        await trio.sleep(100)
        wall += 3600
        event = await events.receive()
        assert isinstance(event, trio_nova.ClockJumped)
        assert event.seconds == pytest.approx(3600)
        await trio.sleep(1)
        assert conn.statistics().pings_sent == 1


# --------------------------------------------------------------------------- who asked what, and who is who

VENUE = "ws://venue.test/"


def open_to(venue: GenericVenue, **options: Any) -> trio_nova.ConnectionBlock:
    """Open a session with a venue, whose protocol the library's defaults speak."""
    plain: dict[str, Any] = {
        "stream_factory": venue.stream_factory,
        "codec": JsonCodec(),
        "backoff": AT_ONCE,
        "allow_plaintext_credentials": True,
    }
    return open_connection(VENUE, **(plain | options))


def asked(link: VenueLink) -> list[tuple[str, ...]]:
    """Return what a client asked on a link: the type of each message, and the channels that it names."""
    return [(entry.method, *entry.channels) for entry in link.journal if isinstance(entry, Asked)]


async def test_subscribing_with_params_works_and_the_service_gets_them(autojump_clock: trio.abc.Clock) -> None:
    async with (
        GenericVenue() as venue,
        open_to(venue) as conn,
        conn.subscribe("book", params={"depth": 10, "interval": "100ms"}) as feed,
    ):
        (request,) = (entry for entry in venue.link.journal if isinstance(entry, Asked))
        assert request.message == {
            "type": "subscribe",
            "channel": "book",
            "params": {"depth": 10, "interval": "100ms"},
        }
        venue.publish("book", "data")
        assert (await feed.receive())["data"] == "data"


async def test_a_notification_is_never_returned_as_the_response(autojump_clock: trio.abc.Clock) -> None:
    notification = {"method": "subscription", "id": 1, "params": {"price": 1}}
    async with GenericVenue() as venue, open_to(venue) as conn:
        venue.twist("request", preceded_by(notification))
        assert (await conn.request({"type": "request", "n": 1}))["result"] == {"n": 1}
        assert await conn.receive() == notification


async def test_waiting_for_a_response_swallows_no_other_message(autojump_clock: trio.abc.Clock) -> None:
    news = [{"news": number} for number in range(3)]
    async with GenericVenue() as venue, open_to(venue) as conn, conn.subscribe("trades") as feed:
        venue.twist("request", after(5.0))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.request, {"type": "request"})
                await wait_all_tasks_blocked()
                for each in news:
                    venue.send(each)
                venue.publish("trades", "while it waits")
                assert [await conn.receive() for _ in news] == news
                assert (await feed.receive())["data"] == "while it waits"


async def test_a_notification_does_not_count_as_successful_authentication(autojump_clock: trio.abc.Clock) -> None:
    notifications = [{"method": "auth_success", "id": 1}, {"type": "welcome", "result": "ok"}]
    async with GenericVenue(tokens={"the right one"}) as venue:
        venue.twist("auth", preceded_by(*notifications))
        with pytest.raises(trio_nova.AuthFailed, match="wrong credentials"):
            async with open_to(venue, credentials="a wrong one"):
                raise AssertionError("never entered")


@pytest.mark.parametrize("credentials", ["token", {"token": "token"}, {"api_key": "key", "secret": "whisper"}])
async def test_the_default_authentication_works_against_a_service_that_checks_it(
    autojump_clock: trio.abc.Clock, credentials: object
) -> None:
    async with GenericVenue(tokens={"token"}, secrets={"key": "whisper"}) as venue:
        async with open_to(venue, credentials=credentials) as conn:
            assert (await conn.request({"type": "request", "n": 1}))["result"] == {"n": 1}
        venue.assert_auth_came_first()


async def test_any_task_may_make_requests_and_each_gets_its_own_answer(autojump_clock: trio.abc.Clock) -> None:
    answers: dict[int, object] = {}
    async with GenericVenue() as venue, open_to(venue) as conn:
        venue.hold_answers(20)  # and are then given in another order

        async def ask(number: int) -> None:
            answers[number] = (await conn.request({"type": "request", "n": number}))["result"]["n"]

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
    assert answers == {number: number for number in range(20)}


async def test_json_with_an_id_is_not_taken_for_a_response_unless_it_was_asked_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    order = {"id": 77, "type": "order", "state": "filled"}
    lookalike_of_the_first = {"id": "1", "type": "order"}
    async with GenericVenue() as venue, open_to(venue) as conn, conn.listen() as events:
        venue.twist("request", preceded_by(order, lookalike_of_the_first))
        assert (await conn.request({"type": "request", "n": 1}))["type"] == "response"
        assert [await conn.receive(), await conn.receive()] == [order, lookalike_of_the_first]
        told = [event for event in await events.receive_batch() if isinstance(event, trio_nova.AnswerUnmatched)]
        assert [event.late for event in told] == [False, False]


# --------------------------------------------------------------------------- what a new link begins with


class Versed(trio_nova.ConnectionHandler):
    """Tells every new link what it must know."""

    def setup_requests(self, info: trio_nova.ConnectionInfo) -> list[Any]:
        return [{"type": "request", "what": "setup"}]


async def test_what_is_restored_comes_in_order_after_authentication_and_is_confirmed_before_ready(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with (
        GenericVenue(tokens={"token"}) as venue,
        open_to(venue, credentials="token") as conn,
        conn.subscribe("c"),
        conn.subscribe("a"),
        conn.subscribe("b"),
    ):
        venue.twist("subscribe", after(4.0), times=None)
        venue.drop()
        second = await venue.wait_link(2)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.send, {"type": "request", "what": "order"})
            await conn.wait_ready()
            assert trio.current_time() - began >= 4.0
            assert set(conn.subscriptions().values()) == {"confirmed"}
        await wait_all_tasks_blocked()
        assert asked(second) == [
            ("auth",),
            ("subscribe", "c"),
            ("subscribe", "a"),
            ("subscribe", "b"),
            ("request",),
        ]
        venue.assert_auth_came_first(second)
        venue.assert_no_channel_asked_twice(second)


async def test_all_of_the_setup_is_done_again_on_every_link(autojump_clock: trio.abc.Clock) -> None:
    async with (
        GenericVenue(tokens={"token"}) as venue,
        open_to(venue, credentials="token", connection_handler=Versed) as conn,
        conn.subscribe("a"),
    ):
        for number in (2, 3):
            venue.drop()
            await venue.wait_link(number)
            await conn.wait_ready()
        assert [asked(link) for link in venue.links] == [[("auth",), ("request",), ("subscribe", "a")]] * 3


async def test_an_order_whose_link_is_lost_is_executed_once_and_its_outcome_is_called_unknown(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with GenericVenue() as venue, open_to(venue) as conn:
        venue.twist("request", cut_before)
        with pytest.raises(trio_nova.OutcomeUnknown):
            await conn.request({"type": "request", "buy": 1})
        await venue.wait_link(2)
        await conn.wait_ready()
        await trio.sleep(600)
        assert [each["buy"] for each in venue.executed] == [1]


# --------------------------------------------------------------------------- what is written down


async def test_a_log_that_is_written_down_keeps_the_links_before_and_no_secret(
    autojump_clock: trio.abc.Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_nova")
    path = tmp_path / "session.log"
    recording = logging.FileHandler(path)
    logger = logging.getLogger("trio_nova")
    logger.addHandler(recording)
    try:
        async with (
            GenericVenue(tokens={"s3cret-token"}) as venue,
            open_to(venue, credentials="s3cret-token", headers={"Authorization": "Bearer s3cret-header"}) as conn,
        ):
            venue.drop()
            await venue.wait_link(2)
            await conn.wait_ready()
            await conn.request({"type": "request", "password": "s3cret-message"})
    finally:
        logger.removeHandler(recording)
        recording.close()
    written = path.read_text("utf-8")
    assert "link 1 lost (1006" in written
    assert "is ready on link 2" in written
    assert "s3cret" not in written


# --------------------------------------------------------------------------- signs of life, and the limiter


async def test_sending_is_no_sign_of_the_peers_life(autojump_clock: trio.abc.Clock) -> None:
    async def fall_silent(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(fall_silent, echo) as server:
        started = trio.current_time()
        async with (
            open_connection(
                URL, stream_factory=server.stream_factory, ping_interval=10, pong_timeout=4, backoff=ListBackoff([5.0])
            ) as conn,
            trio.open_nursery() as nursery,
        ):

            async def chatter() -> None:
                while True:
                    await conn.send_text("are you there?")
                    await trio.sleep(0.5)

            nursery.start_soon(chatter)
            with trio.fail_after(60):
                await conn.wait_state(State.DISCONNECTED)
            assert trio.current_time() - started == pytest.approx(14, abs=0.01)
            nursery.cancel_scope.cancel()


async def test_nothing_that_is_sent_passes_by_the_limiter(autojump_clock: trio.abc.Clock) -> None:
    @attrs.define(eq=False)
    class Noting(RateLimitHandler):
        purposes: list[str] = attrs.field(factory=list)

        def check_rate_limit(self, request: trio_nova.RateRequest) -> trio_nova.Decision:
            self.purposes.append(request.purpose)
            return RateLimitHandler.check_rate_limit(self, request)

    class Polite(MessageHandler):
        def handle_message(self, kind: str, message: object) -> Action:
            return Reply({"type": "ping"}) if message == {"say": "hi"} else None

    limiter = Noting(limits=[TokenBucket(capacity=100, rate=1.0)])
    async with (
        GenericVenue(tokens={"token"}) as venue,
        open_to(
            venue,
            credentials="token",
            connection_handler=Versed,
            message_handler=Polite,
            rate_limit_handler=limiter,
        ) as conn,
    ):
        async with conn.subscribe("a"):
            await conn.ping()
            await conn.request({"type": "request"})
            await conn.send({"type": "ping"})
            venue.send({"say": "hi"})
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        spent = limiter.consumed
        heard = len(asked(venue.link))
    expected = ["auth", "setup", "subscription", "control", "query", "message", "message", "subscription"]
    assert limiter.purposes == expected
    assert spent == len(expected) == heard + 1  # the venue keeps no book of pings
