"""How results are shown: a table on the terminal, a page of the documentation, plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.plan import CELLS, GOALS, LIMIT, OURS, Cell, Goal, Metric
from tests.bench.results import Outcome, Results, Spread, is_met

PAGE = Path("docs/benchmarks.md")
FOLDER = Path("docs/benchmarks")
RESULTS = FOLDER / "results.json"


def show(results: Results, console: Console) -> None:
    """Print a table for each cell."""
    for cell in _measured(results):
        table = Table(title=cell.title, title_justify="left", min_width=90)
        table.add_column("client")
        for metric in cell.metrics:
            table.add_column(f"{metric.name}, {metric.unit}", justify="right")
        table.add_column(f"{OURS} / it ({cell.metrics[0].name})", justify="right")
        for name, outcome in results.cells[cell.name].items():
            if outcome.failure:
                table.add_row(name, _excuse(outcome), *[""] * len(cell.metrics), style="dim")
            else:
                table.add_row(name, *(_spread(outcome, metric) for metric in cell.metrics), _ratio(results, cell, name))
        console.print(table)
        if at_limit := beyond_limit(results, cell):
            console.print(_warning(at_limit), style="yellow")


def beyond_limit(results: Results, cell: Cell) -> list[str]:
    """Return the clients that are as fast as the stream alone: they may have met a limit that is not their own."""
    limit = results.cells[cell.name].get(LIMIT, Outcome()).spread("rate")
    if cell.verb != "flood" or limit is None:
        return []
    return [
        name
        for name, outcome in results.cells[cell.name].items()
        if name != LIMIT and (spread := outcome.spread("rate")) is not None and spread.median > 0.9 * limit.median
    ]


def show_goals(results: Results, console: Console) -> bool:
    """Print how the goals fare whose cells were run; return whether each of those is met."""
    table = Table(title=f"Goals of {OURS}", title_justify="left", min_width=90)
    for column in ("goal", "reached", ""):
        table.add_column(column)
    all_met = True
    for goal in GOALS:
        if goal.cell not in results.cells or (goal.than_cell and goal.than_cell not in results.cells):
            continue
        reached = results.reached(goal, OURS)
        met = reached is not None and is_met(goal, reached)
        all_met = all_met and met
        table.add_row(_goal(goal), "no result" if reached is None else _times(reached), "met" if met else "NOT met")
    if table.row_count:
        console.print(table)
    return all_met


def write_page(results: Results) -> None:
    """Write the page of the documentation, its plots, and the results that both are made from."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results.write(RESULTS)
    PAGE.write_text("\n".join(page(results)) + "\n")


# --------------------------------------------------------------------------- the page


def page(results: Results) -> list[str]:
    """Return the lines of the page."""
    return list(_page(results))


def _page(results: Results) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield (
        "trio_nova beside other WebSocket clients, all doing the same work in the same minutes on one machine. "
        "This page is written by the benchmark itself, from [results.json](benchmarks/results.json)."
    )
    yield ""
    yield "```console"
    yield "$ nox -s bench                                    # about 13 minutes; writes this page"
    yield "$ nox -s bench -- --quick                         # about 2 minutes, rough"
    yield "$ nox -s bench -- --only receive-200,echo         # some of it"
    yield "$ nox -s bench -- --check                         # fails where a goal is not met"
    yield "```"
    yield ""
    yield "## What it ran on"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| date | {results.date} |"
    for name, value in results.machine.items():
        yield f"| {name} | {value} |"
    quick = " (--quick)" if results.quick else ""
    laps = f"of laps of about {results.seconds:g} s"
    yield f"| rounds | {results.rounds}, and two or three times as many where laps vary most, {laps}{quick} |"
    yield ""
    yield "| client | versions |"
    yield "| --- | --- |"
    for client, versions in results.versions.items():
        yield f"| {client} | {', '.join(f'{name} {version}' for name, version in versions.items())} |"
    yield ""
    yield "## What is fair about it"
    yield ""
    yield from _FAIR.strip().splitlines()
    yield ""
    yield "## Goals"
    yield ""
    yield "| goal | reached | |"
    yield "| --- | --- | --- |"
    for goal in GOALS:
        reached = results.reached(goal, OURS)
        verdict = "no result" if reached is None else "met" if is_met(goal, reached) else "**not met**"
        yield f"| {_goal(goal)} | {'' if reached is None else _times(reached)} | {verdict} |"
    yield ""
    yield "## Results"
    yield ""
    yield (
        "Each figure is the median of the rounds, with the least and the most. The last column is the figure of "
        f"`{OURS}` divided by the client's, round by round: where more is better, 2.00 is twice as good; where "
        "less is better, 0.50 is."
    )
    for cell in _measured(results):
        yield ""
        yield f"### {cell.title[0].upper()}{cell.title[1:]}"
        yield ""
        if (plot := FOLDER / f"{cell.name}.svg").exists():
            yield f"![{cell.title}](benchmarks/{plot.name})"
            yield ""
        yield from _markdown(results, cell)
        if at_limit := beyond_limit(results, cell):
            yield ""
            yield _warning(at_limit)


