"""What goes wrong, and when: a table of kinds of faults, and schedules drawn from a seed.

A schedule is a literal: it can be printed, shortened, and played again. To add a kind, write a function
that begins it and returns what ends it, and put `@fault_kind` above it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import attrs
import msgspec
import trio

from trio_nova.links import FRAGMENT_OVERHEAD
from trio_nova.testing import _twists as twists
from trio_nova.testing._frames import Opcode, encode_frame
from trio_nova.testing._peer import Disconnected, Peer
from trio_nova.testing._venue_link import VenueLink
from trio_nova.testing.sim._exchange import ExchangeServer, StoreMood
from trio_nova.testing.sim._net import DialFate, Host, Way, Weather
from trio_nova.testing.sim._scenario import BACKUP, DETOUR, ELSEWHERE, ILLEGAL_NUMBER, MAX_MESSAGE, Scenario
from trio_nova.testing.sim._servers import SimServer
from trio_nova.testing.sim._world import World

__all__ = ["FAULTS", "Fault", "FaultKind", "draw_schedule", "fault_kind", "heal", "make_fair", "play_schedule"]

HOSTILE_TEXT = "go\naway\r\n\x1b[2J‮now"
"""A reason that must reach no log as it is."""
LONG_TEXT = HOSTILE_TEXT + " and more" * 300
"""One that must not reach it whole either; short enough to be read whole."""
CARRIES = 10_000.0
"""Bytes per second, at least, that a network carries each way once all is well: what services say must fit through."""


@attrs.frozen
class Fault:
    """One thing that goes wrong."""

    kind: str
    """A key of `FAULTS`."""
    at: float
    """Seconds from the start of the run."""
    lasts: float = 0.0
    """Seconds; 0 for what is over at once."""
    args: Mapping[str, Any] = attrs.field(factory=dict)


Undo: TypeAlias = Callable[[], object]
Begin: TypeAlias = Callable[[World, Fault], Undo | None]


@attrs.frozen
class FaultKind:
    """A row of `FAULTS`."""

    name: str
    begin: Begin = attrs.field(repr=False)
    """Lets a fault begin, and returns what ends it."""
    lasts: tuple[float, float]
    """Seconds, at least and at most."""
    choices: Mapping[str, tuple[Any, ...]]
    """What each of the fault's args may be."""
    servers: tuple[str, ...]
    """The kinds of service that it can happen to; none for all."""
    ends_with: tuple[str, ...]
    """The errors with which a session may end of it; none: it must survive."""

    @property
    def is_fatal(self) -> bool:
        """Whether a session may end of it."""
        return bool(self.ends_with)

    def draw(self, dice: random.Random, at: float) -> Fault:
        """Return a fault of this kind."""
        args = {name: dice.choice(values) for name, values in self.choices.items()}
        lasts = round(dice.uniform(*self.lasts), 3) if self.lasts[1] else 0.0
        return Fault(self.name, round(at, 3), lasts, args)


FAULTS: dict[str, FaultKind] = {}
"""Every kind of fault, by name."""


def fault_kind(
    name: str,
    *,
    lasts: tuple[float, float] = (0.0, 0.0),
    servers: Iterable[str] = (),
    ends_with: Iterable[str] = (),
    **choices: tuple[Any, ...],
) -> Callable[[Begin], Begin]:
    """Put a kind of fault into the table."""

    def register(begin: Begin) -> Begin:
        FAULTS[name] = FaultKind(name, begin, lasts, choices, tuple(servers), tuple(ends_with))
        return begin

    return register


def draw_schedule(seed: int, scenario: Scenario) -> tuple[Fault, ...]:
    """Return what goes wrong in the run of a seed: of few kinds, and in one seed of five of a single one.

    Where clients lag, floods are always among them. Those that only this kind of service has come often.
    """
    dice = random.Random(f"{seed}:faults")
    possible = [kind for kind in FAULTS.values() if not kind.servers or scenario.server in kind.servers]
    several = dice.random() < 0.8
    enabled = [kind for kind in possible if dice.random() < 0.25] if several else []
    enabled = enabled or [dice.choice(possible)]
    if several:
        enabled += 3 * [kind for kind in possible if kind.servers and not kind.is_fatal and dice.random() < 0.5]
    if scenario.lags and FAULTS["flood"] not in enabled:
        enabled.append(FAULTS["flood"])
    count = dice.randint(1, max(1, round(scenario.length / 8)))
    times = sorted(dice.uniform(0.0, scenario.length) for _ in range(count))
    return tuple(dice.choice(enabled).draw(dice, at) for at in times)


