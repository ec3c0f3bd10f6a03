"""What visibility costs: a million closed executions written, listed and counted. Run: python -m
benchmarks.visibility [rows] [--file PATH]

Writes each execution twice (open, then closed) in batches as a node does, on a file with WAL; then times
the usual questions. A second namespace has running executions only, a twentieth as many. With --file the
file is kept, and a later run only asks. Every figure is printed with its goal; the exit code is 1 if a goal
is missed. Shapes without a goal sort all they find: they are measured so that nobody has to guess. At the end
the same for every second part of the hash slots, as a node of many answers that has not all shards.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable

from temporalio.api.common.v1 import Payload, SearchAttributes

from history_store.engine.keys import SLOTS
from history_store.visibility import projection, search
from history_store.visibility.record import ExecutionRecord

NAMESPACE = "0b9e8f1e-3c2d-4d8e-9d0a-5f3f2c1b0a99"
RUNNING = "5b0c7a52-8f0e-4a7e-8d0c-1f4b7a9f0c11"  # the namespace of open executions
ATTRIBUTES = {"CustomKeyword": 2, "CustomInt": 3}
BASE = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
PART_RANGES = 8  # of slots: about as many shards as a node answers for


def attributes(keyword: str, number: int) -> bytes:
    def payload(data: str, kind: bytes) -> Payload:
        return Payload(metadata={"encoding": b"json/plain", "type": kind}, data=data.encode())

    fields = {"CustomKeyword": payload(f'"{keyword}"', b"Keyword"), "CustomInt": payload(str(number), b"Int")}
    return SearchAttributes(indexed_fields=fields).SerializeToString()


def opened(n: int, rng: random.Random) -> ExecutionRecord:
    start = BASE + n * SECOND // 10
    run_id = f"{start // 1_000_000:012x}"
    keyword = f"customer-{n % 5000}" if n % 2 else "common"
    return ExecutionRecord(
        namespace_id=NAMESPACE,
        workflow_id=f"order-{n}",
        run_id=f"{run_id[:8]}-{run_id[8:]}-7{rng.getrandbits(12):03x}-8fff-{rng.getrandbits(48):012x}",
        workflow_type=f"Workflow{n % 20}",
        status=1,
        start_time=start,
        execution_time=start,
        close_time=0,
        task_queue=f"queue-{n % 10}",
        history_length=2,
        history_size_bytes=500,
        state_transition_count=2,
        execution_duration=0,
        memo=b"",
        search_attributes=attributes(keyword, n % 1000) if n % 4 < 2 else b"",
        root_workflow_id=f"order-{n}",
    )


def close(record: ExecutionRecord, rng: random.Random) -> None:
    record.status = rng.choices([2, 3, 4, 5, 7], [90, 4, 2, 2, 2])[0]
    record.close_time = record.start_time + rng.randrange(100 * SECOND)
    record.execution_duration = record.close_time - record.start_time
    record.history_length = 11
    record.history_size_bytes = 2_000
    record.state_transition_count = 8


def write(
    connection: sqlite3.Connection, rows: int, batch: int, behind: int, rng: random.Random
) -> tuple[float, float]:
    """Microseconds of CPU an operation costs: in `apply`, and with its share of the commit (fsync off)."""
    waiting: list[ExecutionRecord] = []
    spent = [0.0, 0.0]
    done = 0
    while done < rows or waiting:
        ops = [opened(done + i, rng) for i in range(min(batch // 2, rows - done))]
        finished = waiting[: batch // 2] if len(waiting) >= behind or done >= rows else []
        del waiting[: len(finished)]
        for record in finished:
            close(record, rng)
        started = time.thread_time()
        connection.execute("BEGIN IMMEDIATE")
        projection.apply(connection, [*ops, *finished])
        spent[0] += time.thread_time() - started
        connection.execute("COMMIT")
        spent[1] += time.thread_time() - started
        done += len(ops)
        waiting += ops
    return spent[0] / (2 * rows) * 1e6, spent[1] / (2 * rows) * 1e6


def write_running(connection: sqlite3.Connection, rows: int, rng: random.Random) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for first in range(0, rows, 64):
        ops = [opened(n, rng) for n in range(first, min(first + 64, rows))]
        for record in ops:
            record.namespace_id = RUNNING
        projection.apply(connection, ops)
    connection.execute("COMMIT")


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of CPU, the median of five (the file is cached: on a quiet machine, the time it takes)."""
    took = []
    for _ in range(5):
        started = time.thread_time()
        call()
        took.append((time.thread_time() - started) * 1e3)
    return sorted(took)[2]


def at(n: int) -> int:
    return BASE + n * SECOND // 10


