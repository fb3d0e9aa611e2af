"""The demonstration as its user runs it: through the command line, over loopback, for a few real seconds."""

from __future__ import annotations

import io
import random
import re
import signal
import sys

import pytest

from trio_nova.__main__ import main
from trio_nova.core.session import State
from trio_nova.demo.audit import Report
from trio_nova.demo.journal import Fault, Journal, Strike, schedule
from trio_nova.demo.ledger import Ledger, Outage
from trio_nova.demo.market import CHANNELS, DELISTED, Market
from trio_nova.demo.show import PlainDisplay, choose_display
from trio_nova.demo.words import COLUMNS, Display, Snapshot, duration, outage_cells, verdict


def test_every_fault_is_survived_and_every_message_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["demo", "--plain", "--seconds", "4"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, ""), out
    lines = out.splitlines()
    assert lines[0].startswith("For 4 s a client trades with an exchange")
    assert lines[-1] == "Nothing was lost without notice, and nothing was done twice."
    for fault in Fault:
        assert re.search(rf"^ *\d+\.\d s {re.escape(fault.value)} ", out, re.MULTILINE), out
    assert all(len(line) < 80 and line.isascii() for line in lines)
    assert ", ".join(CHANNELS) in lines
    for nothing in ("lost without notice", "received twice, or out of order", "executed twice"):
        assert number_of(nothing, out) == 0, out
    assert number_of("from 7 dials", out) == number_of("began with authentication, by 6 different tokens", out) == 6
    assert number_of("got all subscriptions in their original order, each once", out) == 6
    assert number_of("lost inside gaps", out) == number_of("lost by the count of the gaps in the feeds", out) > 0
    assert number_of("confirmed at the end, as the exchange has it", out) == len(CHANNELS) - 1
    assert number_of(f"refused: {DELISTED}; the session is degraded", out) == 1
    assert number_of("executed", out) > number_of("requested", out) / 2
    assert number_of("answered with a refusal", out) > 0
    assert 0 < number_of("messages in the exchange's busiest second; it takes 50", out) <= 50


def number_of(what: str, out: str) -> int:
    """Return the number that stands before these words in the account."""
    found = re.search(rf" ([\d,]+)  {re.escape(what)}", out)
    assert found is not None, out
    return int(found[1].replace(",", ""))


@pytest.mark.soak
def test_a_message_hidden_on_a_healthy_link_is_told_of_and_condemned(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["demo", "--plain", "--seconds", "4", "--cheat"])
    out, err = capsys.readouterr()
    assert (status, err) == (1, ""), out
    assert out.splitlines()[-2:] == [
        "The books do not balance:",
        "- trades.BTC: messages that the exchange kept back on a healthy link: 1",
    ]
    assert number_of("lost without notice", out) == 0


@pytest.mark.parametrize("state", [State.READY, State.RECONNECTING])
def test_an_interrupt_ends_it_with_the_account_so_far(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted: list[Snapshot] = []

    def interrupt_soon(self: PlainDisplay, snapshot: Snapshot) -> None:
        if not interrupted and snapshot.elapsed > 0.4 and snapshot.state is state:
            interrupted.append(snapshot)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PlainDisplay, "refresh", interrupt_soon)
    status = main(["demo", "--plain", "--seconds", "10"])
    out, err = capsys.readouterr()
    assert (status, err) == (130, ""), out
    assert out.splitlines()[-1] == "Interrupted. Nothing was lost without notice, and nothing was done twice."


@pytest.mark.parametrize("seconds", ["1", "x", "nan", "1e9"])
def test_an_impossible_duration_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seconds", seconds]) == 2
    assert "must be a number from 4 to 600" in capsys.readouterr().err


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_error_is_explained_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def no_socket_left(*arguments: object) -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [OSError("too many open files")])])

    monkeypatch.setattr("trio_nova.__main__.run_demo", no_socket_left)
    assert main(["demo", "--plain"]) == 1
    assert capsys.readouterr().err == "OSError: too many open files\n"


def test_an_interrupt_that_comes_in_a_group_is_still_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*arguments: object) -> None:
        raise BaseExceptionGroup("tasks", [KeyboardInterrupt()])

    monkeypatch.setattr("trio_nova.__main__.run_demo", interrupted)
    assert main(["demo", "--plain"]) == 130


