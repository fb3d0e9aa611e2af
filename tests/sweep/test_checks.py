"""The sweep sees what it is there to see: sessions with a fault planted in them do not pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio

import trio_nova
from tests.sweep.calls import CALLS
from tests.sweep.points import TWINS, Point, lanes_of, play, points
from trio_nova import Connection, LinkLost, OutcomeUnknown, Receiver
from trio_nova._link.answers import Answers
from trio_nova._link.reader import Reader
from trio_nova._outbound import Outbound
from trio_nova.adapters.jsonrpc import JsonRpcClient

WIRE = "fast/wire"
RECEIVE = Receiver.receive
DRAIN = Connection.drain


async def receive_and_look_around(self: Receiver[Any]) -> Any:
    message = await RECEIVE(self)
    await trio.lowlevel.checkpoint()
    return message


async def send_without_waiting(self: Outbound, frame: Any, *rest: Any) -> None:
    await trio.lowlevel.checkpoint()
    self.post(self.outgoing(frame, *rest))


async def send_in_the_callers_task(self: Outbound, frame: Any, *rest: Any) -> None:
    current = self._session.current
    assert current is not None
    stream: Any = current.stream
    try:
        await stream.send_all([frame])
    except trio.Cancelled:
        stream._mute = False
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
        (Answers, "end", lambda *_: None, "request", WIRE, "cut: FIN"),
        (Reader, "take_the_rest", do_nothing, "reconnect", WIRE, "cancel"),
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


SWEPT = {
    "run_connection": "run_connection, starting",
    "ConnectionBlock.__aenter__": "open_connection, entering",
    "ConnectionBlock.__aexit__": "open_connection, leaving",
    "Connection.__anext__": "iteration",
    "Connection.subscribe": "subscribe, entering",
    "Receiver.receive": "receive, handed over",
    "Receiver.receive_batch": "receive_batch, handed over",
    "Receiver.__anext__": "iteration, handed over",
    "Listener.receive": "listen",
    "Listener.receive_batch": "listen, in batches",
    "Listener.__anext__": "listen, iteration",
    "Feed.receive": "feed.receive",
    "Feed.receive_batch": "feed.receive_batch",
    "Feed.__anext__": "feed iteration",
    "Client.run": "Client.run, starting",
    "AuthHandler.authenticate": "authenticate",
    "AuthExchange.ask": "authenticate",
    "AuthExchange.request": "authenticate, in steps",
    "AuthExchange.send": "authenticate, in steps",
    "AuthExchange.receive": "open_connection, entering, greeted",
    "Dialect.authenticate": "authenticate",
    "Adapter.authenticate": "authenticate",
    "SubscriptionHandler.prepare": "feed, of a prepared channel",
    "Adapter.prepare": "feed, of a prepared channel",
    "SubscriptionHandler.snapshot": "feed, joined with a snapshot",
    "Adapter.snapshot": "feed, joined with a snapshot",
    "SubscriptionHandler.backfill": "feed, filled",
    "Adapter.backfill": "feed, filled",
    "JsonRpcClient.subscribe": "Client.subscribe, entering",
    "Registry.open_connection": "Registry.open_connection, entering",
}
"""The calls of the sweep whose names do not say what they sweep."""

NOT_SWEPT = {
    "Link": "the sweep breaks it from below; each has the contract of links, and the tests of that",
    "Resolver": "it is the user's",
    "TrioWebsocketTransport": "its `prepare` reads authorities, in a thread; see tests/links/test_authorities.py",
    "WireTransport": "as TrioWebsocketTransport",
    "SystemResolver": "it is a thread's wait, which cannot be broken or cut; see the tests of dialling",
}
"""What else can be awaited, and why it is not swept."""


def awaitables(kinds: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of all that can be awaited of these classes and functions, or entered asynchronously."""
    for name, kind in kinds.items():
        if inspect.iscoroutinefunction(kind):
            yield name
        elif inspect.isclass(kind):
            for member in dir(kind):
                found = inspect.unwrap(getattr(kind, member)) if callable(getattr(kind, member)) else None
                is_public = not member.startswith("_") or member in ("__anext__", "__aenter__", "__aexit__")
                if is_public and (inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)):
                    yield f"{name}.{member}"


def test_all_that_can_be_awaited_is_swept_or_it_is_said_why_not() -> None:
    kinds = {**vars(trio_nova), "JsonRpcClient": JsonRpcClient}
    inherited = {f"JsonRpcClient.{name}" for name in ("aclose", "run")}
    for name in set(awaitables(kinds)) - inherited:
        kind, _, call = name.partition(".")
        if kind in NOT_SWEPT:
            continue
        swept = SWEPT.get(name) or (call if kind == "Connection" else name.replace("JsonRpcClient", "Client"))
        assert swept in CALLS, f"{name} is not swept"
    assert set(SWEPT.values()) <= set(CALLS)


def test_every_call_has_points_of_every_kind() -> None:
    assert {lane for twin in TWINS for lane in lanes_of(twin)} == set(lanes_of("cancel"))
