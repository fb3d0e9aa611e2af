"""What the tests of hostile peers share: each transport in turn, and a bound on real time."""

from __future__ import annotations

import pytest

from trio_nova import TrioWebsocketTransport, WireTransport
from trio_nova.links import Transport

TRANSPORTS: dict[str, Transport] = {"wire": WireTransport(), "trio-websocket": TrioWebsocketTransport()}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    """Return a transport: what is promised of hostile peers is promised of each."""
    return TRANSPORTS[request.param]
