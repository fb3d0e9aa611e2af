"""What a service is like, in one place: where it is, how it is spoken to, and which options suit it.

::

    class Custom(Adapter):
        host = "api.example.com"
        path = "/websocket"

        def encode_subscription_request(self, channel, params):
            return {"op": "sub", "topic": channel}

    async with open_connection(Custom()) as conn: ...

A thin adapter overrides hooks; each takes the place of one hook of a strategy. A thick one brings
strategies of its own, by `defaults`. What neither says stays as the library has it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import attrs

from trio_nova.codecs import MixedCodec
from trio_nova.config import Config, check_spelling, configure, default_config, target_url
from trio_nova.errors import ConfigError
from trio_nova.handlers import (
    AuthHandler,
    AuthOk,
    AuthRefused,
    ConnectionHandler,
    ConnectionInfo,
    ErrorHandler,
    MessageHandler,
    PingHeartbeat,
    SubscriptionHandler,
)
from trio_nova.handlers.auth import reveal
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.messages import Action, Retry, Stop
from trio_nova.secrets import Secret, as_secret
from trio_nova.urls import Url

__all__ = [
    "HOOKS",
    "Adapter",
    "Target",
    "hook_faults",
    "hook_parameters",
    "overrides_hook",
    "settle",
    "shadowed_hooks",
]


def _of_class(name: str, otherwise: Any) -> Any:
    """Let a plain subclass set a field by a class attribute: `host = "api.example.com"`."""
    return attrs.Factory(lambda self: getattr(type(self), name, otherwise), takes_self=True)


def _hidden(value: str | Mapping[str, str | Secret[str]] | Secret[Any] | None) -> Secret[Any]:
    # The types of a converter are read off its signature, and overloads are not.
    return as_secret(value)


@attrs.define(eq=False, kw_only=True, slots=False)
class Adapter:
    """One service. Subclass it; set fields by class attributes, or when you make an instance.

    An instance serves any number of sessions, so it keeps nothing that belongs to one: that is for the
    strategies, which `defaults` names and every session makes anew.
    """

    host: str = attrs.field(default=_of_class("host", ""))
    port: int | None = attrs.field(default=_of_class("port", None))
    """None: the scheme's own, 443 or 80."""
    path: str = attrs.field(default=_of_class("path", "/"))
    query: str | Mapping[str, str | Secret[str]] | Secret[Any] = attrs.field(
        default=_of_class("query", ""), converter=_hidden
    )
    """As text, or by name; kept as a `Secret`, since it may hold a token."""
    secure: bool = attrs.field(default=_of_class("secure", True))
    """Whether to speak TLS."""
    _address: str | Secret[Any] | None = attrs.field(default=None, alias="url", converter=_hidden)
    """The whole URL, in place of all the above: for a test server, say, or a gateway."""

    # ----------------------------------------------------------------- what it is

    def url(self) -> Url:
        """Return where to connect to.

        Raises:
            ConfigError: naming the field that is wrong.
        """
        address, query = reveal(self._address), reveal(self.query)
        if address is not None:
            return Url.parse(address, "url")
        if not self.host or not isinstance(self.host, str):
            raise ConfigError("host", f"{type(self).__name__} does not say where its service is")
        if not self.path.startswith("/") or "?" in self.path or "#" in self.path:
            raise ConfigError("path", f"must begin with / and hold neither query nor fragment, not {self.path!r}")
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        if not isinstance(query, str | Mapping):
            raise ConfigError("query", f"must be text or a mapping, not {type(query).__name__}")
        if isinstance(query, Mapping):
            query = urlencode({name: reveal(value) for name, value in query.items()}, quote_via=quote, safe="")
        scheme = "wss" if self.secure else "ws"
        return Url.parse(f"{scheme}://{host}{port}{quote(self.path, safe=_PATH)}{'?' if query else ''}{query}", "host")

    def defaults(self) -> Mapping[str, Any]:
        """Return the options that suit the service, by the name of their field in `Config`.

        Called for every session. A strategy that keeps state belongs here as its class, or as a function
        that makes one. A strategy named here replaces what the hooks of this class would be asked by.
        """
        return {}

    def options(self) -> dict[str, Any]:
        """Return `defaults`, and the strategies that ask the hooks which are overridden."""
        strategies = {
            field: make(self) for field, (make, hooks) in _STRATEGIES.items() if any(map(self._overrides, hooks))
        }
        return {"codec": MixedCodec(), **strategies, **self.defaults()}

    def _overrides(self, hook: str) -> bool:
        return overrides_hook(type(self), hook)

    # ----------------------------------------------------------------- hooks

    def handle_platform_message(self, message: Any) -> Action:
        """Answer a message, as the codec decoded it. See `MessageHandler.handle_message`."""
        return None

    def encode_auth_request(self, credentials: Any) -> Any:
        """Return the message that authenticates. Asked on every link, where there are credentials.

        They come as they were given, unmasked: use them up here, and keep them nowhere.
        """
        return _AUTH.encode_auth_request(credentials)

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        """Return what a message says to the authentication; None where it is no answer to it."""
        return _AUTH.handle_auth_response(message)

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        """Return what to ask of the service on every new link. See `ConnectionHandler.setup_requests`."""
        return ()

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        """Return the message that asks for `channel`."""
        return _SUBSCRIPTIONS.encode_subscription_request(channel, params)

    def encode_unsubscription_request(self, channel: str) -> Any:
        """Return the message that gives `channel` up; None where there is nothing to say."""
        return _SUBSCRIPTIONS.encode_unsubscription_request(channel)

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        """Return what a message says of subscriptions (`Granted`, `Refused`); None where it says nothing of any."""
        return _SUBSCRIPTIONS.handle_subscription_response(message)

    def channel_of(self, message: Any) -> Hashable | None:
        """Return the channel whose data `message` is; None where it is none."""
        return _SUBSCRIPTIONS.channel_of(message)

    def data_of(self, message: Any) -> Any:
        """Return what the consumer of a feed gets of a message."""
        return _SUBSCRIPTIONS.data_of(message)

    def answer_heartbeat(self, message: Any) -> Any:
        """Return what to send, ahead of any queue, in answer to the service's own probe; None where it is none."""
        return None

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        """Return whether, and when, to dial again: only the adapter knows what close codes from 4000 on mean."""
        return advice


