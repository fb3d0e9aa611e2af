"""The hunt for planted defects works: a small part of what `nox -s mutants` does."""

from __future__ import annotations

import attrs
import pytest

from tests.sim.mutants import MUTANTS, hunt
from trio_nova.testing import sim


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_can_be_planted_and_leaves_nothing_behind(name: str) -> None:
    edits = MUTANTS[name].edits
    before = [edit.original for edit in edits]
    with MUTANTS[name].planted():
        assert all(edit.original is not original for edit, original in zip(edits, before, strict=True))
    assert [edit.original for edit in edits] == before


def test_every_mutant_is_meant_for_rules_that_there_are() -> None:
    assert {rule for mutant in MUTANTS.values() for rule in mutant.rules.split()} <= set(sim.CHECKS)


@pytest.mark.parametrize(("name", "rule"), [("forgotten channel", "U1"), ("stale masks", "X3")], ids=["U1", "X3"])
def test_a_planted_defect_is_found_within_a_few_seeds(name: str, rule: str) -> None:
    assert rule in hunt(name, range(1, 21)).rules


@pytest.mark.parametrize("kind", sim.SERVERS)
def test_a_reader_that_never_stops_is_found_where_consumers_lag(kind: sim.ServerKind) -> None:
    scenario = sim.Scenario(server=kind, length=30.0, slice_size=1_000, lags=True)
    floods = [sim.Fault("flood", at, args={"count": 200}) for at in (8.0, 16.0, 24.0)]
    assert not sim.run(1, scenario=scenario, faults=floods).violations
    with MUTANTS["bottomless inbox"].planted():
        run = sim.run(1, scenario=scenario, faults=floods)
    assert {violation.rule for violation in run.violations} == {"M1"}


def test_a_mutant_that_only_breaks_the_run_is_not_caught_unless_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(seed: int) -> sim.Run:
        raise ZeroDivisionError("a mutant")

    monkeypatch.setattr(sim, "run", crash)
    found = hunt("stale masks", range(1, 100))
    assert (found.seeds, found.crashes, found.rules, found.is_caught) == (20, 20, (), False)
    assert found.verdict == "only a crash: ZeroDivisionError: a mutant"
    monkeypatch.setitem(MUTANTS, "stale masks", attrs.evolve(MUTANTS["stale masks"], may_crash=True))
    found = hunt("stale masks", range(1, 100))
    assert (found.seeds, found.is_caught) == (1, True)


def test_a_mutant_that_is_not_found_is_said_to_live() -> None:
    assert hunt("forgetful limiter", []).rules == ()
