"""What real exchanges have sent reaches its feeds, in order, and without a false alarm; what is missing is found."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.recordings.player import Player, Recording
from tests.recordings.venues import VENUES
from trio_nova import BookBuilder, Channel, Connection, Data, Event, FeedOptions, Gap, Step, open_connection
from trio_nova.readings import as_step
from trio_nova.testing import ScriptedServer

URL = "ws://venue.test/"

HERE = Path(__file__).parent
SMALL = HERE / "small"
"""Where the recordings are that were written by hand, in the shape of the real ones."""
NOTICES = FeedOptions(notices=True)
PLACES = 6
"""At how many places of a recording something goes wrong, in each way."""


def shared() -> Path:
    """Return where the recordings of real exchanges are: beside the repository, or beside what it is a worktree of."""
    beside = [folder / "shared" / "recordings" for folder in HERE.parents[2:]]
    found = next((folder for folder in beside if folder.is_dir()), beside[0])
    return Path(os.environ.get("TRIO_NOVA_RECORDINGS", found))


def recordings() -> Iterator[Any]:
    """Return the files of all recorded links."""
    for folder, name in ((SMALL, "small"), (shared(), "real")):
        paths = [path for path in sorted(folder.glob("*.ws.*")) if path.name.partition(".")[0] in VENUES]
        yield from (pytest.param(path, id=f"{name}-{path.name}") for path in paths)
        if not paths:
            reason = f"there are no recordings in {folder}; TRIO_NOVA_RECORDINGS names another folder"
            yield pytest.param(folder, id=name, marks=pytest.mark.skip(reason=reason))


with_each_recording = pytest.mark.parametrize("path", list(recordings()))


def player_of(path: Path, **options: Any) -> Player:
    exchange = path.name.partition(".")[0]
    return Player(VENUES[exchange], Recording.read(path, *sorted(path.parent.glob(f"{exchange}.http.*"))), **options)


@attrs.frozen
class Expected:
    """One thing that a reader is to get."""

    number: int
    """The number of the message among those that were received; -1: it was asked for by HTTP."""
    payload: Any
    step: Step | None


def expected_of(player: Player) -> Mapping[str, list[Expected]]:
    """Return all that the readers of each channel are to get, in order, if nothing goes wrong."""
    venue = player.venue
    snapshots: dict[str, Any] = {}
    for line in player.recording.of("fetched"):
        (symbol,) = parse_qs(urlsplit(line.url).query)["symbol"]
        snapshots.setdefault(symbol, line.message)
    adapter = venue.adapter(URL, player.fetch)
    expected: dict[str, list[Expected]] = {name: [] for name in player.channels}
    for number, line in enumerate(player.recording.of("received")):
        found = venue.data(line.message)
        if found is None:
            continue
        channel, payload = found
        reading = adapter.read(line.message)
        assert isinstance(reading, Data)
        step = as_step(reading.step)
        if step is not None and step.first is not None:
            body = snapshots[payload["s"]]
            last = body["lastUpdateId"]
            if not expected[channel]:
                expected[channel].append(Expected(-1, body, Step(last, snapshot=True)))
            if payload["u"] <= last:
                continue  # the snapshot has it already
        expected[channel].append(Expected(number, payload, step))
    return expected


@attrs.frozen
class Heard:
    """All that came of playing a recording."""

    by_channel: Mapping[str, list[Any]] = attrs.field(factory=dict)
    """Payloads and notices."""
    ordinary: list[Any] = attrs.field(factory=list)
    """The messages of no channel."""


async def play(player: Player) -> Heard:
    """Play a recording to a session in which somebody reads each channel, and return what they got."""
    heard = Heard({name: [] for name in player.channels})

    async def read(conn: Connection, channel: str) -> None:
        async with conn.subscribe(channel, feed=NOTICES) as feed:
            async for item in feed:
                heard.by_channel[channel].append(item)

    async with (
        ScriptedServer(player.serve) as server,
        open_connection(player.venue.adapter(URL, player.fetch), stream_factory=server.stream_factory) as conn,
        trio.open_nursery() as nursery,
    ):
        for channel in player.channels:
            nursery.start_soon(read, conn, channel)
        await player.played.wait()
        await wait_all_tasks_blocked()
        with suppress(trio.WouldBlock):
            while True:
                heard.ordinary.append(conn.receive_nowait())
        assert conn.epoch == 1
        assert conn.statistics().errors == 0
        nursery.cancel_scope.cancel()
    return heard


@with_each_recording
@pytest.mark.parametrize("is_paced", [False, True], ids=["at once", "as it came"])
async def test_every_message_reaches_its_feed_in_order_and_without_a_false_alarm(
    path: Path, is_paced: bool, autojump_clock: MockClock
) -> None:
    player = player_of(path, is_paced=is_paced)
    heard = await play(player)
    assert heard.by_channel == {
        channel: [each.payload for each in messages] for channel, messages in expected_of(player).items()
    }
    venue, messages = player.venue, [line.message for line in player.recording.of("received")]
    assert heard.ordinary == [
        each
        for each in messages
        if not (venue.data(each) or venue.confirms(each) or venue.is_beat(each) or venue.is_reply(each))
    ]
    assert player.given_up == []
    assert len(player.fetched) == len(set(player.fetched))


# --------------------------------------------------------------------------- what goes wrong


@attrs.frozen
class Fault:
    """A message that is left out, or spoilt, and where that must be noticed."""

    channel: str
    number: int
    """The number of the message among all that were received."""
    spoilt: str | None
    """What is sent in its place; None: nothing."""
    found_at: int
    """The number of the message at which it must be noticed."""
    before: Sequence[Any]
    """What the reader of the channel has got until then."""


def find(player: Player, channel: str, messages: Sequence[Expected], at: int, *, is_lost: bool) -> Fault | None:
    """Return the fault of one of the channel's messages; None where the service says nothing that would show it."""
    adapter, text = player.venue.adapter(URL, player.fetch), None
    played = list(messages)
    if is_lost:
        del played[at]
    else:
        whole = player.venue.spoil(list(player.recording.of("received"))[messages[at].number].message)
        reading = None if whole is None else adapter.read(whole)
        if not isinstance(reading, Data):
            return None
        text = json.dumps(whole)
        played[at] = Expected(messages[at].number, reading.payload, as_step(reading.step))
    tracker = adapter.tracker(Channel(channel, channel))
    assert tracker is not None
    found = first_misfit(played, tracker.build)
    if found is None or found < at:
        return None
    before = [each.payload for each in played[:found]]
    return Fault(channel, messages[at].number, text, played[found].number, before)