async def play_schedule(world: World, schedule: Iterable[Fault]) -> None:
    """Let all of a schedule happen, then heal."""
    undone: list[tuple[float, int, Undo]] = []

    def end_until(at: float) -> float:
        undone.sort(key=lambda each: each[:2])
        while undone and undone[0][0] <= at:
            undone.pop(0)[2]()
        return undone[0][0] if undone else at

    for number, fault in enumerate(sorted(schedule, key=lambda each: each.at)):
        if fault.at >= world.scenario.length:
            break
        while (next_end := end_until(trio.current_time())) < fault.at and undone:
            await world.net.pause(next_end - trio.current_time())
        await world.net.pause(max(0.0, fault.at - trio.current_time()))
        kind = FAULTS[fault.kind]
        args = dict(fault.args)
        world.journal.add("fault.begin", kind=kind.name, ends_with=list(kind.ends_with), lasts=fault.lasts, args=args)
        undo = kind.begin(world, fault)
        if undo is not None:
            undone.append((trio.current_time() + fault.lasts, number, undo))
    while undone and undone[0][0] < world.scenario.length:
        await world.net.pause(max(0.0, undone[0][0] - trio.current_time()))
        end_until(trio.current_time())
    await world.net.pause(max(0.0, world.scenario.length - trio.current_time()))
    for _, _, undo in undone:
        undo()
    heal(world)


def heal(world: World) -> None:
    """Make everything perfect, and say so."""
    world.journal.add("run.healed")
    for host in world.net.hosts.values():
        host.fate = "ok"
        host.next_fates.clear()
        for weather in (host.c2s, host.s2c):
            make_fair(weather, world.scenario)
            weather.window = max(weather.window, math.ceil(2 * weather.latency * CARRIES))
    for link in list(world.net.links.values()):
        for way in link.ways:
            way.held, way.cut_at = False, float("inf")
            way.release()
            way.changed.unpark_all()
    for server in world.servers.values():
        server.calm_down()
    world.healed.set()


def make_fair(weather: Weather, scenario: Scenario) -> None:
    """Make the weather what the scenario says it is without faults."""
    weather.latency, weather.jitter, weather.bandwidth = scenario.latency, scenario.jitter, float("inf")
    weather.slice_size, weather.window, weather.held = scenario.slice_size, scenario.window, False


# --------------------------------------------------------------------------- of the network


def _server(world: World) -> SimServer:
    return next(iter(world.servers.values()))


def _host(world: World) -> Host:
    return _server(world).host


def _links(world: World) -> list[Any]:
    return [link for name in _server(world).addresses for link in world.net.links_of(name)]


_DIRECTIONS = ("c2s", "s2c", "both")


def _ways(world: World, direction: str) -> list[Way]:
    return [way for link in _links(world) for way in link.ways if direction in (way.direction, "both")]


def _weathers(world: World, direction: str) -> list[Weather]:
    host = _host(world)
    return [each for name, each in (("c2s", host.c2s), ("s2c", host.s2c)) if direction in (name, "both")]


@fault_kind("reset", end=("client", "server", "both"))
def _reset(world: World, fault: Fault) -> None:
    for link in _links(world):
        match fault.args["end"]:
            case "client":
                link.client.break_off()
            case "server":
                link.server.break_off()
            case _:
                link.reset()


@fault_kind("cut", direction=_DIRECTIONS, after=(0, 1, 5, 40, 300))
def _cut(world: World, fault: Fault) -> None:
    for way in _ways(world, fault.args["direction"]):
        way.cut_at = way.sent + fault.args["after"]


@fault_kind("fin", direction=("c2s", "s2c"))
def _fin(world: World, fault: Fault) -> None:
    for link in _links(world):
        link.end_way(fault.args["direction"])


