"""Links that end at every moment of a conversation: what is wanted is there again, and every question settles."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import pytest
import trio
from trio._core import _run
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    Channel,
    Data,
    FeedOptions,
    Gap,
    JsonCodec,
    ListBackoff,
    MessageHandler,
    NotSent,
    OutcomeUnknown,
    State,
    SubscriptionHandler,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.core.sequence import Tracker
from trio_nova.messages import Action
from trio_nova.testing import Asked, GenericVenue, HangDial, Opcode, Peer, ScriptedServer, after, encode_frame

URL = "ws://venue.test/"
AT_ONCE = ListBackoff([0.0])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("trio_nova")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


def connect(venue: GenericVenue, **options: Any) -> trio_nova.ConnectionBlock:
    plain: dict[str, Any] = {"stream_factory": venue.stream_factory, "codec": JsonCodec(), "backoff": AT_ONCE}
    return open_connection(URL, **(plain | options))


# --------------------------------------------------------------------------- dropped at every event


@attrs.define(eq=False)
class DoAt(trio.abc.Instrument):
    """Does something after so many steps of any task."""

    step: int
    act: Callable[[], object]
    steps: int = 0
    counts: bool = True

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.counts:
            self.steps += 1
            if self.steps == self.step:
                self.act()


async def subscribe_until(conn: trio_nova.Connection, channel: str, given_up: trio.Event) -> None:
    """Hear a channel until it is given up, which may be before the service has granted it."""
    async with trio.open_nursery() as nursery:

        async def hear() -> None:
            async with conn.subscribe(channel) as feed:
                async for _ in feed:
                    pass

        nursery.start_soon(hear)
        await given_up.wait()
        nursery.cancel_scope.cancel(reason="it is not wanted any more")


async def drop_at(step: int, how: str) -> bool:
    """Subscribe, hear, and give up, with the link lost after so many steps; return whether it was."""
    async with GenericVenue() as venue:
        async with connect(venue) as conn, trio.open_nursery() as nursery:
            fault = DoAt(step, venue.drop if how == "drop" else venue.reset)
            left = {name: trio.Event() for name in "abcd"}
            trio.lowlevel.add_instrument(fault)
            try:
                nursery.start_soon(subscribe_until, conn, "a", left["a"])
                await trio.sleep(0.1)
                venue.publish("a")
                nursery.start_soon(subscribe_until, conn, "b", left["b"])
                left["a"].set()
                await trio.sleep(0.1)
                nursery.start_soon(subscribe_until, conn, "c", left["c"])
                left["b"].set()
                nursery.start_soon(subscribe_until, conn, "d", left["d"])
                for _ in range(4):  # so that it is given up before it is granted
                    await trio.lowlevel.checkpoint()
                left["d"].set()
                await trio.sleep(0.1)
                nursery.start_soon(subscribe_until, conn, "a", trio.Event())
                venue.publish("c")
                await trio.sleep(0.1)
            finally:
                fault.counts = False
                trio.lowlevel.remove_instrument(fault)
            await conn.wait_ready()
            await wait_all_tasks_blocked()
            await trio.sleep(40.0)  # longer than a confirmation is waited for
            assert dict(conn.subscriptions()) == {"c": "confirmed", "a": "confirmed"}
            assert len(venue.live_links) == 1
            assert set(venue.subscribed()) == {"a", "c"}
            for link in venue.links:
                venue.assert_no_channel_asked_twice(link)
            nursery.cancel_scope.cancel(reason="it was seen")
    return fault.steps >= step


@pytest.mark.fault("F111", where="memory")
@pytest.mark.parametrize(("how", "seed"), [("drop", 0), pytest.param("drop", 1, marks=pytest.mark.soak), ("reset", 2)])
async def test_wherever_the_link_is_lost_the_service_has_in_the_end_what_is_wanted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, how: str, seed: int
) -> None:
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for step in range(1, 2_000):
        _run._r.seed(seed)
        try:
            with trio.fail_after(600.0):
                happened = await drop_at(step, how)
        except BaseException as exc:
            exc.add_note(f"{how} after step {step}, seed {seed}")
            raise
        if not happened:
            break
    assert 100 < step < 1_999


@pytest.mark.fault("F112", where="memory")
@pytest.mark.parametrize("seed", range(5))
async def test_what_is_given_up_or_wanted_while_down_or_being_restored_is_so_in_the_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    _run._r.seed(seed)
    left = {name: trio.Event() for name in "abcdefgh"}
    async with GenericVenue() as venue:
        with trio.fail_after(600.0):
            async with (
                connect(venue, backoff=ListBackoff([5.0])) as conn,
                trio.open_nursery() as nursery,
            ):

                def want(names: str) -> None:
                    for name in names:
                        nursery.start_soon(subscribe_until, conn, name, left[name])

                def give_up(names: str) -> None:
                    for name in names:
                        left[name].set()

                want("abcd")
                await wait_all_tasks_blocked()
                venue.drop()
                await conn.wait_state(State.RECONNECTING)
                give_up("a")
                want("ef")
                await wait_all_tasks_blocked()
                give_up("f")  # wanted and given up, and the service has never heard of it
                venue.twist("subscribe", after(4.0), times=None)
                await conn.wait_state(State.RESTORING)
                await trio.sleep(1.0)
                give_up("b")
                want("g")
                await conn.wait_ready()
                venue.behave()
                await trio.sleep(60.0)
                assert set(venue.subscribed()) == {"c", "d", "e", "g"} == set(conn.subscriptions())
                never = {name for entry in venue.links[1].journal for name in entry.channels}
                assert not never & {"a", "f"}
                venue.drop()
                await conn.wait_state(State.DISCONNECTED)
                await conn.wait_ready()
                assert set(venue.subscribed()) == {"c", "d", "e", "g"}
                assert set(conn.subscriptions().values()) == {"confirmed"}
                for link in venue.links:
                    venue.assert_no_channel_asked_twice(link)
                nursery.cancel_scope.cancel(reason="it was seen")


@pytest.mark.fault("F113", where="memory")
async def test_one_of_fifty_that_is_refused_on_restore_is_told_to_its_owner_and_not_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    refused: list[str] = []

    async def hold(name: str) -> None:
        try:
            async with conn.subscribe(name) as feed:
                async for _ in feed:
                    pass
        except SubscriptionRejected:
            refused.append(name)

    async with GenericVenue() as venue, connect(venue) as conn, trio.open_nursery() as nursery:
        with trio.fail_after(7200.0):
            for number in range(50):
                nursery.start_soon(hold, f"channel {number}")
            await wait_all_tasks_blocked()
            venue.rejected.add("channel 7")
            venue.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            await trio.sleep(3600.0)
            assert refused == ["channel 7"]
            assert len(venue.subscribed()) == 49
            asked = [name for entry in venue.links[1].journal for name in entry.channels]
            assert asked.count("channel 7") == 1
            venue.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            assert not [entry for entry in venue.links[2].journal if "channel 7" in entry.channels]
            nursery.cancel_scope.cancel(reason="it was seen")


# --------------------------------------------------------------------------- a position, and who moves it


@attrs.define(eq=False)
class Resuming(SubscriptionHandler):
    """Asks on a new link for what follows the last message that was delivered."""

    resumes = True

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker()

    def read(self, message: Any) -> Data | None:
        return Data(message["channel"], message, message["seq"]) if "seq" in message else None

    def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
        return {**channel.params, "from": last["seq"] + 1}


@attrs.define(eq=False)
class Stumbling(MessageHandler):
    """Fails on one message."""

    at: int
    handled: list[int] = attrs.field(factory=list)

    def handle_message(self, kind: str, message: Any) -> Action:
        if message.get("seq") == self.at:
            raise ValueError("cannot be handled")
        if "seq" in message:
            self.handled.append(message["seq"])
        return None


@pytest.mark.fault("F116", where="memory")
async def test_a_message_that_its_handler_failed_on_was_delivered_and_is_not_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    stumbling = Stumbling(at=3)
    async with GenericVenue() as venue:
        async with (
            connect(venue, subscription_handler=Resuming(), message_handler=stumbling, on_handler_error="log") as conn,
            conn.subscribe("a", feed=FeedOptions(notices=True)) as feed,
        ):
            for _ in range(3):
                venue.publish("a")
            await wait_all_tasks_blocked()
            venue.drop()
            await conn.wait_state(State.DISCONNECTED)
            venue.publish("a")
            await conn.wait_ready()
            (asked,) = (entry for entry in venue.link.journal if isinstance(entry, Asked))
            assert asked.message["params"] == {"from": 4}
            venue.repeat("a")  # the service replays what it was asked for
            venue.repeat("a")
            venue.publish("a")
            await wait_all_tasks_blocked()
            items = await feed.receive_batch()
        assert [item["seq"] for item in items if not isinstance(item, Gap)] == [1, 2, 3, 4, 5]
        assert [item.outcome for item in items if isinstance(item, Gap)] == ["resumed"]
        assert conn.statistics().errors >= 1
    assert sorted({*stumbling.handled}) == [1, 2, 4, 5]  # the handler is shown every message, repetitions too


# --------------------------------------------------------------------------- questions


@pytest.mark.fault("F119", where="memory")
async def test_a_thousand_questions_under_way_each_settle_with_what_is_known(
    autojump_clock: MockClock,
) -> None:
    read: set[int] = set()

    async def take_and_reset(peer: Peer) -> None:
        await peer.accept()
        with trio.move_on_after(5.0):
            while len(read) < 300:
                read.add((await peer.receive_json())["n"])
            await peer.stop_reading()
        await peer.reset()

    outcomes: dict[int, type[Exception]] = {}
    settled: set[float] = set()
    async with ScriptedServer(take_and_reset, HangDial(), max_buffer=4096) as server:
        async with (
            open_connection(
                URL, stream_factory=server.stream_factory, codec=JsonCodec(), backoff=AT_ONCE, connect_timeout=1000.0
            ) as conn,
            trio.open_nursery() as nursery,
        ):

            async def ask(n: int) -> None:
                try:
                    await conn.request({"n": n, "pad": "x" * 100})
                except trio_nova.NovaError as error:
                    outcomes[n] = type(error)
                    settled.add(trio.current_time())

            for n in range(1000):
                nursery.start_soon(ask, n)
            await wait_all_tasks_blocked()
            await trio.sleep(10.0)
            assert settled == {5.0}
            assert conn.statistics().outbox_messages == 1000 - len(outcomes) > 0  # they wait for the next link
            await conn.aclose()
    assert len(outcomes) == 1000
    assert set(outcomes.values()) == {OutcomeUnknown, NotSent}
    assert {outcomes[n] for n in read} == {OutcomeUnknown}  # nothing that arrived is called not sent


@pytest.mark.fault("F120", where="memory")
async def test_ten_thousand_questions_at_once_leave_in_the_order_of_the_calls_and_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    count = 10_000
    arrived: list[int] = []

    async def answer(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            question = json.loads(frame)
            arrived.append(question["n"])
            await peer.send_json({"id": question["id"], "result": question["n"]})

    called: list[int] = []
    answers: dict[int, int] = {}
    async with ScriptedServer(answer) as server:
        with trio.fail_after(60.0):
            async with (
                open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec()) as conn,
                trio.open_nursery() as nursery,
            ):

                async def ask(n: int) -> None:
                    called.append(n)
                    answers[n] = (await conn.request({"n": n}))["result"]

                for n in range(count):
                    nursery.start_soon(ask, n)
                while len(answers) < count:
                    await trio.sleep(0.01)
                statistics = conn.statistics()
                [link] = conn._session.links
                assert len(link.answers._ledger) == 0
    assert answers == {n: n for n in range(count)}
    assert arrived == called
    assert statistics.outbox_messages == statistics.inbox_messages == 0


# --------------------------------------------------------------------------- for ever


SENDERS = 64


class Counting:
    """Says numbers from 0 on, and sees to it that each of its client's senders does so too."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.heard = [0] * SENDERS

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.speak, peer)
            while isinstance(frame := await peer.receive(), str):
                sender, number = frame.split()
                assert int(number) == self.heard[int(sender)]
                self.heard[int(sender)] += 1
                peer.dialled.journal.clear()

    async def speak(self, peer: Peer) -> None:
        for start in range(0, self.count, 1000):
            numbers = range(start, min(start + 1000, self.count))
            await peer.send_raw(b"".join(encode_frame(Opcode.TEXT, str(number).encode()) for number in numbers))


