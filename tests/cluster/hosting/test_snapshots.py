"""Images between nodes: a replica that lags behind the log gets one, whatever ends meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.hosting import generations, group, snapshots
from history_store.shard import snapshot
from tests.cluster.hosting.lagging import Region


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are short, steps are small, and no timer runs by itself."""
    monkeypatch.setattr(group, "LOG_BYTES_MAX", 3_000)
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 7)
    monkeypatch.setattr(generations, "SHOWN_AT_ONCE", 5)
    monkeypatch.setattr(generations, "PAUSE_S", 0.0)
    monkeypatch.setattr(snapshots, "CHECK_S", 1e6)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def region(kind: str, tmp_path: Path, rng: random.Random) -> AsyncIterator[Region]:
    made = Region(kind, tmp_path, rng)
    yield made
    made.close()


async def work(region: Region, count: int, number: int = 1) -> None:
    for _ in range(count):
        region.propose(number)
        if region.rng.random() < 0.3:
            await region.round(tick=False)
        if region.rng.random() < 0.2:
            region.flush()
    region.flush()
    await region.round()


async def leave_behind(region: Region, node_id: int) -> None:
    """The log goes on without the node, until it does not reach back to where that is."""
    await work(region, 30)
    region.cut(node_id)
    await work(region, 60)
    leader = region.leader()
    assert leader is not None
    lagging = region.sites[node_id].committer.groups[1].raft
    assert leader.committer.groups[1].raft.compacted > lagging.last_index, "an image is needed"


async def test_a_replica_that_lags_behind_the_log_gets_an_image_and_goes_on(region: Region) -> None:
    await region.elect(1)
    await leave_behind(region, 3)
    region.join(3)
    await work(region, 5)
    await region.until(region.settled)
    region.check_equal()
    late = region.sites[3]
    assert late.reloads == [1]
    assert late.committer.groups[1].rows.generation >= snapshot.GENERATION_FIRST
    assert late.images.chunks_stored > 3
    await work(region, 20)
    await region.until(region.settled)
    region.check_equal()
    assert late.reloads == [1], "the log is enough now"
    await region.elect(3)
    await work(region, 20)
    await region.until(region.settled)
    region.check_equal()


async def trouble(region: Region, steps: int) -> None:
    """Whatever can happen to processes and connections, most of it while an image is on its way."""
    rng = region.rng
    for _ in range(steps):
        node_id = rng.choice(sorted(region.sites))
        match rng.randrange(27):
            case 0:
                region.restart(node_id)
            case 1:
                region.sites[node_id].storage.die_at(rng.randrange(8), after=rng.random() < 0.5)
            case 2:
                region.cut(node_id)
            case 3 | 4:
                region.join(rng.choice(sorted(region.cut_off or {node_id})))
            case 5:
                region.refuse_bulk = not region.refuse_bulk
            case 6 | 7:
                for pair in region.waiting():
                    region.lose(pair)
            case 8:
                for pair in region.waiting():
                    region.damage(pair)
            case 9 | 10:
                for site in region.sites.values():
                    if not site.storage.died:
                        site.images.check()
            case 11 | 12 | 13:
                region.propose()
            case 14:
                region.flush()
            case 15 | 16 | 17:
                await region.round()
            case 18:
                leader = region.leader()
                if leader is not None and not leader.storage.died:
                    raft = leader.committer.groups[1].raft
                    if raft.is_leader and node_id != leader.id and node_id in raft.conf.voters:
                        raft.transfer_leader(node_id)
                        leader.committer.mark(leader.committer.groups[1])
            case 19 | 20 | 21:
                await region.turn(rng.randrange(4))
            case _:
                pairs = region.waiting()
                if pairs:
                    region.deliver(*rng.choice(pairs))
        for dead in region.dead:
            region.restart(dead)


def heal(region: Region) -> None:
    region.refuse_bulk = False
    for site in region.sites.values():
        site.storage.die_at(-1, after=False)
    for node_id in list(region.cut_off):
        region.join(node_id)


async def test_old_or_new_whatever_ends_and_breaks(region: Region) -> None:
    """Each restart checks that the rows on disk are exact for what they are said to be (`check_disk`)."""
    await region.elect(1)
    for _ in range(3):
        await leave_behind(
            region,
            region.rng.choice([site for site in (1, 2, 3) if region.leader() is not region.sites[site]]),
        )
        for node_id in list(region.cut_off):
            region.join(node_id)
        await trouble(region, 400)
        heal(region)
        await region.until(region.settled)
        region.check_equal()
