"""The default transport keeps the contract of links."""

from __future__ import annotations

from trio_nova.links import WireTransport
from trio_nova.testing import LinkContract


class TestWireTransport(LinkContract):
    transport = WireTransport()
