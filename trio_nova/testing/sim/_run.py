"""Run one seed: the world, its faults, its clients, and the verdict."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs
import trio
import trio.testing

from trio_nova.links import Transport
from trio_nova.testing._frames import ProtocolBreach
from trio_nova.testing.sim._checks import MOST_TEXT, History, Violation, check
from trio_nova.testing.sim._determinism import deterministic
from trio_nova.testing.sim._faults import Fault, draw_schedule, make_fair, play_schedule
from trio_nova.testing.sim._journal import Journal
from trio_nova.testing.sim._kinds import SERVERS
from trio_nova.testing.sim._net import SimNet
from trio_nova.testing.sim._scenario import BACKUP, CANARY, ELSEWHERE, Scenario, draw_scenario
from trio_nova.testing.sim._sights import look
from trio_nova.testing.sim._workload import drive
from trio_nova.testing.sim._world import World

__all__ = ["Run", "run"]

HOST = "venue.sim"
PATIENCE = 60.0
"""Seconds after the planned end of a run, beyond which it is stuck."""
MOST_STEPS = 200_000
"""Steps that tasks may take in one instant; a flood takes thousands."""

Session = Callable[[World], Awaitable[object]]


@attrs.frozen(kw_only=True)
class Run:
    """What became of one seed."""

    seed: int
    scenario: Scenario
    schedule: tuple[Fault, ...]
    journal: Journal = attrs.field(repr=False)
    violations: tuple[Violation, ...]
    sights: frozenset[str]
    """Which of `SIGHTS` were seen."""
    digest: str
    """Equal in every process, for the same seed and program."""
    seconds: float
    """Real ones that it took."""
    crash: Exception | None = attrs.field(default=None, repr=False)
    """What left the simulated program, if anything did."""

    def __str__(self) -> str:
        verdict = "\n".join(f"  {violation}" for violation in self.violations) or "  nothing violated"
        return f"seed {self.seed}, {len(self.journal.records)} records, digest {self.digest}:\n{verdict}"


def run(
    seed: int,
    *,
    scenario: Scenario | None = None,
    faults: Iterable[Fault] | None = None,
    session: Session = drive,
    transport: Transport | None = None,
) -> Run:
    """Play one seed from beginning to end, in virtual time, and judge it.

    Call it outside of Trio. The same arguments give the same journal, in any process.

    Args:
        seed: of everything that is random.
        scenario: the set-up; by default the seed's own.
        faults: what goes wrong; by default the seed's own schedule.
        session: what to run in the world in place of the campaign's clients.
        transport: what opens their links; by default what `trio_nova.Config` has.
    """
    started = time.perf_counter()
    scenario = draw_scenario(seed) if scenario is None else scenario
    schedule = draw_schedule(seed, scenario) if faults is None else tuple(faults)
    journal = Journal()
    with deterministic(seed), _watch_logs(journal, logging.DEBUG if scenario.verbose else logging.INFO):
        world = _make_world(seed, scenario, journal, transport)
        try:
            trio.run(_play, world, schedule, session, clock=trio.testing.MockClock(autojump_threshold=0))
        except* ProtocolBreach:
            pass  # it has ended the service; the journal has what the client wrote, and is judged by it
    history = History(journal.records, scenario)
    return Run(
        seed=seed,
        scenario=scenario,
        schedule=schedule,
        journal=journal,
        violations=check(history),
        sights=look(history),
        digest=journal.digest(),
        seconds=time.perf_counter() - started,
        crash=world.crash,
    )


async def _play(world: World, schedule: tuple[Fault, ...], session: Session) -> None:
    scenario, journal = world.scenario, world.journal
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        nursery.start_soon(world.net.run, name="sim:net")
        for server in world.servers.values():
            nursery.start_soon(server.run, name=f"sim:{server.name}")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(play_schedule, world, schedule, name="sim:faults")
        patience = trio.CancelScope(deadline=scenario.length + scenario.settle + PATIENCE)
        watch = _SpinWatch(world, patience)
        with patience:
            trio.lowlevel.add_instrument(watch)
            try:
                await session(world)
            except Exception as exc:
                journal.add("run.crashed", error=f"{type(exc).__name__}: {exc}")
                world.crash = exc
            trio.lowlevel.remove_instrument(watch)
        if patience.cancelled_caught and not watch.fired:
            journal.add("run.stuck")
        journal.add("run.steps", session=watch.of_sessions)
        for server in world.servers.values():
            for breach in server.breaches():
                journal.add("server.breach", text=breach)
        left_open = [number for number, link in world.net.links.items() if not link.client.closed]
        journal.add("run.end", links=left_open, tasks=_session_tasks())
        nursery.cancel_scope.cancel(reason="the run is over")


def _session_tasks() -> list[str]:
    """Return the names of the tasks of sessions that live."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, rest = [], [root]
    while rest:
        task = rest.pop()
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.name.startswith("nova["):
            found.append(task.name)
    return sorted(found)


@attrs.define(eq=False)
class _SpinWatch(trio.abc.Instrument):
    """Counts steps of tasks, and ends a run in which they are taken and time stands still."""

    world: World
    scope: trio.CancelScope
    now: float = -1.0
    steps: int = 0
    of_sessions: int = 0
    """Steps in all, of the tasks of sessions."""
    fired: bool = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        self.of_sessions += task.name.startswith("nova[")
        if self.steps == MOST_STEPS:
            if (now := trio.current_time()) != self.now:
                self.now, self.steps = now, 0
                return
            self.fired = True
            self.world.journal.add("run.spins", steps=self.steps, task=task.name)
            self.scope.cancel(reason="time stands still")


@attrs.define(eq=False)
class _LogWatch(logging.Handler):
    """Writes to the journal what should not have been logged: secrets, raw text of a peer's, and endless lines."""

    journal: Journal

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if CANARY in text or len(text) > MOST_TEXT or not text.replace("\n", "").isprintable():
            self.journal.add("log.line", text=text)


@contextmanager
def _watch_logs(journal: Journal, level: int) -> Iterator[None]:
    logger, handler = logging.getLogger("trio_nova"), _LogWatch(journal)
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates


def _make_world(seed: int, scenario: Scenario, journal: Journal, transport: Transport | None) -> World:
    net = SimNet(journal, random.Random(f"{seed}:network"), direct=scenario.direct)
    world = World(seed, scenario, journal, net, transport)
    server = SERVERS[scenario.server](HOST, net, scenario)
    world.servers[HOST] = server
    if scenario.has_backup:
        server.listen_at(BACKUP)
    for host in net.hosts.values():
        make_fair(host.c2s, scenario)
        make_fair(host.s2c, scenario)
    net.listen(ELSEWHERE, lambda stream, host, port: None)
    return world
