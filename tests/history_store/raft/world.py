"""A world of replicas in memory: disks that lose what was not synced, a network that does what it likes.

`Replica` is the smallest honest hosting: it keeps the numbered contract of `history_store.raft` and nothing
more. `World` joins replicas, and judges them after every turn by Raft's safety properties. It never asks
the core why.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec

from history_store.raft import (
    CONF_CHANGE,
    Config,
    Dice,
    Kind,
    Message,
    RawNode,
    ReadState,
    Ready,
    SnapshotMeta,
    decode,
    encode,
)
from history_store.storage.contract import Entry, GroupLog, HardState


@dataclass
class Image:
    """The state machine: a checksum over everything applied, and where that ends."""

    index: int = 0
    term: int = 0
    digest: int = 0
    conf: bytes = b""

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.index + 1, "applied out of order"
        self.index, self.term = entry.index, entry.term
        self.digest = zlib.crc32(entry.data + bytes([entry.kind]), self.digest)


@dataclass
class Disk:
    """What survives."""

    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    compacted: int = 0
    compacted_term: int = 0
    image: Image = field(default_factory=Image)

    def write(self, ready: Ready, rows: Image, images: dict[SnapshotMeta, Image]) -> None:
        """One durable round."""
        if ready.snapshot is not None:
            self.image = replace(images[ready.snapshot])
            self.entries = []
            self.compacted, self.compacted_term = ready.snapshot.index, ready.snapshot.term
        if ready.entries:
            keep = ready.entries[0].index - self.compacted - 1
            assert 0 <= keep <= len(self.entries), "a gap on disk"
            self.entries[keep:] = ready.entries
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if rows.index > self.image.index:
            self.image = rows

    def compact(self, index: int) -> None:
        if index > self.compacted:
            count = index - self.compacted
            self.compacted_term = self.entries[count - 1].term
            del self.entries[:count]
            self.compacted = index

    def load(self) -> GroupLog:
        return GroupLog(
            self.hard_state,
            self.image.index,
            self.image.term,
            self.compacted,
            self.compacted_term,
            list(self.entries),
            self.image.conf,
        )


class Replica:
    """One node: a core, a disk, and the shell between them."""

    def __init__(self, config: Config, dice: Dice) -> None:
        self.config = config
        self.dice = dice
        self.disk = Disk()
        self.images: dict[SnapshotMeta, Image] = {}
        self.node: RawNode | None = None
        self.writing: tuple[Ready, Image] | None = None
        self.outbox: list[Message] = []
        self.applied: list[Entry] = []  # since the last look
        self.read_states: list[ReadState] = []
        self.owed_commit: Ready | None = None
        self.image = Image()
        self.written = False
        self.start()

    @property
    def up(self) -> RawNode:
        assert self.node is not None
        return self.node

    def start(self) -> None:
        if self.written:
            self.node = RawNode.restart(self.config, self.disk.load(), self.dice)
        else:
            self.node = RawNode(self.config, self.dice)
        self.image = replace(self.disk.image)

    def crash(self, *, write_landed: bool) -> None:
        """Lose the memory. A write under way has landed as a whole, or not at all."""
        if self.writing is not None and write_landed:
            self._write()
        self.node = None
        self.writing = None
        self.outbox.clear()
        self.applied.clear()
        self.read_states.clear()

    def _write(self) -> None:
        assert self.writing is not None
        self.disk.write(*self.writing, self.images)
        self.written = True

    def _apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.image.apply(entry)
            assert entry.kind != CONF_CHANGE or entry is entries[-1], "a membership change ends its batch"
        self.applied.extend(entries)
        if entries:
            self.image.conf = self.up.conf_bytes

    def send(self, messages: list[Message]) -> None:
        for message in messages:
            if message.kind is Kind.SNAPSHOT:
                # Hosting sends the image it has now.
                assert message.snapshot is not None
                assert message.snapshot.index <= self.image.index
                meta = SnapshotMeta(self.image.index, self.image.term, self.image.conf)
                self.images[meta] = replace(self.image)
                message = msgspec.structs.replace(message, snapshot=meta)
            self.outbox.append(message)

    def begin(self) -> bool:
        """Take a Ready, if there is one and no write is under way. True if one was taken."""
        node = self.up
        if self.writing is not None:
            self.send(node.take_messages())
            self._apply(node.take_committed())
            return False
        if not node.has_ready():
            return False
        self.take(node.ready())
        return True

    def take(self, ready: Ready) -> None:
        """Begin to do what a Ready asks for."""
        if ready.snapshot is not None:
            assert not ready.committed_entries
            self.image = replace(self.images[ready.snapshot])
        self._apply(ready.committed_entries)
        self.send(ready.messages)
        self.read_states.extend(ready.read_states)
        if ready.must_sync:
            self.writing = (ready, replace(self.image))
        else:
            # A commit mark alone is not worth a write; it is simply forgotten if we crash.
            self._finish(ready)

    def end(self) -> None:
        """The write under way is durable."""
        if self.writing is not None:
            ready, _ = self.writing
            self._write()
            self.writing = None
            self._finish(ready)

    def _finish(self, ready: Ready) -> None:
        self._apply(self.up.advance(ready))
        self.send(ready.messages_after)

    def settle(self) -> None:
        """Do everything there is to do."""
        self.end()
        while self.begin():
            self.end()

    def compact(self, behind: int) -> None:
        """Forget what the durable rows cover, but for the last `behind` entries."""
        node = self.up
        index = self.disk.image.index - behind
        # Also not beyond what the disk's log has, which may wait for a write that replaces it.
        if index > max(node.compacted, self.disk.compacted) and self.writing is None:
            node.compact(index, node.term_of(index))
            self.disk.compact(index)


@dataclass
class Judge:
    """Raft's five safety properties (figure 3 of the paper), and that reads see what was answered before."""

    leaders: dict[int, int] = field(default_factory=dict)
    seen: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    contents: dict[tuple[int, int], tuple[int, int, bytes]] = field(default_factory=dict)
    committed: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    digests: dict[int, int] = field(default_factory=dict)
    acknowledged: int = 0

    def look(self, replicas: Iterator[Replica]) -> None:
        living = [replica for replica in replicas if replica.node is not None]
        for replica in living:
            self.log_matching(replica)
        for replica in living:
            self.commits(replica)
        for replica in living:
            self.leadership(replica)
            self.state_machine(replica)

    def log_matching(self, replica: Replica) -> None:
        """Same index and term: same content and, by induction over the entry before, same history."""
        log = replica.up._core.log
        before = log.compacted_term
        for entry in log.entries:
            key = (entry.index, entry.term)
            content = (before, entry.kind, entry.data)
            assert self.contents.setdefault(key, content) == content, f"log matching: {key} differs"
            before = entry.term

    def commits(self, replica: Replica) -> None:
        log = replica.up._core.log
        for entry in log.entries[: log.committed - log.compacted]:
            content = (entry.term, entry.kind, entry.data)
            known = self.committed.setdefault(entry.index, content)
            assert known == content, f"two entries were committed at {entry.index}"

    def leadership(self, replica: Replica) -> None:
        node = replica.up
        if not node.is_leader:
            return
        log = node._core.log
        new = node.term not in self.leaders
        leader = self.leaders.setdefault(node.term, replica.config.node_id)
        assert leader == replica.config.node_id, f"election safety: two leaders in term {node.term}"
        key = (leader, node.term)
        last, last_term = self.seen.get(key, (0, 0))
        assert node.last_index >= last, "leader append-only: it cut its log"
        if last > log.compacted:
            assert node.term_of(last) == last_term, "leader append-only: it replaced an entry"
        self.seen[key] = (node.last_index, log.last_term)
        if new:
            for index, (term, _, _) in self.committed.items():
                if term < node.term and index > log.compacted:
                    assert node.term_of(index) == term, f"leader completeness: {index} is missing"

    def state_machine(self, replica: Replica) -> None:
        node = replica.up
        for entry in replica.applied:
            content = (entry.term, entry.kind, entry.data)
            # Not every commit is seen in a log: an entry may be applied and compacted within one turn.
            known = self.committed.setdefault(entry.index, content)
            assert known == content, f"state machine safety: two entries were applied at {entry.index}"
        replica.applied.clear()
        image = replica.image
        if node._core.log.snapshot is not None:
            return  # arrived in the core, not yet given out to be installed
        assert image.index == node.handed
        assert self.digests.setdefault(image.index, image.digest) == image.digest, "two states at one index"
        assert node.handed <= min(node.committed, node.stable)
        self.acknowledged = max(self.acknowledged, node.handed)


