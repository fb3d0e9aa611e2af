"""Clients with words of their own: an adapter, the options that suit the program, and typed methods.

::

    class Chat(Client):
        adapter = ChatService()
        defaults = {"when_down": "fail"}

        async def send_message(self, text: str) -> None:
            await self.connection.send({"type": "message", "text": text})

    async with Chat.open(credentials=token) as chat:
        await chat.send_message("hello")
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, Unpack, cast, overload

import trio

from trio_nova._connection import Connection, ConnectionBlock, open_connection
from trio_nova._feeds import Feed, FeedOptions
from trio_nova.adapter import Adapter
from trio_nova.config import Config
from trio_nova.errors import ConfigError
from trio_nova.options import ConfigOptions
from trio_nova.secrets import discreet_if_asked

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A connection to one kind of service. Subclass it, and add the methods that your program speaks in.

    Any task may use it, as it may use the connection.
    """

    adapter: ClassVar[Adapter[Any]]
    """The service."""
    defaults: ClassVar[ConfigOptions] = cast("ConfigOptions", MappingProxyType({}))
    """Options by name; they win over those of the adapter, and give way to those of `open`."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.connection!r}>"

    @classmethod
    @discreet_if_asked
    def open(
        cls, *, adapter: Adapter[Any] | None = None, config: Config | None = None, **overrides: Unpack[ConfigOptions]
    ) -> AbstractAsyncContextManager[Self]:
        """Open a connection and give the client: `async with Chat.open(credentials=token) as chat`.

        What the block does, and what it raises, is as for `open_connection`.

        Args:
            adapter: in place of the class's own: another address of the service, say.
            config: the options to start from.
            overrides: options by name; they win over everything else.

        Raises:
            ConfigError: an option is wrong; raised at once, by the call itself.
        """
        adapter = adapter or getattr(cls, "adapter", None)
        if adapter is None:
            raise ConfigError("adapter", f"{cls.__name__} has none: set it on the class")
        options: ConfigOptions = {**cls.defaults, **overrides}
        return cls._hold(open_connection(adapter, config=config, **options))

    @classmethod
    @asynccontextmanager
    async def _hold(cls, block: ConnectionBlock[Any]) -> AsyncGenerator[Self, None]:
        async with block as connection:
            yield cls(connection)

    @classmethod
    @discreet_if_asked
    async def run(
        cls,
        *,
        adapter: Adapter[Any] | None = None,
        config: Config | None = None,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
        **overrides: Unpack[ConfigOptions],
    ) -> None:
        """Run a client as a task: `chat = await nursery.start(Chat.run)`; as `run_connection` does."""
        async with cls.open(adapter=adapter, config=config, **overrides) as client:
            task_status.started(client)
            await client.connection.wait_closed()

    @overload
    def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: type[T],
    ) -> AbstractAsyncContextManager[Feed[T]]: ...
    @overload
    def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: Any = None,
    ) -> AbstractAsyncContextManager[Feed[Any]]: ...
    def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: Any = None,
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear a channel, or several, while in the block; see `Connection.subscribe`."""
        return self.connection.subscribe(channel, params=params, feed=feed, type=type)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the session; see `Connection.aclose`."""
        await self.connection.aclose(code, reason)
