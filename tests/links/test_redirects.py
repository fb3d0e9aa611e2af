"""Redirects of the upgrade: which are followed, with what, and which must not be (RFC 9110 section 15.4)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import open_connection
from trio_nova.errors import ConfigError, ConnectFailed, HandshakeInvalid, HandshakeRejected, LinkLost, RedirectRefused
from trio_nova.links import Dial, Transport
from trio_nova.links._redirect import redirected
from trio_nova.links._upgrade import HEAD_LIMIT
from trio_nova.testing import Disconnected, Peer, ScriptedServer, Step, echo, make_dial
from trio_nova.urls import Url

STATUSES = [301, 302, 303, 307, 308]
CANARY = "CANARY-91c4"
SECRETS = [("Authorization", f"Bearer {CANARY}"), ("Cookie", f"s={CANARY}"), ("X-API-Key", CANARY)]
BOUND = 100.0
"""Seconds, real ones, after which a test has failed."""


def to(location: str, status: int = 307, **headers: str) -> Step:
    """Return a step that redirects, and is curious: it would journal whatever else it is sent."""

    async def script(peer: Peer) -> None:
        await peer.reject(status, [("Location", location), *headers.items()])

    return script


def redirecting(server: ScriptedServer, url: str = "ws://user:pass@server.test/?first", **fields: Any) -> Dial:
    return attrs.evolve(make_dial(server, url, headers=SECRETS), max_redirects=5, **fields)


async def refusal(transport: Transport, dial: Dial) -> HandshakeRejected:
    with trio.fail_after(BOUND), pytest.raises(HandshakeRejected) as caught:
        async with transport.open(dial):
            raise AssertionError("the link came up")
    return caught.value


def targets(server: ScriptedServer) -> list[str]:
    return [dial.request.target for dial in server.dials if dial.request is not None]


# --------------------------------------------------------------------------- those that are followed


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "/b"),
        ("/b?x=1&y=%20", "/b?x=1&y=%20"),
        ("b", "/b"),
        ("?second", "/?second"),
        ("//server.test/b", "/b"),
        ("ws://server.test/b", "/b"),
        ("http://server.test/b", "/b"),
        ("HTTP://SERVER.TEST:80/b", "/b"),
        ("ws://other:login@server.test/b", "/b"),
        ("/b#fragment", "/b"),
        ("/b/../c", "/c"),
        ("  /b  ", "/b"),
    ],
)
async def test_one_within_the_origin_is_followed_with_headers_and_login(
    autojump_clock: trio.testing.MockClock, transport: Transport, status: int, location: str, target: str
) -> None:
    async with ScriptedServer(to(location, status), echo) as server:
        dial = redirecting(server, headers=(("X-API-Key", CANARY),))
        async with transport.open(dial) as link:
            await link.send_all(["there?"])
            assert list(await link.receive_some()) == ["there?"]
            await link.aclose()
    assert targets(server) == ["/?first", target]
    login = "Basic " + base64.b64encode(b"user:pass").decode()
    for dialled in server.dials:
        assert (dialled.host, dialled.port) == ("server.test", 80)
        assert dialled.request is not None
        assert dialled.request.headers["x-api-key"] == CANARY
        assert dialled.request.headers["authorization"] == login
        assert dialled.request.headers["host"] == "server.test"


@pytest.mark.parametrize("location", ["/b", "http://[fe80::1]/b", "ws://[fe80::1%25eth0]/b"])
async def test_a_redirect_stays_in_the_zone_that_the_server_was_never_told(
    autojump_clock: trio.testing.MockClock, transport: Transport, location: str
) -> None:
    async with ScriptedServer(to(location), echo) as server:
        async with transport.open(redirecting(server, "ws://[fe80::1%25eth0]/")) as link:
            await link.aclose()
    assert [dialled.host for dialled in server.dials] == ["fe80::1%eth0"] * 2


async def test_a_redirect_into_another_zone_is_refused(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async with ScriptedServer(to("ws://[fe80::1%25wlan0]/"), echo) as server:
        assert "another origin" in str(await refusal(transport, redirecting(server, "ws://[fe80::1%25eth0]/")))


async def test_each_hop_asks_with_a_key_of_its_own(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async with ScriptedServer(to("/b"), to("/c"), echo) as server, transport.open(redirecting(server)) as link:
        await link.aclose()
    keys = {dial.request.headers["sec-websocket-key"] for dial in server.dials if dial.request is not None}
    assert len(keys) == 3


@pytest.mark.fault("F24", where="memory")
async def test_an_origin_that_was_vouched_for_gets_headers_and_login_but_not_the_query(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async with ScriptedServer(to("ws://other.test:8080/b"), echo) as server:
        dial = redirecting(server, redirect_origins=frozenset({"ws://other.test:8080"}))
        async with transport.open(dial) as link:
            await link.aclose()
    there = server.dials[1]
    assert (there.host, there.port) == ("other.test", 8080)
    assert there.request is not None
    assert there.request.target == "/b"
    assert there.request.headers["host"] == "other.test:8080"
    assert [there.request.headers[name.lower()] for name, _ in SECRETS] == [value for _, value in SECRETS]


async def test_from_ws_to_wss_leads_a_way_only_to_an_origin_that_was_vouched_for(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async with ScriptedServer(to("wss://server.test/"), tls=False) as server:
        failure = await refusal(transport, redirecting(server))
    assert isinstance(failure, RedirectRefused)
    assert "another origin" in failure.why


# --------------------------------------------------------------------------- those that are not


@pytest.mark.fault("F24", where="memory")
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    "location",
    [
        "ws://other.test/",
        "ws://server.test:8080/",
        "ws://server.test.other.test/",
        "ws://server.test@other.test/",
        "//other.test/",
        "http://other.test/",
        "https://server.test/",
        "ws://[::1]/",
        "ws://169.254.169.254/latest/meta-data",
        "ws://0x7f000001/",
    ],
)
async def test_another_origin_is_not_even_dialled(
    autojump_clock: trio.testing.MockClock, transport: Transport, status: int, location: str
) -> None:
    async with ScriptedServer(to(location, status), echo) as server:
        failure = await refusal(transport, redirecting(server))
        assert len(server.dials) == 1
    assert isinstance(failure, RedirectRefused)
    assert (failure.status, failure.retry, failure.security) == (status, "never", True)
    assert CANARY not in str(failure)


@pytest.mark.parametrize(
    "location",
    [
        "ws://other.test\\@server.test/",
        "///other.test/",
        "\\\\other.test/",
        "/\\other.test/",
        ":",
        "!\"$%&/()=?`*'_;><|",
        "",
    ],
)
async def test_what_others_may_read_otherwise_stays_within_the_origin(
    autojump_clock: trio.testing.MockClock, transport: Transport, location: str
) -> None:
    async with ScriptedServer(to(location), echo) as server, transport.open(redirecting(server)) as link:
        await link.aclose()
    assert [(dial.host, dial.port) for dial in server.dials] == [("server.test", 80)] * 2


@pytest.mark.fault("F24", where="socket")
async def test_the_other_server_hears_not_one_byte(transport: Transport) -> None:
    heard = bytearray()
    connections = 0

    async def listen(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        async for data in stream:
            heard.extend(data)

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            (other,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, listen, [other])
            server = ScriptedServer(to(f"ws://127.0.0.1:{other.socket.getsockname()[1]}/"))
            async with server.listen() as listening:
                dial = attrs.evolve(make_dial(url=listening.url, headers=SECRETS), max_redirects=5)
                assert isinstance(await refusal(transport, dial), RedirectRefused)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert (connections, bytes(heard)) == (0, b"")


@pytest.mark.fault("F27", where="memory")
@pytest.mark.parametrize("location", ["ws://server.test/", "http://server.test/", "ws://server.test:443/"])
async def test_no_way_leads_from_wss_to_ws(
    autojump_clock: trio.testing.MockClock, transport: Transport, location: str
) -> None:
    async with ScriptedServer(to(location), tls=True) as server:
        dial = redirecting(
            server,
            url="wss://server.test/",
            ssl_context=server.client_ssl_context,
            redirect_origins=frozenset({"ws://server.test", "ws://server.test:443"}),
        )
        failure = await refusal(transport, dial)
        assert len(server.dials) == 1
    assert isinstance(failure, RedirectRefused)
    assert failure.why == "it leads from wss to ws"


HOSTILE_LOCATIONS = {
    "a file": "file:///etc/passwd",
    "a script": "javascript:alert(1)",
    "data": "data:text/plain,hello",
    "unix": "unix:///var/run/docker.sock",
    "gopher": "gopher://server.test:25/_MAIL",
    "brackets": "ws://[server.test/",
    "no host": "ws://",
    "no host but a port": "ws://:80/",
    "a port too large": "ws://server.test:65536/",
    "a port that is no number": "ws://server.test:http/",
    "white space": "ws://server.test/a b",
    "a tab": "ws://server.test/\tb",
    "a name without end": "ws://" + "a" * 300 + ".test/",
    "beyond ASCII": "ws://s\xe9rver.test/",
    "bytes of UTF-8": "ws://s\xc3\xa9rver.test/",
}


@pytest.mark.fault("F27", where="memory")
@pytest.mark.parametrize("what", HOSTILE_LOCATIONS)
async def test_what_is_no_address_is_refused_at_once(
    autojump_clock: trio.testing.MockClock, transport: Transport, what: str
) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.read_request()
        location = HOSTILE_LOCATIONS[what].encode("latin-1")
        await peer.send_raw(b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
        await peer.mute()

    async with ScriptedServer(redirect) as server:
        failure = await refusal(transport, redirecting(server))
        assert len(server.dials) == 1
    assert isinstance(failure, RedirectRefused)


@pytest.mark.fault("F27", where="memory")
@pytest.mark.parametrize("length", [60_000, 70_000])
async def test_a_very_long_one_within_the_origin_may_be_as_long_as_a_head(
    autojump_clock: trio.testing.MockClock, transport: Transport, length: int
) -> None:
    async with ScriptedServer(to("/" + "a" * length), echo) as server:
        opened = transport.open(redirecting(server))
        if length > HEAD_LIMIT:
            with pytest.raises(HandshakeInvalid, match="head exceeds"):
                await opened.__aenter__()
            assert len(server.dials) == 1
        else:
            async with opened as link:
                await link.aclose()
            assert targets(server)[1] == "/" + "a" * length


@pytest.mark.parametrize(
    "location", ["/b\r\nX-Smuggled: 1", "/b\nX-Smuggled: 1", "/b\rX", "/b%0d%0aX-Smuggled:%201", "/b\0"]
)
async def test_nothing_is_smuggled_into_the_next_request(
    autojump_clock: trio.testing.MockClock, transport: Transport, location: str
) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.read_request()
        try:
            await peer.send_raw(f"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode())
            await peer.mute()
        except Disconnected:
            pass

    async with ScriptedServer(redirect, echo) as server:
        try:
            with trio.fail_after(60):
                async with transport.open(redirecting(server)) as link:
                    await link.aclose()
        except ConnectFailed:
            assert len(server.dials) == 1
    for dial in server.dials:
        assert dial.request is not None
        assert "x-smuggled" not in dial.request.headers
        assert not any(character <= " " for character in dial.request.target)


async def test_two_locations_are_read_as_the_first(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.reject(307, [("Location", "/b"), ("Location", "ws://other.test/")])

    async with ScriptedServer(redirect, echo) as server, transport.open(redirecting(server)) as link:
        await link.aclose()
    assert targets(server) == ["/?first", "/b"]
    assert {dial.host for dial in server.dials} == {"server.test"}


@pytest.mark.parametrize("status", [300, 304, 305, 306, 200, 401, 500])
async def test_another_status_is_a_rejection_whatever_its_location(
    autojump_clock: trio.testing.MockClock, transport: Transport, status: int
) -> None:
    async with ScriptedServer(to("/b", status), echo) as server:
        failure = await refusal(transport, redirecting(server))
        assert len(server.dials) == 1
    assert type(failure) is HandshakeRejected
    assert failure.status == status


async def test_without_a_location_it_is_a_rejection(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.reject(302)

    async with ScriptedServer(redirect) as server:
        assert type(await refusal(transport, redirecting(server))) is HandshakeRejected


# --------------------------------------------------------------------------- many of them


@pytest.mark.fault("F26", where="memory")
@pytest.mark.parametrize("most", [0, 1, 5])
async def test_as_many_are_followed_as_were_allowed(
    autojump_clock: trio.testing.MockClock, transport: Transport, most: int
) -> None:
    hops: list[Step] = [to(f"/{number}") for number in range(10)]
    async with ScriptedServer(*hops) as server:
        failure = await refusal(transport, attrs.evolve(redirecting(server), max_redirects=most))
        assert len(server.dials) == most + 1
    assert isinstance(failure, RedirectRefused) == (most > 0)

    async with ScriptedServer(*hops[:most], echo) as server:
        async with transport.open(attrs.evolve(redirecting(server), max_redirects=most)) as link:
            await link.aclose()


@pytest.mark.fault("F26", where="memory")
async def test_all_hops_share_the_time_of_one_attempt(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async def redirect_slowly(peer: Peer) -> None:
        await peer.read_request()
        await trio.sleep(3)
        await peer.reject(307, {"Location": "/on"})

    async with ScriptedServer(then=redirect_slowly) as server:
        began = trio.current_time()
        with trio.move_on_after(10) as scope:
            async with transport.open(attrs.evolve(redirecting(server), max_redirects=100)):
                raise AssertionError("the link came up")
        assert scope.cancelled_caught
        assert trio.current_time() - began == 10
        assert len(server.dials) == 4
        with trio.fail_after(60):
            for dial in server.dials:
                await dial.wait_ended()


@pytest.mark.fault("F25", where="memory")
@pytest.mark.parametrize("status", STATUSES)
async def test_none_is_remembered_by_the_next_attempt(
    autojump_clock: trio.testing.MockClock, transport: Transport, status: int
) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async with ScriptedServer(to("/b", status), drop, echo) as server:
        dial = redirecting(server)
        async with transport.open(dial) as link:
            with pytest.raises(LinkLost):
                await link.receive_some()
        async with transport.open(attrs.evolve(dial, epoch=2)) as link:
            await link.aclose()
    assert targets(server) == ["/?first", "/b", "/?first"]


async def test_a_hop_that_was_left_leaves_no_connection(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async def redirect_and_stay(peer: Peer) -> None:
        await peer.read_request()
        await peer.send_raw(b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: /b\r\n\r\n")
        await peer.mute()

    async with ScriptedServer(redirect_and_stay, echo) as server:
        async with transport.open(redirecting(server)) as link:
            with trio.fail_after(60):
                await server.dials[0].wait_ended()
            await link.aclose()


# --------------------------------------------------------------------------- the decision by itself


def origins(urls: Iterable[str]) -> frozenset[str]:
    return frozenset(Url.parse(url).origin for url in urls)


@given(
    location=st.one_of(
        st.text(),
        st.text(alphabet="wshttp:/@#?[]%\\.0123456789server.testother "),
        st.builds("".join, st.lists(st.sampled_from(["ws:", "wss:", "http:", "//", "/", "server.test", "other.test"
                                                     "@", ":", "80", "443", "?", "#", "\\", "%2f", "..", "[::1]"]))),
    ),
    secure=st.booleans(),
)  # fmt: skip
def test_whatever_it_says_it_leads_within_the_origin_or_to_one_vouched_for(location: str, secure: bool) -> None:
    first = Url.parse(f"{'wss' if secure else 'ws'}://user:pass@server.test/a/b?c")
    vouched = origins(["ws://vouched.test", "wss://vouched.test"])
    dial = attrs.evolve(make_dial(url=first.full), max_redirects=5, redirect_origins=vouched)
    rejection = HandshakeRejected(302, (("location", location),), b"")
    try:
        followed = redirected(dial, rejection, 0).url
    except HandshakeRejected:
        return
    assert followed.origin in {first.origin, *vouched}
    assert followed.secure or not secure
    assert followed.userinfo == first.userinfo
    assert Url.parse(followed.full) == followed


def test_an_origin_is_compared_as_a_whole() -> None:
    with pytest.raises(ConfigError):
        Url.parse("ws://server.test:x/")
    assert Url.parse("ws://SERVER.test:80/x").origin == "ws://server.test"


# --------------------------------------------------------------------------- cookies


def cookies_of(server: ScriptedServer) -> list[str | None]:
    return [dial.request.headers.get("cookie") for dial in server.dials if dial.request is not None]


def setting(location: str, *cookies: str) -> Step:
    async def script(peer: Peer) -> None:
        await peer.reject(302, [("Location", location), *(("Set-Cookie", cookie) for cookie in cookies)])

    return script


@pytest.mark.parametrize(
    ("given", "cookies", "sent"),
    [
        ("", ["s=1"], "s=1"),
        ("", ["s=1; Path=/; HttpOnly; SameSite=Strict", "t=2; path=/b"], "t=2; s=1"),
        ("", ["s=1; Path=/other", "t=2; Path=/bb"], None),
        ("", ["s=a=b==; Max-Age=60"], "s=a=b=="),
        ("", ['s="q"'], 's="q"'),
        ("", ["s=1; Secure"], None),
        ("", ["s=1; Max-Age=0"], None),
        ("", ["s=1; Max-Age=-5; Expires=Fri, 01 Jan 2100 00:00:00 GMT"], None),
        ("", ["s=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], None),
        ("", ["s=1; Expires=Thu, 01-Jan-1970 00:00:00 GMT"], None),
        ("", ["s=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=9"], "s=1"),
        ("", ["s=1; Expires=whenever; Max-Age=soon"], "s=1"),
        ("", ["s=1; Expires=Fri, 99 Foo 9999999 00:00:00 GMT"], "s=1"),
        ("", ["s=1", "s=; Max-Age=0"], None),
        ("", ["s=1", "s=2"], "s=2"),
        ("", ["s=1; Domain=server.test", "t=2; Domain=.test"], "s=1; t=2"),
        ("", ["s=1; Domain=other.test", "t=2; Domain=erver.test"], None),
        ("", ["no pair", "=nameless", ";", ""], None),
        ("", [f"s={'x' * 5000}", "t=2"], "t=2"),
        ("a=1; s=old", ["s=new"], "a=1; s=new"),
        ("a=1;b=2", [], "a=1; b=2"),
    ],
)
async def test_what_a_redirect_sets_is_sent_to_its_target(
    autojump_clock: trio.testing.MockClock, transport: Transport, given: str, cookies: list[str], sent: str | None
) -> None:
    async with ScriptedServer(setting("/b", *cookies), echo) as server:
        headers = (("cookie", given),) if given else ()
        async with transport.open(redirecting(server, headers=headers)) as link:
            await link.aclose()
    assert cookies_of(server) == [given.replace(";b", "; b") or None, sent]


async def test_cookies_of_a_chain_add_up_and_stay_with_the_origin_that_set_them(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    there, back = "ws://other.test/x", "ws://server.test/b"
    async with ScriptedServer(
        setting("/a", "one=1; Path=/"), setting(there, "two=2"), setting(back, "three=3; Path=/"), echo
    ) as server:
        dial = redirecting(server, headers=(), redirect_origins=frozenset({"ws://other.test", "ws://server.test"}))
        async with transport.open(dial) as link:
            await link.aclose()
    assert cookies_of(server) == [None, "one=1", None, "one=1; two=2"]


async def test_a_cookie_is_not_remembered_by_the_next_dial(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async with ScriptedServer(setting("/b", "s=1"), echo, echo) as server:
        dial = redirecting(server, headers=())
        for _ in range(2):
            async with transport.open(dial) as link:
                await link.aclose()
    assert cookies_of(server) == [None, "s=1", None]


async def test_cookies_without_end_are_fifty(autojump_clock: trio.testing.MockClock, transport: Transport) -> None:
    async with ScriptedServer(setting("/b", *(f"c{n}={n}" for n in range(200))), echo) as server:
        async with transport.open(redirecting(server, headers=())) as link:
            await link.aclose()
    assert cookies_of(server)[1] == "; ".join(f"c{n}={n}" for n in range(150, 200))


async def test_a_cookie_that_the_target_repeats_is_masked(
    autojump_clock: trio.testing.MockClock, transport: Transport
) -> None:
    async def repeat(peer: Peer) -> None:
        request = await peer.read_request()
        await peer.reject(403, body=request.headers["cookie"].encode())

    async with ScriptedServer(setting("/b", f"session={CANARY}"), repeat) as server:
        with pytest.raises(HandshakeRejected) as caught:
            async with open_connection("ws://server.test/", transport=transport, stream_factory=server.stream_factory):
                pass
    assert cookies_of(server)[1] == f"session={CANARY}"
    assert CANARY not in f"{caught.value} {caught.value!r}"
