"""What the author of an adapter is told: what it is, and which promises of an adapter it keeps."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias
from unittest import SkipTest

import attrs

from trio_nova.adapter import HOOKS, Adapter, overrides_hook
from trio_nova.client import Client
from trio_nova.errors import printable
from trio_nova.secrets import Redactor, secrets_in
from trio_nova.testing import AdapterContract

__all__ = ["CannotLoad", "Outcome", "Promise", "Report", "check_adapter", "load_target"]

Outcome: TypeAlias = Literal["kept", "broken", "not tried"]

_TEST = "test_"
_UNSHOWN = frozenset({"credentials", "headers", "proxy", "ssl_context"})
"""Options that hold secrets."""


class CannotLoad(Exception):
    """There is no adapter where one was said to be."""


# --------------------------------------------------------------------------- the report


@attrs.frozen
class Promise:
    """One sentence of the contract, and what became of it."""

    sentence: str
    outcome: Outcome
    details: tuple[str, ...] = ()
    """How it is broken, or why it was not tried."""


@attrs.frozen
class Report:
    """What was found out about an adapter."""

    name: str
    address: str
    """Without secrets; "" where it names none."""
    hooks: tuple[str, ...]
    """Those that it overrides."""
    defaults: Mapping[str, str]
    """The options that it sets, as they may be shown."""
    promises: tuple[Promise, ...]

    @property
    def broken(self) -> int:
        """How many promises are broken."""
        return sum(promise.outcome == "broken" for promise in self.promises)

    @property
    def exit_status(self) -> int:
        return 1 if self.broken else 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {**attrs.asdict(self), "broken": self.broken}

    def as_text(self) -> str:
        """Return it as lines for a terminal."""
        defaults = [f"{name}={value}" for name, value in self.defaults.items()]
        lines = [
            f"{self.name}, {self.address or 'without an address of its own'}",
            f"{'hooks':11}{', '.join(self.hooks) or 'none'}",
            f"{'defaults':11}{', '.join(defaults) or 'none'}",
            "",
        ]
        for promise in self.promises:
            mark = promise.outcome.upper() if promise.outcome == "broken" else promise.outcome
            lines.append(f"{mark:11}{promise.sentence}")
            lines += [f"{'':11}- {detail}" for detail in promise.details]
        tried = sum(promise.outcome != "not tried" for promise in self.promises)
        verdict = f"{self.broken} of {tried} are broken" if self.broken else f"all {tried} that were tried are kept"
        return "\n".join([*lines, "", f"{len(self.promises)} promises: {verdict}"])


# --------------------------------------------------------------------------- checking


def check_adapter(
    target: Adapter | AdapterContract,
    *,
    credentials: Any = None,
    channel: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> Report:
    """Judge an adapter by the contract, in memory and in virtual time, and report.

    Args:
        target: an adapter; or a contract with samples of what its service says, by which more can be tried.
        credentials: such as it takes; None: those of the contract.
        channel: one that its service has; None: that of the contract.
        params: with which the channel is asked for; None: those of the contract.
    """
    contract = copy.copy(target) if isinstance(target, AdapterContract) else AdapterContract()
    if isinstance(target, Adapter):
        contract.adapter = target
    given = {"credentials": credentials, "channel": channel, "params": params}
    for name, value in given.items():
        if value is not None:
            setattr(contract, name, value)
    redactor = Redactor()
    redactor.keep("credentials", secrets_in(contract.credentials))
    tests = (name for kind in reversed(type(contract).__mro__) for name in vars(kind) if name.startswith(_TEST))
    adapter, kind = contract.adapter, type(contract.adapter)
    return Report(
        name=kind.__name__,
        address=_address(adapter),
        hooks=tuple(hook for hook in HOOKS if overrides_hook(kind, hook)),
        defaults=_shown_defaults(adapter),
        # Each is tried on a copy, as runners of tests have one for each.
        promises=tuple(_try(name, getattr(copy.copy(contract), name), redactor) for name in dict.fromkeys(tests)),
    )


def _try(name: str, test: Callable[[], None], redactor: Redactor) -> Promise:
    sentence = name.removeprefix(_TEST).replace("_", " ")
    try:
        test()
    except Exception as exc:
        errors = list(_leaves(exc))
        if all(isinstance(error, SkipTest) for error in errors):
            return Promise(sentence, "not tried", (redactor.redact(str(errors[0])),))
        return Promise(sentence, "broken", tuple(line for error in errors for line in _lines(error, redactor)))
    return Promise(sentence, "kept")


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _leaves(each)
    else:
        yield exc


def _lines(error: BaseException, redactor: Redactor) -> list[str]:
    """Return what an error says: the contract's own words, or what has left the adapter and should not have."""
    if isinstance(error, AssertionError) and str(error):
        return redactor.redact(str(error)).splitlines()
    return [f"{type(error).__name__} leaves it: {redactor.show(str(error))}"]


def _address(adapter: Adapter) -> str:
    try:
        return str(adapter.url())
    except Exception:  # the contract says what is wrong with it
        return ""


def _shown_defaults(adapter: Adapter) -> dict[str, str]:
    if inspect.iscoroutinefunction(adapter.defaults):
        return {}
    try:
        return {str(name): _shown_option(str(name), value) for name, value in adapter.defaults().items()}
    except Exception:  # the contract says what is wrong with them
        return {}


def _shown_option(name: str, value: Any) -> str:
    if name in _UNSHOWN:
        return "***"
    if isinstance(value, partial):
        value = value.func
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__name__
    return repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__


# --------------------------------------------------------------------------- loading


def load_target(spec: str) -> Adapter | AdapterContract:
    """Return what `module:name` or `file.py:name` stands for: an adapter, that of a client, or a contract.

    Raises:
        CannotLoad: there is none, or its module cannot be imported; says why in one line.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise CannotLoad(f"{spec!r} names no adapter: write module:Adapter, or file.py:Adapter")
    try:
        found: Any = _import(place)
    except (Exception, SystemExit) as exc:
        raise CannotLoad(f"{place} cannot be imported: {type(exc).__name__}: {printable(str(exc))}") from exc
    for part in name.split("."):
        if not hasattr(found, part):
            raise CannotLoad(f"{place} has no {name}")
        found = getattr(found, part)
    if isinstance(found, type) and issubclass(found, Client):
        if not hasattr(found, "adapter"):
            raise CannotLoad(f"{name} is a client without an adapter of its own")
        found = found.adapter
    if isinstance(found, type) and issubclass(found, AdapterContract):
        if not isinstance(getattr(found, "adapter", None), Adapter):
            raise CannotLoad(f"{name} is a contract without an adapter: set one on the class")
        return found()
    if isinstance(found, type) and issubclass(found, Adapter):
        try:
            found = found()
        except TypeError as exc:
            raise CannotLoad(f"{name} needs arguments: name an instance ({printable(str(exc))})") from exc
        except Exception as exc:
            raise CannotLoad(f"{name} cannot be made: {type(exc).__name__}: {printable(str(exc))}") from exc
    if not isinstance(found, Adapter):
        raise CannotLoad(f"{spec} is no adapter, but a {type(found).__name__}")
    return found


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if os.getcwd() not in sys.path:  # as `python -m` has it; the installed command has not
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # attrs and dataclasses look their own module up
    spec.loader.exec_module(module)
    return module
