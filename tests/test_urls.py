from __future__ import annotations

import re
from string import ascii_letters
from urllib.parse import parse_qs, quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_nova.errors import ConfigError
from trio_nova.secrets import Secret
from trio_nova.urls import Url

UNSAFE = re.compile(r"[\x00-\x20\x7f-\uffff]")
"""What must never reach the request line or the Host header."""


# --------------------------------------------------------------------------- parts


def test_a_url_is_taken_apart() -> None:
    url = Url.parse("wss://me:secret@Example.COM:8443/a/b?x=1&y=2")
    assert url == Url(
        secure=True,
        host="example.com",
        port=8443,
        path="/a/b",
        query="x=1&y=2",
        userinfo="me:secret",
    )
    assert url.scheme == "wss"
    assert url.authority == "example.com:8443"
    assert url.resource == "/a/b?x=1&y=2"
    assert url.full == "wss://me:secret@example.com:8443/a/b?x=1&y=2"


@pytest.mark.parametrize(
    ("text", "authority", "port"),
    [
        ("ws://h", "h", 80),
        ("ws://h:80", "h", 80),
        ("ws://h:443", "h:443", 443),
        ("wss://h", "h", 443),
        ("wss://h:443", "h", 443),
        ("wss://h:80", "h:80", 80),
        ("ws://h:", "h", 80),
        ("ws://h:65535", "h:65535", 65535),
    ],
)
def test_the_host_header_names_the_port_unless_it_is_the_schemes_own(text: str, authority: str, port: int) -> None:
    url = Url.parse(text)
    assert (url.authority, url.port) == (authority, port)


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("ws://h", "/"),
        ("ws://h?x=1", "/?x=1"),
        ("ws://h/?", "/"),
        ("ws://h//a//", "//a//"),
        ("ws://h/a%20b%2Fc?d=%26", "/a%20b%2Fc?d=%26"),
        ("ws://h/ä?ö=ü", "/%C3%A4?%C3%B6=%C3%BC"),
        ("ws://h/a?b=c?d/e", "/a?b=c?d/e"),
        ('ws://h/"<>?{}|', "/%22%3C%3E?%7B%7D%7C"),
    ],
)
def test_the_resource_is_what_was_written_with_the_rest_percent_encoded(text: str, resource: str) -> None:
    assert Url.parse(text).resource == resource


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ws://EXAMPLE.com.", "example.com"),
        ("ws://bücher.example", "xn--bcher-kva.example"),
        ("ws://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("ws://例え。テスト。", "xn--r8jz45g.xn--zckzah"),
        ("ws://127.0.0.1", "127.0.0.1"),
        ("ws://\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("ws://[2001:DB8:0:0::1]", "2001:db8::1"),
        ("ws://under_score.example", "under_score.example"),
        ("ws://under_score.bücher.example", "under_score.xn--bcher-kva.example"),
        ("ws://faß.de", "xn--fa-hia.de"),
        ("ws://FAẞ.de", "xn--fa-hia.de"),
        ("ws://fass.de", "fass.de"),
        ("ws://βόλος.com", "xn--nxasmm1c.com"),
        ("ws://ΒΌΛΟΣ.com", "xn--nxasmq6b.com"),
        ("ws://نامه‌ای.com", "xn--mgba3gch31f060k.com"),
        ("ws://a\u00adb.example", "ab.example"),
    ],
)
def test_a_host_has_one_spelling(text: str, host: str) -> None:
    assert Url.parse(text).host == host


def test_an_ipv6_address_is_bracketed_where_it_is_printed() -> None:
    url = Url.parse("ws://[::1]:9000/x")
    assert (url.host, url.authority, url.full) == ("::1", "[::1]:9000", "ws://[::1]:9000/x")


@pytest.mark.parametrize("text", ["ws://[FE80::1%25eth0]:9000/x", "ws://[fe80::1%eth0]:9000/x"])
def test_a_zone_is_dialled_and_told_to_nobody(text: str) -> None:
    url = Url.parse(text)
    assert (url.host, url.zone, url.address) == ("fe80::1", "eth0", "fe80::1%eth0")
    assert url.authority == "[fe80::1]:9000"
    assert url.full == str(url) == "ws://[fe80::1%25eth0]:9000/x"
    assert Url.parse(url.full) == url


