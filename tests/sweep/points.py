"""One point of the sweep, and all the points of one call: the fault comes at its first moment, its second, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import trio
import trio.testing

from tests.sweep.calls import CALLS
from tests.sweep.injections import BreakAt, CancelAt, CutAt, Injection
from tests.sweep.streams import LANES, Lane
from tests.sweep.world import World, tasks
from trio_nova.testing.sim import deterministic

__all__ = ["ORDERS", "TWINS", "Point", "lanes_of", "orders", "play", "points"]

END = 5_000
"""No call has that many moments."""
ORDERS = 200
"""In how many orders of its tasks a point is played."""
LONGEST = 600.0
"""Virtual seconds that a whole run may take."""

TWINS: dict[str, Callable[[int], Injection]] = {
    "cancel": CancelAt,
    "break: BrokenResourceError": partial(BreakAt, how="broken"),
    "break: ClosedResourceError": partial(BreakAt, how="closed"),
    "break: OSError": partial(BreakAt, how="os"),
    "break: end of stream": partial(BreakAt, how="eof"),
    "cut: FIN": partial(CutAt, how="fin"),
    "cut: RST": partial(CutAt, how="reset"),
}
"""What can be injected."""


@attrs.frozen
class Point:
    """One run: a call, the link it is made on, what is done to it at which moment, and the order of tasks."""

    call: str
    lane: str
    twin: str
    at: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.call!r} on {self.lane}, {self.twin}, at its moment {self.at}, order {self.seed}"


def lanes_of(twin: str) -> list[str]:
    """Return the lanes on which a twin is swept: only a stream in memory can be broken, or be reset."""
    return [name for name, lane in LANES.items() if lane.kind != "socket" or twin in ("cancel", "cut: FIN")]


def first_moment(twin: str) -> int:
    """Return the first moment: a call can be cancelled before its first step."""
    return 0 if twin == "cancel" else 1


def play(point: Point) -> Injection:
    """Run one point, check all there is to check, and return what was injected.

    Raises:
        BaseException: a promise was broken; the point is in its notes.
    """
    injection = TWINS[point.twin](point.at)
    try:
        with deterministic(point.seed):
            trio.run(
                _run,
                point.call,
                LANES[point.lane],
                injection,
                point.seed,
                clock=trio.testing.MockClock(autojump_threshold=0.0),
            )
    except BaseException as exc:
        exc.add_note(str(point))
        raise
    return injection


async def _run(call: str, lane: Lane, injection: Injection, seed: int) -> None:
    before = tasks()
    world = World(lane, injection, seed)
    with trio.fail_after(LONGEST):
        async with world.server:
            await CALLS[call](world)
            for dialled, _ in world.ends:
                await dialled.wait_ended()
    world.check()
    assert tasks() == before, "a task is left"
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf, "a timer is left"


def points(call: str, lane: str, twin: str, *, first: int = 0, step: int = 1) -> Iterator[Point]:
    """Play every `step`-th point of a call, from its `first`, and yield those in which the injection did come."""
    for at in range(first_moment(twin) + first, END, step):
        point = Point(call, lane, twin, at)
        injection = play(point)
        if injection.fired:
            yield point
        if injection.exhausted:
            return
    raise AssertionError(f"{call!r} on {lane} does not end")


def orders(call: str, lane: str, twin: str, count: int = ORDERS) -> Iterator[Point]:
    """Play the point in the middle of a call in `count` orders of its tasks; yield as `points` does."""
    middle = _moments(call, lane, twin) // 2
    if middle < first_moment(twin):
        return
    for seed in range(1, count + 1):
        point = Point(call, lane, twin, middle, seed)
        if play(point).fired:
            yield point


def _moments(call: str, lane: str, twin: str) -> int:
    """Return how many moments a call has in which it could be disturbed, when it is not."""
    return play(Point(call, lane, twin, END)).moments
