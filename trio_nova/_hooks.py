"""The strategies of a session, the dialect that speaks for them, and which of their hooks are there to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any, TypeVar, cast

import attrs

from trio_nova.adapter import Settled
from trio_nova.codecs import RawCodec
from trio_nova.config import Config, made
from trio_nova.dialect import Dialect
from trio_nova.handlers import (
    AuthHandler,
    ConnectionHandler,
    Correlation,
    ErrorHandler,
    Heartbeat,
    MessageHandler,
    RateLimitHandler,
    SubscriptionHandler,
    overrides,
)
from trio_nova.handlers.auth import reveal_all
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.readings import Reading

__all__ = ["Handlers", "Hooks"]

H = TypeVar("H")


class _Blend:
    """A strategy of which each hook is that of the first that has one of its own: given, dialect, strategy.

    A hook that nobody has is that of the role, and asks the others through this.
    """

    def __init__(self, role: type, strategy: object, dialects: Sequence[Dialect], *, is_given: bool) -> None:
        self._role, self._strategy, self._dialects, self._is_given = role, strategy, dialects, is_given
        self._inherited: dict[str, FunctionType] = {}
        """Hooks of the role, by name. One that is bound to this must not be kept here: it would keep this alive."""

    def __getattr__(self, name: str) -> Any:
        if (hook := self._inherited.get(name)) is not None:
            return MethodType(hook, self)
        found = self._find(name)
        if isinstance(found, MethodType) and found.__self__ is self:
            self._inherited[name] = cast(FunctionType, found.__func__)
        else:
            setattr(self, name, found)  # asked once
        return found

    def _find(self, name: str) -> Any:
        strategy, default = self._strategy, inspect.getattr_static(self._role, name, None)
        is_own = _is_own(strategy, self._role, name)
        # What a dialect reads is asked by itself, before what the strategies read.
        is_spoken = name != "read" and not (is_own and self._is_given)
        speaker = _speaker(self._dialects, name) if is_spoken else None
        if speaker is not None:
            hook = getattr(speaker, name)
            return _unmasked(hook) if name == "encode_auth_request" else hook
        if isinstance(default, FunctionType) and not is_own:
            return MethodType(default, self)
        return getattr(strategy, name)


def _is_own(strategy: object, role: type, name: str) -> bool:
    """Whether a strategy has something else under a name than its role has."""
    member = getattr(strategy, name)
    return getattr(member, "__func__", member) is not getattr(role, name, None)


def _speaker(dialects: Sequence[Dialect], name: str) -> Dialect | None:
    """Return the first that has a hook, or a trait, of its own under a name."""
    for dialect in dialects:
        ours = next((cls for cls in type(dialect).__mro__ if cls.__module__ in _OURS and name in vars(cls)), None)
        if ours is not None and inspect.getattr_static(dialect, name) is not vars(ours)[name]:
            return dialect
    return None


def _down_to(dialect: Dialect, name: str) -> Sequence[type]:
    """Return the classes of a dialect from the most derived one to the one that has the hook in force."""
    classes = type(dialect).__mro__
    return classes[: 1 + next(place for place, cls in enumerate(classes) if name in vars(cls))]


_OURS = frozenset({"trio_nova.dialect", "trio_nova.adapter"})


def _unmasked(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook that is given credentials as they were given, and asked only where there are some."""

    def encode_auth_request(credentials: Any) -> Any:
        given = reveal_all(credentials)
        return None if given is None else hook(given)

    return encode_auth_request


