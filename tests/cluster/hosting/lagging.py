"""A region of small nodes in one process: real groups, committers and images, joined by queues a test moves.

Nothing happens unless it is asked for: `turn` lets what is scheduled run, `deliver` hands one message over,
`tick` is the Raft clock, `check` that of images. Each message is encoded and decoded on its way. Between two
nodes ordinary messages keep their order, and overtake bulk.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from cluster.hosting.groups.committer import Committer
from cluster.hosting.groups.group import Group, NotLeading, nobody
from cluster.hosting.replicas.snapshots import KINDS, Snapshots
from cluster.membership import META_GROUP
from history_store.engine import keys
from history_store.raft import DATA, Config, Message, RaftError, decode, encode
from history_store.shard import image, snapshot
from history_store.storage.contract import Entry, Round, Storage
from history_store.visibility import search
from history_store.visibility.record import DeleteRecord, ExecutionRecord, VisibilityOp
from tests.history_store.storage.conftest import Disk

RAFT = 1
NAMESPACE = "00000000-0000-0000-0000-00000000000a"
SLOT = keys.slot_bytes(3)


class Recorder:
    """A storage that notes its rounds, and dies when it is told to: before a round, or after it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.rounds: list[Round] = []
        self.rounds_left = -1  # until the process dies
        self.after = False
        self.died = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def die_at(self, rounds: int, *, after: bool) -> None:
        """The process ends in that write: before it took effect, or before anybody heard that it did."""
        self.rounds_left, self.after = rounds, after

    def write(self, batch: Round) -> None:
        self._take(batch, self._storage.write)

    def fold(self, batch: Round) -> None:
        self._take(batch, self._storage.fold)

    def _take(self, batch: Round, take: Callable[[Round], None]) -> None:
        self.died = self.died or self.rounds_left == 0
        self.rounds_left -= 1
        if not self.died or self.after:
            take(batch)
            self.rounds.append(batch)
        if self.died:
            self.after = False
            raise Death


class Death(BaseException):
    """The process is gone, in the middle of a write."""


def _not_death(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Death):
        loop.default_exception_handler(context)
        FAILURES.append(context)


FAILURES: list[Any] = []  # of callbacks, which nobody waits for


class Site:
    """One node, from its start to its end."""

    def __init__(self, region: Region, node_id: int, disk: Disk) -> None:
        self.region = region
        self.id = node_id
        self.disk = disk
        self.alive = True
        self.storage = Recorder(disk.storage)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_not_death)
        found = self.storage.load()
        self.committer = Committer(loop, self.storage, region.inline, self._broken, node_id, self._send_raft)
        self.images = Snapshots(self.committer, self._send, region.rng, inline=region.inline)
        self.images.chunk_bytes = region.chunk_bytes
        self.reloads: list[int] = []
        self.prepare(found)
        for group in region.groups_of(node_id):
            self.open(group, found.pop(group, None))
        self.images.recover()
        self.committer.start()
        self.started()

    def prepare(self, found: dict[int, Any]) -> None:
        """What is to be there before groups are."""

    def started(self) -> None:
        """What is to be done after that."""

    def open(self, group: int, found: Any = None) -> Group:
        voters = self.region.voters if self.id in self.region.voters else ()
        config = Config(node_id=self.id, voters=voters, log_bytes_max=3_000)
        made = self.committer.add(group, found, self.region.rng, config)
        made.on_image = lambda: self.reloads.append(group)
        self.check_disk(made)
        applied, committed = made.apply, self.region.committed[group]

        def apply(entries: list[Entry]) -> None:
            committed.note(entries)
            applied(entries)

        made.apply = apply  # type: ignore[method-assign]
        return made

    def check_disk(self, group: Group) -> None:
        """The rows are those of what they are said to be exact for, no more and no less."""
        rows, _ = self.region.committed[group.id].state(group.stored.index)
        found = {key: value for key, value in self.rows_of(group).items() if key[:1] != snapshot.RECORD}
        assert found == rows, f"node {self.id} at {group.stored.index}"

    def _broken(self, error: BaseException) -> None:
        raise AssertionError("no disk breaks here") from error

    def _send_raft(self, group: int, message: Message) -> None:
        self._send(message.to, [RAFT, group, encode(message)], False)

    def _send(self, to: int, message: list[Any], bulk: bool) -> bool:
        return self.alive and self.region.send(self.id, to, message, bulk)

    def receive(self, sender: int, message: list[Any]) -> None:
        if message[0] in KINDS:
            self.images.received(sender, message)
            return
        group = self.committer.groups.get(message[1])
        if group is not None:
            group.raft.step(decode(message[2]))
            self.committer.mark(group)

    def tick(self) -> None:
        for group in self.committer.groups.values():
            group.raft.tick()
            self.committer.mark(group)

    def end(self) -> None:
        """The process is gone: nothing that it had scheduled happens."""
        self.alive = False
        self.committer.halt()
        self.images._closed = True
        self.images.generations.close()
        if self.images._timer is not None:
            self.images._timer.cancel()
        for outgoing in self.images._outgoing.values():
            outgoing.over = True
            outgoing.release()

    # ---- what it has

    def rows(self, group: int) -> dict[bytes, bytes]:
        """The rows of a replica on disk."""
        return self.rows_of(self.committer.groups[group])

    def rows_of(self, group: Group) -> dict[bytes, bytes]:
        generation = group.rows.generation
        bounds = snapshot.prefix(generation), snapshot.prefix_end(generation)
        return {key[4:]: value for key, value in self.storage.scan(*bounds)}

    def generations(self) -> set[int]:
        """Under which numbers there are rows."""
        return {int.from_bytes(key[:4], "big") for key, _ in self.storage.scan(b"\0\0\0\0", b"\xff" * 1024)}

    def listed(self) -> dict[str, ExecutionRecord]:
        """What List shows."""
        connection = self.storage.visibility_connection()
        try:
            found, _ = search.list_executions(connection, NAMESPACE, "", {}, 10_000)
        finally:
            connection.close()
        return {record.run_id: record for record in found}


