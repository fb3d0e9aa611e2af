"""Every event of a session, once, with its real duration; and what logging and metrics make of them."""

from __future__ import annotations

import inspect
import io
import json
import logging
import math
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    AuthFailed,
    ConfigError,
    ConnectionEvent,
    ErrorEvent,
    Event,
    JsonCodec,
    ListBackoff,
    LoggingHandler,
    MessageEvent,
    MetricsCollector,
    NotSent,
    Observation,
    Ping,
    Pong,
    RateLimitHandler,
    RequestFailed,
    State,
    TokenBucket,
    events,
    profiles,
)
from trio_nova.observe.logging import _SENTENCES, describe, level_of, sentence
from trio_nova.observe.metrics import Histogram
from trio_nova.testing import Peer, ScriptedServer, echo

URL = "ws://server.test/"
DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "reference" / "events.md").read_text("utf-8")


def event_classes() -> list[type[Event]]:
    found = [each for _, each in inspect.getmembers(events, inspect.isclass) if issubclass(each, Event)]
    return [each for each in found if each not in (Event, ConnectionEvent)]


@attrs.define(eq=False)
class Journal(MetricsCollector):
    """Keeps every event, and counts them as its base does."""

    observations: list[Observation] = attrs.field(factory=list)

    def handle_connection_event(self, observation: Observation) -> None:
        self.observations.append(observation)
        MetricsCollector.handle_connection_event(self, observation)

    def handle_message_event(self, observation: Observation) -> None:
        self.observations.append(observation)

    def handle_error_event(self, observation: Observation) -> None:
        self.observations.append(observation)
        MetricsCollector.handle_error_event(self, observation)

    @property
    def events(self) -> list[Event]:
        return [observation.event for observation in self.observations]

    def of(self, kind: str) -> Iterator[Event]:
        return (event for event in self.events if type(event).__name__ == kind)


# --------------------------------------------------------------------------- one session with all of them

UPGRADE, LOGIN, CONFIRM, ANSWER, PONG = 0.5, 0.25, 0.125, 2.0, 0.0625
"""Seconds that the server takes for each."""


async def slow_venue(peer: Peer) -> None:
    """Answer all that comes, each after its time; on the first link, fall silent when told."""
    first = peer.dialled.number == 1
    await trio.sleep(UPGRADE)
    await peer.accept()
    peer.answer_pings = False
    while True:
        match await peer.receive():
            case Ping(payload):
                await trio.sleep(PONG)
                await peer.send(Pong(payload))
            case str() as frame:
                message = json.loads(frame)
                match message["type"]:
                    case "auth":
                        await trio.sleep(LOGIN)
                        known = message["token"] == "right"
                        await peer.send_json({"type": "auth_success" if known else "auth_error", "reason": "who?"})
                    case "subscribe":
                        await trio.sleep(CONFIRM)
                        channel = message["channel"]
                        granted = first or channel == "a"
                        await peer.send_json({"type": "subscribed" if granted else "error", "channel": channel})
                    case "question":
                        await trio.sleep(ANSWER)
                        await peer.send_json({"type": "answer", "id": message["id"]})
                    case "too much":
                        await peer.send_json({"id": message["id"], "error": {"code": 429, "retry_after": 3}})
                    case "fall silent":
                        await peer.mute()
            case _:
                return


