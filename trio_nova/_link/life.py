"""The life of a link: its number, its state, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from trio_nova._hooks import Handlers, Hooks
from trio_nova._outbound import check_payload, encode_with
from trio_nova._session import Session
from trio_nova.codecs import LinkCodec, as_plain, open_link_codec
from trio_nova.core.link import LinkEvent, LinkState, state_after
from trio_nova.errors import BadMessage, LinkLost, NotSent, NovaError, SessionOver
from trio_nova.events import Event
from trio_nova.messages import Frame

__all__ = ["LinkLife"]


@attrs.define(eq=False)
class LinkLife:
    """The number, the state and the end of one link, by which all its parts go."""

    session: Session
    epoch: int
    """The number of the link, from 1."""
    _nursery: trio.Nursery
    """The nursery of its tasks."""
    handlers: Handlers
    """The strategies, as the dialect of the link speaks for them."""
    hooks: Hooks
    """The hooks of these that are there to be called."""
    coder: LinkCodec | None = attrs.field(init=False)
    """The link's own side of the codec; None: it keeps nothing that is a link's."""
    state: LinkState = attrs.field(default=LinkState.UPGRADED, init=False)
    reached_by: LinkEvent | None = attrs.field(default=None, init=False)
    """The event that brought it into that state; None: it has just begun."""
    lost: LinkLost | None = attrs.field(default=None, init=False)
    """The loss of it, where that is known."""
    setup_error: NovaError | None = attrs.field(default=None, init=False)
    """The reason that it could not be set up, or not be kept authenticated."""
    ending: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when its tasks are to end."""

    def __attrs_post_init__(self) -> None:
        config = self.session.config
        self.coder = open_link_codec(config.codec, config.max_message_size)

    def encode(self, message: Any) -> Sequence[Frame]:
        """Return the frames of a message that is about to leave; BadMessage where there are none.

        They must leave in the order of these calls.
        """
        if self.hooks.encodes:
            message = encode_with(self.handlers.message.encode_message, message)
        if self.coder is None:
            return (check_payload(encode_with(as_plain(self.session.config.codec).encode, message)),)
        frames = [check_payload(frame) for frame in encode_with(self.coder.encode, message)]
        if not frames:
            raise BadMessage("the codec made no frame of the message")
        return frames

    @property
    def is_up(self) -> bool:
        """Whether it is neither lost nor being left."""
        return self.state not in (LinkState.DRAINING, LinkState.ENDED)

    def check_up(self) -> None:
        """Raise NotSent where nothing that belongs to the link can leave any more: nobody would ever settle it."""
        if not self.is_up:
            lost = self.lost or LinkLost(1006, "", self.epoch)
            raise NotSent("the link was lost before it was written") from lost

    @property
    def is_ready(self) -> bool:
        """Whether messages of the application may leave on it."""
        return self.state is LinkState.READY

    @property
    def is_current(self) -> bool:
        """Whether it is the one that they do leave on."""
        current = self.session.current
        return current is not None and current.life is self

    @property
    def is_superseded(self) -> bool:
        """Whether another is the current one."""
        current = self.session.current
        return current is not None and current.life is not self

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, verb: str) -> None:
        """Start a task that ends with the link; `verb` is its name."""
        self._nursery.start_soon(function, *args, name=self.session.task_name(verb, self.epoch))

    def tell(self, event: Event) -> None:
        """Tell what happened on the link."""
        self.session.tell(event, self.epoch)

    def move(self, event: LinkEvent) -> None:
        """Come into the state that follows."""
        self.state, self.reached_by = state_after(self.state, event), event
        self.session.link_moved(self, event)

    # ----------------------------------------------------------------- ends

    def lose(self, lost: LinkLost) -> None:
        """End it: it is gone, or as good as gone. The first reason counts."""
        if self.lost is None:
            self.lost = lost
            self.ending.set()

    def give_up(self, error: NovaError) -> None:
        """End it: it is up, but of no use. Where `error` comes of its loss, the reader says how it was lost."""
        if isinstance(error, SessionOver) or isinstance(error.__cause__, LinkLost):
            return
        if self.setup_error is None:
            self.setup_error = error
            self.ending.set()

    def take_setup_error(self) -> NovaError | None:
        """Return why it could not be set up, and keep that no longer: its traceback holds the link."""
        error, self.setup_error = self.setup_error, None
        return error

    def leave(self) -> None:
        """Take nothing new: what still arrives is taken in."""
        if self.lost is not None:  # first: whoever waits for the state to change looks at how the link ended
            self.session.link_lost(self.lost)
        self.state = state_after(self.state, LinkEvent.LEAVE)
        self.session.link_left(self)

    def end(self) -> LinkLost:
        """Be over; return how it was lost."""
        self.state = state_after(self.state, LinkEvent.END)
        return self.lost or LinkLost(1006, "", self.epoch)