@fault_kind("hole", lasts=(1.0, 40.0), direction=_DIRECTIONS, reach=("links", "host"))
def _hole(world: World, fault: Fault) -> Undo:
    ways = _ways(world, fault.args["direction"])
    held: list[Way | Weather] = list(
        ways if fault.args["reach"] == "links" else _weathers(world, fault.args["direction"])
    )
    for each in held:
        each.held = True

    def release() -> None:
        for each in held:
            each.held = False
        for link in _links(world):
            for way in link.ways:
                way.release()

    return release


def _change_weather(name: str, world: World, fault: Fault) -> Undo:
    weathers = _weathers(world, fault.args["direction"])
    before = [getattr(weather, name) for weather in weathers]
    for weather in weathers:
        setattr(weather, name, fault.args["to"])

    def put_back() -> None:
        for weather, value in zip(weathers, before, strict=True):
            setattr(weather, name, value)
        for way in _ways(world, "both"):
            if name == "bandwidth":
                way.widen()
            way.changed.unpark_all()

    return put_back


for _name, _attribute, _values in (
    ("latency", "latency", (0.5, 3.0, 10.0)),
    ("jitter", "jitter", (0.3, 2.0)),
    ("bandwidth", "bandwidth", (100.0, 1_000.0, 10_000.0)),
    ("slices", "slice_size", (1, 3, 50)),
    ("small window", "window", (16, 200)),
    ("zero window", "window", (0,)),
):
    fault_kind(_name, lasts=(2.0, 40.0), direction=_DIRECTIONS, to=_values)(partial(_change_weather, _attribute))


def _change_fate(fate: DialFate, world: World, fault: Fault) -> Undo:
    host = _host(world)
    host.fate = fate
    if fault.args["drop"]:
        for link in _links(world):
            link.reset()

    def put_back() -> None:
        host.fate = "ok"

    return put_back


_FATES: tuple[DialFate, ...] = (
    "dns failure",
    "dns silence",
    "refused",
    "silence",
    "tls failure",
    "tls silence",
    "accepted, then fin",
    "accepted, then rst",
)
for _fate in _FATES:
    fault_kind(_fate, lasts=(2.0, 30.0), drop=(True, True, False))(partial(_change_fate, _fate))
fault_kind("certificate refused", lasts=(2.0, 10.0), ends_with=("TlsFailed",), drop=(True, False))(
    partial(_change_fate, "certificate refused")
)


@fault_kind("swizzle", lasts=(1.0, 30.0))
def _swizzle(world: World, fault: Fault) -> Undo:
    dice = world.dice("swizzle")
    links = [link for link in _links(world) if dice.random() < 0.5]
    for way in (way for link in links for way in link.ways):
        way.held = True

    def release(way: Way) -> None:
        way.held = False
        way.release()

    def release_in_turn() -> None:
        dice.shuffle(links)
        for number, link in enumerate(links):
            for way in link.ways:
                world.net.call_at(trio.current_time() + number * dice.uniform(0.1, 3.0), partial(release, way))

    return release_in_turn


# --------------------------------------------------------------------------- of the upgrade


@fault_kind(
    "http status",
    status=(408, 425, 429, 500, 502, 503, 504, 520),
    retry_after=(None, "3", "12", "-1", "junk"),
    times=(1, 3),
)
def _http_status(world: World, fault: Fault) -> None:
    server = _server(world)
    refuse = partial(_refuse, server, fault.args["status"], fault.args["retry_after"])
    server.venue.play_next(refuse, fault.args["times"])
    _drop_links(world)


async def _refuse(server: SimServer, status: int, retry_after: str | None, peer: Peer) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    link = server.net_link_of(peer)
    server.net.journal.add("server.refused", link=link, status=status, retry_after=retry_after)
    await peer.reject(status, headers, LONG_TEXT.encode())


@fault_kind("endless patience", retry_after=("3600", "99999999999", "9" * 60))
def _ask_for_ages(world: World, fault: Fault) -> None:
    _server(world).venue.play_next(partial(_refuse_for_ages, world, fault.args["retry_after"]))
    _drop_links(world)


async def _refuse_for_ages(world: World, retry_after: str, peer: Peer) -> None:
    server = _server(world)
    link = world.net.links.get(server.net_link_of(peer))
    knows_us = link is not None and link.owner in world.opened
    await _refuse(server, 503, retry_after if knows_us else None, peer)


