"""A scripted WebSocket server, and the contracts of links and adapters: what trio_nova's own tests use, for yours.

::

    async def greet(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("hello")
        await peer.send("world")
        await peer.drop()

    async def test_it_comes_back(autojump_clock):
        async with ScriptedServer(greet, then=echo) as server:
            async with trio_nova.open_connection("ws://server.test/", stream_factory=server.stream_factory) as conn:
                ...
        assert [dial.ended for dial in server.dials] == ["dropped", "closed"]

The server speaks frames with a codec of its own, checks every byte of the client against RFC 6455, and
can break any rule itself. Nothing else of trio_nova imports this package. TLS needs `trustme`.
"""

from trio_nova.testing._accounts import Order as Order
from trio_nova.testing._accounts import Token as Token
from trio_nova.testing._frames import ClosePayload as ClosePayload
from trio_nova.testing._frames import FromClient as FromClient
from trio_nova.testing._frames import Opcode as Opcode
from trio_nova.testing._frames import ProtocolBreach as ProtocolBreach
from trio_nova.testing._frames import encode_frame as encode_frame
from trio_nova.testing._market import Book as Book
from trio_nova.testing._memory import MemoryStream as MemoryStream
from trio_nova.testing._memory import memory_streams as memory_streams
from trio_nova.testing._peer import Dialled as Dialled
from trio_nova.testing._peer import Disconnected as Disconnected
from trio_nova.testing._peer import Ending as Ending
from trio_nova.testing._peer import Peer as Peer
from trio_nova.testing._peer import Received as Received
from trio_nova.testing._peer import echo as echo
from trio_nova.testing._rates import RateLimit as RateLimit
from trio_nova.testing._rates import RollingWindow as RollingWindow
from trio_nova.testing._rates import TokenBucket as TokenBucket
from trio_nova.testing._rates import worst_window as worst_window
from trio_nova.testing._samples import Exchange as Exchange
from trio_nova.testing._samples import Sample as Sample
from trio_nova.testing._server import HangDial as HangDial
from trio_nova.testing._server import HangTls as HangTls
from trio_nova.testing._server import Listening as Listening
from trio_nova.testing._server import Refuse as Refuse
from trio_nova.testing._server import Script as Script
from trio_nova.testing._server import ScriptedServer as ScriptedServer
from trio_nova.testing._server import Step as Step
from trio_nova.testing._twists import UNKNOWN_ID as UNKNOWN_ID
from trio_nova.testing._twists import Later as Later
from trio_nova.testing._twists import Twist as Twist
from trio_nova.testing._twists import after as after
from trio_nova.testing._twists import cut_after as cut_after
from trio_nova.testing._twists import cut_before as cut_before
from trio_nova.testing._twists import followed_by as followed_by
from trio_nova.testing._twists import in_batch as in_batch
from trio_nova.testing._twists import lookalike as lookalike
from trio_nova.testing._twists import never as never
from trio_nova.testing._twists import preceded_by as preceded_by
from trio_nova.testing._twists import twice as twice
from trio_nova.testing._twists import with_fields as with_fields
from trio_nova.testing._twists import with_result as with_result
from trio_nova.testing._twists import with_unknown_id as with_unknown_id
from trio_nova.testing._upgrade import Headers as Headers
from trio_nova.testing._upgrade import Request as Request
from trio_nova.testing._venue_link import CUT as CUT
from trio_nova.testing._venue_link import Asked as Asked
from trio_nova.testing._venue_link import Said as Said
from trio_nova.testing._venue_link import VenueLink as VenueLink
from trio_nova.testing._venue_server import VenueServer as VenueServer
from trio_nova.testing.adapter_contract import AdapterContract as AdapterContract
from trio_nova.testing.generic_venue import GenericVenue as GenericVenue
from trio_nova.testing.link_contract import LinkContract as LinkContract
from trio_nova.testing.link_contract import make_dial as make_dial
from trio_nova.testing.venue import Venue as Venue
