"""Find the smallest schedule that still breaks a rule, and print it as a test."""

from __future__ import annotations

import pprint
from collections.abc import Callable, Sequence

import attrs

from trio_nova.testing.sim._faults import Fault
from trio_nova.testing.sim._run import Run, run

__all__ = ["replay_test", "shrink"]

Replay = Callable[..., Run]


def shrink(failed: Run, *, most: int = 200, replay: Replay = run) -> Run:
    """Return a run that breaks one of the same rules with fewer and shorter faults.

    Faults are dropped while the rule stays broken, many at once and then one by one; what is left is
    shortened.

    Args:
        failed: a run with violations.
        most: how many runs to try.
        replay: plays a seed; `sim.run`, perhaps with a session of your own.
    """
    rules = {violation.rule for violation in failed.violations}
    best, tries = failed, 0

    def breaks(faults: Sequence[Fault]) -> bool:
        nonlocal best, tries
        if tries >= most:
            return False
        tries += 1
        found = replay(failed.seed, scenario=failed.scenario, faults=tuple(faults))
        if not rules.intersection(violation.rule for violation in found.violations):
            return False
        best = found
        return True

    size = max(1, len(best.schedule) // 2)
    while size:
        start = 0
        while start < len(best.schedule):
            if not breaks(best.schedule[:start] + best.schedule[start + size :]):
                start += size
        size //= 2
    for number, fault in enumerate(best.schedule):
        for part in (0.1, 0.25, 0.5):
            shorter = attrs.evolve(fault, lasts=round(fault.lasts * part, 3))
            if fault.lasts and breaks((*best.schedule[:number], shorter, *best.schedule[number + 1 :])):
                break
    return best


def replay_test(failed: Run) -> str:
    """Return the text of a test that plays a run again: a module that can be run as it is."""
    scenario, schedule = (
        pprint.pformat(value, width=110).replace("\n", "\n        ")
        for value in (failed.scenario, list(failed.schedule))
    )
    lines = [
        "from trio_nova.testing import sim",
        "",
        "",
        f"def test_seed_{failed.seed}() -> None:",
        *(f"    # {violation}" for violation in failed.violations[:5]),
        f"    run = sim.run(\n        {failed.seed},",
        f"        scenario=sim.{scenario},",
        f"        faults={schedule.replace('Fault(', 'sim.Fault(')},",
        "    )",
        "    assert not run.violations, run",
    ]
    return "\n".join(lines)
