"""Every hook, and everything it can answer: what the peer then sees, and what leaves the user's block.

`ACTING` lists the hooks that answer with an action, `EFFECTS` the actions; every pair is played over
real frames against a scripted server, in virtual time. `DECIDING` lists the hooks that answer with
something of their own, `WATCHING` those that only look; their answers have tests of their own below.
The last test derives the hooks from the handler classes and finds the ones that are missing here.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_nova
from trio_nova.codecs import JsonCodec
from trio_nova.core.backoff import Backoff, LinearBackoff, ListBackoff, NoBackoff
from trio_nova.core.limits import RollingWindow
from trio_nova.errors import BadMessage, ConfigError, LinkLost, NotSent, SessionOver
from trio_nova.events import Category, Dropped, ErrorEvent
from trio_nova.handlers import (
    AlwaysReconnect,
    ConnectionHandler,
    ConnectionInfo,
    ErrorHandler,
    FailFast,
    Heartbeat,
    LogAndContinue,
    MessageHandler,
    MessageHeartbeat,
    RateLimitHandler,
    RateRequest,
    ServerHeartbeat,
)
from trio_nova.links import Transport
from trio_nova.messages import (
    Action,
    Allow,
    Answered,
    Close,
    Decision,
    Ping,
    Queue,
    Reconnect,
    Reject,
    Reply,
    ReplyMany,
    Retry,
    Stop,
)
from trio_nova.observe import LoggingHandler, MetricsCollector
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


async def refuse_so_many(peer: Peer) -> None:
    await peer.reject(429)


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

    action: Answered
    replies: list[FromClient] = attrs.field(factory=list)
    goodbye: ClosePayload = GOODBYE
    """How the first link is closed, if it is up: sooner or later, by this action or by the user."""
    redial: float | None = None
    """Seconds until the next dial, where the action asks for one."""
    over: bool = False
    """Whether it ends the session."""
    raised: Exception | None = None

    def __str__(self) -> str:
        if isinstance(self.action, list):
            return "+".join(type(each).__name__ for each in self.action)
        return type(self.action).__name__


EFFECTS = [
    Effect(None),
    Effect(Reply("one"), replies=["one"]),
    Effect(ReplyMany(["one", "two", "three"]), replies=["one", "two", "three"]),
    Effect(Close(4321, "enough"), goodbye=ClosePayload(4321, "enough"), over=True),
    Effect(Stop(TROUBLE), over=True, raised=TROUBLE),
    Effect(Reconnect("elsewhere"), goodbye=ClosePayload(1000, "elsewhere"), redial=BACKOFF),
    Effect(Retry(7.0), redial=7.0),
    Effect([Reply("one"), ReplyMany(["two", "three"])], replies=["one", "two", "three"]),
]


@pytest.mark.parametrize("effect", EFFECTS, ids=str)
@pytest.mark.parametrize("hook", ACTING, ids=str)
async def test_every_action_of_every_hook_is_done(
    hook: Hook, effect: Effect, transport: Transport, autojump_clock: MockClock
) -> None:
    story = await play(hook, lambda: effect.action, transport=transport)

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


@pytest.mark.parametrize(
    "hook", [hook for hook in ACTING if hook.when == "up" and hook.name != "handle_connect"], ids=str
)
async def test_what_stands_before_a_close_in_one_answer_is_sent_before_it(
    hook: Hook, transport: Transport, autojump_clock: MockClock
) -> None:
    story = await play(hook, lambda: [Reply("one"), Close(4321, "enough")], transport=transport)
    assert story.said == [["one", ClosePayload(4321, "enough")]]
    assert not story.lasted
    assert story.raised is None


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


@pytest.mark.parametrize("backoff", [None, NoBackoff()], ids=["the default", "none"])
async def test_a_hook_that_wants_another_link_on_every_link_does_not_spin(
    backoff: Backoff | None, autojump_clock: MockClock
) -> None:
    class Restless(ConnectionHandler):
        def handle_connect(self, info: ConnectionInfo) -> Action:
            return Reconnect()

    options: dict[str, Any] = {} if backoff is None else {"backoff": backoff}
    async with ScriptedServer(then=echo) as server:
        with trio.move_on_after(600.0):
            async with trio_nova.open_connection(
                URL, stream_factory=server.stream_factory, connection_handler=Restless, **options
            ):
                raise AssertionError("never entered")
    assert len(server.dials) <= (60 if backoff is None else 601)


async def test_a_hook_that_wants_to_dial_after_every_refusal_does_not_spin(autojump_clock: MockClock) -> None:
    class Stubborn(ErrorHandler):
        def handle_error(self, error: Exception, context: str) -> Action:
            return Reconnect()

    async with ScriptedServer(then=Refuse()) as server:
        with trio.move_on_after(600.0):
            async with connect(server, error_handler=Stubborn, backoff=NoBackoff()):
                raise AssertionError("never entered")
    assert len(server.dials) <= 601


async def test_a_link_that_lasted_is_left_for_another_as_soon_as_the_first_time(autojump_clock: MockClock) -> None:
    class Punctual(RateLimitHandler):
        def handle_tick(self) -> Action:
            return Reconnect()

    async with ScriptedServer(then=echo) as server:
        async with connect(
            server,
            rate_limit_handler=Punctual(tick_interval=100.0),
            min_uptime=50.0,
            max_attempts=2,
            backoff=LinearBackoff(base=1.0, step=1.0, jitter=0.0),
        ):
            await trio.sleep(1000.0)
    assert [later.at - dialled.at for dialled, later in pairwise(server.dials)] == [101.0] * 9


# --------------------------------------------------------------------------- what is left when the session ends


async def test_replies_that_were_not_sent_when_the_session_ended_are_told(autojump_clock: MockClock) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.send("one", "two", "three")
        await peer.serve_until_closed()

    class Parrot(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return Reply(message)

    async with ScriptedServer(talk) as server:
        held = RateLimitHandler(mode="always_queue")
        async with connect(server, message_handler=Parrot, rate_limit_handler=held) as conn:
            async with conn.listen() as events:
                for text in ("one", "two", "three"):
                    assert await conn.receive() == text
                await conn.aclose()
                told = [event for event in await events.receive_batch() if isinstance(event, Dropped)]
    assert [(event.count, event.where) for event in told] == [(3, "replies")]


async def test_what_the_hooks_were_not_shown_when_the_session_ended_is_told_and_can_be_received(
    autojump_clock: MockClock,
) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*map(str, range(100)))
        await peer.serve_until_closed()

    shown: list[Any] = []
    told: list[Dropped] = []

    class Noting(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            shown.append(message)
            return Reply("noted")

    class Hearing(LoggingHandler):
        def log_connection_event(self, observation: trio_nova.Observation) -> None:
            if isinstance(observation.event, Dropped) and observation.event.where == "handlers":
                told.append(observation.event)

    limiter = RateLimitHandler([RollingWindow(1, 1000.0)])  # replies that cannot leave hold the hooks up
    async with ScriptedServer(talk) as server:
        async with connect(server, message_handler=Noting, logging_handler=Hearing, rate_limit_handler=limiter) as conn:
            assert await conn.receive() == "0"
            await wait_all_tasks_blocked()
            await conn.aclose()
            rest = [message async for message in conn]
    assert rest == [str(number) for number in range(1, 100)]
    assert 0 < len(shown) < 100
    assert [event.count for event in told] == [100 - len(shown)]


# --------------------------------------------------------------------------- hooks that fail

DECIDING = [
    Hook(
        ConnectionHandler,
        "connection_info",
        "dialling",
        first_dial=Refuse(),
        early=True,
        options={"retry_first_connect": True},
    ),
    Hook(ConnectionHandler, "setup_requests", "up", early=True),
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
        early=True,
        sent_without=["hello"],
    ),
    Hook(ErrorHandler, "should_reconnect", "down", drop),
    Hook(ErrorHandler, "classify_error", "down", drop),
    Hook(ErrorHandler, "log_error", "down", drop, context="link"),
    Hook(RateLimitHandler, "check_rate_limit", "up", say_hi, options={"message_handler": AnswersHi}),
    Hook(
        RateLimitHandler,
        "feedback",
        "dialling",
        first_dial=refuse_so_many,
        early=True,
        options={"retry_first_connect": True},
    ),
    Hook(Heartbeat, "probe", "up", options={"ping_interval": 2.0, "pong_timeout": 1.0}),
    Hook(Heartbeat, "read", "up", say_hi),
]
"""The hooks that answer with something of their own.