@pytest.mark.fault("F120", where="memory")
@pytest.mark.parametrize("count", [2**13, pytest.param(2**20 + 2**13, marks=pytest.mark.soak)])
async def test_a_million_messages_on_one_link_come_in_order_each_way(autojump_clock: MockClock, count: int) -> None:
    counting = Counting(count)
    async with ScriptedServer(counting) as server:
        async with (
            open_connection(URL, stream_factory=server.stream_factory, max_attempts=0) as conn,
            trio.open_nursery() as nursery,
        ):

            async def send(sender: int) -> None:
                for number in range(count // SENDERS):
                    await conn.send_text(f"{sender} {number}")

            for sender in range(SENDERS):
                nursery.start_soon(send, sender)
            expected = 0
            while expected < count:
                for message in await conn.receive_batch():
                    assert message == str(expected)
                    expected += 1
        assert conn.epoch == 1
        assert conn.statistics().messages_received == conn.statistics().messages_sent == count
        await server.dials[0].wait_ended()
    assert counting.heard == [count // SENDERS] * SENDERS


def live_objects(venue: GenericVenue) -> int:
    """Count what is alive, but for what the venue remembers of links past, and the deadlines that Trio forgets late."""
    del venue.links[:-1]
    venue.dials.clear()
    venue.arrivals.clear()
    venue.emitted.clear()
    venue.link.journal.clear()
    venue.link.said.clear()
    gc.collect()
    of_deadlines = (trio.CancelScope, _run.CancelReason, tuple)
    return sum(1 for each in gc.get_objects() if type(each) not in of_deadlines)


@pytest.mark.fault("F125", where="memory")
@pytest.mark.parametrize(("cycles", "channels"), [(200, 20), pytest.param(10_000, 100, marks=pytest.mark.soak)])
async def test_reconnects_with_subscriptions_leave_nothing_behind(
    autojump_clock: MockClock, cycles: int, channels: int
) -> None:
    names = [{"channel": f"channel {number}", "params": {}} for number in range(channels)]
    counts: list[int] = []
    async with (
        GenericVenue(max_batch=channels, max_dials=10**9) as venue,
        connect(venue, subscription_handler=SubscriptionHandler(max_batch=channels)) as conn,
    ):
        conn.import_subscriptions(json.dumps(names))
        await venue.wait_until(lambda: len(venue.subscribed()) == channels)
        for cycle in range(1, cycles + 1):
            venue.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            if cycle % (cycles // 10) == 0:
                assert set(conn.subscriptions().values()) == {"confirmed"}
                counts.append(live_objects(venue))
        assert conn.epoch == cycles + 1
    assert max(counts[2:]) - min(counts[2:]) <= 300
