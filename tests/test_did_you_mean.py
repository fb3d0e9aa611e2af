"""What is written as in another library, or misspelt, is answered by the right name; helpers are let be."""

from __future__ import annotations

import ssl
import traceback
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_nova import (
    Action,
    Adapter,
    AuthHandler,
    ConfigError,
    ConnectionHandler,
    Correlation,
    ErrorHandler,
    HandshakeInvalid,
    HandshakeRejected,
    LinkLost,
    MessageHandler,
    NotSent,
    SubscriptionHandler,
    TlsFailed,
    open_connection,
)
from trio_nova.errors import NovaError, explain
from trio_nova.links import Transport
from trio_nova.testing import Peer, ScriptedServer, echo

URL = "ws://localhost/"


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ssl", "ssl_context"),
        ("timeout", "connect_timeout, or a cancel scope"),
        ("extra_headers", "headers"),
        ("additional_headers", "headers"),
        ("ping_timeout", "pong_timeout"),
        ("open_timeout", "connect_timeout"),
        ("max_size", "max_message_size"),
        ("trust_env", '"env"'),
        ("on_message", "handle_message"),
        ("ping_intervall", "ping_interval"),
    ],
)
def test_an_option_of_another_library_is_answered_by_ours(name: str, right: str) -> None:
    option: dict[str, Any] = {name: 1}
    with pytest.raises(ConfigError, match="did you mean") as caught:
        open_connection(URL, **option)
    assert caught.value.field == name
    assert right in caught.value.problem


# --------------------------------------------------------------------------- hooks


def kind(base: Any, *methods: str, **members: Any) -> Any:
    def method(self: Any, *args: Any) -> None:
        return None

    return type("Mine", (base,), {**dict.fromkeys(methods, method), **members})


