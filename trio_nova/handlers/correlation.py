"""How an answer is told from the rest, and to which question it belongs."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from trio_nova.core import Strategy, check_bool, check_whole
from trio_nova.errors import ConfigError, RequestFailed
from trio_nova.readings import Answer

__all__ = ["Correlation", "InOrder", "count_ids"]


def _as_tuple(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


@attrs.define(unsafe_hash=True)
class Correlation(Strategy):
    """The default: mappings are matched by the value of a field, "id"; everything else in order.

    A mapping that has a `method` is a question or a notification of the peer's, whatever its id. One that names
    a channel which is subscribed to is data, unless it has one of the `outcomes`: services count their data too.
    """

    field: str = "id"
    outcomes: tuple[str, ...] = attrs.field(default=("result", "error", "success", "status"), converter=_as_tuple)
    """The fields that only an answer has: whether a question went well, or what came of it."""
    first: int = attrs.field(default=1, validator=check_whole, kw_only=True)
    """The smallest id that the session allots."""
    last: int = attrs.field(default=2**53 - 1, validator=check_whole, kw_only=True)
    """The largest one, after which they begin again; by default the largest that JSON keeps (RFC 7493 section 2.2)."""
    text: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether the ids that the session allots are texts."""

    per_link: bool = attrs.field(default=False, validator=check_bool, kw_only=True)
    """Whether ids begin with the first one again on each link."""

    def __attrs_post_init__(self) -> None:
        if self.last <= self.first:
            raise ConfigError("last", f"must be above first, which is {self.first}")

    def request_id(self, message: Any) -> Hashable | None:
        """Return the id that the caller gave a question; None where it has none."""
        return message.get(self.field) if isinstance(message, Mapping) else None

    def tag(self, message: Any, id: Any) -> Any:
        """Return the question with an id of the session's; None where its kind has no place for one."""
        return {**message, self.field: id} if isinstance(message, Mapping) else None

    def read(self, message: Any) -> Answer | None:
        """Return `message` as an answer, with the id of its question; None where it is none, or has no id.

        Where this is overridden, and the id is awaited, it is the last word: else a message that names a channel, and
        has no outcome, is data, whatever id it bears.
        """
        if not isinstance(message, (dict, Mapping)) or "method" in message:
            return None
        id = message.get(self.field)
        return Answer(message, id) if id is not None and isinstance(id, Hashable) else None

    def has_outcome(self, message: Any) -> bool:
        """Return whether a message that names a channel, and bears the id of a question, is an answer all the same."""
        return isinstance(message, (dict, Mapping)) and not message.keys().isdisjoint(self.outcomes)

    def failure(self, reply: Any) -> str | RequestFailed | None:
        """Return why an answer says no, or the very error that the caller shall get; None where it says yes.

        Asked about the answers in which `read` names no error.
        """
        if isinstance(reply, Mapping) and reply.get("error") is not None:
            error = reply["error"]
            return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
        return None


@attrs.define(unsafe_hash=True)
class InOrder(Correlation):
    """For services whose answers carry no id: the first answer belongs to the first question."""

    def request_id(self, message: Any) -> None:
        return None

    def tag(self, message: Any, id: Any) -> None:
        return None

    def read(self, message: Any) -> None:
        return None


def count_ids(correlation: Correlation) -> Iterator[int]:
    """Return the ids that are allotted: each comes round only after all others."""
    return itertools.chain.from_iterable(itertools.repeat(range(correlation.first, correlation.last + 1)))
