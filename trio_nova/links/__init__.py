"""Links: one WebSocket each, and the transports that open them."""

from trio_nova.links._deflate import Deflate as Deflate
from trio_nova.links._dial import SystemResolver as SystemResolver
from trio_nova.links._dial import unix_stream as unix_stream
from trio_nova.links._frames import FRAGMENT_OVERHEAD as FRAGMENT_OVERHEAD
from trio_nova.links._governor import ConnectGovernor as ConnectGovernor
from trio_nova.links._governor import Turn as Turn
from trio_nova.links._governor import shared_governor as shared_governor
from trio_nova.links._proxy import ENVIRONMENT as ENVIRONMENT
from trio_nova.links._proxy import parse_proxy as parse_proxy
from trio_nova.links._seam import Dial as Dial
from trio_nova.links._seam import Link as Link
from trio_nova.links._seam import Resolver as Resolver
from trio_nova.links._seam import Sent as Sent
from trio_nova.links._seam import StreamFactory as StreamFactory
from trio_nova.links._seam import Transport as Transport
from trio_nova.links._seam import refuse_what_lacks as refuse_what_lacks
from trio_nova.links._uplink import Transit as Transit
from trio_nova.links.trio_websocket import AdoptedTransport as AdoptedTransport
from trio_nova.links.trio_websocket import TrioWebsocketTransport as TrioWebsocketTransport
from trio_nova.links.wire import WireTransport as WireTransport