def _markdown(results: Results, cell: Cell) -> Iterator[str]:
    heads = [f"{metric.name}, {metric.unit}" for metric in cell.metrics]
    yield f"| client | {' | '.join(heads)} | {OURS} / it |"
    yield f"| --- |{' ---: |' * (len(heads) + 1)}"
    for name, outcome in results.cells[cell.name].items():
        if outcome.failure:
            words = [_excuse(outcome), *[""] * len(heads)]
        else:
            words = [*(_spread(outcome, metric) for metric in cell.metrics), _ratio(results, cell, name)]
        yield f"| {name} | {' | '.join(words)} |"


_FAIR = """
- **The server is not what is measured.** It has a core to itself, blocking sockets, no WebSocket library, and frames
  that were made before the clock started. The line `raw Trio stream` takes the same bytes off the same server and
  parses nothing: that is about the limit of what any client on Trio could do here. Where a client comes near it, a
  line below the table says so.
- **All clients meet the same moment.** Each has a process of its own, pinned to the other core. They take their laps
  in turn (A, B, C, A, B, C, ...), and a ratio is made of two laps of the same round.
- **No result without proof.** Before the laps that count, each client receives a flood whose checksum is compared
  with what the server meant to send. In each lap that counts, the client's number of messages and bytes and its last
  message must be those that the server wrote down. Where they differ, the cell says "failed" and has no ratio.
- **The same work, for about the same time.** Size and content of the messages are the same for all. How many a lap
  takes is fitted to each client's speed, so that a slow one is not waited for, and a fast one is not measured by a
  blink. Opening the connection is not in the lap, but where it is what is measured.
- **As their documentation says.** No client is tuned. Compression is off but where it is measured; messages of 16 MiB
  are allowed; keepalive is as each library has it (trio-websocket, aiohttp and picows send no pings of themselves).
  aiohttp and httpx-ws share one session among their connections, without the limit of 100 that its pool has.
- **A send is over when the server has it.** The lap of a sender ends when the server says that all messages have come:
  a client that merely buffers them gains nothing.
- **Ours is a session, theirs are sockets.** trio_nova reconnects, restores, paces and accounts for each message
  meanwhile. The others are measured without anything that would do so.

What to know when comparing:

- picows has no call to await: `picows` counts in its callbacks, which saves it the whole scheduling of a task.
  `picows.websockets` is its interface that is awaited. Where "in batches" is measured, clients without batches do what
  they do else.
- "Decoded and routed" is, for the others, `json.loads`, a look-up by channel, and a bounded queue to another task;
  ours is a subscription with `JsonCodec`, which decodes by msgspec.
- "Through n subscriptions": as many channels as subscriptions, in turn, one task that takes the messages of all feeds.
- A wake-up is late by however long the event loop, and the machine, kept a task from running that slept 1 ms.
- Memory is the growth of the resident set of a fresh process by n connections, divided by n, all background tasks
  running.
"""


# --------------------------------------------------------------------------- words


def _measured(results: Results) -> Sequence[Cell]:
    return [cell for name, cell in CELLS.items() if name in results.cells]


def _excuse(outcome: Outcome) -> str:
    return f"not available: {outcome.failure}" if outcome.unavailable else f"failed: {outcome.failure}"


def _warning(names: Sequence[str]) -> str:
    return f"As fast as the stream alone, so maybe held up by the server, not by itself: {', '.join(names)}."


def _spread(outcome: Outcome, metric: Metric) -> str:
    spread = outcome.spread(metric.name)
    assert spread is not None
    return f"{_figure(spread.median)} ({_figure(spread.least)} - {_figure(spread.most)})"


def _ratio(results: Results, cell: Cell, name: str) -> str:
    ratio = results.ratio(cell.name, cell.metrics[0].name, OURS, name)
    return "" if ratio is None or name == OURS else _times(ratio)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f} - {spread.most:.2f})"


def _goal(goal: Goal) -> str:
    bound = f"{'>=' if goal.at_least else '<='} {goal.bound:g}"
    if goal.than or goal.than_cell:
        return f"{goal.cell} {goal.metric} {bound} x {goal.than or goal.than_cell}"
    unit = next(metric.unit for metric in CELLS[goal.cell].metrics if metric.name == goal.metric)
    return f"{goal.cell} {goal.metric} {bound} {unit}"
