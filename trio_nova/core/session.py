"""The states of a session: one table of transitions.

An event that the table does not list for a state is refused and changes nothing. The diagram in the
documentation is drawn from this table.
"""

from __future__ import annotations

import enum

import attrs

__all__ = ["TERMINAL", "TRANSITIONS", "IllegalEvent", "SessionEvent", "State", "StateMachine", "state_diagram"]


class State(enum.StrEnum):
    """Where a session is in its life."""

    INITIALIZED = "initialized"
    CONNECTING = "connecting"
    """Dialling: from the name look-up to the upgrade."""
    CONNECTED = "connected"
    """The upgrade is done; setup has not begun."""
    AUTHENTICATING = "authenticating"
    RESTORING = "restoring"
    """Subscriptions are being asked for again."""
    READY = "ready"
    """Application messages flow."""
    DISCONNECTED = "disconnected"
    """The link is lost, or the attempt failed; what follows is being decided."""
    RECONNECTING = "reconnecting"
    """Waiting for the next attempt."""
    CLOSING = "closing"
    """Saying goodbye."""
    CLOSED = "closed"
    """Over, on purpose."""
    FAILED = "failed"
    """Over, with an error."""


class SessionEvent(enum.StrEnum):
    """What can happen to a session."""

    DIAL = "dial"
    UPGRADE = "upgrade"
    AUTHENTICATE = "authenticate"
    RESTORE = "restore"
    COMPLETE = "complete"
    LOSE = "lose"
    """The link, or the attempt to get one, is lost."""
    RETRY = "retry"
    CLOSE = "close"
    END = "end"
    GIVE_UP = "give up"


_S, _E = State, SessionEvent
_STOP = {_E.CLOSE: _S.CLOSING, _E.GIVE_UP: _S.FAILED}
_LEAVE = {_E.LOSE: _S.DISCONNECTED, **_STOP}

TRANSITIONS: dict[State, dict[SessionEvent, State]] = {
    _S.INITIALIZED: {_E.DIAL: _S.CONNECTING, **_STOP},
    _S.CONNECTING: {_E.UPGRADE: _S.CONNECTED, **_LEAVE},
    _S.CONNECTED: {
        _E.AUTHENTICATE: _S.AUTHENTICATING,
        _E.RESTORE: _S.RESTORING,
        _E.COMPLETE: _S.READY,
        **_LEAVE,
    },
    _S.AUTHENTICATING: {_E.RESTORE: _S.RESTORING, _E.COMPLETE: _S.READY, **_LEAVE},
    _S.RESTORING: {_E.COMPLETE: _S.READY, **_LEAVE},
    _S.READY: _LEAVE,
    _S.DISCONNECTED: {_E.RETRY: _S.RECONNECTING, _E.UPGRADE: _S.CONNECTED, **_STOP},
    _S.RECONNECTING: {_E.DIAL: _S.CONNECTING, **_STOP},
    _S.CLOSING: {_E.END: _S.CLOSED, _E.GIVE_UP: _S.FAILED},
    _S.CLOSED: {},
    _S.FAILED: {},
}

TERMINAL = frozenset(state for state, events in TRANSITIONS.items() if not events)


class IllegalEvent(RuntimeError):
    """An event that the table does not list: a defect of trio_nova, never of its user."""

    def __init__(self, state: State, event: SessionEvent) -> None:
        super().__init__(f"{event.value!r} is not possible while {state.value}")
        self.state = state
        self.event = event


@attrs.define
class StateMachine:
    """The state of one session."""

    state: State = State.INITIALIZED

    def apply(self, event: SessionEvent) -> State:
        """Move on and return the new state.

        Raises:
            IllegalEvent: the event is not possible now; the state is unchanged.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalEvent(self.state, event) from None
        return self.state

    def allows(self, event: SessionEvent) -> bool:
        """Return whether `apply(event)` would succeed."""
        return event in TRANSITIONS[self.state]


def state_diagram() -> str:
    """Draw the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.INITIALIZED.name}"]
    for state, events in TRANSITIONS.items():
        lines += [f"    {state.name} --> {target.name}: {event.value}" for event, target in events.items()]
        if not events:
            lines.append(f"    {state.name} --> [*]")
    return "\n".join(lines)
