"""Codecs: between messages, as the program knows them, and the payloads of frames."""

from trio_nova.codecs._binary import BinaryCodec as BinaryCodec
from trio_nova.codecs._checks import check_codec as check_codec
from trio_nova.codecs._json import JsonCodec as JsonCodec
from trio_nova.codecs._json import MixedCodec as MixedCodec
from trio_nova.codecs._json import RawCodec as RawCodec
from trio_nova.codecs._json import encode_json as encode_json
from trio_nova.codecs._msgpack import MsgpackCodec as MsgpackCodec
from trio_nova.codecs._packets import LengthPrefixed as LengthPrefixed
from trio_nova.codecs._packets import Packets as Packets
from trio_nova.codecs._seam import BadFrame as BadFrame
from trio_nova.codecs._seam import Codec as Codec
from trio_nova.codecs._seam import LinkCodec as LinkCodec
from trio_nova.codecs._seam import StreamBroken as StreamBroken
from trio_nova.codecs._seam import StreamCodec as StreamCodec
from trio_nova.codecs._seam import as_plain as as_plain
from trio_nova.codecs._seam import batch_decoder as batch_decoder
from trio_nova.codecs._seam import open_link_codec as open_link_codec
from trio_nova.codecs._seam import share_of as share_of
from trio_nova.codecs._seam import weigher as weigher
from trio_nova.codecs._separated import Lines as Lines
from trio_nova.codecs._separated import Records as Records
from trio_nova.codecs._weights import MARK_WEIGHT as MARK_WEIGHT
from trio_nova.codecs._weights import weigh_json as weigh_json
from trio_nova.codecs._weights import weigh_message as weigh_message
from trio_nova.codecs._zlib import ZlibStream as ZlibStream
from trio_nova.codecs._zstd import ZstdStream as ZstdStream

__all__ = [
    "BadFrame",
    "BinaryCodec",
    "Codec",
    "JsonCodec",
    "LengthPrefixed",
    "Lines",
    "LinkCodec",
    "MixedCodec",
    "MsgpackCodec",
    "Packets",
    "RawCodec",
    "Records",
    "StreamBroken",
    "StreamCodec",
    "ZlibStream",
    "ZstdStream",
]
