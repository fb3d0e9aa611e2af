"""`python -m trio_nova check`: a good adapter keeps every promise, and each planted fault is found by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shapes.challenge import Challenging
from trio_nova import (
    Adapter,
    Answer,
    AuthExchange,
    AuthHandler,
    AuthOk,
    AuthRefused,
    BadMessage,
    Client,
    Close,
    ConnectionInfo,
    Correlation,
    Data,
    Dialect,
    Granted,
    HeartbeatAsked,
    JsonCodec,
    LinkLost,
    MessageHandler,
    MessageHeartbeat,
    Reading,
    Refused,
    Reply,
    Retry,
    Secret,
    Stop,
    SubscriptionHandler,
    Welcome,
)
from trio_nova.__main__ import main
from trio_nova.adapters.echo import Echo
from trio_nova.check import CannotLoad, Report, check_adapter, load_target
from trio_nova.messages import Action
from trio_nova.testing import AdapterContract, Exchange, Sample
from trio_nova.testing._mutants import MAX_MUTANTS, mutants
from trio_nova.testing._samples import fits, is_read_as


class Chat(Adapter):
    """Does everything that a thin adapter can do, and rightly."""

    host = "chat.example.com"
    path = "/v1/socket"

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "ping_interval": 30.0}

    def encode_auth_request(self, credentials: Any) -> Any:
        return {"op": "login", "key": credentials["key"]}

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        match message:
            case {"op": "login", "ok": True}:
                return AuthOk()
            case {"op": "login", "why": why}:
                return AuthRefused(str(why))
            case _:
                return None

    def setup_requests(self, info: Any) -> Sequence[Any]:
        return [{"op": "mode", "quiet": True}]

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "join", "room": channel, **params}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "leave", "room": channel}

    def handle_subscription_response(self, message: Any) -> Any:
        match message:
            case {"op": "joined", "room": str(room)}:
                return Granted(room)
            case {"op": "barred", "room": str(room)}:
                return [Refused(room, "barred")]
            case _:
                return None

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "said", "room": str(room)}:
                return Data(room, message.get("text"))
            case {"op": "there?"}:
                return HeartbeatAsked({"op": "here"})
            case _:
                return None

    def handle_platform_message(self, message: Any) -> Action:
        match message:
            case {"op": "greet", "who": who}:
                return Reply({"op": "hello", "who": who})
            case {"op": "bye"}:
                return Close()
            case _:
                return None

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        return Stop(error) if isinstance(error, LinkLost) and error.code == 4001 else advice


@attrs.define(eq=False, kw_only=True, slots=False)
class WithToken(Chat):
    token: Secret[str] | None = None
    api_key: str = attrs.field(default="", repr=False)


WHO = {"op": "who"}


class TestChat(AdapterContract):
    """The contract as an author has it in tests of their own."""

    adapter: Adapter = Chat()
    credentials = MappingProxyType({"key": "open sesame"})
    channel = "lobby"
    question = WHO
    samples: Sequence[Sample | Exchange] = (
        Exchange({"op": "login", "key": "open sesame"}, Sample({"op": "login", "ok": True}, AuthOk())),
        Exchange({"op": "mode"}, lambda asked: Sample({"id": asked["id"], "result": "quiet"}, Answer)),
        Exchange({"op": "join", "room": "lobby"}, Sample({"op": "joined", "room": "lobby"}, Granted("lobby"))),
        Sample({"op": "barred", "room": "attic"}, Refused("attic", "barred")),
        Sample({"op": "said", "room": "lobby", "text": "hello"}, Data("lobby", "hello")),
        Sample({"op": "there?"}, HeartbeatAsked({"op": "here"})),
        Exchange({"op": "who"}, lambda asked: Sample({"id": asked["id"], "result": ["Ann"]}, Answer(..., asked["id"]))),
        Sample({"op": "login", "why": "who are you?"}, AuthRefused("who are you?")),
        Sample({"op": "greet", "who": "Ann"}, None),
    )


def judged(adapter: Adapter, contract: type[AdapterContract] = TestChat, **changes: Any) -> Report:
    """Check an adapter by the samples of a contract, some of its attributes being others."""
    return check_adapter(type("Contract", (contract,), {"adapter": adapter, **changes})())


def broken(report: Report) -> dict[str, str]:
    return {each.sentence: "\n".join(each.details) for each in report.promises if each.outcome == "broken"}


def not_tried(report: Report) -> dict[str, str]:
    return {each.sentence: "\n".join(each.details) for each in report.promises if each.outcome == "not tried"}


HOOKS = "its hooks are known and can be called"
WHERE = "it says where its service is"
DEFAULTS = "its defaults are options"
REPR = "its repr shows no secret"
SHARED = "sessions share no strategy"
LINKS = "links share nothing"
UNCHANGED = "sessions leave the adapter as it was"
ENCODED = "what it sends can be encoded"
PURE = "its requests depend on nothing but what they are given"
KEEPS = "it keeps no credentials"
READS = "it reads each sample as it should"
ANYTHING = "nothing that arrives breaks it"
ADVICE = "its advice after an error is to retry or to stop"
LOGIN = "it logs in"
SUBSCRIBES = "it subscribes and unsubscribes"
DATA = "data reach their feed"
ANSWERED = "a question is answered"
BEATS = "heartbeats are answered"
RESTORED = "a lost link is restored"


# --------------------------------------------------------------------------- good ones


@pytest.mark.parametrize("kind", [Chat, WithToken])
def test_a_good_adapter_keeps_every_promise(kind: type[Adapter]) -> None:
    report = judged(kind())
    assert broken(report) == {}
    assert not_tried(report) == {}
    assert report.exit_status == 0


class TestChallenging(AdapterContract):
    """A service that speaks first: the login is made of what it says, and its data are counted."""

    adapter = Challenging(host="server.test")
    credentials = "open sesame"
    channel = "trades"
    samples = (
        Exchange(None, Sample({"challenge": "pepper", "idle_timeout": 60}, Welcome)),
        Exchange(
            {"op": "login", "proof": "3f6b8e0b0a4ec5a5f2b0d6cf9b7b8de0"},
            Sample({"authorized": False, "reason": "wrong"}, AuthRefused("wrong")),
        ),
        Exchange({"op": "login"}, Sample({"authorized": True, "expires_in": 900}, AuthOk(900))),
        Exchange(
            {"op": "subscribe", "channels": ["trades"]},
            lambda asked: Sample({"id": asked["id"], "ok": True, "granted": ["trades"]}, Granted("trades")),
        ),
        Sample({"channel": "trades", "seq": 1, "data": "bought"}, Data("trades", "bought", 1)),
        Sample({"channel": "trades", "seq": 2, "data": "sold"}, Data("trades", "sold", 2)),
        Exchange({"op": "ping"}, lambda asked: {"id": asked["id"], "ok": True}),
    )


class Challenge(AuthHandler):
    """The login of two steps of the documentation, which is given its credentials as a `Secret`."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        challenge = await exchange.request({"op": "hello"})
        proof = hashlib.sha256((challenge["salt"] + credentials.reveal()).encode()).hexdigest()
        return await exchange.ask({"op": "login", "proof": proof}, self.handle_auth_response)

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        match message:
            case {"op": "welcome", "lasts": int(seconds)}:
                return AuthOk(expires_in=seconds)
            case {"op": "go away", "why": str(reason)}:
                return AuthRefused(reason)
            case _:
                return None


