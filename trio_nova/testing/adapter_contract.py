"""The contract that every adapter keeps, as tests against a server in memory.

Subclass `AdapterContract` in a test module of yours, with the adapter to be judged and samples of what its service
says; any runner of tests runs it, and it needs no plugin, since every test that talks over a link has a `trio.run` of
its own::

    class TestChat(AdapterContract):
        adapter = Chat()
        credentials = "open sesame"
        channel = "lobby"
        samples = [
            Exchange({"op": "login", "key": "open sesame"}, Sample({"op": "login", "ok": True}, AuthOk())),
            Exchange({"op": "join", "room": "lobby"}, Sample({"op": "joined", "room": "lobby"}, Granted("lobby"))),
            Sample({"op": "said", "room": "lobby", "text": "hello"}, Data("lobby", "hello")),
            Sample({"op": "there?"}, HeartbeatAsked({"op": "here"})),
        ]

`python -m trio_nova check tests/test_chat.py:TestChat` runs the same without pytest, and adds a report. What cannot be
tried for want of a sample is skipped, and says which one to give.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import cached_property, wraps
from itertools import product
from types import MappingProxyType
from typing import Any
from unittest import SkipTest

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova.adapter import HOOKS, Adapter, hook_faults, shadowed_hooks
from trio_nova.codecs import LinkCodec
from trio_nova.core.session import State
from trio_nova.dialect import Dialect
from trio_nova.errors import (
    AuthFailed,
    ConfigError,
    ConnectFailed,
    HandshakeRejected,
    LinkLost,
    NovaError,
    RequestFailed,
)
from trio_nova.messages import Ping, Retry, Stop
from trio_nova.readings import Data
from trio_nova.secrets import LOOKED_AT, is_secret_name, secrets_in
from trio_nova.testing._judged import PATIENCE, Judged, error_text, faults_of
from trio_nova.testing._mutants import HOSTILE_PAYLOADS
from trio_nova.testing._samples import Exchange, JsonService, Sample, parts_of
from trio_nova.testing._side import ROLES, label, shown

__all__ = ["AdapterContract", "lookalikes"]


def _in_virtual_time(test: Callable[[Any], Awaitable[None]]) -> Callable[[Any], None]:
    """Make an ordinary test of an async one. Runners of async tests do not know what skips an ordinary one."""

    @wraps(test)
    def run(self: Any) -> None:
        trio.run(test, self, clock=MockClock(autojump_threshold=0))

    return run


class AdapterContract:
    """The promises of an adapter. Subclass it and set `adapter`; the more samples, the more can be tried."""

    adapter: Adapter
    """What is judged. Its hooks that ask elsewhere are asked, too: give one that answers them by itself."""
    samples: Sequence[Sample | Exchange] = ()
    """What the service says, by itself and in answer, in the order of a conversation."""
    credentials: Any = None
    """Such as the adapter takes; None: there are none."""
    channel: str = "trades.BTC"
    """The channel that samples are of."""
    params: Mapping[str, Any] = MappingProxyType({})
    """With which the channel is asked for."""
    question: Any = None
    """What `Connection.request` is given, to which an exchange has an answer that says yes; None: nothing is asked."""

    def open_service(self) -> LinkCodec:
        """Return how the service writes on one link what samples hold, and reads: the default by JSON, see `Sample`.

        It should not be the adapter's own codec, which is then judged by itself.
        """
        return JsonService()

    @cached_property
    def _judged(self) -> Judged:
        return Judged(
            adapter=self.adapter,
            samples=self.samples,
            credentials=self.credentials,
            channel_name=self.channel,
            params=copy.deepcopy(dict(self.params)),
            question=self.question,
            open_service=self.open_service,
        )

    # ------------------------------------------------------------------- what can be seen without a session

    def test_its_hooks_are_known_and_can_be_called(self) -> None:
        kind = type(self.adapter)
        faults = {**lookalikes(kind), **hook_faults(kind)}
        _insist_on_none(f"{name}: {fault}" for name, fault in (faults or shadowed_hooks(self.adapter)).items())

    def test_it_says_where_its_service_is(self) -> None:
        try:
            self.adapter.url()
        except ConfigError as exc:
            if exc.field == "host" and not self.adapter.host:
                raise SkipTest("it names no host: whoever opens it gives its url") from exc
            raise AssertionError(f"{exc.field}: {exc.problem}") from exc
        except Exception as exc:
            raise AssertionError(f"url() raises {error_text(exc)}") from exc

    def test_its_defaults_are_options(self) -> None:
        self._judged.must_be_callable()
        try:
            strategies = self._judged.strategies()
        except ConfigError as exc:
            raise AssertionError(f"{exc.field}: {exc.problem}") from exc
        except Exception as exc:
            raise AssertionError(f"its defaults cannot be made: {error_text(exc)}") from exc
        _insist_on_none(faults_of(strategies))

    def test_its_repr_shows_no_secret(self) -> None:
        text = repr(self.adapter)
        fields = {field.name: field for field in attrs.fields(type(self.adapter))}
        for name, value in vars(self.adapter).items():
            declared = name in fields and fields[name].repr is True and _is_text(fields[name].type)
            held = isinstance(value, str) and repr(value) in text
            if is_secret_name(name) and (held if value else declared):
                raise AssertionError(f"repr() shows {name}: declare it with repr=False, or keep it as a Secret")

    def test_sessions_share_no_strategy(self) -> None:
        self._judged.side()
        first, second = self._judged.strategies(), self._judged.strategies()
        _insist_on_none(
            f"{field}: one {type(one).__name__} serves all sessions; let defaults() name the class, or make it anew"
            for field in ROLES
            if (one := getattr(first, field)) is getattr(second, field) and not _is_frozen(one)
        )

    def test_links_share_nothing(self) -> None:
        judged = self._judged
        alone, one, other = judged.at_work(), judged.at_work(), judged.at_work()
        kind, has_state = type(one.dialect).__name__, one.dialect is not judged.local
        if has_state and one.dialect is other.dialect:
            raise AssertionError(f"open_link answers with one {kind} for all links")
        for sample in judged.own_samples:
            try:
                expected = [(message, alone.read(message)) for message in alone.hear(sample)]
            except Exception as exc:
                raise SkipTest(f"{shown(sample.message)} cannot be read") from exc
            frames = one.frames_of(sample)
            begun = one.decode(frames[: len(frames) // 2])  # and in between the other link hears the whole
            try:
                found = [(message, other.read(message)) for message in other.hear(sample)]
            except Exception as exc:
                raise AssertionError(f"on a second link {shown(sample.message)} breaks it: {error_text(exc)}") from exc
            if found != expected and _plain(found) != _plain(expected):
                raise AssertionError(f"on a second link {shown(sample.message)} is {shown(found)}")
            for message in (*begun, *one.decode(frames[len(frames) // 2 :])):
                one.read(message)
        if not has_state:
            return
        theirs = _snapshot(other.dialect)
        judged.tease(one, judged.own_samples)
        if _changes(theirs, _snapshot(other.dialect)):
            raise AssertionError(f"what the {kind} of one link reads changes that of another")

    @_in_virtual_time
    async def test_sessions_leave_the_adapter_as_it_was(self) -> None:
        judged = self._judged
        side, before = judged.at_work(), _snapshot(judged.local)
        judged.tease(side, await judged.overhear())
        _insist_on_none(
            f"{name} has changed: an adapter serves many sessions; what belongs to one is for a strategy, and what "
            f"belongs to a link for the dialect of open_link"
            for name in _changes(before, _snapshot(judged.local))
        )

    # ------------------------------------------------------------------- what it says

    def test_what_it_sends_can_be_encoded(self) -> None:
        side = self._judged.side()
        confirms = side.handlers.subscription.confirms
        for name, ask in self._judged.requests(side):
            about = name.rpartition(".")[2]
            asks_for_channel = about.startswith("encode_subscription")
            try:
                made = ask()
            except Exception as exc:
                if asks_for_channel and not self._judged.params and not self.samples:
                    raise SkipTest(f"{name} raises {error_text(exc)}: set channel and params that it takes") from exc
                raise AssertionError(f"{name} raises {error_text(exc)}") from exc
            messages = [made]
            if about == "setup_requests":
                if isinstance(made, str | bytes | Mapping) or not isinstance(made, Sequence):
                    raise AssertionError(f"{name} returns a {type(made).__name__}, not a sequence of messages")
                messages = list(made)
            elif made is None and asks_for_channel and confirms:
                raise AssertionError(f"{name} returns None, so that nothing would be asked for")
            sent = (each for each in messages if each is not None)
            _insist_on_none(f"{name} returns {fault}" for each in sent if (fault := side.fault_of_message(each)))

    def test_its_requests_depend_on_nothing_but_what_they_are_given(self) -> None:
        judged = self._judged
        for name, ask in judged.requests(judged.side()):
            try:
                first, second = copy.deepcopy(ask()), ask()
            except Exception as exc:
                raise SkipTest(f"{name} raises {type(exc).__name__}") from exc
            if judged.params != dict(self.params):
                raise AssertionError(f"{name} changes the params that it is given")
            # What proves who we are bears the time, and numbers that are good for once.
            if (_shape(first) != _shape(second)) if "auth" in name else (first != second):
                raise AssertionError(
                    f"{name} returns something else when it is asked again: {judged.show(first)}, then "
                    f"{judged.show(second)}; ids are the session's to give"
                )

    @_in_virtual_time
    async def test_it_keeps_no_credentials(self) -> None:
        judged = self._judged
        judged.own_login()
        if self.credentials is None:
            raise SkipTest("it is given no credentials; set credentials")
        side = judged.at_work()  # which has said who we are
        with suppress(SkipTest, AssertionError):  # which is for another test to say
            async with judged.session():
                pass
        secrets = {text for text in secrets_in(self.credentials) if len(text) > 5}
        for owner in (judged.local, side.dialect):
            kept = [name for name, value in getattr(owner, "__dict__", {}).items() if secrets & _texts(value)]
            if kept:
                raise AssertionError(f"{type(owner).__name__} keeps the credentials as {kept[0]}: use them up")
            if any(secret in repr(owner) for secret in secrets):
                raise AssertionError(f"the repr of {type(owner).__name__} shows the credentials")

    # ------------------------------------------------------------------- what it makes of messages

    def test_it_reads_each_sample_as_it_should(self) -> None:
        judged = self._judged
        side, samples = judged.at_work(), judged.own_samples
        if not samples:
            raise SkipTest("there are no samples; give some: Sample(message, reading)")
        _insist_on_none(judged.misread(samples, side))
        one, other = judged.at_work(), judged.at_work()
        if one.hooks.reads_all is not None and other.hooks.reads is not None:
            messages = [each for sample in samples for each in one.hear(sample)]
            for message, reading in zip(messages, one.hooks.reads_all(messages), strict=True):
                if (alone := other.hooks.reads(message)) != reading:
                    raise AssertionError(f"read_all makes {shown(reading)} of {shown(message)}, read {shown(alone)}")

    @_in_virtual_time
    async def test_nothing_that_arrives_breaks_it(self) -> None:
        judged = self._judged
        side, samples = judged.at_work(), judged.own_samples
        _insist_on_none(judged.tease(side, await judged.overhear(), HOSTILE_PAYLOADS).values())
        if side.dialect is judged.local:
            _insist_on_none(f"after messages that are broken, {fault}" for fault in judged.misread(samples, side))

    def test_its_advice_after_an_error_is_to_retry_or_to_stop(self) -> None:
        advise = self._judged.side().handlers.error.should_reconnect
        errors: list[Exception] = [LinkLost(code, "x", remote=True) for code in (1000, 1006, 1008, 1012, 4000, 4999)]
        errors += [HandshakeRejected(status) for status in (301, 401, 404, 429, 500, 503)]
        errors += [ConnectFailed("x", phase="dns"), AuthFailed("x"), OSError("x"), ValueError()]
        for error, attempt in product(errors, (0, 1, 10, 10**6)):
            for advice in (Retry(1.0), Stop(error)):
                try:
                    answer = advise(error, attempt, advice)
                except Exception as exc:
                    raise AssertionError(f"{label(advise)} raises {error_text(exc)} for {error!r}") from exc
                if not isinstance(answer, Retry | Stop):
                    wrong = f"{shown(answer)} for {error!r}, not a Retry or a Stop"
                    raise AssertionError(f"{label(advise)} returns {wrong}")

    # ------------------------------------------------------------------- over a link

    @_in_virtual_time
    async def test_it_logs_in(self) -> None:
        judged = self._judged
        judged.own_login()
        async with judged.session(judges=True) as (_, service):
            if self.credentials is not None and not service.heard:
                raise AssertionError("it is given credentials, and says nothing before it is ready")
            _insist_on_none(judged.misread(service.said, judged.at_work()))

    @_in_virtual_time
    async def test_it_subscribes_and_unsubscribes(self) -> None:
        judged, handler = self._judged, self._judged.own_subscriptions()
        async with judged.session() as (conn, service):
            async with judged.feed(conn, service):
                _insist_on_none(judged.misread(service.said, judged.at_work()))
                server_id = judged.server_id(service.said)
                service.heard.clear()
            given_up = handler.encode_unsubscription(judged.channel, server_id)
            if given_up is not None and not await judged.is_told(service, given_up):
                raise AssertionError(f"it leaves the feed, and does not say {shown(given_up)}")

    @_in_virtual_time
    async def test_data_reach_their_feed(self) -> None:
        judged, handler = self._judged, self._judged.own_subscriptions()
        async with judged.session() as (conn, service), judged.feed(conn, service) as feed:
            for sample in self.samples:
                if isinstance(sample, Sample) and any(map(_is_data, parts_of(sample.reading))):
                    await service.say(sample)
            await wait_all_tasks_blocked()
            got = list[Any]()
            with suppress(trio.WouldBlock):
                while True:
                    got.append(feed.receive_nowait())
            expected = judged.payloads(service.said)
        if not expected:
            raise SkipTest(f"nothing of {self.channel!r} was said; give a Sample that is read as Data of it")
        # A tracker drops what is double, and holds back what is ahead.
        if not got or (got != expected and handler.tracker(judged.channel) is None):
            raise AssertionError(f"the feed brings {shown(got)}, where {shown(expected)} was said")

    @_in_virtual_time
    async def test_a_question_is_answered(self) -> None:
        judged = self._judged
        if self.question is None:
            raise SkipTest("no question is known; set question, and give an Exchange that answers it")
        async with judged.session() as (conn, service):
            for _ in range(2):  # each with an id of its own
                try:
                    with trio.fail_after(PATIENCE):
                        await conn.request(self.question)
                except RequestFailed as exc:
                    raise AssertionError(f"the answer is taken to say no: {error_text(exc)}") from exc
                except (NovaError, trio.TooSlowError) as exc:
                    heard = f", as which it says {judged.show(service.heard[-1])}" if service.heard else ""
                    what = f"no answer is found to {judged.show(self.question)}{heard}"
                    raise judged.stuck(service, f"{what}: let read find what tag writes", LinkLost(1006)) from exc
            _insist_on_none(judged.misread(service.said, judged.at_work()))

    @_in_virtual_time
    async def test_heartbeats_are_answered(self) -> None:
        judged, side = self._judged, self._judged.at_work()
        asked = list(judged.asked_beats([each for each in self.samples if isinstance(each, Sample)], side))
        probe = side.handlers.heartbeat.probe(b"x")
        probes = probe is not None and not isinstance(probe, Ping)
        if not asked and not probes:
            raise SkipTest("it probes by no message of its own, and no Sample is read as HeartbeatAsked")
        interval = 10.0 if probes else math.inf
        async with judged.session(ping_interval=interval, pong_timeout=5.0) as (conn, service):
            for sample, beat in asked:
                service.heard.clear()
                await service.say(sample)
                if not await judged.is_told(service, beat.reply):
                    raise AssertionError(f"it is told {shown(sample.message)}, and does not say {shown(beat.reply)}")
            service.heard.clear()
            await trio.sleep(3 * interval if probes else 0)
            if conn.epoch != 1 or conn.state is not State.READY:
                raise judged.stuck(service, f"its probe {shown(probe)} finds no answer, and the link is given up")
            if probes and not await judged.is_told(service, probe):
                raise AssertionError(f"it does not send its probe, {shown(probe)}")

    @_in_virtual_time
    async def test_a_lost_link_is_restored(self) -> None:
        judged = self._judged
        async with judged.session(judges=True) as (conn, service), AsyncExitStack() as stack:
            await judged.enter_feed(stack, conn, service)
            used, heard = service.used, service.heard
            await service.drop()
            try:
                with trio.fail_after(PATIENCE):
                    await conn.wait_state(State.RECONNECTING)
                    await conn.wait_ready()
            except (NovaError, trio.TooSlowError) as exc:
                raise judged.stuck(service, "the second link does not become ready") from exc
            if not judged.resumes and any(each not in service.used for each in used):
                again = judged.show(service.heard)
                raise AssertionError(f"the first link was told {judged.show(heard)}, the second {again}")


# --------------------------------------------------------------------------- small pieces


def lookalikes(kind: type[Adapter]) -> dict[str, str]:
    """Return, by name, the methods of an adapter's class that look like a misspelt hook, or like a strategy's."""
    known = {*HOOKS, "url", "defaults", "options", "open_link"}
    of_strategies = {hook: role.__name__ for role in ROLES.values() for hook in vars(role) if hook[0] != "_"}
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for each in kind.__mro__ if issubclass(each, Adapter) for name in vars(each)):
        if name.startswith("_") or hasattr(Adapter, name) or not inspect.isfunction(getattr(kind, name)):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if not near and name in of_strategies:
            found[name] = f"nobody calls it: it is a hook of {of_strategies[name]}, which defaults() can name"
        elif near or name.startswith(("handle_", "encode_")):
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            found[name] = f"there is no such hook; did you mean {near[0]}?"
    return found


def _insist_on_none(faults: Iterable[str]) -> None:
    if found := list(dict.fromkeys(faults)):
        raise AssertionError("\n".join(found))


def _is_data(reading: Any) -> bool:
    return isinstance(reading, Data) or reading is Data


def _is_text(annotation: Any) -> bool:
    """Whether a field is declared to hold a text that is not masked."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    return "str" in name and "Secret" not in name


