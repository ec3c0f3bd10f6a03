"""What operators and newcomers ask of a region: one method, JSON in and out.

    {"do": "drain", "node": "a/2"}  ->  {"why": "a/2 drains", "changed": true, "moves": []}

Everything is answered where the meta group is led, because who leads it has the newest table and hears how
the nodes are (steward.py); a call that comes to another node is sent on like any other. A change is a plan
of `cluster.membership`, made from the newest table and proposed in the same step, and answered when it is
committed; a refusal is FAILED_PRECONDITION, "why: what to do".

Every verb may be asked again: what is so already is no error. Only `rebalance` does more when asked twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog

from cluster.hosting.groups.group import LostLeadership, NotLeading
from cluster.hosting.region import views
from cluster.hosting.region.health import Known, Problem, Watch, find, named
from cluster.hosting.region.introducing import Introductions
from cluster.hosting.region.steward import BEHIND_ENTRIES
from cluster.membership import (
    FORMAT,
    META_GROUP,
    GroupReport,
    NodeHealth,
    NodeRecord,
    NodeState,
    Plan,
    Refusal,
    RemoteRecord,
    Table,
    plan_abandon,
    plan_announce,
    plan_drain,
    plan_join,
    plan_move,
    plan_rebalance,
    plan_remove,
    plan_replace,
    plan_resume,
    plan_split,
    plan_transfer,
    split_at,
    split_of,
)
from history_store.engine.errors import Code, ServiceError, failed_precondition, invalid
from history_store.engine.keys import slot_of
from history_store.shard import image

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Handler
    from cluster.hosting.node import Node
    from cluster.hosting.region.failover_operations import Operations
    from cluster.hosting.region.regions import Regions
    from cluster.hosting.region.steward import Steward
    from cluster.hosting.replicas.replicas import Replicas

log = structlog.get_logger("administration")

METHOD = "/holdfast.admin.v1.AdminService/Do"
# What only nodes ask, of their peers' port; never served to clients.
INTERNAL_METHOD = "/holdfast.internal.v1.NodeService/Do"
LEADERLESS_S = 2.5  # an election, or a hand-over, and the next report take less


class Request(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A request. A field that this version does not know is refused: it might be what makes it harmless.

    So only fields that say something are sent.
    """

    do: str
    node: str = ""  # name, or id
    to: str = ""
    shard: int = -1
    slot: int = -1
    force: bool = False
    evacuate: bool = False
    dry_run: bool = False
    all: bool = False
    here: bool = False
    namespace: str = ""
    workflow: str = ""  # id
    mode: str = ""  # of a failover
    request_id: str = ""
    operator: str = ""
    reason: str = ""
    yes: bool = False  # to what may be lost
    allow_dirty: bool = False
    max_wait_ms: int = -1
    handed_on: bool = False  # by another region
    record: NodeRecord | None = None  # of a node that speaks of itself
    at: tuple[str, ...] = ()  # addresses
    region: str = ""  # name
    remote: RemoteRecord | None = None  # of a region that speaks of itself


Answer: TypeAlias = dict[str, Any]
Verb: TypeAlias = Callable[["Administration", Request], Coroutine[Any, Any, Answer]]
_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


class Standing(Enum):
    """What a name is to a region."""

    FIRST = "first"  # one of those that make it, or nobody could say
    NEW = "new"  # not in it
    LOST = "lost"  # in it, with other data


def ask(do: str, **fields: Any) -> bytes:
    """A request."""
    return _encode(Request(do, **fields))


def read(message: bytes) -> Request:
    """The request of a message. INVALID_ARGUMENT."""
    try:
        return _decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(f"this is no request of this release: {error}") from None