class Committed:
    """What everybody agrees on: the entries of a group, as the first replica that applied them saw them."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def note(self, entries: list[Entry]) -> None:
        for entry in entries:
            known = self.entries.setdefault(entry.index, entry)
            assert known == entry, "two replicas applied different entries"

    def state(self, upto: int) -> tuple[dict[bytes, bytes], dict[str, ExecutionRecord]]:
        """Rows and what List shows after an entry."""
        rows: dict[bytes, bytes] = {}
        records: dict[str, ExecutionRecord] = {}
        self.replay(range(1, upto + 1), rows, records)
        return rows, records

    def replay(
        self, indexes: Iterable[int], rows: dict[bytes, bytes], records: dict[str, ExecutionRecord]
    ) -> None:
        """Do to rows, and to what List shows, what these entries do."""
        for index in indexes:
            entry = self.entries[index]
            if entry.kind != DATA or not entry.data:
                continue
            found = image.decode(entry.data)
            for key, value in found.rows:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            records.update({record.run_id: record for record in found.shown})
            for gone in found.hidden:
                records.pop(gone.run_id, None)


class Region:
    """All nodes and what is between them."""

    site_class: type[Site] = Site

    def __init__(
        self, kind: str, directory: Path, rng: random.Random, *, nodes: int = 3,
        groups: tuple[int, ...] = (1,), voters: tuple[int, ...] = (1, 2, 3), chunk_bytes: int = 400,
        inline: bool = True,
    ) -> None:  # fmt: skip
        self.rng = rng
        self.groups = groups
        self.voters = voters
        self.joined: set[int] = set()  # nodes whose replicas wait for an image
        self.chunk_bytes = chunk_bytes
        self.inline = inline
        self.queues: dict[tuple[int, int, bool], deque[bytes]] = defaultdict(deque)
        self.cut_off: set[int] = set()
        self.refuse_bulk = False
        self.committed: dict[int, Committed] = defaultdict(Committed)
        self.proposals = 0
        self.sites: dict[int, Site] = {}
        self.sent: list[tuple[int, int, list[Any]]] = []  # of images
        for number in range(1, nodes + 1):
            (directory / f"node{number}").mkdir()
            self.sites[number] = self.site_class(self, number, Disk(kind, directory / f"node{number}"))

    def groups_of(self, node_id: int) -> tuple[int, ...]:
        return self.groups if node_id in self.voters or node_id in self.joined else ()

    # ---- messages

    def send(self, sender: int, to: int, message: list[Any], bulk: bool) -> bool:
        if sender in self.cut_off or to in self.cut_off or to not in self.sites:
            return False
        if bulk and self.refuse_bulk:
            return False
        if message[0] in KINDS:
            self.sent.append((sender, to, message))
        self.queues[sender, to, bulk].append(msgspec.msgpack.encode(message))
        return True

    def deliver(self, sender: int, to: int) -> bool:
        if self.sites[to].storage.died:
            return False
        for bulk in (False, True):
            queue = self.queues[sender, to, bulk]
            if queue:
                self.sites[to].receive(sender, msgspec.msgpack.decode(queue.popleft()))
                return True
        return False

    def waiting(self) -> list[tuple[int, int]]:
        return sorted({key[:2] for key, queue in self.queues.items() if queue})

    def cut(self, node_id: int) -> None:
        """Nobody reaches the node, and what was under way is lost."""
        self.cut_off.add(node_id)
        for key, queue in self.queues.items():
            if node_id in key[:2]:
                queue.clear()
        for site in self.sites.values():
            for other in self.sites.values():
                if node_id in (site.id, other.id) and site is not other:
                    site.images.down(other.id)

    def join(self, node_id: int) -> None:
        self.cut_off.discard(node_id)
        for site in self.sites.values():
            for other in self.sites.values():
                if node_id in (site.id, other.id) and site is not other:
                    site.images.up(other.id)

    def lose(self, pair: tuple[int, int]) -> None:
        """A message about images gets lost, or comes twice; others are left alone."""
        queue = self.queues[(*pair, self.rng.random() < 0.7)]
        if queue and msgspec.msgpack.decode(queue[0])[0] in KINDS:
            if self.rng.random() < 0.7:
                queue.popleft()
            else:
                queue.appendleft(queue[0])

    def damage(self, pair: tuple[int, int]) -> None:
        """A chunk is not what was sent."""
        queue = self.queues[(*pair, True)]
        if queue:
            message = msgspec.msgpack.decode(queue.popleft())
            data = bytearray(message[3])
            data[self.rng.randrange(len(data))] ^= 4
            message[3] = bytes(data)
            queue.appendleft(msgspec.msgpack.encode(message))

    @property
    def dead(self) -> list[int]:
        """Nodes that died in a write."""
        return [site.id for site in self.sites.values() if site.storage.died]

    def restart(self, node_id: int) -> Site:
        """Kill the process and start it again."""
        self.sites[node_id].end()
        was_cut = node_id in self.cut_off
        self.cut(node_id)
        disk = self.sites[node_id].disk
        disk.kill_and_open()
        self.sites[node_id] = self.site_class(self, node_id, disk)
        if not was_cut:
            self.join(node_id)
        return self.sites[node_id]

    # ---- time

    async def turn(self, turns: int = 3) -> None:
        for _ in range(turns):
            await asyncio.sleep(0 if self.inline else 0.001)

    async def round(self, *, tick: bool = True) -> None:
        """Everything that waits happens once."""
        if tick:
            for site in self.sites.values():
                if not site.storage.died:
                    site.tick()
        await self.turn()
        for pair in self.waiting():
            while self.deliver(*pair):
                pass
        await self.turn()

    async def until(self, condition: Any, rounds: int = 2000) -> None:
        for number in range(rounds):
            if condition():
                return
            await self.round()
            if number % 10 == 9:
                for site in self.sites.values():
                    site.images.check()
        raise AssertionError(f"this never came true: {self.describe()}")

    def describe(self) -> str:
        return "; ".join(
            f"{site.id}/{group.id}: {group.raft.role.name} term {group.raft.term} "
            f"committed {group.committed} stored {group.stored.index} leader {group.raft.leader} "
            f"busy {site.images.busy}"
            for site in self.sites.values()
            for group in site.committer.groups.values()
        )

    # ---- groups

    def leader(self, group: int = 1) -> Site | None:
        led = [
            site
            for site in self.sites.values()
            if site.id not in self.cut_off
            and group in site.committer.groups
            and site.committer.groups[group].leading
        ]
        return max(led, key=lambda site: site.committer.groups[group].raft.term, default=None)

    async def elect(self, node_id: int, group: int = 1) -> Site:
        """Let this node lead."""
        site = self.sites[node_id]
        raft = site.committer.groups[group].raft
        for number in range(400):
            leader = self.leader(group)
            if leader is site:
                return site
            if number % 40:
                pass  # what was begun takes some rounds
            elif leader is not None:
                with suppress(RaftError):  # it needs an image first
                    leader.committer.groups[group].raft.transfer_leader(node_id)
                leader.committer.mark(leader.committer.groups[group])
            else:
                raft.campaign()
                site.committer.mark(site.committer.groups[group])
            await self.round()
        raise AssertionError(f"node {node_id} does not come to lead: {self.describe()}")

    def propose(self, group: int = 1) -> None:
        """A transaction as shards make them: a run begins, goes on, closes, or is deleted."""
        leader = self.leader(group)
        if leader is None:
            return
        rng = self.rng
        self.proposals += 1
        raw = bytes((group,)) * 15 + bytes((rng.randrange(24),))
        run_id = raw.hex()
        rows: list[tuple[bytes, bytes | None]] = []
        shown: list[VisibilityOp] = []
        key = keys.run(SLOT, raw)
        if rng.random() < 0.2:
            rows.append((key, None))
            shown.append(DeleteRecord(NAMESPACE, run_id))
            rows.extend((keys.history(SLOT, raw, 0, batch), None) for batch in range(4))
        else:
            core = msgspec.msgpack.encode((NAMESPACE, f"w{raw[15]}", run_id, "W", self.proposals))
            rows.append((key, core))
            rows.append((keys.history(SLOT, raw, 0, rng.randrange(4)), rng.randbytes(rng.randrange(200))))
            shown.append(
                ExecutionRecord(
                    NAMESPACE, f"w{raw[15]}", run_id, "W", 1, 1000 + raw[15], 0, 0, "q", 0, 0,
                    self.proposals, 0, b"memo%d" % self.proposals, b"",
                )
            )  # fmt: skip
        if group == META_GROUP:
            shown = []  # its rows are not of runs
        replica = leader.committer.groups[group]
        data = image.encode(rows, shown)
        try:
            replica.propose(data, rows, shown)
        except (RaftError, NotLeading):
            return  # it hands its lead over
        replica.when_committed(lambda error: None)

    def flush(self) -> None:
        for site in self.sites.values():
            site.committer.flush(nobody)

    def settled(self) -> bool:
        """Whether every replica has everything on disk, and nothing is under way."""
        return self.stored(self.groups) and not any(site.images.busy for site in self.sites.values())

    def stored(self, groups: Iterable[int]) -> bool:
        """Whether every replica of these groups has everything on disk; what has not is told to."""
        for group in groups:
            leader = self.leader(group)
            if leader is None:
                return False
            upto = leader.committer.groups[group].raft.last_index
            for site in self.sites.values():
                replica = site.committer.groups.get(group)
                if replica is None:
                    continue
                if replica.stored.index < upto or replica.rows.pending_entries or replica.rows.records_wait:
                    site.committer.flush(nobody)
                    return False
        return True

    def check_equal(self) -> None:
        """All replicas have the same rows and show the same; nothing else is on any disk."""
        for group in self.groups:
            rows, _ = self.committed[group].state(max(self.committed[group].entries))
            for site in self.sites.values():
                if group in site.committer.groups:
                    assert site.rows(group) == rows, f"group {group} on {site.id}"
        for site in self.sites.values():
            shown: dict[str, ExecutionRecord] = {}
            for group in site.committer.groups:
                shown |= self.committed[group].state(max(self.committed[group].entries))[1]
            assert site.listed() == shown, f"node {site.id}"
            replicas = site.committer.groups.values()
            book = {0xFFFFFFFF} & site.generations()
            expected = {replica.rows.generation for replica in replicas if site.rows(replica.id)}
            assert site.generations() - book == expected, f"rows are left over on {site.id}"
            staged = [key for key, _ in site.storage.scan(b"\xff" * 4, b"\xff" * 5) if key[4:5] != b"g"]
            assert not staged, "nothing is under way in the book"

    def close(self) -> None:
        failures = FAILURES[:]
        FAILURES.clear()
        for site in self.sites.values():
            site.end()
            site.disk.storage.close()
        assert not failures, failures
