"""Each adapter of this folder is a page."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

from trio_nova import Adapter
from trio_nova.adapter import hook_faults, shadowed_hooks

PAGE = 90
"""Lines of code: what is neither empty nor a comment nor a docstring."""
ADAPTERS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))

_BLANK = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})


def lines_of_code(source: str) -> int:
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                prose.update(range(node.lineno, (node.end_lineno or 0) + 1))
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _BLANK
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - prose) - 1  # the end of the file is a token too


def test_only_code_is_counted() -> None:
    assert lines_of_code('"""A module."""\n\n# why\nx = [\n    1,\n]\n\n\ndef f():\n    """Do."""\n    return x\n') == 5


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_is_a_page(path: Path) -> None:
    assert lines_of_code(path.read_text("utf-8")) <= PAGE


def test_the_hooks_of_every_adapter_can_be_called() -> None:
    kinds = [kind for kind in Adapter.__subclasses__() if kind.__module__.startswith("tests.shapes.")]
    for kind in kinds:
        assert not hook_faults(kind)
        assert not shadowed_hooks(kind(host="server.test"))
