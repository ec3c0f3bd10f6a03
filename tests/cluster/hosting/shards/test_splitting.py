"""A shard is split on three replicas, and one of them ends in the middle: at each of its writes, in turn.

The nodes are those of lagging.py, with rows of all kinds and many slots. What both halves have in the end is
compared with what the logs say.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.hosting.groups.group import Group, NotLeading, nobody
from cluster.hosting.replicas import generations, snapshots
from cluster.hosting.shards import splitting
from cluster.hosting.shards.splitting import Asked, Splitting
from history_store.engine import keys
from history_store.engine.keys import SLOTS, slot_of
from history_store.raft import Config, RaftError
from history_store.shard import image, snapshot, split
from history_store.storage.contract import Entry
from history_store.visibility.record import DeleteRecord, ExecutionRecord, VisibilityOp
from tests.cluster.hosting.lagging import NAMESPACE, Region, Site

PARENT, CHILD = 1, 2
HALF = ((SLOTS // 2, SLOTS - 1),)
ASKED = Asked(PARENT, CHILD, HALF)
WORKFLOWS = 16
LOADED = 40  # rounds
# What the child begins with besides its slots' rows; the parent has one of the same key.
TIP = keys.STREAM + b"t"
HERITAGE = [(TIP, b"where the child's stream begins"), (keys.STREAM + b"c", b"how far another one is read")]

pack = msgspec.msgpack.encode


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are small, and no timer is waited for."""
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 7)
    monkeypatch.setattr(generations, "SHOWN_AT_ONCE", 5)
    monkeypatch.setattr(generations, "PAUSE_S", 0.0)
    monkeypatch.setattr(snapshots, "CHECK_S", 1e6)
    monkeypatch.setattr(splitting, "COPIED_ROWS", 9)
    monkeypatch.setattr(splitting, "CLEARED_ROWS", 9)
    monkeypatch.setattr(splitting, "LOOK_S", 1e6)
    monkeypatch.setattr(splitting, "STAND_S", 1e6)


class SplitSite(Site):
    """A node whose shards can be split."""

    region: SplitRegion
    splitting: Splitting

    def prepare(self, found: dict[int, Any]) -> None:
        self.found = found
        self.splitting = Splitting(
            self.committer,
            self.images,
            lambda number: self.open(number, self.found.pop(number, None)),
            lambda number: number in self.found or number in self.committer.groups,
            self.news,
        )
        self.splitting.heritage = lambda group, child, ranges: [*HERITAGE]

    def open(self, group: int, found: Any = None) -> Group:
        voters = self.region.voters if group == PARENT else ()
        config = Config(node_id=self.id, voters=voters, log_bytes_max=3_000)
        made = self.committer.add(group, found, self.region.rng, config)
        applied, committed = made.apply, self.region.committed[group]

        def apply(entries: list[Entry]) -> None:
            committed.note(entries)
            applied(entries)

        made.apply = apply  # type: ignore[method-assign]
        return made

    def news(self) -> None:
        """As the node does when the table has changed, or the parent's rows."""
        if CHILD in self.committer.groups or self.storage.died:
            return
        if CHILD in self.found or self.splitting.may_open(CHILD, PARENT, serving=True, wanted=True):
            self.open(CHILD, self.found.pop(CHILD, None))

    def started(self) -> None:
        self.news()
        self.splitting.recover()

    def tick(self) -> None:
        super().tick()
        self.splitting.ask([ASKED] if self.region.wanted else [])
        self.news()

    def end(self) -> None:
        super().end()
        self.splitting.close()


