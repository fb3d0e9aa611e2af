"""Secrets stay secret: in every slot of a session, through every fault, in everything that can be printed."""

from __future__ import annotations

import base64
import copy
import functools
import html
import io
import json
import logging
import pickle
import pprint
import re
import ssl
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import attrs
import msgspec
import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import trio_nova
from trio_nova import ConfigError, ConnectFailed, ConnectionInfo, JsonCodec, open_connection
from trio_nova.config import Config
from trio_nova.disguises import MAX_READ, MAX_READINGS, readings
from trio_nova.errors import HandshakeRejected, LinkLost, NovaError, printable
from trio_nova.events import MessageEvent, Observation
from trio_nova.links import Dial, Link, Transport
from trio_nova.messages import Action
from trio_nova.observe.logging import describe, sentence
from trio_nova.secrets import (
    MAX_SUPERSEDED,
    MAX_SUPERSEDED_SIZE,
    SHORTEST,
    FromEnvironment,
    HeaderMap,
    Redactor,
    Secret,
    as_secret,
    ask_credentials,
    forget_locals,
    is_secret_name,
    secrets_in,
    secrets_in_headers,
    secrets_in_url,
)
from trio_nova.testing import Peer, Refuse, ScriptedServer, Step
from trio_nova.urls import Url

# --------------------------------------------------------------------------- a value that masks itself


@attrs.frozen
class Holder:
    secret: Secret[Any]


@pytest.mark.fault("F102", where="memory")
@pytest.mark.parametrize("value", ["CANARY", b"CANARY", {"token": "CANARY"}, ["CANARY"]])
def test_a_secret_is_masked_by_all_that_prints(value: object) -> None:
    secret = Secret(value)
    holder = Holder(secret)
    stream = io.StringIO()
    pprint.pprint({"s": secret, "h": holder, "d": attrs.asdict(holder)}, stream)
    shown = [
        str(secret),
        repr(secret),
        f"{secret} {secret!s} {secret!r} {secret:>20}",
        "%s %r" % (secret, secret),  # noqa: UP031 - a way that prints
        repr(holder),
        repr(attrs.asdict(holder)),
        repr(attrs.astuple(holder)),
        repr(attrs.evolve(holder)),
        stream.getvalue(),
    ]
    assert "CANARY" not in "\n".join(shown)
    assert secret.reveal() is value


@pytest.mark.parametrize("encode", [json.dumps, msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins])
@pytest.mark.parametrize("secret", [Secret("CANARY"), HeaderMap({"X-Key": "CANARY"})])
def test_a_secret_is_not_encoded(encode: Callable[[object], object], secret: object) -> None:
    for value in (secret, {"k": secret}):
        with pytest.raises(TypeError) as caught:
            encode(value)
        assert "CANARY" not in str(caught.value)


@pytest.mark.fault("F102", where="memory")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("secret", [Secret("CANARY"), HeaderMap({"X-Key": "CANARY"}), Redactor()])
def test_a_secret_is_not_pickled(protocol: int, secret: object) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps({"k": secret}, protocol)


def test_a_copy_of_a_secret_is_the_secret() -> None:
    holder = Holder(Secret({"token": "CANARY"}))
    assert copy.copy(holder.secret) is holder.secret
    assert copy.deepcopy(holder).secret is holder.secret


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("ü\ud800", "ü\ud800", True),
        ("a", b"a", False),
        (b"a", b"a", True),
        ({"k": "a", "l": b"b"}, {"l": b"b", "k": "a"}, True),
        ({"k": "a"}, {"k": "b"}, False),
        ({"k": "a"}, {"l": "a"}, False),
        ({"k": {"n": "a"}}, {"k": {"n": "a"}}, True),
        (1, 1, True),
        (None, "", False),
    ],
)
def test_secrets_are_equal_where_their_values_are(one: object, other: object, equal: bool) -> None:
    assert (Secret(one) == Secret(other)) is equal
    if equal:
        assert hash(Secret(one)) == hash(Secret(other))
    assert Secret(one) != one


def test_the_hash_of_a_secret_is_not_that_of_its_value() -> None:
    assert hash(Secret("CANARY")) != hash("CANARY")
    assert hash(Secret("a")) != hash(Secret("b"))


@pytest.mark.fault("F102", where="memory")
@pytest.mark.parametrize("take", [len, iter, lambda s: s[0], lambda s: s[:2], lambda s: "C" in s, lambda s: s + "x"])
def test_a_secret_cannot_be_taken_apart(take: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as caught:
        take(Secret("CANARY"))
    assert "CANARY" not in str(caught.value)


def test_what_is_secret_already_is_not_wrapped_again() -> None:
    secret = as_secret("x")
    assert as_secret(secret) is secret


def test_headers_are_a_mapping_that_shows_its_names_only() -> None:
    headers = HeaderMap({"X-Key": "CANARY"})
    assert headers == {"X-Key": "CANARY"}
    assert {**headers, "Y": "z"} == {"X-Key": "CANARY", "Y": "z"}
    assert repr(headers) == "HeaderMap('X-Key': ***)"
    assert copy.deepcopy(headers) is headers


# --------------------------------------------------------------------------- where credentials come from


async def test_no_credentials_are_none() -> None:
    assert await ask_credentials(None) is None


@pytest.mark.parametrize("value", ["t", b"t", {"k": "v"}, Secret("t"), 5])
async def test_credentials_come_as_a_secret_whatever_they_are_and_whoever_provides_them(value: Any) -> None:
    async def provide() -> Any:
        await trio.lowlevel.checkpoint()
        return value

    for source in (value, provide):
        assert await ask_credentials(source) == as_secret(value)


async def test_a_provider_is_asked_each_time() -> None:
    asked = 0

    async def provide() -> str:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        return f"token-{asked}"

    assert [await ask_credentials(provide) for _ in range(2)] == [Secret("token-1"), Secret("token-2")]


async def test_a_provider_that_fails_is_worth_another_attempt_and_its_words_are_not_repeated() -> None:
    async def provide() -> str:
        await trio.lowlevel.checkpoint()
        raise KeyError("CANARY")

    with pytest.raises(ConnectFailed, match=r"KeyError in provide\(\) at test_secrets\.py:\d+") as caught:
        await ask_credentials(provide)
    assert (caught.value.phase, caught.value.retry) == ("auth", "backoff")
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "CANARY" not in "\n".join(prints_of_error(caught.value))


@pytest.mark.parametrize("error", [trio_nova.AuthFailed("no"), ConfigError("credentials", "no"), ConnectFailed("no")])
async def test_a_provider_may_say_itself_what_follows(error: NovaError) -> None:
    async def provide() -> str:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        await ask_credentials(provide)
    assert caught.value is error


async def test_a_provider_is_cancelled_with_whoever_asks(autojump_clock: MockClock) -> None:
    with trio.move_on_after(3) as scope:
        await ask_credentials(trio.sleep_forever)
    assert scope.cancelled_caught


async def test_credentials_are_read_from_the_environment_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = FromEnvironment("NOVA_TOKEN"), FromEnvironment("NOVA_TOKEN", secret="NOVA_SECRET")
    monkeypatch.setenv("NOVA_TOKEN", "CANARY-1")
    monkeypatch.setenv("NOVA_SECRET", "CANARY-2")
    assert await ask_credentials(one) == Secret("CANARY-1")
    assert await ask_credentials(two) == Secret({"NOVA_TOKEN": "CANARY-1", "secret": "CANARY-2"})
    monkeypatch.setenv("NOVA_TOKEN", "CANARY-3")
    assert await ask_credentials(one) == Secret("CANARY-3")
    assert repr(two) == "FromEnvironment(NOVA_TOKEN, NOVA_SECRET)"


async def test_missing_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_TOKEN", "CANARY")
    monkeypatch.setenv("NOVA_EMPTY", "")
    monkeypatch.delenv("NOVA_NONE", raising=False)
    with pytest.raises(ConfigError, match=r"missing in the environment: NOVA_EMPTY, NOVA_NONE\n") as caught:
        await ask_credentials(FromEnvironment("NOVA_TOKEN", "NOVA_EMPTY", "NOVA_NONE"))
    assert caught.value.field == "credentials"


def test_an_environment_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="credentials"):
        FromEnvironment()


