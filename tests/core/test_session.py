from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.session import (
    TERMINAL,
    TRANSITIONS,
    IllegalEvent,
    SessionEvent,
    State,
    StateMachine,
    state_diagram,
)


def reachable(start: State) -> set[State]:
    """Return every state that some sequence of events leads to, `start` included."""
    found, fresh = {start}, [start]
    while fresh:
        ahead = set(TRANSITIONS[fresh.pop()].values()) - found
        found |= ahead
        fresh += ahead
    return found


@pytest.mark.parametrize(("state", "event"), list(product(State, SessionEvent)))
def test_an_event_is_in_the_table_or_refused_without_change(state: State, event: SessionEvent) -> None:
    machine = StateMachine(state)
    if event in TRANSITIONS[state]:
        assert machine.allows(event)
        assert machine.apply(event) is machine.state is TRANSITIONS[state][event]
    else:
        assert not machine.allows(event)
        with pytest.raises(IllegalEvent) as caught:
            machine.apply(event)
        assert (caught.value.state, caught.value.event) == (state, event)
        assert machine.state is state


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached_and_left_for_a_terminal_one(state: State) -> None:
    assert state in reachable(State.INITIALIZED)
    assert reachable(state) & TERMINAL


def test_every_event_is_of_use() -> None:
    assert {event for events in TRANSITIONS.values() for event in events} == set(SessionEvent)


def test_what_is_over_stays_over() -> None:
    assert {State.CLOSED, State.FAILED} == TERMINAL
    assert all(not TRANSITIONS[state] for state in TERMINAL)


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL))
def test_a_session_that_is_not_over_can_give_up_at_any_time(state: State) -> None:
    assert StateMachine(state).apply(SessionEvent.GIVE_UP) is State.FAILED


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL - {State.CLOSING}))
def test_a_session_that_is_not_closing_can_be_closed_at_any_time(state: State) -> None:
    machine = StateMachine(state)
    machine.apply(SessionEvent.CLOSE)
    assert machine.apply(SessionEvent.END) is State.CLOSED


def test_a_session_that_is_closing_does_not_dial_again() -> None:
    assert reachable(State.CLOSING) == {State.CLOSING, State.CLOSED, State.FAILED}


def test_a_link_is_ready_only_after_the_upgrade_and_after_authentication_and_restoring_if_there_are_any() -> None:
    before = {state for state, events in TRANSITIONS.items() if State.READY in events.values()}
    assert before == {State.CONNECTED, State.AUTHENTICATING, State.RESTORING}


@pytest.mark.parametrize(
    "setup",
    [
        [],
        [SessionEvent.AUTHENTICATE],
        [SessionEvent.RESTORE],
        [SessionEvent.AUTHENTICATE, SessionEvent.RESTORE],
    ],
)
def test_a_session_comes_up_drops_and_comes_up_again(setup: list[SessionEvent]) -> None:
    machine = StateMachine()
    up = [SessionEvent.DIAL, SessionEvent.UPGRADE, *setup, SessionEvent.COMPLETE]
    for event in [*up, SessionEvent.LOSE, SessionEvent.RETRY, *up]:
        machine.apply(event)
    assert machine.state is State.READY


@given(st.lists(st.sampled_from(SessionEvent), max_size=40))
def test_a_lost_link_is_never_dialled_again_without_a_wait(events: list[SessionEvent]) -> None:
    machine, lost = StateMachine(), False
    for event in events:
        if machine.allows(event):
            before = machine.state
            machine.apply(event)
            lost = lost or event is SessionEvent.LOSE
            if machine.state is State.CONNECTING and lost:
                assert before is State.RECONNECTING


def test_an_illegal_event_says_what_was_not_possible() -> None:
    with pytest.raises(IllegalEvent, match="'dial' is not possible while closed"):
        StateMachine(State.CLOSED).apply(SessionEvent.DIAL)


def test_the_diagram_has_one_arrow_for_each_entry_of_the_table() -> None:
    lines = state_diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> INITIALIZED"]
    arrows = {
        f"    {state.name} --> {target.name}: {event.value}"
        for state, events in TRANSITIONS.items()
        for event, target in events.items()
    }
    ends = {f"    {state.name} --> [*]" for state in TERMINAL}
    assert sorted(lines[2:]) == sorted(arrows | ends)
