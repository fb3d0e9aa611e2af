"""What to make of messages."""

from __future__ import annotations

from typing import Any

import attrs

from trio_nova.core import Strategy
from trio_nova.messages import Answered

__all__ = ["MessageHandler"]


@attrs.define(eq=False)
class MessageHandler(Strategy):
    """The default: messages go to whoever receives.

    Where `handle_message` is overridden it sees every message first, in order, in a task of its own.
    The message is then offered to `receive` as well; until somebody has called that, the inbox keeps
    the newest and forgets the oldest, since the handler has seen them.
    """

    def handle_message(self, kind: str, message: Any) -> Answered:
        """Answer a message; `kind` is "text" or "binary", `message` is what the codec made of it."""
        return None

    def validate_message(self, message: Any) -> Any:
        """Return the message, or another in its place.

        Raises:
            BadMessage: it is not acceptable. It is then reported and not delivered; the link stays.
        """
        return message

    def message_type(self, message: Any) -> str:
        """Return the type of a message, "" where it has none: `type`, `method` or `action` of a mapping."""
        if isinstance(message, dict):
            for key in ("type", "method", "action"):
                if isinstance(found := message.get(key), str):
                    return found
        return ""

    def encode_message(self, message: Any) -> Any:
        """Return what is handed to the codec in place of `message`, once, as it is written.

        So a message that has to wait is encoded for the link that it leaves on, from a copy made at the call; and
        what this raises reaches whoever sent it.
        """
        return message
