"""Turns to dial an address: how many at once, what is waited for and how long, and what was agreed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    ConnectFailed,
    ConnectGovernor,
    ConnectionHandler,
    ConnectionInfo,
    ConnectTimeout,
    DialQueued,
    DialStarted,
    HandshakeRejected,
    ListBackoff,
    LoggingHandler,
    Observation,
    RollingWindow,
    State,
    open_connection,
)
from trio_nova.links import Dial, Link, Transport
from trio_nova.testing import HangDial, MemoryStream, Peer, ScriptedServer, echo

URL = "ws://front.test/"


@attrs.define(eq=False)
class Elsewhere(ConnectionHandler):
    """Sends every session to the same server behind the front."""

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, url="ws://back.test/")


@attrs.define(eq=False)
class Noted(LoggingHandler):
    """Keeps what is told of dials."""

    told: list[Observation] = attrs.field(factory=list)

    def log_connection_event(self, observation: Observation) -> None:
        if isinstance(observation.event, DialQueued | DialStarted):
            self.told.append(observation)


async def upgrade_slowly(peer: Peer) -> None:
    await trio.sleep(0.2)
    await peer.accept()
    await peer.serve_until_closed()


async def accept_and_say_nothing(peer: Peer) -> None:
    await trio.sleep_forever()


# --------------------------------------------------------------------------- how many at once


@pytest.mark.parametrize(("sessions", "within"), [(50, 0.2), (100, 0.2), (150, 0.4)])
async def test_a_crowd_of_first_dials_is_up_as_soon_as_the_service_answers_them(
    autojump_clock: trio.abc.Clock, transport: Transport, sessions: int, within: float
) -> None:
    async def hold() -> None:
        async with open_connection(URL, stream_factory=server.stream_factory, transport=transport):
            up.append(trio.current_time() - started)
            await trio.sleep_until(started + 10.0)

    up: list[float] = []
    async with ScriptedServer(then=upgrade_slowly) as server, trio.open_nursery() as nursery:
        started = trio.current_time()
        for _ in range(sessions):
            nursery.start_soon(hold)
    assert len(up) == sessions
    assert max(up) == pytest.approx(within)


@pytest.mark.parametrize("at_once", [500, 5, 1])
async def test_forty_sessions_at_a_mute_address_each_fail_at_their_own_connect_timeout(
    autojump_clock: trio.abc.Clock, transport: Transport, at_once: int
) -> None:
    async def dial(connect_timeout: float) -> None:
        with pytest.raises(ConnectTimeout) as caught:
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                transport=transport,
                governor=governor,
                connect_timeout=connect_timeout,
            ):
                pass
        assert trio.current_time() - started == pytest.approx(connect_timeout)
        phases[caught.value.phase] += 1

    governor, phases = ConnectGovernor(at_once=at_once), Counter[str | None]()
    async with ScriptedServer(then=accept_and_say_nothing) as server, trio.open_nursery() as nursery:
        started = trio.current_time()
        for number in range(40):
            nursery.start_soon(dial, 5.0 + number / 8)
    assert phases.total() == 40
    assert set(phases) == ({"http"} if at_once == 500 else {"http", "turn"})


async def test_who_had_no_turn_is_told_which_dials_stood_in_its_way(autojump_clock: trio.abc.Clock) -> None:
    governor = ConnectGovernor(at_once=2)
    with pytest.raises(ConnectFailed):
        async with governor.turn("server.test:80"):
            raise ConnectFailed("no", phase="tcp")
    async with governor.turn("server.test:80", by="ann"), trio.open_nursery() as nursery:

        async def hang(name: str) -> None:
            async with governor.turn("server.test:80", by=name):
                await trio.sleep_forever()

        await trio.sleep(0.25)
        nursery.start_soon(hang, "bob")
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectTimeout) as caught:
            async with governor.turn("server.test:80", within=0.5):
                pass
        nursery.cancel_scope.cancel()
    assert caught.value.phase == "turn"
    assert str(caught.value) == (
        "no turn to dial server.test:80 within 0.5 s: 2 dials are under way, of ann for 0.75 s, bob for 0.5 s"
    )


async def test_a_dial_that_has_been_under_way_for_a_second_keeps_nobody_waiting(
    autojump_clock: trio.abc.Clock,
) -> None:
    began: list[float] = []

    async def hang() -> None:
        async with governor.turn("server.test:80"):
            began.append(trio.current_time() - started)
            await trio.sleep_forever()

    governor, started = ConnectGovernor(at_once=2), trio.current_time()
    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(hang)
    assert began == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0])


async def test_dials_that_fail_make_room_for_fewer_and_those_that_succeed_for_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    healthy = False
    most = 0

    async def dial() -> None:
        nonlocal most
        try:
            async with governor.turn("server.test:80") as turn:
                most = max(most, turn.under_way)
                await trio.sleep(0.1)
                if not healthy:
                    raise HandshakeRejected(503)
                turn.release()
        except HandshakeRejected:
            pass

    async def dial_all(number: int) -> float:
        nonlocal most
        began, most = trio.current_time(), 0
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                nursery.start_soon(dial)
        return trio.current_time() - began

    governor = ConnectGovernor(at_once=16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial_all, 26)  # sixteen, and then one after the other
        await trio.sleep(0.95)
        assert most == 16
        healthy = True
        # The next two find room one after the other, then two at once, three or four...
        assert await dial_all(40) <= 1.3
        assert most == 16
    assert not governor._lines


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_answer_that_is_final_makes_no_room_for_fewer(autojump_clock: trio.abc.Clock, status: int) -> None:
    """The service is well; it is the question that is wrong, and who asks gives up."""

    async def dial() -> None:
        with pytest.raises(HandshakeRejected):
            async with open_connection(URL, stream_factory=server.stream_factory, governor=governor):
                pass

    async def refuse(peer: Peer) -> None:
        await trio.sleep(0.2)
        await peer.reject(status)

    governor, started = ConnectGovernor(at_once=25), trio.current_time()
    async with ScriptedServer(then=refuse) as server, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(dial)
    assert trio.current_time() - started == pytest.approx(0.8)


async def test_dials_to_other_addresses_do_not_wait_for_each_other(autojump_clock: trio.abc.Clock) -> None:
    governor = ConnectGovernor(at_once=1)
    async with governor.turn("a.test:80"):
        assert governor.turn("a.test:80").must_wait
        assert not governor.turn("b.test:80").must_wait
        with trio.fail_after(0.5):
            async with governor.turn("b.test:80") as turn:
                turn.release()
                turn.release()
                assert not governor.turn("b.test:80").must_wait
    assert not governor._lines


@pytest.mark.parametrize("when", ["waiting", "dialling"])
async def test_who_leaves_gives_its_place_up(autojump_clock: trio.abc.Clock, when: str) -> None:
    async def dial(scope: trio.CancelScope, name: str) -> None:
        with scope:
            async with governor.turn("server.test:80"):
                order.append(name)
                await trio.sleep(0.5)

    governor, order = ConnectGovernor(at_once=1), list[str]()
    scopes = {name: trio.CancelScope() for name in "abc"}
    async with trio.open_nursery() as nursery:
        for name, scope in scopes.items():
            nursery.start_soon(dial, scope, name)
            await wait_all_tasks_blocked()
        scopes["b" if when == "waiting" else "a"].cancel()
    assert order == (["a", "c"] if when == "waiting" else ["a", "b", "c"])
    assert not governor._lines


# --------------------------------------------------------------------------- what is asked before


@pytest.mark.parametrize("first", ["cancelled", "released"])
async def test_a_place_that_falls_to_one_who_leaves_in_that_instant_falls_to_the_next(
    autojump_clock: trio.abc.Clock, first: str
) -> None:
    dialled: list[str] = []
    leaving = trio.CancelScope()

    async def dial(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with governor.turn("server.test:80"):
                await trio.lowlevel.checkpoint()
                dialled.append(name)

    governor, started = ConnectGovernor(at_once=1), trio.current_time()
    async with trio.open_nursery() as nursery:
        async with governor.turn("server.test:80") as turn:
            for name, scope in (("ann", leaving), ("bob", trio.CancelScope())):
                nursery.start_soon(dial, name, scope)
                await wait_all_tasks_blocked()
            if first == "cancelled":
                leaving.cancel()
            turn.release()
            leaving.cancel()
    assert dialled == ["bob"]
    assert trio.current_time() == started


async def test_sessions_that_a_hook_sends_to_one_address_wait_for_their_turns_there(
    autojump_clock: trio.abc.Clock,
) -> None:
    dialling: list[int] = []

    async def slow(peer: Peer) -> None:
        dialling.append(1)
        assert len(dialling) == 1
        await trio.sleep(0.75)
        dialling.pop()
        await peer.accept()
        await peer.serve_until_closed()

    async def hold(url: str) -> None:
        async with open_connection(
            url,
            stream_factory=server.stream_factory,
            connection_handler=Elsewhere(),
            governor=governor,
            connect_timeout=5.0,
        ):
            ready_at.append(trio.current_time() - started)

    governor, ready_at = ConnectGovernor(at_once=1), list[float]()
    async with ScriptedServer(then=slow) as server:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for url in (URL, "ws://other.test/", "ws://back.test/"):
                nursery.start_soon(hold, url)
    assert sorted(ready_at) == [0.75, 1.5, 2.25]
    assert {dial.host for dial in server.dials} == {"back.test"}


@pytest.mark.parametrize("at_once", [500, 1])
async def test_providers_of_headers_are_asked_side_by_side_before_the_turn(
    autojump_clock: trio.abc.Clock, transport: Transport, at_once: int
) -> None:
    async def ask() -> Mapping[str, str]:
        await trio.sleep(1.0)
        return {"X-Desk": "4"}

    async def hold() -> None:
        async with open_connection(
            URL, headers=ask, stream_factory=server.stream_factory, transport=transport, governor=governor
        ):
            up.append(trio.current_time() - started)

    governor, up = ConnectGovernor(at_once=at_once), list[float]()
    async with ScriptedServer(then=echo) as server, trio.open_nursery() as nursery:
        started = trio.current_time()
        for _ in range(20):
            nursery.start_soon(hold)
    assert up == pytest.approx([1.0] * 20)


async def test_a_provider_may_itself_open_a_session_to_the_same_address(autojump_clock: trio.abc.Clock) -> None:
    async def ask() -> Mapping[str, str]:
        async with open_connection(URL, stream_factory=server.stream_factory, governor=governor) as office:
            await office.send("which desk?")
            return {"X-Desk": str(await office.receive())}

    governor = ConnectGovernor(at_once=1)
    async with ScriptedServer(then=echo) as server:
        with trio.fail_after(1.0):
            async with open_connection(URL, headers=ask, stream_factory=server.stream_factory, governor=governor):
                pass
    assert server.dials[1].request is not None
    assert server.dials[1].request.headers["x-desk"] == "which desk?"


@attrs.frozen
class Preparing:
    """A transport that takes a second before a dial, and tells whether the turn had been taken by then."""

    governor: ConnectGovernor
    transport: Transport

    async def prepare(self, dial: Dial) -> Dial:
        assert not self.governor._lines
        await trio.sleep(1.0)
        return dial

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        assert self.governor._lines
        return self.transport.open(dial)


async def test_a_transport_prepares_a_dial_before_the_turn(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    governor, started = ConnectGovernor(), trio.current_time()
    async with ScriptedServer(then=echo) as server:
        async with open_connection(
            URL, stream_factory=server.stream_factory, governor=governor, transport=Preparing(governor, transport)
        ):
            assert trio.current_time() - started == pytest.approx(1.0)


async def test_what_is_asked_before_and_the_wait_for_the_turn_count_in_the_connect_timeout(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def ask() -> Mapping[str, str]:
        await trio.sleep(2.0)
        return {}

    governor, started = ConnectGovernor(at_once=1), trio.current_time()
    async with ScriptedServer(then=HangDial()) as server, governor.turn("front.test"):
        with pytest.raises(ConnectTimeout) as caught:
            # Two seconds of asking; then it dials, as the other one hangs, and has one second left.
            async with open_connection(
                URL, headers=ask, stream_factory=server.stream_factory, governor=governor, connect_timeout=3.0
            ):
                pass
    assert caught.value.phase == "tcp"
    assert trio.current_time() - started == pytest.approx(3.0)


# --------------------------------------------------------------------------- what is told


async def test_a_session_that_waits_for_its_turn_says_so(autojump_clock: trio.abc.Clock) -> None:
    async def hold(log: Noted) -> None:
        async with open_connection(
            f"{URL}?token=secret",
            stream_factory=server.stream_factory,
            governor=governor,
            logging_handler=log,
            allow_plaintext_credentials=True,
        ):
            pass

    governor, logs = ConnectGovernor(at_once=1), [Noted(), Noted()]
    async with ScriptedServer(then=upgrade_slowly) as server, trio.open_nursery() as nursery:
        started = trio.current_time()
        for log in logs:
            nursery.start_soon(hold, log)
            await wait_all_tasks_blocked()
    [alone], [queued, began] = logs[0].told, logs[1].told
    assert isinstance(alone.event, DialStarted)
    assert isinstance(queued.event, DialQueued)
    assert queued.event.under_way == 1
    assert queued.at == pytest.approx(started)
    assert isinstance(began.event, DialStarted)
    assert began.at == pytest.approx(started + 0.2)
    assert "secret" not in queued.event.url


# --------------------------------------------------------------------------- redials


async def test_redials_after_a_common_loss_are_paced_and_first_dials_are_not(autojump_clock: trio.abc.Clock) -> None:
    async def live(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep_until(dropped_at)
        await peer.drop()

    async def hold() -> None:
        async with open_connection(
            URL, stream_factory=server.stream_factory, backoff=ListBackoff([0.0]), governor=governor
        ) as conn:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()

    governor, started = ConnectGovernor(), trio.current_time()
    dropped_at = started + 5.0
    async with ScriptedServer(*[live] * 60, then=echo) as server, trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(hold)
    first, again = server.dials[:60], server.dials[60:]
    assert {dialled.at for dialled in first} == {started}
    returns = [dialled.at - dropped_at for dialled in again]
    assert len([at for at in returns if at < 0.1]) <= 40
    assert max(returns) == pytest.approx(40 / 200.0, abs=0.01)  # twenty at once, and 200 a second


# --------------------------------------------------------------------------- what was agreed on


async def test_a_dial_that_had_to_wait_for_its_address_counts_from_when_it_begins(
    autojump_clock: trio.abc.Clock,
) -> None:
    governor, started = ConnectGovernor([RollingWindow(2, 10.0)], at_once=1), trio.current_time()
    began: list[float] = []

    async def dial_in_turn() -> None:
        async with governor.turn("back.test"):
            began.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        async with governor.turn("back.test"):
            nursery.start_soon(dial_in_turn)
            await trio.sleep(0.5)
        await wait_all_tasks_blocked()
        for _ in range(2):
            async with governor.turn("other.test"):
                began.append(trio.current_time() - started)
    assert began == pytest.approx([0.5, 10.0, 10.5])


async def test_what_the_limits_ask_for_is_waited_for_however_long(autojump_clock: trio.abc.Clock) -> None:
    governor = ConnectGovernor([RollingWindow(1, 3600.0)])
    for at in (0.0, 3600.0, 7200.0):
        async with ScriptedServer(then=echo) as server:
            async with open_connection(
                URL, stream_factory=server.stream_factory, governor=governor, connect_timeout=5.0
            ):
                pass
        assert server.dials[0].at == pytest.approx(at)


async def test_a_retry_that_waits_for_its_pace_keeps_no_first_dial_from_the_reserve(
    autojump_clock: trio.abc.Clock,
) -> None:
    governor = ConnectGovernor([RollingWindow(10, 3600.0)], reserve=0.6)
    started = trio.current_time()

    async def dial(*, retry: bool) -> float:
        async with governor.turn("server.test", retry=retry):
            return trio.current_time() - started

    assert [await dial(retry=True) for _ in range(2)] == [0.0, 0.0]
    async with trio.open_nursery() as nursery:

        async def dial_again() -> None:
            # Half of its four at once, the rest evenly over the hour.
            assert await dial(retry=True) == pytest.approx(1200.0)

        nursery.start_soon(dial_again)
        await wait_all_tasks_blocked()
        assert [await dial(retry=False) for _ in range(7)] == [0.0] * 7
    assert await dial(retry=False) == pytest.approx(3600.0)


async def test_what_takes_its_time_before_a_dial_brings_no_dials_closer_together(
    autojump_clock: trio.abc.Clock,
) -> None:
    prepared: dict[str, float] = {"a.test": 9.0, "b.test": 0.0, "c.test": 0.0}
    dials: list[float] = []

    async def hold(name: str) -> None:
        async def ask() -> dict[str, str]:
            await trio.sleep(prepared[name])
            return {"X-From": name}

        async def dial(host: str, port: int) -> MemoryStream:
            dials.append(trio.current_time() - started)
            return await server.stream_factory(host, port)

        async with open_connection(f"ws://{name}/", headers=ask, stream_factory=dial, governor=governor):
            pass

    governor, started = ConnectGovernor([RollingWindow(2, 10.0)]), trio.current_time()
    async with ScriptedServer(then=echo) as server, trio.open_nursery() as nursery:
        nursery.start_soon(hold, "a.test")
        await trio.sleep(8.0)
        nursery.start_soon(hold, "b.test")
        await trio.sleep(3.0)
        nursery.start_soon(hold, "c.test")  # the first of two dials in ten seconds was at 8
    assert dials == pytest.approx([8.0, 9.0, 18.0])


@pytest.mark.parametrize("reserve", [0.0, 1.0])
async def test_retries_never_stop_however_much_is_reserved(autojump_clock: trio.abc.Clock, reserve: float) -> None:
    governor = ConnectGovernor([RollingWindow(4, 60.0)], reserve=reserve)
    for _ in range(20):
        with trio.fail_after(61.0):
            async with governor.turn("server.test", retry=True):
                pass
