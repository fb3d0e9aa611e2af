"""Two links of one session at once, as while one takes the place of the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    AuthFailed,
    Connection,
    Data,
    Feed,
    FeedOptions,
    Gap,
    JsonCodec,
    NotSent,
    OutcomeUnknown,
    RequestResolved,
    State,
    SubscriptionHandler,
    Tracker,
    open_connection,
)
from trio_nova.core.link import LinkState
from trio_nova.testing import Disconnected, Peer, ScriptedServer

URL = "ws://server.test/"
PHASES = ("authenticating", "restoring", "ready")
CHANNELS = ["first", "second"]


class Numbered(SubscriptionHandler):
    """The messages of "second" are numbered, those of "first" are not."""

    def tracker(self, channel: Any) -> Tracker | None:
        return Tracker() if channel.name == "second" else None

    def read(self, message: Any) -> Data | None:
        match message:
            case {"channel": "second", "n": number}:
                return Data("second", message, number)
            case _:
                return None


@attrs.define(eq=False)
class Line:
    """The service's side of one link."""

    peer: Peer
    asked: list[dict[str, Any]] = attrs.field(factory=list)
    held: list[dict[str, Any]] = attrs.field(factory=list)
    """Answers that wait to be let go."""
    holds: str = ""
    """What of the setup it does not answer: "auth", "subscribe" or nothing."""

    async def take(self, message: dict[str, Any]) -> None:
        self.asked.append(message)
        match message:
            case {"type": "auth"}:
                await self._answer("auth", {"type": "auth_success"})
            case {"type": "subscribe", "channel": channel}:
                await self._answer("subscribe", {"type": "subscribed", "channel": channel})
            case {"question": question, "id": id}:
                self.held.append({"id": id, "result": question})
            case _:
                pass

    async def _answer(self, step: str, answer: dict[str, Any]) -> None:
        if step != self.holds:
            await self.peer.send_json(answer)

    async def answer_all(self) -> None:
        held, self.held = self.held, []
        for answer in held:
            await self.peer.send_json(answer)


class Slow:
    """Answers the first link at once, and the second no further than `phase`."""

    def __init__(self, phase: str) -> None:
        self.links: list[Line] = []
        self._phase = phase

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        holds = {"authenticating": "auth", "restoring": "subscribe", "ready": ""}[self._phase]
        line = Line(peer, holds=holds if self.links else "")
        self.links.append(line)
        with suppress(Disconnected):
            while isinstance(frame := await peer.receive(), str):
                await line.take(json.loads(frame))


class Stage:
    """A session with one link that is ready, and a second one beside it."""

    def __init__(self, service: Slow, conn: Connection, block: Any, nursery: trio.Nursery) -> None:
        self.service, self.conn, self.nursery = service, conn, nursery
        self._dial: Callable[[], Any] = block.supervisor.dial_and_hold

    async def open_second(self, phase: str) -> None:
        """Bring a second link as far as this."""
        self.nursery.start_soon(self._dial)
        await wait_all_tasks_blocked()
        assert [link.life.state for link in self.links] == [LinkState.READY, LinkState(phase)]

    @property
    def links(self) -> list[Any]:
        return self.conn._session.links

    async def say(self, number: int, *lines: int) -> None:
        """Let these links bring a message of each channel."""
        for line in lines:
            for channel in CHANNELS:
                await self.service.links[line].peer.send_json({"channel": channel, "n": number})
        await wait_all_tasks_blocked()


def heard(feed: Feed[Any]) -> list[Any]:
    """Return what waits in a feed: numbers, and the outcome of each gap."""
    found: list[Any] = []
    with suppress(trio.WouldBlock):
        while True:
            item = feed.receive_nowait()
            found.append(item.outcome if isinstance(item, Gap) else item["n"])
    return found


