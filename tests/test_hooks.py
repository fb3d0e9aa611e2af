"""Every hook, and everything it can answer: what the peer then sees, and what leaves the user's block.

`ACTING` lists the hooks that answer with an action, `EFFECTS` the actions; every pair is played over
real frames against a scripted server, in virtual time. `DECIDING` lists the hooks that answer with
something of their own, `WATCHING` those that only look; their answers have tests of their own below.
The last test derives the hooks from the handler classes and finds the ones that are missing here.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova.codecs import JsonCodec
from trio_nova.core.backoff import ListBackoff
from trio_nova.core.limits import RollingWindow
from trio_nova.errors import BadMessage, ConfigError, HandshakeRejected, LinkLost, NotSent, OutcomeUnknown, SessionOver
from trio_nova.handlers import (
    AlwaysReconnect,
    ConnectionHandler,
    ConnectionInfo,
    ErrorHandler,
    FailFast,
    Heartbeat,
    LogAndContinue,
    LoggingHandler,
    MessageHandler,
    MessageHeartbeat,
    MetricsCollector,
    RateLimitHandler,
    RateRequest,
    ServerHeartbeat,
)
from trio_nova.messages import (
    Action,
    Allow,
    Category,
    Close,
    Decision,
    ErrorEvent,
    Event,
    Ping,
    Pong,
    Queue,
    Reconnect,
    Reject,
    Reply,
    ReplyMany,
    Retry,
    Stop,
)
from trio_nova.testing import ClosePayload, FromClient, Peer, Refuse, ScriptedServer, Step, echo

URL = "ws://server.test/"
BACKOFF = 3.0
"""Seconds before any retry that nobody decided otherwise."""
PATIENCE = 30.0
"""Seconds that the user stays in the block, if the session lasts as long."""

Fields: TypeAlias = Mapping[str, Any]


def connect(server: ScriptedServer, **options: Any) -> trio_nova.ConnectionBlock:
    calm: dict[str, Any] = {"backoff": ListBackoff([BACKOFF]), "ping_interval": math.inf}
    return trio_nova.open_connection(URL, stream_factory=server.stream_factory, **(calm | options))


# --------------------------------------------------------------------------- how a hook comes to be asked


async def do_nothing(peer: Peer) -> None:
    await trio.lowlevel.checkpoint()


async def say_hi(peer: Peer) -> None:
    await peer.send("hi")


async def drop(peer: Peer) -> None:
    await peer.drop()


async def mute(peer: Peer) -> None:
    await peer.mute()


def nothing_to_do(conn: trio_nova.Connection) -> None:
    pass


class RefusesHi(MessageHandler):
    def validate_message(self, message: Any) -> Any:
        if message == "hi":
            raise BadMessage("no greetings")
        return message


@attrs.define(eq=False)
class AnswersHi(MessageHandler):
    answer: Any = "answer"

    def handle_message(self, kind: str, message: Any) -> Action:
        return Reply(self.answer) if message == "hi" else None


class SaysHello(ConnectionHandler):
    def handle_connect(self, info: ConnectionInfo) -> Action:
        return Reply("hello")


UNSPEAKABLE = object()
"""A message that no codec has a form for."""


@attrs.frozen
class Hook:
    """One hook, and how to have it asked on an otherwise calm session."""

    role: type
    name: str
    when: Literal["up", "down", "dialling"]
    """Whether there is a link when it is asked: there is, it is lost, or there was none yet."""
    provoke: Callable[[Peer], Awaitable[None]] = do_nothing
    """What the first peer does, once it has accepted, to have the hook asked."""
    act: Callable[[trio_nova.Connection], object] = nothing_to_do
    """What the user does for that."""
    context: str = ""
    """The one of several contexts that counts."""
    first_dial: Step | None = None
    """What becomes of the first dial, in place of an upgrade."""
    options: Fields = attrs.field(factory=dict)
    early: bool = False
    """Whether it is asked before the session was ever ready: if it ends then, the block is not entered."""
    sent_without: list[FromClient] = attrs.field(factory=list)
    """What the client sends on the first link although the hook fails."""

    def __str__(self) -> str:
        return f"{self.role.__name__}.{self.name}" + (f"-{self.context}" if self.context else "")


ACTING = [
    Hook(ConnectionHandler, "handle_connect", "up", early=True),
    Hook(ConnectionHandler, "handle_frame", "up", say_hi),
    Hook(ConnectionHandler, "ping", "up", options={"ping_interval": 2.0, "pong_timeout": 1.0}),
    Hook(ConnectionHandler, "handle_timeout", "down", mute, options={"ping_interval": 2.0, "pong_timeout": 1.0}),
    Hook(ConnectionHandler, "handle_disconnect", "down", drop),
    Hook(MessageHandler, "handle_message", "up", say_hi),
    Hook(ErrorHandler, "handle_error", "up", say_hi, context="message", options={"message_handler": RefusesHi}),
    Hook(
        ErrorHandler,
        "handle_error",
        "up",
        say_hi,
        context="reply",
        options={"message_handler": AnswersHi(UNSPEAKABLE)},
    ),
    Hook(ErrorHandler, "handle_error", "down", drop, context="link"),
    Hook(
        ErrorHandler,
        "handle_error",
        "dialling",
        context="connect",
        first_dial=Refuse(),
        options={"retry_first_connect": True},
        early=True,
    ),
    Hook(RateLimitHandler, "handle_tick", "up"),
]
"""The hooks that answer with an action, in every context there is."""

FIELDS: dict[type, str] = {
    ConnectionHandler: "connection_handler",
    MessageHandler: "message_handler",
    ErrorHandler: "error_handler",
    RateLimitHandler: "rate_limit_handler",
    LoggingHandler: "logging_handler",
    MetricsCollector: "metrics_collector",
    Heartbeat: "heartbeat",
}


def scripted(hook: Hook, behave: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return a handler with this hook, and the list that gets the time of the one call where it does `behave`."""
    asked: list[float] = []
    default = getattr(hook.role, hook.name)

    def method(self: Any, *args: Any) -> Any:
        if not asked and (not hook.context or hook.context == args[-1]):
            asked.append(trio.current_time())
            return behave()
        return default(self, *args)

    method.__name__ = hook.name
    return type("Scripted", (hook.role,), {hook.name: method})(), asked


