"""Bits that turn over on a disk: what is damaged is not served, and comes back from the others."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from cluster.hosting.calls.barrier import Barrier
from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.config.node_config import load
from cluster.hosting.groups.damage import noted
from cluster.hosting.groups.group import Group, NotLeading
from cluster.hosting.node import Node
from cluster.hosting.process.region_server import DATA_FILE, RegionServer
from cluster.hosting.replicas import generations
from cluster.peers import virtual_time
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import Code, ServiceError
from history_store.engine.keys import slot_of
from history_store.shard import image, snapshot
from history_store.storage.contract import Entry, Round, RowCorrupt, Storage, StorageCorrupt
from history_store.storage.memory import MemoryStorage
from history_store.storage.sqlite import SqliteStorage
from tests.cluster.hosting.runs import Runs
from tests.cluster.hosting.settlement import SHARDS, Settlement, Settler
from tests.history_store.storage.conftest import Disk

Play = Callable[..., None]


class FileDisk:
    """A machine's disk with real files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._disk = Disk("sqlite", directory)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk.storage, name)

    @property
    def path(self) -> Path:
        return self._disk.path

    def crash(self) -> None:
        self._disk.kill_and_open()

    def damage(self, key: bytes) -> None:
        """A bit of the row's value turns over."""
        flip(self._disk.path, key)


def spoil(path: Path) -> None:
    """The first page of a table is no page any more."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name='history'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))


def flip(path: Path, key: bytes) -> None:
    table = "history" if key[4:5] == b"h" else "rows"
    connection = sqlite3.connect(path)
    with connection:
        (value,) = connection.execute(f"SELECT value FROM {table} WHERE key=?", (key,)).fetchone()
        other = bytes((value[0] ^ 1,)) + value[1:]
        connection.execute(f"UPDATE {table} SET value=? WHERE key=?", (other, key))
    connection.close()


@pytest.fixture
def play(rng: random.Random, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """Play a scene in virtual time, in a region of three nodes, with files or without."""
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 7)

    def run(scene: Callable[[Settlement], Coroutine[Any, Any, None]], *, files: bool = False) -> None:
        async def whole() -> None:
            world = Settlement(rng)
            if files or rng.random() < 0.5:
                for settler in world.settlers.values():
                    settler.disk.close()
                    settler.disk = FileDisk(tmp_path / settler.host)  # type: ignore[assignment]
            try:
                await world.found()
                await scene(world)
            finally:
                world.end()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


def group_of(settler: Settler, shard: int) -> Group:
    return settler.member.node.committer.groups[shard]


def has_opened(settler: Settler, shard: int) -> bool:
    return hasattr(settler, "member") and shard in settler.member.node.committer.groups


async def damage_one(world: Settlement, runs: Runs, settler: Settler, shard: int) -> bytes:
    """Damage a row of a run that is on the node's disk; its key in the shard."""
    found: list[bytes] = []

    def stored() -> bool:
        settler.process.call(settler.member.node.committer.flush, lambda error: None)
        prefix = snapshot.prefix(group_of(settler, shard).rows.generation)
        found[:] = [key for key in sorted(runs.of[shard]) if settler.disk.get(prefix + key) is not None]
        return bool(found)

    await world.until(stored)
    key = world.rng.choice(found)
    settler.disk.damage(snapshot.prefix(group_of(settler, shard).rows.generation) + key)
    return key


def never_scrub(world: Settlement) -> None:
    for settler in world.running():
        settler.member.node.scrub.close()


async def mended(world: Settlement, runs: Runs, settler: Settler, shard: int, before: int) -> None:
    """Wait until its rows are whole, while entries go on coming."""

    def whole() -> bool:
        runs.write(shard)
        group = group_of(settler, shard)
        return not group.damage and group.rows.generation != before

    await world.until(whole)


def is_found(group: Group, before: int) -> bool:
    return bool(group.damage) or group.rows.generation != before