async def test_every_event_is_told_once_with_its_real_duration(autojump_clock: MockClock) -> None:
    journal = Journal()
    limiter = RateLimitHandler([TokenBucket(100.0, 10.0)], costs={"dear": 60.0, "impossible": 95.0}, reserve=10.0)

    async with ScriptedServer(then=slow_venue) as server:
        async with trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            codec=JsonCodec(),
            credentials="right",
            allow_plaintext_credentials=True,
            backoff=ListBackoff([7.0]),
            ping_interval=math.inf,
            pong_timeout=4.0,
            rate_limit_handler=limiter,
            metrics_collector=journal,
        ) as conn:
            assert trio.current_time() == 0.75
            conn.import_subscriptions('[{"channel": "a", "params": {}}, {"channel": "b", "params": {}}]')
            await trio.sleep_until(2.0)
            await conn.send({"type": "hello"})
            await conn.request({"type": "question"})  # until 4
            assert await conn.ping() == PONG
            await conn.authenticate()
            with pytest.raises(AuthFailed):
                await conn.authenticate("wrong")
            conn.hand_over("another task")
            await trio.sleep_until(20.0)
            await conn.send({"type": "dear"})
            await conn.send({"type": "dear"})  # 60 of 100 are left to leave 10: 3 s for the missing 30
            assert trio.current_time() == 23.0
            with pytest.raises(NotSent):
                await conn.send({"type": "impossible"})
            await trio.sleep_until(40.0)
            with pytest.raises(RequestFailed):
                await conn.request({"type": "too much"})
            await trio.sleep_until(50.0)
            await conn.send({"type": "fall silent"})
            conn.reconfigure(ping_interval=10.0)  # a ping at 60, and no pong by 64
            await conn.wait_state(State.RECONNECTING)
            await conn.wait_ready()  # 71 + 0.5 + 0.25 + 2 * 0.125
            conn.reconfigure(ping_interval=math.inf)

    told = [line for each in journal.observations if (line := shown(each)) is not None]
    assert told == [
        "0 DialStarted attempt=1",
        "0.5 LinkOpened connect_time=0.5",  # connection upgrade
        "0.5 AuthStarted refresh=False",
        "0.5 MessageEvent sent auth latency=0",
        "0.5 RequestSent",  # authentication asks as any request does
        "0.75 MessageEvent received auth_success latency=0",
        "0.75 RequestResolved round_trip=0.25",
        "0.75 Authenticated duration=0.25 refresh=False",
        "0.75 BecameReady",  # connection open
        "0.75 MessageEvent sent subscribe latency=0",
        "0.75 MessageEvent sent subscribe latency=0",
        "0.875 MessageEvent received subscribed latency=0",
        "0.875 SubscriptionConfirmed channel=a restored=False",
        "1 MessageEvent received subscribed latency=0",
        "1 SubscriptionConfirmed channel=b restored=False",
        "2 MessageEvent sent hello latency=0",
        "2 MessageEvent sent question latency=0",
        "2 RequestSent",
        "4 MessageEvent received answer latency=0",
        "4 RequestResolved round_trip=2",
        "4 PingSent",
        "4.0625 PongReceived rtt=0.0625",
        "4.0625 AuthStarted refresh=True",
        "4.0625 MessageEvent sent auth latency=0",
        "4.0625 RequestSent",
        "4.3125 MessageEvent received auth_success latency=0",
        "4.3125 RequestResolved round_trip=0.25",
        "4.3125 Authenticated duration=0.25 refresh=True",
        "4.3125 AuthStarted refresh=True",
        "4.3125 MessageEvent sent auth latency=0",
        "4.3125 RequestSent",
        "4.5625 MessageEvent received auth_error latency=0",
        "4.5625 RequestResolved round_trip=0.25",
        "4.5625 AuthUnsuccessful refresh=True",
        "4.5625 AuthStarted refresh=True",  # as who we were before
        "4.5625 MessageEvent sent auth latency=0",
        "4.5625 RequestSent",
        "4.8125 MessageEvent received auth_success latency=0",
        "4.8125 RequestResolved round_trip=0.25",
        "4.8125 Authenticated duration=0.25 refresh=True",
        "4.8125 OwnershipTransferred to=another task",
        "20 MessageEvent sent dear latency=0",
        "23 RateLimited wait=3",
        "23 RateHighWater used=0.9",
        "23 MessageEvent sent dear latency=3",
        "23 RateRejected reason=its cost of 95 exceeds the limit, with 10 kept in reserve",
        "27.001 RateLowWater used=0.4999",
        "40 MessageEvent sent too much latency=0",
        "40 RequestSent",
        "40 MessageEvent received  latency=0",
        "40 RateLimitSlowed factor=0.5 until=43",
        "40 RequestUnresolved",
        "50 MessageEvent sent fall silent latency=0",
        "50 Reconfigured",
        "60 PingSent",
        "64 PeerSilent clock=pong silence=24",  # heartbeat missed
        "64 LinkClosed code=1006 duration=63.5 reason=",
        "64 ErrorEvent category=network context=link",
        "64 RetryScheduled attempt=1 delay=7",
        "71 DialStarted attempt=2",
        "71.5 LinkOpened connect_time=0.5",
        "71.5 AuthStarted refresh=False",
        "71.5 MessageEvent sent auth latency=0",
        "71.5 RequestSent",
        "71.75 MessageEvent received auth_success latency=0",
        "71.75 RequestResolved round_trip=0.25",
        "71.75 Authenticated duration=0.25 refresh=False",
        "71.75 MessageEvent sent subscribe latency=0",
        "71.75 MessageEvent sent subscribe latency=0",
        "71.875 MessageEvent received subscribed latency=0",
        "71.875 Gap channel=a until=71.875",
        "71.875 SubscriptionConfirmed channel=a restored=True",
        "72 MessageEvent received error latency=0",
        "72 SubscriptionRefused channel=b restoring=True",  # subscription restoration failed
        "72 SubscriptionsRestored confirmed=1 duration=0.25 rejected=1",
        "72 Reconnected attempts=1 outage=8",
        "72 BecameReady",
        "72 Reconfigured",
        "72 LinkClosed code=1000 duration=0.5 reason=",
        "72 SessionEnded",
    ]
    consumed = [event for event in journal.events if isinstance(event, trio_nova.RateConsumed)]
    frames = [event for event in journal.events if isinstance(event, MessageEvent) and event.direction == "sent"]
    pings = list(journal.of("PingSent"))
    assert sum(event.messages for event in consumed) == len(frames) + len(pings)
    assert sum(event.cost for event in consumed) == limiter.consumed

    numbers = journal.snapshot()
    assert numbers["connect_time.count"] == 2
    assert numbers["connect_time.sum"] == 1.0
    assert numbers["outage.p50"] == 8.0
    assert numbers["rtt.p99"] == PONG
    assert numbers["round_trip.sum"] == 3.25  # the question, and five logins
    assert numbers["rate_limit_wait.sum"] == pytest.approx(3.0)
    assert numbers["rate_limit.consumed"] == limiter.consumed
    assert numbers["events.Reconnected"] == numbers["events.PeerSilent"] == numbers["errors.network"] == 1
    assert documented_metrics() >= {re.sub(r"\.(count|sum|p\d+)$", "", name) for name in numbers}


