"""The documentation is true: its programs print what it says, its tables are the code's, its links lead somewhere.

Every `python` block in README.md and docs/ is one of two things:

* a program, which ends in `trio.run(main)`, or has plain code below `if __name__ == "__main__":`. Where it
  dials port 8765 it is served by the tutorial's own server, in memory and in virtual time. A block marked
  `text output` that follows is what it prints.
* tests, whose functions are run as pytest-trio would, with an autojump clock.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import config
from trio_nova.core.session import state_diagram
from trio_nova.errors import NovaError
from trio_nova.testing import Listening, MemoryStream, Script, ScriptedServer, echo

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVER = ("127.0.0.1", 8765)
"""Where the programs of the documentation find the tutorial's server."""

PATIENCE = 3600.0
"""Seconds, virtual ones, after which a program has failed: with heartbeats, virtual time never stands still."""

_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@attrs.frozen
class Block:
    """A fenced block; `info` is what stands behind the fence."""

    page: str
    line: int
    info: str
    text: str = attrs.field(repr=False)
    output: str | None = attrs.field(default=None, repr=False)
    """What the page says that it prints."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_program(self) -> bool:
        return "trio.run(main)" in self.text or 'if __name__ == "__main__":' in self.text

    def run_definitions(self, name: str) -> dict[str, Any]:
        """Run it as a module called `name`, and return what it defines."""
        # As many line ends before it as there are on the page: a traceback then names the page's own line.
        code = compile("\n" * self.line + self.text, ROOT / self.page, "exec", dont_inherit=True)
        namespace: dict[str, Any] = {"__name__": name}
        exec(code, namespace)
        return namespace


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks_of(path: Path) -> list[Block]:
    page, text = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
    found = [Block(page, text.count("\n", 0, at.start()) + 1, at[1], at[2]) for at in _BLOCK.finditer(text)]
    following = zip(found, [*found[1:], None], strict=False)
    return [
        attrs.evolve(block, output=after.text) if after is not None and after.info == "text output" else block
        for block, after in following
    ]


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
PYTHON = [block for block in BLOCKS if block.info.startswith("python")]
PROGRAMS = [block for block in PYTHON if block.is_program]
TESTS = [block for block in PYTHON if not block.is_program]
(SERVER_BLOCK,) = (block for block in PROGRAMS if block.text.startswith("# server.py"))


# --------------------------------------------------------------------------- programs


class Socket(trio.socket.SocketType):
    """As much of a socket as `trio.SocketStream` needs, connected to a server in memory."""

    did_shutdown_SHUT_WR = False

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__()
        self._server = server
        self._stream: MemoryStream | None = None

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    def setsockopt(self, *args: object) -> None:
        pass

    async def connect(self, address: object) -> None:
        assert address == SERVER
        self._stream = await self._server.stream_factory(*SERVER)

    async def send(self, data: Buffer, flags: int = 0) -> int:
        assert self._stream is not None
        whole = bytes(data)
        await self._stream.send_all(whole)
        return len(whole)

    async def recv(self, size: int, flags: int = 0) -> bytes:
        assert self._stream is not None
        return await self._stream.receive_some(size)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


@attrs.frozen
class Network(trio.abc.SocketFactory):
    """A network on which there is one server."""

    server: ScriptedServer

    def socket(self, family: object = None, type: object = None, proto: object = None) -> Socket:
        return Socket(self.server)


def run_with(script: Script) -> Callable[..., object]:
    """Return what stands in for `trio.run`: it serves `script` at port 8765, in virtual time."""
    real_run = trio.run

    async def on_stage(main: Callable[..., Awaitable[object]], *args: object) -> None:
        async with ScriptedServer(then=script) as server:
            trio.socket.set_custom_socket_factory(Network(server))
            await within_patience(partial(main, *args))

    def run(main: Callable[..., Awaitable[object]], *args: object) -> None:
        real_run(on_stage, main, *args, clock=MockClock(autojump_threshold=0))

    return run


@pytest.mark.parametrize("block", [block for block in PROGRAMS if block is not SERVER_BLOCK], ids=str)
def test_a_program_runs_and_prints_what_the_page_says(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if f"localhost:{SERVER[1]}" in block.text:
        monkeypatch.setattr(trio, "run", run_with(SERVER_BLOCK.run_definitions("server")["serve"]))
    block.run_definitions("__main__")
    assert capsys.readouterr().out == (block.output or "")


async def test_the_tutorials_server_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = ScriptedServer.listen
    told, urls = trio.open_memory_channel[str](1)

    @asynccontextmanager
    async def listen_anywhere(server: ScriptedServer, *, port: int) -> AsyncIterator[Listening]:
        assert port == SERVER[1]
        async with listen(server) as listening:
            told.send_nowait(listening.url)
            yield listening

    monkeypatch.setattr(ScriptedServer, "listen", listen_anywhere)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SERVER_BLOCK.run_definitions("server")["main"])
            async with trio_nova.open_connection(await urls.receive() + "echo") as conn:
                await conn.send_text("hello")
                assert await conn.receive() == "hello"
            nursery.cancel_scope.cancel()


async def within_patience(test: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(PATIENCE):
        await test()


@pytest.mark.parametrize("block", TESTS, ids=str)
def test_the_tests_on_a_page_pass(block: Block) -> None:
    definitions = block.run_definitions("documentation")
    tests = [each for name, each in definitions.items() if name.startswith("test_")]
    assert tests, "neither a program that ends in trio.run(main) nor a test"
    for test in tests:
        if not inspect.iscoroutinefunction(test):
            test()
            continue
        clock = MockClock(autojump_threshold=0)
        trio.run(
            within_patience, partial(test, **dict.fromkeys(inspect.signature(test).parameters, clock)), clock=clock
        )


def test_an_output_stands_behind_the_program_that_prints_it() -> None:
    outputs = [block for block in BLOCKS if block.info == "text output"]
    assert len(outputs) == len([block for block in PROGRAMS if block.output is not None])


# --------------------------------------------------------------------------- commands


def test_the_readme_begins_with_the_two_commands_of_the_set_up() -> None:
    demo, tests, *_ = (block for block in BLOCKS if block.page == "README.md")
    assert (demo.info, tests.info) == ("sh", "sh")
    assert demo.text.splitlines()[-1].endswith("-m trio_nova demo")
    assert tests.text.splitlines()[-1].endswith("nox -s tests")


# --------------------------------------------------------------------------- links


def links() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        prose = _BLOCK.sub("", path.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            yield path.relative_to(ROOT).as_posix(), target


def anchors(path: Path) -> set[str]:
    """Return the anchors that a forge makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), [link for link in links() if "://" not in link[1]])
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not anchor or anchor in anchors(path)


