"""Against the server of npm's `ws`: what it says, how it refuses, and how it goes away."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
import trio_websocket

import trio_nova
from trio_nova.events import Event, LinkClosed, PeerSilent

if TYPE_CHECKING:
    from tests.live.conftest import Server

pytestmark = pytest.mark.live

E = TypeVar("E", bound=Event)

SOON = trio_nova.ListBackoff((0.1,))


async def next_of(kind: type[E], events: trio_nova.Listener) -> E:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the session ended without a {kind.__name__}")


# --------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "message", ["grüße", b"\0\xff", "x" * 2**20, b"\x80" * 2**20], ids=["text", "binary", "MiB", "MiB-binary"]
)
async def test_what_is_sent_comes_back(ws_server: Server, message: str | bytes) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url()) as conn:
            await conn.send(message)
            assert await conn.receive() == message


async def test_a_thousand_messages_come_back_in_order(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url()) as conn:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send_all() -> None:
                    for number in range(1000):
                        await conn.send_text(str(number))

                assert [await conn.receive() for _ in range(1000)] == [str(number) for number in range(1000)]


@pytest.mark.parametrize("count", [3, 10_000])
async def test_fragments_arrive_as_one_message(ws_server: Server, count: int) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/fragments")) as conn:
            await conn.send_text(f"{count} äb")
            assert await conn.receive() == "äb" * count


async def test_fragments_that_add_up_to_too_much_end_the_link_with_1009(ws_server: Server) -> None:
    with trio.fail_after(20):
        with pytest.raises(trio_nova.LinkLost) as caught:
            async with trio_nova.open_connection(
                ws_server.url("/fragments"), max_message_size=10_000, max_attempts=0
            ) as conn:
                await conn.send_text("20000 ab")
                await conn.receive()
    assert (caught.value.code, caught.value.remote) == (1009, False)


async def test_the_server_chooses_a_subprotocol(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/protocol"), subprotocols=["chat.v3", "chat.v2"]) as conn:
            assert await conn.receive() == "chat.v2"


async def test_compression_is_not_negotiated_by_a_server_that_offers_it(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/extensions")) as conn:
            assert await conn.receive() == ""


# --------------------------------------------------------------------------- refusals


async def test_401_is_reported_whole_and_for_good(ws_server: Server) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.HandshakeRejected) as caught:
        async with trio_nova.open_connection(ws_server.url("/401"), retry_first_connect=True):
            raise AssertionError("it was entered")
    assert caught.value.status == 401
    assert ("www-authenticate", 'Basic realm="nova"') in caught.value.headers
    assert caught.value.body == b"who are you?"
    assert caught.value.retry == "never"


async def test_429_says_when_to_come_back(ws_server: Server) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.HandshakeRejected) as caught:
        async with trio_nova.open_connection(ws_server.url("/429")):
            raise AssertionError("it was entered")
    assert (caught.value.status, caught.value.retry, caught.value.retry_after) == (429, "after", 7.0)
    assert caught.value.body == b"slow down"


async def test_a_redirect_is_followed_or_reported_as_configured(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/307")) as conn:
            await conn.send_text("over there")
            assert await conn.receive() == "over there"
    with trio.fail_after(20), pytest.raises(trio_nova.HandshakeRejected) as caught:
        async with trio_nova.open_connection(ws_server.url("/307"), max_redirects=0):
            raise AssertionError("it was entered")
    assert (caught.value.status, caught.value.retry) == (307, "never")
    assert ("location", "/echo") in caught.value.headers


async def test_a_server_that_never_answers_the_upgrade_is_left_in_time(ws_server: Server) -> None:
    with trio.fail_after(20), pytest.raises(trio_nova.ConnectTimeout) as caught:
        async with trio_nova.open_connection(ws_server.url("/hang"), connect_timeout=0.5):
            raise AssertionError("it was entered")
    assert caught.value.phase == "http"


# --------------------------------------------------------------------------- goodbyes


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "going away"), (1011, "défaut"), (1012, "restart"), (4000, "x" * 123)]
)
async def test_the_servers_goodbye_is_reported_and_the_session_comes_back(
    ws_server: Server, code: int, reason: str
) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/close"), backoff=SOON) as conn:
            async with conn.listen() as events:
                await conn.send_text(f"{code} {reason}")
                closed = await next_of(LinkClosed, events)
                assert (closed.code, closed.reason, closed.remote) == (code, reason, True)
                await conn.wait_ready()
                assert conn.epoch == 2
                assert conn.close_info == trio_nova.CloseInfo(code, reason, True, 1)


async def test_a_reset_is_a_lost_link_and_the_session_comes_back(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/reset"), backoff=SOON) as conn:
            async with conn.listen() as events:
                await conn.send_text("now")
                closed = await next_of(LinkClosed, events)
                assert (closed.code, closed.remote) == (1006, None)
                await conn.wait_ready()
                assert conn.epoch == 2


async def test_leaving_the_block_says_goodbye(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url()) as conn:
            async with conn.listen() as events:
                await conn.aclose(1000, "enough")
                closed = await next_of(LinkClosed, events)
        assert (closed.code, closed.reason, closed.remote) == (1000, "enough", False)


# --------------------------------------------------------------------------- silence


async def test_a_server_that_drops_who_does_not_pong_keeps_us(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(ws_server.url("/strict"), heartbeat="off") as conn:
            await trio.sleep(1.5)  # five of its pings
            await conn.send_text("still here")
            assert await conn.receive() == "still here"
            assert conn.epoch == 1


async def test_a_server_that_never_pongs_is_noticed(ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(
            ws_server.url("/mute"), ping_interval=0.3, pong_timeout=0.5, backoff=SOON
        ) as conn:
            async with conn.listen() as events:
                with trio.fail_after(5):
                    silent = await next_of(PeerSilent, events)
                assert silent.clock == "pong"
                await next_of(LinkClosed, events)
                await conn.wait_ready()
                assert conn.epoch == 2


async def test_a_stopped_server_is_noticed_and_found_again(own_ws_server: Server) -> None:
    with trio.fail_after(30):
        async with trio_nova.open_connection(
            own_ws_server.url(), ping_interval=0.3, pong_timeout=0.5, connect_timeout=0.5, backoff=SOON
        ) as conn:
            async with conn.listen() as events:
                own_ws_server.signal(signal.SIGSTOP)
                with trio.fail_after(5):
                    silent = await next_of(PeerSilent, events)
                assert silent.clock == "pong"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(conn.send_text, "written while it stood still")
                    await trio.sleep(1.5)  # dials meet a kernel that accepts and a process that says nothing
                    own_ws_server.signal(signal.SIGCONT)
                assert await conn.receive() == "written while it stood still"


async def test_a_stopped_server_is_noticed_by_a_sender_that_never_rests(own_ws_server: Server) -> None:
    with trio.fail_after(30):
        async with trio_nova.open_connection(
            own_ws_server.url(), ping_interval=0.3, pong_timeout=0.7, connect_timeout=0.5, backoff=SOON
        ) as conn:
            async with conn.listen() as events, trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send_on() -> None:
                    block = b"x" * 2**18
                    while True:
                        try:
                            await conn.send_bytes(block)
                        except trio_nova.OutcomeUnknown:
                            return

                @nursery.start_soon
                async def take_in() -> None:
                    async for _ in conn:
                        pass

                await trio.sleep(0.3)
                own_ws_server.signal(signal.SIGSTOP)
                with trio.fail_after(10):
                    await next_of(PeerSilent, events)
                own_ws_server.signal(signal.SIGCONT)
                await next_of(LinkClosed, events)
                await conn.wait_ready()
                nursery.cancel_scope.cancel()


async def test_leaving_while_the_server_stands_still_takes_bounded_time(own_ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(own_ws_server.url(), close_timeout=0.5) as conn:
            own_ws_server.signal(signal.SIGSTOP)
            with trio.move_on_after(1.0):
                while True:  # until nothing more goes in
                    await conn.send_bytes(b"x" * 2**20)
            leaving = trio.current_time()
        assert trio.current_time() - leaving < 5.0


async def test_a_killed_server_is_found_again_and_what_waited_arrives(own_ws_server: Server) -> None:
    with trio.fail_after(30):
        async with trio_nova.open_connection(own_ws_server.url(), backoff=SOON, when_down="wait") as conn:
            async with conn.listen() as events, trio.open_nursery() as nursery:
                await conn.send_text("before")
                assert await conn.receive() == "before"
                own_ws_server.kill()
                closed = await next_of(LinkClosed, events)
                assert closed.code == 1006
                for number in range(10):
                    nursery.start_soon(conn.send_text, f"waited {number}")
                await trio.sleep(0.5)  # dials are refused
                await trio.to_thread.run_sync(own_ws_server.start)
                assert sorted([await conn.receive() for _ in range(10)]) == [f"waited {number}" for number in range(10)]
            assert conn.epoch == 2


async def test_a_send_fails_at_once_while_the_server_is_dead_if_that_is_wanted(own_ws_server: Server) -> None:
    with trio.fail_after(20):
        async with trio_nova.open_connection(own_ws_server.url(), backoff=SOON, when_down="fail") as conn:
            async with conn.listen() as events:
                own_ws_server.kill()
                await next_of(LinkClosed, events)
                with pytest.raises(trio_nova.NotSent):
                    await conn.send_text("nobody hears")


# --------------------------------------------------------------------------- an open connection


async def test_an_open_connection_of_trio_websocket_is_adopted(ws_server: Server) -> None:
    url = ws_server.url()
    with trio.fail_after(20):
        async with trio_websocket.open_websocket_url(url) as ws:
            async with trio_nova.open_connection(url, transport=trio_nova.AdoptedTransport(ws)) as conn:
                for message in ("text", b"binary", "x" * 2**20):
                    await conn.send(message)
                    assert await conn.receive() == message
                assert await conn.ping() > 0.0
            assert ws.closed is not None
            assert ws.closed.code == 1000


async def test_the_end_of_an_adopted_connection_is_the_end_of_the_session(ws_server: Server) -> None:
    url = ws_server.url("/close")
    with trio.fail_after(20):
        # Our own stream, as trio-websocket leaves the one that it opens to the garbage collector where the peer closes.
        async with await trio.open_tcp_stream("127.0.0.1", ws_server.port) as stream, trio.open_nursery() as nursery:
            ws = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{ws_server.port}", "/close")
            with pytest.raises(trio_nova.ConnectFailed, match="used up") as caught:
                async with trio_nova.open_connection(
                    url, transport=trio_nova.AdoptedTransport(ws), backoff=SOON
                ) as conn:
                    await conn.send_text("4000 adopted")
                    await conn.receive()
    assert conn.close_info == trio_nova.CloseInfo(4000, "adopted", True, 1)
    assert caught.value.retry == "never"
