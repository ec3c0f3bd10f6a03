"""A process that writes rounds as fast as it can and prints each number once it is durable, to be killed.

Round n appends entries to two groups; every third writes n to a hundred rows of both tables and to the
projection; every sixth compacts. Usage: writer_child.py FILE SEED [folds]

With `folds`, rows and compaction are stored by a second thread, which is told that the entries are durable.
"""

import queue
import random
import sys
import threading

from history_store.storage.contract import Entry, HardState, Round
from history_store.storage.sqlite import SqliteStorage
from history_store.visibility.record import ExecutionRecord

ROWS = [
    group.to_bytes(4, "big") + kind + b"%02d" % i
    for group in (1, 2)
    for kind in (b"a", b"h")
    for i in range(25)
]


def round_of(number: int, padding: int) -> Round:
    data = b"%d:" % number + bytes(padding)
    batch = Round(
        entries=[
            (1, [Entry(1, number, 0, data)]),
            (2, [Entry(1, 2 * number - 1, 0, data), Entry(1, 2 * number, 0, data)]),
        ],
        hard_states=[(1, HardState(1, 1, number - 1))],
    )
    if number % 3 == 0:
        batch.rows = [(key, data) for key in ROWS]
        batch.visibility = [
            ExecutionRecord("ns", "w", "r", "T", 1, number, number, 0, "q", number, 1, 1, 0, b"", b"")
        ]
        batch.applied = [(1, number, 1, b""), (2, 2 * number, 1, b"")]
    if number % 6 == 0:
        batch.compact = [(1, number - 2, 1), (2, 2 * number - 5, 1)]
    return batch


def main() -> None:
    path, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    storage = SqliteStorage(path, checkpoint_bytes=1 << 17, journal_bytes=1 << 18)
    logs = storage.load()
    folds: queue.SimpleQueue[Round] = queue.SimpleQueue()

    def fold() -> None:
        while True:
            storage.fold(folds.get())
            storage.maintain()

    if folding := sys.argv[3:] == ["folds"]:
        threading.Thread(target=fold, daemon=True).start()
    number = 1 + (logs[1].compacted + len(logs[1].entries) if 1 in logs else 0)
    while True:
        batch = round_of(number, rng.choice([0, 100, 3000]))
        later = Round(
            rows=batch.rows, visibility=batch.visibility, applied=batch.applied, compact=batch.compact
        )
        if folding:
            batch = Round(entries=batch.entries, hard_states=batch.hard_states)
        storage.write(batch)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        if folding and later.rows:
            folds.put(later)
        elif not folding:
            storage.maintain()
        number += 1


if __name__ == "__main__":
    main()