# --------------------------------------------------------------------------- what came of it


@attrs.define
class Story:
    """What the peer and the user saw of one session."""

    said: list[list[FromClient]]
    """What the client sent on each dial, without its pings."""
    dials: list[float]
    """Seconds from the hook's answer to each dial after it."""
    lasted: bool
    """Whether the session was still alive when the user left."""
    raised: Exception | None
    """What left the block, or kept it from being entered."""
    received: list[Any]


async def play(hook: Hook, behave: Callable[[], Any], **options: Any) -> Story:
    handler, asked = scripted(hook, behave)

    async def provoke(peer: Peer) -> None:
        await peer.accept()
        await hook.provoke(peer)
        await peer.echo()

    raised: Exception | None = None
    lasted = False
    received: list[Any] = []
    async with ScriptedServer(hook.first_dial or provoke, then=echo) as server:
        try:
            async with connect(server, **{FIELDS[hook.role]: handler, **hook.options, **options}) as conn:
                hook.act(conn)
                with trio.move_on_after(PATIENCE) as patience:
                    async for message in conn:
                        received.append(message)
                lasted = patience.cancelled_caught
        except Exception as exc:
            raised = exc
        for dialled in server.dials:
            await dialled.wait_ended()
    assert asked, f"{hook} was never asked"
    return Story(
        said=[[frame for frame in dialled.frames if not isinstance(frame, Ping)] for dialled in server.dials],
        dials=[dialled.at - asked[0] for dialled in server.dials if dialled.at > asked[0]],
        lasted=lasted,
        raised=raised,
        received=received,
    )


class Trouble(Exception):
    """The user's own."""


TROUBLE = Trouble()
GOODBYE = ClosePayload(1000, "")


@attrs.frozen
class Effect:
    """What an action makes the session do."""

    action: Action
    replies: list[FromClient] = attrs.field(factory=list)
    goodbye: ClosePayload = GOODBYE
    """How the first link is closed, if it is up: sooner or later, by this action or by the user."""
    redial: float | None = None
    """Seconds until the next dial, where the action asks for one."""
    over: bool = False
    """Whether it ends the session."""
    raised: Exception | None = None

    def __str__(self) -> str:
        return type(self.action).__name__


