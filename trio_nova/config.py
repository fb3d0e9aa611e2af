"""All that can be set, in one frozen value."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
import random
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import attrs

from trio_nova.codecs import Codec, RawCodec, StreamCodec, check_codec
from trio_nova.core import check_bool, check_callable, one_of
from trio_nova.core.backoff import Backoff, ExponentialBackoff
from trio_nova.core.bounded import OVERFLOWS, Overflow
from trio_nova.core.breaker import CircuitBreaker
from trio_nova.core.outbox import Buffer
from trio_nova.errors import ConfigError, printable
from trio_nova.events import Observer
from trio_nova.handlers import (
    AuthHandler,
    ConnectionHandler,
    ConnectionInfo,
    Correlation,
    ErrorHandler,
    Heartbeat,
    MessageHandler,
    NoHeartbeat,
    PingHeartbeat,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.links import (
    ENVIRONMENT,
    ConnectGovernor,
    Deflate,
    Resolver,
    StreamFactory,
    SystemResolver,
    Transport,
    WireTransport,
    parse_proxy,
    refuse_what_lacks,
)
from trio_nova.messages import M_co
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.options import ConfigOptions, HeadersProvider, Made, ReconfigurableOptions, WhenDown
from trio_nova.secrets import (
    CredentialsSource,
    HeaderMap,
    Secret,
    as_secret,
    as_secret_text,
    discreet_if_asked,
    hide_tokens,
    is_secret_name,
    secret_parameter,
)
from trio_nova.urls import Url, is_one_of

__all__ = [
    "RECONFIGURABLE",
    "Config",
    "HeadersProvider",
    "Made",
    "WhenDown",
    "check_failover",
    "check_headers",
    "check_other_origin",
    "check_plaintext",
    "check_spelling",
    "configure",
    "default_config",
    "made",
]

H = TypeVar("H")

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ILLEGAL_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PIN = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
"""32 bytes: the last character before the = stands for 4 bits, the others for 6 (RFC 4648 section 4)."""
_OWN_HEADERS: Mapping[str, str] = {
    **dict.fromkeys(("upgrade", "connection", "sec-websocket-key", "sec-websocket-version"), "the handshake"),
    **dict.fromkeys(("content-length", "transfer-encoding", "expect", "te", "trailer"), "a request with a body"),
    **dict.fromkeys(("keep-alive", "proxy-connection"), "a connection that is used again"),
    "sec-websocket-protocol": "the option subprotocols",
    "sec-websocket-extensions": "the option compression",
    "proxy-authorization": "the proxy: put the login into the URL of the option proxy",
}
"""Headers that are not the caller's to set, and what they belong to."""
_NO_CODEC: Any = RawCodec
"""To a checker of no type, as a `Config` without a codec may also be one for an adapter, which brings its own."""


def _fail(attribute: attrs.Attribute[Any], problem: str) -> None:
    raise ConfigError(attribute.name, problem)