def test_a_leader_with_a_damaged_row_hands_over_and_gets_its_rows_anew(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 12)
        never_scrub(world)
        shard = rng.randrange(1, SHARDS + 1)
        leader = runs.leader(shard)
        assert leader is not None
        key = await damage_one(world, runs, leader, shard)
        group, before = group_of(leader, shard), group_of(leader, shard).rows.generation
        told: list[BaseException] = []

        def read() -> None:
            for _ in range(2):
                try:
                    group.rows.get(key)
                except ServiceError as error:
                    told.append(error)

        leader.process.call(read)
        assert [type(error) for error in told] == [NotLeading] * 2, "others are asked instead"
        await asyncio.sleep(0)
        assert group.damage == "" or [number for number, _ in leader.member.node.damages.told()] == [shard]
        if rng.random() < 0.5:
            leader.kill()
            leader.boot()
            await world.until(partial(has_opened, leader, shard))
        await runs.some([shard], 5)
        await mended(world, runs, leader, shard, before)
        assert not noted(leader.disk, shard)
        await world.until(world.is_well)
        await world.do(leader.name, "transfer", shard=shard, to=leader.name)
        await world.until(lambda: runs.leader(shard) is leader)
        await runs.some(list(runs.of), 3)
        await runs.at_rest()

    play(scene)


def test_the_scrub_finds_what_nobody_reads(play: Play) -> None:
    """Also while nodes die; a replica with damaged rows votes and acknowledges, but does not lead."""

    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 12)
        for _ in range(3):
            shard, settler = rng.randrange(1, SHARDS + 1), rng.choice(world.running())
            before = group_of(settler, shard).rows.generation
            await damage_one(world, runs, settler, shard)
            await world.until(partial(is_found, group_of(settler, shard), before))
            if rng.random() < 0.5:
                other = rng.choice([one for one in world.running() if one is not settler])
                other.kill()
                for _ in range(rng.randrange(20)):
                    await asyncio.sleep(0.1)
                    assert runs.leader(shard) is not settler or not group_of(settler, shard).damage
                other.boot()
                await world.until(partial(has_opened, other, shard))
            await runs.some([shard], 3)
            await mended(world, runs, settler, shard, before)
        await runs.at_rest()

    play(scene)


def test_a_node_whose_file_is_malformed_ends_and_does_not_open_it_again(play: Play, tmp_path: Path) -> None:
    async def scene(world: Settlement) -> None:
        runs, settler = Runs(world), world.rng.choice(world.running())
        await runs.some(list(runs.of), 3)
        settler.kill()
        path = cast("FileDisk", settler.disk).path
        spoil(path)
        with capture_logs() as said:
            settler.boot()
            await world.until(lambda: bool(settler.broken))
        (error,) = settler.broken
        assert "malformed" in str(error)
        (last,) = [one for one in said if one["log_level"] == "critical"]
        assert last["do"].startswith("Do not restore a backup: ")
        assert f"`holdfast node replace {settler.member.identity.name}`" in last["do"]
        assert not [one for one in said if "Restore" in str(one)], "the others count on what it had since"
        settler.process.kill()
        settler.disk.close()
        with pytest.raises(StorageCorrupt, match=r"was found damaged while it was in use.*malformed"):
            SqliteStorage(path)
        settler.disk = MemoryStorage()

    play(scene, files=True)


# ------------------------------------------------------------------------------------------------ alone


def alone(storage: Storage, loop: asyncio.AbstractEventLoop) -> Node:
    clock, rng = Clock(), random.Random(7)
    return Node(
        loop, storage, clock, Identifiers(clock, rng), rng, EngineLimits(),
        inline=True, shards=2, cluster_id="c", on_broken=lambda error: None,
    )  # fmt: skip


