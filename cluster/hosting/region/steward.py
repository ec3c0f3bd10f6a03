"""The steward: sees to it that replicas and leaders are where the table and the day's health want them.

Every node tells the node that leads the meta group how it is and what it leads; that one decides (the pure
rules are in `cluster.membership`) and asks the groups' leaders to act. Nothing is remembered: a steward that
takes over learns all in one period, and what was lost or overtaken is decided anew.

Load is the share of the last period that the event loop was not waiting; a node is slow when its disk or its
loop answers late for a while.
"""

from __future__ import annotations

import resource
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import structlog

from cluster.membership import (
    META_GROUP,
    GroupReport,
    NodeHealth,
    Plan,
    Refusal,
    Transfer,
    emptied,
    leader_moves,
    plan_formats,
    plan_removed,
    plan_transfer,
    replica_steps,
)
from cluster.membership.reports import CALM
from history_store.engine.errors import ServiceError
from history_store.raft import RaftError, decode_change, decode_configuration
from history_store.shard import image

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.membership import Step, Table
    from cluster.membership.reports import Health, Reports

log = structlog.get_logger("steward")

STATUS, TRANSFER, CHANGE, CHOSEN = 40, 41, 42, 43

PERIOD_S = 0.5
STALE_S = 2.5  # a report older than this says nothing
INFORMED_S = 2 * PERIOD_S + 0.2  # after a steward took over
CHOSEN_S = 300.0  # a leader that an operator asked for stays for so long, if all is well
INSIST_S = 12.0  # and for so long it is asked for again if it comes to nothing, or another move was under way
STEP_S = 5.0  # a step that has not shown by then is decided anew
BEHIND_ENTRIES = 4096  # a replica that lacks more is no leader to be
SLOW_ROUND_S = 0.25  # a disk whose rounds take longer, for SLOW_PERIODS on end, makes a node slow
SLOW_PERIODS = 3
DEAF_S = 2 * PERIOD_S + 0.2  # nodes that come and go are heard of by some before others


NOBODY: frozenset[int] = frozenset()
# Every leader says every half second which members each of its groups has: the same, nearly always.
_members_of = lru_cache(4096)(decode_configuration)


class Status:
    """What a node said last. The same one as long as it says the same of the groups that it leads."""

    __slots__ = (
        "at",
        "damaged",
        "draining",
        "groups",
        "load",
        "log_failure",
        "reaches",
        "refusal",
        "said",
        "slow",
    )

    def __init__(self, node_id: int, said: list[Any]) -> None:
        self.said = said  # [group, its members, who lags] of each that it leads
        self.groups = {
            number: GroupReport(node_id, _members_of(conf), frozenset(behind) if behind else NOBODY)
            for number, conf, behind in said
        }

    def note(self, at: float, message: list[Any]) -> None:
        """It was said at that time (the loop's)."""
        _, load, slow, draining, _, refusal, *more = message
        self.at = at
        self.load: float = load
        self.slow: bool = slow
        self.draining: bool = draining
        self.refusal: str = refusal  # why it takes no writes; "" = it does
        # What is damaged on its disk: by group, or the log; not told by an older node.
        self.damaged: dict[int, str] = dict(more[0]) if more else {}
        # Other nodes that it can talk to; None: it does not say.
        self.reaches = frozenset[int](more[1]) if len(more) > 1 else None
        # Why the log between regions takes nothing from it; "" = it does, or there is none.
        self.log_failure: str = more[2] if len(more) > 2 else ""


