"""Anything happens to four nodes, in memory. The promises of contract.py are checked all the time, and at the
end that all find each other again."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import structlog

from cluster.peers import virtual_time
from cluster.peers.contract import Identity, Limits, Message
from cluster.peers.memory import MemoryNetwork
from cluster.peers.stream import StreamPeers
from cluster.peers.virtual_time import VirtualLoop

NODES = (1, 2, 3, 4)
ADDRESSES = {node_id: (f"n{node_id}", 7000) for node_id in NODES}
# Small, so that queues fill, frames split and writing pauses.
LIMITS = Limits(
    queue_bytes_max=500_000, bulk_queue_bytes_max=400_000, frame_bytes_split=50_000,
    write_buffer_bytes=60_000, window_bytes=128_000, report_bytes=32_000,
)  # fmt: skip
KINDS = {1: False, 2: True}  # kind of message: whether it is bulk

# What happens, and how often in comparison.
FAULTS = {
    "hiccup": 40,
    "path": 10,
    "cut": 4,
    "heal": 20,
    "pause": 4,
    "resume": 20,
    "kill": 3,
    "switch off": 1,
}


class Life:
    """One process of a node: what it sent and what it was told. A message says who sent it in which of its
    sessions, and which it is of its kind."""

    def __init__(self, storm: Storm, node_id: int, number: int) -> None:
        self.storm = storm
        self.node_id = node_id
        self.name = f"{node_id}.{number}"
        self.process = storm.loop.process(f"n{node_id}")
        self.told: list[tuple[Any, ...]] = []
        self.is_up: dict[int, bool] = {}
        self.session: dict[int, int] = {}  # by peer: how many there were
        self.sent: dict[tuple[int, int], int] = {}  # by peer and kind, in this session
        self.got: dict[tuple[int, int], int] = {}
        self.of: dict[int, Any] = {}  # by peer: which session of the sender
        self.ended: dict[int, set[Any]] = {node: set() for node in NODES}
        rng = random.Random(storm.rng.getrandbits(32))
        host = storm.network.host(f"n{node_id}", self.process)
        identity = Identity("c", "r", node_id, f"r/{node_id}", self.name)
        self.peers = StreamPeers(identity, self, host, rng=rng, limits=LIMITS)
        self.peers.set_peers(ADDRESSES)
        self.start = self.process.spawn(self.peers.start("", 7000))

    def up(self, node_id: int, incarnation: str) -> None:
        assert not self.is_up.get(node_id), "up twice"
        self.is_up[node_id] = True
        self.session[node_id] = self.session.get(node_id, 0) + 1
        for kind in KINDS:
            self.sent[node_id, kind] = self.got[node_id, kind] = 0
        self.of.pop(node_id, None)
        self.told.append((round(self.storm.loop.time(), 6), "up", node_id, incarnation))

    def down(self, node_id: int) -> None:
        assert self.is_up[node_id], "down without up"
        self.is_up[node_id] = False
        self.ended[node_id].add(self.of.get(node_id))
        self.told.append((round(self.storm.loop.time(), 6), "down", node_id))

    def message(self, node_id: int, message: Message) -> None:
        assert self.is_up[node_id], "a message while down"
        kind, life, session, number, _ = message
        of = (life, session)
        assert self.of.setdefault(node_id, of) == of, "two sessions of the sender in one of ours"
        assert of not in self.ended[node_id], "a session of the sender in two of ours"
        assert number == self.got[node_id, kind], "a gap, a repetition or a wrong order"
        self.got[node_id, kind] = number + 1
        self.storm.delivered += 1

    def send(self, rng: random.Random) -> None:
        node_id = rng.choice(NODES)
        kind = rng.choice(tuple(KINDS))
        if not self.is_up.get(node_id):
            assert not self.peers.send(node_id, [kind])
            return
        size = rng.choice((0, 100, 5_000, 60_000))
        message = [kind, self.name, self.session[node_id], self.sent[node_id, kind], bytes(size)]
        if self.peers.send(node_id, message, bulk=KINDS[kind]):
            self.sent[node_id, kind] += 1


class Storm:
    def __init__(self, rng: random.Random, loop: VirtualLoop) -> None:
        self.rng = rng
        self.loop = loop
        self.network = MemoryNetwork(loop, rng)
        self.lives: dict[int, Life] = {}
        self.all: list[Life] = []
        self.delivered = 0

    def boot(self, node_id: int) -> None:
        self.lives[node_id] = life = Life(self, node_id, len(self.all))
        self.all.append(life)

    async def blow(self, seconds: float) -> None:
        """Faults and traffic."""
        rng, network = self.rng, self.network
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(rng.choice((0.0, 0.0002, 0.001, 0.05)))
            for life in self.lives.values():
                if not life.process.paused:
                    for _ in range(rng.choice((0, 1, 5))):
                        life.process.call(life.send, rng)
            if rng.random() < 0.05:
                self.fault(rng, network)

    def fault(self, rng: random.Random, network: MemoryNetwork) -> None:
        node_id = rng.choice(NODES)
        here, there = rng.sample([f"n{node}" for node in NODES], 2)
        life = self.lives.get(node_id)
        what = rng.choices(tuple(FAULTS), tuple(FAULTS.values()))[0]
        if what == "cut":
            network.cut(here, there)
        elif what == "heal":
            network.heal(here, there)
        elif what == "path":
            path = network.path(here, there)
            path.loss = rng.choice((0.0, 0.02))
            path.breaks = rng.choice((0.0, 0.01))
            path.delay_s = rng.choice(((0.0001, 0.001), (0.0001, 0.001), (0.01, 0.2)))
            path.bytes_per_s = rng.choice((0.0, 0.0, 1e6, 1e7))
        elif life is None:
            network.switch_on(f"n{node_id}")
            self.boot(node_id)
        elif what == "pause":
            life.process.pause()
        elif what == "resume":
            life.process.resume()
        elif what == "kill":
            life.process.kill()
            del self.lives[node_id]
        elif what == "switch off":
            network.switch_off(f"n{node_id}")
            del self.lives[node_id]
        elif what == "hiccup" and not life.process.paused:
            session = life.peers._sessions[rng.choice([node for node in NODES if node != node_id])]
            link = rng.choice((session.dialed, session.accepted))
            if link is not None:
                life.process.call(link.end, "a hiccup")

    async def silence(self) -> None:
        """One falls silent, in one of the ways in which nodes do: all others notice, in time."""
        rng, silent = self.rng, self.rng.choice(NODES)
        life = self.lives[silent]
        others = [node for node in NODES if node != silent]
        way = rng.randrange(4)
        if way == 0:
            life.process.pause()
        elif way == 1:
            self.network.switch_off(f"n{silent}")
            del self.lives[silent]
        else:
            for node in others:
                here, there = (f"n{silent}", f"n{node}")[:: 1 if way == 2 else -1]
                self.network.cut(here, there)
        await asyncio.sleep(LIMITS.dead_s + LIMITS.tick_s * 2)
        assert not any(self.lives[node].is_up[silent] for node in others), way
        if way >= 2:
            assert not any(life.is_up.values()), way

    def calm(self) -> None:
        """Everything works again."""
        self.network.heal_all()
        for node_id in NODES:
            for other in NODES:
                path = self.network.path(f"n{node_id}", f"n{other}")
                path.loss = path.breaks = path.bytes_per_s = 0.0
                path.delay_s = (0.0002, 0.001)
            if node_id in self.lives:
                self.lives[node_id].process.resume()
            else:
                self.network.switch_on(f"n{node_id}")
                self.boot(node_id)


async def all_is_well(play: Storm) -> None:
    """Everybody is up, stays so, and hears everybody."""
    # The last attempts of before may hang for as long as a handshake may, and what is under way be slow.
    await asyncio.sleep(LIMITS.handshake_s * 3 + LIMITS.dead_s)
    settled = [(life.name, len(life.told)) for life in play.all]
    before = play.delivered
    for life in play.lives.values():
        for node_id in NODES:
            if node_id != life.node_id:
                assert life.peers.is_up(node_id), (life.name, life.peers.states())
                assert life.is_up[node_id]
                message = [1, life.name, life.session[node_id], life.sent[node_id, 1], b""]
                assert life.process.call(life.peers.send, node_id, message)
                life.sent[node_id, 1] += 1
    await asyncio.sleep(5.0)
    assert play.delivered - before >= len(NODES) * (len(NODES) - 1), "everybody hears everybody"
    assert settled == [(life.name, len(life.told)) for life in play.all], "nothing flaps when all is well"


def storm(rng: random.Random, seconds: float = 40.0) -> str:
    """Play one; returns what everybody was told."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    async def main() -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        unforeseen: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: unforeseen.append(context))
        play = Storm(rng, loop)
        for node_id in NODES:
            play.boot(node_id)
        await play.blow(seconds)
        play.calm()
        await all_is_well(play)
        await play.silence()
        play.calm()
        await all_is_well(play)
        assert not unforeseen, unforeseen
        for life in play.lives.values():
            await life.process.spawn(life.peers.close())
        return "\n".join(f"{life.name} {line}" for life in play.all for line in life.told)

    return virtual_time.run(main(), random.Random(rng.getrandbits(32)))


def test_whatever_happens(rng: random.Random) -> None:
    configuration = structlog.get_config()
    try:
        assert storm(rng).count("up") >= len(NODES) * (len(NODES) - 1)
    finally:
        structlog.configure(**configuration)
