"""Images between nodes: a replica that lags behind the log gets one, whatever ends meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.hosting.groups import group
from cluster.hosting.replicas import generations, sender, snapshots
from cluster.hosting.replicas.sender import ACCEPT, ACK
from history_store.engine import keys
from history_store.raft import Change, ChangeOp, ConfChange, RaftError
from history_store.shard import image, snapshot
from tests.cluster.hosting.lagging import Region


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are short, steps are small, and no timer runs by itself."""
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
    lagging = region.sites[node_id].committer.groups[1].raft
    for _ in range(20):
        await region.until(lambda: region.leader() is not None)
        await work(region, 60)
        leader = region.leader()
        if leader is not None and leader.committer.groups[1].raft.compacted > lagging.last_index:
            return
    raise AssertionError(f"no image is needed: {region.describe()}")


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


async def test_an_image_goes_on_when_every_word_of_what_arrived_was_lost(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender keeps chunks that are on the other disk, and has room for no more until it hears so."""
    monkeypatch.setattr(sender, "WINDOW_CHUNKS", 2)
    await region.elect(1)
    await leave_behind(region, 3)
    send, lost = region.send, []

    def lossy(source: int, to: int, message: list[Any], bulk: bool) -> bool:
        if source == 3 and message[0] == ACK and len(lost) < 2:
            lost.append(message)
            return True
        return send(source, to, message, bulk)

    monkeypatch.setattr(region, "send", lossy)
    region.join(3)
    await region.until(lambda: len(lost) == 2)
    region.restart(3)
    await region.until(region.settled, rounds=300)
    region.check_equal()
    resumed = [message[3] for source, _, message in region.sent if source == 3 and message[0] == ACCEPT]
    assert resumed[-1] == 2, "it is the same image"


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
                        with suppress(RaftError):  # it needs an image first
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


async def test_old_or_new_whatever_ends_and_breaks(region: Region, kind: str) -> None:
    """Each restart checks that the rows on disk are exact for what they are said to be (`check_disk`)."""
    await region.elect(1)
    for _ in range(3 if kind == "memory" else 1):
        followers = [number for number, site in region.sites.items() if site is not region.leader()]
        await leave_behind(region, region.rng.choice(followers))
        for node_id in list(region.cut_off):
            region.join(node_id)
        await trouble(region, 400)
        heal(region)
        await region.until(region.settled)
        region.check_equal()


async def installed(region: Region, node_id: int) -> None:
    late = region.sites[node_id]
    await region.until(lambda: late.reloads == [1])


async def test_what_comes_after_the_image_is_newer_than_what_came_with_it(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of the image are shown, and runs that it has not are hidden, in rounds that have newer ones."""
    await region.elect(1)
    await leave_behind(region, 3)
    monkeypatch.setattr(generations, "PAUSE_S", 1e6)
    region.join(3)
    await installed(region, 3)
    late = region.sites[3]
    while late.images.generations.busy:
        for _ in range(region.rng.randrange(4)):
            region.propose()
        for _ in range(3):
            await region.round()
        if region.rng.random() < 0.5:
            late.committer.flush(lambda error: None)
        if region.rng.random() < 0.5:
            await region.turn()
        late.images.generations.hurry()
        await region.turn()
    await region.until(region.settled)
    region.check_equal()


async def test_a_restart_while_records_are_still_to_be_shown(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    await region.elect(1)
    await leave_behind(region, 3)
    monkeypatch.setattr(generations, "PAUSE_S", 1e6)
    region.join(3)
    await installed(region, 3)
    assert region.sites[3].committer.groups[1].rows.records_wait
    await work(region, 10)
    late = region.restart(3)
    assert late.committer.groups[1].rows.records_wait
    await work(region, 10)
    monkeypatch.setattr(generations, "PAUSE_S", 0.0)
    late = region.restart(3)
    await work(region, 10)
    await region.until(region.settled)
    region.check_equal()


async def test_a_leader_with_records_to_show_sends_its_image_after_that(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    await region.elect(1)
    await leave_behind(region, 3)
    monkeypatch.setattr(generations, "PAUSE_S", 1e6)
    region.join(3)
    await installed(region, 3)
    new = await region.elect(3)
    replica = new.committer.groups[1]
    region.cut(2)
    await work(region, 8)  # few: records of most runs are those of the image
    while replica.raft.compacted <= region.sites[2].committer.groups[1].raft.last_index:
        raw = bytes(15) + b"\1"
        rows: list[tuple[bytes, bytes | None]] = [(keys.history(b"\0\0", raw, 0, 1), bytes(500))]
        replica.propose(image.encode(rows, []), rows, [])
        region.flush()
        await region.round()
    region.join(2)
    for _ in range(30):
        await region.round()
    assert replica.rows.records_wait
    assert not region.sites[2].reloads
    monkeypatch.setattr(generations, "PAUSE_S", 0.0)
    new.images.generations.hurry()
    await region.until(region.settled)
    region.check_equal()
    assert region.sites[2].reloads == [1]


async def test_the_log_keeps_what_the_image_on_its_way_lacks(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    await region.elect(1)
    await leave_behind(region, 3)
    region.refuse_bulk = True
    region.join(3)
    leader = region.sites[1].committer.groups[1]
    await region.until(lambda: bool(leader.holds))
    index = leader.holds[3]
    await work(region, 60)
    assert leader.raft.log_bytes > leader.log_bytes_max
    assert leader.raft.compacted <= index
    region.refuse_bulk = False
    await region.until(region.settled)
    region.check_equal()
    assert region.sites[3].reloads == [1], "one image was enough"
    assert not leader.holds
    await work(region, 10)
    await region.until(region.settled)
    assert leader.raft.compacted > index, "nobody lacks it any more"


async def test_an_image_that_comes_too_late_is_followed_by_another(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "LOG_BYTES_HELD_MAX", 6_000)
    await region.elect(1)
    await leave_behind(region, 3)
    region.refuse_bulk = True
    region.join(3)
    leader = region.sites[1].committer.groups[1]
    await region.until(lambda: bool(leader.holds))
    index = leader.holds[3]
    await work(region, 100)
    assert leader.raft.compacted > index
    region.refuse_bulk = False
    await region.until(region.settled, rounds=300)  # no need to wait until the core asks anew
    region.check_equal()
    assert region.sites[3].reloads == [1, 1]


async def test_a_leader_takes_no_image(region: Region) -> None:
    await region.elect(1)
    await work(region, 10)
    leader = region.sites[1].committer.groups[1]
    offer = [sender.OFFER, 1, 99, 1, leader.raft.term, leader.committed + 50, 7, b""]
    region.sent.clear()
    region.sites[1].receive(2, offer)
    assert [message[3] for _, _, message in region.sent] == [False]
    assert not region.sites[1].images.busy


async def test_a_complete_image_is_used_whoever_leads_then(region: Region) -> None:
    """Its sender dies before the core could be told; what is there answers the next leader's offer."""
    await region.elect(1)
    await leave_behind(region, 3)
    region.join(3)
    late = region.sites[3]
    incoming = late.images._incoming
    for _ in range(5000):
        if 1 in incoming and incoming[1]._received.complete:
            break
        pairs = region.waiting()
        if pairs:
            region.deliver(*pairs[0])
        else:
            for site in region.sites.values():
                site.tick()
        await region.turn(1)
    assert incoming[1]._received.complete
    late = region.restart(3)  # it may have been written or not
    before = region.sites[3].images._incoming.get(1)
    was_complete = before is not None and before.complete
    region.restart(1)
    region.cut(1)
    region.sent.clear()
    await region.elect(2)
    await region.until(lambda: late.reloads != [])
    if was_complete:
        assert not [m for _, _, m in region.sent if m[0] == sender.CHUNK], "nothing was sent again"
    region.join(1)
    await region.until(region.settled)
    region.check_equal()


async def test_a_new_replica_begins_with_an_image(kind: str, tmp_path: Path, rng: random.Random) -> None:
    region = Region(kind, tmp_path, rng, nodes=4)
    await region.elect(1)
    await work(region, 20)
    region.joined.add(4)
    region.sites[4].open(1)
    leader = region.sites[1].committer.groups[1]
    leader.raft.propose_conf_change(ConfChange((Change(ChangeOp.ADD_LEARNER, 4),)))
    region.sites[1].committer.mark(leader)
    for _ in range(rng.randrange(4)):
        for _ in range(rng.randrange(6)):
            await region.round()
        region.restart(4)
    await region.until(region.settled)
    region.check_equal()
    new = region.sites[4].committer.groups[1]
    assert new.rows.generation >= snapshot.GENERATION_FIRST
    assert new.raft.conf.learners == (4,)
    assert region.restart(4).committer.groups[1].raft.conf.learners == (4,)
    await work(region, 10)
    await region.until(region.settled)
    region.check_equal()
    region.close()


async def test_a_view_is_of_one_moment_however_long_it_is_read(
    kind: str, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than one read brings: the rest is read while others are written, changed and deleted."""
    region = Region(kind, tmp_path, rng)
    await region.elect(1)
    leader = region.sites[1].committer.groups[1]

    def change(rows: list[tuple[bytes, bytes | None]]) -> None:
        leader.propose(image.encode(rows, []), rows, [])

    def keys_of(first: int, last: int) -> list[bytes]:
        return [keys.wake(number, b"run") for number in range(first, last)]

    change([(key, b"old") for key in keys_of(0, 1000)])
    await region.until(region.settled)
    region.cut(3)
    for _ in range(30):
        change([(key, b"old") for key in keys_of(0, 100)])
        await region.round()
    await region.until(lambda: leader.raft.compacted > 20 or bool(region.flush()))
    offer = sender.Outgoing.offer
    with monkeypatch.context() as patch:
        patch.setattr(sender.Outgoing, "offer", lambda self: None)  # so that nothing is read yet
        region.join(3)
        await region.until(lambda: bool(leader.holds))
    index = leader.holds[3]
    change([(key, b"new") for key in keys_of(300, 700)])
    change([(key, None) for key in keys_of(600, 900)])
    change([(key, b"more") for key in keys_of(1000, 1100)])
    await region.until(lambda: leader.stored.index >= index + 3 or bool(region.flush()))
    offer(region.sites[1].images._outgoing[3])
    late = region.sites[3]
    await region.until(lambda: late.reloads != [])
    late.check_disk(late.committer.groups[1])
    await region.until(region.settled)
    region.check_equal()
    assert late.reloads == [1]
    region.close()


async def test_groups_wait_their_turn(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image to a peer, two in all; and what is written of them is little a round."""
    groups = (0, 1, 2, 3)
    region = Region("memory", tmp_path, rng, nodes=5, groups=groups, voters=(1, 2, 3, 4, 5))
    for number in groups:
        await region.elect(1, number)
        await work(region, 20, number)
    late = (3, 4) if rng.random() < 0.5 else (4, 5)
    for node_id in late:
        region.cut(node_id)
    for number in groups:
        await work(region, 60, number)
    for site in region.sites.values():
        site.storage.rounds.clear()
    for node_id in late:
        region.join(node_id)
    leader = region.sites[1]
    most = 0
    outgoing = leader.images._outgoing
    for number in range(3000):
        if region.settled():
            break
        for site in region.sites.values():
            site.tick()
            if number % 20 == 19:
                site.images.check()
        await region.turn(1)
        for pair in region.waiting():
            while region.deliver(*pair):
                assert len(outgoing) <= snapshots.OUTGOING_MAX
                most = max(most, len(outgoing))
        await region.turn(1)
    assert region.settled(), region.describe()
    region.check_equal()
    assert most == 2
    for node_id in late:
        assert sorted(region.sites[node_id].reloads) == list(groups)
        for batch in region.sites[node_id].storage.rounds:
            if not batch.applied:
                assert sum(len(value or b"") for _, value in batch.rows) <= 3 * region.chunk_bytes
                assert len(batch.rows) <= 40
    region.close()


async def test_with_threads(tmp_path: Path, rng: random.Random) -> None:
    """Writers and readers of images on threads of their own, as a server has them."""
    region = Region("sqlite", tmp_path, rng, inline=False)
    await region.elect(1)
    await leave_behind(region, 3)
    region.join(3)
    await work(region, 20)
    await region.until(region.settled)
    region.check_equal()
    assert region.sites[3].reloads == [1]
    for site in region.sites.values():
        site.images.close()
        await site.committer.close()
    region.close()


async def test_a_node_stops_while_it_sends(tmp_path: Path, rng: random.Random) -> None:
    region = Region("sqlite", tmp_path, rng, inline=False)
    await region.elect(1)
    await leave_behind(region, 3)
    region.refuse_bulk = True
    region.join(3)
    await region.until(lambda: bool(region.sites[1].images._outgoing))
    for site in region.sites.values():
        site.images.close()
        await site.committer.close()
        assert not site.images._outgoing
    region.close()