# --------------------------------------------------------------------------- what the peer repeats


def knowing(*values: object) -> Redactor:
    redactor = Redactor()
    redactor.keep("test", secrets_in(values))
    return redactor


def test_a_redactor_finds_what_it_keeps_longest_first_and_what_was_cut() -> None:
    redactor = knowing({"a": "abcdef", "b": [b"abcdefghij", Secret("ghijkl")], "c": Holder(Secret("mnopqr"))}, "tiny")
    assert redactor.redact("abcdefghij abcdef ghijkl mnopqr tiny") == "*** *** *** *** tiny"
    assert redactor.redact("got abcdefgh… and abcde…") == "got ***… and abcde…"
    assert redactor.redact("got abcdefgh") == "got ***"
    assert "abcdef" not in repr(redactor)


def test_a_redactor_finds_a_cut_secret_whose_beginning_repeats_itself() -> None:
    redactor = knowing("AAAAAAAAAA-key", "xyz'xyz'xyz")
    assert redactor.redact("got AAAAAAAAAA-…") == "got ***…"
    assert redactor.redact("got 'xyz'xyz'…") == "got '***…"


def test_of_two_cut_secrets_of_which_one_ends_as_the_other_begins_both_are_masked() -> None:
    redactor = knowing("secret-token", "my-secret-token")
    assert redactor.redact("got my-secret-to…") == "got ***…"


def test_a_redactor_knows_a_login_in_every_form_it_travels_in() -> None:
    redactor = Redactor()
    redactor.keep("url", secrets_in_url("wss://me:p%40ssword@h/?token=a%20b%20c%20d&mode=full-depth"))
    basic = base64.b64encode(b"me:p@ssword").decode()
    said = f"{basic} p@ssword p%40ssword 'a b c d' a%20b%20c%20d full-depth"
    assert redactor.redact(said) == "*** *** *** '***' *** full-depth"


def test_a_redactor_knows_headers_by_name_or_by_length() -> None:
    redactor = Redactor()
    headers = {"Authorization": "Bearer abcdef", "Cookie": "a=bcdefgh; x=y", "X-Mode": "verbose"}
    redactor.keep("headers", secrets_in_headers({**headers, "X-Long": "0123456789abcdefghij"}))
    said = "Bearer abcdef / abcdef / bcdefgh / verbose / 0123456789abcdefghij"
    assert redactor.redact(said) == "*** / *** / *** / verbose / ***"


def test_what_is_inside_of_a_basic_authorization_is_masked_too() -> None:
    redactor = Redactor()
    redactor.keep(
        "headers", secrets_in_headers({"authorization": "basic " + base64.b64encode(b"me:hunter22").decode()})
    )
    assert redactor.redact("me and hunter22 and me:hunter22") == "me and *** and ***"


def test_ten_thousand_renewals_of_a_token_let_no_secret_in_force_be_forgotten_and_the_memory_stay_bounded() -> None:
    redactor = Redactor()
    redactor.keep("options", ["key-of-the-url", "key-of-headers"])
    for number in range(10_000):
        redactor.keep("grant", [f"token-{number:05}", "refresh-token"])
    said = "key-of-the-url key-of-headers token-09999 refresh-token"
    assert redactor.redact(said) == "*** *** *** ***"
    assert repr(redactor) == f"<Redactor of {MAX_SUPERSEDED + 4} secrets>"


def test_a_token_that_was_renewed_is_still_masked_for_a_while() -> None:
    redactor = Redactor()
    for number in range(MAX_SUPERSEDED + 2):
        redactor.keep("grant", [f"token-{number:04}"])
    assert redactor.redact("token-0000") == "token-0000"
    assert redactor.redact(f"token-0001 token-{MAX_SUPERSEDED:04}") == "*** ***"


def test_a_secret_that_is_in_force_again_is_not_counted_among_those_of_before() -> None:
    redactor = Redactor()
    for number in range(10 * MAX_SUPERSEDED):
        redactor.keep("grant", ["even-token" if number % 2 else "odd-token"])
    redactor.keep("other", ["odd-token"])
    redactor.keep("grant", [])
    assert repr(redactor) == "<Redactor of 2 secrets>"


