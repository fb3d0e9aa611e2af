"""Run many seeds, in several processes, and say what was found and what was never met."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from trio_nova.testing.sim._checks import Violation
from trio_nova.testing.sim._run import run
from trio_nova.testing.sim._sights import SIGHTS

__all__ = ["Outcome", "Report", "campaign"]


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one seed, without its journal."""

    seed: int
    digest: str
    violations: tuple[Violation, ...]
    sights: frozenset[str]
    records: int
    virtual: float
    """Seconds of virtual time."""
    seconds: float
    """Real ones."""


@attrs.frozen(kw_only=True)
class Report:
    """What became of a campaign."""

    outcomes: tuple[Outcome, ...] = attrs.field(repr=False)
    """In the order of the seeds."""
    seconds: float

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The seeds that broke a rule."""
        return tuple(outcome for outcome in self.outcomes if outcome.violations)

    @property
    def sights(self) -> Counter[str]:
        """In how many seeds each sight was seen."""
        return Counter(sight for outcome in self.outcomes for sight in outcome.sights)

    @property
    def never_seen(self) -> tuple[str, ...]:
        """What the campaign should have met and did not."""
        return tuple(name for name in SIGHTS if not self.sights[name])

    @property
    def digest(self) -> str:
        """A hash of all digests."""
        return hashlib.blake2b("".join(each.digest for each in self.outcomes).encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        virtual, records = sum(each.virtual for each in self.outcomes), sum(each.records for each in self.outcomes)
        lines = [
            f"{len(self.outcomes)} seeds, {virtual / 3600:.1f} virtual hours, {records} records, {self.seconds:.1f} s; "
            f"digest {self.digest}",
            f"{len(self.failures)} seeds broke a rule",
        ]
        for outcome in self.failures:
            rules = Counter(violation.rule for violation in outcome.violations)
            lines.append(f"  seed {outcome.seed}: {dict(rules)}, first: {outcome.violations[0]}")
        lines.append("seen, in how many seeds:")
        lines += [f"  {self.sights[name]:6}  {name}" for name in sorted(SIGHTS, key=lambda name: -self.sights[name])]
        return "\n".join(lines)


def campaign(seeds: Iterable[int], *, processes: int = 1) -> Report:
    """Run every seed and return the report; the order of the seeds and the number of processes change nothing in it."""
    started = time.perf_counter()
    with _workers(processes) as play_all:
        outcomes = tuple(play_all(tuple(seeds)))
    return Report(outcomes=outcomes, seconds=time.perf_counter() - started)


def play(seed: int) -> Outcome:
    """Run one seed, and keep what is worth keeping of thousands."""
    found = run(seed)
    records = found.journal.records
    return Outcome(
        seed=seed,
        digest=found.digest,
        violations=found.violations,
        sights=found.sights,
        records=len(records),
        virtual=records[-1].at if records else 0.0,
        seconds=found.seconds,
    )


@contextmanager
def _workers(processes: int) -> Iterator[Any]:
    if processes == 1:
        yield lambda seeds: map(play, seeds)
        return
    # Not forked: a child that begins like its parent would prove nothing about other processes.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield lambda seeds: pool.imap(play, seeds, chunksize=4)
