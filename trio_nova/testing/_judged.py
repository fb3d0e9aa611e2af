"""An adapter that is judged: what it makes of the samples, and the sessions in which it plays through them."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cached_property, partial
from itertools import chain
from typing import Any
from unittest import SkipTest

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova._connection import Connection, open_connection
from trio_nova._feeds import Feed
from trio_nova._hooks import Handlers
from trio_nova.adapter import Adapter, hook_faults
from trio_nova.codecs import BadFrame, LinkCodec
from trio_nova.core.backoff import ListBackoff
from trio_nova.errors import ConfigError, NovaError, printable
from trio_nova.handlers import AuthHandler, Channel, ConnectionInfo, SubscriptionHandler, overrides
from trio_nova.readings import Data, Granted, HeartbeatAsked, Position, Refused
from trio_nova.secrets import LOOKED_AT, Redactor, as_secret, secrets_in
from trio_nova.testing._mutants import mutants
from trio_nova.testing._samples import Exchange, Sample, Service, fits, is_read_as, parts_of
from trio_nova.testing._server import ScriptedServer
from trio_nova.testing._side import ROLES, URL, ClientSide, label, settled, shown
from trio_nova.urls import Url

__all__ = ["PATIENCE", "Judged", "error_text", "faults_of"]

PATIENCE = 120.0
"""Seconds, virtual ones, after which a test has failed rather than hangs."""
_GRANTS = (Granted, Refused)
_OWN = [name for name, each in vars(SubscriptionHandler).items() if inspect.isfunction(each) and name[0] != "_"]


@attrs.define(eq=False, slots=False, kw_only=True)
class Judged:
    """An adapter, and all that its author says of the service."""

    adapter: Adapter
    samples: Sequence[Sample | Exchange]
    credentials: Any = attrs.field(repr=False)
    channel_name: str
    params: dict[str, Any]
    question: Any
    open_service: Callable[[], LinkCodec]

    @cached_property
    def local(self) -> Adapter:
        """The adapter as it is, but for the address: that is the server's in memory."""
        kind = type(self.adapter)
        here = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": ()}
        elsewhere = {"url": lambda adapter: Url.parse(URL), "connection_info": Adapter.connection_info}
        local = copy.copy(self.adapter)
        object.__setattr__(local, "__class__", type(kind.__name__, (kind,), {**here, **elsewhere}))
        return local

    @cached_property
    def own_samples(self) -> list[Sample]:
        """The samples, and the answers of exchanges that depend on nothing, in their order."""
        return [one for each in self.samples for one in ([each] if isinstance(each, Sample) else each.samples)]

    @cached_property
    def channel(self) -> Channel:
        """The channel, as a session would know it."""
        key = self.side().handlers.subscription.key
        try:
            return Channel(key(self.channel_name, self.params), self.channel_name, self.params)
        except Exception as exc:
            raise SkipTest(f"{label(key)} raises {error_text(exc)}: set channel and params that it takes") from exc

    @property
    def resumes(self) -> bool:
        """Whether a second link may be told something else than the first."""
        named = (part for sample in self.own_samples for part in parts_of(sample.reading))
        has_position = any(isinstance(part, Position) or part is Position for part in named)
        return has_position or self.side().handlers.subscription.resumes

    # ----------------------------------------------------------------- what it is made of

    def must_be_callable(self) -> None:
        """Skip where nothing can be asked."""
        if hook_faults(type(self.adapter)):
            raise SkipTest("its hooks cannot be called as they will be")

    def strategies(self) -> Handlers:
        """Make the strategies that the options name, as every session does."""
        return Handlers.of(attrs.evolve(settled(self.local, self.local.options()), adapter=None))

    def side(self) -> ClientSide:
        """Return what the adapter makes of one link, with nothing said on it."""
        self.must_be_callable()
        try:
            faults = list(faults_of(self.strategies()))
            side = ClientSide.of(self.local, self.open_service)
        except ConfigError as exc:
            if exc.field == "open_link":
                raise AssertionError(f"open_link {exc.problem}") from exc
            raise SkipTest("its defaults cannot be used") from exc
        except Exception as exc:
            raise SkipTest("its defaults cannot be used") from exc
        if faults:
            raise SkipTest("the hooks of its strategies cannot be called as they will be")
        return side

    def at_work(self) -> ClientSide:
        """Return the same with all said that it has to say: what is read may depend on that."""
        side = self.side()
        for _, ask in self.requests(side):
            with suppress(Exception):  # which is for another test to say
                side.over_the_wire(ask())
        return side

    def own_login(self) -> AuthHandler:
        """Return what logs in; skip where nothing does."""
        auth: AuthHandler = self.side().handlers.auth
        if not overrides(auth, AuthHandler, "authenticate", "encode_auth_request"):
            raise SkipTest("it has no login of its own")
        needs_none = overrides(auth, AuthHandler, "authenticate") and not auth.with_credentials_only
        if self.credentials is None and not needs_none:
            raise SkipTest("it is given no credentials; set credentials")
        return auth

    def own_subscriptions(self) -> SubscriptionHandler:
        """Return what subscribes; skip where the adapter has nothing to say of it."""
        handler: SubscriptionHandler = self.side().handlers.subscription
        if not overrides(handler, SubscriptionHandler, *_OWN):
            raise SkipTest("it has no subscriptions of its own")
        return handler

    def requests(self, side: ClientSide) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield everything that makes a message, and its name."""
        handlers, handler = side.handlers, side.handlers.subscription
        asks: list[tuple[Any, tuple[Any, ...]]] = []
        asks.append((handlers.connection.setup_requests, (ConnectionInfo(url=URL, epoch=1),)))
        # Of a login in steps only its own author knows what it asks.
        in_steps = overrides(handlers.auth, AuthHandler, "authenticate")
        if not callable(self.credentials) and self.credentials is not None and not in_steps:
            asks.append((handlers.auth.encode_auth_request, (as_secret(self.credentials),)))
        if overrides(handler, SubscriptionHandler, *_OWN):
            if handler.max_batch > 1:
                asks.append((handler.encode_subscription_batch, ([self.channel],)))
            else:
                asks.append((handler.encode_subscription_request, (self.channel_name, self.params)))
            if not handler.unsubscribes_by_id:
                asks.append((handler.encode_unsubscription, (self.channel, None)))
        if self.question is not None:
            asks.append((handlers.correlation.tag, (self.question, "421" if handlers.correlation.text else 421)))
        if (farewell := handlers.own_hook("encode_farewell")) is not None:
            asks.append((farewell, ()))
        for hook, arguments in asks:
            yield label(hook), partial(hook, *arguments)

    # ----------------------------------------------------------------- what it reads

    def read_all(self, samples: Iterable[Sample], side: ClientSide) -> Iterator[tuple[Sample, list[Any], list[Any]]]:
        """Yield each sample with its messages, and with the readings that each of these has, or may have."""
        for sample in samples:
            messages, parts = side.hear(sample), parts_of(sample.reading)
            is_grant = any(part in _GRANTS or isinstance(part, _GRANTS) for part in parts)
            yield sample, messages, [side.read(message, as_grants=is_grant) for message in messages]

    def readings(self, samples: Iterable[Sample]) -> Iterator[list[Any]]:
        """Yield the readings that each message of samples may have, as an answer to a subscription, too."""
        side = self.at_work()
        for sample in samples:
            for message in side.hear(sample):
                found = side.read(message)
                with suppress(Exception):  # it answers something else
                    found = side.read(message, as_grants=True)
                yield found

    def misread(self, samples: Sequence[Sample], side: ClientSide) -> Iterator[str]:
        """Yield, for each sample that is not read as it should, what is wrong."""
        for sample in samples:
            name = side.reader_of(sample.reading)
            try:
                ((_, messages, found),) = self.read_all([sample], side)
            except Exception as exc:
                yield f"{name} raises {error_text(exc)} for {shown(sample.message)}"
                continue
            if not _is_as_said(sample.reading, found):
                readings = [reading for readings in found for reading in readings]
                made = " or ".join(map(shown, readings)) or "nothing"
                got = shown(messages[0] if len(messages) == 1 else messages)
                yield f"{name} makes {made} of {got}, not {_wanted(sample.reading)}"

    def _explore(self, side: ClientSide, messages: Iterable[Any]) -> Iterator[tuple[str, str]]:
        """Show messages to every hook that looks at them; yield the name of each that fails, and how."""
        for message in messages:
            for ask, name, judge in side.looks:
                try:
                    if (fault := judge(ask(message))) is not None:
                        yield name, f"{name} returns {fault}, for {shown(message)}"
                except Exception as exc:
                    yield name, f"{name} raises {error_text(exc)} for {shown(message)}"

    def tease(self, side: ClientSide, samples: Iterable[Sample], payloads: Iterable[Any] = ()) -> dict[str, str]:
        """Show hooks samples, broken in all ways, and `payloads`; return what is wrong, by the name of the hook."""
        said, faults = [sample.message for sample in samples], dict[str, str]()
        broken = (way for one in said for way in mutants(one, [other for other in said if other is not one]))
        for message in chain(payloads, broken, said):
            side.begin_anew()
            try:
                messages = side.hear(Sample(message))
            except BadFrame as exc:
                messages = list(exc.messages)
            except Exception:  # the service cannot write it, or the codec refuses it: no hook is shown it
                continue
            for name, fault in self._explore(side, messages):
                faults.setdefault(name, fault)
        side.begin_anew()
        return faults

    def asked_beats(self, samples: Iterable[Sample], side: ClientSide) -> Iterator[tuple[Sample, HeartbeatAsked]]:
        """Yield the samples that want a sign of life, and what they are read as."""
        with suppress(Exception):  # which is for another test to say
            for sample, _, found in self.read_all(samples, side):
                for beat in (part for one in found for each in one for part in parts_of(each)):
                    if isinstance(beat, HeartbeatAsked) and beat.reply is not None:
                        yield sample, beat

    def payloads(self, samples: Sequence[Sample]) -> list[Any]:
        """Return what a feed of the channel shall bring, once all samples have been said."""
        side, server_ids, payloads = self.side(), list[Any](), list[Any]()
        for found in self.readings(samples):
            parts = [parts_of(reading) for reading in found]
            server_ids += [part.server_id for each in parts for part in each if isinstance(part, Granted)]
            data = next((each for each in parts if any(isinstance(part, Data) for part in each)), [])
            payloads += [
                part.payload for part in data if isinstance(part, Data) and side.belongs(part, self.channel, server_ids)
            ]
        return payloads

    def server_id(self, samples: Sequence[Sample]) -> Any:
        """Return what the service calls the channel, as samples say; None where they do not."""
        parts = (part for found in self.readings(samples) for reading in found for part in parts_of(reading))
        return next(
            (part.server_id for part in parts if isinstance(part, Granted) and part.server_id is not None), None
        )

    # ----------------------------------------------------------------- sessions

    @asynccontextmanager
    async def session(self, *, judges: bool = False, **options: Any) -> AsyncGenerator[tuple[Connection, Service]]:
        """Open a session to the service that the samples make; skip where it does not come up, unless that is judged.

        Nothing but the server ends its link.
        """
        self.side()
        service = Service(self.samples, self.open_service)
        async with ScriptedServer(then=service) as server, AsyncExitStack() as stack:
            fixed: dict[str, Any] = {
                "stream_factory": server.stream_factory,
                "credentials": self.credentials,
                "max_attempts": 3,
            }
            durations: dict[str, Any] = {
                "ping_interval": math.inf,
                "idle_timeout": math.inf,
                "backoff": ListBackoff([1.0]),
            }
            try:
                block = open_connection(self.local, **{**fixed, **durations, **options})
                conn = await stack.enter_async_context(block)
            except Exception as exc:
                failure = self.stuck(service, f"it does not become ready: {error_text(exc)}", exc)
                raise failure if judges else SkipTest(str(failure)) from exc
            yield conn, service

    @asynccontextmanager
    async def feed(self, conn: Connection, service: Service) -> AsyncGenerator[Feed[Any]]:
        """Subscribe to the channel; fail where it is not confirmed."""
        async with AsyncExitStack() as stack:
            try:
                block = conn.subscribe(self.channel_name, params=copy.deepcopy(self.params))
                feed: Feed[Any] = await stack.enter_async_context(block)
            except NovaError as exc:
                raise self.stuck(service, f"{self.channel_name!r} is not confirmed: {error_text(exc)}", exc) from exc
            yield feed

    async def enter_feed(self, stack: AsyncExitStack, conn: Connection, service: Service) -> None:
        """Subscribe, if that can be done."""
        with suppress(SkipTest, AssertionError):
            self.own_subscriptions()
            await stack.enter_async_context(self.feed(conn, service))

    async def overhear(self) -> list[Sample]:
        """Return all samples, and what else is said in a session, as far as one comes about."""
        said = list[Sample]()
        with suppress(Exception):  # which is for other tests to say
            async with self.session() as (conn, service), AsyncExitStack() as stack:
                said = service.said
                await self.enter_feed(stack, conn, service)
                if self.question is not None:
                    with trio.move_on_after(PATIENCE):
                        await conn.request(self.question)
        return self.own_samples + [sample for sample in said if sample not in self.own_samples]

    async def is_told(self, service: Service, message: Any) -> bool:
        """Return whether the client says a message, by and by."""
        await wait_all_tasks_blocked()
        (expected, *_) = self.at_work().over_the_wire(message)
        if not isinstance(expected, Mapping):  # it may bear an id of the session's, wherever that is
            return any(type(heard) is type(expected) for heard in service.heard)
        return any(fits(expected, heard) for heard in service.heard)

    def stuck(self, service: Service, what: str, exc: BaseException | None = None) -> Exception:
        """Return what a test ends with that cannot go on: it is skipped where a sample is missing, and else fails."""
        is_waiting = exc is None or (isinstance(exc, NovaError) and not isinstance(exc, ConfigError))
        side = self.at_work()
        farewell = side.handlers.own_hook("encode_farewell")
        quiet = [beat.reply for _, beat in self.asked_beats(service.said, side)] + ([farewell()] if farewell else [])
        known = [said for message in quiet if message is not None for said in side.over_the_wire(message)]
        unanswered = [said for said in service.unanswered if not any(fits(each, said) for each in known)]
        if is_waiting and unanswered:
            meant = service.meant_by(unanswered[-1])
            if meant is None:
                return SkipTest(f"nobody answers {self.show(unanswered[-1])}: give an Exchange that does")
            return AssertionError(f"{what}; it says {self.show(unanswered[-1])}, not {self.show(meant.asked)}")
        if is_waiting and not service.said:
            return SkipTest(f"{what}; if the service speaks first, give Exchange(None, ...) with what it says")
        after = f"; it was told {self.show(service.said[-1].message)}" if service.said else ""
        return AssertionError(f"{what}{after}")

    def show(self, message: Any) -> str:
        """Return a message as a report may show it: it may bear credentials."""
        redactor = Redactor()
        redactor.keep("test", secrets_in(self.credentials))
        return redactor.show(shown(message, LOOKED_AT))


def _is_as_said(expected: Any, found: Sequence[list[Any]]) -> bool:
    """Return whether the messages of a sample, each with the readings that it may have, are what the sample says."""
    if expected is ...:
        return True
    if expected is None:
        return not any(readings for readings in found)
    if len(found) == 1:
        return any(is_read_as(expected, reading) for reading in found[0])
    return is_read_as(parts_of(expected), [readings[0] for readings in found if readings])


def _wanted(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else "a reading" if expected is ... else shown(expected)


def error_text(exc: BaseException) -> str:
    """Return an error for a report."""
    return f"{type(exc).__name__}: {printable(str(exc))}" if str(exc) else type(exc).__name__


# --------------------------------------------------------------------------- whether hooks can be called


def faults_of(strategies: Handlers) -> Iterator[str]:
    """Yield what keeps the hooks of strategies from being called as they will be."""
    for field, role in ROLES.items():
        strategy = getattr(strategies, field)
        for hook, model in vars(role).items():
            if not inspect.isfunction(model) or hook.startswith("_") or not overrides(strategy, role, hook):
                continue
            member, name = getattr(strategy, hook), f"{type(strategy).__name__}.{hook}"
            is_free = hook == "connection_info"
            if inspect.iscoroutinefunction(model) != inspect.iscoroutinefunction(member) and not is_free:
                yield f"{name}: it must be {'async def' if inspect.iscoroutinefunction(model) else 'a plain def'}"
                continue
            try:
                inspect.signature(member).bind(*[None] * (len(inspect.signature(model).parameters) - 1))
            except TypeError:
                takes = list(inspect.signature(model).parameters)[1:]
                yield f"{name}: it must take {', '.join(takes) or 'nothing'}"
