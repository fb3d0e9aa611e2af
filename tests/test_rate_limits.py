"""The limiter in the path: what the server counts, who waits for whom, and what a complaint does."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    RATE_COSTS,
    AuthHandler,
    AuthOk,
    AuthRefused,
    ConfigError,
    Decision,
    Event,
    Gcra,
    HandshakeRejected,
    JsonCodec,
    Limit,
    ListBackoff,
    NotSent,
    Ping,
    Pong,
    Queue,
    RateConsumed,
    RateLimited,
    RateLimitHandler,
    RateLimitSlowed,
    RateRejected,
    RateRequest,
    RequestFailed,
    RollingWindow,
    TokenBucket,
)
from trio_nova.links import ConnectGovernor
from trio_nova.testing import ClosePayload, Peer, ScriptedServer, echo, worst_window

URL = "ws://server.test/"


def connect(server: ScriptedServer, **options: Any) -> trio_nova.ConnectionBlock:
    calm: dict[str, Any] = {"backoff": ListBackoff([0.0]), "ping_interval": math.inf, "min_uptime": 0.0}
    return trio_nova.open_connection(URL, stream_factory=server.stream_factory, **(calm | options))


def arrivals(server: ScriptedServer, price: Callable[[Any], int] = lambda frame: 1) -> list[float]:
    """Return when the server got each unit that its clients spent, on all links, goodbyes left out."""
    return [
        received.at
        for dialled in server.dials
        for received in dialled.journal
        if not isinstance(received.frame, ClosePayload)
        for _ in range(price(received.frame))
    ]


async def drain_to(peer: Peer, until: float) -> None:
    """Read, and answer pings, until the time has come."""
    with trio.move_on_at(until):
        while True:
            await peer.receive()


# --------------------------------------------------------------------------- what the server counts

LIMIT, PERIOD = 20, 10.0


@pytest.mark.fault("F94", "F96", where="memory")
@pytest.mark.parametrize(
    "limit",
    [
        RollingWindow(LIMIT, PERIOD),
        Gcra(LIMIT, PERIOD, burst=10),
        TokenBucket.within(LIMIT, PERIOD, burst=10.0),
    ],
    ids=lambda limit: type(limit).__name__,
)
async def test_no_window_holds_more_than_the_limit_across_reconnects_and_bursts_at_its_edge(
    limit: Limit, autojump_clock: MockClock
) -> None:
    async def drop_in_mid_window(peer: Peer) -> None:
        await peer.accept()
        await peer.send(Ping(b"count my pong"))
        await drain_to(peer, trio.current_time() + 3.7)
        await peer.drop()

    handler = RateLimitHandler([limit], reserve=4.0, queue_size=math.inf)
    async with ScriptedServer(*[drop_in_mid_window] * 9, then=echo) as server:
        async with connect(server, rate_limit_handler=handler, ping_interval=2.0, max_attempts=math.inf) as conn:

            async def send(number: int) -> None:
                # What was being written when the link was lost is not repeated; it may have arrived all the same.
                with contextlib.suppress(trio_nova.OutcomeUnknown):
                    await conn.send_text(str(number))

            for burst_at in (0.0, PERIOD - 0.001, PERIOD, 2 * PERIOD + 0.5, 40.0):
                await trio.sleep_until(burst_at)
                async with trio.open_nursery() as nursery:
                    for number in range(2 * LIMIT):
                        nursery.start_soon(send, number)
        for dialled in server.dials:
            await dialled.wait_ended()

    counted = arrivals(server)
    assert len(server.dials) == 10
    assert len(counted) > 150
    assert worst_window(counted, PERIOD) <= LIMIT


@pytest.mark.fault("F94", where="memory")
async def test_a_rolling_window_is_used_to_95_percent_and_more(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(50, 10.0)])
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=handler) as conn:
            with trio.move_on_after(199.0):
                while True:
                    await conn.send_text("more")
        await server.dials[0].wait_ended()
    counted = arrivals(server)
    assert worst_window(counted, 10.0) == 50
    assert len(counted) >= 0.95 * 50 * 20


async def test_all_of_several_limits_hold(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(5, 1.0), RollingWindow(12, 10.0)])
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=handler) as conn:
            for number in range(40):
                await conn.send_text(str(number))
        await server.dials[0].wait_ended()
    counted = arrivals(server)
    assert (worst_window(counted, 1.0), worst_window(counted, 10.0)) == (5, 12)


async def test_the_pongs_that_answer_the_peers_pings_count(autojump_clock: MockClock) -> None:
    async def ping_a_lot(peer: Peer) -> None:
        await peer.accept()
        for number in range(8):
            await peer.send(Ping(bytes([number])))
        await peer.echo()

    handler = RateLimitHandler([RollingWindow(10, 10.0)])
    async with ScriptedServer(ping_a_lot) as server:
        async with connect(server, rate_limit_handler=handler) as conn:
            await wait_all_tasks_blocked()
            for number in range(4):
                await conn.send_text(str(number))
        await server.dials[0].wait_ended()
    assert [received.at for received in server.dials[0].journal if isinstance(received.frame, Pong)] == [0.0] * 8
    assert arrivals(server) == pytest.approx([*[0.0] * 10, 10.0, 10.0])


async def test_pongs_beyond_the_limit_are_paid_before_anything_else_is_sent(autojump_clock: MockClock) -> None:
    async def ping_too_much(peer: Peer) -> None:
        await peer.accept()
        for number in range(13):
            await peer.send(Ping(bytes([number])))
        await peer.echo()

    handler = RateLimitHandler([TokenBucket(capacity=10.0, rate=1.0)])
    async with ScriptedServer(ping_too_much) as server:
        async with connect(server, rate_limit_handler=handler) as conn:
            await wait_all_tasks_blocked()
            await conn.send_text("at last")
            assert trio.current_time() == pytest.approx(4.0)


async def test_what_a_failing_count_raises_is_an_error_of_the_handlers(autojump_clock: MockClock) -> None:
    class Broken(RateLimitHandler):
        def count_sent(self, request: RateRequest) -> None:
            raise KeyError("count")

    async def ping(peer: Peer) -> None:
        await peer.accept()
        await peer.send(Ping(b""))
        await peer.echo()

    async with ScriptedServer(ping) as server:
        with pytest.raises(KeyError):
            async with connect(server, rate_limit_handler=Broken([RollingWindow(1, 1.0)])):
                await trio.sleep(10.0)


# --------------------------------------------------------------------------- who waits for whom


class ShortGrants(AuthHandler):
    """Has its grant renewed every five seconds."""

    refresh_before = 5.0

    def encode_auth_request(self, credentials: Any) -> Any:
        return {"type": "auth"}

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        return AuthOk(expires_in=10.0) if message.get("type") == "auth_success" else None


class Venue:
    """Confirms subscriptions and logins; hangs up once, when told."""

    def __init__(self) -> None:
        self.hang_up = trio.Event()

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, peer)
            if peer.dialled.number == 1:
                await self.hang_up.wait()
                await peer.drop()
                nursery.cancel_scope.cancel()

    async def _serve(self, peer: Peer) -> None:
        while isinstance(frame := await peer.receive(), str):
            match json.loads(frame):
                case {"type": "subscribe", "channel": channel}:
                    await peer.send_json({"type": "subscribed", "channel": channel})
                case {"type": "auth"}:
                    await peer.send_json({"type": "auth_success"})


def price(frame: Any) -> int:
    """Return what the server charges for a frame."""
    kind = json.loads(frame)["type"] if isinstance(frame, str) else "ping"
    return {"subscribe": 5, "auth": 10}.get(kind, 1)


@pytest.mark.fault("F97", where="memory")
async def test_pings_and_authentication_are_in_time_behind_10000_sends_and_500_subscriptions(
    autojump_clock: MockClock,
) -> None:
    venue = Venue()
    # Of each ten seconds: two authentications, four pings; twice that, as subscriptions leave half of it.
    handler = RateLimitHandler([RollingWindow(120, 10.0)], costs=RATE_COSTS, reserve=50.0, queue_size=math.inf)
    events: list[trio_nova.Observation] = []

    async with ScriptedServer(then=venue) as server:
        async with (
            connect(
                server,
                codec=JsonCodec(),
                credentials="secret",
                allow_plaintext_credentials=True,
                auth_handler=ShortGrants(),
                rate_limit_handler=handler,
                ping_interval=3.0,
            ) as conn,
            conn.listen(size=100_000) as listener,
            trio.open_nursery() as nursery,
        ):
            names = [{"channel": f"channel {number}", "params": {}} for number in range(500)]
            conn.import_subscriptions(json.dumps(names))
            while set(conn.subscriptions().values()) != {"confirmed"}:
                await trio.sleep(1.0)
            venue.hang_up.set()
            await conn.wait_state(trio_nova.State.RESTORING)
            for _ in range(10_000):
                nursery.start_soon(conn.send, {"type": "order"})
            # 500 subscriptions at 5, 95 tokens in 10 s; then the orders, for as long again
            await trio.sleep(602.5)  # between two authentications, which come every 5 s: none is cut off
            assert conn.statistics().messages_sent > 2_000
            nursery.cancel_scope.cancel()
            while True:
                try:
                    events.append(listener.observations().receive_nowait())
                except trio.WouldBlock:
                    break

    for dialled in server.dials:
        pings = [received.at for received in dialled.journal if isinstance(received.frame, Ping)]
        assert len(pings) > 50
        assert max(later - earlier for earlier, later in pairwise(pings)) <= 4.0
    asked = [seen.at for seen in events if isinstance(seen.event, trio_nova.AuthStarted)]
    came = [
        received.at
        for dialled in server.dials
        for received in dialled.journal
        if isinstance(received.frame, str) and json.loads(received.frame)["type"] == "auth"
    ][-len(asked) :]
    assert len(asked) > 100
    assert max(arrived - wanted for wanted, arrived in zip(asked, came, strict=True)) <= 1.0
    assert worst_window(arrivals(server, price), 10.0) <= 120


@pytest.mark.fault("F99", where="memory")
async def test_a_lower_priority_overtakes_what_waits_for_the_limit_and_equals_keep_their_order(
    autojump_clock: MockClock,
) -> None:
    handler = RateLimitHandler([RollingWindow(1, 1.0)])
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=handler) as conn, trio.open_nursery() as nursery:

            async def send(text: str, priority: int) -> None:
                await conn.send(text, priority=priority)

            await conn.send("first")
            for text, priority in [("low 1", 5), ("low 2", 5), ("high 1", -1), ("normal", 0), ("high 2", -1)]:
                nursery.start_soon(send, text, priority)
                await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()
    assert server.dials[0].frames[:-1] == ["first", "high 1", "high 2", "normal", "low 1", "low 2"]
    assert arrivals(server) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("way", ["one by one", "all at once"])
async def test_beyond_queue_size_the_newest_of_the_least_urgent_is_not_sent(
    way: str, autojump_clock: MockClock
) -> None:
    handler = RateLimitHandler([RollingWindow(1, 1.0)], queue_size=2)
    refused: dict[str, tuple[float, bool]] = {}
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=handler) as conn, conn.listen() as events:

            async def send(text: str, priority: int) -> None:
                try:
                    await conn.send(text, priority=priority)
                except NotSent as error:
                    refused[text] = (trio.current_time(), "rate limit" in str(error))

            await conn.send("a")
            async with trio.open_nursery() as nursery:
                for text, priority in [("b", 0), ("c", 0), ("d", 0), ("urgent", -1)]:
                    nursery.start_soon(send, text, priority)
                    if way == "one by one":
                        await wait_all_tasks_blocked()
            seen = iter_now(events)
        await server.dials[0].wait_ended()
    assert [*refused.values()] == [(0.0, True)] * 2
    if way == "one by one":
        assert set(refused) == {"c", "d"}
        assert server.dials[0].frames[:-1] == ["a", "urgent", "b"]
    assert len([event for event in seen if isinstance(event, RateRejected)]) == 2
    assert [event.wait for event in seen if isinstance(event, RateLimited)] == pytest.approx([1.0, 2.0])


async def test_what_was_accepted_while_down_is_not_shed(autojump_clock: MockClock) -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    handler = RateLimitHandler([RollingWindow(1, 1.0)], queue_size=2)
    async with ScriptedServer(hang_up, then=echo) as server:
        async with connect(server, rate_limit_handler=handler, backoff=ListBackoff([5.0])) as conn:
            await conn.wait_state(trio_nova.State.RECONNECTING)
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(conn.send_text, str(number))
        await server.dials[1].wait_ended()
    assert len(server.dials[1].frames) == 11


@pytest.mark.fault("F99", where="memory")
async def test_a_send_that_is_cancelled_while_it_waits_costs_nothing(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(10, 10.0)], costs={"dear": 10.0, "cheap": 5.0})
    async with ScriptedServer(echo) as server, connect(server, codec=JsonCodec(), rate_limit_handler=handler) as conn:
        await conn.send({"type": "cheap"})
        with trio.move_on_after(3.0) as scope:
            await conn.send({"type": "dear"})
        assert scope.cancelled_caught
        await conn.send({"type": "cheap"})
        assert trio.current_time() == 3.0
        assert handler.consumed == 10.0


@pytest.mark.fault("F99", where="memory")
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("costs", {"costs": {"dear": 11.0}}),
        ("costs", {"costs": {"dear": -1.0}}),
        ("costs", {"costs": {"dear": math.nan}}),
        ("reserve", {"reserve": 10.0}),
        ("reserve", {"reserve": -1.0}),
        ("queue_size", {"queue_size": -1}),
        ("recovery_interval", {"recovery_interval": 0.0}),
    ],
)
def test_a_limiter_that_could_never_admit_something_is_refused_at_once(field: str, options: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        RateLimitHandler([RollingWindow(10, 10.0)], **options)
    assert caught.value.field == field


async def test_a_cost_that_never_fits_beside_the_reserve_is_refused_at_once(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(10, 10.0)], costs={"dear": 9.0}, reserve=2.0)
    async with ScriptedServer(echo) as server, connect(server, codec=JsonCodec(), rate_limit_handler=handler) as conn:
        with pytest.raises(NotSent, match="exceeds"):
            await conn.send({"type": "dear"})
        assert trio.current_time() == 0.0


def test_a_message_costs_by_its_type_else_by_its_purpose() -> None:
    handler = RateLimitHandler([TokenBucket(100.0, 1.0)], costs={**RATE_COSTS, "order": 3.0})

    def spent(**request: Any) -> float:
        before = handler.consumed
        handler.check_rate_limit(RateRequest(**{"kind": "", "size": 1, "now": 0.0, **request}))
        return handler.consumed - before

    assert spent(purpose="auth") == 10.0
    assert spent(purpose="subscription", kind="public/subscribe") == 5.0
    assert spent(purpose="query") == 1.0
    assert spent(purpose="query", kind="order") == 3.0
    assert spent(purpose="message") == spent(purpose="control") == spent(purpose="setup") == 1.0


# --------------------------------------------------------------------------- what the server complains of


async def refuse_the_third(peer: Peer) -> None:
    await peer.accept()
    number = 0
    while isinstance(frame := await peer.receive(), str):
        number += 1
        id = json.loads(frame).get("id")
        error = {"error": {"code": 10028, "message": "too_many_requests", "data": {"retry_after": 4}}}
        await peer.send_json({"id": id, **(error if number == 3 else {"result": "ok"})})


@pytest.mark.fault("F98", where="memory")
async def test_a_complaint_holds_all_but_control_and_halves_the_pace_which_then_comes_back(
    autojump_clock: MockClock,
) -> None:
    handler = RateLimitHandler([Gcra(11, 10.0, burst=2)], recovery_step=0.25, recovery_interval=8.0)
    async with ScriptedServer(refuse_the_third) as server:
        async with (
            connect(server, codec=JsonCodec(), rate_limit_handler=handler) as conn,
            conn.listen() as events,
        ):
            await conn.request({"method": "a"})
            await conn.request({"method": "b"})
            with pytest.raises(RequestFailed):
                await conn.request({"method": "c"})
            assert trio.current_time() == pytest.approx(1.0)
            await conn.ping()
            assert trio.current_time() < 2.5  # a control frame waits for the limit, and for nothing else
            for _ in range(16):
                await conn.send({"method": "more"})
            slowed = [event for event in iter_now(events) if isinstance(event, RateLimitSlowed)]
        await server.dials[0].wait_ended()
    assert [event.until for event in slowed] == pytest.approx([5.0])
    assert [event.factor for event in slowed] == [0.5]
    sent = [received.at for received in server.dials[0].journal if isinstance(received.frame, str)][3:]
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert sent[0] == pytest.approx(5.0)
    assert gaps[:3] == pytest.approx([2.0] * 3)  # twice the price at half the pace
    assert gaps[-1] == pytest.approx(1.0)  # and back, 16 s later


def iter_now(events: Any) -> list[Event]:
    """Return what a listener has heard so far."""
    heard: list[Event] = []
    while True:
        try:
            heard.append(events.receive_nowait())
        except trio.WouldBlock:
            return heard


async def test_a_refused_upgrade_slows_down_too(autojump_clock: MockClock) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reject(429, {"Retry-After": "30"})

    handler = RateLimitHandler([RollingWindow(10, 10.0)])
    async with ScriptedServer(refuse, then=echo) as server:
        async with connect(server, rate_limit_handler=handler, retry_first_connect=True):
            assert trio.current_time() == 30.0
            assert handler.pace(trio.current_time()) == 0.5


@pytest.mark.fault("F98", where="memory")
async def test_a_complaint_is_obeyed_without_any_limit(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler()
    async with (
        ScriptedServer(refuse_the_third) as server,
        connect(server, codec=JsonCodec(), rate_limit_handler=handler) as conn,
    ):
        for _ in range(2):
            await conn.request({"method": "a"})
        with pytest.raises(RequestFailed):
            await conn.request({"method": "a"})
        await conn.request({"method": "a"})
        assert trio.current_time() == 4.0


@pytest.mark.fault("F98", where="memory")
@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ({"error": {"code": 10028}}, 1.0),
        ({"error": {"code": 429, "retry_after": 7}}, 7.0),
        ({"error": {"code": 429}, "retry_after": "12"}, 12.0),
        ({"error": "slow down", "retry_after": 2.5}, 2.5),
        ({"error": {"code": 10028, "data": {"retry_after": 3}}}, 3.0),
        ({"error": {"code": 10028, "retry_after": Decimal("2.5")}}, 2.5),
        ({"error": {"code": 10028, "retry_after": Decimal("1e400")}}, 900.0),
        ({"error": {"code": 10028, "retry_after": -5}}, 0.0),
        ({"error": {"code": 10028, "retry_after": 1e300}}, 900.0),
        ({"error": {"code": 10028, "retry_after": math.inf}}, 900.0),
        ({"error": {"code": 10028, "retry_after": 10**400}}, 900.0),
        ({"error": {"code": 10028, "retry_after": "9" * 5000}}, 1.0),
        ({"error": {"code": 10028, "retry_after": math.nan}}, 1.0),
        ({"error": {"code": 10028, "retry_after": True}}, 1.0),
        ({"error": {"code": 10028, "retry_after": ["soon"]}}, 1.0),
        ({"error": {"code": 10028, "retry_after": None}}, 1.0),
        ({"error": {"code": 10028, "data": "retry_after"}}, 1.0),
        ({"error": {"code": [429]}}, None),
        ({"error": {"code": 13004}}, None),
        ({"error": "no"}, None),
        ("429", None),
        (None, None),
        (HandshakeRejected(429, retry_after=60.0), 60.0),
        (HandshakeRejected(429), 0.0),
    ],
)
def test_the_default_feedback_reads_complaints_and_believes_no_nonsense(message: Any, seconds: float | None) -> None:
    assert RateLimitHandler().feedback(message) == seconds


def test_complaints_of_one_moment_count_once_and_the_pace_has_a_floor() -> None:
    handler = RateLimitHandler([TokenBucket(10.0, 1.0)])
    for _ in range(20):
        handler.slow_down(100.0, until=104.0)
    assert handler.pace(100.0) == 0.5
    handler.slow_down(103.0, until=110.0)
    assert handler.pace(103.0) == 0.5
    handler.slow_down(110.0)
    assert handler.pace(110.0) == 0.25
    assert handler.pace(119.9) == 0.25
    assert handler.pace(120.0) == pytest.approx(0.35)
    assert handler.pace(1_000.0) == 1.0
    for second in range(1_000, 1_100, 2):
        handler.slow_down(float(second))
    assert handler.pace(1_098.0) == 0.05
    handler.slow_down(2_000.0, until=math.inf)
    held = handler.check_rate_limit(RateRequest(kind="", size=1, now=2_000.0))
    assert held == trio_nova.Queue(2_900.0)
    assert handler.check_rate_limit(RateRequest(kind="", size=1, now=2_000.0, purpose="auth")) == trio_nova.Allow()


@pytest.mark.parametrize("options", [{"factor": 0.0}, {"factor": 1.5}, {"factor": math.nan}, {"until": math.nan}])
def test_slow_down_refuses_nonsense(options: Any) -> None:
    handler = RateLimitHandler()
    with pytest.raises(ConfigError):
        handler.slow_down(0.0, **options)
    assert not handler.engaged


async def test_what_was_consumed_is_told_by_batch_to_those_who_hear_messages(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(10, 10.0)], costs={"dear": 3.0})
    async with (
        ScriptedServer(echo) as server,
        connect(server, codec=JsonCodec(), rate_limit_handler=handler) as conn,
        conn.listen(messages=True) as all_events,
        conn.listen() as events,
    ):
        await conn.send({"type": "dear"})
        await conn.send({"type": "cheap"})
        consumed = [event for event in iter_now(all_events) if isinstance(event, RateConsumed)]
        assert [(event.messages, event.cost) for event in consumed] == [(1, 3.0), (1, 1.0)]
        assert not iter_now(events)


class AskedAsRequests(trio_nova.SubscriptionHandler):
    """Has its subscriptions answered as requests are."""

    correlated = True


@pytest.mark.parametrize("handler", [trio_nova.SubscriptionHandler, AskedAsRequests], ids=["by message", "by id"])
async def test_what_a_subscription_waits_for_the_limit_is_not_held_against_the_server(
    handler: type[trio_nova.SubscriptionHandler], autojump_clock: MockClock
) -> None:
    async def confirm(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            message = json.loads(frame)
            await trio.sleep(1.0)
            await peer.send_json({"type": "subscribed", "channel": message["channel"], "id": message.get("id")})

    limiter = RateLimitHandler([RollingWindow(5, 60.0)], costs={"subscription": 5.0})
    async with ScriptedServer(confirm) as server:
        async with connect(server, codec=JsonCodec(), subscription_handler=handler, rate_limit_handler=limiter) as conn:
            conn.import_subscriptions(json.dumps([{"channel": str(number), "params": {}} for number in range(10)]))
            await trio.sleep(1_000.0)
            assert set(conn.subscriptions().values()) == {"confirmed"}
        await server.dials[0].wait_ended()
    asked = [json.loads(frame)["channel"] for frame in server.dials[0].frames if isinstance(frame, str)]
    assert asked == [str(number) for number in range(10)]


class WeighsAll(RateLimitHandler):
    def __init__(self) -> None:
        super().__init__()
        self.weighed: dict[str, int] = {}

    def check_rate_limit(self, request: RateRequest) -> trio_nova.Decision:
        self.weighed[request.purpose] = request.size
        return super().check_rate_limit(request)


async def test_a_limit_may_go_by_the_size_of_what_is_asked_whatever_for(autojump_clock: MockClock) -> None:
    class Introduces(trio_nova.ConnectionHandler):
        def setup_requests(self, info: Any) -> Any:
            return [{"hello": "x" * 100}]

    async def serve(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            message = json.loads(frame)
            read.append(message)
            await peer.send_json({"type": "auth_success", "id": message.get("id"), "result": True})

    read: list[Any] = []
    handler = WeighsAll()
    options: dict[str, Any] = {
        "codec": JsonCodec(),
        "credentials": "a token",
        "allow_plaintext_credentials": True,
        "connection_handler": Introduces(),
        "subscription_handler": AskedAsRequests(),
        "rate_limit_handler": handler,
    }
    async with (
        ScriptedServer(serve) as server,
        connect(server, **options) as conn,
        conn.subscribe("x" * 200),
    ):
        await conn.request({"question": "x" * 300})
    kinds = {"auth": 0, "setup": 1, "subscription": 2, "query": 3}
    for kind, place in kinds.items():
        asked = {name: value for name, value in read[place].items() if name != "id"}
        assert handler.weighed[kind] == len(json.dumps(asked, separators=(",", ":"))), kind


@pytest.mark.parametrize("until", ["soon", None, True, math.nan], ids=str)
@pytest.mark.parametrize("policy", ["raise", "log"])
async def test_a_limiter_that_queues_until_no_time_at_all_is_an_error_that_names_it(
    policy: str, until: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Vague(RateLimitHandler):
        def check_rate_limit(self, request: RateRequest) -> Decision:
            return Queue(until)

    async with ScriptedServer(echo) as server:
        with pytest.raises(ConfigError) if policy == "raise" else contextlib.nullcontext():
            async with connect(server, rate_limit_handler=Vague(), on_handler_error=policy) as conn:
                with pytest.raises(NotSent):
                    await conn.send_text("x")
                await trio.sleep(1.0)
                assert policy == "log"
    assert f"check_rate_limit: answered Queue with a {type(until).__name__}, not a time" in caplog.text


# --------------------------------------------------------------------------- limits of one's own


@attrs.define(eq=False)
class Elsewhere:
    """Has no room before `opens_at`, and at no time says more than that it is to be asked again."""

    ahead: float = 0.05
    opens_at: float = math.inf
    asked: list[float] = attrs.field(factory=list)

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
        self.asked.append(now)
        assert len(self.asked) < 10_000, "asked without end"
        return now if now >= self.opens_at else now + self.ahead

    def spend(self, now: float, cost: float = 1.0) -> None:
        if now < self.opens_at:
            raise ValueError("there is no room")

    def available(self, now: float) -> float:
        return 1.0 if now >= self.opens_at else 0.0


@pytest.mark.parametrize("others", [[], [RollingWindow(100, 1.0)]], ids=["alone", "beside another"])
async def test_a_limit_that_always_says_in_50_ms_is_waited_for_that_long_each_time(
    others: list[Limit], autojump_clock: MockClock
) -> None:
    limit = Elsewhere(opens_at=1.02)
    handler = RateLimitHandler([limit, *others])
    limit.asked.clear()
    async with ScriptedServer(echo) as server, connect(server, rate_limit_handler=handler) as conn:
        await conn.send_text("x")
        assert trio.current_time() == pytest.approx(1.05)
        at_rest = {now for now in limit.asked if now <= trio.current_time()}
        assert sorted(at_rest)[-1] - sorted(at_rest)[0] == pytest.approx(1.05)


@pytest.mark.parametrize("ahead", [0.05, 1e-12, 0.0, -1.0])
async def test_a_limit_that_never_has_room_keeps_no_machine_busy(ahead: float, autojump_clock: MockClock) -> None:
    limit = Elsewhere(ahead)
    async with (
        ScriptedServer(echo) as server,
        connect(server, rate_limit_handler=RateLimitHandler([limit]), on_handler_error="log") as conn,
    ):
        with trio.move_on_after(1.0):
            try:
                await conn.send_text("x")
            except NotSent:
                assert ahead <= 0.0  # it says that there is room, and then does not give it
        assert len(limit.asked) < 5_000
        assert server.dials[0].frames == []


async def test_a_limit_of_ones_own_that_answers_no_time_is_an_error_that_names_it(autojump_clock: MockClock) -> None:
    limit = Elsewhere(opens_at=0.0)
    handler = RateLimitHandler([limit])
    limit.opens_at, limit.ahead = math.inf, math.nan
    async with ScriptedServer(echo) as server:
        with pytest.raises(ConfigError, match=r"Elsewhere\.admits_at answered nan, which is no time"):
            async with connect(server, rate_limit_handler=handler) as conn:
                await conn.send_text("x")


@pytest.mark.parametrize("retry", [False, True])
async def test_a_dial_waits_for_a_limit_that_always_says_in_50_ms(retry: bool, autojump_clock: MockClock) -> None:
    limit = Elsewhere(opens_at=1.02)
    governor = ConnectGovernor([limit])
    async with governor.turn("there:1", retry=retry):
        assert trio.current_time() == pytest.approx(1.05)
    assert len(limit.asked) < 100


# --------------------------------------------------------------------------- a reserve


@pytest.mark.parametrize("reserve", [5.5, 8.0, 9.0])
def test_a_reserve_larger_than_what_it_leaves_to_messages_is_warned_of(reserve: float) -> None:
    with pytest.warns(UserWarning, match=f"a reserve of {reserve:g} is more than the limits leave to messages"):
        RateLimitHandler([TokenBucket(10.0, 1.0), RollingWindow(600, 60.0)], reserve=reserve)


def test_a_reserve_that_is_changed_later_is_looked_at_again() -> None:
    handler = RateLimitHandler([TokenBucket(10.0, 1.0)], reserve=5.0)
    with pytest.warns(UserWarning, match="a reserve of 8"):
        handler.reserve = 8.0
    with pytest.raises(ConfigError, match="leaves nothing for messages"):
        handler.reserve = 10.0
    assert handler.reserve == 8.0


def test_a_reserve_without_limits_is_no_matter() -> None:
    assert RateLimitHandler(reserve=1000.0).reserve == 1000.0
