"""Runs the cells: starts the processes, interleaves the laps, and believes no figure that both sides do not tell."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import msgspec
import trio
import trustme

from tests.bench.frames import Script
from tests.bench.job import Hello, Job, Lap, encode
from tests.bench.plan import Cell
from tests.bench.server import make_script

T = TypeVar("T")

_ROOT = Path(__file__).parents[2]
_START_TIMEOUT = 30.0
_SIZING_LAPS = 5
_MOST = 5_000_000
"""Messages of a lap, at most: the client that only counts bytes would take too many."""


class ProcessDied(Exception):
    """A process of the benchmark ended, or went mute; the message says what it said last."""


@attrs.define(eq=False)
class Process:
    """A process that answers each line of its input with a line."""

    arguments: Sequence[str]
    _process: trio.Process = attrs.field(init=False)
    _errors: Any = attrs.field(init=False)
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)

    async def start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *self.arguments],
            stdin=-1,
            stdout=-1,
            stderr=self._errors,
            cwd=_ROOT,
        )

    async def read(self, kind: type[T]) -> T:
        """Return the next line it prints."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self._process.stdout.receive_some()
            if not data:
                raise ProcessDied(f"{self.arguments[0]} ended: {self._last_words()}")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return msgspec.json.decode(line, type=kind)

    async def ask(self, line: bytes, kind: type[T], timeout: float) -> T:  # noqa: ASYNC109 - part of the question
        """Return the answer to a line; raises ProcessDied where none comes in time."""
        assert self._process.stdin is not None
        with trio.move_on_after(timeout):
            await self._process.stdin.send_all(line)
            return await self.read(kind)
        raise ProcessDied(f"no answer in {timeout:g} s")

    async def kill(self) -> None:
        """End it; does nothing if it has ended."""
        with trio.CancelScope(shield=True):
            self._process.kill()
            await self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    await pipe.aclose()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "without a word"


@attrs.define(eq=False)
class Client:
    """A client in its process, which is started when it is needed."""

    name: str
    core: int | None
    versions: dict[str, str] = attrs.field(factory=dict)
    missing: str = ""
    """Why it cannot be run at all."""
    _process: Process | None = None

    async def do(self, job: Job, *, patience: float = _START_TIMEOUT, fresh: bool = False) -> Lap:
        """Have a job done, in at most so many seconds; in a process of its own if `fresh`."""
        if fresh:
            await self.stop()
        try:
            if self._process is None:
                await self._start()
            assert self._process is not None
            if self.missing:
                return Lap(failure=self.missing, unavailable=True)
            lap = await self._process.ask(encode(job), Lap, patience)
        except ProcessDied as exc:
            await self.stop()
            return Lap(failure=str(exc))
        if fresh:
            await self.stop()
        return lap

    async def _start(self) -> None:
        core = [] if self.core is None else [str(self.core)]
        process = Process(["tests.bench.worker", self.name, *core])
        await process.start()
        self._process = process
        with trio.move_on_after(_START_TIMEOUT):
            hello = await process.read(Hello)
            self.versions, self.missing = hello.versions, hello.failure
            return
        raise ProcessDied("it did not start")

    async def stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            await process.kill()


