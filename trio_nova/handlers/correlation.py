"""How an answer is told from the rest, and to which question it belongs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import attrs

from trio_nova.errors import RequestFailed

__all__ = ["Correlation", "InOrder"]


@attrs.frozen
class Correlation:
    """The default: mappings are matched by the value of a field, "id"; everything else in order.

    A mapping that has a `method` is a question or a notification of the peer's, whatever its id.
    """

    field: str = "id"

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
