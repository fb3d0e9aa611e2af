"""Run many seeds, in several processes, and say what was found and what was never met."""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import attrs

from trio_nova.testing.sim._checks import Violation
from trio_nova.testing.sim._run import run
from trio_nova.testing.sim._sights import SIGHTS

__all__ = ["Outcome", "Report", "campaign"]

_HASH_SEED = "PYTHONHASHSEED"


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

    def __str__(self) -> str:
        if not self.violations:
            return f"seed {self.seed}: every rule kept"
        rules = Counter(violation.rule for violation in self.violations)
        return f"seed {self.seed}: {dict(rules)}, first: {self.violations[0]}"


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

    @property
    def virtual_hours(self) -> float:
        """Of all runs together."""
        return sum(each.virtual for each in self.outcomes) / 3600

    @property
    def records(self) -> int:
        """Of all journals together."""
        return sum(each.records for each in self.outcomes)

    def summary(self) -> dict[str, Any]:
        """Return what is worth keeping of it, as JSON values, with what it was made by, and when."""
        seeds = [each.seed for each in self.outcomes]
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("trio", "trio-nova")},
            },
            "seeds": {"first": min(seeds, default=None), "last": max(seeds, default=None), "count": len(seeds)},
            "virtual_hours": round(self.virtual_hours, 3),
            "records": self.records,
            "seconds": round(self.seconds, 1),
            "digest": self.digest,
            "violations": {str(each.seed): [str(violation) for violation in each.violations] for each in self.failures},
            "sights": {name: self.sights[name] for name in SIGHTS},
        }

    def differing(self, other: Report) -> tuple[int, ...]:
        """Return the seeds that did not run there as they did here."""
        pairs = zip(self.outcomes, other.outcomes, strict=True)
        return tuple(here.seed for here, there in pairs if here.digest != there.digest)

    def __str__(self) -> str:
        lines = [
            f"{len(self.outcomes)} seeds, {self.virtual_hours:.1f} virtual hours, {self.records} records, "
            f"{self.seconds:.1f} s; digest {self.digest}",
            f"{len(self.failures)} seeds broke a rule",
        ]
        lines += [f"  {outcome}" for outcome in self.failures]
        lines.append("seen, in how many seeds:")
        lines += [f"  {self.sights[name]:6}  {name}" for name in sorted(SIGHTS, key=lambda name: -self.sights[name])]
        return "\n".join(lines)


def campaign(
    seeds: Iterable[int],
    *,
    processes: int = 1,
    hash_seed: int | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
) -> Report:
    """Run every seed and return the report.

    The order of the seeds and the number of processes change nothing in it, nor does `hash_seed`.

    Args:
        seeds: which to run.
        processes: how many run at once.
        hash_seed: Python's, for the hashes of `str` and `bytes`, on which the order of sets depends; the
            seeds are then run in processes of their own.
        on_outcome: called with each outcome as soon as it and all before it are known.
    """
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    with _workers(processes, hash_seed) as play_all:
        for outcome in play_all(tuple(seeds)):
            outcomes.append(outcome)
            if on_outcome is not None:
                on_outcome(outcome)
    return Report(outcomes=tuple(outcomes), seconds=time.perf_counter() - started)


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
def _workers(processes: int, hash_seed: int | None) -> Iterator[Any]:
    if processes == 1 and hash_seed is None:
        yield lambda seeds: map(play, seeds)
        return
    # Not forked: a child that begins like its parent would prove nothing about other processes.
    with _hash_seed(hash_seed):
        pool = multiprocessing.get_context("spawn").Pool(processes)
    with pool:
        yield lambda seeds: pool.imap(play, seeds, chunksize=4)


@contextmanager
def _hash_seed(hash_seed: int | None) -> Iterator[None]:
    """Let the processes that are started in the block have a hash seed."""
    before = os.environ.get(_HASH_SEED)
    if hash_seed is not None:
        os.environ[_HASH_SEED] = str(hash_seed)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_HASH_SEED] = before
        elif hash_seed is not None:
            del os.environ[_HASH_SEED]
