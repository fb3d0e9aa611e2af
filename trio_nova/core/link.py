"""The states of one link: a table of transitions, as `core.session` has one for the session.

A session may have two links at once, for as long as one takes the place of the other. The states of the current
one show in the session's.
"""

from __future__ import annotations

import enum

__all__ = ["LINK_TRANSITIONS", "LinkEvent", "LinkState", "state_after"]


class LinkState(enum.StrEnum):
    """Where one link is in its life."""

    UPGRADED = "upgraded"
    AUTHENTICATING = "authenticating"
    RESTORING = "restoring"
    """Subscriptions are being asked for."""
    READY = "ready"
    """Messages of the application flow."""
    DRAINING = "draining"
    """It is lost, or goodbye is being said: nothing new is written, and what still arrives is taken in."""
    ENDED = "ended"
    """What belonged to it is settled."""


class LinkEvent(enum.StrEnum):
    """What can happen to a link."""

    AUTHENTICATE = "authenticate"
    RESTORE = "restore"
    COMPLETE = "complete"
    LEAVE = "leave"
    END = "end"


_S, _E = LinkState, LinkEvent
_AWAY = {_E.LEAVE: _S.DRAINING, _E.END: _S.ENDED}

LINK_TRANSITIONS: dict[LinkState, dict[LinkEvent, LinkState]] = {
    _S.UPGRADED: {_E.AUTHENTICATE: _S.AUTHENTICATING, _E.RESTORE: _S.RESTORING, _E.COMPLETE: _S.READY, **_AWAY},
    _S.AUTHENTICATING: {_E.RESTORE: _S.RESTORING, _E.COMPLETE: _S.READY, **_AWAY},
    _S.RESTORING: {_E.COMPLETE: _S.READY, **_AWAY},
    _S.READY: _AWAY,
    _S.DRAINING: {_E.END: _S.ENDED},
    _S.ENDED: {},
}


def state_after(state: LinkState, event: LinkEvent) -> LinkState:
    """Return the state that follows.

    Raises:
        RuntimeError: the table has none: a defect of trio_nova, never of its user.
    """
    try:
        return LINK_TRANSITIONS[state][event]
    except KeyError:
        raise RuntimeError(f"{event.value!r} is not possible while a link is {state.value}") from None
