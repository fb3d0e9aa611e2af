"""Choose a display, and the plain one: ASCII lines, for any output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

import attrs

from trio_nova.demo.audit import Report
from trio_nova.demo.ledger import Ledger, Outage
from trio_nova.demo.market import CHANNELS
from trio_nova.demo.words import (
    COLUMNS,
    LEGEND,
    Display,
    Snapshot,
    account,
    duration,
    introduction,
    outage_cells,
    verdict,
)

__all__ = ["PlainDisplay", "choose_display"]

PLAIN_INTERVAL = 2.0
"""Seconds between two plain lines about how things are."""


def choose_display(seconds: float, *, plain: bool = False) -> Display:
    """Return a live display where standard output is a terminal and rich is installed, else a plain one."""
    fit = sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf") and os.environ.get("TERM") != "dumb"
    if fit and not plain:
        with suppress(ImportError):  # rich is an extra
            from trio_nova.demo.live import LiveDisplay

            return LiveDisplay(seconds)
    return PlainDisplay(sys.stdout, seconds)


@attrs.define(eq=False)
class PlainDisplay:
    """Prints a line now and then, and one for each outage."""

    _out: TextIO
    _seconds: float
    _opened: float = attrs.field(default=0.0, init=False)
    _ledger: Ledger | None = attrs.field(default=None, init=False)
    _next_line: float = attrs.field(default=PLAIN_INTERVAL, init=False)

    def __enter__(self) -> Self:
        self._print(*introduction(self._seconds))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, url: str, opened: float, ledger: Ledger) -> None:
        self._opened, self._ledger = opened, ledger
        confirmed = ledger.confirmed.get(1, [])
        self._print(f"The exchange listens on {url} and has confirmed, one by one:")
        self._print(", ".join(confirmed), "", _row([name for name, _ in COLUMNS]))

    def refresh(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed >= self._next_line and self._ledger is not None:
            self._next_line += PLAIN_INTERVAL
            self._print(
                f"       {snapshot.state.value}, link {snapshot.epoch}, {snapshot.rate:.0f} messages/s, "
                f"rtt {duration(snapshot.rtt)}, {snapshot.confirmed} of {len(CHANNELS)} channels"
                + (", degraded" if snapshot.health == "degraded" else "")
            )

    def show_outage(self, outage: Outage) -> None:
        if self._ledger is not None:
            self._print(_row(outage_cells(outage, self._opened, self._ledger)))

    def conclude(self, report: Report) -> None:
        if (outage := report.ledger.outage) is not None:
            self.show_outage(outage)
        self._print("", LEGEND, "")
        self._print(*(f"{subject:8} {number:>7,}  {text}" for subject, number, text in account(report)))
        self._print("", *verdict(report))

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._out)
        self._out.flush()


def _row(cells: Sequence[str]) -> str:
    padded = (cell.rjust(w) if w > 0 else cell.ljust(-w) for cell, (_, w) in zip(cells, COLUMNS, strict=True))
    return " ".join(padded).rstrip()
