"""A trace of states: what it keeps of one and of several sessions, with what causes, and what it exports."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    ConfigError,
    LinkClosed,
    LinkLost,
    ListBackoff,
    Observation,
    SessionOver,
    StateChanged,
    StateTrace,
    TracedChange,
    open_connection,
)
from trio_nova.testing import Peer, ScriptedServer, echo

URL = "ws://server.test/"


def connect(server: ScriptedServer, trace: StateTrace, **options: Any) -> trio_nova.ConnectionBlock:
    return open_connection(URL, stream_factory=server.stream_factory, observers=[trace], **options)


def told(trace: StateTrace) -> list[tuple[float, int, str, str]]:
    return [(change.at, change.epoch, change.new, change.cause) for change in trace.changes()]


async def restart(peer: Peer) -> None:
    await peer.accept()
    await trio.sleep(5.0)
    await peer.close(1012, "restart")


async def test_a_trace_tells_each_state_of_a_session_with_when_and_why(autojump_clock: MockClock) -> None:
    trace = StateTrace()
    busy = partial(Peer.reject, status=503)
    async with (
        ScriptedServer(restart, busy, echo) as server,
        connect(server, trace, backoff=ListBackoff([1.0]), wall_clock=lambda: 1_000.0) as conn,
    ):
        await trio.sleep(10.0)
        name = f"server.test[{conn.id}]"
    lost = "link 1 lost (1012 restart), next try in 1 s"
    refused = "HandshakeRejected: server rejected the upgrade with status 503, next try in 1 s"
    assert told(trace) == [
        (0.0, 0, "connecting", ""),
        (0.0, 1, "connected", ""),
        (0.0, 1, "ready", ""),
        (5.0, 1, "disconnected", "link 1 closed (1012 restart) after 5 s"),
        (5.0, 1, "reconnecting", lost),
        (6.0, 1, "connecting", ""),
        (6.0, 1, "disconnected", refused),
        (6.0, 1, "reconnecting", refused),
        (7.0, 1, "connecting", ""),
        (7.0, 2, "connected", ""),
        (7.0, 2, "ready", ""),
        (10.0, 2, "closing", ""),
        (10.0, 2, "closed", "link 2 closed (1000) after 3 s"),
    ]
    changes = trace.changes()
    assert [change.old for change in changes[1:]] == [change.new for change in changes[:-1]]
    assert {(change.session, change.wall) for change in changes} == {(name, 1_000.0)}


async def test_the_last_change_of_a_session_that_fails_says_why(autojump_clock: MockClock) -> None:
    trace = StateTrace()
    async with ScriptedServer(restart) as server:
        with pytest.raises(LinkLost):
            async with connect(server, trace, max_attempts=0):
                await trio.sleep_forever()
    assert told(trace)[-2:] == [
        (5.0, 1, "disconnected", "link 1 closed (1012 restart) after 5 s"),
        (5.0, 1, "failed", "is over: link 1 lost (1012 restart)"),
    ]


async def test_a_session_that_gives_up_and_one_that_is_cancelled_end_their_traces(autojump_clock: MockClock) -> None:
    trace = StateTrace()
    async with ScriptedServer(then=partial(Peer.reject, status=503)) as server:
        with pytest.raises(SessionOver):
            async with connect(server, trace, retry_first_connect=True, max_attempts=2, backoff=ListBackoff([1.0])):
                raise AssertionError("it was entered")
    assert told(trace)[-1][2:] == ("failed", "is over: SessionOver: gave up after 3 failures in a row")
    cancelled = StateTrace()
    async with ScriptedServer(echo) as server:
        with trio.move_on_after(3.0):
            async with connect(server, cancelled):
                await trio.sleep_forever()
    assert told(cancelled)[-1][2] == "closed"


async def test_a_trace_of_two_sessions_tells_them_apart_and_forgets_the_oldest(autojump_clock: MockClock) -> None:
    trace = StateTrace(size=6)
    async with (
        ScriptedServer(then=echo) as server,
        connect(server, trace) as one,
        connect(server, trace) as other,
    ):
        assert [change.new for change in trace.changes(f"server.test[{other.id}]")] == [
            "connecting",
            "connected",
            "ready",
        ]
        await one.aclose()
        assert [change.new for change in trace.changes(f"server.test[{one.id}]")] == ["ready", "closing", "closed"]
        assert trace.dropped == 2
        assert len(trace.changes()) == 6
    assert trace.changes("server.test[0]") == ()


async def test_a_trace_is_exported_as_json_and_can_be_read_back(autojump_clock: MockClock) -> None:
    trace = StateTrace(size=3)
    assert json.loads(trace.export()) == {"dropped": 0, "changes": []}
    async with ScriptedServer(echo) as server, connect(server, trace) as conn:
        await conn.aclose(4000, 'say "why"\u2028')
    read = json.loads(trace.export())
    assert read["dropped"] == 2
    assert tuple(TracedChange(**change) for change in read["changes"]) == trace.changes()
    assert trace.export() == trace.export()


async def test_a_trace_shows_no_secret_that_a_peer_repeats_and_no_escape_code(autojump_clock: MockClock) -> None:
    async def repeat(peer: Peer) -> None:
        await peer.accept()
        await peer.close(4001, "who is swordfish1234\x1b[2J")

    trace = StateTrace()
    async with ScriptedServer(repeat) as server:
        with pytest.raises(LinkLost):
            async with connect(
                server,
                trace,
                headers={"Authorization": "Bearer swordfish1234"},
                max_attempts=0,
                allow_plaintext_credentials=True,
            ):
                await trio.sleep_forever()
    assert "4001 who is ***" in trace.export()
    assert "swordfish" not in trace.export()
    assert "\x1b" not in "".join(change.cause for change in trace.changes())


def test_what_is_kept_of_sessions_that_never_end_their_traces_is_bounded_by_the_size() -> None:
    trace = StateTrace(size=5)
    for number in range(1_000):
        to = ("disconnected", "closing")[number % 2]
        where = Observation(f"server.test[{number}]", 1, 0.0, 0.0, StateChanged(old="ready", new=to))
        trace(where)
        if number % 3:
            trace(attrs.evolve(where, event=LinkClosed(code=1006, reason="", remote=None, duration=1.0)))
    assert len(trace.changes()) == 5
    assert trace.dropped == 995
    assert len(trace._unexplained) <= 5
    assert len(trace._foretold) <= 6
    assert [change.cause for change in trace.changes()] == ["", "", "", "link 1 closed (1006) after 1 s", ""]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_trace_has_room_for_a_whole_number_of_changes(size: Any) -> None:
    with pytest.raises(ConfigError, match="size"):
        StateTrace(size=size)
