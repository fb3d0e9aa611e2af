"""Authentication: on every link, before anything else, kept fresh, and never fooled."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Authenticated,
    AuthExchange,
    AuthFailed,
    AuthHandler,
    AuthOk,
    AuthRefused,
    AuthStarted,
    AuthUnsuccessful,
    Buffer,
    ConfigError,
    ConnectFailed,
    Connection,
    ConnectionHandler,
    ConnectionInfo,
    Correlation,
    HandshakeRejected,
    JsonCodec,
    LinkLost,
    ListBackoff,
    MessageHandler,
    NotSent,
    OutcomeUnknown,
    RawCodec,
    RequestFailed,
    Retry,
    SessionOver,
    State,
    Stop,
    explain,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.testing import ClosePayload, GenericVenue, Peer, ScriptedServer, echo

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])


def connect(server: ScriptedServer, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "stream_factory": server.stream_factory,
        "codec": JsonCodec(),
        "backoff": AT_ONCE,
        "credentials": {"token": "open sesame"},
        "allow_plaintext_credentials": True,
    }
    return open_connection(URL, **{**defaults, **options})


class Gate:
    """Lets in whoever has a token it knows, and echoes what else it is sent; refuses to hear anything before."""

    def __init__(self, *tokens: str, expires_in: Any = None) -> None:
        self.tokens = set(tokens)
        self.expires_in = expires_in
        self.seen: list[list[Any]] = []
        self.peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        self.peer = peer
        seen: list[Any] = []
        self.seen.append(seen)
        admitted = False
        while isinstance(frame := await peer.receive(), str):
            message = json.loads(frame)
            seen.append(message)
            if isinstance(message, dict) and message.get("type") == "auth":
                admitted = message.get("token") in self.tokens
                answer = {"type": "auth_success"} if admitted else {"type": "auth_error", "reason": "unknown token"}
                if admitted and self.expires_in is not None:
                    answer["expires_in"] = self.expires_in
                await peer.send_json(answer)
            else:
                assert admitted, f"{message!r} came before the authentication"
                await peer.send_json(message)


class Trusting(AuthHandler):
    """Passes on what the service says as it is."""

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        return AuthOk(expires_in=message["expires_in"]) if message["type"] == "auth_success" else None


@pytest.mark.fault("F108", where="memory")
async def test_every_link_is_authenticated_before_anything_else(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame")
    async with ScriptedServer(then=gate) as server, connect(server) as conn:
        await conn.send({"n": 1})
        assert await conn.receive() == {"n": 1}
        assert gate.peer is not None
        await gate.peer.drop()
        await conn.wait_state(State.AUTHENTICATING)
        await conn.send({"n": 2})
        assert await conn.receive() == {"n": 2}
    assert [[message.get("type", message.get("n")) for message in link] for link in gate.seen] == [
        ["auth", 1],
        ["auth", 2],
    ]


async def test_the_default_signs_with_a_secret_that_it_does_not_send(autojump_clock: trio.abc.Clock) -> None:
    sent: list[dict[str, Any]] = []

    async def check(peer: Peer) -> None:
        await peer.accept()
        sent.append(await peer.receive_json())
        await peer.send_json({"type": "auth_success"})
        await peer.serve_until_closed()

    async with ScriptedServer(check) as server:
        handler = AuthHandler(wall_clock=lambda: 1576074319.0)
        async with connect(server, credentials={"api_key": "key", "secret": "whisper"}, auth_handler=handler):
            pass
    expected = hmac.new(b"whisper", b"key1576074319000", hashlib.sha256).hexdigest()
    assert sent == [{"type": "auth", "timestamp": 1576074319000, "api_key": "key", "signature": expected}]


async def test_refused_credentials_are_an_error_at_once_and_not_tried_again(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(then=Gate("another")) as server:
        with pytest.raises(AuthFailed, match="unknown token"):
            async with connect(server, retry_first_connect=True):
                raise AssertionError("never entered")
        assert len(server.dials) == 1


@pytest.mark.fault("F108", where="memory")
async def test_credentials_whose_answer_nothing_can_read_are_refused_at_once(autojump_clock: trio.abc.Clock) -> None:
    class Reads(AuthHandler):
        def handle_auth_response(self, message: Any) -> AuthOk:
            return AuthOk()

    options: dict[str, Any] = {"codec": RawCodec(), "allow_plaintext_credentials": True}
    with pytest.raises(ConfigError, match=r"^credentials: .*JsonCodec"):
        open_connection(URL, credentials="token", **options)
    open_connection(URL, credentials="token", auth_handler=Reads, **options)
    async with ScriptedServer(echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, **options) as conn:
            with pytest.raises(ConfigError, match=r"^credentials: .*JsonCodec"):
                await conn.authenticate("token")


async def test_a_notification_never_counts_as_the_answer(autojump_clock: trio.abc.Clock) -> None:
    async def chatter(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "welcome"})
        await peer.send_json({"method": "heartbeat", "id": 1, "result": "ok"})
        await trio.sleep(3)
        await peer.send_json({"type": "auth_error", "reason": "no"})
        await peer.serve_until_closed()

    async with ScriptedServer(chatter) as server:
        with pytest.raises(AuthFailed, match="no"):
            async with connect(server):
                raise AssertionError("never entered")


@pytest.mark.fault("F108", where="memory")
async def test_an_answer_that_never_comes_is_a_failed_attempt(autojump_clock: trio.abc.Clock) -> None:
    async def silent(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.expect_close()

    async with ScriptedServer(silent, Gate("open sesame")) as server:
        async with connect(server, retry_first_connect=True, auth_timeout=4.0) as conn:
            assert conn.epoch == 2
            assert server.dials[1].at - server.dials[0].at == pytest.approx(4.0)


async def test_a_provider_is_asked_on_every_link_and_its_failure_is_a_failed_attempt(
    autojump_clock: trio.abc.Clock,
) -> None:
    gate, asked = Gate("token 1", "token 3"), 0

    async def provide() -> dict[str, str]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("the vault is closed")
        return {"token": f"token {asked}"}

    async with ScriptedServer(then=gate) as server, connect(server, credentials=provide) as conn:
        assert gate.peer is not None
        await gate.peer.drop()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        assert asked == 3

    async def fail() -> dict[str, str]:
        raise RuntimeError("always")

    async with ScriptedServer(then=gate) as server:
        with pytest.raises(ConnectFailed):
            async with connect(server, credentials=fail):
                raise AssertionError("never entered")


@pytest.mark.parametrize("what", ["headers", "credentials"])
async def test_a_provider_that_is_not_async_is_named_at_once(what: str, autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(then=Gate()) as server:
        with pytest.raises(ConfigError, match=f"{what}: its provider must be async") as caught:
            async with connect(server, **{what: lambda: {"token": "hunter2"}}, retry_first_connect=True):
                raise AssertionError("never entered")
    assert "hunter2" not in repr(caught.value)


@pytest.mark.fault("F107", where="memory")
@pytest.mark.fault("F35", where="memory")
async def test_stale_credentials_of_a_provider_are_asked_for_once_more(autojump_clock: trio.abc.Clock) -> None:
    gate, asked = Gate("fresh"), 0

    async def provide() -> str:
        nonlocal asked
        asked += 1
        return "stale" if asked == 1 else "fresh"

    async with ScriptedServer(then=gate) as server:
        async with connect(server, credentials=provide, retry_first_connect=True) as conn:
            assert asked == 2
            assert conn.epoch == 2

    async def always_stale() -> str:
        return "stale"

    async with ScriptedServer(then=gate) as server:
        with pytest.raises(AuthFailed):
            async with connect(server, credentials=always_stale, retry_first_connect=True):
                raise AssertionError("never entered")
        assert len(server.dials) == 2


@pytest.mark.fault("F35", where="memory")
@pytest.mark.parametrize("by", ["headers", "connection_info"])
async def test_a_401_is_answered_once_with_what_is_asked_for_afresh(by: str, autojump_clock: trio.abc.Clock) -> None:
    tokens: list[str] = []
    up: Peer | None = None

    def token() -> dict[str, str]:
        return {"Authorization": f"Bearer {tokens.pop(0)}"}

    class Tokens(ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            return attrs.evolve(info, headers=token())

    async def service(peer: Peer) -> None:
        nonlocal up
        up = peer
        request = await peer.read_request()
        if request.headers.get("authorization") != "Bearer fresh":
            await peer.reject(401)
            return
        await peer.accept()
        await peer.serve_until_closed()

    async def headers() -> dict[str, str]:
        return token()

    options: dict[str, Any] = {"headers": headers} if by == "headers" else {"connection_handler": Tokens()}
    options |= {"retry_first_connect": True, "backoff": AT_ONCE, "allow_plaintext_credentials": True}
    async with ScriptedServer(then=service) as server:
        tokens[:] = ["stale", "fresh", "stale", "stale", "fresh"]
        async with open_connection(URL, stream_factory=server.stream_factory, **options) as conn:
            assert len(server.dials) == 2
            assert up is not None
            await up.drop()
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()  # a session that was ready outlives more of them
        assert (len(server.dials), tokens) == (5, [])
        tokens[:] = ["stale", "stale", "fresh"]
        with pytest.raises(HandshakeRejected) as caught:
            async with open_connection(URL, stream_factory=server.stream_factory, **options):
                raise AssertionError("never entered")
        assert caught.value.status == 401
        assert (len(server.dials), tokens) == (7, ["fresh"])


async def test_a_grant_is_renewed_before_it_expires_while_messages_flow(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame", expires_in=600)
    async with ScriptedServer(then=gate) as server, connect(server) as conn, conn.listen() as events:
        for n in range(100):
            await conn.send({"n": n})
            assert await conn.receive() == {"n": n}
            await trio.sleep(18)
        assert conn.epoch == 1
        observations = await events.observations().receive_batch()
    seen = [each.event for each in observations]
    renewed = [each.at for each in observations if isinstance(each.event, Authenticated)]
    assert renewed == pytest.approx([540, 1080, 1620], abs=1)
    assert all(event.refresh for event in seen if isinstance(event, AuthStarted | Authenticated))


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize("expires_in", [-1, 0, 1e-9, 10**400, "3600", True, [3600], {}])
@pytest.mark.parametrize("handler", [AuthHandler, Trusting])
async def test_a_nonsensical_lifetime_does_not_make_it_ask_without_end(
    autojump_clock: trio.abc.Clock, expires_in: Any, handler: type[AuthHandler]
) -> None:
    gate = Gate("open sesame", expires_in=expires_in)
    async with ScriptedServer(then=gate) as server, connect(server, auth_handler=handler):
        await trio.sleep(60)
    assert 1 <= len(gate.seen[0]) <= 13


@pytest.mark.parametrize("at", [10**400, -(10**400), -1e308])
def test_an_end_of_the_grant_that_cannot_be_is_no_error(at: float) -> None:
    assert isinstance(AuthHandler().handle_auth_response({"type": "auth_success", "expires_at": at}), AuthOk)


async def test_a_refresh_that_fails_for_good_ends_the_session_loudly(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame", expires_in=600)
    async with ScriptedServer(then=gate) as server:
        with pytest.raises(AuthFailed):
            async with connect(server) as conn, conn.listen() as events:
                gate.tokens.clear()
                try:
                    await trio.sleep(1000)
                finally:
                    seen = await _drain(events)
        assert [type(event) for event in seen if isinstance(event, AuthUnsuccessful)]


async def test_a_link_whose_grant_has_expired_unrenewed_is_given_up_for_one_that_is_authenticated_afresh(
    autojump_clock: trio.abc.Clock,
) -> None:
    heard: list[float] = []

    async def grant_once(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "auth_success", "expires_in": 600})
        while isinstance(await peer.receive(), str):  # and no word about its renewal
            heard.append(trio.current_time())
        await peer.finish()

    async with ScriptedServer(grant_once, then=Gate("open sesame")) as server:
        async with connect(server, auth_timeout=45.0, backoff=ListBackoff([40.0])) as conn:
            began = trio.current_time()
            await conn.wait_state(State.DISCONNECTED)
            left_at = trio.current_time()
            await conn.wait_ready()
            assert conn.epoch == 2
    # 60 s before the end; at the end, where the back-off would let it lie; and no third time.
    assert [at - began for at in heard] == pytest.approx([540.0, 600.0])
    assert left_at - began == pytest.approx(645.0)


async def _drain(events: Any) -> list[Any]:
    seen: list[Any] = []
    with trio.CancelScope(shield=True):
        seen += await events.receive_batch()
    return seen


async def test_credentials_are_rotated_on_the_living_link(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame", "newer")
    async with ScriptedServer(then=gate) as server, connect(server) as conn:
        await conn.authenticate({"token": "newer"})
        assert conn.epoch == 1
        assert [message["token"] for message in gate.seen[0]] == ["open sesame", "newer"]
        with pytest.raises(AuthFailed):
            await conn.authenticate({"token": "wrong"})
        await conn.authenticate({"token": "newer"})
        assert gate.peer is not None
        await gate.peer.drop()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        assert gate.seen[1][0]["token"] == "newer"


async def test_a_flow_of_several_steps(autojump_clock: trio.abc.Clock) -> None:
    class Challenge(AuthHandler):
        async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
            challenge = await exchange.request({"type": "hello"})
            return await exchange.ask({"type": "answer", "value": challenge["result"] * 2}, self.handle_auth_response)

    async def guard(peer: Peer) -> None:
        await peer.accept()
        hello = await peer.receive_json()
        await peer.send_json({"id": hello["id"], "result": 21})
        answer = await peer.receive_json()
        assert answer == {"type": "answer", "value": 42}
        await peer.send_json({"type": "auth_success", "expires_in": 100})
        await peer.expect('{"n":1}')
        await peer.serve_until_closed()

    async with ScriptedServer(guard) as server, connect(server, auth_handler=Challenge) as conn:
        await conn.send({"n": 1})
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("how", ["drop", "reset", "close"])
async def test_a_link_lost_amid_authentication_is_a_failed_attempt(autojump_clock: trio.abc.Clock, how: str) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        verbs: dict[str, Callable[[], Any]] = {"drop": peer.drop, "reset": peer.reset, "close": peer.close}
        await verbs[how]()

    async with ScriptedServer(lose, Gate("open sesame")) as server:
        async with connect(server, retry_first_connect=True) as conn:
            assert conn.epoch == 2


def closes_login(code: int, reason: str = "") -> Any:
    async def close(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.close(code, reason)

    return close


@pytest.mark.parametrize("code", [1008, 3000, 3003, 4000, 4401, 4999])
@pytest.mark.parametrize("patient", [False, True])
async def test_a_login_that_is_answered_by_a_close_is_refused_and_not_tried_again(
    patient: bool, code: int, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    async with ScriptedServer(then=closes_login(code, "bad key")) as server:
        with pytest.raises(AuthFailed, match=f"amid the login, with code {code}: bad key") as caught:
            async with connect(server, transport=transport, retry_first_connect=patient):
                raise AssertionError("never entered")
    assert len(server.dials) == 1
    assert (caught.value.phase, caught.value.retry) == ("auth", "never")
    assert isinstance(caught.value.__cause__, LinkLost)
    assert caught.value.__cause__.code == code
    assert "max_attempts" not in explain(caught.value)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013])
async def test_a_service_that_goes_away_amid_the_login_is_dialled_again(
    code: int, autojump_clock: trio.abc.Clock
) -> None:
    async with ScriptedServer(closes_login(code), Gate("open sesame")) as server:
        async with connect(server, retry_first_connect=True) as conn:
            assert conn.epoch == 2


async def test_a_login_that_is_refused_by_a_close_ends_a_session_that_was_ready(
    autojump_clock: trio.abc.Clock,
) -> None:
    gate = Gate("open sesame")
    async with ScriptedServer(gate, then=closes_login(4003)) as server:
        with pytest.raises(AuthFailed, match="4003"):
            async with connect(server) as conn, conn.listen() as events:
                assert gate.peer is not None
                await gate.peer.drop()
                await trio.sleep_forever()
        told = [event.error async for event in events if isinstance(event, AuthUnsuccessful)]
        assert [type(error) for error in told] == [AuthFailed]
        assert len(server.dials) == 2


async def test_a_provider_whose_credentials_are_refused_by_a_close_is_asked_once_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    asked = 0

    async def provide() -> str:
        nonlocal asked
        asked += 1
        return "open sesame"

    async with ScriptedServer(closes_login(4401), Gate("open sesame")) as server:
        async with connect(server, credentials=provide, retry_first_connect=True) as conn:
            assert (asked, conn.epoch) == (2, 2)
    async with ScriptedServer(then=closes_login(4401)) as server:
        with pytest.raises(AuthFailed):
            async with connect(server, credentials=provide, retry_first_connect=True):
                raise AssertionError("never entered")
        assert len(server.dials) == 2


async def test_a_close_amid_the_login_is_told_to_handle_disconnect_whose_stop_ends_with_the_refusal(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Stops(ConnectionHandler):
        def handle_disconnect(self, lost: LinkLost) -> Action:
            assert lost.code == 4401
            return Stop(lost)

    async with ScriptedServer(then=closes_login(4401)) as server:
        with pytest.raises(AuthFailed, match="4401"):
            async with connect(server, connection_handler=Stops, retry_first_connect=True):
                raise AssertionError("never entered")
        assert len(server.dials) == 1


async def test_a_hook_that_knows_the_code_of_a_busy_service_has_it_dialled_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Knows(ConnectionHandler):
        def handle_disconnect(self, lost: LinkLost) -> Action:
            return Retry(3.0) if lost.code == 4429 else None

    async with ScriptedServer(closes_login(4429), Gate("open sesame")) as server:
        async with connect(server, connection_handler=Knows, retry_first_connect=True) as conn:
            assert conn.epoch == 2
            assert trio.current_time() == 3.0


async def test_a_hook_that_stops_at_the_services_words_before_the_close_ends_with_its_own_error(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def explains(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "error", "reason": "no such key"})
        await peer.close(4401)

    class Reads(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return Stop(AuthFailed(message["reason"])) if message.get("type") == "error" else None

    async with ScriptedServer(then=explains) as server:
        with pytest.raises(AuthFailed):
            async with connect(server, message_handler=Reads, retry_first_connect=True):
                raise AssertionError("never entered")
        assert len(server.dials) == 1


async def test_without_a_login_a_close_of_the_services_own_is_a_lost_link(autojump_clock: trio.abc.Clock) -> None:
    async def close(peer: Peer) -> None:
        await peer.accept()
        await peer.close(4401)

    async with ScriptedServer(close, then=echo) as server:
        async with connect(server, credentials=None, retry_first_connect=True) as conn:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            assert conn.epoch == 2


@pytest.mark.parametrize("marked", [False, True], ids=["by its type", "by what correlation calls an error"])
async def test_the_reason_that_the_handler_reads_in_a_refusal_is_in_the_error(
    marked: bool, autojump_clock: trio.abc.Clock
) -> None:
    class Reads(AuthHandler):
        def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
            return AuthRefused("locked") if message.get("ok") is False else None

    async def refuse(peer: Peer) -> None:
        await peer.accept()
        asked = await peer.receive_json()
        answer = {"ok": False, "id": asked.get("id")}
        await peer.send_json({**answer, "error": {"code": 17}} if marked else answer)
        await peer.serve_until_closed()

    async with ScriptedServer(then=refuse) as server:
        options: dict[str, Any] = {"auth_handler": Reads, "correlation": Correlation()}
        with pytest.raises(AuthFailed) as caught:
            async with connect(server, **options):
                raise AssertionError("never entered")
    assert str(caught.value) == "the service refuses the credentials: locked"
    assert explain(caught.value).count("locked") == 1


async def test_leaving_amid_authentication_is_quick(autojump_clock: trio.abc.Clock) -> None:
    async def silent(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(silent) as server:
        started = trio.current_time()
        with trio.move_on_after(1):
            async with connect(server):
                raise AssertionError("never entered")
        assert trio.current_time() - started <= 3.0


# --------------------------------------------------------------------------- credentials that are not accepted


def tokens(gate: Gate, link: int) -> list[str]:
    """Return the tokens that came on a link, counted from 0."""
    return [message["token"] for message in gate.seen[link] if message.get("type") == "auth"]


async def test_credentials_that_are_refused_leave_those_before_in_force(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame")
    async with ScriptedServer(then=gate) as server, connect(server) as conn:
        with pytest.raises(AuthFailed, match="unknown token"):
            await conn.authenticate({"token": "wrong"})
        await conn.send({"n": 1})  # the gate forgets at a refusal whom it had let in
        assert await conn.receive() == {"n": 1}
        assert conn.epoch == 1
        await conn.reconnect()
        await conn.authenticate()
        assert [tokens(gate, 0), tokens(gate, 1)] == [["open sesame", "wrong", "open sesame"], ["open sesame"] * 2]


async def test_credentials_that_are_not_answered_leave_those_before_in_force(autojump_clock: trio.abc.Clock) -> None:
    async def ignore_the_second(peer: Peer) -> None:
        await peer.accept()
        for answer in ({"type": "auth_success"}, None, {"type": "auth_success"}):
            sent.append((await peer.receive_json())["token"])
            if answer is not None:
                await peer.send_json(answer)
        await peer.serve_until_closed()

    sent: list[str] = []
    async with ScriptedServer(ignore_the_second) as server, connect(server, auth_timeout=3.0) as conn:
        with trio.fail_after(100), pytest.raises(AuthFailed, match="no answer"):
            await conn.authenticate({"token": "newer"})
        assert sent == ["open sesame", "newer", "open sesame"]


async def test_a_cancelled_change_of_credentials_leaves_those_before_in_force(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            sent.append(json.loads(frame)["token"])
            await trio.sleep(2.0)
            await peer.send_json({"type": "auth_success"})

    sent: list[str] = []
    async with ScriptedServer(then=slow) as server, connect(server) as conn:
        with trio.move_on_after(1.0):
            await conn.authenticate({"token": "newer"})
        await trio.sleep(10.0)
        await conn.authenticate()
        assert conn.epoch == 1
    assert sent == ["open sesame", "newer", "open sesame", "open sesame"]


async def test_where_those_before_are_refused_too_the_session_ends(autojump_clock: trio.abc.Clock) -> None:
    gate = Gate("open sesame")
    async with ScriptedServer(then=gate) as server:
        with pytest.raises(AuthFailed, match="unknown token"):
            async with connect(server) as conn:
                gate.tokens.clear()
                with pytest.raises(AuthFailed):
                    await conn.authenticate({"token": "wrong"})
                await trio.sleep(10.0)
    assert len(server.dials) == 1


async def test_credentials_that_are_refused_are_told_to_be_also_where_the_link_is_lost_over_those_before(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def refuse_and_leave(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "auth_success"})
        await peer.receive_json()
        await peer.send_json({"type": "auth_error", "reason": "unknown token"})
        assert (await peer.receive_json())["token"] == "open sesame"
        await peer.drop()

    gate = Gate("open sesame")
    async with ScriptedServer(refuse_and_leave, then=gate) as server, connect(server) as conn:
        with pytest.raises(AuthFailed, match="unknown token"):
            await conn.authenticate({"token": "wrong"})
        await conn.wait_ready()
        assert tokens(gate, 0) == ["open sesame"]


async def test_a_link_lost_on_trial_is_replaced_with_the_credentials_before(autojump_clock: trio.abc.Clock) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        await peer.send_json({"type": "auth_success"})
        await peer.receive_json()
        await peer.drop()

    gate = Gate("open sesame")
    async with ScriptedServer(lose, then=gate) as server, connect(server) as conn:
        with pytest.raises(OutcomeUnknown):
            await conn.authenticate({"token": "newer"})
        await conn.wait_ready()
        assert tokens(gate, 0) == ["open sesame"]


async def test_a_link_lost_while_a_provider_is_asked_is_told_to_who_authenticates_as_soon_as_that_answers(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def provide() -> Any:
        await trio.sleep(3.0)
        return {"token": "newer"}

    gate = Gate("open sesame")
    async with ScriptedServer(then=gate) as server, connect(server) as conn, trio.open_nursery() as nursery:
        began, first = trio.current_time(), gate.peer
        assert first is not None

        @nursery.start_soon
        async def authenticate() -> None:
            with pytest.raises(NotSent, match="the link was lost before it was written"):
                await conn.authenticate(provide)
            assert trio.current_time() - began == 3.0

        await trio.sleep(1.0)
        await first.reset()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        await conn.send({"n": 1})
        assert await conn.receive() == {"n": 1}
    assert [tokens(gate, link) for link in range(2)] == [["open sesame"]] * 2


# --------------------------------------------------------------------------- hooks that raise


class Trouble(Exception):
    """The user's own."""


