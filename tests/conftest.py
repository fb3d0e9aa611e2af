"""What all tests share: how hypothesis searches, and the transports that a session can stand on."""

from __future__ import annotations

import datetime
import json
import platform
import socket
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from hypothesis import settings

from trio_nova import ConnectFailed, TrioWebsocketTransport, WireTransport, config
from trio_nova.links import Dial, Link, Transport
from trio_nova.links._tls import default_context
from trio_nova.testing import MemoryStream, _server, memory_streams

# "ci" tries the same examples on every machine and never judges by the clock; "explore" looks for
# new ones: pytest --hypothesis-profile=explore
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile("ci")

TRANSPORTS: dict[str, Transport] = {"wire": WireTransport(), "trio-websocket": TrioWebsocketTransport()}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    """Return a transport: what uses this is promised of each."""
    return TRANSPORTS[request.param]


@pytest.fixture(autouse=True)
def wall_clock_that_stands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Unix time stand still in virtual time: on a busy machine the one would outrun the other, and seem to jump."""
    if {"autojump_clock", "mock_clock"} & set(request.fixturenames):
        monkeypatch.setattr(config, "time", SimpleNamespace(time=lambda: 1.8e9))


@pytest.fixture(autouse=True, scope="session")
def authorities_that_are_read() -> None:
    """Build the default TLS context before any test: it is built in a thread, for which virtual time does not wait."""
    with suppress(ConnectFailed):
        trio.run(default_context)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--transport` and `--sockets`: what sessions stand on whose test does not say so."""
    parser.addoption("--transport", choices=list(TRANSPORTS), default="wire", help="of sessions (nox -s transports)")
    parser.addoption("--sockets", action="store_true", help="in place of streams in memory (nox -s sockets)")
    parser.addoption(
        "--record-faults",
        metavar="RUN",
        choices=("tests", "sockets", "soak"),
        help="keep in tests/hostile/results.json what became of the tests that prove a row of rows.toml",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the transport asked for in the default's place, wherever a session makes one."""
    if config.getoption("--transport") == "trio-websocket":
        WireTransport.open = _open_trio_websocket  # type: ignore[method-assign]
    if config.getoption("--sockets"):
        config.pluginmanager.register(_SocketPairs())
    run = config.getoption("--record-faults")
    if run is not None and not hasattr(config, "workerinput"):  # the workers' reports come to the one who started them
        config.pluginmanager.register(_FaultRecorder(run))


def _open_trio_websocket(self: WireTransport, dial: Dial) -> AbstractAsyncContextManager[Link]:
    return TrioWebsocketTransport().open(dial)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the report of a test say which rows of rows.toml it proves."""
    for item in items:
        item.user_properties += [("fault", row) for mark in item.iter_markers("fault") for row in mark.args]


class _SocketPairs:
    """Puts pairs of sockets in the place of the streams in memory by which clients reach a `ScriptedServer`.

    The kernel hands over at once what is written to one, so time can still be virtual. Where a test says how much
    may be under way, or in what slices, its streams stay in memory.
    """

    def __init__(self) -> None:
        self.made = 0
        # Where the server looks it up; as tests do not, those that want streams in memory still get them.
        _server.memory_streams = self.connect  # type: ignore[assignment, attr-defined]

    def connect(
        self, max_buffer: int = 65_536, slice_size: int | None = None
    ) -> tuple[trio.SocketStream, trio.SocketStream] | tuple[MemoryStream, MemoryStream]:
        if max_buffer != 65_536 or slice_size is not None:
            return memory_streams(max_buffer, slice_size)
        self.made += 1
        ends = socket.socketpair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max_buffer // 2)  # the kernel doubles it
        client, server = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
        return client, server

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let the report of a test say whether it used any."""
        self.made = 0
        try:
            return (yield)
        finally:
            item.user_properties.append(("sockets", self.made))


class _FaultRecorder:
    """Counts, for each row of rows.toml, what became of the tests that prove it."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.outcomes: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.run == "sockets" and not dict(report.user_properties).get("sockets"):
            return  # it ran as it does without
        if report.when == "call" or report.outcome != "passed":
            for name, row in report.user_properties:
                if name == "fault":
                    self.outcomes.setdefault(str(row), Counter())[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        path = Path(__file__).parent / "hostile" / "results.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        rows = {row: dict(sorted(counts.items())) for row, counts in sorted(self.outcomes.items(), key=_by_number)}
        kept[self.run] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "on": f"Python {platform.python_version()}, {platform.system()}",
            "rows": rows,
        }
        path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def _by_number(row: tuple[str, object]) -> int:
    return int(row[0].removeprefix("F"))
