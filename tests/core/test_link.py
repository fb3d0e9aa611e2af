from __future__ import annotations

from itertools import product

import pytest

from trio_nova._session import _SHOWS_AS
from trio_nova.core.link import LINK_TRANSITIONS, LinkEvent, LinkState, state_after
from trio_nova.core.session import TRANSITIONS, SessionEvent, State

SHOWN_AS = {
    LinkState.UPGRADED: State.CONNECTED,
    LinkState.AUTHENTICATING: State.AUTHENTICATING,
    LinkState.RESTORING: State.RESTORING,
    LinkState.READY: State.READY,
}
"""The session's state while its current link is in one of these; a link that is being left is no longer the current."""


def reachable(start: LinkState) -> set[LinkState]:
    """Return every state that some sequence of events leads to, `start` included."""
    found, fresh = {start}, [start]
    while fresh:
        ahead = set(LINK_TRANSITIONS[fresh.pop()].values()) - found
        found |= ahead
        fresh += ahead
    return found


@pytest.mark.parametrize(("state", "event"), list(product(LinkState, LinkEvent)))
def test_an_event_is_in_the_table_or_refused_by_the_names_of_both(state: LinkState, event: LinkEvent) -> None:
    if event in LINK_TRANSITIONS[state]:
        assert state_after(state, event) is LINK_TRANSITIONS[state][event]
    else:
        with pytest.raises(RuntimeError, match=f"^'{event.value}' is not possible while a link is {state.value}$"):
            state_after(state, event)


def test_the_table_has_a_row_for_every_state_and_a_use_for_every_event() -> None:
    assert set(LINK_TRANSITIONS) == set(LinkState)
    assert {event for events in LINK_TRANSITIONS.values() for event in events} == set(LinkEvent)


@pytest.mark.parametrize("state", LinkState)
def test_every_state_can_be_reached_and_ends(state: LinkState) -> None:
    assert state in reachable(LinkState.UPGRADED)
    assert LinkState.ENDED in reachable(state)


@pytest.mark.parametrize("state", LinkState)
def test_no_state_comes_twice(state: LinkState) -> None:
    assert state not in {after for ahead in LINK_TRANSITIONS[state].values() for after in reachable(ahead)}


@pytest.mark.parametrize("state", sorted(SHOWN_AS))
def test_a_link_that_is_up_can_be_left_or_end_at_any_time(state: LinkState) -> None:
    assert state_after(state, LinkEvent.LEAVE) is LinkState.DRAINING
    assert state_after(state, LinkEvent.END) is LinkState.ENDED


def test_what_is_being_left_can_only_end_and_what_has_ended_stays_so() -> None:
    assert set(LINK_TRANSITIONS[LinkState.DRAINING]) == {LinkEvent.END}
    assert LINK_TRANSITIONS[LinkState.ENDED] == {}


# --------------------------------------------------------------------------- what shows in the session


@pytest.mark.parametrize("state", sorted(SHOWN_AS))
def test_what_happens_to_the_current_link_is_possible_for_the_session_and_leads_to_the_same(state: LinkState) -> None:
    shown = {event: after for event, after in LINK_TRANSITIONS[state].items() if event in _SHOWS_AS}
    assert {_SHOWS_AS[event]: SHOWN_AS[after] for event, after in shown.items()} == {
        event: after for event, after in TRANSITIONS[SHOWN_AS[state]].items() if event in _SHOWS_AS.values()
    }


def test_all_that_happens_to_a_link_that_is_up_shows_but_for_its_end() -> None:
    assert set(LinkEvent) - set(_SHOWS_AS) == {LinkEvent.LEAVE, LinkEvent.END}


@pytest.mark.parametrize("state", sorted(SHOWN_AS))
def test_a_session_can_lose_its_current_link_and_go_on_with_another_that_is_on_its_way(state: LinkState) -> None:
    lost = TRANSITIONS[SHOWN_AS[state]][SessionEvent.LOSE]
    upgraded = TRANSITIONS[lost][SessionEvent.UPGRADE]
    assert upgraded is SHOWN_AS[LinkState.UPGRADED]
    for event, after in LINK_TRANSITIONS[LinkState.UPGRADED].items():
        if event in _SHOWS_AS:
            assert TRANSITIONS[upgraded][_SHOWS_AS[event]] is SHOWN_AS[after]
