"""What the demonstration looks like: the words, and plain lines of them for any output.

Everything fits into 80 columns, and plain lines are ASCII.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol, Self, TextIO

import attrs

from trio_nova.core.session import State
from trio_nova.demo.ledger import Ledger, Outage, Outcome, Report

__all__ = [
    "COLUMNS",
    "Display",
    "PlainDisplay",
    "Snapshot",
    "account",
    "choose_display",
    "duration",
    "introduction",
    "outage_cells",
    "verdict",
]

PLAIN_INTERVAL = 2.0
"""Seconds between two plain lines about how things are."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """How the session is at one moment."""

    elapsed: float
    """Seconds since the market opened."""
    seconds: float
    """Of the whole run."""
    state: State
    epoch: int
    rate: float
    """Messages received per second, over the last second."""
    rtt: float | None
    """Seconds."""


class Display(Protocol):
    """Shows one run. A context manager: inside the block it may own the terminal."""

    def __enter__(self) -> Self:
        """Take the terminal."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back, however the run ended."""

    def begin(self, url: str, opened: float, ledger: Ledger) -> None:
        """Take note of where the exchange is, of time zero (Trio's clock), and of the books to read from."""

    def refresh(self, snapshot: Snapshot) -> None:
        """Show how things are now."""

    def show_outage(self, outage: Outage) -> None:
        """Show an outage that is over."""

    def conclude(self, report: Report) -> None:
        """Show what came of it, after the block."""


def choose_display(seconds: float, *, plain: bool = False) -> Display:
    """Return a live display where standard output is a terminal and rich is installed, else a plain one."""
    if plain or not sys.stdout.isatty() or find_spec("rich") is None:
        return PlainDisplay(sys.stdout, seconds)
    from trio_nova.demo.live import LiveDisplay  # only here: rich is an extra

    return LiveDisplay(seconds)


# --------------------------------------------------------------------------- the words


def introduction(seconds: float) -> list[str]:
    """Say what is about to happen, and how long it takes."""
    return [
        f"For {seconds:g} s a client trades with an exchange that fails it in five ways: it drops",
        "the link, restarts, goes mute, refuses a redial, and resets the connection.",
        "Every tick and every order is accounted for. Ctrl-C ends it early.",
    ]


def duration(seconds: float | None) -> str:
    """Return a duration, short."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


COLUMNS: Sequence[tuple[str, int]] = (
    ("at", 6),
    ("the exchange", -17),
    ("the client saw", -14),
    ("noticed", 7),
    ("back", 7),
    ("lost", 5),
    ("waited", 6),
    ("unknown", 7),
)
"""The headings of the table of outages with their widths, negative where text stands to the left."""

LEGEND = "noticed, back: after how long. lost: ticks. waited, outcome unknown: orders."


def outage_cells(outage: Outage, opened: float, ledger: Ledger) -> list[str]:
    """Return what the table says of an outage, one text for each of `COLUMNS`."""
    return [
        f"{max(0.0, outage.began - opened):.1f} s",
        "did nothing" if outage.strike is None else outage.strike.fault.value,
        outage.sight,
        duration(outage.noticed - outage.began),
        duration(None if outage.back is None else outage.back - outage.began),
        f"{outage.lost}" if outage.over else "...",
        f"{outage.waited}",
        f"{ledger.orders.unknown_on(outage.epoch)}",
    ]


def account(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield the lines of the final account: the subject, where it changes; a number; what the number counts."""
    ledger, ticks, orders = report.ledger, report.ledger.ticks, report.ledger.orders
    yield "ticks", f"{report.emitted:,}", "emitted by the exchange"
    yield "", f"{ticks.received:,}", "received"
    yield "", f"{ticks.lost(announced=True):,}", "lost with a link, announced before the next tick came"
    yield "", f"{ticks.lost(announced=False):,}", "lost without notice"
    yield "", f"{ticks.again:,}", "received twice"
    unknown = [number for number, outcome in orders.outcomes.items() if outcome is Outcome.UNKNOWN]
    executed = sum(number in report.executed for number in unknown)
    yield "orders", f"{orders.placed:,}", f"placed, {orders.waited:,} of them while there was no link"
    yield "", f"{orders.count(Outcome.ACKNOWLEDGED):,}", "acknowledged"
    yield "", f"{len(unknown):,}", f"with an unknown outcome; the exchange had executed {executed:,}"
    yield "", f"{orders.count(Outcome.NOT_SENT) + orders.count(Outcome.EXPIRED):,}", "not sent, or expired"
    yield "", f"{sum(count - 1 for count in report.executed.values()):,}", "executed twice"
    down = sum(outage.back - outage.noticed for outage in ledger.outages if outage.back is not None)
    outages = f"{len(ledger.outages)} outage{'' if len(ledger.outages) == 1 else 's'}"
    yield "links", f"{ledger.links:,}", f"from {ledger.dials:,} dials; {outages}, {down:.1f} s without a link"


def verdict(report: Report) -> list[str]:
    """Return the verdict: one line where all is well, else one more for each finding."""
    interrupted = "Interrupted. " if report.interrupted else ""
    if not report.findings:
        return [f"{interrupted}Nothing was lost without notice, and nothing was done twice."]
    return [f"{interrupted}The books do not balance:", *(f"- {finding}" for finding in report.findings)]


# --------------------------------------------------------------------------- plain lines


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
        self._print(f"The exchange listens on {url}", "", _row([name for name, _ in COLUMNS]))

    def refresh(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed >= self._next_line and self._ledger is not None:
            self._next_line += PLAIN_INTERVAL
            self._print(
                f"       {snapshot.state.value}, link {snapshot.epoch}, {snapshot.rate:.0f} messages/s, "
                f"round trip {duration(snapshot.rtt)}"
            )

    def show_outage(self, outage: Outage) -> None:
        if self._ledger is not None:
            self._print(_row(outage_cells(outage, self._opened, self._ledger)))

    def conclude(self, report: Report) -> None:
        self._print("", LEGEND, "")
        self._print(*(f"{subject:7} {number:>7}  {text}" for subject, number, text in account(report)))
        self._print("", *verdict(report))

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._out)
        self._out.flush()


def _row(cells: Sequence[str]) -> str:
    padded = (cell.rjust(w) if w > 0 else cell.ljust(-w) for cell, (_, w) in zip(cells, COLUMNS, strict=True))
    return " ".join(padded).rstrip()