def test_one_address_in_two_zones_is_two_origins() -> None:
    one, other = Url.parse("ws://[fe80::1%25eth0]/"), Url.parse("ws://[fe80::1%25wlan0]/")
    assert len({one.origin, other.origin, Url.parse("ws://[fe80::1]/").origin}) == 3


def test_a_url_with_a_zone_masks_its_login() -> None:
    assert str(Url.parse("ws://me:hunter2@[fe80::1%25en1]/")) == "ws://***@[fe80::1%25en1]/"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.3.2.1", True),
        ("[::1]", True),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("10.0.0.1", False),
        ("[::2]", False),
    ],
)
def test_this_machine_is_known_by_its_names_and_addresses(host: str, loopback: bool) -> None:
    assert Url.parse(f"ws://{host}/").loopback is loopback


def test_a_query_can_be_added_to() -> None:
    url = Url.parse("wss://h/p?a=1&b=").with_query(token="x&y z+/", c="ü")
    assert url.query == "a=1&b=&token=x%26y%20z%2B%2F&c=%C3%BC"
    assert Url.parse(url.full) == url


@pytest.mark.parametrize(
    "signed", ["sig=a%20b&t=1", "sig=a+b", "flag", "%ff=%FF", "a=%zz", "a==&&b", "a=1&", "x;y=1", "a=b?c/d:@", "é=ü"]
)
def test_adding_to_a_query_leaves_every_byte_that_is_there(signed: str) -> None:
    url = Url.parse(f"wss://h/?{signed}")
    assert url.with_query(t="2").query == f"{url.query}&t=2"
    assert url.with_query() == url


def test_a_secret_that_is_added_to_a_query_is_sent_and_not_shown() -> None:
    url = Url.parse("wss://h/").with_query(token=Secret("s3cr3t"))
    assert url.resource == "/?token=s3cr3t"
    assert "s3cr3t" not in f"{url} {url!r}"


