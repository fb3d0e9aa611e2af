"""Bring trio_nova and other clients through the same faults: `nox -s survival`, or `python -m tests.survival`."""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from rich.console import Console

from tests.bench.machine import describe_machine
from tests.survival import report
from tests.survival.clients.table import CLIENTS
from tests.survival.judge import Account
from tests.survival.plan import SITUATIONS, Situation
from tests.survival.results import Results
from tests.survival.run import Certificate, Lap, Survival

_ROUNDS = 5
_SEED = 6455


def _situations(text: str) -> Sequence[Situation]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SITUATIONS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(SITUATIONS)}")
    return [SITUATIONS[name] for name in SITUATIONS if name in names]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s survival --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--only", type=_situations, default=list(SITUATIONS.values()), metavar="SITUATION,...")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"by default {_ROUNDS}")
    parser.add_argument("--seed", type=int, default=_SEED, help=f"of the fault script, by default {_SEED}")
    parser.add_argument("--write", action="store_true", help="write docs/survival.md also of a quick or partial run")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; write page and plots of what is kept")
    return parser.parse_args()


async def _measure(situations: Sequence[Situation], rounds: int, seed: int, console: Console) -> Results | None:
    """Return the results; None, and say why, where a lap failed."""
    began = trio.current_time()
    with tempfile.TemporaryDirectory() as folder, console.status("starting") as status:
        survival = Survival(seed, Certificate.make(Path(folder)), status.update)
        laps = await survival.measure(situations, list(CLIENTS), rounds)
    for name, client, lap in survival.failures(laps):
        console.print(f"[bold]failed[/bold]: {name}, {client}: {lap.failure}")
    if survival.failures(laps):
        return None
    return Results(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=describe_machine(),
        versions={client: survival.versions[client] for client in CLIENTS},
        seed=seed,
        rounds=rounds,
        seconds=trio.current_time() - began,
        repeated=survival.repeated,
        laps=_accounts(laps),
    )


def _accounts(laps: Mapping[str, Mapping[str, Sequence[Lap]]]) -> dict[str, dict[str, list[Account]]]:
    return {
        name: {client: [lap.account for lap in taken if lap.account is not None] for client, taken in by_client.items()}
        for name, by_client in laps.items()
    }


def main() -> int:
    """Do what the command line says; return the status to exit with."""
    options = _options()
    # The tables must not be folded where the output is no terminal.
    console = Console() if sys.stdout.isatty() else Console(width=180)
    if options.redraw:
        results = Results.read(report.RESULTS)
    else:
        rounds = 1 if options.quick else options.rounds
        measured = trio.run(_measure, options.only, rounds, options.seed, console)
        if measured is None:
            console.print("No comparison: a client that was not measured cannot be compared.")
            return 1
        results = measured
    report.show(results, console)
    whole = results.rounds >= _ROUNDS and len(results.laps) == len(SITUATIONS)
    if whole or options.write or options.redraw:
        # Only here: matplotlib takes a while to import.
        from tests.survival import plots

        plots.draw(results, report.FOLDER)
        report.write_page(results)
        console.print(f"written: {report.PAGE}, {report.FOLDER}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