class SplitRegion(Region):
    """Three of them."""

    site_class = SplitSite
    sites: dict[int, SplitSite]  # type: ignore[assignment]
    wanted = True  # as the table says
    splits = True  # when all is ready
    deletes = 0.15
    abandons = False  # an operator would have it so

    def propose(self, group: int = PARENT) -> None:
        """A transaction on some workflow, in whichever half owns it."""
        rng = self.rng
        workflow = rng.randrange(WORKFLOWS)
        workflow_id = f"w{workflow}"
        slot = slot_of(NAMESPACE, workflow_id)
        leader = self.leader(PARENT)
        if leader is None:
            return
        given = leader.committer.groups[PARENT].given
        if given is not None and slot in given:
            leader = self.leader(CHILD)
        if leader is None:
            return
        replica = leader.committer.groups[CHILD if given is not None and slot in given else PARENT]
        self.proposals += 1
        rows, shown = self.changes(workflow, workflow_id, keys.slot_bytes(slot))
        try:
            replica.propose(image.encode(rows, shown), rows, shown)
        except (RaftError, NotLeading):
            return
        replica.when_committed(nobody)

    def changes(
        self, workflow: int, workflow_id: str, slot: bytes
    ) -> tuple[list[tuple[bytes, bytes | None]], list[VisibilityOp]]:
        rng = self.rng
        run = bytes((7,)) * 15 + bytes((workflow,))
        namespace = keys.raw_id(NAMESPACE)
        value = pack((NAMESPACE, workflow_id, run.hex(), "W", self.proposals))
        if rng.random() < self.deletes:  # the run is
            gone = [keys.run(slot, run), *(keys.history(slot, run, 0, number) for number in range(1, 5))]
            return [(key, None) for key in gone], [DeleteRecord(NAMESPACE, run.hex())]
        deletes = rng.random() < 0.3
        rows: list[tuple[bytes, bytes | None]] = [
            (keys.run(slot, run), value),
            (keys.history(slot, run, 0, rng.randrange(1, 5)), rng.randbytes(rng.randrange(60))),
            (keys.current(slot, namespace, workflow_id), value),
            (keys.task(namespace, 1, "q", 3, workflow * 10 + rng.randrange(3)), None if deletes else value),
            (keys.wake(rng.randrange(5), run), None if deletes else value),
            (
                keys.action(workflow * 10 + rng.randrange(3)),
                None if deletes else pack(("signal", NAMESPACE, workflow_id, run.hex())),
            ),
        ]
        record = ExecutionRecord(
            NAMESPACE, workflow_id, run.hex(), "W", 1, 1000 + workflow, 0, 0, "q", 0, 0, self.proposals, 0,
            b"memo%d" % self.proposals, b"",
        )  # fmt: skip
        return rows, [record]

    def split(self) -> None:
        """As the steward does: when the leader and a majority are ready, and who else is there."""
        leader = self.led()
        if leader is None:
            return
        up = [site for site in self.sites.values() if site.id not in self.cut_off and not site.storage.died]
        ready = [site for site in up if site.splitting.ready() == [CHILD]]
        may = self.splits and leader in ready and len(ready) == len(up) >= 2
        both = [leader.splitting.split] if may else []
        if self.abandons:
            both.append(leader.splitting.abandon)
            self.rng.shuffle(both)
        for propose in both:
            propose(CHILD)

    async def step(self, *, load: bool = True) -> None:
        """Load, and what the steward does."""
        if load and self.rng.random() < 0.7:
            self.propose()
        self.split()
        if self.rng.random() < 0.2:
            self.flush()
        await self.round()
        for dead in self.dead:
            self.restart(dead)

    def done(self) -> bool:
        """Whether both halves are everywhere, and nothing is left to do."""
        both = all(CHILD in site.committer.groups for site in self.sites.values())
        return both and self.stored((PARENT, CHILD)) and self.at_rest()

    def at_rest(self) -> bool:
        """Whether nothing is under way."""
        return not any(site.images.busy or site.splitting.busy for site in self.sites.values())

    def led(self) -> SplitSite | None:
        """Where the shard is led."""
        leader = self.leader(PARENT)
        return self.sites.get(leader.id) if leader is not None else None

    def decided(self) -> str:
        """What the leader says of the split: "parted", "abandoned", or "" for nothing yet."""
        leader = self.led()
        if leader is None:
            return ""
        said = {"parted": leader.splitting.parted(), "abandoned": leader.splitting.abandoned()}
        return next((what for what, children in said.items() if children), "")

    def whole(self) -> bool:
        """Whether the shard is as if nobody had wanted to split it, everywhere."""
        return self.stored((PARENT,)) and self.at_rest()

    def check_whole(self) -> None:
        wanted, shown = self.committed[PARENT].state(max(self.committed[PARENT].entries))
        for site in self.sites.values():
            assert CHILD not in site.committer.groups, f"node {site.id}"
            assert site.rows(PARENT) == wanted, f"node {site.id}: what the shard has"
            assert site.listed() == shown, f"node {site.id}: what List shows"
            assert not site.committer.groups[PARENT].rows.mirrors, f"node {site.id}: nothing is stored twice"
            book = [key[4:5] for key, _ in site.storage.scan(b"\xff" * 4, b"\xff" * 5)]
            assert set(book) <= {b"g"}, f"node {site.id}: nothing is under way"
            left = site.generations() - {0xFFFFFFFF, site.committer.groups[PARENT].rows.generation}
            assert not left, f"node {site.id}: rows are left over"

    def check(self) -> None:
        """Each half has its own rows on every disk, as the logs say; nothing else is there."""
        wanted, shown = self.committed[PARENT].state(max(self.committed[PARENT].entries))
        later = self.committed[CHILD].entries
        assert min(later) == split.FIRST_INDEX + 1
        self.committed[CHILD].replay(range(min(later), max(later) + 1), wanted, shown)
        half = split.Slots(HALF)
        theirs = {key: value for key, value in wanted.items() if half.have(key, value)} | dict(HERITAGE)
        ours = {key: value for key, value in wanted.items() if not half.have(key, value)}
        assert theirs, "the other half has something"
        for site in self.sites.values():
            assert site.rows(PARENT) == ours, f"node {site.id}: what the shard kept"
            assert site.rows(CHILD) == theirs, f"node {site.id}: what the new one got"
            assert site.listed() == shown, f"node {site.id}: what List shows"
            book = [key[4:5] for key, _ in site.storage.scan(b"\xff" * 4, b"\xff" * 5)]
            assert set(book) <= {b"g"}, f"node {site.id}: nothing is under way"
            known = {group.rows.generation for group in site.committer.groups.values()}
            assert site.generations() - {0xFFFFFFFF} <= known, f"node {site.id}: rows are left over"


