"""`holdfast namespace failover …`: a namespace changes the region where it is active.

A failover has an id. A command whose answer was lost may be given again with the same one, and begins
nothing then; without --request-id one is drawn. Graceful ones are followed until they are decided and the
target serves; before a forced one takes what the other region may still have, it says how much that is and
asks.

Hybrid is graceful first, and forced if that is taken back or nobody answers for the other region. It is this
command that goes from one to the other: if it is stopped between the two, the graceful one has come to its
own end, and nothing else happens.
"""

from __future__ import annotations

import getpass
import secrets
import sys
from typing import Any, NamedTuple

import click

from cluster.admin.connection import Connection, connection_options, run
from cluster.admin.namespace_commands import namespace
from cluster.admin.output import Duration, Failure, json_option, print_json, print_table
from cluster.admin.region import TIMEOUT_S, Answer, Region

CALL_S = 20.0  # for an answer: the region that decides may wait for what can still be read, and ask others
WAIT_S = 60.0  # for the target to be close enough behind, served meanwhile
HYBRID_WAIT_S = 10.0
SETTLE_S = 30.0  # for all shards of the target to serve
DECIDE_S = 30.0  # beyond the wait, for a handover that was begun: it ends itself at its deadline
NEXT = "see how it stands: `holdfast namespace failover-status`; the same command again is harmless"


class Wish(NamedTuple):
    """What the operator wants."""

    name: str
    to: str
    reason: str
    max_wait_s: float
    allow_dirty: bool
    yes: bool
    request_id: str

    def fields(self, mode: str) -> dict[str, Any]:
        """As the request has it."""
        wait_ms = int(self.max_wait_s * 1000) if mode == "graceful" else None
        return {
            "namespace": self.name,
            "to": self.to,
            "mode": mode,
            "request_id": f"{self.request_id} {mode}",
            "operator": operator(),
            "reason": self.reason,
            "allow_dirty": self.allow_dirty,
            **({"max_wait_ms": wait_ms} if wait_ms is not None else {}),
        }


