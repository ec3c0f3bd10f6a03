"""Inputs of a losing branch, made again by the engine on the run that counts.

Theory of operation. All that wait for a workflow id are one transaction: ends of activities first, since what
follows may close the run, and terminations last. The run is given a row with the name of each (`ITEM_MADE`),
whether it was made or there was no need to, in the same entry as the event; other regions have the row with
the event, and let their own copies of the input go. A closed run is reset to the end of its last workflow
task if there are signals or updates for it; other inputs come too late.

What the rules leave out: an update whose id the run knows, a second request to cancel, the termination of
an earlier run, the end of an activity that is not pending (branches.ends_here), what the engine refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from temporalio.api.history.v1 import message_pb2 as history

from cluster.hosting.groups.group import nobody
from history_store.engine import activity as activities
from history_store.engine import close, keys, options, reset, updates, workflow_task
from history_store.engine import inputs as engine_inputs
from history_store.engine.errors import ServiceError
from replication import branches, inputs
from replication.inputs import Kind

if TYPE_CHECKING:
    from temporalio.api.update.v1.message_pb2 import Request

    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction
    from replication.branches import Held
    from replication.inputs import Input

log = structlog.get_logger("streams")

REOPENS = frozenset((Kind.SIGNAL, Kind.UPDATE))
RESET_REASON = "inputs of another region came after the end"


def make(host: ShardHost, held: Held) -> int:
    """Make what waits again, in one transaction. Returns how many inputs no run could be given.

    Raises a definite error if the transaction is refused.
    """
    wanting = sorted(branches.wanting(held, held.inputs).values(), key=inputs.order)
    base = host.find(held.namespace_id, held.workflow_id)
    tx = host.begin(held.namespace_id)
    left_out = len(wanting)
    try:
        if wanting and base is not None:
            run = _target(host, tx, base, wanting)
            left_out -= sum(_give(tx, run, one) for one in wanting)
        namespace = keys.raw_id(held.namespace_id)
        for one in held.inputs.values():
            pending = inputs.Pending(held.namespace_id, held.workflow_id, one)
            tx.rows.append((inputs.pending_row(held.slot, namespace, pending)[0], None))
    except BaseException:
        host.abort(tx)
        raise
    host.commit(tx, nobody, patient=True)
    return left_out


def _target(host: ShardHost, tx: Transaction, base: Run, wanting: list[Input]) -> Run:
    """The current run, or another in its place if it is closed and can be reset."""
    if base.running or not base.state.last_completed_id or not any(one.kind in REOPENS for one in wanting):
        return tx.open(base)
    namespace_id, workflow_id = base.state.namespace_id, base.state.workflow_id

    def batches(run: Run) -> list[bytes]:
        prefix = keys.HISTORY + run.slot + run.raw
        return [data for _, data in host.rows.scan(prefix, keys.prefix_end(prefix))]

    wanted = reset.Reset(base.state.last_completed_id, RESET_REASON, host.new_id())
    return reset.reset(tx, base, base, wanted, batches, lambda run: host.find(namespace_id, workflow_id, run))


def _give(tx: Transaction, run: Run, one: Input) -> bool:
    """Give a run an input, once. False: it is left out."""
    event = history.HistoryEvent.FromString(one.event)
    given = False
    if run.running:
        try:
            given = _MAKE[one.kind](tx, run, one, event)
        except ServiceError as error:
            log.warning("an input of another region is left out", name=one.name, why=error.message)
    run.dirty[inputs.made_suffix(one.name)] = inputs.made_value(one.name)
    return given


def _signal(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:
    signal = event.workflow_execution_signaled_event_attributes
    engine_inputs.signal(
        tx,
        run,
        signal.signal_name,
        signal.input if signal.HasField("input") else None,
        signal.header if signal.HasField("header") else None,
        signal.identity,
        one.name,
        event.links,
        signal.external_workflow_execution if signal.HasField("external_workflow_execution") else None,
    )
    return True


def _update(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:  # noqa: ARG001
    name = event.WhichOneof("attributes")
    request: Request
    if name == "workflow_execution_update_admitted_event_attributes":
        request = event.workflow_execution_update_admitted_event_attributes.request
    else:
        request = event.workflow_execution_update_accepted_event_attributes.accepted_request
    if request.meta.update_id in run.updates_state:
        return False
    if run.task_started:
        workflow_task.fail_over(tx, run)  # an admission is no event that can wait in the buffer
    updates.admit_again(run, request, event.links)
    workflow_task.ensure(tx, run)
    return True


def _cancel(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:
    if run.state.cancel_requested:
        return False
    asked = event.workflow_execution_cancel_requested_event_attributes
    external = asked.HasField("external_workflow_execution")
    engine_inputs.request_cancel(
        tx,
        run,
        asked.identity,
        one.name,
        asked.cause,
        event.links,
        asked.external_workflow_execution if external else None,
        asked.external_initiated_event_id,
    )
    return True


def _options(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:  # noqa: ARG001
    changed = event.workflow_execution_options_updated_event_attributes
    if changed.attached_request_id and changed.attached_request_id in run.state.request_ids:
        return False
    again = run.outside_event(
        event.event_type,
        workflow_execution_options_updated_event_attributes=changed,
        links=event.links,
        worker_may_ignore=True,
    )
    options.apply(run, again)
    return True


def _activity(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:
    activity = run.activities.get(inputs.activity_of(event))
    if activity is None or run.state.run_id != one.run_id:
        return False
    activities.end_as(tx, run, activity, event)
    return True


def _terminate(tx: Transaction, run: Run, one: Input, event: history.HistoryEvent) -> bool:
    if run.state.run_id != one.run_id and run.state.start_time > event.event_time.ToNanoseconds():
        return False
    ended = event.workflow_execution_terminated_event_attributes
    details = ended.details if ended.HasField("details") else None
    close.terminate(tx, run, ended.reason, details, ended.identity, event.links)
    return True


_MAKE = {
    Kind.SIGNAL: _signal,
    Kind.UPDATE: _update,
    Kind.CANCEL: _cancel,
    Kind.OPTIONS: _options,
    Kind.ACTIVITY: _activity,
    Kind.TERMINATE: _terminate,
}
