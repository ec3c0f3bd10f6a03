"""How commands talk to a region: ask, change, and wait until a change has come about."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import click

from cluster.admin.connection import Connection, explain, resolve
from cluster.admin.output import Duration, Exit, F, Failure
from cluster.admin.unary import DO_TLS, call, is_refusal, reason

CALL_S = 10.0
LOOK_S = 0.3  # between looks at a change that is waited for
TIMEOUT_S = 600.0  # a node's worth of snapshots; the change goes on when nobody waits any more
OK, FAILED_PRECONDITION, UNIMPLEMENTED, UNAVAILABLE = 0, 9, 12, 14
NO_LEADER = "no leader at present"
METHOD = "/holdfast.admin.v1.AdminService/Do"

Answer = dict[str, Any]
Look = Callable[[], Awaitable[tuple[bool, str]]]  # whether it is done, and how far it is


class NotThere(Failure):
    """The server is no node of ours, or an older one."""


class Leaderless(Failure):
    """The question is for the leader of the meta group, and there is none."""


class Region:
    """A region, by way of one of its nodes."""

    def __init__(self, connection: Connection) -> None:
        self._target = resolve(connection)
        self.address = ""  # of the node that is asked, once one was

    async def do(
        self, verb: str, *, changes: bool = False, timeout_s: float = CALL_S, **fields: Any
    ) -> Answer:
        """Ask. Failure: `changes` says that a lost answer leaves open whether it happened (exit 3)."""
        request = json.dumps({"do": verb, **_said(fields)}).encode()
        target = self._target
        address = self.address = self.address or await target.pick()
        try:
            status = await call(address, target.tls, METHOD, request, target.fields, timeout_s)
        except (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError) as error:
            raise self._unreachable(error) from None
        except (OSError, TimeoutError) as error:
            if changes and not is_refusal(error):
                self.address = ""
                raise Failure(
                    f"{address}: {reason(error)}; it may have happened",
                    "look (`holdfast cluster nodes`), or give the same command again: that is harmless",
                    Exit.INDEFINITE,
                ) from None
            raise self._unreachable(error) from None
        if status.code == OK:
            answer: Answer = json.loads(status.body)
            return answer
        if status.code == FAILED_PRECONDITION:
            what, _, do = status.message.partition(": ")
            raise Failure(what, do)
        if status.code == UNIMPLEMENTED:
            raise NotThere(status.message, "see what runs there: `holdfast cluster version`")
        if status.code == UNAVAILABLE and NO_LEADER in status.message:
            raise _leaderless(changes)
        from temporalio.service import RPCError, RPCStatusCode

        refused = RPCError(status.message, RPCStatusCode(status.code), b"")
        raise explain(refused, address, target.namespace, changes) from None

    def _unreachable(self, error: BaseException) -> Failure:
        self.address = ""  # another node may answer the next question
        do = DO_TLS if is_refusal(error) else self._target.do
        return Failure(f"no server answers at {self._target.named}: {reason(error)}", do)

    async def nodes(self, *, every: bool = False) -> Answer:
        """The nodes: `{"nodes": [...], "complete": bool}`."""
        return await self.do("nodes", all=every)

    async def seen(self, verb: str, **fields: Any) -> Answer:
        """As `do`, for a question; if nobody leads the region, what the node that is asked sees by itself.

        That has `seen_by`, the node's name. People are told on stderr.
        """
        try:
            return await self.do(verb, **fields)
        except Leaderless as failure:
            try:
                answer = await self.do(verb, here=True, **fields)
            except Failure:
                raise failure from None
            if "seen_by" not in answer:  # of an older release, which knows no `here` and has a leader now
                return answer
            if not failure.as_json:
                failure.show()
                what = f"this is what {answer['seen_by']} sees by itself; the rest may have changed"
                click.echo(what, err=True)
            return answer

    async def node(self, name: str) -> Answer:
        """One node, by its name or id, removed ones too. Failure if there is none."""
        found = [
            one for one in (await self.nodes(every=True))["nodes"] if name in (one["name"], str(one["id"]))
        ]
        if not found:
            raise Failure(f"there is no node {name}", "choose one that `holdfast cluster nodes` shows")
        chosen: Answer = found[-1]
        return chosen

    async def wait(self, look: Look, timeout_s: float) -> None:
        """Look until it is done, and tell on stderr how far it is. Failure after `timeout_s`.

        A node that does not answer meanwhile may be the one that is being restarted: it is asked again.
        """
        until = asyncio.get_running_loop().time() + timeout_s
        told = ""
        while True:
            try:
                done, progress = await look()
            except Failure as failure:
                done, progress = False, failure.message
            if progress != told and not done:
                click.echo(progress, err=True)
                told = progress
            if done:
                return
            if asyncio.get_running_loop().time() >= until:
                raise Failure(
                    f"not done after {timeout_s:g} s: {progress}",
                    "it goes on by itself; `holdfast cluster health` shows what it waits for",
                )
            await asyncio.sleep(LOOK_S)

    async def wait_for_shards(self, moves: list[Answer], timeout_s: float) -> None:
        """Until the replicas of these moves are where they are wanted."""
        moved = {move["shard"] for move in moves}

        async def look() -> tuple[bool, str]:
            shards = [one for one in (await self.do("shards"))["shards"] if one["id"] in moved]
            waits = [one for one in shards if not one["settled"]]
            why = next((f" ({one['waits']})" for one in waits if one["waits"]), "")
            return not waits, f"{len(moved) - len(waits)} of {len(moved)} shards are where they belong{why}"

        if moved:
            await self.wait(look, timeout_s)


def _leaderless(changes: bool) -> Failure:
    """Whatever was asked is for the leader of the meta group, and there is none."""
    what = "nobody leads the region at present: its meta group (shard 0) has no leader"
    do = "`holdfast cluster health` says which nodes are missing: start them, a majority is needed"
    if not changes:
        return Leaderless(what, do)
    return Failure(
        f"{what}; it may have happened", f"{do}; then give the same command again", Exit.INDEFINITE
    )


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Without those that say nothing; 0 is the meta group."""
    return {key: value for key, value in fields.items() if value or (value == 0 and value is not False)}


def wait_options(function: F) -> F:
    """Add --wait/--no-wait and --timeout to a command, as `wait` and `timeout`."""
    function = click.option(
        "--timeout",
        type=Duration(),
        default=TIMEOUT_S,
        help="Wait no longer; it goes on by itself. [default: 10m]",
    )(function)
    return click.option(
        "--wait/--no-wait",
        default=True,
        help="Wait until it is done, and tell how far it is. [default: wait]",
    )(function)


def describe_moves(answer: Answer) -> list[str]:
    """A plan for people: what it does, and each replica that moves."""
    lines = [answer["why"]]
    for move in answer["moves"]:
        group = f"shard {move['shard']}" if move["shard"] else "the meta group"
        if move["from"] is None:
            lines.append(f"  {group}: one more replica, on {move['to']}")
        elif move["to"] is None:
            lines.append(f"  {group}: no replica on {move['from']} any more")
        else:
            lines.append(f"  {group}: from {move['from']} to {move['to']}")
    return lines