def test_every_page_can_be_found_from_the_map() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for page, target in links() if page == "docs/index.md"}
    assert linked >= set(PAGES) - {index}


def named_tests() -> list[str]:
    text = "".join(path.read_text("utf-8") for path in PAGES)
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", text)))


@pytest.mark.parametrize("name", named_tests())
def test_a_test_that_is_named_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert function in functions(file)


@functools.cache
def functions(file: str) -> frozenset[str]:
    statements = ast.parse(read(file)).body
    return frozenset(each.name for each in statements if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_promise_names_a_test_that_checks_it() -> None:
    promises = re.split(r"^## ", read("docs/guarantees.md").split("## How they are checked")[0], flags=re.MULTILINE)[1:]
    assert len(promises) >= 8
    assert [promise.splitlines()[0] for promise in promises if "::test_" not in promise] == []


# --------------------------------------------------------------------------- tables


def rows(page: str) -> Mapping[str, list[str]]:
    """Return the rows of all tables of a page that begin with a name, by that name."""
    found: dict[str, list[str]] = {}
    for line in read(page).splitlines():
        if line.startswith("| `"):
            name, *cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|\n"))]
            assert name not in found, f"{name} is listed twice"
            found[name.strip("`")] = cells
    return found


def shown(default: Any) -> str:
    """Return how the documentation writes the default of an option."""
    match default:
        case _ if (factory := getattr(default, "factory", None)) is not None:
            return f"{factory.__name__}()" if factory is not dict else "{}"
        case int() if default >= 1024 * 1024 and default % (1024 * 1024) == 0:
            return f"{default // (1024 * 1024)} * 1024 * 1024"
        case frozenset():
            return f"{{{', '.join(map(repr, sorted(default)))}}}"
        case float():
            return "math.inf" if default == float("inf") else repr(default)
        case type():
            return default.__name__
        case config._unix_time:
            return "time.time"
        case _ if callable(default):
            home = next(each for each in (os, random, time) if getattr(each, default.__name__, None) == default)
            return f"{home.__name__}.{default.__name__}"
        case _:
            return repr(default)


def test_the_table_of_options_is_the_codes_own() -> None:
    documented = rows("docs/reference/config.md")
    fields = attrs.fields(trio_nova.Config)
    assert list(documented) == [field.name for field in fields]
    for field in fields:
        kind, default, unit, live, meaning = documented[field.name]
        assert kind == f"`{str(field.type).replace('[M_co]', '')}`", field.name
        assert default == f"`{shown(field.default)}`", field.name
        assert unit, field.name
        assert live == ("yes" if field.name in config.RECONFIGURABLE else "no"), field.name
        assert meaning, field.name


def test_the_readmes_table_of_options_is_the_codes_own() -> None:
    fields = attrs.fields_dict(trio_nova.Config)
    for name, (default, *_) in rows("README.md").items():
        assert default == f"`{shown(fields[name].default)}`", name


def kinds(kind: type[NovaError] = NovaError) -> Iterator[type[NovaError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == NovaError.__module__:  # an adapter's own are of these kinds
            yield from kinds(each)


def test_every_value_that_travels_says_what_it_tells() -> None:
    for kind in vars(trio_nova.messages).values():
        if inspect.isclass(kind) and kind.__module__ == trio_nova.messages.__name__:
            assert kind.__doc__, kind


def test_every_error_is_documented_with_its_advice() -> None:
    documented = rows("docs/reference/errors.md")
    assert set(documented) == {kind.__name__ for kind in kinds()}
    for kind in kinds():
        phase, retry, *_ = documented[kind.__name__]
        assert phase == (f"`{kind.phase}`" if kind.phase else "varies"), kind.__name__
        assert retry == f"`{kind.retry}`", kind.__name__


ROLES = (
    trio_nova.Dialect,
    trio_nova.Adapter,
    trio_nova.ConnectionHandler,
    trio_nova.MessageHandler,
    trio_nova.SubscriptionHandler,
    trio_nova.AuthHandler,
    trio_nova.ErrorHandler,
    trio_nova.RateLimitHandler,
    trio_nova.LoggingHandler,
    trio_nova.MetricsCollector,
    trio_nova.Correlation,
    trio_nova.Heartbeat,
)
"""What has hooks, each class with those that it says itself."""


def hooks() -> set[str]:
    return {
        f"{role.__name__}.{name}"
        for role in ROLES
        for name, member in vars(role).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def traits() -> dict[str, object]:
    """Return the class attributes by which an adapter says what its service is like."""
    annotations: Mapping[str, object] = inspect.get_annotations(trio_nova.Adapter)
    return {name: getattr(trio_nova.Adapter, name) for name, kind in annotations.items() if "ClassVar" in str(kind)}


def test_every_hook_every_trait_and_every_reading_is_documented_and_no_other() -> None:
    documented = rows("docs/reference/hooks.md")
    readings = {kind.__name__ for kind in get_args(trio_nova.Reading)}
    assert set(documented) == hooks() | set(traits()) | readings
    assert [name for name, (meaning, *_) in documented.items() if not meaning] == []
    assert {name: documented[name][0] for name in traits()} == {name: repr(value) for name, value in traits().items()}


def test_a_hook_that_is_as_another_names_one_that_is_told() -> None:
    documented = rows("docs/reference/hooks.md")
    for name, (asked, *rest) in documented.items():
        if (other := re.match(r"as of `([\w.]+)`", asked)) is not None:
            assert documented[other[1]][1], name
        elif "." in name:
            assert rest[0], name


def test_the_hooks_that_are_said_to_wait_are_those_that_do() -> None:
    documented = rows("docs/reference/hooks.md")
    waiting = {name for name, (asked, *_) in documented.items() if "." in name and "*async*" in asked}
    may_wait = {"Adapter.connection_info", "ConnectionHandler.connection_info"}  # these may, and need not
    roles = {role.__name__: role for role in ROLES[:2]}
    for name in hooks():
        owner, _, hook = name.partition(".")
        if owner in roles:
            awaited = inspect.iscoroutinefunction(vars(roles[owner])[hook])
            assert (awaited or name in may_wait) == (name in waiting), name


def test_the_tree_of_errors_is_the_codes_own() -> None:
    doc = inspect.getdoc(trio_nova.errors)
    assert doc is not None
    tree = [line.strip() for line in doc.splitlines() if re.search(r"NovaError$|[├└]── ", line)]
    drawn = next(block for block in BLOCKS if block.page == "docs/reference/errors.md")
    assert [line.strip() for line in drawn.text.splitlines()] == tree


@pytest.mark.parametrize("page", ["docs/reference/limits.md", "SECURITY.md"])
def test_the_table_of_limits_is_the_codes_own(page: str) -> None:
    documented = rows(page)
    assert documented
    for where, (_, value, *_) in documented.items():
        assert value == f"`{shown(limit(where))}`", where


NO_LIMITS = {
    "__main__": "of the demo",
    "_link.grant._FIRST": "a priority",
    "_subscriptions.MAX_NAMED": "what an error names",
    "_mailbox._HIGH_WATER": "when an event tells of the inbox",
    "_mailbox._LOW_WATER": "when an event tells of the inbox",
    "adapters.deribit.UNAUTHORIZED": "a code of the service",
    "adapters.deribit.RAW_UNAUTHORIZED": "a code of the service",
    "codecs._packets._BATCH": "how much is decoded at once",
    "codecs._packets._VARINT": "of Protocol Buffers",
    "codecs._separated._CHUNK": "how much is cut at once",
    "codecs._zlib": "of the format",
    "core.breaker._LEAST_WAIT": "what rounding may leave of a wait",
    "core.limits._COARSE": "of which limits an event tells",
    "core.limits._LEFT_AT_MARK": "when an event tells of a rate limit",
    "core.limits._LEFT_WHEN_EASED": "when an event tells of a rate limit",
    "core.limits._TICKS": "a unit of time",
    "handlers.rate_limit.DEFAULT_QUEUE_SIZE": "stands in the table as the default of its field",
    "links._deflate._STEP": "which of two ways to the same result is taken",
    "links._deflate._WIDEST": "of the protocol",
    "links._frames": "of the protocol",
    "links._governor._NAMED": "what an error names",
    "links._pins": "of ASN.1",
    "links._uplink": "of Linux's struct tcp_info",
    "links._wire._CONTINUATION": "of the protocol",
}
"""Numbers of the code that are no limits, by module or name, and what they are."""


def numbers() -> Iterator[str]:
    """Yield the names of all numbers that modules of the library hold as constants, but those for tests."""
    library = Path(trio_nova.__file__).parent
    for path in sorted(library.rglob("*.py")):
        module = ".".join(path.relative_to(library).with_suffix("").parts)
        if module.startswith(("testing.", "demo.")):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in filter(str.isupper, names):
                value = getattr(importlib.import_module(f"trio_nova.{module}"), name)
                if type(value) in (int, float):
                    yield f"{module}.{name}"


def test_every_number_of_the_code_is_a_limit_that_is_listed_or_none() -> None:
    listed = rows("docs/reference/limits.md")
    found = set(numbers())
    exempt = {name for name in found if name in NO_LIMITS or name.rpartition(".")[0] in NO_LIMITS}
    assert found - exempt - set(listed) == set()
    assert {name for name in NO_LIMITS if not any(each.startswith(name) for each in exempt)} == set()


def limit(where: str) -> Any:
    """Return the default of `Config.field`, of a parameter `call(name)`, or of a constant `module.NAME`."""
    owner, _, name = where.rpartition(".")
    match owner, name:
        case ("Config" | "Buffer" | "ConnectGovernor" | "FeedOptions" | "RateLimitHandler", field):
            return attrs.fields_dict(getattr(trio_nova, owner))[field].default
        case "", call:
            method, parameter = call.removesuffix(")").split("(")
            return inspect.signature(getattr(trio_nova.Connection, method)).parameters[parameter].default
        case _:
            return getattr(importlib.import_module(f"trio_nova.{owner}"), name)


def test_the_diagram_of_states_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{state_diagram()}\n```" in read("docs/explanation/states.md")


async def test_the_task_tree_is_the_real_one(autojump_clock: MockClock) -> None:
    class Ticking(trio_nova.RateLimitHandler):
        def handle_tick(self) -> None:
            return None

    class Looking(trio_nova.MessageHandler):
        def handle_message(self, kind: str, message: Any) -> None:
            return None

    def named(task: trio.lowlevel.Task) -> str:
        return task.name.replace(conn.id, "3f2a91c4")

    def draw(task: trio.lowlevel.Task) -> set[tuple[str, str]]:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return {(named(task), named(child)) for child in children}.union(*map(draw, children))

    async with (
        ScriptedServer(echo) as server,
        trio_nova.open_connection(
            "ws://server.test/",
            stream_factory=server.stream_factory,
            rate_limit_handler=Ticking,
            message_handler=Looking,
        ) as conn,
    ):
        await conn.ping()
        (session,) = (
            task
            for nursery in trio.lowlevel.current_task().child_nurseries
            for task in nursery.child_tasks
            if task.name.endswith(":supervisor")
        )
        real = draw(session)
    drawn = next(block for block in BLOCKS if block.page == "docs/explanation/task-tree.md")
    branch: list[str] = []
    told: set[tuple[str, str]] = set()
    for line in drawn.text.splitlines():
        name = line.lstrip("│├└─ ")
        depth = (len(line) - len(name)) // 3
        branch[depth:] = [name]
        if depth:
            told.add((branch[depth - 1], name))
    assert told == real
