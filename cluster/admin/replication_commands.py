"""`holdfast replication …`: what regions replicate through."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from cluster.admin.output import Exit, Failure, Group, json_option, print_json

COPIES = 3  # survive the loss of one of a region's Cassandra nodes, as replicas of shards do


@click.group(cls=Group)
def replication() -> None:
    """Make the log through which regions replicate.

    \b
    Example:
      holdfast replication log init --config node.toml --regions a,b
    """


@replication.group(cls=Group)
def log() -> None:
    """Make the log between regions, where it is on Cassandra.

    \b
    Example:
      holdfast replication log init --config node.toml --regions a,b
    """


@log.command()
@click.option(
    "--config",
    "-c",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    help="The configuration of any node; its [cassandra] says where to connect.",
)
@click.option(
    "--regions",
    required=True,
    help="Names of all regions, with commas: Cassandra's data centres have the same names.",
)
@click.option(
    "--copies",
    type=click.IntRange(1, 9),
    default=COPIES,
    show_default=True,
    help="Copies of each row in each region.",
)
@click.option(
    "--user", help="Who may make a keyspace, in the place of cassandra.user; the password is asked for."
)
@json_option
def init(file: Path, regions: str, copies: int, user: str | None, as_json: bool) -> None:
    """Make keyspace and tables of the log between regions, where they are missing.

    Once, by one operator, with all regions reachable; it takes some seconds a table. Given again, it
    changes nothing; with a region more, the keyspace has copies there from then on. Tables of
    another release are refused.

    \b
    Examples:
      holdfast replication log init --config node.toml --regions a,b
      holdfast replication log init --config node.toml --regions a,b,c --copies 3 --user admin --json
    """
    from cluster.admin.config_commands import loaded_or_exit
    from cluster.hosting.process.region_log import LogNotUsable, create

    config = loaded_or_exit(file)
    if config.cassandra is None or config.replication.log != "cassandra":
        raise Failure(
            f"{file} has no log on Cassandra: there is nothing to make",
            'write log = "cassandra" below [replication], and [cassandra]',
            Exit.USAGE,
        )
    names = list(dict.fromkeys(name.strip() for name in regions.split(",") if name.strip()))
    if config.region.name not in names:
        raise click.UsageError(
            f"--regions {regions}: {config.region.name}, the region of {file}, is not there"
        )
    login = None
    if user is not None:
        login = (user, click.prompt(f"Password of {user}", hide_input=True, err=True))
    keyspace = config.cassandra.keyspace
    click.echo(f"making keyspace {keyspace} with its tables in {', '.join(names)}", err=True)
    try:
        made = asyncio.run(create(config, dict.fromkeys(names, copies), login))
    except LogNotUsable as error:
        raise Failure(str(error), error.do) from None
    if as_json:
        print_json({"keyspace": keyspace, "regions": names, "made": made.made, "added": list(made.added)})
        return
    if made.made:
        click.echo(f"made: keyspace {keyspace}, {copies} copies in each of {', '.join(names)}")
    elif not made.added:
        click.echo(f"nothing to do: keyspace {keyspace} and its tables are there")
    if made.added and not made.made:
        click.echo(f"keyspace {keyspace} has copies in {', '.join(made.added)} from now on")
        click.echo(
            f"what is in it already comes there by `nodetool rebuild {keyspace}` on its nodes", err=True
        )