@pytest.mark.parametrize(
    ("field", "mine", "right"),
    [
        ("message_handler", kind(MessageHandler, "on_message"), "handle_message"),
        ("message_handler", kind(MessageHandler, "handle_mesage"), "handle_message"),
        ("message_handler", kind(MessageHandler, "encode_mesage"), "encode_message"),
        ("message_handler", kind(MessageHandler, "handle_messages", "_parse"), "handle_message"),
        ("connection_handler", kind(ConnectionHandler, "on_open"), "handle_connect"),
        ("connection_handler", kind(ConnectionHandler, "on_close", "handle_connect"), "handle_disconnect"),
        ("connection_handler", kind(ConnectionHandler, "on_frame"), "handle_frame"),
        ("connection_handler", kind(kind(ConnectionHandler, "on_close")), "handle_disconnect"),
        ("error_handler", kind(ErrorHandler, "on_error"), "handle_error"),
        ("error_handler", kind(ErrorHandler, "should_reconect"), "should_reconnect"),
        ("auth_handler", kind(AuthHandler, "encode_auth_requests"), "encode_auth_request"),
        ("subscription_handler", kind(SubscriptionHandler, "link_steps"), "link_step"),
    ],
)
def test_a_hook_that_nobody_would_call_is_refused(field: str, mine: Any, right: str) -> None:
    values: list[Any] = [mine, mine(), lambda: mine()]
    for value in values:
        with pytest.raises(ConfigError, match=rf"Mine\.\w+: nobody calls it; did you mean {right}\?"):
            open_connection(URL, **{field: value})


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("on_message", "handle_platform_message"),
        ("handle_message", "handle_platform_message"),
        ("handle_plattform_message", "handle_platform_message"),
        ("encode_subscription_requests", "encode_subscription_request"),
        ("should_reconect", "should_reconnect"),
    ],
)
def test_an_adapters_hook_that_nobody_would_call_is_refused(name: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {right}"):
        open_connection(kind(Adapter, name, host="localhost"))


class Everything(ConnectionHandler, MessageHandler):
    """Is two handlers at once."""

    def handle_connect(self, info: Any) -> Action:
        return None

    def handle_message(self, kind: str, message: Any) -> Action:
        return None


@pytest.mark.parametrize(
    ("field", "mine"),
    [
        ("message_handler", kind(MessageHandler, "handle_message", "on_message", "handle_messages", "on_trade")),
        ("message_handler", kind(MessageHandler, "parse", "on_trade", "reset", "encode", "handle_trade")),
        ("message_handler", kind(MessageHandler, "_on_message", on_message=property(lambda self: 1))),
        ("message_handler", kind(MessageHandler, on_message=5)),
        ("connection_handler", Everything),
        ("message_handler", Everything),
        ("auth_handler", kind(AuthHandler, "authenticated", "sign", "encode_auth")),
        ("subscription_handler", kind(SubscriptionHandler, "encode_subscription", "subscribe")),
        ("connection_handler", kind(ConnectionHandler, "handle_reconnect")),
    ],
)
def test_a_method_of_ones_own_is_let_be(field: str, mine: Any) -> None:
    open_connection(URL, **{field: mine})


def test_a_strategy_that_is_not_for_hooks_may_have_methods_of_any_name() -> None:
    open_connection(URL, correlation=kind(Correlation, "parse")())
    with pytest.raises(ConfigError, match="did you mean request_id"):
        open_connection(URL, correlation=kind(Correlation, "request_ids")())


# --------------------------------------------------------------------------- addresses


async def test_a_plain_port_that_is_asked_for_tls_says_so(transport: Transport, autojump_clock: MockClock) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with ScriptedServer(refuse) as server:
        with pytest.raises(TlsFailed, match="if it is a plain port, write ws://"):
            async with open_connection(
                "wss://localhost/",
                transport=transport,
                stream_factory=server.stream_factory,
                ssl_context=ssl.create_default_context(),
            ):
                pass


@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02\x02\x46", b"\x15", b"\x16\x03\x03"])
async def test_a_tls_port_that_is_asked_in_plain_text_says_so(
    transport: Transport, autojump_clock: MockClock, answer: bytes
) -> None:
    async def alert(peer: Peer) -> None:
        await peer.read_request()
        await peer.send_raw(answer)

    async with ScriptedServer(alert) as server:
        with pytest.raises(HandshakeInvalid, match="TLS: write wss://"):
            async with open_connection(URL, transport=transport, stream_factory=server.stream_factory):
                pass


# --------------------------------------------------------------------------- what a traceback tells


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "error", [NotSent("no"), ConfigError("a", "b"), LinkLost(1006), HandshakeRejected(503, retry_after=5.0)]
)
def test_a_traceback_tells_once_what_explain_tells(error: NovaError) -> None:
    for _ in range(2):
        assert told(error).endswith(explain(error).partition("\n")[2] + "\n")
        assert told(error).count("  retry: ") == 1


def test_what_is_set_after_an_error_was_made_is_told_too_and_what_is_added_stays() -> None:
    error: NovaError = NotSent("no")
    error.phase = "closing"
    error.add_note("mine")
    error.add_note("and mine")
    assert told(error).endswith("  phase: closing\n  retry: backoff\n  It is safe to send it again.\nmine\nand mine\n")


async def test_an_error_that_leaves_a_block_bears_its_advice_once(autojump_clock: MockClock) -> None:
    async def refuse(host: str, port: int) -> trio.abc.Stream:
        raise ConnectionRefusedError

    with pytest.raises(NovaError) as caught:
        async with open_connection(URL, stream_factory=refuse):
            pass
    assert told(caught.value).count("Check that the address is right") == 1


async def test_an_echo_is_still_an_echo(autojump_clock: MockClock) -> None:
    @attrs.define(eq=False)
    class Mine(MessageHandler):
        seen: list[Any] = attrs.field(factory=list)

        def handle_message(self, kind: str, message: Any) -> Action:
            self.on_message(message)
            return None

        def on_message(self, message: Any) -> None:
            self.seen.append(message)

    mine = Mine()
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, message_handler=mine) as conn:
            await conn.send_text("hi")
            assert await conn.receive() == "hi"
    assert mine.seen == ["hi"]
