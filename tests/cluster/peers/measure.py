"""What a message costs: two processes on loopback, messages of 200 bytes, 1 and 16 a frame.

    python -m tests.cluster.peers.measure [--seconds 2] [--tls]

One side sends a round, waits for the loop's next turn, and so on, never more than 2 MiB ahead of what the
other has read; the CPU of both processes is what the kernel says. Then a ping-pong of single messages, and
how long a small question takes while bulk is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import random
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
import uvloop

from cluster.peers.contract import Address, Identity, Message
from cluster.peers.stream import StreamPeers
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import Tls, load_tls

PAYLOAD = b"x" * 200
AHEAD_BYTES = 2 << 20


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Echo:
    """Counts; answers messages of kind 2; tells what it has at a message of kind 3."""

    def __init__(self) -> None:
        self.count = 0
        self.peers: StreamPeers
        self.is_up = asyncio.Event()
        self.answered = asyncio.Event()
        self.answer: Message = []

    def message(self, node_id: int, message: Message) -> None:
        kind = message[0]
        if kind == 1:
            self.count += 1
        elif kind == 2:
            self.peers.send(node_id, [4])
        elif kind == 3:
            self.peers.send(node_id, [4, self.count, cpu_s()])
        else:
            self.answer = message
            self.answered.set()

    def up(self, node_id: int, incarnation: str) -> None:
        self.is_up.set()

    def down(self, node_id: int) -> None:
        print("down")


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


async def node(node_id: int, tls: Tls | None) -> Echo:
    echo = Echo()
    identity = Identity("c", "r", node_id, f"r/{node_id}", "once")
    echo.peers = StreamPeers(identity, echo, TcpNetwork(tls), rng=random.Random(node_id))
    await echo.peers.start("127.0.0.1", 0)
    return echo


def other(pipe: Connection, files: tuple[str, str, str] | None) -> None:
    async def main() -> None:
        echo = await node(2, load_tls(*files) if files else None)
        pipe.send(echo.peers.port)
        echo.peers.set_peers({1: ("127.0.0.1", pipe.recv())})
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await echo.peers.close()

    quiet()
    uvloop.run(main())


async def ask(echo: Echo, kind: int) -> Message:
    echo.answered.clear()
    assert echo.peers.send(2, [kind])
    await echo.answered.wait()
    return echo.answer


async def stream(echo: Echo, a_frame: int, seconds: float) -> dict[str, Any]:
    link = echo.peers._up[2]
    _, count_before, theirs_before = await ask(echo, 3)
    began, mine_before, sent = time.perf_counter(), cpu_s(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(a_frame):
            echo.peers.send(2, [1, 17, 5, 123456, PAYLOAD])
        sent += a_frame
        while link.sent - link._read > AHEAD_BYTES:
            await asyncio.sleep(0.0002)
        await asyncio.sleep(0)
    _, count, theirs = await ask(echo, 3)
    took = time.perf_counter() - began
    assert count - count_before == sent
    return {
        "a_frame": a_frame,
        "per_s": round(sent / took),
        "sender_us": round((cpu_s() - mine_before) / sent * 1e6, 2),
        "receiver_us": round((theirs - theirs_before) / sent * 1e6, 2),
    }


async def bulk(echo: Echo, seconds: float) -> dict[str, Any]:
    """Chunks of 512 KiB, and how long a small question takes meanwhile."""
    chunk = b"x" * (256 << 10)
    began, sent, waits = time.perf_counter(), 0, []
    while time.perf_counter() - began < seconds:
        while echo.peers.send(2, [1, chunk], bulk=True):
            sent += len(chunk)
        asked = time.perf_counter()
        await ask(echo, 2)
        waits.append(time.perf_counter() - asked)
        await asyncio.sleep(0.002)
    waits.sort()
    left = echo.peers.states()[0].bulk_queued_bytes
    return {
        "bulk_mb_per_s": round((sent - left) / (time.perf_counter() - began) / 1e6),
        "question_p50_us": round(waits[len(waits) // 2] * 1e6),
        "question_p99_us": round(waits[int(len(waits) * 0.99)] * 1e6),
    }


async def main(pipe: Connection, seconds: float, tls: Tls | None) -> None:
    echo = await node(1, tls)
    address: Address = ("127.0.0.1", pipe.recv())
    pipe.send(echo.peers.port)
    echo.peers.set_peers({2: address})
    await echo.is_up.wait()
    for a_frame in (1, 16, 64):
        print(await stream(echo, a_frame, seconds))
    before, began = cpu_s(), time.perf_counter()
    for _ in range(5000):
        await ask(echo, 2)
    took = (time.perf_counter() - began) / 5000
    print({"ping_pong_us": round(took * 1e6, 1), "cpu_us": round((cpu_s() - before) / 5000 * 1e6, 1)})
    print(await bulk(echo, seconds))
    pipe.send("over")
    await echo.peers.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        files = None
        if options.tls:
            from tests.cluster.peers.certificates import Authority

            authority = Authority(Path(directory), "ours")
            pair = authority.issue("node")
            files = (str(pair.certificate), str(pair.key), str(authority.certificate))
        spawn = multiprocessing.get_context("spawn")
        mine, theirs = spawn.Pipe()
        child = spawn.Process(target=other, args=(theirs, files))
        child.start()
        quiet()
        uvloop.run(main(mine, options.seconds, load_tls(*files) if files else None))
        child.join(5)
        child.kill()
