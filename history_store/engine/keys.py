"""Row keys of a shard, after the group's four bytes: one kind byte, then what orders the kind.

    c  slot  namespace  workflow id                current run of a workflow id
    r  slot  run                                   a run's core row
    i  slot  run  item kind  item id               its pending things, one row each
    h  slot  run  branch  first event id           history: one batch of events a row
    q  namespace  type  queue ff priority sequence a task that waits for a poller, in order
    t  due  run                                    when a run wants to be looked at
    x  sequence                                    an action on another run, not yet done
    s  shard                                       which slots were given to another shard (shard/split.py)
    o  what                                        what other regions were told, and have told us (streams.py,
                                                   conflicts.py)
    f  g  namespace id                             a namespace's gate (replication/failover/records.py)

The slot (two bytes) leads wherever a kind has no order of its own, so that a shard can be split by ranges;
q, t and x are ordered by what they are read by, and carry the workflow id in their values.
Namespace and run ids are 16 raw bytes.
"""

from __future__ import annotations

from zlib import crc32

SLOTS = 16_384

CURRENT = b"c"
RUN = b"r"
ITEM = b"i"
HISTORY = b"h"
TASK = b"q"
WAKE = b"t"
ACTION = b"x"
SPLIT = b"s"
STREAM = b"o"
FAILOVER = b"f"

ITEM_ACTIVITY = b"a"
ITEM_TIMER = b"t"
ITEM_CHILD = b"c"
ITEM_EXTERNAL = b"e"
ITEM_UPDATE = b"u"
ITEM_SIGNAL_ID = b"s"
ITEM_BUFFERED = b"b"
ITEM_MADE = b"m"  # an input of another region's branch that was made again (replication/inputs.py)


def slot_of(namespace_id: str, workflow_id: str) -> int:
    """The hash slot that all runs of a workflow id share (0 <= slot < SLOTS)."""
    return crc32(f"{namespace_id}\0{workflow_id}".encode()) % SLOTS


def raw_id(uuid: str) -> bytes:
    """The 16 bytes of a canonical UUID. ValueError if it is none."""
    return bytes.fromhex(uuid.replace("-", ""))


def slot_bytes(slot: int) -> bytes:
    """Two bytes, big-endian."""
    return slot.to_bytes(2, "big")


def current(slot: bytes, namespace: bytes, workflow_id: str) -> bytes:
    """Key of the current-run pointer."""
    return CURRENT + slot + namespace + workflow_id.encode()


def run(slot: bytes, run: bytes) -> bytes:
    """Key of a run's core row."""
    return RUN + slot + run


def items(slot: bytes, run: bytes) -> bytes:
    """Prefix of a run's item rows."""
    return ITEM + slot + run


def number(value: int) -> bytes:
    """Eight bytes that sort as the number does."""
    return value.to_bytes(8, "big")


def history(slot: bytes, run: bytes, branch: int, first_event_id: int) -> bytes:
    """Key of one batch of events."""
    return HISTORY + slot + run + branch.to_bytes(4, "big") + number(first_event_id)


def task_queue(namespace: bytes, kind: int, queue: str) -> bytes:
    """Prefix of a queue's tasks."""
    return TASK + namespace + bytes((kind,)) + queue.encode() + b"\xff"


def task(namespace: bytes, kind: int, queue: str, priority: int, sequence: int) -> bytes:
    """Key of one waiting task."""
    return task_queue(namespace, kind, queue) + bytes((priority,)) + number(sequence)


def wake(due: int, run: bytes) -> bytes:
    """Key of a run's wake row."""
    return WAKE + number(due) + run


def action(sequence: int) -> bytes:
    """Key of one action."""
    return ACTION + number(sequence)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`."""
    body = prefix.rstrip(b"\xff")
    assert body, "a prefix of 0xff only has no end"
    return body[:-1] + bytes((body[-1] + 1,))
