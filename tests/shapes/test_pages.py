"""Each adapter of this folder is a page, and reads whatever its service may send."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.shapes.action_cable import ActionCable
from tests.shapes.challenge import Challenging
from tests.shapes.graphql_ws import GraphQl
from tests.shapes.mqtt import Mqtt
from tests.shapes.socket_io import Packet, SocketIo
from tests.shapes.stomp import Frame, Stomp
from tests.shapes.wamp import Wamp
from trio_nova import Adapter, Answer, Call, ConnectionInfo, Data, Granted, Reading, Refused
from trio_nova.adapter import hook_faults, shadowed_hooks

PAGE = 90
"""Lines of code: what is neither empty nor a comment nor a docstring."""
ADAPTERS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))

_BLANK = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})


def lines_of_code(source: str) -> int:
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                prose.update(range(node.lineno, (node.end_lineno or 0) + 1))
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _BLANK
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - prose) - 1  # the end of the file is a token too


def test_only_code_is_counted() -> None:
    assert lines_of_code('"""A module."""\n\n# why\nx = [\n    1,\n]\n\n\ndef f():\n    """Do."""\n    return x\n') == 5


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_is_a_page(path: Path) -> None:
    assert lines_of_code(path.read_text("utf-8")) <= PAGE


def test_the_hooks_of_every_adapter_can_be_called() -> None:
    for kind in SAMPLES:
        assert not hook_faults(kind)
        assert not shadowed_hooks(kind(host="server.test"))


# --------------------------------------------------------------------------- whatever a service may send

NOTHING_GOOD: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"a": 1}]

SAMPLES: dict[type[Adapter], list[Any]] = {
    ActionCable: [
        {"type": "welcome"},
        {"type": "ping", "message": 1},
        {"type": "disconnect", "reason": "remote", "reconnect": False},
        {"type": "confirm_subscription", "identifier": "{}"},
        {"identifier": "{}", "message": {"reply_to": 1, "error": "no"}},
    ],
    Challenging: [
        {"challenge": "abc", "idle_timeout": 7},
        {"authorized": True, "expires_in": 60},
        {"id": 1, "ok": False, "reason": "no"},
        {"channel": "trades", "seq": 1, "data": {}},
    ],
    GraphQl: [
        {"type": "ping"},
        {"type": "next", "id": "1", "payload": {"data": {}}},
        {"type": "error", "id": "s0", "payload": [{"message": "no"}]},
        {"type": "error", "id": "1", "payload": [{"message": "no"}]},
        {"type": "complete", "id": "s0"},
    ],
    SocketIo: [
        Packet("0", {"sid": "a", "pingInterval": 1}),
        Packet("40", {"sid": "a"}),
        Packet("42", ["who", 1], 7),
        Packet("42", ["news", 1]),
        Packet("43", [1], 7),
        Packet("44", {"message": "no"}),
    ],
    Stomp: [
        Frame("CONNECTED", {"version": "1.2"}),
        Frame("MESSAGE", {"subscription": "a", "message-id": "1", "ack": "1"}, "x"),
        Frame("ERROR", {"message": "no", "receipt-id": "1"}),
    ],
    Wamp: [
        [2, 1, {}],
        [3, {}, "no"],
        [4, "ticket", {}],
        [6, {}, "no"],
        [8, 32, 1, {}, "no"],
        [33, 1, 2],
        [36, 1, 2, {}, [1], {"a": 1}],
        [50, 1, {}, [1]],
        [68, 1, 2, {}],
    ],
    Mqtt: [
        b"\x20\x02\x00\x00",
        b"\x32\x06\x00\x01a\x00\x07x",
        b"\x90\x03\x00\x01\x00",
        b"\x40\x02\x00\x07",
        b"\xd0\x00",
    ],
}
"""What each service says."""


def bent(message: Any) -> Iterator[Any]:
    """Yield a message, and it with each part left out, or with something else in its place that the codec lets pass."""
    yield message
    match message:
        case dict():
            for name, value in message.items():
                rest = {other: part for other, part in message.items() if other != name}
                yield rest
                yield from ({**rest, name: other} for other in [*NOTHING_GOOD, *bent(value)])
        case Packet(kind, data, id):
            yield from (Packet(kind, other, id) for other in [*NOTHING_GOOD, *bent(data)])
        case Frame(command, headers, body):  # in which all is text
            yield from (
                Frame(command, {other: headers[other] for other in headers if other != name}, body) for name in headers
            )
        case list():
            for at, value in enumerate(message):
                yield message[:at]
                yield from ([*message[:at], other, *message[at + 1 :]] for other in [*NOTHING_GOOD, *bent(value)])
        case bytes():
            yield from (message[:end] for end in range(2, len(message)))
            yield from (
                message[:at] + bytes([other]) + message[at + 1 :] for at in range(len(message)) for other in (0, 255)
            )


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_whatever_a_service_sends_is_read_as_something_that_can_be_handed_on(kind: type[Adapter]) -> None:
    adapter = kind(host="server.test")
    for sample in SAMPLES[kind]:
        for message in bent(sample):
            dialect = adapter.open_link(ConnectionInfo(url="wss://server.test/"))
            reading = dialect.read(message)
            assert reading is None or isinstance(reading, get_args(Reading)), message
            if isinstance(reading, Answer | Data | Granted | Refused | Call):
                hash(getattr(reading, "id", None))
                hash(getattr(reading, "channel", None))
