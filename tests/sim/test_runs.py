"""Runs are repeatable, faults are survived, and what fails is made small."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio._core import _run

import trio_nova
from trio_nova.links import TrioWebsocketTransport
from trio_nova.testing import sim
from trio_nova.testing.sim.__main__ import main

SHORT = sim.Scenario(length=30.0, settle=85.0)

PRINT_DIGESTS = """
import json, sys
from trio_nova.testing import sim
found = {}
for seed in json.loads(sys.argv[1]):
    run = sim.run(seed)
    found[seed] = [run.digest, len(run.journal.records)]
print(json.dumps(found))
"""


def scenario_of(kind: sim.ServerKind) -> sim.Scenario:
    return attrs.evolve(SHORT, server=kind, grant=20.0, limit=None)


# --------------------------------------------------------------------------- the same again


def test_a_run_is_the_same_in_other_processes_whatever_the_hash_seed() -> None:
    seeds = [5]
    found = []
    for hash_seed in ("0", "1"):
        printed = subprocess.run(
            [sys.executable, "-c", PRINT_DIGESTS, json.dumps(seeds)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
            timeout=600,
        ).stdout
        found.append(json.loads(printed))
    assert found[0] == found[1]
    here = {str(seed): sim.run(seed).digest for seed in seeds}
    assert here == {seed: digest for seed, (digest, _) in found[0].items()}


def test_another_seed_is_another_run() -> None:
    assert len({sim.run(seed, scenario=SHORT, faults=()).digest for seed in range(5)}) == 5


def test_a_block_of_determinism_leaves_the_process_as_it_was() -> None:
    before = os.urandom, _run._ALLOW_DETERMINISTIC_SCHEDULING, gc.isenabled()
    random.seed(5)
    expected = random.random()
    random.seed(5)
    with sim.deterministic(1):
        drawn = os.urandom(8), random.random()
    assert random.random() == expected
    with sim.deterministic(1):
        assert (os.urandom(8), random.random()) == drawn
    assert (os.urandom, _run._ALLOW_DETERMINISTIC_SCHEDULING, gc.isenabled()) == before


# --------------------------------------------------------------------------- faults


@pytest.mark.fault("F63", "F64", "F68", "F92", "F111", "F115", where="simulator")
@pytest.mark.parametrize("name", sim.FAULTS)
def test_a_session_survives_every_kind_of_fault(name: str) -> None:
    kind = sim.FAULTS[name]
    dice = random.Random(name)
    scenario = next(scenario_of(each) for each in sim.SERVERS if not kind.servers or each in kind.servers)
    faults = [kind.draw(dice, at) for at in (4.0, 15.0)]
    run = sim.run(1, scenario=scenario, faults=faults)
    assert not run.violations, run
    begun = [record["kind"] for record in run.journal.records if record.what == "fault.begin"]
    assert begun == [name, name]


def test_a_network_too_narrow_for_what_is_said_carries_it_once_all_is_well() -> None:
    run = sim.run(
        17229,
        scenario=sim.Scenario(
            server="deribit",
            channels=6,
            length=60.0,
            latency=0.2,
            jitter=0.1,
            window=512,
            interval=0.5,
            grant=45.0,
            when_down="buffer",
        ),
        faults=[
            sim.Fault("slices", 5.992, 0.31, {"direction": "s2c", "to": 50}),
            sim.Fault("slices", 15.224, 2.525, {"direction": "both", "to": 50}),
            sim.Fault("swizzle", 28.795, 16.559),
            sim.Fault("mute", 59.517, 0.756),
        ],
    )
    assert not run.violations, run


@pytest.mark.parametrize("kind", sim.SERVERS)
def test_consumers_that_lag_stop_the_reading_and_are_given_all_in_the_end(kind: sim.ServerKind) -> None:
    floods = [sim.Fault("flood", at, args={"count": 200}) for at in (8.0, 16.0, 24.0)]
    run = sim.run(1, scenario=attrs.evolve(scenario_of(kind), lags=True), faults=floods)
    assert not run.violations, run
    assert "a session that stopped reading, as too much waited" in run.sights


@pytest.mark.parametrize("kind", sim.SERVERS)
def test_a_perfect_network_loses_nothing(kind: sim.ServerKind) -> None:
    run = sim.run(1, scenario=scenario_of(kind), faults=())
    assert not run.violations, run
    left = [record for record in run.journal.records if record.what == "net.broken"]
    assert not left


def test_the_other_transport_keeps_the_rules_too() -> None:
    for seed in range(1, 4):
        run = sim.run(seed, transport=TrioWebsocketTransport())
        assert not run.violations, run


def test_schedules_are_drawn_from_the_seed_and_some_have_one_kind_of_fault() -> None:
    schedules = [sim.draw_schedule(seed, sim.draw_scenario(seed)) for seed in range(200)]
    assert schedules == [sim.draw_schedule(seed, sim.draw_scenario(seed)) for seed in range(200)]
    kinds = [{fault.kind for fault in schedule} for schedule in schedules]
    assert sum(len(each) == 1 for each in kinds) >= 20
    assert set().union(*kinds) == set(sim.FAULTS)


# --------------------------------------------------------------------------- campaigns


@pytest.mark.soak
def test_a_campaign_finds_nothing_and_is_the_same_in_one_process_and_in_two() -> None:
    report = sim.campaign(range(1, 13), processes=2)
    assert not report.failures, report
    assert [outcome.seed for outcome in report.outcomes] == list(range(1, 13))
    assert sim.campaign(range(1, 4)).outcomes[2].digest == report.outcomes[2].digest


def test_a_campaign_that_saw_too_little_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--first", "7"]) == 1
    assert "never seen: " in capsys.readouterr().out


@pytest.fixture
def contented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask of a campaign that it sees a gap notice, and nothing else."""
    for name in sim.SIGHTS.keys() - {"a gap notice"}:
        monkeypatch.delitem(sim.SIGHTS, name)