@attrs.frozen(kw_only=True)
class Handlers:
    """The eight strategies of one session, and two more, as they are asked on a link, or on none."""

    connection: ConnectionHandler
    message: MessageHandler
    subscription: SubscriptionHandler
    auth: AuthHandler
    error: ErrorHandler
    rate_limit: RateLimitHandler
    logging: LoggingHandler
    metrics: MetricsCollector
    correlation: Correlation
    heartbeat: Heartbeat
    dialects: tuple[Dialect, ...] = ()
    """The dialects that speak for them: that of the link, and the adapter."""
    _given: frozenset[str] = attrs.field(default=frozenset(), alias="given")
    """The strategies that were given at the call, by the name of their option."""
    _plain: Handlers | None = attrs.field(default=None, alias="plain")
    """The same without a dialect."""

    @classmethod
    def of(cls, settled: Settled) -> Handlers:
        """Make the strategies of a session, as its adapter speaks for them."""
        config = settled.config
        plain = cls(
            connection=made(config.connection_handler, ConnectionHandler, "connection_handler"),
            message=made(config.message_handler, MessageHandler, "message_handler"),
            subscription=made(config.subscription_handler, SubscriptionHandler, "subscription_handler"),
            auth=made(config.auth_handler, AuthHandler, "auth_handler"),
            error=made(config.error_handler, ErrorHandler, "error_handler"),
            rate_limit=made(config.rate_limit_handler, RateLimitHandler, "rate_limit_handler"),
            logging=made(config.logging_handler, LoggingHandler, "logging_handler"),
            metrics=made(config.metrics_collector, MetricsCollector, "metrics_collector"),
            correlation=config.correlation,
            heartbeat=config.heartbeat,
            given=settled.given,
        )
        return plain if settled.adapter is None else plain.speak((settled.adapter,))

    def speak(self, dialects: tuple[Dialect, ...]) -> Handlers:
        """Return the same strategies as others speak for them."""
        plain = self._plain or self

        def blend(role: type[H], strategy: H, option: str) -> H:
            return cast(H, _Blend(role, strategy, dialects, is_given=option in self._given))

        return attrs.evolve(
            plain,
            connection=blend(ConnectionHandler, plain.connection, "connection_handler"),
            message=blend(MessageHandler, plain.message, "message_handler"),
            subscription=blend(SubscriptionHandler, plain.subscription, "subscription_handler"),
            auth=blend(AuthHandler, plain.auth, "auth_handler"),
            correlation=blend(Correlation, plain.correlation, "correlation"),
            dialects=dialects,
            plain=plain,
        )

    def is_given(self, option: str) -> bool:
        """Return whether the strategy of an option was given at the call."""
        return option in self._given

    def own_hook(self, name: str) -> Any:
        """Return a hook that a dialect has of its own; None: none has."""
        speaker = _speaker(self.dialects, name)
        return None if speaker is None else getattr(speaker, name)

    @property
    def reads_all_alike(self) -> bool:
        """Whether `read_all` knows of the `read` in force: a subclass may have overridden that alone."""
        speaker = _speaker(self.dialects, "read_all")
        if speaker is None or speaker is not _speaker(self.dialects, "read"):
            return False
        return any("read_all" in vars(cls) for cls in _down_to(speaker, "read"))

    @property
    def logs_in(self) -> bool:
        """Whether somebody authenticates without being asked to by credentials."""
        plain = self._plain or self
        is_own = overrides(plain.auth, AuthHandler, "authenticate", "encode_auth_request")
        return (is_own or self.own_hook("authenticate") is not None) and not self.auth.with_credentials_only


