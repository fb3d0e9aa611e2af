"""WebSocket URLs (RFC 6455 section 3), parsed once and printed without secrets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import quote, urlencode, urlsplit

import attrs
import idna

from trio_nova.errors import ConfigError
from trio_nova.secrets import Secret, as_secret_text

__all__ = ["Url", "ip_address", "is_address", "split_host"]

_ILLEGAL = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_NAME = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
"""A name that a resolver can be asked for (RFC 1035 section 2.3.4), without the final dot."""
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::[0-9]*)?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
"""The name or the number of a network interface, as RFC 6874 section 2 lets it be written unescaped."""
_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_INSTEAD = {"http": "; write ws://", "https": "; write wss://", "": "; begin with wss://"}


ip_address = lru_cache(maxsize=256)(ipaddress.ip_address)
"""Parses an address, of which a program has few, and each dial asks several times."""


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@attrs.frozen
class Url:
    """A `ws://` or `wss://` URL. Its `str` masks userinfo and query values."""

    secure: bool
    host: str
    """Without brackets, lower case, IDNA-encoded (IDNA 2008, as UTS 46 maps it, non-transitional)."""
    port: int
    path: str = "/"
    zone: str = ""
    """The network interface by which an IPv6 address is reached (RFC 6874); only the dial is told it."""
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
            port = parts.port
        except ValueError:  # its text may quote the password
            raise ConfigError(field, "not a URL: its host or its port is malformed") from None
        if parts.scheme not in _DEFAULT_PORTS:
            instead = _INSTEAD.get(parts.scheme, "")
            raise ConfigError(field, f"the scheme must be ws or wss, not {parts.scheme!r}{instead}")
        userinfo, _, _ = parts.netloc.rpartition("@")
        host, zone = split_host(parts.netloc, field)
        if "#" in text:
            raise ConfigError(field, "a WebSocket URL must not have a fragment (RFC 6455 section 3)")
        return cls(
            secure=parts.scheme == "wss",
            host=host,
            zone=zone,
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
    def address(self) -> str:
        """The host, with its zone where there is one: what is dialled."""
        return f"{self.host}%{self.zone}" if self.zone else self.host

    @property
    def origin(self) -> str:
        """Scheme, host with its zone, and port: what a credential belongs to."""
        return f"{self.scheme}://{self._zoned_authority}"

    @property
    def _zoned_authority(self) -> str:
        # In another zone the same address is another machine.
        return self.authority.replace("]", f"%25{self.zone}]") if self.zone else self.authority

    @property
    def resource(self) -> str:
        """Path and query: the target of the upgrade request."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def full(self) -> str:
        """The URL with all its secrets; never to be logged."""
        user = f"{self.userinfo}@" if self.userinfo else ""
        return f"{self.scheme}://{user}{self._zoned_authority}{self.resource}"

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine by its very name."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_query(self, **params: str | Secret[str]) -> Url:
        """Return a copy whose query has `params` added, percent-encoded; what is there stays as it is.

        Raises:
            ConfigError: a value holds half a surrogate pair, which no URL can say.
        """
        plain = {name: value.reveal() if isinstance(value, Secret) else value for name, value in params.items()}
        try:
            added = urlencode(plain, quote_via=quote, safe="")
        except UnicodeEncodeError:  # its text quotes the value
            raise ConfigError("query", "a parameter must not contain lone surrogates") from None
        return attrs.evolve(self, query="&".join(filter(None, (self.query, added))))

    def __str__(self) -> str:
        user = "***@" if self.userinfo else ""
        fields = (field.partition("=") for field in self.query.split("&"))
        # What has no name may well be a token.
        masked = "&".join(f"{name}=***" if equals else "***" for name, equals, _ in fields)
        query = f"?{masked}" if self.query else ""
        return f"{self.origin.replace('://', f'://{user}', 1)}{self.path}{query}"


@lru_cache(maxsize=256)
def _authority(secure: bool, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == _DEFAULT_PORTS["wss" if secure else "ws"] else f"{name}:{port}"


def split_host(netloc: str, field: str) -> tuple[str, str]:
    """Return host and zone of what stands between the // and the path of a URL, in their one spelling.

    Raises:
        ConfigError: naming `field`, when there is none, or it is no name and no address.
    """
    _, _, place = netloc.rpartition("@")
    found = _HOST_AND_PORT.fullmatch(place)
    if found is None:
        raise ConfigError(field, "not a URL: its host or its port is malformed")
    literal, name = found.groups()
    if literal is not None:
        return _ipv6(literal, field)
    if not name:
        raise ConfigError(field, "the URL has no host")
    return _canonical_name(name, field), ""


def _ipv6(literal: str, field: str) -> tuple[str, str]:
    host, percent, zone = literal.partition("%")
    # RFC 6874 section 2 wants %25 before a zone; section 3 allows to read a bare % as well.
    zone = zone.removeprefix("25")
    try:
        address = ipaddress.IPv6Address(host).compressed
    except ValueError:
        raise ConfigError(field, "the host is not a valid name") from None
    if percent and not _ZONE.fullmatch(zone):
        raise ConfigError(field, "the host is not a valid name: its zone must be that of a network interface")
    return address, zone


def _canonical_name(host: str, field: str) -> str:
    try:
        if not host.isascii():
            host = _ascii_of(host)
        host = host.removesuffix(".").lower()
        return ip_address(host).compressed
    except UnicodeError:  # its text quotes the host, which may be half of a password
        raise ConfigError(field, "the host is not a valid name by IDNA 2008; write it in its xn-- form") from None
    except ValueError:  # not an address
        if not _NAME.fullmatch(host):
            raise ConfigError(field, "the host is not a valid name") from None
        return host


def _ascii_of(host: str) -> str:
    """Return a host as it is asked for: IDNA 2008, so that a German ß or a final sigma is not another's ss or sigma.

    Python's own codec is of IDNA 2003, which makes them the same.
    """
    labels = idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")
    return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)


def is_one_of(origin: str, origins: Collection[str]) -> bool:
    """Return whether an origin is among `origins`, of which "wss://*.example.com" is every one below that domain."""
    if origin in origins:
        return True
    for each in origins:
        scheme, star, domain = each.partition("*")
        if star and origin.startswith(scheme) and origin.endswith(domain):
            return True
    return False
