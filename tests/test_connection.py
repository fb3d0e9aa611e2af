"""The calls of a connection."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova import (
    Action,
    BecameReady,
    Buffer,
    CloseInfo,
    ConfigError,
    Connection,
    ConsumerCaughtUp,
    ConsumerLagged,
    Dropped,
    Event,
    Expired,
    HighWater,
    Lagged,
    LinkClosed,
    LinkLost,
    LinkOpened,
    ListBackoff,
    LowWater,
    MessageEvent,
    MessageHandler,
    NotSent,
    OutcomeUnknown,
    OwnershipTransferred,
    Ping,
    ReadingPaused,
    ReadingResumed,
    Receiver,
    ReceiverMoved,
    Reconfigured,
    Reconnected,
    Registry,
    RetryScheduled,
    SessionEnded,
    SessionOver,
    State,
    StateChanged,
    TrioWebsocketTransport,
    WireTransport,
    open_connection,
    run_connection,
)
from trio_nova.core.bounded import Overflow
from trio_nova.links import Transport
from trio_nova.testing import ClosePayload, HangDial, Peer, ScriptedServer, echo

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])


async def drop_at_once(peer: Peer) -> None:
    await peer.accept()
    await peer.drop()


async def send_ten(peer: Peer) -> None:
    await peer.accept()
    await peer.send(*map(str, range(10)))
    await peer.serve_until_closed()


# --------------------------------------------------------------------------- sending


async def test_what_is_sent_arrives_as_what_it_is(autojump_clock: trio.abc.Clock) -> None:
    async def check(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("text ü")
        await peer.expect(b"\x00\xff")
        await peer.expect('{"a":[1,2]}')
        await peer.expect("through the codec")
        await peer.expect(b"bytes too")
        await peer.expect('{"b":null}')
        await peer.serve_until_closed()

    async with ScriptedServer(check) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await conn.send_text("text ü")
            await conn.send_bytes(bytearray(b"\x00\xff"))
            await conn.send_json({"a": [1, 2]})
            await conn.send("through the codec")
            await conn.send(b"bytes too")
            await conn.send({"b": None})
        await server.dials[0].wait_ended()


async def test_sends_of_one_task_arrive_in_order_and_a_priority_overtakes(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1)
        got = [await peer.receive() for _ in range(4)]
        assert [str(frame)[:3] for frame in got] == ["big", "now", "one", "two"]
        await peer.serve_until_closed()

    async with ScriptedServer(slow, max_buffer=1000) as server:
        async with (
            open_connection(URL, stream_factory=server.stream_factory) as conn,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(conn.send_text, "big" * 1000)
            await wait_all_tasks_blocked()
            nursery.start_soon(conn.send_text, "one")
            await wait_all_tasks_blocked()
            nursery.start_soon(conn.send_text, "two")
            await wait_all_tasks_blocked()

            async def urgently() -> None:
                await conn.send("now", priority=-1)

            nursery.start_soon(urgently)
        await server.dials[0].wait_ended()


async def test_what_was_being_written_when_the_link_was_lost_has_an_unknown_outcome(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1)
        await peer.reset()

    outcomes: dict[str, object] = {}

    async with ScriptedServer(lose, echo, max_buffer=1000) as server:
        async with (
            open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE) as conn,
            trio.open_nursery() as nursery,
        ):

            async def send(text: str) -> None:
                try:
                    await conn.send_text(text)
                except (NotSent, OutcomeUnknown) as exc:
                    outcomes[text[:3]] = type(exc)
                else:
                    outcomes[text[:3]] = "sent"

            nursery.start_soon(send, "big" * 1000)
            await wait_all_tasks_blocked()
            nursery.start_soon(send, "one")
            assert await conn.receive() == "one"
    assert outcomes == {"big": OutcomeUnknown, "one": "sent"}


async def test_when_down_fail_refuses_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, HangDial()) as server,
        open_connection(URL, stream_factory=server.stream_factory, when_down="fail") as conn,
    ):
        await conn.wait_state(State.DISCONNECTED)
        started = trio.current_time()
        with pytest.raises(NotSent):
            await conn.send_text("x")
        assert trio.current_time() == started


async def test_a_buffer_is_bounded_and_what_waits_in_it_expires(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, HangDial()) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            when_down=Buffer(max_items=2, ttl=30.0),
            connect_timeout=1000,
            backoff=AT_ONCE,
        ) as conn,
        trio.open_nursery() as nursery,
    ):
        await conn.wait_state(State.CONNECTING)
        started = trio.current_time()
        expired_after: list[float] = []

        async def send() -> None:
            with pytest.raises(Expired):
                await conn.send_text("x")
            expired_after.append(trio.current_time() - started)

        nursery.start_soon(send)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        with pytest.raises(NotSent):
            await conn.send_text("one too many")
        await trio.sleep(31)
        assert expired_after == [30.0, 30.0]
        assert conn.statistics().outbox_messages == 0


@pytest.mark.fault("F91", where="memory")
async def test_sends_that_wait_when_the_session_ends_were_not_sent(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, HangDial()) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        trio.open_nursery() as nursery,
    ):
        await conn.wait_state(State.DISCONNECTED)

        async def send() -> None:
            with pytest.raises(NotSent):
                await conn.send_text("x")

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await conn.aclose()
        with pytest.raises(SessionOver):
            await conn.send_text("too late")


# --------------------------------------------------------------------------- receiving


async def test_receive_nowait_and_receive_batch(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(send_ten) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        await wait_all_tasks_blocked()
        assert conn.receive_nowait() == "0"
        assert await conn.receive_batch() == list("123456789")
        with pytest.raises(trio.WouldBlock):
            conn.receive_nowait()


async def test_what_was_received_can_be_taken_after_the_end(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(send_ten) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await wait_all_tasks_blocked()
            await conn.aclose()
            assert [message async for message in conn] == list("0123456789")
            with pytest.raises(SessionOver):
                await conn.receive()
            with pytest.raises(SessionOver):
                conn.receive_nowait()


async def test_several_tasks_share_what_is_received(autojump_clock: trio.abc.Clock) -> None:
    got: list[str] = []

    async def consume(conn: Connection) -> None:
        async for message in conn:
            got.append(message)
            await trio.sleep(0.1)
            if len(got) == 10:
                await conn.aclose()

    async with (
        ScriptedServer(send_ten) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(consume, conn)
    assert sorted(got) == list("0123456789")


@pytest.mark.fault("F62", "F56", where="memory")
async def test_a_full_inbox_drops_what_its_policy_says_and_says_so(autojump_clock: trio.abc.Clock) -> None:
    policies: list[tuple[Overflow, list[str]]] = [("drop_oldest", list("789")), ("drop_newest", list("012"))]
    for overflow, kept in policies:
        async with (
            ScriptedServer(send_ten) as server,
            open_connection(URL, stream_factory=server.stream_factory, inbox_size=3, overflow=overflow) as conn,
        ):
            async with conn.listen() as events:
                await wait_all_tasks_blocked()
                assert await conn.receive_batch() == kept
                assert conn.statistics().messages_dropped == 7
                dropped = [event.count for event in await events.receive_batch() if isinstance(event, Dropped)]
            assert sum(dropped) == 7


async def test_the_fill_of_the_inbox_is_told(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(send_ten) as server,
        open_connection(URL, stream_factory=server.stream_factory, inbox_size=9, inbox_bytes=1000) as conn,
        conn.listen() as events,
    ):
        await trio.sleep(2)
        assert (conn.health().reading, conn.health().full) == (False, "inbox")
        for number in range(10):
            assert await conn.receive() == str(number)
        await wait_all_tasks_blocked()
        seen = await events.receive_batch()
    kinds = [type(event) for event in seen if not isinstance(event, StateChanged)]
    assert kinds[:2] == [HighWater, ConsumerLagged]
    assert set(kinds[2:]) == {ConsumerCaughtUp, LowWater}
    lagged = next(event for event in seen if isinstance(event, ConsumerLagged))
    assert (lagged.where, lagged.waiting) == ("inbox", 10)
    caught_up = next(event for event in seen if isinstance(event, ConsumerCaughtUp))
    assert caught_up.stalled == pytest.approx(2.0)


async def test_an_inbox_is_bounded_in_bytes_too(autojump_clock: trio.abc.Clock) -> None:
    async def send(peer: Peer) -> None:
        await peer.accept()
        for number in range(10):
            await peer.send(str(number) * 1000)
        await peer.serve_until_closed()

    async with (
        ScriptedServer(send) as server,
        open_connection(URL, stream_factory=server.stream_factory, inbox_bytes=3000) as conn,
    ):
        await wait_all_tasks_blocked()
        assert conn.statistics().inbox_messages == 3
        assert [await conn.receive() for _ in range(10)] == [str(number) * 1000 for number in range(10)]


async def test_reading_can_be_paused_on_purpose(autojump_clock: trio.abc.Clock) -> None:
    async def tick(peer: Peer) -> None:
        await peer.accept()
        for number in range(100):
            await peer.send(str(number))
            await trio.sleep(1)

    async with (
        ScriptedServer(tick) as server,
        open_connection(URL, stream_factory=server.stream_factory, ping_interval=2, pong_timeout=2) as conn,
        conn.listen() as events,
    ):
        assert await conn.receive() == "0"
        async with conn.paused(), conn.paused():
            assert not conn.health().reading
            await trio.sleep(50.5)
            with pytest.raises(trio.WouldBlock):
                conn.receive_nowait()
        assert [await conn.receive() for _ in range(60)] == [str(number) for number in range(1, 61)]
        assert conn.epoch == 1
        kinds = [type(event) for event in await events.receive_batch()]
        assert kinds.count(ReadingPaused) == kinds.count(ReadingResumed) == 2


async def test_what_one_read_brought_after_a_pause_is_received_once_though_its_link_is_left(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def speak(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send("kept back")
        await peer.serve_until_closed()

    async with (
        ScriptedServer(speak, then=echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        async with conn.paused():
            await trio.sleep(2.0)
            with pytest.raises(trio.WouldBlock):
                conn.receive_nowait()
            await conn.reconnect()
        await conn.send_text("next")
        assert [await conn.receive() for _ in range(2)] == ["kept back", "next"]


async def test_the_receive_side_is_handed_over_without_loss(autojump_clock: trio.abc.Clock) -> None:
    async def send(peer: Peer) -> None:
        await peer.accept()
        for number in range(20):
            await peer.send(str(number))
            await trio.sleep(1)

    async def heir(receiver: Receiver[str | bytes], got: list[str | bytes]) -> None:
        async for message in receiver:
            got.append(message)

    got: list[str | bytes] = []
    async with (
        ScriptedServer(send) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        conn.listen() as events,
        trio.open_nursery() as nursery,
    ):

        async def first_owner() -> None:
            with pytest.raises(ReceiverMoved):
                while True:
                    got.append(await conn.receive())

        nursery.start_soon(first_owner)
        await trio.sleep(9.5)
        nursery.start_soon(heir, conn.hand_over("heir"), got)
        await trio.sleep(20)
        with pytest.raises(ReceiverMoved):
            conn.receive_nowait()
        assert got == [str(number) for number in range(20)]
        assert any(isinstance(e, OwnershipTransferred) and e.to == "heir" for e in await events.receive_batch())
        await conn.aclose()


# --------------------------------------------------------------------------- listening


async def test_events_come_in_the_order_in_which_things_happened(autojump_clock: trio.abc.Clock) -> None:
    async def live(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(10)
        await peer.close(1012, "restart")

    async with ScriptedServer(live, echo) as server:
        async with (
            open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([5.0])) as conn,
            conn.listen() as events,
        ):
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            await conn.aclose(1000, "bye")
            observations = [each async for each in events.observations()]
    seen = [each.event for each in observations]
    told = [event for event in seen if not isinstance(event, StateChanged)]
    assert [type(event).__name__ for event in told] == [
        "LinkClosed",
        "ErrorEvent",
        "RetryScheduled",
        "DialStarted",
        "LinkOpened",
        "Reconnected",
        "BecameReady",
        "LinkClosed",
        "SessionEnded",
    ]
    closed = next(event for event in told if isinstance(event, LinkClosed))
    assert (closed.code, closed.reason, closed.remote) == (1012, "restart", True)
    assert closed.duration == pytest.approx(10)
    reconnected = next(event for event in told if isinstance(event, Reconnected))
    assert reconnected.attempts == 1
    assert reconnected.outage == pytest.approx(5)
    assert [event.new for event in seen if isinstance(event, StateChanged)] == [
        "disconnected",
        "reconnecting",
        "connecting",
        "connected",
        "ready",
        "closing",
        "closed",
    ]
    assert [each.epoch for each in observations if isinstance(each.event, LinkOpened | BecameReady)] == [2, 2]
    assert {each.session for each in observations} == {f"server.test[{conn.id}]"}
    assert next(event.delay for event in told if isinstance(event, RetryScheduled)) == 5.0
    assert next(event.error for event in told if isinstance(event, SessionEnded)) is None


async def test_a_slow_listener_loses_events_is_told_and_slows_nobody(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(send_ten) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        async with (
            conn.listen(size=3, messages=True) as oldest,
            conn.listen(size=3, messages=True, overflow="drop_newest") as newest,
            conn.listen(size=3, messages=True, overflow="fail") as strict,
            conn.listen(size=100, messages=True) as roomy,
        ):
            await wait_all_tasks_blocked()

            def shown(events: list[Event]) -> list[object]:
                return [e.message if isinstance(e, MessageEvent) else getattr(e, "count", None) for e in events]

            assert shown(await oldest.receive_batch()) == [7, "7", "8", "9"]
            assert shown([await newest.receive() for _ in range(4)]) == ["0", "1", "2", 7]
            assert shown([await strict.receive() for _ in range(3)]) == ["0", "1", "2"]
            with pytest.raises(Lagged):
                await strict.receive()
            assert shown(await roomy.receive_batch()) == list("0123456789")
        assert await conn.receive_batch() == list("0123456789")


async def test_a_listener_of_a_wrong_kind_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        with pytest.raises(ConfigError, match="overflow"):
            async with conn.listen(overflow="block"):  # type: ignore[arg-type]
                pass
        with pytest.raises(ConfigError, match="size"):
            async with conn.listen(size=0):
                pass


async def test_a_handler_consumes_without_anybody_receiving(autojump_clock: trio.abc.Clock) -> None:
    """A client that only has a message handler must not come to a stop at a full inbox."""
    from trio_nova import MessageHandler

    class Counting(MessageHandler):
        count = 0

        def handle_message(self, kind: str, message: object) -> None:
            self.count += 1

    async def flood(peer: Peer) -> None:
        await peer.accept()
        for number in range(5000):
            await peer.send(str(number))
        await peer.serve_until_closed()

    handler = Counting()
    async with (
        ScriptedServer(flood) as server,
        open_connection(URL, stream_factory=server.stream_factory, message_handler=handler, inbox_size=10) as conn,
    ):
        await trio.sleep(5)
        assert handler.count == 5000
        assert await conn.receive_batch() == [str(number) for number in range(4990, 5000)]


# --------------------------------------------------------------------------- the life of the session


async def test_reconnect_opens_another_link_and_says_goodbye_on_the_old(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo, echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await conn.reconnect(reason="new token")
            assert conn.epoch == 2
            assert conn.state is State.READY
            await conn.send_text("x")
            assert await conn.receive() == "x"
            assert len(server.dials) == 2
            await server.dials[0].wait_ended()
            assert conn.close_info is not None
            assert (conn.close_info.code, conn.close_info.reason, conn.close_info.remote) == (1000, "new token", False)


async def test_whoever_waits_for_the_loss_of_a_link_finds_how_it_ended(autojump_clock: trio.abc.Clock) -> None:
    async def close_soon(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1)
        await peer.close(1012, "restart")

    async with (
        ScriptedServer(close_soon, echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        await conn.wait_state(State.DISCONNECTED)
        assert conn.close_info == CloseInfo(1012, "restart", True, 1)
        assert isinstance(conn.health().last_error, LinkLost)


@pytest.mark.fault("F90", where="memory")
async def test_reconnect_cuts_the_wait_between_two_attempts_short(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(drop_at_once, echo) as server,
        open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([1000.0])) as conn,
    ):
        await conn.wait_state(State.RECONNECTING)
        await conn.reconnect()
        assert conn.epoch == 2
        assert trio.current_time() < 10


async def test_reconfigure_changes_the_living_session(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory, ping_interval=1000) as conn,
        conn.listen() as events,
    ):
        await trio.sleep(10)
        conn.reconfigure(ping_interval=5.0, max_attempts=3)
        await trio.sleep(21)
        assert conn.statistics().pings_sent == 4
        assert conn.config.max_attempts == 3
        event = events.receive_nowait()
        assert isinstance(event, Reconfigured)
        assert event.fields == ("ping_interval", "max_attempts")
        for wrong, field in (({"codec": None}, "codec"), ({"ping_interval": -1}, "ping_interval"), ({"x": 1}, "x")):
            with pytest.raises(ConfigError, match=field):
                conn.reconfigure(**wrong)


async def test_drain_finishes_what_is_under_way_and_takes_nothing_new(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(5)
        for number in range(3):
            await peer.expect(str(number) * 2000)
        await peer.expect_close(1000)

    async with ScriptedServer(slow, max_buffer=1000) as server:
        async with (
            open_connection(URL, stream_factory=server.stream_factory) as conn,
            trio.open_nursery() as nursery,
        ):
            for number in range(3):
                nursery.start_soon(conn.send_text, str(number) * 2000)
                await wait_all_tasks_blocked()
            nursery.start_soon(conn.drain)
            await wait_all_tasks_blocked()
            with pytest.raises(NotSent):
                await conn.send_text("new")
            await conn.wait_closed()
            assert conn.state is State.CLOSED
            assert trio.current_time() >= 5
        await server.dials[0].wait_ended()


async def test_aclose_sends_code_and_reason_once_and_may_be_called_again(autojump_clock: trio.abc.Clock) -> None:
    async def expect(peer: Peer) -> None:
        await peer.accept()
        close = await peer.expect_close(4001)
        assert close.reason == "that is all"

    async with ScriptedServer(expect) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            for code, reason in ((1005, ""), (999, ""), (1000, "x" * 124)):
                with pytest.raises(ConfigError):
                    await conn.aclose(code, reason)
            await conn.aclose(4001, "that is all")
            await conn.aclose()
            assert conn.state is State.CLOSED
            assert conn.health().status == "over"
        await server.dials[0].wait_ended()


async def test_waiting_for_a_state_that_there_is_not_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, open_connection(URL, stream_factory=server.stream_factory) as conn:
        with pytest.raises(ConfigError, match=r"^state: must be one of 'initialized', "):
            await conn.wait_state("redy")  # type: ignore[arg-type]


async def test_waiting_for_a_state_that_cannot_come_any_more_ends(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        trio.open_nursery() as nursery,
    ):

        async def wait(state: State) -> None:
            with pytest.raises(SessionOver):
                await conn.wait_state(state)

        nursery.start_soon(wait, State.RECONNECTING)
        nursery.start_soon(conn.wait_state, State.CLOSING)
        nursery.start_soon(conn.wait_state, State.CLOSED)
        await wait_all_tasks_blocked()
        await conn.aclose()
        await conn.wait_state(State.CLOSED)
        with pytest.raises(SessionOver):
            await conn.wait_ready()


async def test_run_connection_reports_at_ready_and_returns_at_the_end(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Connection] = trio.TASK_STATUS_IGNORED) -> None:
            await run_connection(URL, stream_factory=server.stream_factory, task_status=task_status)

        conn = await nursery.start(run)
        assert conn.state is State.READY
        await conn.send_text("x")
        assert await conn.receive() == "x"
        await conn.aclose()


async def test_a_registry_finds_living_connections(autojump_clock: trio.abc.Clock) -> None:
    registry = Registry()
    async with ScriptedServer(then=echo) as server:
        async with (
            registry.open_connection("a", URL, stream_factory=server.stream_factory) as a,
            registry.open_connection("b", URL, stream_factory=server.stream_factory) as b,
        ):
            assert (registry["a"], registry.get("b"), registry.get("c")) == (a, b, None)
            assert a.id == "a"
            assert sorted(registry) == ["a", "b"]
            with pytest.raises(ConfigError, match="id"):
                async with registry.open_connection("a", URL, stream_factory=server.stream_factory):
                    pass
            await a.reconnect()
            assert registry["a"] is a
        assert len(registry) == 0
        with pytest.raises(KeyError):
            registry["a"]


async def test_headers_may_come_from_a_provider_asked_before_every_dial(autojump_clock: trio.abc.Clock) -> None:
    asked = 0

    async def provide() -> dict[str, str]:
        nonlocal asked
        asked += 1
        await trio.sleep(0.1)
        if asked == 2:
            raise RuntimeError("the vault is closed")
        return {"X-Token": f"token-{asked}"}

    async with (
        ScriptedServer(drop_at_once, echo) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            headers=provide,
            allow_plaintext_credentials=True,
            backoff=AT_ONCE,
        ) as conn,
    ):
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
    requests = [dial.request for dial in server.dials]
    assert [request.headers["x-token"] for request in requests if request is not None] == ["token-1", "token-3"]


async def test_a_control_frame_can_be_sent_and_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            await conn.send(Ping(b"mine"))
            await trio.sleep(1)
        with pytest.raises(ConfigError):
            Ping(b"x" * 126)
    assert Ping(b"mine") in server.dials[0].frames


@pytest.mark.parametrize("transport", [WireTransport(), TrioWebsocketTransport()], ids=["wire", "trio-websocket"])
async def test_what_a_link_brings_while_a_reconnect_says_goodbye_on_it_is_not_lost(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def talk_to_the_end(peer: Peer) -> None:
        await peer.accept()
        await peer.send("before")
        goodbye = await peer.receive()
        assert isinstance(goodbye, ClosePayload)
        await peer.send("on its way when the goodbye came")
        await trio.sleep(0.1)
        await peer.send("said before the answer to it")
        await peer.close(goodbye.code)

    async with ScriptedServer(talk_to_the_end, echo) as server:
        async with open_connection(
            URL, stream_factory=server.stream_factory, backoff=AT_ONCE, transport=transport
        ) as conn:
            assert await conn.receive() == "before"
            await conn.reconnect()
            await conn.send_text("echo")
            with trio.fail_after(60.0):
                received = [await conn.receive() for _ in range(3)]
    assert received == ["on its way when the goodbye came", "said before the answer to it", "echo"]


# --------------------------------------------------------------------------- where it must not be used


CALLS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "send": lambda conn: conn.send("x"),
    "send_text": lambda conn: conn.send_text("x"),
    "send_bytes": lambda conn: conn.send_bytes(b"x"),
    "send_json": lambda conn: conn.send_json("x"),
    "request": lambda conn: conn.request("x"),
    "subscribe": lambda conn: conn.subscribe("x").__aenter__(),
    "receive": lambda conn: conn.receive(),
    "receive_batch": lambda conn: conn.receive_batch(),
    "ping": lambda conn: conn.ping(),
    "wait_state": lambda conn: conn.wait_state(State.CLOSED),
    "wait_closed": lambda conn: conn.wait_closed(),
    "reconnect": lambda conn: conn.reconnect(),
    "drain": lambda conn: conn.drain(),
    "aclose": lambda conn: conn.aclose(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_another_run_of_trio_is_an_error_and_harms_nothing(
    name: str, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async def call(conn: Connection) -> None:
        with pytest.raises(ConfigError, match=r"belongs to another trio\.run"):
            await CALLS[name](conn)

    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory, transport=transport) as conn,
    ):
        await trio.to_thread.run_sync(trio.run, call, conn)
        with pytest.raises(ConfigError, match=r"belongs to another trio\.run"):
            await trio.to_thread.run_sync(conn.receive_nowait)
        await conn.send("still here")
        assert await conn.receive() == "still here"
        assert conn.epoch == 1


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
async def test_a_hook_that_raises_what_cannot_leave_a_coroutine_is_told_as_what_it_is(
    error: type[Exception], autojump_clock: trio.abc.Clock
) -> None:
    class Stops(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            raise error("spent")

    with pytest.raises(
        RuntimeError, match=rf"a hook raised {error.__name__} in handle_message\(\) at test_connec"
    ) as caught:
        async with (
            ScriptedServer(echo) as server,
            open_connection(URL, stream_factory=server.stream_factory, message_handler=Stops) as conn,
        ):
            await conn.send("x")
            await conn.wait_closed()
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
async def test_a_matcher_that_raises_what_cannot_leave_a_coroutine_is_told_as_what_it_is(
    error: type[Exception], autojump_clock: trio.abc.Clock
) -> None:
    def matches(message: Any) -> bool:
        raise error("spent")

    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        with pytest.raises(RuntimeError, match=rf"a hook raised {error.__name__} in matches\(\)") as caught:
            await conn.request("x", matches=matches)
        assert isinstance(caught.value.__cause__, error)


def test_a_block_in_a_generator_that_is_dropped_says_goodbye_and_is_told_and_nothing_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    goodbyes: list[object] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send("a", "b")
        goodbyes.append(await peer.receive())

    async def messages(server: ScriptedServer) -> AsyncIterator[Any]:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn:
            async for message in conn:
                yield message

    async def main() -> None:
        async with ScriptedServer(script) as server:
            async for message in messages(server):
                assert message == "a"
                break
            gc.collect()
            await trio.sleep(1.0)

    with (
        warnings.catch_warnings(record=True),
        pytest.raises((RuntimeError, AssertionError, BaseExceptionGroup)),  # Trio's: its stack of scopes is corrupted
    ):
        warnings.simplefilter("always")
        trio.run(main, clock=MockClock(autojump_threshold=0))
    gc.collect()
    assert goodbyes == [ClosePayload(1000, "")]
    assert "a connection block was left in another task" in caplog.text
