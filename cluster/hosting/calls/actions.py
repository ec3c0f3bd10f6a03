"""Actions: what one run asks of another, done after its commit, at least once, to the same end.

This is the half of the run that asks; the half of the run that is changed is a deed (deeds.py), done by
whoever leads that run's shard. The target deduplicates by the request id that the asking run drew, so an
action that is done twice (a node died between, an answer was lost) finds what it did the first time. An
action's row goes in the transaction that records its outcome. Until then it is tried for as long as its shard
is led here; the next leader takes up what is left (`ShardHost.recover`).

Nothing that was read is kept while an answer is waited for: only the shard, the row's key and the action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from temporalio.api.enums.v1 import workflow_pb2

from cluster.hosting.calls import deeds
from cluster.hosting.calls.deeds import CANCEL_NOT_FOUND, SIGNAL_NOT_FOUND, Again, Deeds, Done, Pause, Refused
from cluster.hosting.groups.group import nobody
from history_store.engine import children
from history_store.engine.errors import ServiceError
from history_store.engine.run import Transaction

if TYPE_CHECKING:
    from cluster.hosting.calls.deeds import Deed, Outcome
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run
    from history_store.engine.state import Action, ChildState, ExternalState

log = structlog.get_logger("actions")

RETRY_S = 1.0
RETRY_BROKEN_S = 60.0  # an action that cannot be done must neither stop others nor be forgotten
ABANDON = workflow_pb2.PARENT_CLOSE_POLICY_ABANDON

Record = Callable[["Transaction", "Done | Refused"], None]


class Actions:
    """Does actions of this node's shards."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.deeds = Deeds(node)

    def do(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """Do it now; if that cannot be (a full disk, a shard without a leader), again later.

        What a namespace asks that another region serves, that region asks: the row stays, until it is deleted
        there, or the namespace comes here (`ShardHost.activated`).
        """
        if shard.retired or not shard.serves(action.namespace_id):
            return
        if shard.group.raft.is_alone or shard.group.readable:
            self._begin(shard, key, action)
            return

        def confirmed(error: ServiceError | None) -> None:
            if error is None:
                self._begin(shard, key, action)
            else:
                self._later(shard, key, action, RETRY_S)

        # Another node may lead, and have done it, and more: what we ask now would come from the past.
        shard.group.when_readable(confirmed)

    def _begin(self, shard: ShardHost, key: bytes, action: Action) -> None:
        self._try(shard, key, action, lambda: getattr(self, f"_{action.kind}")(shard, key, action))

    def _try(self, shard: ShardHost, key: bytes, action: Action, what: Callable[[], None]) -> None:
        if shard.retired:
            return
        try:
            what()
        except ServiceError as error:
            log.warning("an action waits", action=action.kind, error=error.message)
            self._later(shard, key, action, RETRY_S)
        except Exception:  # many wait their turn behind this one, and a node that starts has to go on
            log.exception("an action failed; trying again later", action=action.kind, run=action.run_id)
            self._later(shard, key, action, RETRY_BROKEN_S)

    def _later(self, shard: ShardHost, key: bytes, action: Action, pause_s: float) -> None:
        if not shard.retired:
            self.node.loop.call_later(pause_s, self.do, shard, key, action)

    def _ask(
        self, shard: ShardHost, key: bytes, action: Action, deed: Deed, record: Record | None = None
    ) -> None:
        """Have the target's half done; then record what came of it, and forget the action."""

        def then(outcome: Outcome) -> None:
            if isinstance(outcome, Again):
                self._put_off(shard, key, action, outcome)
                return
            change = None if record is None else lambda tx: record(tx, outcome)
            self._try(shard, key, action, lambda: self._finish(shard, key, action, change))

        self.deeds.ask(shard, deed, then)

    def _put_off(self, shard: ShardHost, key: bytes, action: Action, outcome: Again) -> None:
        if shard.retired:
            return
        if outcome.pause == Pause.NONE:
            self.node.loop.call_soon(self.do, shard, key, action)
            return
        broken = outcome.pause == Pause.LONG
        # While a shard has no leader, all actions on its runs come by here every second.
        tell = log.error if broken else log.debug
        tell("an action waits", action=action.kind, run=action.run_id, error=outcome.why)
        self._later(shard, key, action, RETRY_BROKEN_S if broken else RETRY_S)

    def _finish(
        self,
        shard: ShardHost,
        key: bytes,
        action: Action,
        change: Callable[[Transaction], None] | None = None,
    ) -> None:
        """Record the outcome and take the action's row away, in one transaction."""
        tx = shard.begin(action.namespace_id)
        try:
            if change is not None:
                change(tx)
        except BaseException:
            shard.abort(tx)
            raise
        tx.action_done(key, action)
        shard.commit(tx, nobody)

    def _target(self, key: bytes, action: Action) -> tuple[str, str, str, int, bool]:
        """The first five fields of every deed."""
        born = int.from_bytes(key[1:9], "big")  # the row's key is a time, made unique
        known = action.target_namespace_id in self.node.meta.by_id
        return action.target_namespace_id, action.target_workflow_id, action.request_id, born, known

    # ---- children

    def _start_child(self, shard: ShardHost, key: bytes, action: Action) -> None:
        parent = shard.find(action.namespace_id, action.workflow_id, action.run_id)
        if parent is None or (not parent.running and action.policy != ABANDON):
            self._finish(shard, key, action)
            return
        if parent.running and action.event_id not in parent.children:
            self._finish(shard, key, action)  # an earlier try started it, and it has told of its end
            return
        initiated = shard.load_event(parent, action.batch_id, action.event_id)
        wanted = initiated.start_child_workflow_execution_initiated_event_attributes
        run_id = self.node.new_id()
        at = Transaction(shard, shard.clock.now_ns())  # the time and the environment; nothing is changed
        deed = deeds.StartChild(
            *self._target(key, action),
            run_id,
            wanted.workflow_id_reuse_policy,
            children.child_attributes(at, parent, initiated, run_id),
            initiated.user_metadata if initiated.HasField("user_metadata") else None,
        )

        def record(tx: Transaction, outcome: Done | Refused) -> None:
            parent, child = _child_of(shard, action)
            if parent is None or child is None:
                return
            if isinstance(outcome, Done):
                children.child_started(tx, tx.open(parent), child, outcome.run_id)
            else:
                children.child_start_failed(tx, tx.open(parent), child, outcome.cause)

        self._ask(shard, key, action, deed, record)

    def _child_closed(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """Tell the parent how its child ended."""
        deed = deeds.ChildClosed(
            *self._target(key, action),
            action.target_run_id,
            action.event_id,
            action.policy,
            action.payload,
            action.run_id,
        )
        self._ask(shard, key, action, deed)

    def _close_child(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """The parent closed: its policy says what becomes of the child."""
        deed = deeds.CloseChild(
            *self._target(key, action),
            action.target_run_id,
            action.policy,
            action.workflow_id,
            action.run_id,
            action.event_id,
        )
        self._ask(shard, key, action, deed)

    # ---- signals and cancel requests

    def _signal(self, shard: ShardHost, key: bytes, action: Action) -> None:
        source = self._asking(shard, key, action, SIGNAL_NOT_FOUND)
        if source is None:
            return
        initiated = shard.load_event(source, action.batch_id, action.event_id)
        asked = initiated.signal_external_workflow_execution_initiated_event_attributes
        deed = deeds.Signal(
            *self._target(key, action),
            action.target_run_id,
            action.workflow_id,
            action.run_id,
            asked.child_workflow_only,
            asked.signal_name,
            asked.input if asked.HasField("input") else None,
            asked.header if asked.HasField("header") else None,
        )
        self._ask_external(shard, key, action, deed)

    def _cancel(self, shard: ShardHost, key: bytes, action: Action) -> None:
        source = self._asking(shard, key, action, CANCEL_NOT_FOUND)
        if source is None:
            return
        initiated = shard.load_event(source, action.batch_id, action.event_id)
        asked = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
        deed = deeds.Cancel(
            *self._target(key, action),
            action.target_run_id,
            action.workflow_id,
            action.run_id,
            asked.child_workflow_only,
            asked.reason,
            action.event_id,
        )
        self._ask_external(shard, key, action, deed)

    def _asking(self, shard: ShardHost, key: bytes, action: Action, not_found: int) -> Run | None:
        """The run that asks another; None: it is gone, or means itself, and this is seen to."""
        source = shard.find(action.namespace_id, action.workflow_id, action.run_id)
        if source is None:
            self._finish(shard, key, action)
        elif _means_itself(action):
            self._external_done(shard, key, action, not_found)
        else:
            return source
        return None

    def _ask_external(self, shard: ShardHost, key: bytes, action: Action, deed: Deed) -> None:
        def record(tx: Transaction, outcome: Done | Refused) -> None:
            cause = outcome.cause if isinstance(outcome, Refused) else 0
            _record_external(shard, tx, action, cause)

        self._ask(shard, key, action, deed, record)

    def _external_done(self, shard: ShardHost, key: bytes, action: Action, cause: int) -> None:
        def record(tx: Transaction) -> None:
            _record_external(shard, tx, action, cause)

        def committed(lost: ServiceError | None) -> None:
            if lost is None:
                self._try(shard, key, action, lambda: self._finish(shard, key, action, record))

        # Its turn comes after what was asked of other runs before.
        shard.group.when_committed(committed, patient=True)


def _source(shard: ShardHost, action: Action) -> Run | None:
    """The run that asked, if it still wants to know."""
    run = shard.find(action.namespace_id, action.workflow_id, action.run_id)
    return run if run is not None and run.running else None


def _child_of(shard: ShardHost, action: Action) -> tuple[Run | None, ChildState | None]:
    parent = _source(shard, action)
    return parent, parent.children.get(action.event_id) if parent is not None else None


def _record_external(shard: ShardHost, tx: Transaction, action: Action, cause: int) -> None:
    asking = _source(shard, action)
    pending: ExternalState | None = asking.external.get(action.event_id) if asking is not None else None
    if asking is not None and pending is not None:
        children.external_done(tx, tx.open(asking), pending, cause)


def _means_itself(action: Action) -> bool:
    """Temporal finds nothing when a workflow means itself."""
    return (action.namespace_id, action.workflow_id) == (
        action.target_namespace_id,
        action.target_workflow_id,
    )
