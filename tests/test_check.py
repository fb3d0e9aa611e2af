"""`python -m trio_nova check`: a good adapter keeps every promise, and each planted fault is found by name."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from trio_nova import (
    Adapter,
    AuthHandler,
    AuthOk,
    AuthRefused,
    Client,
    Close,
    Correlation,
    Granted,
    InOrder,
    JsonCodec,
    LinkLost,
    MessageHandler,
    Refused,
    Reply,
    Retry,
    Secret,
    Stop,
    SubscriptionHandler,
)
from trio_nova.__main__ import main
from trio_nova.adapters.deribit import Deribit
from trio_nova.adapters.echo import Echo
from trio_nova.adapters.jsonrpc import JsonRpc
from trio_nova.check import CannotLoad, Report, check_adapter, load_adapter
from trio_nova.messages import Action
from trio_nova.testing import AdapterContract


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

    def channel_of(self, message: Any) -> Any:
        match message:
            case {"op": "said", "room": str(room)}:
                return room
            case _:
                return None

    def data_of(self, message: Any) -> Any:
        return message.get("text")

    def answer_heartbeat(self, message: Any) -> Any:
        return {"op": "here"} if message == {"op": "there?"} else None

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


def broken(report: Report) -> dict[str, str]:
    return {each.sentence: "\n".join(each.details) for each in report.promises if each.outcome == "broken"}


def not_tried(report: Report) -> set[str]:
    return {each.sentence for each in report.promises if each.outcome == "not tried"}


# --------------------------------------------------------------------------- good ones


KNOWN_BY = "an answer is known by the id that was written"
NO_AUTH = {"it keeps no credentials", "it authenticates over a link"}
NO_CHANNELS = {"it subscribes and unsubscribes over a link", "data reach their feed"}


@pytest.mark.parametrize(
    ("kind", "untried"),
    [
        (Chat, set[str]()),
        (WithToken, set[str]()),
        (Echo, NO_AUTH | NO_CHANNELS | {KNOWN_BY}),
        (JsonRpc, NO_AUTH | {"it says where its service is"}),
        (Deribit, set[str]()),
    ],
)
def test_a_good_adapter_keeps_every_promise_that_can_be_tried(kind: type[Adapter], untried: set[str]) -> None:
    report = check_adapter(kind())
    assert broken(report) == {}
    assert not_tried(report) == untried
    assert report.exit_status == 0


class TestChat(AdapterContract):
    """The contract as an author has it in tests of their own."""

    adapter = Chat()
    credentials = MappingProxyType({"key": "abc"})


class TestJsonRpc(AdapterContract):
    adapter = JsonRpc(url="ws://localhost/")
    channel = "newHeads"


# --------------------------------------------------------------------------- planted faults

HOOKS = "its hooks are known and can be called"
WHERE = "it says where its service is"
DEFAULTS = "its defaults are options"
REPR = "its repr shows no secret"
SHARED = "sessions share no strategy"
ENCODED = "what it sends can be encoded"
PURE = "its requests depend on nothing but what they are given"
KEEPS = "it keeps no credentials"
ANSWERS = "its hooks answer anything with what they may"
ADVICE = "its advice after an error is to retry or to stop"
AUTH = "it authenticates over a link"
SUBSCRIBES = "it subscribes and unsubscribes over a link"
DATA = "data reach their feed"
RESTORED = "a lost link is restored"
UNCHANGED = "sessions leave the adapter as it was"


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
    def read_grants(self, reply: Any) -> Any:  # type: ignore[override]
        return []


class WithNarrowChannels(Adapter):
    host = "h"

    def defaults(self) -> Mapping[str, Any]:
        return {"subscription_handler": NarrowChannels}


@attrs.define(eq=False, kw_only=True, slots=False)
class ShowsToken(Chat):
    api_key: str = "abcdef"


ONE_FOR_ALL = AuthHandler()


class Shares(Chat):
    def encode_auth_request(self, credentials: Any) -> Any:
        raise AssertionError("never asked")

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
    def data_of(self, message: Any) -> Any:
        return message["text"]


class Unhashable(Chat):
    def channel_of(self, message: Any) -> Any:
        return message.get("room") if isinstance(message, dict) else None


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


class ExpiresAsText(Chat):
    def handle_auth_response(self, message: Any) -> Any:
        match message:
            case {"op": "login", "ok": True, **more}:
                return AuthOk(more.get("expires"))  # type: ignore[arg-type]
            case _:
                return None


class BeatsBadly(Chat):
    def answer_heartbeat(self, message: Any) -> Any:
        return {"op": object()} if message == {"op": "there?"} else None


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
            self.joined.append(str(answer.key))
        return answer


class ForgetsInTheClass(Chat):
    seen: dict[str, int] = {}  # noqa: RUF012

    def channel_of(self, message: Any) -> Any:
        channel = super().channel_of(message)
        if channel is not None:
            self.seen[channel] = 1
        return channel


class TakesAllForBeats(Chat):
    def answer_heartbeat(self, message: Any) -> Any:
        return {"op": "here"} if isinstance(message, dict) and "op" in message else None


class TakesDataForBeats(Chat):
    def answer_heartbeat(self, message: Any) -> Any:
        return {"op": "here"} if isinstance(message, dict) and message.get("op") == "said" else None


class TextIds(Correlation):
    def tag(self, message: Any, id: int) -> Any:
        return {**message, "id": str(id)}


class HiddenIds(Correlation):
    """Writes them where only answers are read."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "meta": {"req": f"r-{id}"}}

    def reply_id(self, message: Any) -> Hashable | None:
        return message["meta"]["req"] if "ok" in message else None


