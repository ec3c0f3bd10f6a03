"""A record that List shows is damaged on disk: the scrub sees that its run's row says something else."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest

from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.node import Node
from cluster.hosting.replicas import scrubbing
from history_store.engine import keys
from history_store.engine.environment import EngineLimits
from history_store.engine.record import record_of
from history_store.engine.run import pack
from history_store.engine.state import RunState
from history_store.shard import image, snapshot
from history_store.shard.split import Slots
from history_store.storage.sqlite import SqliteStorage
from history_store.visibility.search import find_records

NAMESPACE = "00000000-0000-7000-8000-000000000001"
BAD = ('{"1":"x', b"\xff", 7)


def run_of(number: int) -> tuple[RunState, bytes]:
    """A run, and the key of its row without a generation."""
    run_id, workflow_id = f"00000000-0000-7000-8000-{number:012d}", f"w{number}"
    state = RunState(
        NAMESPACE,
        workflow_id,
        run_id,
        "T",
        "q",
        1,
        0,
        0,
        run_id,
        run_id,
        "r",
        10**18,
        10**18,
        0,
        0,
        0,
        0,
        0,
        1,
    )
    return state, keys.run(keys.slot_bytes(keys.slot_of(NAMESPACE, workflow_id)), keys.raw_id(run_id))


def damage(path: Path, run_id: str, rng: random.Random) -> None:
    connection = sqlite3.connect(path)
    with connection:
        text = "UPDATE visibility_executions SET attributes = ?, workflow_type = 'x' WHERE run_id = ?"
        connection.execute(text, (rng.choice(BAD), run_id))
    connection.close()


def shown(storage: SqliteStorage, state: RunState) -> str:
    connection = storage.visibility_connection()
    (record,) = find_records(connection, [(state.namespace_id, state.run_id)])
    connection.close()
    return record.workflow_type


async def test_a_damaged_record_is_written_anew_where_it_is_ours(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "SUSPECT_S", 0.0)
    path = tmp_path / "x.db"
    storage, clock = SqliteStorage(path), Clock()
    broken: list[BaseException] = []
    node = Node(
        asyncio.get_running_loop(), storage, clock, Identifiers(clock, rng), rng, EngineLimits(),
        inline=True, shards=2, cluster_id="c", on_broken=broken.append,
    )  # fmt: skip
    node.scrub.bytes_per_s = 1 << 14
    node.threads = False
    node.start()
    group = node.committer.groups[1]
    runs = [run_of(number) for number in range(40)]
    for state, key in runs:
        rows: list[tuple[bytes, bytes | None]] = [(key, pack(state))]
        group.propose(image.encode(rows, [record_of(state)]), rows, [record_of(state)])

    async def flushed() -> None:
        written = asyncio.Event()
        node.committer.flush(lambda error: written.set())
        await written.wait()
        while node.committer.folder.waits or node.committer.folder.busy:
            await asyncio.sleep(0)

    async def lap() -> None:
        await flushed()
        done = node.scrub.laps
        while node.scrub.laps == done:
            node.scrub._turn()
            await asyncio.sleep(0)
        for _ in range(3):  # until suspects are looked at again
            await asyncio.sleep(0)
        await flushed()

    await lap()
    assert node.scrub.found == 0, "what is written is found as it was written"
    (ours, _), (others, key) = rng.sample(runs, 2)
    damage(path, ours.run_id, rng)
    damage(path, others.run_id, rng)
    assert storage.get(snapshot.prefix(1) + key) is not None
    slot = keys.slot_of(NAMESPACE, others.workflow_id)
    group.rows.gone = Slots(((slot, slot),))  # another shard has it by now, and knows better
    await lap()
    assert shown(storage, ours) == "T"
    assert shown(storage, others) == "x"
    assert node.scrub.found == 1
    group.rows.gone = None
    await lap()
    assert shown(storage, others) == "T"
    assert node.scrub.found == 2
    damage(path, ours.run_id, rng)
    rows = [(run_of(0)[1], pack(ours))]
    group.propose(image.encode(rows, [record_of(ours)]), rows, [record_of(ours)])
    await flushed()
    assert not broken, "a commit of the run finds it first: that is nobody's end"
    await node.close()
