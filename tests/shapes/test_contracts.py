"""Adapters of a page keep the contract: binary packets that frames cut up, texts behind numbers, and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pytest

from tests.shapes.mqtt import PINGREQ, PINGRESP, Mqtt, publish
from tests.shapes.socket_io import Packet, SocketIo, event
from tests.shapes.test_mqtt import CONNACK, message, puback, suback, unsuback
from tests.shapes.wamp import Wamp, call
from trio_nova import Answer, AuthOk, Beat, ByServerId, Data, Granted, HeartbeatAsked, Welcome
from trio_nova.check import check_adapter
from trio_nova.testing import AdapterContract, Exchange, Sample


class Binary:
    """Writes and reads frames as they are."""

    def encode(self, message: Any) -> Sequence[bytes]:
        return message if isinstance(message, tuple) else [message]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return [payload]


def packets(kind: int) -> Any:
    return lambda packet: packet[0] >> 4 == kind


def id_of(packet: bytes, at: int = 2) -> int:
    return int.from_bytes(packet[at : at + 2])


class TestMqtt(AdapterContract):
    adapter = Mqtt(host="broker.test")
    credentials = MappingProxyType({"username": "me", "password": "open sesame"})
    channel = "a/+"
    question = publish("a/b", b"hello", qos=1)
    samples = (
        Exchange(packets(1), Sample(CONNACK, AuthOk())),
        Exchange(packets(8), lambda asked: Sample(suback(id_of(asked), 1), Granted(None))),
        Sample(message("a/b", b"one"), Data("a/b", b"one")),
        Sample((message("a/c", b"two")[:3], message("a/c", b"two")[3:]), Data("a/c", b"two")),
        Sample(message("a/c", b"three", 7), Data("a/c", b"three", ack=puback(7))),
        Exchange(PINGREQ, Sample(PINGRESP, Beat(answers=True))),
        Exchange(packets(3), lambda asked: Sample(puback(id_of(asked, at=7)), Answer)),
        Exchange(packets(10), lambda asked: unsuback(id_of(asked))),
    )

    def open_service(self) -> Binary:
        return Binary()


class TestSocketIo(AdapterContract):
    adapter = SocketIo(host="chat.test")
    credentials = MappingProxyType({"token": "open sesame"})
    channel = "news"
    question = event("who")
    samples = (
        Exchange(None, Sample('0{"sid":"a","pingInterval":25000,"pingTimeout":20000}', Welcome)),
        Exchange('40{"token":"open sesame"}', Sample('40{"sid":"b"}', Answer({"sid": "b"}))),
        Sample('42["news",{"a":1}]', Data("news", [{"a": 1}])),
        Sample("2", HeartbeatAsked(Packet("3"))),
        Exchange(
            lambda said: said.startswith("42"), lambda said: Sample(f'43{said[2 : said.index("[")]}["Ann"]', Answer)
        ),
        Sample('44{"message":"no"}', Answer(..., None, "no")),
    )


class TestWamp(AdapterContract):
    adapter = Wamp(host="router.test")
    credentials = MappingProxyType({"authid": "me", "secret": "open sesame"})
    channel = "com.news"
    question = call("com.add", 1, 2)
    samples = (
        Exchange([1, "realm1", {"authid": "me"}], Sample([4, "wampcra", {"challenge": "pepper"}], Answer)),
        Exchange([5, ..., {}], Sample([2, 9129137332, {}], Answer)),
        Exchange([32, ..., {}, "com.news"], lambda asked: Sample([33, asked[1], 55], Granted(None, 55))),
        Sample([36, 55, 4429313566, {}, ["hello"]], Data(ByServerId(55), ..., id=4429313566)),
        Exchange([48, ..., {}, "com.add", [1, 2], ...], lambda asked: Sample([50, asked[1], {}, [3]], Answer)),
        Exchange([34, ..., 55], lambda asked: [35, asked[1]]),
    )


@pytest.mark.parametrize(
    ("contract", "untried"),
    [(TestMqtt, set[str]()), (TestSocketIo, set[str]()), (TestWamp, {"heartbeats are answered"})],
)
def test_every_promise_is_tried_but_those_of_what_a_service_does_not_have(
    contract: type[AdapterContract], untried: set[str]
) -> None:
    report = check_adapter(contract())
    assert {each.sentence for each in report.promises if each.outcome == "not tried"} == untried
