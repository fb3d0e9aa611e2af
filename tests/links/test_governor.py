"""One dial at a time to each address, whichever address that turns out to be."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import ConnectGovernor, ConnectionHandler, ConnectionInfo, RollingWindow, open_connection
from trio_nova.testing import MemoryStream, Peer, ScriptedServer, echo

URL = "ws://front.test/"


@attrs.define(eq=False)
class Elsewhere(ConnectionHandler):
    """Sends every session to the same server behind the front."""

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, url="ws://back.test/")


async def test_sessions_that_a_hook_sends_to_one_address_dial_it_one_after_the_other(
    autojump_clock: trio.abc.Clock,
) -> None:
    dialling: list[int] = []

    async def slow(peer: Peer) -> None:
        dialling.append(1)
        assert len(dialling) == 1
        await trio.sleep(3.0)
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

    governor, ready_at = ConnectGovernor(), list[float]()
    async with ScriptedServer(then=slow) as server:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for url in (URL, "ws://other.test/", "ws://back.test/"):
                nursery.start_soon(hold, url)
    assert sorted(ready_at) == [3.0, 6.0, 9.0]
    assert {dial.host for dial in server.dials} == {"back.test"}


async def test_who_is_sent_elsewhere_does_not_keep_others_from_where_it_came(autojump_clock: trio.abc.Clock) -> None:
    governor = ConnectGovernor([RollingWindow(10, 1.0)])
    async with governor.turn("back.test"), trio.open_nursery() as nursery:

        async def go_back() -> None:
            async with governor.turn("front.test") as turn:
                await turn.begin("back.test")

        nursery.start_soon(go_back)
        await wait_all_tasks_blocked()
        with trio.fail_after(1.0):
            async with governor.turn("front.test"):
                pass
        nursery.cancel_scope.cancel()
    with trio.fail_after(1.0):
        async with governor.turn("back.test") as turn:
            turn.release()
            turn.release()


async def test_a_dial_that_had_to_wait_for_its_address_counts_from_when_it_begins(
    autojump_clock: trio.abc.Clock,
) -> None:
    governor, started = ConnectGovernor([RollingWindow(2, 10.0)]), trio.current_time()
    began: list[float] = []

    async def go_back() -> None:
        async with governor.turn("front.test") as turn:
            await turn.begin("back.test")
            began.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        async with governor.turn("back.test") as turn:
            await turn.begin("back.test")
            nursery.start_soon(go_back)
            await trio.sleep(5.0)
        for _ in range(2):
            async with governor.turn("other.test") as turn:
                await turn.begin("other.test")
                began.append(trio.current_time() - started)
    assert began == pytest.approx([5.0, 10.0, 15.0])


async def test_a_retry_that_waits_for_its_pace_keeps_no_first_dial_from_the_reserve(
    autojump_clock: trio.abc.Clock,
) -> None:
    governor = ConnectGovernor([RollingWindow(10, 3600.0)], reserve=0.6)
    started = trio.current_time()

    async def dial(*, retry: bool) -> float:
        async with governor.turn("server.test", retry=retry) as turn:
            await turn.begin("server.test")
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


async def test_a_dial_counts_from_when_it_begins_and_not_at_all_where_it_never_does(
    autojump_clock: trio.abc.Clock,
) -> None:
    governor, started = ConnectGovernor([RollingWindow(2, 10.0)]), trio.current_time()
    began: list[float] = []

    async def prepare_and_dial(address: str, seconds: float) -> None:
        async with governor.turn(address) as turn:
            await trio.sleep(seconds)
            if address != "nowhere.test":
                await turn.begin(address)
                began.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        for address, seconds in (("nowhere.test", 1.0), ("a.test", 2.0), ("b.test", 4.0), ("c.test", 6.0)):
            nursery.start_soon(prepare_and_dial, address, seconds)
    assert began == pytest.approx([2.0, 4.0, 12.0])


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
            async with governor.turn("server.test", retry=True) as turn:
                await turn.begin("server.test")
