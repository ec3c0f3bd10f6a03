"""Whether an image of a large shard, on its way to a replica that was away, stalls who is being served.

    python -m benchmarks.snapshot                     200 MB, about a minute
    python -m benchmarks.snapshot --megabytes 1000

Three nodes. One that does not lead the shard is killed, the shard is filled until the log has long forgotten
what that node has, and the node is started again: it needs an image of all of it. Workflows are started at a
steady pace meanwhile, in that shard and in the others, and again when all is quiet. The ratio of the two 99th
percentiles is the figure; the goal is 3.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import uvloop
from temporalio.api.common.v1 import Payload, Payloads, WorkflowType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    StartWorkflowExecutionRequest,
)

from benchmarks.measure import open_loop, percentile
from benchmarks.raw_client import Connection, serialize, workflow_path
from benchmarks.region_cluster import DESCRIBE_NAMESPACE, Region, region
from history_store.engine.keys import slot_of

NAMESPACE = "default"
SHARDS = 8
SHARD = 1  # the one that is filled
INPUT_BYTES = 256 << 10  # of each workflow that fills it
FILLING = 6  # starts at a time
PER_SECOND = 20.0  # starts in the shard, and as many in others
ROUND_S = 2.0
QUIET_ROUNDS = 8
SETTLE_S = 5.0
ARRIVES_S_MAX = 900.0
GOAL = 3.0
IN_PLACE = re.compile(rf"an image is in place +group={SHARD} ")
START = workflow_path("StartWorkflowExecution")


@dataclass(frozen=True)
class Served:
    """Latencies of starts, milliseconds."""

    count: int
    p50: float
    p99: float
    worst: float

    @staticmethod
    def of(values: list[float]) -> Served:
        """Of these."""
        p50, p99 = (round(percentile(values, share), 1) for share in (0.5, 0.99))
        return Served(len(values), p50, p99, round(max(values), 1))


class Load:
    """Starts in the shard and in others, by way of the node that leads it."""

    def __init__(self, connection: Connection, namespace_id: str, owners: Callable[[int], int]) -> None:
        self._connection = connection
        self._ids = {
            True: self._names(namespace_id, owners, True),
            False: self._names(namespace_id, owners, False),
        }

    @staticmethod
    def _names(namespace_id: str, owners: Callable[[int], int], inside: bool) -> Iterator[str]:
        prefix = secrets.token_hex(4)
        for number in itertools.count():
            name = f"{prefix}-{number}"
            if (owners(slot_of(namespace_id, name)) == SHARD) == inside:
                yield name

    def start(self, *, inside: bool, size: int = 0) -> asyncio.Future[bytes]:
        """One, with an input of so many bytes."""
        name = next(self._ids[inside])
        request = StartWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_id=name, request_id=name, workflow_type=WorkflowType(name="x"),
            task_queue=TaskQueue(name="nobody"),
        )  # fmt: skip
        if size:
            request.input.CopyFrom(Payloads(payloads=[Payload(data=os.urandom(size))]))
        return self._connection.call(START, serialize(request), b"60S")

    async def fill(self, size: int) -> None:
        """Until the shard has so many bytes more."""
        left = iter(range(-(-size // INPUT_BYTES)))

        async def one() -> None:
            for _ in left:
                await self.start(inside=True, size=INPUT_BYTES)

        async with asyncio.TaskGroup() as group:
            for _ in range(FILLING):
                group.create_task(one())

    async def round(self) -> tuple[list[float], list[float]]:
        """Latencies of a round: in the shard, in others."""
        inside, outside = await asyncio.gather(
            *(
                open_loop(
                    lambda where=where: self.start(inside=where),  # type: ignore[misc]
                    per_second=PER_SECOND, seconds=ROUND_S,
                )
                for where in (True, False)
            )
        )  # fmt: skip
        return inside, outside


async def prepared(made: Region) -> tuple[Load, str]:
    """The load, and the node that will be away."""
    shards = await made.shards()
    leader = next(shard["leader"] for shard in shards if shard["id"] == SHARD)
    owners = {
        slot: shard["id"]
        for shard in shards
        for first, last in shard["slots"]
        for slot in range(first, last + 1)
    }
    connection = await made.connect(leader)
    described = await connection.call(
        DESCRIBE_NAMESPACE, serialize(DescribeNamespaceRequest(namespace=NAMESPACE))
    )
    namespace_id = DescribeNamespaceResponse.FromString(described).namespace_info.id
    away = next(name for name in made.names if name != leader)
    return Load(connection, namespace_id, owners.__getitem__), away


async def measure(megabytes: int, where: str | None) -> dict[str, object]:
    """All of it."""
    async with region(3, SHARDS, where) as made:
        load, away = await prepared(made)
        say(f"{away} goes, and shard {SHARD} gets {megabytes} MB")
        await made.kill(away)
        began = time.monotonic()
        await load.fill(megabytes << 20)
        say(f"filled after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(SETTLE_S)
        began = time.monotonic()
        back = asyncio.create_task(asyncio.to_thread(made.cluster.restart, away))
        during: tuple[list[float], list[float]] = ([], [])
        log = made.cluster.log_file(away)
        while not IN_PLACE.search(log.read_text(errors="replace")):
            if time.monotonic() - began > ARRIVES_S_MAX:
                raise TimeoutError(f"no image within {ARRIVES_S_MAX:g} s")
            for into, found in zip(during, await load.round(), strict=True):
                into += found
        took = time.monotonic() - began
        await back
        say(f"{away} has it after {took:.1f} s")
        await asyncio.sleep(SETTLE_S)
        quiet: tuple[list[float], list[float]] = ([], [])
        for _ in range(QUIET_ROUNDS):
            for into, found in zip(quiet, await load.round(), strict=True):
                into += found
    result: dict[str, object] = {"megabytes": megabytes, "seconds": round(took, 1)}
    for name, busy, calm in zip(("in the shard", "in others"), during, quiet, strict=True):
        result[name] = {
            "during": asdict(Served.of(busy)),
            "quiet": asdict(Served.of(calm)),
            "ratio_p99": round(percentile(busy, 0.99) / percentile(calm, 0.99), 2),
        }
    return result


def say(what: str) -> None:
    """Tell how it goes."""
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, and print JSON; exit 1 if the goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.snapshot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--megabytes", type=int, default=200, help="of the shard")
    parser.add_argument("--dir", help="where nodes keep their files (default: the temporary directory)")
    options = parser.parse_args()
    result = uvloop.run(measure(options.megabytes, options.dir))
    print(json.dumps(result, indent=1))
    figures = [value["ratio_p99"] for value in result.values() if isinstance(value, dict)]
    return int(any(ratio > GOAL for ratio in figures))


if __name__ == "__main__":
    raise SystemExit(main())
