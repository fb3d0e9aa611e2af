from __future__ import annotations

import base64
import math
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

from trio_nova import FeedOptions, open_connection, profiles
from trio_nova.codecs import JsonCodec, RawCodec
from trio_nova.config import RECONFIGURABLE, Config, check_headers, configure, made, target_url
from trio_nova.core.backoff import ExponentialBackoff, LinearBackoff, NoBackoff
from trio_nova.core.breaker import CircuitBreaker
from trio_nova.core.limits import TokenBucket
from trio_nova.core.outbox import Buffer
from trio_nova.errors import ConfigError
from trio_nova.handlers import (
    AlwaysReconnect,
    AuthHandler,
    ConnectionHandler,
    Correlation,
    MessageHandler,
    NoHeartbeat,
    PingHeartbeat,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.links import ConnectGovernor, Deflate, TrioWebsocketTransport
from trio_nova.observe import LoggingHandler
from trio_nova.secrets import Secret
from trio_nova.urls import Url

FIELDS = attrs.fields_dict(Config)

not_seconds: list[Any] = ["5", None, True, math.nan, -1, -0.001, -math.inf, 10**400, 1j]
not_finite_seconds: list[Any] = [*not_seconds, math.inf]
not_callable: list[Any] = [5, "f"]
not_a_count: list[Any] = [0, -1, 1.5, "1", None, True, math.inf]


class WaitsWhereItMayNot(MessageHandler):
    async def handle_message(self, message: Any) -> None:  # type: ignore[override]
        """Be of the wrong colour."""


WRONG: dict[str, list[Any]] = {
    "headers": [5, None, "X: y", [("X", "y")], {"X": 5}, {"X y": "z"}, {"X": "a\r\nb"}],
    "subprotocols": ["mqtt", 5, None, [5], ["a b"], [""], ["a", "a"]],
    "ssl_context": [True, False, "cert.pem", 5, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)],
    "proxy_ssl_context": [True, False, "cert.pem", 5, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)],
    "pins": [
        5,
        None,
        base64.b64encode(bytes(32)).decode(),
        [base64.b64encode(bytes(32))],
        [base64.b64encode(bytes(31)).decode()],
        [base64.b64encode(bytes(33)).decode()],
        ["B" * 43 + "="],  # 2 bits too many
        ["-" * 43 + "="],
        ["sha256/" + base64.b64encode(bytes(32)).decode()],
        ["A" * 43 + "=\n"],
        [["A"]],
    ],
    "observers": [5, None, [5], "watch"],
    "scrub_tracebacks": [1, 0, None, "yes"],
    "proxy": ["", "proxy:3128", "https//p", "ftp://p", "http://", 5, b"http://p", "ENV", "http://p:x", "http://a b"],
    "stream_factory": not_callable,
    "transport": [None, "trio", TrioWebsocketTransport],
    "compression": ["gzip", 5, True, Deflate],
    "max_redirects": [-1, 1.5, "3", None, True, math.inf],
    "failover": ["wss://b.example", 5, ["http://b.example"], [5], [None], ["wss://b.example", "wss://b.example/"]],
    "redirect_origins": ["wss://b.example", 5, ["http://b.example"], [5]],
    "max_message_size": not_a_count,
    "message_timeout": [*not_seconds, 0],
    "connect_timeout": [*not_finite_seconds, 0],
    "close_timeout": not_finite_seconds,
    "auth_timeout": [*not_finite_seconds, 0],
    "subscription_timeout": [*not_finite_seconds, 0],
    "ping_interval": [*not_seconds, 0],
    "pong_timeout": [*not_seconds, 0.0],
    "max_missed_pongs": not_a_count,
    "idle_timeout": [*not_seconds, 0],
    "heartbeat": ["pong", 5, PingHeartbeat],
    "backoff": [None, 1.0, ExponentialBackoff, NoBackoff],
    "max_attempts": [-1, 1.5, "3", None, True, math.nan, -math.inf],
    "min_uptime": not_seconds,
    "breaker": [5, "open", CircuitBreaker],
    "allow_plaintext_credentials": [1, None],
    "retry_first_connect": [1, 0, None, "yes"],
    "when_down": ["queue", None, 5, Buffer],
    "inbox_size": not_a_count,
    "inbox_bytes": not_a_count,
    "overflow": ["drop", None, "BLOCK", []],
    "codec": [None, "json", JsonCodec, RawCodec],
    "correlation": [None, "id", Correlation],
    "on_handler_error": ["ignore", None, ""],
    "connection_handler": [5, "x", MessageHandler, int],
    "message_handler": [5, None, ConnectionHandler, WaitsWhereItMayNot, WaitsWhereItMayNot()],
    "subscription_handler": [5, None, MessageHandler],
    "auth_handler": [5, None, MessageHandler],
    "error_handler": [5, None, MessageHandler],
    "rate_limit_handler": [5, None, MessageHandler],
    "logging_handler": [5, None, MessageHandler],
    "metrics_collector": [5, None, MessageHandler],
    "events": [5, None, {"messages"}, "messages", [["error"]], {5, "error"}],
    "governor": [5, "shared", ConnectGovernor],
    "resolver": [None, 5],
    "spread": [*not_callable, None],
    "entropy": [*not_callable, None],
    "wall_clock": [*not_callable, None],
}
"""Values that each field must refuse."""

