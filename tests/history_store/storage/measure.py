"""The figures of docs/decisions/0004 and 0008: python tests/history_store/storage/measure.py [directory]."""

import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from history_store.storage.contract import Entry, Round, Storage
from history_store.storage.memory import MemoryStorage
from history_store.storage.sqlite import SqliteStorage
from history_store.visibility.record import ExecutionRecord

RNG = random.Random(1)


def measure(name: str, times: int, what: Callable[[int], object]) -> None:
    wall, cpu = [], []
    for number in range(times):
        start, start_cpu = time.perf_counter(), time.thread_time()
        what(number)
        wall.append((time.perf_counter() - start) * 1e6)
        cpu.append((time.thread_time() - start_cpu) * 1e6)
    wall.sort()
    cpu.sort()
    p50, p90, p99 = (wall[int(times * part)] for part in (0.5, 0.9, 0.99))
    print(
        f"{name:44} wall p50 {p50:7.0f} p90 {p90:7.0f} p99 {p99:8.0f} us, cpu p50 {cpu[times // 2]:6.0f} us"
    )


class Appender:
    """Rounds that continue one group's log."""

    def __init__(self) -> None:
        self.last = 0

    def entries(self, count: int) -> list[tuple[int, list[Entry]]]:
        first = self.last + 1
        self.last += count
        return [(1, [Entry(1, index, 0, b"x" * 500) for index in range(first, self.last + 1)])]


def rows(small: int, history: int) -> list[tuple[bytes, bytes | None]]:
    kinds = [(b"a", 300)] * small + [(b"h", 500)] * history
    return [(b"\0\0\0\1" + kind + RNG.randbytes(20), RNG.randbytes(size)) for kind, size in kinds]


def measure_rounds(storage: Storage, log: Appender) -> None:
    for count in (1, 4, 16, 64):
        measure(
            f"round, {count} entries", 300, lambda _, n=count: storage.write(Round(entries=log.entries(n)))
        )
        storage.maintain()
    for small, history in ((3, 2), (128, 128)):
        batches = [Round(rows=rows(small, history)) for _ in range(60)]
        measure(f"round, {small + history} rows", 60, lambda i, b=batches: storage.write(b[i]))
        storage.maintain()
    mixed = [rows(16, 8) for _ in range(300)]
    compacted = log.last

    def one(number: int) -> None:
        nonlocal compacted
        storage.write(Round(entries=log.entries(4), rows=mixed[number], compact=[(1, compacted, 1)]))
        compacted = log.last

    measure("round, 4 entries + 24 rows + compaction", 300, one)
    storage.maintain()
    seen = [
        ExecutionRecord("n", f"w{i}", f"r{i}", "t", 1, i, 1, 0, "q", 1, 1, 1, 0, b"", b"") for i in range(300)
    ]
    measure(
        "round, 1 entry + 1 visibility record",
        300,
        lambda i: storage.write(Round(entries=log.entries(1), visibility=[seen[i]])),
    )
    keys = [key for key, _ in storage.scan(b"", b"\xff")]
    picked = RNG.choices(keys, k=2000)
    measure(f"get, random of {len(keys)}", 2000, lambda i: storage.get(picked[i]))
    measure("get, cached", 2000, lambda i: storage.get(picked[i % 100]))
    measure("scan of 8 rows", 1000, lambda i: list(storage.scan(keys[i], keys[i + 8])))


