"""Who we are, on every link anew."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["AuthHandler"]


@attrs.define(eq=False)
class AuthHandler:
    """The default: no authentication."""

    def encode_auth_request(self, credentials: Any) -> Any:
        """Return the message that authenticates, None where nothing is to be sent."""
        return None

    def handle_auth_response(self, message: Any) -> bool | None:
        """Return whether `message` accepts (True) or refuses (False) the request; None where it is no answer to it."""
        return None

    def needs_reauthentication(self, now: float) -> bool:
        """Return whether the credentials given should be renewed."""
        return False