@fault_kind("complaint", retry_after=(2, "4", -1, "junk", None), code=(429, 10028), times=(1, 3))
def _complain(world: World, fault: Fault) -> None:
    server = _server(world)
    error = {"code": fault.args["code"], "message": LONG_TEXT, "data": {"retry_after": fault.args["retry_after"]}}

    def complain(answer: dict[str, Any]) -> list[Any]:
        return [{"id": answer.get("id"), "type": "response", "error": error}]

    server.venue.twist(server.methods["request"], complain, fault.args["times"])


@fault_kind("forbidden", ends_with=("HandshakeRejected",), status=(401, 403, 404))
def _forbidden(world: World, fault: Fault) -> None:
    _server(world).venue.refuse_dials(fault.args["status"])
    _drop_links(world)


@fault_kind("redirect", ends_with=("RedirectRefused",), status=(301, 302, 307, 308))
def _redirect(world: World, fault: Fault) -> None:
    _server(world).venue.refuse_dials(fault.args["status"], headers={"Location": f"ws://{ELSEWHERE}/"})
    _drop_links(world)


@fault_kind("detour", lasts=(1.0, 15.0), status=(301, 302, 307, 308))
def _detour(world: World, fault: Fault) -> Undo:
    server = _server(world)
    server.venue.play_next(partial(_redirect_within, server, fault.args["status"]))
    _drop_links(world)
    return partial(_drop_links, world)


async def _redirect_within(server: SimServer, status: int, peer: Peer) -> None:
    server.net.journal.add("server.redirected", link=server.net_link_of(peer), path=DETOUR)
    await peer.reject(status, {"Location": DETOUR})


@fault_kind("no upgrade", how=("wrong key", "cut head", "junk", "endless head", "silence"), times=(1, 3))
def _no_upgrade(world: World, fault: Fault) -> None:
    _server(world).venue.play_next(partial(_answer_wrongly, fault.args["how"]), fault.args["times"])
    _drop_links(world)


async def _answer_wrongly(how: str, peer: Peer) -> None:
    await peer.read_request()
    match how:
        case "wrong key":
            await peer.send_raw(peer.upgrade_response(key="d3JvbmcgYW5zd2VyIHRvIGl0IQ=="))
        case "cut head":
            await peer.send_raw(peer.upgrade_response()[:40])
            await peer.drop()
            return
        case "junk":
            await peer.send_raw(b"SSH-2.0-OpenSSH_9.6\r\n\x00\xff\r\n\r\n")
        case "endless head":
            await peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-More: and more\r\n" * 5_000)
        case _:
            pass
    await peer.mute()


async def _accept_then_close(peer: Peer, code: int) -> None:
    await peer.accept()
    await peer.close(code, "not now")


@fault_kind("accepted, then closed", code=(1001, 1013, 4000), times=(1, 4))
def _closed_at_once(world: World, fault: Fault) -> None:
    _server(world).venue.play_next(partial(_accept_then_close, code=fault.args["code"]), fault.args["times"])
    _drop_links(world)


def _drop_links(world: World) -> None:
    for link in _links(world):
        link.reset()


# --------------------------------------------------------------------------- of the service


@fault_kind("restart", lasts=(0.0, 20.0), forget=(True, False))
def _restart(world: World, fault: Fault) -> Undo:
    server = _server(world)
    server.restart(forget=fault.args["forget"])
    server.host.fate = "refused"

    def come_up() -> None:
        server.host.fate = "ok"

    return come_up


@fault_kind("close", code=(1000, 1001, 1005, 1008, 1011, 1012, 1013, 4000), reason=("", "bye", HOSTILE_TEXT))
def _close(world: World, fault: Fault) -> None:
    code = fault.args["code"]
    _server(world).venue.close(code, "" if code == 1005 else fault.args["reason"])


@fault_kind("dropped")
def _drop(world: World, fault: Fault) -> None:
    _server(world).venue.drop()  # FIN, and no close frame before it


@fault_kind("mute", lasts=(1.0, 40.0))
def _mute(world: World, fault: Fault) -> Undo:
    venue = _server(world).venue
    venue.mute()
    return venue.unmute


_TWISTS: Mapping[str, twists.Twist] = {
    "lost": twists.never,
    "twice": twists.twice,
    "late": twists.after(4.0),
    "too late": twists.after(12.0),
    "cut before": twists.cut_before,
    "cut after": twists.cut_after,
    "unknown id first": twists.with_unknown_id,
}


