"""What a campaign must have seen, or it did not look: states that are rare, and in which sessions go wrong.

A campaign in which nothing is violated proves little if its faults never met a restore, say. `SIGHTS`
lists what it must meet at least once; each is a function over the history of a run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from trio_nova.core.verdict import MAX_RETRY_AFTER
from trio_nova.testing.sim._checks import History
from trio_nova.testing.sim._scenario import BACKOFF_CAP, BACKUP

__all__ = ["SIGHTS", "look", "sight"]

Look = Callable[[History], bool]

SIGHTS: dict[str, Look] = {}
"""Every sight, by its name."""


def sight(name: str) -> Callable[[Look], Look]:
    """Put a sight into the table."""

    def register(look: Look) -> Look:
        SIGHTS[name] = look
        return look

    return register


def look(history: History) -> frozenset[str]:
    """Return the names of what was seen in a run."""
    return frozenset(name for name, seen in SIGHTS.items() if seen(history))


def _outcome(history: History, *outcomes: str, calls: tuple[str, ...] = ("send", "request")) -> bool:
    returned = history.all("client.return")
    return any(record["outcome"] in outcomes and record["call"].split()[0] in calls for record in returned)


@sight("a resume that was accepted")
def _resumed(history: History) -> bool:
    return any(record["accepted"] for record in history.all("server.resume"))


@sight("a resume that was refused")
def _not_resumed(history: History) -> bool:
    return any(not record["accepted"] for record in history.all("server.resume"))


@sight("a message delivered again, as it was not acknowledged")
def _again(history: History) -> bool:
    return any(record.get("again") for record in history.all("client.data"))


@sight("an acknowledgement whose link was gone")
def _too_late(history: History) -> bool:
    return bool(history.all("client.unacked"))


@sight("a channel that ended")
def _completed(history: History) -> bool:
    return bool(history.all("client.completed"))


@sight("a link that ended without a farewell")
def _will(history: History) -> bool:
    return bool(history.all("server.will"))


@sight("a subscription refused for now")
def _busy(history: History) -> bool:
    return bool(history.all("server.busy"))


@sight("a hole filled from elsewhere")
def _filled(history: History) -> bool:
    return any(record["numbers"] for record in history.all("client.page"))


@sight("a hole filled page by page")
def _pages(history: History) -> bool:
    return any(record["more"] is not None for record in history.all("client.page"))


@sight("a wish of the service's to move")
def _moved(history: History) -> bool:
    return bool(history.events("MoveAsked"))


@sight("a gap notice")
def _gap(history: History) -> bool:
    return any(record["event"] == "Gap" for record in history.all("client.notice"))


@sight("a gap of known size")
def _counted_gap(history: History) -> bool:
    return any(record.get("lost") for record in history.all("client.notice"))


@sight("a resync by a snapshot")
def _resync(history: History) -> bool:
    return any(record["event"] == "Resynced" for record in history.all("client.notice"))


@sight("a send of unknown outcome")
def _send_unknown(history: History) -> bool:
    return _outcome(history, "OutcomeUnknown", calls=("send",))


@sight("a request of unknown outcome")
def _request_unknown(history: History) -> bool:
    return _outcome(history, "OutcomeUnknown", calls=("request",))


@sight("a message not sent")
def _not_sent(history: History) -> bool:
    return _outcome(history, "NotSent")


@sight("a message expired")
def _expired(history: History) -> bool:
    return _outcome(history, "Expired")


@sight("a question asked again on the next link")
def _asked_again(history: History) -> bool:
    return any(len(written) > 1 for written in history.ops_written.values())


@sight("a subscription refused, or not answered")
def _rejected(history: History) -> bool:
    return any(record["outcome"] == "SubscriptionRejected" for record in history.all("client.unsubscribed"))


@sight("something cancelled during a restore")
def _cancelled_in_restore(history: History) -> bool:
    restoring: dict[str, bool] = {}
    for record in history.records:
        if record.what == "client.event" and record["event"] == "StateChanged":
            restoring[record["client"]] = record["new"] == "restoring"
        elif record.get("outcome") == "cancelled" and restoring.get(record["client"]):
            return True
    return False


@sight("a link lost during a restore")
def _lost_in_restore(history: History) -> bool:
    return any(r["old"] == "restoring" and r["new"] == "disconnected" for r in history.events("StateChanged"))


@sight("a link lost during authentication")
def _lost_in_auth(history: History) -> bool:
    return any(r["old"] == "authenticating" and r["new"] == "disconnected" for r in history.events("StateChanged"))


@sight("a refresh of the authentication")
def _refreshed(history: History) -> bool:
    return any(record["refresh"] for record in history.events("Authenticated"))


@sight("a refresh that failed")
def _refresh_failed(history: History) -> bool:
    return any(record["refresh"] for record in history.events("AuthUnsuccessful"))


@sight("a refresh of the authentication during a restore")
def _refreshed_in_restore(history: History) -> bool:
    restoring: dict[str, bool] = {}
    for record in history.all("client.event"):
        if record["event"] == "StateChanged":
            restoring[record["client"]] = record["new"] == "restoring"
        elif record["event"] == "AuthStarted" and record["refresh"] and restoring.get(record["client"]):
            return True
    return False


@sight("a failover to another address")
def _failed_over(history: History) -> bool:
    return any(link.host == BACKUP for link in history.links.values())


@sight("a budget of dials exhausted")
def _over_budget(history: History) -> bool:
    due: dict[str, float] = {}
    for record in history.all("client.event"):
        owner = f"{record['client']}.{record['session']}"
        if record["event"] == "RetryScheduled":
            due[owner] = record.at + record["delay"]
        elif record["event"] == "DialStarted" and record.at > due.pop(owner, math.inf) + 0.1:
            # With two clients, one may only have waited for the other to be done with the address.
            return history.scenario.budget is not None and history.scenario.clients == 1
    return False


@sight("more fragments than a message may have")
def _fragments(history: History) -> bool:
    return any(record["how"] == "fragments" for record in history.all("server.illegal"))


@sight("a back-off beyond half of its cap")
def _long_backoff(history: History) -> bool:
    return any(record["delay"] > BACKOFF_CAP / 2 for record in history.events("RetryScheduled"))


@sight("five failures in a row")
def _five_failures(history: History) -> bool:
    return any(record["attempt"] >= 5 for record in history.events("RetryScheduled"))


@sight("a wait that the service asked for")
def _retry_after(history: History) -> bool:
    return any((record["retry_after"] or "").isdigit() for record in history.all("server.refused"))


@sight("a wait that was cut, as the service asked for too much")
def _cut_short(history: History) -> bool:
    return any(record["delay"] >= MAX_RETRY_AFTER for record in history.events("RetryScheduled"))


@sight("a complaint about our pace")
def _slowed(history: History) -> bool:
    return bool(history.events("RateLimitSlowed"))


@sight("a restart that lost the service's memory while somebody was connected")
def _forgetful_restart(history: History) -> bool:
    return any(
        link.opened < record.at and link.broken == record.at
        for record in history.all("server.restart")
        if record["forget"]
        for link in history.links.values()
    )


@sight("a silent peer given up")
def _silent(history: History) -> bool:
    return bool(history.events("PeerSilent"))


@sight("a write that stalled")
def _stalled(history: History) -> bool:
    return any(record["clock"] == "write" for record in history.events("PeerSilent"))


@sight("a frame of which only a part was taken at once")
def _begun(history: History) -> bool:
    return any(record["end"] == "client" for record in history.all("net.part"))


@sight("a frame torn by the end of its link")
def _torn(history: History) -> bool:
    return any(link.sent and link.taken not in {sent.end for sent in link.sent} for link in history.links.values())


@sight("two links of one session alive at the service")
def _overlap(history: History) -> bool:
    links = sorted((link for link in history.links.values() if link.owner), key=lambda link: (link.owner, link.opened))
    return any(
        earlier.owner == later.owner
        and earlier.client_closed is not None
        and (earlier.server_closed is None or earlier.server_closed > later.opened)
        for earlier, later in itertools.pairwise(links)
    )


@sight("a session that stopped reading, as too much waited")
def _lagged(history: History) -> bool:
    return bool(history.events("ConsumerLagged"))


@sight("an illegal frame")
def _illegal(history: History) -> bool:
    return bool(history.all("server.illegal"))


@sight("a rate limit that held something back")
def _limited(history: History) -> bool:
    return bool(history.events("RateLimited"))


@sight("a session that ended by itself")
def _ended(history: History) -> bool:
    return any(record["error"] for record in history.all("client.left"))


@sight("a clock that jumped")
def _jumped(history: History) -> bool:
    return bool(history.events("ClockJumped"))
