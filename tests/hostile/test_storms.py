"""Services that refuse, flap, restart and stay away for a day: who comes back, when, and how often."""

from __future__ import annotations

import errno
import logging
import math
import random
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from trio._core import _run
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    Config,
    ConnectGovernor,
    Connection,
    ConnectionHandler,
    ConnectionInfo,
    ExponentialBackoff,
    JsonCodec,
    LinkClosed,
    LinkLost,
    ListBackoff,
    MessageHandler,
    Reconnect,
    Reconnected,
    RetryScheduled,
    RollingWindow,
    SessionEnded,
    SessionOver,
    State,
    open_connection,
    profiles,
)
from trio_nova.core.verdict import Disposition, of_close_code
from trio_nova.messages import Action
from trio_nova.testing import MemoryStream, Peer, Refuse, Script, ScriptedServer, echo, worst_window

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("trio_nova")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


# --------------------------------------------------------------------------- taken in, and shown out


async def close_at_once(peer: Peer) -> None:
    await peer.accept()
    await peer.close(1013, "try again later")


async def drop_amid_auth(peer: Peer) -> None:
    await peer.accept()
    await peer.receive_json()
    await peer.drop()


async def say_one_thing(peer: Peer) -> None:
    await peer.accept()
    await peer.send('"welcome"')
    await peer.close(1000)


async def reset_after_a_second(peer: Peer) -> None:
    await peer.accept()
    await trio.sleep(1.0)
    await peer.reset()


@pytest.mark.fault("F84", where="memory")
@pytest.mark.parametrize(
    ("script", "credentials"),
    [(close_at_once, None), (drop_amid_auth, "token"), (say_one_thing, None), (reset_after_a_second, None)],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_a_service_that_shows_everybody_out_is_dialled_12_times_in_a_minute_and_80_in_an_hour_at_most(
    autojump_clock: MockClock, script: Script, credentials: str | None
) -> None:
    for seed in range(5):
        async with ScriptedServer(then=script) as server:
            with trio.move_on_after(HOUR) as hour:
                async with open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    codec=JsonCodec(),
                    credentials=credentials,
                    allow_plaintext_credentials=True,
                    retry_first_connect=True,
                    spread=random.Random(seed).random,
                ):
                    await trio.sleep_forever()
            assert hour.cancelled_caught
        dials = [dialled.at for dialled in server.dials]
        assert 20 <= len(dials) <= 80
        assert len([at for at in dials if at < dials[0] + 60.0]) <= 12


