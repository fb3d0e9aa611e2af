"""STOMP 1.2 against a scripted broker: receipts, beats both ways, acks by id, and a farewell that wants a receipt."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.stage import next_of, open_on
from tests.shapes.stomp import BEAT, Frame, Stomp, StompCodec
from trio_nova import AuthFailed, BadMessage, ConnectionBlock, LinkClosed, NotSent, RequestFailed, SubscriptionRejected
from trio_nova.testing import Peer, ScriptedServer

CODEC = StompCodec()
GOODBYE = Frame("DISCONNECT", {"receipt": "goodbye"})


def connect(server: ScriptedServer, **options: Any) -> ConnectionBlock:
    return open_on(server, Stomp(url="ws://server.test/ws"), **options)


async def say(peer: Peer, *frames: Frame) -> None:
    await peer.send(*map(CODEC.encode, frames))


async def hear(peer: Peer) -> Frame:
    """Return the next frame of the client."""
    said = await peer.receive()
    assert isinstance(said, str)
    frame = CODEC.decode(said)
    assert isinstance(frame, Frame)
    return frame


async def greet(peer: Peer, beats: str = "0,0") -> None:
    await peer.accept(subprotocol="v12.stomp")
    assert await hear(peer) == Frame(
        "CONNECT", {"accept-version": "1.2", "host": "/", "heart-beat": "10000,10000", "login": "ann", "passcode": "pw"}
    )
    await say(peer, Frame("CONNECTED", {"version": "1.2", "heart-beat": beats}))


LOGIN = {"credentials": {"login": "ann", "passcode": "pw"}}


def subscription(receipt: int, channel: str) -> Frame:
    headers = {"id": channel, "destination": channel, "ack": "client-individual", "receipt": str(receipt)}
    return Frame("SUBSCRIBE", headers)


def message(channel: str, id: int, body: str) -> Frame:
    return Frame(
        "MESSAGE", {"subscription": channel, "message-id": f"m{id}", "destination": channel, "ack": f"a{id}"}, body
    )


def receipt(id: object) -> Frame:
    return Frame("RECEIPT", {"receipt-id": str(id)})


async def bid_farewell(peer: Peer) -> None:
    assert await hear(peer) == GOODBYE
    await say(peer, receipt("goodbye"))
    await peer.expect_close(1000)


async def test_messages_come_in_order_and_are_acknowledged_once_over_a_cut(autojump_clock: trio.abc.Clock) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        assert await hear(peer) == subscription(1, "/queue/jobs")
        await say(peer, receipt(1), message("/queue/jobs", 1, "a"), message("/queue/jobs", 2, "b:\0\n"))
        assert await hear(peer) == Frame("ACK", {"id": "a1"})
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        assert await hear(peer) == subscription(2, "/queue/jobs")
        await say(peer, receipt(2), message("/queue/jobs", 3, "b:\0\n"))
        assert await hear(peer) == Frame("ACK", {"id": "a3"})
        assert await hear(peer) == Frame("UNSUBSCRIBE", {"id": "/queue/jobs", "receipt": "3"})
        await say(peer, receipt(3))
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server, **LOGIN) as conn:
            async with conn.subscribe("/queue/jobs") as feed:
                deliveries = feed.deliveries()
                first_one = await deliveries.receive()
                assert (first_one.payload.body, first_one.id) == ("a", "m1")
                first_one.ack()
                unfinished, again = await deliveries.receive(), await deliveries.receive()
                assert unfinished.payload.body == again.payload.body == "b:\0\n"
                assert (unfinished.epoch, again.epoch) == (1, 2)
                with pytest.raises(NotSent):
                    unfinished.ack()
                again.ack()
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()


async def test_a_send_with_a_receipt_is_a_request(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        await peer.expect("SEND\ndestination:/queue/a\\nb\nreceipt:1\ncontent-length:4\n\nh\u00f6i\0")
        await say(peer, receipt(1))
        await hear(peer)
        await say(peer, Frame("ERROR", {"receipt-id": "2", "message": "no such queue"}, "It is not there."))
        await peer.close()

    async with ScriptedServer(broker, greet) as server, connect(server, **LOGIN) as conn:
        assert await conn.request(Frame("SEND", {"destination": "/queue/a\nb"}, "h\u00f6i")) == receipt(1)
        with pytest.raises(RequestFailed, match="no such queue"):
            await conn.request(Frame("SEND", {"destination": "/queue/none"}, "hi"))


async def test_beats_go_both_ways_at_the_pace_that_both_sides_can_keep(autojump_clock: trio.abc.Clock) -> None:
    beats: list[float] = []

    async def broker(peer: Peer) -> None:
        await greet(peer, "5000,15000")
        began = trio.current_time()
        for _ in range(3):
            await peer.expect(BEAT)
            beats.append(trio.current_time() - began)
            await peer.send(BEAT)
        await peer.mute()

    async with ScriptedServer(broker, greet) as server, connect(server, **LOGIN) as conn:
        async with conn.listen(LinkClosed) as events:
            closed = await next_of(events, LinkClosed)
        assert beats == [15.0, 30.0, 45.0]
        assert "idle" in closed.detail
        assert trio.current_time() == pytest.approx(45.0 + 2 * 10.0)


async def test_where_either_side_wants_no_beats_there_are_none(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer, "0,0")
        await peer.serve_until_closed()

    async with ScriptedServer(broker) as server, connect(server, **LOGIN):
        await trio.sleep(1000.0)
        assert server.dials[0].ended is None
    assert BEAT not in server.dials[0].frames


async def test_a_refused_subscription_costs_the_link_and_is_not_asked_for_again(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await greet(peer)
        asked = await hear(peer)
        await say(peer, Frame("ERROR", {"receipt-id": asked.headers["receipt"], "message": "not allowed"}))
        await peer.close()

    async def patient(peer: Peer) -> None:
        await greet(peer)
        await bid_farewell(peer)

    async with ScriptedServer(broker, patient) as server:
        async with connect(server, **LOGIN) as conn:
            with pytest.raises(SubscriptionRejected, match="not allowed"):
                async with conn.subscribe("/topic/secret"):
                    raise AssertionError("never entered")
            await conn.wait_ready()
        await server.dials[-1].wait_ended()


async def test_a_refused_login_says_why(autojump_clock: trio.abc.Clock) -> None:
    async def broker(peer: Peer) -> None:
        await peer.accept(subprotocol="v12.stomp")
        await hear(peer)
        await say(peer, Frame("ERROR", {"message": "bad credentials"}))
        await peer.close()

    async with ScriptedServer(broker) as server:
        with pytest.raises(AuthFailed, match="bad credentials"):
            async with connect(server, **LOGIN):
                raise AssertionError("never entered")


@pytest.mark.parametrize(
    ("written", "frame"),
    [
        ("MESSAGE\r\na:1\r\na:2\r\n\r\nbody\0\n\n", Frame("MESSAGE", {"a": "1"}, "body")),
        ("MESSAGE\na\\cb:c\\n\\\\\\r\n\n\0", Frame("MESSAGE", {"a:b": "c\n\\\r"})),
        ("CONNECTED\nsession:a\\cb\n\n\0", Frame("CONNECTED", {"session": "a\\cb"})),
        ("MESSAGE\ncontent-length:3\n\na\0b\0", Frame("MESSAGE", {"content-length": "3"}, "a\0b")),
        ("MESSAGE\n\nx\r\n\r\ny\0", Frame("MESSAGE", {}, "x\r\n\r\ny")),
        ("\r\n", BEAT),
    ],
)
def test_what_a_broker_writes_is_read_as_the_specification_has_it(written: str, frame: Any) -> None:
    assert CODEC.decode(written) == frame
    assert CODEC.decode(written.encode()) == frame


def test_a_frame_without_its_end_is_refused() -> None:
    with pytest.raises(BadMessage):
        CODEC.decode("MESSAGE\ncontent-length:2\n\nabc\0")
    with pytest.raises(BadMessage):
        CODEC.decode("MESSAGE\n\nabc")
    with pytest.raises(KeyError):  # which the session reports as a message that could not be read
        CODEC.decode("MESSAGE\na:\\t\n\n\0")
