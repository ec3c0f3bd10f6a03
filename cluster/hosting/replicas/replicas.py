"""The replicas of a node among others: their clock, their letters, and which of them there are.

One tick serves all groups that are not quiet. Messages of all groups go to a peer in one frame a turn (the
peers' room does that). The table in the meta group says which shards have a replica here; it is followed row
by row, and groups are opened as it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cluster.membership.records import KINDS, META_GROUP, ShardState
from cluster.membership.table import Table
from history_store.raft import Config, Kind, Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.hosting.config.node_config import RaftSection
    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from cluster.membership.records import ShardRecord

log = structlog.get_logger("replicas")

RAFT = 1  # [RAFT, group, message]
QUIET_AFTER_TICKS = 40
PASSED_ON = (Kind.PROPOSE, Kind.READ_INDEX)  # by one that leads no more, for whoever asked it
EARLY_TICK = 0.01  # a timer may ring a hair early: that is the tick it was set for, not one to wait for again


class Replicas:
    """Drives the groups of a node."""

    def __init__(self, node_id: int, raft: RaftSection, send: Callable[[int, list[Any]], bool]) -> None:
        self.node_id = node_id
        self.table = Table()
        self.founders: tuple[int, ...] = ()  # voters that the meta group begins with
        self.onlookers: tuple[int, ...] = ()  # and its learners
        self.on_table: list[Callable[[], None]] = []
        self.may_open: Callable[[ShardRecord], bool] = lambda _shard: True  # or its rows are to come first
        self.leaving: set[int] = set()  # shards whose replica here is being closed (departures.py)
        self._raft = raft
        self._send = send
        self._node: Node
        self._timer: Any = None
        self._ticked = 0.0
        self._seen = -1
        self.ticks_missed = 0

    # ---- what a node wants to know when it makes a group

    def config_of(self, group: int) -> Config:
        """How a replica of the group begins here; what its log says counts for more."""
        voters: tuple[int, ...] = ()
        learners: tuple[int, ...] = ()
        if group == META_GROUP:
            voters, learners = self.founders, self.onlookers
        else:
            shard = self.table.shards.get(group)
            if shard is not None and self.node_id in shard.first:
                voters = shard.first
        raft = self._raft
        return Config(
            node_id=self.node_id,
            voters=voters,
            learners=learners,
            election_ticks=raft.election_ticks,
            heartbeat_ticks=raft.heartbeat_ticks,
            lease_reads=True,
            commit_at_once=group == META_GROUP,  # who is where, and which namespaces there are: news
            quiet_after_ticks=QUIET_AFTER_TICKS,
            append_bytes_max=raft.append_bytes_max,
            inflight_bytes_max=raft.inflight_bytes_max,
            log_bytes_max=raft.log_bytes_max,
        )

    def replicas_of(self, group: int) -> tuple[int, ...]:
        """Nodes that have a replica of the group, or are to have one."""
        return self.table.replicas_of(group)

    def send(self, group: int, message: Message) -> None:
        """A Raft message leaves with this turn's frame."""
        if not self._send(message.to, [RAFT, group, encode(message)]):
            found = self._node.committer.groups.get(group)
            if found is not None:
                self._node.loop.call_soon(found.raft.report_unreachable, message.to)

    # ---- life

    def take(self, node: Node) -> None:
        """The node is made: follow the table."""
        self._node = node
        meta = node.meta.group
        follow = meta.on_rows
        assert follow is not None, "the registry follows the meta group's rows"

        def rows(changed: list[tuple[bytes, bytes | None]], ours: bool) -> None:
            follow(changed, ours)
            if self.table.apply(changed):
                node.slots_changed()
                node.loop.call_soon(self.reconcile)

        meta.on_rows = rows
        node.committer.catch_up = self.catch_up
        meta.on_lose = node.meta.lost
        self.reload()

    def reload(self) -> None:
        """Take the table as the rows have it."""
        rows = self._node.meta.group.rows
        found = [item for kind in KINDS for item in rows.scan(kind, bytes((kind[0] + 1,)))]
        self.table = Table(found)
        self._seen = -1
        self.reconcile()

    def start(self) -> None:
        """Begin to tick."""
        self._ticked = self._node.loop.time()
        self._timer = self._node.loop.call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()

    def reconcile(self, *, again: bool = False) -> None:
        """Open the replicas that the table wants here, and learn who owns which slot."""
        table = self.table
        if (table.changes == self._seen and not again) or table.region is None:
            return
        self._seen = table.changes
        node = self._node
        for shard in table.shards.values():
            if shard.id not in node.committer.groups and self._is_here(shard):
                node.open_shard(shard.id)
        node.own_slots(table.owners)
        for callback in self.on_table:
            callback()

    def _is_here(self, shard: ShardRecord) -> bool:
        """Whether the node is to have a replica, or has one that others still count on."""
        if shard.state is ShardState.RETIRED or shard.id in self.leaving or not self.may_open(shard):
            return False
        if self.node_id in shard.replicas:
            return True
        held = self._node.holds(shard.id)
        return self.node_id in shard.first if held is None else held

    # ---- the clock

    @property
    def _tick_s(self) -> float:
        return self._raft.tick_ms / 1000

    def _tick(self) -> None:
        self.catch_up()
        loop = self._node.loop
        self._timer = loop.call_later(max(0.0, self._ticked + self._tick_s - loop.time()), self._tick)

    def catch_up(self) -> None:
        """Give the ticks that are due: before a lease is relied on, and before one is granted, too.

        After a pause the loop looks at its sockets first and at its timers later: a read that had waited
        there would find a lease that others know to be over.
        """
        if self._timer is None:
            return  # not begun
        now = self._node.loop.time()
        due = int((now - self._ticked) / self._tick_s + EARLY_TICK)
        if due <= 0:
            return
        self._ticked += due * self._tick_s
        # After a pause, more than an election timeout of ticks says nothing new.
        ticks = min(due, self._raft.election_ticks * 2)
        if due > 2:
            self.ticks_missed += due - 1
        # A busy loop, which reads its sockets between ticks that come late, has not slept.
        slept = due >= self._raft.election_ticks // 2
        committer = self._node.committer
        for group in list(committer.awake):
            raft = group.raft
            if raft.is_quiet:
                del committer.awake[group]  # it has no lease
                continue
            for left in range(ticks, 0, -1):
                raft.tick(missed=slept and left > 1)
            # With a Ready out, at a disk that takes its time, heartbeats go all the same.
            if raft.has_ready() or raft.has_messages():
                committer.mark(group)

    # ---- peers

    def received(self, node_id: int, message: list[Any]) -> None:
        """A Raft message."""
        group = self._node.committer.groups.get(message[1])
        if group is None:
            return  # we have no replica (yet): the sender goes on asking
        try:
            letter = decode(message[2])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("a Raft message cannot be read; is that node newer?", node=node_id, why=str(error))
            return
        if letter.kind is Kind.SNAPSHOT:
            return  # an image is what snapshots.py brings, whole; nobody sends the word alone
        own = letter.sender == node_id or letter.kind in PASSED_ON
        if letter.to != self.node_id or not own:
            log.error("a Raft message is not from who sent it, or not for us", node=node_id)
            return
        # After a pause: an answer to a leader is a promise for so many ticks, and those that were missed
        # would be counted against it at once.
        self.catch_up()
        group.raft.step(letter)
        self._node.committer.mark(group)

    def up(self, node_id: int) -> None:
        """A node is back: what is led here and sleeps says so, or one without a vote would never know."""
        for group in self._node.committer.groups.values():
            raft = group.raft
            if raft.is_leader and raft.is_quiet and node_id in raft.conf.members:
                raft.wake()
                self._node.committer.mark(group)

    def down(self, node_id: int) -> None:
        """A node is gone: groups that sleep under its lead wake up."""
        for group in self._node.committer.groups.values():
            if group.raft.leader == node_id and group.raft.is_quiet:
                group.raft.wake()
                self._node.committer.mark(group)

    def leads(self) -> list[Group]:
        """The groups that this node leads."""
        return [group for group in self._node.committer.groups.values() if group.leading]
