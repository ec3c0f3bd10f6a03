"""A second judge, of what replicas say and have: every message is a promise, and disks are witnesses.

`world.Judge` sees a mistake when two replicas already disagree. Many mistakes need a rare coincidence to come
that far, but break a rule of the paper the moment they are made. The rules, each of Raft's own:

* a term is begun by somebody who stands; a mere question (pre-vote) moves no term;
* a replica grants one vote in a term (5.2), and what a message promises is on disk when it leaves: votes,
  the candidate's log, "I have your entries" (5.1, figure 2, "updated on stable storage before responding");
* nobody stands who knows of a committed membership change that it has not applied: it would count the votes
  of the wrong members (we, as etcd, let a change take effect when it is applied);
* what a replica said it has, it keeps while the leader it told is not followed by another;
* disks match as logs do (5.3), not only memories;
* a leader raises its commit mark only to entries of its own term (5.4.2), which a majority of each half of
  its members has on disk (section 6; learners do not count);
* a read without a lease is confirmed by a quorum that heard a heartbeat sent after it was asked for (8);
* while one leader may read at once, by its lease, no later one leads;
* a replica that heard a leader less than an election timeout ago elects no other, unless the leader asked
  for it (thesis, 4.2.3 and 6.4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from history_store.raft import CONF_CHANGE, Configuration, Kind, Message, Role
from tests.history_store.raft.world import Disk, Replica

FROM_LEADER = (Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT)


def disk_end(disk: Disk) -> int:
    """The last index on a disk."""
    return disk.compacted + len(disk.entries)


def disk_has(disk: Disk, index: int, term: int) -> bool:
    """Whether an entry is on a disk, or was applied and compacted there."""
    if index <= disk.compacted:
        return True
    offset = index - disk.compacted - 1
    return offset < len(disk.entries) and disk.entries[offset].term == term


def is_majority(voters: tuple[int, ...], having: set[int]) -> bool:
    """Whether more than half of the voters have it (an empty half asks for nothing)."""
    return not voters or 2 * len(having & set(voters)) > len(voters)


class Promises:
    """The rules, over one world."""

    def __init__(self) -> None:
        self.begun: set[int] = set()
        self.granted: dict[tuple[int, int], int] = {}  # (voter, term) -> candidate
        self.acknowledged: dict[int, tuple[int, int]] = {}  # replica -> (term, index) it said it has
        self.chain: dict[tuple[int, int], int] = {}  # (index, term) on a disk -> the term before it
        self.commits: dict[int, tuple[int, int, Configuration]] = {}  # leader -> (term, commit mark, members)
        self.clock: Counter[int] = Counter()  # ticks that each replica was given
        self.heard: dict[
            int, tuple[int, int, int]
        ] = {}  # replica -> (leader, its term, own clock) when heard

        self.turn = 0
        self.rounds: dict[tuple[int, int, int], int] = {}  # (leader, term, round) -> the turn it was sent in
        self.reached: dict[
            tuple[int, int], dict[int, int]
        ] = {}  # (leader, term) -> member -> newest such turn
        self.confs: dict[tuple[int, int], set[Configuration]] = {}  # (leader, term) -> members it led by
        self.asked: dict[bytes, tuple[int, int, int]] = {}  # read -> leader, term, turn

    # --------------------------------------------------------------------------------------- reads

    def asks(self, replica: Replica, context: bytes) -> None:
        """A leader was asked for a read."""
        if replica.up.is_leader and not replica.config.lease_reads:
            self.asked[context] = (replica.config.node_id, replica.up.term, self.turn)

    def _answered(self, replica: Replica) -> None:
        node = replica.up
        for state in replica.read_states:
            leader, term, turn = self.asked.pop(state.context, (0, 0, 0))
            if leader == 0 or not node.is_leader or node.term != term:
                continue
            confs = self.confs[leader, term]  # its members may have changed since
            reached = self.reached.get((leader, term), {})
            having = {leader, *(member for member, sent in reached.items() if sent >= turn)}
            assert any(
                is_majority(conf.voters, having) and is_majority(conf.outgoing, having) for conf in confs
            ), f"a read at node {leader} was confirmed by {sorted(having)} only"

    def reads_at_once(self, replica: Replica, replicas: Iterable[Replica]) -> None:
        """A leader may read without asking anybody."""
        for other in replicas:
            assert not other.up.is_leader or other.up.term <= replica.up.term, (
                f"node {replica.config.node_id} has a lease, but node {other.config.node_id} leads"
            )

    # ------------------------------------------------------------------------------------ messages

    def stood(self, replica: Replica) -> None:
        """Remember a candidacy, which may be over before the next look."""
        core = replica.up._core
        if core.vote == core.id:
            self.begun.add(core.term)

    def says(self, replica: Replica, message: Message) -> None:
        """A message leaves."""
        disk, hard = replica.disk, replica.disk.hard_state
        kind, who = message.kind, message.sender
        if who != replica.config.node_id:
            return  # passed on for another
        if kind is Kind.VOTE_RESPONSE and not message.reject:
            first = self.granted.setdefault((who, message.term), message.to)
            assert first == message.to, (
                f"node {who} voted for {first} and {message.to} in term {message.term}"
            )
            assert hard.term > message.term or (hard.term, hard.vote) == (message.term, message.to), (
                f"node {who} sent a vote that its disk does not have"
            )
        elif kind is Kind.VOTE:
            assert hard.term >= message.term, f"node {who} stands in a term that its disk does not have"
            # Whoever found a leader meanwhile, and took its log, counts no more votes in that term.
            if replica.up.term == message.term and replica.up.role is Role.CANDIDATE:
                assert disk_has(disk, message.index, message.log_term), (
                    f"node {who} stands with a log that its disk does not have"
                )
        elif kind is Kind.HEARTBEAT:
            self.rounds.setdefault((who, message.term, message.round), self.turn)
        elif kind is Kind.APPEND_RESPONSE and not message.reject and message.index:
            assert hard.term > message.term or disk_end(disk) >= message.index, (
                f"node {who} acknowledged {message.index}, its disk ends at {disk_end(disk)}"
            )
            known = self.acknowledged.get(who, (0, 0))
            self.acknowledged[who] = max(known, (message.term, message.index))

    def delivered(self, replica: Replica, message: Message, before: tuple[int, int]) -> None:
        """A message was taken; (term, vote) were `before`."""
        core = replica.up._core
        me = core.id
        self.stood(replica)
        if message.kind in FROM_LEADER and core.term == message.term:
            self.heard[me] = (message.sender, core.term, self.clock[me])
            if message.kind is Kind.HEARTBEAT:
                sent = self.rounds[(message.sender, message.term, message.round)]
                reached = self.reached.setdefault((message.sender, message.term), {})
                reached[me] = max(reached.get(me, 0), sent)
        elif message.kind is Kind.VOTE and (core.term, core.vote) == (message.term, message.sender) != before:
            leader, term, at = self.heard.get(me, (0, -1, 0))
            bound = replica.config.check_quorum and term == before[0] and leader != message.sender
            if bound and not message.force:
                assert self.clock[me] - at >= replica.config.election_ticks, (
                    f"node {me} votes for {message.sender}, although it heard the leader of term {term}"
                )

    def restarted(self, replica: Replica) -> None:
        """Without leases a replica may forget at a crash that it heard a leader."""
        if not replica.config.lease_reads:
            self.heard.pop(replica.config.node_id, None)

    # -------------------------------------------------------------------------------------- states

    def look(self, replicas: dict[int, Replica]) -> None:
        """After a turn."""
        self.turn += 1
        living = [replica for replica in replicas.values() if replica.node is not None]
        for replica in living:
            self.stood(replica)
        for replica in living:
            node = replica.up
            assert node.term == 0 or node.term in self.begun, (
                f"term {node.term} was begun by nobody who stood"
            )
            if node.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
                log = node._core.log
                unapplied = log.entries[log.handed - log.compacted : log.committed - log.compacted]
                assert all(entry.kind != CONF_CHANGE for entry in unapplied), "stands, but knows not by whom"
            term, index = self.acknowledged.get(replica.config.node_id, (0, 0))
            if node.term == term:
                assert node.last_index >= index, f"what was acknowledged up to {index} is gone"
            if node.is_leader:
                self.confs.setdefault((replica.config.node_id, node.term), set()).add(node.conf)
                self._leads(replica, replicas)
            self._answered(replica)
        self._disks(replica.disk for replica in replicas.values())

    def _leads(self, replica: Replica, replicas: dict[int, Replica]) -> None:
        node, me = replica.up, replica.config.node_id
        term, mark, conf = self.commits.get(me, (0, 0, node.conf))
        self.commits[me] = (node.term, node.committed, node.conf)
        if term != node.term or node.committed == mark or node.committed <= node.compacted:
            return
        index, entry_term = node.committed, node.term_of(node.committed)
        assert entry_term == node.term, f"a leader of term {node.term} committed an entry of {entry_term}"
        having = {other for other, each in replicas.items() if disk_has(each.disk, index, entry_term)}
        # Its members may have changed between the commit and this look.
        assert any(
            is_majority(each.voters, having) and is_majority(each.outgoing, having)
            for each in (conf, node.conf)
        ), f"{index} was committed by {node.conf}, but only {sorted(having)} have it on disk"

    def _disks(self, disks: Iterable[Disk]) -> None:
        for disk in disks:
            before = disk.compacted_term
            for entry in disk.entries:
                known = self.chain.setdefault((entry.index, entry.term), before)
                assert known == before, f"log matching on disk: before {entry.index} of term {entry.term}"
                before = entry.term
