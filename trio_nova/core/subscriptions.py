"""What a service was asked to tell us on one link, and has confirmed.

What the program wants is the session's to know; a book only ever brings the service closer to it. Two rules:

* Only an answer to our own request confirms. Data and stray answers add nothing.
* What the service has, or may have because a request is unanswered, is unsubscribed on the wire when nobody wants
  it any more; all else is simply forgotten.

A book ends with its link. No call scans it but those that list all of it: a call costs the length of what it
returns, times at most the logarithm of the size of the book.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import attrs

__all__ = ["Book", "Entry", "SubscriptionState"]


class SubscriptionState(enum.StrEnum):
    """How far the server has followed."""

    WANTED = "wanted"
    """To be asked for, on the next link or when its retry is due."""
    REQUESTED = "requested"
    """Asked for on this link; no answer yet."""
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    """Refused, or never answered; not asked for again unless somebody wants it again."""
    RETIRED = "retired"
    """Nobody wants it any more; where the server must be told, that is still to be done."""


_S = SubscriptionState


@attrs.define(eq=False)
class Entry:
    """One subscription in a book. Only the book changes it."""

    key: Hashable
    channel: str
    params: Mapping[str, Any]
    order: int
    """Its place, which no other entry has had: the lower is asked for earlier, whenever it came into the book."""
    state: SubscriptionState = _S.WANTED
    before: SubscriptionState = _S.WANTED
    """Of a retired one: the state that it returns to if it is wanted again before the server is told."""
    reason: str = ""
    """Why it is rejected, or was the last time; the server's own words may be in it."""
    server_id: Hashable | None = None
    """What the server calls it on this link."""
    ask: int = 0
    """Number of the last request for it, which no other request of this book has; 0: none yet."""
    asked_at: float | None = None
    """When that was; None: the server does not have it, and no request is unanswered."""
    failures: int = 0
    """Requests in a row that were refused or not answered."""
    retry_at: float = -math.inf
    """Not asked for before then."""

    def asks_for(self, channel: str, params: Mapping[str, Any]) -> bool:
        """Return whether this is what is asked of the server for it."""
        return self.channel == channel and dict(self.params) == dict(params)


