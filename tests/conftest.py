"""What all tests share: how hypothesis searches, and the transports that a session can stand on."""

from __future__ import annotations

import datetime
import json
import platform
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from hypothesis import settings

from trio_nova import TrioWebsocketTransport, WireTransport
from trio_nova.links import Dial, Link, Transport

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--transport`: what sessions stand on whose test does not say so."""
    parser.addoption("--transport", choices=list(TRANSPORTS), default="wire", help="of sessions (nox -s transports)")
    parser.addoption(
        "--record-faults",
        metavar="RUN",
        choices=("tests", "soak"),
        help="keep in tests/hostile/results.json what became of the tests that prove a row of rows.toml",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the transport asked for in the default's place, wherever a session makes one."""
    if config.getoption("--transport") == "trio-websocket":
        WireTransport.open = _open_trio_websocket  # type: ignore[method-assign]
    run = config.getoption("--record-faults")
    if run is not None and not hasattr(config, "workerinput"):  # the workers' reports come to the one who started them
        config.pluginmanager.register(_FaultRecorder(run))


def _open_trio_websocket(self: WireTransport, dial: Dial) -> AbstractAsyncContextManager[Link]:
    return TrioWebsocketTransport().open(dial)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the report of a test say which rows of rows.toml it proves."""
    for item in items:
        item.user_properties += [("fault", row) for mark in item.iter_markers("fault") for row in mark.args]


class _FaultRecorder:
    """Counts, for each row of rows.toml, what became of the tests that prove it."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.outcomes: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
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