@attrs.frozen(kw_only=True)
class Hooks:
    """The hooks that are not the default ones, which need not be called."""

    names_dial: bool
    """`connection_info`"""
    asks_setup: bool
    """`setup_requests`"""
    pings: bool
    """`ConnectionHandler.ping`"""
    hears_frames: bool
    """`handle_frame`"""
    hears_messages: bool
    """`handle_message`"""
    validates: bool
    """`validate_message`"""
    encodes: bool
    """`encode_message`, or what is a link's own: a dialect or a codec. Messages are encoded when they are written."""
    logs_in: bool
    """`authenticate` or `encode_auth_request`, where it is asked without credentials"""
    listens_first: bool
    """`authenticate`, which may read what the service says first."""
    reads_login: bool
    """`read`, `authenticate`, `encode_auth_request` or `handle_auth_response`"""
    reads_confirmations: bool
    """`read` or `handle_subscription_response`"""
    reads_grants: bool
    """`handle_subscription_response`"""
    reads_channels: bool
    """`SubscriptionHandler.read`"""
    reads_answers: bool
    """`Correlation.read`"""
    reads_heartbeats: bool
    """`Heartbeat.read`"""
    identifies: bool
    """Whether a question may bear an id, by which its answer is told."""
    filters: bool
    """`matches`"""
    steps_links: bool
    """`link_step`"""
    prepares: bool
    """`prepare`"""
    fetches_snapshots: bool
    """`snapshot`"""
    backfills: bool
    """`backfill`"""
    resumes_after: bool
    """`resume`"""
    farewell: Callable[[], Any] | None
    """`encode_farewell`; None: nobody has any."""
    checks_rate: bool
    """`check_rate_limit`"""
    ticks: bool
    """`handle_tick`"""
    reads: Callable[[Any], Reading | None] | None
    """`Dialect.read`; None: it has none of its own."""
    reads_all: Callable[[Sequence[Any]], Sequence[Reading | None]] | None
    """`Dialect.read_all`; None: messages are read one by one."""
    reads_text_only: bool
    """Whether the hooks are shown messages as they came, text: the default ones can read nothing in them."""

    @classmethod
    def of(cls, handlers: Handlers, config: Config) -> Hooks:
        connection, subscription, correlation = handlers.connection, handlers.subscription, handlers.correlation
        auth, codec, reads = handlers.auth, config.codec, handlers.own_hook("read")
        validates = overrides(handlers.message, MessageHandler, "validate_message")
        makes_dialects = handlers.own_hook("open_link") is not None

        def is_own(*names: str) -> bool:
            return overrides(subscription, SubscriptionHandler, *names)

        return cls(
            names_dial=overrides(connection, ConnectionHandler, "connection_info"),
            asks_setup=overrides(connection, ConnectionHandler, "setup_requests"),
            pings=overrides(connection, ConnectionHandler, "ping"),
            hears_frames=overrides(connection, ConnectionHandler, "handle_frame"),
            hears_messages=overrides(handlers.message, MessageHandler, "handle_message"),
            validates=validates,
            encodes=hasattr(codec, "open_link")
            or makes_dialects
            or overrides(handlers.message, MessageHandler, "encode_message"),
            logs_in=handlers.logs_in,
            listens_first=overrides(auth, AuthHandler, "authenticate"),
            reads_login=reads is not None
            or makes_dialects
            or overrides(auth, AuthHandler, "authenticate", "encode_auth_request", "handle_auth_response"),
            reads_confirmations=reads is not None or makes_dialects or is_own("read", "handle_subscription_response"),
            reads_grants=is_own("handle_subscription_response"),
            reads_channels=is_own("read"),
            reads_answers=overrides(correlation, Correlation, "read"),
            reads_heartbeats=overrides(handlers.heartbeat, Heartbeat, "read"),
            identifies=type(codec) is not RawCodec or overrides(correlation, Correlation, "tag", "request_id"),
            filters=is_own("matches"),
            steps_links=is_own("link_step"),
            prepares=is_own("prepare"),
            fetches_snapshots=is_own("snapshot"),
            backfills=is_own("backfill"),
            resumes_after=is_own("resume"),
            farewell=handlers.own_hook("encode_farewell"),
            checks_rate=overrides(handlers.rate_limit, RateLimitHandler, "check_rate_limit"),
            ticks=overrides(handlers.rate_limit, RateLimitHandler, "handle_tick"),
            reads=reads,
            reads_all=handlers.own_hook("read_all") if handlers.reads_all_alike else None,
            reads_text_only=type(codec) is RawCodec and not validates,
        )

    @property
    def dispatches(self) -> bool:
        """Whether a hook hears messages or frames, for which a task calls it."""
        return self.hears_messages or self.hears_frames