def measure_beside(storage: SqliteStorage, log: Appender, folds: bool) -> None:
    """A round each 5 ms, and 250 rows each half second: in a round, or beside them on a second thread."""
    jobs: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
    flushes = [rows(125, 125) for _ in range(8)]

    def fold() -> None:
        while (batch := jobs.get()) is not None:
            storage.fold(batch)
            storage.maintain()

    def one(number: int) -> None:
        flush = Round()
        if number % 100 == 99:
            done = (1, log.last, 1)
            flush = Round(rows=flushes[number // 100], applied=[(*done, b"")], compact=[done])
        if folds and flush.rows:
            jobs.put(flush)
            flush = Round()
        flush.entries = log.entries(1)
        rounds.append(flush)

    rounds: list[Round] = []
    thread = threading.Thread(target=fold)
    thread.start()
    wall: list[float] = []
    for number in range(800):
        one(number)
        time.sleep(0.0045)
        start = time.perf_counter()
        storage.write(rounds.pop())
        wall.append((time.perf_counter() - start) * 1e6)
        if not folds:
            storage.maintain()
    jobs.put(None)
    thread.join()
    wall.sort()
    p50, p90, p99 = (wall[int(800 * part)] for part in (0.5, 0.9, 0.99))
    where = "beside" if folds else "within"
    print(f"1 entry each 5 ms, 250 rows each 0.5 s {where}: p50 {p50:.0f} p90 {p90:.0f} p99 {p99:.0f} us")


def burn(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def like_a_loop(stop: threading.Event) -> None:
    """200 us of Python, then a system call that lets go of the GIL for a moment."""
    reader, writer = os.pipe()
    while not stop.is_set():
        start = time.perf_counter()
        while time.perf_counter() - start < 200e-6:
            pass
        os.write(writer, b"x")
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def measure_contention(storage: Storage, log: Appender) -> None:
    for other in (burn, like_a_loop):
        for interval in (5e-3, 5e-4, 1e-4, 5e-5):
            sys.setswitchinterval(interval)
            stop = threading.Event()
            thread = threading.Thread(target=other, args=(stop,))
            thread.start()
            name = f"beside {other.__name__}, {interval * 1000} ms"
            measure(f"{name}, 1 entry", 100, lambda _: storage.write(Round(entries=log.entries(1))))
            batches = [Round(rows=rows(16, 8)) for _ in range(100)]
            measure(f"{name}, 24 rows", 100, lambda i, b=batches: storage.write(b[i]))
            stop.set()
            thread.join()
    sys.setswitchinterval(5e-3)


def measure_gil() -> None:
    """How long a thread waits for the GIL, with no disk in play. The 300 us it sleeps are in the figure."""
    for other in (burn, like_a_loop):
        for interval in (5e-3, 5e-4, 1e-4, 5e-5):
            sys.setswitchinterval(interval)
            stop = threading.Event()
            thread = threading.Thread(target=other, args=(stop,))
            thread.start()
            measure(
                f"beside {other.__name__}, {interval * 1000} ms, sleep 300 us",
                300,
                lambda _: time.sleep(3e-4),
            )
            stop.set()
            thread.join()
    sys.setswitchinterval(5e-3)


def measure_load(path: Path) -> None:
    storage, log = SqliteStorage(path), Appender()
    for _ in range(100_000 // 16):
        storage.write(Round(entries=log.entries(16)))
        storage.maintain()
    storage.close()
    start = time.perf_counter()
    storage = SqliteStorage(path)
    opened = time.perf_counter()
    count = len(storage.load()[1].entries)
    loaded = time.perf_counter()
    print(f"open {(opened - start) * 1e3:.1f} ms, load of {count} entries {(loaded - opened) * 1e3:.0f} ms")
    storage.close()


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        with (Path(directory) / "raw").open("wb", buffering=0) as file:
            measure(
                "bare 4 KiB + fdatasync",
                300,
                lambda _: (file.write(bytes(4096)), os.fdatasync(file.fileno())),
            )
        storage, log = SqliteStorage(Path(directory) / "a.db"), Appender()
        measure_rounds(storage, log)
        for folds in (False, True, False, True):
            measure_beside(storage, log, folds)
        measure_contention(storage, log)
        storage.close()
        measure_gil()
        measure_load(Path(directory) / "b.db")
        print("in memory:")
        measure_rounds(MemoryStorage(), Appender())


if __name__ == "__main__":
    main()
