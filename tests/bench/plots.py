"""A plot for each cell: bars of the medians, with the spread of the rounds."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.plan import CELLS, OURS, Cell
from tests.bench.results import Results

OURS_COLOUR, THEIRS_COLOUR, _LIMIT_COLOUR = "#2a6f97", "#a9b4c2", "#dde3ea"


def draw(results: Results, folder: Path) -> None:
    """Write one SVG for each cell that has results of more than one client."""
    prepare(folder)
    for name in results.cells:
        figure = _bars(results, CELLS[name])
        if figure is not None:
            save(figure, folder / f"{name}.svg")


def prepare(folder: Path) -> None:
    """Make the folder, and have plots look alike: text stays text, and the same results make the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "trio_nova", "font.size": 9})


def save(figure: Figure, path: Path) -> None:
    """Write a plot."""
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _bars(results: Results, cell: Cell) -> Figure | None:
    metric = cell.metrics[0]
    spreads = {
        name: spread
        for name, outcome in results.cells[cell.name].items()
        if (spread := outcome.spread(metric.name)) is not None
    }
    if len(spreads) < 2:
        return None
    names = sorted(spreads, key=lambda name: spreads[name].median, reverse=not metric.more_is_better)
    medians = [spreads[name].median for name in names]
    below = [spreads[name].median - spreads[name].least for name in names]
    above = [spreads[name].most - spreads[name].median for name in names]
    figure = Figure(figsize=(6.4, 0.5 + 0.26 * len(names)))
    axes = figure.add_subplot()
    bars = axes.barh(names, medians, xerr=[below, above], color=[_colour(name) for name in names], ecolor="#555555")
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in medians], padding=4)
    logarithmic = max(medians) > 20 * min(medians)
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    better = "more is better" if metric.more_is_better else "less is better"
    scale = ", logarithmic" if logarithmic else ""
    axes.set_title(f"{cell.title}: {metric.name} in {metric.unit} ({better}{scale})", loc="left", fontsize=9)
    return figure


def _colour(name: str) -> str:
    if name.startswith(OURS):
        return OURS_COLOUR
    return _LIMIT_COLOUR if name.startswith("raw") else THEIRS_COLOUR
