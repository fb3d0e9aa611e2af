"""How a service is told what we want to hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["SubscriptionHandler"]


@attrs.define(eq=False)
class SubscriptionHandler:
    """The default: `{"type": "subscribe", "channel", "params"}` and `{"type": "unsubscribe", "channel"}`."""

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        """Return the message that asks for `channel`."""
        return {"type": "subscribe", "channel": channel, "params": dict(params)}

    def encode_unsubscription_request(self, channel: str) -> Any:
        """Return the message that gives `channel` up."""
        return {"type": "unsubscribe", "channel": channel}
