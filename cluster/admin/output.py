"""How commands speak: JSON or words on stdout, complaints on stderr, and the four exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

NANOSECONDS = 1_000_000_000


class Exit(IntEnum):
    """What a script may rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INDEFINITE = 3  # it may have happened


class Failure(click.ClickException):
    """A command that did not do its work: what went wrong, and what to do next."""

    def __init__(self, what: str, do: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(what)
        self.do = do
        self.exit_code = int(code)  # type: ignore[misc]  # click declares it for the class, reads it here
        ctx = click.get_current_context(silent=True)
        self.as_json = bool(ctx is not None and ctx.params.get("as_json"))

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - click's signature
        """Say it on stderr; with --json as `{"error", "do", "exit_code"}`."""
        if self.as_json:
            said = {"error": self.message, "do": self.do, "exit_code": self.exit_code}
            click.echo(json.dumps(said, ensure_ascii=False), err=True)
            return
        click.echo(f"holdfast: {self.message}", err=True)
        if self.do:
            click.echo(f"  do: {self.do}", err=True)


class Group(click.Group):
    """A group that lists its commands with the whole first sentence of each one's help."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands."""
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=200)) for name in names])


def json_option(function: F) -> F:
    """Add --json to a command, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")(
        function
    )


def leave(code: Exit) -> NoReturn:
    """End the command with this exit code."""
    raise SystemExit(int(code))


def print_json(value: object) -> None:
    """Print one JSON value, indented on a terminal and on one line elsewhere."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; plain when stdout is no terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width; rich's assumption of 80 columns would fold names that a script looks for.
    Console(width=None if sys.stdout.isatty() else 400, markup=False, highlight=False).print(table)


def in_words(nanoseconds: int) -> str:
    """A duration for people: "0.25 s", "12 s", "3 min 5 s", "2 h 10 min", "4 d 3 h"."""
    if nanoseconds < 10 * NANOSECONDS:
        return f"{nanoseconds / NANOSECONDS:.3g} s"
    seconds = nanoseconds // NANOSECONDS
    for upper, lower, size, part in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if seconds < 60:
            break
        if seconds < size * (60 if upper == "min" else 24) or upper == "d":
            rest = seconds % size // part
            return f"{seconds // size} {upper}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds} s"


def moment(nanoseconds: int) -> str:
    """An instant in UTC, to the millisecond: "2026-01-02T03:04:05.678Z"."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """A duration as Temporal's command line takes it ("72h", "1h30m", "3d"); the value is seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Sum up the parts; every character has to belong to one."""
        if isinstance(value, float):
            return value
        parts = _DURATION_PART.findall(str(value))
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is no duration; write it like 72h, 3d or 1h30m", param, ctx)
        return sum(float(number) * _DURATION_UNIT_S[unit] for number, unit in parts)