_PATH = "/%:@!$&'()*+,;=~-._"
_AUTH = AuthHandler()
_SUBSCRIPTIONS = SubscriptionHandler()


# --------------------------------------------------------------------------- the strategies that ask an adapter


@attrs.define(eq=False)
class _Messages(MessageHandler):
    _adapter: Adapter

    def handle_message(self, kind: str, message: Any) -> Action:
        return self._adapter.handle_platform_message(message)


@attrs.define(eq=False)
class _Authentication(AuthHandler):
    with_credentials_only = True

    _adapter: Adapter = attrs.field(kw_only=True, alias="adapter")

    def encode_auth_request(self, credentials: Any) -> Any:
        given = reveal(credentials)
        if given is None:
            return None
        if isinstance(given, Mapping):
            given = {name: reveal(value) for name, value in given.items()}
        return self._adapter.encode_auth_request(given)

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        return self._adapter.handle_auth_response(message)


@attrs.define(eq=False)
class _Setup(ConnectionHandler):
    _adapter: Adapter

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        return self._adapter.setup_requests(info)


@attrs.define(eq=False)
class _Channels(SubscriptionHandler):
    _adapter: Adapter = attrs.field(kw_only=True, alias="adapter")

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return self._adapter.encode_subscription_request(channel, params)

    def encode_unsubscription_request(self, channel: str) -> Any:
        return self._adapter.encode_unsubscription_request(channel)

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        return self._adapter.handle_subscription_response(message)

    def channel_of(self, message: Any) -> Hashable | None:
        return self._adapter.channel_of(message)

    def data_of(self, message: Any) -> Any:
        return self._adapter.data_of(message)


@attrs.define(eq=False)
class _Errors(ErrorHandler):
    _adapter: Adapter

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return self._adapter.should_reconnect(error, attempt, advice)


@attrs.frozen
class _Heartbeat(PingHeartbeat):
    _adapter: Adapter

    def answer(self, message: Any) -> Any:
        return self._adapter.answer_heartbeat(message)