async def prepared(region: SplitRegion) -> None:
    await region.elect(1)
    leader = region.led()
    assert leader is not None
    rows: list[tuple[bytes, bytes | None]] = [(TIP, b"where the parent's ends")]
    leader.committer.groups[PARENT].propose(image.encode(rows, []), rows, [])
    for _ in range(30):
        region.propose()
        await region.round(tick=False)
    region.flush()
    await region.round()


async def until_split(region: SplitRegion, *, loaded: int = LOADED) -> None:
    for number in range(1000):
        await region.step(load=number < loaded)
        if number % 10 == 9:
            for site in region.sites.values():
                site.images.check()
        if number >= loaded and region.done():
            break
    else:
        raise AssertionError(f"it is not split: {region.describe()}")
    region.check()


async def test_who_waits_for_an_entry_before_the_split_still_sees_its_rows(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are committed in one round. A worker's task that waited for the first is sent with its history."""
    region = SplitRegion("memory", tmp_path, rng)
    slot = keys.slot_bytes(HALF[0][0])
    row = (keys.history(slot, bytes(16), 0, 1), b"events")
    seen: list[bytes | None] = []
    split_now = Splitting._propose

    def propose(splits: Splitting, group: Group, said: split.Split) -> bool:
        group.propose(image.encode([row], []), [row], [])
        group.when_committed(lambda error: seen.append(group.rows.get(row[0])))
        return split_now(splits, group, said)

    monkeypatch.setattr(Splitting, "_propose", propose)
    try:
        await prepared(region)
        while region.decided() != "parted":
            await region.step(load=False)
        leader = region.led()
        assert leader is not None
        assert seen == [row[1]]
        assert leader.committer.groups[PARENT].rows.get(row[0]) is None, "and nobody after that"
    finally:
        region.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_both_halves_go_on_with_their_rows(kind: str, tmp_path: Path, rng: random.Random) -> None:
    region = SplitRegion(kind, tmp_path, rng)
    try:
        await prepared(region)
        await until_split(region)
        region.restart(rng.randrange(1, 4))
        await until_split(region)
    finally:
        region.close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("node_id", [1, 2])
async def test_a_node_that_ends_at_any_of_its_writes_has_both_halves_later(
    node_id: int, after: bool, tmp_path: Path, rng: random.Random
) -> None:
    """Node 1 leads. `after`: what it wrote is there, and nobody heard of it."""
    for rounds in range(0, 30, 2):
        directory = tmp_path / str(rounds)
        directory.mkdir()
        region = SplitRegion("memory", directory, rng)
        try:
            await prepared(region)
            region.sites[node_id].storage.die_at(rounds + rng.randrange(2), after=after)
            await until_split(region)
        finally:
            region.close()


async def test_a_replica_that_was_away_gets_both_halves(tmp_path: Path, rng: random.Random) -> None:
    """It was not there to copy rows, and the log does not reach back to it: both halves come as images."""
    region = SplitRegion("memory", tmp_path, rng)
    try:
        await prepared(region)
        region.cut(3)
        lagging = region.sites[3].committer.groups[PARENT].raft
        for _ in range(400):
            await region.step()
            leader = region.led()
            if leader is not None and region.leader(CHILD) is not None and not leader.splitting.busy:
                region.propose()
                if leader.committer.groups[PARENT].raft.compacted > lagging.last_index:
                    break
        else:
            raise AssertionError(f"no image is needed: {region.describe()}")
        region.deletes = 1.0  # and what it shows of them is stale
        for _ in range(4 * WORKFLOWS):
            region.propose()
            await region.round(tick=False)
        region.join(3)
        await until_split(region, loaded=0)
        assert region.sites[3].committer.groups[PARENT].rows.generation >= snapshot.GENERATION_FIRST
    finally:
        region.close()


async def until_decided(region: SplitRegion) -> str:
    """Go on until the log has one of the two entries, and all is done that follows from it."""
    for number in range(1000):
        await region.step(load=number < LOADED)
        if number % 10 == 9:
            for site in region.sites.values():
                site.images.check()
        if number < LOADED or not (decided := region.decided()):
            continue
        if decided == "parted" and region.done():
            region.check()
            return decided
        if decided == "abandoned" and region.whole():
            region.check_whole()
            return decided
    raise AssertionError(f"it is neither split nor whole: {region.describe()}")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("node_id", [1, 2])
async def test_a_split_that_is_abandoned_leaves_nothing_wherever_a_node_ends(
    node_id: int, after: bool, tmp_path: Path, rng: random.Random
) -> None:
    """The split may be proposed in the same moment, by either order: the log has one of the two."""
    seen = set()
    for rounds in range(0, 32, 4):
        directory = tmp_path / str(rounds)
        directory.mkdir()
        region = SplitRegion("memory", directory, rng)
        region.wanted, region.splits = False, rounds % 16 > 0
        try:
            await prepared(region)
            region.wanted = True
            region.sites[node_id].storage.die_at(rounds + rng.randrange(4), after=after)
            for _ in range(rng.randrange(6)):
                await region.step()
            region.abandons = True
            decided = await until_decided(region)
            seen.add(decided)
            if decided == "abandoned":
                region.wanted = False  # the table follows
                region.restart(rng.randrange(1, 4))
                for _ in range(20):
                    await region.step()
                while not region.whole():
                    await region.step(load=False)
                region.check_whole()
        finally:
            region.close()
    assert "abandoned" in seen


@pytest.mark.parametrize("compacts", [False, True], ids=["log", "image"])
async def test_a_node_that_was_down_throws_away_what_it_had_prepared(
    compacts: bool, tmp_path: Path, rng: random.Random
) -> None:
    region = SplitRegion("memory", tmp_path, rng)
    try:
        await prepared(region)
        await region.until(lambda: all(site.splitting.ready() for site in region.sites.values()))
        region.cut(3)
        region.splits, region.abandons = False, True
        lagging = region.sites[3].committer.groups[PARENT].raft
        for _ in range(400):
            await region.step()
            leader = region.leader(PARENT)
            if leader is not None and region.decided():
                far = leader.committer.groups[PARENT].raft.compacted > lagging.last_index
                if far or not compacts:
                    break
        else:
            raise AssertionError(f"it is not decided: {region.describe()}")
        region.wanted = False
        assert region.sites[3].splitting.ready() == [CHILD]
        region.restart(3)
        region.join(3)
        for _ in range(1000):
            await region.step(load=False)
            for site in region.sites.values():
                site.images.check()
            if region.whole():
                break
        region.check_whole()
    finally:
        region.close()


async def test_a_run_is_stale_only_if_nobody_who_got_its_slot_has_its_row(
    tmp_path: Path, rng: random.Random
) -> None:
    """Not while its shard is only not open yet, and not while that has just given the slot on."""
    region = SplitRegion("memory", tmp_path, rng)
    try:
        await prepared(region)
        await until_split(region)
        site = region.sites[rng.randrange(1, 4)]
        here = {key: value for key, value in site.rows(CHILD).items() if key[:1] == keys.RUN}
        key, value = rng.choice(sorted(here.items()))
        other = keys.run(key[1:3], bytes((8,)) * 16)
        run, gone = msgspec.msgpack.decode(value)[2], (bytes((8,)) * 16).hex()
        left = [
            (snapshot.prefix(PARENT) + key, value),
            (snapshot.prefix(PARENT) + other, pack((NAMESPACE, "w", gone, "W", 0))),
        ]
        stale = site.images.generations.stale
        assert stale(PARENT, left, kept=False) == [DeleteRecord(NAMESPACE, gone)]
        child = site.committer.groups.pop(CHILD)
        assert stale(PARENT, left, kept=False) == [DeleteRecord(NAMESPACE, gone)]
        site.images.generations.owner_of = lambda _slot: CHILD + 1
        said = split.Split(split.SPLIT, CHILD + 1, HALF, b"", 9)
        site.splitting._children[CHILD] = {CHILD + 1: said}
        assert stale(PARENT, left, kept=False) == [DeleteRecord(NAMESPACE, gone)]
        left = [(snapshot.prefix(child.rows.generation) + key, value)]
        assert stale(CHILD, left, kept=True) == []
        assert stale(CHILD, left, kept=False) == [DeleteRecord(NAMESPACE, run)], "the third has not got it"
    finally:
        region.close()
