"""What the user wants to hear, and how far the server has followed.

The book is the desired state; a link only ever brings the server closer to it. Three rules keep them equal:

* Only an answer to our own request, on the link that is up, confirms. Data and stray answers add nothing.
* What the server has, or may have because a request of this link is unanswered, is unsubscribed on the
  wire when its last user leaves; all else is simply forgotten, and so never asked for again.
* A lost link takes the server's side with it: what is still wanted is asked for again, in the order in
  which it was first wanted.

No call scans the book, except `link_lost` and what lists all of it: a call costs the length of what it
returns, times at most the logarithm of the size of the book.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import attrs

from trio_nova.errors import ConfigError

__all__ = ["Book", "Subscription", "SubscriptionState"]

HISTORY = 16
"""Changes of state that a subscription remembers."""


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
class Subscription:
    """One entry of the book: the same object across links, for as long as somebody wants it.

    Only the book changes it.
    """

    key: Hashable
    channel: str
    params: Mapping[str, Any]
    order: int
    """Its place: entries count up in the order in which they were first wanted."""
    users: int = 0
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
    """When that was; None: the server does not have it, and no request of this link is unanswered."""
    asked_epoch: int = 0
    """The link of that request; 0: none yet."""
    failures: int = 0
    """Requests in a row, on this link, that were refused or not answered."""
    retry_at: float = -math.inf
    """Not asked for before then."""
    history: list[tuple[float, SubscriptionState]] = attrs.field(factory=list, repr=False)
    """When it came into its last states, the oldest first."""


@attrs.define(eq=False)
class Book:
    """Every subscription of a session.

    All times are readings of one monotonic clock, in seconds.
    """

    unsubscribes_by_id: bool = attrs.field(default=False, kw_only=True)
    """Whether an unsubscription names the server's own id, and so cannot be written before the confirmation."""
    epoch: int = attrs.field(default=0, init=False)
    """The link that is up; 0: none is."""
    _entries: dict[Hashable, Subscription] = attrs.field(factory=dict, init=False)
    _by_order: dict[int, Subscription] = attrs.field(factory=dict, init=False)
    _by_server_id: dict[tuple[type, Hashable], Subscription] = attrs.field(factory=dict, init=False)
    _counts: dict[SubscriptionState, int] = attrs.field(factory=lambda: dict.fromkeys(SubscriptionState, 0), init=False)
    # The wanted ones, as heaps of places. An entry that is no longer true is skipped when it comes up.
    _due: list[int] = attrs.field(factory=list, init=False)
    _later: list[tuple[float, int]] = attrs.field(factory=list, init=False)
    # In the order of these times, for the clock never goes back.
    _awaiting: OrderedDict[Subscription, float] = attrs.field(factory=OrderedDict, init=False)
    """Whose answer is awaited."""
    _retiring: OrderedDict[Subscription, None] = attrs.field(factory=OrderedDict, init=False)
    """Those whose unsubscription can be written."""
    _orders: Iterator[int] = attrs.field(factory=count, init=False)
    _asks: Iterator[int] = attrs.field(factory=lambda: count(1), init=False)

    # ----------------------------------------------------------------- what the user does

    def want(self, key: Hashable, channel: str, params: Mapping[str, Any], now: float) -> Subscription:
        """Add a user; the first one adds the subscription.

        A rejected one is asked for again. A retired one is kept if the server has not been told yet.
        `channel` and `params` of a key that is in the book already stay as they are.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = Subscription(key, channel, dict(params), order=next(self._orders))
            self._entries[key] = self._by_order[entry.order] = entry
            self._counts[_S.WANTED] += 1
            self._ask_at(entry, now, now)
        elif entry.state is _S.REJECTED:
            self._start_over(entry, now)
        elif entry.state is _S.RETIRED:
            self._take_back(entry, now)
        entry.users += 1
        return entry

    def release(self, key: Hashable, now: float) -> None:
        """Take a user away; the last one retires the subscription.

        Raises:
            KeyError: it has no user.
        """
        entry = self._entries[key]
        if not entry.users:
            raise KeyError(key)
        entry.users -= 1
        if entry.users:
            return
        entry.before = entry.state
        self._move(entry, _S.RETIRED, now)
        if entry.asked_at is None:
            self._forget(entry)
        elif entry.before is _S.CONFIRMED or not self.unsubscribes_by_id:
            self._awaiting.pop(entry, None)
            self._retiring[entry] = None

    # ----------------------------------------------------------------- what is to be written

    def next_request(self, max_batch: int, now: float) -> list[Subscription]:
        """Return those to ask for now, in the order in which they were first wanted; they count as requested.

        Nothing while no link is up. Write what `next_retirement` gives first: a subscription that was given
        up and is wanted again is in both.
        """
        batch: list[Subscription] = []
        while self.epoch and len(batch) < max_batch and (entry := self._first_due(now)) is not None:
            heapq.heappop(self._due)
            entry.ask, entry.asked_at, entry.asked_epoch = next(self._asks), now, self.epoch
            self._awaiting[entry] = now
            self._move(entry, _S.REQUESTED, now)
            batch.append(entry)
        return batch

    def written(self, batch: Iterable[Subscription], now: float) -> None:
        """Note that the request for these has left: what it waited for a rate limit is not held against the server."""
        for entry in batch:
            if self._awaiting.pop(entry, None) is not None:  # to its end: the oldest come first
                self._awaiting[entry] = now

    def next_retirement(self, max_batch: int) -> list[Subscription]:
        """Return those to unsubscribe on the wire now, in the order in which they were given up; forget them."""
        batch: list[Subscription] = []
        while self._retiring and len(batch) < max_batch:
            entry, _ = self._retiring.popitem(last=False)
            self._forget(entry)
            batch.append(entry)
        return batch

    # ----------------------------------------------------------------- what the server says

    def confirm(
        self, key: Hashable, epoch: int, now: float, server_id: Hashable | None = None, *, ask: int | None = None
    ) -> bool:
        """Note that the server has it; False, changing nothing, where nothing of the kind was asked for.

        That is: the answer came from a link that is gone, or there is no request that it can answer, or it
        names another one than the last: `ask` is `Subscription.ask` as it was when the request was written,
        for services whose answers can be told apart. An answer that comes after `expire` still counts.

        Raises:
            TypeError: `server_id` is not hashable; nothing is changed.
        """
        entry = self._answered(key, epoch, ask)
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
            self._move(entry, _S.CONFIRMED, now)
        return True

    def reject(
        self,
        key: Hashable,
        epoch: int,
        now: float,
        reason: str,
        retry_in: float | None = None,
        *,
        ask: int | None = None,
    ) -> bool:
        """Note that the server does not have it: it refused, or took back what it had confirmed.

        Without `retry_in` it stays rejected; else it is asked for again after so many seconds, and the
        failure is counted. False, changing nothing, under the same conditions as for `confirm`.
        """
        entry = self._answered(key, epoch, ask)
        if entry is None:
            return False
        if entry.state is _S.RETIRED:  # there is nothing left to unsubscribe
            self._forget(entry)
            return True
        self._awaiting.pop(entry, None)
        self._drop_server_id(entry)
        entry.asked_at, entry.server_id, entry.reason = None, None, reason
        entry.failures += 1
        if retry_in is None:
            self._move(entry, _S.REJECTED, now)
        else:
            self._ask_at(entry, now + max(0.0, retry_in), now)
        return True

    # ----------------------------------------------------------------- time

    def expire(self, now: float, timeout: float, max_failures: int) -> list[Subscription]:
        """Give up requests that were not answered for `timeout` seconds, and return what they asked for.

        They are wanted again, at once, or after `max_failures` in a row rejected with the reason "no answer".
        """
        expired: list[Subscription] = []
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
                self._move(entry, _S.REJECTED, now)
            expired.append(entry)
        return expired

    def next_event_at(self, timeout: float) -> float:
        """Return when `expire(timeout=timeout)` or a retry is next due; inf where neither is, or no link is up.

        What is due to be asked for already does not count: `next_request` returns it at any time.
        """
        if not self.epoch:
            return math.inf
        while self._later and self._later[0][1] not in self._by_order:
            heapq.heappop(self._later)
        retry = self._later[0][0] if self._later else math.inf
        return min(retry, next(iter(self._awaiting.values()), math.inf) + timeout)

    # ----------------------------------------------------------------- links

    def link_up(self, epoch: int) -> None:
        """Begin a link, after `link_lost` has ended the one before.

        Raises:
            ValueError: `epoch` is not above 0, or a link is up; nothing is changed.
        """
        if epoch < 1 or self.epoch:
            raise ValueError(f"link {epoch} cannot begin while link {self.epoch} is up")
        self.epoch = epoch

    def link_lost(self, now: float) -> None:
        """Forget what the server had, and what it was to be told: all that is not rejected is wanted again."""
        self.epoch = 0
        for each in (self._awaiting, self._by_server_id):
            each.clear()
        for entry in list(self._entries.values()):
            if entry.state is _S.RETIRED:
                self._forget(entry)
                continue
            entry.asked_at = entry.server_id = None
            if entry.state is _S.REJECTED:
                continue
            entry.failures = 0
            if entry.state is not _S.WANTED:
                self._move(entry, _S.WANTED, now)
        self._rebuild_queues(now)

    # ----------------------------------------------------------------- what it holds

    def __iter__(self) -> Iterator[Subscription]:
        """Go through all, in the order in which they were first wanted; retired ones until the server is told."""
        return iter(list(self._entries.values()))

    def find(self, key: Hashable) -> Subscription | None:
        """Return the subscription, which may be retired."""
        return self._entries.get(key)

    def by_server_id(self, server_id: Hashable) -> Subscription | None:
        """Return what the server calls `server_id` on this link; 1, 1.0 and True are different ids."""
        return self._by_server_id.get((type(server_id), server_id))

    def counts(self) -> dict[SubscriptionState, int]:
        """Return how many are in each state."""
        return dict(self._counts)

    @property
    def requested(self) -> int:
        """How many wait for the server's answer."""
        return self._counts[_S.REQUESTED]

    @property
    def degraded(self) -> bool:
        """Whether something that is wanted is rejected."""
        return self._counts[_S.REJECTED] > 0

    def settled(self, now: float) -> bool:
        """Return whether no answer is awaited, and nothing is due to be asked for."""
        return not self._counts[_S.REQUESTED] and self._first_due(now) is None

    def export(self) -> list[dict[str, Any]]:
        """Return the channel and parameters of all that is wanted, rejected ones too, in order, for `load`."""
        return [
            {"channel": entry.channel, "params": dict(entry.params)} for entry in self._entries.values() if entry.users
        ]

    def load(
        self, rows: Iterable[object], key_of: Callable[[str, Mapping[str, Any]], Hashable], now: float
    ) -> list[Subscription]:
        """Want every row of an `export`, and return the subscriptions; the caller is one user of each.

        Raises:
            ConfigError: a row is not what `export` makes; nothing is changed.
        """
        read = [_read_row(number, row) for number, row in enumerate(rows)]
        return [self.want(key_of(channel, params), channel, params, now) for channel, params in read]

    # ----------------------------------------------------------------- small pieces

    def _answered(self, key: Hashable, epoch: int, ask: int | None) -> Subscription | None:
        entry = self._entries.get(key)
        if entry is None or epoch != self.epoch or entry.asked_at is None or ask not in (None, entry.ask):
            return None
        return entry

    def _move(self, entry: Subscription, state: SubscriptionState, now: float) -> None:
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state
        entry.history.append((now, state))
        del entry.history[:-HISTORY]

    def _start_over(self, entry: Subscription, now: float) -> None:
        entry.failures, entry.reason = 0, ""
        self._ask_at(entry, now, now)

    def _take_back(self, entry: Subscription, now: float) -> None:
        self._retiring.pop(entry, None)
        if entry.before is _S.CONFIRMED:
            self._move(entry, _S.CONFIRMED, now)
        elif entry.before is _S.REQUESTED:
            self._awaiting.pop(entry, None)  # to its end: the wait for an answer begins anew
            self._awaiting[entry] = now
            self._move(entry, _S.REQUESTED, now)
        else:
            self._start_over(entry, now)

    def _forget(self, entry: Subscription) -> None:
        self._counts[entry.state] -= 1
        del self._entries[entry.key], self._by_order[entry.order]
        self._awaiting.pop(entry, None)
        self._retiring.pop(entry, None)
        self._drop_server_id(entry)

    def _drop_server_id(self, entry: Subscription) -> None:
        named = (type(entry.server_id), entry.server_id)
        if self._by_server_id.get(named) is entry:  # the server may have given the name to another meanwhile
            del self._by_server_id[named]

    def _ask_at(self, entry: Subscription, at: float, now: float) -> None:
        entry.retry_at = at
        self._move(entry, _S.WANTED, now)
        if at > now:
            heapq.heappush(self._later, (at, entry.order))
        else:
            heapq.heappush(self._due, entry.order)
        if len(self._due) + len(self._later) > 2 * len(self._entries) + 64:
            self._rebuild_queues(now)  # most were released meanwhile

    def _rebuild_queues(self, now: float) -> None:
        wanted = [entry for entry in self._entries.values() if entry.state is _S.WANTED]
        self._due = [entry.order for entry in wanted if entry.retry_at <= now]  # in order, and so a heap
        self._later = [(entry.retry_at, entry.order) for entry in wanted if entry.retry_at > now]
        heapq.heapify(self._later)

    def _first_due(self, now: float) -> Subscription | None:
        while self._later and self._later[0][0] <= now:
            heapq.heappush(self._due, heapq.heappop(self._later)[1])
        while self._due:
            entry = self._by_order.get(self._due[0])
            if entry is not None and entry.state is _S.WANTED and entry.retry_at <= now:
                return entry
            heapq.heappop(self._due)
        return None


def _read_row(number: int, row: object) -> tuple[str, Mapping[str, Any]]:
    match row:
        case {"channel": str(channel), "params": Mapping() as params}:
            return channel, params
        case _:
            raise ConfigError("subscriptions", f"row {number} must have a channel and a mapping of params")
