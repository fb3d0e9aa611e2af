"""Run a campaign: `python -m trio_nova.testing.sim --seeds 300 --processes 2`, or one seed: `--seed 17`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trio_nova.testing.sim._campaign import Outcome, campaign
from trio_nova.testing.sim._run import run
from trio_nova.testing.sim._shrink import replay_test, shrink


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if nothing was violated, all seen that a campaign must see, and in time; else 1."""
    parser = argparse.ArgumentParser(prog="python -m trio_nova.testing.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument("--seed", type=int, help="only this one, with all that is known of it")
    parser.add_argument("--processes", type=int, default=1, help="how many run at once (default: 1)")
    parser.add_argument("--journal", type=Path, help="where to write the journal of --seed, as JSON lines")
    parser.add_argument("--twice", action="store_true", help="run each once more, in a process with another hash seed")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="fail where it takes longer")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to write a summary of the campaign, as JSON")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _run_one(options.seed, options.journal)
    seeds = range(options.first, options.first + options.seeds)
    report = campaign(seeds, processes=options.processes, hash_seed=1 if options.twice else None, on_outcome=_tell)
    print(report)
    problems = [f"never seen: {name}" for name in report.never_seen]
    if options.within is not None and report.seconds > options.within:
        problems.append(f"it took {report.seconds:.1f} s, and {options.within:g} s were allowed")
    if options.twice:
        again = campaign(seeds, processes=options.processes, hash_seed=2)
        problems += [f"seed {seed} was not the same run in another process" for seed in report.differing(again)]
    for problem in problems:
        print(problem)
    if options.report is not None:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(report.summary()), indent=2) + b"\n")
    if report.failures:
        _explain(report.failures[0].seed)
    return 1 if report.failures or problems else 0


def _tell(outcome: Outcome) -> None:
    """Say at once what is worth breaking a long campaign off for."""
    if outcome.violations:
        print(outcome, file=sys.stderr, flush=True)


def _run_one(seed: int, journal: Path | None) -> int:
    found = run(seed)
    print(found.scenario)
    for fault in found.schedule:
        print(" ", fault)
    print(found)
    if journal is not None:
        journal.write_bytes(b"".join(line + b"\n" for line in found.journal.lines()))
    if found.violations:
        _explain(seed)
    return 1 if found.violations else 0


def _explain(seed: int) -> None:
    failed = run(seed)
    if failed.violations:
        print("\nAs a test, with no more faults than it takes:\n")
        print(replay_test(shrink(failed)))


if __name__ == "__main__":
    sys.exit(main())
