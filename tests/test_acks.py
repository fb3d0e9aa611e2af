"""Acknowledgements: one for each message, when all who read it are done with it, and for what nobody will read."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import Adapter, Data, FeedOptions, Granted, JsonCodec, Many, Reading, Tracker, open_connection
from trio_nova.handlers import Channel
from trio_nova.testing import Peer, ScriptedServer


class Acking(Adapter):
    """A service whose data want to be acknowledged: `{"to": channel or channels, "n": number}`."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec()}

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"to": channel, "n": n}:
                return Data(channel, n, step=n, ack={"ack": n})
            case {"type": "subscribed", "channel": str(channel)}:
                return Granted(channel)
            case _:
                return Many([])

    def matches(self, filter: str, channel: Hashable) -> bool:
        return filter == channel or (filter.endswith("*") and str(channel).startswith(filter[:-1]))


class Dropping(Acking):
    drops_unclaimed = True


class Counting(Acking):
    resumes = True

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker()


class Service:
    """Grants every channel, and keeps what is acknowledged."""

    def __init__(self) -> None:
        self.acks: list[int] = []
        self.peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        self.peer = peer
        while isinstance(said := await peer.receive(), str):
            match json.loads(said):
                case {"type": "subscribe", "channel": channel}:
                    await peer.send_json({"type": "subscribed", "channel": channel})
                case {"ack": n}:
                    self.acks.append(n)
        await peer.finish()

    async def say(self, to: Any, n: int) -> None:
        """Send data, and wait until all is done that follows from that."""
        assert self.peer is not None
        await self.peer.send_json({"to": to, "n": n})
        await wait_all_tasks_blocked()


def connect(server: ScriptedServer, adapter: type[Adapter] = Acking) -> Any:
    return open_connection(adapter(url="ws://server.test/"), stream_factory=server.stream_factory)


async def test_two_feeds_of_one_channel_acknowledge_together(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a") as one, conn.subscribe("a") as other:
            deliveries, others = one.deliveries(), other.deliveries()
            await service.say("a", 1)
            delivery = await deliveries.receive()
            delivery.ack()
            delivery.ack()  # the first call counts
            await wait_all_tasks_blocked()
            assert service.acks == []
            (await others.receive()).ack()
            await wait_all_tasks_blocked()
            assert service.acks == [1]


async def test_filters_and_feeds_that_share_a_message_acknowledge_it_once(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a*") as one, conn.subscribe("ab") as two, conn.subscribe("ab") as three:
            await service.say("ab", 1)
            for feed in (two, one):
                assert await feed.receive() == 1
                await wait_all_tasks_blocked()
                assert service.acks == []
            assert await three.receive() == 1
            await wait_all_tasks_blocked()
            assert service.acks == [1]


async def test_a_message_of_several_channels_is_acknowledged_once_and_waits_for_none_that_nobody_reads(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a") as one, conn.subscribe("b") as other:
            await service.say(["a", "b", "c"], 1)
            assert await one.receive() == 1
            await wait_all_tasks_blocked()
            assert service.acks == []
            assert await other.receive() == 1
            await wait_all_tasks_blocked()
            assert service.acks == [1]


async def test_a_repetition_is_acknowledged_as_the_service_has_not_heard_the_first_time(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server, Counting) as conn:
        async with conn.subscribe("a") as feed:
            await service.say("a", 1)
            await service.say("a", 1)
            assert await feed.receive() == 1
            await wait_all_tasks_blocked()
            assert (service.acks, feed.waiting) == ([1, 1], 0)


@pytest.mark.parametrize(("adapter", "acks"), [(Dropping, [1]), (Acking, [])])
async def test_what_is_dropped_as_nobody_reads_it_is_acknowledged_and_what_is_received_as_it_came_is_not(
    autojump_clock: trio.abc.Clock, adapter: type[Adapter], acks: list[int]
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server, adapter) as conn:
        await service.say("a", 1)
        assert service.acks == acks
        assert conn.statistics().inbox_messages == len(acks) ^ 1


async def test_a_channel_that_needs_no_request_is_entered_with_nothing_sent(autojump_clock: trio.abc.Clock) -> None:
    class Unasked(Acking):
        confirms = False

        def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> None:
            return None

        def encode_unsubscription_request(self, channel: str) -> None:
            return None

    service = Service()
    async with ScriptedServer(then=service) as server, connect(server, Unasked) as conn:
        async with conn.subscribe("a") as feed:
            await service.say("a", 1)
            assert await feed.receive() == 1
            await wait_all_tasks_blocked()
            assert server.dials[0].frames == ['{"ack":1}']
        await wait_all_tasks_blocked()
    assert len(server.dials[0].frames) == 2  # and the goodbye


async def test_a_message_that_is_not_of_the_type_of_its_feed_is_acknowledged_as_nobody_will_read_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(then=service) as server, connect(server) as conn:
        async with conn.subscribe("a", type=str), conn.subscribe("a") as other:
            await service.say("a", 1)
            assert await other.receive() == 1
            await wait_all_tasks_blocked()
            assert service.acks == [1]


@pytest.mark.parametrize("takes_deliveries", [False, True])
@pytest.mark.parametrize(
    ("options", "gone", "kept"),
    [
        (FeedOptions(size=1, overflow="drop_oldest"), 1, 2),
        (FeedOptions(size=1, overflow="drop_newest"), 2, 1),
        (FeedOptions(conflate=lambda payload: "all"), 1, 2),
    ],
)
async def test_a_message_that_a_feed_drops_is_acknowledged_as_nobody_will_read_it(
    autojump_clock: trio.abc.Clock, options: FeedOptions, gone: int, kept: int, takes_deliveries: bool
) -> None:
    service = Service()
    async with (
        ScriptedServer(then=service) as server,
        connect(server) as conn,
        conn.subscribe("a", feed=options) as feed,
    ):
        deliveries = feed.deliveries() if takes_deliveries else None
        await service.say("a", 1)
        await service.say("a", 2)
        assert service.acks == [gone]
        if deliveries is None:
            assert await feed.receive() == kept
        else:
            delivery = await deliveries.receive()
            assert delivery.payload == kept
            delivery.ack()
        await wait_all_tasks_blocked()
        assert service.acks == [gone, kept]