@fault_kind("reply", verb=("auth", "subscribe", "unsubscribe", "request"), how=tuple(_TWISTS), times=(1, 1, 3))
def _reply(world: World, fault: Fault) -> None:
    server = _server(world)
    server.venue.twist(server.methods[fault.args["verb"]], _TWISTS[fault.args["how"]], fault.args["times"])


@fault_kind("restore held up", times=(2, 12))
def _hold_restore_up(world: World, fault: Fault) -> None:
    server = _server(world)
    server.venue.twist(server.methods["subscribe"], twists.never, fault.args["times"])
    _drop_links(world)


@fault_kind("replies reordered", count=(2, 3, 5))
def _reorder(world: World, fault: Fault) -> None:
    _server(world).venue.hold_answers(fault.args["count"])


@fault_kind("auth refused", ends_with=("AuthFailed",), servers=("json",))
def _refuse_auth(world: World, fault: Fault) -> None:
    server = _server(world)
    server.venue.twist(server.methods["auth"], lambda answer: [{"type": "auth_error", "reason": LONG_TEXT}])
    _drop_links(world)


@fault_kind("auth expired")
def _expire(world: World, fault: Fault) -> None:
    _server(world).expire()


@fault_kind("messages lost", count=(1, 5))
def _lose_messages(world: World, fault: Fault) -> None:
    server = _server(world)
    for channel in server.channels():
        for _ in range(fault.args["count"]):
            server.emit(channel, told=False)


@fault_kind("messages twice")
def _repeat_messages(world: World, fault: Fault) -> None:
    server = _server(world)
    for channel in server.channels():
        server.repeat(channel)


@fault_kind("flood", count=(20, 200))
def _flood(world: World, fault: Fault) -> None:
    server = _server(world)
    for _ in range(fault.args["count"]):
        for channel in server.channels():
            server.emit(channel)


_MOODS: tuple[StoreMood, ...] = ("slow", "silent", "failing", "too much", "too little", "behind")


@fault_kind("refused for now", servers=("broker", "exchange"), count=(1, 4))
def _refuse_for_now(world: World, fault: Fault) -> None:
    _server(world).refuse_for_now(fault.args["count"])
    _drop_links(world)


@fault_kind("streams ended", servers=("broker",), drop=(True, False, False))
def _end_streams(world: World, fault: Fault) -> None:
    server = _server(world)
    for channel in server.channels():
        server.end_stream(channel)
    if fault.args["drop"]:
        world.net.call_at(trio.current_time() + 2.0, partial(_drop_links, world))


@fault_kind("too fast", servers=("exchange",), retry_after=(2.0, 6.0))
def _slow_down(world: World, fault: Fault) -> None:
    _server(world).venue.send({"op": "slow", "retry_after": fault.args["retry_after"]})


@fault_kind("go away", servers=("exchange",), to=("", "/moved", BACKUP), within=(None, 5.0))
def _go_away(world: World, fault: Fault) -> None:
    server, to, within = _server(world), fault.args["to"], fault.args["within"]
    url = f"ws://{server.name}{to}" if to.startswith("/") else f"ws://{to}/" if to in server.addresses else None
    for link in server.venue.live_links:
        link.say({"op": "goaway", "url": url, "within": within})
        if within is not None:
            world.net.call_at(trio.current_time() + within, partial(link.close, 1001, "maintenance"))


@fault_kind("store", lasts=(2.0, 30.0), servers=("exchange",), mood=_MOODS)
def _upset_store(world: World, fault: Fault) -> Undo:
    server = _server(world)
    assert isinstance(server, ExchangeServer)
    server.set_mood(fault.args["mood"])
    return partial(server.set_mood, "fine")


