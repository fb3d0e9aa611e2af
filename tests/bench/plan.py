"""What is measured, in which unit, and what is hoped for: three tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs

from tests.bench.contenders.table import CONTENDERS
from tests.bench.job import Lap

OURS = "trio_nova"
LIMIT = "raw Trio stream"


@attrs.frozen
class Metric:
    """One figure of a lap."""

    name: str
    unit: str
    more_is_better: bool
    of: Callable[[Lap], float]


RATE = Metric("rate", "messages/s", True, lambda lap: lap.count / lap.seconds)
CONNECTS = Metric("rate", "connections/s", True, lambda lap: lap.count / lap.seconds)
CPU = Metric("cpu", "us of processor/message", False, lambda lap: lap.cpu / lap.count * 1e6)
CPU_OF_CONNECT = Metric("cpu", "us of processor/connection", False, lambda lap: lap.cpu / lap.count * 1e6)
P50 = Metric("p50", "us", False, lambda lap: lap.figures["p50"] * 1e6)
P99 = Metric("p99", "us", False, lambda lap: lap.figures["p99"] * 1e6)
LATE_P50 = Metric("p50", "ms late", False, lambda lap: lap.figures["p50"] * 1e3)
LATE_P99 = Metric("p99", "ms late", False, lambda lap: lap.figures["p99"] * 1e3)
LATE_MAX = Metric("max", "ms late", False, lambda lap: lap.figures["max"] * 1e3)
MEMORY = Metric("memory", "KiB/connection", False, lambda lap: lap.figures["bytes"] / 1024)


@attrs.frozen(kw_only=True)
class Cell:
    """One workload, done by several clients."""

    name: str
    title: str
    workload: str
    metrics: Sequence[Metric]
    """The first one is what plots and the short table show."""
    verb: Literal["flood", "echo", "count", "idle"]
    size: int = 0
    kind: Literal["plain", "mixed", "json"] = "plain"
    channels: int = 1
    tls: bool = False
    compressed: bool = False
    contenders: Sequence[str] = tuple(CONTENDERS)
    first_count: int = 200
    """How many messages the lap takes that is verified by checksum; it sizes the others."""
    count: int | None = None
    """How many a lap takes, if that does not depend on the client's speed."""
    quick_count: int | None = None
    """The same for a quick run."""
    fresh: bool = False
    """Whether each lap gets a process of its own."""
    patience: float = 15.0
    """Seconds after which a lap, with its opening and closing, has failed."""
    most_rounds: int | None = None
    """Where few rounds are enough, since a lap takes long and its figures hardly vary."""
    varies: int = 1
    """How many times more rounds it gets than others, since its figures vary more from lap to lap."""
    stretch: float = 1.0
    """How many times longer than the others its laps take."""
    together: str = ""
    """Cells of one name here take their laps in turn, so that they can be compared."""

    def rounds(self, usual: int) -> int:
        """Return how many rounds it gets where others get `usual`."""
        return min(usual * self.varies, self.most_rounds or sys.maxsize)

    def path(self, run: str) -> str:
        """Return what the server is asked for."""
        return (
            f"/{self.verb}?size={self.size}&kind={self.kind}&channels={self.channels}"
            f"&deflate={int(self.compressed)}&run={run}"
        )


@attrs.frozen(kw_only=True)
class Goal:
    """What the ratio of ours to another figure should be; without another, the figure itself."""

    cell: str
    metric: str
    bound: float
    at_least: bool
    than: str = ""
    """The other client, in the same cell."""
    than_cell: str = ""
    """The other cell, of the same client."""


_TRIO = tuple(name for name in CONTENDERS if name.startswith(("trio", "websockets.trio", "httpx", "raw")))
_MESSAGES = tuple(name for name in CONTENDERS if name != LIMIT)
_WITH_BATCHES = (OURS, "trio_nova/trio-websocket", "websockets.trio", "aiohttp", "picows", LIMIT)


def _short(label: str) -> str:
    return label.replace(" B", "").replace(" KiB", "k").replace(" MiB", "m")


def _receive_json(label: str, size: int, first_count: int) -> Cell:
    return Cell(
        name=f"json-{_short(label)}",
        title=f"receive {label} of JSON, decoded and routed",
        workload="receive_json",
        metrics=(RATE, CPU),
        verb="flood",
        size=size,
        kind="json",
        first_count=first_count,
        contenders=_MESSAGES,
    )


def _receive(label: str, size: int, first_count: int, *, batch: bool = False) -> Cell:
    return Cell(
        name=f"{'batch' if batch else 'receive'}-{_short(label)}",
        title=f"receive {label}, {'in batches' if batch else 'one by one'}",
        workload="receive_batch" if batch else "receive",
        metrics=(RATE, CPU),
        verb="flood",
        size=size,
        first_count=first_count,
        contenders=_WITH_BATCHES if batch else tuple(CONTENDERS),
    )