def test_tokens_of_before_are_bounded_in_size_and_those_in_force_are_not() -> None:
    redactor = Redactor()
    large = [str(number) * MAX_SUPERSEDED_SIZE for number in range(4)]
    for text in large:
        redactor.keep("grant", [text])
    assert redactor.redact(large[3]) == "***"
    assert repr(redactor) == "<Redactor of 2 secrets>"


DISGUISES: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "upper": str.upper,
    "json": lambda text: json.dumps(text)[1:-1],
    "json-slashes": lambda text: json.dumps(text)[1:-1].replace("/", r"\/"),
    "json-all": lambda text: "".join(rf"\u{unit:04X}" for unit in units(text)),
    "percent": lambda text: quote(text, safe=""),
    "percent-lower": lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")),
    "percent-all": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "form": quote_plus,
    "html": html.escape,
    "html-numbers": lambda text: "".join(f"&#{ord(each)};" for each in text),
    "repr": lambda text: repr(text)[1:-1],
    "repr-of-bytes": lambda text: repr(text.encode())[2:-1],
    "misread": lambda text: text.encode().decode("latin-1"),
}


def units(text: str) -> list[int]:
    data = text.encode("utf-16-be")
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]


hard = st.text(st.sampled_from("aZ0-_.~/\\\"'%+ &;<>=:é€😀\n\x7f"), min_size=SHORTEST, max_size=24)
disguises = st.lists(st.sampled_from(sorted(DISGUISES)), min_size=1, max_size=2)


@given(hard, disguises, st.integers(1, 120), st.text(st.sampled_from("xyz "), max_size=80))
def test_no_secret_is_shown_however_a_peer_writes_it_and_wherever_it_is_cut(
    secret: str, ways: list[str], limit: int, before: str
) -> None:
    said = secret
    for way in ways:
        if way == "upper" and not said.isascii():
            continue
        said = DISGUISES[way](said)
    redactor = knowing(secret)
    shown = redactor.show(f"{before}{said} end", limit)
    assert shown == redactor.show(f"{before}*** end", limit) or shown.startswith(printable(f"{before}***", limit)[:-1])
    in_bytes = redactor.show(f"{before}{said} end".encode(), limit)
    assert in_bytes.startswith(printable(f"{before}***"[:limit], limit))
    if said.isprintable():  # what is not is escaped after it was masked, as a \\ before it could mean two things
        quoted = redactor.redact(repr(printable(f"{before}{said} end", 1000)))
        assert quoted[1:-1] == f"{before}*** end"


@given(hard, st.sampled_from(sorted(DISGUISES)), st.data())
def test_the_beginning_of_a_secret_that_somebody_else_has_cut_is_masked(
    secret: str, way: str, data: st.DataObject
) -> None:
    part = secret[: data.draw(st.integers(SHORTEST, len(secret)))]
    said = DISGUISES["plain" if way == "upper" and not part.isascii() else way](part)
    for mark in ("", "…", "'…", "…'"):
        assert knowing(secret).redact(f"got {said}{mark}").startswith("got ***")


@pytest.mark.parametrize("escape", ["%2", r"\u00", r"\x", "\\", "&", "&#4"])
def test_a_cut_in_the_middle_of_an_escape_hides_no_secret(escape: str) -> None:
    assert knowing("abcdef*ghijkl").redact(f"got abcdef{escape}…") == "got ***…"
    assert knowing("abcdef*ghijkl").redact(f"got abcdef{escape}") == "got ***"


def test_bytes_are_cleansed_in_whatever_charset_a_peer_writes_a_secret() -> None:
    for charset in ("utf-8", "latin-1"):
        rejected = HandshakeRejected(503, [("x", "token-é-token")], b"got " + "token-é-token'".encode(charset))
        assert knowing("token-é-token").cleanse(rejected).body == b"got ***'"
        assert str(rejected) == "server rejected the upgrade with status 503: got ***'"


def test_undoing_escapes_is_bounded_whatever_a_peer_sends() -> None:
    hostile = "%2525\\\\\\u0025&amp;amp;+\xc3\xa9" * 2600
    assert 1 < len(readings(hostile)) <= MAX_READINGS
    assert sum(len(each.text) for each in readings(hostile)) <= MAX_READ + len(hostile)


def test_an_error_is_cleansed_with_all_that_it_quotes_and_all_that_caused_it() -> None:
    redactor = knowing("CANARY")
    rejected = HandshakeRejected(401, [("x-echo", "CANARY")], b"CANARY \xff")
    lost = LinkLost(4000, "CANARY", 1, detail="CANARY")
    rejected.__cause__ = ExceptionGroup("two", [lost, ValueError("CANARY")])
    lost.add_note("CANARY")
    assert redactor.cleanse(rejected) is rejected
    assert "CANARY" not in "\n".join(prints_of_error(rejected))
    assert (rejected.headers, rejected.body) == ((("x-echo", "***"),), b"*** \xff")
    assert (lost.reason, lost.detail, lost.code) == ("***", "***", 4000)


def test_the_locals_of_our_frames_are_forgotten_and_the_users_are_not() -> None:
    def users() -> Url:
        kept = "mine"
        return Url.parse(f"ftp://{kept}@CANARY/")

    with pytest.raises(ConfigError) as caught:
        users()
    forget_locals(caught.value)
    frames = {frame.f_code.co_name: frame.f_locals for frame, _ in traceback.walk_tb(caught.value.__traceback__)}
    assert frames["users"] == {"kept": "mine"}
    assert frames["parse"] == {}


