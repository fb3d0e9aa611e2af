"""Living connections by a stable id."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Unpack

import attrs

from trio_nova._connection import Connection, ConnectionBlock
from trio_nova.adapter import Target, settle
from trio_nova.config import Config
from trio_nova.errors import ConfigError
from trio_nova.messages import MessageOrRaw
from trio_nova.options import ConfigOptions
from trio_nova.secrets import discreet_if_asked

__all__ = ["Registry"]


@attrs.define(eq=False)
class Registry:
    """Finds living connections by id. It is a value of the user's own: there is no global one."""

    _connections: dict[str, Connection[Any]] = attrs.field(factory=dict, init=False)
    _known: set[str] = attrs.field(factory=set, init=False)
    """The ids in use, those that are still connecting too."""

    @discreet_if_asked
    def open_connection(
        self,
        id: str,
        target: Target[MessageOrRaw],
        *,
        config: Config[MessageOrRaw] | None = None,
        **overrides: Unpack[ConfigOptions[MessageOrRaw]],
    ) -> AbstractAsyncContextManager[Connection[MessageOrRaw]]:
        """Open a connection that can be found under `id` once it is ready, for as long as the block lasts.

        Otherwise like `trio_nova.open_connection`.

        Raises:
            ConfigError: the id is in use.
        """
        return self._keep(id, ConnectionBlock(settle(target, config, overrides), id=id))

    @asynccontextmanager
    async def _keep(self, id: str, block: ConnectionBlock[MessageOrRaw]) -> AsyncIterator[Connection[MessageOrRaw]]:
        if id in self._known:
            raise ConfigError("id", f"there is a connection {id!r} already")
        self._known.add(id)
        try:
            async with block as connection:
                self._connections[id] = connection
                yield connection
        finally:
            self._known.discard(id)
            self._connections.pop(id, None)

    def get(self, id: str) -> Connection[Any] | None:
        """Return the living connection `id`, or None."""
        return self._connections.get(id)

    def __getitem__(self, id: str) -> Connection[Any]:
        return self._connections[id]

    def __contains__(self, id: object) -> bool:
        return id in self._connections

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._connections))

    def __len__(self) -> int:
        return len(self._connections)