@attrs.define(eq=False)
class Bench:
    """The processes, and what is known of each client's speed."""

    server: Process
    ports: dict[str, int]
    certificate: str
    clients: dict[str, Client]
    rounds: int
    seconds: float
    """How long a lap should take."""
    tell: Callable[[str], None]
    quick: bool = False
    _runs: int = 0
    _scripts: dict[tuple[int, str, int, bool], Script] = attrs.field(factory=dict)

    async def measure(self, cells: Sequence[Cell]) -> dict[str, dict[str, list[Lap]]]:
        """Return the laps of each client, by cell; one lap with a failure where there is no result.

        All clients take the first round, then all take the second, so that what the machine does
        meanwhile befalls all of them.
        """
        laps: dict[str, dict[str, list[Lap]]] = {cell.name: {} for cell in cells}
        counts: dict[tuple[str, str], int] = {}
        for cell, name in _entries(cells):
            self.tell(f"{cell.name}: sizing {name}")
            count, failure = await self._size(cell, name)
            counts[cell.name, name] = count
            laps[cell.name][name] = [failure] if failure is not None else []
        for number in range(max(cell.rounds(self.rounds) for cell in cells)):
            for cell, name in _entries(cells):
                taken = laps[cell.name][name]
                if number >= cell.rounds(self.rounds) or (taken and taken[-1].failure):
                    continue
                self.tell(f"{cell.name}: round {number + 1} of {cell.rounds(self.rounds)}, {name}")
                lap = await self._lap(cell, name, counts[cell.name, name], verify=False)
                if lap.failure:
                    taken.clear()
                taken.append(lap)
        return laps

    async def _size(self, cell: Cell, name: str) -> tuple[int, Lap | None]:
        """Verify by checksum that the client gets what is sent, then find how many messages take the time of a lap."""
        fixed = cell.quick_count if self.quick else cell.count
        if fixed is not None and cell.fresh:
            return fixed, None
        lap = await self._lap(cell, name, cell.first_count, verify=True)
        if lap.failure:
            return 0, lap
        if fixed is not None:
            return fixed, None
        count, rate, seconds = cell.first_count, 0.0, self.seconds * cell.stretch
        for number in range(_SIZING_LAPS):
            lap = await self._lap(cell, name, count, verify=False)
            if lap.failure:
                return 0, lap
            # The fastest counts, and never only one: a hiccup must not make all laps too short to mean anything.
            rate = max(rate, count / lap.seconds)
            wanted = max(2, min(_MOST, int(rate * seconds)))
            if number and count >= wanted / 4:
                return wanted, None
            # What a short lap says of a long one is not to be trusted far.
            count = max(2, min(wanted, count * 20))
        return count, None

    async def _lap(self, cell: Cell, name: str, count: int, *, verify: bool) -> Lap:
        self._runs += 1
        run = f"r{self._runs}"
        scheme, port = ("wss", self.ports["tls"]) if cell.tls else ("ws", self.ports["plain"])
        job = Job(
            workload=cell.workload,
            run=run,
            url=f"{scheme}://127.0.0.1:{port}{cell.path(run)}",
            count=count,
            size=cell.size,
            channels=cell.channels,
            verify=verify,
            certificate=self.certificate if cell.tls else "",
            compressed=cell.compressed,
        )
        lap = await self.clients[name].do(job, patience=cell.patience, fresh=cell.fresh)
        if lap.failure:
            return lap
        report = await self.server.ask(f"{run}\n".encode(), dict[str, int], _START_TIMEOUT)
        checksum = self._script(cell).checksum(count) if verify and cell.verb == "flood" else None
        complaint = disagreement(cell, count, lap, report, checksum)
        return attrs.evolve(lap, failure=complaint)

    def _script(self, cell: Cell) -> Script:
        key = (cell.size, cell.kind, cell.channels, cell.compressed)
        if key not in self._scripts:
            self._scripts[key] = make_script(*key)
        return self._scripts[key]


def disagreement(cell: Cell, count: int, lap: Lap, report: dict[str, int], checksum: int | None) -> str:
    """Return how the client's story differs from the server's, or from the task; empty where all is well."""
    if lap.count != count:
        return f"it did {lap.count} of {count}"
    if cell.verb == "idle":
        if report.get("opened") != count:
            return f"the server saw {report.get('opened', 0)} of {count} connections"
        if cell.workload == "connect" and report.get("closed") != count:
            return f"the server heard the goodbye of {report.get('closed', 0)} of {count} connections"
        return ""
    if report.get("count") != count:
        return f"the server counted {report.get('count', 0)} of {count} messages"
    asked = report.get("size") if cell.kind == "mixed" else count * cell.size
    if not lap.size == report.get("size") == asked:
        return f"{lap.size} bytes here, {report.get('size', 0)} at the server, {asked} asked for"
    if lap.last != report.get("last"):
        return "the last message is not the one that the server had"
    if checksum is not None and lap.checksum != checksum:
        return "what it received is not what was sent"
    return ""


def _entries(cells: Iterable[Cell]) -> Iterable[tuple[Cell, str]]:
    return [(cell, name) for cell in cells for name in cell.contenders]


@asynccontextmanager
async def open_bench(
    names: Iterable[str], *, rounds: int, seconds: float, quick: bool, tell: Callable[[str], None]
) -> AsyncIterator[Bench]:
    """Start the server and hold the clients; leaving the block ends all processes.

    The server and this process share the first core that we may use, the clients have the second;
    where there is only one, nothing is pinned.
    """
    cores = sorted(os.sched_getaffinity(0))
    client_core = cores[1] if len(cores) > 1 else None
    clients = {name: Client(name, client_core) for name in names}
    if client_core is not None:
        # The processes that we start inherit it; a client's then takes its own.
        os.sched_setaffinity(0, {cores[0]})
    with tempfile.TemporaryDirectory() as folder:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(f"{folder}/authority.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(f"{folder}/server.pem")
        server = Process(["tests.bench.server", f"{folder}/server.pem"])
        await server.start()
        try:
            ports: dict[str, int] = await server.read(dict[str, int])
            yield Bench(server, ports, f"{folder}/authority.pem", clients, rounds, seconds, tell, quick)
        finally:
            with contextlib.suppress(ProcessDied):
                await server.kill()
            with trio.CancelScope(shield=True):
                for client in clients.values():
                    await client.stop()
            os.sched_setaffinity(0, set(cores))