class InTwoSteps(Adapter):
    host = "chat.example.com"

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "auth_handler": Challenge}


PROOF = hashlib.sha256(b"pepperopen sesame").hexdigest()


class TestInTwoSteps(AdapterContract):
    adapter = InTwoSteps()
    credentials = "open sesame"
    samples = (
        Exchange({"op": "hello"}, lambda asked: Sample({"id": asked["id"], "salt": "pepper"}, Answer)),
        Exchange({"op": "login", "proof": PROOF}, Sample({"op": "welcome", "lasts": 900}, AuthOk(900))),
        Exchange({"op": "login"}, Sample({"op": "go away", "why": "wrong"}, AuthRefused("wrong"))),
    )


class RevealingAuth(AuthHandler):
    """Is given a mapping as a `Secret`, and says what it has to in one step."""

    def encode_auth_request(self, credentials: Any) -> Any:
        return None if credentials is None else {"op": "login", "key": credentials.reveal()["key"]}

    def handle_auth_response(self, message: Any) -> AuthOk | None:
        return AuthOk() if message == {"op": "login", "ok": True} else None


class Revealing(Adapter):
    host = "chat.example.com"

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "auth_handler": RevealingAuth}


class TestRevealing(AdapterContract):
    adapter = Revealing()
    credentials = MappingProxyType({"key": "open sesame"})
    samples = TestChat.samples[:1]