async def test_alone_the_shard_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    loop = asyncio.get_running_loop()
    node = alone(SqliteStorage(path), loop)
    node.start()
    rows: list[tuple[bytes, bytes | None]] = [(b"rkey", b"value")]

    for group in (1, 2):
        node.committer.groups[group].propose(image.encode(rows, []), rows, [])
    await asyncio.sleep(0)
    await node.close()
    flip(path, snapshot.prefix(1) + b"rkey")
    names = {node._groups_of_slots[slot_of("n", f"w{i}")]: f"w{i}" for i in range(50)}

    for life in range(2):
        node = alone(SqliteStorage(path), loop)
        node.scrub.bytes_per_s = 0
        node.start()
        if life == 0:
            with pytest.raises(ServiceError, match="shard 1 is damaged on this server's disk") as caught:
                node.shard_of("n", names[1]).rows.get(b"rkey")
            assert str(path) in caught.value.message
            await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="shard 1 is damaged") as caught:
            node.shard_of("n", names[1])
        assert caught.value.code == Code.DATA_LOSS
        assert node.shard_of("n", names[2]).rows.get(b"rkey") == b"value"
        told: list[Any] = []
        Barrier(node, [node.committer.groups[group] for group in (1, 2)], told.append).begin()
        await asyncio.sleep(0)
        assert told == [None], "List goes on"
        await node.close()


async def test_a_registry_that_cannot_be_read_is_the_end_of_the_start(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    loop = asyncio.get_running_loop()
    node = alone(SqliteStorage(path), loop)
    node.start()
    await node.close()
    connection = sqlite3.connect(path)
    (key,) = connection.execute("SELECT key FROM rows WHERE substr(key, 1, 4) = x'00000000'").fetchone()
    connection.close()
    flip(path, key)
    storage = SqliteStorage(path)
    with pytest.raises(RowCorrupt):
        alone(storage, loop)
    storage.close()


# ------------------------------------------------------------------------------------------------ files


def test_what_is_read_is_checked_a_piece_at_a_time(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "x.db"
    storage = SqliteStorage(path)

    keys = [b"\0\0\0\1" + kind + rng.randbytes(6) for kind in (b"r", b"h", b"i") for _ in range(150)]
    storage.write(Round(rows=[(key, rng.randbytes(300)) for key in keys]))
    storage.write(Round(entries=[(1, [Entry(1, 1, 0, b"data")])]))
    storage.close()
    bad = sorted(rng.sample(keys, 3))
    for key in bad:
        flip(path, key)
    storage = SqliteStorage(path)
    storage.load()
    place, damaged, pieces = b"", [], 0
    while True:
        checked = storage.check(place, 20_000)
        damaged += checked.damaged
        assert checked.problems == []
        pieces += 1
        place = checked.place
        if not place:
            break
    assert sorted(damaged) == bad
    assert 6 <= pieces <= 12
    found = storage.sweep(b"\0\0\0\1", b"\0\0\0\2", 1000)
    assert sorted(key for key, value in found if value is None) == bad
    with pytest.raises(RowCorrupt) as caught:
        storage.get(bad[0])
    assert caught.value.key == bad[0]
    storage.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE log SET body = cast(substr(body, 1, 5) || 'x' || substr(body, 7) AS BLOB)")
    connection.commit()
    connection.close()
    with pytest.raises(StorageCorrupt, match="log row"):
        SqliteStorage(path).load()


def test_in_a_region_nobody_is_told_to_restore_a_backup(tmp_path: Path) -> None:
    """What the file of then has forgotten, others count on."""
    file = tmp_path / "node.toml"
    file.write_text('[node]\nname = "a/1"\ndata_dir = "data"\n[region]\nname = "a"\nreplicas = 1\n'
                    'nodes = ["a/1=127.0.0.1:7301"]\n')  # fmt: skip
    config = load(file)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / DATA_FILE
    SqliteStorage(path, cluster_id="c", node_id=1).close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StorageCorrupt) as caught:
        asyncio.run(RegionServer(config).start(lambda error: None))
    told = str(caught.value)
    assert told.startswith(f"{path} is truncated")
    assert "Do not restore a backup" in told
    assert f"`holdfast node replace a/1`; then move {tmp_path / 'data'} away" in told


def test_a_condemned_file_is_not_opened_again(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "x.db")
    storage.condemn("page 7 is not a page")
    storage.close()
    with pytest.raises(StorageCorrupt, match=r"found damaged while it was in use.*page 7 is not a page"):
        SqliteStorage(tmp_path / "x.db")
