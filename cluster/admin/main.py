"""The program `holdfast`: finds the command that was asked for and imports nothing else.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage,
3 indefinite (it may have happened).

`start-dev` has to answer within a second of being started, so a command's module is imported
only when the command runs; this module itself costs one import of click.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

COMMANDS = {
    "cluster": (
        "cluster.admin.cluster_commands:cluster",
        "Ask a region, or a server that is alone, how it is and what it is.",
    ),
    "config": ("cluster.admin.config_commands:config", "Check and show the configuration of nodes."),
    "demo": (
        "cluster.admin.demo_command:demo",
        "Show a research agent that survives the SIGKILL of its worker, its shard's leader, and its region.",
    ),
    "doctor": (
        "cluster.admin.doctor_command:doctor",
        "Check this machine, and say what to do about what is found.",
    ),
    "local": ("cluster.admin.local_commands:local", "Run a local cluster of real node processes."),
    "namespace": (
        "cluster.admin.failover_commands:namespace",
        "Create, show, change and delete namespaces, and fail them over to other regions.",
    ),
    "node": ("cluster.admin.node_commands:node", "Add, drain, remove and replace the nodes of a region."),
    "region": (
        "cluster.admin.region_commands:region",
        "Introduce regions to each other, show them, and part them.",
    ),
    "replication": (
        "cluster.admin.replication_commands:replication",
        "Make the log through which regions replicate.",
    ),
    "server": ("cluster.admin.server_commands:server", "Run a server."),
    "shard": ("cluster.admin.shard_commands:shard", "Show the shards of a region, move and split them."),
    "workflow": ("cluster.admin.workflow_commands:workflow", "Say what a workflow run is waiting for."),
}

EPILOG = (
    "Everything else about workflows, activities, task queues and search attributes is the `temporal` "
    "command line's business: it works against this server unchanged."
)


class Root(click.Group):
    """The outermost group: knows the names and one-line helps, and imports a group when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All groups, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import the group's module; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """The list of commands, made without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(
    cls=Root,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="holdfast", message="%(prog)s %(version)s")
def holdfast() -> None:
    """Durable execution that speaks Temporal's API.

    \b
    Example:
      holdfast server start-dev --db-filename ./holdfast.db
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the `holdfast` script. Never returns: it exits with the command's code."""
    if not __debug__:
        raise SystemExit("holdfast: assertions are part of the safety argument; run Python without -O")
    try:
        holdfast.main(args=None if arguments is None else list(arguments), prog_name="holdfast")
    except SystemExit as done:
        if "cluster.admin.connection" in sys.modules and isinstance(done.code, int):
            _leave_at_once(done.code)
        raise


def _leave_at_once(code: int) -> None:
    """End without taking the interpreter down in order.

    The client library's native threads outlive a command, and one that comes back to Python while the
    interpreter is being taken down aborts the process (seen: "PyGILState_Release", exit by SIGABRT after a
    correct answer). What was written is flushed, and nothing else is open.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