def locals_of_ours(error: BaseException) -> dict[str, dict[str, Any]]:
    """Return the locals of the library's frames in a traceback, by the name of the function."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_globals["__name__"].startswith("trio_nova.")]
    return {frame.f_code.co_name: dict(frame.f_locals) for frame in ours}


@pytest.mark.parametrize("given", ["an option", "config"])
@pytest.mark.parametrize("scrubbed", [False, True])
def test_the_error_of_a_call_that_opens_keeps_its_locals_in_which_a_secret_is_masked_unless_scrubbed(
    scrubbed: bool, given: str
) -> None:
    options: dict[str, Any] = {"scrub_tracebacks": scrubbed}
    config = None if given == "an option" else Config(**options)
    with pytest.raises(ConfigError, match="plain text") as caught:
        open_connection(
            PLAIN,
            config=config,
            credentials=Secret("CANARY"),
            codec=JsonCodec(),
            **(options if config is None else {}),
        )
    frames = locals_of_ours(caught.value)
    assert bool(frames["check_plaintext"]) is not scrubbed
    assert ("overrides" in frames["open_connection"]) is not scrubbed
    told = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert ("Secret(***)" in told) is not scrubbed
    assert "CANARY" not in told.replace('Secret("CANARY")', "")  # that is the line above


async def send_badly(conn: trio_nova.Connection) -> None:
    await conn.send_json({"body": object()})


async def ask_badly(conn: trio_nova.Connection) -> None:
    await conn.request({"body": object()})


async def subscribe_badly(conn: trio_nova.Connection) -> None:
    async with conn.subscribe("ticks", feed=5, params={"depth": object()}):  # type: ignore[call-overload]
        pytest.fail("it was subscribed to")


async def authenticate_badly(conn: trio_nova.Connection) -> None:
    await conn.authenticate({"token": "CANARY"})


@pytest.mark.parametrize("scrubbed", [False, True])
@pytest.mark.parametrize("call", [send_badly, ask_badly, subscribe_badly, authenticate_badly])
async def test_the_error_of_a_call_keeps_the_locals_of_the_librarys_frames_unless_scrubbed(
    call: Callable[[trio_nova.Connection], Awaitable[None]], scrubbed: bool, autojump_clock: MockClock
) -> None:
    async with (
        ScriptedServer(trio_nova.testing.echo) as server,
        open_connection(
            PLAIN, stream_factory=server.stream_factory, codec=JsonCodec(), scrub_tracebacks=scrubbed
        ) as conn,
    ):
        with pytest.raises(NovaError) as caught:
            await call(conn)
        assert caught.value.session == f"server.test[{conn.id}]"
        assert caught.value.__notes__[-1] == f"in the session {caught.value.session}"
    given = {"message", "params", "named", "credentials", "args"}
    kept = {name for frame in locals_of_ours(caught.value).values() for name in frame.keys() & given}
    assert bool(kept) is not scrubbed


# --------------------------------------------------------------------------- plain text


PLAIN = "ws://server.test/"


@pytest.mark.fault("F100", where="memory")
@pytest.mark.parametrize(
    ("target", "options", "field"),
    [
        ("ws://user:CANARY@server.test/", {}, "target"),
        ("ws://CANARY@server.test/", {}, "target"),
        ("ws://server.test/?token=CANARY", {}, "target"),
        ("ws://server.test/?a=b&api%5Fkey=CANARY", {}, "target"),
        (PLAIN, {"headers": {"Authorization": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"X-A": "b", "cookie": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"X-Api-Key": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"Api-Key": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"X-Auth-Token": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"X-My-Secret": "CANARY"}}, "headers"),
        (PLAIN, {"headers": {"X-Password": "CANARY"}}, "headers"),
        (PLAIN, {"credentials": "CANARY", "codec": JsonCodec()}, "credentials"),
        (PLAIN, {"credentials": FromEnvironment("CANARY"), "codec": JsonCodec()}, "credentials"),
    ],
)
def test_credentials_do_not_travel_in_plain_text(target: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match="plain text") as caught:
        open_connection(target, scrub_tracebacks=True, **options)
    assert caught.value.field == field
    assert "CANARY" not in "\n".join(prints_of_error(caught.value))
    for sound in (target.replace("ws:", "wss:"), target.replace("server.test", "localhost")):
        open_connection(sound, **options)
    open_connection(target, allow_plaintext_credentials=True, **options)


@pytest.mark.parametrize("name", ["X-Mode", "User-Agent", "Origin", "Accept-Language"])
def test_an_ordinary_header_is_no_credential(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.fault("F100", where="memory")
async def test_what_a_provider_or_a_hook_adds_is_held_to_the_same_rule(autojump_clock: MockClock) -> None:
    async def provide() -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {"Authorization": "CANARY"}

    class Adds(trio_nova.ConnectionHandler):
        def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
            return attrs.evolve(info, url=info.url.with_query(token="CANARY"))

    async with ScriptedServer() as server:
        for options in ({"headers": provide}, {"connection_handler": Adds}):
            with pytest.raises(ConfigError, match="plain text") as caught:
                async with open_connection(
                    PLAIN,
                    stream_factory=server.stream_factory,
                    retry_first_connect=True,
                    scrub_tracebacks=True,
                    **options,
                ):
                    pytest.fail("it connected")
            assert "CANARY" not in "\n".join(prints_of_error(caught.value))
        assert server.dials == []


@attrs.define(eq=False)
class LeadsAway(trio_nova.ConnectionHandler):
    """Sends every dial to another host, and changes nothing else but what it is told to."""

    host: str = "other.test"
    url: Mapping[str, Any] = {}
    rest: Mapping[str, Any] = {}

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        return attrs.evolve(info, url=attrs.evolve(info.url, host=self.host, **self.url), **self.rest)


def elsewhere(
    server: ScriptedServer, target: str, handler: LeadsAway, options: Mapping[str, Any]
) -> AbstractAsyncContextManager[trio_nova.Connection]:
    return open_connection(
        target,
        stream_factory=server.stream_factory,
        connection_handler=handler,
        allow_plaintext_credentials=True,
        retry_first_connect=True,
        scrub_tracebacks=True,
        **options,
    )


MEANT_FOR_ONE_ORIGIN: list[tuple[str, dict[str, Any], str]] = [
    (PLAIN, {"headers": {"Authorization": "CANARY"}}, "headers"),
    (PLAIN, {"headers": {"X-Mode": "CANARY"}}, "headers"),
    ("ws://user:CANARY@server.test/", {}, "login"),
    ("ws://server.test/?token=CANARY", {}, "query"),
    (PLAIN, {"credentials": "CANARY", "codec": JsonCodec()}, "credentials"),
]


@pytest.mark.fault("F24", where="memory")
@pytest.mark.parametrize(("target", "options", "kept"), MEANT_FOR_ONE_ORIGIN)
async def test_a_hook_takes_nothing_along_to_another_origin_without_a_word(
    autojump_clock: MockClock, target: str, options: dict[str, Any], kept: str
) -> None:
    words = f"the {kept} meant for ws://server.test would go to ws://other.test"
    async with ScriptedServer(trio_nova.testing.echo) as server:
        with pytest.raises(ConfigError, match=words) as caught:
            async with elsewhere(server, target, LeadsAway(), options):
                pytest.fail("it connected")
    assert caught.value.field == "connection_info"
    assert "CANARY" not in "\n".join(prints_of_error(caught.value))
    assert server.dials == []


@pytest.mark.fault("F24", where="memory")
@pytest.mark.parametrize(("target", "options", "kept"), MEANT_FOR_ONE_ORIGIN[:4])
@pytest.mark.parametrize("way", ["vouched for", "the same origin"])
async def test_a_hook_takes_along_what_it_may_to_where_it_may(
    autojump_clock: MockClock, target: str, options: dict[str, Any], kept: str, way: str
) -> None:
    handler = LeadsAway("other.test" if way == "vouched for" else "server.test")
    vouched = {"redirect_origins": ["ws://other.test"]} if way == "vouched for" else {}
    async with (
        ScriptedServer(trio_nova.testing.echo) as server,
        elsewhere(server, target, handler, options | vouched) as conn,
    ):
        await conn.send_text("hello")
        assert await conn.receive() == "hello"
    assert [dialled.host for dialled in server.dials] == [handler.host]


@pytest.mark.fault("F24", where="memory")
async def test_a_hook_goes_to_another_origin_with_secrets_of_its_own(autojump_clock: MockClock) -> None:
    own = LeadsAway(url={"userinfo": "", "query": "token=other's"}, rest={"headers": {"Authorization": "other's"}})
    options = {"headers": {"Authorization": "CANARY"}}
    async with (
        ScriptedServer(trio_nova.testing.echo) as server,
        elsewhere(server, "ws://user:CANARY@server.test/?token=CANARY", own, options),
    ):
        pass
    [dialled] = server.dials
    assert dialled.request is not None
    assert dialled.request.headers["authorization"] == "other's"
    assert "CANARY" not in f"{dialled.request.target} {dialled.request.headers}"


@pytest.mark.fault("F100", where="memory")
async def test_a_living_session_is_not_given_credentials_for_plain_text(autojump_clock: MockClock) -> None:
    async with (
        ScriptedServer(trio_nova.testing.echo) as server,
        open_connection(PLAIN, stream_factory=server.stream_factory, scrub_tracebacks=True) as conn,
    ):
        for options in ({"headers": {"Authorization": "CANARY"}}, {"credentials": "CANARY"}):
            before = conn.config
            with pytest.raises(ConfigError, match="plain text") as caught:
                conn.reconfigure(**options)
            assert conn.config is before
            assert "CANARY" not in "\n".join(prints_of_error(caught.value))


@pytest.mark.parametrize(
    "options",
    [
        {"ping_interval": -1},
        {"credential": {"key": "CANARY"}},
        {"headers": {"Upgrade": "CANARY"}},
        {"headers": [("X-Key", "CANARY")]},
        {"proxy": "CANARY"},
    ],
)
def test_the_error_about_one_option_does_not_carry_the_others(options: dict[str, Any]) -> None:
    secrets = {"headers": {"Authorization": "CANARY"}, "proxy": "http://u:CANARY@p:1", "credentials": "CANARY"}
    options = {**secrets, **options, "scrub_tracebacks": True}
    calls: list[Callable[[], object]] = [
        lambda: open_connection("wss://CANARY:CANARY@server.test/", **options),
        lambda: trio_nova.Registry().open_connection("id", "wss://CANARY@server.test/", **options),
    ]
    if "credential" not in options:
        calls.append(lambda: Config(**options))
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        assert "CANARY" not in "\n".join(prints_of_error(caught.value))


# --------------------------------------------------------------------------- everything that can be printed


HERE = Path(__file__)


def prints_of_error(error: BaseException) -> Iterator[str]:
    """Yield all that a renderer of tracebacks could print; of this file, and of the server's, no locals."""
    waiting, seen = [error], set[int]()
    while waiting:
        exc = waiting.pop()
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        yield from (str(exc), repr(exc), repr(exc.args), repr(getattr(exc, "__notes__", "")), trio_nova.explain(exc))
        yield repr(exc.__dict__)
        for frame, line in traceback.walk_tb(exc.__traceback__):
            path = Path(frame.f_code.co_filename)
            yield f"{path}:{line} {frame.f_code.co_name}"
            if path != HERE and "testing" not in path.parts and "_pytest" not in path.parts:
                yield from (f"{frame.f_code.co_name} {name} = {value!r}" for name, value in frame.f_locals.items())
        waiting += [each for each in (exc.__cause__, exc.__context__) if each is not None]
        if isinstance(exc, BaseExceptionGroup):
            waiting += exc.exceptions


