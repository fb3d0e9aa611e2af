"""Runs the laps: the service in this process, each client in one of its own."""

from __future__ import annotations

import itertools
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import trio
import trustme

from tests.bench.job import Hello, encode
from tests.bench.run import Process, ProcessDied
from tests.survival.diary import Diary, Job, Left
from tests.survival.judge import Account, NoResult, judge
from tests.survival.plan import Situation
from tests.survival.service import Gone, Service

AT_ONCE = 5
"""Laps that are run side by side: they mostly wait."""
PATIENCE = 15.0
"""Seconds that a client has to come back, from when a dial would be served well."""
LEAVE_PATIENCE = 8.0
"""Seconds that a client has to leave."""
_START_TIMEOUT = 30.0
_LOOK_INTERVAL = 1.0
"""Seconds between two looks whether a client that has not come back lives."""


@attrs.frozen
class Certificate:
    """What a service shows, and the file of the authority that vouches for it."""

    authority: str
    server: trustme.LeafCert

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        authority = trustme.CA()
        path = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(path))
        return cls(str(path), authority.issue_cert("127.0.0.1"))

    def context(self) -> ssl.SSLContext:
        """Return what a service speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        return context


@attrs.frozen(kw_only=True)
class Lap:
    """What came of one client in one situation, once."""

    account: Account | None = None
    failure: str = ""
    """Why there is no account; empty where there is one."""


@attrs.define(eq=False)
class Survival:
    """A run."""

    seed: int
    certificate: Certificate
    tell: Callable[[str], None]
    warm_up: float = 1.0
    """Seconds, about, for which messages flow before the fault."""
    settle: float = 0.7
    """Seconds for which messages flow on the new link before the client is asked."""
    versions: dict[str, Mapping[str, str]] = attrs.field(factory=dict)
    repeated: int = 0
    """Laps that were run again, as the first time they had no result."""

    async def measure(
        self, situations: Sequence[Situation], clients: Sequence[str], rounds: int
    ) -> dict[str, dict[str, list[Lap]]]:
        """Return the laps by situation and client, one for each round, or fewer where the situation says so."""
        laps: dict[str, dict[str, list[Lap]]] = {
            each.name: {name: [Lap(failure="not run")] * min(rounds, each.most_rounds) for name in clients}
            for each in situations
        }
        room = trio.CapacityLimiter(AT_ONCE)

        async def take(situation: Situation, name: str, number: int) -> None:
            async with room:
                lap = await self._lap(situation, name, number)
                if lap.failure:
                    self.repeated += 1
                    lap = await self._lap(situation, name, number)
                laps[situation.name][name][number] = lap

        for alone in (False, True):
            room.total_tokens = 1 if alone else AT_ONCE
            async with trio.open_nursery() as nursery:
                for situation, number, name in itertools.product(situations, range(rounds), clients):
                    if situation.alone is alone and number < situation.most_rounds:
                        nursery.start_soon(take, situation, name, number)
        return laps

    @staticmethod
    def failures(laps: Mapping[str, Mapping[str, Sequence[Lap]]]) -> list[tuple[str, str, Lap]]:
        """Return situation, client and lap of what has no result."""
        return [
            (situation, client, lap)
            for situation, by_client in laps.items()
            for client, taken in by_client.items()
            for lap in taken
            if lap.failure
        ]

    async def _lap(self, situation: Situation, name: str, number: int) -> Lap:
        self.tell(f"{situation.name}, round {number + 1}: {name}")
        service = self._service(situation)
        process = Process(["tests.survival.worker", name])
        await process.start()
        lap = Lap(failure="not run")
        try:
            async with service.running():
                try:
                    lap = Lap(account=await self._play(situation, name, number, service, process))
                except (NoResult, ProcessDied, Gone, OSError) as exc:
                    lap = Lap(failure=f"{type(exc).__name__}: {exc}")
        finally:
            await process.kill()
        return lap

    def _service(self, situation: Situation) -> Service:
        service = Service()
        if situation.tls:
            service.tls = self.certificate.context()
        if situation.slow:
            service.interval, service.size = 0.001, situation.size
        if situation.blocks_sender:
            service.receive_buffer = 65_536
        return service

    def _job(self, situation: Situation, port: int) -> Job:
        job = Job(url=f"ws://127.0.0.1:{port}/")
        if situation.tls:
            job = attrs.evolve(job, url=f"wss://127.0.0.1:{port}/", certificate=self.certificate.authority)
        if situation.slow:
            job = attrs.evolve(job, pause=0.01)
        if situation.blocks_sender:
            job = attrs.evolve(job, send_size=65_536, send_interval=0.02)
        return job

    async def _play(self, situation: Situation, name: str, number: int, service: Service, process: Process) -> Account:
        rng = random.Random(f"{self.seed} {situation.name} {number}")
        await self._start(name, process, self._job(situation, service.port))
        with trio.move_on_after(_START_TIMEOUT) as starting:
            await service.wait_link()
        if starting.cancelled_caught:
            raise NoResult("the client did not connect")
        await trio.sleep(self.warm_up * rng.uniform(0.9, 1.1))
        await situation.script(service, rng)
        if situation.recovers:
            await self._await_return(service, process)
        diary, ended_at = await _ask(process), time.monotonic()
        left: Left | None = None
        with trio.move_on_after(LEAVE_PATIENCE):
            left = await process.ask(f"{situation.way}\n".encode(), Left, _START_TIMEOUT)
            await trio.sleep(0.1)  # for the service to read the goodbye
        return judge(situation, service, diary, left, ended_at)

    async def _start(self, name: str, process: Process, job: Job) -> None:
        with trio.move_on_after(_START_TIMEOUT):
            hello = await process.read(Hello)
            if hello.failure:
                raise NoResult(hello.failure)
            self.versions[name] = hello.versions
            await process.ask(encode(job), Diary, _START_TIMEOUT)
            return
        raise NoResult("the process of the client did not start")

    async def _await_return(self, service: Service, process: Process) -> None:
        """Wait until messages flow again, or the client is dead, or its time is up."""
        until = trio.current_time() + PATIENCE
        # Not by a cancel scope around all: an answer that nobody waits for would be taken for the next one.
        while trio.current_time() < until:
            with trio.move_on_after(_LOOK_INTERVAL):
                await service.wait_well()
                await trio.sleep(self.settle)
                return
            if (await _ask(process)).death:
                return


async def _ask(process: Process) -> Diary:
    return await process.ask(b"tell\n", Diary, _START_TIMEOUT)
