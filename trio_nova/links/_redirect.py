"""Decide whether a redirect of the upgrade is followed (RFC 6455 section 4.1, RFC 9110 section 15.4)."""

from __future__ import annotations

from urllib.parse import urljoin

import attrs

from trio_nova.errors import ConfigError, HandshakeRejected, RedirectRefused
from trio_nova.links._cookies import with_cookies
from trio_nova.links._seam import Dial
from trio_nova.secrets import learn_here
from trio_nova.urls import Url, is_one_of

__all__ = ["redirected"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def redirected(dial: Dial, rejection: HandshakeRejected, hops: int) -> Dial:
    """Return the dial that `rejection` points to; the headers go along, and the login of the first URL.

    So do the cookies that redirects of this dial have set, each to the origin that set it.

    That is why only a URL of the same origin will do, or of one that `dial.redirect_origins` vouches for.
    What is followed is not remembered: the next link begins at the first URL again.

    Args:
        dial: what was answered so.
        rejection: the answer.
        hops: redirects followed before this one.

    Raises:
        HandshakeRejected: `rejection` itself, which is no redirect.
        RedirectRefused: it is one that must not be followed.
    """
    location = next((value for name, value in rejection.headers if name == "location"), None)
    if rejection.status not in _REDIRECTS or location is None or dial.max_redirects == 0:
        raise rejection
    if hops >= dial.max_redirects:
        raise RedirectRefused(rejection, f"{hops} redirects have been followed already")
    target = _target(dial.url, location, rejection)
    if target.origin != dial.url.origin and not is_one_of(target.origin, dial.redirect_origins):
        raise RedirectRefused(rejection, f"{target.origin} is another origin, and not one of redirect_origins")
    set_here = [value for name, value in rejection.headers if name == "set-cookie"]
    cookies = with_cookies(dial.cookies, dial.url, set_here, dial.wall_clock())
    learn_here("cookies", (each.value for each in cookies))
    return attrs.evolve(dial, url=attrs.evolve(target, userinfo=dial.url.userinfo), cookies=cookies)


def _target(base: Url, location: str, rejection: HandshakeRejected) -> Url:
    try:
        # urljoin knows how to join what is relative to http, not to ws.
        joined = urljoin(base.full.replace("ws", "http", 1), location)
        scheme, colon, rest = joined.partition(":")
        target = Url.parse(_SCHEMES[scheme.lower()] + colon + rest.partition("#")[0])
    except (ValueError, KeyError, ConfigError):
        raise RedirectRefused(rejection, "its Location is no WebSocket URL") from None
    if target.host == base.host and not target.zone:
        target = attrs.evolve(target, zone=base.zone)  # the server was never told it
    if base.secure and not target.secure:
        raise RedirectRefused(rejection, "it leads from wss to ws")
    return target