@attrs.define(eq=False)
class Book:
    """The subscriptions of one link.

    All times are readings of one monotonic clock, in seconds.
    """

    unsubscribes_by_id: bool = attrs.field(default=False, kw_only=True)
    """Whether an unsubscription names the server's own id, and so cannot be written before the confirmation."""
    _entries: dict[Hashable, Entry] = attrs.field(factory=dict, init=False)
    _by_order: dict[int, Entry] = attrs.field(factory=dict, init=False)
    _by_server_id: dict[tuple[type, Hashable], Entry] = attrs.field(factory=dict, init=False)
    _counts: dict[SubscriptionState, int] = attrs.field(factory=lambda: dict.fromkeys(SubscriptionState, 0), init=False)
    # The wanted ones, as heaps of places. An entry that is no longer true is skipped when it comes up.
    _due: list[int] = attrs.field(factory=list, init=False)
    _later: list[tuple[float, int]] = attrs.field(factory=list, init=False)
    # In the order of these times, for the clock never goes back.
    _awaiting: OrderedDict[Entry, float] = attrs.field(factory=OrderedDict, init=False)
    """Whose answer is awaited."""
    _retiring: OrderedDict[Entry, None] = attrs.field(factory=OrderedDict, init=False)
    """Those whose unsubscription can be written."""
    _asks: Iterator[int] = attrs.field(factory=lambda: count(1), init=False)

    # ----------------------------------------------------------------- what the user does

    def want(self, key: Hashable, channel: str, params: Mapping[str, Any], order: int, now: float) -> Entry:
        """Want a subscription, which may be in the book already.

        A rejected one is asked for again. A retired one is kept if the server has not been told yet, and
        `channel` and `params` are the same; else it goes, and what is wanted now is asked for after that.
        Those of a key that is in the book, and not retired, stay as they are.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.state is _S.RETIRED and not entry.asks_for(channel, params):
            self._forget(entry)  # where the server is to be told, that is still done
            entry = None
        if entry is None:
            entry = Entry(key, channel, params, order)
            self._entries[key] = self._by_order[entry.order] = entry
            self._counts[_S.WANTED] += 1
            self._ask_at(entry, now, now)
        elif entry.state is _S.REJECTED:
            entry.failures, entry.reason = 0, ""
            self._ask_at(entry, now, now)
        elif entry.state is _S.RETIRED:
            self._take_back(entry, now)
        return entry

    def release(self, key: Hashable) -> None:
        """Want a subscription no longer; nothing happens where it is not in the book."""
        entry = self._entries.get(key)
        if entry is None or entry.state is _S.RETIRED:
            return
        entry.before = entry.state
        self._move(entry, _S.RETIRED)
        if entry.asked_at is None:
            self._forget(entry)
        elif entry.before is _S.CONFIRMED or not self.unsubscribes_by_id:
            self._awaiting.pop(entry, None)
            self._retiring[entry] = None

    # ----------------------------------------------------------------- what is to be written

    def next_request(self, max_batch: int, now: float) -> list[Entry]:
        """Return those to ask for now, in the order of their places; they count as requested.

        Write what `next_retirement` gives first: a subscription that was given
        up and is wanted again is in both.
        """
        batch: list[Entry] = []
        while len(batch) < max_batch and (entry := self._first_due(now)) is not None:
            heapq.heappop(self._due)
            entry.ask, entry.asked_at = next(self._asks), now
            self._awaiting[entry] = now
            self._move(entry, _S.REQUESTED)
            batch.append(entry)
        return batch

    def written(self, batch: Iterable[Entry], now: float) -> None:
        """Note that the request for these has left: what it waited for a rate limit is not held against the server."""
        for entry in batch:
            if self._awaiting.pop(entry, None) is not None:  # to its end: the oldest come first
                self._awaiting[entry] = now

    def next_retirement(self, max_batch: int) -> list[Entry]:
        """Return those to unsubscribe on the wire now, and forget them.

        They come in the order in which they were given up, or confirmed where that had to be waited for.
        """
        batch: list[Entry] = []
        while self._retiring and len(batch) < max_batch:
            entry, _ = self._retiring.popitem(last=False)
            if self._entries.get(entry.key) is entry:  # else another has taken its place
                self._forget(entry)
            batch.append(entry)
        return batch

    # ----------------------------------------------------------------- what the server says

    def confirm(self, key: Hashable, server_id: Hashable | None = None, *, ask: int | None = None) -> bool:
        """Note that the server has it; False, changing nothing, where nothing of the kind was asked for.

        That is: there is no request that it can answer, or it names another one than the last: `ask` is
        `Entry.ask` as it was when the request was written, for services whose answers can be told apart.
        An answer that comes after `expire` still counts.

        Raises:
            TypeError: `server_id` is not hashable; nothing is changed.
        """
        entry = self._answered(key, ask)
        if entry is None or _S.CONFIRMED is (entry.before if entry.state is _S.RETIRED else entry.state):
            return False
        if server_id is not None:
            self._by_server_id[type(server_id), server_id] = entry
        self._awaiting.pop(entry, None)
        entry.failures, entry.reason, entry.server_id = 0, "", server_id
        if entry.state is _S.RETIRED:
            entry.before = _S.CONFIRMED
            self._retiring[entry] = None
        else:
            self._move(entry, _S.CONFIRMED)
        return True

    def reject(
        self, key: Hashable, now: float, reason: str, retry_in: float | None = None, *, ask: int | None = None
    ) -> bool:
        """Note that the server does not have it: it refused, or took back what it had confirmed.

        Without `retry_in` it stays rejected; else it is asked for again after so many seconds, and the
        failure is counted. False, changing nothing, under the same conditions as for `confirm`.
        """
        entry = self._answered(key, ask)
        if entry is None:
            return False
        if entry.state is _S.RETIRED:  # there is nothing left to unsubscribe
            self._retiring.pop(entry, None)
            self._forget(entry)
            return True
        self._awaiting.pop(entry, None)
        self._drop_server_id(entry)
        entry.asked_at, entry.server_id, entry.reason = None, None, reason
        entry.failures += 1
        if retry_in is None:
            self._move(entry, _S.REJECTED)
        else:
            self._ask_at(entry, now + max(0.0, retry_in), now)
        return True

    # ----------------------------------------------------------------- time

    def expire(self, now: float, timeout: float, max_failures: int) -> list[Entry]:
        """Give up requests that were not answered for `timeout` seconds, and return what they asked for.

        They are wanted again, at once, or after `max_failures` in a row rejected with the reason "no answer".
        """
        expired: list[Entry] = []
        while self._awaiting:
            entry, since = next(iter(self._awaiting.items()))
            if since + timeout > now:
                break
            del self._awaiting[entry]
            if entry.state is _S.RETIRED:  # only a late confirmation can still name it
                continue
            entry.failures += 1
            if entry.failures < max_failures:
                self._ask_at(entry, now, now)
            else:
                entry.reason = "no answer"
                self._move(entry, _S.REJECTED)
            expired.append(entry)
        return expired

    def next_event_at(self, timeout: float) -> float:
        """Return when `expire(timeout=timeout)` or a retry is next due; inf where neither is.

        What is due to be asked for already does not count: `next_request` returns it at any time.
        """
        while self._later and self._later[0][1] not in self._by_order:
            heapq.heappop(self._later)
        retry = self._later[0][0] if self._later else math.inf
        return min(retry, next(iter(self._awaiting.values()), math.inf) + timeout)

    # ----------------------------------------------------------------- what it holds

    def __iter__(self) -> Iterator[Entry]:
        """Go through all, in the order in which they came into the book; retired ones until the server is told."""
        return iter(list(self._entries.values()))

    def find(self, key: Hashable) -> Entry | None:
        """Return the subscription, which may be retired."""
        return self._entries.get(key)

    def by_server_id(self, server_id: Hashable) -> Entry | None:
        """Return what the server calls `server_id` on this link; 1, 1.0 and True are different ids."""
        return self._by_server_id.get((type(server_id), server_id))

    def counts(self) -> dict[SubscriptionState, int]:
        """Return how many are in each state."""
        return dict(self._counts)

    @property
    def requested(self) -> int:
        """How many wait for the server's answer."""
        return self._counts[_S.REQUESTED]

    def is_at_rest(self, now: float) -> bool:
        """Return whether no answer is awaited, and nothing is due to be asked for, or to be given up."""
        return not self._retiring and self.settled(now)

    def settled(self, now: float) -> bool:
        """Return whether no answer is awaited, and nothing is due to be asked for."""
        return not self._counts[_S.REQUESTED] and self._first_due(now) is None

    # ----------------------------------------------------------------- small pieces

    def _answered(self, key: Hashable, ask: int | None) -> Entry | None:
        entry = self._entries.get(key)
        return None if entry is None or entry.asked_at is None or ask not in (None, entry.ask) else entry

    def _move(self, entry: Entry, state: SubscriptionState) -> None:
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state

    def _take_back(self, entry: Entry, now: float) -> None:
        self._retiring.pop(entry, None)
        if entry.before is _S.CONFIRMED:
            self._move(entry, _S.CONFIRMED)
        elif entry.before is _S.REQUESTED:
            self._awaiting.pop(entry, None)  # to its end: the wait for an answer begins anew
            self._awaiting[entry] = now
            self._move(entry, _S.REQUESTED)
        else:
            entry.failures, entry.reason = 0, ""
            self._ask_at(entry, now, now)

    def _forget(self, entry: Entry) -> None:
        self._counts[entry.state] -= 1
        del self._entries[entry.key], self._by_order[entry.order]
        self._awaiting.pop(entry, None)
        self._drop_server_id(entry)

    def _drop_server_id(self, entry: Entry) -> None:
        named = (type(entry.server_id), entry.server_id)
        if self._by_server_id.get(named) is entry:  # the server may have given the name to another meanwhile
            del self._by_server_id[named]

    def _ask_at(self, entry: Entry, at: float, now: float) -> None:
        entry.retry_at = at
        self._move(entry, _S.WANTED)
        if at > now:
            heapq.heappush(self._later, (at, entry.order))
        else:
            heapq.heappush(self._due, entry.order)
        if len(self._due) + len(self._later) > 2 * len(self._entries) + 64:
            self._rebuild_queues(now)  # most were released meanwhile

    def _rebuild_queues(self, now: float) -> None:
        wanted = [entry for entry in self._entries.values() if entry.state is _S.WANTED]
        self._due = [entry.order for entry in wanted if entry.retry_at <= now]
        self._later = [(entry.retry_at, entry.order) for entry in wanted if entry.retry_at > now]
        heapq.heapify(self._due)
        heapq.heapify(self._later)

    def _first_due(self, now: float) -> Entry | None:
        while self._later and self._later[0][0] <= now:
            heapq.heappush(self._due, heapq.heappop(self._later)[1])
        while self._due:
            entry = self._by_order.get(self._due[0])
            if entry is not None and entry.state is _S.WANTED and entry.retry_at <= now:
                return entry
            heapq.heappop(self._due)
        return None
