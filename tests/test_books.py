"""Whoever enters a `subscribe` block of a book begins with a snapshot, and whoever reads it already loses nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Channel,
    Data,
    FeedOptions,
    Gap,
    JsonCodec,
    ListBackoff,
    Resynced,
    State,
    Step,
    SubscriptionHandler,
    SubscriptionRejected,
    Tracker,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import GenericVenue, never
from trio_nova.testing._venue_link import Asked, VenueLink

NOTICES = FeedOptions(notices=True)


@attrs.define(eq=False, kw_only=True)
class BookVenue(GenericVenue):
    """Sends a snapshot, with the number of the last change that it contains, to whoever subscribes."""

    snapshots: str = "behind the answer"
    """Or "before the answer"."""
    bare: float = 0
    """How many of the next subscriptions get none."""
    hole: int = 0
    """Changes that nobody hears between the end of a subscription and the next one."""

    def _subscribe(self, link: VenueLink, asked: Asked) -> None:
        for _ in range(self.hole):
            self.skip(asked.channels[0])
        if self.snapshots == "before the answer":
            self._say_snapshots(link, asked)
        super()._subscribe(link, asked)
        if self.snapshots == "behind the answer":
            self._say_snapshots(link, asked)

    def _say_snapshots(self, link: VenueLink, asked: Asked) -> None:
        if self.bare > 0:
            self.bare -= 1
        else:
            link.say(self.snapshot(asked.channels[0]))

    def snapshot(self, channel: str) -> dict[str, Any]:
        return {"channel": channel, "seq": len(self.emitted.get(channel, ())), "data": "snapshot"}


@attrs.define(eq=False)
class Books(SubscriptionHandler):
    """Watches `seq` of changes that are worth nothing without a snapshot."""

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)

    def read(self, message: Any) -> Data | None:
        match message:
            case {"channel": channel, "seq": number}:
                return Data(channel, message, Step(number, snapshot=is_snapshot(message)))
            case _:
                return None


def is_snapshot(message: Any) -> bool:
    return message["data"] == "snapshot"  # type: ignore[no-any-return]


def connect(venue: GenericVenue, handler: Any = Books, **options: Any) -> Any:
    return open_connection(
        "ws://venue.test/",
        **{
            "stream_factory": venue.stream_factory,
            "codec": JsonCodec(),
            "backoff": ListBackoff([5.0]),
            "subscription_handler": handler,
            **options,
        },
    )


async def taken(feed: Any) -> list[Any]:
    """Return what has come: "S3" is a snapshot that contains 3 changes, 4 a change, and notices by their names."""
    await wait_all_tasks_blocked()
    if not feed.waiting:
        return []
    return [
        (f"S{item['seq']}" if is_snapshot(item) else item["seq"]) if isinstance(item, Mapping) else type(item).__name__
        for item in await feed.receive_batch()
    ]


def asked_for(venue: GenericVenue) -> list[str]:
    return [asked.method for asked in venue.link.journal]


@pytest.mark.parametrize("snapshots", ["behind the answer", "before the answer"])
async def test_a_second_reader_of_a_quiet_book_begins_with_a_snapshot_and_the_first_hears_nothing_of_it(
    snapshots: str, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async with BookVenue(snapshots=snapshots) as venue, connect(venue, transport=transport) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.publish("a")
            assert await taken(first) == ["S0", 1]
            async with conn.subscribe("a", feed=NOTICES) as second:
                assert await taken(second) == ["S1"]
                venue.publish("a")
                assert await taken(first) == [2]
                assert await taken(second) == [2]
            venue.publish("a")
            assert await taken(first) == [3]
        await wait_all_tasks_blocked()
        assert asked_for(venue) == ["subscribe", "unsubscribe"] * 2
        assert len(venue.links) == 1


async def test_changes_on_their_way_when_a_second_reader_enters_reach_the_first_alone(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.publish("a")
            await wait_all_tasks_blocked()
            venue.publish("a")
            async with conn.subscribe("a", feed=NOTICES) as second:
                venue.publish("a")
                assert await taken(second) == ["S3"]
                assert await taken(first) == ["S0", 1, 2, 3]


async def test_what_is_changed_while_a_book_is_asked_for_anew_is_told_to_those_who_read_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.publish("a")
            await wait_all_tasks_blocked()
            venue.hole = 2
            async with conn.subscribe("a", feed=NOTICES) as second:
                await wait_all_tasks_blocked()
                venue.publish("a")
                assert await taken(second) == ["S3", 4]
                *before, gap, resynced, snapshot, change = await first.receive_batch()
                assert [item["seq"] for item in before] == [0, 1]
                assert isinstance(gap, Gap)
                assert (gap.outcome, gap.lost, gap.epoch_from, gap.epoch_to) == ("lost", None, 1, 1)
                assert isinstance(resynced, Resynced)
                assert (snapshot["seq"], change["seq"]) == (3, 4)


async def test_a_snapshot_that_continues_the_numbers_reaches_all_readers_without_a_notice(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue(bare=math.inf) as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.publish("a", "snapshot")
            assert await taken(first) == ["S1"]
            async with conn.subscribe("a", feed=NOTICES) as second:
                venue.publish("a", "snapshot")  # it has a number of its own
                venue.publish("a")
                assert await taken(second) == ["S2", 3]
                assert await taken(first) == ["S2", 3]


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "after a while"])
async def test_whoever_leaves_a_book_and_enters_again_begins_with_a_snapshot(
    pause: bool, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async with BookVenue() as venue, connect(venue, transport=transport) as conn:
        for count in range(3):
            async with conn.subscribe("a", feed=NOTICES) as feed:
                assert await taken(feed) == [f"S{count}"]
                venue.publish("a")
                assert await taken(feed) == [count + 1]
            if pause:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert asked_for(venue) == ["subscribe", "unsubscribe"] * 3


async def test_two_readers_who_enter_at_the_same_time_share_one_snapshot(autojump_clock: trio.abc.Clock) -> None:
    async def read(into: list[Any]) -> None:
        async with conn.subscribe("a", feed=NOTICES) as feed:
            into += await taken(feed)
            await trio.sleep_forever()

    async with BookVenue() as venue, connect(venue) as conn, trio.open_nursery() as nursery:
        readers: list[list[Any]] = [[], [], []]
        for into in readers:
            nursery.start_soon(read, into)
        await trio.sleep(1)
        assert readers == [["S0"], ["S0"], ["S0"]]
        assert asked_for(venue) == ["subscribe"]
        nursery.cancel_scope.cancel()


async def test_many_who_enter_a_book_that_is_read_share_the_snapshot_they_ask_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue() as venue, connect(venue) as conn, AsyncExitStack() as stack:
        first = await stack.enter_async_context(conn.subscribe("a", feed=NOTICES))
        assert await taken(first) == ["S0"]
        others = [await stack.enter_async_context(conn.subscribe("a", feed=NOTICES)) for _ in range(5)]
        assert [await taken(feed) for feed in others] == [["S0"]] * 5
        assert await taken(first) == []
        assert asked_for(venue) == ["subscribe", "unsubscribe", "subscribe"]


async def test_a_reader_who_comes_during_a_resync_gets_the_snapshot_of_that(autojump_clock: trio.abc.Clock) -> None:
    async with BookVenue(bare=math.inf) as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.send(venue.snapshot("a"))
            venue.skip("a")
            venue.publish("a")
            assert await taken(first) == ["S0", "Gap"]
            async with conn.subscribe("a", feed=NOTICES) as second:
                venue.publish("a")
                assert await taken(second) == []
                venue.send(venue.snapshot("a"))
                venue.publish("a")
                assert await taken(second) == ["S3", 4]
                assert await taken(first) == ["Resynced", "S3", 4]
        assert asked_for(venue)[:3] == ["subscribe", "unsubscribe", "subscribe"]


@pytest.mark.parametrize("missed", [0, 2])
async def test_a_reader_who_comes_while_the_link_is_down_begins_with_the_next_links_snapshot(
    missed: int, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async with BookVenue() as venue, connect(venue, transport=transport) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            venue.publish("a")
            assert await taken(first) == ["S0", 1]
            venue.drop()
            await conn.wait_state(State.RECONNECTING)
            for _ in range(missed):
                venue.publish("a")
            async with conn.subscribe("a", feed=NOTICES) as second:
                venue.publish("a")
                assert await taken(second) == [f"S{1 + missed}", 2 + missed]
                assert await taken(first) == ["Gap", "Resynced", f"S{1 + missed}", 2 + missed]
                assert asked_for(venue) == ["subscribe"]


async def test_a_service_that_resumes_is_asked_from_the_beginning_where_a_reader_came_meanwhile(
    autojump_clock: trio.abc.Clock,
) -> None:
    @attrs.define(eq=False)
    class Resuming(Books):
        resumes = True

        def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
            return {**channel.params, "after": last["seq"]}

    async with BookVenue() as venue, connect(venue, Resuming) as conn, conn.subscribe("a", feed=NOTICES) as first:
        venue.publish("a")
        assert await taken(first) == ["S0", 1]
        venue.drop()
        await conn.wait_state(State.RECONNECTING)
        async with conn.subscribe("a", feed=NOTICES) as second:
            assert await taken(second) == ["S1"]
        assert venue.link.journal[0].message["params"] == {}


async def test_a_service_that_resumes_is_asked_for_a_snapshot_where_a_book_is_out_of_step(
    autojump_clock: trio.abc.Clock,
) -> None:
    @attrs.define(eq=False)
    class Resuming(Books):
        resumes = True

        def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
            return {**channel.params, "after": last["seq"]}

    async with BookVenue() as venue, connect(venue, Resuming) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        venue.skip("a")
        venue.publish("a")
        assert await taken(feed) == ["S0", 1, "Gap", "Resynced", "S3"]
        assert [asked.message.get("params") for asked in venue.link.journal] == [{}, None, {}]


async def test_a_service_that_replays_by_itself_is_asked_anew_for_a_reader_who_came_meanwhile(
    autojump_clock: trio.abc.Clock,
) -> None:
    @attrs.define(eq=False)
    class Replayed(Books):
        resumes = True

    async with BookVenue() as venue, connect(venue, Replayed) as conn, conn.subscribe("a", feed=NOTICES) as first:
        venue.publish("a")
        assert await taken(first) == ["S0", 1]
        venue.bare = 1
        venue.drop()
        await conn.wait_state(State.RECONNECTING)
        async with conn.subscribe("a", feed=NOTICES) as second:
            venue.publish("a")
            assert await taken(first) == ["Gap", 2]
            assert await taken(second) == ["S2"]
            venue.publish("a")
            assert await taken(first) == [3]
            assert await taken(second) == [3]


async def test_a_snapshot_that_came_before_its_answer_does_not_leave_a_later_reader_without_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def read(into: list[Any]) -> None:
        async with conn.subscribe("a", feed=NOTICES) as feed:
            into += await taken(feed)
            await trio.sleep_forever()

    async with BookVenue(bare=math.inf) as venue, connect(venue) as conn, trio.open_nursery() as nursery:
        venue.twist("subscribe", never)
        first: list[Any] = []
        second: list[Any] = []
        nursery.start_soon(read, first)
        await wait_all_tasks_blocked()
        venue.send(venue.snapshot("a"))
        await wait_all_tasks_blocked()
        nursery.start_soon(read, second)
        await wait_all_tasks_blocked()
        venue.bare = 0
        venue.send({"type": "subscribed", "channel": "a"})
        await trio.sleep(1)
        assert (first, second) == (["S0"], ["S0"])
        nursery.cancel_scope.cancel()


async def test_a_newcomer_hears_neither_what_has_no_number_nor_what_cannot_be_read_before_its_snapshot(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            assert await taken(first) == ["S0"]
            venue.bare = math.inf
            async with conn.subscribe("a", feed=NOTICES) as second:
                venue.send({"channel": "a", "data": "beat"})
                venue.send({"channel": "a", "seq": "three", "data": None})
                assert await taken(second) == []
                await wait_all_tasks_blocked()
                assert [item.get("data") for item in await first.receive_batch()] == ["beat", None]
                venue.send(venue.snapshot("a"))
                assert await taken(second) == ["S0"]
                assert await taken(first) == []


async def test_a_snapshot_older_than_the_book_is_of_no_use_to_a_newcomer_and_another_is_asked_for(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            old = venue.snapshot("a")
            venue.publish("a")
            assert await taken(first) == ["S0", 1]
            venue.bare = math.inf
            async with conn.subscribe("a", feed=NOTICES) as second:
                await wait_all_tasks_blocked()
                venue.bare = 0
                venue.send(old)
                venue.publish("a")
                assert await taken(second) == ["S2"]
                assert await taken(first) == [2]


async def test_what_was_imported_is_a_book_for_whoever_takes_it_over(autojump_clock: trio.abc.Clock) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        conn.import_subscriptions('[{"channel": "a", "params": {}}]')
        await venue.wait_until(lambda: venue.subscribed() == ["a"])
        venue.publish("a")
        await wait_all_tasks_blocked()
        for _ in range(2):
            async with conn.subscribe("a", feed=NOTICES) as feed:
                assert await taken(feed) == [f"S{len(venue.emitted['a'])}"]
                venue.skip("a")
                venue.publish("a")
                _, *rest = await taken(feed)
                assert rest == ["Resynced", f"S{len(venue.emitted['a'])}"]


async def test_the_first_reader_may_leave_before_the_newcomers_snapshot_comes(autojump_clock: trio.abc.Clock) -> None:
    async with BookVenue() as venue, connect(venue) as conn, AsyncExitStack() as newcomers:
        async with conn.subscribe("a") as first:
            assert await taken(first) == ["S0"]
            venue.bare = math.inf
            second = await newcomers.enter_async_context(conn.subscribe("a", feed=NOTICES))
        venue.publish("a")
        assert await taken(second) == []
        venue.send(venue.snapshot("a"))
        venue.publish("a")
        assert await taken(second) == ["S1", 2]


async def test_a_newcomer_who_leaves_before_its_snapshot_leaves_nothing_behind(autojump_clock: trio.abc.Clock) -> None:
    async with BookVenue() as venue, connect(venue) as conn, conn.subscribe("a", feed=NOTICES) as first:
        with trio.CancelScope() as scope:
            async with conn.subscribe("a"):
                scope.cancel()
                await trio.sleep_forever()
        venue.publish("a")
        await wait_all_tasks_blocked()
        venue.publish("a")
        assert await taken(first) == ["S0", 1, 2]


async def test_channels_that_are_no_books_are_not_asked_for_anew(autojump_clock: trio.abc.Clock) -> None:
    @attrs.define(eq=False)
    class Numbered(SubscriptionHandler):
        def tracker(self, channel: Channel) -> Tracker:
            return Tracker()

        def read(self, message: Any) -> Data | None:
            return Data(message["channel"], message, message["seq"]) if "seq" in message else None

    async with GenericVenue() as venue, connect(venue, Numbered) as conn:
        async with conn.subscribe("a"), conn.subscribe("a") as second:
            venue.publish("a")
            assert await taken(second) == [1]
        assert asked_for(venue) == ["subscribe"]


async def test_where_the_service_takes_the_book_back_all_its_readers_are_told(autojump_clock: trio.abc.Clock) -> None:
    async with BookVenue() as venue, connect(venue) as conn:
        async with conn.subscribe("a", feed=NOTICES) as first:
            assert await taken(first) == ["S0"]
            venue.rejected = {"a"}
            async with conn.subscribe("a", feed=NOTICES) as second:
                for feed in (first, second):
                    with pytest.raises(SubscriptionRejected, match="not allowed"):
                        await feed.receive()