def build(path: str, rows: int, batch: int, seed: int) -> bool:
    """Write the file, print what it cost; whether that is within the goal."""
    rng = random.Random(seed)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = OFF")  # the cost of rows and indexes, not of the disk's fsync
    writer.execute("PRAGMA cache_size = -65536")
    writer.execute("PRAGMA temp_store = MEMORY")  # as the storage opens its writer
    projection.create(writer)
    apply_us, commit_us = write(writer, rows, batch, 1_000, rng)
    write_running(writer, rows // 20, rng)
    writer.close()
    size = os.path.getsize(path)
    print(f"seed {seed}, {rows:,} executions in batches of {batch}, {size / 1e6:,.0f} MB")
    print(f"write {apply_us:.1f} us of CPU/op, with commit {commit_us:.1f} (goal 40; an execution is two)")
    return commit_us <= 40


def lists(rows: int) -> list[tuple[float, str, str]]:
    """Goal in milliseconds (0 = none), namespace and query."""
    old, middle, recent = at(rows // 10), at(rows // 2), at(rows - 2000)
    goals = [
        "",
        "ExecutionStatus = 'Completed'",
        "ExecutionStatus = 'Failed'",
        "ExecutionStatus = 'Running'",
        "WorkflowType = 'Workflow7'",
        "WorkflowType = 'Workflow7' AND ExecutionStatus = 'Failed'",
        f"WorkflowId = 'order-{rows // 2}'",
        "WorkflowId STARTS_WITH 'order-77777'",
        f"RootWorkflowId = 'order-{rows // 2}'",
        f"StartTime > {recent}",
        f"StartTime BETWEEN {old} AND {old + 100 * SECOND}",
        f"StartTime BETWEEN {old} AND {at(rows // 10 + rows * 29 // 1000)}",
        f"StartTime BETWEEN {old} AND {middle}",
        f"StartTime < {old}",
        f"StartTime < {middle}",
        f"StartTime < {old} AND ExecutionStatus = 'Completed'",
        f"StartTime < {old} AND ExecutionStatus = 'Failed'",
        f"StartTime < {old} AND CustomKeyword = 'common'",
        f"StartTime < {old} AND TaskQueue = 'nobody'",
        f"WorkflowType = 'Workflow7' AND StartTime BETWEEN {old} AND {middle}",
        f"CloseTime < {old}",
        f"CloseTime BETWEEN {old} AND {middle}",
        f"CloseTime < {old} AND CustomKeyword = 'common'",
        "CustomKeyword = 'customer-77'",
        "CustomKeyword = 'common'",
        "CustomKeyword = 'common' AND ExecutionStatus = 'Failed'",
        "CustomInt BETWEEN 10 AND 12",
        "CustomKeyword = 'nobody'",
        "ExecutionStatus = 'Completed' ORDER BY StartTime DESC",
        "ORDER BY StartTime ASC",
        f"StartTime < {old} ORDER BY StartTime DESC",
    ]
    running = [
        "ExecutionStatus = 'Running'",
        f"ExecutionStatus = 'Running' AND StartTime < {at(rows // 40)}",
        f"ExecutionStatus = 'Running' AND StartTime > {at(rows // 40)}",
    ]
    return [
        *[(50.0, NAMESPACE, query) for query in goals],
        *[(50.0, RUNNING, query) for query in running],
        (0.0, NAMESPACE, f"CloseTime < {old} ORDER BY StartTime DESC"),
        (0.0, NAMESPACE, "ORDER BY CloseTime DESC"),
    ]


def counts(rows: int) -> list[str]:
    return [
        "",
        "GROUP BY ExecutionStatus",
        f"StartTime < {at(rows // 10)}",
        f"StartTime > {at(rows // 2)} GROUP BY ExecutionStatus",
        "WorkflowType = 'Workflow7' GROUP BY ExecutionStatus",
        "CustomKeyword = 'common'",
        "CustomKeyword = 'common' GROUP BY ExecutionStatus",
        "GROUP BY WorkflowType",
    ]


def show(name: str, took: float, goal: float) -> bool:
    """Print a figure; whether it is within its goal."""
    missed = 0 < goal < took
    print(f"{took:10.1f} ms  {f'OVER {goal:.0f} ' if missed else '' if goal else '(no goal) '}{name}")
    return not missed


def ask(reader: sqlite3.Connection, rows: int) -> int:
    """Time every shape, of lists the first page and one far behind; how many goals were missed."""
    missed = 0

    def page(namespace: str, query: str, token: bytes) -> tuple[list[ExecutionRecord], bytes]:
        return search.list_executions(reader, namespace, query, ATTRIBUTES, 1000, token)

    for goal, namespace, query in lists(rows):
        where = " (all are open)" if namespace == RUNNING else ""
        took = timed(lambda n=namespace, q=query: page(n, q, b""))  # type: ignore[misc]
        missed += not show(f"list {query}{where}", took, goal)
        if not goal:
            continue
        pages, last, token = 1, b"", page(namespace, query, b"")[1]
        while token and pages < 22:
            pages, last, token = pages + 1, token, page(namespace, query, token)[1]
        if last:
            took = timed(lambda n=namespace, q=query, t=last: page(n, q, t))  # type: ignore[misc]
            missed += not show(f"    page {pages}", took, goal)
    for query in counts(rows):
        took = timed(lambda q=query: search.count_executions(reader, NAMESPACE, q, ATTRIBUTES))  # type: ignore[misc]
        missed += not show(f"count {query}", took, 1000)
    return missed


def ask_for_parts(reader: sqlite3.Connection, rows: int) -> None:
    """Time a few shapes for half of the slots."""
    width = SLOTS // (2 * PART_RANGES)
    slots = tuple((2 * n * width, (2 * n + 1) * width - 1) for n in range(PART_RANGES))
    for query in ["", "ExecutionStatus = 'Failed'", "WorkflowType = 'Workflow7'", "CustomKeyword = 'common'"]:
        took = timed(
            lambda q=query: search.list_part(reader, NAMESPACE, q, ATTRIBUTES, 1000, b"", slots)  # type: ignore[misc]
        )
        show(f"half of the slots: list {query}", took, 0)
    for query in counts(rows):
        took = timed(
            lambda q=query: search.count_part(reader, NAMESPACE, q, ATTRIBUTES, slots)  # type: ignore[misc]
        )
        show(f"half of the slots: count {query}", took, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", help="write here and keep it, or ask what is there")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="holdfast-visibility-") as directory:
        path = options.file or os.path.join(directory, "visibility.db")
        if not os.path.exists(path):
            missed += not build(path, options.rows, options.batch, options.seed)
        reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        reader.execute("PRAGMA temp_store = MEMORY")  # as the storage opens its readers
        missed += ask(reader, options.rows)
        ask_for_parts(reader, options.rows)
        reader.close()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
