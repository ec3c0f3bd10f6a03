"""`holdfast doctor`: run the checks of doctor.py and show them."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.admin.config_commands import loaded_or_exit
from cluster.admin.doctor import Verdict, examine, examine_node
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
@click.option(
    "--config",
    "node",
    type=click.Path(path_type=Path),
    help="node.toml of a region's node, instead of these.",
)
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, database: Path | None, ip: str, port: int, node: Path | None, as_json: bool
) -> None:
    """Check this machine, and say what to do about what is found; exit 1 if something fails.

    Looks at Python, uvloop, the disk (how long a durable write takes, free space), limits,
    the port, the clock, and the data file if one is named. With a node.toml: that node's directory,
    its ports, and whether the other nodes can be reached. Changes nothing.

    \b
    Examples:
      holdfast doctor --db-filename ./holdfast.db
      holdfast doctor --config node.toml
    """
    if node is None:
        results = examine(database, ip, port)
    else:
        for name in ("database", "ip", "port"):
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError("--config says where the data and the ports are; name it alone")
        results = examine_node(loaded_or_exit(node))
    failed = any(result.verdict is Verdict.FAIL for result in results)
    if as_json:
        print_json({"ok": not failed, "checks": [result.as_json() for result in results]})
    else:
        print_table(["check", "", "found"], [[one.check, str(one.verdict), one.found] for one in results])
        for one in results:
            if one.do:
                click.echo(f"{one.check}: {one.do}")
    leave(Exit.FAILED if failed else Exit.DONE)
