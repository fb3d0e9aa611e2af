"""What is fixed before a run begins: which service, how many clients, how they are set up, and for how long."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

import attrs

__all__ = ["Scenario", "ServerKind", "draw_scenario"]

CANARY = "canary-3f9a61c0"
"""The secret of every simulated client: it may be seen on the wire to its service, and nowhere else."""
ELSEWHERE = "elsewhere.sim"
"""Another origin: nothing secret may get there."""
DETOUR = "/detour"
"""Where a redirect within the origin leads to."""
ILLEGAL_NUMBER = 7_000_000_007
"""Of messages that must not be delivered: beyond all others, so that who watches a sequence would take them too."""

BACKUP = "backup.sim"
"""Another address of the service."""
MAX_MESSAGE = 65_536
"""Bytes of the longest message that a client takes."""

PING_INTERVAL = 8.0
PONG_TIMEOUT = 8.0
CONNECT_TIMEOUT = 5.0
SETUP_TIMEOUT = 6.0
"""For an authentication, and for the confirmation of a subscription."""
CLOSE_TIMEOUT = 2.0
BACKOFF_CAP = 15.0
MIN_UPTIME = 30.0
LIMIT_PERIOD = 10.0
BUDGET_PERIOD = 10.0
BUDGET_RESERVE = 0.6
"""Seconds; all of these are the same in every run, so that the journal can be judged without its program."""
INBOX_BYTES = 16_384
"""That may wait to be received: few, so that a flood fills it."""

ServerKind: TypeAlias = Literal["json", "deribit", "node", "gateway", "broker", "exchange"]
"""A plain JSON service; one like Deribit; one like an Ethereum node, with a new id for each subscription; a gateway
that resumes sessions, and replays what was missed; a broker, which delivers until it is told that all was processed; an
exchange with a store beside it."""


@attrs.frozen(kw_only=True)
class Scenario:
    """How a run is set up. Durations are seconds."""

    server: ServerKind = "json"
    clients: int = 1
    channels: int = 3
    """That each client may hear."""
    length: float = 100.0
    """Of the phase with faults."""
    settle: float = 85.0
    """Of the one after it, in which the network is perfect and everybody must come to rest."""
    latency: float = 0.02
    jitter: float = 0.0
    slice_size: int = 65_536
    window: int = 65_536
    direct: bool = False
    """Whether clients may write without waiting, as they do to a socket over which no TLS is spoken."""
    interval: float = 1.0
    """Between the messages of a channel."""
    tracked: bool = False
    """Whether the client watches the sequence of messages."""
    resumes: bool = False
    """Whether it asks the service to go on where it was; takes `tracked`."""
    batch: int = 1
    """Channels that one message asks for."""
    limit: int | None = None
    """Messages that the client may send in any 10 s; None: any number. Not for a broker's."""
    budget: int | None = None
    """Dials that all clients together may begin in any 10 s; None: any number."""
    has_backup: bool = False
    """Whether the service has another address, which clients dial in turn after a failure; takes no adapter that has
    a use of its own for the hook."""
    grant: float | None = None
    """For which the service lets a client in; None: for as long as the link lasts."""
    when_down: Literal["wait", "fail", "buffer"] = "wait"
    patient: bool = True
    """Whether the first connect is retried too."""
    verbose: bool = False
    """Whether everything is logged, each message too."""
    lags: bool = False
    """Whether the client's consumers take nothing for a while now and then, as long as there are faults."""


def draw_scenario(seed: int) -> Scenario:
    """Return the set-up of a seed."""
    rng = random.Random(f"{seed}:scenario")
    tracked = rng.random() < 0.6
    drawn = Scenario(
        server=rng.choice(("json", "json", "json", "deribit", "node", "gateway", "broker", "exchange")),
        clients=2 if rng.random() < 0.2 else 1,
        channels=rng.choice((1, 3, 3, 6)),
        length=float(rng.choice((60, 100, 100, 140))),
        latency=rng.choice((0.001, 0.02, 0.02, 0.2)),
        jitter=rng.choice((0.0, 0.0, 0.01, 0.1)),
        slice_size=rng.choice((65_536, 65_536, 1_000, 40)),
        window=rng.choice((65_536, 65_536, 4_096, 512)),
        interval=rng.choice((0.5, 1.0, 1.0, 3.0)),
        tracked=tracked,
        resumes=tracked and rng.random() < 0.5,
        batch=rng.choice((1, 1, 4)),
        limit=rng.choice((None, None, 40, 80)),
        grant=rng.choice((None, None, 12.0, 20.0, 45.0)),
        when_down=rng.choice(("wait", "wait", "fail", "buffer")),
        patient=rng.random() < 0.8,
        verbose=rng.random() < 0.1,
        budget=rng.choice((None, None, None, 5)),
        has_backup=rng.random() < 0.3,
        direct=rng.random() < 0.5,
        lags=rng.random() < 0.25,
    )
    # Each acknowledgement counts: a limit would hold back more and more of them.
    return attrs.evolve(drawn, limit=None) if drawn.server == "broker" else drawn
