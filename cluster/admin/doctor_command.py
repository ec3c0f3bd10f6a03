"""`holdfast doctor`: run the checks of doctor.py and show them."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.admin.doctor import Verdict, examine
from cluster.admin.output import Exit, json_option, leave, print_json, print_table
from cluster.hosting.config.options import PORT_DEFAULT


@click.command()
@click.option(
    "--db-filename", "-f", "database", type=click.Path(path_type=Path), help="Data file to look at."
)
@click.option("--ip", default="127.0.0.1", show_default=True, help="Address the server would listen on.")
@click.option(
    "--port", "-p", type=click.IntRange(1, 65535), default=PORT_DEFAULT, show_default=True, help="Its port."
)
@json_option
def doctor(database: Path | None, ip: str, port: int, as_json: bool) -> None:
    """Check this machine, and say what to do about what is found; exit 1 if something fails.

    Looks at Python, uvloop, the disk (how long a durable write takes, free space), limits,
    the port, the clock, and the data file if one is named. Changes nothing.

    \b
    Example:
      holdfast doctor --db-filename ./holdfast.db
    """
    results = examine(database, ip, port)
    failed = any(result.verdict is Verdict.FAIL for result in results)
    if as_json:
        print_json({"ok": not failed, "checks": [result.as_json() for result in results]})
    else:
        print_table(["check", "", "found"], [[one.check, str(one.verdict), one.found] for one in results])
        for one in results:
            if one.do:
                click.echo(f"{one.check}: {one.do}")
    leave(Exit.FAILED if failed else Exit.DONE)