ANYTHING_GOES = {"credentials"}


# --------------------------------------------------------------------------- validation


def test_every_field_has_wrong_values_here() -> None:
    assert set(WRONG) | ANYTHING_GOES == set(FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=lambda part: part if isinstance(part, str) and part in FIELDS else type(part).__name__,
)
def test_a_wrong_value_is_refused_at_once_naming_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(Config(), {field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Config(**{field: value})


def test_the_defaults_work() -> None:
    config = Config()
    assert config == configure(config, {})
    assert config.ping_interval + config.pong_timeout < math.inf
    assert isinstance(config.heartbeat, PingHeartbeat)
    assert 0.0 <= config.spread() < 1.0
    assert len(config.entropy(8)) == 8
    for field in FIELDS.values():
        assert attrs.evolve(config, **{field.name: getattr(config, field.name)}) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ping_interval", math.inf),
        ("idle_timeout", 1),
        ("close_timeout", 0),
        ("min_uptime", 0.0),
        ("max_attempts", 0),
        ("max_attempts", math.inf),
        ("max_attempts", 10**400),
        ("headers", {}),
        ("proxy", Secret("socks5://user:pass@host:1080")),
        ("proxy", Secret("https://user:pass@[fe80::1%25eth0]:3128/")),
        ("proxy", Secret("env")),
        ("proxy", None),
        ("pins", frozenset({base64.b64encode(bytes(range(32))).decode(), base64.b64encode(b"\xff" * 32).decode()})),
        ("ssl_context", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        ("proxy_ssl_context", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        ("when_down", Buffer(max_items=1)),
        ("message_handler", MessageHandler()),
        ("message_handler", lambda: MessageHandler()),
        ("credentials", Secret("token")),
    ],
)
def test_a_right_value_is_kept(field: str, value: Any) -> None:
    assert getattr(configure(Config(), {field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("heartbeat", "off", NoHeartbeat()),
        ("heartbeat", None, NoHeartbeat()),
        ("heartbeat", "ping", PingHeartbeat()),
        ("subprotocols", ["mqtt", "wamp"], ("mqtt", "wamp")),
        ("events", ["error", "error"], frozenset({"error"})),
        ("events", "error", frozenset({"error"})),
        ("events", (), frozenset()),
    ],
)
def test_short_forms_are_spelled_out(field: str, value: Any, kept: Any) -> None:
    assert getattr(Config(**{field: value}), field) == kept


def test_a_class_where_an_instance_belongs_is_told_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match=r"codec: must be an instance: write JsonCodec\("):
        Config(codec=JsonCodec)  # type: ignore[arg-type]


@pytest.mark.fault("F82", where="memory")
def test_a_hook_that_decides_must_not_be_async() -> None:
    with pytest.raises(ConfigError, match=r"handle_message\(\) decides and cannot wait"):
        Config(message_handler=WaitsWhereItMayNot)


# --------------------------------------------------------------------------- unknown names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ping_intervall", "ping_interval"),
        ("header", "headers"),
        ("pong_time_out", "pong_timeout"),
        ("maxattempts", "max_attempts"),
        ("Codec", "codec"),
    ],
)
def test_an_unknown_option_suggests_the_near_one(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near}\\?") as caught:
        configure(Config(), {name: 1})
    assert caught.value.field == name


def test_an_option_unlike_any_other_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"^qqqq: there is no such option\n"):
        configure(Config(), {"qqqq": 1})


# --------------------------------------------------------------------------- values and precedence


def test_an_override_wins_over_the_config_and_the_config_over_the_default() -> None:
    given = Config(ping_interval=7.0, pong_timeout=8.0)
    merged = configure(given, {"ping_interval": 9.0})
    assert (merged.ping_interval, merged.pong_timeout, merged.close_timeout) == (9.0, 8.0, Config().close_timeout)
    assert given.ping_interval == 7.0