def _texts(value: Any, depth: int = 4) -> set[str]:
    """Return the texts that a value holds; those of a Secret are not held but kept."""
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, Mapping) else value
    if not depth or not isinstance(value, Mapping | list | tuple | set | frozenset):
        return set()
    return {text for part in parts for text in _texts(part, depth - 1)}


def _shape(message: Any) -> Any:
    """Return a message without what may differ from time to time: only names, order and types."""
    match message:
        case Mapping():
            return {name: _shape(value) for name, value in message.items()}
        case list() | tuple():
            return [_shape(value) for value in message]
        case _:
            return type(message)


def _plain(value: Any) -> str:
    """Return how values look that may not be comparable, without where they are in memory."""
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "", shown(value, LOOKED_AT))


def _is_frozen(strategy: Any) -> bool:
    """Whether a strategy can have no state: it says so, by its hash too, or has nowhere to keep any."""
    kind: Any = type(strategy)
    says_so = kind.__hash__ is not object.__hash__ or kind.__setattr__ is attrs.frozen(type("_", (), {})).__setattr__
    return says_so or not (getattr(strategy, "__dict__", None) or (attrs.has(kind) and attrs.fields(kind)))


def _snapshot(owner: Any) -> dict[str, Any]:
    """Return what an adapter or a dialect and its classes hold, copied where that can be done."""
    held = dict[str, Any]()
    for kind in type(owner).__mro__[:-1]:
        if kind in (Adapter, Dialect):
            continue
        for name, value in vars(kind).items():
            if isinstance(value, list | dict | set | int | str | None) and not name.startswith("__"):
                held[f"{kind.__name__}.{name}"] = value
    for kind in type(owner).__mro__:
        held |= {name: getattr(owner, name) for name in getattr(kind, "__slots__", ()) if hasattr(owner, name)}
    copies: dict[str, Any] = {}
    for name, value in {**held, **getattr(owner, "__dict__", {})}.items():
        try:
            copies[name] = copy.deepcopy(value)
        except Exception:  # what cannot be copied is compared by what it is
            copies[name] = value
    return copies


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of what is another than before."""
    return [name for name, value in after.items() if name not in before or before[name] != value]
