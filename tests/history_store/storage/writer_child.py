"""A process that writes rounds as fast as it can and prints each number once it is durable, to be killed.

Round n appends entries to two groups; every third writes n to a hundred rows of both tables and to the
projection; every sixth compacts. Usage: writer_child.py FILE SEED
"""

import random
import sys

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
    storage = SqliteStorage(path, checkpoint_bytes=1 << 17)
    logs = storage.load()
    number = 1 + (logs[1].compacted + len(logs[1].entries) if 1 in logs else 0)
    while True:
        storage.write(round_of(number, rng.choice([0, 100, 3000])))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        storage.maintain()
        number += 1


if __name__ == "__main__":
    main()