def prints_of_record(record: logging.LogRecord) -> Iterator[str]:
    yield record.getMessage()
    yield repr(record.args)
    yield repr(record.__dict__)
    if record.exc_info is not None and record.exc_info[1] is not None:
        yield from prints_of_error(record.exc_info[1])


def prints_of_event(told: Observation) -> Iterator[str]:
    yield repr(told)
    yield repr(describe(told))
    yield msgspec.json.encode(describe(told)).decode()
    yield sentence(told)
    if isinstance(error := getattr(told.event, "error", None), BaseException):
        yield from prints_of_error(error)


def prints_of_value(value: Any) -> Iterator[str]:
    yield f"{value} {value!r}"
    yield pprint.pformat(value)
    yield repr(attrs.asdict(value))
    yield repr(attrs.astuple(value))


class NotesTasks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)


@attrs.define(eq=False)
class NotesEvents(trio_nova.MetricsCollector):
    """Keeps every event."""

    kept: list[Observation] = attrs.field(factory=list)

    def handle_connection_event(self, observation: Observation) -> None:
        self.kept.append(observation)
        super().handle_connection_event(observation)

    def handle_message_event(self, observation: Observation) -> None:
        # What a message says is the application's own: an event holds it, and prints it nowhere.
        event = observation.event
        assert isinstance(event, MessageEvent)
        assert event.message is None or repr(event.message) not in repr(observation)
        self.kept.append(attrs.evolve(observation, event=attrs.evolve(event, message=None)))

    def handle_error_event(self, observation: Observation) -> None:
        self.kept.append(observation)
        super().handle_error_event(observation)