@pytest.mark.usefixtures("contented")
def test_a_campaign_leaves_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "campaign.json"
    assert main(["--seeds", "2", "--report", str(kept)]) == 0
    report = json.loads(kept.read_bytes())
    assert report["seeds"] == {"first": 1, "last": 2, "count": 2}
    assert report["digest"] in capsys.readouterr().out
    assert report["versions"]["trio"] == trio.__version__
    assert report["violations"] == {}
    assert report["sights"] == {"a gap notice": 2}
    assert {"date", "records", "seconds", "virtual_hours"} <= report.keys()


@pytest.mark.usefixtures("contented")
def test_a_campaign_that_takes_too_long_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--within", "600"]) == 0
    assert main(["--seeds", "1", "--within", "0.001"]) == 1
    assert "and 0.001 s were allowed" in capsys.readouterr().out


@pytest.mark.usefixtures("contented")
@pytest.mark.soak
def test_a_campaign_that_is_run_twice_is_the_same_whatever_the_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert main(["--seeds", "2", "--twice"]) == 0
    assert os.environ["PYTHONHASHSEED"] == "7"


def test_seeds_that_are_not_the_same_run_are_named() -> None:
    report = sim.campaign([1, 2])
    other = attrs.evolve(report.outcomes[1], digest="another")
    assert report.differing(attrs.evolve(report, outcomes=(report.outcomes[0], other))) == (2,)
    assert report.differing(report) == ()


def test_one_seed_is_shown_with_its_faults_and_its_journal_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "journal.jsonl"
    assert main(["--seed", "7", "--journal", str(kept)]) == 0
    shown = capsys.readouterr().out
    run = sim.run(7)
    assert run.digest in shown
    assert all(str(fault) in shown for fault in run.schedule)
    assert [record.line() for record in sim.read_journal(kept.read_bytes().splitlines())] == list(run.journal.lines())


# --------------------------------------------------------------------------- a program of one's own


async def fragile(world: sim.World) -> None:
    """Hold a session that gives up at the first loss of its link."""
    async with trio_nova.open_connection("ws://venue.sim/", max_attempts=0, **world.options):
        await trio.sleep(world.scenario.length)


def test_what_leaves_a_program_is_a_violation_and_kept() -> None:
    run = sim.run(1, scenario=SHORT, faults=[sim.Fault("reset", 5.0, args={"end": "both"})], session=fragile)
    assert [violation.rule for violation in run.violations] == ["E1"]
    assert isinstance(run.crash, trio_nova.LinkLost)


def test_a_failing_schedule_is_made_as_small_as_it_gets() -> None:
    noise = [sim.Fault("jitter", float(at), 2.0, {"direction": "both", "to": 0.3}) for at in range(8)]
    hole = sim.Fault("hole", 9.0, 20.0, {"direction": "c2s", "reach": "links"})
    play = partial(sim.run, session=sleepless)
    failed = play(1, scenario=SHORT, faults=[*noise, hole, *noise])
    assert failed.violations
    small = sim.shrink(failed, replay=play)
    (left,) = small.schedule
    assert left.kind == "hole"
    assert left.lasts < hole.lasts
    test = sim.replay_test(small)
    assert "sim.Fault(kind='hole'" in test
    assert eval(test[test.index("[") : test.rindex("]") + 1], {"sim": sim}) == [left]


def test_the_test_of_a_failed_run_can_be_run_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(history: sim.History) -> list[sim.Violation]:
        return [sim.Violation("Q1", record.at, record["kind"]) for record in history.all("fault.begin")]

    monkeypatch.setitem(sim.CHECKS, "Q1", sim.Check("Q1", "nothing goes wrong", judge))
    failed = sim.run(5, scenario=SHORT, faults=[sim.Fault("fin", 3.0, args={"direction": "s2c"})])
    made: dict[str, Any] = {}
    exec(sim.replay_test(failed), made)
    with pytest.raises(AssertionError, match=r"Q1 at 3\.000: fin"):
        made["test_seed_5"]()
    monkeypatch.undo()
    made["test_seed_5"]()


async def sleepless(world: sim.World) -> None:
    """Hold a session that expects an answer to a ping within a second, always."""
    async with trio_nova.open_connection("ws://venue.sim/", **world.options) as conn:
        while trio.current_time() < world.scenario.length - 5.0:
            await trio.sleep(0.2)
            with trio.fail_after(1.0):
                await conn.ping()


@pytest.mark.soak
def test_tasks_that_spin_are_found_out() -> None:
    async def spin(world: sim.World) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    run = sim.run(1, scenario=SHORT, faults=(), session=spin)
    assert [violation.rule for violation in run.violations] == ["L4"]


def test_a_program_that_never_ends_is_stuck() -> None:
    async def wait(world: sim.World) -> None:
        await trio.sleep_forever()

    run = sim.run(1, scenario=SHORT, faults=(), session=wait)
    assert [violation.rule for violation in run.violations] == ["L4"]


def test_a_secret_in_the_log_is_found() -> None:
    async def leak(world: sim.World) -> None:
        logging.getLogger("trio_nova").warning("the token is %s", sim.CANARY)

    run = sim.run(1, scenario=SHORT, faults=(), session=leak)
    assert [violation.rule for violation in run.violations] == ["X1"]
