"""What operators want of failover: begun, looked at, taken back; and which regions hold a namespace.

Any node of any region may be asked. A graceful failover is decided where its source's meta group is led, a
forced one where its target's is, and who holds a namespace where it is active: the question goes on there as
it came. All is answered from what is committed.

Every verb may be asked again. A failover has the request id of whoever wants it: the same one again begins
nothing and gets the same answer. A refusal is FAILED_PRECONDITION, "why: what to do", and nothing changed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog

from cluster.hosting.groups.group import LostLeadership, NotLeading
from cluster.hosting.region.administration import Request
from cluster.hosting.region.asking import ASK_S
from cluster.hosting.region.failover_views import MS, Overview, overview
from cluster.hosting.region.failover_words import (
    Failed,
    Held,
    MayHold,
    Notice,
    Noticed,
    Operate,
    Operated,
    Survey,
    Surveyed,
)
from cluster.hosting.region.forcing import Found, LeaderOfTarget
from cluster.hosting.shards.failover_meta import name_of
from cluster.membership import META_GROUP
from history_store.engine.errors import Code, Indefinite, ServiceError, failed_precondition, invalid
from replication.failover.handover import plan_abort, plan_handover
from replication.failover.ledger import Confirmation, confirm
from replication.failover.readiness import Refusal, RegionView, handover_unready, lag_of
from replication.failover.records import UNDECIDED, Limits, Mode, NamespaceRecord, Phase
from replication.versions import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cluster.hosting.region.failover import Failover
    from cluster.hosting.region.failover_words import RegionAnswer, RegionQuestion
    from cluster.hosting.shards.meta import Namespace
    from replication.failover.records import Handover

log = structlog.get_logger("failover")

Answer: TypeAlias = dict[str, Any]

LOOK_S = 0.1  # between looks at a failover that is waited for
OPERATE_S = 15.0  # for another region to do what an operator wants: it may drain, and ask others
ASK_TRIES = 2  # of a question to another region
MODES = ("graceful", "forced")

_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


class Operations:
    """One per node."""

    def __init__(self, failover: Failover) -> None:
        self._failover = failover
        self._node = failover.node
        self._meta = failover.meta
        self._regions = failover.regions
        self._tasks: set[asyncio.Task[None]] = set()
        self._forcing = LeaderOfTarget(failover)

    def close(self) -> None:
        """Nobody waits any more."""
        for task in self._tasks:
            task.cancel()

    async def do(self, request: Request) -> Answer:
        """Do what an operator of this region wants."""
        return await VERBS[request.do](self, request)

    # ---- for other regions

    def operate(self, body: bytes, answer: Callable[[Operated | Failed], None]) -> None:
        """Do what an operator of another region wants, and answer."""

        async def work() -> None:
            try:
                request = _decode(body)
                found = await VERBS[request.do](self, request)
            except ServiceError as error:
                answer(Failed(int(error.code), error.message))
            except (msgspec.MsgspecError, KeyError) as error:
                answer(Failed(int(Code.UNIMPLEMENTED), f"this release cannot do that: {error}"))
            except Exception:
                log.exception("what another region's operator wants failed")
                answer(Failed(int(Code.INTERNAL), "it failed; see the log of the node that leads the region"))
            else:
                answer(Operated(_encode(found)))

        task = self._node.loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _elsewhere(self, region: int, request: Request) -> Answer:
        """What another region answers to the request."""
        name = self._regions.name_of(region)
        if request.handed_on:
            raise ServiceError(Code.UNAVAILABLE, f"the regions do not agree who is active: ask {name} itself")
        handed_on = msgspec.structs.replace(request, handed_on=True)
        # Once: what it is asked to do may take longer than an answer, and is not begun twice for that.
        said = await self._ask_once(region, Operate(_encode(handed_on)), OPERATE_S)
        if isinstance(said, Operated):
            found: Answer = msgspec.json.decode(said.answer)
            return found
        if isinstance(said, Failed):
            raise ServiceError(Code(said.code), said.message)
        raise Indefinite(
            f"region {name} is to decide it and does not answer; it may have happened: ask again, "
            "with the same request id"
        )

    async def _ask(self, region: int, question: RegionQuestion) -> RegionAnswer | None:
        for _ in range(ASK_TRIES):
            said = await self._ask_once(region, question)
            if said is not None:
                return said
        return None

    async def _ask_once(
        self, region: int, question: RegionQuestion, patience_s: float = ASK_S
    ) -> RegionAnswer | None:
        future: asyncio.Future[RegionAnswer | None] = self._node.loop.create_future()
        self._failover.asking.region(
            region,
            question,
            lambda said: None if future.done() else future.set_result(said),
            patience_s=patience_s,
        )
        return await future

    async def _committed(self) -> None:
        """Wait until what was proposed is. NotLeading: another leads, and is asked again, harmlessly."""
        future: asyncio.Future[ServiceError | None] = self._node.loop.create_future()
        self._meta.when_committed(lambda error: None if future.done() else future.set_result(error))
        error = await future
        if isinstance(error, LostLeadership):
            raise NotLeading(self._node.meta.group.raft.leader, META_GROUP)
        if error is not None:
            raise error

    # ---- what is meant

    def _namespace(self, name: str) -> Namespace:
        found = self._node.meta.by_name.get(name)
        if found is None:
            raise ServiceError(Code.NOT_FOUND, f"there is no namespace {name!r}")
        return found

    def _record(self, name: str) -> NamespaceRecord:
        """A namespace that has a version. NOT_FOUND, FAILED_PRECONDITION."""
        found = self._meta.ahead.namespaces.get(self._namespace(name).id)
        if found is None:
            own = self._regions.name_of(self._regions.own)
            raise failed_precondition(
                f"only region {own} holds namespace {name}: "
                f"`holdfast namespace add-region {name} REGION` first"
            )
        return found

    def _region(self, name: str) -> int:
        own, index = self._regions.own, self._meta.index_of(name)
        if not index:
            known = ", ".join(self._regions.name_of(i) for i in sorted({own, *self._regions.others()}))
            raise failed_precondition(f"there is no region {name!r}: choose one of {known}")
        return index

    def _holder(self, request: Request) -> tuple[NamespaceRecord, int]:
        """The namespace, and the region that is meant, which holds it. FAILED_PRECONDITION."""
        record, index = self._record(request.namespace), self._region(request.to)
        if index not in record.config.regions:
            raise failed_precondition(
                f"region {request.to} does not hold namespace {request.namespace}: "
                f"`holdfast namespace add-region {request.namespace} {request.to}` first"
            )
        return record, index

    # ---- verbs

    async def failover(self, request: Request) -> Answer:
        """Begin a failover, or say what it would do. The answer names the region that decides it."""
        if request.mode not in MODES:
            raise invalid(f"a failover is {' or '.join(MODES)}, not {request.mode!r}")
        if not request.request_id:
            raise invalid("a failover needs a request id")
        record, target = self._holder(request)
        own, active = self._regions.own, owner_of(record.version)
        if request.mode == "forced":
            if target != own:
                return await self._elsewhere(target, request)
            return await self._forced(request, record)
        known = self._meta.ahead.requested(request.request_id)
        if known is not None:
            await self._committed()
            return self._shown(record.id, known.number)
        if target == active:
            source = self._source_of(record)
            if source not in (0, own) and not request.handed_on:
                return await self._elsewhere(source, request)  # it may know the request
            raise _is_active(request)
        if active != own:
            return await self._elsewhere(active, request)
        return await self._graceful(request, record, target)

    def _source_of(self, record: NamespaceRecord) -> int:
        """The region that handed the namespace over to where it is active; 0: nobody did."""
        ledger = self._meta.ahead.ledgers.get(record.id)
        row = ledger.row(record.version) if ledger is not None else None
        return int(row.handover.partition("-")[0]) if row is not None and row.handover else 0

    async def _graceful(self, request: Request, record: NamespaceRecord, target: int) -> Answer:
        limits = Limits(allow_dirty=request.allow_dirty)
        if request.max_wait_ms >= 0:
            limits = msgspec.structs.replace(limits, wait_ns_max=request.max_wait_ms * 1_000_000)
        survey = await self._survey(record, target)
        view = RegionView(False) if survey is None else RegionView(True, survey.healthy, survey.bootstrapping)
        shards = self._failover.shards()
        begin = plan_handover(
            self._meta.ahead,
            [record.id],
            target,
            view=view,
            shards=shards,
            now_ns=self._node.clock.now_ns(),
            request_id=request.request_id,
            operator=request.operator,
            reason=request.reason,
            limits=limits,
        )
        known = self._meta.ahead.requested(request.request_id)  # it may have come twice meanwhile
        if known is None:
            if isinstance(begin, Refusal):
                raise failed_precondition(str(begin))
            if request.dry_run:
                applied = survey.shards if survey is not None else {}
                lag = lag_of(shards, {shard: one.lag for shard, one in applied.items()})
                waits = handover_unready(view, lag, limits)
                return {**self._shown(record.id, 0), "changed": False, "lines": waits}
            outcome = self._meta.propose(begin)
            if not outcome.accepted:
                raise failed_precondition(f"{outcome.why}: look at the failover status of the namespace")
            known = self._meta.ahead.requested(request.request_id)
        assert known is not None, "a handover that was begun is known by its request"
        await self._committed()
        self._failover.wake()
        return {**self._shown(record.id, known.number), "changed": True}

    async def _survey(self, record: NamespaceRecord, target: int) -> Surveyed | None:
        question = Survey(dict(self._failover.shards()), {record.id: record.version})
        said = await self._ask(target, question)
        return said if isinstance(said, Surveyed) else None

    async def _forced(self, request: Request, record: NamespaceRecord) -> Answer:
        """Take the namespace here. What is lost by it is said before, and has to be agreed to."""
        own = self._regions.own
        mark = f"request {request.request_id}"
        if owner_of(record.version) == own:
            ledger = self._meta.ahead.ledgers.get(record.id)
            row = ledger.row(record.version) if ledger is not None else None
            if row is None or row.mode is not Mode.FORCED or not row.reason.endswith(mark):
                raise _is_active(request)
            await self._committed()
            return {**self._shown(record.id, 0), **await self._confirmed(record.id, record.version)}
        found = await self._forcing.assess(record)
        if found.refusal is not None:
            raise failed_precondition(str(found.refusal))
        told = _loss(found)
        if request.dry_run or (found.needs_yes and not request.yes):
            return {**self._shown(record.id, 0), **told, "changed": False}
        reason = f"{request.reason}; {mark}" if request.reason else mark
        found = await self._forcing.drained(record)
        outcome = self._forcing.force(record, found, request.operator, reason)
        if isinstance(outcome, str):
            now = self._record(request.namespace)
            if owner_of(now.version) == own:  # the same request was done meanwhile, or somebody else's
                return await self._forced(request, now)
            raise failed_precondition(outcome)
        await self._committed()
        self._failover.wake()
        confirmed = await self._confirmed(record.id, outcome)
        return {**self._shown(record.id, 0), **_loss(found), **confirmed, "changed": True}

    async def _confirmed(self, namespace_id: str, version: int) -> Answer:
        """The confirm rule: what the other regions say to a version that was taken without asking them."""
        state = self._meta.committed
        ledger = state.ledgers[namespace_id]
        row = ledger.row(version)
        rows = (row,) if row is not None else ()
        held = [r for r in state.namespaces[namespace_id].config.regions if r != self._regions.own]
        said = await asyncio.gather(*(self._ask(r, Notice(rows, ask=(namespace_id,))) for r in held))
        read: dict[int, int | None] = {
            region: one.truths.get(namespace_id) if isinstance(one, Noticed) else None
            for region, one in zip(held, said, strict=True)
        }
        found: Confirmation = confirm(version, max(version, ledger.truth), read)
        return {
            "verdict": found.verdict.value,
            "truth": found.truth,
            "unread": [self._regions.name_of(region) for region in found.unread],
        }

    async def failover_status(self, request: Request) -> Answer:
        """A namespace's failover, as this region knows it; `to`: as that one does."""
        if request.to:
            index = self._region(request.to)
            if index != self._regions.own:
                return await self._elsewhere(index, request)
        namespace_id = self._namespace(request.namespace).id
        await self._committed()
        handovers = self._meta.committed.handovers.values()
        mine = [h for h in handovers if any(s.namespace_id == namespace_id for s in h.switches)]
        if request.request_id:
            mine = [h for h in mine if h.request_id == request.request_id]
        return self._shown(namespace_id, max((h.number for h in mine), default=0))

    async def failover_abort(self, request: Request) -> Answer:
        """Take back a handover that is not decided; asked again, it is taken back."""
        record = self._record(request.namespace)
        handover = self._last_handover(record.id)
        active = owner_of(record.version)
        if active != self._regions.own and (handover is None or handover.phase not in UNDECIDED):
            return await self._elsewhere(active, request)
        if handover is None:
            raise failed_precondition(
                f"namespace {request.namespace} is in no handover: there is nothing to be taken back"
            )
        changed = False
        if handover.phase is not Phase.ABORTED:
            abort = plan_abort(handover, f"{request.operator or 'an operator'} took it back")
            if isinstance(abort, Refusal):
                raise failed_precondition(str(abort))
            outcome = self._meta.propose(abort)
            if not outcome.accepted:
                raise failed_precondition(f"{outcome.why}: begin another one")
            changed = True
        await self._committed()
        self._failover.wake()
        return {**self._shown(record.id, handover.number), "changed": changed}

    def _last_handover(self, namespace_id: str) -> Handover | None:
        found = [
            handover
            for handover in self._meta.ahead.handovers.values()
            if any(switch.namespace_id == namespace_id for switch in handover.switches)
        ]
        return max(found, key=lambda handover: handover.number, default=None)

    # ---- who holds a namespace

    async def add_region(self, request: Request) -> Answer:
        """A region is to hold a namespace as well."""
        namespace, index = self._namespace(request.namespace), self._region(request.to)
        active = self._meta.active_region(namespace.id)
        if active != self._regions.own:
            return await self._elsewhere(active, request)
        if index in self._meta.regions_of(namespace.id):
            return self._shown(namespace.id, 0) | {"changed": False}
        await self.may_hold(index, namespace.id, namespace.name)
        namespace = self._namespace(request.namespace)
        regions = self._meta.regions_of(namespace.id)
        if self._meta.ahead.namespaces.get(namespace.id) is None:
            now_ns = self._node.clock.now_ns()
            row = self._meta.creation(
                namespace.id, now_ns=now_ns, operator=request.operator, reason=request.reason
            )
            self._meta.begin_versions(namespace, row)
        self._meta.edit(namespace, regions=(*regions, index))
        await self._committed()
        self._failover.wake()
        return self._shown(namespace.id, 0) | {"changed": True}

    async def may_hold(self, region: int, namespace_id: str, name: str) -> None:
        """Ask a region whether it can hold a namespace. FAILED_PRECONDITION, UNAVAILABLE."""
        said = await self._ask(region, MayHold(namespace_id, name))
        if not isinstance(said, Held):
            raise ServiceError(
                Code.UNAVAILABLE,
                f"region {self._regions.name_of(region)} cannot be reached, and is to say whether it has a "
                f"namespace {name}: nothing changed",
            )
        if said.why:
            raise failed_precondition(f"{said.why}: choose another name, or delete that one first")

    async def remove_region(self, request: Request) -> Answer:
        """A region is to hold a namespace no more. Not the one where it is active."""
        namespace, index = self._namespace(request.namespace), self._region(request.to)
        active = self._meta.active_region(namespace.id)
        if active != self._regions.own:
            return await self._elsewhere(active, request)
        regions = self._meta.regions_of(namespace.id)
        if index == active:
            raise failed_precondition(
                f"namespace {request.namespace} is active in region {request.to}: "
                "fail it over to another region first"
            )
        if index not in regions:
            return self._shown(namespace.id, 0) | {"changed": False}
        self._meta.edit(namespace, regions=[region for region in regions if region != index])
        await self._committed()
        self._failover.wake()
        return self._shown(namespace.id, 0) | {"changed": True}

    # ---- for UpdateNamespace

    async def change_regions(self, name: str, regions: Sequence[str]) -> None:
        """These regions hold the namespace from now on, and no others. NotActive."""
        self._check_active(name)
        held = self._meta.regions_of(self._namespace(name).id)
        for region in regions:
            await self.add_region(Request("add_region", namespace=name, to=region))
        for index in held:
            if (gone := self._regions.name_of(index)) not in regions:
                await self.remove_region(Request("remove_region", namespace=name, to=gone))

    async def make_active(self, name: str, region: str) -> None:
        """A graceful failover, to its end: it is decided, or this raises FAILED_PRECONDITION. NotActive.

        Where it is tried again by another leader, it goes on with the handover that is under way.
        """
        self._check_active(name)
        record = self._record(name)
        handover = self._last_handover(record.id)
        begun = handover is not None and handover.phase in UNDECIDED
        asked = Request(
            "failover",
            namespace=name,
            to=region,
            mode="graceful",
            request_id=handover.request_id if handover is not None and begun else self._node.new_id(),
            operator="UpdateNamespace",
        )
        if handover is not None and begun and handover.target != self._region(region):
            target = self._regions.name_of(handover.target)
            raise failed_precondition(f"namespace {name} is being handed over to {target}: wait for its end")
        found = await self.failover(asked)
        look = msgspec.structs.replace(asked, do="failover_status", to="")
        while not found["handover"]["decided"]:
            await asyncio.sleep(LOOK_S)
            self._lead()
            found = await self.failover_status(look)
        if not found["handover"]["moved"]:
            raise failed_precondition(
                f"namespace {name} stays where it is: {found['handover']['why']}: see `holdfast namespace "
                f"failover-status {name}`"
            )

    def _check_active(self, name: str) -> None:
        self._lead()
        self._meta.check_active(self._namespace(name).id)

    def _lead(self) -> None:
        group = self._node.meta.group
        if not group.leading:
            raise NotLeading(group.raft.leader, META_GROUP)

    def _shown(self, namespace_id: str, number: int) -> Answer:
        state = self._meta.committed
        record = state.namespaces.get(namespace_id)
        shown = self._node.meta.by_id.get(namespace_id)
        name = shown.name if shown is not None else (name_of(record) if record is not None else "")
        return overview(
            Overview(
                name,
                namespace_id,
                state,
                self._failover.progress.get(number),
                number,
                self._regions.name_of,
                self._regions.own,
                self._failover.reaches,
            )
        )


def _loss(found: Found) -> Answer:
    """What taking a namespace without asking may lose."""
    lag_ns = found.lag.lag_ns
    return {
        "lines": found.lines,
        "needs_yes": found.needs_yes,
        "lossless": found.lossless,
        "entries": found.lag.entries,
        "lag_ms": lag_ns // MS if lag_ns is not None else None,
    }


def _is_active(request: Request) -> ServiceError:
    return failed_precondition(
        f"namespace {request.namespace} is active in region {request.to} already: nothing is to be done"
    )


VERBS: dict[str, Callable[[Operations, Request], Coroutine[Any, Any, Answer]]] = {
    "failover": Operations.failover,
    "failover_status": Operations.failover_status,
    "failover_abort": Operations.failover_abort,
    "add_region": Operations.add_region,
    "remove_region": Operations.remove_region,
}
