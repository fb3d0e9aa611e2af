"""All that a simulated program can reach: the network, the services, a clock, and dice of its own."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from trio_nova.core.limits import RollingWindow
from trio_nova.links import ConnectGovernor, Transport
from trio_nova.testing.sim._journal import Journal
from trio_nova.testing.sim._net import SimNet
from trio_nova.testing.sim._scenario import BUDGET_PERIOD, BUDGET_RESERVE, Scenario
from trio_nova.testing.sim._servers import SimServer

__all__ = ["EPOCH", "World"]

EPOCH = 1_700_000_000.0
"""Unix time at which every simulation begins."""


@attrs.define(eq=False)
class World:
    """The world of one run. `options` goes to `open_connection`, and lets a session live in it."""

    seed: int
    scenario: Scenario
    journal: Journal = attrs.field(repr=False)
    net: SimNet = attrs.field(repr=False)
    transport: Transport | None = None
    """What opens links; None: what `Config` has by default."""
    servers: dict[str, SimServer] = attrs.field(factory=dict, repr=False)
    """By host name."""
    clock_offset: float = 0.0
    """Seconds by which the wall clock has jumped so far."""
    healed: trio.Event = attrs.field(factory=trio.Event, repr=False)
    """Set when the last fault is over: from then on the network is perfect."""
    opened: set[str] = attrs.field(factory=set, repr=False)
    """The sessions that have had a ready link, by owner: what asks them for patience keeps no opening block waiting."""
    nursery: trio.Nursery | None = attrs.field(default=None, repr=False)
    """Where the world's own tasks run, while it does."""
    crash: Exception | None = attrs.field(default=None, repr=False)
    """What left the simulated program, if anything did."""
    governor: ConnectGovernor = attrs.field(init=False, repr=False)
    """What paces all dials."""
    _dice: dict[str, random.Random] = attrs.field(factory=dict, repr=False)

    def __attrs_post_init__(self) -> None:
        budget = self.scenario.budget
        self.governor = ConnectGovernor(
            [] if budget is None else [RollingWindow(budget, BUDGET_PERIOD)], reserve=BUDGET_RESERVE
        )

    def dice(self, component: str) -> random.Random:
        """Return the generator of one component: a draw more in one does not shift the others."""
        if component not in self._dice:
            self._dice[component] = random.Random(f"{self.seed}:{component}")
        return self._dice[component]

    def wall_clock(self) -> float:
        """Return Unix time, which may jump."""
        return EPOCH + trio.current_time() + self.clock_offset

    def start(self, what: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Let an async function run beside all else, until the run is over."""
        assert self.nursery is not None, "the world does not turn yet, or not any more"
        self.nursery.start_soon(what, *args)

    @property
    def options(self) -> Mapping[str, Any]:
        """What a session needs to live in this world: options of `trio_nova.Config`."""
        return {
            "stream_factory": self.net.stream_factory,
            "resolver": self.net,
            "governor": self.governor,
            "spread": self.dice("spread").random,
            "entropy": self.dice("entropy").randbytes,
            "wall_clock": self.wall_clock,
            **({} if self.transport is None else {"transport": self.transport}),
        }
