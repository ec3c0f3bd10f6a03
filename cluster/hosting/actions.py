"""Actions: what one run asks of another, done after its commit, at least once, to the same end.

The target deduplicates by the request id that the asking run drew, so an action that is done twice (a node
died between) finds what it did the first time. An action's row goes in the transaction that records its
outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import failed_cause_pb2, workflow_pb2

from cluster.hosting.group import nobody
from history_store.engine import children, close, inputs, start
from history_store.engine import state as st
from history_store.engine.errors import Code, ServiceError

if TYPE_CHECKING:
    from cluster.hosting.node import Node
    from cluster.hosting.shard_host import ShardHost
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import Action, CurrentRun

log = structlog.get_logger("actions")

RETRY_S = 1.0
RETRY_BROKEN_S = 60.0  # an action that cannot be done must neither stop others nor be forgotten
EXISTS = failed_cause_pb2.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
NO_NAMESPACE = failed_cause_pb2.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
SIGNAL_NOT_FOUND = (
    failed_cause_pb2.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
)
SIGNAL_LIMIT = failed_cause_pb2.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_SIGNAL_COUNT_LIMIT_EXCEEDED
CANCEL_NOT_FOUND = (
    failed_cause_pb2.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
)
TERMINATE = workflow_pb2.PARENT_CLOSE_POLICY_TERMINATE
ABANDON = workflow_pb2.PARENT_CLOSE_POLICY_ABANDON
FAILED_ONLY = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
REJECT = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
TERMINATE_IF_RUNNING = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
HISTORY_SERVICE = "history-service"


class Actions:
    """Does actions on this node's shards."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def do(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """Do it now; if a write is refused (a full disk), again later."""
        self._try(shard, key, action, lambda: getattr(self, f"_{action.kind}")(shard, key, action))

    def _try(self, shard: ShardHost, key: bytes, action: Action, what: Callable[[], None]) -> None:
        try:
            what()
        except ServiceError as error:
            log.warning("an action waits", action=action.kind, error=error.message)
            self.node.loop.call_later(RETRY_S, self.do, shard, key, action)
        except Exception:  # many wait their turn behind this one, and a node that starts has to go on
            log.exception("an action failed; trying again later", action=action.kind, run=action.run_id)
            self.node.loop.call_later(RETRY_BROKEN_S, self.do, shard, key, action)

    def _finish(
        self, shard: ShardHost, key: bytes, change: Callable[[Transaction], None] | None = None
    ) -> None:
        """Record the outcome and take the action's row away, in one transaction."""
        tx = shard.begin()
        try:
            if change is not None:
                change(tx)
        except BaseException:
            shard.abort(tx)
            raise
        tx.action_done(key)
        shard.commit(tx, nobody)

    def _source(self, shard: ShardHost, action: Action) -> Run | None:
        run = shard.find(action.namespace_id, action.workflow_id, action.run_id)
        return run if run is not None and run.running else None

    def _after(
        self, target: ShardHost, shard: ShardHost, key: bytes, action: Action, then: Callable[[], None]
    ) -> None:
        """When the target's part is committed, do the rest."""

        def committed(lost: ServiceError | None) -> None:
            if lost is None:
                self._try(shard, key, action, then)
            else:  # the target has another leader: ask it, if the source is still ours
                self.node.loop.call_later(RETRY_S, self.do, shard, key, action)

        target.group.when_committed(committed, patient=True)

    # ---- children

    def _start_child(self, shard: ShardHost, key: bytes, action: Action) -> None:
        parent = shard.find(action.namespace_id, action.workflow_id, action.run_id)
        if parent is None or (not parent.running and action.policy != ABANDON):
            self._finish(shard, key)
            return
        if action.target_namespace_id not in self.node.meta.by_id:
            self._child_failed(shard, key, action, NO_NAMESPACE)
            return
        target = self.node.shard_of(action.target_namespace_id, action.target_workflow_id)
        now = target.current(action.target_namespace_id, action.target_workflow_id)
        ours = self._started_before(target, action, now) if now is not None else ""
        if ours:
            self._after(target, shard, key, action, lambda: self._child_started(shard, key, action, ours))
            return
        initiated = shard.load_event(parent, action.batch_id, action.event_id)
        wanted = initiated.start_child_workflow_execution_initiated_event_attributes
        tx = target.begin()
        run_id = self.node.new_id()
        policy = wanted.workflow_id_reuse_policy
        if now is not None and not self._make_room(target, tx, action, now, policy, run_id):
            self._child_failed(shard, key, action, EXISTS)
            return
        started = children.child_attributes(tx, parent, initiated, run_id)
        metadata = initiated.user_metadata if initiated.HasField("user_metadata") else None
        start.create(
            tx,
            action.target_namespace_id,
            run_id,
            started,
            action.request_id,
            user_metadata=metadata,
            version=self.node.version_of(action.target_namespace_id),
        )
        target.commit(tx, nobody)
        self._after(target, shard, key, action, lambda: self._child_started(shard, key, action, run_id))

    def _started_before(self, target: ShardHost, action: Action, now: CurrentRun) -> str:
        """The run that this action started before ("" if it did not), also if others follow it now."""
        if now.start_request_id == action.request_id:
            return now.run_id
        if now.first_run_id in ("", now.run_id):
            return ""
        first = target.find(action.target_namespace_id, action.target_workflow_id, now.first_run_id)
        return (
            now.first_run_id
            if first is not None and first.state.start_request_id == action.request_id
            else ""
        )

    def _make_room(
        self, target: ShardHost, tx: Transaction, action: Action, now: CurrentRun, policy: int, run_id: str
    ) -> bool:
        """Whether the reuse policy lets the child start although the id is known."""
        if now.status == st.RUNNING:
            if policy != TERMINATE_IF_RUNNING:
                return False
            run = target.find(action.target_namespace_id, action.target_workflow_id, now.run_id)
            assert run is not None, "the current run is there"
            close.give_way(tx, tx.open(run), run_id)
            return True
        if policy == REJECT:
            return False
        return not (policy == FAILED_ONLY and now.status == st.COMPLETED)

    def _child_started(self, shard: ShardHost, key: bytes, action: Action, run_id: str) -> None:
        def change(tx: Transaction) -> None:
            parent = self._source(shard, action)
            child = parent.children.get(action.event_id) if parent is not None else None
            if parent is not None and child is not None:
                children.child_started(tx, tx.open(parent), child, run_id)

        self._finish(shard, key, change)

    def _child_failed(self, shard: ShardHost, key: bytes, action: Action, cause: int) -> None:
        def change(tx: Transaction) -> None:
            parent = self._source(shard, action)
            child = parent.children.get(action.event_id) if parent is not None else None
            if parent is not None and child is not None:
                children.child_start_failed(tx, tx.open(parent), child, cause)

        self._finish(shard, key, change)

    def _child_closed(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """Tell the parent how its child ended."""
        target = self.node.shard_of(action.target_namespace_id, action.target_workflow_id)
        parent = target.find(action.target_namespace_id, action.target_workflow_id, action.target_run_id)
        while parent is not None and not parent.running and parent.state.reset_run_id:
            # A reset put another run in its place, which goes on with the child.
            parent = target.find(
                action.target_namespace_id, action.target_workflow_id, parent.state.reset_run_id
            )
        child = parent.children.get(action.event_id) if parent is not None and parent.running else None
        if parent is not None and child is not None and child.run_id in ("", action.request_id):
            tx = target.begin()
            children.child_closed(
                tx, tx.open(parent), child, action.policy, action.payload, action.request_id, action.run_id
            )
            target.commit(tx, nobody)
        self._after(target, shard, key, action, lambda: self._finish(shard, key))

    def _close_child(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """The parent closed: its policy says what becomes of the child."""
        target = self.node.shard_of(action.target_namespace_id, action.target_workflow_id)
        now = target.current(action.target_namespace_id, action.target_workflow_id)
        ours = (
            now is not None
            and now.status == st.RUNNING
            and (
                now.start_request_id == action.request_id
                or (action.target_run_id != "" and now.first_run_id == action.target_run_id)
            )
        )
        if now is not None and ours:
            run = target.find(action.target_namespace_id, action.target_workflow_id, now.run_id)
            assert run is not None, "the current run is there"
            tx = target.begin()
            tx.open(run)
            if action.policy == TERMINATE:
                close.terminate(tx, run, "by parent close policy", None, HISTORY_SERVICE)
            else:
                parent = WorkflowExecution(workflow_id=action.workflow_id, run_id=action.run_id)
                inputs.request_cancel(
                    tx,
                    run,
                    HISTORY_SERVICE,
                    action.request_id,
                    "by parent close policy",
                    external=parent,
                    initiated_id=action.event_id,
                )
            target.commit(tx, nobody)
        self._after(target, shard, key, action, lambda: self._finish(shard, key))

    # ---- signals and cancel requests

    def _signal(self, shard: ShardHost, key: bytes, action: Action) -> None:
        self._external(shard, key, action, self._send_signal, SIGNAL_NOT_FOUND)

    def _cancel(self, shard: ShardHost, key: bytes, action: Action) -> None:
        self._external(shard, key, action, self._send_cancel, CANCEL_NOT_FOUND)

    def _external(
        self,
        shard: ShardHost,
        key: bytes,
        action: Action,
        send: Callable[[ShardHost, ShardHost, Run, Run, Action], int],
        missing: int,
    ) -> None:
        source = shard.find(action.namespace_id, action.workflow_id, action.run_id)
        if source is None:
            self._finish(shard, key)
            return
        target = self.node.shard_of(action.target_namespace_id, action.target_workflow_id)
        itself = (action.namespace_id, action.workflow_id) == (
            action.target_namespace_id,
            action.target_workflow_id,
        )
        run = None
        if not itself:  # Temporal finds nothing either when a workflow means itself
            run = target.find(action.target_namespace_id, action.target_workflow_id, action.target_run_id)
        cause = missing if run is None else send(shard, target, source, run, action)

        def record() -> None:
            def change(tx: Transaction) -> None:
                asking = self._source(shard, action)
                pending = asking.external.get(action.event_id) if asking is not None else None
                if asking is not None and pending is not None:
                    children.external_done(tx, tx.open(asking), pending, cause)

            self._finish(shard, key, change)

        self._after(target, shard, key, action, record)

    def _send_signal(self, shard: ShardHost, target: ShardHost, source: Run, run: Run, action: Action) -> int:
        initiated = shard.load_event(source, action.batch_id, action.event_id)
        asked = initiated.signal_external_workflow_execution_initiated_event_attributes
        if not run.running or (asked.child_workflow_only and not _is_parent(source, run)):
            return SIGNAL_NOT_FOUND
        tx = target.begin()
        tx.open(run)
        try:
            inputs.signal(
                tx,
                run,
                asked.signal_name,
                asked.input if asked.HasField("input") else None,
                asked.header if asked.HasField("header") else None,
                HISTORY_SERVICE,
                action.request_id,
                external=WorkflowExecution(workflow_id=source.state.workflow_id, run_id=source.state.run_id),
            )
        except ServiceError as error:
            target.abort(tx)
            return SIGNAL_LIMIT if error.code == Code.RESOURCE_EXHAUSTED else SIGNAL_NOT_FOUND
        target.commit(tx, nobody)
        return 0

    def _send_cancel(self, shard: ShardHost, target: ShardHost, source: Run, run: Run, action: Action) -> int:
        initiated = shard.load_event(source, action.batch_id, action.event_id)
        asked = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
        if asked.child_workflow_only and not _is_parent(source, run):
            return CANCEL_NOT_FOUND
        if not run.running:
            return 0
        tx = target.begin()
        inputs.request_cancel(
            tx,
            tx.open(run),
            HISTORY_SERVICE,
            action.request_id,
            asked.reason,
            external=WorkflowExecution(workflow_id=source.state.workflow_id, run_id=source.state.run_id),
            initiated_id=action.event_id,
        )
        target.commit(tx, nobody)
        return 0


def _is_parent(source: Run, run: Run) -> bool:
    return (
        run.state.parent_workflow_id == source.state.workflow_id
        and run.state.parent_run_id == source.state.run_id
    )
