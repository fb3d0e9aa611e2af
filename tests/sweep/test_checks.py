"""The sweep sees what it is there to see: sessions with a fault planted in them do not pass."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.sweep.calls import CALLS
from tests.sweep.points import TWINS, Point, lanes_of, play, points
from trio_nova import Connection, LinkLost, OutcomeUnknown, Receiver
from trio_nova._link_tasks import LinkTasks
from trio_nova._outbound import Outbound
from trio_nova._requests import Requests

WIRE = "fast/wire"
RECEIVE = Receiver.receive
DRAIN = Connection.drain


async def receive_and_look_around(self: Receiver[Any]) -> Any:
    message = await RECEIVE(self)
    await trio.lowlevel.checkpoint()
    return message


async def send_without_waiting(self: Outbound, frame: Any, *rest: Any) -> None:
    await trio.lowlevel.checkpoint()
    self.post(frame, lambda outgoing, error: None, *rest)


async def send_in_the_callers_task(self: Outbound, frame: Any, *rest: Any) -> None:
    link: Any = self.link
    try:
        await link.send_all([frame])
    except trio.Cancelled:
        link._mute = False
        raise
    except LinkLost as lost:
        raise OutcomeUnknown("the link was lost while it was being written") from lost


async def do_nothing(*args: Any) -> None:
    await trio.lowlevel.checkpoint()


async def drain_for_ever(self: Connection) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(0.1)
    await DRAIN(self)


async def wait_ready_with_a_task(self: Connection) -> None:
    trio.lowlevel.spawn_system_task(trio.sleep_forever)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("whose", "name", "mutant", "call", "lane", "twin"),
    [
        (Receiver, "receive", receive_and_look_around, "receive", WIRE, "cancel"),
        (Outbound, "send", send_without_waiting, "send_text, three in a row", WIRE, "break: OSError"),
        (Outbound, "send", send_in_the_callers_task, "send_text", "sliced/wire", "cancel"),
        (Requests, "link_lost", lambda *_: None, "request", WIRE, "cut: FIN"),
        (LinkTasks, "_take_the_rest", do_nothing, "reconnect", WIRE, "cancel"),
        (Connection, "drain", drain_for_ever, "drain", WIRE, "cancel"),
        (Connection, "wait_ready", wait_ready_with_a_task, "wait_ready", WIRE, "cancel"),
    ],
    ids=[
        "a cancelled receive loses",
        "acknowledged before it is written",
        "half a frame",
        "a question without an end",
        "lost by a reconnect",
        "deaf to being cancelled",
        "a task is left",
    ],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, whose: type, name: str, mutant: Any, call: str, lane: str, twin: str
) -> None:
    monkeypatch.setattr(whose, name, mutant)
    with pytest.raises((Exception, BaseExceptionGroup)) as found:
        list(points(call, lane, twin))
    assert f"{call!r} on {lane}, {twin}" in str(found.value.__notes__)


def test_a_point_is_counted_only_where_the_fault_came() -> None:
    injection = play(Point("aclose", WIRE, "cancel", 4_000))
    assert injection.exhausted
    assert not injection.fired


def test_the_same_point_is_the_same_run() -> None:
    first, second = (play(Point("subscribe, entering", "sliced/wire", "cut: FIN", 2, seed=7)) for _ in range(2))
    assert first.fired
    assert (first.moments, first.fired_at) == (second.moments, second.fired_at)


def test_every_call_has_points_of_every_kind() -> None:
    assert len(CALLS) >= 48
    assert {lane for twin in TWINS for lane in lanes_of(twin)} == set(lanes_of("cancel"))
