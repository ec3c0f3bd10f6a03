"""Runs of a shard that are held decoded, so that a call need not read and decode their rows.

What goes first is what was used longest ago, by count and by bytes: a run holds its newest events, the inputs
of its pending activities and what else clients sent for it, and these may be megabytes. A run stays while it
holds what its rows do not (`pinned`), and while its latest change is not committed: one read again from
proposed rows would show what nobody may see yet. So both bounds are soft.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from history_store.engine.state import WFT_SPECULATIVE

if TYPE_CHECKING:
    from history_store.engine.run import Run

RUNS_MAX = 4_096  # open and closed; about 5 KiB each beside their events
CLOSED_MAX = 256  # of them: whoever waits for a result asks soon, or not at all
NODE_BYTES_MAX = 128 << 20  # of events, states and large items, over all shards that the node leads
SHARD_BYTES_MIN = 4 << 20  # however many shards that are
LOOKS = 8  # at runs for one that may go, each time
LOOKS_AT_REST = 512  # some milliseconds, when nobody waits


class RunCache:
    """By run id, the one used longest ago first."""

    def __init__(self, committed: Callable[[], int], bytes_max: Callable[[], int]) -> None:
        """`committed`: the log's index up to which changes are; `bytes_max`: the shard's share at present."""
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.bytes = 0
        self._committed = committed
        self._bytes_max = bytes_max
        self._weights: dict[str, int] = {}
        # (namespace id, workflow id) -> its open run, if that is in `runs`: there is never a second open one
        self._open: dict[tuple[str, str], Run] = {}
        self._closed: deque[str] = deque()  # run ids in the order they closed

    def __len__(self) -> int:
        return len(self.runs)

    def get(self, run_id: str) -> Run | None:
        """The run, used now, if it is held."""
        run = self.runs.get(run_id)
        if run is not None:
            self.runs.move_to_end(run_id)
        return run

    def open_run(self, namespace_id: str, workflow_id: str) -> Run | None:
        """The open run of a workflow id, used now, if it is held."""
        run = self._open.get((namespace_id, workflow_id))
        if run is None or not run.running:
            return None
        self.runs.move_to_end(run.state.run_id)
        return run

    def keep(self, run: Run) -> None:
        """Hold it as it is now; others may go."""
        s = run.state
        self.runs[s.run_id] = run
        if run.running:
            self._open[s.namespace_id, s.workflow_id] = run
        weight = run.held_bytes
        self.bytes += weight - self._weights.get(s.run_id, 0)
        self._weights[s.run_id] = weight
        if len(self.runs) > RUNS_MAX or self.bytes > SHARD_BYTES_MIN:
            self._make_room(run, LOOKS)

    def shrink(self) -> None:
        """Let runs go that are more than the shard's share, which is less where more shards have come.

        A shard that nobody uses keeps no run, and would hold what was its share once.
        """
        self._make_room(None, LOOKS_AT_REST)

    def _make_room(self, kept: Run | None, looks: int) -> None:
        bytes_max = self._bytes_max()
        for _ in range(looks):
            if len(self.runs) <= RUNS_MAX and self.bytes <= bytes_max:
                return
            run_id, oldest = next(iter(self.runs.items()))
            if oldest is kept or not self._may_go(oldest):
                self.runs.move_to_end(run_id)
            else:
                self.drop(oldest)

    def _may_go(self, run: Run) -> bool:
        return run.proposed <= self._committed() and not pinned(run)

    def drop(self, run: Run) -> None:
        """Out of memory, and what leads to it. Nothing happens if another object stands for it."""
        s = run.state
        if self.runs.get(s.run_id) is not run:
            return
        del self.runs[s.run_id]
        self.bytes -= self._weights.pop(s.run_id)
        if self._open.get((s.namespace_id, s.workflow_id)) is run:
            del self._open[s.namespace_id, s.workflow_id]

    def closed(self, run_id: str) -> None:
        """The run has closed: it stays only for a while."""
        self._closed.append(run_id)
        if len(self._closed) > CLOSED_MAX:
            oldest = self.runs.get(self._closed.popleft())
            if oldest is not None and not oldest.running and self._may_go(oldest):
                self.drop(oldest)

    def clear(self) -> None:
        """Hold nothing."""
        self.runs.clear()
        self._weights.clear()
        self._open.clear()
        self._closed.clear()
        self.bytes = 0


def pinned(run: Run) -> bool:
    """Whether the run holds what its rows do not."""
    task = run.state.task
    return bool(
        run.watchers
        or run.queries
        or run.tx is not None
        or (run.updates is not None and run.updates.updates)
        or (task is not None and task.kind == WFT_SPECULATIVE)
    )
