"""The plots of the page: a group of bars for each situation, a bar for each client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.plots import OURS_COLOUR, THEIRS_COLOUR, prepare, save
from tests.survival.clients.table import OURS
from tests.survival.judge import Account
from tests.survival.plan import TO_BE_SLOW_IN, TO_RECOVER_FROM, Situation
from tests.survival.results import Results, dials_per_minute_alive

_BAR = 0.26
_DARKER_COLOUR = "#7d8896"


@attrs.frozen(kw_only=True)
class Plot:
    """One figure of the accounts, in several situations."""

    name: str
    title: str
    situations: Sequence[Situation]
    figure: Callable[[Account], float | None]
    log: bool = False

    def draw(self, results: Results) -> Figure | None:
        """Return the plot; None where nothing of it was measured."""
        measured = [situation for situation in self.situations if situation.name in results.laps]
        if not measured:
            return None
        clients = results.clients
        plot = Figure(figsize=(6.8, 0.8 + _BAR * len(measured) * (len(clients) + 1)))
        axes = plot.add_subplot()
        for row, situation in enumerate(measured):
            for index, client in enumerate(clients):
                self._bar(axes, row + (index - (len(clients) - 1) / 2) * _BAR, results, situation.name, client)
        axes.set_yticks(range(len(measured)), [situation.title for situation in measured])
        axes.invert_yaxis()
        if self.log:
            axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{self.title}: less is better", loc="left", fontsize=9)
        _name_clients(axes)
        return plot

    def _bar(self, axes: Axes, y: float, results: Results, situation: str, client: str) -> None:
        spread = results.spread(situation, client, self.figure)
        accounts = results.laps[situation][client]
        if spread is None:
            excuse = "its loop ends" if any(account.death for account in accounts) else "not in time"
            axes.text(0.015, y, f"{client}: {excuse}", va="center", fontsize=7, transform=axes.get_yaxis_transform())
            return
        error = [[spread.median - spread.least], [spread.most - spread.median]]
        colour = _colour(results, client)
        axes.barh(y, spread.median, _BAR * 0.9, xerr=error, color=colour, ecolor="#555555", label=client)
        some = sum(self.figure(account) is not None for account in accounts)
        partly = "" if some == len(accounts) else f" ({some} of {len(accounts)})"
        label = f"{spread.median:,.0f}" if spread.median >= 10 else f"{spread.median:.2f}"
        axes.text(spread.most, y, f"  {label}{partly}", va="center", fontsize=7)


PLOTS = (
    Plot(
        name="recovery",
        title="seconds to recover",
        situations=list(TO_RECOVER_FROM.values()),
        figure=lambda account: account.recovery,
    ),
    Plot(
        name="dials",
        title="dials a minute in an outage",
        situations=[situation for situation in TO_RECOVER_FROM.values() if situation.counts_dials],
        figure=dials_per_minute_alive,
        log=True,
    ),
    Plot(
        name="memory",
        title="KiB that a slow consumer costs",
        situations=list(TO_BE_SLOW_IN.values()),
        figure=lambda account: account.memory / 1024,
    ),
)


def draw(results: Results, folder: Path) -> None:
    """Write the plots of what was measured."""
    prepare(folder)
    for plot in PLOTS:
        if (figure := plot.draw(results)) is not None:
            save(figure, folder / f"{plot.name}.svg")


def _name_clients(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="best", fontsize=7, frameon=False)


def _colour(results: Results, client: str) -> str:
    if client == OURS:
        return OURS_COLOUR
    return THEIRS_COLOUR if results.clients.index(client) % 2 else _DARKER_COLOUR
