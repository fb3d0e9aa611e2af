"""How the package is built: imports point one way, the public names are the agreed ones, modules say what they are.

Everything is read from the sources, nothing is imported: a broken module does not hide the others' faults.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "trio_nova"

SHELL = "_*.py"
"""Stands for every private module at the top of the package."""

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"disguises", "secrets"}),
    frozenset({"urls", "messages", "events"}),
    frozenset({"core"}),
    frozenset({"readings"}),
    frozenset({"codecs"}),
    frozenset({"handlers", "observe"}),
    frozenset({"_signal"}),
    frozenset({"links"}),
    frozenset({"options"}),
    frozenset({"config", "profiles", "dialect"}),
    frozenset({"adapter"}),
    frozenset({SHELL, "registry"}),
    frozenset({"client", "adapters"}),
    frozenset({"__init__"}),
    frozenset({"demo", "testing", "check", "__main__"}),
)
"""A module imports from its own layer and from those above it, never from one below."""

LEAVES: dict[str, frozenset[str]] = {
    "testing": frozenset({"check", "__main__"}),
    "check": frozenset({"__main__"}),
    "demo": frozenset({"__main__"}),
    "__main__": frozenset(),
}
"""What is there for users and not for the library, and who may import it all the same."""

IMPURE = frozenset({"trio", "time", "random", "secrets", "os"})
"""What would let core/ wait, read a clock or throw dice."""


@attrs.frozen
class Module:
    """One source file; `path` is relative to the package's folder."""

    path: Path
    source: str = attrs.field(repr=False)

    @property
    def part(self) -> str:
        """The top-level module or folder that it belongs to."""
        return self.path.parts[0].removesuffix(".py")

    @property
    def name(self) -> str:
        """Its dotted name."""
        parts = ("trio_nova", *self.path.with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    @property
    def folder(self) -> str:
        """The dotted name of the package that it stands in."""
        return ".".join(("trio_nova", *self.path.parent.parts))

    def tree(self) -> ast.Module:
        return parsed(self.source)

    def line(self, number: int) -> str:
        """Show one line as an editor's jump list would."""
        return f"trio_nova/{self.path}:{number}: {self.source.splitlines()[number - 1].strip()}"


@attrs.frozen
class Import:
    """One module imported by another, wherever in the file: `target` is its dotted name."""

    by: Module
    target: str
    number: int
    typing_only: bool = False
    """Whether it stands under `if TYPE_CHECKING:`."""

    @property
    def part(self) -> str:
        """The top-level module or folder of trio_nova that is imported from; "" for a foreign one."""
        root, *rest = self.target.split(".")
        return "" if root != "trio_nova" else rest[0] if rest else "__init__"

    def __str__(self) -> str:
        return self.by.line(self.number)


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def package_of(texts: dict[str, str]) -> dict[str, Module]:
    """Make modules, by dotted name, of texts by path."""
    found = (Module(Path(path), text) for path, text in texts.items())
    return {module.name: module for module in found}


def sources() -> dict[str, Module]:
    """Read the package from where it stands."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return package_of({str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in paths})


def imports_of(module: Module, known: frozenset[str]) -> Iterator[Import]:
    """Yield what `module` imports; `from package import name` counts as `package.name` where that is a module.

    Relative imports are left to ruff, which bans them.
    """
    tree = module.tree()
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(module, alias.name, node.lineno, id(node) in typing_only)
            case ast.ImportFrom(module=str(target), level=0, names=names):
                for alias in names:
                    longer = f"{target}.{alias.name}"
                    found = longer if longer in known else target
                    yield Import(module, found, alias.lineno, id(node) in typing_only)


def all_imports(modules: dict[str, Module]) -> list[Import]:
    """Return every import of the package once, however many names it takes."""
    known = frozenset(modules)
    return list(dict.fromkeys(each for module in modules.values() for each in imports_of(module, known)))


def layer_of(part: str) -> int:
    """Return the index of the layer that a top-level part stands in; -1 where it has none."""
    names = {part, SHELL} if part.startswith("_") and not part.startswith("__") else {part}
    return next((index for index, layer in enumerate(LAYERS) if names & layer), -1)


# --------------------------------------------------------------------------- the rules


def unplaced(modules: dict[str, Module]) -> list[str]:
    return [f"trio_nova/{module.path} has no layer" for module in modules.values() if layer_of(module.part) < 0]


def against_the_layers(modules: dict[str, Module]) -> list[str]:
    return [
        f"{each} ({each.by.part} may not import from {each.part})"
        for each in all_imports(modules)
        if each.part and layer_of(each.part) > layer_of(each.by.part)
    ]


def in_a_circle(modules: dict[str, Module]) -> list[str]:
    """Find what the layers leave open: an order inside each layer. Types alone may refer to each other."""
    graph: dict[str, set[str]] = {}
    for each in all_imports(modules):
        if each.target in modules and each.target != each.by.name and not each.typing_only:
            graph.setdefault(each.by.name, set()).add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return [" is imported by ".join(exc.args[1])]
    return []


def into_the_leaves(modules: dict[str, Module]) -> list[str]:
    return [
        f"{each} (nothing in the library imports {each.part})"
        for each in all_imports(modules)
        if each.part in LEAVES and each.by.part not in LEAVES[each.part] | {each.part}
    ]


def impure_core(modules: dict[str, Module]) -> list[str]:
    return [
        f"{each} (core decides, and never waits)"
        for each in all_imports(modules)
        if each.by.part == "core" and each.target.split(".")[0] in IMPURE
    ]


def into_private_modules(modules: dict[str, Module]) -> list[str]:
    """Find imports of `package._module` from outside `package`."""
    found: list[str] = []
    for each in all_imports(modules):
        parts = each.target.split(".")
        private = next((i for i, name in enumerate(parts) if name.startswith("_") and not name.startswith("__")), None)
        if not each.part or private is None:
            continue
        owner = ".".join(parts[:private])
        if f"{each.by.folder}.".startswith(f"{owner}."):
            continue
        found.append(f"{each} (import it from {owner})")
    return found


def without_docstring(modules: dict[str, Module]) -> list[str]:
    return [f"trio_nova/{module.path}" for module in modules.values() if not ast.get_docstring(module.tree())]


def unfinished(modules: dict[str, Module]) -> list[str]:
    return [
        module.line(number)
        for module in modules.values()
        for number, line in enumerate(module.source.splitlines(), 1)
        if "TODO" in line or "FIXME" in line
    ]


MOST_LINES_OF_A_CLASS = 400
MOST_LINES_OF_A_FUNCTION = 60

ASSIGNED_FROM_OUTSIDE = {
    "*.__cause__": "an exception that was caught and is not raised here",
    "*.__context__": "it is raised as it is",
    "*.__traceback__": "frames are forgotten where that is asked for",
    "error.retry": "whoever asks again knows better than who raised it",
    "error.session": "the session signs the errors that leave it",
    "exc.args": "an error of ours is cleansed of secrets in place",
    "exc.phase": "the phase is known where the error passes",
    "failure.phase": "the phase is known where the error passes",
    "record.*": "a record of the standard library's logging is cleansed in place",
    "*.shield": "a scope of Trio",
    "scope.deadline": "a scope of Trio",
    "*.counts.*": "tallies: each is counted where it happens, and read by statistics() alone",
    "room.held": "the room of a queue, which the queue beside it fills and empties",
    "*.room.held": "the room of a queue, which the queue beside it fills and empties",
    "*mailbox.claimed": "a mailbox and its receiver, in one module",
    "*mailbox.turns": "a mailbox and its receiver, in one module",
    "entry.*": "an entry of a book, which only the book changes, in one module",
    "awaited.*": "a pong that is awaited, which only the heartbeat changes, in one module",
    "ear.failed": "an observer of the hub's, in one module",
    "look_up.*": "a look-up of the resolver's, in one module",
    "desk.busy": "the look-ups under way of the resolver's, in one module",
    "line.members": "an address of the governor's, in one module",
    "contract.*": "a contract test is given its subject as a class of tests is",
    "observer.hears": "a function is given what it hears by a decorator",
    "guard.on_refusal": "the nursery that it cancels is opened around a guard that is at work already",
    "scanner.violation": "a rule of time, which the scanner of bytes cannot know",
    "self._protocol.ending": "a reason that the sans-I/O half cannot know",
}
"""The attributes that are assigned from outside their class, and why. Patterns of the source."""


def lines_without_docstrings(node: ast.stmt) -> int:
    """Count the lines of a class or function, docstrings and strings below fields apart."""
    texts = [
        inner
        for inner in ast.walk(node)
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, str)
    ]
    return lines_of(node) - sum(map(lines_of, texts))


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def not_for_tests(modules: dict[str, Module]) -> Iterator[Module]:
    return (module for module in modules.values() if module.part not in ("testing", "demo"))


def too_long(modules: dict[str, Module]) -> list[str]:
    most = {
        ast.ClassDef: MOST_LINES_OF_A_CLASS,
        ast.FunctionDef: MOST_LINES_OF_A_FUNCTION,
        ast.AsyncFunctionDef: MOST_LINES_OF_A_FUNCTION,
    }
    return [
        module.line(node.lineno)
        for module in not_for_tests(modules)
        for node in ast.walk(module.tree())
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and lines_without_docstrings(node) > most[type(node)]
    ]


def assigned_from_outside(modules: dict[str, Module]) -> list[str]:
    found: list[str] = []
    for module in not_for_tests(modules):
        for node in ast.walk(module.tree()):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            owner, target = ast.unparse(node.value), ast.unparse(node)
            if owner not in ("self", "cls") and not any(fnmatch(target, known) for known in ASSIGNED_FROM_OUTSIDE):
                found.append(module.line(node.lineno))
    return found


Rule: TypeAlias = Callable[[dict[str, Module]], list[str]]

RULES: tuple[Rule, ...] = (
    unplaced,
    against_the_layers,
    in_a_circle,
    into_the_leaves,
    impure_core,
    into_private_modules,
    without_docstring,
    unfinished,
    too_long,
    assigned_from_outside,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing_in_the_package_is(rule: Rule) -> None:
    offences = rule(sources())
    assert not offences, "\n".join(["", *offences])


BROKEN: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (unplaced, {"things.py": ""}, "trio_nova/things.py has no layer"),
    (
        against_the_layers,
        {"errors.py": "\nfrom trio_nova.core import backoff", "core/backoff.py": ""},
        "trio_nova/errors.py:2: from trio_nova.core import backoff (errors may not import from core)",
    ),
    (
        against_the_layers,
        {"_link.py": "def dial():\n    import trio_nova.client"},
        "trio_nova/_link.py:2: import trio_nova.client (_link may not import from client)",
    ),
    (
        against_the_layers,
        {"client.py": "from trio_nova import Config"},
        "trio_nova/client.py:1: from trio_nova import Config (client may not import from __init__)",
    ),
    (
        in_a_circle,
        {"urls.py": "import trio_nova.messages", "messages.py": "from trio_nova import urls"},
        "trio_nova.urls is imported by trio_nova.messages is imported by trio_nova.urls",
    ),
    (
        into_the_leaves,
        {"demo/market.py": "import trio_nova.testing"},
        "trio_nova/demo/market.py:1: import trio_nova.testing (nothing in the library imports testing)",
    ),
    (
        impure_core,
        {"core/pulse.py": "from time import monotonic"},
        "trio_nova/core/pulse.py:1: from time import monotonic (core decides, and never waits)",
    ),
    (
        into_private_modules,
        {"config.py": "from trio_nova.links._seam import Dial, Link"},
        "trio_nova/config.py:1: from trio_nova.links._seam import Dial, Link (import it from trio_nova.links)",
    ),
    (without_docstring, {"errors.py": "x = 1"}, "trio_nova/errors.py"),
    (unfinished, {"errors.py": "x = 1  # TODO: y"}, "trio_nova/errors.py:1: x = 1  # TODO: y"),
    (too_long, {"urls.py": "def f():\n" + "    x = 1\n" * 60}, "trio_nova/urls.py:1: def f():"),
    (
        assigned_from_outside,
        {"_link.py": "def f(link):\n    link.nursery = None"},
        "trio_nova/_link.py:2: link.nursery = None",
    ),
)


@pytest.mark.parametrize(("rule", "texts", "offence"), BROKEN)
def test_a_rule_names_the_line_that_breaks_it(rule: Rule, texts: dict[str, str], offence: str) -> None:
    assert rule(package_of(texts)) == [offence]


SOUND = {
    "__init__.py": '"""A package."""\nfrom trio_nova._dial import dial as dial',
    "__main__.py": '"""A command."""\nfrom trio_nova import demo, dial',
    "_dial.py": '"""The shell."""\nimport trio\nfrom trio_nova.links import Link\nfrom trio_nova import _tasks',
    "_tasks.py": '"""Its tasks."""\nimport trio_nova.errors\nif TYPE_CHECKING:\n    import trio_nova._dial',
    "demo.py": '"""A show."""',
    "errors.py": '"""What can go wrong."""',
    "links/__init__.py": '"""The seam."""\nfrom trio_nova.links._seam import Link as Link',
    "links/_seam.py": '"""A link."""\nimport time',
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_is_content_with_a_sound_package(rule: Rule) -> None:
    assert rule(package_of(SOUND)) == []


# --------------------------------------------------------------------------- the tests

SHARED_WITH_OTHERS = frozenset(
    {f"time.{clock}{unit}" for clock in ("monotonic", "perf_counter", "time") for unit in ("", "_ns")}
    | {"threading.active_count", "threading.enumerate"}
)
"""What depends on whoever else has the processor."""

MAY_LOOK = {
    "autobahn/run.py": "waits for a server in another process",
    "bench": "measures, on a machine that does nothing else",
    "links/test_upgrade.py": "Retry-After may be a date",
    "live/conftest.py": "waits for servers in other processes",
    "sim/mutants.py": "tells how long a hunt took",
    "survival": "measures, on a machine that does nothing else",
    "sweep/__main__.py": "tells how long a sweep took",
    "test_ways_out.py": "looks for threads by the names that are ours alone",
}
"""The files and folders of tests that may look at it, and why no assertion of theirs fails by load."""


def at_the_mercy_of_load(path: Path, source: str) -> list[str]:
    """Find where a test looks at a clock of the wall, or at all the threads there are."""
    if {path.as_posix(), path.parts[0]} & MAY_LOOK.keys():
        return []
    tree = ast.parse(source)
    froms = [
        (node.lineno, f"{node.module}.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    used = [(node.lineno, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [f"tests/{path}:{number}: {what}" for number, what in froms + used if what in SHARED_WITH_OTHERS]


def test_no_test_fails_because_the_machine_has_other_things_to_do() -> None:
    offences = [
        offence
        for path in sorted(TESTS.rglob("*.py"))
        for offence in at_the_mercy_of_load(path.relative_to(TESTS), path.read_text("utf-8"))
    ]
    remedy = (
        "use virtual time (autojump_clock, over sockets too), time.process_time or an event, or say why in MAY_LOOK"
    )
    assert not offences, "\n".join([remedy, *offences])


def test_a_look_at_the_wall_clock_is_found() -> None:
    source = "import time\nfrom threading import enumerate\nbegan = time.monotonic()\nspent = time.process_time()"
    assert at_the_mercy_of_load(Path("test_x.py"), source) == [
        "tests/test_x.py:2: threading.enumerate",
        "tests/test_x.py:3: time.monotonic",
    ]
    assert at_the_mercy_of_load(Path("bench/run.py"), source) == []


def public_names(module: Module) -> list[str]:
    """Return what the package's `__init__` offers, sorted: every public name that it imports or assigns."""
    names: set[str] = set()
    for node in module.tree().body:
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return sorted(name for name in names if not name.startswith("_") and name != "annotations")


def test_the_public_names_are_the_agreed_ones() -> None:
    modules = sources()
    assert "trio_nova" in modules, "trio_nova/__init__.py is missing"
    offered = public_names(modules["trio_nova"])
    agreed = (TESTS / "public_names.txt").read_text("utf-8").split()
    new = sorted(set(offered) - set(agreed))
    gone = sorted(set(agreed) - set(offered))
    assert not new, f"add to tests/public_names.txt, and to the changelog: {new}"
    assert not gone, f"the changelog owes the users an explanation for removing {gone}"
    assert agreed == offered, "tests/public_names.txt is not sorted, or has a name twice"
