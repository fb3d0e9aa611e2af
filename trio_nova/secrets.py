"""What must never be shown: values that mask themselves, where they come from, and how texts are rid of them.

Three lines of defence::

    Secret, HeaderMap      a value that every way of printing masks; `reveal` only where bytes are made of it
    Redactor               what the peer, or a foreign error, repeats of a session's secrets becomes ***
    discreet, forget_locals   where `Config.scrub_tracebacks` asks for that, an error leaves without the locals of our
                           frames, which some renderers of tracebacks show
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hmac
import inspect
import os
import re
import secrets
import string
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar, cast, overload
from urllib.parse import unquote, unquote_plus, urlsplit

import trio

from trio_nova.disguises import readings
from trio_nova.errors import SHOWN, AuthFailed, ConfigError, ConnectFailed, NovaError, Phase, RetryAdvice, printable

__all__ = [
    "CredentialsSource",
    "FromEnvironment",
    "HeaderMap",
    "Redactor",
    "Secret",
    "as_secret",
    "as_secret_text",
    "ask_credentials",
    "ask_provider",
    "discreet",
    "discreet_if_asked",
    "forget_frames",
    "forget_locals",
    "hide_tokens",
    "is_secret_name",
    "learn_here",
    "place_of",
    "redacted",
    "secret_parameter",
    "secrets_in",
    "secrets_in_headers",
    "secrets_in_subprotocols",
    "secrets_in_url",
]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
F = TypeVar("F", bound=Callable[..., Any])

MASK = "***"
SHORTEST = 6
"""Characters of the shortest secret that is looked for in texts: a shorter one would be found everywhere."""
LIKELY = 20
"""Characters from which on a header or a parameter is taken for a secret, whatever its name is."""
MAX_SUPERSEDED = 128
"""Secrets that a redactor remembers though others have taken their place; the oldest give way."""
MAX_SUPERSEDED_SIZE = 65_536
"""Characters of these together."""
LOOKED_AT = 4096
"""Characters, or bytes, of what a peer sent from which what is shown of it is made."""
LONGEST = 65_536
"""Characters, or bytes, that are kept of a text in an error."""
MAX_CUTS = 8
"""Places marked … of a text where a secret is looked for that was cut; and its end."""

_SECRET_NAME = re.compile(r"token|secret|key|auth|passw|cookie|credential|signature", re.IGNORECASE)
_HASH_KEY = secrets.token_bytes(16)


def is_secret_name(name: str) -> bool:
    """Return whether a header or a parameter of this name is likely to be a credential."""
    return _SECRET_NAME.search(name) is not None


# --------------------------------------------------------------------------- values


class Secret(Generic[T]):
    """A value that is not shown: whatever prints, encodes or pickles it gets *** or a TypeError.

    Two secrets are equal if their values are; of texts, bytes, and mappings of these that takes as long
    for a wrong guess as for a right one. Copying is free: the copy is the secret itself.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value. Do it where it is used up, and do not keep it in a variable."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return _same(self._value, other._value) if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        data = _as_bytes(self._value)
        # Keyed, so that a hash that gets out says nothing, not even where PYTHONHASHSEED is fixed.
        return hash(type(self)) if data is None else int.from_bytes(hmac.digest(_HASH_KEY, data, "sha256")[:8])

    def __copy__(self) -> Secret[T]:
        return self

    def __deepcopy__(self, memo: object) -> Secret[T]:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def _as_bytes(value: object) -> bytes | None:
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")
        case bytes() | bytearray():
            return bytes(value)
        case _:
            return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return False
        # All of them, not up to the first that differs.
        return sum(not _same(one[name], other[name]) for name in one) == 0
    if type(one) is type(other) and (data := _as_bytes(one)) is not None:
        return hmac.compare_digest(data, _as_bytes(other) or b"")
    return bool(one == other)


