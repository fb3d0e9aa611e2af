"""The adapters that come with the library are short: they are what others copy."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ADAPTERS = Path(__file__).parents[2] / "trio_nova" / "adapters"
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_code(source: str) -> int:
    """Return the number of lines that hold a token, docstrings and comments apart."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def test_docstrings_comments_and_empty_lines_are_no_code() -> None:
    source = '"""One\n\nTwo."""\n# three\n\nx = (\n    1,  # four\n\n)\n"""five"""\ny = """six\nseven"""\n'
    assert count_code(source) == 5


@pytest.mark.parametrize(("name", "most"), [("echo", 30), ("jsonrpc", 115), ("deribit", 230)])
def test_an_adapter_that_comes_with_the_library_is_short(name: str, most: int) -> None:
    assert count_code((ADAPTERS / f"{name}.py").read_text()) <= most