def test_a_parameter_that_no_url_can_say_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="surrogates") as caught:
        Url.parse("wss://h/").with_query(token="s3cr3t\ud800")
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "scheme"),
        ("h", "scheme"),
        ("/path", "scheme"),
        ("//h/path", "scheme"),
        ("http://h", "scheme must be ws or wss, not 'http'; write ws://"),
        ("wss:", "no host"),
        ("wss:///path", "no host"),
        ("wss://:80/", "no host"),
        ("wss://user@/", "no host"),
        ("wss://h/#fragment", "fragment"),
        ("wss://h/#", "fragment"),
        ("wss://h:x/", "port"),
        ("wss://h:-1/", "port"),
        ("wss://h:65536/", "port"),
        ("wss://h:99999999999999999999/", "port"),
        ("wss://[::1/", "malformed"),
        ("wss://[::g]/", "malformed"),
        ("wss://[1.2.3.4]/", "malformed|valid"),
        ("wss://[v1.x]/", "malformed|valid"),
        ("wss://[fe80::1%\u2603]/", "zone"),
        ("wss://[fe80::1%25]/", "zone"),
        ("wss://[fe80::1%]/", "malformed|zone"),
        ("wss://1.2.3.4%25eth0/", "not a valid name"),
        ("wss://\u2615.example/", "IDNA 2008.*xn--"),
        ("wss://a\u200db.example/", "IDNA 2008"),
        ("wss://\u0661\u0662.0.0.1/", "IDNA 2008"),
        ("wss://b\u00fc_cher.example/", "IDNA 2008"),
        ("https://h", "write wss://"),
        ("example.com/ws", "begin with wss://"),
        ("wss://h\u2100/", "malformed"),
        ("wss://a..b/", "not a valid name"),
        ("wss://.a/", "not a valid name"),
        ("wss://./", "not a valid name"),
        ("wss://a_b\\c/", "not a valid name"),
        ("wss://a%20b/", "not a valid name"),
        (f"wss://{'a' * 64}/", "not a valid name"),
        (f"wss://{'a.' * 128}/", "not a valid name"),
        (f"wss://{'ä' * 64}/", "not a valid name"),
        ("wss://h/a b", "white space"),
        (" wss://h/", "white space"),
        ("wss://h/\r\nX: y", "control"),
        ("wss://h\n/", "control"),
        ("wss://h/\x00", "control"),
        ("wss://h/\x7f", "control"),
        ("wss://h/\ud800", "surrogates"),
        ("wss://\udfff@h/", "surrogates"),
    ],
)
def test_what_is_no_websocket_url_is_refused_naming_the_option(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Url.parse(text, "the_option")
    assert caught.value.field == "the_option"


@pytest.mark.parametrize("text", ["wss://me:hunter2@h\u2100/", "wss://me:hunter2/x@h/", "wss://me:hunter2@[h/"])
def test_a_refusal_does_not_quote_the_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Url.parse(text)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__suppress_context__


# --------------------------------------------------------------------------- secrets


def test_a_printed_url_masks_its_secrets() -> None:
    url = Url.parse("wss://me:hunter2@h:1/p?token=s3cr3t&empty=&flag")
    assert str(url) == "wss://***@h:1/p?token=***&empty=***&***"


def test_a_url_without_secrets_is_printed_as_it_is() -> None:
    assert str(Url.parse("wss://h/p")) == "wss://h/p"


@pytest.mark.fault("F101", where="memory")
@pytest.mark.parametrize(
    "text", ["wss://s3cr3t@h/", "wss://me:s3cr3t@h/", "wss://h/?k=s3cr3t", "wss://h/?s3cr3t", "wss://h/?a=b=s3cr3t"]
)
def test_neither_str_nor_repr_shows_a_secret(text: str) -> None:
    url = Url.parse(text)
    assert "s3cr3t" not in f"{url} {url!r}"
    assert "s3cr3t" in url.full


def test_a_name_in_the_query_cannot_forge_a_line_of_a_log() -> None:
    assert str(Url.parse("wss://h/?%0d%0aforged=1")) == "wss://h/?%0d%0aforged=***"


# --------------------------------------------------------------------------- any text

anything = st.characters()
"""Any code point, lone surrogates among them."""
hostile = st.sampled_from("ws:/?#@[]%&=.:\\ \t\r\n\x00\x7f\u00a0\u2028\u3002ß\u212aäA1z0-_~")
texts = st.text(st.one_of(anything, hostile))
urls = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["ws://", "wss://", "WSS://", "http://", "ws:"]),
    st.one_of(st.just(""), st.builds("{}@".format, texts)),
    st.one_of(st.text(hostile), st.text(ascii_letters, min_size=1), st.ip_addresses(v=4), st.sampled_from(["[::1]"])),
    st.one_of(st.just(""), st.builds(":{}".format, st.integers(-1, 70_000))),
    st.one_of(st.just(""), st.builds("/{}".format, texts)),
    st.one_of(st.just(""), st.builds("?{}".format, texts)),
)


@pytest.mark.fault("F34", where="memory")
@given(st.one_of(texts, urls))
@example("ws://a\u3002/")
@example("ws://[fe80::1%eth0]/")
@example("ws://\u212a/")
def test_any_text_is_refused_or_is_a_url_that_is_safe_on_the_wire_and_reads_back_the_same(text: str) -> None:
    try:
        url = Url.parse(text)
    except ConfigError:
        return
    assert not UNSAFE.search(url.resource + url.authority)
    assert url.resource.startswith("/")
    assert 0 <= url.port < 65_536
    assert Url.parse(url.full) == url
    assert "\n" not in str(url)


@given(st.text(ascii_letters, min_size=1), st.text(), st.text())
def test_what_is_percent_encoded_survives(host: str, path: str, value: str) -> None:
    url = Url.parse(f"wss://{host[:60]}/{quote(path)}?v={quote(value)}x")
    assert unquote(url.path) == f"/{path}"
    assert parse_qs(url.query.replace("+", "%2B")) == {"v": [f"{value}x"]}