# --------------------------------------------------------------------------- the display


def report_of(ledger: Ledger, findings: list[str]) -> Report:
    market = Market(random.Random(0))
    market.emitted["trades.BTC"] = 1234
    return Report(ledger=ledger, journal=Journal(), market=market, findings=findings)


def play(display: Display, findings: list[str]) -> None:
    """Show a run with one outage that is over and one that is not."""
    over = Outage(1, 10.0, 1012, Strike(Fault.RESTART, 10.0), back=10.5, over=True, lost=100, waited=7)
    ledger = Ledger((), outages=[over, Outage(2, 20.0, 1006)], dials=2, links=2)
    with display:
        display.begin("ws://127.0.0.1:1/", 8.0, ledger)
        display.refresh(
            Snapshot(
                elapsed=12.5,
                seconds=20.0,
                state=State.READY,
                epoch=2,
                rate=225.0,
                rtt=0.0021,
                health="degraded",
                confirmed=5,
                pace=23,
            )
        )
        display.show_outage(over)
    display.conclude(report_of(ledger, findings))


@pytest.mark.parametrize("findings", [[], ["trades.BTC: messages lost without notice: 1"]])
@pytest.mark.parametrize("kind", ["plain", "live"])
def test_a_display_shows_how_it_is_each_outage_and_the_account(kind: str, findings: list[str]) -> None:
    out = io.StringIO()
    if kind == "plain":
        play(PlainDisplay(out, 20.0), findings)
    else:
        console = pytest.importorskip("rich.console")
        live = pytest.importorskip("trio_nova.demo.live")
        terminal = console.Console(file=out, force_terminal=True, color_system=None, width=80, highlight=False)
        play(live.LiveDisplay(20.0, terminal), findings)
    text = out.getvalue()
    for shown in (
        "For 20 s",
        "ready",
        "link 2",
        "225 messages/s",
        "2.1 ms",
        "5 of 6 channels",
        "degraded",
        "restarted (1012)",
        "nothing planned",
    ):
        assert shown in text
    for counted in (r"1,234 +messages emitted by the exchange", r"100 +7 +0$", r"2 +from 2 dials; 2 outages, 0\.5 s"):
        assert re.search(counted, re.sub(r" +$", "", text, flags=re.MULTILINE), re.MULTILINE), text
    last = text.rstrip().splitlines()[-1].rstrip()
    assert last == (f"- {findings[0]}" if findings else "Nothing was lost without notice, and nothing was done twice.")


def test_what_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(choose_display(20.0), PlainDisplay)


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "trio_nova.demo.live", raising=False)
    assert isinstance(choose_display(20.0), PlainDisplay)


def test_a_terminal_with_rich_gets_a_live_display_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    live = pytest.importorskip("trio_nova.demo.live")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_display(20.0), live.LiveDisplay)
    assert isinstance(choose_display(20.0, plain=True), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(20.0), PlainDisplay)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0004, "0.4 ms"), (0.0123, "12 ms"), (0.9996, "1.00 s"), (2.345, "2.35 s")]
)
def test_a_duration_is_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("fault", Fault)
def test_the_cells_of_an_outage_fit_their_columns(fault: Fault) -> None:
    outage = Outage(1, 609.0, 1006, Strike(fault, 599.0), status=503, back=650.0, lost=9999, waited=500, over=True)
    widths = [len(cell) for cell in outage_cells(outage, 0.0, Ledger(()))]
    assert all(width <= abs(room) for width, (_, room) in zip(widths, COLUMNS, strict=True))


def test_the_table_fits_80_columns() -> None:
    assert sum(abs(width) + 1 for _, width in COLUMNS) <= 80


def test_the_verdict_names_every_finding() -> None:
    assert verdict(report_of(Ledger(()), ["a: 1", "b: 2"])) == ["The books do not balance:", "- a: 1", "- b: 2"]


def test_every_fault_has_its_turn() -> None:
    assert sorted(fault.value for _, fault in schedule(20.0)) == sorted(fault.value for fault in Fault)
    assert all(0 < due < 20.0 for due, _ in schedule(20.0))