@overload
def as_secret(value: Secret[T]) -> Secret[T]: ...
@overload
def as_secret(value: T) -> Secret[T]: ...
def as_secret(value: T | Secret[T]) -> Secret[T]:
    """Return `value` as a secret; one that is a secret already as it is."""
    return cast("Secret[T]", value) if isinstance(value, Secret) else Secret(value)


def as_secret_text(value: str | Secret[str]) -> Secret[str]:
    """Do what `as_secret` does, where type checkers want it in one form: the converter of a field."""
    return value if isinstance(value, Secret) else Secret(value)


class HeaderMap(Mapping[str, str]):
    """Header names and values, as they were given, for good. Printing it shows the names only.

    A name is found in any spelling; `headers | {"authorization": "..."}` replaces that header, however it is spelt.
    """

    __slots__ = ("_spellings", "_values")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._values = dict(headers)
        self._spellings = {name.lower(): name for name in self._values if isinstance(name, str)}

    def __getitem__(self, name: str) -> str:
        if name in self._values:  # also where it is no text, and so no header: that is told by who checks them
            return self._values[name]
        return self._values[self._spellings[name.lower()]]

    def __or__(self, others: Mapping[str, str]) -> HeaderMap:
        replaced = {name.lower() for name in others}
        return HeaderMap({**{name: self[name] for name in self if name.lower() not in replaced}, **others})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"HeaderMap({', '.join(f'{name!r}: {MASK}' for name in self._values)})"

    def __deepcopy__(self, memo: object) -> HeaderMap:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a HeaderMap cannot be pickled: it holds secrets")


# --------------------------------------------------------------------------- where credentials come from

CredentialsSource: TypeAlias = Any
"""A value; an async function that returns it, asked on every link and for every refresh; `FromEnvironment`; None."""


class FromEnvironment:
    """Credentials from environment variables, read whenever they are asked for.

    `FromEnvironment("API_TOKEN")` is a text; of several variables, or with names of their own
    (`FromEnvironment(key="API_KEY", secret="API_SECRET")`), it is a dict, by name.
    """

    def __init__(self, *variables: str, **named: str) -> None:
        if not variables and not named:
            raise ConfigError("credentials", "FromEnvironment needs the name of a variable")
        self._wanted = {**{name: name for name in variables}, **named}
        self._alone = len(variables) == 1 and not named

    def __repr__(self) -> str:
        return f"FromEnvironment({', '.join(self._wanted.values())})"

    async def __call__(self) -> Secret[Any]:
        """Read the variables.

        Raises:
            ConfigError: some are missing, or empty; it names them.
        """
        await trio.lowlevel.checkpoint()
        if missing := [variable for variable in self._wanted.values() if not os.environ.get(variable)]:
            raise ConfigError("credentials", f"missing in the environment: {', '.join(missing)}")
        values = {name: os.environ[variable] for name, variable in self._wanted.items()}
        return Secret(next(iter(values.values())) if self._alone else values)


async def ask_credentials(source: CredentialsSource) -> Secret[Any] | None:
    """Return what `source` holds or provides now, as a secret; None where there are no credentials.

    Whoever asks bounds the wait: a provider may ask a vault. Cancelling cancels the provider.

    Raises:
        AuthFailed, ConfigError, ConnectFailed: the provider failed, see `ask_provider`; the phase is "auth".
    """
    if source is None or not callable(source):
        await trio.lowlevel.checkpoint()
        return None if source is None else as_secret(source)
    value = await ask_provider(cast("Callable[[], Awaitable[Any]]", source), "credentials", "auth")
    return None if value is None else as_secret(value)


async def ask_provider(provider: Callable[[], Awaitable[T]], what: str, phase: Phase) -> T:
    """Return what `provider` provides.

    Raises:
        AuthFailed, ConfigError, ConnectFailed: where the provider itself raises one of them.
        ConfigError: what it returns cannot be awaited.
        ConnectFailed: any other failure, with `phase`: worth another attempt.

    What becomes of such a failure says the error's type and where it was raised, and never its text,
    nor has it that error for its cause: an HTTP client, or a vault, may well quote the token.
    """
    try:
        asked = provider()
        if not isinstance(asked, Awaitable):
            raise ConfigError(what, "its provider must be async: what it returned cannot be awaited")
        return await asked
    except (AuthFailed, ConfigError, ConnectFailed):
        raise
    except Exception as exc:
        why = f"{type(exc).__name__}{place_of(exc)}"
    # Outside of the except block: else the error would be found in __context__.
    raise ConnectFailed(f"the provider of {what} failed: {why}", phase=phase, retry=RetryAdvice.BACKOFF)


