"""What the log on Cassandra costs, on this machine: start, append, read.

    python -m tests.replication.log.cassandra.measure

Two nodes and the client share the machine's cores, over mutual TLS: figures to compare with each other.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.local.cassandra.jars import MissingError
from replication.frames import Frame, Stream
from replication.log.cassandra import store
from replication.log.contract import LogStore
from tests.replication.log.cassandra.server import USER, Nodes
from tests.replication.log.contract import large

FRAME_BYTES = 4096
CALLS = 500
IN_FLIGHT = 16


def _print(what: str, samples_ms: list[float]) -> None:
    cuts = statistics.quantiles(samples_ms, n=100)
    print(f"{what:<44} p50 {cuts[49]:7.2f} ms   p99 {cuts[98]:7.2f} ms")


async def _timed(call: Callable[[int], Awaitable[object]], count: int) -> list[float]:
    samples = []
    for number in range(count):
        began = time.perf_counter()
        await call(number)
        samples.append((time.perf_counter() - began) * 1000)
    return samples


async def _visible(log: LogStore, other: LogStore, stream: Stream, frame: Frame) -> None:
    await log.append(stream, frame)
    while not (await other.read(stream, frame.first_seq, frames_max=1)).frames:
        pass


async def _measure(nodes: Nodes) -> None:
    began = time.perf_counter()
    a, b = [await store.connect(nodes.options(region)) for region in "ab"]
    print(f"{'connect and prepare, two regions':<44} {time.perf_counter() - began:.2f} s")
    stream, rung, busy = Stream("a", 1, 1), Stream("a", 2, 1), Stream("a", 3, 1)
    frames = [large(stream, number, FRAME_BYTES) for number in range(CALLS)]
    await _timed(lambda number: a.append(stream._replace(shard=9), frames[number]), 100)
    _print(
        "append, 4 KB, one at a time", await _timed(lambda number: a.append(stream, frames[number]), CALLS)
    )
    _print("read of one frame", await _timed(lambda number: a.read(stream, number + 1, frames_max=1), CALLS))
    _print("read of 100 frames", await _timed(lambda number: a.read(stream, number + 1), 100))
    _print("read with nothing there", await _timed(lambda number: a.read(rung, 1), CALLS))
    seen = await _timed(lambda number: _visible(a, b, rung, frames[number]), CALLS)
    _print("append until the other region reads it", seen)
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def write(frame: Frame) -> None:
        async with slots:
            await a.append(busy, frame)

    began = time.perf_counter()
    await asyncio.gather(*[write(frame) for frame in frames * 4])
    rate = 4 * CALLS / (time.perf_counter() - began)
    print(f"{f'appends, 4 KB, {IN_FLIGHT} under way':<44} {rate:.0f} a second")
    await asyncio.gather(a.close(), b.close())


def main() -> int:
    """Measure and print. 0, also where there can be no Cassandra."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            nodes = Nodes(Path(directory), ["a", "b"])
        except MissingError as missing:
            print(missing)
            return 0
        try:
            began = time.perf_counter()
            nodes.start()
            print(f"{'two nodes, from launch to answers':<44} {time.perf_counter() - began:.2f} s")
            began = time.perf_counter()
            asyncio.run(store.create_schema(nodes.operator("a"), {"a": 1, "b": 1}))
            print(f"{'keyspace and tables':<44} {time.perf_counter() - began:.2f} s")
            nodes.let_in(USER[0], "holdfast", "SELECT", "MODIFY")
            asyncio.run(_measure(nodes))
            resident = ", ".join(f"{nodes.resident_mb(centre)} MB" for centre in nodes.addresses)
            print(f"{'memory of the nodes':<44} {resident}")
        finally:
            nodes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
