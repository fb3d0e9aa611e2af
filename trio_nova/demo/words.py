"""What a display of the demonstration shows, and in which words: the same for every display, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import attrs

from trio_nova.core.session import State
from trio_nova.demo.ledger import Ledger, Outage, Outcome, Report

__all__ = [
    "COLUMNS",
    "LEGEND",
    "Display",
    "Snapshot",
    "account",
    "duration",
    "introduction",
    "outage_cells",
    "verdict",
]


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
    ("at", 7),
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
        f"{outage.lost}" if outage.over or outage.lost else "...",
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