class Deep(Chat):
    """Takes a channel only with a depth."""

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "join", "room": channel, "depth": params["depth"]}


class TestDeep(TestChat):
    adapter = Deep()
    params = MappingProxyType({"depth": 10})


class StrictIds(Correlation):
    """Takes for an answer only what says how it went."""

    def read(self, message: Any) -> Answer | None:
        match message:
            case {"id": int(id), "result": _} | {"id": int(id), "error": _}:
                return Answer(message, id)
            case _:
                return None


class TextIds(Correlation):
    """Writes texts, and reads texts."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "id": str(id)}


def asking(correlation: Correlation) -> Adapter:
    class Asking(Chat):
        def defaults(self) -> Mapping[str, Any]:
            return {**super().defaults(), "correlation": correlation}

    return Asking()


@pytest.mark.parametrize("correlation", [StrictIds(), TextIds()], ids=lambda c: type(c).__name__)
def test_a_strict_reader_and_ids_that_are_texts_keep_every_promise(correlation: Correlation) -> None:
    report = judged(asking(correlation))
    assert (broken(report), not_tried(report)) == ({}, {})


# --------------------------------------------------------------------------- codecs that are no mirrors


@attrs.frozen
class Numbered:
    """Writes `op#json`, and reads JSON: what it writes it cannot read."""

    def encode(self, message: Any) -> str:
        return f"{message['op']}#{json.dumps(dict(message))}"

    def decode(self, payload: str | bytes) -> Any:
        return JsonCodec().decode(payload)


@attrs.frozen
class Lines:
    """Several messages in one frame, a line each."""

    def encode(self, message: Any) -> str:
        raise BadMessage("a link has a codec of its own")

    def decode(self, payload: str | bytes) -> Any:
        raise BadMessage("a link has a codec of its own")

    def open_link(self, max_message_size: int) -> Any:
        return _Lines()


@attrs.define
class _Lines:
    _begun: str = ""

    def encode(self, message: Any) -> Sequence[str]:
        return [json.dumps(dict(message)) + "\n"]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        if isinstance(payload, bytes):
            raise BadMessage("these are texts")
        *lines, self._begun = (self._begun + payload).split("\n")
        return [JsonCodec().decode(line) for line in lines if line]


@attrs.frozen
class Deflated:
    """One zlib stream for each link: a message is read only behind those before it."""

    encode = Lines.encode
    decode = Lines.decode

    def open_link(self, max_message_size: int) -> Any:
        return Deflating()


class Deflating:
    """The side of a link, the client's or the service's."""

    def __init__(self) -> None:
        self._deflate, self._inflate = zlib.compressobj(), zlib.decompressobj()

    def encode(self, message: Any) -> Sequence[bytes]:
        text = json.dumps(message, default=dict).encode()
        return [self._deflate.compress(text) + self._deflate.flush(zlib.Z_SYNC_FLUSH)]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        try:
            return [json.loads(self._inflate.decompress(payload))]  # type: ignore[arg-type]
        except (zlib.error, TypeError, ValueError, RecursionError) as exc:
            raise BadMessage("no deflated JSON") from exc


def coded(codec: Any) -> Adapter:
    class Coded(Chat):
        def defaults(self) -> Mapping[str, Any]:
            return {"codec": codec}

    return Coded()


class TextService:
    """Reads what `Numbered` writes."""

    def encode(self, message: Any) -> Sequence[str]:
        return [json.dumps(message)]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return [json.loads(str(payload).partition("#")[2])]


class TestNumbered(TestChat):
    adapter = coded(Numbered())

    def open_service(self) -> Any:
        return TextService()


def line(message: Any) -> str:
    return json.dumps(message) + "\n"


class TestLines(TestChat):
    """Frames are given as they come: two messages in one, and one in two."""

    adapter = coded(Lines())
    samples = (
        Exchange({"op": "login"}, Sample(line({"op": "login", "ok": True}), AuthOk())),
        Exchange({"op": "mode"}, lambda asked: line({"id": asked["id"], "result": "quiet"})),
        Exchange({"op": "join"}, Sample(line({"op": "joined", "room": "lobby"}), Granted("lobby"))),
        Sample(
            line({"op": "said", "room": "lobby", "text": "one"}) + line({"op": "said", "room": "lobby", "text": "two"}),
            [Data("lobby", "one"), Data("lobby", "two")],
        ),
        Sample(('{"op": "said", "room": "lobby",', '"text": "three"}\n'), Data("lobby", "three")),
        Sample(line({"op": "there?"}), HeartbeatAsked({"op": "here"})),
        Exchange({"op": "who"}, lambda asked: line({"id": asked["id"], "result": ["Ann"]})),
    )

    def open_service(self) -> Any:
        return LinesService()


class LinesService:
    def encode(self, message: Any) -> Sequence[str]:
        return list(message) if isinstance(message, tuple) else [message]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return [json.loads(payload)]


class TestDeflated(TestChat):
    adapter = coded(Deflated())

    def open_service(self) -> Any:
        return Deflating()


SHARED_STREAM = Deflating()


class OneStream(Deflated):
    def open_link(self, max_message_size: int) -> Any:
        return SHARED_STREAM


def test_a_codec_that_all_links_share_is_found_out() -> None:
    assert "on a second link" in broken(judged(coded(OneStream()), TestDeflated))[LINKS]


@pytest.mark.parametrize(
    "contract",
    [TestChallenging, TestInTwoSteps, TestRevealing, TestDeep, TestNumbered, TestLines, TestDeflated],
)
def test_a_good_adapter_breaks_no_promise_whatever_it_is_like(contract: type[AdapterContract]) -> None:
    report = check_adapter(contract())
    assert broken(report) == {}
    assert LOGIN not in not_tried(report)
    if contract is not TestInTwoSteps and contract is not TestRevealing:
        assert not {DATA, SUBSCRIBES, RESTORED} & set(not_tried(report))


# --------------------------------------------------------------------------- what is not tried


def test_what_cannot_be_tried_says_which_sample_to_give() -> None:
    nothing = not_tried(check_adapter(Chat()))
    assert nothing[KEEPS] == nothing[LOGIN] == "it is given no credentials; set credentials"
    assert nothing[READS] == "there are no samples; give some: Sample(message, reading)"
    assert nothing[RESTORED].startswith("nobody answers {'op': 'mode', 'quiet': True, 'id': ")
    assert nothing[RESTORED].endswith("}: give an Exchange that does")
    assert nothing[ANSWERED] == "no question is known; set question, and give an Exchange that answers it"
    assert nothing[BEATS] == "it probes by no message of its own, and no Sample is read as HeartbeatAsked"
    login = not_tried(check_adapter(Chat(), credentials={"key": "open sesame"}))[LOGIN]
    assert login == "nobody answers {'op': 'login', 'key': '***'}: give an Exchange that does"
    no_data = judged(Chat(), samples=[each for each in TestChat.samples if isinstance(each, Exchange)])
    assert not_tried(no_data)[DATA] == "nothing of 'lobby' was said; give a Sample that is read as Data of it"
    no_greeting = not_tried(judged(TestChallenging.adapter, TestChallenging, samples=TestChallenging.samples[1:]))
    assert no_greeting[LOGIN].endswith("if the service speaks first, give Exchange(None, ...) with what it says")
    assert "set channel and params that it takes" in not_tried(check_adapter(Deep()))[ENCODED]


# --------------------------------------------------------------------------- planted faults


class Waits(Chat):
    async def handle_platform_message(self, message: Any) -> Action:  # type: ignore[override]
        return None


class TakesTooFew(Chat):
    def encode_subscription_request(self, channel: str) -> Any:  # type: ignore[override]
        return {"op": "join", "room": channel}


class Misspelt(Chat):
    def encode_subscribtion_request(self, channel: str, params: Any) -> Any:
        return {}


class Unknown(Chat):
    def handle_trade(self, message: Any) -> None:
        pass


class OfAStrategy(Chat):
    def handle_connect(self, info: Any) -> Action:
        return None


class Shadowed(Chat):
    def defaults(self) -> Mapping[str, Any]:
        return {**super().defaults(), "message_handler": MessageHandler}


class AsyncDefaults(Chat):
    async def defaults(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {}


class NoSlash(Chat):
    path = "v1/socket"


class BadPort(Chat):
    port = 99999


class NoSuchOption(Chat):
    def defaults(self) -> Mapping[str, Any]:
        return {"ping_intervall": 3.0}


class SyncAuth(AuthHandler):
    def authenticate(self, exchange: Any, credentials: Any) -> AuthOk:  # type: ignore[override]
        return AuthOk()


class WithSyncAuth(Adapter):
    host = "h"

    def defaults(self) -> Mapping[str, Any]:
        return {"auth_handler": SyncAuth}


class NarrowChannels(SubscriptionHandler):
    def encode_unsubscription(self, channel: Any) -> Any:  # type: ignore[override]
        return None


class WithNarrowChannels(Adapter):
    host = "h"

    def defaults(self) -> Mapping[str, Any]:
        return {"subscription_handler": NarrowChannels}


@attrs.define(eq=False, kw_only=True, slots=False)
class ShowsToken(Chat):
    api_key: str = "abcdef"


ONE_FOR_ALL = AuthHandler()


class Shares(Chat):
    def defaults(self) -> Mapping[str, Any]:
        return {**super().defaults(), "auth_handler": ONE_FOR_ALL}


class CannotBeEncoded(Chat):
    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "join", "room": object()}


class SendsNothing(Chat):
    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return None


class OneSetupRequest(Chat):
    def setup_requests(self, info: Any) -> Any:
        return {"op": "mode"}


class OwnIds(Chat):
    numbers = itertools.count()

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "join", "room": channel, "id": next(self.numbers)}


class EatsParams(Chat):
    def encode_subscription_request(self, channel: str, params: Any) -> Any:
        params.setdefault("depth", 1)
        return {"op": "join", "room": channel, "depth": 1}


class KeepsCredentials(Chat):
    def encode_auth_request(self, credentials: Any) -> Any:
        self.credentials = credentials
        return {"op": "login", "key": credentials["key"]}


class Indexes(Chat):
    def handle_platform_message(self, message: Any) -> Action:
        return Reply(message["who"]) if message["op"] == "greet" else None


class LeavesOutAField(Chat):
    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "said", "room": str(room)}:
                return Data(room, message["text"])
            case _:
                return super().read(message)


class Unhashable(Chat):
    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "said", "room": room}:
                return Data(room, message.get("text"))
            case _:
                return super().read(message)


class ReadsTruth(Chat):
    def read(self, message: Any) -> Any:
        return super().read(message) or (isinstance(message, dict) and message.get("op") == "there?")


class Misreads(Chat):
    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "said", "room": str(room)}:
                return Data(room, str(message.get("text")).upper())
            case _:
                return super().read(message)


class ReadsOtherwiseTogether(Chat):
    def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
        return [None for _ in messages]


class RemembersWhatItRead(Chat):
    seen: str = "nobody"

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "greet", "who": str(who)} if who != "Ann":
                self.seen = who
            case {"op": "said", "room": str(room)} if self.seen != "nobody":
                return Data(room, self.seen)
        return super().read(message)


class Rooms(Dialect):
    """What speaks on a link keeps the rooms of all links."""

    rooms: dict[str, int] = {}  # noqa: RUF012

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "said", "room": str(room)}:
                self.rooms[room] = len(self.rooms)
                return Data(room, message.get("text"))
            case _:
                return None


class SharesRooms(Chat):
    def open_link(self, info: ConnectionInfo) -> Dialect:
        return Rooms()


ONE_DIALECT = Dialect()


class OneDialect(Chat):
    def open_link(self, info: ConnectionInfo) -> Dialect:
        return ONE_DIALECT


class NoDialect(Chat):
    def open_link(self, info: ConnectionInfo) -> Any:
        return JsonCodec()


class GrantsAnything(Chat):
    def handle_subscription_response(self, message: Any) -> Any:
        match message:
            case {"op": "joined", "room": room}:
                return Granted(room)
            case _:
                return None


class GrantsTrue(Chat):
    def handle_subscription_response(self, message: Any) -> Any:
        return isinstance(message, dict) and message.get("op") == "joined"


class ActsBadly(Chat):
    def handle_platform_message(self, message: Any) -> Any:
        return {"op": "hello"} if message == {"op": "greet"} else None


class RepliesBadly(Chat):
    def handle_platform_message(self, message: Any) -> Action:
        return Reply({1, object()}) if message == {"op": "greet"} else None


class BeatsBadly(Chat):
    def read(self, message: Any) -> Reading | None:
        return HeartbeatAsked({"op": object()}) if message == {"op": "there?"} else super().read(message)


class AdvisesNothing(Chat):
    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Any:
        return error.status == 401  # type: ignore[attr-defined]


class AdvisesTruth(Chat):
    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Any:
        return isinstance(error, LinkLost)


class Forgets(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.joined: list[str] = []

    def handle_subscription_response(self, message: Any) -> Any:
        answer = super().handle_subscription_response(message)
        if isinstance(answer, Granted):
            self.joined.append(str(answer.channel))
        return answer


class ForgetsInTheClass(Chat):
    seen: dict[str, int] = {}  # noqa: RUF012

    def read(self, message: Any) -> Reading | None:
        reading = super().read(message)
        if isinstance(reading, Data):
            self.seen[str(reading.channel)] = 1
        return reading


class TakesAllForBeats(Chat):
    def read(self, message: Any) -> Reading | None:
        return HeartbeatAsked({"op": "here"}) if isinstance(message, dict) and "op" in message else None


class SaysItInOtherWords(Chat):
    def encode_auth_request(self, credentials: Any) -> Any:
        return {"op": "logon", "key": credentials["key"]}


class AsksForAnotherRoom(Chat):
    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "join", "room": f"#{channel}"}


class OffByOne(Correlation):
    """Writes texts, and reads numbers."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "id": str(id)}

    def read(self, message: Any) -> Answer | None:
        match message:
            case {"id": str(id), "result": _} if id.isdecimal():
                return Answer(message, int(id))
            case _:
                return None

    def request_id(self, message: Any) -> Hashable | None:
        return message.get("id")  # type: ignore[no-any-return]


