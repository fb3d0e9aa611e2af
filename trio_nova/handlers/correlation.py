"""How an answer is told from the rest, and to which question it belongs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from trio_nova.errors import RequestFailed

__all__ = ["Correlation", "InOrder", "ids_as_written", "written_ids"]


def _as_tuple(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


@attrs.frozen
class Correlation:
    """The default: mappings are matched by the value of a field, "id"; everything else in order.

    A mapping that has a `method` is a question or a notification of the peer's, whatever its id. One that names
    a channel which is subscribed to is data, unless it has one of the `outcomes`: services count their data too.
    """

    field: str = "id"
    outcomes: tuple[str, ...] = attrs.field(default=("result", "error", "success", "status"), converter=_as_tuple)
    """The fields that only an answer has: whether a question went well, or what came of it."""

    def request_id(self, message: Any) -> Hashable | None:
        """Return the id that the caller gave a question; None where it has none."""
        return message.get(self.field) if isinstance(message, Mapping) else None

    def tag(self, message: Any, id: int) -> Any:
        """Return the question with an id of the session's; None where its kind has no place for one."""
        return {**message, self.field: id} if isinstance(message, Mapping) else None

    def reply_id(self, message: Any) -> Hashable | None:
        """Return the id of the question that `message` answers; None where it is no answer, or has no id."""
        if not isinstance(message, (dict, Mapping)) or "method" in message:
            return None
        id = message.get(self.field)
        return id if isinstance(id, Hashable) else None

    def has_outcome(self, message: Any) -> bool:
        """Return whether a message that names a channel, and may bear the id of a question, is an answer all the same.

        Not asked where `reply_id` is overridden and returns an id that is awaited: then that is the last word.
        """
        return isinstance(message, (dict, Mapping)) and not message.keys().isdisjoint(self.outcomes)

    def failure(self, reply: Any) -> str | RequestFailed | None:
        """Return why an answer says no, or the very error that the caller shall get; None where it says yes."""
        if isinstance(reply, Mapping) and reply.get("error") is not None:
            error = reply["error"]
            return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
        return None

    def parts(self, message: Any) -> Sequence[Any] | None:
        """Return the messages that one frame brought together, in their order; None where it is one message."""
        return None


@attrs.frozen
class InOrder(Correlation):
    """For services whose answers carry no id: the first answer belongs to the first question."""

    def request_id(self, message: Any) -> None:
        return None

    def tag(self, message: Any, id: int) -> None:
        return None

    def reply_id(self, message: Any) -> None:
        return None


def written_ids(correlation: Correlation, question: Any, id: int, tagged: Any) -> tuple[Hashable, ...]:
    """Return the forms in which an answer may bear `id`, which `tag` has put into a question.

    That is how it can be read in the question. A hook may read there something that is not the id, but what is
    the id, or its text, or changes with it, is. Where none finds it, as a hook that reads answers alone: the id,
    and its text.
    """
    for hook in (correlation.reply_id, correlation.request_id):
        found = _read(hook, tagged)
        if found is not None and (str(found) == str(id) or _read(hook, correlation.tag(question, id + 1)) != found):
            return (found,)
    return (id, str(id))


def ids_as_written(correlation: Correlation, ids: tuple[Hashable, ...], written: Any) -> tuple[Hashable, ...]:
    """Return the forms of an id as they stand in `written`, which the codec read in what was sent.

    JSON has no form of its own for a UUID, say, and `encode_message` may have changed an id.
    """
    for hook in (correlation.request_id, correlation.reply_id):
        found = _read(hook, written)
        if found is not None and (type(ids[0]) not in (int, str) or str(ids[0]) in str(found)):
            return (found,)
    return ids


def _read(hook: Callable[[Any], Hashable | None], question: Any) -> Hashable | None:
    try:
        found = hook(question)
        hash(found)
    except Exception:  # it reads answers, and this is none
        return None
    return found