@attrs.define(eq=False)
class NotesDials(trio_nova.ConnectionHandler):
    """Prints what is dialled, before and after."""

    prints: list[str] = attrs.field(factory=list)

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        self.prints += prints_of_value(info)
        return info

    def handle_connect(self, info: ConnectionInfo) -> Action:
        self.prints += prints_of_value(info)
        return None


@attrs.frozen
class PrintsDials:
    """A transport, which also prints what it is given."""

    transport: Transport
    prints: list[str] = attrs.field(repr=False)

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        self.prints.extend(prints_of_value(dial))
        return self.transport.open(dial)


# --------------------------------------------------------------------------- the canary run

USER = "CANARY-userinfo"
QUERY = "CANARY-query"
HEADER = "CANARY-header"
TOKEN = "CANARY-credential"
PROXY = "CANARY-proxy"
PASSWORD = "CANARY-password"
BODY = "CANARY-body"
ECHOED = f"{USER} {QUERY} {HEADER} {TOKEN} Bearer {HEADER}"
"""What a hostile server knows and repeats. The bodies of messages are not printed in the first place."""
FORMS = ("CANARY", base64.b64encode(b"me:CANARY").decode().rstrip("=")[:10])


async def sign_in(peer: Peer) -> None:
    await peer.accept()
    assert (await peer.receive_json())["token"] == TOKEN
    await peer.send_json({"type": "auth_success"})


async def reject_401(peer: Peer) -> None:
    await peer.reject(401, {"X-Echo": ECHOED, "Location": f"wss://h/?token={QUERY}"}, ECHOED.encode())


async def reject_503(peer: Peer) -> None:
    await peer.reject(503, {"X-Echo": ECHOED}, b"." * 190 + ECHOED.encode())  # the excerpt cuts a secret in half


async def lie(peer: Peer) -> None:
    await peer.accept({"X-Echo": ECHOED}, key="lie")


async def offer_a_subprotocol(peer: Peer) -> None:
    await peer.accept(subprotocol=TOKEN)


async def speak_no_http(peer: Peer) -> None:
    await peer.read_request()
    await peer.send_raw(f"HTTP/1.1 {ECHOED}\r\n\r\n".encode())


async def fold_a_header(peer: Peer) -> None:
    await peer.read_request()
    await peer.send_raw(f"HTTP/1.1 101 OK\r\nbad header {TOKEN}\r\n\r\n".encode())


async def hang_up(peer: Peer) -> None:
    await peer.read_request()
    await peer.reset()


async def refuse_login(peer: Peer) -> None:
    await peer.accept()
    await peer.receive_json()
    await peer.send_json({"type": "auth_error", "reason": ECHOED})
    await peer.serve_until_closed()


async def drop(peer: Peer) -> None:
    await sign_in(peer)
    await drop_soon(peer)


async def drop_soon(peer: Peer) -> None:
    """Drop the link after a message, or when none has come for a while."""
    with trio.move_on_after(5):
        await peer.receive()
    await peer.drop()


async def reset(peer: Peer) -> None:
    await sign_in(peer)
    await peer.reset()


async def stop_reading(peer: Peer) -> None:
    await sign_in(peer)
    await peer.stop_reading()


async def close_with_echo(peer: Peer) -> None:
    await sign_in(peer)
    await peer.close(4000, ECHOED[:123])


async def ping_with_echo(peer: Peer) -> None:
    await sign_in(peer)
    await peer.send(trio_nova.messages.Ping(TOKEN.encode()))
    await drop_soon(peer)


async def break_the_protocol(peer: Peer) -> None:
    await sign_in(peer)
    await peer.send_frame(0x1, TOKEN.encode(), rsv=4)
    await peer.mute()


async def send_bad_json(peer: Peer) -> None:
    await sign_in(peer)
    await peer.send('{"error": "' + ECHOED)
    await drop_soon(peer)


async def send_json(peer: Peer) -> None:
    await sign_in(peer)
    await peer.send_json({"error": ECHOED})
    await drop_soon(peer)


class Raises(trio_nova.MessageHandler):
    def handle_message(self, kind: str, message: Any) -> Action:
        raise RuntimeError(f"cannot handle a message of {len(message)} fields")


async def provide_headers() -> Mapping[str, str]:
    await trio.lowlevel.checkpoint()
    return {"Authorization": f"Bearer {HEADER}", "Cookie": f"sid={HEADER}"}


async def provide_token() -> str:
    await trio.lowlevel.checkpoint()
    return TOKEN


async def fail_to_provide() -> Any:
    await trio.lowlevel.checkpoint()
    raise RuntimeError(f"the vault says {TOKEN}")


async def through_proxy(peer: Peer) -> None:
    """Be a proxy, which speaks before it is spoken to."""
    await peer.send_raw(f"HTTP/1.1 407 {ECHOED} {PROXY}\r\nX-Echo: {ECHOED} {PROXY}\r\n\r\n".encode())
    await peer.hang()


async def drop_as_proxy(peer: Peer) -> None:
    await peer.drop()


@attrs.frozen
class ClientKey:
    """A certificate of ours whose key is encrypted, and what must not be seen of it."""

    context: ssl.SSLContext
    lines: frozenset[str]
    """Of the key's PEM, encrypted and plain."""


@pytest.fixture(scope="module")
def client_key(tmp_path_factory: pytest.TempPathFactory) -> ClientKey:
    certificate = trustme.CA().issue_cert("client.test")
    plain = certificate.private_key_pem.bytes()
    encrypted = serialization.load_pem_private_key(plain, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSWORD.encode()),
    )
    files = {"key.pem": encrypted, "chain.pem": certificate.cert_chain_pems[0].bytes()}
    folder = tmp_path_factory.mktemp("client")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is the server that does not trust us
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem", PASSWORD)
    lines = (plain + encrypted).decode().splitlines()
    return ClientKey(context, frozenset(line for line in lines if "-----" not in line))


@functools.cache
def suspicious_context() -> ssl.SSLContext:
    """Return a server's context that wants a certificate of an authority that has signed none of ours."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("server.test").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def refuse_our_certificate(peer: Peer) -> None:
    """Shake hands, and say by an alert what is wrong, which Trio's own stream does not."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = suspicious_context().wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await peer._stream.send_all(outgoing.read())
                incoming.write(await peer._stream.receive_some(65536))
    await peer._stream.send_all(outgoing.read())
    await peer.hang()  # whoever writes to a connection that is gone does not hear why