def _feeds(channels: int) -> Cell:
    return Cell(
        name=f"feeds-{channels}",
        title=f"JSON through {channels:,} subscriptions",
        workload="feeds",
        metrics=(CPU, RATE),
        verb="flood",
        size=200,
        kind="json",
        channels=channels,
        first_count=channels,
        count=100_000,
        quick_count=10_000,
        patience=60.0,
        contenders=(OURS,),
        varies=3,
        together="feeds",
    )


CELLS: Mapping[str, Cell] = {
    cell.name: cell
    for cell in (
        _receive("16 B", 16, 500),
        _receive("200 B", 200, 500),
        _receive("4 KiB", 4096, 200),
        _receive("1 MiB", 1 << 20, 4),
        _receive("16 B", 16, 500, batch=True),
        _receive("200 B", 200, 500, batch=True),
        _receive("4 KiB", 4096, 200, batch=True),
        _receive("1 MiB", 1 << 20, 4, batch=True),
        attrs.evolve(
            _receive("200 B", 200, 500, batch=True),
            name="batch-mixed",
            title="receive 100 to 300 B, no two lengths alike, in batches",
            kind="mixed",
            contenders=tuple(name for name in _WITH_BATCHES if name != LIMIT),
        ),
        _receive_json("200 B", 200, 200),
        _receive_json("4 KiB", 4096, 100),
        _receive_json("1 MiB", 1 << 20, 4),
        Cell(
            name="deflate-4k",
            title="receive 4 KiB, permessage-deflate",
            workload="receive",
            metrics=(RATE, CPU),
            verb="flood",
            size=4096,
            kind="json",
            compressed=True,
            contenders=_MESSAGES,
        ),
        Cell(
            name="tls-200",
            title="receive 200 B, TLS",
            workload="receive",
            metrics=(RATE, CPU),
            verb="flood",
            size=200,
            tls=True,
        ),
        Cell(
            name="echo", title="echo 100 B", workload="echo", metrics=(P50, P99, CPU), verb="echo", size=100, varies=2
        ),
        Cell(name="send", title="send 100 B, sequential", workload="send", metrics=(RATE, CPU), verb="count", size=100),
        Cell(
            name="send-tasks",
            title="send 100 B, 100 tasks at once",
            workload="send_from_tasks",
            metrics=(RATE, CPU),
            verb="count",
            size=100,
            contenders=tuple(name for name in _MESSAGES if name != "picows"),
            varies=2,
        ),
        Cell(
            name="stalls",
            title="a task that sleeps 1 ms while 200 B flood in",
            workload="stalls",
            metrics=(LATE_P99, LATE_P50, LATE_MAX),
            verb="flood",
            size=200,
            contenders=_TRIO,
            stretch=3.0,
        ),
        Cell(
            name="connect",
            title="connect and close, one after the other",
            workload="connect",
            metrics=(CONNECTS, CPU_OF_CONNECT),
            verb="idle",
            first_count=5,
            varies=2,
        ),
        Cell(
            name="memory",
            title="memory of an idle connection",
            workload="idle",
            metrics=(MEMORY,),
            verb="idle",
            count=2_000,
            quick_count=200,
            most_rounds=2,
            patience=180.0,
            fresh=True,
        ),
        *map(_feeds, (1, 10, 100, 1_000, 10_000)),
    )
}


def _at_least(cell: str, bound: float, than: str, metric: str = "rate") -> Goal:
    return Goal(cell=cell, metric=metric, bound=bound, at_least=True, than=than)


def _at_most(cell: str, metric: str, bound: float, than: str) -> Goal:
    return Goal(cell=cell, metric=metric, bound=bound, at_least=False, than=than)


GOALS: Sequence[Goal] = (
    _at_least("receive-200", 5, "websockets.trio"),
    _at_least("receive-200", 10, "trio-websocket"),
    _at_least("receive-200", 1, "aiohttp"),
    _at_least("batch-mixed", 14, "websockets.trio"),
    _at_least("batch-mixed", 1, "picows"),
    _at_least("receive-4k", 3, "websockets.trio"),
    _at_least("json-200", 4, "websockets.trio"),
    _at_least("json-200", 1.1, "aiohttp"),
    _at_least("json-4k", 1, "aiohttp"),
    _at_most("echo", "p50", 0.75, "websockets.trio"),
    _at_most("echo", "p50", 0.95, "websockets.asyncio"),
    _at_most("echo", "p50", 2.0, LIMIT),
    _at_least("send", 2, "websockets.trio"),
    _at_least("send-tasks", 5, "websockets.trio"),
    Goal(cell="memory", metric="memory", bound=40, at_least=False),
    _at_least("connect", 0.8, "websockets.trio"),
    Goal(cell="feeds-10000", metric="cpu", bound=1.3, at_least=False, than_cell="feeds-1"),
    Goal(cell="stalls", metric="p99", bound=20, at_least=False),
)
"""Of ours with its default transport."""