class ReadsNumbers(Chat):
    def setup_requests(self, info: Any) -> Sequence[Any]:
        return []

    def defaults(self) -> Mapping[str, Any]:
        return {**super().defaults(), "correlation": OffByOne()}


class TakesYesForNo(Correlation):
    def failure(self, reply: Any) -> str | None:
        return "no" if "Ann" in reply.get("result", ()) else None


class SaysNo(Chat):
    def defaults(self) -> Mapping[str, Any]:
        return {**super().defaults(), "correlation": TakesYesForNo()}


class ProbesInVain(Chat):
    def defaults(self) -> Mapping[str, Any]:
        return {
            **super().defaults(),
            "heartbeat": MessageHeartbeat({"op": "join", "room": "echo"}),
            "ping_interval": 9.0,
        }


class SetsUpOnce(Chat):
    def setup_requests(self, info: Any) -> Sequence[Any]:
        return [{"op": "mode"}] if info.epoch == 1 else []


@pytest.mark.parametrize(
    ("kind", "promise", "detail"),
    [
        (Waits, HOOKS, "handle_platform_message: it decides and cannot wait"),
        (TakesTooFew, HOOKS, "encode_subscription_request: it must take channel, params"),
        (
            Misspelt,
            HOOKS,
            "encode_subscribtion_request: there is no such hook; did you mean encode_subscription_request",
        ),
        (Unknown, HOOKS, "handle_trade: there is no such hook"),
        (OfAStrategy, HOOKS, "handle_connect: nobody calls it: it is a hook of ConnectionHandler"),
        (Shadowed, HOOKS, "handle_platform_message: nobody asks it, since defaults() names a message_handler"),
        (AsyncDefaults, HOOKS, "defaults: it decides and cannot wait: it must be a plain def"),
        (NoSlash, WHERE, "path: must begin with /"),
        (BadPort, WHERE, "host:"),
        (NoSuchOption, DEFAULTS, "did you mean ping_interval?"),
        (WithSyncAuth, DEFAULTS, "SyncAuth.authenticate: it must be async def"),
        (WithNarrowChannels, DEFAULTS, "NarrowChannels.encode_unsubscription: it must take channel, server_id"),
        (ShowsToken, REPR, "repr() shows api_key"),
        (Shares, SHARED, "auth: one AuthHandler serves all sessions"),
        (SharesRooms, LINKS, "what the Rooms of one link reads changes that of another"),
        (OneDialect, LINKS, "open_link answers with one Dialect for all links"),
        (NoDialect, LINKS, "open_link returns a JsonCodec, which is no Dialect"),
        (CannotBeEncoded, ENCODED, "encode_subscription_request returns {'op': 'join'"),
        (SendsNothing, ENCODED, "encode_subscription_request returns None"),
        (OneSetupRequest, ENCODED, "setup_requests returns a dict, not a sequence"),
        (OwnIds, PURE, "encode_subscription_request returns something else"),
        (EatsParams, PURE, "encode_subscription_request changes the params"),
        (KeepsCredentials, KEEPS, "KeepsCredentials keeps the credentials as credentials"),
        (Misreads, READS, "read makes Data(channel='lobby', payload='HELLO'"),
        (ReadsOtherwiseTogether, READS, "read_all makes None of {'op': 'said'"),
        (Indexes, ANYTHING, "handle_platform_message raises"),
        (LeavesOutAField, ANYTHING, "read raises KeyError: 'text' for {"),
        (Unhashable, ANYTHING, "whose channel is not hashable"),
        (ReadsTruth, ANYTHING, "read returns False, which is no reading"),
        (RemembersWhatItRead, ANYTHING, "after messages that are broken, read makes Data"),
        (
            GrantsAnything,
            ANYTHING,
            "handle_subscription_response returns Granted(channel={'x': None}",
        ),
        (GrantsTrue, ANYTHING, "handle_subscription_response returns False"),
        (ActsBadly, ANYTHING, "handle_platform_message returns {'op': 'hello'}, which is no action"),
        (RepliesBadly, ANYTHING, "handle_platform_message returns"),
        (BeatsBadly, ANYTHING, "read returns {'op': <object"),
        (AdvisesNothing, ADVICE, "should_reconnect raises AttributeError"),
        (AdvisesTruth, ADVICE, "should_reconnect returns True"),
        (Forgets, UNCHANGED, "joined has changed"),
        (ForgetsInTheClass, UNCHANGED, "ForgetsInTheClass.seen has changed"),
        (
            TakesAllForBeats,
            LOGIN,
            "it does not become ready: AuthFailed: no answer to the authentication within 10 s; ",
        ),
        (SaysItInOtherWords, LOGIN, "it says {'op': 'logon', 'key': '***'}, not {'op': 'login', 'key': '***'}"),
        (
            AsksForAnotherRoom,
            SUBSCRIBES,
            "it says {'op': 'join', 'room': '#lobby'}, not {'op': 'join', 'room': 'lobby'}",
        ),
        (TakesAllForBeats, READS, "read makes HeartbeatAsked"),
        (ReadsNumbers, ANSWERED, "let read find what tag writes"),
        (SaysNo, ANSWERED, "the answer is taken to say no"),
        (ProbesInVain, BEATS, "its probe {'op': 'join', 'room': 'echo'} finds no answer, and the link is given up"),
        (SetsUpOnce, RESTORED, "the first link was told [{'op': 'login', 'key': '***'}, {'op': 'mode'"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_planted_fault_is_found_by_name(kind: type[Adapter], promise: str, detail: str) -> None:
    report = judged(kind())
    assert promise in broken(report)
    assert detail in broken(report)[promise]
    assert report.exit_status == 1


# --------------------------------------------------------------------------- samples, and what becomes of them


def test_a_pattern_names_what_matters() -> None:
    asked = {"op": "join", "rooms": ["a", "b"], "id": 7}
    assert fits({"op": "join"}, asked)
    assert fits({"rooms": ["a", ...]}, asked)
    assert fits(lambda said: said["id"] == 7, asked)
    assert not fits(lambda said: said["nothing"], asked)
    assert not fits({"rooms": ["a"]}, asked)
    assert not fits({"op": "join"}, asked, whole=True)
    assert is_read_as(Data("a", ...), Data("a", {"x": 1}))
    assert is_read_as([Data, Answer(..., 1)], [Data("a", 1), Answer(2, 1)])
    assert not is_read_as(Data("a", {"x": 1}), Data("a", {"x": 1, "y": 2}))
    assert not is_read_as(Answer(..., 1), Answer(2, "1"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES | st.binary() | st.tuples(st.text(), st.text()), VALUES)
def test_a_message_is_broken_in_the_same_ways_each_time_and_keeps_its_own_form(message: Any, other: Any) -> None:
    before = repr(message)
    ways = list(mutants(message, [other]))
    assert [repr(way) for way in ways] == [repr(way) for way in mutants(message, [other])]
    assert len(ways) <= MAX_MUTANTS
    assert repr(message) == before
    if isinstance(message, tuple):
        assert all(isinstance(part, str) for way in ways if isinstance(way, tuple) for part in way)


def test_a_message_loses_each_of_its_fields_and_gets_each_of_them_renamed() -> None:
    message = {"op": "said", "at": {"room": "lobby"}}
    ways = list(mutants(message, []))
    for way in ({"op": "said"}, {"at": {"room": "lobby"}}, {"op": "said", "at": {}}, {"op": None, "at": message["at"]}):
        assert way in ways
    assert {"op": "said", "at": {"roomx": "lobby"}} in ways


# --------------------------------------------------------------------------- the command


class ChatClient(Client):
    adapter = Chat()


class Bare(Client):
    pass


@attrs.define(eq=False, slots=False)
class Demanding(Chat):
    region: str = attrs.field(kw_only=True)


class BlabsCredentials(Chat):
    def encode_auth_request(self, credentials: Any) -> Any:
        raise ValueError(f"what shall I do with {credentials}?")


class Refusing(Chat):
    def __init__(self) -> None:
        raise ValueError("not today")


INSTANCE = Demanding(region="eu", url="wss://me:hunter2@h/?token=hunter2")
PLACE = str(Path(__file__))


@pytest.mark.parametrize("name", ["Chat", "ChatClient", "ChatClient.adapter", "INSTANCE"])
def test_it_takes_an_adapter_a_client_or_an_instance(name: str) -> None:
    assert isinstance(load_target(f"{PLACE}:{name}"), Adapter)
    assert type(load_target("trio_nova.adapters.echo:Echo")) is Echo


def test_it_takes_a_contract_with_its_samples() -> None:
    contract = load_target(f"{PLACE}:TestChat")
    assert isinstance(contract, AdapterContract)
    assert check_adapter(contract).exit_status == 0


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("trio_nova.adapters.echo", "names no adapter: write module:Adapter"),
        ("nowhere.at_all:X", "nowhere.at_all cannot be imported: ModuleNotFoundError"),
        ("nowhere/at_all.py:X", "nowhere/at_all.py cannot be imported: FileNotFoundError"),
        ("trio_nova:Nothing", "trio_nova has no Nothing"),
        ("trio_nova:State", "is no adapter, but a EnumType"),
        ("trio_nova.testing:AdapterContract", "AdapterContract is a contract without an adapter: set one on the class"),
        (f"{PLACE}:Bare", "Bare is a client without an adapter"),
        (f"{PLACE}:Demanding", "Demanding needs arguments: name an instance"),
        (f"{PLACE}:Refusing", "Refusing cannot be made: ValueError: not today"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(spec: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotLoad):
        load_target(spec)
    assert main(["check", spec]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "1 / 0", "def", "raise KeyError('x\\ny')"])
def test_a_module_that_fails_is_no_traceback(body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "failing_adapter.py"
    path.write_text(body)
    assert main(["check", f"{path}:X"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class TestLeavesOutAField(TestChat):
    adapter = LeavesOutAField()
    __test__ = False  # it fails, which is its purpose


def test_the_report_names_hooks_defaults_and_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLACE}:TestLeavesOutAField"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LeavesOutAField, wss://chat.example.com/v1/socket"
    assert lines[1].startswith("hooks      read, handle_auth_response, ")
    assert lines[2] == "defaults   codec=JsonCodec, ping_interval=30.0"
    at = lines.index("BROKEN     nothing that arrives breaks it")
    assert lines[at + 1].startswith("           - read raises KeyError: 'text' for {")
    assert lines[-1] == "19 promises: 1 of 19 are broken"


class TestBlabbing(TestChat):
    adapter = BlabsCredentials()
    __test__ = False  # it fails, which is its purpose


def test_the_report_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for name, status in (("INSTANCE", 0), ("SetsUpOnce", 0), ("TestBlabbing", 1), ("TestChat", 1)):
        assert main(["check", f"{PLACE}:{name}", "--credentials", '{"key": "hunter2-secret"}']) == status
        assert "hunter2" not in capsys.readouterr().out


def test_the_report_can_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLACE}:Misspelt", "--json", "--channel", "lobby"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "Misspelt"
    assert report["broken"] == 1
    assert report["promises"][0] == {
        "sentence": HOOKS,
        "outcome": "broken",
        "details": ["encode_subscribtion_request: there is no such hook; did you mean encode_subscription_request?"],
    }


def test_the_command_takes_params(capsys: pytest.CaptureFixture[str]) -> None:
    kept = f"kept       {ENCODED}"
    assert main(["check", f"{PLACE}:Deep"]) == 0
    assert kept not in capsys.readouterr().out
    assert main(["check", f"{PLACE}:Deep", "--params", '{"depth": 10}']) == 0
    assert kept in capsys.readouterr().out
    assert main(["check", f"{PLACE}:Deep", "--params", "[10]"]) == 2
    assert "argument --params: must be a JSON object" in capsys.readouterr().err


def test_the_reference_lists_every_promise() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/check.md").read_text("utf-8")
    table = page.partition("## The promises")[2].partition("## ")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")]
    assert rows[2:] == [promise.sentence for promise in check_adapter(Echo()).promises]


def test_it_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trio_nova", "check", "tests/adapters/test_contracts.py:TestEcho"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("19 promises: all 15 that were tried are kept\n")
