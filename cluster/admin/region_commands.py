"""`holdfast region …`: regions that work with each other."""

from __future__ import annotations

import sys

import click

from cluster.admin.addresses import parsed
from cluster.admin.connection import Connection, connection_options, run
from cluster.admin.output import Exit, Failure, Group, json_option, leave, print_json, print_table
from cluster.admin.region import Answer, Region, wait_options

INTRODUCE_S = (
    45.0  # several addresses may have to be found silent, and the other region has to find its leader
)


@click.group(cls=Group)
def region() -> None:
    """Introduce regions to each other, show them, and part them.

    \b
    Example:
      holdfast region add 10.1.0.1:7301
    """


@region.command()
@click.argument("addresses", nargs=-1, required=True, metavar="HOST:PORT...")
@wait_options
@connection_options
@json_option
def add(
    addresses: tuple[str, ...], wait: bool, timeout: float, connection: Connection, as_json: bool
) -> None:
    """Introduce another region to this one: from then on their nodes talk to each other.

    HOST:PORT is where the peers of any node of the other region reach it; with several, of one region, the
    first that answers is asked. Both regions write each other down, or neither does. Every region needs a
    name and a region.index of its own. Given again, the command changes nothing.

    \b
    Examples:
      holdfast region add 10.1.0.1:7301
      holdfast region add 10.1.0.1:7301 10.1.0.2:7301 --json
    """
    at = [one for text in addresses for one in parsed(text)]

    async def work() -> Answer:
        here = Region(connection)
        answer = await here.do("introduce", changes=True, timeout_s=INTRODUCE_S, at=at)

        async def look() -> tuple[bool, str]:
            rows = (await here.do("regions"))["regions"]
            state = next((one["state"] for one in rows if one["name"] == answer["region"]), "gone")
            return state == "up", f"no node of region {answer['region']} can be reached yet"

        if wait:
            await here.wait(look, timeout)
        return {**answer, "done": wait}

    answer = run(work())
    if as_json:
        print_json(answer)
    else:
        click.echo(("done: " if answer["done"] else "") + answer["why"])


@region.command("list")
@connection_options
@json_option
def list_command(connection: Connection, as_json: bool) -> None:
    """Show this region and those that it works with, and which of their nodes it reaches.

    \b
    Example:
      holdfast region list --json
    """
    answer = run(Region(connection).seen("regions"))
    code = Exit.FAILED if "seen_by" in answer else Exit.DONE
    if as_json:
        print_json(answer)
        leave(code)
    rows = []
    for one in answer["regions"]:
        up = sum(node["up"] for node in one["nodes"])
        reached = f"{up} of {len(one['nodes'])}" if one["state"] in ("up", "down") else str(len(one["nodes"]))
        where = ", ".join(node["peers"] for node in one["nodes"])
        rows.append([one["name"], str(one["index"]), one["state"], reached, where])
    print_table(["region", "index", "state", "nodes", "peers"], rows)
    for one in answer["regions"]:
        if one["problem"]:
            click.echo(f"{one['name']} will not have this region: {one['problem']}")
    leave(code)


@region.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def remove(name: str, yes: bool, connection: Connection, as_json: bool) -> None:
    """Part from another region, for ever: nothing is exchanged with it any more.

    Its name and its index are not given again. The other region is not told: give the same command there,
    unless it is gone.

    \b
    Example:
      holdfast region remove b --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this parts from region {name!r} for good: add --yes")
        typed: str = click.prompt(f"Type {name!r} to part from it for good", err=True)
        if typed != name:
            raise Failure("names differ; nothing was changed")
    answer = run(Region(connection).do("part", changes=True, region=name))
    if as_json:
        print_json(answer)
        return
    click.echo(answer["why"])
    if answer["changed"]:
        click.echo(f"if region {name} still runs, remove this one there, too", err=True)
