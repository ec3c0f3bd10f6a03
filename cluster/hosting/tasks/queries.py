"""Queries: questions to a run's code, answered by a worker, leaving no trace.

A run without a workflow task under way is asked directly, through matching. Otherwise the question waits and
goes with the next workflow task, so that the answer is consistent with everything the caller knows of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import query_pb2
from temporalio.api.errordetails.v1.message_pb2 import QueryFailedFailure
from temporalio.api.workflowservice.v1.request_response_pb2 import QueryWorkflowResponse

from cluster.frontend.status import status_details
from cluster.hosting.tasks import answers
from cluster.hosting.tasks.dispatch import WORKFLOW, Poll
from cluster.matching.contract import QueueKey
from history_store.engine.errors import Code, ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from temporalio.api.query.v1.message_pb2 import WorkflowQuery, WorkflowQueryResult

    from cluster.frontend.contract import Call, Connection
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run

ANSWERED = query_pb2.QUERY_RESULT_TYPE_ANSWERED

GONE = "the workflow was deleted while the query waited"


class Query:
    """One question; what matching knows as a task while it is asked directly."""

    __slots__ = (
        "attached",
        "call",
        "connection",
        "created_ns",
        "durable",
        "id",
        "node",
        "priority",
        "query",
        "queue",
        "run_key",
        "sequence",
        "shard",
    )

    def __init__(self, node: Node, call: Call, shard: ShardHost, run: Run, query: WorkflowQuery) -> None:
        self.node = node
        self.call = call
        self.shard = shard
        self.query = query
        self.id = node.new_id()
        self.run_key = (run.state.namespace_id, run.state.workflow_id, run.state.run_id)
        self.attached = False
        self.connection: Connection | None = None
        self.queue = QueueKey(run.state.namespace_id, WORKFLOW, run.state.task_queue)
        self.durable = False
        self.priority = 1
        self.sequence = node.next_sequence()
        self.created_ns = node.clock.now_ns()

    def run(self) -> Run | None:
        """The run that is asked."""
        return self.shard.find(*self.run_key)

    def ask(self, run: Run) -> None:
        """Through matching: the worker that has the run in its cache if it lives, else any."""
        sticky = QueueKey(run.state.namespace_id, WORKFLOW, run.state.sticky_queue)
        if run.state.sticky_queue and self.node.matching.has_live_poller(sticky):
            self.queue = sticky
        else:
            self.queue = QueueKey(run.state.namespace_id, WORKFLOW, run.state.task_queue)
        if not self.node.matching.offer(self):
            self.fail(Code.RESOURCE_EXHAUSTED, "too many queries wait for a worker of this task queue")

    def start(self, poller: Any) -> bool:
        """A worker is there to be asked."""
        if self.call.done:
            return False
        run = self.run()
        if run is None:
            self.fail(Code.NOT_FOUND, GONE)
            return False
        body = answers.query_answer(
            self.shard, run, self.id, self.query, self.queue.name == run.state.sticky_queue
        )

        def deliver(error: ServiceError | None) -> None:
            if error is not None:  # what it would tell may never be true; the worker goes on waiting
                self.fail(error.code, error.message)
                if poller.open:
                    poller.wait_on()
            elif poller.open:
                self.connection = poller.connection
                if not isinstance(poller, Poll):
                    poller.receipt = [self.id]
                poller.answer(body)
            elif not self.call.done:
                self.ask(run)

        self.shard.when_seen(run, deliver)
        return True

    def reroute(self) -> None:
        """The sticky worker died: ask any other."""
        if self.call.done:
            return
        run = self.run()
        if run is None:
            self.fail(Code.NOT_FOUND, GONE)
            return
        run.state.sticky_queue = ""
        self.ask(run)

    def undelivered(self) -> None:
        """The worker's poll had gone."""
        run = self.run() if not self.call.done else None
        if run is not None:
            self.connection = None
            self.ask(run)

    def gone(self) -> None:
        """The caller does not wait any more."""
        self.node.queries.drop(self)
        if not self.attached:
            self.node.matching.withdraw(self)

    def succeed(self, result: Any) -> None:
        """The worker's answer."""
        self.node.queries.drop(self)
        response = QueryWorkflowResponse()
        if result is not None:
            response.query_result.CopyFrom(result)
        self.call.finish(response.SerializeToString())

    def fail(self, code: int, message: str, failure: Any = None) -> None:
        """The worker could not answer."""
        self.node.queries.drop(self)
        detail = QueryFailedFailure()
        if failure is not None and failure.ByteSize():
            detail.failure.CopyFrom(failure)
        error = ServiceError(Code(code), message, detail if code == Code.INVALID_ARGUMENT else None)
        self.call.fail(code, message, status_details(error))


class Queries:
    """All open questions of a node."""

    def __init__(self) -> None:
        self.open: dict[str, Query] = {}

    def ask(self, query: Query, run: Run) -> None:
        """Ask now or with the next workflow task."""
        self.open[query.id] = query
        query.call.on_cancel = query.gone
        if run.running and (run.state.task is not None or run.state.last_started_id == 0):
            run.queries[query.id] = query
        else:
            query.ask(run)

    def take(self, run: Run) -> dict[str, WorkflowQuery]:
        """What goes with the workflow task that has just been started."""
        if not run.queries:
            return {}
        for query in run.queries.values():
            query.attached = True
        return {query_id: query.query for query_id, query in run.queries.items()}

    def answered(self, run: Run, results: Mapping[str, WorkflowQueryResult]) -> None:
        """Take the answers that came with a workflow task, by query id."""
        for query_id, result in results.items():
            query = run.queries.pop(query_id, None)
            if query is None:
                continue
            if result.result_type == ANSWERED:
                query.succeed(result.answer if result.HasField("answer") else None)
            else:
                query.fail(Code.INVALID_ARGUMENT, result.error_message, result.failure)

    def settle(self, run: Run) -> None:
        """A workflow task is over: ask what is left directly if no other follows."""
        if run.queries and (run.state.task is None or not run.running):
            waiting, run.queries = run.queries, {}
            for query in waiting.values():
                query.attached = False
                query.ask(run)

    def refuse(self, run: Run) -> None:
        """The run is deleted: nobody can answer for it."""
        waiting, run.queries = run.queries, {}
        for query in waiting.values():
            query.fail(Code.NOT_FOUND, GONE)

    def drop(self, query: Query) -> None:
        """It is answered or abandoned."""
        self.open.pop(query.id, None)
        if query.attached or query.connection is None:
            run = query.shard.cache.runs.get(query.run_key[2])  # if it is not in memory, it holds no question
            if run is not None:
                run.queries.pop(query.id, None)

    def undelivered(self, query_id: str) -> None:
        """Another node had no poll any more to give the question to."""
        query = self.open.get(query_id)
        if query is not None and query.connection is not None:
            query.undelivered()

    def closed(self, connection: Connection) -> None:
        """A worker died: what it was asked is asked again elsewhere."""
        for query in list(self.open.values()):
            if query.connection is connection:
                query.connection = None
                query.reroute()
