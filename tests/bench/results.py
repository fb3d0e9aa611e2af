"""The results as they are kept: what was measured, on what, and what follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import msgspec

from tests.bench.job import Lap
from tests.bench.plan import Cell, Goal


@attrs.frozen
class Spread:
    """A median with its extremes, one value for each round."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@attrs.frozen(kw_only=True)
class Outcome:
    """What one client did in one cell."""

    values: Mapping[str, Sequence[float]] = attrs.field(factory=dict)
    """By metric, a value for each round."""
    count: int = 0
    """Messages, or connections, of each lap."""
    failure: str = ""
    unavailable: bool = False

    @classmethod
    def of(cls, cell: Cell, laps: Sequence[Lap]) -> Outcome:
        for lap in laps:
            if lap.failure:
                return cls(failure=lap.failure, unavailable=lap.unavailable)
        if not laps:
            return cls(failure="not one lap was taken")
        values = {metric.name: [metric.of(lap) for lap in laps] for metric in cell.metrics}
        return cls(values=values, count=laps[0].count)

    def spread(self, metric: str) -> Spread | None:
        """Return the figures of a metric; None where there is no result."""
        return Spread.of(self.values[metric]) if metric in self.values else None


@attrs.frozen(kw_only=True)
class Results:
    """One run."""

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    """By client: its library's version, and those of what it runs on."""
    rounds: int
    seconds: float
    """That a lap was to take."""
    quick: bool
    cells: Mapping[str, Mapping[str, Outcome]]

    def ratio(self, cell: str, metric: str, ours: str, than: str, than_cell: str = "") -> Spread | None:
        """Return ours divided by theirs, round by round; None where either has no result."""
        mine = self.cells.get(cell, {}).get(ours)
        other = self.cells.get(than_cell or cell, {}).get(than)
        if mine is None or other is None or metric not in mine.values or metric not in other.values:
            return None
        return Spread.of([a / b for a, b in zip(mine.values[metric], other.values[metric], strict=True)])

    def reached(self, goal: Goal, ours: str) -> Spread | None:
        """Return the figure that a goal is about; None where it was not measured."""
        if goal.than or goal.than_cell:
            return self.ratio(goal.cell, goal.metric, ours, goal.than or ours, goal.than_cell)
        mine = self.cells.get(goal.cell, {}).get(ours)
        return None if mine is None else mine.spread(goal.metric)

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return results that were written."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def is_met(goal: Goal, reached: Spread) -> bool:
    """Return whether the median is where it should be."""
    return reached.median >= goal.bound if goal.at_least else reached.median <= goal.bound


def is_better(more_is_better: bool, a: float, b: float) -> bool:
    """Return whether a is better than b."""
    return a > b if more_is_better else a < b
