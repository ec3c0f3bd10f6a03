"""What the documents promise exists; what exists is in the documents."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cluster.admin.main import COMMANDS, holdfast
from cluster.hosting.config.options import ServerOptions

REPO = Path(__file__).parents[2]
LEFT_OUT = {".venv", ".git", "build", "node_modules"}
PAGES = sorted(path for path in REPO.rglob("*.md") if not LEFT_OUT & set(path.relative_to(REPO).parts))
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPERATIONS = (REPO / "docs/operations.md").read_text()
DECISIONS = sorted((REPO / "docs/decisions").glob("[0-9]*.md"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page make, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        path = page if not target else page.parent / target
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            dead.append(link)
    assert not dead, f"{name_of(page)}: {dead}"


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text())], ids=name_of)
def test_python_in_the_pages_compiles(page: Path) -> None:
    for code in FENCE.findall(page.read_text()):
        compile(code, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, groups left out."""
    context = click.Context(holdfast)
    for name in COMMANDS:
        command = holdfast.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"holdfast {name} {below}", command.commands[below]) for below in command.commands)
        else:
            yield f"holdfast {name}", command


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_every_command_and_flag_is_documented(name: str, command: click.Command) -> None:
    assert re.search(rf"`{name}[ `]", OPERATIONS), f"docs/operations.md does not have `{name}`"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            missing = [flag for flag in parameter.opts if f"`{flag}`" not in OPERATIONS]
            assert not missing, f"docs/operations.md does not have {missing} of {name}"


def test_the_page_has_no_command_that_does_not_exist() -> None:
    real = {name for name, _ in commands()}
    named = set(re.findall(r"^\| `(holdfast [a-z]+(?: [a-z-]+)?)", OPERATIONS, re.MULTILINE))
    assert named == real


def test_every_variable_of_a_flag_is_documented() -> None:
    for name, command in commands():
        for parameter in command.params:
            variables = parameter.envvar or ()
            for variable in [variables] if isinstance(variables, str) else variables:
                assert f"`{variable}`" in OPERATIONS, f"{variable} of {name}"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ServerOptions)])
def test_every_setting_of_the_server_is_documented(field: str) -> None:
    assert f"`{field}`" in OPERATIONS


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_its_parts_and_is_in_the_list(page: Path) -> None:
    text = page.read_text()
    assert re.match(rf"# 0*{int(page.name[:4])}[:.] .+", text)
    assert re.search(r"^Status: ", text, re.MULTILINE)
    parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert len(parts) >= 3, f"{name_of(page)}: what was known, what is decided, what follows"
    assert any("decision" in part.lower() for part in parts), f"{name_of(page)} has no part that decides"
    assert f"({page.name})" in (REPO / "docs/decisions/README.md").read_text()


def test_numbers_of_decisions_are_given_once() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(numbers) == len(set(numbers))