class World:
    """Replicas and the network between them."""

    def __init__(self, rng: random.Random, configs: list[Config]) -> None:
        self.rng = rng
        self.replicas = {
            config.node_id: Replica(config, random.Random(rng.getrandbits(32)).randrange)
            for config in configs
        }
        self.network: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.judge = Judge()
        self.reads: dict[bytes, int] = {}
        self.reads_answered = 0
        self.proposals = 0

    def living(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.node is not None]

    def leaders(self) -> list[Replica]:
        return [replica for replica in self.living() if replica.up.is_leader]

    def post(self) -> None:
        """Put what replicas want to send on the network."""
        for replica in self.living():
            for message in replica.outbox:
                assert message.to in self.replicas
                if (message.sender, message.to) not in self.cut:
                    self.network.append(decode(encode(message)))
            replica.outbox.clear()

    def deliver(self, message: Message) -> None:
        target = self.replicas[message.to]
        if target.node is None:
            return
        if message.snapshot is not None:
            # Hosting's own channel brought the image.
            target.images[message.snapshot] = replace(self.replicas[message.sender].images[message.snapshot])
        target.up.step(message)

    def ask(self, replica: Replica) -> None:
        """Begin a read, and note what it must see at least."""
        context = b"%d" % len(self.reads)
        self.reads[context] = self.judge.acknowledged
        replica.up.read_index(context)

    def look(self) -> None:
        self.judge.look(iter(self.replicas.values()))
        for replica in self.living():
            for state in replica.read_states:
                self.reads_answered += 1
                assert state.index >= self.reads[state.context], "a read missed what was answered before it"
            replica.read_states.clear()

    def calm(self, rounds: int) -> None:
        """A perfect network, and everybody's clock runs."""
        for _ in range(rounds):
            for replica in self.living():
                replica.up.tick()
            for _ in range(8):
                for replica in self.living():
                    replica.settle()
                self.post()
                batch, self.network = self.network, []
                for message in batch:
                    self.deliver(message)
            for replica in self.living():
                replica.settle()
            self.look()
