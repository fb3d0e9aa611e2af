"""The language of a service on one link: what its messages are, and how ours are written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from trio_nova.handlers import AuthExchange, AuthHandler, Channel, ConnectionInfo, Correlation, SubscriptionHandler
from trio_nova.handlers.auth import reveal_all
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.readings import AuthOk, AuthRefused, Reading, Step

__all__ = ["Dialect"]

_AUTH = AuthHandler()
_CORRELATION = Correlation()
_SUBSCRIPTIONS = SubscriptionHandler()


class Dialect:
    """The hooks that speak on one link: `Adapter.open_link` makes one for each, and it may keep what is the link's.

    Each hook that is overridden takes the place of the one of that name in a strategy; a strategy that is given at
    the call comes before both. All decide and cannot wait, but for `authenticate`.
    """

    # ----------------------------------------------------------------- what arrives

    def read(self, message: Any) -> Reading | None:
        """Return what a message is, as the codec decoded it; None: as the strategies have it.

        Asked once for each message, in the order of the wire.

        Raises:
            BadMessage: it is not acceptable. It is then reported, and goes nowhere; the link stays.
        """
        return None

    def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
        """Return what each of several messages is: as `read` does, which is asked in its place where one comes alone.

        Asked, where it is overridden, about all that one look at the link has brought. To be overridden together with
        `read`, and for speed alone.
        """
        return [self.read(message) for message in messages]

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        """Return what a message says to the authentication; None where it is no answer to it."""
        return _AUTH.handle_auth_response(message)

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        """Return what a message says of subscriptions; see `SubscriptionHandler.handle_subscription_response`."""
        return _SUBSCRIPTIONS.handle_subscription_response(message)

    def matches(self, filter: str, channel: Hashable) -> bool:
        """Return whether data of `channel` belong to what is subscribed to: see `SubscriptionHandler.matches`."""
        return filter == channel

    def link_step(self, message: Any) -> Step | int | None:
        """Return where a message stands in one sequence of all messages: see `SubscriptionHandler.link_step`."""
        return None

    # ----------------------------------------------------------------- what is sent

    def encode_message(self, message: Any) -> Any:
        """Return what is handed to the codec in place of `message`: see `MessageHandler.encode_message`."""
        return message

    def request_id(self, message: Any) -> Hashable | None:
        """Return the id that the caller gave a question; None where it has none."""
        return _CORRELATION.request_id(message)

    def tag(self, message: Any, id: Any) -> Any:
        """Return the question with an id of the session's; None where its kind has no place for one."""
        return _CORRELATION.tag(message, id)

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        """Prove to the service who we are, by default with `encode_auth_request`; see `AuthHandler.authenticate`."""
        given = reveal_all(credentials)
        message = None if given is None else self.encode_auth_request(given)
        return AuthOk() if message is None else await exchange.ask(message, self.handle_auth_response)

    def encode_auth_request(self, credentials: Any) -> Any:
        """Return the message that authenticates. Asked on every link, where there are credentials.

        They come as they were given, unmasked: use them up here, and keep them nowhere.
        """
        return _AUTH.encode_auth_request(credentials)

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        """Return what to ask of the service on every new link. See `ConnectionHandler.setup_requests`."""
        return ()

    def split_batch(self, channels: Sequence[Channel]) -> Iterable[Sequence[Channel]]:
        """Return channels in the groups in which to ask for them: see `SubscriptionHandler.split_batch`."""
        return [channels]

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        """Return the message that asks for `channel`; None where there is nothing to say, and `confirms` is off."""
        return _SUBSCRIPTIONS.encode_subscription_request(channel, params)

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        """Return the message that asks for several channels: see `SubscriptionHandler.encode_subscription_batch`."""
        return _SUBSCRIPTIONS.encode_subscription_batch(channels)

    def encode_unsubscription_request(self, channel: str) -> Any:
        """Return the message that gives `channel` up; None where there is nothing to say."""
        return _SUBSCRIPTIONS.encode_unsubscription_request(channel)

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        """Return the message that gives a subscription up: see `SubscriptionHandler.encode_unsubscription`."""
        return self.encode_unsubscription_request(channel.name)

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        """Return the message that gives several up: see `SubscriptionHandler.encode_unsubscription_batch`."""
        return NotImplemented

    def encode_farewell(self) -> Any:
        """Return the last message before the link is closed on purpose; None: there is none to say.

        It is sent also where the block is cancelled, for at most `Config.close_timeout`, and never on a link that was
        lost.
        """
        return None