SHOWN = (
    "attempt",
    "attempts",
    "category",
    "channel",
    "clock",
    "code",
    "confirmed",
    "connect_time",
    "context",
    "delay",
    "duration",
    "factor",
    "outage",
    "reason",
    "refresh",
    "rejected",
    "restored",
    "restoring",
    "round_trip",
    "rtt",
    "silence",
    "to",
    "until",
    "used",
    "wait",
)
"""The fields that the test above looks at."""


def shown(observation: Observation) -> str | None:
    """Return when an event was told, its name, and what it measured."""
    event = observation.event
    name, at = type(event).__name__, f"{round(observation.at, 6):g}"
    match event:
        case events.StateChanged() | events.RateConsumed():
            return None
        case MessageEvent(direction=direction, message_type=kind, latency=latency):
            return f"{at} {name} {direction} {kind} latency={latency:.6g}"
    values = {field: getattr(event, field) for field in SHOWN if hasattr(event, field)}
    if isinstance(event, events.SubscriptionRefused):
        del values["reason"]
    texts = (
        f"{field}={round(value, 6):g}" if isinstance(value, float) else f"{field}={value}"
        for field, value in values.items()
    )
    return " ".join([at, name, *texts])


async def test_a_cancelled_request_ends_in_an_event_too(autojump_clock: MockClock) -> None:
    async def mute(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    journal = Journal()
    async with (
        ScriptedServer(mute) as server,
        trio_nova.open_connection(
            URL, stream_factory=server.stream_factory, codec=JsonCodec(), metrics_collector=journal
        ) as conn,
    ):
        with trio.move_on_after(1.0):
            await conn.request({"type": "question"})
        conn_drained = trio.Event()

        async def drain() -> None:
            await conn.drain()
            conn_drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises((NotSent, trio_nova.SessionOver)):
                await conn.request({"type": "too late"})
    assert [type(event.error) for event in journal.events if isinstance(event, trio_nova.RequestUnresolved)][:1] == [
        type(None)
    ]
    assert len(list(journal.of("RequestUnresolved"))) == 2
    assert len(list(journal.of("RequestSent"))) == 1


# --------------------------------------------------------------------------- what is made of them


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table under a heading, by their first cell."""
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    assert len({cells[0] for cells in rows}) == len(rows)
    return {cells[0]: cells[1:] for cells in rows}


def test_the_table_of_events_is_the_codes_own() -> None:
    documented = table("All events")
    assert set(documented) == {f"`{each.__name__}`" for each in event_classes()}
    for each in event_classes():
        family, level, _, *fields = documented[f"`{each.__name__}`"]
        kind = {MessageEvent: "message", ErrorEvent: "error", events.SecretRevealed: "audit"}.get(each, "connection")
        assert family.split(";")[0] == kind, each.__name__
        own = {field.name for field in attrs.fields(each)}
        assert own == set(re.findall(r"`(\w+)`", "".join(fields))), each.__name__
        if each not in (events.LinkClosed, events.RetryScheduled, events.SessionEnded, ErrorEvent):
            # What a level depends on is the class: no field need be right.
            assert logging.getLevelName(level_of(object.__new__(each))) == level, each.__name__


def documented_metrics() -> set[str]:
    """Return every name that the page allows for, placeholders filled in."""
    names = {name for cell in table("Metrics") for name in re.findall(r"`([\w.<>]+)`", cell)}
    classes = {f"events.{each.__name__}" for each in event_classes()}
    categories = re.findall(r"`(\w+)`", table("Metrics")["`errors.<category>`"][1])
    return (names - {"events.<class>", "errors.<category>"}) | classes | {f"errors.{each}" for each in categories}


def test_the_levels_of_events_are_the_profiles() -> None:
    assert trio_nova.Config(events="detailed").events == trio_nova.Config().events
    assert profiles.FINANCIAL.events == profiles.MESSAGING.events == trio_nova.Config(events="detailed").events
    assert profiles.STANDARD.events == profiles.LIGHTWEIGHT.events == trio_nova.Config(events="standard").events
    assert trio_nova.Config(events="minimal").events == {"error"}
    with pytest.raises(ConfigError, match="events"):
        trio_nova.Config(events="verbose")


@pytest.mark.parametrize(
    ("level", "families"),
    [("detailed", {"connection", "message", "error"}), ("standard", {"connection", "error"}), ("minimal", {"error"})],
)
async def test_logging_and_metrics_are_told_the_families_of_the_level(
    level: str, families: set[str], autojump_clock: MockClock
) -> None:
    async def drop_after_hello(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    journal = Journal()
    async with ScriptedServer(drop_after_hello, then=echo) as server:
        async with trio_nova.open_connection(
            URL, stream_factory=server.stream_factory, events=level, metrics_collector=journal
        ) as conn:
            await conn.send_text("hello")
            await conn.wait_state(State.RECONNECTING)
    kinds = {MessageEvent: "message", ErrorEvent: "error"}
    assert {kinds.get(type(event), "connection") for event in journal.events} == families


async def test_no_message_event_is_made_and_no_type_asked_for_while_nobody_listens(autojump_clock: MockClock) -> None:
    asked: list[Any] = []

    class Asked(trio_nova.MessageHandler):
        def message_type(self, message: Any) -> str:
            asked.append(message)
            return "x"

    logger = logging.getLogger("trio_nova.test_telemetry")
    logger.setLevel(logging.INFO)
    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            message_handler=Asked,
            logging_handler=LoggingHandler(logger),
        ) as conn,
    ):
        await conn.send("a")
        await conn.receive()
        assert asked == []
        async with conn.listen(messages=True) as events:
            await conn.send("b")
            await conn.receive()
            heard = [await events.receive(), await events.receive()]
        assert [(event.direction, event.message_type) for event in heard if isinstance(event, MessageEvent)] == [
            ("sent", "x"),
            ("received", "x"),
        ]
        await conn.send("c")
        await conn.receive()
        assert asked == ["b", "b"]


@pytest.mark.fault("F110", where="memory")
async def test_the_strings_of_a_hostile_peer_never_become_a_name_and_are_escaped_in_logs(
    autojump_clock: MockClock,
) -> None:
    nasty = "\x1b[31mred\nINFO forged " + "x" * 10_000

    async def hostile(peer: Peer) -> None:
        await peer.accept()
        for number in range(200):
            await peer.send_json({"type": f"{nasty}{number}", "channel": f"{nasty}{number}", "id": f"{nasty}{number}"})
            await peer.send_json({"id": number, "error": {"code": f"{nasty}{number}"}})
        await peer.close(4000, "\x1b[2J really")

    class Classifies(trio_nova.ErrorHandler):
        def classify_error(self, error: Exception) -> Any:
            return f"user's {error} {nasty}"

    logger = logging.getLogger("trio_nova.test_telemetry.hostile")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    stream = io.StringIO()
    output = logging.StreamHandler(stream)
    logger.addHandler(output)
    metrics = MetricsCollector()
    async with ScriptedServer(hostile, then=echo) as server:
        try:
            async with trio_nova.open_connection(
                URL,
                stream_factory=server.stream_factory,
                codec=JsonCodec(),
                metrics_collector=metrics,
                error_handler=Classifies,
                logging_handler=LoggingHandler(logger, format="json"),
            ) as conn:
                await conn.wait_state(State.RECONNECTING)
        finally:
            logger.removeHandler(output)
    names = {re.sub(r"\.(count|sum|p\d+)$", "", name) for name in metrics.snapshot()}
    assert names <= documented_metrics()
    assert metrics.counters["errors.unknown"] >= 1
    lines = stream.getvalue().splitlines()
    assert len(lines) > 400
    assert "\x1b" not in stream.getvalue()
    records = [json.loads(line) for line in lines]
    assert {record["event"] for record in records} <= {each.__name__ for each in event_classes()}
    assert max(map(len, lines)) < 2_000


@pytest.mark.parametrize("format", ["plain", "json"])
async def test_a_log_names_every_event_once_in_its_format(
    format: Any, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    journal = Journal()
    caplog.set_level(logging.DEBUG, "trio_nova")
    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            metrics_collector=journal,
            logging_handler=LoggingHandler(format=format),
        ) as conn,
    ):
        await conn.send_text("secret content")
        await conn.receive()
    lines = [record.getMessage() for record in caplog.records if record.name == "trio_nova"]
    assert not any("secret content" in line for line in lines)
    if format == "json":
        assert [json.loads(line) for line in lines] == [
            json.loads(json.dumps(describe(each), default=str)) for each in journal.observations
        ]
    else:
        assert lines == [sentence(each) for each in journal.observations]


@pytest.fixture
def written() -> tuple[LoggingHandler, list[dict[str, Any]]]:
    """Return a handler that logs JSON, and what it has logged, from DEBUG."""
    logger, records = logging.Logger("sampled", logging.DEBUG), list[dict[str, Any]]()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append({"level": record.levelname, **json.loads(record.getMessage())})

    logger.addHandler(Keep())
    return LoggingHandler(logger, format="json"), records


def seen(event: Event, epoch: int, at: float) -> Observation:
    return Observation("server.test[1]", epoch, at, at, event)


def failed(at: float, error: Exception, context: str = "decode") -> Observation:
    return seen(ErrorEvent(error=error, category="protocol", context=context), 1, at)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING], ids=logging.getLevelName)
async def test_a_flood_of_bad_messages_is_ten_records_and_a_number_and_metrics_count_them_all(
    autojump_clock: MockClock, written: tuple[LoggingHandler, list[dict[str, Any]]], level: int
) -> None:
    handler, records = written
    assert isinstance(handler.logger, logging.Logger)
    handler.logger.setLevel(level)

    async def flood(peer: Peer) -> None:
        await peer.accept()
        for _ in range(5_000):
            await peer.send("{")
        await peer.send_json("done")

    metrics = MetricsCollector()
    async with (
        ScriptedServer(flood) as server,
        trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            codec=JsonCodec(),
            wall_clock=trio.current_time,
            logging_handler=handler,
            metrics_collector=metrics,
        ) as conn,
    ):
        assert await conn.receive() == "done"
    loud = [record for record in records if record["level"] == "WARNING"]
    assert [record["event"] for record in loud] == ["ErrorEvent"] * 11
    assert loud[-1] == {
        "level": "WARNING",
        "event": "ErrorEvent",
        "session": loud[0]["session"],
        "kind": "BadMessage",
        "left_out": 4_990,
    }
    assert records[-1]["event"] == ("SessionEnded" if level == logging.DEBUG else "ErrorEvent")
    assert sum(count for name, count in metrics.counters.items() if name.startswith("errors.")) == 5_000


def test_each_kind_has_ten_records_a_second_and_the_next_second_tells_how_many_were_left_out(
    written: tuple[LoggingHandler, list[dict[str, Any]]],
) -> None:
    handler, records = written
    for number in range(12):
        handler.log_error_event(failed(5.0 + number / 100, trio_nova.BadMessage("bad")))
        handler.log_error_event(failed(5.0 + number / 100, NotSent("full")))
        handler.log_connection_event(seen(events.Dropped(count=1, where="inbox"), 1, 5.5))
        handler.log_connection_event(seen(events.FeedStale(id=1, channel="a", age=1.0), 1, 5.5))
    kinds = Counter(str(record.get("error", record.get("where", record["event"])))[:10] for record in records)
    assert kinds == {"BadMessage": 10, "NotSent: f": 10, "inbox": 10, "FeedStale": 12}
    handler.log_error_event(failed(5.99, NotSent("full")))
    del records[:]
    handler.log_error_event(failed(6.0, NotSent("full")))
    assert [(record["event"], record.get("kind"), record.get("left_out")) for record in records] == [
        ("ErrorEvent", "BadMessage", 2),
        ("ErrorEvent", "NotSent", 3),
        ("Dropped", "inbox", 2),
        ("ErrorEvent", None, None),
    ]
    del records[:]
    for at in (7.5, 0.0):  # another run of Trio may use the same handler: its clock begins anew
        for _ in range(10):
            handler.log_error_event(failed(at, NotSent("full")))
    assert len(records) == 20


@pytest.mark.parametrize(("code", "level"), [(1001, "INFO"), (1012, "INFO"), (1011, "WARNING"), (1006, "WARNING")])
def test_a_loss_is_one_record_for_whoever_does_not_debug_a_warning_unless_it_was_in_good_order(
    written: tuple[LoggingHandler, list[dict[str, Any]]], code: int, level: str
) -> None:
    handler, records = written
    lost = trio_nova.LinkLost(code, remote=True)
    closed = seen(events.LinkClosed(code=code, reason="", remote=True, duration=1.0, detail=""), 1, 0.0)
    handler.log_connection_event(closed)
    handler.log_error_event(failed(0.0, lost, context="link"))
    handler.log_connection_event(seen(events.RetryScheduled(delay=0.0625, attempt=1, error=lost), 1, 0.0))
    assert [(record["event"], record["level"]) for record in records] == [
        ("LinkClosed", "DEBUG"),
        ("ErrorEvent", "DEBUG"),
        ("RetryScheduled", level),
    ]


def hole(outcome: Literal["resumed", "lost", "unknown"], lost: int | None) -> Event:
    return events.Gap(
        id=1,
        channel="trades",
        epoch_from=1,
        epoch_to=2,
        since=0.0,
        until=1.0,
        wall_since=0.0,
        wall_until=0.0,
        cause="link 1 lost, code 1006",
        outcome=outcome,
        lost=lost,
    )


SENTENCES: tuple[tuple[Event, str], ...] = (
    (hole("resumed", None), "nothing is missing in trades: link 1 lost, code 1006"),
    (hole("unknown", None), "messages may be missing in trades: link 1 lost, code 1006"),
    (hole("lost", None), "messages are missing in trades: link 1 lost, code 1006"),
    (hole("lost", 3), "3 messages are missing in trades: link 1 lost, code 1006"),
    (
        events.RetryScheduled(delay=0.0625, attempt=1, error=trio_nova.LinkLost(1006, "", 1)),
        "link 1 lost (1006), next try in 0.0625 s",
    ),
    (
        events.RetryScheduled(delay=2.0, attempt=1, error=trio_nova.LinkLost(1012, "restart", 3, remote=True)),
        "link 3 lost (1012 restart), next try in 2 s",
    ),
    (
        events.RetryScheduled(delay=0.5, attempt=2, error=trio_nova.ConnectFailed("no route", phase="tcp")),
        "ConnectFailed: no route, next try in 0.5 s",
    ),
    (
        events.SessionEnded(error=trio_nova.LinkLost(4000, "\x1b[2J", 2, remote=True)),
        "is over: link 2 lost (4000 \\x1b[2J)",
    ),
    (events.SessionEnded(error=None), "is over"),
    (
        events.SubscriptionEnded(id=3, channel="trades", reason="expired"),
        "subscription 3 to trades was ended by the service, which says 'expired'",
    ),
    (
        events.MoveAsked(within=None, to="", reason="a new version"),
        "link 1: the service asks for another one, and says 'a new version'",
    ),
    (events.RequestUnresolved(id=7, error=None), "request 7 was given up"),
    (events.LinkOpened(connect_time=0.123456), "link 1 is up after 0.123 s"),
)


@pytest.mark.parametrize(("event", "said"), SENTENCES)
def test_a_log_line_is_a_sentence_with_the_name_of_the_session(event: Event, said: str) -> None:
    assert sentence(seen(event, 1, 0.0)) == f"server.test[1] {said}"


def test_every_event_has_a_sentence_and_one_of_somebody_elses_its_fields() -> None:
    told = {events.Gap, events.LinkClosed, events.RetryScheduled, *_SENTENCES}
    assert told == set(event_classes())

    @attrs.frozen(kw_only=True)
    class Mine(ConnectionEvent):
        what: str

    assert sentence(seen(Mine(what="a thing"), 1, 0.0)) == "server.test[1] Mine what=a thing"


# --------------------------------------------------------------------------- observers


async def test_the_log_of_two_sessions_to_one_host_tells_them_apart_and_a_loss_is_one_line(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def drop_once(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.drop()

    caplog.set_level(logging.INFO, "trio_nova")
    async with ScriptedServer(drop_once, drop_once, then=echo) as server:
        async with (
            trio_nova.open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([0.5])) as one,
            trio_nova.open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([0.25])) as other,
        ):
            await trio.sleep(10.0)
            names = [f"server.test[{conn.id}]" for conn in (one, other)]
            assert [repr(conn).split()[1] for conn in (one, other)] == names
            tasks = {task.name for task in all_tasks()}
            assert {f"nova[{conn.id}]:reader#2" for conn in (one, other)} <= tasks
    losses = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(losses) == sorted(
        f"{name} link 1 lost (1006: the connection closed between two messages), next try in {delay} s"
        for name, delay in zip(names, ("0.5", "0.25"), strict=True)
    )
    assert all(record.getMessage().startswith(tuple(names)) for record in caplog.records)


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        if task is not None:
            yield task
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


async def test_observers_are_told_what_they_name_with_session_link_and_both_clocks(autojump_clock: MockClock) -> None:
    everything: list[Observation] = []
    links: list[Observation] = []

    @trio_nova.hears(events.LinkOpened, MessageEvent)
    def watch(observation: Observation) -> None:
        links.append(observation)

    async with ScriptedServer(echo) as server:
        async with trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            observers=[everything.append, watch],
            events=(),
            wall_clock=lambda: 1_000.0 + trio.current_time(),
        ) as conn:
            await trio.sleep(2.0)
            await conn.send_text("hi")
            await conn.receive()
    name = f"server.test[{conn.id}]"
    assert [(each.session, each.epoch, each.at, each.wall, type(each.event)) for each in links] == [
        (name, 1, 0.0, 1_000.0, events.LinkOpened),
        (name, 1, 2.0, 1_002.0, MessageEvent),
        (name, 1, 2.0, 1_002.0, MessageEvent),
    ]
    assert not any(isinstance(each.event, MessageEvent) for each in everything)
    assert type(everything[-1].event) is events.SessionEnded


async def test_a_listener_can_name_the_events_that_it_hears(autojump_clock: MockClock) -> None:
    async with ScriptedServer(echo) as server:
        async with (
            trio_nova.open_connection(URL, stream_factory=server.stream_factory) as conn,
            conn.listen(events.PongReceived, MessageEvent) as heard,
        ):
            await conn.ping()
            await conn.send_text("hi")
            assert [type(event) for event in await heard.receive_batch()] == [events.PongReceived, MessageEvent]


async def test_an_observer_that_raises_is_told_nothing_more_and_the_others_that_it_failed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []
    calls = 0

    def broken(observation: Observation) -> None:
        nonlocal calls
        calls += 1
        raise KeyError("mine")

    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(
            URL, stream_factory=server.stream_factory, observers=[broken, lambda seen: told.append(seen.event)]
        ) as conn,
    ):
        await conn.send_text("hi")
        assert await conn.receive() == "hi"
    failures = [event for event in told if isinstance(event, ErrorEvent)]
    assert [(str(event.error), event.context) for event in failures] == [("'mine'", "observer")]
    assert calls == 1
    assert len([record for record in caplog.records if "is told nothing any more" in record.getMessage()]) == 1


async def test_what_is_told_from_inside_an_observer_waits_until_all_have_heard_the_event_before(
    autojump_clock: MockClock,
) -> None:
    first: list[str] = []
    second: list[str] = []

    def meddles(observation: Observation) -> None:
        first.append(type(observation.event).__name__)
        if isinstance(observation.event, events.PongReceived):
            conn.reconfigure(pong_timeout=3.0)

    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(
            URL,
            stream_factory=server.stream_factory,
            observers=[meddles, lambda seen: second.append(type(seen.event).__name__)],
        ) as conn,
    ):
        await conn.ping()
    assert first == second
    assert first[first.index("PongReceived") + 1] == "Reconfigured"


async def test_observers_that_tell_without_end_are_cut_off(autojump_clock: MockClock) -> None:
    dropped: list[int] = []

    def echoes(observation: Observation) -> None:
        if isinstance(observation.event, events.Dropped):
            dropped.append(observation.event.count)
        elif not dropped and isinstance(observation.event, events.PongReceived | events.Reconfigured):
            conn.reconfigure(pong_timeout=3.0)

    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(URL, stream_factory=server.stream_factory, observers=[echoes]) as conn,
    ):
        await conn.ping()
        assert await conn.ping() >= 0.0
    assert dropped == [1]


async def test_what_leaves_a_session_says_which_session_it_was(autojump_clock: MockClock) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async with ScriptedServer(drop) as server:
        with pytest.raises(trio_nova.LinkLost) as caught:
            async with trio_nova.open_connection(URL, stream_factory=server.stream_factory, max_attempts=0) as conn:
                await trio.sleep_forever()
    name = f"server.test[{conn.id}]"
    assert caught.value.session == name
    assert f"in the session {name}" in "".join(traceback.format_exception(caught.value))


async def test_a_failing_collector_is_switched_off_and_costs_nothing_else(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    class Broken(MetricsCollector):
        def handle_connection_event(self, observation: Observation) -> None:
            raise KeyError("metrics")

    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(URL, stream_factory=server.stream_factory, metrics_collector=Broken) as conn,
    ):
        for _ in range(3):
            await conn.send_text("hi")
            assert await conn.receive() == "hi"
        assert conn.statistics().errors == 1
    reports = [record for record in caplog.records if "is told nothing any more" in record.getMessage()]
    assert len(reports) == 1


WITHOUT_LOGGING = """
import logging, sys, trio, trio_nova
from trio_nova.testing import Peer, ScriptedServer, echo

async def hang_up(peer: Peer) -> None:
    await peer.accept()

async def lose_a_link() -> None:
    async with ScriptedServer(hang_up, echo) as server:
        soon = trio_nova.ListBackoff([0.0])
        async with trio_nova.open_connection("ws://server.test/", stream_factory=server.stream_factory, backoff=soon):
            await server.wait_dialled(2)

trio.run(lose_a_link)
print("logging is set up", file=sys.stderr, flush=True)
logging.basicConfig()
trio.run(lose_a_link)
"""


def test_warnings_are_shown_by_a_program_that_sets_up_logging_as_the_tutorial_says_and_by_no_other() -> None:
    tutorial = (DOCS / "tutorial.md").read_text("utf-8")
    assert "is shown by a program that sets up logging, and by no other: `logging.basicConfig()`" in tutorial
    program = [sys.executable, "-c", WITHOUT_LOGGING]
    told = subprocess.run(program, check=True, capture_output=True, text=True).stderr
    silent, shown = told.split("logging is set up\n")
    assert silent == ""
    assert shown.startswith("WARNING:trio_nova:")


# --------------------------------------------------------------------------- histograms


def test_a_histogram_gives_its_quantiles_by_bucket_and_never_more_than_the_largest() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.quantile(0.5))
    assert math.isnan(histogram.mean)
    for seconds in (0.002, 0.002, 0.02, 0.4):
        histogram.observe(seconds)
    assert histogram.count == 4
    assert histogram.mean == pytest.approx(0.106)
    assert histogram.quantile(0.0) == histogram.quantile(0.5) == 0.0025
    assert histogram.quantile(0.75) == 0.025
    assert histogram.quantile(1.0) == 0.4
    histogram.observe(4_000.0)
    assert histogram.quantile(1.0) == 4_000.0
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="quantile"):
            histogram.quantile(wrong)
