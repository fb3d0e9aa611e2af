"""What was missed is said in its place: gaps, duplicates, resyncs, and feeds that have fallen silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Beat,
    Channel,
    Data,
    FeedOptions,
    FeedStale,
    Gap,
    JsonCodec,
    ListBackoff,
    PingHeartbeat,
    State,
    Step,
    SubscriptionHandler,
    open_connection,
)
from trio_nova.core.sequence import Tracker
from trio_nova.links import Transport
from trio_nova.testing import GenericVenue, never

URL = "ws://venue.test/"
NOTICES = FeedOptions(notices=True)


def connect(venue: GenericVenue, handler: SubscriptionHandler, **options: Any) -> Any:
    return open_connection(
        URL,
        **{
            "stream_factory": venue.stream_factory,
            "codec": JsonCodec(),
            "backoff": ListBackoff([5.0]),
            "subscription_handler": handler,
            **options,
        },
    )


@attrs.define(eq=False)
class Numbered(SubscriptionHandler):
    """Watches `seq`, which goes on across links."""

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker()

    def read(self, message: Any) -> Data | None:
        return Data(message["channel"], message, message["seq"]) if "seq" in message else None


@attrs.define(eq=False)
class Book(SubscriptionHandler):
    """Watches `seq` of changes that are worth nothing without a snapshot."""

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)

    def read(self, message: Any) -> Data | None:
        return read_change(message)


def read_change(message: Any) -> Data | None:
    match message:
        case {"channel": channel, "seq": number, "data": data}:
            return Data(channel, message, Step(number, snapshot=data == "snapshot"))
        case _:
            return None


def shown(items: list[Any]) -> list[Any]:
    return [
        (item.outcome, item.lost)
        if isinstance(item, Gap)
        else type(item).__name__
        if not isinstance(item, dict)
        else item["seq"]
        for item in items
    ]


@pytest.mark.fault("F115", where="memory")
async def test_what_is_missing_on_a_link_is_counted_and_repetitions_are_dropped(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with GenericVenue() as venue, connect(venue, Numbered()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as feed:
            venue.publish("a")
            venue.publish("a")
            venue.repeat("a")
            venue.skip("a")
            venue.skip("a")
            venue.publish("a")
            venue.publish("a")
            await wait_all_tasks_blocked()
            assert shown(await feed.receive_batch()) == [1, 2, ("lost", 2), 5, 6]


@pytest.mark.fault("F115", where="memory")
@pytest.mark.parametrize(("missed", "expected"), [(3, ("lost", 3)), (0, ("resumed", None))])
async def test_what_was_missed_over_a_lost_link_is_known_by_the_numbers(
    autojump_clock: trio.abc.Clock, missed: int, expected: tuple[str, int | None]
) -> None:
    async with GenericVenue() as venue, connect(venue, Numbered()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as feed:
            venue.publish("a")
            await wait_all_tasks_blocked()
            venue.drop()
            await conn.wait_state(State.RECONNECTING)
            for _ in range(missed):
                venue.publish("a")
            await conn.wait_ready()
            venue.publish("a")
            await wait_all_tasks_blocked()
            items = await feed.receive_batch()
            assert shown(items) == [1, expected, 2 + missed]
            assert (items[1].epoch_from, items[1].epoch_to) == (1, 2)
            assert items[1].until - items[1].since == pytest.approx(5.0)


async def test_a_book_out_of_step_is_asked_for_anew_without_dropping_the_link(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with GenericVenue() as venue, connect(venue, Book()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as feed, conn.subscribe("b", feed=NOTICES) as other:
            venue.publish("a", "snapshot")
            venue.publish("b", "snapshot")
            venue.publish("a")
            venue.skip("a")
            venue.publish("a")
            venue.publish("a")
            await wait_all_tasks_blocked()
            venue.publish("a", "snapshot")
            venue.publish("a")
            venue.publish("b")
            await wait_all_tasks_blocked()
            assert shown(await feed.receive_batch()) == [1, 2, ("lost", 1), "Resynced", 6, 7]
            assert shown(await other.receive_batch()) == [1, 2]
            assert conn.epoch == 1
            assert len(venue.links) == 1


@pytest.mark.fault("F115", where="memory")
async def test_a_service_that_can_resume_is_asked_to(autojump_clock: trio.abc.Clock) -> None:
    @attrs.define(eq=False)
    class Resuming(Numbered):
        resumes = True

        def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
            return {**channel.params, "from": last["seq"] + 1}

    async with GenericVenue() as venue, connect(venue, Resuming()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as feed:
            venue.publish("a")
            venue.publish("a")
            await wait_all_tasks_blocked()
            venue.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            asked = [entry for entry in venue.link.journal if "subscribe" in repr(entry)]
            assert "'from': 3" in repr(asked)
            venue.repeat("a")
            venue.publish("a")
            await wait_all_tasks_blocked()
            assert shown(await feed.receive_batch()) == [1, 2, ("resumed", None), 3]


@pytest.mark.fault("F72", where="memory")
async def test_a_feed_that_falls_silent_is_told_once_each_time(autojump_clock: trio.abc.Clock) -> None:
    async with GenericVenue() as venue, connect(venue, SubscriptionHandler()) as conn, conn.listen() as events:
        async with conn.subscribe("a", feed=FeedOptions(max_age=10.0, notices=True)) as feed, conn.subscribe("b"):
            venue.publish("a")
            await trio.sleep(35)
            venue.publish("a")
            await trio.sleep(35)
            stale = [
                (seen.event.channel, round(seen.at))
                for seen in await events.observations().receive_batch()
                if isinstance(seen.event, FeedStale)
            ]
            assert stale == [("a", 10), ("a", 45)]
            assert [type(item) for item in await feed.receive_batch()] == [dict, FeedStale, dict, FeedStale]
            assert conn.epoch == 1


@pytest.mark.parametrize("numbered", [False, True])
async def test_a_gap_is_told_where_data_came_before_a_confirmation_that_never_came(
    autojump_clock: trio.abc.Clock, numbered: bool
) -> None:
    """The feed had the first message already, and went on with the third as if there had been no second."""
    async with GenericVenue() as venue:
        venue.twist("subscribe", never)
        async with (
            connect(venue, Numbered() if numbered else SubscriptionHandler()) as conn,
            trio.open_nursery() as nursery,
        ):

            async def lose_the_link() -> None:
                await venue.wait_until(lambda: venue.subscribed() == ["ticks"])
                venue.publish("ticks")
                await wait_all_tasks_blocked()
                venue.drop()
                await conn.wait_state(State.DISCONNECTED)
                venue.publish("ticks")

            nursery.start_soon(lose_the_link)
            with trio.fail_after(60):
                async with conn.subscribe("ticks", feed=NOTICES) as feed:
                    venue.publish("ticks")
                    items = [await feed.receive() for _ in range(3)]
    assert shown(items) == [1, ("lost", 1) if numbered else ("unknown", None), 3]


# --------------------------------------------------------------------------- one sequence over all channels


@attrs.define(eq=False)
class OverAll(SubscriptionHandler):
    """Watches `n`, which counts all messages of a link; those of books are snapshots or changes."""

    def link_step(self, message: Any) -> int | None:
        return message.get("n")  # type: ignore[no-any-return]

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker(resync=True) if channel.name == "book" else None

    def read(self, message: Any) -> Data | None:
        return read_change(message)


class Counting:
    """Says things on the newest link, each with the next number of that link."""

    def __init__(self, venue: GenericVenue, first: int = 0) -> None:
        self.venue = venue
        self.next = first

    def say(self, **message: Any) -> None:
        self.venue.send({**message, "n": self.next})
        self.next += 1


def kinds(items: list[Any]) -> list[Any]:
    return [item["n"] if isinstance(item, dict) else type(item).__name__ for item in items]


@pytest.mark.parametrize("splits", [False, True], ids=["in batches", "one by one"])
async def test_one_sequence_over_all_channels_of_a_link_gives_no_false_alarms(
    splits: bool, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    options: dict[str, Any] = {"transport": transport, "heartbeat": Beats()} if splits else {"transport": transport}
    async with GenericVenue() as venue, connect(venue, OverAll(), **options) as conn:
        async with conn.subscribe("a", feed=NOTICES) as a, conn.subscribe("b", feed=NOTICES) as b:
            link = Counting(venue, first=40)
            for channel in ("a", "b", "a", "nobody", "b"):
                link.say(channel=channel, data=1)
            link.say(type="news")
            link.say(type="beat")
            link.say(channel="a", data=2)
            await wait_all_tasks_blocked()
            assert kinds(await a.receive_batch()) == [40, 42, 47]
            assert kinds(await b.receive_batch()) == [41, 44]


@pytest.mark.parametrize("shown_by", ["a", "nobody", None])
async def test_a_gap_in_the_sequence_of_a_link_is_told_once_to_the_readers_of_each_channel(
    shown_by: str | None, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async with GenericVenue() as venue, connect(venue, OverAll(), transport=transport) as conn:
        async with conn.subscribe("a", feed=NOTICES) as a, conn.subscribe("b", feed=NOTICES) as b:
            link = Counting(venue)
            link.say(channel="a", data=1)
            link.say(channel="b", data=1)
            link.next += 3
            link.say(**({"channel": shown_by} if shown_by else {"type": "news"}), data=2)
            link.say(channel="b", data=3)
            link.say(channel="a", data=3)
            await wait_all_tasks_blocked()
            of_a, of_b = await a.receive_batch(), await b.receive_batch()
            assert kinds(of_a) == [0, "Gap", *([5] if shown_by == "a" else []), 7]
            assert kinds(of_b) == [1, "Gap", 6]
            assert (of_b[1].outcome, of_b[1].lost, of_b[1].epoch_from, of_b[1].epoch_to) == ("unknown", None, 1, 1)


async def test_the_sequence_of_a_link_begins_anew_with_the_next_link(autojump_clock: trio.abc.Clock) -> None:
    async with GenericVenue() as venue, connect(venue, OverAll()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as a, conn.subscribe("b", feed=NOTICES) as b:
            link = Counting(venue, first=70)
            link.say(channel="a", data=1)
            link.say(channel="b", data=1)
            await wait_all_tasks_blocked()
            venue.drop()
            await conn.wait_state(State.RECONNECTING)
            await conn.wait_ready()
            link = Counting(venue)
            for channel in ("a", "b", "a", "b"):
                link.say(channel=channel, data=1)
            await wait_all_tasks_blocked()
            assert kinds(await a.receive_batch()) == [70, "Gap", 0, 2]
            assert kinds(await b.receive_batch()) == [71, "Gap", 1, 3]


async def test_a_gap_in_the_sequence_of_a_link_has_its_books_asked_for_anew(autojump_clock: trio.abc.Clock) -> None:
    async with GenericVenue() as venue, connect(venue, OverAll()) as conn:
        async with conn.subscribe("a", feed=NOTICES) as a, conn.subscribe("book", feed=NOTICES) as book:
            link = Counting(venue)
            link.say(channel="book", seq=5, data="snapshot")
            link.say(channel="a", data=1)
            link.next += 1
            link.say(channel="book", seq=6, data="change")
            await wait_all_tasks_blocked()
            assert [asked.method for asked in venue.link.journal[2:]] == ["unsubscribe", "subscribe"]
            link.say(channel="book", seq=6, data="snapshot")
            link.say(channel="book", seq=7, data="change")
            await wait_all_tasks_blocked()
            assert kinds(await book.receive_batch()) == [0, "Gap", "Resynced", 4, 5]
            assert kinds(await a.receive_batch()) == [1, "Gap"]


class Beats(PingHeartbeat):
    """Takes messages of one type for the service's heartbeat."""

    def read(self, message: Any) -> Beat | None:
        return Beat() if message.get("type") == "beat" else None