class Administration:
    """One per node."""

    def __init__(self, node: Node, replicas: Replicas, steward: Steward, regions: Regions) -> None:
        self._node = node
        self._replicas = replicas
        self._steward = steward
        self._watch = Watch()
        self._own_watch = Watch()  # for what this node knows by itself
        self.operations: Operations | None = None  # with other regions
        self.splits: Mapping[int, str] = {}  # coming shard -> what its split waits for
        self.heard: dict[str, NodeRecord] = {}  # what nodes said of themselves before there was a table
        steward.on_decided = self._keep_watch
        self._introductions = Introductions(
            regions,
            lambda: replicas.table,
            self._lead,
            lambda plan, dry_run: self._change(plan, dry_run=dry_run),
        )

    def handlers(self) -> dict[str, Handler]:
        """For clients."""
        return {METHOD: lambda call: self._do(call, VERBS)}

    def internal_handlers(self) -> dict[str, Handler]:
        """For nodes."""
        return {INTERNAL_METHOD: lambda call: self._do(call, INTERNAL_VERBS)}

    def _do(self, call: Call, verbs: dict[str, Verb]) -> Coroutine[Any, Any, bytes]:
        request = read(call.request)
        verb = verbs.get(request.do)
        if verb is None:
            raise ServiceError(
                Code.UNIMPLEMENTED, f"this release cannot {request.do!r}; it can {', '.join(sorted(verbs))}"
            )
        return self._done(verb, request)

    async def _done(self, verb: Verb, request: Request) -> bytes:
        return _encode(await verb(self, request))

    # ---- where the meta group is led

    @property
    def _table(self) -> Table:
        return self._replicas.table

    async def _heard(self, ask_group: Callable[[Callable[[ServiceError | None], None]], None]) -> None:
        """Wait for one of a group's promises. NotLeading if another leads meanwhile."""
        future: asyncio.Future[ServiceError | None] = self._node.loop.create_future()

        def heard(error: ServiceError | None) -> None:
            if not future.done():
                future.set_result(error)

        ask_group(heard)
        error = await future
        if isinstance(error, LostLeadership):
            raise NotLeading(self._node.meta.group.raft.leader, META_GROUP)  # asked again there, harmlessly
        if error is not None:
            raise error

    async def _lead(self) -> None:
        """Go on only where the meta group is led, for certain. NotLeading."""
        try:
            await self._heard(self._node.meta.group.when_readable)
        except ServiceError as error:
            raise NotLeading(error.leader if isinstance(error, NotLeading) else 0, META_GROUP) from None
        if self._table.region is None:
            raise NotLeading(0, META_GROUP)  # it is being made

    async def _informed(self) -> None:
        """Wait until every node has had the time to be heard: what is not heard from counts as down."""
        while self._steward.informed_in_s:
            await asyncio.sleep(self._steward.informed_in_s)
            await self._lead()

    async def _change(self, plan: Callable[[Table], Plan | Refusal], *, dry_run: bool = False) -> Plan:
        """Plan and propose in one step. FAILED_PRECONDITION; NotLeading."""
        group = self._node.meta.group
        await self._lead()
        await self._informed()
        while self._steward.changing:
            await self._heard(group.when_committed)
        if not group.leading:
            raise NotLeading(group.raft.leader, META_GROUP)
        found = plan(self._table)
        if isinstance(found, Refusal):
            raise failed_precondition(str(found))
        if found.rows and not dry_run:
            rows = list(found.rows)
            group.propose(image.encode(rows, []), rows, [])
            log.info("the region changes", why=found.why, moves=len(found.moves))
            await self._heard(group.when_committed)
        return found

    def _down(self) -> set[int]:
        found, _ = self._steward.health()
        return {node_id for node_id, one in found.items() if not one.up}

    def _find(self, table: Table, name: str, *, gone: bool = False) -> int:
        """Id of a node by its name or id; `gone`: removed ones have names, too. FAILED_PRECONDITION."""
        node = table.node_named(name)
        if node is None and name.isdecimal():
            node = table.nodes.get(int(name))
        if node is None and gone:
            named = [one for one in table.nodes.values() if one.name == name]
            node = max(named, key=lambda one: one.id, default=None)
        if node is None:
            known = ", ".join(one.name for one in table.present())
            raise failed_precondition(f"there is no node {name!r}: choose one of {known}")
        return node.id

    async def _planned(self, request: Request, plan: Callable[[Table], Plan | Refusal]) -> Answer:
        found = await self._change(plan, dry_run=request.dry_run)
        moves = [
            {"shard": move.group, "from": self._name(move.source), "to": self._name(move.target)}
            for move in found.moves
        ]
        return {"why": found.why, "changed": bool(found.rows) and not request.dry_run, "moves": moves}

    def _name(self, node_id: int) -> str | None:
        node = self._table.nodes.get(node_id)
        return node.name if node is not None else None

    # ---- changes

    async def drain(self, request: Request) -> Answer:
        """A node is to lead nothing."""
        force, evacuate = request.force, request.evacuate

        def plan(table: Table) -> Plan | Refusal:
            node_id = self._find(table, request.node)
            return plan_drain(table, node_id, evacuate=evacuate, force=force, down=self._down())

        return await self._planned(request, plan)

    async def resume(self, request: Request) -> Answer:
        """It may lead again, and stays."""
        return await self._planned(request, lambda table: plan_resume(table, self._find(table, request.node)))

    async def remove(self, request: Request) -> Answer:
        """A node goes for ever."""

        def plan(table: Table) -> Plan | Refusal:
            node_id = self._find(table, request.node, gone=True)
            if table.nodes[node_id].state is NodeState.REMOVED:
                return Plan([], [], f"{table.nodes[node_id].name} is removed")
            return plan_remove(table, node_id, force=request.force, down=self._down())

        return await self._planned(request, plan)

    async def replace(self, request: Request) -> Answer:
        """Another node takes over what a node holds; that goes for ever."""

        def plan(table: Table) -> Plan | Refusal:
            old = self._find(table, request.node, gone=True)
            if table.nodes[old].state is NodeState.REMOVED:
                return Plan([], [], f"{table.nodes[old].name} is removed")
            if not request.to:
                return self._plan_lost(table, old)
            new = self._find(table, request.to)
            return plan_replace(table, old, new, force=request.force, down=self._down())

        return await self._planned(request, plan)

    def _plan_lost(self, table: Table, node_id: int) -> Plan | Refusal:
        """A node's data is gone, and its machine comes again without: it goes, and its name is free."""
        node = table.nodes[node_id]
        if node_id not in self._down():
            return Refusal(
                f"{node.name} is up",
                f"name the node that is to take over: `holdfast node replace {node.name} NEW`; "
                "or stop it first, if its data is to be thrown away",
            )
        return plan_remove(table, node_id, force=True, down=self._down())

    async def move(self, request: Request) -> Answer:
        """One replica goes elsewhere."""

        def plan(table: Table) -> Plan | Refusal:
            source, target = self._find(table, request.node), self._find(table, request.to)
            wanted = table.replicas_of(request.shard)
            if source not in wanted and target in wanted:
                return Plan([], [], f"shard {request.shard} is wanted there already")
            if target in self._down():
                return Refusal(f"{self._name(target)} is down", "start it, or choose another node")
            return plan_move(table, request.shard, source, target)

        return await self._planned(request, plan)

    async def rebalance(self, request: Request) -> Answer:
        """Level the nodes, and fill up what lacks replicas."""
        return await self._planned(request, lambda table: plan_rebalance(table, down=self._down()))

    async def split(self, request: Request) -> Answer:
        """Another shard takes a shard's slots from `slot` on; asked again, it is the same one."""
        number, slot = request.shard, request.slot

        def plan(table: Table) -> Plan | Refusal:
            child = split_at(table, number, slot)
            if child:
                return Plan([], [], f"shard {number} is split at slot {slot}, into itself and shard {child}")
            return plan_split(table, number, slot if slot >= 0 else None)

        answer = await self._planned(request, plan)
        if slot < 0:
            child = self._table.splitting(number)
            slot = self._table.shards[child].ranges[0][0] if child else -1
        return {"shard": number, "child": split_at(self._table, number, slot), "slot": slot, **answer}

    async def abandon(self, request: Request) -> Answer:
        """A split is not wanted any more, by either of its halves; whether in time is seen in `shards`."""
        found = await self._planned(request, lambda table: plan_abandon(table, request.shard))
        child = split_of(self._table, request.shard)
        shard = self._table.shards.get(child)
        return {"shard": shard.parent if shard is not None else 0, "child": child, **found}

    async def transfer(self, request: Request) -> Answer:
        """Another replica leads a shard: asked for, and seen in `shards` when it has come about."""
        found, _ = await self._told()
        reports, to = self._reports(), self._find(self._table, request.to)
        move = plan_transfer(self._table, reports, found, request.shard, to)
        if isinstance(move, Refusal):
            raise failed_precondition(str(move))
        self._steward.choose(request.shard, to)
        if move is None:
            return {"why": f"{self._name(to)} leads already", "changed": False, "from": self._name(to)}
        leader = reports[move.group].leader
        self._steward.transfer(move, leader)
        return {"why": f"{self._name(to)} is to lead", "changed": True, "from": self._name(leader)}

    # ---- other regions (introducing.py)

    async def introduce(self, request: Request) -> Answer:
        """Another region is to work with this one, and this one with it."""
        return await self._introductions.introduce(request.at)

    async def part(self, request: Request) -> Answer:
        """Another region is not to work with this one any more."""
        return await self._introductions.part(request.region)

    async def regions(self, request: Request) -> Answer:
        """This region and those that it knows. `here`: as far as this node can tell."""
        if not request.here:
            await self._lead()
        elif self._table.region is None:
            raise NotLeading(0, META_GROUP)
        return {"regions": self._introductions.shown()} | self._seen_by(request)

    async def met(self, request: Request) -> Answer:
        """Another region introduces itself."""
        return await self._introductions.met(request.remote, dry_run=request.dry_run)

    # ---- questions

    async def _told(self) -> tuple[dict[int, NodeHealth], dict[int, GroupReport]]:
        await self._lead()
        await self._informed()
        return self._steward.health()[0], self._reports()

    def _reports(self) -> dict[int, GroupReport]:
        """What leaders say of their groups; where leadership is just moving, what the last one said."""
        oldest = self._node.loop.time() - LEADERLESS_S
        _, reports = self._steward.health()
        groups = set(self._table.groups())
        before = {
            group: status.groups[group]
            for group, status in self._steward.last.items()
            if status.at >= oldest and group in groups
        }
        return before | reports

    async def nodes(self, request: Request) -> Answer:
        """The nodes and how they are; `all`: removed ones, too. `here`: as far as this node can tell."""
        health, reports = self._seen() if request.here else await self._told()
        shown = views.nodes(self._table, health, reports, removed=request.all, alone=request.here)
        return shown | self._seen_by(request)

    async def shards(self, request: Request) -> Answer:
        """The shards and their replicas; the meta group is number 0. `here`: as far as this node can tell."""
        health, reports = self._seen() if request.here else await self._told()
        waits = {} if request.here else {**self._steward.waits, **self.splits}
        own = self._node.node_id
        known = {group for group, report in reports.items() if not request.here or report.leader == own}
        return views.shards(self._table, health, reports, waits, known) | self._seen_by(request)

    def _seen(self) -> tuple[dict[int, NodeHealth], dict[int, GroupReport]]:
        """What this node knows without the others: whom it reaches, and of its own replicas who leads."""
        node = self._node
        up = {node.node_id, *node.peers()}
        groups = node.committer.groups.items()
        return {node_id: NodeHealth() for node_id in up}, {
            number: GroupReport(
                group.raft.leader, group.raft.conf, frozenset(group.raft.lagging(BEHIND_ENTRIES))
            )
            for number, group in groups
            if group.raft.leader in up
        }

    def _seen_by(self, request: Request) -> Answer:
        """Who answers, if it speaks for itself alone: its table may be an old one."""
        return {"seen_by": self._name(self._node.node_id) or "this node"} if request.here else {}

    async def health(self, request: Request) -> Answer:
        """What is wrong. `here`: as far as this node can tell by itself."""
        if request.here:
            return views.problems(self._own_watch.look(self._alone(), self._node.clock.now_ns()))
        await self._told()
        versions: dict[str, list[str]] = {}
        for node in self._table.present():
            versions.setdefault(node.version, []).append(node.name)
        region = self._table.region
        runs = {"versions": versions, "formats": region.formats if region is not None else 0}
        return views.problems(self._look()) | runs

    async def locate(self, request: Request) -> Answer:
        """Which shard has a workflow id, and who leads it. `here`: as this node sees it, of its own replica.

        Answered by the leader itself otherwise. `committed` is the index of the last entry of the shard's
        log that is known to be committed by the node that answers; None if it has no replica.
        """
        node = self._node
        namespace_id = node.namespace_id_of(request.namespace)
        if namespace_id is None:
            raise ServiceError(Code.NOT_FOUND, f"there is no namespace {request.namespace!r}")
        number = self._table.shard_of_slot(slot_of(namespace_id, request.workflow))
        if not request.here and number not in node.led:
            raise NotLeading(node.leader_of(number), number)
        group = node.committer.groups.get(number)
        return {
            "shard": number,
            "leader": self._name(node.leader_of(number)),
            "node": self._name(node.node_id),
            "committed": group.committed if group is not None else None,
        }

    def _keep_watch(self) -> None:
        self._look()

    def _look(self) -> list[Problem]:
        """Look for problems now, so that it is known since when each has been there."""
        if self._table.region is None:
            return []
        (found, _), reports = self._steward.health(), self._reports()
        clock, now = self._node.clock, self._node.loop.time()
        statuses = self._steward.statuses
        known = Known(
            self._table,
            found,
            reports,
            [group for group in views.served(self._table) if group not in reports],
            self._steward.waits,
            {node_id: status.refusal for node_id, status in statuses.items() if status.refusal},
            {
                node_id: clock.now_ns() - int((now - max(status.at, self._steward.leads_from)) * 1e9)
                for node_id, status in statuses.items()
            },
            {node_id: status.damaged for node_id, status in statuses.items() if status.damaged},
            {node_id: status.log_failure for node_id, status in statuses.items() if status.log_failure},
        )
        problems = find(known) if self._steward.informed_in_s == 0 else []
        return self._watch.look(problems, clock.now_ns())

    def _alone(self) -> list[Problem]:
        """What this node knows when the region's table cannot be asked."""
        node, table = self._node, self._table
        me = self._name(node.node_id) or f"node {node.node_id}"
        found = []
        if not node.leader_of(META_GROUP):
            up = node.peers()
            others = [one.name for one in table.present() if one.id not in (*up, node.node_id)]
            what = "the meta group has no leader, so nobody looks after the region"
            if others:
                what += f"; {me} does not reach {', '.join(others)}"
            do = "start a majority of the region's nodes, or mend the network between them"
            found.append(Problem("no steward", what, "region", do))
        else:
            leader = self._name(node.leader_of(META_GROUP)) or "another node"
            what = f"{leader}, which leads the meta group, does not answer {me}"
            do = f"see the log of {leader}, and the network between the two"
            found.append(Problem("no answer", what, me, do))
        silent = [
            number
            for number, group in sorted(node.committer.groups.items())
            if number != META_GROUP and not group.raft.leader
        ]
        if silent:
            what = f"{named(silent)}: no leader that {me} knows of"
            found.append(Problem("no leader", what, me, "start a majority of the region's nodes"))
        refusal = node.committer.refusal
        if refusal is not None:
            what = f"{me} takes no writes: {refusal.message}"
            found.append(Problem("refuses", what, me, "make room on its disk, or mend it"))
        return found

    # ---- with other regions

    async def operate(self, request: Request) -> Answer:
        """Failover, and which regions hold a namespace (failover_operations.py)."""
        await self._lead()
        if self.operations is None:
            raise failed_precondition("this region has no others: nothing can be failed over")
        return await self.operations.do(request)

    # ---- what nodes ask

    async def join(self, request: Request) -> Answer:
        """A process with an empty data directory becomes a node; asked again, it is the same one."""
        record = _its_record(request)

        def plan(table: Table) -> Plan | Refusal:
            for node in table.nodes.values():
                if node.disk != record.disk:
                    continue
                if node.state is NodeState.REMOVED:
                    return Refusal(f"{node.name} was removed", "start it with an empty data directory")
                if node.name == record.name:
                    return Plan([], [], f"{node.name} has joined")
            known = table.node_named(record.name)
            if known is not None:
                return Refusal(
                    f"{known.name} is in the region already, as node {known.id} with other data",
                    f"give this node another name; or, if that one's data is lost, "
                    f"`holdfast node replace {known.name}` first",
                )
            return plan_join(
                table, msgspec.structs.replace(record, joined_ns=self._node.clock.now_ns()), down=self._down()
            )

        await self._change(plan)
        table = self._table
        node = table.node_named(record.name)
        assert table.region is not None, "a change was committed in it"
        if node is None or node.disk != record.disk:
            raise NotLeading(0, META_GROUP)  # it was removed in this moment: ask again and hear so
        return {
            "cluster_id": table.region.cluster_id,
            "node_id": node.id,
            "peers": {str(one.id): one.peers_address for one in table.present()},
        }

    async def stands(self, request: Request) -> Answer:
        """What a first member without data is to the region, as far as this node knows."""
        known = self._table.node_named(request.node)
        if self._table.region is None or (known is not None and not known.disk):
            return {"stands": Standing.FIRST.value}  # it is late, and nobody has seen its data
        return {"stands": (Standing.NEW if known is None else Standing.LOST).value}

    async def announce(self, request: Request) -> Answer:
        """A node says what it is now."""
        record = _its_record(request)
        if self._table.region is None:
            self.heard[record.name] = record
            return {"later": True}

        def plan(table: Table) -> Plan | Refusal:
            return plan_announce(table, record, down=self._down())

        found = await self._change(plan)
        return {"why": found.why}


def _its_record(request: Request) -> NodeRecord:
    record = request.record
    if record is None or record.format != FORMAT or not record.disk or not record.name:
        raise invalid("a node that speaks of itself says its name, its addresses and what its data is called")
    return record


VERBS: dict[str, Verb] = {
    "drain": Administration.drain,
    "resume": Administration.resume,
    "remove": Administration.remove,
    "replace": Administration.replace,
    "move": Administration.move,
    "split": Administration.split,
    "abandon": Administration.abandon,
    "transfer": Administration.transfer,
    "rebalance": Administration.rebalance,
    "introduce": Administration.introduce,
    "part": Administration.part,
    "regions": Administration.regions,
    "nodes": Administration.nodes,
    "shards": Administration.shards,
    "health": Administration.health,
    "locate": Administration.locate,
    "failover": Administration.operate,
    "failover_status": Administration.operate,
    "failover_abort": Administration.operate,
    "add_region": Administration.operate,
    "remove_region": Administration.operate,
}
INTERNAL_VERBS: dict[str, Verb] = {
    "join": Administration.join,
    "announce": Administration.announce,
    "stands": Administration.stands,
    "met": Administration.met,
}
