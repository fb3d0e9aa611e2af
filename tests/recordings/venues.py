"""What the player and the judge know of each service, told from its messages, not by its adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.recordings.binance import Binance
from tests.recordings.bybit import Bybit
from tests.recordings.coinbase import Coinbase
from tests.recordings.kraken import Kraken
from tests.recordings.okx import Okx
from tests.recordings.player import Venue
from trio_nova import Adapter
from trio_nova.adapters.deribit import Deribit

__all__ = ["VENUES"]


class Quiet:
    """What most services have in common: no answers under an id, no channels in the address."""

    def replies(self, message: Any) -> Sequence[Any]:
        return []

    def streams(self, url: str) -> Sequence[str]:
        return []

    def is_beat(self, message: Any) -> bool:
        return False

    def is_reply(self, message: Any) -> bool:
        return False

    def spoil(self, message: Any) -> Any:
        return None


class KrakenVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Kraken(url=url)

    def _about(self, message: Any, event: str) -> Sequence[str]:
        if not isinstance(message, Mapping) or message.get("event") != event:
            return []
        about = message["subscription"]
        size = next((f"-{about[name]}" for name in ("depth", "interval") if name in about), "")
        return [f"{about['name']}{size} {pair}" for pair in message["pair"]]

    def asks(self, message: Any) -> Sequence[str]:
        return self._about(message, "subscribe")

    def gives_up(self, message: Any) -> Sequence[str]:
        return self._about(message, "unsubscribe")

    def confirms(self, message: Any) -> Sequence[str]:
        if isinstance(message, Mapping) and message.get("status") == "subscribed":
            return [f"{message['channelName']} {message['pair']}"]
        return []

    def data(self, message: Any) -> tuple[str, Any] | None:
        return (f"{message[-2]} {message[-1]}", message) if isinstance(message, list) else None

    def is_beat(self, message: Any) -> bool:
        return bool(message == {"event": "heartbeat"})

    def spoil(self, message: Any) -> Any:
        number, *parts, name, pair = message
        kind, levels = next(iter(parts[0].items()))
        if kind not in ("a", "b"):
            return None
        (price, size, *rest), *others = levels
        return [number, {**parts[0], kind: [[price, _other_digit(size), *rest], *others]}, *parts[1:], name, pair]


class OkxVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Okx(url=url)

    def _name(self, about: Mapping[str, str]) -> str:
        rest = [f"{name}={value}" for name, value in sorted(about.items()) if name != "channel"]
        return " ".join([about["channel"], *rest])

    def asks(self, message: Any) -> Sequence[str]:
        return self._arguments(message, "subscribe")

    def gives_up(self, message: Any) -> Sequence[str]:
        return self._arguments(message, "unsubscribe")

    def _arguments(self, message: Any, op: str) -> Sequence[str]:
        is_asked = isinstance(message, Mapping) and message.get("op") == op
        return [self._name(about) for about in message["args"]] if is_asked else []

    def confirms(self, message: Any) -> Sequence[str]:
        is_confirmed = isinstance(message, Mapping) and message.get("event") == "subscribe"
        return [self._name(message["arg"])] if is_confirmed else []

    def data(self, message: Any) -> tuple[str, Any] | None:
        return (self._name(message["arg"]), message) if isinstance(message, Mapping) and "data" in message else None

    def is_beat(self, message: Any) -> bool:
        return bool(message == "pong")

    def spoil(self, message: Any) -> Any:
        (data,) = message["data"]
        kind = "asks" if data.get("asks") else "bids"
        if message.get("action") != "update" or not data[kind]:
            return None
        (price, size, *rest), *others = data[kind]
        return {**message, "data": [{**data, kind: [[price, _other_digit(size), *rest], *others]}]}


class BybitVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Bybit(url=url)

    def asks(self, message: Any) -> Sequence[str]:
        return message["args"] if message.get("op") == "subscribe" else []

    def gives_up(self, message: Any) -> Sequence[str]:
        return message["args"] if message.get("op") == "unsubscribe" else []

    def confirms(self, message: Any) -> Sequence[str]:
        return self.asks(message["request"]) if message.get("success") is True else []

    def data(self, message: Any) -> tuple[str, Any] | None:
        return (message["topic"], message) if "topic" in message else None

    def is_beat(self, message: Any) -> bool:
        return bool(message.get("ret_msg") == "pong")

    def spoil(self, message: Any) -> Any:
        data = message["data"]
        if not message["topic"].startswith("orderBook") or message["type"] != "delta" or not data["update"]:
            return None
        first, *others = data["update"]
        return {**message, "data": {**data, "update": [{**first, "price": f"{first['price']}1"}, *others]}}


class CoinbaseVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Coinbase(url=url)

    def _named(self, message: Mapping[str, Any]) -> Sequence[str]:
        """Return channels and products in either form: a list of products for all, or one for each."""
        found: list[str] = []
        for channel in message["channels"]:
            each: Mapping[str, Any] = {"name": channel} if isinstance(channel, str) else channel
            products = each.get("product_ids", message.get("product_ids", []))
            found += [f"{each['name']} {product}" for product in products]
        return found

    def asks(self, message: Any) -> Sequence[str]:
        return self._named(message) if message.get("type") == "subscribe" else []

    def gives_up(self, message: Any) -> Sequence[str]:
        return self._named(message) if message.get("type") == "unsubscribe" else []

    def confirms(self, message: Any) -> Sequence[str]:
        return self._named(message) if message.get("type") == "subscriptions" else []

    def data(self, message: Any) -> tuple[str, Any] | None:
        kinds = {"snapshot": "level2", "l2update": "level2", "match": "matches", "last_match": "matches"}
        if "product_id" not in message:
            return None
        return f"{kinds.get(message['type'], message['type'])} {message['product_id']}", message

    def spoil(self, message: Any) -> Any:
        return {**message, "trade_id": message["trade_id"] + 1} if message["type"] == "match" else None


class BinanceVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Binance(url=url, fetch=fetch)

    def asks(self, message: Any) -> Sequence[str]:
        return message["params"] if message.get("method") == "SUBSCRIBE" else []

    def gives_up(self, message: Any) -> Sequence[str]:
        return message["params"] if message.get("method") == "UNSUBSCRIBE" else []

    def confirms(self, message: Any) -> Sequence[str]:
        return []

    def replies(self, message: Any) -> Sequence[Any]:
        return [{"result": None, "id": message["id"]}]

    def streams(self, url: str) -> Sequence[str]:
        return parse_qs(urlsplit(url).query).get("streams", [""])[0].split("/")

    def data(self, message: Any) -> tuple[str, Any] | None:
        return (message["stream"], message["data"]) if "stream" in message else None

    def is_reply(self, message: Any) -> bool:
        return "id" in message and "stream" not in message

    def spoil(self, message: Any) -> Any:
        data = message["data"]
        shifted = {name: data[name] + 1 for name in ("U", "u", "pu") if name in data}
        return {**message, "data": {**data, **shifted}} if "U" in data else None


class DeribitVenue(Quiet):
    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        return Deribit(url=url)

    def asks(self, message: Any) -> Sequence[str]:
        return message["params"]["channels"] if re.fullmatch(r"p\w+/subscribe", message.get("method", "")) else []

    def gives_up(self, message: Any) -> Sequence[str]:
        return message["params"]["channels"] if re.fullmatch(r"p\w+/unsubscribe", message.get("method", "")) else []

    def confirms(self, message: Any) -> Sequence[str]:
        return message["result"] if isinstance(message.get("result"), list) else []

    def replies(self, message: Any) -> Sequence[Any]:
        channels = [*self.asks(message), *self.gives_up(message)]
        return [{"jsonrpc": "2.0", "id": message["id"], "result": channels or "ok"}]

    def is_reply(self, message: Any) -> bool:
        return "result" in message

    def data(self, message: Any) -> tuple[str, Any] | None:
        about = message.get("params", {}) if message.get("method") == "subscription" else {}
        return (about["channel"], about["data"]) if about else None

    def spoil(self, message: Any) -> Any:
        about = message["params"]
        if "prev_change_id" not in about["data"]:
            return None
        previous = about["data"]["prev_change_id"] + 1
        return {**message, "params": {**about, "data": {**about["data"], "prev_change_id": previous}}}


VENUES: Mapping[str, Venue] = {
    **dict.fromkeys(("BINANCE", "BINANCE_DELIVERY", "BINANCE_FUTURES", "BINANCE_US"), BinanceVenue()),
    "BYBIT": BybitVenue(),
    "COINBASE": CoinbaseVenue(),
    "DERIBIT": DeribitVenue(),
    "KRAKEN": KrakenVenue(),
    "OKX": OkxVenue(),
}
"""By the first part of the name of a file."""


def _other_digit(size: str) -> str:
    """Return another size, as long as it was."""
    return f"{size[:-1]}{(int(size[-1]) + 1) % 10}"