def options(server: ScriptedServer) -> dict[str, Any]:
    return {
        "stream_factory": server.stream_factory,
        "codec": JsonCodec(),
        "subscription_handler": Numbered(),
        "credentials": "a token",
        "allow_plaintext_credentials": True,
        "auth_timeout": 1000.0,
        "subscription_timeout": 1000.0,
        "ping_interval": 1000.0,
    }


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("loses", ["first", "second"])
async def test_either_of_two_links_may_be_lost_in_each_phase_of_the_second(
    autojump_clock: trio.abc.Clock, phase: str, loses: str
) -> None:
    service = Slow(phase)
    async with ScriptedServer(*[service] * 8) as server, trio.open_nursery() as nursery:
        block = open_connection(URL, **options(server))
        async with (
            block as conn,
            conn.subscribe("first", feed=FeedOptions(notices=True)) as plain,
            conn.subscribe("second", feed=FeedOptions(notices=True)) as numbered,
            conn.listen() as events,
        ):
            stage = Stage(service, conn, block, nursery)
            await stage.say(1, 0)
            await stage.open_second(phase)
            assert (conn.state, conn.epoch) == (State.READY, 1)
            outcomes: list[Any] = []

            async def ask(question: str) -> None:
                try:
                    outcomes.append((await conn.request({"question": question}))["result"])
                except (NotSent, OutcomeUnknown) as error:
                    outcomes.append(type(error))

            nursery.start_soon(ask, "on the first")
            await stage.say(2, 0, 1)
            assert heard(plain) == [1, 2]  # of the first link: nobody can tell what both bring
            assert heard(numbered) == [1, 2]  # of either
            assert [each["question"] for each in service.links[0].asked if "question" in each] == ["on the first"]

            lost, left = (0, 1) if loses == "first" else (1, 0)
            await service.links[lost].peer.reset()
            await wait_all_tasks_blocked()
            if loses == "second":
                assert (conn.state, conn.epoch, len(stage.links)) == (State.READY, 1, 1)
                assert outcomes == []
                await service.links[0].answer_all()
            else:
                assert (conn.state, conn.epoch, len(stage.links)) == (State(phase), 2, 1)
                assert outcomes == [OutcomeUnknown]
                line = service.links[1]
                line.holds = ""
                if phase == "authenticating":
                    await line.peer.send_json({"type": "auth_success"})
                elif phase == "restoring":
                    for channel in CHANNELS:
                        await line.peer.send_json({"type": "subscribed", "channel": channel})
                await conn.wait_ready()
            nursery.start_soon(ask, "on the one that is left")
            await wait_all_tasks_blocked()
            await service.links[left].answer_all()
            await stage.say(3, left)
            await stage.say(4, left)
            expected = "on the first" if loses == "second" else OutcomeUnknown
            assert outcomes == [expected, "on the one that is left"]
            assert heard(plain) == ([3, 4] if loses == "second" else ["unknown", 3, 4])
            assert heard(numbered)[-2:] == [3, 4]
            assert conn.epoch == left + 1
            statistics = conn.statistics()
            assert (statistics.dials, statistics.links) == (2, 2)
            asked = [each["channel"] for each in service.links[1].asked if each.get("type") == "subscribe"]
            assert asked == ([] if (loses, phase) == ("second", "authenticating") else CHANNELS)
            told = await events.observations().receive_batch()
            resolved = {each.epoch for each in told if isinstance(each.event, RequestResolved)}
            logged_in = set() if (loses, phase) == ("second", "authenticating") else {2}
            assert resolved == ({1} if loses == "second" else set()) | logged_in


async def test_a_gap_stands_before_what_a_link_brings_that_takes_over_while_it_is_set_up(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Slow("restoring")
    async with ScriptedServer(*[service] * 2) as server, trio.open_nursery() as nursery:
        block = open_connection(URL, **options(server))
        async with (
            block as conn,
            conn.subscribe("first", feed=FeedOptions(notices=True)) as plain,
            conn.subscribe("second"),
        ):
            stage = Stage(service, conn, block, nursery)
            await stage.say(1, 0)
            await stage.open_second("restoring")
            await service.links[1].peer.send_json({"type": "subscribed", "channel": "first"})
            await stage.say(2, 1)
            assert heard(plain) == [1]
            await service.links[0].peer.reset()
            await wait_all_tasks_blocked()
            await stage.say(3, 1)
            assert heard(plain) == ["unknown", 3]


async def test_who_waits_for_a_confirmation_is_woken_where_the_link_that_has_it_takes_over(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Slow("ready")
    async with ScriptedServer(*[service] * 2) as server, trio.open_nursery() as nursery:
        block = open_connection(URL, **options(server))
        async with block as conn:
            stage = Stage(service, conn, block, nursery)
            await stage.open_second("ready")
            service.links[0].holds = "subscribe"

            @nursery.start_soon
            async def subscribe() -> None:
                with trio.fail_after(1.0):
                    async with conn.subscribe("first"):
                        assert conn.epoch == 2

            await wait_all_tasks_blocked()
            assert dict(conn.subscriptions()) == {"first": "requested"}
            await service.links[0].peer.reset()
            await wait_all_tasks_blocked()
            assert dict(conn.subscriptions()) == {}


async def test_what_a_link_still_brings_is_not_heard_where_another_has_taken_over(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Slow("ready")
    async with ScriptedServer(*[service] * 2) as server, trio.open_nursery() as nursery:
        block = open_connection(URL, **options(server))
        async with block as conn, conn.subscribe("first", feed=FeedOptions(notices=True)) as plain:
            stage = Stage(service, conn, block, nursery)
            await stage.say(1, 0)
            await stage.open_second("ready")
            async with conn.paused():
                await stage.say(2, 0, 1)
                stage.links[0].life.give_up(AuthFailed("its grant has expired"))
                await trio.sleep(10.0)
            await stage.say(3, 1)
            assert heard(plain) == [1, "unknown", 2, 3]


async def test_a_message_for_one_of_two_links_never_leaves_on_the_other(autojump_clock: trio.abc.Clock) -> None:
    service = Slow("ready")
    async with ScriptedServer(*[service] * 2) as server, trio.open_nursery() as nursery:
        block = open_connection(URL, **options(server))
        async with block as conn:
            stage = Stage(service, conn, block, nursery)
            await stage.open_second("ready")
            with pytest.raises(NotSent, match="the link that it was for"):
                await conn.send({"to": "second"}, epoch=2)
            await conn.send({"to": "first"}, epoch=1)
            await wait_all_tasks_blocked()
            assert [line.asked[-1] == {"to": "first"} for line in service.links] == [True, False]
            assert {"to": "second"} not in service.links[0].asked
            await conn.aclose()
