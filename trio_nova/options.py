"""The options of a session as a call takes them, for type checkers and editors.

::

    def open_chat(**options: Unpack[ConfigOptions]) -> ConnectionBlock[str | bytes]:
        return open_connection("wss://chat.example.com", **options)

What each option means stands at the field of that name in `Config`, which also checks the values.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, Literal, TypeAlias, TypedDict, TypeVar

from trio_nova.codecs import Codec, StreamCodec
from trio_nova.core.backoff import Backoff
from trio_nova.core.bounded import Overflow
from trio_nova.core.breaker import CircuitBreaker
from trio_nova.core.outbox import Buffer
from trio_nova.events import Observer
from trio_nova.handlers import (
    AuthHandler,
    ConnectionHandler,
    Correlation,
    ErrorHandler,
    Heartbeat,
    MessageHandler,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.links import ConnectGovernor, Deflate, Resolver, StreamFactory, Transport
from trio_nova.messages import M
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.secrets import CredentialsSource, Secret
from trio_nova.urls import Url

__all__ = [
    "ConfigOptions",
    "HeadersProvider",
    "Made",
    "ReconfigurableOptions",
    "WhenDown",
]

H = TypeVar("H")

HeadersProvider: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]
WhenDown: TypeAlias = Literal["wait", "fail"] | Buffer
Made: TypeAlias = H | Callable[[], H]
"""A strategy, or what makes one: called once per session, so that sessions do not share its state."""


class ReconfigurableOptions(TypedDict, total=False):
    """The options that `Connection.reconfigure` can change; those about the dial count from the next one."""

    headers: Mapping[str, str] | HeadersProvider
    subprotocols: Iterable[str | Secret[str]]
    ssl_context: ssl.SSLContext | None
    pins: Iterable[str]
    proxy: str | Secret[str] | None
    proxy_ssl_context: ssl.SSLContext | None
    connect_timeout: float
    auth_timeout: float
    subscription_timeout: float
    close_timeout: float
    ping_interval: float
    pong_timeout: float
    max_missed_pongs: int
    idle_timeout: float
    backoff: Backoff
    max_attempts: float
    min_uptime: float
    when_down: WhenDown
    credentials: CredentialsSource
    on_handler_error: Literal["raise", "log", "close"]
    events: Iterable[str]


class ConfigOptions(ReconfigurableOptions, Generic[M], total=False):
    """Every option of `Config`, by name, with the type that a call takes: `**options: Unpack[ConfigOptions]`.

    The codec decides of what type the messages are.
    """

    stream_factory: StreamFactory | None
    transport: Transport
    compression: Deflate | Literal["deflate"] | None
    max_redirects: int
    redirect_origins: Iterable[str]
    failover: Iterable[str | Url]
    max_message_size: int
    message_timeout: float
    heartbeat: Heartbeat | Literal["ping", "off"] | None
    breaker: CircuitBreaker | None
    retry_first_connect: bool
    inbox_size: int
    inbox_bytes: int
    overflow: Overflow
    codec: Codec[M] | StreamCodec[M]
    correlation: Correlation
    allow_plaintext_credentials: bool
    connection_handler: Made[ConnectionHandler]
    message_handler: Made[MessageHandler]
    subscription_handler: Made[SubscriptionHandler]
    auth_handler: Made[AuthHandler]
    error_handler: Made[ErrorHandler]
    rate_limit_handler: Made[RateLimitHandler]
    logging_handler: Made[LoggingHandler]
    metrics_collector: Made[MetricsCollector]
    observers: Observer | Sequence[Observer]
    scrub_tracebacks: bool
    governor: ConnectGovernor | None
    resolver: Resolver
    spread: Callable[[], float]
    entropy: Callable[[int], bytes]
    wall_clock: Callable[[], float]
