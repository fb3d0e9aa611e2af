"""What all tests share: how hypothesis searches, and the transports that a session can stand on."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

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


def pytest_configure(config: pytest.Config) -> None:
    """Put the transport asked for in the default's place, wherever a session makes one."""
    if config.getoption("--transport") == "trio-websocket":
        WireTransport.open = _open_trio_websocket  # type: ignore[method-assign]


def _open_trio_websocket(self: WireTransport, dial: Dial) -> AbstractAsyncContextManager[Link]:
    return TrioWebsocketTransport().open(dial)
