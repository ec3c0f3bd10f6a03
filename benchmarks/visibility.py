"""What visibility costs: a million closed executions written, listed and counted. Run: python -m
benchmarks.visibility [rows]

Writes each execution twice (open, then closed) in batches as a node does, on a file with WAL; then times
the usual questions. Every figure is printed with its goal; the exit code is 1 if a goal is missed.
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

from history_store.visibility import projection, search
from history_store.visibility.record import ExecutionRecord

ATTRIBUTES = {"CustomKeyword": 2, "CustomInt": 3}
BASE = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


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
        namespace_id="0b9e8f1e-3c2d-4d8e-9d0a-5f3f2c1b0a99",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows = options.rows
    rng = random.Random(options.seed)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="holdfast-visibility-") as directory:
        path = os.path.join(directory, "visibility.db")
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = OFF")  # the cost of rows and indexes, not of the disk's fsync
        writer.execute("PRAGMA cache_size = -65536")
        projection.create(writer)
        apply_us, commit_us = write(writer, rows, options.batch, 1_000, rng)
        size = os.path.getsize(path)
        print(f"seed {options.seed}, {rows:,} executions in batches of {options.batch}, {size / 1e6:,.0f} MB")
        print(
            f"write {apply_us:.1f} us of CPU/op, with commit {commit_us:.1f} (goal 40; an execution is two)"
        )
        missed += apply_us > 40
        reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        reader.execute("PRAGMA temp_store = MEMORY")  # as the storage opens its readers
        namespace = opened(0, rng).namespace_id

        def page(query: str) -> Callable[[], object]:
            return lambda: search.list_executions(reader, namespace, query, ATTRIBUTES, 1000)

        def count(query: str) -> Callable[[], object]:
            return lambda: search.count_executions(reader, namespace, query, ATTRIBUTES)

        old, middle, recent = at(rows // 10), at(rows // 2), at(rows - 2000)
        goals: list[tuple[str, float, Callable[[], object]]] = [
            (f"{what} {query}", goal, page(query) if what == "list" else count(query))
            for what, goal, query in (
                ("list", 50, ""),
                ("list", 50, "ExecutionStatus = 'Completed'"),
                ("list", 50, "ExecutionStatus = 'Failed'"),
                ("list", 50, "ExecutionStatus = 'Running'"),
                ("list", 50, "WorkflowType = 'Workflow7'"),
                ("list", 50, "WorkflowType = 'Workflow7' AND ExecutionStatus = 'Failed'"),
                ("list", 50, f"WorkflowId = 'order-{rows // 2}'"),
                ("list", 50, "WorkflowId STARTS_WITH 'order-77777'"),
                ("list", 50, f"RootWorkflowId = 'order-{rows // 2}'"),
                ("list", 50, f"StartTime > {recent}"),
                ("list", 50, f"StartTime BETWEEN {old} AND {old + 100 * SECOND}"),
                ("list", 50, f"StartTime BETWEEN {old} AND {middle}"),
                ("list", 50, f"StartTime < {old}"),
                ("list", 50, f"CloseTime BETWEEN {old} AND {middle}"),
                ("list", 50, "CustomKeyword = 'customer-77'"),
                ("list", 50, "CustomKeyword = 'common'"),
                ("list", 50, "CustomKeyword = 'common' AND ExecutionStatus = 'Failed'"),
                ("list", 50, "CustomInt BETWEEN 10 AND 12"),
                ("list", 50, "CustomKeyword = 'nobody'"),
                ("list", 50, "ExecutionStatus = 'Completed' ORDER BY StartTime DESC"),
                ("count", 1000, ""),
                ("count", 1000, "GROUP BY ExecutionStatus"),
                ("count", 1000, f"StartTime > {middle} GROUP BY ExecutionStatus"),
                ("count", 1000, "WorkflowType = 'Workflow7' GROUP BY ExecutionStatus"),
                ("count", 1000, "CustomKeyword = 'common'"),
                ("count", 1000, "CustomKeyword = 'common' GROUP BY ExecutionStatus"),
                ("count", 1000, "GROUP BY WorkflowType"),
            )
        ]
        _, token = search.list_executions(reader, namespace, "", ATTRIBUTES, 1000)
        for _ in range(20):
            _, token = search.list_executions(reader, namespace, "", ATTRIBUTES, 1000, token)
        goals.append(
            (
                "list, page 22",
                50,
                lambda: search.list_executions(reader, namespace, "", ATTRIBUTES, 1000, token),
            )
        )
        for name, goal, call in goals:
            took = timed(call)
            missed += took > goal
            print(f"{took:10.1f} ms  {'' if took <= goal else f'OVER {goal} '}{name}")
        writer.close()
        reader.close()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
