"""WebSocket URLs (RFC 6455 section 3), parsed once and printed without secrets."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import attrs

from trio_nova.errors import ConfigError
from trio_nova.secrets import Secret, as_secret_text

__all__ = ["Url", "ip_address"]

_ILLEGAL = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_NAME = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
"""A name that a resolver can be asked for (RFC 1035 section 2.3.4), without the final dot."""
_DEFAULT_PORTS = {"ws": 80, "wss": 443}


ip_address = lru_cache(maxsize=256)(ipaddress.ip_address)
"""Parses an address, of which a program has few, and each dial asks several times."""


@attrs.frozen
class Url:
    """A `ws://` or `wss://` URL. Its `str` masks userinfo and query values."""

    secure: bool
    host: str
    """Without brackets, lower case, IDNA-encoded."""
    port: int
    path: str = "/"
    _query: Secret[str] = attrs.field(default=Secret(""), converter=as_secret_text, repr=False, alias="query")
    _userinfo: Secret[str] = attrs.field(default=Secret(""), converter=as_secret_text, repr=False, alias="userinfo")

    @classmethod
    def parse(cls, text: str, field: str = "target") -> Url:
        """Parse `text`.

        Raises:
            ConfigError: naming `field`, when it is no absolute ws or wss URL without fragment.
        """
        if _ILLEGAL.search(text):
            raise ConfigError(field, "a URL must not contain white space, control characters or lone surrogates")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:  # its text may quote the password
            raise ConfigError(field, "not a URL: its host or its port is malformed") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise ConfigError(field, f"the scheme must be ws or wss, not {parts.scheme!r}")
        if not host:
            raise ConfigError(field, "the URL has no host")
        if "#" in text:
            raise ConfigError(field, "a WebSocket URL must not have a fragment (RFC 6455 section 3)")
        userinfo, _, _ = parts.netloc.rpartition("@")
        return cls(
            secure=parts.scheme == "wss",
            host=_canonical_host(host, field),
            port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
            path=quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._"),
            query=quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]"),
            userinfo=userinfo,
        )

    @property
    def query(self) -> str:
        return self._query.reveal()

    @property
    def userinfo(self) -> str:
        """`user:password`, percent-encoded as written; sent as Basic authorization (RFC 7617)."""
        return self._userinfo.reveal()

    @property
    def scheme(self) -> str:
        return "wss" if self.secure else "ws"

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's own, port: the Host header."""
        return _authority(self.secure, self.host, self.port)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a credential belongs to."""
        return f"{self.scheme}://{self.authority}"

    @property
    def resource(self) -> str:
        """Path and query: the target of the upgrade request."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def full(self) -> str:
        """The URL with all its secrets; never to be logged."""
        user = f"{self.userinfo}@" if self.userinfo else ""
        return f"{self.scheme}://{user}{self.authority}{self.resource}"

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine by its very name."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_query(self, **params: str) -> Url:
        """Return a copy whose query has `params` added."""
        added = urlencode([*parse_qsl(self.query, keep_blank_values=True), *params.items()])
        return attrs.evolve(self, query=added)

    def __str__(self) -> str:
        user = "***@" if self.userinfo else ""
        fields = (field.partition("=") for field in self.query.split("&"))
        # What has no name may well be a token.
        masked = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in fields)
        query = f"?{masked}" if self.query else ""
        return f"{self.scheme}://{user}{self.authority}{self.path}{query}"


@lru_cache(maxsize=256)
def _authority(secure: bool, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == _DEFAULT_PORTS["wss" if secure else "ws"] else f"{name}:{port}"


def _canonical_host(host: str, field: str) -> str:
    try:
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        host = host.removesuffix(".").lower()
        return ip_address(host).compressed
    except UnicodeError:
        raise ConfigError(field, "the host is not a valid name") from None
    except ValueError:  # not an address
        if not _NAME.fullmatch(host):
            raise ConfigError(field, "the host is not a valid name") from None
        return host
