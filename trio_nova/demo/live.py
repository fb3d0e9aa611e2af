"""The live display, for a terminal. Needs rich, the extra `cli`."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trio_nova.core.session import State
from trio_nova.demo.audit import Report
from trio_nova.demo.journal import RateCount
from trio_nova.demo.ledger import Ledger, Outage, Outcome
from trio_nova.demo.market import CHANNELS
from trio_nova.demo.words import COLUMNS, LEGEND, Snapshot, account, duration, introduction, outage_cells, verdict

__all__ = ["LiveDisplay"]

WIDTH = 80
_HEALTH = {"ok": "green", "degraded": "yellow"}


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    return console


@attrs.define(eq=False)
class LiveDisplay:
    """Repaints a panel and the table of outages in place; what remains in the end is the table and the account."""

    _seconds: float
    _console: Console = attrs.field(factory=_console)
    _live: Live = attrs.field(init=False)
    _opened: float = attrs.field(default=0.0, init=False)
    _ledger: Ledger | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        # No thread of rich's: the run itself says when to repaint.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._console.print(*introduction(self._seconds), "", sep="\n")
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, url: str, opened: float, ledger: Ledger) -> None:
        self._opened, self._ledger = opened, ledger

    def refresh(self, snapshot: Snapshot) -> None:
        if self._ledger is not None:
            self._live.update(Group(self._panel(snapshot, self._ledger), self._table(self._ledger)), refresh=True)

    def show_outage(self, outage: Outage) -> None:
        """Do nothing: the table shows it with the next frame."""

    def conclude(self, report: Report) -> None:
        self._console.print(self._table(report.ledger))
        self._console.print("", LEGEND, "", style="dim", sep="\n")
        self._console.print(_account(report), "", sep="\n")
        style = "bold red" if report.findings else "bold yellow" if report.interrupted else "bold green"
        self._console.print(*verdict(report), sep="\n", style=style)

    # ----------------------------------------------------------------- pieces

    def _panel(self, snapshot: Snapshot, ledger: Ledger) -> RenderableType:
        ready = snapshot.state is State.READY
        figures = Table.grid(padding=(0, 3), expand=True)
        for _ in range(4):
            figures.add_column(ratio=1)
        figures.add_row(
            Text.assemble(("● ", "green" if ready else "red"), (snapshot.state.value, "bold")),
            f"link {snapshot.epoch}",
            f"{snapshot.rate:.0f} messages/s",
            f"round trip {duration(snapshot.rtt)}",
        )
        orders = ledger.orders
        figures.add_row(
            Text.assemble(("● ", _HEALTH.get(snapshot.health, "red")), snapshot.health),
            f"{snapshot.confirmed} of {len(CHANNELS)} channels",
            f"{ledger.received:,} data",
            f"{ledger.missing(announced=True):,} lost, {ledger.told:,} told",
        )
        figures.add_row(
            f"{orders.placed:,} orders",
            f"{orders.count(Outcome.EXECUTED):,} executed",
            f"{orders.open} under way",
            f"{snapshot.pace} of {RateCount().limit} per second",
        )
        progress = ProgressBar(total=snapshot.seconds, completed=min(snapshot.elapsed, snapshot.seconds))
        return Panel(
            Group(figures, progress),
            title=f"{min(snapshot.elapsed, snapshot.seconds):.1f} of {snapshot.seconds:g} s",
            title_align="left",
            border_style="green" if ready else "red",
        )

    def _table(self, ledger: Ledger) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
        for name, width in COLUMNS:
            table.add_column(name, width=abs(width), justify="right" if width > 0 else "left", no_wrap=True)
        for outage in ledger.outages:
            table.add_row(*outage_cells(outage, self._opened, ledger), style="" if outage.over else "red")
        return table


def _account(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right", style="cyan")
    table.add_column()
    for subject, number, text in account(report):
        table.add_row(subject, f"{number:,}", text)
    return table
