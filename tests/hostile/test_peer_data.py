"""What peers say of themselves: addresses, lifetimes, intervals, words for a log. None of it is believed unseen."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import math
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from trio_nova import (
    Authenticated,
    AuthFailed,
    AuthUnsuccessful,
    BadMessage,
    BecameReady,
    ConfigError,
    ConnectionHandler,
    ConnectionInfo,
    JsonCodec,
    ListBackoff,
    MessageHandler,
    Reconnect,
    Reply,
    State,
    open_connection,
)
from trio_nova.messages import Action
from trio_nova.testing import Opcode, Peer, ScriptedServer, echo

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])


# --------------------------------------------------------------------------- lifetimes


class Gate:
    """Lets in whoever has one of its tokens, for so many seconds."""

    def __init__(self, *tokens: str, expires_in: Any = 600.0) -> None:
        self.tokens, self.expires_in = set(tokens), expires_in
        self.asked: list[tuple[float, str]] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            token = json.loads(frame)["token"]
            self.asked.append((trio.current_time(), token))
            good = token in self.tokens
            await peer.send_json({"type": "auth_success" if good else "auth_error", "expires_in": self.expires_in})


def sign_in(server: ScriptedServer, provider: Callable[[], Any], **options: Any) -> trio_nova.ConnectionBlock:
    plain: dict[str, Any] = {
        "stream_factory": server.stream_factory,
        "codec": JsonCodec(),
        "backoff": ListBackoff([7]),
        "max_attempts": 5,
    }
    return open_connection(URL, credentials=provider, allow_plaintext_credentials=True, **(plain | options))


@pytest.mark.fault("F107", where="memory")
@pytest.mark.parametrize(("failures", "links"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_refresh_that_fails_is_tried_again_with_a_pause_and_at_last_on_another_link(
    autojump_clock: MockClock, how: str, failures: int, links: int
) -> None:
    asked: list[float] = []

    async def provide() -> str:
        asked.append(trio.current_time())
        if 1 < len(asked) <= 1 + failures:
            if how == "hangs":
                await trio.sleep_forever()
            raise OSError("the vault is closed")
        return f"token {len(asked)}"

    gate = Gate(*(f"token {number}" for number in range(1, 10)))
    async with ScriptedServer(then=gate) as server:
        with trio.fail_after(3600.0):
            async with sign_in(server, provide, auth_timeout=10.0) as conn, conn.listen(size=1000) as events:
                await trio.sleep(700.0)
                assert conn.state is State.READY
                assert conn.epoch == links
                told = await events.receive_batch()
    waits = [later - earlier for earlier, later in pairwise(asked[1 : 2 + failures])]
    assert waits == [7.0 + (10.0 if how == "hangs" else 0.0)] * failures
    assert len([event for event in told if isinstance(event, AuthUnsuccessful)]) == failures
    assert asked[1] == 540.0
    assert [token for _, token in gate.asked] == ["token 1", f"token {2 + failures}"]


@pytest.mark.fault("F107", where="memory")
async def test_a_token_is_not_sent_after_its_expiry_however_long_the_provider_fails(autojump_clock: MockClock) -> None:
    async def provide() -> str:
        await trio.lowlevel.checkpoint()
        if 1.0 <= trio.current_time() < 2_000.0:
            raise OSError("the vault is closed")
        return "old" if trio.current_time() < 1.0 else "new"

    ready: list[bool] = []
    gate = Gate("old", "new")
    async with ScriptedServer(then=gate) as server:
        with trio.fail_after(3600.0):
            async with sign_in(server, provide, max_attempts=math.inf) as conn:
                for when in (599.0, 601.0, 2_010.0):
                    await trio.sleep_until(when)
                    ready.append(conn.state is State.READY)
    assert ready == [False, False, True]  # the third failure of a refresh ends the link
    assert [token for _, token in gate.asked] == ["old", "new"]
    assert gate.asked[1][0] >= 2_000.0


@pytest.mark.fault("F107", where="memory")
async def test_a_provider_that_gives_the_same_dead_token_again_ends_the_session_after_two_refusals(
    autojump_clock: MockClock,
) -> None:
    async def provide() -> str:
        await trio.lowlevel.checkpoint()
        return "token"

    gate = Gate("token")
    async with ScriptedServer(then=gate) as server:
        with trio.fail_after(3600.0), pytest.raises(AuthFailed):
            async with sign_in(server, provide):
                await trio.sleep(500.0)
                gate.tokens.clear()
                await trio.sleep_forever()
    assert len(gate.asked) == 3
    assert gate.asked[2][0] - gate.asked[1][0] >= 7.0


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize("lifetime", [-1, 0, 1e-300, None, "x", True, [], {}, 1e308, 10**30])
async def test_a_lifetime_that_makes_no_sense_neither_ends_the_link_nor_asks_without_end(
    autojump_clock: MockClock, lifetime: Any
) -> None:
    async def provide() -> str:
        await trio.lowlevel.checkpoint()
        return "token"

    gate = Gate("token", expires_in=lifetime)
    async with ScriptedServer(then=gate) as server:
        async with sign_in(server, provide) as conn:
            await trio.sleep(600.0)
            assert (conn.state, conn.epoch) == (State.READY, 1)
    assert 1 <= len(gate.asked) <= 130


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize("interval", [0, -1, 1e-9, 1e308, math.nan, "x", None, True, [], 10**400, -math.inf])
async def test_an_interval_that_makes_no_sense_is_refused_and_the_one_before_stays(
    autojump_clock: MockClock, interval: Any
) -> None:
    """As with a service that tells at what interval it wants to be pinged."""

    async def tell(peer: Peer) -> None:
        await peer.accept()
        await peer.echo()

    async with ScriptedServer(tell) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, ping_interval=10.0) as conn:
            with pytest.raises(ConfigError) as caught:
                conn.reconfigure(ping_interval=interval)
            assert caught.value.field == "ping_interval"
            await trio.sleep(105.0)
            assert conn.statistics().pings_sent == 10


# --------------------------------------------------------------------------- addresses


class Redirected(MessageHandler, ConnectionHandler):
    """Dials next where the service says."""

    told: Any = ()

    def handle_message(self, kind: str, message: Any) -> Action:
        self.told = message["resume_url"]
        return Reconnect("the service says so")

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return info if self.told == () else attrs.evolve(info, url=self.told)


def telling(target: Any) -> Callable[[Peer], Any]:
    async def tell(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json({"resume_url": target})
        await peer.serve_until_closed()

    return tell


@pytest.mark.fault("F109", where="memory")
@pytest.mark.parametrize(
    "target",
    [
        "http://evil.test/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "//evil.test/",
        "evil.test",
        "wss://",
        "wss://:443/",
        "wss://evil.test:99999/",
        "wss://evil.test:port/",
        "wss://[::1/",
        "wss://evil.test\r\nHost: other/",
        "wss://evil.test\x00/",
        "wss://evil .test/",
        "",
        17,
        None,
        ["wss://evil.test/"],
        {"url": "wss://evil.test/"},
    ],
    ids=repr,
)
async def test_an_address_of_the_service_that_is_none_is_not_dialled(autojump_clock: MockClock, target: Any) -> None:
    handler = Redirected()
    async with ScriptedServer(telling(target), then=echo) as server:
        with trio.fail_after(60.0):
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                codec=JsonCodec(),
                message_handler=handler,
                connection_handler=handler,
                on_handler_error="log",
                backoff=AT_ONCE,
            ) as conn:
                await server.wait_dialled(2)
                await conn.wait_ready()
                assert conn.statistics().errors >= 1
    assert [(dialled.host, dialled.port) for dialled in server.dials] == [("server.test", 80)] * 2


@pytest.mark.fault("F100", "F109", where="memory")
@pytest.mark.parametrize(
    "target", ["ws://evil.test/", "ws://server.test.evil.test/?token=x", "ws://user:pw@evil.test/"]
)
@pytest.mark.parametrize(("vouched", "words"), [((), "see redirect_origins"), (("{}",), "plain text")])
async def test_credentials_follow_no_address_of_the_service_elsewhere_and_never_into_plain_text(
    autojump_clock: MockClock, target: str, vouched: tuple[str, ...], words: str
) -> None:
    handler = Redirected()
    async with ScriptedServer(telling(target), then=echo) as server:
        with trio.fail_after(60.0), pytest.raises(ConfigError, match=words):
            async with open_connection(
                "ws://localhost/",
                redirect_origins=[origin.format(target) for origin in vouched],
                stream_factory=server.stream_factory,
                codec=JsonCodec(),
                message_handler=handler,
                connection_handler=handler,
                headers={"Authorization": "Bearer secret"},
                backoff=AT_ONCE,
            ):
                await trio.sleep_forever()
    assert [dialled.host for dialled in server.dials] == ["localhost"]


# --------------------------------------------------------------------------- words for a log

NASTY = "\n2026-01-01 CRITICAL forged\r\x1b[2J\x1b]0;title\x07\u202eevil\u2066\u200b\x00\x85\u2028"


async def close_with_it(peer: Peer) -> None:
    await peer.accept()
    await peer.close(4000, NASTY)


async def reject_with_it(peer: Peer) -> None:
    await peer.read_request()
    text = NASTY.encode().replace(b"\n", b"").replace(b"\r", b"").replace(b"\x00", b"")
    head = b"HTTP/1.1 503 " + text + b"\r\nX-Why: " + text + b"\r\nContent-Length: 100000\r\n\r\n"
    await peer.send_raw(head + NASTY.encode() * 1000)
    await peer.hang()


async def send_it(peer: Peer) -> None:
    await peer.accept()
    await peer.send_json({"type": NASTY, "channel": NASTY, "id": NASTY, "error": {"message": NASTY * 10_000}})
    await peer.send("{" + NASTY)
    await peer.drop()


async def refuse_with_it(peer: Peer) -> None:
    await peer.accept()
    await peer.receive_json()
    await peer.send_json({"type": "auth_error", "reason": NASTY * 10_000})
    await peer.serve_until_closed()


@pytest.mark.fault("F110", where="memory")
@pytest.mark.parametrize("format", ["plain", "json"])
@pytest.mark.parametrize("script", [close_with_it, reject_with_it, send_it, refuse_with_it])
async def test_what_a_peer_says_is_one_record_escaped_and_cut(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, script: Callable[[Peer], Any], format: Any
) -> None:
    caplog.set_level(logging.DEBUG, "trio_nova")
    said: list[str] = []
    async with ScriptedServer(script, then=script) as server:
        with trio.fail_after(600.0):
            try:
                async with open_connection(
                    URL,
                    stream_factory=server.stream_factory,
                    codec=JsonCodec(),
                    credentials="token" if script is refuse_with_it else None,
                    allow_plaintext_credentials=True,
                    logging_handler=trio_nova.LoggingHandler(format=format),
                    retry_first_connect=True,
                    max_attempts=1,
                    backoff=AT_ONCE,
                ) as conn:
                    await conn.wait_closed()
            except trio_nova.NovaError as error:
                said += [str(error), trio_nova.explain(error)]
    assert said
    assert any("forged" in record.getMessage() for record in caplog.records) or script is send_it
    for text in [record.getMessage() for record in caplog.records] + said[:1]:
        assert len(text) < 2_000
        bad = [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]
        assert bad == [], text


# --------------------------------------------------------------------------- said twice, or too soon


def our_tasks() -> list[str]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    names, rest = [], [root]
    while rest:
        task = rest.pop()
        names.append(task.name)
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sorted(name for name in names if name.startswith("nova"))


@pytest.mark.fault("F122", where="memory")
async def test_greetings_and_grants_that_come_twice_or_too_soon_start_nothing_twice(autojump_clock: MockClock) -> None:
    hello = {"type": "hello", "heartbeat_interval": 5}
    granted = {"type": "auth_success", "expires_in": 600}

    async def repeat_all(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json(hello)
        await peer.send_json(hello)
        await peer.receive_json()
        for _ in range(3):
            await peer.send_json(granted)
            await peer.send_json(hello)
        await trio.sleep(1.0)
        for _ in range(100):
            await peer.send_json(granted)
            await peer.send_json(hello)
        await peer.serve_until_closed()

    async with ScriptedServer(repeat_all) as server:
        async with open_connection(
            URL,
            stream_factory=server.stream_factory,
            codec=JsonCodec(),
            credentials="token",
            allow_plaintext_credentials=True,
            ping_interval=10.0,
        ) as conn:
            async with conn.listen(size=1000) as events:
                await wait_all_tasks_blocked()
                before = our_tasks()
                await trio.sleep(305.0)
                assert our_tasks() == before
                told = await events.receive_batch()
            assert (conn.state, conn.epoch) == (State.READY, 1)
            assert conn.statistics().pings_sent == 30
        auths = [frame for frame in server.dials[0].frames if isinstance(frame, str)]
    assert [name for name in before if "heartbeat" in name] == [f"nova[{conn.id}]:heartbeat#1"]
    assert len(set(before)) == len(before)
    assert len(auths) == 1
    assert [event for event in told if isinstance(event, Authenticated | BecameReady)] == []


# --------------------------------------------------------------------------- data, and nothing but data

CODE = [
    '{"py/object": "os.system", "args": ["id"]}',
    '{"__reduce__": ["os.system", ["id"]]}',
    '{"$type": "System.Diagnostics.Process"}',
    '{"__proto__": {"admin": true}}',
    '{"__class__": "x", "__init__": {"__globals__": {}}}',
]
NOT_JSON = [
    b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R.",
    b"!!python/object/apply:os.system ['id']",
    b"\xc7\x04\x01code",  # a msgpack extension
    b"__import__('os').system('id')",
]
EXECUTES = {"pickle", "shelve", "marshal", "yaml", "dill", "cloudpickle", "jsonpickle"}


@pytest.mark.fault("F123", where="memory")
async def test_what_would_be_code_elsewhere_is_data_or_refused(autojump_clock: MockClock) -> None:
    async def tell(peer: Peer) -> None:
        await peer.accept()
        for text in CODE:
            await peer.send(text)
        for payload in NOT_JSON:
            await peer.send_frame(Opcode.BINARY, payload)
        await peer.send('"the end"')
        await peer.serve_until_closed()

    received: list[Any] = []
    async with ScriptedServer(tell) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec()) as conn:
            while "the end" not in received:
                received.append(await conn.receive())
            assert conn.statistics().errors == len(NOT_JSON)
            assert conn.epoch == 1
    assert received == [*map(json.loads, CODE), "the end"]


@pytest.mark.fault("F123", where="memory")
@pytest.mark.parametrize("payload", NOT_JSON)
def test_a_decoder_refuses_what_is_no_json(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        JsonCodec().decode(payload)


@pytest.mark.fault("F123", where="memory")
def test_nothing_in_the_package_can_execute_what_it_reads() -> None:
    package = Path(inspect.getfile(trio_nova)).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names):
                    found += [(path, each.name) for each in names if each.name.split(".")[0] in EXECUTES]
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] in EXECUTES:
                    found.append((path, module))
                case ast.Call(func=ast.Name("eval" | "exec" | "compile" as name)):
                    found.append((path, name))
    assert found == []


# --------------------------------------------------------------------------- envelopes


class Acknowledging(MessageHandler):
    """Says of each envelope that it has come, as Slack wants within 3 seconds."""

    def handle_message(self, kind: str, message: Any) -> Action:
        match message:
            case {"type": "disconnect"}:
                return Reconnect("the service asks for it")
            case {"envelope_id": id}:
                return Reply({"envelope_id": id})
        return None


@pytest.mark.fault("F124", where="memory")
async def test_envelopes_are_acknowledged_in_time_however_slow_their_consumer_is(autojump_clock: MockClock) -> None:
    late: list[float] = []
    acknowledged: list[int] = []

    async def send_envelopes(peer: Peer) -> None:
        await peer.accept()
        first = 100 * (peer.dialled.number - 1)

        async def read() -> None:
            while isinstance(frame := await peer.receive(), str):
                acknowledged.append(id := json.loads(frame)["envelope_id"])
                late.append(trio.current_time() - sent[id])

        sent: dict[int, float] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for id in range(first, first + 100):
                sent[id] = trio.current_time()
                await peer.send_json({"envelope_id": id})
                await trio.sleep(0.1)
            if first == 0:
                await peer.send_json({"type": "disconnect", "reason": "warning"})

    received: list[int] = []
    async with ScriptedServer(then=send_envelopes) as server:
        with trio.fail_after(3600.0):
            async with open_connection(
                URL,
                stream_factory=server.stream_factory,
                codec=JsonCodec(),
                message_handler=Acknowledging,
                backoff=ListBackoff([1.0]),
            ) as conn:
                while len(received) < 200:
                    message = await conn.receive()
                    received += [message["envelope_id"]] if "envelope_id" in message else []
                    await trio.sleep(2.0)
            assert conn.epoch == 2
    assert received == acknowledged[:200] == list(range(200))
    assert max(late) <= 3.0
