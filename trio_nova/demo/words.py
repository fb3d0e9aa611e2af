"""What a display of the demonstration shows, and in which words: the same for every display, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import attrs

from trio_nova.core.session import State
from trio_nova.demo.audit import Report, well_begun, well_restored
from trio_nova.demo.journal import RateCount
from trio_nova.demo.ledger import Ledger, Outage, Outcome
from trio_nova.demo.market import BOOK, CHANNELS

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
    health: str
    """In one word."""
    confirmed: int
    """Channels that the exchange has granted on this link."""
    pace: int
    """Messages that the exchange has counted in its last period."""


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
    rate = RateCount()
    return [
        f"For {seconds:g} s a client trades with an exchange that fails it in five ways: it drops",
        "the link, restarts, goes mute, refuses a redial, and resets the connection.",
        f"It wants a new token on every link, and takes {rate.limit} messages a second. The client",
        f"follows {len(CHANNELS)} channels, one of which is taken away from it, and places orders.",
        "Every message is accounted for. Ctrl-C ends it early.",
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

LEGEND = "noticed, back: after how long. lost: data. waited, outcome unknown: orders."


def outage_cells(outage: Outage, opened: float, ledger: Ledger) -> list[str]:
    """Return what the table says of an outage, one text for each of `COLUMNS`."""
    return [
        f"{max(0.0, outage.began - opened):.1f} s",
        "nothing planned" if outage.strike is None else outage.strike.fault.value,
        outage.sight,
        duration(outage.noticed - outage.began),
        duration(None if outage.back is None else outage.back - outage.began),
        f"{outage.lost}" if outage.over or outage.lost else "...",
        f"{outage.waited}",
        f"{ledger.orders.unknown_on(outage.epoch)}",
    ]


def account(report: Report) -> Iterator[tuple[str, int, str]]:
    """Yield the lines of the final account: the subject, where it changes; a number; what the number counts."""
    yield from _account_of_links(report)
    yield from _account_of_data(report)
    yield from _account_of_orders(report)


def _account_of_links(report: Report) -> Iterator[tuple[str, int, str]]:
    ledger, journal = report.ledger, report.journal
    down = sum(outage.back - outage.noticed for outage in ledger.outages if outage.back is not None)
    outages = f"{len(ledger.outages)} outage{'' if len(ledger.outages) == 1 else 's'}"
    yield "links", ledger.links, f"from {ledger.dials:,} dials; {outages}, {down:.1f} s without a link"
    begun = sum(visit.token is not None and well_begun(visit) for visit in journal.visits)
    yield "", begun, f"began with authentication, by {len(set(journal.tokens)):,} different tokens"
    numbers = range(1, len(journal.visits) + 1)
    restored = sum(well_restored(number, journal) for number in numbers)
    yield "", restored, "got all subscriptions in their original order, each once"
    rate = journal.rate
    yield "", rate.worst, f"messages in the exchange's busiest second; it takes {rate.limit}"
    yield "", ledger.paced, "messages were held back by the client's limiter"
    confirmed = ledger.subscribed or []
    same = ledger.subscribed is not None and confirmed == journal.visits[-1].granted
    yield "channels", len(confirmed), f"confirmed at the end{', as the exchange has it' if same else ''}"
    refused = f": {', '.join(ledger.refused)}; the session is {ledger.health}" if ledger.refused else ""
    yield "", len(ledger.refused), f"refused{refused}"


def _account_of_data(report: Report) -> Iterator[tuple[str, int, str]]:
    ledger, book = report.ledger, report.ledger.series[BOOK]
    yield "data", sum(report.market.emitted.values()), "messages emitted by the exchange"
    yield "", ledger.received, "received"
    yield "", ledger.missing(announced=True), "lost inside gaps that were announced"
    yield "", ledger.told, "lost by the count of the gaps in the feeds"
    bridged = book.missing(announced=True)
    yield "", bridged, f"changes of the book missed, and made up for by {max(0, book.snapshots - 1)} snapshots"
    yield "", ledger.missing(announced=False) + book.missing(announced=False), "lost without notice"
    yield "", ledger.again, "received twice, or out of order"


def _account_of_orders(report: Report) -> Iterator[tuple[str, int, str]]:
    orders, executed, declined = report.ledger.orders, report.journal.executed, report.journal.declined
    yield "orders", orders.placed, f"requested, {orders.waited:,} of them while there was no link"
    yield "", orders.count(Outcome.EXECUTED), "executed"
    yield "", orders.count(Outcome.REFUSED), f"answered with a refusal; the exchange had refused {len(declined):,}"
    unknown = orders.having(Outcome.UNKNOWN)
    known = len(unknown & executed.keys())
    yield "", len(unknown), f"with an unknown outcome; the exchange had executed {known:,}"
    yield "", orders.count(Outcome.NOT_SENT), "not sent"
    yield "", sum(count - 1 for count in executed.values()), "executed twice"


def verdict(report: Report) -> list[str]:
    """Return the verdict: one line where all is well, else one more for each finding."""
    interrupted = "Interrupted. " if report.interrupted else ""
    if not report.findings:
        return [f"{interrupted}Nothing was lost without notice, and nothing was done twice."]
    return [f"{interrupted}The books do not balance:", *(f"- {finding}" for finding in report.findings)]