def test_an_override_wins_over_a_profile_even_if_it_is_the_default() -> None:
    merged = configure(profiles.FINANCIAL, {"connect_timeout": Config().connect_timeout})
    assert merged.connect_timeout == Config().connect_timeout != profiles.FINANCIAL.connect_timeout
    assert merged.ping_interval == profiles.FINANCIAL.ping_interval


def test_a_config_is_frozen_and_evolves() -> None:
    config = Config()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.ping_interval = 5.0  # type: ignore[misc]
    assert attrs.evolve(config, ping_interval=5.0).ping_interval == 5.0
    with pytest.raises(ConfigError, match=r"^ping_interval: "):
        attrs.evolve(config, ping_interval=-5.0)


def test_two_configs_do_not_share_what_can_change() -> None:
    assert Config().headers is not Config().headers


def test_what_can_be_reconfigured_exists() -> None:
    assert set(FIELDS) >= RECONFIGURABLE
    assert "transport" not in RECONFIGURABLE


# --------------------------------------------------------------------------- headers and secrets


@pytest.mark.fault("F34", where="memory")
@pytest.mark.parametrize(
    "name",
    ["", " ", "X Y", "X:", "X\r\nY", "X\n", "X\x00", "Ü", "X\ud800", '"X"', "X(", "X\t", 5, None, b"X"],
)
def test_an_illegal_header_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^headers: .* is not a header name"):
        Config(headers={name: "v"})


@pytest.mark.fault("F34", where="memory")
@pytest.mark.parametrize("value", ["a\r\nb", "a\n", "\r", "a\x00", "\x7f", "\x1b", "\u0100", "\ud800", "例"])
def test_an_illegal_header_value_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigError, match="the value of X-Key has a character") as caught:
        Config(headers={"X-Key": f"s3cr3t{value}"})
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("value", [5, None, b"v", ["v"]])
def test_a_header_value_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"the value of X-Key must be a str, not a {type(value).__name__}"):
        Config(headers={"X-Key": value})


@pytest.mark.parametrize(
    "name",
    ["Upgrade", "CONNECTION", "Sec-WebSocket-Key", "sec-websocket-anything", "Content-Length", "Transfer-Encoding"],
)
def test_the_handshakes_own_headers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} belongs to (the handshake|a request with a body)"):
        Config(headers={name: "v"})


def test_sound_headers_keep_their_order_and_spelling() -> None:
    headers = {"X-b": "", "Authorization": "Bearer a\tb", "x-A!#$%&'*+.^_`|~9": "caf\xe9"}
    assert check_headers(headers) == tuple(headers.items())


def test_headers_can_come_from_an_async_function() -> None:
    async def provide() -> Mapping[str, str]:
        return {"X-Key": "v"}

    assert Config(headers=provide).headers is provide


@pytest.mark.fault("F102", where="memory")
def test_a_config_shows_no_secret() -> None:
    config = Config(
        headers={"Authorization": "Bearer s3cr3t"}, proxy="http://me:s3cr3t@proxy:3128", credentials={"key": "s3cr3t"}
    )
    assert "s3cr3t" not in f"{config} {config!r}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("headers", [("Authorization", "s3cr3t")]), ("headers", "s3cr3t"), ("proxy", "me:s3cr3t@proxy:3128")],
)
def test_the_refusal_of_a_wrong_value_shows_no_secret(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(Config(), {field: value})
    assert "s3cr3t" not in f"{caught.value} {caught.value!r}"


# --------------------------------------------------------------------------- factories and targets


def test_a_strategy_is_used_as_it_is_or_made_anew_each_time() -> None:
    one = MessageHandler()
    assert made(one, MessageHandler, "message_handler") is one
    first, second = (made(MessageHandler, MessageHandler, "message_handler") for _ in range(2))
    assert isinstance(first, MessageHandler)
    assert first is not second


def test_a_factory_that_makes_something_else_is_refused_naming_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^message_handler: its factory returned 5"):
        made(lambda: 5, MessageHandler, "message_handler")
    with pytest.raises(ConfigError, match=r"^message_handler: <lambda> needs arguments"):
        made(lambda message: message, MessageHandler, "message_handler")
    with pytest.raises(TypeError, match="its own"):  # what a factory gets wrong inside stays as it is
        made(fails_by_itself, MessageHandler, "message_handler")


def fails_by_itself() -> MessageHandler:
    raise TypeError("its own")


WRONG_PARTS: dict[tuple[Callable[..., object], str], list[Any]] = {
    (FeedOptions, "size"): not_a_count,
    (FeedOptions, "overflow"): ["explode", None, 5],
    (FeedOptions, "conflate"): not_callable,
    (FeedOptions, "notices"): [1, None],
    (FeedOptions, "max_age"): [*not_seconds, 0],
    (Buffer, "max_items"): ["5", None, 0, -1, math.nan],
    (Buffer, "max_bytes"): ["5", None, 0, -1, math.nan],
    (Buffer, "ttl"): [*not_seconds, 0],
    (Deflate, "server_no_context_takeover"): [1, None],
    (Deflate, "client_no_context_takeover"): [1, None],
    (RateLimitHandler, "limits"): [5, None, TokenBucket(1, 1.0), [5], [TokenBucket], ["fast"]],
    (RateLimitHandler, "mode"): ["fast", None, 5],
    (RateLimitHandler, "tick_interval"): [*not_finite_seconds, 0],
    (ConnectGovernor, "limits"): [5, None, [5]],
    (LoggingHandler, "format"): ["xml", None, 5],
    (AuthHandler, "refresh_before"): not_finite_seconds,
    (SubscriptionHandler, "max_batch"): not_a_count,
    (AlwaysReconnect, "delay"): not_finite_seconds,
}
"""Values that each field of what options consist of must refuse."""


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [(make, field, value) for (make, field), values in WRONG_PARTS.items() for value in values],
)
def test_a_wrong_part_of_an_option_is_refused_naming_its_field(
    make: Callable[..., object], field: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{field: value})
    assert caught.value.field == field


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^config: must be a Config, not dict"):
        open_connection("ws://localhost/", config={"codec": JsonCodec()})  # type: ignore[arg-type]


