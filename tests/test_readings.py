"""A message is read once: the readings of a dialect, who decides what a message is, and what becomes of each."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    Adapter,
    Allow,
    Answer,
    Answered,
    AnswerUnmatched,
    AuthExchange,
    AuthFailed,
    AuthHandler,
    AuthOk,
    AuthRefused,
    BadMessage,
    Beat,
    ByServerId,
    Call,
    Channel,
    ConfigError,
    Connection,
    ConnectionHandler,
    ConnectionInfo,
    ConnectTimeout,
    Correlation,
    Data,
    Decision,
    Dialect,
    Done,
    Ended,
    ErrorHandler,
    Event,
    GoAway,
    Granted,
    HeartbeatAsked,
    Item,
    JsonCodec,
    LinkOpened,
    ListBackoff,
    LoggingHandler,
    Many,
    MessageHandler,
    MessageHeartbeat,
    MetricsCollector,
    MoveAsked,
    NotSent,
    Other,
    PongReceived,
    Position,
    Queue,
    RateLimitHandler,
    RateLimitSlowed,
    RateRequest,
    RawCodec,
    Reading,
    Reconnect,
    Refused,
    Reply,
    RequestFailed,
    Retry,
    Secret,
    SessionOver,
    State,
    Stop,
    SubscriptionEnded,
    SubscriptionHandler,
    SubscriptionRefused,
    SubscriptionRejected,
    Throttled,
    TokenBucket,
    Url,
    Welcome,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"
PATIENCE = 30.0

Says = Callable[[Any], Sequence[Any]]


def connect(server: ScriptedServer, target: Any, **options: Any) -> Any:
    return open_connection(
        target, **{"stream_factory": server.stream_factory, "backoff": ListBackoff([0.0]), "min_uptime": 0.0, **options}
    )


class Service:
    """Says `first` once a link is up, then to each message what `says` does; keeps what it was told."""

    def __init__(self, says: Says = lambda message: [], first: Sequence[Any] = ()) -> None:
        self.says, self.first = says, first
        self.told: list[list[Any]] = []
        """By link."""
        self.peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        told: list[Any] = []
        self.told.append(told)
        await peer.accept()
        await self.say(*self.first)
        while isinstance(frame := await peer.receive(), str):
            told.append(json.loads(frame))
            await self.say(*self.says(told[-1]))
        await peer.finish()

    async def say(self, *messages: Any) -> None:
        assert self.peer is not None
        if messages:
            await self.peer.send(*map(json.dumps, messages))


@attrs.define(eq=False, kw_only=True, slots=False)
class Plain(Adapter):
    """Reads `{"is": reading, ...}` as what it says it is: the services of these tests say it themselves."""

    url_: str = URL

    def __attrs_post_init__(self) -> None:
        self.seen: list[Any] = []

    def url(self) -> Url:
        return Url.parse(self.url_)

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec()}

    def read(self, message: Any) -> Reading | None:
        self.seen.append(message)
        match message:
            case {"is": "data", "of": channel}:
                return Data(channel, message.get("x"), message.get("step"), message.get("id"), message.get("ack"))
            case {"is": "answer", "id": id}:
                return Answer(message["x"], id, message.get("error"))
            case {"is": "granted", "of": channel}:
                return Granted(channel, message.get("name"))
            case {"is": "refused", "of": channel}:
                return Refused(channel, message.get("why", ""), message.get("after"))
            case {"is": "ended", "of": channel}:
                return Ended(channel, message.get("why", ""))
            case {"is": "welcome"}:
                return Welcome(message["x"])
            case {"is": "ok"}:
                return AuthOk(message.get("lasts"))
            case {"is": "no"}:
                return AuthRefused(message.get("why", ""), message.get("retry", False))
            case {"is": "heartbeat"}:
                return HeartbeatAsked(message["reply"], message.get("asks", False))
            case {"is": "beat"}:
                return Beat(answers=message.get("answers", False))
            case {"is": "call", "id": id}:
                return Call(id, message["x"])
            case {"is": "position"}:
                return Position(message["x"])
            case {"is": "away"}:
                return GoAway(message.get("within"), message.get("url"), message.get("why", ""))
            case {"is": "slow"}:
                return Throttled(message.get("after"))
            case {"is": "item", "id": id}:
                return Item(id, message)
            case {"is": "done", "id": id}:
                return Done(id)
            case {"is": "many"}:
                return Many([self.read(each) or Other(each) for each in message["x"]])
            case {"is": "other"}:
                return Other(message["x"])
            case _:
                return None

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"sub": channel, **({"params": dict(params)} if params else {})}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"unsub": channel}


def grant(message: Any) -> list[Any]:
    return [{"is": "granted", "of": message["sub"]}] if isinstance(message, Mapping) and "sub" in message else []


async def soon(awaitable: Any) -> Any:
    with trio.fail_after(PATIENCE):
        return await awaitable


# --------------------------------------------------------------------------- what becomes of each reading


async def test_data_go_to_the_feed_of_their_channel_and_elsewhere_to_the_inbox(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain(), transport=transport) as conn,
        conn.subscribe("a") as feed,
    ):
        await service.say({"is": "data", "of": "a", "x": 1}, {"is": "data", "of": "b", "x": 2}, {"plain": 3})
        assert await soon(feed.receive()) == 1
        assert await soon(conn.receive()) == {"is": "data", "of": "b", "x": 2}
        assert await soon(conn.receive()) == {"plain": 3}


async def test_data_of_several_channels_go_to_the_feeds_of_each(autojump_clock: trio.abc.Clock) -> None:
    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain()) as conn,
        conn.subscribe("a") as one,
        conn.subscribe("b") as other,
    ):
        await service.say({"is": "data", "of": ["a", "b", "c"], "x": 1})
        assert (await soon(one.receive()), await soon(other.receive())) == (1, 1)


async def test_an_answer_settles_its_request_and_its_error_says_no(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    def says(question: Any) -> list[Any]:
        return [{"is": "answer", "id": question["id"], "x": {"error": "a field of the result"}, **question["then"]}]

    service = Service(says)
    async with ScriptedServer(service) as server, connect(server, Plain(), transport=transport) as conn:
        # The reading is final: nobody looks for an error in what it says is the result.
        assert await soon(conn.request({"then": {}})) == {"error": "a field of the result"}
        with pytest.raises(RequestFailed, match="not today") as failed:
            await soon(conn.request({"then": {"error": "not today"}}))
        assert failed.value.reply == {"error": "a field of the result"}


async def test_an_answer_without_an_id_belongs_to_the_oldest_request(autojump_clock: trio.abc.Clock) -> None:
    class InTurn(Plain):
        def tag(self, message: Any, id: Any) -> Any:
            return None

        def read(self, message: Any) -> Reading | None:
            return Answer(message["x"]) if message.get("is") == "answer" else super().read(message)

    async with ScriptedServer(Service(lambda said: [{"is": "answer", "x": said["n"]}])) as server:
        async with connect(server, InTurn()) as conn:
            assert [await soon(conn.request({"n": n})) for n in range(3)] == [0, 1, 2]


async def test_a_late_error_of_a_service_without_ids_is_no_answer(autojump_clock: trio.abc.Clock) -> None:
    """A refused channel is told as that, and the answers that come later belong to their questions."""

    class InTurn(Plain):
        def tag(self, message: Any, id: Any) -> Any:
            return None

        def read(self, message: Any) -> Reading | None:
            return Answer(message["x"]) if message.get("is") == "answer" else super().read(message)

    def says(said: Any) -> list[Any]:
        if "sub" in said:
            return []
        late = [{"is": "refused", "of": "a", "why": "no such channel"}] if said["n"] == 0 else []
        return [*late, {"is": "answer", "x": said["n"]}]

    async with ScriptedServer(Service(says)) as server, connect(server, InTurn()) as conn, trio.open_nursery() as tasks:

        @tasks.start_soon
        async def subscribe() -> None:
            with pytest.raises(SubscriptionRejected, match="no such channel"):
                async with conn.subscribe("a"):
                    raise AssertionError("it was refused")

        await wait_all_tasks_blocked()
        assert [await soon(conn.request({"n": n})) for n in range(3)] == [0, 1, 2]


async def test_a_refusal_for_now_is_asked_for_again_and_no_sooner_than_the_service_says(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    asked: list[float] = []

    def says(message: Any) -> list[Any]:
        asked.append(trio.current_time())
        if len(asked) < 3:
            return [{"is": "refused", "of": "a", "why": "still starting", "after": 7.0}]
        return grant(message)

    async with (
        ScriptedServer(Service(says)) as server,
        connect(server, Plain(), transport=transport) as conn,
        conn.listen(SubscriptionRefused) as events,
    ):
        async with conn.subscribe("a"):
            told = await events.receive_batch()
    assert [at - asked[0] for at in asked] == [0.0, 7.0, 14.0]
    assert [(event.reason, event.retry_in) for event in told] == [("still starting", 7.0)] * 2


async def test_a_refusal_for_now_on_a_new_link_does_not_end_the_feed(autojump_clock: trio.abc.Clock) -> None:
    links = 0

    def says(message: Any) -> list[Any]:
        if links == 1 or len(service.told[-1]) > 1:
            return grant(message)
        return [{"is": "refused", "of": "a", "why": "too many requests", "after": 1.0}]

    service = Service(says)

    async def serve(peer: Peer) -> None:
        nonlocal links
        links += 1
        await service(peer)

    async with ScriptedServer(serve, then=serve) as server, connect(server, Plain()) as conn:
        async with conn.subscribe("a") as feed:
            assert service.peer is not None
            await service.peer.drop()
            await trio.sleep(5.0)
            assert conn.subscriptions() == {"a": "confirmed"}
            await service.say({"is": "data", "of": "a", "x": 1})
            assert await soon(feed.receive()) == 1


@pytest.mark.parametrize("why", ["", "the match is over"])
async def test_a_feed_ends_where_the_service_ends_the_subscription(
    autojump_clock: trio.abc.Clock, transport: Transport, why: str
) -> None:
    service = Service(grant)
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Plain(), transport=transport) as conn,
        conn.listen(SubscriptionEnded) as events,
    ):
        async with conn.subscribe("a") as feed:
            await service.say({"is": "data", "of": "a", "x": 1}, {"is": "ended", "of": "a", "why": why})
            if why:
                assert await soon(feed.receive()) == 1
                with pytest.raises(SubscriptionRejected, match=why):
                    await soon(feed.receive())
                assert conn.health().status == "degraded"
            else:
                assert [item async for item in feed] == [1]
                with pytest.raises(trio.EndOfChannel):
                    await feed.receive()
                assert conn.subscriptions() == {"a": "ended"}
                assert conn.health().status == "ok"
            assert (await soon(events.receive())).reason == why
            await soon(conn.reconnect())  # what has ended is not asked for again
            assert service.told[-1] == []
        async with conn.subscribe("a"):  # until somebody wants it again
            assert service.told[-1] == [{"sub": "a"}]


async def test_a_service_that_confirms_nothing_is_subscribed_to_once_it_was_asked(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Quiet(Plain):
        confirms = False

    service = Service(lambda message: [{"is": "data", "of": "a", "x": "first"}] if "sub" in message else [])
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Quiet(), transport=transport) as conn,
        conn.subscribe("a") as feed,
        conn.subscribe("quiet"),
    ):
        assert trio.current_time() < 1.0
        assert await soon(feed.receive()) == "first"
        await soon(conn.reconnect())
        assert trio.current_time() < 2.0
        assert service.told == [[{"sub": "a"}, {"sub": "quiet"}]] * 2
        assert await soon(feed.receive()) == "first"


async def test_two_subscriptions_of_one_name_with_other_params_are_told_apart(autojump_clock: trio.abc.Clock) -> None:
    class ByAddress(Plain):
        def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
            return f"{channel}/{params['address']}"

        def read(self, message: Any) -> Reading | None:
            match message:
                case {"refused": address}:
                    return Refused(f"logs/{address}", "not yours")
                case {"granted": address}:
                    return Granted(f"logs/{address}")
                case _:
                    return None

    def says(message: Any) -> list[Any]:
        address = message["params"]["address"]
        return [{"refused" if address == "B" else "granted": address}]

    async with ScriptedServer(Service(says)) as server, connect(server, ByAddress()) as conn:
        async with conn.subscribe("logs", params={"address": "A"}), conn.listen(SubscriptionRefused) as events:
            with pytest.raises(SubscriptionRejected, match=r'logs \{"address":"B"\}.*not yours'):
                async with conn.subscribe("logs", params={"address": "B"}):
                    raise AssertionError("it was refused")
            assert (await soon(events.receive())).channel == 'logs {"address":"B"}'
            assert conn.subscriptions() == {'logs {"address":"A"}': "confirmed"}


async def test_many_channels_are_one_call_few_messages_and_one_feed(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class InBatches(Plain):
        max_batch = 100

        def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
            return {"subs": [channel.name for channel in channels]}

        def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
            return {"unsubs": [channel.name for channel in channels]}

    def says(message: Any) -> list[Any]:
        return [{"is": "granted", "of": name} for name in message.get("subs", ())]

    names = [f"c{n}" for n in range(300)]
    service = Service(says)
    async with ScriptedServer(service) as server, connect(server, InBatches(), transport=transport) as conn:
        async with conn.subscribe(names) as feed:
            await service.say(*[{"is": "data", "of": name, "x": name} for name in names])
            deliveries = feed.deliveries()
            for name in names:
                delivery = await soon(deliveries.receive())
                assert (delivery.channel, delivery.payload) == (name, name)
            assert feed.channel == "c0 and 299 more"
        await wait_all_tasks_blocked()
        assert [len(next(iter(message.values()))) for message in service.told[0]] == [100] * 6
        assert conn.subscriptions() == {}


async def test_of_many_channels_those_that_are_refused_are_named(autojump_clock: trio.abc.Clock) -> None:
    def says(message: Any) -> list[Any]:
        name = message.get("sub")
        return [{"is": "refused" if name in ("b", "d") else "granted", "of": name, "why": "no"}] if name else []

    service = Service(says)
    async with ScriptedServer(service) as server, connect(server, Plain()) as conn:
        with pytest.raises(SubscriptionRejected, match="2 of 4 channels: 'b': no; 'd': no"):
            async with conn.subscribe(["a", "b", "c", "d"]):
                raise AssertionError("some were refused")
        await wait_all_tasks_blocked()
        assert service.told[0][4:] == [{"unsub": "a"}, {"unsub": "c"}]


async def test_a_feed_of_many_channels_ends_with_the_last_of_them(autojump_clock: trio.abc.Clock) -> None:
    service = Service(grant)
    async with ScriptedServer(service) as server, connect(server, Plain()) as conn:
        async with conn.subscribe(["a", "b"]) as feed:
            await service.say({"is": "ended", "of": "a"}, {"is": "data", "of": "b", "x": 1}, {"is": "ended", "of": "b"})
            assert [item async for item in feed] == [1]


async def test_a_filter_with_wildcards_gets_what_matches_it_and_each_feed_gets_it_once(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Topics(Plain):
        def matches(self, filter: str, channel: Hashable) -> bool:
            return str(channel).startswith(filter.removesuffix("*")) if filter.endswith("*") else filter == channel

    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, Topics(), transport=transport) as conn,
        conn.subscribe("sport*") as wide,
        conn.subscribe("sport/tennis") as narrow,
    ):
        await service.say({"is": "data", "of": "sport/tennis", "x": 1}, {"is": "data", "of": "sport/golf", "x": 2})
        assert [await soon(wide.receive()), await soon(wide.receive())] == [1, 2]
        assert await soon(narrow.receive()) == 1
        async with conn.subscribe("*") as late:  # what was seen before is looked at anew
            await service.say({"is": "data", "of": "sport/golf", "x": 3}, {"is": "data", "of": "news", "x": 4})
            assert [await soon(late.receive()), await soon(late.receive())] == [3, 4]
        await service.say({"is": "data", "of": "news", "x": 5})
        assert await soon(conn.receive()) == {"is": "data", "of": "news", "x": 5}


async def test_data_under_the_services_own_names_find_their_channel(autojump_clock: trio.abc.Clock) -> None:
    class Named(Plain):
        def read(self, message: Any) -> Reading | None:
            match message:
                case {"name": name, "x": x}:
                    return Data(ByServerId(name), x)
                case _:
                    return super().read(message)

    service = Service(lambda message: [{"is": "granted", "of": message["sub"], "name": 77}] if "sub" in message else [])
    async with ScriptedServer(service) as server, connect(server, Named()) as conn, conn.subscribe("a") as feed:
        await service.say({"name": 77, "x": 1}, {"name": [1], "x": 2}, {"name": 78, "x": 3})
        assert await soon(feed.receive()) == 1
        assert [await soon(conn.receive()) for _ in range(2)] == [{"name": [1], "x": 2}, {"name": 78, "x": 3}]


async def test_data_that_come_before_their_name_is_told_are_bounded_in_bytes(autojump_clock: trio.abc.Clock) -> None:
    class Named(Plain):
        correlated = True
        drops_unclaimed = True

        def read(self, message: Any) -> Reading | None:
            match message:
                case {"name": name, "x": x}:
                    return Data(ByServerId(name), x)
                case _:
                    return super().read(message)

        def handle_subscription_response(self, message: Any) -> Any:
            return Granted(None, message["name"])

    service = Service()
    async with ScriptedServer(service) as server, connect(server, Named()) as conn, trio.open_nursery() as nursery:
        got: list[int] = []

        @nursery.start_soon
        async def subscribe() -> None:
            async with conn.subscribe("a") as feed:
                got.extend([len(await feed.receive()) for _ in range(2)])

        await wait_all_tasks_blocked()
        await service.say(*[{"name": 7, "x": "x" * 400_000}] * 10)
        await wait_all_tasks_blocked()
        asked = service.told[0][0]
        await service.say({"is": "answer", "id": asked["id"], "x": {"name": 7}})
        await wait_all_tasks_blocked()
        assert got == [400_000] * 2  # the last two: more would have been too much
        assert conn._session.links[0].standing._early.room.held == 0


async def test_the_service_speaks_first_and_the_login_depends_on_it(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Challenged(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            challenge = await exchange.receive()
            return await exchange.ask({"proof": challenge[::-1]})

    def says(message: Any) -> list[Any]:
        return [{"is": "ok"}] if message.get("proof") == "cba" else [{"is": "no", "why": "wrong"}]

    service = Service(says, first=[{"is": "welcome", "x": "abc"}, {"hello": 1}])
    async with ScriptedServer(service, then=service) as server:
        async with connect(server, Challenged(), transport=transport) as conn:
            assert service.told == [[{"proof": "cba"}]]
            assert await soon(conn.receive()) == {"hello": 1}  # what the login has left is received
            await soon(conn.reconnect())
            assert service.told == [[{"proof": "cba"}]] * 2


async def test_a_greeting_is_no_answer_where_the_login_waits_for_it(autojump_clock: trio.abc.Clock) -> None:
    """The default reading: no dialect, answers in their order, a greeting at once or after a while."""

    class Greeted(AuthHandler):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            assert await exchange.receive() == "hello"
            return AuthOk()

    for delay in (0.0, 0.02, 3.0):

        async def serve(peer: Peer, delay: float = delay) -> None:
            await peer.accept()
            await trio.sleep(delay)
            await peer.send("hello")
            while isinstance(frame := await peer.receive(), str):
                await peer.send(frame)
            await peer.finish()

        async with ScriptedServer(serve) as server, connect(server, URL, auth_handler=Greeted) as conn:
            assert await soon(conn.request("Hello")) == "Hello"


@pytest.mark.parametrize("asks", [False, True])
async def test_a_service_that_refuses_before_it_was_asked_is_not_waited_for(
    autojump_clock: trio.abc.Clock, asks: bool
) -> None:
    class Waits(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            if asks:
                await trio.sleep(1.0)
                return await exchange.ask({"token": "t"})
            return AuthOk(await exchange.receive())

    async with ScriptedServer(Service(first=[{"is": "no", "why": "you are banned"}])) as server:
        with pytest.raises(AuthFailed, match="you are banned"):
            async with connect(server, Waits()):
                raise AssertionError("it was refused")
    assert trio.current_time() < 2.0


async def test_a_refused_login_says_the_services_reason(autojump_clock: trio.abc.Clock) -> None:
    class Asks(Plain):
        def encode_auth_request(self, credentials: Any) -> Any:
            return {"token": credentials}

    service = Service(lambda message: [{"is": "no", "why": "locked"}])
    async with ScriptedServer(service) as server:
        with pytest.raises(Exception, match="locked"):
            async with connect(server, Asks(), credentials="t", allow_plaintext_credentials=True):
                raise AssertionError("it was refused")
    assert service.told == [[{"token": "t"}]]


async def test_a_hello_sets_the_heartbeat_of_its_link(autojump_clock: trio.abc.Clock) -> None:
    class Hello(Plain):
        def defaults(self) -> Mapping[str, Any]:
            return {**super().defaults(), "heartbeat": MessageHeartbeat({"beat": 1}, answered=False)}

        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            hello = await exchange.receive()
            exchange.set_heartbeat(ping_interval=hello["interval"])
            with pytest.raises(ConfigError, match="ping_interval"):
                exchange.set_heartbeat(ping_interval=-1.0)
            return AuthOk()

    service = Service(first=[{"is": "welcome", "x": {"interval": 5.0}}])
    async with ScriptedServer(service, then=service) as server, connect(server, Hello()) as conn:
        await trio.sleep(16.0)
        assert service.told == [[{"beat": 1}] * 3]
        service.first = [{"is": "welcome", "x": {"interval": 100.0}}]
        await soon(conn.reconnect())
        await trio.sleep(16.0)
        assert service.told[1] == []


async def test_a_probe_that_is_a_request_bears_an_id_and_its_answer_is_a_sign_of_life(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    def says(message: Any) -> list[Any]:
        return [{"is": "answer", "id": message["id"], "x": "pong", "error": message.get("fail")}]

    service = Service(says)
    heartbeat = MessageHeartbeat({"op": "ping"}, asks=True)
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain(), transport=transport, heartbeat=heartbeat, ping_interval=5.0, pong_timeout=2.0) as conn,
        conn.listen(PongReceived) as events,
    ):
        assert await soon(conn.request({"op": "first"})) == "pong"
        await trio.sleep(16.0)
        assert service.told == [[{"op": "first", "id": 1}, *({"op": "ping", "id": n} for n in (2, 3, 4))]]
        assert len(await events.receive_batch()) == 3
        assert conn.epoch == 1
        assert conn.statistics().inbox_messages == 0


async def test_the_services_heartbeat_is_answered_ahead_of_all_else(autojump_clock: trio.abc.Clock) -> None:
    service = Service(lambda message: [{"is": "answer", "id": 1, "x": 1}] if "id" in message else [])
    async with ScriptedServer(service) as server, connect(server, Plain()) as conn:
        await service.say({"is": "heartbeat", "reply": {"pong": 1}}, {"is": "heartbeat", "reply": None}, {"is": "beat"})
        await service.say({"is": "heartbeat", "reply": {"test": 1}, "asks": True})
        await wait_all_tasks_blocked()
        assert service.told == [[{"pong": 1}, {"test": 1, "id": 1}]]
        assert conn.statistics().inbox_messages == conn.statistics().answers_unmatched == 0


async def test_a_call_of_the_service_is_answered_by_the_message_handler(autojump_clock: trio.abc.Clock) -> None:
    class Answering(Plain):
        def handle_platform_message(self, message: Any) -> Answered:
            return Reply({"to": message.id, "x": message.payload * 2}) if isinstance(message, Call) else None

    service = Service()
    async with ScriptedServer(service) as server, connect(server, Answering()):
        await service.say({"is": "call", "id": 5, "x": 21})
        await wait_all_tasks_blocked()
        assert service.told == [[{"to": 5, "x": 42}]]


async def test_a_position_is_handed_to_the_next_dials(autojump_clock: trio.abc.Clock) -> None:
    class Resuming(Plain):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            token = "none" if info.position is None else info.position
            return attrs.evolve(info, url=info.url.with_query(at=token))

    service = Service()
    async with ScriptedServer(service, then=service) as server, connect(server, Resuming()) as conn:
        await service.say({"is": "position", "x": "p1"}, {"is": "position", "x": "p2"})
        await wait_all_tasks_blocked()
        await soon(conn.reconnect())
    assert [dial.request.target for dial in server.dials if dial.request] == ["/?at=none", "/?at=p2"]


async def test_a_service_that_asks_us_to_go_is_left_for_the_address_that_it_names_if_that_is_vouched_for(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    for vouched, hosts in ((["ws://*.server.test"], ["server.test", "b.server.test"]), ([], ["server.test"] * 2)):
        service = Service()
        async with (
            ScriptedServer(service, then=service) as server,
            connect(server, Plain(), transport=transport, redirect_origins=vouched) as conn,
            conn.listen(MoveAsked) as events,
        ):
            await service.say({"is": "away", "within": 30.0, "url": "ws://b.server.test/", "why": "rebalancing"})
            told = await soon(events.receive())
            assert (told.within, told.to, told.reason) == (30.0, "ws://b.server.test/", "rebalancing")
            await trio.sleep(1.0)
            await soon(conn.wait_ready())
            assert conn.epoch == 2
            if not vouched:
                assert "vouch" in str(conn.health().last_error)
        assert [dial.request.headers["host"] for dial in server.dials if dial.request] == hosts


async def test_a_complaint_slows_us_down_for_as_long_as_the_service_says(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    limiter = RateLimitHandler([TokenBucket(capacity=10.0, rate=10.0)])
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain(), rate_limit_handler=limiter) as conn,
        conn.listen(RateLimitSlowed) as events,
    ):
        began = trio.current_time()
        await service.say({"is": "slow", "after": 3.0})
        assert (await soon(events.receive())).until == began + 3.0
        await soon(conn.send({"n": 1}))
        assert trio.current_time() - began >= 3.0


async def test_what_is_of_no_stream_that_is_open_is_told_and_received(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain()) as conn,
        conn.listen(AnswerUnmatched) as events,
    ):
        await service.say({"is": "item", "id": 9}, {"is": "done", "id": 9})
        assert [await soon(conn.receive()) for _ in range(2)] == [{"is": "item", "id": 9}, {"is": "done", "id": 9}]
        assert [event.id for event in await events.receive_batch()] == ["9", "9"]


async def test_several_readings_of_one_message_go_each_where_it_belongs(autojump_clock: trio.abc.Clock) -> None:
    def says(message: Any) -> list[Any]:
        if "sub" in message:
            return grant(message)
        parts = [
            {"is": "data", "of": "a", "x": 1},
            {"is": "answer", "id": message["id"], "x": "yes"},
            {"is": "many", "x": [{"is": "other", "x": "plain"}, {"is": "beat"}]},
        ]
        return [{"is": "many", "x": parts}, {"is": "many", "x": []}]

    async with ScriptedServer(Service(says)) as server, connect(server, Plain()) as conn:
        async with conn.subscribe("a") as feed:
            assert await soon(conn.request({"op": 1})) == "yes"
            assert await soon(feed.receive()) == 1
            assert await soon(conn.receive()) == "plain"
            assert conn.statistics().inbox_messages == 0


async def test_a_read_that_fails_or_answers_nonsense_loses_no_message_and_the_reader_lives(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Broken(Plain):
        def read(self, message: Any) -> Reading | None:
            match message:
                case {"fail": _}:
                    raise LookupError("a defect")
                case {"nonsense": _}:
                    return 5  # type: ignore[return-value]
                case {"bad": _}:
                    raise BadMessage("of no use")
                case _:
                    return Other(message)

    service = Service()
    async with (
        ScriptedServer(service) as server,
        connect(server, Broken(), transport=transport, on_handler_error="log") as conn,
    ):
        await service.say({"fail": 1}, {"bad": 1}, {"nonsense": 1}, {"plain": 1})
        assert [await soon(conn.receive()) for _ in range(3)] == [{"fail": 1}, {"nonsense": 1}, {"plain": 1}]
        assert conn.statistics().errors == 3


async def test_a_whole_batch_may_be_read_at_once_and_what_it_leaves_open_is_read_by_default(
    autojump_clock: trio.abc.Clock,
) -> None:
    class InBatches(Plain):
        batches: ClassVar[list[int]] = []

        def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
            self.batches.append(len(messages))
            if messages[0].get("fail"):
                raise LookupError("a defect")
            return [self.read(message) for message in messages][: 1 if messages[0].get("short") else None]

    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, InBatches(), on_handler_error="log") as conn,
        conn.subscribe("a") as feed,
    ):
        for first in ({"channel": "a", "n": 1}, {"fail": 1}, {"short": 1}):
            await service.say(first, {"is": "data", "of": "a", "x": 2}, {"is": "other", "x": 3})
            got = await soon(feed.receive()) if "channel" in first else await soon(conn.receive())
            assert got == first
            assert (await soon(feed.receive()), await soon(conn.receive())) == (2, 3)
        assert InBatches.batches == [3, 3, 3]
        assert conn.statistics().errors == 2


@pytest.mark.parametrize("reads_batches", [False, True])
async def test_no_message_of_a_peer_ends_a_session_by_its_form(
    autojump_clock: trio.abc.Clock, transport: Transport, reads_batches: bool
) -> None:
    class Silent(Plain):
        def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
            return [None] * len(messages)

    strange: list[Any] = [[], {}, [1], {"a": []}, None, True, 1.5, 10**30, "", "subscribed"]
    fields = ("type", "channel", "id", "method", "result", "channels", "error", "is", "of", "subscription_id", "reason")
    messages = [*strange, *({field: each} for field in fields for each in strange)]
    of_types = itertools.product(("subscribed", "error"), fields, strange)
    messages += [{"type": kind, field: each} for kind, field, each in of_types]

    def says(message: Any) -> list[Any]:
        if message.get("type") == "subscribe":
            return [{"type": "subscribed", "channel": "a"}]
        return [*messages, {"id": message["id"], "result": "done"}]

    service = Service(says)
    target = type("Default", (Silent,), {"read": lambda self, message: None}) if reads_batches else None
    async with (
        ScriptedServer(service) as server,
        connect(server, URL if target is None else target(), transport=transport, codec=JsonCodec()) as conn,
        conn.subscribe("a") if target is None else conn.listen(),
    ):
        assert (await soon(conn.request({"op": 1})))["result"] == "done"
        assert conn.epoch == 1


# --------------------------------------------------------------------------- deliveries


async def test_a_delivery_says_what_is_known_of_a_message_and_acknowledges_it_once_on_its_link(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    service = Service(grant)
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Plain(), transport=transport, wall_clock=lambda: 1000.0 + trio.current_time()) as conn,
        conn.subscribe("a") as feed,
    ):
        at = trio.current_time()
        await service.say({"is": "data", "of": "a", "x": 1, "step": 7, "id": "m1", "ack": {"ack": "m1"}})
        await service.say({"is": "data", "of": "a", "x": 2, "id": "m2", "ack": {"ack": "m2"}})
        deliveries = feed.deliveries()
        first, second = await soon(deliveries.receive()), await soon(deliveries.receive())
        assert (first.payload, first.channel, first.step.last, first.id, first.epoch) == (1, "a", 7, "m1", 1)
        assert (first.at, first.wall) == (at, 1000.0 + at)
        await wait_all_tasks_blocked()
        assert service.told == [[{"sub": "a"}]]  # nothing is acknowledged before it was handled
        first.ack()
        first.ack()
        await wait_all_tasks_blocked()
        assert service.told == [[{"sub": "a"}, {"ack": "m1"}]]
        await soon(conn.reconnect())
        with pytest.raises(NotSent):
            second.ack()
        await wait_all_tasks_blocked()
        assert service.told[1] == [{"sub": "a"}]
        with pytest.raises(ConfigError, match="deliveries"):
            await feed.receive()


async def test_a_plain_feed_acknowledges_what_comes_and_what_had_come_once_it_is_taken(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service(grant)
    async with ScriptedServer(service) as server, connect(server, Plain()) as conn, conn.subscribe("a") as feed:
        await service.say({"is": "data", "of": "a", "x": 1, "ack": "one"})
        await wait_all_tasks_blocked()
        assert service.told == [[{"sub": "a"}]]  # nobody has said yet how it is to be taken
        assert await soon(feed.receive()) == 1
        await service.say({"is": "data", "of": "a", "x": 2, "ack": "two"})
        await wait_all_tasks_blocked()
        assert service.told == [[{"sub": "a"}, "one", "two"]]
        with pytest.raises(ConfigError, match="received as payloads"):
            feed.deliveries()


async def test_ordinary_messages_can_be_had_with_the_link_that_brought_them(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service, then=service) as server, connect(server, Plain()) as conn:
        await service.say({"n": 1})
        await wait_all_tasks_blocked()
        await soon(conn.reconnect())
        await service.say({"n": 2})
        deliveries = conn.deliveries()
        got = [await soon(deliveries.receive()) for _ in range(2)]
        assert [(each.payload, each.epoch, each.channel) for each in got] == [({"n": 1}, 1, ""), ({"n": 2}, 2, "")]
        with pytest.raises(ConfigError, match="deliveries"):
            await conn.receive()


async def test_what_answers_a_message_of_a_link_dies_with_it(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service, then=service) as server, connect(server, Plain()) as conn:
        await soon(conn.send({"to": 1}, epoch=1))
        await soon(conn.reconnect())
        with pytest.raises(NotSent, match="the link that it was for is gone"):
            await soon(conn.send({"to": 1}, epoch=1))
        await soon(conn.send({"to": 2}, epoch=2))
        await wait_all_tasks_blocked()
        assert service.told == [[{"to": 1}], [{"to": 2}]]


async def test_answers_and_data_are_converted_to_the_types_that_are_asked_for(autojump_clock: trio.abc.Clock) -> None:
    class Trade(msgspec.Struct):
        price: float

    def says(message: Any) -> list[Any]:
        if "sub" in message:
            return grant(message)
        return [{"is": "answer", "id": message["id"], "x": message["x"]}]

    service = Service(says)
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain()) as conn,
        conn.subscribe("a", type=Trade) as feed,
    ):
        bad, good = {"is": "data", "of": "a", "x": {"price": "high"}}, {"is": "data", "of": "a", "x": {"price": 1.5}}
        await service.say(bad, good)
        assert await soon(feed.receive()) == Trade(1.5)
        assert "not of the type" in str(conn.health().last_error)
        assert await soon(conn.request({"x": {"price": 2.0}}, type=Trade)) == Trade(2.0)
        with pytest.raises(Exception, match="not of the type"):
            await soon(conn.request({"x": 5}, type=Trade))


# --------------------------------------------------------------------------- ids


@pytest.mark.parametrize("text", [False, True])
async def test_ids_are_in_the_range_and_form_of_the_service_and_come_round_past_those_in_use(
    autojump_clock: trio.abc.Clock, text: bool
) -> None:
    held: list[Any] = []

    def says(message: Any) -> list[Any]:
        if message.get("hold"):
            held.append(message["id"])
            return []
        return [{"id": message["id"], "result": message["id"]}]

    correlation = Correlation(first=7, last=10, text=text)
    async with (
        ScriptedServer(Service(says)) as server,
        connect(server, URL, codec=JsonCodec(), correlation=correlation) as conn,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(conn.request, {"hold": True})
        await wait_all_tasks_blocked()
        got = [(await soon(conn.request({"n": n})))["result"] for n in range(5)]
        expected = [8, 9, 10, 8, 9]
        assert got == (list(map(str, expected)) if text else expected)
        for _ in range(3):
            nursery.start_soon(conn.request, {"hold": True})
        await wait_all_tasks_blocked()
        with pytest.raises(NotSent, match="all ids that the service takes are in use"):
            await soon(conn.request({"n": 1}))
        nursery.cancel_scope.cancel()


async def test_ids_may_begin_again_on_each_link_and_a_message_without_one_uses_none_up(
    autojump_clock: trio.abc.Clock,
) -> None:
    class PerLink(Plain):
        def defaults(self) -> Mapping[str, Any]:
            return {**super().defaults(), "correlation": Correlation(per_link=True)}

        def tag(self, message: Any, id: Any) -> Any:
            return None if "no id" in message else {**message, "id": id}

    def says(message: Any) -> list[Any]:
        return [{"is": "answer", "x": message.get("id"), "id": message.get("id")}]

    service = Service(says)
    async with ScriptedServer(service, then=service) as server, connect(server, PerLink()) as conn:
        asked = [{"n": 1}, {"no id": 1}, {"n": 2}]
        assert [await soon(conn.request(message)) for message in asked] == [1, None, 2]
        await soon(conn.reconnect())
        assert await soon(conn.request({"n": 3})) == 1


# --------------------------------------------------------------------------- several actions, last words, async hooks


async def test_a_hook_may_reply_and_then_reconnect_and_the_reply_leaves_first(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Leaves(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Answered:
            return [Reply({"bye": 1}), Reconnect("asked to")] if message == {"go": 1} else None

    service = Service()
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Plain(), transport=transport, message_handler=Leaves) as conn,
    ):
        await service.say({"go": 1})
        await trio.sleep(1.0)
        await soon(conn.wait_ready())
        assert service.told == [[{"bye": 1}], []]
        assert conn.epoch == 2


@pytest.mark.parametrize("how", ["leave", "cancel", "raise", "reconnect"])
async def test_the_last_word_of_a_dialect_is_said_before_the_close_however_the_link_is_left(
    autojump_clock: trio.abc.Clock, transport: Transport, how: str
) -> None:
    class Parting(Plain):
        def encode_farewell(self) -> Any:
            return {"disconnect": True}

    service = Service()
    async with ScriptedServer(service, then=service) as server:
        with trio.CancelScope() as scope:
            try:
                async with connect(server, Parting(), transport=transport) as conn:
                    await conn.send({"n": 1})
                    match how:
                        case "cancel":
                            scope.cancel()
                            await trio.sleep_forever()
                        case "raise":
                            raise LookupError("the program's own")
                        case "reconnect":
                            await soon(conn.reconnect())
                        case _:
                            pass
            except LookupError:
                pass
        await wait_all_tasks_blocked()
        assert service.told[0] == [{"n": 1}, {"disconnect": True}]


async def test_a_last_word_that_the_peer_does_not_take_holds_nobody_up(autojump_clock: trio.abc.Clock) -> None:
    class Parting(Plain):
        def encode_farewell(self) -> Any:
            return "x" * 10_000_000

    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(serve) as server:
        async with connect(server, Parting(), close_timeout=2.0):
            began = trio.current_time()
        assert trio.current_time() - began <= 5.0


async def test_the_address_of_a_dial_is_asked_for_elsewhere_within_the_time_of_the_attempt(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Asks(Plain):
        async def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            await trio.sleep(1.0 if info.epoch == 1 else 3600.0)
            return attrs.evolve(info, url=info.url.with_query(ticket=str(info.epoch)))

    service = Service()
    async with ScriptedServer(service, then=service) as server:
        with pytest.raises(SessionOver) as over:
            async with connect(server, Asks(), transport=transport, connect_timeout=5.0, max_attempts=1) as conn:
                assert trio.current_time() == 1.0
                assert service.peer is not None
                await service.peer.drop()
                await conn.wait_closed()
        assert isinstance(over.value.__cause__, ConnectTimeout)
        assert trio.current_time() == 6.0
    assert [dial.request.target for dial in server.dials if dial.request] == ["/?ticket=1"]


async def test_an_address_that_cannot_be_had_is_a_failed_attempt_and_not_the_end(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    tries = 0

    class Asks(Plain):
        async def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            nonlocal tries
            tries += 1
            if tries in (2, 3):
                raise OSError("the ticket office is closed")
            return info

    service = Service()
    async with ScriptedServer(service, then=service) as server, connect(server, Asks(), transport=transport) as conn:
        await soon(conn.reconnect())
        assert (tries, conn.epoch) == (4, 2)


async def test_a_channels_token_is_asked_for_on_each_link_several_at_once_and_in_order(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Signed(Plain):
        async def prepare(self, channel: Channel) -> Channel:
            await trio.sleep(2.0 if channel.name == "a" else 1.0)
            if channel.name == "bad":
                raise LookupError("no token")
            return attrs.evolve(channel, params={"token": f"{channel.name}-{trio.current_time():g}"})

    service = Service(grant)
    async with ScriptedServer(service, then=service) as server:
        async with connect(server, Signed()) as conn, conn.subscribe(["a", "b"]):
            assert service.told[0] == [
                {"sub": "a", "params": {"token": "a-2"}},
                {"sub": "b", "params": {"token": "b-1"}},
            ]
            await soon(conn.reconnect())
            assert service.told[1][0] == {"sub": "a", "params": {"token": "a-4"}}
            with trio.move_on_after(3.5):
                async with conn.subscribe("bad"):
                    raise AssertionError("it cannot be asked for")
            assert len(service.told[1]) == 2


# --------------------------------------------------------------------------- a dialect for each link


async def test_a_dialect_lives_and_dies_with_its_link_and_speaks_before_its_adapter(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Counting(Dialect):
        def __init__(self, epoch: int) -> None:
            self.epoch, self.read_so_far = epoch, 0

        def read(self, message: Any) -> Reading | None:
            self.read_so_far += 1
            return Other((self.epoch, self.read_so_far, message))

        def encode_message(self, message: Any) -> Any:
            return {"link": self.epoch, "x": message}

    class Service2(Plain):
        def open_link(self, info: ConnectionInfo) -> Dialect:
            return Counting(info.epoch)

        def encode_farewell(self) -> Any:
            return "bye"

    service = Service()
    async with ScriptedServer(service, then=service) as server:
        async with connect(server, Service2()) as conn:
            await service.say("a", "b")
            assert [await soon(conn.receive()) for _ in range(2)] == [(1, 1, "a"), (1, 2, "b")]
            await conn.send("one")
            await soon(conn.reconnect())
            await service.say("c")
            assert await soon(conn.receive()) == (2, 1, "c")
            await conn.send("two")
    assert service.told == [
        [{"link": 1, "x": "one"}, {"link": 1, "x": "bye"}],
        [{"link": 2, "x": "two"}, {"link": 2, "x": "bye"}],
    ]


async def test_a_dialect_of_a_link_may_read_text_that_nothing_else_can(autojump_clock: trio.abc.Clock) -> None:
    class Texts(Dialect):
        def read(self, message: Any) -> Reading | None:
            match message.split():
                case ["ok", channel]:
                    return Granted(channel)
                case ["welcome"]:
                    return AuthOk()
                case [channel, x]:
                    return Data(channel, x)
                case _:
                    return None

        def encode_auth_request(self, credentials: Any) -> Any:
            return f"login {credentials}"

        def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
            return f"sub {channel}"

    class OfTexts(Adapter):
        host = "server.test"
        secure = False

        def defaults(self) -> Mapping[str, Any]:
            return {"codec": RawCodec()}

        def open_link(self, info: ConnectionInfo) -> Dialect:
            return Texts()

    async def serve(peer: Peer) -> None:
        await peer.accept()
        assert await peer.receive() == "login t"
        await peer.send("welcome")
        assert await peer.receive() == "sub a"
        await peer.send("ok a", "a 1")
        await peer.serve_until_closed()

    options = {"credentials": "t", "allow_plaintext_credentials": True}
    async with (
        ScriptedServer(serve) as server,
        connect(server, OfTexts, **options) as conn,
        conn.subscribe("a") as feed,
    ):
        assert await soon(feed.receive()) == "1"


async def test_an_open_link_that_fails_follows_on_handler_error_and_the_adapter_speaks(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Broken(Plain):
        def open_link(self, info: ConnectionInfo) -> Dialect:
            raise LookupError("a defect")

    service = Service(grant)
    async with ScriptedServer(service) as server, connect(server, Broken(), on_handler_error="log") as conn:
        async with conn.subscribe("a"):
            assert isinstance(conn.health().last_error, LookupError)


# --------------------------------------------------------------------------- who decides what a message is


class Sees(ConnectionHandler):
    def __init__(self) -> None:
        self.frames: list[Any] = []

    def handle_frame(self, kind: str, data: str | bytes) -> Answered:
        self.frames.append(data)
        return None

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        return [{"setup": "given at the call"}]


class Validates(MessageHandler):
    def validate_message(self, message: Any) -> Any:
        return {**message, "is": "other", "x": "validated"} if message.get("of") == "v" else message

    def message_type(self, message: Any) -> str:
        return "a type of its own"

    def handle_message(self, kind: str, message: Any) -> Answered:
        return Reply({"handled": message}) if message == "validated" else None

    def encode_message(self, message: Any) -> Any:
        return {"encoded": message}


class Own(SubscriptionHandler):
    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"sub": channel, "by": "the handler"}

    def handle_subscription_response(self, message: Any) -> Granted | None:
        return Granted("a") if message.get("yes") else None


class OwnAuth(AuthHandler):
    def encode_auth_request(self, credentials: Any) -> Any:
        return {"auth": "given at the call"}

    def handle_auth_response(self, message: Any) -> AuthOk | None:
        return AuthOk() if message.get("come in") else None


class Forgiving(ErrorHandler):
    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return Retry(4.0)


class Dear(RateLimitHandler):
    asked: list[str]

    def check_rate_limit(self, request: Any) -> Any:
        Dear.asked.append(request.purpose)
        return super().check_rate_limit(request)


@attrs.define(eq=False)
class Logs(LoggingHandler):
    told: list[Event] = attrs.field(factory=list)

    def log_connection_event(self, observation: Any) -> None:
        self.told.append(observation.event)


class Firm(Plain):
    """An adapter with a word of its own for everything that the strategies of these tests speak about."""

    def read(self, message: Any) -> Reading | None:
        if message.get("yes") or message.get("come in"):
            return Other("the adapter's word")
        return super().read(message)

    def encode_auth_request(self, credentials: Any) -> Any:
        return {"auth": "the adapter's"}

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"sub": channel, "by": "the adapter"}

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return Stop(error)


async def test_a_connection_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    service = Service(lambda said: [{"is": "answer", "id": said["id"], "x": 1}] if "setup" in said else [])
    handler = Sees()
    async with ScriptedServer(service) as server, connect(server, Firm(), connection_handler=handler) as conn:
        assert service.told[0][0]["setup"] == "given at the call"
        await service.say({"is": "other", "x": "seen"})
        assert await soon(conn.receive()) == "seen"
        assert handler.frames == ['{"is": "other", "x": "seen"}']


async def test_a_message_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server, Firm(), message_handler=Validates) as conn:
        await service.say({"is": "data", "of": "v"})
        assert await soon(conn.receive()) == "validated"
        await conn.send("ours")
        await wait_all_tasks_blocked()
        assert service.told == [[{"encoded": {"handled": "validated"}}, {"encoded": "ours"}]]


async def test_a_subscription_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    service = Service(lambda said: [{"yes": True}] if "sub" in said else [])
    async with ScriptedServer(service) as server, connect(server, Firm(), subscription_handler=Own) as conn:
        with trio.fail_after(1.0):
            async with conn.subscribe("a") as feed:
                assert service.told == [[{"sub": "a", "by": "the handler"}]]
                await service.say({"is": "data", "of": "a", "x": "the adapter's word"})
                assert await feed.receive() == "the adapter's word"


async def test_an_auth_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    service = Service(lambda said: [{"come in": True}] if "auth" in said else [])
    options = {"auth_handler": OwnAuth, "credentials": "t", "allow_plaintext_credentials": True}
    async with ScriptedServer(service) as server, connect(server, Firm(), **options):
        assert trio.current_time() < 1.0
        assert service.told == [[{"auth": "given at the call"}]]


async def test_an_error_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Firm(), error_handler=Forgiving) as conn,
    ):
        assert service.peer is not None
        await service.peer.drop()
        await trio.sleep(5.0)
        assert (conn.epoch, conn.state.value) == (2, "ready")
    assert [dial.at for dial in server.dials] == [0.0, 4.0]


async def test_a_rate_limit_handler_given_at_the_call_works_over_a_read(autojump_clock: trio.abc.Clock) -> None:
    Dear.asked = []
    service = Service(grant)
    async with ScriptedServer(service) as server, connect(server, Firm(), rate_limit_handler=Dear) as conn:
        async with conn.subscribe("a"):
            await service.say({"is": "heartbeat", "reply": 1})
            await wait_all_tasks_blocked()
            await conn.send("x")
        await wait_all_tasks_blocked()
    assert Dear.asked[:3] == ["subscription", "control", "message"]


async def test_a_logging_handler_and_a_metrics_collector_given_at_the_call_work_over_a_read(
    autojump_clock: trio.abc.Clock,
) -> None:
    service, metrics, logs = Service(), MetricsCollector(), Logs()
    async with ScriptedServer(service) as server:
        async with connect(server, Firm(), metrics_collector=metrics, logging_handler=logs) as conn:
            await service.say({"is": "beat"}, {"is": "other", "x": 1})
            assert await soon(conn.receive()) == 1
    assert any(isinstance(event, LinkOpened) for event in logs.told)
    assert metrics.counters["messages.received"] == 2


async def test_the_default_reading_is_asked_where_a_dialect_says_nothing(autojump_clock: trio.abc.Clock) -> None:
    class Silent(Adapter):
        host = "server.test"
        secure = False

        def read(self, message: Any) -> Reading | None:
            return None

    def says(message: Any) -> list[Any]:
        if message.get("type") == "subscribe":
            return [{"type": "subscribed", "channel": message["channel"]}, {"channel": message["channel"], "n": 1}]
        return [{"id": message["id"], "result": 5}]

    async with ScriptedServer(Service(says)) as server, connect(server, Silent) as conn:
        async with conn.subscribe("a") as feed:
            assert await soon(feed.receive()) == {"channel": "a", "n": 1}
            assert (await soon(conn.request({"op": 1})))["result"] == 5


# --------------------------------------------------------------------------- what a dialect has of its own


async def test_a_login_that_calls_the_default_one_sends_what_the_dialect_encodes(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Patient(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            await exchange.receive()
            return await super().authenticate(exchange, credentials)

        def encode_auth_request(self, credentials: Any) -> Any:
            return {"mine": credentials["token"]}

    service = Service(lambda message: [{"is": "ok"}], first=[{"is": "welcome", "x": 1}])
    options = {"credentials": {"token": Secret("t")}, "allow_plaintext_credentials": True}
    async with ScriptedServer(service) as server, connect(server, Patient(), **options):
        assert service.told == [[{"mine": "t"}]]


async def test_a_trait_may_be_set_on_an_instance(autojump_clock: trio.abc.Clock) -> None:
    class Batches(Plain):
        def __attrs_post_init__(self) -> None:
            super().__attrs_post_init__()
            self.max_batch = 10  # type: ignore[misc]

        def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
            return {"subs": [channel.name for channel in channels]}

    service = Service(lambda message: [{"is": "granted", "of": name} for name in message.get("subs", [])])
    async with ScriptedServer(service) as server, connect(server, Batches()) as conn, conn.subscribe(["a", "b"]):
        assert service.told == [[{"subs": ["a", "b"]}]]


async def test_a_dialect_is_freed_with_its_link_and_needs_no_collector(autojump_clock: trio.abc.Clock) -> None:
    dialects: list[weakref.ref[Dialect]] = []

    class Mute(Dialect):
        pass

    class Makes(Plain):
        def open_link(self, info: ConnectionInfo) -> Dialect:
            dialects.append(weakref.ref(dialect := Mute()))
            return dialect

    service = Service(grant)
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, Makes()) as conn,
        conn.subscribe("a"),
    ):
        gc.collect()
        gc.disable()
        try:
            await soon(conn.reconnect())
            await wait_all_tasks_blocked()
            assert [dialect() is None for dialect in dialects] == [True, False]
        finally:
            gc.enable()


async def test_a_dialect_reads_what_the_service_says_and_never_what_we_ask(autojump_clock: trio.abc.Clock) -> None:
    class Tagged(Plain):
        def tag(self, message: Any, id: Any) -> Any:
            return {**message, "ref": id}

    service, adapter = Service(lambda message: [{"is": "answer", "id": message["ref"], "x": 5}]), Tagged()
    async with ScriptedServer(service) as server, connect(server, adapter) as conn:
        assert await soon(conn.request({"op": 1})) == 5
        assert adapter.seen == [{"is": "answer", "id": 1, "x": 5}]


async def test_a_subclass_that_overrides_read_alone_is_asked_that_for_batches_too(
    autojump_clock: trio.abc.Clock,
) -> None:
    class InBatches(Plain):
        def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
            return [Other("by its parent")] * len(messages)

    class Mine(InBatches):
        def read(self, message: Any) -> Reading | None:
            return Other("by itself")

    service = Service()
    async with ScriptedServer(service) as server, connect(server, Mine()) as conn:
        await service.say(1, 2)
        assert [await soon(conn.receive()) for _ in range(2)] == ["by itself"] * 2


# --------------------------------------------------------------------------- what a peer may say in a reading

STRANGE: list[Any] = [[], {}, [1], {"a": []}, [[1], 2], None, True, False, -1, 1.5, 10**30, "", "a", "x" * 300]


class Told(Plain):
    """Reads `{"reading": name, "args": [...]}` as that: an adapter that hands on what the service says."""

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"reading": "ByServerId", "args": args}:
                return Data(ByServerId(*args), message)
            case {"reading": name, "args": args}:
                made: Reading = getattr(trio_nova, name)(*args)
                return made
            case _:
                return super().read(message)


async def wait_for(conn: Connection, channel: str) -> None:
    async with conn.subscribe(channel):
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Answer", ["x", ...]),
        ("Answer", ["x", None, ...]),
        ("Item", [..., "x"]),
        ("Done", [...]),
        ("ByServerId", [...]),
        ("Data", [..., 1]),
        ("Data", ["a", ...]),
        ("Data", ["a", 1, ...]),
        ("Data", ["a", 1, 5, ...]),
        ("Granted", [...]),
        ("Granted", ["b", ...]),
        ("Refused", [..., "why"]),
        ("Refused", ["zz", ...]),
        ("Refused", ["zz", "why", ...]),
        ("Ended", [...]),
        ("Ended", ["zz", ...]),
        ("Welcome", [...]),
        ("AuthOk", [...]),
        ("AuthRefused", [...]),
        ("HeartbeatAsked", [...]),
        ("Call", [..., 1]),
        ("Position", [...]),
        ("Throttled", [...]),
        ("GoAway", [..., None, ""]),
        ("GoAway", [1.0, ...]),
        ("GoAway", [1.0, None, ...]),
    ],
)
async def test_no_field_of_a_reading_that_a_peer_filled_ends_the_session(
    autojump_clock: trio.abc.Clock, name: str, args: list[Any]
) -> None:
    def says(message: Any) -> list[Any]:
        return [] if message == {"sub": "b"} else grant(message)

    for strange in STRANGE:
        service = Service(says)
        async with (
            ScriptedServer(service, then=service) as server,
            connect(server, Told()) as conn,
            conn.subscribe("a"),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(wait_for, conn, "b")
            await wait_all_tasks_blocked()
            await service.say({"reading": name, "args": [strange if each is ... else each for each in args]})
            await trio.sleep(1.0)
            assert conn.state in (State.READY, State.RESTORING), strange
            nursery.cancel_scope.cancel()


async def test_channels_that_a_service_nests_as_deep_as_it_can_are_none(autojump_clock: trio.abc.Clock) -> None:
    service = Service(grant)
    async with ScriptedServer(service) as server, connect(server, Told()) as conn, conn.subscribe("a") as feed:
        assert service.peer is not None
        await service.peer.send(f'{{"reading": "Data", "args": [{"[" * 900}{"]" * 900}, 1]}}')
        await service.say({"reading": "Data", "args": [["a", ["a"]], 2]})
        assert await soon(feed.receive()) == 2
        assert conn.statistics().errors == 0


async def test_beats_that_ask_and_are_not_answered_do_not_pile_up(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server, Plain(), ping_interval=math.inf) as conn:
        for _ in range(300):
            await service.say({"is": "heartbeat", "reply": {"alive": True}, "asks": True})
            await trio.sleep(1.0)
        assert len(service.told[0]) == 300
        assert len(conn._session.links[0].answers._ledger) < 64 + 64


async def test_of_the_filters_one_that_fails_costs_the_others_nothing(autojump_clock: trio.abc.Clock) -> None:
    class Filters(Plain):
        def matches(self, filter: str, channel: Hashable) -> bool:
            return {"good": True}[filter]

    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, Filters(), on_handler_error="log") as conn,
        conn.subscribe("bad"),
        conn.subscribe("good") as feed,
    ):
        await service.say({"is": "data", "of": "x", "x": 1})
        assert await soon(feed.receive()) == 1
        assert conn.statistics().errors == 1


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_message_that_a_dialect_refuses_is_reported_once_however_many_came_with_it(
    autojump_clock: trio.abc.Clock, at_once: bool
) -> None:
    class Refuses(Plain):
        def read(self, message: Any) -> Reading | None:
            if message == "bad":
                raise BadMessage("of no use")
            return Other(message)

        def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
            return [self.read(message) for message in messages]

    service = Service()
    async with ScriptedServer(service) as server, connect(server, Refuses()) as conn:
        for some in [["a", "bad", "b"]] if at_once else [["a"], ["bad"], ["b"]]:
            await service.say(*some)
        assert [await soon(conn.receive()) for _ in range(2)] == ["a", "b"]
        assert conn.statistics().errors == 1


async def test_a_link_step_that_fails_follows_on_handler_error(autojump_clock: trio.abc.Clock) -> None:
    class Steps(Plain):
        def link_step(self, message: Any) -> int | None:
            raise LookupError("a defect")

    service = Service(grant)
    with pytest.raises(LookupError, match="a defect"):
        async with ScriptedServer(service) as server, connect(server, Steps()):
            await service.say({"n": 1})
            await trio.sleep(1.0)


# --------------------------------------------------------------------------- answers that may not leave yet


@pytest.mark.parametrize(
    "message", [{"is": "data", "of": "a", "x": 1, "ack": "y" * 100}, {"is": "heartbeat", "reply": "y" * 100}]
)
async def test_a_service_that_says_more_than_may_be_answered_is_not_read_for_a_while(
    autojump_clock: trio.abc.Clock, message: Any
) -> None:
    class Slow(RateLimitHandler):
        def check_rate_limit(self, request: RateRequest) -> Decision:
            now = trio.current_time()
            return Queue(1000.0) if 1.0 < now < 1000.0 else Allow()

    service = Service(grant)
    async with (
        ScriptedServer(service) as server,
        connect(server, Plain(), rate_limit_handler=Slow, inbox_bytes=100_000, ping_interval=math.inf) as conn,
        conn.subscribe("a") as feed,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def take_all() -> None:
            async for _ in feed:
                pass

        @nursery.start_soon
        async def say_much() -> None:
            await trio.sleep(2.0)
            for _ in range(100):
                await service.say(*[message] * 50)

        await trio.sleep(500.0)
        waiting = sum(lane.length for lane in conn._session.links[0].writer.outbox._lanes)
        assert 80 < waiting < 1000
        await trio.sleep(1000.0)
        assert len(service.told[0]) == 1 + 100 * 50
        assert conn._session.room.held == 0
        nursery.cancel_scope.cancel()


async def test_a_rate_limit_is_told_the_size_of_what_answers_the_service(autojump_clock: trio.abc.Clock) -> None:
    sizes: list[tuple[str, int]] = []

    class Sees(RateLimitHandler):
        def check_rate_limit(self, request: RateRequest) -> Decision:
            sizes.append((request.purpose, request.size))
            return Allow()

    class Encodes(Plain):
        def encode_message(self, message: Any) -> Any:
            return message

    service = Service()
    async with ScriptedServer(service) as server, connect(server, Encodes(), rate_limit_handler=Sees):
        for asks in (False, True):
            await service.say({"is": "heartbeat", "reply": {"x": "y" * 100}, "asks": asks})
            await wait_all_tasks_blocked()
        assert [(purpose, size > 100) for purpose, size in sizes] == [("control", True)] * 2


# --------------------------------------------------------------------------- the login and what comes early


async def test_a_verdict_that_comes_before_the_question_is_no_answer_to_it(autojump_clock: trio.abc.Clock) -> None:
    class Held(RateLimitHandler):
        def check_rate_limit(self, request: RateRequest) -> Decision:
            return Queue(2.0) if trio.current_time() < 2.0 else Allow()

    class Asks(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            return await exchange.ask({"login": 1})

    async def serve(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send_json({"is": "ok"})
        assert json.loads(str(await peer.receive())) == {"login": 1}
        await peer.send_json({"is": "ok"})
        await peer.serve_until_closed()

    async with ScriptedServer(serve) as server, connect(server, Asks(), rate_limit_handler=Held):
        assert trio.current_time() == 2.0


async def test_a_refusal_that_comes_while_the_question_waits_to_leave_ends_the_login(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Held(RateLimitHandler):
        def check_rate_limit(self, request: RateRequest) -> Decision:
            return Queue(5.0) if trio.current_time() < 5.0 else Allow()

    class Asks(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            return await exchange.ask({"login": 1})

    async def serve(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send_json({"is": "no", "why": "you are banned"})
        await peer.serve_until_closed()

    async with ScriptedServer(serve) as server:
        with pytest.raises(AuthFailed, match="you are banned"):
            async with connect(server, Asks(), rate_limit_handler=Held):
                raise AssertionError("it was refused")
    assert trio.current_time() < 2.0
    assert not any(isinstance(frame, str) for frame in server.dials[0].frames)  # the question was not asked


async def test_the_login_may_read_whatever_nobody_else_takes(autojump_clock: trio.abc.Clock) -> None:
    """Also what looks like an answer that nobody awaits, or like data of a channel that nobody wants; in order."""
    unclaimed = [{"id": 77, "nonce": 5}, {"is": "data", "of": "z"}, {"is": "other", "x": "hello"}]
    heard: list[Any] = []

    class Asks(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            await exchange.request({"op": 1})
            heard.extend([await exchange.receive() for _ in unclaimed])
            return AuthOk()

    service = Service(lambda message: [{"is": "answer", "id": message["id"], "x": 1}, *unclaimed])
    async with ScriptedServer(service) as server, connect(server, Asks()):
        assert heard == [*unclaimed[:2], "hello"]


async def test_what_the_login_may_yet_read_is_bounded_in_bytes(autojump_clock: trio.abc.Clock) -> None:
    class Waits(Plain):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            await trio.sleep(1.0)
            assert early_size() < 3 * 1024 * 1024
            return AuthOk()

    def early_size() -> int:
        held: int = opened[0].links[0].grant._early.room.held
        return held

    opened: list[Any] = []
    service = Service(first=["x" * 500_000] * 10)
    async with ScriptedServer(service) as server:
        manager = connect(server, Waits())
        opened.append(manager.supervisor._session)
        async with manager as conn:
            assert [len(await soon(conn.receive())) for _ in range(10)] == [500_000] * 10


# --------------------------------------------------------------------------- when a message was read


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_the_time_of_a_delivery_is_when_it_was_read(autojump_clock: trio.abc.Clock, one_by_one: bool) -> None:
    class Validates(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            return message

    options = {"message_handler": Validates} if one_by_one else {}
    service = Service()
    async with ScriptedServer(service) as server, connect(server, Plain(), **options) as conn:
        deliveries = conn.deliveries()
        for _ in range(2):
            await trio.sleep(1.0)
            await service.say({"n": 1})
            assert (await soon(deliveries.receive())).at == trio.current_time()


# --------------------------------------------------------------------------- what is asked together


class Batches(Plain):
    max_batch = 3

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"subs": [channel.name for channel in channels]}


def grant_all(message: Any) -> list[Any]:
    return [{"is": "granted", "of": name} for name in message.get("subs", [])]


async def test_channels_that_are_prepared_are_asked_for_no_more_at_a_time_than_a_message_takes(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Prepares(Batches):
        async def prepare(self, channel: Channel) -> Channel:
            return channel

    service = Service(grant_all)
    async with ScriptedServer(service) as server, connect(server, Prepares()) as conn, conn.subscribe(list("abcde")):
        assert service.told == [[{"subs": ["a", "b", "c"]}, {"subs": ["d", "e"]}]]


@pytest.mark.parametrize(
    "split",
    [
        lambda channels: [channels[:1]],
        lambda channels: [channels, channels],
        lambda channels: [[Channel("z", "z")]],
        lambda channels: [5],
        lambda channels: None,
    ],
)
async def test_a_split_that_loses_a_channel_or_makes_one_up_is_not_followed(
    autojump_clock: trio.abc.Clock, split: Callable[[Sequence[Channel]], Any]
) -> None:
    class Splits(Batches):
        def split_batch(self, channels: Sequence[Channel]) -> Any:
            return split(channels)

    service = Service(grant_all)
    async with (
        ScriptedServer(service) as server,
        connect(server, Splits(), on_handler_error="log") as conn,
        conn.subscribe(["a", "b"]),
    ):
        assert service.told == [[{"subs": ["a", "b"]}]]
        assert conn.statistics().errors == 1


async def test_the_groups_of_a_split_may_be_iterators(autojump_clock: trio.abc.Clock) -> None:
    class Splits(Batches):
        def split_batch(self, channels: Sequence[Channel]) -> Any:
            return (iter([channel]) for channel in channels)

    service = Service(grant_all)
    async with ScriptedServer(service) as server, connect(server, Splits()) as conn, conn.subscribe(["a", "b"]):
        assert service.told == [[{"subs": ["a"]}, {"subs": ["b"]}]]


async def test_a_correlation_given_at_the_call_takes_no_data_that_bear_an_id_for_answers(
    autojump_clock: trio.abc.Clock,
) -> None:
    class ByNumber(Correlation):
        def tag(self, message: Any, id: Any) -> Any:
            return {**message, "number": id}

        def read(self, message: Any) -> Answer | None:
            return Answer(message, message["number"]) if "number" in message else None

    def says(message: Any) -> list[Any]:
        return grant(message) or [{"is": "data", "of": "a", "x": 1, "number": 7}, {"number": message["number"]}]

    async with ScriptedServer(Service(says)) as server, connect(server, Plain(), correlation=ByNumber()) as conn:
        async with conn.subscribe("a") as feed:
            assert await soon(conn.request({"op": 1})) == {"number": 1}
            assert await soon(feed.receive()) == 1
