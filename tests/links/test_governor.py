"""One dial at a time to each address, whichever address that turns out to be."""

from __future__ import annotations

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import ConnectGovernor, ConnectionHandler, ConnectionInfo, RollingWindow, open_connection
from trio_nova.testing import Peer, ScriptedServer

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
                await turn.move("back.test")

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
