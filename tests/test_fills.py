"""What a link cannot bring is asked for elsewhere: what was missed over a cut, and the snapshots of books."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova import (
    Adapter,
    Channel,
    ConfigError,
    Connection,
    Data,
    Event,
    FeedOptions,
    Gap,
    Hole,
    JsonCodec,
    ListBackoff,
    Observation,
    Page,
    Reading,
    Resynced,
    State,
    Step,
    Tracker,
    open_connection,
)
from trio_nova.events import ErrorEvent
from trio_nova.testing import GenericVenue

NOTICES = FeedOptions(notices=True)
WITHIN = 10.0
"""Seconds in which a hook must have answered."""


def connect(venue: GenericVenue, adapter: Adapter, **options: Any) -> Any:
    defaults: dict[str, Any] = {"backoff": ListBackoff([5.0]), "subscription_timeout": WITHIN, "ping_interval": 3600.0}
    return open_connection(adapter, stream_factory=venue.stream_factory, **{**defaults, **options})


async def taken(feed: Any) -> list[Any]:
    """Return what has come, with a `Gap` by its outcome, and how many are missing, and other notices by their names."""
    await wait_all_tasks_blocked()
    return [shown(item) for item in await feed.receive_batch()] if feed.waiting else []


def shown(item: Any) -> Any:
    if isinstance(item, Gap):
        return item.outcome if item.lost is None else (item.outcome, item.lost)
    return type(item).__name__ if isinstance(item, Event) else item


async def cut(venue: GenericVenue, conn: Connection) -> None:
    """Lose the link; the next one comes 5 s later."""
    await wait_all_tasks_blocked()
    venue.drop()
    await conn.wait_state(State.RECONNECTING)


async def back(conn: Connection) -> None:
    """Wait for the next link, and until all is done that can be done at once."""
    await conn.wait_ready()
    await wait_all_tasks_blocked()


def hear_errors(errors: list[str]) -> Callable[[Observation], None]:
    """Return an observer that keeps the words of the errors about subscriptions that a session tells of."""

    def observe(observation: Observation) -> None:
        if isinstance(observation.event, ErrorEvent) and observation.event.context == "subscription":
            errors.append(str(observation.event.error))

    return observe


# --------------------------------------------------------------------------- what was missed


Fill = Callable[[Hole], Awaitable[Page]]


@attrs.define(eq=False, kw_only=True, slots=False)
class Trades(Adapter):
    """Trades, of which a reader gets the numbers."""

    host: str = "venue.test"
    secure: bool = False
    fill: Fill
    numbered: bool = True
    """Whether the session sees the numbers as such, or as ids."""
    holes: list[Hole] = attrs.field(factory=list, init=False)
    """What was asked for."""

    def defaults(self) -> dict[str, Any]:
        return {"codec": JsonCodec()}

    def trade(self, channel: str, n: int) -> Data:
        return Data(channel, n, n) if self.numbered else Data(channel, n, id=n)

    def read(self, message: Any) -> Reading | None:
        return self.trade(message["channel"], message["seq"]) if "seq" in message else None

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker() if self.numbered else None

    async def backfill(self, hole: Hole) -> Page:
        self.holes.append(hole)
        return await self.fill(hole)


def page(trades: Trades, channel: str, *numbers: int, more: Any = None) -> Page:
    return Page([trades.trade(channel, n) for n in numbers], more)


def answer(*numbers: int) -> Fill:
    """Return a back-fill that always brings these."""

    async def fill(hole: Hole) -> Page:
        return Page([Data(hole.channel.key, n, n) for n in numbers])

    return fill


async def hang(hole: Hole) -> Page:
    if hole.channel.key == "a":
        await trio.sleep_forever()
    return Page()


async def test_what_was_missed_over_a_cut_comes_before_what_comes_next(autojump_clock: MockClock) -> None:
    trades = Trades(fill=answer(3, 4))
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        venue.publish("a")
        await cut(venue, conn)
        venue.publish("a")
        venue.publish("a")
        await back(conn)
        venue.publish("a")
        assert await taken(feed) == [1, 2, 3, 4, "resumed", 5]
        venue.publish("a")
        assert await taken(feed) == [6]
    (hole,) = trades.holes
    assert (hole.channel, hole.after, hole.before, hole.start) == (Channel("a", "a"), 2, None, None)
    assert hole.since == hole.until == 1.8e9


async def test_what_was_brought_from_elsewhere_says_that_no_link_brought_it(autojump_clock: MockClock) -> None:
    trades = Trades(fill=answer(2))
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a") as feed:
        venue.publish("a")
        await cut(venue, conn)
        venue.publish("a")
        await back(conn)
        venue.publish("a")
        await wait_all_tasks_blocked()
        deliveries = await feed.deliveries().receive_batch()
        assert [(each.payload, each.epoch) for each in deliveries] == [(1, 1), (2, 0), (3, 2)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([3, 4, 5], [1, 2, 3, 4, 5, "resumed", 6, 7], id="all"),
        pytest.param([4, 5], [1, 2, ("lost", 1), 4, 5, 6, 7], id="not the oldest"),
        pytest.param([3, 5], [1, 2, 3, ("lost", 1), 5, 6, 7], id="one in the middle is missing"),
        pytest.param([3], [1, 2, 3, ("lost", 2), 6, 7], id="not the newest"),
        pytest.param([], [1, 2, ("lost", 3), 6, 7], id="nothing"),
        pytest.param([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, "resumed", 6, 7], id="what was known before"),
        pytest.param([2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, "resumed", 7], id="what the link brings as well"),
    ],
)
async def test_the_numbers_tell_what_became_of_what_was_missed(
    found: Sequence[int], expected: Sequence[Any], autojump_clock: MockClock
) -> None:
    asked, gate = trio.Event(), trio.Event()

    async def fill(hole: Hole) -> Page:
        asked.set()
        await gate.wait()
        return await answer(*found)(hole)

    async with (
        GenericVenue() as venue,
        connect(venue, Trades(fill=fill)) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        venue.publish("a")
        await cut(venue, conn)
        for _ in range(3):
            venue.skip("a")
        await asked.wait()
        venue.publish("a")
        assert await taken(feed) == [1, 2]
        gate.set()
        await wait_all_tasks_blocked()
        venue.publish("a")
        await wait_all_tasks_blocked()
        items = await feed.receive_batch()
        assert [1, 2, *map(shown, items)] == expected
        (gap,) = (item for item in items if isinstance(item, Gap))
        assert (gap.epoch_from, gap.epoch_to, gap.until - gap.since) == (1, 2, 5.0)  # also where the gap is in the fill


@pytest.mark.parametrize("numbered", [True, False])
async def test_what_is_missed_comes_in_pages_and_each_is_asked_for_with_what_the_one_before_said(
    numbered: bool, autojump_clock: MockClock
) -> None:
    async def fill(hole: Hole) -> Page:
        start = hole.start or 2
        return page(trades, "a", start, start + 1, more=start + 2 if start < 6 else None)

    trades = Trades(fill=fill, numbered=numbered)
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        await cut(venue, conn)
        for _ in range(6):
            venue.skip("a")
        await back(conn)
        venue.publish("a")
        told = [8] if not numbered else ["resumed", 8]
        assert await taken(feed) == [1, 2, 3, 4, 5, 6, 7, *([] if numbered else ["unknown"]), *told]
    assert [hole.start for hole in trades.holes] == [None, 4, 6]
    assert len({hole.after for hole in trades.holes}) == 1


async def test_what_comes_first_behind_the_hole_is_told_to_those_who_fill_it(autojump_clock: MockClock) -> None:
    asked, gate = trio.Event(), trio.Event()

    async def fill(hole: Hole) -> Page:
        asked.set()
        await gate.wait()
        return page(trades, "a", 2, more=None if hole.start else "more")

    trades = Trades(fill=fill)
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a"):
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await asked.wait()
        venue.publish("a")
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
    assert [hole.before for hole in trades.holes] == [None, 3]


async def test_what_has_ids_comes_once_however_much_is_brought_and_nobody_can_tell_whether_that_was_all(
    autojump_clock: MockClock,
) -> None:
    asked, gate = trio.Event(), trio.Event()

    async def fill(hole: Hole) -> Page:
        asked.set()
        await gate.wait()
        return page(trades, "a", 1, 2, 3, 4)

    trades = Trades(fill=fill, numbered=False)
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await asked.wait()
        venue.publish("a")
        venue.publish("a")
        await wait_all_tasks_blocked()
        gate.set()
        assert await taken(feed) == [1, 2, 3, 4, "unknown", 5]
        assert trades.holes[0].after is None


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_back_fill_that_fails_is_reported_and_what_the_link_brings_goes_on(
    numbered: bool, autojump_clock: MockClock
) -> None:
    async def fill(hole: Hole) -> Page:
        raise OSError("no route to the archive")

    errors: list[str] = []
    async with (
        GenericVenue() as venue,
        connect(venue, Trades(fill=fill, numbered=numbered), observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await back(conn)
        venue.publish("a")
        venue.publish("a")
        assert await taken(feed) == [1, ("lost", 1) if numbered else "lost", 3, 4]
    assert errors == ["no route to the archive"]


async def test_an_answer_that_is_no_page_is_reported(autojump_clock: MockClock) -> None:
    async def fill(hole: Hole) -> Any:
        return [Data("a", 2, 2)]

    errors: list[str] = []
    async with (
        GenericVenue() as venue,
        connect(venue, Trades(fill=fill), observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await back(conn)
        venue.publish("a")
        assert await taken(feed) == [1, ("lost", 1), 3]
    assert errors == [str(ConfigError("backfill", "answered a list, which is no Page"))]


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_back_fill_that_takes_too_long_is_given_up_and_what_was_held_back_comes_in_order(
    numbered: bool, autojump_clock: MockClock
) -> None:
    trades, errors = Trades(fill=hang, numbered=numbered), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, trades, observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
        conn.subscribe("b", feed=NOTICES) as other,
    ):
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await back(conn)
        began = trio.current_time()
        venue.publish("a")
        venue.publish("a")
        venue.publish("b")
        assert await taken(feed) == [1]
        assert await taken(other) == ["unknown", 1]
        assert shown(await feed.receive()) == (("lost", 1) if numbered else "lost")
        assert trio.current_time() - began == WITHIN
        venue.publish("a")
        assert await taken(feed) == [3, 4, 5]
    assert errors == ["the back-fill of 'a' was given up: it took too long or too much"]


async def test_a_hole_is_asked_for_once_on_each_link(autojump_clock: MockClock) -> None:
    trades = Trades(fill=answer())
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        await cut(venue, conn)
        await back(conn)
        venue.publish("a")
        venue.publish("a")
        assert await taken(feed) == [1, "resumed", 2, 3]
        await cut(venue, conn)
        await back(conn)
        await cut(venue, conn)
        await back(conn)
        venue.publish("a")
        assert await taken(feed) == ["resumed", 4]
    assert [hole.after for hole in trades.holes] == [1, 3, 3]


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_second_cut_ends_a_back_fill_and_the_next_link_brings_the_rest_once(
    numbered: bool, autojump_clock: MockClock
) -> None:
    cancelled: list[Any] = []

    async def fill(hole: Hole) -> Page:
        if hole.start is None:
            return page(trades, "a", *(range(2, 4) if conn.epoch == 2 else range(2, 6)), more="rest")
        if conn.epoch > 2:
            return page(trades, "a", 6)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(hole.start)
        raise AssertionError

    trades = Trades(fill=fill, numbered=numbered)
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        await cut(venue, conn)
        for _ in range(3):
            venue.skip("a")
        await back(conn)
        venue.publish("a")  # held back, and lost with the link: it is in the hole of the next one
        assert await taken(feed) == [1, 2, 3]
        assert cancelled == []
        await cut(venue, conn)
        assert cancelled == ["rest"]
        venue.skip("a")
        await back(conn)
        venue.publish("a")
        end = ["resumed"] if numbered else ["unknown"]
        assert await taken(feed) == [4, 5, 6, *end, 7]
    assert [hole.after for hole in trades.holes] == ([1, 1, 3, 3] if numbered else [None] * 4)


async def test_what_is_held_back_meanwhile_has_the_bound_of_all_that_waits_and_nothing_of_it_is_lost(
    autojump_clock: MockClock,
) -> None:
    trades, errors = Trades(fill=hang, numbered=False), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, trades, inbox_bytes=20_000, observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        await cut(venue, conn)
        await back(conn)
        began = trio.current_time()
        for _ in range(500):
            venue.publish("a")
        heard: list[Any] = []
        while len(heard) < 502:
            heard += map(shown, await feed.receive_batch())
        assert heard == [1, "lost", *range(2, 502)]
        assert trio.current_time() == began
    assert errors == ["the back-fill of 'a' was given up: it took too long or too much"]


async def test_what_was_held_back_when_a_link_was_lost_takes_no_room_any_more(autojump_clock: MockClock) -> None:
    trades, errors = Trades(fill=hang), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, trades, inbox_bytes=20_000, observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a") as feed,
    ):
        venue.publish("a")
        assert await taken(feed) == [1]
        for _ in range(3):
            await cut(venue, conn)
            await back(conn)
            for _ in range(25):  # about half of what there is room for
                venue.publish("a")
            await wait_all_tasks_blocked()
    assert len(trades.holes) == 3
    assert errors == []


async def test_a_consumer_that_takes_nothing_holds_up_the_pages_and_not_their_time(autojump_clock: MockClock) -> None:
    async def fill(hole: Hole) -> Page:
        start = hole.start or 2
        return page(trades, "a", *range(start, start + 100), more=start + 100 if start < 902 else None)

    trades, errors = Trades(fill=fill), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, trades, inbox_bytes=20_000, observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        await cut(venue, conn)
        for _ in range(1000):
            venue.skip("a")
        await back(conn)
        few = len(trades.holes)
        assert few < 5
        await trio.sleep(10 * WITHIN)
        assert len(trades.holes) == few
        heard: list[Any] = []
        while len(heard) < 1001:
            heard += await feed.receive_batch()
        assert heard == [*range(1, 1002)]
    assert errors == []


async def test_nothing_more_is_asked_for_once_nobody_reads_the_channel(autojump_clock: MockClock) -> None:
    asked = 0

    async def fill(hole: Hole) -> Page:
        nonlocal asked
        asked += 1
        await trio.sleep(1.0)
        return page(trades, "a", more="more")

    trades = Trades(fill=fill)
    async with GenericVenue() as venue, connect(venue, trades) as conn:
        async with conn.subscribe("a"):
            venue.publish("a")
            await cut(venue, conn)
            await back(conn)
            await trio.sleep(2.5)
        assert asked == 3
        await trio.sleep(5.0)
        assert asked == 3


async def test_a_drain_waits_for_a_back_fill(autojump_clock: MockClock) -> None:
    async def fill(hole: Hole) -> Page:
        await trio.sleep(3.0)
        return page(trades, "a", 2)

    trades = Trades(fill=fill)
    async with GenericVenue() as venue, connect(venue, trades) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        await cut(venue, conn)
        venue.skip("a")
        await back(conn)
        began = trio.current_time()
        await conn.drain()
        assert trio.current_time() - began == 3.0
        assert [item async for item in feed] == [1, 2]


# --------------------------------------------------------------------------- snapshots of books


@attrs.define(eq=False, kw_only=True, slots=False)
class Books(Adapter):
    """Books whose changes are numbered: a reader gets 4 for a change, "S3" for a snapshot that contains three."""

    host: str = "venue.test"
    secure: bool = False
    ask: Callable[[Channel], Awaitable[Data]]
    asked_at: list[float] = attrs.field(factory=list, init=False)

    def defaults(self) -> dict[str, Any]:
        return {"codec": JsonCodec()}

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"seq": int(n), "channel": channel, "data": None}:
                return Data(channel, n, n)
            case {"channel": channel, "data": int(n)}:
                return Data(channel, f"S{n}", Step(n, snapshot=True))
            case _:
                return None

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)

    async def snapshot(self, channel: Channel) -> Data:
        self.asked_at.append(trio.current_time())
        return await self.ask(channel)


def snap(n: int, channel: str = "a") -> Data:
    return Data(channel, f"S{n}", Step(n, snapshot=True))


async def test_changes_are_held_back_until_a_snapshot_is_there_and_joined_to_it(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        assert channel == Channel("a", "a")
        await trio.sleep(3.0)
        return snap(2)

    async with (
        GenericVenue() as venue,
        connect(venue, Books(ask=ask)) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        for _ in range(4):
            venue.publish("a")
        assert await taken(feed) == []
        assert await feed.receive() == "S2"
        assert trio.current_time() == 3.0
        venue.publish("a")
        assert await taken(feed) == [3, 4, 5]


async def test_a_snapshot_says_that_no_link_brought_it_and_the_changes_which_did(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        await trio.sleep(1.0)
        return snap(0)

    async with GenericVenue() as venue, connect(venue, Books(ask=ask)) as conn, conn.subscribe("a") as feed:
        venue.publish("a")
        await trio.sleep(2.0)
        venue.publish("a")
        await wait_all_tasks_blocked()
        deliveries = await feed.deliveries().receive_batch()
        assert [(each.payload, each.epoch) for each in deliveries] == [("S0", 0), (1, 1), (2, 1)]


@pytest.mark.parametrize("answered", [Data("a", "S1", 1), Data("a", "S1")])
async def test_what_the_hook_answers_is_a_snapshot_whether_it_says_so_or_not(
    answered: Data, autojump_clock: MockClock
) -> None:
    async def ask(channel: Channel) -> Data:
        return answered

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        assert await taken(feed) == ["S1"]
        venue.skip("a")
        venue.publish("a")
        assert await taken(feed) == [2]
    assert len(books.asked_at) == 1


async def test_a_snapshot_that_cannot_be_had_is_asked_for_again_with_back_off_and_others_are_not_held_up(
    autojump_clock: MockClock,
) -> None:
    answers: list[Any] = [OSError("no route"), None, snap(1), snap(4)]

    async def ask(channel: Channel) -> Any:
        if channel.key == "b":
            return snap(0, "b")
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    books, errors = Books(ask=ask), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, books, backoff=ListBackoff([1.0, 2.0, 4.0]), observers=[hear_errors(errors)]) as conn,
        conn.subscribe("b") as other,
    ):
        assert await taken(other) == ["S0"]
        async with conn.subscribe("a", feed=NOTICES) as feed:
            for _ in range(3):
                venue.skip("a")
            venue.publish("a")
            venue.publish("b")
            assert await taken(other) == [1]
            assert await taken(feed) == []
            assert await feed.receive() == "S4"  # that of 1 was too old for the change 4
            venue.publish("a")
            assert await taken(feed) == [5]
    assert books.asked_at == [0.0, 0.0, 1.0, 3.0, 7.0]
    assert errors == ["no route", str(ConfigError("snapshot", "answered a NoneType, which is no Data"))]


async def test_a_snapshot_that_takes_too_long_is_asked_for_again(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        if len(books.asked_at) == 1:
            await trio.sleep_forever()
        return snap(0)

    books, errors = Books(ask=ask), list[str]()
    async with (
        GenericVenue() as venue,
        connect(venue, books, observers=[hear_errors(errors)]) as conn,
        conn.subscribe("a") as feed,
    ):
        assert await feed.receive() == "S0"
    assert books.asked_at == [0.0, WITHIN + 5.0]
    assert errors == ["no snapshot of 'a' in time"]


async def test_no_more_changes_are_held_back_than_the_tracker_says_and_a_newer_snapshot_ends_the_waiting(
    autojump_clock: MockClock,
) -> None:
    class Small(Books):
        def tracker(self, channel: Channel) -> Tracker:
            return Tracker(resync=True, max_held=10)

    async def ask(channel: Channel) -> Data:
        await trio.sleep(1.0)
        return snap(0 if len(books.asked_at) == 1 else 15)

    books = Small(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        for _ in range(18):
            venue.publish("a")
        assert await feed.receive() == "S15"
        assert await taken(feed) == [16, 17, 18]
    assert len(books.asked_at) == 2


async def test_a_gap_is_told_and_a_snapshot_asked_for_without_giving_the_channel_up(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        await trio.sleep(1.0)
        return snap(0 if len(books.asked_at) == 1 else 5)

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        assert await feed.receive() == "S0"
        venue.publish("a")
        venue.skip("a")
        venue.publish("a")
        assert await taken(feed) == [1, ("lost", 1)]
        for _ in range(3):
            venue.publish("a")
        assert isinstance(await feed.receive(), Resynced)
        assert await taken(feed) == ["S5", 6]
        assert [asked.method for asked in venue.link.journal] == ["subscribe"]


async def test_a_second_reader_of_a_busy_book_begins_with_a_snapshot_that_is_behind_what_the_first_one_has(
    autojump_clock: MockClock,
) -> None:
    async def ask(channel: Channel) -> Data:
        n = len(venue.emitted.get("a", ()))
        await trio.sleep(1.0)  # it is old when it comes, as over a network
        return snap(n)

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as first:
        assert await first.receive() == "S0"
        for _ in range(3):
            venue.publish("a")
        async with conn.subscribe("a", feed=NOTICES) as second:
            await wait_all_tasks_blocked()
            for _ in range(3):
                venue.publish("a")
            assert await taken(first) == [1, 2, 3, 4, 5, 6]
            assert await taken(second) == []
            await trio.sleep(1.0)
            venue.publish("a")
            assert await taken(second) == ["S3", 4, 5, 6, 7]
            assert await taken(first) == [7]
    assert len(books.asked_at) == 2


async def test_a_snapshot_for_a_second_reader_that_fits_nothing_is_asked_for_again(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        return snap({1: 0, 2: 1}.get(len(books.asked_at), 3))

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as first:
        for _ in range(3):
            venue.publish("a")
        assert await taken(first) == ["S0", 1, 2, 3]
        async with conn.subscribe("a", feed=NOTICES) as second:
            assert await second.receive() == "S3"
            venue.publish("a")
            assert await taken(second) == await taken(first) == [4]
    assert books.asked_at == [0.0, 0.0, 5.0]


async def test_a_cut_ends_the_asking_and_the_next_link_begins_anew(autojump_clock: MockClock) -> None:
    cancelled = 0

    async def ask(channel: Channel) -> Data:
        nonlocal cancelled
        if conn.epoch == 1:
            try:
                await trio.sleep_forever()
            finally:
                cancelled += 1
        return snap(2)

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn, conn.subscribe("a", feed=NOTICES) as feed:
        venue.publish("a")
        await cut(venue, conn)
        assert cancelled == 1
        venue.skip("a")
        await back(conn)
        venue.publish("a")
        assert await taken(feed) == ["unknown", "S2", 3]
    assert books.asked_at == [0.0, 5.0]


async def test_a_snapshot_that_came_on_the_link_meanwhile_is_enough(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        await trio.sleep(1.0)
        return snap(2)

    async with (
        GenericVenue() as venue,
        connect(venue, Books(ask=ask)) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a", data=1)
        venue.publish("a")
        assert await taken(feed) == ["S1", 2]
        await trio.sleep(2.0)
        assert await taken(feed) == []


async def test_nobody_asks_for_a_snapshot_any_more_once_the_book_was_left(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        raise OSError("no route")

    books = Books(ask=ask)
    async with GenericVenue() as venue, connect(venue, books) as conn:
        async with conn.subscribe("a"):
            await trio.sleep(6.0)
        assert len(books.asked_at) == 2
        await trio.sleep(60.0)
        assert len(books.asked_at) == 2
        began = trio.current_time()
        await conn.drain()
        assert trio.current_time() == began


async def test_a_drain_waits_for_a_snapshot(autojump_clock: MockClock) -> None:
    async def ask(channel: Channel) -> Data:
        await trio.sleep(3.0)
        return snap(0)

    async with GenericVenue() as venue, connect(venue, Books(ask=ask)) as conn, conn.subscribe("a") as feed:
        venue.publish("a")
        await wait_all_tasks_blocked()
        await conn.drain()
        assert trio.current_time() == 3.0
        assert [item async for item in feed] == ["S0", 1]


async def test_a_book_is_mended_by_a_snapshot_and_not_by_what_was_missed(autojump_clock: MockClock) -> None:
    holes: list[Hole] = []

    class Both(Books):
        async def backfill(self, hole: Hole) -> Page:
            holes.append(hole)
            return Page()

        def read(self, message: Any) -> Reading | None:
            reading = super().read(message)
            return msgspec.structs.replace(reading, id=reading.payload) if isinstance(reading, Data) else reading

    async def ask(channel: Channel) -> Data:
        return snap(0 if conn.epoch == 1 else 2)

    async with (
        GenericVenue() as venue,
        connect(venue, Both(ask=ask)) as conn,
        conn.subscribe("a", feed=NOTICES) as feed,
    ):
        venue.publish("a")
        assert await taken(feed) == ["S0", 1]
        await cut(venue, conn)
        venue.skip("a")
        await back(conn)
        venue.publish("a")
        assert await taken(feed) == ["unknown", "Resynced", "S2", 3]
    assert holes == []
