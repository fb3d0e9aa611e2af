"""A bounded queue that the session fills, and from which consumers wait to take."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import attrs
import outcome
import trio

from trio_nova._signal import Bell
from trio_nova.core.bounded import BoundedQueue
from trio_nova.errors import ConfigError, ReceiverMoved, SessionOver
from trio_nova.messages import M_co

__all__ = ["Mailbox", "Mode", "Receiver"]

T = TypeVar("T")
Mode: TypeAlias = Literal["undecided", "payloads", "deliveries"]

_HIGH_WATER = 0.8
_LOW_WATER = 0.5
_FULL_CHECKPOINT_EVERY = 64
_CROWD = 64
"""Items with which the reader lets consumers run before it reads on."""
_LOOK_AGAIN = object()
"""What wakes a taker for whom there is no item."""


@attrs.define(eq=False, kw_only=True)
class Mailbox(BoundedQueue[T]):
    """A queue in order, which the session fills and consumers empty.

    A task that waits for an item is given it without it ever lying in the queue.
    """

    on_high_water: Callable[[], None] | None = None
    on_low_water: Callable[[], None] | None = None
    taken: Bell | None = None
    """Rung whenever somebody has taken something, or has found that there will be nothing more."""
    notice: Callable[[int], T] | None = None
    """Makes the item that stands where so many were dropped; None: nothing stands there."""
    claimed: bool = attrs.field(default=False, init=False)
    """Whether anybody has ever received from it."""
    _takers: OrderedDict[trio.lowlevel.Task, bool] | None = attrs.field(default=None, init=False)
    """Those who wait, the longest first, and whether each wants all there is. Then nothing is in the queue."""
    _mark: float = attrs.field(default=math.inf, init=False)
    """Items with which the high water is told."""
    _is_high: bool = attrs.field(default=False, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)
    is_finished: bool = attrs.field(default=False, init=False)
    """Whether somebody has found that there is nothing more."""
    _error: Exception | None = attrs.field(default=None, init=False)
    plain: bool = attrs.field(default=True, init=False)
    """Whether taking an item is no more than that: nobody is to be told."""
    mode: Mode = "payloads"
    """The way in which its items are taken; undecided until the first is: until then all that is known is kept."""
    strip: Callable[[T], T] | None = None
    """Makes of an item that is kept with all that is known of it the one that is received as a payload."""
    turns: int = attrs.field(default=_FULL_CHECKPOINT_EVERY, init=False)
    """How many items may be taken before other tasks get to run."""

    def __attrs_post_init__(self) -> None:
        self._look()
        if self.on_high_water is not None:
            self._mark = _HIGH_WATER * self.max_items

    @property
    def crowded(self) -> bool:
        """Whether so much waits that its consumers had better be given a turn first."""
        items = self.items
        return items is not None and len(items) >= _CROWD

    async def give_turns(self) -> None:
        """Let consumers run for as long as they take and it is still crowded; not for longer."""
        in_vain = 0
        while self.crowded and in_vain < 2:  # twice, as Trio may have run us first
            gone = self.next_serial - len(self)
            await trio.lowlevel.checkpoint()
            in_vain = 0 if self.next_serial - len(self) > gone else in_vain + 1

    # ----------------------------------------------------------------- putting

    def hand(self, items: Sequence[T]) -> int:
        """Give items, oldest first, to those who wait; return how many were given. The others are to be put."""
        takers, given = self._takers, 0
        if takers is None:
            return 0
        while takers and given < len(items):
            task, every = takers.popitem(last=False)
            if every:
                item: Any = list(items[given:])
                given = len(items)
            else:
                item = items[given]
                given += 1
            trio.lowlevel.reschedule(task, outcome.Value(item))
        if not takers:
            self._takers = None
        return given

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the next item, which then never lies in the queue."""
        return self._takers is not None

    def put_nowait(self, item: T, size: int) -> None:
        """Take an item in."""
        if self.plain and self._takers is None and len(self) + 1 < self._mark:
            self.offer(item, size)
            if self.dropped:
                self._look()
            return
        self.put_all_nowait((item,), (size,))

    def put_all_nowait(self, items: Sequence[T], sizes: Sequence[int]) -> None:
        """Take items in, oldest first, each with its size."""
        if self._is_closed:
            return
        if self._takers and (given := self.hand(items)):
            items, sizes = items[given:], sizes[given:]
            if not items:
                return
        self.offer_all(items, sizes)
        if self.on_high_water is not None and not self._is_high and self.fill >= _HIGH_WATER:
            self._is_high = True
            self.on_high_water()
        self._look()

    # ----------------------------------------------------------------- taking

    @property
    def ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self.items) or (self.notice is not None and self.has_losses)

    def take_nowait(self) -> T:
        """Return the next item.

        Raises:
            trio.WouldBlock: there is none.
            SessionOver: there will be none any more.
        """
        if not self.ready:
            self._check_open()
            raise trio.WouldBlock
        if self.notice is not None and (lost := self.take_lost()):
            return self.notice(lost)
        item = self.pop()
        self._taken()
        return item

    def take_all_nowait(self) -> list[T]:
        """Return all items there are, oldest first; raises like `take_nowait`."""
        items = [self.take_nowait()]
        if self.notice is None or not self.has_losses:
            items += self.pop_all()
            self._taken()
        while self.ready:
            items.append(self.take_nowait())
        return items

    async def take(self, receiver: Receiver[T], *, every: bool) -> Any:
        """Wait until there is something to take; return the next item, or a list of every one there is.

        Cancelling takes nothing.
        """
        # A full checkpoint costs more than the rest of a receive: where there is something, one now and then is
        # enough to let others run. Where there is nothing, the wait is one.
        self.turns -= 1
        if self.turns <= 0 or self._is_closed:
            self.turns = _FULL_CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        elif self.ready:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            receiver.check()
            if self.ready:
                return self.take_all_nowait() if every else self.take_nowait()
            self._check_open()
            if (item := await self._wait_to_be_given(every)) is not _LOOK_AGAIN:
                return item

    async def _wait_to_be_given(self, every: bool) -> Any:
        task = trio.lowlevel.current_task()
        takers = self._takers
        if takers is None:
            takers = self._takers = OrderedDict()
        takers[task] = every

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            del takers[task]
            if not takers:
                self._takers = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.turns = _FULL_CHECKPOINT_EVERY
        return await trio.lowlevel.wait_task_rescheduled(abort)

    def forget_marks(self) -> None:
        """Tell nobody of high or low water any more."""
        self.on_high_water = self.on_low_water = None

    def wake_takers(self) -> None:
        """Make all who wait look again."""
        takers, self._takers = self._takers, None
        for task in takers or ():
            trio.lowlevel.reschedule(task, outcome.Value(_LOOK_AGAIN))

    def close(self, error: Exception | None = None) -> None:
        """Let what is there be taken; after that raise `error`, or SessionOver."""
        if not self._is_closed:
            self._is_closed = True
            self._error = error
            self._look()
            self.wake_takers()

    def _check_open(self) -> None:
        if self._is_closed:
            self.is_finished = True
            if self.taken is not None:
                self.taken.ring()
            raise self._error or SessionOver("the session is over: nothing will be received any more")

    def _taken(self) -> None:
        if self.taken is not None:
            self.taken.ring()
        if self.plain:
            return
        if self._is_high and self.fill <= _LOW_WATER:
            self._is_high = False
            if self.on_low_water is not None:
                self.on_low_water()
        self._look()

    def decide(self, mode: Mode) -> None:
        """Have items taken in this way from now on, unless it is decided already that it is another.

        Raises:
            ConfigError: it is.
        """
        if self.mode == mode:
            return
        if self.mode != "undecided":
            other = "received as payloads" if self.mode == "payloads" else "taken by deliveries"
            raise ConfigError(mode, f"the messages here are {other}: choose before the first is received")
        self.mode = mode
        if mode == "payloads" and self.strip is not None and self.items:
            for place, item in enumerate(list(self.items)):
                self.items[place] = self.strip(item)
        self._look()

    def _look(self) -> None:
        self.plain = not (self._is_high or self._is_closed or self.has_losses or self.mode == "undecided")


