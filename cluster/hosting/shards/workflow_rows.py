"""All rows of one workflow id, as a transaction sees them that is being made.

A shard's rows are keyed by run, by queue and by time; what regions compare is a workflow id (branches.py).
Reading it takes a look at all runs of its slot and at all actions of the shard: regions that disagree are
rare, and both are few.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

import msgspec

from history_store.engine import keys
from history_store.engine.state import Action, RunState
from replication import branches, inputs

if TYPE_CHECKING:
    from history_store.shard.rows import Rows

_state = msgspec.msgpack.Decoder(RunState).decode
_action = msgspec.msgpack.Decoder(Action).decode


class Sight:
    """Rows with what a transaction has written so far."""

    __slots__ = ("_rows", "latest")

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.latest: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        return self.latest[key] if key in self.latest else self._rows.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All rows whose keys begin so, in key order."""
        found: dict[bytes, bytes | None] = dict(self._rows.scan(prefix, keys.prefix_end(prefix)))
        found.update((key, value) for key, value in self.latest.items() if key.startswith(prefix))
        return ((key, value) for key, value in sorted(found.items()) if value is not None)


def gather(
    sight: Sight, namespace_id: str, workflow_id: str, known: Container[str] = ()
) -> list[tuple[bytes, bytes]]:
    """The rows of a workflow id: c r i h q t x, tombs, waiting inputs. Of `known` runs the core row alone."""
    slot = keys.slot_bytes(keys.slot_of(namespace_id, workflow_id))
    namespace = keys.raw_id(namespace_id)
    found: list[tuple[bytes, bytes]] = []
    runs: dict[str, RunState] = {}
    for key, value in sight.scan(keys.RUN + slot):
        state = _state(value)
        if state.workflow_id == workflow_id and state.namespace_id == namespace_id:
            found.append((key, value))
            if state.run_id not in known:
                runs[state.run_id] = state
    for state in runs.values():
        found += _of_run(sight, slot, state)
    for key, value in sight.scan(keys.ACTION):
        action = _action(value)
        if action.namespace_id == namespace_id and action.run_id in runs:
            found.append((key, value))
    for key, value in sight.scan(branches.TOMB + slot):
        tomb = branches.decode_tomb(value)
        if tomb.workflow_id == workflow_id and tomb.namespace_id == namespace_id:
            found.append((key, value))
    found += sight.scan(inputs.pending_prefix(slot, namespace, workflow_id))
    pointer = keys.current(slot, namespace, workflow_id)
    now = sight.get(pointer)
    return found if now is None else [*found, (pointer, now)]


def _of_run(sight: Sight, slot: bytes, state: RunState) -> Iterator[tuple[bytes, bytes]]:
    raw = keys.raw_id(state.run_id)
    items = list(sight.scan(keys.items(slot, raw)))
    yield from items
    yield from sight.scan(keys.HISTORY + slot + raw)
    named = [*branches.task_keys(state, items)]
    if state.wake:
        named.append(keys.wake(state.wake, raw))
    for key in named:
        value = sight.get(key)
        if value is not None:
            yield key, value
