"""The results as they are kept: what was measured, on what, and how it is summed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import msgspec

from tests.bench.results import Spread
from tests.survival.judge import Account


@attrs.frozen(kw_only=True)
class Results:
    """One run. It has an account of every lap: of a run in which one failed, no results are made."""

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    """By client: its library's version, and those of what it runs on."""
    seed: int
    rounds: int
    seconds: float
    """That the whole run took."""
    repeated: int
    """Laps that had to be run again, since the first time said nothing about the client."""
    laps: Mapping[str, Mapping[str, Sequence[Account]]]
    """By situation and client, one account for each round."""

    @property
    def clients(self) -> Sequence[str]:
        """The names of the clients, in their order."""
        return list(self.versions)

    def spread(self, situation: str, client: str, figure: Callable[[Account], float | None]) -> Spread | None:
        """Return a figure of those rounds that have one; None where none has."""
        values = [value for each in self.laps[situation][client] if (value := figure(each)) is not None]
        return Spread.of(values) if values else None

    def total(self, situation: str, client: str, figure: Callable[[Account], int]) -> int:
        """Return the sum of a count over the rounds."""
        return sum(map(figure, self.laps[situation][client]))

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return results that were written."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def dials_per_minute(account: Account) -> float:
    """Return how often the client dials while the service is down, if it goes on like that."""
    return account.dials / account.outage * 60


def dials_per_minute_alive(account: Account) -> float | None:
    """Return the same; None where the client's loop has ended."""
    return None if account.death else dials_per_minute(account)
