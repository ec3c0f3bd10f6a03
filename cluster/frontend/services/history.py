"""Histories: pages forward and backward, long polls for new events and for the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.history.v1.message_pb2 import History
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, fail, rpc, workflow_not_found
from cluster.frontend.services.passing import require_upto
from cluster.frontend.status import status_of
from cluster.hosting.tasks.answers import varint
from cluster.hosting.tasks.tokens import HistoryToken, encode, history_token
from history_store.engine import workflow_task
from history_store.engine.errors import ServiceError, invalid
from history_store.shard import runs

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run

CLOSE_EVENT = workflow_pb2.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
PAGE_EVENTS_MAX = 1_000  # Temporal's is 256; more per round trip costs nothing here
PAGE_BYTES_MAX = 3 << 20
WAIT_S = 20.0  # a long poll answers empty after this, as Temporal's does
MARGIN_S = 0.5  # and before the client's own deadline


@rpc(wire.GetWorkflowExecutionHistoryRequest)
def get_history(services: Services, call: Call, request: wire.GetWorkflowExecutionHistoryRequest) -> None:
    """GetWorkflowExecutionHistory."""
    namespace = services.namespace(request.namespace)
    execution = request.execution
    token = history_token(request.next_page_token) if request.next_page_token else None
    run_id = token.run_id if token is not None else execution.run_id
    if token is not None and execution.run_id and execution.run_id != token.run_id:
        raise invalid("Invalid NextPageToken.")
    shard, found = services.node.run_of(namespace.id, execution.workflow_id, run_id)
    if token is not None:
        have = found.state.next_event_id if found is not None else 0
        require_upto(services.node, shard, namespace.id, have, token.end_id)
    if found is None:
        raise workflow_not_found(execution.workflow_id)
    run = found
    if request.history_event_filter_type == CLOSE_EVENT:
        reader: Reader = CloseReader(services, call, shard, run, request)
    else:
        reader = Reader(services, call, shard, run, request)
    reader.token = token
    reader.look()


def with_history(history: bytes, token: bytes) -> bytes:
    """GetWorkflowExecutionHistoryResponse: history = 1, next_page_token = 3."""
    out = b"\x0a" + varint(len(history)) + history
    if token:
        out += b"\x1a" + varint(len(token)) + token
    return out


class Reader:
    """One request for events, which may wait for more of them."""

    def __init__(
        self,
        services: Services,
        call: Call,
        shard: ShardHost,
        run: Run,
        request: wire.GetWorkflowExecutionHistoryRequest,
    ) -> None:
        self.services = services
        self.call = call
        self.shard = shard
        self.run = run
        self.wait = request.wait_new_event
        self.page = min(request.maximum_page_size or PAGE_EVENTS_MAX, PAGE_EVENTS_MAX)
        self.token: HistoryToken | None = None
        self.timer: object = None
        self.parked = False
        self.end = 0  # what there was when we looked: later events may not be committed when we read
        self.running = True

    def look(self) -> None:
        """Read when everything proposed so far is committed: nobody sees what is not."""
        run = self.found()
        if run is None:
            self.shard.group.when_committed(self.read)
            return
        self.end, self.running = run.state.next_event_id, run.running
        self.shard.when_seen(run, self.read)

    def found(self) -> Run | None:
        """The run; the object may be another one after a transaction failed."""
        state = self.run.state
        return self.shard.find(state.namespace_id, state.workflow_id, state.run_id)

    def read(self, error: ServiceError | None) -> None:
        """Answer, or wait for a change."""
        if self.call.done:
            self.unpark()
            return
        if error is not None:
            self.unpark()
            fail(self.call, error)
            return
        run = self.found()
        if run is None:
            self.unpark()
            fail(self.call, workflow_not_found(self.run.state.workflow_id))
            return
        self.run = run
        try:
            self.answer(run)
        except Exception as problem:  # noqa: BLE001 - a commit may have called: nobody else would answer
            self.unpark()
            self.call.fail(*status_of(problem, self.call.method, self.call.connection.peer))

    def answer(self, run: Run) -> None:
        """All events: the next page, or wait at the end."""
        token = self.token
        first = token.next_id if token is not None else 1
        end = token.end_id if token is not None and token.end_id else self.end
        if first >= end and self.wait and self.running:
            self.park(run, first)
            return
        data, after = runs.history(self.shard.rows, run, first, PAGE_BYTES_MAX)
        if after > end:
            data = runs.cut(data, end - first)
            after = end
        if after - first > self.page:
            data = runs.cut(data, self.page)
            after = first + self.page
        next_token = b""
        transient = token.transient if token is not None else 0
        if after < end:
            keep_end = token.end_id if token is not None else 0 if self.wait else end
            next_token = encode(HistoryToken(run.state.run_id, after, self.wait, keep_end, transient))
        elif self.wait and self.running:
            next_token = encode(HistoryToken(run.state.run_id, after, True))
        elif transient and run.state.task is not None and run.state.task.stamp == transient:
            data += History(events=workflow_task.transient_events(run)).SerializeToString()
        self.finish(data, next_token)

    def finish(self, history: bytes, token: bytes) -> None:
        """Answer."""
        self.unpark()
        self.call.finish(with_history(history, token))

    # ---- waiting

    def park(self, run: Run, next_id: int) -> None:
        """Look again after the run's next commit."""
        if run.proposed > self.shard.group.committed or (run.state.next_event_id, run.running) != (
            self.end,
            self.running,
        ):
            # It has changed since we looked. The commit of that told no watcher of ours, or will tell none:
            # it may be the same round's, and over already.
            self.look()
            return
        run.watchers.append(self.changed)
        if self.parked:
            return
        self.parked = True
        self.call.on_cancel = self.gone
        left = WAIT_S
        if self.call.deadline is not None:
            left = min(left, max(0.05, self.call.deadline - self.services.loop.time() - MARGIN_S))
        self.timer = self.services.loop.call_later(left, self.expire, next_id)

    def changed(self) -> None:
        """The run has changed and that is committed."""
        if not self.call.done:
            self.look()

    def expire(self, next_id: int) -> None:
        """Nothing happened for a while: an empty page, and where to go on."""
        self.timer = None
        self.gone()
        self.call.finish(with_history(b"", encode(HistoryToken(self.run.state.run_id, next_id, True))))

    def gone(self) -> None:
        """The client does not wait any more."""
        self.unpark()
        if self.changed in self.run.watchers:
            self.run.watchers.remove(self.changed)

    def unpark(self) -> None:
        """Stop the clock."""
        if self.timer is not None:
            self.timer.cancel()  # type: ignore[attr-defined]
            self.timer = None