def test_a_target_is_a_url_or_its_text() -> None:
    url = Url.parse("wss://h/")
    assert target_url("wss://h/") == target_url(url) == url


@pytest.mark.parametrize("target", [None, 5, b"wss://h/", "http://h/", ""])
def test_what_is_no_target_is_refused(target: object) -> None:
    with pytest.raises(ConfigError, match=r"^target: "):
        target_url(target)


# --------------------------------------------------------------------------- profiles


def shape(config: Config) -> tuple[Any, ...]:
    """Return a profile's attempts, connect time-out, ping interval, patience and events."""
    return (
        config.max_attempts,
        config.connect_timeout,
        config.ping_interval,
        config.pong_timeout,
        "".join("y" if family in config.events else "n" for family in ("connection", "message", "error")),
    )


def extremes(config: Config) -> tuple[float, float]:
    """Return the longest that the first delay of a profile, and any later one, can be."""
    first, last = (config.backoff.delay(attempt, math.nextafter(1.0, 0.0)) for attempt in (1, 1000))
    assert first is not None
    assert last is not None
    return first, last


@pytest.mark.parametrize(
    ("profile", "expected", "delays"),
    [
        (profiles.FINANCIAL, (math.inf, 5.0, 15.0, 5.0, "yyy"), (0.5, 30.0)),
        (profiles.STANDARD, (10, 10.0, 30.0, 10.0, "yny"), (2.0, 60.0)),
        (profiles.LIGHTWEIGHT, (3, 15.0, 60.0, 15.0, "yny"), (2.0, 10.0)),
        (profiles.MESSAGING, (20, 8.0, 45.0, 10.0, "yyy"), (1.0, 30.0)),
    ],
    ids=["financial", "standard", "lightweight", "messaging"],
)
def test_a_profile_has_the_numbers_that_are_promised(
    profile: Config, expected: tuple[Any, ...], delays: tuple[float, float]
) -> None:
    assert shape(profile) == expected
    assert extremes(profile) == pytest.approx(delays)


def test_each_profile_backs_off_in_its_own_way() -> None:
    assert isinstance(profiles.FINANCIAL.backoff, ExponentialBackoff)
    assert profiles.FINANCIAL.backoff.jitter == 0.25
    assert isinstance(profiles.STANDARD.backoff, LinearBackoff)
    assert isinstance(profiles.MESSAGING.backoff, ExponentialBackoff)


def test_each_profile_has_its_extra() -> None:
    limiter = made(profiles.STANDARD.rate_limit_handler, RateLimitHandler, "rate_limit_handler")
    [bucket] = limiter.limits
    assert isinstance(bucket, TokenBucket)
    assert (bucket.capacity, bucket.rate) == (60, 1.0)
    assert made(profiles.STANDARD.rate_limit_handler, RateLimitHandler, "rate_limit_handler") is not limiter
    assert profiles.LIGHTWEIGHT.when_down == "fail"
    assert isinstance(profiles.MESSAGING.when_down, Buffer)
    assert profiles.MESSAGING.when_down.max_items < math.inf