EFFECTS = [
    Effect(None),
    Effect(Reply("one"), replies=["one"]),
    Effect(ReplyMany(["one", "two", "three"]), replies=["one", "two", "three"]),
    Effect(Close(4321, "enough"), goodbye=ClosePayload(4321, "enough"), over=True),
    Effect(Stop(TROUBLE), over=True, raised=TROUBLE),
    Effect(Reconnect("elsewhere"), goodbye=ClosePayload(1000, "elsewhere"), redial=BACKOFF),
    Effect(Retry(7.0), redial=7.0),
]


@pytest.mark.parametrize("effect", EFFECTS, ids=str)
@pytest.mark.parametrize("hook", ACTING, ids=str)
async def test_every_action_of_every_hook_is_done(hook: Hook, effect: Effect, autojump_clock: MockClock) -> None:
    story = await play(hook, lambda: effect.action)

    if hook.when == "up":
        first: list[FromClient] = [*effect.replies, effect.goodbye]
        second: list[FromClient] = [GOODBYE]
        redial = effect.redial
    else:
        first, second = [], [*effect.replies, GOODBYE]
        redial = None if effect.over else effect.redial or BACKOFF
    assert story.said == ([first] if redial is None else [first, second])
    assert story.dials == pytest.approx([] if redial is None else [redial])
    assert story.lasted is not effect.over
    if hook.early and isinstance(effect.action, Close):
        assert isinstance(story.raised, SessionOver)  # the block is entered ready, or not at all
    else:
        assert story.raised is effect.raised


@pytest.mark.parametrize("action", [Retry(7.0), Reconnect()], ids=["Retry", "Reconnect"])
async def test_an_action_wins_over_failing_fast(action: Action, autojump_clock: MockClock) -> None:
    hook = next(hook for hook in ACTING if hook.context == "connect")
    story = await play(hook, lambda: action, retry_first_connect=False)
    assert story.dials == [7.0 if isinstance(action, Retry) else BACKOFF]
    assert story.raised is None


@pytest.mark.parametrize("action", [Reply("late"), Close(), Retry(7.0)], ids=lambda action: type(action).__name__)
async def test_a_hook_asked_while_the_session_closes_changes_nothing(action: Action, autojump_clock: MockClock) -> None:
    class Handler(ConnectionHandler):
        def handle_disconnect(self, lost: LinkLost) -> Action:
            return action

    async with ScriptedServer(echo) as server:
        async with connect(server, connection_handler=Handler):
            pass
        await server.dials[0].wait_ended()
    assert server.dials[0].frames == [GOODBYE]


# --------------------------------------------------------------------------- hooks that fail

DECIDING = [
    Hook(ConnectionHandler, "connection_info", "dialling", first_dial=Refuse(), early=True, options={"retry_first_connect": True}),
    Hook(ConnectionHandler, "status", "up", act=lambda conn: conn.health()),
    Hook(MessageHandler, "validate_message", "up", say_hi),
    Hook(
        MessageHandler,
        "message_type",
        "up",
        options={
            "connection_handler": SaysHello,
            "rate_limit_handler": lambda: RateLimitHandler([RollingWindow(9, 1.0)], costs={"dear": 9.0}),
        },
        sent_without=["hello"],
    ),
    Hook(ErrorHandler, "should_reconnect", "down", drop),
    Hook(ErrorHandler, "classify_error", "down", drop),
    Hook(ErrorHandler, "log_error", "down", drop, context="link"),
    Hook(RateLimitHandler, "check_rate_limit", "up", say_hi, options={"message_handler": AnswersHi}),
    Hook(Heartbeat, "probe", "up", options={"ping_interval": 2.0, "pong_timeout": 1.0}),
    Hook(Heartbeat, "is_answer", "up", say_hi),
    Hook(Heartbeat, "answer", "up", say_hi),
]
"""The hooks that answer with something of their own. `encode_message` is not here: its failure is its caller's."""


def fail() -> None:
    raise TROUBLE