def place_of(exc: BaseException) -> str:
    """Return where `exc` was raised, in words to be added to its name; "" where that is not known."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f" in {code.co_name}() at {os.path.basename(code.co_filename)}:{trace.tb_lineno}"


# --------------------------------------------------------------------------- what frames hold

_DISCREET = frozenset({"trio_nova", "trio_websocket", "wsproto", "python_socks", "attr"})
"""Whose frames are emptied: ours, and those of the libraries that we hand secrets to. The user's own stay."""


def forget_locals(error: E) -> E:
    """Empty our frames in the traceback of `error`, and of what it came from, and return it.

    File, line and function stay. A renderer that shows locals would show headers, messages and keys.
    Outermost frames that still run cannot be emptied and are cut off: whoever raises `error` again
    adds them. Call it where the tasks that the error went through have ended.
    """
    for exc in _family(error):
        trace = exc.__traceback__
        while trace is not None and _is_ours(trace.tb_frame) and not _empty(trace.tb_frame):
            trace = trace.tb_next
        exc.__traceback__ = trace
        while trace is not None:
            if _is_ours(trace.tb_frame):
                _empty(trace.tb_frame)
            trace = trace.tb_next
    return error


def forget_frames(error: BaseException) -> None:
    """Take the tracebacks off `error`, and off what it came from: where it is kept as a fact, and is no failure.

    A traceback holds the frames, and a frame what it worked on, for as long as the error is kept.
    """
    for exc in _family(error):
        exc.__traceback__ = None


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in _DISCREET or frame.f_code.co_filename.startswith("<attrs generated")


def _empty(frame: FrameType) -> bool:
    with contextlib.suppress(RuntimeError):  # it is running
        frame.clear()
        return True
    return False


