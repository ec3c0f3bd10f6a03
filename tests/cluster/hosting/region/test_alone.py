"""A region of one node: it leads from the first moment, and after its promises to nobody are over."""

from __future__ import annotations

import asyncio
import random

from cluster.hosting.groups.committer import Committer
from history_store.raft import Config
from history_store.storage.memory import MemoryStorage


async def test_it_leads_again_after_a_restart_although_it_promised_not_to_stand() -> None:
    storage = MemoryStorage()
    config = Config(node_id=1, voters=(1,), lease_reads=True)
    loop = asyncio.get_running_loop()
    committer = Committer(loop, storage, True, lambda error: None)
    assert committer.add(1, None, random.Random(1), config).leading
    committer.halt()
    found = storage.load()
    again = Committer(loop, storage, True, lambda error: None)
    again.start()
    group = again.add(1, found[1], random.Random(2), config)
    for _ in range(2 * config.election_ticks + 1):
        group.raft.tick()
        again.mark(group)
        await asyncio.sleep(0)
    assert group.leading
    again.halt()


async def test_a_group_that_is_opened_while_others_write_leads_with_the_next_round() -> None:
    committer = Committer(asyncio.get_running_loop(), MemoryStorage(), True, lambda error: None)
    committer.start()
    group = committer.add(1, None, random.Random(1), Config(node_id=1, voters=(1,), lease_reads=True))
    led: list[bool] = []
    group.on_lead = lambda: led.append(True)
    assert not group.leading
    for _ in range(4):
        await asyncio.sleep(0)
    assert group.leading
    assert led == [True]
    committer.halt()