@pytest.mark.parametrize("policy", ["raise", "log", "close"])
@pytest.mark.parametrize("hook", ACTING + DECIDING, ids=str)
async def test_what_a_hook_raises_follows_on_handler_error(
    hook: Hook, policy: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    story = await play(hook, fail, on_handler_error=policy)

    assert "Trouble" in caplog.text
    if policy == "log":
        assert story.raised is None
        assert story.lasted
        if hook.when == "up":
            assert story.said == [[*hook.sent_without, GOODBYE]]
        else:
            assert story.said == [[], [GOODBYE]]
            assert story.dials == [BACKOFF]
        return
    assert not story.lasted
    if hook.name == "connection_info":
        assert story.said == []
    elif hook.when == "up":
        assert story.said == [[ClosePayload(1011, "internal error" if policy == "close" else "")]]
    else:
        assert story.said == [[]]
    if policy == "raise":
        assert story.raised is TROUBLE
    elif hook.early:
        assert isinstance(story.raised, SessionOver)
    else:
        assert story.raised is None


@pytest.mark.parametrize(
    "hook",
    [
        *ACTING,
        *(hook for hook in DECIDING if hook.name in ("connection_info", "should_reconnect", "check_rate_limit")),
    ],
    ids=str,
)
async def test_an_answer_that_is_none_is_an_error_that_names_the_hook(hook: Hook, autojump_clock: MockClock) -> None:
    story = await play(hook, lambda: "nonsense")
    assert isinstance(story.raised, ConfigError)
    assert story.raised.field == hook.name
    assert "'nonsense'" in str(story.raised)


@pytest.mark.parametrize(
    "make",
    [lambda: Reconnect("é" * 62), lambda: Close(1006), lambda: Stop("no exception"), lambda: ReplyMany(7)],  # type: ignore[arg-type]
    ids=["Reconnect", "Close", "Stop", "ReplyMany"],
)
async def test_an_action_that_cannot_be_done_fails_in_the_hook_that_made_it(
    make: Callable[[], Action], autojump_clock: MockClock
) -> None:
    hook = next(hook for hook in ACTING if hook.name == "handle_message")
    story = await play(hook, make, on_handler_error="log")
    assert story.said == [[GOODBYE]]
    assert story.raised is None


@pytest.mark.parametrize("name", ["is_answer", "answer"])
async def test_a_heartbeat_that_fails_loses_no_message(name: str, autojump_clock: MockClock) -> None:
    hook = next(hook for hook in DECIDING if hook.name == name)
    assert (await play(hook, fail, on_handler_error="log")).received == ["hi"]


async def test_a_message_that_validation_failed_on_is_not_delivered(autojump_clock: MockClock) -> None:
    hook = next(hook for hook in DECIDING if hook.name == "validate_message")
    assert (await play(hook, fail, on_handler_error="log")).received == []


async def test_a_probe_that_could_not_be_made_is_made_again(autojump_clock: MockClock) -> None:
    hook = attrs.evolve(next(hook for hook in DECIDING if hook.name == "probe"), provoke=mute)
    probes = 0

    class Heart(Heartbeat):
        def probe(self, payload: bytes) -> Any:
            nonlocal probes
            probes += 1
            if probes == 1:
                raise TROUBLE
            return Ping(payload)

    async def silent(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(silent, then=echo) as server:
        async with connect(server, heartbeat=Heart(), on_handler_error="log", **hook.options):
            await trio.sleep(PATIENCE)
    assert [dialled.at for dialled in server.dials] == [0.0, 2.0 + 2.0 + 1.0 + BACKOFF]


# --------------------------------------------------------------------------- actions that meet each other, and the end


async def test_replies_of_both_hooks_of_a_loss_wait_for_the_next_link(autojump_clock: MockClock) -> None:
    class Errors(ErrorHandler):
        def handle_error(self, error: Exception, context: str) -> Action:
            return Reply("from the error handler")

    class Life(ConnectionHandler):
        def handle_disconnect(self, lost: LinkLost) -> Action:
            return Retry(1.0)

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async with ScriptedServer(first, then=echo) as server:
        async with connect(server, connection_handler=Life, error_handler=Errors) as conn:
            assert await conn.receive() == "from the error handler"
            assert [dialled.at for dialled in server.dials] == [0.0, 1.0]


@pytest.mark.parametrize("how", ["reconnect", "leave", "Retry", "Close", "silence"])
async def test_every_link_that_came_up_is_told_to_have_ended(how: str, autojump_clock: MockClock) -> None:
    told: list[str] = []

    class Life(ConnectionHandler):
        def handle_connect(self, info: ConnectionInfo) -> Action:
            told.append(f"up {info.epoch}")
            return None

        def handle_disconnect(self, lost: LinkLost) -> Action:
            told.append(f"down {lost.epoch}")
            return None

        def handle_frame(self, kind: str, data: str | bytes) -> Action:
            return {"Retry": Retry(0.0), "Close": Close()}.get(how) if data == "hi" else None

        def handle_timeout(self, clock: str) -> Action:
            return Retry(0.0)

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send("hi")
        await (peer.mute() if how == "silence" else peer.echo())

    async with ScriptedServer(first, then=echo) as server:
        async with connect(server, connection_handler=Life, ping_interval=1.0, pong_timeout=1.0) as conn:
            if how == "reconnect":
                await conn.reconnect()
            elif how != "leave":
                await trio.sleep(10.0)
    expected = ["up 1", "down 1"] if how in ("leave", "Close") else ["up 1", "down 1", "up 2", "down 2"]
    assert told == expected


@pytest.mark.parametrize("wish", [Retry(1.0), Reconnect()], ids=["Retry", "Reconnect"])
async def test_what_a_message_of_a_lost_link_asks_for_does_not_disturb_the_next(
    wish: Action, autojump_clock: MockClock
) -> None:
    class Slow(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return wish if message == "two" else None

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send("one", "fill", "two")
        await peer.drop()

    async with ScriptedServer(first, then=echo) as server:
        async with connect(server, message_handler=Slow, inbox_size=1) as conn:
            await trio.sleep(1.0)  # the inbox is full: "two" waits for the hook, and nobody reads
            with pytest.raises(OutcomeUnknown):
                await conn.send("is there anybody?")
            await trio.sleep(1.0)
            assert await conn.receive() == "one"
            assert await conn.receive() == "fill"
            assert await conn.receive() == "two"
            await trio.sleep(PATIENCE)
    assert [dialled.at for dialled in server.dials] == [0.0, 1.0 + BACKOFF]


class AlwaysAnswers(ErrorHandler):
    """Answers each failed reply with another that will fail."""

    def handle_error(self, error: Exception, context: str) -> Action:
        return Reply(UNSPEAKABLE) if context == "reply" else None


class AnswersAll(ErrorHandler):
    def handle_error(self, error: Exception, context: str) -> Action:
        return Reply("sorry")


@pytest.mark.parametrize(
    "options",
    [
        {"message_handler": AnswersHi(UNSPEAKABLE), "error_handler": AlwaysAnswers},
        {
            "message_handler": AnswersHi(),
            "error_handler": AnswersAll,
            "rate_limit_handler": RateLimitHandler(mode="always_reject"),
        },
    ],
    ids=["that cannot be encoded", "that are rejected"],
)
async def test_replies_to_the_failure_of_replies_come_to_an_end(options: Fields, autojump_clock: MockClock) -> None:
    async def greet(peer: Peer) -> None:
        await peer.accept()
        await peer.send("hi")
        await peer.echo()

    async with ScriptedServer(greet) as server:
        async with connect(server, **options) as conn:
            assert await conn.receive() == "hi"
            await trio.sleep(1.0)
            assert conn.statistics().errors == 2
        await server.dials[0].wait_ended()
    assert server.dials[0].frames == [GOODBYE]


async def test_a_text_that_is_no_unicode_is_refused_and_the_session_goes_on(autojump_clock: MockClock) -> None:
    async with ScriptedServer(echo) as server, connect(server, message_handler=AnswersHi("\ud800")) as conn:
        with pytest.raises(BadMessage):
            await conn.send("\ud800")
        await conn.send("hi")
        assert await conn.receive() == "hi"
        await conn.send("still there")
        assert await conn.receive() == "still there"
        assert conn.epoch == 1
