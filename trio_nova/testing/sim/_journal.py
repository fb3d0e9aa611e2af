"""The journal of a simulated run: every byte and every event, in order, as JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import msgspec
import trio

__all__ = ["Journal", "Record", "read_journal"]


@attrs.frozen(slots=True)
class Record:
    """One thing that happened; `record["link"]` is one of its fields."""

    at: float
    """Virtual time, seconds."""
    what: str
    """Whose it is, a dot, and what it was: `net.write`, `server.asked`, `client.data`, `fault.begin`, `run.healed`."""
    fields: dict[str, Any]
    """JSON values, and bytes; in JSON these are base64."""

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` where there is none."""
        return self.fields.get(name, default)

    def line(self) -> bytes:
        """Return it as one line of JSON."""
        return msgspec.json.encode({"at": self.at, "what": self.what, **self.fields})

    def __str__(self) -> str:
        shown = " ".join(f"{name}={_shown(value)}" for name, value in self.fields.items())
        return f"{self.at:12.6f} {self.what:18} {shown}"


def _shown(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


@attrs.define(eq=False)
class Journal:
    """What happened so far, in the order in which it did."""

    records: list[Record] = attrs.field(factory=list, repr=False)

    def add(self, what: str, /, **fields: Any) -> None:
        """Write down that something happens now."""
        self.records.append(Record(trio.current_time(), what, fields))

    def lines(self) -> Iterator[bytes]:
        """Yield the records as JSON, without line ends."""
        return (record.line() for record in self.records)

    def digest(self) -> str:
        """Return a hash of all of it: two runs are the same run where their digests are equal."""
        found = hashlib.blake2b(digest_size=16)
        for line in self.lines():
            found.update(line)
            found.update(b"\n")
        return found.hexdigest()


def read_journal(lines: Iterable[bytes | str]) -> list[Record]:
    """Return the records that `Journal.lines` wrote."""
    records = []
    for line in lines:
        fields = msgspec.json.decode(line)
        if "data" in fields and isinstance(fields["data"], str):
            fields["data"] = msgspec.convert(fields["data"], bytes)
        records.append(Record(fields.pop("at"), fields.pop("what"), fields))
    return records