def first_misfit(messages: Sequence[Expected], build: Callable[[], BookBuilder] | None) -> int | None:
    """Return the place of the first message that does not fit those before it, by its numbers or its checksum."""
    last: int | None = None
    book, is_joining = None, False
    for place, message in enumerate(messages):
        step = message.step
        assert step is not None
        if last is not None and step.last is not None and not step.snapshot:
            first = step.last if step.first is None else step.first
            if step.previous is None:
                is_next = first <= last + 1 <= step.last
            else:  # a snapshot may stand inside of what the first change covers
                is_next = step.previous == last or (is_joining and step.previous < last < step.last)
            if not is_next:
                return place
        last, is_joining = step.last, step.snapshot
        if build is not None:
            book = build() if step.snapshot or book is None else book
            try:
                book.apply(message.payload, step.snapshot)
                if step.checksum is not None and book.checksum() != step.checksum:
                    return place
            except (KeyError, ValueError):
                return place
    return None


def faults_of(player: Player, *, is_lost: bool) -> Sequence[Fault]:
    """Return faults at places all over the recording, each of which shows."""
    expected = expected_of(player)
    adapter = player.venue.adapter(URL, player.fetch)
    received = list(player.recording.of("received"))
    joined_at = max((line.at for line in player.recording.of("fetched")), default=0.0)
    places = [
        (channel, at)
        for channel, messages in expected.items()
        if adapter.tracker(Channel(channel, channel)) is not None and all(each.step for each in messages)
        for at, message in enumerate(messages)
        if at > 0 and received[message.number].at > joined_at
    ]
    found: list[Fault] = []
    for channel, at in places[:: max(1, len(places) // (4 * PLACES))]:
        fault = find(player, channel, expected[channel], at, is_lost=is_lost)
        if fault is not None:
            found.append(fault)
    return found[:: max(1, len(found) // PLACES)]


@with_each_recording
@pytest.mark.parametrize("is_lost", [True, False], ids=["left out", "spoilt"])
async def test_a_message_that_is_missing_or_spoilt_is_found_and_a_book_asked_for_anew(
    path: Path, is_lost: bool, autojump_clock: MockClock
) -> None:
    faults = faults_of(player_of(path), is_lost=is_lost)
    if not faults and path.parent != SMALL:
        pytest.skip("nothing in this recording would show that something is missing")
    assert faults
    is_joined = any(player_of(path).recording.of("fetched"))  # then it matters when a snapshot came
    for fault in faults:

        def edit(number: int, text: str, fault: Fault = fault) -> str | None:
            return fault.spoilt if number == fault.number else text

        player = player_of(path, edit=edit, until=fault.found_at + 1, is_paced=is_joined)
        heard = await play(player)
        items = heard.by_channel[fault.channel]
        assert items[: len(fault.before)] == fault.before
        gap, *rest = items[len(fault.before) :]
        assert isinstance(gap, Gap)
        assert gap.outcome == "lost"
        tracker = player.venue.adapter(URL, player.fetch).tracker(Channel(fault.channel, fault.channel))
        assert tracker is not None
        if not tracker.resync:
            assert len(rest) == 1  # trades stand alone: what came is delivered behind the notice
        elif player.fetched:
            assert rest == []
            symbol = fault.channel.partition("@")[0].upper()
            assert sum(f"symbol={symbol}&" in url for url in player.fetched) > 1
        else:
            assert rest == []
            assert player.given_up == [fault.channel]
            assert player.asked.count(fault.channel) > 1
        others = {name: items for name, items in heard.by_channel.items() if name != fault.channel}
        assert not any(isinstance(item, Event) for items in others.values() for item in items)


# --------------------------------------------------------------------------- what it takes


@pytest.mark.parametrize("exchange", ["binance", "bybit", "coinbase", "kraken", "okx"])
def test_an_adapter_of_an_exchange_is_a_page(exchange: str) -> None:
    source = (HERE / f"{exchange}.py").read_text("utf-8")
    texts = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    explained = {line for text in texts for line in range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    code = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in explained
    ]
    assert len(code) <= 90


def test_a_line_that_is_none_of_a_recording_is_named(tmp_path: Path) -> None:
    path = tmp_path / "KRAKEN.ws.1.0"
    path.write_text('1.5: {"event":"heartbeat"}\nnonsense\n', "utf-8")
    with pytest.raises(ValueError, match=r"KRAKEN\.ws\.1\.0:2"):
        Recording.read(path)
