"""The kinds of simulated services, and how each is spoken to."""

from __future__ import annotations

from collections.abc import Mapping

from trio_nova.testing.sim._broker import BrokerServer
from trio_nova.testing.sim._broker_dialect import BrokerDialect
from trio_nova.testing.sim._dialects import DeribitDialect, Dialect, GatewayDialect, JsonDialect, NodeDialect
from trio_nova.testing.sim._exchange import ExchangeServer
from trio_nova.testing.sim._exchange_dialect import ExchangeDialect
from trio_nova.testing.sim._scenario import ServerKind
from trio_nova.testing.sim._servers import DeribitServer, GatewayServer, JsonServer, NodeServer, SimServer

__all__ = ["DIALECTS", "SERVERS"]

SERVERS: Mapping[ServerKind, type[SimServer]] = {
    server.kind: server
    for server in (JsonServer, DeribitServer, NodeServer, GatewayServer, BrokerServer, ExchangeServer)
}
"""What may stand behind a host, by `Scenario.server`."""

DIALECTS: Mapping[ServerKind, type[Dialect]] = {
    dialect.kind: dialect
    for dialect in (JsonDialect, DeribitDialect, NodeDialect, GatewayDialect, BrokerDialect, ExchangeDialect)
}
"""How each kind of service is spoken to, by `Scenario.server`."""