def operator() -> str:
    """Who gives the command, for the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in a container
        return ""


@namespace.command()
@click.argument("name")
@click.option("--to", required=True, metavar="REGION", help="Where it is to be active.")
@click.option(
    "--mode",
    type=click.Choice(["graceful", "forced", "hybrid"]),
    default="graceful",
    help="graceful: both regions agree, and nothing is lost. forced: REGION takes it without asking. "
    "hybrid: graceful, and forced if that comes to nothing. [default: graceful]",
)
@click.option("--reason", default="", help="Why; it is kept with the namespace's history.")
@click.option(
    "--max-wait",
    type=Duration(),
    default=None,
    help="Wait so long, while it is served, until REGION is close enough behind. [default: 60s; hybrid: 10s]",
)
@click.option("--allow-dirty", is_flag=True, help="Hand over although REGION could not apply some runs.")
@click.option("--dry-run", is_flag=True, help="Say what stands in the way, or what would be lost.")
@click.option("--yes", is_flag=True, help="Do not ask before something may be lost.")
@click.option("--request-id", default="", metavar="ID", help="The same id again begins nothing new.")
@connection_options
@json_option
def failover(
    name: str,
    to: str,
    mode: str,
    reason: str,
    max_wait: float | None,
    allow_dirty: bool,
    dry_run: bool,
    yes: bool,
    request_id: str,
    connection: Connection,
    as_json: bool,
) -> None:
    """Make a namespace active in another region.

    Any node of any region may be asked, a forced failover one of REGION if the others are lost.

    \b
    Examples:
      holdfast namespace failover orders --to eu
      holdfast namespace failover orders --to eu --mode forced --reason "us is flooded"
    """
    wait_s = max_wait if max_wait is not None else HYBRID_WAIT_S if mode == "hybrid" else WAIT_S
    wish = Wish(name, to, reason, wait_s, allow_dirty, yes, request_id or secrets.token_hex(8))
    region = Region(connection)
    if dry_run:
        answer = run(_dry_run(region, wish, "graceful" if mode == "hybrid" else mode))
    elif mode == "graceful":
        answer = run(_graceful(region, wish))
    elif mode == "forced":
        answer = run(_forced(region, wish))
    else:
        answer = run(_hybrid(region, wish))
    _report(answer, as_json)


async def _dry_run(region: Region, wish: Wish, mode: str) -> Answer:
    fields = wish.fields(mode)
    answer = await region.do("failover", dry_run=True, **fields)
    return {**answer, "mode": mode, "dry_run": True}


async def _graceful(region: Region, wish: Wish) -> Answer:
    fields = wish.fields("graceful")
    begun = await region.do("failover", changes=True, timeout_s=CALL_S, **fields)
    found = await _decided(region, wish, begun["region"], fields["request_id"])
    handover = found["handover"]
    if not handover["moved"]:
        why = handover["why"] or "a newer failover took the namespace"
        raise Failure(f"{wish.name} stays in {found['active']}: {why}", "mend that, and begin again")
    return await _served(region, wish, {**found, "mode": "graceful"})


async def _decided(region: Region, wish: Wish, at: str, request_id: str) -> Answer:
    """Follow a handover to its decision, and tell on stderr how far it is."""
    found: Answer = {}

    async def look() -> tuple[bool, str]:
        nonlocal found
        found = await region.do("failover_status", namespace=wish.name, to=at, request_id=request_id)
        handover = found["handover"]
        if handover is None:
            raise Failure(f"region {at} knows of no such handover", NEXT)
        waits = f": {handover['waits']}" if handover["waits"] else ""
        return handover["decided"], f"{handover['phase']}{waits}"

    await region.wait(look, wish.max_wait_s + DECIDE_S)
    click.echo(found["handover"]["phase"], err=True)
    return found


async def _served(region: Region, wish: Wish, answer: Answer) -> Answer:
    """Until all shards of the target serve."""

    async def look() -> tuple[bool, str]:
        seen = await region.do("failover_status", namespace=wish.name, to=wish.to)
        return seen["active"] == wish.to and seen["settled"], f"{wish.to} begins to serve"

    await region.wait(look, SETTLE_S)
    return {**answer, "served": True}


async def _forced(region: Region, wish: Wish) -> Answer:
    fields = wish.fields("forced")
    told = await region.do("failover", dry_run=True, **fields)
    for line in told["lines"]:
        click.echo(line, err=True)
    if not told["lossless"] and not wish.yes:
        if not sys.stdin.isatty():
            loss = "; ".join(told["lines"])
            raise Failure(f"this may lose what {told['active']} has acknowledged: {loss}", "add --yes")
        click.confirm(f"Take {wish.name} from {told['active']} all the same?", abort=True, err=True)
    answer = await region.do("failover", changes=True, timeout_s=CALL_S, yes=True, **fields)
    return await _served(region, wish, {**answer, "mode": "forced"})


async def _hybrid(region: Region, wish: Wish) -> Answer:
    try:
        return await _graceful(region, wish)
    except Failure as failure:
        seen = await region.do("failover_status", namespace=wish.name, to=wish.to)
        if seen["active"] == wish.to:  # it was committed, and only the answer was lost
            return await _served(region, wish, {**seen, "mode": "graceful"})
        failure.show()
        click.echo("graceful came to nothing: forced", err=True)
    return await _forced(region, wish)


def _report(answer: Answer, as_json: bool) -> None:
    if answer.get("verdict") == "lost race":
        look = f"see who it was: `holdfast namespace failover-status {answer['namespace']}`"
        raise Failure(f"somebody else's failover is newer, to version {answer['truth']}", look)
    if as_json:
        print_json(answer)
        return
    if answer.get("dry_run"):
        lines = answer.get("lines") or ["nothing stands in the way"]
        click.echo("\n".join(lines))
        return
    handover = answer["handover"] or {}
    shown: dict[str, object] = {
        "active": answer["active"] if not handover else handover["target"],
        "version": answer["version"] if not handover else handover["version"],
        "before": handover.get("base"),
        "mode": answer["mode"],
        "paused": _unit(handover.get("paused_ms"), "ms"),
        "behind": _unit(handover.get("entries", answer.get("entries")), "entries"),
        "lag": _unit(handover.get("lag_ms", answer.get("lag_ms")), "ms"),
        "verdict": answer.get("verdict"),
        "not asked": ", ".join(answer.get("unread", ())),
    }
    print_table(
        ["failover", answer["namespace"]], [[key, str(value)] for key, value in shown.items() if value]
    )
    if answer.get("verdict") == "lost race":
        raise Failure(
            "somebody else's failover is newer", "look who it was: `holdfast namespace failover-status`"
        )


def _unit(value: object, unit: str) -> str:
    return "" if value is None else f"{value} {unit}"


@namespace.command("failover-status")
@click.argument("name")
@click.option("--at", default="", metavar="REGION", help="As that region knows it. [default: the one asked]")
@connection_options
@json_option
def failover_status(name: str, at: str, connection: Connection, as_json: bool) -> None:
    """Show where a namespace is active, what goes on, and where it was.

    \b
    Example:
      holdfast namespace failover-status orders
    """
    answer = run(Region(connection).do("failover_status", namespace=name, to=at))
    if as_json:
        print_json(answer)
        return
    handover = answer["handover"]
    rows = [
        ["active", answer["active"]],
        ["regions", ", ".join(answer["regions"])],
        ["version", str(answer["version"])],
        ["state", answer["state"]],
        ["seen by", answer["region"]],
    ]
    if answer.get("unreachable"):
        rows.append(["not heard from", ", ".join(answer["unreachable"])])
    if handover is not None:
        rows.append(["handover", f"{handover['phase']}, {handover['source']} to {handover['target']}"])
        rows += [[key, handover[key]] for key in ("waits", "why") if handover[key]]
    print_table(["namespace", name], rows)
    if answer["history"]:
        past = [
            [str(row["version"]), row["mode"], row["active"], row["operator"], row["reason"]]
            for row in answer["history"]
        ]
        print_table(["version", "how", "active", "by", "why"], past)


@namespace.command("failover-abort")
@click.argument("name")
@connection_options
@json_option
def failover_abort(name: str, connection: Connection, as_json: bool) -> None:
    """Take back a graceful failover that is not decided yet.

    \b
    Example:
      holdfast namespace failover-abort orders
    """
    answer = run(Region(connection).do("failover_abort", changes=True, namespace=name, operator=operator()))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{name} stays in {answer['active']}")


@namespace.command("add-region")
@click.argument("name")
@click.argument("region", metavar="REGION")
@connection_options
@json_option
def add_region(name: str, region: str, connection: Connection, as_json: bool) -> None:
    """Have one more region hold a namespace.

    It can become active there when all runs that it has now have been copied.

    \b
    Example:
      holdfast namespace add-region orders eu
    """
    _change("add_region", name, region, connection, as_json)


@namespace.command("remove-region")
@click.argument("name")
@click.argument("region", metavar="REGION")
@connection_options
@json_option
def remove_region(name: str, region: str, connection: Connection, as_json: bool) -> None:
    """Have a region hold a namespace no more. Not the one where it is active.

    \b
    Example:
      holdfast namespace remove-region orders eu
    """
    _change("remove_region", name, region, connection, as_json)


def _change(verb: str, name: str, region: str, connection: Connection, as_json: bool) -> None:
    fields = {"namespace": name, "to": region, "operator": operator()}
    answer = run(Region(connection).do(verb, changes=True, timeout_s=TIMEOUT_S / 60, **fields))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{name} is held by {', '.join(answer['regions'])}")
