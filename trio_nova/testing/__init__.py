"""A scripted WebSocket server, and the contract of links: what trio_nova's own tests use, for yours.

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

from trio_nova.testing._frames import ClosePayload as ClosePayload
from trio_nova.testing._frames import FromClient as FromClient
from trio_nova.testing._frames import Opcode as Opcode
from trio_nova.testing._frames import ProtocolBreach as ProtocolBreach
from trio_nova.testing._frames import encode_frame as encode_frame
from trio_nova.testing._memory import MemoryStream as MemoryStream
from trio_nova.testing._memory import memory_streams as memory_streams
from trio_nova.testing._peer import Dialled as Dialled
from trio_nova.testing._peer import Disconnected as Disconnected
from trio_nova.testing._peer import Ending as Ending
from trio_nova.testing._peer import Peer as Peer
from trio_nova.testing._peer import Received as Received
from trio_nova.testing._peer import echo as echo
from trio_nova.testing._server import HangDial as HangDial
from trio_nova.testing._server import HangTls as HangTls
from trio_nova.testing._server import Listening as Listening
from trio_nova.testing._server import Refuse as Refuse
from trio_nova.testing._server import Script as Script
from trio_nova.testing._server import ScriptedServer as ScriptedServer
from trio_nova.testing._server import Step as Step
from trio_nova.testing._upgrade import Headers as Headers
from trio_nova.testing._upgrade import Request as Request
from trio_nova.testing.link_contract import LinkContract as LinkContract
from trio_nova.testing.link_contract import make_dial as make_dial
