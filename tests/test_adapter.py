"""Adapters: where they are, which hooks are wired, and who wins where two say something else."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Adapter,
    AuthFailed,
    AuthOk,
    AuthRefused,
    Client,
    Config,
    ConfigError,
    ConnectFailed,
    ConnectionHandler,
    ConnectionInfo,
    Data,
    Dialect,
    Granted,
    HeartbeatAsked,
    LinkLost,
    MessageHandler,
    Reading,
    Registry,
    Reply,
    Retry,
    State,
    Stop,
    Url,
    open_connection,
)
from trio_nova.adapter import HOOKS, settle
from trio_nova.config import configure
from trio_nova.messages import Action
from trio_nova.secrets import Secret
from trio_nova.testing import Peer, ScriptedServer, echo


class Somewhere(Adapter):
    host = "localhost"
    secure = False


def texts(server: ScriptedServer, dial: int = 0) -> list[Any]:
    return [json.loads(frame) for frame in server.dials[dial].frames if isinstance(frame, str)]


# --------------------------------------------------------------------------- addresses


@attrs.define(eq=False, kw_only=True, slots=False)
class WithFields(Adapter):
    tenant: str = "main"
    host: str = "api.example.com"
    path: str = attrs.field(default=attrs.Factory(lambda self: f"/{self.tenant}", takes_self=True))


class WithAttributes(WithFields):
    query = "v=2"


@pytest.mark.parametrize(
    ("adapter", "full"),
    [
        (Adapter(host="api.example.com"), "wss://api.example.com/"),
        (Adapter(host="api.example.com", port=443), "wss://api.example.com/"),
        (Adapter(host="::1", port=81, secure=False, path="/a b"), "ws://[::1]:81/a%20b"),
        (Adapter(host="h", query={"a": "x y", "b": Secret("&")}), "wss://h/?a=x%20y&b=%26"),
        (Adapter(host="h", query="a=1&b=2"), "wss://h/?a=1&b=2"),
        (Somewhere(), "ws://localhost/"),
        (Somewhere(port=8080), "ws://localhost:8080/"),
        (Somewhere(url="wss://elsewhere.example/x?y=1"), "wss://elsewhere.example/x?y=1"),
        (WithFields(), "wss://api.example.com/main"),
        (WithFields(tenant="other"), "wss://api.example.com/other"),
        (WithAttributes(), "wss://api.example.com/main?v=2"),
    ],
)
def test_an_adapter_says_where_its_service_is(adapter: Adapter, full: str) -> None:
    assert adapter.url().full == full


@pytest.mark.parametrize(
    ("adapter", "field"),
    [
        (Adapter(), "host"),
        (Adapter(host="no host"), "host"),
        (Adapter(host="h", path="nowhere"), "path"),
        (Adapter(host="h", path="/a?b"), "path"),
        (Adapter(host="h", query=5), "query"),  # type: ignore[arg-type]
        (Adapter(url="http://h/"), "url"),
    ],
)
def test_a_wrong_address_is_named_at_once(adapter: Adapter, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_connection(adapter)
    assert caught.value.field == field


@pytest.mark.fault("F102", where="memory")
def test_what_may_be_secret_of_an_address_is_not_shown() -> None:
    adapter = Adapter(host="h", query="token=CANARY", url="wss://me:CANARY@h/")
    wrong = Adapter(host="h", query="token=CANARY", url="http://me:CANARY@h/")
    with pytest.raises(ConfigError) as caught:
        open_connection(wrong, scrub_tracebacks=True)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    shown = [repr(adapter), repr(attrs.asdict(adapter)), repr(attrs.astuple(adapter)), repr(vars(adapter)), *told]
    assert "CANARY" not in "\n".join(shown)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(adapter)
    assert attrs.evolve(adapter, url=None, host="g").url().full == "wss://g/?token=CANARY"


async def test_a_class_that_needs_no_arguments_will_do(autojump_clock: trio.abc.Clock) -> None:
    @attrs.define(eq=False, slots=False)
    class Demanding(Somewhere):
        region: str = attrs.field(kw_only=True)

    async with ScriptedServer(echo) as server:
        async with open_connection(Somewhere, stream_factory=server.stream_factory) as conn:
            assert conn.url == "ws://localhost/"
    with pytest.raises(ConfigError, match=r"Demanding\(\.\.\.\)"):
        open_connection(Demanding)
    with pytest.raises(ConfigError, match="an Adapter"):
        open_connection(5)  # type: ignore[arg-type]


async def test_a_registry_opens_adapters_too(autojump_clock: trio.abc.Clock) -> None:
    registry = Registry()
    async with ScriptedServer(echo) as server:
        async with registry.open_connection("one", Somewhere(), stream_factory=server.stream_factory):
            assert registry["one"].url == "ws://localhost/"


# --------------------------------------------------------------------------- precedence

PLACES = ("library", "profile", "adapter", "client", "call")


@pytest.mark.parametrize("highest", range(len(PLACES)), ids=PLACES)
async def test_who_is_nearest_to_the_call_wins(highest: int, autojump_clock: trio.abc.Clock) -> None:
    said = {place: 31.0 + rank for rank, place in enumerate(PLACES)}
    has = set(PLACES[1 : highest + 1])

    class Opinionated(Somewhere):
        def defaults(self) -> Mapping[str, Any]:
            return {"ping_interval": said["adapter"]} if "adapter" in has else {}

    class Opinions(Client):
        adapter = Opinionated()
        defaults = {"ping_interval": said["client"]} if "client" in has else {}

    profile = Config(ping_interval=said["profile"]) if "profile" in has else None
    call: dict[str, Any] = {"ping_interval": said["call"]} if "call" in has else {}
    async with ScriptedServer(echo) as server:
        async with Opinions.open(config=profile, stream_factory=server.stream_factory, **call) as client:
            expected = said[PLACES[highest]] if has else Config().ping_interval
            assert client.connection.config.ping_interval == expected


def test_a_strategy_named_by_defaults_replaces_the_hook_of_the_class() -> None:
    class Own(MessageHandler):
        pass

    class Both(Somewhere):
        def handle_platform_message(self, message: Any) -> Action:
            return Reply("never")

        def defaults(self) -> Mapping[str, Any]:
            return {"message_handler": Own}

    assert settle(Both(), None, {}).config.message_handler is Own
    assert settle(Both(), None, {"message_handler": MessageHandler}).config.message_handler is MessageHandler


def test_hooks_that_are_not_overridden_leave_the_strategies_of_the_library() -> None:
    settled = settle(Somewhere(), None, {})
    config = settled.config
    assert settled.url == Url.parse("ws://localhost/")
    assert attrs.evolve(config, codec=Config().codec) == Config(
        governor=config.governor, resolver=config.resolver, transport=config.transport
    )


def test_a_default_that_is_no_option_is_named() -> None:
    class Misspelt(Somewhere):
        def defaults(self) -> Mapping[str, Any]:
            return {"ping_intervall": 3}

    with pytest.raises(ConfigError, match="did you mean ping_interval"):
        open_connection(Misspelt())


# --------------------------------------------------------------------------- hooks


def test_every_public_method_of_an_adapter_is_a_hook_or_known() -> None:
    members = {**vars(Dialect), **vars(Adapter)}
    methods = {name for name, member in members.items() if callable(member) and not name.startswith("_")}
    assert methods == {*HOOKS, "url", "defaults", "options", "open_link"}


@attrs.define(eq=False, kw_only=True, slots=False)
class Everything(Somewhere):
    """Overrides every hook, and speaks nothing that the defaults would understand."""

    refuses: bool = False

    def handle_platform_message(self, message: Any) -> Action:
        return Reply({"heard": message["say"]}) if "say" in message else None

    def encode_auth_request(self, credentials: Any) -> Any:
        return {"op": "login", "key": credentials["key"]}

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        match message:
            case {"op": "welcome"}:
                return AuthRefused("not you") if self.refuses else AuthOk()
            case _:
                return None

    def setup_requests(self, info: ConnectionInfo) -> list[Any]:
        return [{"op": "mode", "id": f"mode-{info.epoch}"}]

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "sub", "topic": channel, **params}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "unsub", "topic": channel}

    def handle_subscription_response(self, message: Any) -> Granted | None:
        return Granted(message["topic"]) if message.get("op") == "subbed" else None

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"about": channel, "data": data}:
                return Data(channel, data)
            case {"op": "there?"}:
                return HeartbeatAsked({"op": "here"})
            case _:
                return None

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return Stop(error) if isinstance(error, LinkLost) and error.code == 4001 else advice


async def serve_everything(peer: Peer) -> None:
    await peer.accept()
    while isinstance(frame := await peer.receive(), str):
        match json.loads(frame):
            case {"op": "login"}:
                await peer.send_json({"op": "welcome"})
            case {"op": "mode", "id": id}:
                await peer.send_json({"id": id})
            case {"op": "sub", "topic": topic}:
                await peer.send_json({"op": "subbed", "topic": topic})
                await peer.send_json({"about": topic, "data": 1})
                await peer.send_json({"op": "there?"})
                await peer.send_json({"say": "hi"})
            case {"op": "unsub"}:
                await peer.close(4001)
            case _:
                pass


async def test_every_hook_that_is_overridden_is_wired(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(then=serve_everything) as server:
        with pytest.raises(LinkLost, match="4001"):
            async with open_connection(
                Everything(), stream_factory=server.stream_factory, credentials={"key": "k"}
            ) as conn:
                async with conn.subscribe("a", params={"depth": 3}) as feed:
                    assert await feed.receive() == 1
                    assert await conn.receive() == {"say": "hi"}
                    await wait_all_tasks_blocked()
                await trio.sleep(1)
    assert len(server.dials) == 1
    assert texts(server) == [
        {"op": "login", "key": "k"},
        {"op": "mode", "id": "mode-1"},
        {"op": "sub", "topic": "a", "depth": 3},
        {"op": "here"},
        {"heard": "hi"},
        {"op": "unsub", "topic": "a"},
    ]


async def test_a_refusal_that_a_hook_reads_is_one(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(then=serve_everything) as server:
        with pytest.raises(AuthFailed, match="not you"):
            async with open_connection(
                Everything(refuses=True), stream_factory=server.stream_factory, credentials={"key": "k"}
            ):
                pass


async def test_without_credentials_nobody_is_asked_who_we_are(autojump_clock: trio.abc.Clock) -> None:
    states: list[str] = []

    class Watching(ConnectionHandler):
        pass

    async with ScriptedServer(then=serve_everything) as server:
        async with open_connection(
            Everything(), stream_factory=server.stream_factory, connection_handler=Watching
        ) as conn:
            states.append(conn.state)
    assert states == [State.READY]
    assert texts(server) == [{"op": "mode", "id": "mode-1"}]  # the hook that the given handler does not have


class WaitsHook(Somewhere):
    async def handle_platform_message(self, message: Any) -> Action:  # type: ignore[override]
        return None


class TakesTooFew(Somewhere):
    def encode_subscription_request(self, channel: str) -> Any:  # type: ignore[override]
        return channel


class IsNoMethod(Somewhere):
    read = "message"  # type: ignore[assignment]


class UrlIsText(Somewhere):
    url = "wss://h/"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "field", "problem"),
    [
        (WaitsHook, "handle_platform_message", "plain def"),
        (TakesTooFew, "encode_subscription_request", "must take channel, params"),
        (IsNoMethod, "read", "as a method"),
        (UrlIsText, "url", "as a method"),
    ],
)
def test_a_hook_that_cannot_be_called_is_named_at_once(kind: type[Adapter], field: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_connection(kind())
    assert caught.value.field == field


async def test_a_static_hook_is_as_good_as_a_method(autojump_clock: trio.abc.Clock) -> None:
    class Static(Somewhere):
        @staticmethod
        def handle_platform_message(message: Any) -> Action:
            return Reply("heard")

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send("hi")
        await peer.expect("heard")
        await peer.close()

    async with ScriptedServer(script) as server:
        async with open_connection(Static(), stream_factory=server.stream_factory, max_attempts=0) as conn:
            with pytest.raises(trio_nova_errors):
                await conn.receive()
                await conn.receive()


trio_nova_errors = (Exception,)


# --------------------------------------------------------------------------- setup requests


@attrs.define(eq=False)
class Negotiates(ConnectionHandler):
    questions: list[Any] = attrs.field(factory=lambda: [{"id": "a"}, {"id": "b"}])

    def setup_requests(self, info: ConnectionInfo) -> list[Any]:
        return self.questions


async def test_setup_requests_are_asked_one_after_the_other_before_ready(autojump_clock: trio.abc.Clock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        assert await peer.receive_json() == {"id": "a"}
        await trio.sleep(1)
        assert len(peer.dialled.frames) == 1
        await peer.send_json({"id": "a"})
        assert await peer.receive_json() == {"id": "b"}
        await peer.send_json({"id": "b"})
        await peer.echo()

    async with ScriptedServer(script) as server:
        async with open_connection(
            Somewhere(), stream_factory=server.stream_factory, connection_handler=Negotiates
        ) as conn:
            assert trio.current_time() == 1.0
            assert conn.state is State.READY


async def refuse_setup(peer: Peer) -> None:
    await peer.accept()
    await peer.receive()
    await peer.send_json({"id": "a", "error": {"message": "no such mode"}})
    await peer.serve_until_closed()


async def say_nothing(peer: Peer) -> None:
    await peer.accept()
    await peer.serve_until_closed()


@pytest.mark.parametrize(
    ("script", "problem"), [(refuse_setup, "no such mode"), (say_nothing, "no answer to a setup request within 10 s")]
)
async def test_a_setup_request_that_fails_is_a_failed_attempt(
    script: Any, problem: str, autojump_clock: trio.abc.Clock
) -> None:
    options: dict[str, Any] = {"connection_handler": Negotiates}
    async with ScriptedServer(script, echo) as server:
        options["stream_factory"] = server.stream_factory
        with pytest.raises(ConnectFailed, match=problem):
            async with open_connection(Somewhere(), **options):
                pass
        async with open_connection(Somewhere(), **options, retry_first_connect=True) as conn:
            assert conn.state is State.READY


def test_what_configures_a_session_is_made_anew_for_each() -> None:
    adapter = Everything()
    first, second = (configure(Config(), adapter.options()) for _ in range(2))
    assert callable(first.message_handler)
    assert first.message_handler() is not second.message_handler()  # type: ignore[operator]