Two are not here: the failure of `encode_message` is its caller's; `count_sent` is only asked where there are limits.
"""


ASKED_FOR_MORE = ("connection_info", "should_reconnect", "check_rate_limit", "feedback")
"""Those of them whose answer is checked."""


def fail() -> None:
    raise TROUBLE


@pytest.mark.fault("F82", where="memory")
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
        *(hook for hook in DECIDING if hook.name in ASKED_FOR_MORE),
    ],
    ids=str,
)
async def test_an_answer_that_is_none_is_an_error_that_names_the_hook(hook: Hook, autojump_clock: MockClock) -> None:
    story = await play(hook, lambda: "nonsense")
    assert isinstance(story.raised, ConfigError)
    assert story.raised.field == hook.name
    assert "answered a str" in str(story.raised)  # and never with what: it may be a login


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


async def test_a_heartbeat_that_fails_loses_no_message(autojump_clock: MockClock) -> None:
    hook = next(hook for hook in DECIDING if hook.role is Heartbeat and hook.name == "read")
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
            with trio.fail_after(PATIENCE):
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
            answers: dict[str, Action] = {"Retry": Retry(0.0), "Close": Close()}
            return answers.get(how) if data == "hi" else None

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
            return wish if message == "two" else Reply("noted")

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("go on")
        await peer.send(*["one"] * 600, "two")
        await trio.sleep(1.0)
        await peer.drop()

    limiter = RateLimitHandler([RollingWindow(1, 2.0)])
    async with ScriptedServer(first, then=echo) as server:
        async with connect(server, message_handler=Slow, rate_limit_handler=limiter) as conn:
            await conn.send("go on")
            # 64 replies wait for the limit, so what follows waits for the hook; meanwhile the link is lost
            for _ in range(600):
                assert await conn.receive() == "one"
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


# --------------------------------------------------------------------------- hooks that decide


async def hang_up(peer: Peer) -> None:
    """Accept, and drop the link at once: one loss."""
    await peer.accept()
    await peer.drop()


async def greet(peer: Peer) -> None:
    await peer.accept()
    await peer.send("hi")
    await peer.echo()


@pytest.mark.fault("F85", where="memory")
async def test_connection_info_changes_every_dial_and_handle_connect_sees_the_answer(autojump_clock: MockClock) -> None:
    seen: list[tuple[int, object, str]] = []

    class Wanders(ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            n = info.epoch
            return attrs.evolve(
                info, url=f"ws://s{n}.test/{n}?a={n}", headers={"X-Link": str(n)}, subprotocols=(f"v{n}",)
            )

        def handle_connect(self, info: ConnectionInfo) -> Action:
            seen.append((info.epoch, info.subprotocol, dict(info.response_headers)["x-served-by"]))
            return None

    async def accept(peer: Peer) -> None:
        request = await peer.read_request()
        await peer.accept({"X-Served-By": request.headers["host"]}, request.headers["sec-websocket-protocol"])

    async def first(peer: Peer) -> None:
        await accept(peer)
        await peer.drop()

    async def second(peer: Peer) -> None:
        await accept(peer)
        await peer.echo()

    async with ScriptedServer(first, second) as server:
        async with connect(server, connection_handler=Wanders):
            await trio.sleep(PATIENCE)
    requests = [dialled.request for dialled in server.dials if dialled.request is not None]
    assert [dialled.host for dialled in server.dials] == ["s1.test", "s2.test"]
    assert [request.target for request in requests] == ["/1?a=1", "/2?a=2"]
    assert [request.headers["x-link"] for request in requests] == ["1", "2"]
    assert seen == [(1, "v1", "s1.test"), (2, "v2", "s2.test")]


async def test_status_is_part_of_the_health(autojump_clock: MockClock) -> None:
    class Reports(ConnectionHandler):
        def status(self) -> Mapping[str, object]:
            return {"venue": "open"}

    async with ScriptedServer(echo) as server, connect(server, connection_handler=Reports) as conn:
        assert conn.health().details == {"venue": "open"}


@attrs.define(eq=False)
class Decides(ErrorHandler):
    """Notes what it is asked, and answers `decision`; None: the advice."""

    decision: Retry | Stop | None = None
    asked: list[tuple[type[Exception], int, object]] = attrs.field(factory=list)

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        self.asked.append((type(error), attempt, advice))
        return self.decision or advice


async def test_should_reconnect_is_told_the_failures_in_a_row_and_the_advice(autojump_clock: MockClock) -> None:
    handler = Decides()
    async with ScriptedServer(hang_up, hang_up, then=echo) as server:
        async with connect(server, error_handler=handler):
            await trio.sleep(PATIENCE)
    assert handler.asked == [(LinkLost, 1, Retry(BACKOFF)), (LinkLost, 2, Retry(BACKOFF))]
    assert [dialled.at for dialled in server.dials] == [0.0, BACKOFF, 2 * BACKOFF]


async def forbid(peer: Peer) -> None:
    await peer.accept()
    await peer.close(3003)


@pytest.mark.parametrize(
    ("handler", "second", "dials", "raised"),
    [
        (Decides(Retry(7.0)), echo, [0.0, 7.0], None),
        (Decides(Stop(TROUBLE)), echo, [0.0], Trouble),
        (ErrorHandler, forbid, [0.0, 3.0], LinkLost),
        (AlwaysReconnect, forbid, [0.0, 3.0, 8.0], None),
        (FailFast, echo, [0.0], LinkLost),
        (LogAndContinue, echo, [0.0, 3.0], None),
    ],
    ids=["Retry", "Stop", "default", "AlwaysReconnect", "FailFast", "LogAndContinue"],
)
async def test_should_reconnect_decides(
    handler: Any,
    second: Step,
    dials: list[float],
    raised: type[Exception] | None,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left: Exception | None = None
    async with ScriptedServer(hang_up, second, then=echo) as server:
        try:
            async with connect(server, error_handler=handler):
                await trio.sleep(PATIENCE)
        except Exception as exc:
            left = exc
    assert [dialled.at for dialled in server.dials] == dials
    assert type(left) is (type(None) if raised is None else raised)
    logged = [record for record in caplog.records if record.name == "trio_nova.errors"]
    assert [record.levelname for record in logged] == (["WARNING"] if handler is LogAndContinue else [])


async def test_classify_error_names_the_category_and_log_error_is_told_of_every_error(
    autojump_clock: MockClock,
) -> None:
    logged: list[tuple[type[Exception], str]] = []
    metrics = MetricsCollector()

    class Errors(ErrorHandler):
        def classify_error(self, error: Exception) -> Category:
            return "rate_limit"

        def log_error(self, error: Exception, context: str) -> None:
            logged.append((type(error), context))

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send("hi")
        await peer.expect("now")
        await peer.drop()

    async with ScriptedServer(script, Refuse(), then=echo) as server:
        async with connect(server, error_handler=Errors, message_handler=RefusesHi, metrics_collector=metrics) as conn:
            async with conn.listen() as events:
                await conn.send("now")
                await trio.sleep(PATIENCE)
                await conn.aclose()
                categories = [event.category async for event in events if isinstance(event, ErrorEvent)]
    assert [context for _, context in logged] == ["message", "link", "connect"]
    assert set(categories) == {"rate_limit"}
    assert metrics.counters["errors.rate_limit"] == 3


@attrs.define(eq=False)
class Limiter(RateLimitHandler):
    """Answers each question with the next of `answers`, then Allow."""

    answers: list[Decision] = attrs.field(factory=list)
    asked: list[RateRequest] = attrs.field(factory=list)

    def check_rate_limit(self, request: RateRequest) -> Decision:
        self.asked.append(request)
        return self.answers.pop(0) if self.answers else Allow()


async def test_check_rate_limit_allows_queues_and_rejects(autojump_clock: MockClock) -> None:
    limiter = Limiter(answers=[Allow(), Queue(5.0), Allow(), Reject("too dear")])
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=limiter) as conn:
            await conn.send({"method": "quote"})
            assert trio.current_time() == 0.0
            await conn.send("b")
            assert trio.current_time() == 5.0
            with pytest.raises(NotSent, match="too dear"):
                await conn.send("c")
            await conn.ping()
        await server.dials[0].wait_ended()
    messages = [
        (received.at, received.frame) for received in server.dials[0].journal if isinstance(received.frame, str)
    ]
    assert messages == [(0.0, '{"method":"quote"}'), (5.0, "b")]
    assert [(asked.kind, asked.size, asked.purpose) for asked in limiter.asked] == [
        ("quote", 18, "message"),
        ("", 1, "message"),
        ("", 1, "message"),
        ("", 1, "message"),
        ("", 16, "control"),
    ]


@pytest.mark.parametrize(
    ("mode", "sent_at"),
    [("normal", [0.0, 10.0]), ("always_allow", [0.0, 0.0]), ("always_queue", [4.0, 14.0]), ("always_reject", [])],
)
async def test_the_modes_of_the_rate_limit(mode: Any, sent_at: list[float], autojump_clock: MockClock) -> None:
    handler = RateLimitHandler([RollingWindow(1, 10.0)])
    async with ScriptedServer(echo) as server:
        async with connect(server, rate_limit_handler=handler) as conn:
            handler.mode = mode  # it may change at any time

            async def send(message: str) -> None:
                if mode == "always_reject":
                    with pytest.raises(NotSent):
                        await conn.send(message)
                else:
                    await conn.send(message)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, "a")
                nursery.start_soon(send, "b")
                await trio.sleep(3.5)
                if mode == "always_queue":
                    handler.mode = "normal"
        await server.dials[0].wait_ended()
    journal = server.dials[0].journal
    assert [received.at for received in journal if isinstance(received.frame, str)] == pytest.approx(sent_at)


async def test_the_mode_of_a_limiter_without_limits_can_change(autojump_clock: MockClock) -> None:
    handler = RateLimitHandler()
    async with ScriptedServer(echo) as server, connect(server, rate_limit_handler=handler) as conn:
        await conn.send("a")
        handler.mode = "always_reject"
        with pytest.raises(NotSent):
            await conn.send("b")


async def test_a_ping_that_the_rate_limit_rejects_raises_and_does_not_wait_for_its_pong(
    autojump_clock: MockClock,
) -> None:
    limiter = RateLimitHandler(mode="always_reject")
    async with ScriptedServer(echo) as server, connect(server, rate_limit_handler=limiter) as conn:
        with trio.fail_after(PATIENCE), pytest.raises(NotSent):
            await conn.ping()
        limiter.mode = "normal"
        assert await conn.ping() == 0.0


async def test_message_type_prices_what_is_sent(autojump_clock: MockClock) -> None:
    class Prices(MessageHandler):
        def message_type(self, message: Any) -> str:
            return "dear" if message == "order" else "cheap"

    limiter = RateLimitHandler([RollingWindow(10, 10.0)], costs={"dear": 10.0, "cheap": 1.0})
    async with ScriptedServer(echo) as server:
        async with connect(server, message_handler=Prices, rate_limit_handler=limiter) as conn:
            await conn.send("order")
            await conn.send("question")
            assert trio.current_time() == 10.0


class Wraps(MessageHandler):
    """Changes what comes and what goes."""

    def validate_message(self, message: Any) -> Any:
        if message == "bad":
            raise BadMessage("bad it is")
        return {"seen": message}

    def encode_message(self, message: Any) -> Any:
        if message == "forbidden":
            raise TROUBLE
        return f"<{message}>"

    def handle_message(self, kind: str, message: Any) -> Action:
        return Reply("reply") if message == {"seen": "hi"} else None


async def test_messages_are_validated_changed_and_encoded_on_their_way(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send("bad", "hi")
        await peer.expect("<reply>")
        await peer.echo()

    async with ScriptedServer(script) as server:
        async with connect(server, message_handler=Wraps) as conn:
            assert await conn.receive() == {"seen": "hi"}
            await conn.send("text")
            assert await conn.receive() == {"seen": "<text>"}
            with pytest.raises(BadMessage) as caught:
                await conn.send("forbidden")
            assert caught.value.__cause__ is TROUBLE
            await conn.send_text("exact")  # exactly this text: no hook changes it
            assert await conn.receive() == {"seen": "exact"}
            assert conn.statistics().errors == 1
            assert conn.epoch == 1


# --------------------------------------------------------------------------- the heartbeat


async def test_the_heartbeat_pings_at_its_interval_and_off_is_off(autojump_clock: MockClock) -> None:
    for heartbeat, expected in (("ping", [2.0, 4.0, 6.0]), ("off", [])):
        async with ScriptedServer(echo) as server:
            async with connect(server, heartbeat=heartbeat, ping_interval=2.0, pong_timeout=1.0) as conn:
                started = trio.current_time()
                await trio.sleep(7.0)
                assert conn.latency == (0.0 if expected else None)
        journal = server.dials[0].journal
        assert [received.at - started for received in journal if isinstance(received.frame, Ping)] == expected


async def test_a_message_heartbeat_expects_its_answer_and_keeps_it_to_itself(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect('{"op":"ping"}')
        await trio.sleep(0.25)
        await peer.send('{"op":"pong"}', '{"op":"news"}')
        await peer.mute()

    heartbeat = MessageHeartbeat({"op": "ping"}, lambda message: message["op"] == "pong")
    async with ScriptedServer(script, then=echo) as server:
        async with connect(server, codec=JsonCodec(), heartbeat=heartbeat, ping_interval=2.0, pong_timeout=1.0) as conn:
            assert await conn.receive() == {"op": "news"}
            assert conn.latency == 0.25
            await conn.wait_state(trio_nova.State.DISCONNECTED)
            assert trio.current_time() == 5.0  # probed again at 4 s, and no answer to that


async def test_beats_that_nobody_answers_leave_on_time_and_the_link_is_not_judged_by_them(
    transport: Transport, autojump_clock: MockClock
) -> None:
    beats: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        while await peer.receive() == "\n":
            beats.append(trio.current_time())

    heartbeat = MessageHeartbeat("\n", answered=False)
    async with ScriptedServer(script) as server:
        options: dict[str, Any] = {"ping_interval": 1.75, "pong_timeout": 20.0, "transport": transport}
        async with connect(server, heartbeat=heartbeat, **options) as conn:
            await trio.sleep(100.0)
            assert (conn.epoch, conn.state) == (1, trio_nova.State.READY)
            assert conn.statistics().pings_sent == len(beats) == 57
            assert conn.statistics().pongs_received == 0
    assert beats == [1.75 * number for number in range(1, 58)]


async def test_beats_of_ours_leave_on_time_whatever_the_service_says_by_itself(
    transport: Transport, autojump_clock: MockClock
) -> None:
    beats: list[float] = []

    async def script(peer: Peer) -> None:
        async def beat() -> None:
            while True:
                await trio.sleep(2.0)
                await peer.send("theirs")

        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            while await peer.receive() == "ours":
                beats.append(trio.current_time())
            nursery.cancel_scope.cancel(reason="the client says goodbye")

    for heartbeat in (MessageHeartbeat("ours"), MessageHeartbeat("ours", answered=False)):
        beats.clear()
        began = trio.current_time()
        async with ScriptedServer(script) as server:
            async with connect(server, heartbeat=heartbeat, ping_interval=1.75, transport=transport) as conn:
                await trio.sleep(60.0)
                assert conn.epoch == 1
        assert beats == [began + 1.75 * number for number in range(1, 35)]


async def test_heartbeats_that_are_messages_are_counted_as_pings_and_their_answers_as_pongs(
    transport: Transport, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        while await peer.receive() == '{"op":"ping"}':
            await peer.send('{"op":"pong"}')

    heartbeat = MessageHeartbeat({"op": "ping"}, lambda message: message["op"] == "pong")
    async with ScriptedServer(script) as server:
        options: dict[str, Any] = {"codec": JsonCodec(), "ping_interval": 2.0, "transport": transport}
        async with connect(server, heartbeat=heartbeat, **options) as conn:
            await trio.sleep(9.0)
            assert (conn.statistics().pings_sent, conn.statistics().pongs_received) == (4, 4)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no pairs of sockets")
@pytest.mark.parametrize("clock", ["pong", "idle", "beat"])
async def test_a_peer_whose_answer_has_arrived_is_not_called_silent_by_a_process_that_stood_still(
    clock: str, transport: Transport, autojump_clock: MockClock
) -> None:
    ours, theirs = socket.socketpair()
    theirs_again = theirs.dup()

    async def dial(host: str, port: int) -> trio.abc.Stream:
        server.serve_stream(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), host, port)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def script(peer: Peer) -> None:
        await peer.accept()
        for number in range(12):
            probe = await peer.receive()
            news = b"".join(bytes([0x81, 2]) + b"ab" for _ in range(number * 40))
            answer = bytes([0x8A, 8]) + probe.payload if isinstance(probe, Ping) else bytes([0x81, 4]) + b"pong"
            theirs_again.send(news + answer)
            autojump_clock.jump(3.0)  # at once: the reader had no time to read
        await peer.echo()

    heartbeat = MessageHeartbeat("ping", lambda message: message == "pong") if clock == "beat" else "ping"
    limits = {"pong_timeout": 100.0, "idle_timeout": 3.0} if clock == "idle" else {"pong_timeout": 1.0}
    async with ScriptedServer(script) as server:
        options: dict[str, Any] = {"heartbeat": heartbeat, "ping_interval": 2.0, "max_attempts": 0, **limits}
        async with trio_nova.open_connection(URL, stream_factory=dial, transport=transport, **options) as conn:
            with trio.move_on_after(70.0):
                async for _ in conn:
                    pass
            assert (conn.epoch, conn.state) == (1, trio_nova.State.READY)
            assert conn.statistics().pings_sent > 12
    theirs_again.close()


async def test_the_servers_own_heartbeat_is_answered_ahead_of_a_queue(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("first")
        await trio.sleep(1.0)  # "second" waits for the limit
        await peer.send("test_request")
        await peer.expect("test")
        assert trio.current_time() == 1.0
        await peer.expect("second")
        await peer.echo()

    heartbeat = ServerHeartbeat(lambda message: "test" if message == "test_request" else None)
    limiter = RateLimitHandler([RollingWindow(2, 10.0)], reserve=1.0)
    async with ScriptedServer(script) as server:
        async with connect(server, heartbeat=heartbeat, rate_limit_handler=limiter) as conn:
            await conn.send("first")
            await conn.send("second")
            with pytest.raises(trio.WouldBlock):
                conn.receive_nowait()  # the question was not for us


# --------------------------------------------------------------------------- hooks that watch

WATCHING = [
    (LoggingHandler, "log_connection_event"),
    (LoggingHandler, "log_message_event"),
    (LoggingHandler, "log_error_event"),
    (LoggingHandler, "wants_messages"),
    (MetricsCollector, "handle_connection_event"),
    (MetricsCollector, "handle_message_event"),
    (MetricsCollector, "handle_message_batch"),
    (MetricsCollector, "handle_error_event"),
]


@pytest.mark.parametrize(("role", "name"), WATCHING, ids=lambda value: getattr(value, "__name__", value))
async def test_a_watcher_that_fails_costs_nothing_but_one_line_in_the_log(
    role: type, name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_nova")  # so that message events are wanted

    def method(self: object, *args: object) -> None:
        raise TROUBLE

    method.__name__ = name
    handler = type("Failing", (role,), {name: method})()
    async with ScriptedServer(greet) as server:
        async with connect(server, message_handler=RefusesHi, **{FIELDS[role]: handler}) as conn:
            await conn.send("echo")
            assert await conn.receive() == "echo"
    failures = [record for record in caplog.records if "failed, and is told nothing any more" in record.message]
    assert [record.exc_info is not None and record.exc_info[1] for record in failures] == [TROUBLE]
    assert [dialled.ended for dialled in server.dials] == ["closed"]


EXPECTED_EVENTS = """
    StateChanged(connecting) DialStarted StateChanged(connected) LinkOpened StateChanged(ready) BecameReady
    MessageEvent(sent) MessageEvent(received) ErrorEvent(message)
    StateChanged(disconnected) LinkClosed ErrorEvent(link) StateChanged(reconnecting) RetryScheduled
    StateChanged(connecting) DialStarted StateChanged(connected) LinkOpened Reconnected StateChanged(ready) BecameReady
    StateChanged(closing) LinkClosed StateChanged(closed) SessionEnded