@attrs.frozen
class Fault:
    name: str
    step: Step
    options: Mapping[str, Any] = attrs.field(factory=dict)
    tls: bool = False
    asks_for_certificate: bool = False
    """Whether the step speaks TLS itself, and wants ours to be shown."""

    def __str__(self) -> str:
        return self.name


FAULTS = [
    Fault("refused", Refuse()),
    Fault("401", reject_401),
    Fault("503", reject_503),
    Fault("wrong-accept", lie),
    Fault("wrong-subprotocol", offer_a_subprotocol),
    Fault("no-http", speak_no_http),
    Fault("bad-header", fold_a_header),
    Fault("hung-up", hang_up),
    Fault("untrusted", drop, tls=True),
    Fault("client-certificate", refuse_our_certificate, asks_for_certificate=True),
    Fault("time-out", Peer.hang, {"connect_timeout": 1.0}),
    Fault("auth-refused", refuse_login),
    Fault("auth-silent", lambda peer: peer.accept(), {"auth_timeout": 1.0}),
    Fault("drop", drop),
    Fault("reset", reset),
    Fault("write-stalls", stop_reading, {"pong_timeout": 2.0}),
    Fault("close-reason", close_with_echo),
    Fault("ping", ping_with_echo),
    Fault("protocol-error", break_the_protocol),
    Fault("bad-json", send_bad_json),
    Fault("good-json", send_json),
    Fault("handler-raises", send_json, {"message_handler": Raises}),
    Fault("handler-raises-and-is-logged", send_json, {"message_handler": Raises, "on_handler_error": "log"}),
    Fault("headers-fail", drop, {"headers": fail_to_provide}),
    Fault("credentials-fail", lambda peer: peer.accept(), {"credentials": fail_to_provide}),
    Fault("proxy-refuses", through_proxy, {"proxy": f"http://me:{PROXY}@proxy.test:1"}),
    Fault("proxy-drops", drop_as_proxy, {"proxy": f"http://me:{PROXY}@proxy.test:1"}),
    Fault("socks-proxy-lies", through_proxy, {"proxy": f"socks5://me:{PROXY}@proxy.test:1"}),
]


SOURCES: Mapping[str, Mapping[str, Any]] = {
    "values": {"headers": {"X-Api-Key": HEADER, "Cookie": f"sid={HEADER}"}, "credentials": {"token": TOKEN}},
    "providers": {"headers": provide_headers, "credentials": provide_token},
    "environment": {"headers": provide_headers, "credentials": FromEnvironment("NOVA_TEST_TOKEN")},
}


