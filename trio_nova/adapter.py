"""What a service is like, in one place: where it is, how it is spoken to, and which options suit it.

::

    class Custom(Adapter):
        host = "api.example.com"
        path = "/websocket"

        def encode_subscription_request(self, channel, params):
            return {"op": "sub", "topic": channel}

    async with open_connection(Custom()) as conn: ...

An adapter overrides hooks; each takes the place of the hook of that name in a strategy. One that keeps what
is true of one link makes a `Dialect` for each link. What it does not say stays as the library has it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, TypeAlias
from urllib.parse import quote, urlencode

import attrs

from trio_nova.codecs import MixedCodec
from trio_nova.config import Config, check_spelling, configure, default_config, target_url
from trio_nova.core import Strategy
from trio_nova.core.sequence import Tracker
from trio_nova.dialect import Dialect
from trio_nova.errors import ConfigError
from trio_nova.handlers import Channel, ConnectionInfo, ErrorHandler, Hole, MessageHandler, Page
from trio_nova.handlers.auth import reveal
from trio_nova.messages import Answered, M, M_co, Retry, Stop
from trio_nova.readings import Data
from trio_nova.secrets import Secret, as_secret
from trio_nova.urls import Url

__all__ = [
    "HOOKS",
    "Adapter",
    "Settled",
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
class Adapter(Strategy, Dialect, Generic[M_co]):
    """One service. Subclass it; set fields by class attributes, or when you make an instance.

    Its hooks are those of `Dialect`, and some of the session's. An instance serves any number of sessions, so it
    keeps nothing that belongs to one: that is for the dialect that `open_link` makes for each link, or for the
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

    def open_link(self, info: ConnectionInfo) -> Dialect:
        """Return what speaks on a link that has come up: the adapter, or an object that keeps what is the link's.

        The hooks of `Dialect` that the object has come before those of the adapter.
        """
        return self

    # ----------------------------------------------------------------- traits: see `SubscriptionHandler`, `AuthHandler`

    confirms: ClassVar[bool] = True
    correlated: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    unsubscribes_by_id: ClassVar[bool] = False
    drops_unclaimed: ClassVar[bool] = False
    max_batch: ClassVar[int] = 1
    with_credentials_only: ClassVar[bool] = False

    # ----------------------------------------------------------------- hooks of the session

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo | Awaitable[ConnectionInfo]:
        """Return what to dial; may be async. See `ConnectionHandler.connection_info`."""
        return info

    def handle_platform_message(self, message: Any) -> Answered:
        """Answer a message, as the codec decoded it. See `MessageHandler.handle_message`."""
        return None

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return what tells one subscription from others. See `SubscriptionHandler.key`."""
        return channel

    async def prepare(self, channel: Channel) -> Channel:
        """Return the channel as it is to be asked for on this link. See `SubscriptionHandler.prepare`."""
        return channel

    def tracker(self, channel: Channel) -> Tracker | None:
        """Return what watches the steps of a channel's data for gaps. See `SubscriptionHandler.tracker`."""
        return None

    async def snapshot(self, channel: Channel) -> Data:
        """Return the state of a channel, asked for elsewhere. See `SubscriptionHandler.snapshot`."""
        raise NotImplementedError

    async def backfill(self, hole: Hole) -> Page:
        """Return messages that were missed. See `SubscriptionHandler.backfill`."""
        raise NotImplementedError

    def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
        """Return the params with which to ask for `channel` again after `last`. See `SubscriptionHandler.resume`."""
        return channel.params

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        """Return whether, and when, to dial again: only the adapter knows what close codes from 4000 on mean."""
        return advice


_PATH = "/%:@!$&'()*+,;=~-._"

# --------------------------------------------------------------------------- the strategies that ask an adapter


@attrs.define(eq=False)
class _Messages(MessageHandler):
    _adapter: Adapter

    def handle_message(self, kind: str, message: Any) -> Answered:
        return self._adapter.handle_platform_message(message)


@attrs.define(eq=False)
class _Errors(ErrorHandler):
    _adapter: Adapter

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return self._adapter.should_reconnect(error, attempt, advice)


_STRATEGIES: Mapping[str, tuple[Callable[[Adapter], Any], tuple[str, ...]]] = {
    "message_handler": (lambda adapter: partial(_Messages, adapter), ("handle_platform_message",)),
    "error_handler": (lambda adapter: partial(_Errors, adapter), ("should_reconnect",)),
}
"""For each field of Config: what makes the strategy, and the hooks of which any, overridden, makes it needed."""

_NO_HOOKS = ("url", "defaults", "options", "open_link")


def _hooks_of(kind: type) -> Iterator[str]:
    return (name for name, each in vars(kind).items() if inspect.isfunction(each) and not name.startswith("_"))


HOOKS: tuple[str, ...] = (*_hooks_of(Dialect), *(name for name in _hooks_of(Adapter) if name not in _NO_HOOKS))
"""The names of all hooks."""


def hook_faults(kind: type[Adapter]) -> dict[str, str]:
    """Return, by name, what keeps the methods of an adapter's class from being called as they will be."""
    faults = {
        name: f"{kind.__name__} must define it as a method, not as a {type(member).__name__}"
        for name in ("url", "defaults")
        if not callable(member := getattr(kind, name))
    }
    for name in _NO_HOOKS:
        if inspect.iscoroutinefunction(getattr(kind, name)):
            faults[name] = "it decides and cannot wait: it must be a plain def, not async"
    for hook in HOOKS:
        member = getattr(kind, hook)
        if member is getattr(Adapter, hook):
            continue
        if not callable(member):
            faults[hook] = f"{kind.__name__} must define it as a method, not as a {type(member).__name__}"
        elif inspect.iscoroutinefunction(member) is not inspect.iscoroutinefunction(getattr(Adapter, hook)):
            if inspect.iscoroutinefunction(getattr(Adapter, hook)):
                faults[hook] = "it is awaited: it must be async def"
            elif hook != "connection_info":
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


Target: TypeAlias = str | Url | Adapter[M] | type[Adapter[M]]
"""What a connection can be opened to."""


@attrs.frozen(kw_only=True)
class Settled:
    """What a session is made of."""

    url: Url
    config: Config
    adapter: Adapter[Any] | None = None
    """None: the target is an address alone."""
    given: frozenset[str] = frozenset()
    """The options that were given at the call."""


def settle(target: object, config: Config | None, overrides: Mapping[str, Any]) -> Settled:
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
    if not isinstance(target, Adapter):
        return Settled(url=target_url(target), config=configure(base, overrides))
    for name, fault in hook_faults(type(target)).items():
        raise ConfigError(name, fault)
    check_spelling(type(target), Adapter)
    settled = configure(base, {**target.options(), **overrides})
    return Settled(url=target.url(), config=settled, adapter=target, given=frozenset(overrides))
