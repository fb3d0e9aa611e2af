"""How options are passed on, with their types: no line of this may be refused."""

from __future__ import annotations

import math
from typing import Any, Unpack, assert_type

import attrs

from trio_nova import (
    Buffer,
    Config,
    ConfigOptions,
    Connection,
    ConnectionBlock,
    Deflate,
    ErrorHandler,
    JsonCodec,
    NoHeartbeat,
    Observation,
    RateLimitHandler,
    ReconfigurableOptions,
    Registry,
    Secret,
    StateTrace,
    TokenBucket,
    open_connection,
    run_connection,
)

URL = "wss://venue.example"


def open_venue(**options: Unpack[ConfigOptions]) -> ConnectionBlock:
    """Open a connection with any options."""
    return open_connection(URL, **options)


def open_typed(**options: Unpack[ConfigOptions[int]]) -> ConnectionBlock[int]:
    """Open a connection with any options but a codec of something else."""
    return open_connection(URL, **options)


def hear(observation: Observation) -> None:
    """Hear of what happens."""


def make_limits() -> RateLimitHandler:
    """Make a handler for each session."""
    return RateLimitHandler(limits=[TokenBucket()])


async def headers() -> dict[str, str]:
    """Provide headers for every dial."""
    return {}


QUIET: ConfigOptions = {"heartbeat": "off", "events": "minimal"}
SPELLINGS: list[ConfigOptions] = [
    {"headers": {"x-desk": "1"}, "subprotocols": ["v2"], "pins": [], "redirect_origins": ["wss://b.example"]},
    {"headers": headers, "subprotocols": ("v2", Secret("token")), "pins": {"pin"}, "redirect_origins": set()},
    {"proxy": "env", "compression": "deflate", "heartbeat": "ping", "events": {"error"}, "observers": hear},
    {"proxy": Secret("http://u:p@proxy"), "compression": Deflate(), "heartbeat": NoHeartbeat(), "observers": [hear]},
    {"proxy": None, "compression": None, "heartbeat": None, "observers": (hear, StateTrace())},
    {"when_down": "fail", "error_handler": ErrorHandler, "rate_limit_handler": make_limits, "max_attempts": 3},
    {"when_down": Buffer(), "error_handler": ErrorHandler(), "max_attempts": math.inf, "credentials": object()},
]


def configure_at_once() -> None:
    assert_type(open_venue(**QUIET), ConnectionBlock[Any])
    open_typed(codec=JsonCodec(type=int))
    config = Config(compression="deflate", heartbeat="off", events="standard", proxy="env", subprotocols=["v2"])
    attrs.evolve(config, ping_interval=5, redirect_origins=["wss://b.example"], headers={"x-desk": "1"})
    Config(**QUIET)
    Registry().open_connection("one", URL, **QUIET)


async def run(conn: Connection, changes: ReconfigurableOptions) -> None:
    await run_connection(URL, **QUIET)
    conn.reconfigure(**changes)
    conn.reconfigure(ping_interval=5.0, headers={"x-desk": "1"})
