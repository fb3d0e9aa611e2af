"""MQTT 3.1.1 against a scripted broker: packets that frames cut up, ids that come round, acks that none doubles."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.mqtt import DISCONNECT, PINGREQ, PINGRESP, Mqtt, length, packet, publish, text
from tests.shapes.stage import next_of, open_on
from trio_nova import (
    AuthFailed,
    ConnectionBlock,
    Correlation,
    NotSent,
    PongReceived,
    SubscriptionRejected,
)
from trio_nova.testing import Peer, ScriptedServer

CONNACK = packet(2, b"\0\0")


def connect(server: ScriptedServer, client_id: str = "", **options: Any) -> ConnectionBlock:
    return open_on(server, Mqtt(url="ws://server.test/mqtt", client_id=client_id), **options)


def hello(client_id: str = "", flags: int = 2, more: bytes = b"") -> bytes:
    return packet(1, text("MQTT") + bytes([4, flags, 0, 60]) + text(client_id) + more)


def subscribe(id: int, *topics: str, qos: int = 1) -> bytes:
    return packet(8, id.to_bytes(2) + b"".join(text(topic) + bytes([qos]) for topic in topics), 2)


def unsubscribe(id: int, topic: str) -> bytes:
    return packet(10, id.to_bytes(2) + text(topic), 2)


def suback(id: int, *codes: int) -> bytes:
    return packet(9, id.to_bytes(2) + bytes(codes))


def unsuback(id: int) -> bytes:
    return packet(11, id.to_bytes(2))


def puback(id: int) -> bytes:
    return packet(4, id.to_bytes(2))


def message(topic: str, payload: bytes, id: int = 0, *, dup: bool = False) -> bytes:
    """Return a message of the broker's: with an id of QoS 1."""
    return packet(3, text(topic) + (id.to_bytes(2) if id else b"") + payload, (2 if id else 0) | (8 if dup else 0))


async def greet(peer: Peer, greeting: bytes | None = None) -> None:
    await peer.accept(subprotocol="mqtt")
    await peer.expect(greeting or hello())
    await peer.send(CONNACK)


async def bid_farewell(peer: Peer) -> None:
    await peer.expect(DISCONNECT)
    await peer.expect_close(1000)


async def test_messages_under_a_wildcard_come_in_order_however_frames_cut_them_up(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await peer.expect(subscribe(1, "sport/+/score"))
        wire = b"".join(
            [
                suback(1, 1),
                message("sport/tennis/score", b"15:0"),
                message("sport/golf/score", b"x" * 200, 7),
                message("sport/tennis/score", b"30:0", 8),
            ]
        )
        for start in range(0, len(wire), 3):
            await peer.send(wire[start : start + 3])
        await peer.expect(puback(7))
        await peer.expect(puback(8))
        await peer.expect(unsubscribe(2, "sport/+/score"))
        await peer.send(unsuback(2))
        await bid_farewell(peer)

    async with ScriptedServer(broker) as server:
        async with connect(server) as conn:
            async with conn.subscribe("sport/+/score") as feed:
                deliveries = feed.deliveries()
                came = [await deliveries.receive() for _ in range(3)]
                assert [(each.channel, each.payload[:4]) for each in came] == [
                    ("sport/tennis/score", b"15:0"),
                    ("sport/golf/score", b"xxxx"),
                    ("sport/tennis/score", b"30:0"),
                ]
                await wait_all_tasks_blocked()
                for each in came:
                    each.ack()
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("mqtt",)


async def test_what_was_being_processed_when_the_link_was_cut_is_delivered_again_and_acknowledged_once(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer, hello("me", 0))
        await peer.expect(subscribe(1, "jobs/#"))
        await peer.send(suback(1, 1) + message("jobs/a", b"a", 7) + message("jobs/b", b"b", 8))
        await peer.expect(puback(7))
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer, hello("me", 0))
        await peer.send(message("jobs/b", b"b", 8, dup=True))  # the broker knows the subscription from before
        await peer.expect(subscribe(2, "jobs/#"))
        await peer.send(suback(2, 1) + message("jobs", b"c", 9))
        await peer.expect(puback(8))
        await peer.expect(puback(9))
        await peer.expect(unsubscribe(3, "jobs/#"))
        await peer.send(unsuback(3))
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server, "me") as conn:
            async with conn.subscribe("jobs/#") as feed:
                deliveries = feed.deliveries()
                (await deliveries.receive()).ack()
                unfinished = await deliveries.receive()
                again = await deliveries.receive()
                assert (unfinished.payload, unfinished.epoch) == (b"b", 1)
                assert (again.payload, again.epoch) == (b"b", 2)
                with pytest.raises(NotSent):
                    unfinished.ack()  # its link is gone: it would acknowledge something else on this one
                last = await deliveries.receive()
                again.ack()
                again.ack()
                last.ack()
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()


