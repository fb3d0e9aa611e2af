"""The adapters that come with the library keep the contract, by samples from the pages of their services.

`python -m trio_nova check tests/adapters/test_contracts.py:TestDeribit` reports on one of them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from trio_nova import Answer, Beat, ByServerId, Data, HeartbeatAsked, Other, Step
from trio_nova.adapters.deribit import Deribit
from trio_nova.adapters.echo import Echo
from trio_nova.adapters.jsonrpc import JsonRpc, make_request
from trio_nova.check import check_adapter
from trio_nova.testing import AdapterContract, Exchange, Sample


class TestEcho(AdapterContract):
    adapter = Echo()
    question = "hello"
    samples = (
        Exchange(None, Sample("Request served by 7811941c69e658", None)),
        Exchange(..., lambda asked: Sample(asked, None)),
    )


def answering(method: str, result: Any) -> Exchange:
    """Return an exchange of JSON-RPC."""
    return Exchange(
        {"jsonrpc": "2.0", "method": method},
        lambda asked: Sample({"jsonrpc": "2.0", "id": asked["id"], "result": result}, Answer),
    )


class TestJsonRpc(AdapterContract):
    adapter = JsonRpc(url="wss://node.example/")
    channel = "logs"
    params = MappingProxyType({"address": "0x8320fe7702b96808f7bbc0d4a888ed1468216cfd"})
    question = make_request("eth_blockNumber")
    samples = (
        answering("eth_subscribe", "0x4a8a4c0517381924f9838102c5a4dcb7"),
        Sample(
            {
                "jsonrpc": "2.0",
                "method": "eth_subscription",
                "params": {"subscription": "0x4a8a4c0517381924f9838102c5a4dcb7", "result": {"logIndex": "0x0"}},
            },
            Data(ByServerId("0x4a8a4c0517381924f9838102c5a4dcb7"), {"logIndex": "0x0"}),
        ),
        answering("eth_blockNumber", "0x4b7"),
        answering("eth_unsubscribe", True),
        Sample(
            {"jsonrpc": "2.0", "id": 7, "error": {"code": -32601, "message": "Method not found"}},
            Answer(..., 7, "Method not found (code -32601)"),
        ),
        Sample({"jsonrpc": "2.0", "method": "hello", "params": []}, Other),
        Sample({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}}, Other),
    )


BOOK = {"instrument_name": "BTC-PERPETUAL", "timestamp": 1554373962454, "bids": [["new", 5042.34, 30]], "asks": []}


def book(change: Any) -> Any:
    return {
        "jsonrpc": "2.0",
        "method": "subscription",
        "params": {"channel": "book.BTC-PERPETUAL.100ms", "data": {**BOOK, **change}},
    }


class TestDeribit(AdapterContract):
    adapter = Deribit()
    credentials = MappingProxyType({"client_id": "fo7WAPRm4P", "client_secret": "W0H6FJW4IRPZ1MOQ8FP6KMC5RZDUUKXS"})
    channel = "book.BTC-PERPETUAL.100ms"
    question = make_request("public/get_time")
    samples = (
        Exchange(
            {"method": "public/auth", "params": {"grant_type": "client_credentials", "client_id": "fo7WAPRm4P"}},
            lambda asked: Sample(
                {
                    "jsonrpc": "2.0",
                    "id": asked["id"],
                    "result": {"access_token": "1582628593469.1MbQ", "expires_in": 900, "refresh_token": "15826285.IZ"},
                },
                Answer,
            ),
        ),
        answering("public/set_heartbeat", "ok"),
        answering("public/subscribe", ["book.BTC-PERPETUAL.100ms"]),
        Sample(
            book({"type": "snapshot", "change_id": 297217}),
            Data("book.BTC-PERPETUAL.100ms", ..., Step(297217, snapshot=True)),
        ),
        Sample(
            book({"type": "change", "change_id": 297218, "prev_change_id": 297217}),
            Data("book.BTC-PERPETUAL.100ms", ..., Step(297218, previous=297217)),
        ),
        Sample(
            {"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}},
            HeartbeatAsked(make_request("public/test", {}), asks=True),
        ),
        Sample({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}}, Beat()),
        answering("public/test", {"version": "1.2.26"}),
        answering("public/get_time", 1550147385946),
        answering("public/unsubscribe", ["book.BTC-PERPETUAL.100ms"]),
    )


NO_CREDENTIALS = {"it keeps no credentials"}
NO_CHANNELS = {"it subscribes and unsubscribes", "data reach their feed"}


@pytest.mark.parametrize(
    ("contract", "untried"),
    [
        (TestEcho, NO_CREDENTIALS | NO_CHANNELS | {"heartbeats are answered"}),
        (TestJsonRpc, NO_CREDENTIALS | {"it logs in", "heartbeats are answered"}),
        (TestDeribit, set[str]()),
    ],
)
def test_every_promise_is_tried_but_those_of_what_a_service_does_not_have(
    contract: type[AdapterContract], untried: set[str]
) -> None:
    report = check_adapter(contract())
    assert {each.sentence for each in report.promises if each.outcome == "not tried"} == untried
    assert report.exit_status == 0
