"""The strategies of one session, and which of their hooks are there to be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from trio_nova.codecs import RawCodec
from trio_nova.config import Config, made
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
from trio_nova.observe import LoggingHandler, MetricsCollector

__all__ = ["Handlers", "Hooks"]


@attrs.frozen(kw_only=True)
class Handlers:
    """The eight strategies of one session."""

    connection: ConnectionHandler
    message: MessageHandler
    subscription: SubscriptionHandler
    auth: AuthHandler
    error: ErrorHandler
    rate_limit: RateLimitHandler
    logging: LoggingHandler
    metrics: MetricsCollector

    @classmethod
    def of(cls, config: Config) -> Handlers:
        return cls(
            connection=made(config.connection_handler, ConnectionHandler, "connection_handler"),
            message=made(config.message_handler, MessageHandler, "message_handler"),
            subscription=made(config.subscription_handler, SubscriptionHandler, "subscription_handler"),
            auth=made(config.auth_handler, AuthHandler, "auth_handler"),
            error=made(config.error_handler, ErrorHandler, "error_handler"),
            rate_limit=made(config.rate_limit_handler, RateLimitHandler, "rate_limit_handler"),
            logging=made(config.logging_handler, LoggingHandler, "logging_handler"),
            metrics=made(config.metrics_collector, MetricsCollector, "metrics_collector"),
        )


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
    """`encode_message`"""
    logs_in: bool
    """`authenticate` or `encode_auth_request`"""
    reads_login: bool
    """`authenticate`, `encode_auth_request` or `handle_auth_response`"""
    reads_confirmations: bool
    """`handle_subscription_response`"""
    resumes_after: bool
    """`resume`"""
    data_of: Callable[[Any], Any] | None
    """None: the consumer gets the message as it is."""
    checks_rate: bool
    """`check_rate_limit`"""
    ticks: bool
    """`handle_tick`"""
    reads_heartbeats: bool
    """Any hook of the heartbeat that looks at messages."""
    splits: bool
    """`Correlation.parts`"""
    reads_answers: bool
    """`Correlation.reply_id`"""
    reads_text_only: bool
    """Whether the hooks are shown messages as they came, text: the default ones can read nothing in them."""

    @classmethod
    def of(cls, handlers: Handlers, config: Config) -> Hooks:
        subscription = handlers.subscription
        validates = overrides(handlers.message, MessageHandler, "validate_message")
        return cls(
            names_dial=overrides(handlers.connection, ConnectionHandler, "connection_info"),
            asks_setup=overrides(handlers.connection, ConnectionHandler, "setup_requests"),
            pings=overrides(handlers.connection, ConnectionHandler, "ping"),
            hears_frames=overrides(handlers.connection, ConnectionHandler, "handle_frame"),
            hears_messages=overrides(handlers.message, MessageHandler, "handle_message"),
            validates=validates,
            encodes=overrides(handlers.message, MessageHandler, "encode_message"),
            logs_in=overrides(handlers.auth, AuthHandler, "authenticate", "encode_auth_request"),
            reads_login=overrides(
                handlers.auth, AuthHandler, "authenticate", "encode_auth_request", "handle_auth_response"
            ),
            reads_confirmations=overrides(subscription, SubscriptionHandler, "handle_subscription_response"),
            resumes_after=overrides(subscription, SubscriptionHandler, "resume"),
            data_of=subscription.data_of if overrides(subscription, SubscriptionHandler, "data_of") else None,
            checks_rate=overrides(handlers.rate_limit, RateLimitHandler, "check_rate_limit"),
            ticks=overrides(handlers.rate_limit, RateLimitHandler, "handle_tick"),
            reads_heartbeats=overrides(config.heartbeat, Heartbeat, "answer", "is_answer", "is_beat"),
            splits=overrides(config.correlation, Correlation, "parts"),
            reads_answers=overrides(config.correlation, Correlation, "reply_id"),
            reads_text_only=type(config.codec) is RawCodec and not validates,
        )

    @property
    def dispatches(self) -> bool:
        """Whether a hook hears messages or frames, for which a task calls it."""
        return self.hears_messages or self.hears_frames
