"""`holdfast shard …`: where the shards of a region are, moving and splitting them, and who leads them."""

from __future__ import annotations

import click

from cluster.admin.connection import Connection, connection_options, run
from cluster.admin.output import Exit, Failure, Group, json_option, leave, print_json, print_table
from cluster.admin.region import Answer, Region, describe_moves, wait_options
from history_store.engine.keys import SLOTS


@click.group(cls=Group)
def shard() -> None:
    """Show the shards of a region, move and split them.

    \b
    Example:
      holdfast shard list
    """


@shard.command("list")
@connection_options
@json_option
def list_command(connection: Connection, as_json: bool) -> None:
    """Show every shard: its slots, its leader, and where its replicas are and are wanted.

    Shard 0 is the meta group, which has the region's table and namespaces.

    \b
    Example:
      holdfast shard list --json
    """
    answer = run(Region(connection).seen("shards"))
    if as_json:
        print_json(answer)
        leave(Exit.FAILED if "seen_by" in answer else Exit.DONE)
    rows = []
    for one in answer["shards"]:
        wanted = set(one["wanted"])
        state = "ok"
        if one["state"] == "preparing":
            state = f"coming: {one['waits'] or 'its rows are there'}"
        elif one["state"] == "damaged":
            state = "damaged: not served"
        elif one["leader"] is None:
            state = "no leader"
        elif not one["settled"]:
            coming = ", ".join(name for name in one["wanted"] if name not in one["voters"])
            going = ", ".join(name for name in one["voters"] if name not in wanted)
            state = "; ".join(
                [f"to {coming}"] * bool(coming)
                + [f"off {going}"] * bool(going)
                + [one["waits"]] * bool(one["waits"])
            )
        elif one.get("down"):  # a node of an older release does not say
            state = f"down: {', '.join(one['down'])}"
        elif one["behind"] is None:
            state = "leader elsewhere"  # who is asked cannot know more
        elif one["behind"]:
            state = f"behind: {', '.join(one['behind'])}"
        number = str(one["id"]) if one["id"] else "0 (meta)"
        rows.append([number, str(one["slot_count"]), one["leader"] or "", ", ".join(one["voters"]), state])
    print_table(["shard", "slots", "leader", "replicas", "state"], rows)
    leave(Exit.FAILED if "seen_by" in answer else Exit.DONE)


@shard.command()
@click.argument("number", type=click.IntRange(min=0), metavar="SHARD")
@click.option("--from", "source", required=True, metavar="NODE", help="Node that gives its replica up.")
@click.option("--to", "target", required=True, metavar="NODE", help="Node that gets one.")
@wait_options
@connection_options
@json_option
def move(
    number: int, source: str, target: str, wait: bool, timeout: float, connection: Connection, as_json: bool
) -> None:
    """Move one replica of a shard to another node, while it serves.

    \b
    Example:
      holdfast shard move 3 --from a/1 --to a/4
    """

    async def work() -> Answer:
        region = Region(connection)
        answer = await region.do("move", changes=True, shard=number, node=source, to=target)
        if wait:
            await region.wait_for_shards([{"shard": number}], timeout)
        return {"shard": number, **answer, "done": wait}

    _tell(run(work()), as_json)


@shard.command()
@click.argument("number", type=click.IntRange(min=1), metavar="SHARD")
@click.option(
    "--at",
    "slot",
    type=click.IntRange(0, SLOTS - 1),
    metavar="SLOT",
    help="First slot of the new shard. [default: the middle one of those that the shard has]",
)
@click.option(
    "--abandon",
    is_flag=True,
    help="Call off a split that is being prepared. SHARD is the one that is split, or the one to come.",
)
@wait_options
@connection_options
@json_option
def split(
    number: int,
    slot: int | None,
    abandon: bool,
    wait: bool,
    timeout: float,
    connection: Connection,
    as_json: bool,
) -> None:
    """Split a shard in two, while it serves: a new shard takes its slots from SLOT on.

    The new shard begins on the same nodes, and another of them comes to lead it. While its rows are being
    copied the split can be abandoned; once the new shard serves it cannot be undone.

    \b
    Examples:
      holdfast shard split 3
      holdfast shard split 3 --abandon
    """
    if abandon and slot is not None:
        raise click.UsageError("--at says where to split, and --abandon that it is not to be")
    region, wait_s = Region(connection), timeout if wait else None
    answer = run(_abandon(region, number, wait_s) if abandon else _split(region, number, slot, wait_s))
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["why"] if not answer["done"] else f"done: {answer['why']}")