@pytest.mark.fault("F86", where="memory")
async def test_one_drop_of_a_sound_service_costs_a_second_as_a_rule_and_two_at_most(
    autojump_clock: MockClock,
) -> None:
    """The delay is what keeps a crowd apart; who is alone pays for it too, and it should not be much."""

    async def drop_after_a_minute(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(60.0)
        await peer.drop()

    outages: list[float] = []
    for seed in range(200):
        async with ScriptedServer(drop_after_a_minute, echo) as server:
            async with open_connection(
                URL, stream_factory=server.stream_factory, spread=random.Random(seed).random
            ) as conn:
                await conn.wait_state(State.DISCONNECTED)
                dropped = trio.current_time()
                await conn.wait_ready()
                outages.append(trio.current_time() - dropped)
    assert statistics.median(outages) <= 1.2
    assert max(outages) <= 2.0


@pytest.mark.fault("F86", where="memory")
@pytest.mark.parametrize(("profile", "most_missed"), [(Config(), 0.2), (profiles.FINANCIAL, 0.06)])
async def test_a_feed_whose_links_are_dropped_every_5_seconds_is_missed_for_the_first_delay_and_no_longer(
    autojump_clock: MockClock, profile: Config, most_missed: float
) -> None:
    """Links that lasted make no redial later than the first: it is as near after ten minutes as at the beginning."""

    async def drop_after_five_seconds(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(5.0)
        await peer.drop()

    async with ScriptedServer(then=drop_after_five_seconds, max_dials=2_000) as server:
        async with (
            open_connection(
                URL, config=profile, stream_factory=server.stream_factory, spread=random.Random(8).random
            ) as conn,
            conn.listen(size=20_000) as events,
        ):
            await trio.sleep(600.0)
            told = await events.receive_batch()
    missed = sum(event.outage for event in told if isinstance(event, Reconnected))
    assert missed / 600.0 <= most_missed
    assert {event.attempt for event in told if isinstance(event, RetryScheduled)} == {1}


# --------------------------------------------------------------------------- an address that is good for once


@attrs.define(eq=False)
class Ticketed(ConnectionHandler):
    """Gets a URL from an office, for every dial; it is good for one."""

    issued: int = 0
    closed: set[int] = attrs.field(factory=set)
    """Which requests the office fails to answer."""
    asked: list[float] = attrs.field(factory=list)

    async def headers(self) -> Mapping[str, str]:
        """Ask the office: what is asked before every dial is the place to wait for what a dial needs."""
        await trio.sleep(0.1)
        self.asked.append(trio.current_time())
        if len(self.asked) in self.closed:
            raise OSError("the office is closed")
        self.issued += 1
        return {}

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, url=info.url.with_query(ticket=str(self.issued)))


@pytest.mark.fault("F85", where="memory")
async def test_an_address_is_issued_anew_for_every_dial_and_a_closed_office_is_a_failed_attempt(
    autojump_clock: MockClock,
) -> None:
    used: set[str] = set()

    async def take_a_ticket(peer: Peer) -> None:
        ticket = (await peer.read_request()).target
        if ticket in used:
            await peer.reject(403)
            return
        used.add(ticket)
        await peer.accept()
        await trio.sleep(60.0)
        await peer.drop()

    office = Ticketed(closed={3, 4})
    async with ScriptedServer(then=take_a_ticket) as server:
        with trio.fail_after(HOUR):
            async with open_connection(
                "wss://server.test/",
                stream_factory=server.stream_factory,
                transport=_PlainTransport(),
                headers=office.headers,
                connection_handler=office,
                backoff=ListBackoff([1.0, 2.0, 4.0]),
            ) as conn:
                while conn.epoch < 5:
                    await conn.wait_state(State.DISCONNECTED)
                    await conn.wait_ready()
    assert len(used) == len(server.dials) == 5
    assert len(office.asked) == 7
    waits = [later - earlier for earlier, later in pairwise(office.asked[2:5])]
    assert waits == pytest.approx([2.1, 4.1])  # slower each time


class _PlainTransport:
    """The default transport, without the TLS that the URL asks for."""

    def open(self, dial: Any) -> Any:
        return trio_nova.WireTransport().open(attrs.evolve(dial, url=attrs.evolve(dial.url, secure=False)))


# --------------------------------------------------------------------------- crowds


async def hold_open(
    server: ScriptedServer, dice: random.Random, governor: ConnectGovernor | None = None, profile: Config | None = None
) -> None:
    async with open_connection(
        URL, config=profile, stream_factory=server.stream_factory, spread=dice.random, governor=governor
    ):
        await trio.sleep_forever()


@pytest.mark.fault("F86", where="memory")
@pytest.mark.soak
@pytest.mark.parametrize(
    ("shared", "profile", "most_in_100_ms", "most_in_a_second", "all_within"),
    [(True, Config(), 45, 250, 8.0), (False, Config(), 90, 600, 2.0), (False, profiles.FINANCIAL, 260, 1000, 0.5)],
    ids=["one process", "a process each", "a process each, of a feed"],
)
async def test_a_thousand_clients_that_were_dropped_at_once_come_back_spread_out(
    autojump_clock: MockClock,
    shared: bool,
    profile: Config,
    most_in_100_ms: int,
    most_in_a_second: int,
    all_within: float,
) -> None:
    dice = random.Random(0)

    async def live(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep_until(dropped_at)
        await peer.drop()

    dropped_at = trio.current_time() + 10.0
    async with ScriptedServer(*[live] * 1000, then=echo, max_dials=10_000) as server, trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(hold_open, server, dice, None if shared else ConnectGovernor(), profile)
        await trio.sleep_until(dropped_at + all_within)
        nursery.cancel_scope.cancel(reason="all are back")
    returns = [dialled.at - dropped_at for dialled in server.dials[1000:]]
    assert len(returns) == 1000
    assert worst_window(returns, 0.1) <= most_in_100_ms
    assert worst_window(returns, 1.0) <= most_in_a_second


@pytest.mark.fault("F86", where="memory")
@pytest.mark.soak
async def test_a_thousand_clients_of_a_service_that_refuses_most_do_not_storm_it(autojump_clock: MockClock) -> None:
    dice, lottery = random.Random(1), random.Random(2)

    async def live(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep_until(dropped_at)
        await peer.drop()

    async def refuse_most(peer: Peer) -> None:
        if lottery.random() < 0.9:
            await peer.reject(503)
        else:
            await peer.accept()
            await peer.echo()

    dropped_at = trio.current_time() + 100.0
    async with ScriptedServer(*[live] * 1000, then=refuse_most, max_dials=100_000) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(hold_open, server, dice)
            await trio.sleep_until(dropped_at + 300.0)
            nursery.cancel_scope.cancel(reason="it was seen")
    returns = [dialled.at - dropped_at for dialled in server.dials[1000:]]
    assert worst_window([at for at in returns if at > 30.0], 1.0) <= 300


# --------------------------------------------------------------------------- a day


@attrs.define
class Outages:
    """Refuses dials while the service is down, and counts them all."""

    server: ScriptedServer
    is_down: Callable[[float], bool]
    dials: list[float] = attrs.field(factory=list)

    async def dial(self, host: str, port: int) -> MemoryStream:
        self.dials.append(trio.current_time())
        if self.is_down(trio.current_time()):
            await trio.lowlevel.checkpoint()
            raise OSError(errno.ECONNREFUSED, "down")
        return await self.server.stream_factory(host, port)


@pytest.mark.fault("F87", where="memory")
@pytest.mark.soak
@pytest.mark.parametrize("budget", [None, 1000])
async def test_a_day_of_flapping_costs_what_was_agreed_on(autojump_clock: MockClock, budget: int | None) -> None:
    down_until = -math.inf

    async def live_40_seconds(peer: Peer) -> None:
        nonlocal down_until
        await peer.accept()
        await trio.sleep(40.0)
        await peer.drop()
        down_until = trio.current_time() + 1.0
        server.dials.clear()

    attempts: list[int] = []
    async with ScriptedServer(then=live_40_seconds) as server, trio.open_nursery() as nursery:
        flapping = Outages(server, lambda now: now < down_until)
        governor = ConnectGovernor([RollingWindow(budget, DAY)] if budget is not None else [])
        async with (
            open_connection(
                URL, stream_factory=flapping.dial, governor=governor, spread=random.Random(87).random
            ) as conn,
            conn.listen(size=10_000) as events,
        ):

            async def note() -> None:
                async for event in events:
                    if isinstance(event, RetryScheduled):
                        attempts.append(event.attempt)

            nursery.start_soon(note)
            await trio.sleep(DAY - 1.0)
            await conn.aclose()
    if budget is not None:
        assert len(flapping.dials) == budget
    else:
        # A link that had lasted was a success: the count starts over. Every other first redial comes within the second
        # in which the service is down, and a second one follows it.
        assert 2_700 <= len(flapping.dials) <= 3_300
        assert max(attempts) <= 5
        assert attempts.count(1) >= 0.6 * len(attempts)


@pytest.mark.fault("F88", where="memory")
@pytest.mark.parametrize("cap", [150.0, 600.0])
@pytest.mark.parametrize("seeds", [2, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_day_long_outage_takes_no_more_than_half_of_a_budget_of_1000_dials(
    autojump_clock: MockClock, cap: float, seeds: int
) -> None:
    for seed in range(seeds):
        governor = ConnectGovernor([RollingWindow(1000, DAY)])
        async with ScriptedServer(echo) as server:
            began = trio.current_time()
            outage = Outages(server, lambda now, began=began: 60.0 <= now - began < DAY)  # type: ignore[misc]
            async with open_connection(
                URL,
                stream_factory=outage.dial,
                governor=governor,
                backoff=ExponentialBackoff(cap=cap),
                spread=random.Random(seed).random,
            ):
                await trio.sleep(60.0)
                assert server.dials[0].peer is not None
                await server.dials[0].peer.drop()
                await trio.sleep(DAY - 60.0)
        assert 100 <= len(outage.dials) <= 500


@pytest.mark.fault("F88", where="memory")
async def test_a_budget_that_is_used_up_is_waited_for_and_not_overdrawn(autojump_clock: MockClock) -> None:
    governor = ConnectGovernor([RollingWindow(10, DAY)])
    for _ in range(6):  # another session has used this much
        async with governor.turn("other.test:80"):
            pass
    async with ScriptedServer(echo) as server:
        outage = Outages(server, lambda now: now < HOUR)
        with trio.fail_after(2 * DAY):
            async with open_connection(
                URL, stream_factory=outage.dial, governor=governor, retry_first_connect=True, backoff=ListBackoff([1.0])
            ) as conn:
                assert (len(outage.dials), outage.dials[-1]) == (5, DAY)
                with trio.move_on_after(5.0):
                    assert server.dials[0].peer is not None
                    await server.dials[0].peer.drop()
                    await conn.wait_state(State.CONNECTING)
                    await trio.sleep_forever()
            left_at = trio.current_time()
    assert left_at == DAY + 5.0  # who waits for the budget leaves at once
    assert worst_window(outage.dials, DAY) <= 10


# --------------------------------------------------------------------------- other addresses


@attrs.define(eq=False)
class Alternates(ConnectionHandler):
    """Takes the second address after a failure, and each with what belongs to it."""

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        name = "b" if info.attempt % 2 else "a"
        return attrs.evolve(info, url=f"wss://{name}.test/", headers={"X-Api-Key": f"key of {name}"})


@pytest.mark.fault("F89", where="memory")
async def test_another_address_gets_only_what_is_meant_for_it_and_the_first_is_gone_back_to(
    autojump_clock: MockClock,
) -> None:
    down: set[str] = set()

    async def dial(host: str, port: int) -> MemoryStream:
        if host in down:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.ECONNREFUSED, "down")
        return await server.stream_factory(host, port)

    async def lose() -> None:
        peer = server.dials[-1].peer
        assert peer is not None
        await peer.drop()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()

    async with ScriptedServer(then=echo) as server:
        with trio.fail_after(HOUR):
            async with open_connection(
                "wss://a.test/",
                stream_factory=dial,
                transport=_PlainTransport(),
                connection_handler=Alternates,
                headers={"X-Other": "not for b"},
                min_uptime=30.0,
                backoff=ListBackoff([1.0]),
            ) as conn:
                await trio.sleep(40.0)
                down.add("a.test")
                await lose()  # the first dial after the loss is a retry already, and goes to b
                down.clear()
                await trio.sleep(5.0)
                await lose()  # too soon to start over: the second in a row
    assert [dialled.host for dialled in server.dials] == ["a.test", "b.test", "a.test"]
    for dialled in server.dials:
        assert dialled.request is not None
        assert dialled.request.headers["x-api-key"] == f"key of {dialled.host[0]}"
        assert "x-other" not in dialled.request.headers


# --------------------------------------------------------------------------- several reasons at once


@attrs.define
class Watchful:
    """Dials, and sees to it that the stream before is closed by then."""

    server: ScriptedServer
    streams: list[MemoryStream] = attrs.field(factory=list)

    async def dial(self, host: str, port: int) -> MemoryStream:
        for earlier in self.streams:
            with pytest.raises(trio.ClosedResourceError):
                await earlier.receive_some()
        stream = await self.server.stream_factory(host, port)
        self.streams.append(stream)
        return stream


class Obedient(MessageHandler):
    """Goes where the service sends it."""

    def handle_message(self, kind: str, message: Any) -> Action:
        return Reconnect("as the service wishes") if message == "reconnect" else None


async def tell_to_reconnect(peer: Peer) -> None:
    await peer.send("reconnect")
    await peer.serve_until_closed()


async def tell_and_drop(peer: Peer) -> None:
    await peer.send("reconnect")
    await peer.drop()


async def close_with_1012(peer: Peer) -> None:
    await peer.close(1012, "restart")


async def reset(peer: Peer) -> None:
    await peer.reset()


async def fall_silent(peer: Peer) -> None:
    await peer.mute()


@pytest.mark.fault("F90", where="memory")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("users", [0, 1, 3])
@pytest.mark.parametrize(
    "then",
    [tell_to_reconnect, tell_and_drop, close_with_1012, reset, fall_silent],
    ids=lambda each: each.__name__,
)
async def test_however_many_want_another_link_there_is_one_at_a_time_and_the_old_one_is_closed_first(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Peer], Awaitable[object]],
    users: int,
    seed: int,
) -> None:
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    _run._r.seed(seed)

    async def script(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_at(1.0):
            while True:
                await peer.receive()
        await then(peer)

    async with ScriptedServer(script, then=echo) as server:
        with trio.fail_after(60.0):
            async with (
                open_connection(
                    URL,
                    stream_factory=Watchful(server).dial,
                    message_handler=Obedient,
                    ping_interval=0.8,
                    pong_timeout=1.0,  # where the peer falls silent, it is noticed at 2.6 s
                    backoff=ListBackoff([0.5]),
                ) as conn,
                conn.listen(size=4096) as events,
            ):
                await trio.sleep(1.0 if then is not fall_silent else 2.6)
                async with trio.open_nursery() as nursery:
                    for _ in range(users):
                        nursery.start_soon(conn.reconnect, "I want another")
                await trio.sleep(10.0)
                await conn.send_text("alive")
                assert await conn.receive() in ("alive", "reconnect")
                assert conn.epoch == len(server.dials) <= 3
                seen = await events.observations().receive_batch()
                closed = [each.epoch for each in seen if isinstance(each.event, LinkClosed)]
    assert closed == list(range(1, conn.epoch))
    for earlier, later in pairwise(server.dials):
        assert earlier.ended_at is not None
        assert earlier.ended_at <= later.at


# --------------------------------------------------------------------------- giving up


@pytest.mark.fault("F91", where="memory")
async def test_a_session_that_gives_up_says_why_and_lets_everybody_go(autojump_clock: MockClock) -> None:
    async def answer_never(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_after(10.0):
            while True:
                await peer.receive()
        await peer.drop()

    outcomes: dict[str, type[Exception]] = {}

    async def wait(name: str, call: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await call(*args)
        except trio_nova.NovaError as error:
            outcomes[name] = type(error)

    async def subscribe(conn: Connection) -> None:
        async with conn.subscribe("a"):
            await trio.sleep_forever()

    async with ScriptedServer(answer_never, then=Refuse()) as server, trio.open_nursery() as outside:
        with trio.fail_after(60.0), pytest.raises(SessionOver) as caught:
            async with (
                open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    codec=JsonCodec(),
                    max_attempts=3,
                    backoff=ListBackoff([2.0]),
                ) as conn,
                conn.listen() as events,
            ):
                outside.start_soon(wait, "request", conn.request, {"n": 1})
                outside.start_soon(wait, "subscribe", subscribe, conn)
                outside.start_soon(wait, "receive", conn.receive)
                await conn.wait_state(State.RECONNECTING)
                outside.start_soon(wait, "send", conn.send, {"n": 2})
                outside.start_soon(wait, "wait_ready", conn.wait_ready)
                outside.start_soon(wait, "reconnect", conn.wait_state, State.READY)
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        told = [event async for event in events]
        assert trio.current_time() == 16.0
        await wait_all_tasks_blocked()
    assert (caught.value.attempts, type(caught.value.last)) == (4, trio_nova.ConnectFailed)
    assert caught.value.__cause__ is caught.value.last
    assert len([event for event in told if isinstance(event, SessionEnded)]) == 1
    assert outcomes == {
        "request": trio_nova.OutcomeUnknown,
        "subscribe": SessionOver,
        "receive": SessionOver,
        "send": trio_nova.NotSent,
        "wait_ready": SessionOver,
        "reconnect": SessionOver,
    }


# --------------------------------------------------------------------------- close codes


@pytest.mark.fault("F92", where="memory")
@pytest.mark.parametrize("code", [1001, 1012])
async def test_a_restart_in_good_order_is_come_back_from_at_a_random_time_without_an_error_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    logging.getLogger("trio_nova").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "trio_nova")

    async def restart(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_after(100.0):
            while True:
                await peer.receive()
        await peer.close(code, "back soon")

    waits = []
    for spread in (0.0, 0.3, 0.999):
        async with ScriptedServer(restart, echo) as server:
            async with open_connection(
                URL, stream_factory=server.stream_factory, spread=partial(float, spread)
            ) as conn:
                await conn.wait_state(State.DISCONNECTED)
                lost_at = trio.current_time()
                await conn.wait_ready()
                waits.append(trio.current_time() - lost_at)
                assert conn.close_info == trio_nova.CloseInfo(code, "back soon", True, 1)
    assert waits == pytest.approx([0.0, 0.6, 1.998])
    told = [(record.levelno, record.getMessage()) for record in caplog.records if "next try in" in record.getMessage()]
    assert [level for level, _ in told] == [logging.INFO] * 3
    assert all(f"link 1 lost ({code} back soon)" in message for _, message in told)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert not [record for record in caplog.records if record.exc_info]


SENDABLE = [*range(1000, 1004), *range(1007, 1015), *range(3000, 3020), *range(3100, 5000, 97), 4004, 4009, 4014, 4400]


@pytest.mark.fault("F93", where="memory")
async def test_every_close_code_does_what_its_table_says(autojump_clock: MockClock) -> None:
    for code in SENDABLE:

        async def close(peer: Peer, code: int = code) -> None:
            await peer.accept()
            await peer.close(code)

        lost: LinkLost | None = None
        async with ScriptedServer(close, then=echo) as server:
            with trio.move_on_after(60.0), suppress(trio_nova.AuthFailed):
                try:
                    async with open_connection(URL, stream_factory=server.stream_factory, backoff=AT_ONCE):
                        await trio.sleep_forever()
                except LinkLost as error:
                    lost = error
        fatal = of_close_code(code) is Disposition.FATAL
        assert (lost is not None) == fatal
        assert len(server.dials) == (1 if fatal else 2)
        assert lost is None or (lost.code, lost.remote) == (code, True)