class Untellable(AuthHandler):
    def encode_auth_request(self, credentials: Any) -> Any:
        raise Trouble("encode_auth_request")


class Undecided(AuthHandler):
    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        await trio.lowlevel.checkpoint()
        raise Trouble("authenticate")


class Unreadable(AuthHandler):
    def handle_auth_response(self, message: Any) -> AuthOk:
        raise Trouble("handle_auth_response")


@pytest.mark.parametrize(
    ("policy", "raised"),
    [("raise", Trouble), ("log", AuthFailed), ("close", SessionOver)],
    ids=["raise", "log", "close"],
)
@pytest.mark.parametrize("handler", [Untellable, Undecided, Unreadable])
async def test_what_a_hook_raises_follows_on_handler_error(
    autojump_clock: trio.abc.Clock, handler: type[AuthHandler], policy: str, raised: type[Exception]
) -> None:
    async with ScriptedServer(Gate("open sesame")) as server:
        with pytest.raises(raised):
            async with connect(server, auth_handler=handler, on_handler_error=policy):
                raise AssertionError("never entered")
        await server.dials[0].wait_ended()


@pytest.mark.parametrize("leave", ["reconnect", "close"])
async def test_an_answer_that_comes_while_goodbye_is_said_is_no_surprise(
    autojump_clock: trio.abc.Clock, leave: str
) -> None:
    """With a subscription to restore, the session used to die of a step that was not possible any more."""

    async def answer_late(peer: Peer) -> None:
        await peer.accept()
        await peer.receive_json()
        assert isinstance(await peer.receive(), ClosePayload)
        await peer.send_json({"type": "auth_success"})
        await peer.close()

    venue = GenericVenue(tokens={"open sesame"})
    async with (
        ScriptedServer(venue._serve, answer_late, then=venue._serve) as server,
        connect(server) as conn,
        trio.open_nursery() as nursery,
    ):

        async def leave_while_authenticating() -> None:
            await conn.wait_state(State.AUTHENTICATING)
            await wait_all_tasks_blocked()
            await (conn.reconnect() if leave == "reconnect" else conn.aclose())
            nursery.cancel_scope.cancel()

        async with conn.subscribe("ticks"):
            nursery.start_soon(leave_while_authenticating)
            venue.drop()
            await trio.sleep(60)
    assert conn.state is State.CLOSED