class Steward:
    """One per node; it decides only where the meta group is led."""

    def __init__(
        self,
        node: Node,
        replicas: Replicas,
        send: Callable[[int, list[Any]], bool],
        is_up: Callable[[int], bool],
        cpu_s: Callable[[], float],
    ) -> None:
        self._node = node
        self._cpu_s = cpu_s  # what this process has used of the CPU
        self._replicas = replicas
        self._send = send
        self._is_up = is_up
        self.draining = False
        self.statuses: dict[int, Status] = {}
        self.waits: dict[int, str] = {}  # group -> what its change of members waits for
        self.last: dict[int, Status] = {}  # group -> where its leader spoke of it last
        self._settled: object = None  # what all was as it should be with: the same again needs no thought
        self.on_decided: Callable[[], None] = _nothing
        self.log_failure: Callable[[], str] = str  # of this node, as it tells it: "" = there is none
        self._leads_from: float | None = None  # when the meta group's leadership came here
        self._term = 0  # and in which of its terms
        # group -> until when a step counts as under way, unless its report is no longer this one
        self._busy: dict[int, tuple[float, GroupReport]] = {}
        self._moving: dict[int, tuple[int, float]] = {}  # group -> (to, until)
        self._chosen: dict[int, tuple[int, float]] = {}  # group -> (leader that an operator wants, since)
        self._timer: Any = None
        self._cpu = 0.0
        self._clock = 0.0
        self._slow_periods = 0
        self._deaf_since: dict[int, float] = {}

    def start(self) -> None:
        """Begin."""
        self._clock = self._node.loop.time()
        self._cpu = self._cpu_s()
        self._timer = self._node.loop.call_later(PERIOD_S, self._turn)

    def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    # ---- every node

    def _turn(self) -> None:
        self._timer = self._node.loop.call_later(PERIOD_S, self._turn)
        self.report()
        if self._node.committer.refusal is not None:
            self.hand_over()  # who leads has to be able to write
        meta = self._node.meta.group
        if not meta.leading:
            self._leads_from = None
            return
        if self._leads_from is None or meta.raft.term != self._term:
            self._leads_from = self._node.loop.time()
            self._term = meta.raft.term
            self._settled = None
            self._busy.clear()  # another steward may have decided otherwise since
            self._moving.clear()
        if self._decide():
            self.on_decided()

    def report(self) -> None:
        """Tell the steward how we are."""
        load, slow = self._measure()
        groups = [
            [group.id, group.raft.conf_bytes, group.raft.lagging(BEHIND_ENTRIES)]
            for group in self._replicas.leads()
        ]
        refusal = self._node.committer.refusal
        why = refusal.message if refusal is not None else ""
        peers = self._node.peers()
        damaged, log_failure = self._node.damages.told(), self.log_failure()
        message = [STATUS, load, slow, self.draining, groups, why, damaged, peers, log_failure]
        leader = self._node.meta.group.raft.leader
        if leader == self._node.node_id:
            self.received(leader, message)
        elif leader:
            self._send(leader, message)
        else:  # a node that has just joined is in no group, and is taken into them once it is heard from
            for peer in peers:
                self._send(peer, message)

    def _measure(self) -> tuple[float, bool]:
        now, cpu = self._node.loop.time(), self._cpu_s()
        load = min((cpu - self._cpu) / max(now - self._clock, 1e-3), 1.0)
        self._clock, self._cpu = now, cpu
        late = self._node.committer.longest_round_s() > SLOW_ROUND_S
        self._slow_periods = (
            min(self._slow_periods + 1, 2 * SLOW_PERIODS) if late else max(self._slow_periods - 1, 0)
        )
        return round(load, 3), self._slow_periods >= SLOW_PERIODS

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        kind = message[0]
        if kind == STATUS:
            status = self.statuses.get(node_id)
            if status is None or status.said != message[4]:
                status = self.statuses[node_id] = Status(node_id, message[4])
                self.last.update(dict.fromkeys(status.groups, status))
            status.note(self._node.loop.time(), message)
        elif kind == CHOSEN:
            self._settled = None
            self._chosen[message[1]] = (message[2], self._node.loop.time())
        elif kind == TRANSFER:
            self._transfer(message[1], message[2])
        elif kind == CHANGE:
            self._change(message[1], message[2])

    def _transfer(self, number: int, to: int) -> None:
        group = self._node.committer.groups.get(number)
        if group is None or not group.leading:
            return
        try:
            group.raft.transfer_leader(to)
        except RaftError as error:
            log.info("leadership cannot be handed over", group=number, to=to, why=str(error))
        self._node.committer.mark(group)

    def _change(self, number: int, change: bytes) -> None:
        group = self._node.committer.groups.get(number)
        if group is None or not group.leading:
            return
        try:
            index = group.raft.propose_conf_change(decode_change(change))
        except RaftError as error:
            log.info("the members of a group cannot be changed now", group=number, why=str(error))
            return
        group.proposed = max(group.proposed, index)
        self._node.committer.mark(group)

    def hand_over(self) -> list[Group]:
        """This node stops: ask others to lead what it leads. Those that nobody else can lead stay."""
        left = []
        for group in self._replicas.leads():
            to = group.raft.heir(lambda member: self._is_up(member))
            if to:
                self._transfer(group.id, to)
                left.append(group)
        return left

    # ---- where the meta group is led

    @property
    def leads_from(self) -> float:
        """When all began to tell us how they are: loop time."""
        return self._leads_from if self._leads_from is not None else self._node.loop.time()

    @property
    def informed_in_s(self) -> float:
        """Whether every node has had the time to tell us how it is: 0, or how long that still takes."""
        if self._leads_from is None:
            return INFORMED_S
        return max(0.0, self._leads_from + INFORMED_S - self._node.loop.time())

    def health(self) -> tuple[dict[int, NodeHealth], dict[int, GroupReport]]:
        """How the nodes are, and what the leaders of groups say, as heard lately."""
        now = self._node.loop.time()
        health: dict[int, NodeHealth] = {}
        reports: dict[int, GroupReport] = {}
        heard: dict[int, Status] = {}
        present = [node.id for node in self._replicas.table.present()]
        for node_id in present:
            status = self.statuses.get(node_id)
            fresh = status is not None and now - status.at < STALE_S
            if status is not None and fresh and (node_id == self._node.node_id or self._is_up(node_id)):
                heard[node_id] = status
        deaf = self._deaf(heard)
        self._deaf_since = {node_id: self._deaf_since.get(node_id, now) for node_id in deaf}
        for node_id in present:
            status = heard.get(node_id)
            if status is None:
                health[node_id] = NodeHealth(up=False)
                continue
            leads_nothing = status.draining or bool(status.refusal)
            cut_off = now - self._deaf_since.get(node_id, now) >= DEAF_S
            health[node_id] = NodeHealth(
                True, leads_nothing, status.load, status.slow, deaf.get(node_id, 0), cut_off
            )
            reports.update(status.groups)
        for node_id, one in health.items():
            for group in self.statuses[node_id].damaged if one.up else ():
                report = reports.get(group)
                if report is not None and report.leader != node_id:  # it cannot lead
                    reports[group] = report._replace(behind=report.behind | {node_id})
        return health, reports

    def _deaf(self, heard: dict[int, Status]) -> dict[int, int]:
        """The nodes that cannot talk to some that others can talk to: to how many."""
        present = {node.id for node in self._replicas.table.present()}
        alive = present & frozenset(heard).union(*(status.reaches or () for status in heard.values()))
        missing = {
            node_id: len(alive - status.reaches - {node_id})
            for node_id, status in heard.items()
            if status.reaches is not None
        }
        return {node_id: count for node_id, count in missing.items() if count}

    def _decide(self) -> bool:
        """Ask for what is to be done now. False: all is as it was when there was nothing to do."""
        now = self._node.loop.time()
        table = self._replicas.table
        if table.region is None:
            return True
        health, reports = self.health()
        said = {node_id: (status.refusal, status.damaged) for node_id, status in self.statuses.items()}
        counts = {node_id: _as_counts(one) for node_id, one in health.items()}
        facts = (table, table.changes, counts, said, reports)
        if facts == self._settled:
            return False
        self._settled = None
        self._busy = {
            group: (until, was)
            for group, (until, was) in self._busy.items()
            if until > now and _is_still(was, reports.get(group))
        }
        self._moving = {
            group: (to, until)
            for group, (to, until) in self._moving.items()
            if until > now and (report := reports.get(group)) is not None and report.leader != to
        }
        self._chosen = {g: (to, at) for g, (to, at) in self._chosen.items() if at + CHOSEN_S > now}
        work = replica_steps(table, reports, health, busy=list(self._busy))
        self.waits = work.waits
        for step in work.steps:
            self._busy[step.group] = (now + STEP_S, reports[step.group])
            self._take(step, reports[step.group].leader)
        pending = {group: to for group, (to, _) in self._moving.items()}
        moves = leader_moves(table, reports, health, pending=pending, chosen=self._chosen)
        for move in moves:
            if move.group not in self._busy:
                self.transfer(move, reports[move.group].leader)
        self._insist(table, reports, health)
        gone = emptied(table, reports)
        if self.changing:  # one at a time: a plan is good only for the table it was made from
            return True
        raised = plan_formats(table)
        if gone:
            self.propose(plan_removed(table, gone[0]))
        elif raised is not None:
            self.propose(raised)
        elif not (work.steps or moves or self._busy or self._moving or self._chosen or self.informed_in_s):
            # With a leader for each group nothing depends on the time.
            self._settled = facts if len(reports) == len(table.groups()) else None
        return True

    def _take(self, step: Step, leader: int) -> None:
        log.info("a group changes", group=step.group, what=step.kind.value, why=step.why)
        if step.change is None:
            self._tell(leader, [TRANSFER, step.group, step.to])
        else:
            self._tell(leader, [CHANGE, step.group, step.change.encode()])

    def transfer(self, move: Transfer, leader: int) -> None:
        """Ask a group's leader to hand over. It may come to nothing: see the next reports."""
        self._moving[move.group] = (move.to, self._node.loop.time() + STEP_S)
        self._ask(move, leader)

    def _insist(self, table: Table, reports: Reports, health: Health) -> None:
        """A hand-over may come to nothing, or be overtaken by another one."""
        now = self._node.loop.time()
        for group, (to, asked) in self._chosen.items():
            if asked + INSIST_S > now and group not in self._moving and group not in self._busy:
                move = plan_transfer(table, reports, health, group, to)
                if isinstance(move, Transfer):
                    self.transfer(move, reports[group].leader)

    def choose(self, group: int, to: int) -> None:
        """An operator wants this leader: it is asked for, and then evenness leaves it alone for a while.

        All nodes are told, so that whoever is steward then knows.
        """
        message = [CHOSEN, group, to]
        self.received(self._node.node_id, message)
        for peer in self._node.peers():
            self._send(peer, message)

    def _ask(self, move: Transfer, leader: int) -> None:
        log.info("a leader moves", group=move.group, to=move.to, why=move.why)
        self._tell(leader, [TRANSFER, move.group, move.to])

    def _tell(self, node_id: int, message: list[Any]) -> None:
        if node_id == self._node.node_id:
            self.received(node_id, message)
        else:
            self._send(node_id, message)

    @property
    def changing(self) -> bool:
        """Whether something is proposed that the table does not show yet: no time for plans."""
        group = self._node.meta.group
        return group.proposed > group.committed

    def propose(self, plan: Plan | Refusal) -> bool:
        """Write a plan's rows in the meta group, which must be led here. False: it was refused."""
        if isinstance(plan, Refusal):
            log.warning("the region's table stays as it is", why=plan.why, do=plan.do)
            return False
        if plan.rows:
            rows = list(plan.rows)
            try:
                self._node.meta.group.propose(image.encode(rows, []), rows, [])
            except ServiceError as error:  # leadership is being handed over, or the disk is full
                log.info("the region's table stays as it is for now", why=error.message)
                return False
            log.info("the region changes", why=plan.why)
        return True


def _as_counts(health: NodeHealth) -> NodeHealth:
    """With half of it a node would still be calm: then no decision depends on how much its load is."""
    return health._replace(load=0.0) if health.load < CALM / 2 else health


def _is_still(was: GroupReport, now: GroupReport | None) -> bool:
    """Whether a step that was begun then does not show yet."""
    return now is None or (now.leader, now.conf) == (was.leader, was.conf)


def _nothing() -> None:
    """Nobody wants to know."""


def cpu_s() -> float:
    """What the process has used of the CPU so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


__all__ = ["CHOSEN", "META_GROUP", "STATUS", "TRANSFER", "Steward"]