async def _split(region: Region, number: int, slot: int | None, wait_s: float | None) -> Answer:
    at = slot if slot is not None else _middle((await region.do("shards"))["shards"], number)
    where = {} if at is None else {"slot": at}
    answer = await region.do("split", changes=True, shard=number, **where)
    if wait_s is not None and not await _serves(region, answer["child"], wait_s):
        raise Failure(
            f"the split of shard {number} was abandoned meanwhile, and it stays whole",
            "give the command again if it is to be split",
        )
    return {**answer, "done": wait_s is not None}


async def _abandon(region: Region, number: int, wait_s: float | None) -> Answer:
    answer = await region.do("abandon", changes=True, shard=number)
    if wait_s is not None and await _serves(region, answer["child"], wait_s):
        raise Failure(
            f"it was too late, shard {answer['child']} serves what shard {answer['shard']} gave up",
            "leave it so, shards are not joined again; `holdfast shard move` brings it to other nodes",
        )
    return {**answer, "done": wait_s is not None}


async def _serves(region: Region, child: int, wait_s: float) -> bool:
    """Wait for what comes of a split: whether the new shard serves, or is not to come any more."""
    found: list[Answer] = []

    async def look() -> tuple[bool, str]:
        found[:] = [one for one in (await region.do("shards"))["shards"] if one["id"] == child]
        if found and found[0]["state"] == "preparing":
            return False, f"shard {child} is coming: {found[0]['waits'] or 'its rows are there'}"
        led = not found or found[0]["leader"] is not None
        return led, f"shard {child} serves, and is about to have a leader"

    await region.wait(look, wait_s)
    return bool(found)


def _middle(shards: list[Answer], number: int) -> int | None:
    """The slot that divides a shard evenly. It is said with the request, so that asking again is harmless."""
    slots = [
        slot
        for one in shards
        if one["id"] == number
        for first, last in one["slots"]
        for slot in range(first, last + 1)
    ]
    return slots[len(slots) // 2] if len(slots) > 1 else None


@shard.command()
@click.argument("number", type=click.IntRange(min=0), metavar="SHARD")
@click.option("--to", "target", required=True, metavar="NODE", help="Node that is to lead it.")
@wait_options
@connection_options
@json_option
def transfer(
    number: int, target: str, wait: bool, timeout: float, connection: Connection, as_json: bool
) -> None:
    """Let another replica of a shard lead it.

    It stays for five minutes if all is well; then leaders are spread evenly again.

    \b
    Example:
      holdfast shard transfer 3 --to a/2
    """

    async def work() -> Answer:
        region = Region(connection)
        wanted = (await region.node(target))["name"]
        answer = await region.do("transfer", changes=True, shard=number, to=target)
        if wait and answer["changed"]:

            async def look() -> tuple[bool, str]:
                (one,) = [one for one in (await region.do("shards"))["shards"] if one["id"] == number]
                leader = one["leader"]
                return leader == wanted, f"{leader or 'nobody'} leads shard {number}"

            await region.wait(look, timeout)
        return {"shard": number, **answer, "done": wait}

    answer = run(work())
    if as_json:
        print_json(answer)
    elif answer["done"] and answer["changed"]:
        click.echo(f"done: {target} leads shard {number}")
    else:
        click.echo(answer["why"])


@shard.command()
@click.option("--dry-run", is_flag=True, help="Show what would move, and change nothing.")
@wait_options
@connection_options
@json_option
def rebalance(dry_run: bool, wait: bool, timeout: float, connection: Connection, as_json: bool) -> None:
    """Spread the replicas evenly over the nodes, and place those that are missing.

    At most 16 replicas move at once; when more would be useful it says so.

    \b
    Example:
      holdfast shard rebalance --dry-run
    """

    async def work() -> Answer:
        region = Region(connection)
        answer = await region.do("rebalance", changes=not dry_run, dry_run=dry_run)
        if wait and not dry_run:
            await region.wait_for_shards(answer["moves"], timeout)
        return {**answer, "done": wait and not dry_run}

    _tell(run(work()), as_json)


def _tell(answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    for line in describe_moves(answer):
        click.echo(line)
    if answer["done"] and answer["moves"]:
        click.echo("done")
