"""`holdfast server start`: one node of a region, as its node.toml says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.admin.output import Exit, Failure, json_option, leave

if TYPE_CHECKING:
    from cluster.hosting.config.node_config import NodeConfig


@click.command("start")
@click.option(
    "--config",
    "-c",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    help="The node's configuration, a TOML file.",
)
@json_option
def start(file: Path, as_json: bool) -> None:
    """Run one node of a region in this process.

    The file says who the node is, where its data is, and how it finds the others: `holdfast config
    show` lists every key. With --json one line on stdout repeats name, process id and addresses
    before the node starts; when it serves is told by its health service. The node stops at SIGINT
    or SIGTERM; what it acknowledged is safe from SIGKILL. Exit 0 if it was stopped, 1 if it
    failed, 2 if the configuration cannot be used.

    \b
    Example:
      holdfast server start --config node.toml
    """
    from cluster.admin.config_commands import loaded_or_exit
    from cluster.admin.server_commands import leave_rich_out

    config = loaded_or_exit(file)
    if as_json:
        announce(config)
    leave_rich_out()
    from cluster.hosting.process.region_log import LogNotUsable
    from cluster.hosting.process.region_server import serve
    from cluster.hosting.region.joining import NotAdmitted
    from history_store.storage.contract import StorageError

    try:
        code = serve(config)
    except LogNotUsable as error:
        raise Failure(str(error), error.do) from None
    except StorageError as error:
        what, _, do = str(error).partition(". ")  # its messages end with what to do
        raise Failure(what, do) from None
    except NotAdmitted as error:
        what, _, do = str(error).partition(": ")
        raise Failure(what, do) from None
    except OSError as error:
        raise Failure(
            f"{config.node.name} cannot start: {error.strerror or error}",
            f"see that the addresses below [listen] in {file} are this machine's and free (`ss -ltnp`)",
        ) from None
    leave(Exit.DONE if code == 0 else Exit.FAILED)


def announce(config: NodeConfig) -> None:
    """One line of JSON: who starts, and where it will be."""
    click.echo(
        json.dumps(
            {
                "node": config.node.name,
                "pid": os.getpid(),
                "grpc": config.advertise.grpc,
                "peers": config.advertise.peers,
                "metrics_port": config.listen.metrics,
            }
        )
    )
    sys.stdout.flush()
