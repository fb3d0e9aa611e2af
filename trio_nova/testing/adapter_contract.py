"""The contract that every adapter keeps, as tests against a server in memory.

Subclass `AdapterContract` in a test module of yours, with the adapter to be judged; any runner of tests runs
it, and it needs no plugin, since every test that talks over a link has a `trio.run` of its own::

    class TestChat(AdapterContract):
        adapter = Chat()
        credentials = "a token"

`python -m trio_nova check module:Chat` runs the same without pytest, and adds a report.

Nobody tells the contract how the service speaks. It finds out from the texts that the adapter's own code
compares messages to; where that is not enough a test is skipped, and says what to set or to override.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from decimal import Decimal
from functools import cached_property, partial, wraps
from types import MappingProxyType
from typing import Any, TypeAlias
from unittest import SkipTest

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova._connection import Connection, ConnectionBlock, open_connection
from trio_nova._feeds import Feed
from trio_nova.adapter import HOOKS, Adapter, hook_faults, shadowed_hooks
from trio_nova.core.backoff import ListBackoff
from trio_nova.core.ledger import identity
from trio_nova.core.session import State
from trio_nova.errors import (
    AuthFailed,
    BadMessage,
    ConfigError,
    ConnectFailed,
    HandshakeRejected,
    LinkLost,
    NovaError,
    RequestFailed,
    SubscriptionRejected,
    printable,
)
from trio_nova.handlers import AuthHandler, ConnectionInfo, SubscriptionHandler
from trio_nova.messages import ACTIONS, Ping, Pong, Reply, ReplyMany, Retry, Stop
from trio_nova.readings import AuthOk, AuthRefused, Granted, Refused
from trio_nova.secrets import LOOKED_AT, Redactor, is_secret_name, secrets_in
from trio_nova.testing._server import ScriptedServer
from trio_nova.testing._stand_in import ROLES, StandIn, Strategies, shape
from trio_nova.testing._words import broken, words_of

__all__ = ["AdapterContract", "lookalikes"]

PATIENCE = 120.0
"""Seconds, virtual ones, after which a test has failed rather than hangs."""
URL = "ws://localhost/"
SECRET = "hunter2-correct-horse"
"""What known credentials are made of."""
KNOWN_CREDENTIALS: tuple[Any, ...] = (
    dict.fromkeys(
        ("token", "api_key", "api_secret", "secret", "client_id", "client_secret", "key", "username", "password"),
        SECRET,
    ),
    SECRET,
    (SECRET, SECRET),
)
"""Tried in turn where the contract is not given any."""
MAX_UNDERSTOOD = 20
"""Messages that a hook understands which are broken in every way."""

Judge: TypeAlias = Callable[[Any], str | None]
"""Says what is wrong with a hook's answer; None where nothing is."""
Look: TypeAlias = tuple[str, Sequence[str], Callable[[Any], Any], Judge]


def _in_virtual_time(test: Callable[[Any], Awaitable[None]]) -> Callable[[Any], None]:
    """Make an ordinary test of an async one. Runners of async tests do not know what skips an ordinary one."""

    @wraps(test)
    def run(self: Any) -> None:
        trio.run(test, self, clock=MockClock(autojump_threshold=0))

    return run


