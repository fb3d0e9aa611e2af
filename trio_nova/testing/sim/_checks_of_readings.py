"""More invariants: of what a service says beside answers and data, and of what is asked for elsewhere.

Those of acknowledgements, ends, farewells and positions are about the broker; those of books, back-fills, challenges,
tokens and wishes to move are about the exchange. Both services also tell of what no journal could show, as breaches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from trio_nova.testing._frames import ClosePayload
from trio_nova.testing.sim._checks import (
    LATE,
    SLACK,
    FeedHistory,
    Found,
    History,
    LinkHistory,
    invariant,
)
from trio_nova.testing.sim._exchange import digest_book
from trio_nova.testing.sim._journal import Record
from trio_nova.testing.sim._scenario import CLOSE_TIMEOUT, SETUP_TIMEOUT

__all__: list[str] = []

AT_ONCE = 0.001
"""Seconds within which what follows without a wait has happened."""


def _owner(record: Record) -> str:
    return f"{record['client']}.{record['session']}"


# --------------------------------------------------------------------------- acknowledgements


@invariant("A1", "nothing is acknowledged before the consumer has processed it")
def _processed(history: History) -> Found:
    done: dict[tuple[str, str, int], float] = {}
    for record in history.records:
        if record.what == "client.acked":
            done.setdefault((_owner(record), record["channel"], record["number"]), record.at)
        elif record.what == "server.acked":
            owner = history.links[record["link"]].owner
            if (owner, record["channel"], record["number"]) not in done:
                yield record.at, f"{record['number']} of {record['channel']} was acknowledged, and was not processed"


@invariant("A2", "what is delivered is acknowledged in the end: what was not is delivered again, and seen")
def _acknowledged(history: History) -> Found:
    for rest in history.all("client.rest"):
        said = {(r["channel"], r["number"]): r.at for r in history.all("server.data")}
        living = [link for link in history.links.values() if link.owner == _owner(rest) and link.lives_at(rest.at)]
        for number in (str(link.number) for link in living):
            for channel, unacked in rest.get("unacked", {}).get(number, ()):
                feeds = [feed for feed in history.feeds if feed.channel == channel and feed.is_open_at(rest)]
                if feeds and said.get((channel, unacked), math.inf) < rest.at - LATE:
                    yield rest.at, f"{feeds[0]}: {unacked} is still not acknowledged"


# --------------------------------------------------------------------------- subscriptions


@invariant("U5", "a feed whose channel has ended gets all that came before, and the end; and is not asked for again")
def _ended(history: History) -> Found:
    for feed in history.feeds:
        if feed.completed < math.inf:
            yield from _completed(history, feed)
    illegal = {record["link"] for record in history.all("server.illegal")}
    for link, read_at, found in history.heard(rb'"op":"ended","filter":"([^"]*)"'):
        if history.scenario.lags or link.number in illegal:
            continue  # it may come to the end later, and what stands behind an illegal frame is not heard
        for feed in history.feeds:
            is_meant = feed.owner == link.owner and feed.channel == found[1].decode() and feed.confirmed < read_at
            if is_meant and min(feed.ended, history.end) > read_at + LATE and feed.completed > read_at + LATE:
                yield read_at, f"{feed} has ended, and was not told"
    for number, asked in history.asked_by_link.items():
        for record, at in asked:
            for channel in record["channels"] if record["verb"] == "subscribe" else ():
                open_feeds = [
                    feed
                    for feed in history.feeds
                    if feed.owner == history.links[number].owner
                    and feed.channel == channel
                    and feed.began <= at <= feed.ended
                ]
                if open_feeds and all(feed.completed < at for feed in open_feeds):
                    yield at, f"link {number}: {channel} was asked for again, though it has ended"


def _completed(history: History, feed: FeedHistory) -> Found:
    ends = [
        record
        for record in history.all("server.ended")
        if record["channel"] == feed.channel
        and history.links[record["link"]].owner == feed.owner
        and feed.began <= record.at <= feed.completed
    ]
    if not ends:
        yield feed.completed, f"{feed} has ended, and the service has not said so"
        return
    link, ended = ends[-1]["link"], ends[-1].at
    said = [
        record["number"]
        for record in history.all("server.data")
        if record["channel"] == feed.channel and link in record["links"] and feed.confirmed < record.at <= ended
    ]
    got = {record["number"] for record in feed.items if record.what == "client.data"}
    if missing := [number for number in said if number not in got]:
        yield feed.completed, f"{feed} has ended, and {missing} had been said before"


@invariant("U6", "what is refused for now is asked for again, and not before the service wants it")
def _asked_later(history: History) -> Found:
    for busy in history.all("server.busy"):
        until = busy.at + busy["retry_after"] - SLACK
        anew = [f.began for f in history.feeds if f.channel == busy["channel"] and busy.at < f.began < until]
        for record, at in history.asked_by_link[busy["link"]]:
            is_of_it = record["verb"] == "subscribe" and busy["channel"] in record["channels"]
            if is_of_it and busy.at < at < until and not anew:
                yield at, f"link {busy['link']}: {busy['channel']} was asked for {at - busy.at:.3f} s after a refusal"
    for record in history.all("client.unsubscribed") if history.scenario.server == "broker" else ():
        if record["outcome"] == "SubscriptionRejected":
            yield record.at, f"{record['channel']} was never refused for good, and its feed ended so"


# --------------------------------------------------------------------------- ends of links


@invariant("F1", "the farewell is said on each deliberate leave, as the last message, and on no other")
def _farewells(history: History) -> Found:
    if history.scenario.server != "broker":
        return
    reasons: dict[str, list[float]] = defaultdict(list)
    watched: dict[str, list[float]] = defaultdict(list)
    for record in history.records:
        is_wish = record.what == "client.leave" or record.get("call") == "reconnect"
        if is_wish or record.get("event") in ("MoveAsked", "AuthUnsuccessful", "AuthStarted"):
            reasons[_owner(record)].append(record.at)
        elif record.what == "client.opened":
            watched[_owner(record)].append(record.at)
    for link in history.links.values():
        said = [sent for sent in link.messages if '"disconnect"' in str(sent.frame)]
        if said and said[0] is not link.messages[-1]:
            yield said[0].at, f"link {link.number}: something was said behind the farewell"
        is_watched = any(at < said[0].at - LATE for at in watched[link.owner]) if said else False
        if is_watched and not any(said[0].at - CLOSE_TIMEOUT - SLACK <= at <= said[0].at for at in reasons[link.owner]):
            yield said[0].at, f"link {link.number}: a farewell, and nobody wanted to leave"
    for record in history.all("client.leave"):
        for link in history.links.values():
            is_left = link.owner == _owner(record) and record.at > history.healed_at + LATE and _is_up(link, record.at)
            if is_left and not any('"disconnect"' in str(sent.frame) for sent in link.messages):
                yield record.at, f"link {link.number} was left without a farewell"


def _is_up(link: LinkHistory, at: float) -> bool:
    is_closing = any(isinstance(sent.frame, ClosePayload) and sent.at < at for sent in link.sent)
    is_known = link.confirmation is not None and (link.when_read(link.confirmation) or math.inf) < at - LATE
    ends = [end for end in (link.broken, link.server_closed) if end is not None and end < at]
    return is_known and not is_closing and link.lives_at(at) and not ends


@invariant("G1", "a link that the service wants left is left, for where the service says, once")
def _moves(history: History) -> Found:
    for link, read_at, found in history.heard(rb'"op":"goaway","url":(?:null|"([^"]*)")'):
        closed = math.inf if link.client_closed is None else link.client_closed
        if closed > read_at + CLOSE_TIMEOUT + SLACK and read_at < history.end - CLOSE_TIMEOUT - SLACK:
            yield read_at, f"link {link.number} was not left, though the service wants that"
        url = (found[1] or b"").decode()
        following = next((e for e in history.links.values() if e.owner == link.owner and e.opened > read_at), None)
        if url.endswith("/moved") and following is not None and following.path == "/moved":
            after = [e for e in history.links.values() if e.owner == link.owner and e.opened > following.opened]
            told = [at for other, at, _ in history.heard(rb'/moved"') if other.owner == link.owner]
            if after and after[0].path == "/moved" and not any(at > read_at for at in told):
                yield after[0].opened, f"link {after[0].number} went where an earlier one had been sent to"


@invariant("P1", "a session is resumed from the last position that the service gave")
def _positions(history: History) -> Found:
    given: dict[str, list[tuple[float, str]]] = defaultdict(list)
    tokens = {record["link"]: record["token"] for record in history.all("server.position")}
    for number, token in tokens.items():
        link = history.links[number]
        read_at = None if link.confirmation is None else link.when_read(link.confirmation)
        if read_at is not None:
            given[link.owner].append((read_at, token))
    if history.scenario.server != "broker":
        return
    for record in history.all("server.resume"):
        link = history.links[record["link"]]
        known = [token for at, token in sorted(given[link.owner]) if at < link.opened - AT_ONCE]
        late = [token for at, token in given[link.owner] if abs(at - link.opened) <= AT_ONCE]
        expected = [*known[-1:], *late] or ["None"]
        if record["channel"] not in expected:
            yield record.at, f"link {link.number} goes on from {record['channel']}, and not from {expected}"


# --------------------------------------------------------------------------- what is said by the way


@invariant("R6", "after a complaint nothing of the application's is sent for as long as the service says")
def _silence(history: History) -> Found:
    for link, read_at, found in history.heard(rb'"op":"slow","retry_after":([0-9.]+)'):
        until = read_at + float(found[1]) - SLACK
        for sent in link.messages:
            if read_at + AT_ONCE < sent.since < until and '"execute"' in str(sent.frame):
                yield sent.since, f"link {link.number}: sent {sent.since - read_at:.3f} s after a complaint"
                break


@invariant("K1", "each message is read once, in the order of the wire")
def _read_once(history: History) -> Found:
    for record in history.all("client.misread"):
        yield record.at, f"message {record['number']} was read where {record['expected']} was expected"


# --------------------------------------------------------------------------- what is asked for elsewhere


@invariant("B1", "a book joined with a snapshot is the service's, at each message")
def _books(history: History) -> Found:
    books = {(record["channel"], record["number"]): record["book"] for record in history.all("server.book")}
    for feed in history.feeds:
        for record in feed.items:
            expected = books.get((feed.channel, record.get("number", 0)), digest_book({}))
            if "book" in record.fields and record["book"] != expected:
                yield record.at, f"{feed}: at {record['number']} the book is {record['book']}, not {expected}"
                break


@invariant("B2", "what the store has brought is delivered, before what came behind it")
def _fills(history: History) -> Found:
    if history.scenario.lags:
        return  # what was delivered before a page came is known only where it is taken at once
    for page in history.all("client.page"):
        for feed in history.feeds:
            if feed.owner != _owner(page) or feed.channel != page["channel"]:
                continue
            if not feed.confirmed < page.at < feed.ended:
                continue
            yield from _filled(feed, page)


def _filled(feed: FeedHistory, page: Record) -> Iterator[tuple[float, str]]:
    data = [record for record in feed.items if record.what == "client.data"]
    before = [record["number"] for record in data if record.at < page.at]
    behind = [record["number"] for record in data if record.at >= page.at]
    if page["after"] not in before or not behind:
        return  # it had not begun, or has heard nothing since
    got = {*before, *behind}
    if missing := [number for number in page["numbers"] if number > page["after"] and number not in got]:
        yield page.at, f"{feed}: the store has brought {missing}, and they were not delivered"


@invariant("B3", "a back-fill goes on to its last page, unless it is told that it was given up, or its link is lost")
def _all_pages(history: History) -> Found:
    pages = () if history.scenario.lags else history.all("client.page")  # it may wait for room as long as it takes
    for page in pages:
        owner, until = _owner(page), page.at + SETUP_TIMEOUT + SLACK
        if page["more"] is None or until > history.end:
            continue
        goes_on = any(
            _owner(each) == owner and each["channel"] == page["channel"] and page.at < each.at <= until
            for each in pages
        )
        is_given_up = any(
            _owner(record) == owner and page.at <= record.at <= until
            for name in ("ErrorEvent", "StateChanged", "ConsumerLagged")
            for record in history.events(name)
        )
        is_left = not any(
            feed.owner == owner and feed.channel == page["channel"] and feed.confirmed < page.at and feed.ended > until
            for feed in history.feeds
        )
        if not (goes_on or is_given_up or is_left):
            yield page.at, f"session {owner}: more of {page['channel']} was missed, and was not asked for"