@pytest.mark.fault("F101", "F103", "F104", "F105", "F106", where="memory")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_no_secret_shows_anywhere_whatever_fails(
    fault: Fault,
    source: str,
    transport: Transport,
    client_key: ClientKey,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("NOVA_TEST_TOKEN", TOKEN)
    tasks = NotesTasks()
    trio.lowlevel.add_instrument(tasks)
    metrics, dials = NotesEvents(), NotesDials()
    prints: list[str] = []
    options: dict[str, Any] = {
        "codec": trio_nova.JsonCodec(),
        "metrics_collector": metrics,
        "connection_handler": dials,
        "logging_handler": trio_nova.LoggingHandler(format="json" if source == "values" else "plain"),
        "max_attempts": 1,
        "min_uptime": 60.0,
        "when_down": "fail" if source == "values" else "wait",
        "allow_plaintext_credentials": True,
        "scrub_tracebacks": True,
    }

    async def use(conn: trio_nova.Connection, call: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await call(*args)
        except NovaError as error:
            prints.extend(prints_of_error(error))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with ScriptedServer(fault.step, then=fault.step, tls=fault.tls, max_buffer=4096) as server:
            options["stream_factory"] = server.stream_factory
            options["transport"] = PrintsDials(transport, prints)
            options["ssl_context"] = client_key.context if fault.asks_for_certificate else None
            target = (
                f"{'wss' if fault.tls or fault.asks_for_certificate else 'ws'}://me:{USER}@server.test/p?token={QUERY}"
            )
            try:
                async with open_connection(target, **{**options, **SOURCES[source], **fault.options}) as conn:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(use, conn, conn.send, {"body": BODY})
                        nursery.start_soon(use, conn, conn.send_text, BODY * 2000)
                        nursery.start_soon(use, conn, conn.send_json, {"body": object(), "secret": BODY})
                        nursery.start_soon(use, conn, conn.request, {"ask": BODY})
                        prints += [repr(conn), conn.url, *prints_of_value(conn.config)]
                        await conn.wait_closed()
                    prints += [*prints_of_value(conn.statistics()), repr(conn.health()), repr(conn.close_info)]
            except BaseException as error:
                prints += prints_of_error(error)
            else:
                pytest.fail("nothing failed")
    trio.lowlevel.remove_instrument(tasks)

    assert metrics.kept
    assert caplog.records
    prints += tasks.names
    prints += dials.prints
    prints += [repr(metrics.snapshot()), *(str(warning.message) for warning in warned)]
    prints += flattened(map(prints_of_record, caplog.records))
    prints += flattened(map(prints_of_event, metrics.kept))
    if not any(isinstance(told.event, trio_nova.AuthStarted) for told in metrics.kept) and source != "values":
        # Nobody has been asked for the credentials yet: that the peer names them is news to the session.
        prints = [line.replace(TOKEN, "") for line in prints]
    assert any("refuses our certificate" in line for line in prints) is fault.asks_for_certificate
    hits = [line for line in prints if any(form in line for form in (*FORMS, *client_key.lines))]
    assert not hits, "\n".join(line[:500] for line in dict.fromkeys(hits))


def flattened(parts: Iterable[Iterable[str]]) -> list[str]:
    return [line for part in parts for line in part]


@pytest.mark.fault("F106", where="memory")
@pytest.mark.parametrize("fault", [each for each in FAULTS if each.name in ("401", "close-reason")], ids=str)
async def test_an_echo_is_masked_and_the_rest_of_it_is_told(
    fault: Fault, transport: Transport, autojump_clock: MockClock
) -> None:
    async with ScriptedServer(fault.step) as server:
        with pytest.raises(NovaError) as caught:
            async with open_connection(
                f"wss://me:{USER}@server.test/",
                stream_factory=server.stream_factory,
                transport=PlainTransport(transport),
                headers={"X-Api-Key": HEADER},
                credentials=TOKEN,
                codec=trio_nova.JsonCodec(),
                max_attempts=0,
            ) as conn:
                await conn.wait_closed()
    said = trio_nova.explain(caught.value)
    assert "*** CANARY-query *** *** Bearer ***" in said  # what it was not told cannot be known to it


@attrs.frozen
class PlainTransport:
    """A transport, without the TLS that the URL asks for."""

    transport: Transport

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        return self.transport.open(attrs.evolve(dial, url=attrs.evolve(dial.url, secure=False)))


# --------------------------------------------------------------------------- echoes that are escaped, or cut

NASTY = 'K/9"x\\' + "Canary" * 3 + "+é'%41"
"""A token that every way of writing it down escapes in another way."""
ECHOES: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "request-line": lambda text: f"GET /path?token={quote(text, safe='')} HTTP/1.1",
    "json": lambda text: json.dumps(text).replace("/", r"\/"),
}


async def say_first(peer: Peer, said: bytes) -> None:
    await peer.read_request()
    await peer.send_raw(said + b"\r\n\r\n")
    await peer.drop()


async def say_in_status_line(peer: Peer, said: bytes) -> None:
    await say_first(peer, b"HTTP/1.1 " + said)


async def say_in_header_line(peer: Peer, said: bytes) -> None:
    await say_first(peer, b"HTTP/1.1 101 OK\r\n" + said)


async def say_in_header(peer: Peer, said: bytes) -> None:
    await say_first(peer, b"HTTP/1.1 401 No\r\nX-Echo: " + said)


async def say_in_subprotocol(peer: Peer, said: bytes) -> None:
    await peer.accept(subprotocol=said.decode("latin-1"))


async def say_in_location(peer: Peer, said: bytes) -> None:
    await say_first(peer, b"HTTP/1.1 302 No\r\nLocation: wss://other.test/?" + said)


async def say_in_body(peer: Peer, said: bytes) -> None:
    await peer.reject(503, (), said)


async def say_in_close_reason(peer: Peer, said: bytes) -> None:
    await peer.accept()
    await peer.close(4000, said.decode("utf-8", "replace").encode()[:123].decode("utf-8", "ignore"))


async def say_in_answer_to_login(peer: Peer, said: bytes) -> None:
    await peer.accept()
    await peer.receive_json()
    await peer.send_json({"type": "auth_error", "reason": said.decode("utf-8", "replace")})
    await peer.serve_until_closed()


async def say_in_answers(peer: Peer, said: bytes) -> None:
    """Sign in; then refuse a request and a subscription, and send data for a channel of that name."""
    await peer.accept()
    await peer.receive_json()
    await peer.send_json({"type": "auth_success"})
    words = said.decode("utf-8", "replace")
    for _ in range(2):
        asked = await peer.receive_json()
        await peer.send_json({"id": asked.get("id"), "error": words, "type": "error", "channel": asked.get("channel")})
    await peer.send_json({"channel": words, "data": 1})
    await peer.close(4000, "")


PLACES = {
    "first-bytes": say_first,
    "status-line": say_in_status_line,
    "header-line": say_in_header_line,
    "header": say_in_header,
    "subprotocol": say_in_subprotocol,
    "location": say_in_location,
    "body": say_in_body,
    "close-reason": say_in_close_reason,
    "login": say_in_answer_to_login,
    "answers": say_in_answers,
}


@attrs.define(eq=False)
class Confides(trio_nova.ErrorHandler):
    """Is told errors, and writes them down as they are."""

    prints: list[str] = attrs.field(factory=list)

    def log_error(self, error: Exception, context: str) -> None:
        self.prints += prints_of_error(error)


@attrs.define(eq=False)
class Refuses(trio_nova.SubscriptionHandler):
    """Reads what `say_in_answers` says."""

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"channel": channel}

    def handle_subscription_response(self, message: Any) -> Any:
        refused = isinstance(message, dict) and message.get("type") == "error" and message.get("channel")
        return trio_nova.Refused("ticks", message["error"]) if refused else None


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("place", PLACES)
async def test_an_echo_of_a_secret_is_masked_wherever_it_stands_however_it_is_written_and_wherever_it_is_cut(
    place: str, echo: str, transport: Transport, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prints: list[str] = []
    shown_at = 40 if place in ("first-bytes", "status-line", "header-line", "subprotocol") else 200
    for before in (0, *range(shown_at - 36, shown_at, 9)):
        said = ("." * before + ECHOES[echo](NASTY)).encode()
        confidant, metrics = Confides(), NotesEvents()

        async def speak(peer: Peer, said: bytes = said) -> None:
            await PLACES[place](peer, said)

        async with ScriptedServer(speak) as server:
            try:
                async with open_connection(
                    f"wss://server.test/path?token={quote(NASTY, safe='')}",
                    stream_factory=server.stream_factory,
                    transport=PlainTransport(transport),
                    headers={"X-Api-Key": NASTY},
                    credentials=NASTY if place in ("login", "answers") else None,
                    codec=trio_nova.JsonCodec(),
                    error_handler=confidant,
                    metrics_collector=metrics,
                    subscription_handler=Refuses,
                    max_attempts=0,
                    scrub_tracebacks=True,
                ) as conn:
                    if place == "answers":
                        with pytest.raises(NovaError) as caught:
                            await conn.request({"channel": "none"})
                        vars(caught.value)["reply"] = None  # the message itself, which is printed nowhere
                        prints += prints_of_error(caught.value)
                        with pytest.raises(NovaError) as caught:
                            async with conn.subscribe("ticks"):
                                pytest.fail("it was confirmed")
                        prints += prints_of_error(caught.value)
                    await conn.wait_closed()
                prints += [repr(conn.close_info), repr(conn.health())]
            except NovaError as error:
                prints += prints_of_error(error)
            else:
                pytest.fail("nothing failed")
        prints += flattened(map(prints_of_event, metrics.kept)) + confidant.prints
    prints += flattened(map(prints_of_record, caplog.records))
    assert any("***" in line for line in prints)
    hits = [line for line in prints if any("cana" in each.text.lower() for each in readings(line))]
    assert not hits, "\n".join(line[:500] for line in dict.fromkeys(hits))