"""


@pytest.mark.parametrize(
    ("role", "prefix"), [(LoggingHandler, "log"), (MetricsCollector, "handle")], ids=["logging", "metrics"]
)
async def test_logging_and_metrics_are_told_every_event_in_order(
    role: type, prefix: str, autojump_clock: MockClock
) -> None:
    told: list[str] = []

    def hear(self: object, observation: trio_nova.Observation) -> None:
        event = observation.event
        detail = next((getattr(event, name) for name in ("new", "direction", "context") if hasattr(event, name)), "")
        told.append(type(event).__name__ + (f"({detail})" if detail else ""))

    hooks = {f"{prefix}_{family}_event": hear for family in ("connection", "message", "error")}
    if role is LoggingHandler:
        hooks["wants_messages"] = lambda self: True  # type: ignore[assignment, misc]

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("go on")
        await peer.send("news")
        await peer.send("hi")
        await trio.sleep(1.0)
        await peer.drop()

    async with ScriptedServer(script, then=echo) as server:
        handler = type("Recorder", (role,), hooks)
        async with connect(server, message_handler=RefusesHi, **{FIELDS[role]: handler}) as conn:
            await conn.send("go on")
            await trio.sleep(PATIENCE)
    assert told == EXPECTED_EVENTS.split()


# --------------------------------------------------------------------------- handlers, and whether none is forgotten


@attrs.define(eq=False)
class Counting(MessageHandler):
    seen: list[Any] = attrs.field(factory=list)

    def handle_message(self, kind: str, message: Any) -> Action:
        self.seen.append(message)
        return Reply(len(self.seen)) if message == "hi" else None


@pytest.mark.parametrize(
    ("handler", "answers"),
    [(Counting(), ["1", "3"]), (Counting, ["1", "1"]), (lambda: Counting(["one before"]), ["2", "2"])],
    ids=["an instance is shared", "a class is not", "a factory is asked for each session"],
)
async def test_a_handler_may_be_an_instance_a_class_or_a_factory(
    handler: Any, answers: list[str], autojump_clock: MockClock
) -> None:
    for answer in answers:
        async with ScriptedServer(greet) as server, connect(server, message_handler=handler) as conn:
            assert await conn.receive() == "hi"
            assert await conn.receive() == answer


def test_no_hook_is_missing_here() -> None:
    of_their_own = {(MessageHandler, "encode_message"), (RateLimitHandler, "count_sent")}
    not_asked_by_sessions = {
        (MetricsCollector, "snapshot"),
        (RateLimitHandler, "pace"),
        (RateLimitHandler, "slow_down"),
    }
    listed = {(hook.role, hook.name) for hook in ACTING + DECIDING} | {*WATCHING} | of_their_own | not_asked_by_sessions
    offered = {
        (role, name)
        for role in FIELDS
        for name, member in vars(role).items()
        if callable(member) and not name.startswith("_")
    }
    assert listed == offered
    contexts = {hook.context for hook in ACTING if hook.name == "handle_error"}
    documented = ErrorHandler.handle_error.__doc__ or ""
    assert all(f'"{context}"' in documented for context in contexts)
    assert documented.count('"') == 2 * len(contexts)