class AdapterContract:
    """The promises of an adapter. Subclass it and set `adapter`; set the rest where a test asks for it."""

    adapter: Adapter
    """What is judged."""
    credentials: Any = None
    """Such as the adapter takes; None: what is common is tried."""
    channel: str = "trades.BTC"
    """A channel that the service might have."""
    params: Mapping[str, Any] = MappingProxyType({})
    """With which the channel is asked for."""

    def answer(self, asked: Any) -> Sequence[Any] | None:
        """Return what the service says to a message of the client's; None to have it found out."""
        return None

    def data(self) -> Any:
        """Return a message that brings data of `channel`; None to have it found out."""
        return None

    # ------------------------------------------------------------------- what can be seen without a session

    def test_its_hooks_are_known_and_can_be_called(self) -> None:
        kind = type(self.adapter)
        faults = {**lookalikes(kind), **hook_faults(kind)}
        faults |= {
            name: "it must be a plain def, not async"
            for name in ("url", "defaults", "options")
            if inspect.iscoroutinefunction(getattr(kind, name))
        }
        if not faults:
            faults = shadowed_hooks(self.adapter)
        _insist_on_none(f"{name}: {fault}" for name, fault in faults.items())

    def test_it_says_where_its_service_is(self) -> None:
        try:
            self.adapter.url()
        except ConfigError as exc:
            if exc.field == "host" and not self.adapter.host:
                raise SkipTest("it names no host: whoever opens it gives its url") from exc
            raise AssertionError(f"{exc.field}: {exc.problem}") from exc
        except Exception as exc:
            raise AssertionError(f"url() raises {_said(exc)}") from exc

    def test_its_defaults_are_options(self) -> None:
        self._must_be_callable()
        try:
            strategies = Strategies.of(self.adapter)
        except ConfigError as exc:
            raise AssertionError(f"{exc.field}: {exc.problem}") from exc
        except Exception as exc:
            raise AssertionError(f"its defaults cannot be made: {_said(exc)}") from exc
        _insist_on_none(_faults_of(strategies))

    def test_its_repr_shows_no_secret(self) -> None:
        shown = repr(self.adapter)
        fields = {field.name: field for field in attrs.fields(type(self.adapter))}
        for name, value in vars(self.adapter).items():
            declared = name in fields and fields[name].repr is True and _is_text(fields[name].type)
            held = isinstance(value, str) and repr(value) in shown
            if is_secret_name(name) and (held if value else declared):
                raise AssertionError(f"repr() shows {name}: declare it with repr=False, or keep it as a Secret")

    def test_sessions_share_no_strategy(self) -> None:
        first, second = self._strategies().by_field, self._strategies().by_field
        _insist_on_none(
            f"{field}: one {type(one).__name__} serves all sessions; let defaults() name the class, or make it anew"
            for field, one in first.items()
            if one is second[field] and not _is_frozen(one)
        )

    @_in_virtual_time
    async def test_sessions_leave_the_adapter_as_it_was(self) -> None:
        before = _snapshot(self.adapter)
        service = self._stand_in(await self._credentials_that_work())
        async with (
            ScriptedServer(then=service) as server,
            self._open(server, service.credentials) as conn,
            AsyncExitStack() as stack,
        ):
            await self._enter_subscription(stack, conn, service)
        for _, words, ask, _ in self._looks():
            for message in self._judged.messages(words, [self.channel]):
                with suppress(Exception):  # which is for another test to say
                    ask(message)
        after = _snapshot(self.adapter)
        _insist_on_none(
            f"{name} has changed: an adapter serves many sessions, so what belongs to one is for a strategy"
            for name, value in after.items()
            if name not in before or before[name] != value
        )

    # ------------------------------------------------------------------- what it says

    def test_what_it_sends_can_be_encoded(self) -> None:
        for label, ask in self._requests():
            try:
                message = ask()
            except Exception as exc:
                raise AssertionError(f"{label} raises {_said(exc)}") from exc
            if not label.endswith("setup_requests"):
                if message is None and "unsub" not in label:
                    raise AssertionError(f"{label} returns None, so that nothing would be asked for")
                messages = [message]
            elif isinstance(message, str | bytes | Mapping) or not isinstance(message, Sequence):
                raise AssertionError(f"{label} returns a {type(message).__name__}, not a sequence of messages")
            else:
                messages = list(message)
            _insist_on_none(f"{label} returns {fault}" for each in messages if (fault := self._judge_reply(each)))

    def test_its_requests_depend_on_nothing_but_what_they_are_given(self) -> None:
        for label, ask in self._requests():
            try:
                first = copy.deepcopy(ask())
                second = ask()
            except Exception as exc:
                raise SkipTest(f"{label} raises {type(exc).__name__}") from exc
            if self._params != dict(self.params):
                raise AssertionError(f"{label} changes the params that it is given")
            # What proves who we are bears the time, and numbers that are good for once.
            if (shape(first) != shape(second)) if "auth" in label else (first != second):
                raise AssertionError(
                    f"{label} returns something else when it is asked again: {self._show(first)}, then "
                    f"{self._show(second)}; ids are the session's to give"
                )

    def test_it_keeps_no_credentials(self) -> None:
        credentials = self._credentials()
        auth = self._own_auth()
        auth.encode_auth_request(credentials)
        secrets = {text for text in _texts(credentials) if len(text) > 5}
        for name, value in vars(self.adapter).items():
            if secrets.intersection(_texts(value)):
                raise AssertionError(f"encode_auth_request keeps the credentials as {name}: use them up")
        for owner in (self.adapter, auth):
            if any(secret in repr(owner) for secret in secrets):
                raise AssertionError(f"the repr of {type(owner).__name__} shows the credentials")

    # ------------------------------------------------------------------- what it makes of messages

    def test_its_hooks_answer_anything_with_what_they_may(self) -> None:
        _insist_on_none(dict.fromkeys(fault for look in self._looks() if (fault := self._explore(*look)) is not None))

    def test_an_answer_is_known_by_the_id_that_was_written(self) -> None:
        correlation, (first, second) = self._judged.correlation, self._judged.ids_asked_with
        answers = first.answers(self._judged), second.answers(self._judged)
        read = [
            found
            for one, other in zip(*answers, strict=True)
            # What does not change with the id is something else.
            if (found := first.read(correlation, one)) is not None and found != second.read(correlation, other)
        ]
        label = _label(correlation, "reply_id")
        if not read:
            raise SkipTest(f"no answer was found in which {label} reads the id of a question")
        if not {identity(id) for id in read} & {identity(id) for id in first.awaited}:
            raise AssertionError(
                f"{label} reads {_shown(read[0])} in an answer to {_shown(first.written)}, for which the session "
                f"awaits {' or '.join(map(_shown, first.awaited))}: let request_id read what tag writes"
            )

    def test_its_advice_after_an_error_is_to_retry_or_to_stop(self) -> None:
        handler = self._judged.error
        label = _label(handler, "should_reconnect")
        errors: list[Exception] = [LinkLost(code, "x", remote=True) for code in (1000, 1006, 1008, 1012, 4000, 4999)]
        errors += [HandshakeRejected(status) for status in (301, 401, 404, 429, 500, 503)]
        errors += [ConnectFailed("x", phase="dns"), AuthFailed("x"), OSError("x"), ValueError()]
        for error in errors:
            for attempt in (0, 1, 10, 10**6):
                for advice in (Retry(1.0), Stop(error)):
                    try:
                        answer = handler.should_reconnect(error, attempt, advice)
                    except Exception as exc:
                        raise AssertionError(f"{label} raises {_said(exc)} for {error!r}") from exc
                    if not isinstance(answer, Retry | Stop):
                        raise AssertionError(f"{label} returns {_shown(answer)} for {error!r}, not a Retry or a Stop")

    # ------------------------------------------------------------------- over a link

    @_in_virtual_time
    async def test_it_authenticates_over_a_link(self) -> None:
        credentials = self._credentials()
        service = self._stand_in(credentials)
        async with ScriptedServer(then=service) as server:
            await self._reach_ready(server, service)
        if not service.heard:
            raise AssertionError("it is given credentials, and says nothing before it is ready")

    @_in_virtual_time
    async def test_it_subscribes_and_unsubscribes_over_a_link(self) -> None:
        handler, service = self._own_subscriptions(), self._stand_in()
        async with ScriptedServer(then=service) as server, self._open(server) as conn:
            async with self._subscribe(conn, service):
                if not service.is_said(service.subscription_request()):
                    raise AssertionError(f"it was not asked for {self.channel!r} but with {_shown(service.heard)}")
                server_id = None if service.grant is None else service.grant[1].server_id
                given_up = handler.encode_unsubscription(service.channel, server_id)
                service.heard.clear()
            await wait_all_tasks_blocked()
            if given_up is not None and not service.is_said(given_up):
                raise AssertionError(f"it leaves the feed, and does not say {_shown(given_up)}")

    @_in_virtual_time
    async def test_data_reach_their_feed(self) -> None:
        handler, service = self._own_subscriptions(), self._stand_in()
        async with (
            ScriptedServer(then=service) as server,
            self._open(server) as conn,
            self._subscribe(conn, service) as feed,
        ):
            message = service.data() if (own := self.data()) is None else own
            if message is None:
                label = _label(handler, "channel_of")
                raise SkipTest(f"no data of {self.channel!r} were found that {label} knows; override data()")
            expected = handler.data_of(message)
            await service.say(message)
            got: Any = None
            with trio.move_on_after(PATIENCE) as patience:
                got = await feed.receive()
            if patience.cancelled_caught:
                raise AssertionError(f"the feed does not bring {_shown(message)}")
            if got != expected:
                raise AssertionError(f"the feed brings {_shown(got)}, not {_shown(expected)}")

    @_in_virtual_time
    async def test_a_lost_link_is_restored(self) -> None:
        service = self._stand_in(await self._credentials_that_work())
        async with (
            ScriptedServer(then=service) as server,
            self._open(server, service.credentials) as conn,
            AsyncExitStack() as stack,
        ):
            await self._enter_subscription(stack, conn, service)
            before, service.heard = service.heard, []
            await service.drop()
            with trio.move_on_after(PATIENCE) as patience:
                await conn.wait_state(State.RECONNECTING)
                await conn.wait_ready()
            if patience.cancelled_caught or conn.epoch != 2:
                raise AssertionError("the second link does not become ready")
            after = service.heard
        # What proves who we are bears the time, and the ids of questions are the session's.
        if shape(before) != shape(after):
            raise AssertionError(f"the first link was told {self._show(before)}, the second {self._show(after)}")

    # ------------------------------------------------------------------- what is judged

    def _must_be_callable(self) -> None:
        kind = type(self.adapter)
        if hook_faults(kind) or any(map(inspect.iscoroutinefunction, (kind.url, kind.defaults, kind.options))):
            raise SkipTest("its hooks cannot be called as they will be")

    def _strategies(self) -> Strategies:
        """Return new strategies."""
        self._must_be_callable()
        try:
            strategies = Strategies.of(self.adapter)
        except Exception as exc:
            raise SkipTest("its defaults cannot be used") from exc
        if any(True for _ in _faults_of(strategies)):
            raise SkipTest("the hooks of its strategies cannot be called as they will be")
        return strategies

    @cached_property
    def _judged(self) -> Strategies:
        return self._strategies()

    @cached_property
    def _params(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self.params))

    def _own_auth(self) -> AuthHandler:
        handler = self._judged.auth
        if _inherits(handler, AuthHandler, "authenticate") and _inherits(handler, AuthHandler, "encode_auth_request"):
            raise SkipTest("it has no authentication of its own")
        return handler

    def _own_subscriptions(self) -> SubscriptionHandler:
        handler = self._judged.subscription
        if type(handler) is SubscriptionHandler:
            raise SkipTest("it has no subscriptions of its own")
        return handler

    def _credentials(self) -> Any:
        """Return credentials that the adapter takes."""
        handler = self._own_auth()
        refusal: Exception | None = None
        for each in KNOWN_CREDENTIALS if self.credentials is None else (self.credentials,):
            try:
                if handler.encode_auth_request(each) is not None:
                    return each
            except Exception as exc:
                refusal = exc
        why = "" if refusal is None else f" ({_said(refusal)})"
        raise SkipTest(f"it takes none of the credentials that were tried{why}; set credentials")

    def _show(self, message: Any) -> str:
        """Return a message of ours as a report may show it: it may bear credentials."""
        redactor = Redactor()
        redactor.keep("test", secrets_in(KNOWN_CREDENTIALS if self.credentials is None else self.credentials))
        return redactor.show(_shown(message, LOOKED_AT))

    def _requests(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield everything that makes a message, and its name."""
        connection = self._judged.connection
        info = ConnectionInfo(url=URL, epoch=1)
        yield _label(connection, "setup_requests"), partial(connection.setup_requests, info)
        service = self._stand_in()
        handler = self._judged.subscription
        if type(handler) is not SubscriptionHandler:
            yield _label(handler, "encode_subscription_request"), service.subscription_request
            if not handler.unsubscribes_by_id:
                give_up = partial(handler.encode_unsubscription, service.channel, None)
                yield _label(handler, "encode_unsubscription_request"), give_up
        try:
            credentials = self._credentials()
        except SkipTest:
            return
        yield (
            _label(self._judged.auth, "encode_auth_request"),
            partial(self._judged.auth.encode_auth_request, credentials),
        )

    # ------------------------------------------------------------------- hooks that look at messages

    def _looks(self) -> Iterator[Look]:
        """Yield every hook that looks at messages: its name, its words, how to ask it, and who judges its answers."""
        judged, channels = self._judged, [self._stand_in().channel]
        subscription, correlation = judged.subscription, judged.correlation

        def look(owner: Any, hook: str, judge: Judge) -> Look:
            ask = getattr(owner, hook)
            return _label(owner, hook), words_of(ask), ask, judge

        def read_grants(reply: Any) -> Any:
            is_answer = correlation.reply_id(reply) is not None and correlation.failure(reply) is None
            return list(subscription.read_grants(reply, channels)) if is_answer else None

        def data_of(message: Any) -> Any:
            return None if subscription.channel_of(message) is None else subscription.data_of(message)

        handle, data_words = judged.message.handle_message, words_of(subscription.channel_of, subscription.data_of)
        name = _label(judged.message, "handle_message")
        yield name, words_of(handle), partial(handle, "text"), self._judge_action
        yield look(judged.auth, "handle_auth_response", _judge_auth)
        yield look(judged.auth, "handle_refusal", _judge_truth)
        if subscription.correlated:
            words = words_of(subscription.read_grants, correlation.reply_id, correlation.failure)
            yield _label(subscription, "read_grants"), words, read_grants, _judge_grants
        else:
            yield look(subscription, "handle_subscription_response", _judge_grants)
        yield look(subscription, "channel_of", _judge_name)
        yield _label(subscription, "data_of"), data_words, data_of, lambda data: None
        yield look(judged.heartbeat, "answer", self._judge_reply)
        yield look(judged.heartbeat, "is_answer", _judge_truth)
        yield look(judged.heartbeat, "is_beat", _judge_truth)
        yield look(correlation, "reply_id", _judge_name)
        yield look(correlation, "failure", _judge_failure)

    def _explore(self, label: str, words: Sequence[str], ask: Callable[[Any], Any], judge: Judge) -> str | None:
        """Show a hook all kinds of messages; say what is wrong with the first answer that is."""
        judged, understood = self._judged, list[Any]()
        for message in judged.messages(words, [self.channel, "x"]):
            fault, is_telling = _try_out(label, ask, judge, message)
            if fault is not None:
                return fault
            if is_telling and len(understood) < MAX_UNDERSTOOD:
                understood.append(message)
        for message in understood:
            for each in broken(message):
                try:
                    twisted = judged.over_the_wire(each)
                except BadMessage:
                    continue
                fault, _ = _try_out(label, ask, judge, twisted)
                if fault is not None:
                    return fault
        return None

    def _judge_action(self, answer: Any) -> str | None:
        match answer:
            case Reply(message):
                return self._judge_reply(message)
            case ReplyMany(messages):
                return next((fault for each in messages if (fault := self._judge_reply(each))), None)
            case _:
                is_action = answer is None or isinstance(answer, ACTIONS)
                return None if is_action else f"{_shown(answer)}, which is no action"

    def _judge_reply(self, message: Any) -> str | None:
        if message is None or isinstance(message, Ping | Pong):
            return None
        try:
            payload = self._judged.encode(message)
        except Exception as exc:
            return f"{_shown(message)}, which the codec cannot encode: {_said(exc)}"
        if not isinstance(payload, str | bytes):
            return f"{_shown(message)}, of which the codec makes a {type(payload).__name__}, neither str nor bytes"
        return None

    # ------------------------------------------------------------------- sessions

    def _stand_in(self, credentials: Any = None) -> StandIn:
        return StandIn(self._judged, self.channel, self._params, credentials, self.answer)

    def _open(self, server: ScriptedServer, credentials: Any = None) -> ConnectionBlock:
        """Open the adapter to a server in memory, with nothing that could end the link but the server."""
        options: dict[str, Any] = {
            **self.adapter.options(),
            "stream_factory": server.stream_factory,
            "credentials": credentials,
            "ping_interval": math.inf,
            "idle_timeout": math.inf,
            "backoff": ListBackoff([1.0]),
            "max_attempts": 3,
            "events": (),
        }
        return open_connection(URL, **options)

    async def _reach_ready(self, server: ScriptedServer, service: StandIn) -> None:
        """Open a session and close it again; skip where it is not known how the service lets us in."""
        try:
            async with self._open(server, service.credentials):
                pass
        except NovaError as exc:
            knows = _inherits(self._judged.auth, AuthHandler, "authenticate") and service.acceptance is not None
            if knows and not isinstance(exc, RequestFailed):
                raise AssertionError(f"{_shown(service.acceptance)} does not let it in: {exc}") from exc
            raise SkipTest(f"nothing was found that lets it in ({exc}); override answer()") from exc

    async def _credentials_that_work(self) -> Any:
        """Return credentials with which a session comes up, or None."""
        try:
            service = self._stand_in(self._credentials())
            async with ScriptedServer(then=service) as server:
                await self._reach_ready(server, service)
        except (SkipTest, AssertionError):
            return None
        return service.credentials

    def _subscribe(self, conn: Connection, service: StandIn) -> AbstractAsyncContextManager[Feed]:
        if service.grant is None and type(self).answer is AdapterContract.answer:
            handler = service.strategies.subscription
            label = _label(handler, "read_grants" if handler.correlated else "handle_subscription_response")
            raise SkipTest(f"nothing was found that {label} takes for a grant of {self.channel!r}; override answer()")
        return _Confirmed(conn.subscribe(self.channel, **self._params))

    async def _enter_subscription(self, stack: AsyncExitStack, conn: Connection, service: StandIn) -> None:
        """Subscribe, if that can be done."""
        try:
            self._own_subscriptions()
            await stack.enter_async_context(self._subscribe(conn, service))
        except (SkipTest, AssertionError):
            pass


@attrs.define(eq=False)
class _Confirmed:
    """A subscription of which a refusal is a failure of the test."""

    _block: AbstractAsyncContextManager[Feed]

    async def __aenter__(self) -> Feed:
        try:
            return await self._block.__aenter__()
        except SubscriptionRejected as exc:
            raise AssertionError(f"a subscription that the service grants is not confirmed: {exc}") from exc

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._block.__aexit__(*exc)


# --------------------------------------------------------------------------- names and signatures


def lookalikes(kind: type[Adapter]) -> dict[str, str]:
    """Return, by name, the methods of an adapter's class that look like a misspelt hook, or like a strategy's."""
    known = {*HOOKS, "url", "defaults", "options"}
    of_strategies = {hook: role.__name__ for role in ROLES.values() for hook in _hooks_of(role)}
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for each in kind.__mro__ if issubclass(each, Adapter) for name in vars(each)):
        if name.startswith("_") or hasattr(Adapter, name) or not callable(getattr(kind, name)):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if not near and name in of_strategies:
            found[name] = f"nobody calls it: it is a hook of {of_strategies[name]}, which defaults() can name"
        elif near or name.startswith(("handle_", "encode_")):
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            found[name] = f"there is no such hook; did you mean {near[0]}?"
    return found


def _faults_of(strategies: Strategies) -> Iterator[str]:
    """Yield what keeps the hooks of strategies from being called as they will be."""
    for field, strategy in strategies.by_field.items():
        role = ROLES[field]
        for hook in _hooks_of(role):
            model, member = getattr(role, hook), getattr(strategy, hook)
            if _inherits(strategy, role, hook):
                continue
            if inspect.iscoroutinefunction(model) != inspect.iscoroutinefunction(member):
                colour = "async def" if inspect.iscoroutinefunction(model) else "plain def, not async"
                yield f"{type(strategy).__name__}.{hook}: it must be a {colour}"
                continue
            given = inspect.signature(model).parameters
            by_name = {name: None for name, parameter in given.items() if parameter.kind is parameter.KEYWORD_ONLY}
            in_order = [name for name in list(given)[1:] if name not in by_name]
            try:
                inspect.signature(member).bind(*in_order, **by_name)
            except TypeError:
                yield f"{type(strategy).__name__}.{hook}: it must take {', '.join([*in_order, *by_name]) or 'nothing'}"


def _hooks_of(role: type) -> list[str]:
    return [name for name, member in vars(role).items() if inspect.isfunction(member) and not name.startswith("_")]


_NAMES = {"handle_message": "handle_platform_message", "answer": "answer_heartbeat"}
"""What the hooks of strategies are called on an adapter, where that is something else."""


def _label(owner: Any, hook: str) -> str:
    """Return what the author calls a hook: by the adapter's name where it is the adapter's."""
    by_adapter = type(owner).__module__ == Adapter.__module__
    return _NAMES.get(hook, hook) if by_adapter else f"{type(owner).__name__}.{hook}"


def _inherits(owner: Any, role: type, hook: str) -> bool:
    return getattr(type(owner), hook) is getattr(role, hook)


# --------------------------------------------------------------------------- answers of hooks


def _try_out(label: str, ask: Callable[[Any], Any], judge: Judge, message: Any) -> tuple[str | None, bool]:
    """Ask a hook about a message; return what is wrong, and whether it has made anything of the message."""
    try:
        answer = ask(message)
        if (fault := judge(answer)) is not None:
            return f"{label} returns {fault}, for {_shown(message)}", False
    except Exception as exc:
        return f"{label} raises {_said(exc)} for {_shown(message)}", False
    return None, answer is not None and answer is not False


def _judge_auth(answer: Any) -> str | None:
    match answer:
        case None:
            return None
        case AuthOk(expires_in) if expires_in is None or (
            isinstance(expires_in, int | float | Decimal) and not isinstance(expires_in, bool)
        ):
            return None
        case AuthRefused(reason) if isinstance(reason, str):
            return None
        case AuthOk() | AuthRefused():
            return f"{_shown(answer)}, whose field is of a wrong type"
        case _:
            return f"{_shown(answer)}, which is neither AuthOk, AuthRefused nor None"


def _judge_grants(answer: Any) -> str | None:
    if answer is None:
        return None
    if not isinstance(answer, Granted | Refused | Sequence) or isinstance(answer, str | bytes):
        return f"{_shown(answer)}, which is neither Granted, Refused, a sequence of these, nor None"
    for each in [answer] if isinstance(answer, Granted | Refused) else answer:
        if not isinstance(each, Granted | Refused):
            return f"{_shown(each)} among its answers, which is neither Granted nor Refused"
        if _judge_name(each.key) or (isinstance(each, Granted) and _judge_name(each.server_id)):
            return f"{_shown(each)}, whose name cannot be one: it is not hashable"
        if isinstance(each, Refused) and not isinstance(each.reason, str):
            return f"{_shown(each)}, whose reason is not a str"
    return None


def _judge_name(answer: Any) -> str | None:
    try:
        hash(answer)
    except TypeError:
        return f"{_shown(answer)}, which is not hashable"
    return None


def _judge_truth(answer: Any) -> str | None:
    return None if isinstance(answer, bool) else f"{_shown(answer)}, neither True nor False"


def _judge_failure(answer: Any) -> str | None:
    good = answer is None or isinstance(answer, str | RequestFailed)
    return None if good else f"{_shown(answer)}, which is neither a str, a RequestFailed nor None"


# --------------------------------------------------------------------------- small pieces


def _insist_on_none(faults: Iterable[str]) -> None:
    if found := list(faults):
        raise AssertionError("\n".join(found))


def _shown(value: Any, limit: int = 120) -> str:
    try:
        return printable(repr(value), limit)
    except Exception as exc:  # of a repr of the author's, or of something too deeply nested
        return f"a {type(value).__name__} (its repr raises {type(exc).__name__})"


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {printable(str(exc))}" if str(exc) else type(exc).__name__


def _is_text(annotation: Any) -> bool:
    """Whether a field is declared to hold a text that is not masked."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    return "str" in name and "Secret" not in name


def _texts(value: Any, depth: int = 4) -> Iterator[str]:
    """Yield the texts that a value holds; those of a Secret are not held but kept."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each, depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _texts(each, depth - 1)


def _is_frozen(strategy: Any) -> bool:
    """Whether a strategy can have no state: it says so, or has nowhere to keep any."""
    frozen = attrs.has(type(strategy)) and type(strategy).__setattr__ is attrs.frozen(type("_", (), {})).__setattr__
    return frozen or (
        not (attrs.has(type(strategy)) and attrs.fields(type(strategy))) and not getattr(strategy, "__dict__", None)
    )


def _snapshot(adapter: Adapter) -> dict[str, Any]:
    """Return what an adapter and its classes hold, copied where that can be done."""
    held = {
        f"{each.__name__}.{name}": value
        for each in type(adapter).__mro__
        if issubclass(each, Adapter) and each is not Adapter
        for name, value in vars(each).items()
        if isinstance(value, list | dict | set | int | str | None) and not name.startswith("__")
    }
    copies: dict[str, Any] = {}
    for name, value in {**held, **vars(adapter)}.items():
        try:
            copies[name] = copy.deepcopy(value)
        except Exception:  # what cannot be copied is compared by what it is
            copies[name] = value
    return copies