def _seconds(
    *, zero: bool = False, finite: bool = False, least: float = 0.0, most: float = math.inf
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            _fail(attribute, f"must be a number of seconds, not {value!r}")
        if math.inf > value > sys.float_info.max:
            _fail(attribute, "is too large")
        if value < 0 or (value == 0 and not zero):
            _fail(attribute, f"must be {'at least' if zero else 'more than'} 0 seconds, not {value!r}")
        if finite and value == math.inf:
            _fail(attribute, "must be finite: everything that waits for a peer has a deadline")
        if value < least or most < value < math.inf:
            _fail(attribute, f"must be at least {least:g} and at most {most:g} seconds, or infinite, not {value!r}")

    return validate


def _count(*, least: int, endless: bool = False) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if endless and value == math.inf:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            _fail(attribute, f"must be a whole number{' or math.inf' if endless else ''}, not {value!r}")
        if value < least:
            _fail(attribute, f"must be at least {least}, not {value!r}")

    return validate


def _instance_of(role: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, role):
            _fail(attribute, f"must be a {role.__name__}, not {value!r}")

    return validate


def _has(*methods: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, type):
            _fail(attribute, f"must be an instance: write {value.__name__}(...)")
        for method in methods:
            if not callable(getattr(value, method, None)):
                _fail(attribute, f"{value!r} has no method {method}()")

    return validate


def _is_spelt_like(role: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check_spelling(type(value), role)

    return validate


def _strategy(role: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """Check a handler or a factory of one: that it is one, and that its hooks have the colour they must have."""
    hooks = [name for name, member in vars(role).items() if inspect.isfunction(member) and not name.startswith("_")]

    def validate(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, role) and not callable(value):
            _fail(attribute, f"must be a {role.__name__}, a subclass, or a function that returns one, not {value!r}")
        if isinstance(value, type) and not issubclass(value, role):
            _fail(attribute, f"{value.__name__} is not a subclass of {role.__name__}")
        for hook in hooks if value is not role else ():
            is_async = inspect.iscoroutinefunction(getattr(value, hook, None))
            if is_async and not inspect.iscoroutinefunction(getattr(role, hook)) and hook != "connection_info":
                _fail(attribute, f"{hook}() decides and cannot wait: it must be a plain def, not async")

    return validate


def made(value: object, role: type[H], field: str) -> H:
    """Return the strategy that a field holds, or what its factory makes."""
    if not isinstance(value, role) and callable(value):
        factory = value
        try:
            value = factory()
        except TypeError as exc:
            if _takes_nothing(factory):  # what it gets wrong inside is its own affair
                raise
            name = getattr(factory, "__name__", type(factory).__name__)
            raise ConfigError(field, f"{name} needs arguments, but is called without for every session") from exc
    if not isinstance(value, role):
        raise ConfigError(field, f"its factory returned {value!r}, not a {role.__name__}")
    check_spelling(type(value), role)
    return value


_CALLBACKS: Mapping[str, tuple[str, ...]] = {
    "on_open": ("handle_connect",),
    "on_close": ("handle_disconnect",),
    "on_message": ("handle_message", "handle_platform_message"),
    "on_data": ("handle_message", "handle_platform_message"),
    "handle_message": ("handle_platform_message",),
}
"""Hooks by the names that other libraries, or strategies, give them."""


def check_spelling(kind: Any, role: Any) -> None:
    """Refuse a class with a method that was to be a hook of `role`, and is none: nobody would call it.

    That is one whose name is close to that of a hook, or stands for it in other libraries (`on_message`), where the
    class does not override that hook itself: a method beside the hook is a helper of it. Names that begin with _, and
    all that the library's own classes have, are never meant.

    Raises:
        ConfigError: naming both.
    """
    if (both := _nobody_calls(kind, role)) is not None:
        raise ConfigError(both[0], f"nobody calls it; did you mean {both[1]}? One of your own begins with _")


@functools.lru_cache(maxsize=256)
def _nobody_calls(kind: type, role: type) -> tuple[str, str] | None:
    """Return a method that nobody calls, and the hook that it was to be; asked for every session, so remembered."""
    ours = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == "trio_nova"]
    known = {name for each in ours for name in vars(each)}
    names = {name: None for each in reversed(role.__mro__[:-1]) for name in vars(each) if not name.startswith("_")}
    wanted = [name for name in names if _is_inherited(name, kind, role)]
    for each in kind.__mro__:
        if each in ours:
            continue
        for name, member in vars(each).items():
            if name.startswith("_") or name in known or not inspect.isfunction(member):
                continue
            meant = [hook for hook in _other_names(name) if hook in wanted]
            if "_" in name:
                like = [hook for hook in wanted if abs(len(hook) - len(name)) <= 1]  # not handle_reconnect
                meant += difflib.get_close_matches(name, like, n=1, cutoff=0.91)
            if meant:
                return f"{each.__name__}.{name}", meant[0]
    return None


def _is_inherited(name: str, kind: type, role: type) -> bool:
    return callable(getattr(role, name)) and getattr(kind, name, None) is getattr(role, name)


def _other_names(name: str) -> tuple[str, ...]:
    event = name.removeprefix("on_")
    return (*_CALLBACKS.get(name, ()), f"handle_{event}") if event != name else _CALLBACKS.get(name, ())


def _takes_nothing(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return False
    except ValueError:  # written in C, it has none
        pass
    return True


def check_headers(headers: Mapping[str, str], field: str = "headers") -> tuple[tuple[str, str], ...]:
    """Return the headers as pairs, fit for the wire (RFC 9110 section 5).

    Raises:
        ConfigError: a name or value has a character that it must not have, or the name is the handshake's own; or
            there are two spellings of one name, of which a server would take the one or the other.
    """
    pairs: list[tuple[str, str]] = []
    spellings: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ConfigError(field, f"{name!r} is not a header name")
        if not isinstance(value, str):
            raise ConfigError(field, f"the value of {name} must be a str, not a {type(value).__name__}")
        if _ILLEGAL_VALUE.search(value) or not _is_latin1(value):
            raise ConfigError(field, f"the value of {name} has a character that a header must not have")
        owner = _OWN_HEADERS.get(name.lower())
        if owner is None and name.lower().startswith("sec-websocket-"):
            owner = "the handshake"
        if owner is not None:
            raise ConfigError(field, f"{name} belongs to {owner}")
        if (other := spellings.setdefault(name.lower(), name)) != name:
            raise ConfigError(
                field,
                f"{other} and {name} are one header, given twice: in a hook, write info.headers | {{{name!r}: ...}}",
            )
        pairs.append((name, value))
    return tuple(pairs)


def _is_latin1(text: str) -> bool:
    return all(ord(c) < 256 for c in text)


def check_plaintext(
    url: Url, config: Config, headers: Mapping[str, str], subprotocols: Iterable[str | Secret[str]] = ()
) -> None:
    """Refuse to send credentials where everybody on the way can read them, or to where nobody can vouch for a pin.

    Raises:
        ConfigError: `url` is a ws:// one to another machine, and what is to be sent there looks secret; or it is any
            ws:// one, where no certificate is shown, and there are pins.
    """
    if config.pins and not url.secure:
        raise ConfigError("pins", f"no key is shown over {url.scheme}://: use wss://")
    if url.secure or url.loopback or config.allow_plaintext_credentials:
        return
    advice = f"to {url.host}: use wss://, or set allow_plaintext_credentials"
    if url.userinfo:
        raise ConfigError("target", f"its login would travel in plain text {advice}")
    if (name := secret_parameter(url.query)) is not None:
        raise ConfigError("target", f"its parameter {printable(name, 40)!r} would travel in plain text {advice}")
    if (name := next(filter(is_secret_name, headers), None)) is not None:
        raise ConfigError("headers", f"{name} would travel in plain text {advice}")
    if any(isinstance(name, Secret) for name in subprotocols):
        raise ConfigError("subprotocols", f"the token among them would travel in plain text {advice}")
    if config.credentials is not None:
        raise ConfigError("credentials", f"they would travel in plain text {advice}")


def check_other_origin(given: ConnectionInfo, wanted: ConnectionInfo, config: Config, home: Url) -> None:
    """Refuse to take along to another origin what was meant for that of `home`, the session's own address.

    What a hook puts in place of it is its own affair; so is all that goes to one of `redirect_origins`, and what stands
    in the address itself, `given.url`, where that is one of `failover`.

    Raises:
        ConfigError: `wanted`, which a hook made of `given`, leads to another origin, and headers, login, secrets
            of the query or credentials would go along unchanged.
    """
    url = wanted.url
    if url.origin == home.origin or is_one_of(url.origin, config.redirect_origins):
        return
    if wanted.headers and wanted.headers == given.headers:
        kept = "headers"
    elif url.origin != given.url.origin and url.userinfo and url.userinfo == given.url.userinfo:
        kept = "login"
    elif url.origin != given.url.origin and url.query == given.url.query and secret_parameter(url.query) is not None:
        kept = "query"
    elif any(isinstance(name, Secret) and name in given.subprotocols for name in wanted.subprotocols):
        kept = "token among the subprotocols"
    elif config.credentials is not None:
        kept = "credentials"
    else:
        return
    raise ConfigError(
        "connection_info", f"the {kept} meant for {home.origin} would go to {url.origin}: see redirect_origins"
    )


def check_failover(home: Url, config: Config, *, names_dial: bool) -> None:
    """Refuse addresses at which a session would be refused, when it comes to them, as nothing may go along to them.

    Args:
        home: the session's own address.
        config: its options.
        names_dial: whether a hook is asked before every dial, which may put other headers and tokens in place.

    Raises:
        ConfigError: one is of another origin, for which `redirect_origins` do not vouch, and there are credentials, or
            headers or a token that no hook can replace; or one is there twice.
    """
    if home in config.failover:
        raise ConfigError("failover", f"{home} is the target itself: name the others")
    for url in config.failover:
        if url.origin == home.origin or is_one_of(url.origin, config.redirect_origins):
            continue
        if config.credentials is not None:
            kept = "credentials"
        elif config.headers and not names_dial:
            kept = "headers"
        elif any(isinstance(name, Secret) for name in config.subprotocols) and not names_dial:
            kept = "token among the subprotocols"
        else:
            continue
        raise ConfigError(
            "failover", f"the {kept} meant for {home.origin} would go to {url.origin}: see redirect_origins"
        )


# The type of a converter's parameter is what the option takes, as in `ConfigOptions`. More may be passed where no
# checker looks: that is for the converter, or the validator behind it, to refuse.


def _masked_headers(value: Mapping[str, str] | HeadersProvider) -> Mapping[str, str] | HeadersProvider:
    return HeaderMap(value) if isinstance(value, Mapping) else value


def _masked_credentials(value: CredentialsSource) -> CredentialsSource:
    return value if value is None or callable(value) else as_secret(value)


def _headers(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, Mapping):
        check_headers(value, attribute.name)
    elif not callable(value):
        # Never the value itself: pairs would show their secrets.
        _fail(attribute, f"must be a mapping, or an async function that returns one, not a {type(value).__name__}")


def _subprotocols(config: Any, attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    for name in value:
        text = name.reveal() if isinstance(name, Secret) else name
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            hint = ": write a token in base64url, without =" if isinstance(name, Secret) else ""
            _fail(attribute, f"{name!r} is not the name of a subprotocol{hint}")
    if len(set(value)) != len(value):
        _fail(attribute, "a name occurs twice (RFC 6455 section 4.1)")


def _subprotocol_tuple(value: Iterable[str | Secret[str]]) -> tuple[str | Secret[str], ...]:
    if isinstance(value, str):
        raise ConfigError("subprotocols", f"must be a sequence of names: write [{hide_tokens([value])[0]!r}]")
    try:
        return hide_tokens(value)
    except TypeError:
        raise ConfigError("subprotocols", f"must be a sequence of names, not {value!r}") from None


def _proxy_url(value: str | Secret[str] | None) -> Secret[str] | None:
    return None if value is None else as_secret_text(value)


def _proxy(config: Any, attribute: attrs.Attribute[Any], value: Secret[Any] | None) -> None:
    if value is not None and value.reveal() != ENVIRONMENT:
        parse_proxy(value.reveal())


def _ssl_context(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        _fail(attribute, f"must be an ssl.SSLContext, not {value!r}")
    if value is not None and value.protocol is ssl.PROTOCOL_TLS_SERVER:
        _fail(attribute, "is one for servers: make it by ssl.create_default_context(), or with PROTOCOL_TLS_CLIENT")


def _pin_set(value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise ConfigError("pins", f"must be a collection of pins: write [{value!r}]")
    try:
        return frozenset(value)
    except TypeError:
        raise ConfigError("pins", f"must be a collection of pins, not {value!r}") from None


def _pins(config: Any, attribute: attrs.Attribute[Any], value: frozenset[Any]) -> None:
    for pin in value:
        if not isinstance(pin, str) or not _PIN.fullmatch(pin):
            _fail(attribute, f"{pin!r} is not the base64 of a SHA-256, which has 44 characters")


def _when_down(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("wait", "fail") and not isinstance(value, Buffer):
        _fail(attribute, f"must be 'wait', 'fail' or a Buffer, not {value!r}")


def _events(config: Any, attribute: attrs.Attribute[Any], value: frozenset[str]) -> None:
    if unknown := value - {"connection", "message", "error"}:
        _fail(attribute, f"unknown: {', '.join(sorted(map(repr, unknown)))}; there are connection, message and error")


_EVENT_LEVELS = {
    "detailed": frozenset({"connection", "message", "error"}),
    "standard": frozenset({"connection", "error"}),
    "minimal": frozenset({"error"}),
}


def _unix_time() -> float:
    return time.time()


def _observers(value: Observer | Sequence[Observer]) -> tuple[Observer, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _names(value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str) and value in _EVENT_LEVELS:
        return _EVENT_LEVELS[value]
    try:
        return frozenset([value] if isinstance(value, str) else value)
    except TypeError:
        raise ConfigError("events", f"must be a set of names, not {value!r}") from None


def _deflate(value: Deflate | Literal["deflate"] | None) -> Deflate | None:
    return Deflate() if value == "deflate" else value


def _origins(value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise ConfigError("redirect_origins", f"must be a collection of origins: write [{value!r}]")
    try:
        return frozenset(map(_origin, value))
    except TypeError:
        raise ConfigError("redirect_origins", "must be a collection of URLs") from None


def _origin(text: Any) -> str:
    if isinstance(text, str) and "://*." in text:
        return Url.parse(text.replace("://*.", "://any.", 1), "redirect_origins").origin.replace("://any.", "://*.", 1)
    return Url.parse(text, "redirect_origins").origin


def _urls(value: Iterable[str | Url]) -> tuple[Url, ...]:
    if isinstance(value, str | Url):
        raise ConfigError("failover", f"must be a collection of URLs: write [{str(Url.parse(str(value)))!r}]")
    try:
        given = [each if isinstance(each, Url) else Url.parse(each, "failover") for each in value]
    except (TypeError, AttributeError):
        raise ConfigError("failover", "must be a collection of URLs") from None
    return tuple(given)


def _failover(config: Any, attribute: attrs.Attribute[Any], value: tuple[Url, ...]) -> None:
    if len(set(value)) < len(value):
        _fail(attribute, "has one address twice")


def _heartbeat(value: Heartbeat | Literal["ping", "off"] | None) -> Heartbeat:
    if value is None or value == "off":
        return NoHeartbeat()
    return PingHeartbeat() if value == "ping" else value


def _init_discreetly(cls: type[H]) -> type[H]:
    # What attrs generates has all options for its locals.
    cls.__init__ = discreet_if_asked(cls.__init__)  # type: ignore[method-assign]
    return cls


@_init_discreetly
@attrs.frozen(kw_only=True)
class Config(Generic[M_co]):
    """Every option of a session. Durations are seconds; `math.inf` is off."""

    # ----------------------------------------------------------------- the dial
    headers: Mapping[str, str] | HeadersProvider = attrs.field(
        factory=dict, converter=_masked_headers, validator=_headers, repr=False
    )
    """Sent with every upgrade; or an async function that returns them, asked before every dial."""
    subprotocols: tuple[str | Secret[str], ...] = attrs.field(
        default=(), converter=_subprotocol_tuple, validator=_subprotocols
    )
    """Offered, most wanted first. A token among them is a `Secret`; one that looks like a token is made one."""
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, validator=_ssl_context)
    """None: the default, which verifies, and offers ALPN http/1.1 only."""
    pins: frozenset[str] = attrs.field(default=frozenset(), converter=_pin_set, validator=_pins)
    """The keys of which the server must have one: base64 of the SHA-256 of its SubjectPublicKeyInfo; none: any will do.

    That is besides what `ssl_context` verifies. Pin a second key that is kept in reserve, or a lost key locks you out.
    """
    proxy: Secret[str] | None = attrs.field(default=None, converter=_proxy_url, validator=_proxy, repr=False)
    """Its URL, or "env": that which the environment names for the URL that is dialled, looked up for every dial.

    `http://user:password@host:port` or `https://` (CONNECT), `socks4://` or `socks5://`; SOCKS needs the extra `proxy`.
    """
    proxy_ssl_context: ssl.SSLContext | None = attrs.field(default=None, validator=_ssl_context)
    """For an `https://` proxy: what `ssl_context` is for the server, which it does not touch."""
    stream_factory: StreamFactory | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_callable)
    )
    """An async function `(host, port)` that returns the byte stream to speak over, any `trio.abc.Stream`."""
    transport: Transport = attrs.field(factory=WireTransport, validator=_has("open"))
    """What opens links."""
    compression: Deflate | None = attrs.field(
        default=None, converter=_deflate, validator=attrs.validators.optional(_instance_of(Deflate))
    )
    """The terms of permessage-deflate that are offered, `Deflate(...)`, or "deflate" for its defaults; None: off."""
    max_redirects: int = attrs.field(default=5, validator=_count(least=0))
    """Redirects that one attempt follows; 0: a redirect is a rejection. None is remembered for the next attempt."""
    redirect_origins: frozenset[str] = attrs.field(default=frozenset(), converter=_origins)
    """Other origins ("wss://b.example", "wss://*.example.com") that a redirect may lead to, and all that is secret
    with it; else none is. What `connection_info` leaves as it is goes along to these only, and so does the session
    where the service names another address.
    """
    failover: tuple[Url, ...] = attrs.field(default=(), converter=_urls, validator=_failover)
    """Other addresses of the same service: where a dial fails the next one is dialled at once, each once in a round.

    Headers and credentials go to another origin only where `redirect_origins` vouch for it.
    """
    auth_timeout: float = attrs.field(default=10.0, validator=_seconds(finite=True))
    """For the service's answer to an authentication, all its steps together."""
    subscription_timeout: float = attrs.field(default=30.0, validator=_seconds(finite=True))
    """For the service's confirmation of a subscription; one that is not confirmed is asked for once more."""
    max_message_size: int = attrs.field(default=16 * 1024 * 1024, validator=_count(least=1))
    """Bytes of one received message. A larger one ends the link with code 1009."""
    message_timeout: float = attrs.field(default=math.inf, validator=_seconds())
    """That one received message may keep reading waiting after its first byte; beyond it the link ends with 1008."""
    connect_timeout: float = attrs.field(default=10.0, validator=_seconds(finite=True))
    """For one whole attempt: what is asked before it, the wait for other dials, and the dial until the upgrade."""
    close_timeout: float = attrs.field(default=2.0, validator=_seconds(zero=True, finite=True))
    """For saying goodbye."""

    # ----------------------------------------------------------------- liveness
    ping_interval: float = attrs.field(default=20.0, validator=_seconds(least=0.01, most=86_400.0))
    """Between probes: from 10 ms to a day, or inf for none. A service may tell it: it must not make us hot, or deaf."""
    pong_timeout: float = attrs.field(default=20.0, validator=_seconds())
    """Patience with a peer that owes a sign of life, or that takes no byte of a write."""
    max_missed_pongs: int = attrs.field(default=1, validator=_count(least=1))
    """Probes in a row without a sign of life within `pong_timeout` at which the link is lost; the first are counted."""
    idle_timeout: float = attrs.field(default=math.inf, validator=_seconds())
    """Patience with a peer that sends nothing at all, not even a pong."""
    heartbeat: Heartbeat = attrs.field(
        factory=PingHeartbeat,
        converter=_heartbeat,
        validator=[_has("probe", "read"), _is_spelt_like(Heartbeat)],
    )
    """How to probe. "ping" and "off" are short for PingHeartbeat() and NoHeartbeat()."""

    # ----------------------------------------------------------------- reconnection
    backoff: Backoff = attrs.field(default=ExponentialBackoff(first_delay=2.0), validator=_has("delay"))
    """How long to wait before the next attempt. After the loss of a link that had lasted, from 0 to 2 s by default."""
    max_attempts: float = attrs.field(default=math.inf, validator=_count(least=0, endless=True))
    """Failures in a row after which the session gives up; 0: never dial again."""
    min_uptime: float = attrs.field(default=4.0, validator=_seconds(zero=True))
    """How long a link must have been ready to have lasted: its loss is then the first failure of a new row."""
    breaker: CircuitBreaker | None = attrs.field(
        default=None, validator=attrs.validators.optional(_instance_of(CircuitBreaker))
    )
    """Stops the dials to an origin at which too much fails, of all sessions that are given the same one. None: off."""
    retry_first_connect: bool = attrs.field(default=False, validator=check_bool)
    """Whether the first connect is retried too; by default it fails at once."""

    # ----------------------------------------------------------------- traffic
    when_down: WhenDown = attrs.field(default="wait", validator=_when_down)
    """What a send does while there is no ready link: "wait", "fail" (NotSent), or wait within a `Buffer`'s bounds."""
    inbox_size: int = attrs.field(default=1024, validator=_count(least=1))
    """Messages that wait to be received; where `overflow` is "block", only the mark by which `HighWater` is told."""
    inbox_bytes: int = attrs.field(default=64 * 1024 * 1024, validator=_count(least=1))
    """Bytes that wait to be received, in memory, in the inbox and in all feeds that block: there reading stops.

    An inbox that drops, and each feed that drops or fails, holds at most as many again.
    """
    overflow: Overflow = attrs.field(default="block", validator=one_of(*OVERFLOWS))
    """What a full inbox does: "block" stops reading, so that the peer feels it; "drop_oldest"; "drop_newest"."""
    codec: Codec[M_co] | StreamCodec[M_co] = attrs.field(factory=_NO_CODEC, validator=check_codec)
    """Between messages and payloads; one with a method `open_link` makes what does this for each link."""
    correlation: Correlation = attrs.field(
        factory=Correlation,
        validator=[_has("request_id", "tag", "read", "failure"), _is_spelt_like(Correlation)],
    )
    """How answers are matched to questions."""
    credentials: CredentialsSource = attrs.field(default=None, converter=_masked_credentials, repr=False)
    """Handed to the auth handler on every link: a value, an async function that returns one, or `FromEnvironment`.

    A value is kept as a `Secret`. See `trio_nova.secrets.ask_credentials`.
    """
    allow_plaintext_credentials: bool = attrs.field(default=False, validator=check_bool)
    """Whether credentials may travel over ws:// to another machine, where everybody on the way can read them."""

    # ----------------------------------------------------------------- strategies
    on_handler_error: Literal["raise", "log", "close"] = attrs.field(
        default="raise", validator=one_of("raise", "log", "close")
    )
    """After an exception in a handler: "raise" ends the session with it, "log" goes on, "close" closes with 1011."""
    connection_handler: Made[ConnectionHandler] = attrs.field(
        default=ConnectionHandler, validator=_strategy(ConnectionHandler)
    )
    message_handler: Made[MessageHandler] = attrs.field(default=MessageHandler, validator=_strategy(MessageHandler))
    subscription_handler: Made[SubscriptionHandler] = attrs.field(
        default=SubscriptionHandler, validator=_strategy(SubscriptionHandler)
    )
    auth_handler: Made[AuthHandler] = attrs.field(default=AuthHandler, validator=_strategy(AuthHandler))
    error_handler: Made[ErrorHandler] = attrs.field(default=ErrorHandler, validator=_strategy(ErrorHandler))
    rate_limit_handler: Made[RateLimitHandler] = attrs.field(
        default=RateLimitHandler, validator=_strategy(RateLimitHandler)
    )
    logging_handler: Made[LoggingHandler] = attrs.field(default=LoggingHandler, validator=_strategy(LoggingHandler))
    metrics_collector: Made[MetricsCollector] = attrs.field(
        default=MetricsCollector, validator=_strategy(MetricsCollector)
    )
    events: frozenset[str] = attrs.field(
        default=frozenset({"connection", "message", "error"}), converter=_names, validator=_events
    )
    """The families of events that logging and metrics are told: "connection", "message", "error".

    "detailed" is short for all three, "standard" for connection and error, "minimal" for error.
    """
    observers: tuple[Observer, ...] = attrs.field(
        default=(), converter=_observers, validator=attrs.validators.deep_iterable(check_callable)
    )
    """Functions that are told what happens, whatever `events` says; see `Observer` and `hears`."""
    scrub_tracebacks: bool = attrs.field(default=False, validator=check_bool)
    """Whether errors leave, and are told, without the locals of the library's frames: for renderers that show locals.

    For errors of the call that opens a session it must be on in that call: as an option, or in its `config`.
    """

    # ----------------------------------------------------------------- the world
    governor: ConnectGovernor | None = attrs.field(default=None, validator=attrs.validators.optional(_has("turn")))
    """Paces the dials of the sessions that share it. None: the one that all sessions of this `trio.run` share."""
    resolver: Resolver = attrs.field(factory=SystemResolver, validator=_has("resolve"))
    """Looks names up."""
    spread: Callable[[], float] = attrs.field(default=random.random, validator=check_callable)
    """Uniform draws from [0, 1), for jitter. No secret depends on them."""
    entropy: Callable[[int], bytes] = attrs.field(default=os.urandom, validator=check_callable)
    """Unpredictable bytes, for the payloads of pings and the ids of connections."""
    wall_clock: Callable[[], float] = attrs.field(default=_unix_time, validator=check_callable)
    """Unix time, in seconds: to notice that the machine slept, and for what is told to observers."""


RECONFIGURABLE = ReconfigurableOptions.__optional_keys__
"""The fields that `Connection.reconfigure` can change."""

_FIELDS = attrs.fields_dict(Config)

_IN_OTHER_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("ssl", "ssl_options", "sslopt", "tls", "verify", "cert"), "ssl_context"),
    "timeout": "connect_timeout, or a cancel scope: with trio.fail_after(...)",
    **dict.fromkeys(("open_timeout", "handshake_timeout", "opening_handshake_timeout"), "connect_timeout"),
    **dict.fromkeys(("extra_headers", "additional_headers", "header", "http_headers"), "headers"),
    **dict.fromkeys(("user_agent", "user_agent_header", "origin", "cookie", "cookies"), "headers"),
    **dict.fromkeys(("ping_timeout", "heartbeat_timeout"), "pong_timeout"),
    **dict.fromkeys(("max_missed", "max_missed_heartbeats"), "max_missed_pongs"),
    **dict.fromkeys(("heartbeat_interval", "keepalive", "keepalive_interval"), "ping_interval"),
    **dict.fromkeys(("max_size", "max_msg_size", "max_payload"), "max_message_size"),
    **dict.fromkeys(("max_queue", "queue_size"), "inbox_size"),
    **dict.fromkeys(("protocols", "protocol"), "subprotocols"),
    **dict.fromkeys(("proxies", "proxy_url", "trust_env"), 'proxy, a URL or "env"'),
    **dict.fromkeys(("auth", "token", "api_key"), "credentials"),
    **dict.fromkeys(("reconnect", "retries", "max_retries", "max_reconnects"), "max_attempts"),
    **dict.fromkeys(("circuit_breaker", "circuit"), "breaker"),
    **dict.fromkeys(("urls", "fallback", "fallbacks", "hosts"), "failover"),
    **dict.fromkeys(("deflate", "compress", "extensions"), "compression"),
    **dict.fromkeys(("on_message", "on_data"), "message_handler, whose hook is handle_message"),
    **dict.fromkeys(("on_open", "on_connect"), "connection_handler, whose hook is handle_connect"),
    **dict.fromkeys(("on_close", "on_disconnect"), "connection_handler, whose hook is handle_disconnect"),
    "on_error": "error_handler, whose hook is handle_error",
}
"""What other libraries call it, and what it is here."""


@functools.cache
def default_config() -> Config[Any]:
    """Return the library's defaults: one value for all sessions, as nothing in it changes."""
    return Config()


def configure(base: Config, changes: ConfigOptions | Mapping[str, Any]) -> Config:
    """Return `base` with `changes`, by field name.

    Raises:
        ConfigError: naming a field that does not exist, or whose value is wrong.
    """
    if not isinstance(base, Config):
        raise ConfigError("config", f"must be a Config, not {type(base).__name__}")
    for name in changes:
        if name not in _FIELDS:
            near = [_IN_OTHER_WORDS[name]] if name in _IN_OTHER_WORDS else difflib.get_close_matches(name, _FIELDS, n=1)
            raise ConfigError(name, "there is no such option" + (f"; did you mean {near[0]}?" if near else ""))
    changed: dict[str, Any] = {name: value for name, value in changes.items() if value is not getattr(base, name)}
    config = attrs.evolve(base, **changed) if changed else base
    refuse_what_lacks(getattr(config.transport, "lacks", {}), config)
    return config


def target_url(target: object) -> Url:
    """Return the URL that a target stands for."""
    if isinstance(target, str):
        return Url.parse(target)
    if isinstance(target, Url):
        return target
    raise ConfigError("target", f"must be a ws:// or wss:// URL, or an Adapter, not {target!r}")
