"""Measure trio_nova beside other clients: `nox -s bench`, or `python -m tests.bench` at the top of the tree."""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections.abc import Sequence

import attrs
import trio
from rich.console import Console

from tests.bench import report
from tests.bench.machine import describe_machine
from tests.bench.plan import CELLS, OURS, Cell
from tests.bench.results import Outcome, Results
from tests.bench.run import open_bench

_ROUNDS, _SECONDS = 5, 0.3
_QUICK_ROUNDS, _QUICK_SECONDS = 3, 0.05


def _cells(text: str) -> Sequence[Cell]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CELLS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    return [CELLS[name] for name in CELLS if name in names]


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short laps, few rounds, few connections")
    parser.add_argument("--only", type=_cells, default=list(CELLS.values()), metavar="CELL,...", help="run only these")
    parser.add_argument("--clients", default="", metavar="CLIENT,...", help="run only these, and ours")
    parser.add_argument("--rounds", type=int, help=f"{_ROUNDS}, or {_QUICK_ROUNDS} with --quick")
    parser.add_argument("--seconds", type=float, help=f"of a lap: {_SECONDS}, or {_QUICK_SECONDS} with --quick")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is not met")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md also of a quick or partial run")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; write page and plots of what is kept")
    return parser.parse_args(arguments)


def _for_clients(cells: Sequence[Cell], text: str) -> Sequence[Cell]:
    if not text:
        return cells
    wanted = {OURS, *text.split(",")}
    return [attrs.evolve(cell, contenders=tuple(name for name in cell.contenders if name in wanted)) for cell in cells]


async def _measure(cells: Sequence[Cell], rounds: int, seconds: float, quick: bool, console: Console) -> Results:
    names = list(dict.fromkeys(itertools.chain.from_iterable(cell.contenders for cell in cells)))
    outcomes: dict[str, dict[str, Outcome]] = {}
    began = trio.current_time()
    with console.status("starting") as status:
        async with open_bench(names, rounds=rounds, seconds=seconds, quick=quick, tell=status.update) as bench:
            for _, group in itertools.groupby(cells, key=lambda cell: cell.together or cell.name):
                together = list(group)
                laps = await bench.measure(together)
                for cell in together:
                    outcomes[cell.name] = {name: Outcome.of(cell, taken) for name, taken in laps[cell.name].items()}
                    console.log(f"{cell.title}: {trio.current_time() - began:.0f} s")
            versions = {name: client.versions for name, client in bench.clients.items() if client.versions}
    return Results(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=_machine(),
        versions=versions,
        rounds=rounds,
        seconds=seconds,
        quick=quick,
        cells=outcomes,
    )


def _machine() -> dict[str, str]:
    machine = describe_machine()
    shared = "1, shared by server and clients"
    return {
        **machine,
        "cores": shared if machine["cores"] == "1" else f"{machine['cores']}, server and clients on one each",
    }


def main() -> int:
    """Do what the command line says; return the status to exit with."""
    options = _options()
    # The tables must not be folded where the output is no terminal.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    if options.redraw:
        results = Results.read(report.RESULTS)
    else:
        rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
        seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
        cells = _for_clients(options.only, options.clients)
        results = trio.run(_measure, cells, rounds, seconds, options.quick, console)
    report.show(results, console)
    all_met = report.show_goals(results, console)
    whole = not options.quick and not options.clients and len(results.cells) == len(CELLS)
    if whole or options.write or options.redraw:
        # Only here: matplotlib takes a while to import, and memory.
        from tests.bench import plots

        plots.draw(results, report.FOLDER)
        report.write_page(results)
        console.print(f"written: {report.PAGE}, {report.FOLDER}/")
    return 1 if options.check and not all_met else 0


if __name__ == "__main__":
    sys.exit(main())