class CloseReader(Reader):
    """One request for the closing event alone."""

    def answer(self, run: Run) -> None:
        """The last event, when there is one that closes the run."""
        last = self.end - 1
        if self.running:
            if self.wait:
                self.park(run, last)
            else:
                self.finish(b"", b"")
            return
        data, after = runs.history(self.shard.rows, run, last)
        self.finish(runs.cut(data, 1) if after > self.end else data, b"")


@rpc(wire.GetWorkflowExecutionHistoryReverseRequest)
def get_history_reverse(
    services: Services, call: Call, request: wire.GetWorkflowExecutionHistoryReverseRequest
) -> None:
    """GetWorkflowExecutionHistoryReverse: the newest events first."""
    namespace = services.namespace(request.namespace)
    token = history_token(request.next_page_token) if request.next_page_token else None
    run_id = token.run_id if token is not None else request.execution.run_id
    shard, run = services.run(namespace.id, request.execution.workflow_id, run_id)
    page = min(request.maximum_page_size or PAGE_EVENTS_MAX, PAGE_EVENTS_MAX)
    end = token.next_id if token is not None else run.state.next_event_id

    def read(error: ServiceError | None) -> None:
        if error is not None:
            fail(call, error)
            return
        first = max(1, end - page)
        data, _ = runs.history(shard.rows, run, first)
        events = list(History.FromString(runs.cut(data, end - first)).events)
        events.reverse()
        next_token = encode(HistoryToken(run.state.run_id, first)) if first > 1 else b""
        call.finish(with_history(History(events=events).SerializeToString(), next_token))

    shard.when_seen(run, read)