class FoundIds(HiddenIds):
    def request_id(self, message: Any) -> Hashable | None:
        return message.get("meta", {}).get("req")  # type: ignore[no-any-return]


class StrictIds(Correlation):
    def reply_id(self, message: Any) -> Hashable | None:
        return message.get("id") if "ok" in message else None


class ArrayIds(Correlation):
    def request_id(self, message: Any) -> None:
        return None

    def tag(self, message: Any, id: int) -> Any:
        return [id, message]

    def reply_id(self, message: Any) -> Hashable | None:
        return message[0] if isinstance(message, list) else None


class IdsFromElsewhere(Correlation):
    """Reads something else than was written."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "id": id, "serial": f"s{id}"}

    def request_id(self, message: Any) -> Hashable | None:
        return message.get("id")  # type: ignore[no-any-return]

    def reply_id(self, message: Any) -> Hashable | None:
        return message["serial"].removeprefix("s") if "ok" in message else None


def asking(correlation: Correlation) -> Adapter:
    class Asking(Chat):
        def defaults(self) -> Mapping[str, Any]:
            return {**super().defaults(), "correlation": correlation}

    return Asking()


@pytest.mark.parametrize(
    "correlation", [TextIds(), FoundIds(), StrictIds(), ArrayIds()], ids=lambda c: type(c).__name__
)
def test_an_adapter_whose_ids_are_found_keeps_the_promise(correlation: Correlation) -> None:
    assert {each.sentence: each.outcome for each in check_adapter(asking(correlation)).promises}[KNOWN_BY] == "kept"


@pytest.mark.parametrize("correlation", [HiddenIds(), IdsFromElsewhere()], ids=lambda c: type(c).__name__)
def test_an_adapter_that_would_wait_for_an_id_that_never_comes_is_found_out(correlation: Correlation) -> None:
    report = check_adapter(asking(correlation))
    assert f"{type(correlation).__name__}.reply_id reads " in broken(report)[KNOWN_BY]
    assert "let request_id read what tag writes" in broken(report)[KNOWN_BY]


def test_an_adapter_whose_answers_come_in_order_has_no_ids_to_be_judged_by() -> None:
    assert KNOWN_BY in not_tried(check_adapter(asking(InOrder())))


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
        (AsyncDefaults, HOOKS, "defaults: it must be a plain def"),
        (NoSlash, WHERE, "path: must begin with /"),
        (BadPort, WHERE, "host:"),
        (NoSuchOption, DEFAULTS, "did you mean ping_interval?"),
        (WithSyncAuth, DEFAULTS, "SyncAuth.authenticate: it must be a async def"),
        (WithNarrowChannels, DEFAULTS, "NarrowChannels.read_grants: it must take reply, asked"),
        (ShowsToken, REPR, "repr() shows api_key"),
        (Shares, SHARED, "auth_handler: one AuthHandler serves all sessions"),
        (CannotBeEncoded, ENCODED, "encode_subscription_request returns {'op': 'join'"),
        (SendsNothing, ENCODED, "encode_subscription_request returns None"),
        (OneSetupRequest, ENCODED, "setup_requests returns a dict, not a sequence"),
        (OwnIds, PURE, "encode_subscription_request returns something else"),
        (EatsParams, PURE, "encode_subscription_request changes the params"),
        (KeepsCredentials, KEEPS, "keeps the credentials as credentials"),
        (Indexes, ANSWERS, "handle_platform_message raises"),
        (LeavesOutAField, ANSWERS, "data_of raises KeyError: 'text'"),
        (Unhashable, ANSWERS, "which is not hashable"),
        (GrantsAnything, ANSWERS, "handle_subscription_response returns Granted(key={'op'"),
        (GrantsTrue, ANSWERS, "handle_subscription_response returns False"),
        (ActsBadly, ANSWERS, "handle_platform_message returns {'op': 'hello'}, which is no action"),
        (RepliesBadly, ANSWERS, "handle_platform_message returns"),
        (ExpiresAsText, ANSWERS, "handle_auth_response returns AuthOk"),
        (BeatsBadly, ANSWERS, "answer_heartbeat returns"),
        (AdvisesNothing, ADVICE, "should_reconnect raises AttributeError"),
        (AdvisesTruth, ADVICE, "should_reconnect returns True"),
        (Forgets, UNCHANGED, "joined has changed"),
        (ForgetsInTheClass, UNCHANGED, "ForgetsInTheClass.seen has changed"),
        (TakesAllForBeats, AUTH, "does not let it in"),
        (TakesAllForBeats, SUBSCRIBES, "is not confirmed"),
        (TakesDataForBeats, DATA, "the feed does not bring {'op': 'said'"),
        (SetsUpOnce, RESTORED, "the first link was told [{'op': 'login', 'key': '***'}, {'op': 'mode'"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_planted_fault_is_found_by_name(kind: type[Adapter], promise: str, detail: str) -> None:
    report = check_adapter(kind())
    assert promise in broken(report)
    assert detail in broken(report)[promise]
    assert report.exit_status == 1


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
    assert isinstance(load_adapter(f"{PLACE}:{name}"), Adapter)
    assert type(load_adapter("trio_nova.adapters.echo:Echo")) is Echo


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("trio_nova.adapters.echo", "names no adapter: write module:Adapter"),
        ("nowhere.at_all:X", "nowhere.at_all cannot be imported: ModuleNotFoundError"),
        ("nowhere/at_all.py:X", "nowhere/at_all.py cannot be imported: FileNotFoundError"),
        ("trio_nova:Nothing", "trio_nova has no Nothing"),
        ("trio_nova:State", "is no adapter, but a EnumType"),
        (f"{PLACE}:Bare", "Bare is a client without an adapter"),
        (f"{PLACE}:Demanding", "Demanding needs arguments: name an instance"),
        (f"{PLACE}:Refusing", "Refusing cannot be made: ValueError: not today"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(spec: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotLoad):
        load_adapter(spec)
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


def test_the_report_names_hooks_defaults_and_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{PLACE}:LeavesOutAField"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LeavesOutAField, wss://chat.example.com/v1/socket"
    assert lines[1].startswith("hooks      handle_platform_message, encode_auth_request, ")
    assert lines[2] == "defaults   codec=JsonCodec, ping_interval=30.0"
    at = lines.index("BROKEN     its hooks answer anything with what they may")
    assert lines[at + 1].startswith("           - data_of raises KeyError: 'text' for {")
    assert lines[-1] == "16 promises: 1 of 16 are broken"


def test_the_report_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for name, status in (("INSTANCE", 0), ("SetsUpOnce", 1), ("BlabsCredentials", 0)):
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


def test_the_reference_lists_every_promise() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/check.md").read_text("utf-8")
    table = page.partition("## The promises")[2].partition("## Not tried")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")]
    assert rows[2:] == [promise.sentence for promise in check_adapter(Echo()).promises]


def test_it_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trio_nova", "check", "trio_nova.adapters.echo:Echo"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("16 promises: all 11 that were tried are kept\n")
