"""Properties of the source itself that no off-the-shelf linter checks.

An exception is an entry in one of the tables here, with its reason. An entry that is needed no more fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ROOMS = ("cluster", "replication", "history_store", "sdk", "chaos")
MODULE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70

# "path" -> why this module may be longer.
LONG_MODULES: dict[str, str] = {}

# "path::Class.function" -> why this function may be longer.
LONG_FUNCTIONS: dict[str, str] = {}

# Paths of one person's machine, and notes to oneself: a reader elsewhere cannot follow them.
STRANGE_WORDS = re.compile(r"/home/\w|/Users/\w|/root/\w|FIXME|TODO|\bXXX\b")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".sh", ".txt", ".yml", ".yaml", ".tf", ""}
LEFT_OUT = {".git", ".venv", "build", "dist", "node_modules", "__pycache__"}


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((REPO / room).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def texts() -> Iterator[Path]:
    """Everything of ours that a person reads."""
    for path in sorted(REPO.rglob("*")):
        parts = path.relative_to(REPO).parts
        hidden = any(part in LEFT_OUT or (part.startswith(".") and part != ".ci") for part in parts)
        if path.is_file() and not hidden and path.suffix in TEXT_SUFFIXES and path != Path(__file__):
            yield path


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function with its lines, decorators and docstring not counted."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first = child.body[0]
                documented = ast.get_docstring(child) is not None
                docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
                yield f"{prefix}{child.name}", (child.end_lineno or 0) - child.lineno + 1 - docstring
                yield from visit(child, f"{prefix}{child.name}.")
            else:
                yield from visit(child, prefix)

    yield from visit(ast.parse(path.read_text()), "")


def opens_by_saying_what_it_is_for(path: Path) -> Iterator[str]:
    if not ast.get_docstring(ast.parse(path.read_text())):
        yield f"{name_of(path)}:1: a module opens by saying what it is for"


def is_not_too_long(path: Path) -> Iterator[str]:
    lines = path.read_text().count("\n")
    if lines > MODULE_LINES_MAX and name_of(path) not in LONG_MODULES:
        yield f"{name_of(path)}: {lines} lines; at most {MODULE_LINES_MAX}, or a reason in LONG_MODULES"


def has_no_long_function(path: Path) -> Iterator[str]:
    for function, lines in functions(path):
        where = f"{name_of(path)}::{function}"
        if lines > FUNCTION_LINES_MAX and where not in LONG_FUNCTIONS:
            yield f"{where}: {lines} lines; at most {FUNCTION_LINES_MAX}, or a reason in LONG_FUNCTIONS"


@pytest.mark.parametrize("rule", [opens_by_saying_what_it_is_for, is_not_too_long, has_no_long_function])
def test_every_module(rule: Callable[[Path], Iterator[str]]) -> None:
    found = [complaint for path in modules() for complaint in rule(path)]
    assert not found, "\n" + "\n".join(found)


def test_exceptions_are_still_needed() -> None:
    for where in LONG_MODULES:
        assert (REPO / where).read_text().count("\n") > MODULE_LINES_MAX, where
    for where in LONG_FUNCTIONS:
        path, _, function = where.partition("::")
        assert dict(functions(REPO / path)).get(function, 0) > FUNCTION_LINES_MAX, where


def test_no_words_that_belong_to_no_project() -> None:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            word = STRANGE_WORDS.search(line)
            if word:
                found.append(f"{name_of(path)}:{number}: {word.group()!r}: {line.strip()[:80]}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("room", [*ROOMS, "deploy/terraform"])
def test_every_room_has_a_readme_that_opens_with_its_invariant(room: str) -> None:
    readme = REPO / room / "README.md"
    assert readme.is_file()
    head = "\n".join(readme.read_text().splitlines()[:8])
    assert "nvariant" in head, f"{room}/README.md: the invariant belongs at the top"