@attrs.define(eq=False)
class Receiver(Generic[M_co]):
    """The receive side of a mailbox: any task may use it; cancelling any of its calls loses nothing."""

    _mailbox: Mailbox[M_co]
    _takes: Mode = attrs.field(default="payloads", kw_only=True, alias="takes")
    _moved: bool = attrs.field(default=False, init=False)

    async def receive(self) -> M_co:
        """Return the next item, waiting for it if need be.

        Raises:
            SessionOver: nothing will come any more.
            ReceiverMoved: the receive side was handed to somebody else.
        """
        mailbox = self._mailbox
        mailbox.claimed = True
        # What is most frequent first: there is something, and nothing else to see to.
        if mailbox.items and mailbox.plain and mailbox.turns > 1 and not self._moved:
            await trio.lowlevel.checkpoint_if_cancelled()
            mailbox.turns -= 1
            if mailbox.sized:
                mailbox.room.held -= mailbox.sizes.popleft()
                if mailbox.taken is not None:
                    mailbox.taken.ring()
            return mailbox.items.popleft()
        item: M_co = await mailbox.take(self, every=False)
        return item

    def receive_nowait(self) -> M_co:
        """Return the next item; raises trio.WouldBlock where there is none, else like `receive`."""
        self.check()
        self._mailbox.claimed = True
        return self._mailbox.take_nowait()

    async def receive_batch(self) -> list[M_co]:
        """Return all items there are, at least one, waiting for it if need be; raises like `receive`."""
        self._mailbox.claimed = True
        items: list[M_co] = await self._mailbox.take(self, every=True)
        return items

    def __aiter__(self) -> Receiver[M_co]:
        return self

    async def __anext__(self) -> M_co:
        try:
            return await self.receive()
        except (SessionOver, trio.ClosedResourceError, trio.EndOfChannel):
            raise StopAsyncIteration from None

    def check(self) -> None:
        """Raise ReceiverMoved if this is no longer the receive side; ConfigError if items are taken in another way."""
        self.check_held()
        self._mailbox.decide(self._takes)

    def check_held(self) -> None:
        """Raise ReceiverMoved if this is no longer the receive side."""
        if self._moved:
            raise ReceiverMoved("the receive side of this connection was handed to another task")

    def move(self) -> Receiver[M_co]:
        """Return a new receiver in place of this one, whose waiting calls then raise ReceiverMoved."""
        self.check()
        self._moved = True
        self._mailbox.wake_takers()
        return Receiver(self._mailbox, takes=self._takes)