_ILLEGAL: Mapping[str, tuple[int, Callable[[bytes], bytes]]] = {
    "reserved opcode": (1002, lambda text: encode_frame(3, text)),
    "masked": (1002, lambda text: encode_frame(Opcode.TEXT, text, mask=True)),
    "reserved bit": (1002, lambda text: encode_frame(Opcode.TEXT, text, rsv=2)),
    "fragmented ping": (1002, lambda text: encode_frame(Opcode.PING, b"x", fin=False)),
    "long ping": (1002, lambda text: encode_frame(Opcode.PING, bytes(126))),
    "continuation without a start": (1002, lambda text: encode_frame(Opcode.CONTINUATION, text)),
    "message within a message": (
        1002,
        lambda text: encode_frame(Opcode.TEXT, b" ", fin=False) + encode_frame(Opcode.TEXT, text),
    ),
    "not UTF-8": (1007, lambda text: encode_frame(Opcode.TEXT, b"\xff\xfe")),
    "huge": (1009, lambda text: encode_frame(Opcode.TEXT, b"", length=2**40)),
    "close code": (1002, lambda text: encode_frame(Opcode.CLOSE, b"\x03\xe7")),
}
"""The close code that answers each, and how it is made: with a legal message inside, where there is room for one."""


def _not_to_be_heard(server: SimServer, link: VenueLink) -> list[bytes]:
    """Return messages that the client would deliver, one for each of its channels, and must not be given."""
    messages = [server.message(link, channel, ILLEGAL_NUMBER) for channel in link.subscriptions]
    return [msgspec.json.encode(message) for message in messages]


@fault_kind("illegal frame", how=tuple(_ILLEGAL))
def _illegal_frame(world: World, fault: Fault) -> None:
    for link in _server(world).venue.live_links:
        world.start(_say_illegally, world, link, fault.args["how"])


async def _say_illegally(world: World, link: VenueLink, how: str) -> None:
    server = _server(world)
    number, texts = server.net_link(link), _not_to_be_heard(server, link)
    code, forge = _ILLEGAL[how]
    illegal = forge(texts[0] if texts else b"{}")
    behind = b"".join(encode_frame(Opcode.TEXT, text) for text in texts)
    with suppress(Disconnected):
        await link.peer.send_raw(illegal + behind)
        if number in world.net.links:
            end = world.net.links[number].s2c.sent - len(behind)
            world.journal.add("server.illegal", link=number, how=how, code=code, end=end)


_MOST_FRAGMENTS = MAX_MESSAGE // FRAGMENT_OVERHEAD


@fault_kind("fragments", count=(_MOST_FRAGMENTS + 1, 3 * _MOST_FRAGMENTS), size=(0, 1))
def _fragments(world: World, fault: Fault) -> None:
    for link in _server(world).venue.live_links:
        world.start(_say_in_pieces, world, link, fault.args["count"], fault.args["size"])


async def _say_in_pieces(world: World, link: VenueLink, count: int, size: int) -> None:
    server = _server(world)
    number, piece = server.net_link(link), encode_frame(Opcode.CONTINUATION, b" " * size, fin=False)
    with suppress(Disconnected):
        await link.peer.send_raw(encode_frame(Opcode.TEXT, b"", fin=False) + piece * count)
        if number in world.net.links:
            end = world.net.links[number].s2c.sent
            world.journal.add("server.illegal", link=number, how="fragments", code=1009, end=end)


@fault_kind("half a message", then=("reset", "fin", "goodbye", "another"))
def _half_a_message(world: World, fault: Fault) -> None:
    for link in _server(world).venue.live_links:
        world.start(_say_half, world, link, fault.args["then"])


async def _say_half(world: World, link: VenueLink, then: str) -> None:
    server = _server(world)
    number = server.net_link(link)
    with suppress(Disconnected):
        for text in _not_to_be_heard(server, link)[:1]:
            await link.peer.send_raw(encode_frame(Opcode.TEXT, text, fin=False))
            match then:
                case "goodbye":
                    await link.peer.send_raw(encode_frame(Opcode.CLOSE, b"\x03\xe9"))
                case "fin" if number in world.net.links:
                    world.net.links[number].end_way("s2c")
                case "reset" if number in world.net.links:
                    below = world.net.links[number]
                    world.net.call_at(below.s2c.last_arrival, below.reset)
                case _:
                    pass  # the next message of the service's is illegal, within this one


@fault_kind(
    "junk", text=('{"channel": 7}', "[1, 2", '{"type": "subscribed", "channel": "nobody"}', '{"id": null}', "7")
)
def _junk(world: World, fault: Fault) -> None:
    _server(world).venue.send(fault.args["text"])


@fault_kind("clock jump", seconds=(-3600.0, 10.0, 86_400.0))
def _jump(world: World, fault: Fault) -> None:
    world.clock_offset += fault.args["seconds"]
