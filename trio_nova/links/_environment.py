"""Find the proxy that the environment names for a URL, as curl does."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from trio_nova.errors import ConfigError
from trio_nova.links._proxy import Proxy, parse_proxy
from trio_nova.secrets import learn_here
from trio_nova.urls import Url, ip_address, is_address, split_host

__all__ = ["proxy_for"]

_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^:]*):([0-9]{1,5})")


def proxy_for(url: Url, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy by which `url` is to be reached; None: it is reached without.

    A wss URL is reached by `https_proxy`, a ws one by `http_proxy`, either by `all_proxy` where that is not set, and
    none that `no_proxy` exempts. Each may be written in capitals; the small letters win. `HTTP_PROXY` does not count
    in a CGI program, where whoever sends a request could set it (https://httpoxy.org).

    Raises:
        ConfigError: what is named is no proxy's URL.
    """
    kind = "https_proxy" if url.secure else "http_proxy"
    for name in (kind, "all_proxy"):
        where, value = _look_up(name, environ)
        if value:
            proxy = parse_proxy(value if "://" in value else f"http://{value}", where)
            learn_here("the proxy of the environment", [proxy.password if proxy.password.reveal() else proxy.user])
            return None if _is_exempt(url, _look_up("no_proxy", environ)[1]) else proxy
    return None


def _look_up(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return under which name a variable is set, and its value; "" where it is not."""
    capitals = name.upper()
    if name in environ or (name == "http_proxy" and "REQUEST_METHOD" in environ):
        return name, environ.get(name, "").strip()
    return capitals, environ.get(capitals, "").strip()


def _is_exempt(url: Url, exempt: str) -> bool:
    """Return whether one of the exemptions, between commas or spaces, is about the host of `url`.

    That is `*`; a domain, which is about all that is below it too, with or without a dot or `*.` before it; an
    address; or a network of addresses, as 10.0.0.0/8. A port may follow. What is none of these is about nobody.
    """
    return any(_is_about(url, each) for each in re.split(r"[,\s]+", exempt) if each)


def _is_about(url: Url, exemption: str) -> bool:
    if exemption == "*":
        return True
    if "/" in exemption:
        return _is_in(url.host, exemption)
    host = exemption
    if (with_port := _HOST_AND_PORT.fullmatch(exemption)) is not None:
        host, port = with_port.groups()
        if int(port) != url.port:
            return False
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    try:
        name, _ = split_host(host.removeprefix("*").removeprefix("."), "no_proxy")
    except ConfigError:
        return False
    return url.host == name or (not is_address(url.host) and url.host.endswith(f".{name}"))


def _is_in(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:  # the host is a name, or that is no network
        return False
