"""What is tried: a table of situations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from tests.survival import faults
from tests.survival.faults import Script


@attrs.frozen(kw_only=True)
class Situation:
    """What every client is brought into."""

    name: str
    title: str
    story: str
    """What happens, for the page."""
    script: Script
    recovers: bool = True
    """Whether a client is to have messages again afterwards, for which it is given time; else it is left."""
    way: Literal["cancel", "raise"] = "cancel"
    """How the client is left: its scope is cancelled, or a task of the program raises in the midst of its loop."""
    tls: bool = False
    blocks_sender: bool = False
    """Whether the client sends so much that its sender blocks as soon as the service does not read."""
    slow: bool = False
    """Whether the client's program is ten times too slow for what comes."""
    size: int = 100
    """Bytes of the service's messages, about."""
    counts_dials: bool = False
    """Whether the service sees all dials of the outage."""
    alone: bool = False
    """Whether nothing else is measured meanwhile, since a client may keep the machine busy."""
    most_rounds: int = 1_000
    """Where few rounds are enough, since the figures hardly vary, or a lap takes long."""


_TO_RECOVER_FROM = (
    Situation(
        name="rst",
        title="reset",
        story="The link is reset (RST). A dial would be served at once.",
        script=faults.reset,
    ),
    Situation(
        name="fin",
        title="end without goodbye",
        story="The link ends (FIN) without a close frame. A dial would be served at once.",
        script=faults.finish,
    ),
    Situation(
        name="restart",
        title="restart",
        story="The service says goodbye (1012) and refuses connections for 3 s.",
        script=faults.restart,
    ),
    Situation(
        name="accept-then-close",
        title="accept, then close",
        story="The link ends (FIN); for 3 s, each dial is upgraded and closed at once (1013, try again later).",
        script=faults.accept_then_close,
        counts_dials=True,
        alone=True,
        most_rounds=3,
    ),
    Situation(
        name="429",
        title="429 with Retry-After",
        story="The link ends (FIN); for 3 s, each dial is answered with 429, and in `Retry-After` what is left.",
        script=faults.too_many_requests,
        counts_dials=True,
    ),
    Situation(
        name="503",
        title="503",
        story="The link ends (FIN); for 3 s, each dial is answered with 503.",
        script=faults.unavailable,
        counts_dials=True,
    ),
    Situation(
        name="tls-fin",
        title="FIN in the TLS handshake",
        story="Over TLS: the link ends; for 3 s, each dial ends (FIN) after the client's hello.",
        script=faults.hang_up_in_tls,
        tls=True,
        counts_dials=True,
    ),
    Situation(
        name="black-hole",
        title="black hole",
        story="The service neither reads nor writes on the link, which stays open. A dial would be served at once.",
        script=faults.fall_silent,
    ),
    Situation(
        name="black-hole-sender",
        title="black hole, sender blocked",
        story="The same, while the program sends 64 KiB 50 times a second, so that its sender blocks.",
        script=faults.fall_silent,
        blocks_sender=True,
    ),
    Situation(
        name="mute-close",
        title="mute closing handshake",
        story="The service says goodbye (1001), then neither reads nor hangs up. A dial would be served at once.",
        script=faults.close_and_fall_silent,
    ),
)

_TO_BE_LEFT_IN = (
    Situation(
        name="leave-well",
        title="all is well",
        story="The client is left while messages flow.",
        script=faults.stay_well,
        recovers=False,
        most_rounds=2,
    ),
    Situation(
        name="leave-mute",
        title="goodbye not answered",
        story="The client is left; the service goes on sending, and neither answers a goodbye nor hangs up.",
        script=faults.ignore_goodbyes,
        recovers=False,
        most_rounds=2,
    ),
    Situation(
        name="leave-black-hole",
        title="black hole",
        story="The client is left 1.5 s after the link has fallen silent.",
        script=faults.be_silent,
        recovers=False,
        most_rounds=2,
    ),
    Situation(
        name="leave-black-hole-sender",
        title="black hole, sender blocked",
        story="The same, with a sender that is blocked by then.",
        script=faults.be_silent,
        blocks_sender=True,
        recovers=False,
        most_rounds=2,
    ),
    Situation(
        name="leave-down",
        title="service down",
        story="The client is left 1.5 s after the service has gone down: it waits for its next attempt.",
        script=faults.be_down,
        recovers=False,
        most_rounds=2,
    ),
    Situation(
        name="leave-hanging",
        title="dial without answer",
        story="The client is left while its dial is not answered.",
        script=faults.leave_dials_hanging,
        recovers=False,
        most_rounds=2,
    ),
)

_TO_BE_SLOW_IN = (
    Situation(
        name="slow-small",
        title="slow consumer, 200 B",
        story="For 6 s, 1,000 messages of 200 B a second are sent to a program that takes 100.",
        script=faults.go_on_slowly,
        size=200,
        slow=True,
        recovers=False,
        most_rounds=3,
    ),
    Situation(
        name="slow-big",
        title="slow consumer, 4 KiB",
        story="The same, with messages of 4 KiB.",
        script=faults.go_on_slowly,
        size=4096,
        slow=True,
        recovers=False,
        most_rounds=3,
    ),
)

_TO_FAIL_IN = tuple(
    attrs.evolve(each, name=each.name.replace("leave", "raise"), way="raise")
    for each in _TO_BE_LEFT_IN
    if each.script in (faults.stay_well, faults.ignore_goodbyes, faults.be_silent)
)
"""Where a client has a link, and the program can so raise in the midst of it."""

TO_RECOVER_FROM, TO_BE_LEFT_IN, TO_FAIL_IN, TO_BE_SLOW_IN = (
    {each.name: each for each in group} for group in (_TO_RECOVER_FROM, _TO_BE_LEFT_IN, _TO_FAIL_IN, _TO_BE_SLOW_IN)
)
SITUATIONS: Mapping[str, Situation] = {**TO_RECOVER_FROM, **TO_BE_LEFT_IN, **TO_FAIL_IN, **TO_BE_SLOW_IN}