class Renews(AuthHandler):
    """Authenticates again where a request is refused for want of it."""

    def handle_refusal(self, reply: Any) -> bool:
        return bool(reply["error"] == "unauthorized")


async def let_in(peer: Peer) -> None:
    await peer.accept()
    assert (await peer.receive_json())["token"] == "open sesame"
    await peer.send_json({"type": "auth_success"})


@pytest.mark.parametrize("when_down", ["fail", "wait"])
async def test_a_refusal_that_comes_while_its_link_is_left_calls_for_no_authentication_on_it(
    when_down: str, autojump_clock: trio.abc.Clock
) -> None:
    async def refuses_late(peer: Peer) -> None:
        await let_in(peer)
        asked = await peer.receive_json()
        assert isinstance(await peer.receive(), ClosePayload)
        await peer.send_json({"id": asked["id"], "error": "unauthorized"})
        await peer.finish()

    async def answers(peer: Peer) -> None:
        await let_in(peer)
        asked = await peer.receive_json()
        await peer.send_json({"id": asked["id"], "result": "done"})
        await peer.serve_until_closed()

    options: dict[str, Any] = {"auth_handler": Renews, "when_down": when_down, "backoff": ListBackoff([5.0])}
    outcomes: list[Any] = []
    async with (
        ScriptedServer(refuses_late, then=answers) as server,
        connect(server, **options) as conn,
        conn.listen() as events,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            try:
                outcomes.append(await conn.request({"n": 1}))
            except RequestFailed as error:
                outcomes.append((error.reply, trio.current_time()))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        left_at = trio.current_time()
        await conn.reconnect()
        if when_down == "fail":
            ((reply, at),) = outcomes
            assert (reply["error"], at) == ("unauthorized", left_at)
            await conn.request({"n": 2})
        else:
            await wait_all_tasks_blocked()
            assert [outcome["result"] for outcome in outcomes] == ["done"]
        seen = await events.receive_batch()
    assert [event.refresh for event in seen if isinstance(event, AuthStarted)] == [False]


@pytest.mark.parametrize("when_down", ["fail", "wait", "buffer"])
async def test_of_refused_requests_none_authenticates_a_link_that_went_while_another_did(
    when_down: str, autojump_clock: trio.abc.Clock
) -> None:
    async def refuses_both_and_drops(peer: Peer) -> None:
        await let_in(peer)
        for _ in range(2):
            asked = await peer.receive_json()
            await peer.send_json({"id": asked["id"], "error": "unauthorized"})
        assert (await peer.receive_json())["type"] == "auth"
        await peer.drop()

    async def answers(peer: Peer) -> None:
        await trio.sleep(60.0 if when_down == "buffer" else 1.0)
        await let_in(peer)
        for _ in range(2):
            asked = await peer.receive_json()
            await peer.send_json({"id": asked["id"], "result": "done"})
        await peer.serve_until_closed()

    outcomes: list[Any] = []

    async def ask(conn: Connection, n: int) -> None:
        try:
            outcomes.append((await conn.request({"n": n}))["result"])
        except RequestFailed:
            outcomes.append("refused")

    policy = Buffer(ttl=10.0) if when_down == "buffer" else when_down
    options: dict[str, Any] = {"auth_handler": Renews, "when_down": policy, "connect_timeout": 100.0}
    async with ScriptedServer(refuses_both_and_drops, then=answers) as server, connect(server, **options) as conn:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(2):
                nursery.start_soon(ask, conn, n)
        took = trio.current_time() - began
    assert outcomes == (["done"] * 2 if when_down == "wait" else ["refused"] * 2)
    assert took == pytest.approx({"fail": 0.0, "wait": 1.0, "buffer": 10.0}[when_down])
