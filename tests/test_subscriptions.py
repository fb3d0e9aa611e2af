"""Subscriptions: confirmed, restored in order, given up, and honest about what was missed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Allow,
    Channel,
    ConfigError,
    Connection,
    Decision,
    Dropped,
    FeedOptions,
    FeedStale,
    Gap,
    Granted,
    JsonCodec,
    Lagged,
    ListBackoff,
    MessageHandler,
    RateLimitHandler,
    RateRequest,
    RawCodec,
    Reject,
    RequestUnresolved,
    SessionOver,
    State,
    SubscriptionHandler,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.testing import Opcode, Peer, ScriptedServer

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])


def connect(server: ScriptedServer, **options: Any) -> Any:
    return open_connection(
        URL, **{"stream_factory": server.stream_factory, "codec": JsonCodec(), "backoff": AT_ONCE, **options}
    )


class AskedAsRequests(SubscriptionHandler):
    correlated = True


class Service:
    """Confirms every channel but the forbidden, and keeps what it was asked."""

    def __init__(self, *, forbidden: set[str] | None = None, mute: set[str] | None = None) -> None:
        self.forbidden = forbidden or set()
        self.mute = mute or set()
        self.asked: list[list[str]] = []
        self.subscribed: set[str] = set()
        self.peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        self.peer = peer
        asked: list[str] = []
        self.asked.append(asked)
        self.subscribed = set()
        while isinstance(frame := await peer.receive(), str):
            message = json.loads(frame)
            match message:
                case {"type": "subscribe", "channel": channel}:
                    asked.append(channel)
                    if channel in self.forbidden:
                        await peer.send_json({"type": "error", "channel": channel, "reason": "forbidden"})
                    elif channel not in self.mute:
                        self.subscribed.add(channel)
                        await peer.send_json({**message, "type": "subscribed"})
                case {"type": "unsubscribe", "channel": channel}:
                    asked.append(f"-{channel}")
                    self.subscribed.discard(channel)
                case other:
                    await peer.send_json(other)

    async def publish(self, channel: str, n: int) -> None:
        assert self.peer is not None
        if channel in self.subscribed:
            await self.peer.send_json({"channel": channel, "n": n})


async def test_a_feed_hears_its_channel_and_leaving_gives_it_up(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a", params={"depth": 10}) as feed, conn.subscribe("b") as other:
            for n in range(3):
                await service.publish("a", n)
                await service.publish("b", -n)
            assert [(await feed.receive())["n"] for _ in range(3)] == [0, 1, 2]
            assert [(await other.receive())["n"] for _ in range(3)] == [0, -1, -2]
            assert dict(conn.subscriptions()) == {'a {"depth":10}': "confirmed", "b": "confirmed"}
        await wait_all_tasks_blocked()
        assert service.subscribed == set()
        assert json.loads(next(f for f in server.dials[0].frames if isinstance(f, str))) == {
            "type": "subscribe",
            "channel": "a",
            "params": {"depth": 10},
        }
        with pytest.raises(trio.WouldBlock):
            conn.receive_nowait()


async def test_two_users_of_a_channel_are_one_subscription(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a") as first:
            async with conn.subscribe("a") as second:
                await service.publish("a", 1)
                assert await first.receive() == await second.receive() == {"channel": "a", "n": 1}
            await wait_all_tasks_blocked()
            assert service.subscribed == {"a"}
            with pytest.raises(ConfigError, match="params"):
                async with conn.subscribe("a", params={"depth": 1}):
                    pass
        await wait_all_tasks_blocked()
        assert service.asked == [["a", "-a"]]


async def test_a_reader_that_joins_or_leaves_later_changes_nothing_for_the_others(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a", feed=FeedOptions(notices=True)) as stays:
            for n in range(3):
                await service.publish("a", n)
                assert (await stays.receive())["n"] == n
            async with conn.subscribe("a", feed=FeedOptions(notices=True, max_age=10.0)) as joins:
                await trio.sleep(9.0)
                for n in range(3, 6):
                    await service.publish("a", n)
                    assert (await stays.receive())["n"] == (await joins.receive())["n"] == n
                await trio.sleep(9.0)
                with pytest.raises(trio.WouldBlock):
                    joins.receive_nowait()
                await trio.sleep(2.0)
                assert isinstance(await joins.receive(), FeedStale)
                assert isinstance(await stays.receive(), FeedStale)
            for n in range(6, 9):
                await service.publish("a", n)
                assert (await stays.receive())["n"] == n
            assert service.peer is not None
            await service.peer.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            await service.publish("a", 9)
            assert isinstance(await stays.receive(), Gap)
            assert (await stays.receive())["n"] == 9


@pytest.mark.parametrize("again", [True, False], ids=["given up before", "for the first time"])
async def test_data_of_a_channel_that_was_given_up_and_is_wanted_again_are_told_apart(
    again: bool, autojump_clock: trio.abc.Clock
) -> None:
    asked = 0

    async def service(peer: Peer) -> None:
        nonlocal asked
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            if json.loads(frame)["type"] == "subscribe":
                asked += 1
                if again and asked == 1:
                    await peer.send_json({"type": "subscribed", "channel": "a"})
                    continue
                # A slow service has not seen yet that it was given up, and says of each request that it is granted.
                await peer.send_json({"channel": "a", "n": 1})
                await peer.send_json({"type": "subscribed", "channel": "a"})
                await peer.send_json({"channel": "a", "n": 2})
                await peer.send_json({"type": "subscribed", "channel": "a"})
                await peer.send_json({"channel": "a", "n": 9})

    async with ScriptedServer(then=service) as server, connect(server) as conn:
        if again:
            async with conn.subscribe("a"):
                pass
            await wait_all_tasks_blocked()
        async with conn.subscribe("a", feed=FeedOptions(notices=True)) as feed:
            await wait_all_tasks_blocked()
            heard = [each.outcome if isinstance(each, Gap) else each["n"] for each in await feed.receive_batch()]
    assert heard == ([1, "unknown", 2, "unknown", 9] if again else [1, 2, 9])


async def test_a_refused_channel_is_told_to_whoever_asked_and_the_others_stand(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(forbidden={"secret"})
    async with ScriptedServer(service) as server, connect(server) as conn, conn.subscribe("a") as feed:
        with pytest.raises(SubscriptionRejected, match="forbidden"):
            async with conn.subscribe("secret"):
                raise AssertionError("never entered")
        await service.publish("a", 1)
        assert (await feed.receive())["n"] == 1


async def test_names_that_no_channel_can_have_are_names_of_nobody(autojump_clock: trio.abc.Clock) -> None:
    hostile: list[Any] = [
        {"channel": [1]},
        {"type": "subscribed", "channel": {}},
        {"type": "subscribed", "channels": [["a"], {}, "b"]},
        {"type": "error", "channel": [], "reason": "no"},
        {"type": "subscription", "result": "no", "id": {}},
    ]
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn, conn.subscribe("a") as feed:
        assert service.peer is not None
        for message in hostile:
            await service.peer.send_json(message)
        await service.publish("a", 1)
        assert (await feed.receive())["n"] == 1
        assert conn.state is State.READY


async def test_restored_in_order_on_the_next_link_before_it_is_ready(autojump_clock: trio.abc.Clock) -> None:
    service = Service()

    async def hold(conn: Any, name: str, task_status: Any) -> None:
        async with conn.subscribe(name) as feed:
            task_status.started(feed)
            await trio.sleep_forever()

    async with ScriptedServer(then=service) as server, connect(server) as conn, trio.open_nursery() as nursery:

        async def start(name: str) -> Any:
            async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                await hold(conn, name, task_status)

            return await nursery.start(run)

        feeds = [await start(f"channel {n}") for n in range(20)]
        assert service.peer is not None
        await service.peer.drop()
        await conn.wait_state(State.RESTORING)
        await conn.wait_ready()
        assert service.asked == [[f"channel {n}" for n in range(20)]] * 2
        await service.publish("channel 7", 1)
        assert (await feeds[7].receive())["n"] == 1
        nursery.cancel_scope.cancel()


async def test_a_gap_stands_in_its_place_for_those_who_ask(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server, backoff=ListBackoff([5.0])) as conn:
        async with conn.subscribe("a", feed=FeedOptions(notices=True)) as feed, conn.subscribe("a") as plain:
            await service.publish("a", 1)
            await wait_all_tasks_blocked()
            assert service.peer is not None
            await service.peer.send_frame(Opcode.CLOSE, (1012).to_bytes(2, "big") + b"restart")
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            await service.publish("a", 2)
            await wait_all_tasks_blocked()
            first, gap, second = await feed.receive_batch()
            assert (first["n"], second["n"]) == (1, 2)
            assert isinstance(gap, Gap)
            assert (gap.epoch_from, gap.epoch_to, gap.outcome) == (1, 2, "unknown")
            assert gap.until - gap.since == pytest.approx(5.0)
            assert "1012" in gap.cause
            assert [message["n"] for message in await plain.receive_batch()] == [1, 2]


@pytest.mark.fault("F112", where="memory")
async def test_what_is_given_up_while_down_is_not_asked_for_again(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with (
        ScriptedServer(then=service) as server,
        connect(server, backoff=ListBackoff([5.0])) as conn,
        conn.subscribe("kept"),
    ):
        async with conn.subscribe("given up"):
            assert service.peer is not None
            await service.peer.drop()
            await conn.wait_state(State.RECONNECTING)
        await conn.wait_ready()
        assert service.asked == [["kept", "given up"], ["kept"]]


@pytest.mark.fault("F112", where="memory")
async def test_a_subscription_made_while_down_waits_for_the_link(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server, backoff=ListBackoff([5.0])) as conn:
        while service.peer is None:
            await trio.sleep(0.1)
        await service.peer.drop()
        await conn.wait_state(State.RECONNECTING)
        async with conn.subscribe("a"):
            assert conn.epoch == 2
        await wait_all_tasks_blocked()
        assert service.asked == [[], ["a", "-a"]]


async def test_one_that_is_never_answered_is_asked_once_more_and_then_refused(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(mute={"a"})
    async with ScriptedServer(service) as server, connect(server) as conn:
        started = trio.current_time()
        with pytest.raises(SubscriptionRejected, match="no answer"):
            async with conn.subscribe("a"):
                raise AssertionError("never entered")
        assert trio.current_time() - started == pytest.approx(60)
        assert service.asked == [["a", "a"]]


async def test_the_failures_of_one_link_are_not_held_against_the_next(autojump_clock: trio.abc.Clock) -> None:
    service = Service(mute={"a"})
    async with ScriptedServer(then=service) as server, connect(server) as conn, trio.open_nursery() as nursery:

        async def hold() -> None:
            async with conn.subscribe("a"):
                await trio.sleep_forever()

        nursery.start_soon(hold)
        await trio.sleep(31)  # on each link the first time goes without an answer
        assert service.peer is not None
        await service.peer.drop()
        await trio.sleep(31)
        assert service.asked == [["a", "a"], ["a", "a"]]
        assert conn.subscriptions() == {"a": "requested"}
        nursery.cancel_scope.cancel()


async def test_one_that_was_refused_is_not_asked_for_on_the_next_link_before_it_is_wanted_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(forbidden={"a"})
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        conn.import_subscriptions('[{"channel": "a", "params": {}}, {"channel": "b", "params": {}}]')
        await wait_all_tasks_blocked()
        assert conn.subscriptions() == {"a": "rejected", "b": "confirmed"}
        await conn.reconnect()
        await wait_all_tasks_blocked()
        assert service.asked == [["a", "b"], ["b"]]
        assert (conn.subscriptions()["a"], conn.health().status) == ("rejected", "degraded")
        service.forbidden.clear()
        async with conn.subscribe("a"):
            assert service.asked[1:] == [["b", "a"]]
            assert (conn.subscriptions()["a"], conn.health().status) == ("confirmed", "ok")
        await conn.reconnect()
        await wait_all_tasks_blocked()
        assert service.asked[2] == ["a", "b"]  # in the order in which they were first wanted


async def test_one_that_was_confirmed_after_it_counted_as_refused_is_restored_on_the_next_link(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(mute={"a"})
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        conn.import_subscriptions('[{"channel": "a", "params": {}}]')
        await trio.sleep(100.0)
        assert (service.asked, dict(conn.subscriptions())) == ([["a", "a"]], {"a": "rejected"})
        assert service.peer is not None
        await service.peer.send_json({"type": "subscribed", "channel": "a"})
        await wait_all_tasks_blocked()
        assert (dict(conn.subscriptions()), conn.health().status) == ({"a": "confirmed"}, "ok")
        service.mute.clear()
        await conn.reconnect()
        assert (service.asked[1], dict(conn.subscriptions())) == (["a"], {"a": "confirmed"})


async def test_a_confirmation_that_comes_as_its_link_is_left_confirms_nothing_on_the_next(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def confirms_with_its_last_word(peer: Peer) -> None:
        await peer.accept()
        while isinstance(await peer.receive(), str):
            pass
        await peer.send_json({"type": "subscribed", "channel": "a"})
        await peer.finish()

    service = Service(mute={"a"})
    async with ScriptedServer(confirms_with_its_last_word, then=service) as server, connect(server) as conn:
        async with trio.open_nursery() as nursery:
            entered = trio.Event()

            async def hold() -> None:
                async with conn.subscribe("a"):
                    entered.set()
                    await trio.sleep_forever()

            nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            nursery.start_soon(conn.reconnect)
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_state(State.RESTORING)
            await wait_all_tasks_blocked()
            assert (conn.epoch, conn.subscriptions(), entered.is_set()) == (2, {"a": "requested"}, False)
            assert service.peer is not None
            await service.peer.send_json({"type": "subscribed", "channel": "a"})
            await entered.wait()
            nursery.cancel_scope.cancel()


async def test_who_comes_back_before_the_service_was_told_gets_the_params_that_are_asked_for_now(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a", params={"depth": 1}):
            pass
        async with conn.subscribe("a", params={"depth": 2}):
            pass
        async with conn.subscribe("a", params={"depth": 2}):
            await wait_all_tasks_blocked()
            frames = [json.loads(frame) for frame in server.dials[0].frames if isinstance(frame, str)]
            assert [(frame["type"], frame.get("params")) for frame in frames] == [
                ("subscribe", {"depth": 1}),
                ("unsubscribe", None),
                ("subscribe", {"depth": 2}),
            ]
            assert service.subscribed == {"a"}


async def test_who_comes_back_before_the_service_was_told_hears_of_its_silence_and_of_its_refusal(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a"):
            pass
        async with conn.subscribe("a", feed=FeedOptions(notices=True, max_age=5.0)) as feed:
            began = trio.current_time()
            with trio.fail_after(60):
                assert isinstance(await feed.receive(), FeedStale)
            assert trio.current_time() - began == pytest.approx(5.0)
            assert service.peer is not None
            await service.peer.send_json({"type": "error", "channel": "a", "reason": "revoked"})
            with trio.fail_after(60), pytest.raises(SubscriptionRejected, match="revoked"):
                await feed.receive()
    assert service.asked == [["a"]]


@pytest.mark.fault("F113", where="memory")
async def test_one_refused_on_restore_ends_its_feed_and_leaves_the_session_degraded(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a") as feed, conn.subscribe("b") as other:
            service.forbidden.add("a")
            assert service.peer is not None
            await service.peer.drop()
            with pytest.raises(SubscriptionRejected, match="forbidden"):
                await feed.receive()
            await conn.wait_ready()
            assert conn.health().status == "degraded"
            await service.publish("b", 1)
            assert (await other.receive())["n"] == 1
        assert conn.health().status == "ok"


async def test_a_wrong_argument_is_refused_and_nothing_is_subscribed_to(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        wrong: list[tuple[str, Any, Any]] = [
            ("feed", "a", {"size": 5}),
            ("feed", "a", FeedOptions),
            ("channel", None, None),
            ("channel", [], None),
            ("channel", ["a", 1], None),
            ("channel", {"a": 1}, None),
        ]
        for field, channel, feed in wrong:
            with pytest.raises(ConfigError, match=f"^{field}: "):
                async with conn.subscribe(channel, feed=feed):
                    pass
        assert conn.subscriptions() == {}
        async with conn.subscribe("a", params={"depth": 3}):
            assert conn.subscriptions() == {'a {"depth":3}': "confirmed"}
        assert conn.subscriptions() == {}


@pytest.mark.parametrize("conflate", [lambda message: message["no such"], lambda message: [message]])
async def test_what_a_conflation_key_raises_ends_its_own_feed_alone(
    autojump_clock: trio.abc.Clock, conflate: Callable[[Any], Any]
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        options = FeedOptions(conflate=conflate)
        async with conn.subscribe("a", feed=options) as broken, conn.subscribe("a") as sound:
            for n in range(2):
                await service.publish("a", n)
            with pytest.raises((KeyError, TypeError)):
                await broken.receive()
            assert [(await sound.receive())["n"] for _ in range(2)] == [0, 1]
        assert conn.state is State.READY


async def test_a_feed_whose_block_was_left_says_so_and_not_that_the_session_is_over(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a") as feed:
            await service.publish("a", 1)
            await wait_all_tasks_blocked()
        assert (await feed.receive())["n"] == 1
        with pytest.raises(trio.ClosedResourceError, match="the block of this subscription was left"):
            await feed.receive()
        assert [message async for message in feed] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (FeedOptions(size=3, overflow="drop_oldest", notices=True), [("dropped", 7), 7, 8, 9]),
        (FeedOptions(size=3, overflow="drop_newest", notices=True), [0, 1, 2, ("dropped", 7)]),
        (FeedOptions(size=3, overflow="drop_oldest"), [7, 8, 9]),
        (FeedOptions(size=3, conflate=lambda message: message["n"] % 2), [8, 9]),
    ],
)
async def test_a_feed_keeps_what_its_policy_says(
    autojump_clock: trio.abc.Clock, options: FeedOptions, expected: list[Any]
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn:
        async with conn.subscribe("a", feed=options) as feed, conn.subscribe("a") as roomy:
            for n in range(10):
                await service.publish("a", n)
            await wait_all_tasks_blocked()
            shown = [
                ("dropped", item.count) if isinstance(item, Dropped) else item["n"]
                for item in await feed.receive_batch()
            ]
            assert shown == expected
            assert [message["n"] for message in await roomy.receive_batch()] == list(range(10))


async def test_a_feed_that_may_not_drop_fails_or_stops_the_reading(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server, inbox_bytes=2000) as conn:
        async with (
            conn.subscribe("a", feed=FeedOptions(size=2, overflow="fail")) as strict,
            conn.subscribe("b") as blocking,
        ):
            for n in range(5):
                await service.publish("a", n)
            await wait_all_tasks_blocked()
            assert [(await strict.receive())["n"] for _ in range(2)] == [0, 1]
            with pytest.raises(Lagged):
                await strict.receive()
            for n in range(20):
                await service.publish("b", n)
                await wait_all_tasks_blocked()
            assert blocking.waiting < 20
            assert (conn.health().reading, conn.health().full) == (False, "b")
            assert [(await blocking.receive())["n"] for _ in range(20)] == list(range(20))
            await wait_all_tasks_blocked()
            assert conn.health().reading


async def test_subscriptions_are_exported_and_imported(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server:
        async with connect(server) as conn, conn.subscribe("a"), conn.subscribe("b", params={"depth": 10}):
            async with conn.subscribe("given up"):
                pass
            text = conn.export_subscriptions()
            assert json.loads(text) == [{"channel": "a", "params": {}}, {"channel": "b", "params": {"depth": 10}}]
        async with connect(server) as conn:
            conn.import_subscriptions(text)
            await wait_all_tasks_blocked()
            assert service.asked[-1] == ["a", "b"]
            assert conn.export_subscriptions() == text
            await service.publish("a", 1)
            assert (await conn.receive())["n"] == 1
            conn.unsubscribe("a")
            await wait_all_tasks_blocked()
            assert service.subscribed == {"b"}
            with pytest.raises(ConfigError):
                conn.unsubscribe("a")
            for wrong in ("{", "[1]", '[{"channel": 3}]', None):
                with pytest.raises(ConfigError):
                    conn.import_subscriptions(wrong)
            for row in ("null", '"c"', "{}", '{"channel": 1, "params": {}}', '{"channel": "c", "params": []}'):
                with pytest.raises(ConfigError, match="row 1"):
                    conn.import_subscriptions(f'[{{"channel": "c", "params": {{}}}}, {row}]')
            assert conn.subscriptions() == {'b {"depth":10}': "confirmed"}


async def test_a_confirmation_that_nothing_can_read_is_not_waited_for(autojump_clock: trio.abc.Clock) -> None:
    class Reads(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            return json.loads(message)

    async with ScriptedServer(then=Service()) as server:
        async with connect(server, codec=RawCodec()) as conn:
            with pytest.raises(ConfigError, match=r"^codec: .*JsonCodec"):
                async with conn.subscribe("a"):
                    pytest.fail("it was confirmed")
            with pytest.raises(ConfigError, match=r"^codec: .*JsonCodec"):
                conn.import_subscriptions('[{"channel": "a", "params": {}}]')
            assert conn.subscriptions() == {}
        async with (
            connect(server, codec=RawCodec(), message_handler=Reads()) as conn,
            conn.subscribe("a"),
        ):
            assert conn.subscriptions() == {"a": "confirmed"}


@pytest.mark.parametrize("hook", ["read", "handle_subscription_response"])
async def test_a_hook_that_raises_follows_on_handler_error_and_the_reader_lives(
    autojump_clock: trio.abc.Clock, hook: str
) -> None:
    def fail(*args: Any) -> Any:
        raise LookupError(hook)

    broken = type("Broken", (SubscriptionHandler,), {hook: fail})
    service = Service()
    async with (
        ScriptedServer(service) as server,
        connect(server, subscription_handler=broken, on_handler_error="log", subscription_timeout=1.0) as conn,
    ):
        with trio.move_on_after(10), contextlib.suppress(SubscriptionRejected):
            async with conn.subscribe("a"):
                await service.publish("a", 1)
                await trio.sleep(1)
        await conn.send({"n": 1})
        with trio.fail_after(10):
            while (message := await conn.receive()) != {"n": 1}:
                assert message["channel"] == "a"
        assert conn.statistics().errors > 0
        assert conn.epoch == 1


async def test_a_matcher_that_raises_follows_on_handler_error(autojump_clock: trio.abc.Clock) -> None:
    def fail(message: Any) -> bool:
        raise LookupError("matcher")

    async with ScriptedServer(Service()) as server:
        with pytest.raises(LookupError, match="matcher"):
            async with connect(server) as conn:
                await conn.request({"n": 1}, matches=fail)


@pytest.mark.parametrize("hook", ["encode_subscription_request", "encode_unsubscription_request", "resume"])
@pytest.mark.parametrize("policy", ["raise", "log", "close"])
async def test_a_hook_that_raises_in_the_making_of_a_message_follows_on_handler_error(
    autojump_clock: trio.abc.Clock, policy: str, hook: str
) -> None:
    def fail(*args: Any) -> Any:
        raise LookupError(hook)

    broken = type("Broken", (SubscriptionHandler,), {hook: fail})
    service, lasted = Service(), False
    no_error: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    leaves: dict[str, contextlib.AbstractContextManager[object]] = {
        "raise": pytest.raises(LookupError, match=hook),
        "log": no_error,
        "close": contextlib.suppress(SessionOver),
    }
    refusal: contextlib.AbstractContextManager[object] = pytest.raises(SubscriptionRejected, match="LookupError")
    async with ScriptedServer(then=service) as server:
        with leaves[policy]:
            async with connect(server, subscription_handler=broken, on_handler_error=policy) as conn:
                with refusal if hook == "encode_subscription_request" and policy != "raise" else no_error:
                    async with conn.subscribe("a") as feed:
                        await service.publish("a", 1)
                        await feed.receive()
                        await conn.reconnect()  # a channel that was heard is asked for by way of `resume`
                await trio.sleep(5.0)
                lasted = conn.state is State.READY
    assert lasted is (policy == "log")


@pytest.mark.parametrize("hook", ["key", "tracker"])
async def test_what_is_raised_while_a_subscription_is_made_is_its_makers(
    autojump_clock: trio.abc.Clock, hook: str
) -> None:
    def fail(*args: Any) -> Any:
        raise LookupError(hook)

    broken = type("Broken", (SubscriptionHandler,), {hook: fail})
    service = Service()
    async with ScriptedServer(service) as server, connect(server, subscription_handler=broken) as conn:
        with pytest.raises(LookupError, match=hook):
            async with conn.subscribe("a"):
                raise AssertionError("never entered")
        await wait_all_tasks_blocked()
        assert service.asked == [[]]
        assert conn.subscriptions() == {}


async def test_who_subscribes_at_any_moment_of_a_loss_hears_on_the_next_link(autojump_clock: trio.abc.Clock) -> None:
    # At one of them the nursery of the link that goes has closed, and no task can be started in it.
    for moment in range(30):
        service = Service()
        async with ScriptedServer(then=service) as server, connect(server) as conn:
            assert service.peer is not None
            await service.peer.drop()
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            async with conn.subscribe("news") as feed:
                await service.publish("news", moment)
                assert (await feed.receive())["n"] == moment


async def test_what_is_given_up_in_the_instant_in_which_its_link_is_left_is_simply_forgotten(
    autojump_clock: trio.abc.Clock,
) -> None:
    class GivesUp(JsonCodec):
        """Gives the subscription up as it reads the last word, when nothing can be asked any more."""

        def decode(self, payload: str | bytes) -> Any:
            if payload == '"the last word"':
                conn.unsubscribe("a")
            return super().decode(payload)

        def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[Any]:
            return [self.decode(payload) for payload in payloads]

    async def confirm(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            asked = json.loads(frame)
            await peer.send_json({"type": "subscribed", "channel": asked["channel"], "id": asked.get("id")})
        await peer.send_json("while goodbye is said")  # the reader's last
        await trio.sleep(0.1)
        await peer.send_json("the last word")
        await peer.finish()

    async with ScriptedServer(confirm, then=confirm) as server:
        # With room for one message, the second clogs the inbox: that ends the reading at once.
        async with connect(server, subscription_handler=AskedAsRequests, codec=GivesUp(), inbox_size=1) as conn:
            conn.import_subscriptions('[{"channel": "a", "params": {}}]')
            await wait_all_tasks_blocked()
            assert conn.subscriptions() == {"a": "confirmed"}
            await conn.reconnect()
            assert (conn.epoch, conn.subscriptions()) == (2, {})
            assert [await conn.receive() for _ in range(2)] == ["while goodbye is said", "the last word"]


async def test_questions_that_are_never_answered_do_not_keep_others_from_being_asked(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(mute={f"silent-{number}" for number in range(40)})
    refused: list[str] = []

    async def want(conn: Connection, channel: str) -> None:
        with pytest.raises(SubscriptionRejected, match="no answer"):
            async with conn.subscribe(channel):
                pass
        refused.append(channel)

    async with (
        ScriptedServer(then=service) as server,
        connect(server, subscription_handler=AskedAsRequests, subscription_timeout=1.0) as conn,
        trio.open_nursery() as nursery,
    ):
        for channel in sorted(service.mute):
            nursery.start_soon(want, conn, channel)
        with trio.fail_after(20.0):
            async with conn.subscribe("news") as feed:
                await service.publish("news", 1)
                assert (await feed.receive())["n"] == 1
    assert set(refused) == service.mute
    assert service.asked[0].count("news") == 1


async def test_what_is_given_up_without_an_answer_is_not_awaited_for_ever(autojump_clock: trio.abc.Clock) -> None:
    options = {"subscription_handler": AskedAsRequests, "subscription_timeout": 1.0}
    async with ScriptedServer(then=Service()) as server, connect(server, **options) as conn, conn.listen() as events:
        async with conn.subscribe("news"):
            pass
        began = trio.current_time()
        async for event in events:
            if isinstance(event, RequestUnresolved):
                break
        assert trio.current_time() - began == pytest.approx(1.0)


class AsksTogether(SubscriptionHandler):
    """Asks for several channels with one question."""

    correlated = True

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"subscribe": [channel.name for channel in channels]}

    def read_grants(self, reply: Any, channels: Sequence[Channel]) -> Sequence[Granted]:
        return [Granted(channel.key) for channel in channels]


async def test_where_the_limit_refuses_to_ask_for_each_of_a_spoilt_batch_these_are_refused_and_no_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    class AllowsOne(RateLimitHandler):
        asked = 0

        def check_rate_limit(self, request: RateRequest) -> Decision:
            self.asked += request.purpose == "subscription"
            return Allow() if self.asked <= 1 else Reject("too many")

    async def refuse(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            await peer.send_json({"id": json.loads(frame)["id"], "error": "one of them is unknown"})

    handlers: dict[str, Any] = {
        "subscription_handler": AsksTogether(max_batch=10),
        "rate_limit_handler": AllowsOne(),
    }
    async with ScriptedServer(refuse) as server, connect(server, **handlers) as conn:
        conn.import_subscriptions(json.dumps([{"channel": channel, "params": {}} for channel in "ab"]))
        await trio.sleep(1.0)
        assert dict(conn.subscriptions()) == {"a": "rejected", "b": "rejected"}
        assert conn.state is State.READY
