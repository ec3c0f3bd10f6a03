"""The command line of the judge: `python -m chaos.checkers FILE...` says whether a history is linearizable.

Exit status: 0 for `ok` only, 1 for every other verdict, 2 where a file is no history.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from chaos.checkers.history import load
from chaos.checkers.linearizability import STEPS_MAX, check
from chaos.checkers.verdict import Verdict

PROBLEMS_SHOWN_MAX = 5


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--steps", default=STEPS_MAX, show_default=True, help="search steps for one workflow id")
@click.option("--json", "as_json", is_flag=True, help="the verdict as JSON")
def main(files: tuple[Path, ...], steps: int, as_json: bool) -> None:
    """Judge recorded histories (several, if their recorders shared a clock)."""
    try:
        record = load(files)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = check(record, steps_max=steps)
    if as_json:
        answer = {
            "verdict": found.verdict.value,
            "operations": found.operations,
            "unknown_outcomes": found.unknown_outcomes,
            "workflow_ids": found.workflow_ids,
            "problems": [str(problem) for problem in found.problems],
            "doubts": found.doubts,
        }
        click.echo(json.dumps(answer))
    else:
        click.echo(
            f"{found.verdict.value}: {found.operations} operations on {found.workflow_ids} workflow ids, "
            f"{found.unknown_outcomes} of unknown outcome"
        )
        for problem in found.problems[:PROBLEMS_SHOWN_MAX]:
            click.echo(f"\n{problem}", err=True)
        more = len(found.problems) - PROBLEMS_SHOWN_MAX
        if more > 0:
            click.echo(f"\n… and {more} more workflow ids", err=True)
        for doubt in found.doubts:
            click.echo(f"doubt: {doubt}", err=True)
    raise SystemExit(0 if found.verdict is Verdict.OK else 1)


if __name__ == "__main__":
    main()