def _family(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all that a traceback of it could show: causes, contexts, members of groups."""
    waiting, seen = [error], set[int]()
    while waiting:
        exc = waiting.pop()
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        yield exc
        waiting += [each for each in (exc.__cause__, exc.__context__) if each is not None]
        if isinstance(exc, BaseExceptionGroup):
            waiting += exc.exceptions


def discreet(function: F, asked: Callable[[Mapping[str, Any]], bool] = lambda named: True) -> F:
    """Let no error that leaves `function` carry its arguments, or any local of ours, along.

    Args:
        function: what to wrap, async or not.
        asked: judges by a call's named arguments whether it is to be so; else nothing is touched.
    """

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except BaseException as error:
            if not asked(named):
                raise
            del args, named
            raise forget_locals(error)  # noqa: B904 - it is the same one

    @functools.wraps(function)
    async def call_async(*args: Any, **named: Any) -> Any:
        try:
            return await function(*args, **named)
        except BaseException as error:
            if not asked(named):
                raise
            del args, named
            raise forget_locals(error)  # noqa: B904 - it is the same one

    return cast("F", call_async if inspect.iscoroutinefunction(function) else call)


def discreet_if_asked(function: F) -> F:
    """Let `function`, which takes options, be `discreet` where `scrub_tracebacks` is on among them or in `config`."""
    return discreet(function, _asks_to_scrub)


def _asks_to_scrub(named: Mapping[str, Any]) -> bool:
    in_config = getattr(named.get("config"), "scrub_tracebacks", False)
    return named.get("scrub_tracebacks", in_config) is True


# --------------------------------------------------------------------------- what texts repeat


class Redactor:
    """Knows the secrets of one session, and takes them out of texts, however they are escaped there.

    Each is known by what it belongs to: what is in force is never forgotten, and of what something else has
    taken the place of, the latest are remembered, as a peer may repeat them for a while.
    """

    __slots__ = ("_by_beginning", "_in_force", "_longest", "_sought", "_superseded")

    def __init__(self) -> None:
        self._in_force: dict[str, tuple[str, ...]] = {}
        """By what they belong to."""
        self._superseded: dict[str, None] = {}
        """The latest last."""
        self._sought: tuple[str, ...] = ()
        """All of them."""
        self._longest = 0
        self._by_beginning: dict[str, list[str]] = {}

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._sought)} secrets>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Redactor cannot be pickled: it holds secrets")

    def keep(self, owner: str, texts: Iterable[str]) -> None:
        """Take `texts` for the secrets that `owner` has now, in place of those that it had."""
        new = tuple(dict.fromkeys(_folded(text) for text in texts if len(text) >= SHORTEST))
        old = self._in_force.get(owner, ())
        if new == old:
            return
        self._in_force[owner] = new
        in_force = {text: None for texts in self._in_force.values() for text in texts}
        for text in (*in_force, *old):
            self._superseded.pop(text, None)
        self._superseded.update((text, None) for text in old if text not in in_force)
        size = sum(map(len, self._superseded))
        while len(self._superseded) > MAX_SUPERSEDED or size > MAX_SUPERSEDED_SIZE:
            oldest = next(iter(self._superseded))
            del self._superseded[oldest]
            size -= len(oldest)
        self._sought = (*in_force, *self._superseded)
        self._longest = max(map(len, self._sought), default=0)
        self._by_beginning = {}
        for text in self._sought:
            self._by_beginning.setdefault(text[:SHORTEST], []).append(text)

    def show(self, said: object, limit: int = SHOWN) -> str:
        """Return what a peer sent, fit for a log: rid of secrets, then cut at `limit`, and escaped; None is nothing."""
        text = said if isinstance(said, str | bytes) else "" if said is None else str(said)
        text = text[:LOOKED_AT]
        if isinstance(text, bytes):
            text = text.decode("utf-8", "backslashreplace")
        return printable(self.redact(text), limit)

    def redact(self, text: str) -> str:
        """Return `text` with *** in place of every known secret, also of the beginning of one that was cut.

        It was cut where the text ends, or where a … stands.
        """
        if not self._sought or len(text) < SHORTEST or not (found := self._find(text)):
            return text
        pieces: list[str] = []
        at = 0
        for begin, end in sorted(found):
            if begin >= at:
                pieces += (text[at:begin], MASK)
            at = max(at, end)
        return "".join((*pieces, text[at:]))

    def _find(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for reading in readings(text):
            said, begins, ends = _folded(reading.text), reading.begins, reading.ends
            for secret in self._sought:
                at = said.find(secret)
                while at >= 0:
                    found.append((begins[at], ends[at + len(secret) - 1]))
                    at = said.find(secret, at + 1)
            for whole, rest in _cuts(reading.text):
                for at in range(max(whole - self._longest, 0), whole - SHORTEST + 1):
                    secrets = self._by_beginning.get(said[at : at + SHORTEST], ())
                    if any(secret.startswith(said[at:whole]) for secret in secrets):
                        found.append((begins[at], ends[rest - 1]))
                        break
        return found

    def cleanse(self, error: E) -> E:
        """Take the secrets out of what `error`, and what it came from, say; return it."""
        if not self._sought:
            return error
        for exc in _family(error):
            if isinstance(exc, BaseExceptionGroup):
                continue
            exc.args = tuple(map(self._redact_any, exc.args))
            facts = exc.__dict__
            for name in facts.keys() - _OUR_WORDS if isinstance(exc, NovaError) else facts.keys() & _FOREIGN_WORDS:
                facts[name] = self._redact_any(facts[name])
            if isinstance(exc, NovaError) and (words := exc.words()) is not None:
                exc.args = (words, *exc.args[1:])
        return error

    def _redact_any(self, value: Any) -> Any:
        match value:
            case str():
                return self.redact(value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
            case bytes():
                text = value[:LONGEST].decode("utf-8", "surrogateescape")
                clean = self.redact(text)
                return value if clean is text else clean.encode("utf-8", "surrogateescape")
            case tuple() | list() if type(value) in (tuple, list):
                return type(value)(map(self._redact_any, value))
            case _:
                return value

    def guard_task(self) -> Token[Redactor | None]:
        """Let `redacted` use this redactor, in this task and in those that it starts from now on; see `leave_task`."""
        return _current.set(self)

    def leave_task(self, guarded: Token[Redactor | None]) -> None:
        """Let `redacted` do in this task what it did before `guard_task`."""
        _current.reset(guarded)


_OUR_WORDS = frozenset({"phase", "retry", "rule", "reply"})
"""Fields of our errors that quote nobody; and the answer of a service, which is not printed."""
_FOREIGN_WORDS = frozenset({"reason", "detail", "message", "body", "headers", "problem", "__notes__"})
"""Fields of other errors that may quote somebody."""
_FOLDS = str.maketrans(f"{string.ascii_uppercase}-_", f"{string.ascii_lowercase}+/")
_BEGUN_ESCAPE = re.compile(r"(?:%[0-9A-Fa-f]?|\\(?:[uU][0-9A-Fa-f]{0,7}|x[0-9A-Fa-f]?)?|&#?[0-9A-Za-z]{0,8})\Z")


def _folded(text: str) -> str:
    """Return `text`, as long as it is, without what does not tell secrets apart: case, and the alphabet of a base64."""
    return text.translate(_FOLDS)


def _cuts(text: str) -> list[tuple[int, int]]:
    """Return where a text may have been cut: where what is whole ends, and what was begun with it."""
    marks, at = [len(text)], -1
    while len(marks) <= MAX_CUTS and (at := text.find("…", at + 1)) >= 0:
        marks.append(at)
    ends = {end for mark in marks for end in _before_quotes(text, mark)}
    begun = [(escape.start(), end) for end in ends if (escape := _BEGUN_ESCAPE.search(text, max(end - 10, 0), end))]
    return [*((end, end) for end in ends), *begun]


def _before_quotes(text: str, at: int) -> Iterator[int]:
    """Yield where a quoted text may end: before each of the last few quotes, as one of them may belong to it."""
    yield at
    for end in range(at - 1, max(at - 4, 0), -1):
        if text[end] not in "'\")":
            return
        yield end


_current: ContextVar[Redactor | None] = ContextVar("trio_nova.redactor", default=None)


def redacted(text: str) -> str:
    """Return `text` without the secrets of the session whose task this is; unchanged in other tasks."""
    redactor = _current.get()
    return text if redactor is None else redactor.redact(text)


def learn_here(owner: str, values: Iterable[object]) -> None:
    """Let the session whose task this is take the texts in `values` for the secrets of `owner`; nothing elsewhere."""
    redactor = _current.get()
    if redactor is not None:
        redactor.keep(owner, [text for value in values for text in secrets_in(value)])


def secrets_in(value: object, depth: int = 4) -> Iterator[str]:
    """Yield all texts in `value`: a text, bytes, a Secret, or a collection or object that holds such."""
    match value:
        case str():
            yield value
        case bytes() | bytearray():
            yield bytes(value).decode("utf-8", "replace")
        case Secret():
            yield from secrets_in(value.reveal(), depth)
        case _ if depth == 0:
            return
        case Mapping():
            for inner in value.values():
                yield from secrets_in(inner, depth - 1)
        case list() | tuple() | set() | frozenset():
            for inner in value:
                yield from secrets_in(inner, depth - 1)
        case _:
            fields = (field.name for field in getattr(type(value), "__attrs_attrs__", ()))
            for name in {**dict.fromkeys(fields), **getattr(value, "__dict__", {})}:
                yield from secrets_in(getattr(value, name, None), depth - 1)


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield the login of a URL and its secret parameters, in the forms they travel in."""
    if "@" not in url and "?" not in url:
        return
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    if at:
        user, colon, password = login.partition(":")
        secret = password if colon else user
        yield from (login, secret, unquote(secret))
        plain = f"{unquote(user)}:{unquote(password)}".encode("utf-8", "surrogatepass")
        yield base64.b64encode(plain).decode("ascii")
    for name, value in _parameters(parts.query):
        if not name or is_secret_name(name) or len(value) >= LIKELY:
            yield from (value, unquote_plus(value))


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    """Yield names and values as written; what has no name may well be a token."""
    for parameter in query.split("&"):
        name, equals, value = parameter.partition("=")
        yield (unquote_plus(name), value) if equals else ("", name)


def secret_parameter(query: str) -> str | None:
    """Return the name of a parameter that is likely to be a credential; None where there is none."""
    return next((name for name, _ in _parameters(query) if is_secret_name(name)), None)


def secrets_in_headers(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of headers that are likely to be secret, and what is secret of each."""
    for name, value in headers.items():
        if not is_secret_name(name) and len(value) < LIKELY:
            continue
        yield value
        scheme, _, token = value.partition(" ")  # "Bearer token" (RFC 9110 section 11.4)
        yield token.strip()
        if scheme.lower() == "basic":  # RFC 7617
            with contextlib.suppress(ValueError):
                login = base64.b64decode(token.strip()).decode("utf-8", "replace")
                yield from (login, login.partition(":")[2])
        if "cookie" in name.lower():
            for cookie in value.split(";"):
                yield cookie.partition("=")[2].strip()


# --------------------------------------------------------------------------- tokens among the subprotocols

_MARK = r"(?:bearer|jwt|authori[sz]ation|auth|password|secret|(?:[a-z]+[._-])?(?:token|key))"
_ANNOUNCES = re.compile(_MARK, re.IGNORECASE)
_CARRIES = re.compile(rf"(?:^|[._-]){_MARK}[._-](.{{{SHORTEST},}})", re.IGNORECASE)
_MIXED = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z]).*")
_ROW = re.compile(rf"[A-Za-z0-9]{{{LIKELY},}}")


def hide_tokens(names: Iterable[Any]) -> tuple[Any, ...]:
    """Return the names of subprotocols, with those as `Secret` that are likely to be a token.

    Browsers cannot set headers, so services take a token as a subprotocol. One is taken for a token that

    - is given as a `Secret`;
    - comes right after a name that announces it: `bearer`, `jwt`, `authorization`, `access_token`, `api-key` ...;
    - has such a word in it, and more than 5 characters behind it: `bearer.<token>`,
      `base64url.bearer.authorization.k8s.io.<token>`;
    - or has, between two dots, 20 characters or more that look drawn at random: small and capital letters and
      digits, or so many letters and digits in a row, some of each.
    """
    hidden: list[Any] = []
    announced = False
    for name in names:
        is_token = isinstance(name, str) and (announced or _is_like_a_token(name))
        hidden.append(Secret(name) if is_token else name)
        announced = isinstance(name, str) and _ANNOUNCES.fullmatch(name) is not None
    return tuple(hidden)


def _is_like_a_token(name: str) -> bool:
    return _CARRIES.search(name) is not None or any(map(_is_random, name.split(".")))


def _is_random(text: str) -> bool:
    if len(text) < LIKELY:
        return False
    row = _ROW.search(text)
    return _MIXED.fullmatch(text) is not None or (row is not None and not row[0].isalpha() and not row[0].isdigit())


def secrets_in_subprotocols(names: Iterable[str | Secret[str]]) -> Iterator[str]:
    """Yield what of these names must not be shown: each `Secret`, and the token in it."""
    for name in names:
        if isinstance(name, Secret):
            text = name.reveal()
            yield text
            yield from (part for part in text.split(".") if _is_random(part))
            if (carried := _CARRIES.search(text)) is not None:
                yield carried[1]
                yield carried[1].rpartition(".")[2]