_STRATEGIES: Mapping[str, tuple[Callable[[Adapter], Any], tuple[str, ...]]] = {
    "message_handler": (lambda adapter: partial(_Messages, adapter), ("handle_platform_message",)),
    "auth_handler": (
        lambda adapter: partial(_Authentication, adapter=adapter),
        ("encode_auth_request", "handle_auth_response"),
    ),
    "connection_handler": (lambda adapter: partial(_Setup, adapter), ("setup_requests",)),
    "subscription_handler": (
        lambda adapter: partial(_Channels, adapter=adapter),
        (
            "encode_subscription_request",
            "encode_unsubscription_request",
            "handle_subscription_response",
            "channel_of",
            "data_of",
        ),
    ),
    "error_handler": (lambda adapter: partial(_Errors, adapter), ("should_reconnect",)),
    "heartbeat": (_Heartbeat, ("answer_heartbeat",)),
}
"""For each field of Config: what makes the strategy, and the hooks of which any, overridden, makes it needed."""

HOOKS: tuple[str, ...] = tuple(hook for _, hooks in _STRATEGIES.values() for hook in hooks)
"""The names of all hooks."""


def hook_faults(kind: type[Adapter]) -> dict[str, str]:
    """Return, by name, what keeps the methods of an adapter's class from being called as they will be."""
    faults = {
        name: f"{kind.__name__} must define it as a method, not as a {type(member).__name__}"
        for name in ("url", "defaults")
        if not callable(member := getattr(kind, name))
    }
    for hook in HOOKS:
        member = getattr(kind, hook)
        if member is getattr(Adapter, hook):
            continue
        if not callable(member):
            faults[hook] = f"{kind.__name__} must define it as a method, not as a {type(member).__name__}"
        elif inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member):
            faults[hook] = "it decides and cannot wait: it must be a plain def, not async"
        elif not _can_be_called_like(getattr(Adapter, hook), member, kind, hook):
            faults[hook] = f"it must take {', '.join(hook_parameters(hook)) or 'nothing'}"
    return faults


def shadowed_hooks(adapter: Adapter) -> dict[str, str]:
    """Return, by name, the hooks that an adapter overrides for nothing: it names a strategy that is asked instead."""
    named = adapter.defaults()
    return {
        hook: f"nobody asks it, since defaults() names a {field}"
        for field, (_, hooks) in _STRATEGIES.items()
        for hook in hooks
        if field in named and overrides_hook(type(adapter), hook)
    }


def overrides_hook(kind: type[Adapter], hook: str) -> bool:
    """Return whether a class of adapters has a hook of its own."""
    return getattr(kind, hook) is not getattr(Adapter, hook)


def hook_parameters(hook: str) -> list[str]:
    """Return the names of what a hook takes, without self."""
    return list(inspect.signature(getattr(Adapter, hook)).parameters)[1:]


def _can_be_called_like(model: Any, member: Any, kind: type[Adapter], hook: str) -> bool:
    given = len(inspect.signature(model).parameters)
    if isinstance(inspect.getattr_static(kind, hook), staticmethod | classmethod):
        given -= 1
    try:
        inspect.signature(member).bind(*[None] * given)
    except TypeError:
        return False
    return True


# --------------------------------------------------------------------------- targets


Target: TypeAlias = str | Url | Adapter | type[Adapter]
"""What a connection can be opened to."""


def settle(target: object, config: Config | None, overrides: Mapping[str, Any]) -> tuple[Url, Config]:
    """Return where a target is, and the options in force for it.

    An override wins over the adapter's default, that over `config`, and that over the library's.

    Raises:
        ConfigError: naming what is wrong.
    """
    if isinstance(target, type) and issubclass(target, Adapter):
        name = target.__name__
        try:
            target = target()
        except TypeError as exc:
            raise ConfigError("target", f"it needs arguments: write {name}(...)") from exc
    base = default_config() if config is None else config
    if isinstance(target, Adapter):
        for name, fault in hook_faults(type(target)).items():
            raise ConfigError(name, fault)
        check_spelling(type(target), Adapter)
        return target.url(), configure(base, {**target.options(), **overrides})
    return target_url(target), configure(base, overrides)