async def test_a_message_that_two_filters_match_is_acknowledged_once_when_both_readers_have_it(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await peer.expect(subscribe(1, "sport/+/score", "sport/tennis/#"))
        await peer.send(suback(1, 1, 1))
        await peer.expect(subscribe(2, "#"))
        await peer.send(suback(2, 1))
        await peer.send(message("sport/tennis/score", b"15:0", 7))
        await peer.expect(puback(7))
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server:
        async with connect(server) as conn:
            async with conn.subscribe(["sport/+/score", "sport/tennis/#"]) as feed, conn.subscribe("#") as all_of_it:
                assert await feed.receive() == await feed.receive() == b"15:0"
                await wait_all_tasks_blocked()
                assert puback(7) not in server.dials[0].frames
                assert await all_of_it.receive() == b"15:0"
                await wait_all_tasks_blocked()
        assert server.dials[0].frames.count(puback(7)) == 1


async def test_a_message_for_nobody_is_acknowledged_as_the_broker_would_keep_it_for_ever(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer, hello("me", 0))
        await peer.send(message("forgotten", b"?", 7))  # of a subscription that another run of the program made
        await peer.expect(puback(7))
        await bid_farewell(peer)

    async with ScriptedServer(broker) as server:
        async with connect(server, "me"):
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()


async def test_ids_come_round_and_pass_over_those_that_are_awaited(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        for id in (1, 2, 3):
            await peer.expect(packet(3, text("t") + id.to_bytes(2) + b"m", 2))
            if id != 2:
                await peer.send(puback(id))
        await peer.expect(packet(3, text("t") + (1).to_bytes(2) + b"m", 2))
        await peer.send(puback(1))
        await peer.expect(packet(3, text("t") + (3).to_bytes(2) + b"m", 2))
        await peer.send(puback(3) + puback(2))
        await bid_farewell(peer)

    async with ScriptedServer(broker) as server:
        async with connect(server, correlation=Correlation(first=1, last=3)) as conn, trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await conn.request(publish("t", b"m", qos=1)) == puback(2)

            assert await conn.request(publish("t", b"m", qos=1)) == puback(1)
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            for id in (3, 1, 3):
                assert await conn.request(publish("t", b"m", qos=1)) == puback(id)
        await server.dials[0].wait_ended()


async def test_a_filter_that_is_refused_leaves_the_others_of_its_batch(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await peer.expect(subscribe(1, "public", "secret"))
        await peer.send(suback(1, 1, 0x80))
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server, connect(server) as conn:
        with pytest.raises(SubscriptionRejected, match="'secret': the broker does not allow it"):
            async with conn.subscribe(["public", "secret"]):
                raise AssertionError("never entered")


@pytest.mark.parametrize(("code", "retry"), [(5, "never"), (3, "backoff")])
async def test_a_refused_login_says_why(autojump_clock: trio.abc.Clock, code: int, retry: str) -> None:
    async def broker(peer: Peer) -> None:
        await peer.accept(subprotocol="mqtt")
        await peer.expect(hello(flags=0xC2, more=text("ann") + text("pw")))
        await peer.send(packet(2, bytes([0, code])))
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server:
        login = {"username": "ann", "password": "pw"}
        with pytest.raises(AuthFailed, match="not authorized" if code == 5 else "unavailable") as caught:
            async with connect(server, credentials=login, allow_plaintext_credentials=True):
                raise AssertionError("never entered")
        assert caught.value.retry.value == retry


async def test_pings_are_packets_and_their_answers_tell_the_latency(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await peer.expect(PINGREQ)
        await trio.sleep(0.25)
        await peer.send(PINGRESP)
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server, connect(server) as conn, conn.listen(PongReceived) as events:
        assert (await next_of(events, PongReceived)).rtt == pytest.approx(0.25)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_a_packet_says_how_long_it_is(size: int) -> None:
    whole = packet(3, bytes(size))
    assert length(whole[:5]) == len(whole)
    assert length(whole[:1]) is None


async def test_packets_that_make_no_sense_are_received_as_they_came_and_harm_nobody(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await trio.sleep(1.0)  # the login is done by then
        await peer.send(
            packet(3, b"\0\x09cut"), packet(3, b"\0\2\xff\xfe"), packet(4, b""), packet(2, b""), packet(15, b"")
        )
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server, connect(server) as conn:
        came = [await conn.receive() for _ in range(5)]
        assert [message[0] >> 4 for message in came] == [3, 3, 4, 2, 15]


@pytest.mark.parametrize(
    ("filter", "topic", "does"),
    [
        ("sport/tennis/#", "sport/tennis", True),
        ("sport/tennis/#", "sport/tennis/player1/ranking", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
        ("a/b", "a/B", False),
    ],
)
def test_a_filter_matches_topics_as_the_standard_says(filter: str, topic: str, does: bool) -> None:
    assert Mqtt(url="ws://server.test/").matches(filter, topic) is does
