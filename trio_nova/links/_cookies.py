"""Cookies that a redirect sets, for its target (RFC 6265): kept for one dial, and never sent to another origin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import mktime_tz, parsedate_tz

import attrs

from trio_nova.secrets import Secret
from trio_nova.urls import Url

__all__ = ["Cookie", "cookie_header", "with_cookies"]

MAX_COOKIES = 50
"""Kept for one dial; the oldest give way."""
MAX_COOKIE_SIZE = 4096
"""Characters of a Set-Cookie (RFC 6265 section 6.1); a longer one is passed over."""


@attrs.frozen
class Cookie:
    """One cookie, and where it belongs."""

    origin: str
    name: str
    path: str
    value: Secret[str]


def with_cookies(kept: Iterable[Cookie], url: Url, fields: Iterable[str], now: float) -> tuple[Cookie, ...]:
    """Return `kept` with what a response of `url` sets and deletes.

    Args:
        kept: what was set before.
        url: what was asked for.
        fields: the values of the response's Set-Cookie fields.
        now: seconds since the epoch of Unix, against which an expiry is held.
    """
    cookies = {(each.origin, each.name, each.path): each for each in kept}
    for field in fields:
        pair, *rest = field.split(";") if len(field) <= MAX_COOKIE_SIZE else [""]
        name, equals, value = (part.strip() for part in pair.partition("="))
        attributes = {key.strip().lower(): text.strip() for key, _, text in (part.partition("=") for part in rest)}
        if not name or not equals or not _may_be_set(attributes, url):
            continue
        path = attributes.get("path", "")
        path = path if path.startswith("/") else url.path.rpartition("/")[0] or "/"
        cookies.pop((url.origin, name, path), None)
        if not _has_expired(attributes, now):
            cookies[url.origin, name, path] = Cookie(url.origin, name, path, Secret(value))
    return tuple(cookies.values())[-MAX_COOKIES:]


def cookie_header(cookies: Iterable[Cookie], url: Url, given: str) -> str:
    """Return the Cookie header for `url`: what the caller has `given`, but for what was set anew since; "" for none."""
    fit = [each for each in cookies if each.origin == url.origin and _is_below(url.path, each.path)]
    fit.sort(key=lambda each: -len(each.path))  # RFC 6265 section 5.4
    names = {each.name for each in fit}
    pairs = [pair.strip() for pair in given.split(";")]
    old = [pair for pair in pairs if pair and pair.partition("=")[0].strip() not in names]
    return "; ".join([*old, *(f"{each.name}={each.value.reveal()}" for each in fit)])


def _may_be_set(attributes: dict[str, str], url: Url) -> bool:
    domain = attributes.get("domain", "").removeprefix(".").lower()
    fits = not domain or url.host == domain or url.host.endswith(f".{domain}")
    return fits and (url.secure or "secure" not in attributes)


def _has_expired(attributes: dict[str, str], now: float) -> bool:
    if re.fullmatch(r"-?[0-9]{1,20}", attributes.get("max-age", "")):
        return int(attributes["max-age"]) <= 0
    try:
        date = parsedate_tz(attributes.get("expires", ""))
        return date is not None and mktime_tz(date) <= now
    except (ValueError, OverflowError, TypeError, IndexError):  # no date
        return False


def _is_below(path: str, directory: str) -> bool:
    """Return whether a cookie of `directory` is for `path` (RFC 6265 section 5.1.4)."""
    return path == directory or path.startswith(directory if directory.endswith("/") else f"{directory}/")
