"""Updates: validated by the worker before they become history.

An update is *admitted* (known to the leader only), *sent* with a workflow task, then rejected (leaving no
trace) or *accepted* (an event) and later *completed* (an event). Admitted and sent updates live in memory: if
the leader dies the caller's retry, which carries the same update id, admits the update again. What was
accepted is history and is answered from there for ever after. Behaviour: Temporal server, workflow/update.

A waiter is told after the commit that made the stage true, never before (`Update.settle`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from temporalio.api.enums.v1 import event_type_pb2, update_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1 import message_pb2 as history
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.update.v1.message_pb2 import Acceptance, Outcome, Rejection, Request, Response

from history_store.engine import workflow_task
from history_store.engine.errors import Code, ServiceError, failed_precondition
from history_store.engine.state import WFT_SPECULATIVE, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from temporalio.api.common.v1.message_pb2 import Link

    from history_store.engine.run import Run, Transaction

E = event_type_pb2
ADMITTED = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
ACCEPTED = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
COMPLETED = update_pb2.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
REAPPLIED = update_pb2.UPDATE_ADMITTED_EVENT_ORIGIN_REAPPLY
ABORTED_BY_CLOSING = "workflow update was aborted by closing workflow"
FAIL_FAST_ATTEMPT = 3  # Temporal: from this attempt of a failing workflow task on, updates are refused


class BadMessage(Exception):
    """A worker's protocol message that does not fit: the workflow task fails with this text."""


def _failure(message: str, kind: str) -> Failure:
    failure = Failure(message=message, source="Server")
    failure.application_failure_info.type = kind
    failure.application_failure_info.non_retryable = True
    return failure


UNPROCESSED = _failure(
    "Workflow Update is rejected because it wasn't processed by worker. "
    "Probably, Workflow Update is not supported by the worker.",
    "UnprocessedUpdate",
)
CLOSED_BEFORE_COMPLETED = _failure(
    "Workflow Update failed because the Workflow completed before the Update completed.",
    "AcceptedUpdateCompletedWorkflow",
)


class Update:
    """One update that is under way."""

    __slots__ = (
        "accepted_id",
        "base",
        "completed_id",
        "error",
        "id",
        "listeners",
        "outcome",
        "prior",
        "request",
        "sent",
        "stage",
    )

    def __init__(self, update_id: str, request: Request | None, stage: int = ADMITTED) -> None:
        self.id = update_id
        self.request = request
        self.stage = stage
        self.prior = stage  # what is committed
        self.base = stage  # what is proposed
        self.sent = 0  # stamp of the workflow task that carries it; 0: none
        self.accepted_id = 0
        self.completed_id = 0
        self.outcome: Outcome | None = None
        self.error: ServiceError | None = None
        self.listeners: list[Callable[[], None]] = []

    @property
    def over(self) -> bool:
        """Completed, rejected or aborted, and committed."""
        return self.prior == COMPLETED or self.error is not None

    def settle(self, stage: int) -> None:
        """The commit is done that brought it to `stage`: tell who waits."""
        self.prior = stage
        listeners, self.listeners = self.listeners, []
        for listener in listeners:
            listener()

    def roll_back(self) -> None:
        """The transaction is void: what was proposed before it stands."""
        self.stage = self.base
        if self.base != COMPLETED:
            self.outcome = None


class UpdateRegistry:
    """The updates of one run that are not over yet, in the order they were admitted."""

    __slots__ = ("changed", "updates")

    def __init__(self) -> None:
        self.updates: dict[str, Update] = {}
        self.changed: list[Update] = []

    @property
    def in_flight(self) -> int:
        """How many are not over."""
        return len(self.updates)

    def has_unsent(self) -> bool:
        """Whether a worker has yet to see one."""
        return any(
            u.stage == ADMITTED and u.request is not None and not u.sent and u.error is None
            for u in self.updates.values()
        )

    def note(self, update: Update) -> None:
        """This one changed in the present transaction."""
        self.changed.append(update)

    def take_changed(self) -> list[tuple[Update, int]]:
        """What the transaction that is being proposed changed, and to what stage: settled at its commit."""
        changed, self.changed = self.changed, []
        for update in changed:
            update.base = update.stage
        return [(update, update.stage) for update in changed]

    def settle(self, changed: list[tuple[Update, int]]) -> None:
        """Their commit is done: tell the waiters."""
        for update, stage in changed:
            if stage == COMPLETED or update.error is not None:
                self.updates.pop(update.id, None)
        for update, stage in changed:
            update.settle(stage)

    def roll_back(self) -> None:
        """Undo what the present transaction did."""
        changed, self.changed = self.changed, []
        for update in changed:
            update.error = None
            update.roll_back()

    def unsend(self) -> None:
        """The workflow task that carried them ended without an answer: the next one carries them again."""
        for update in self.updates.values():
            if update.stage == ADMITTED:
                update.sent = 0


def registry(run: Run) -> UpdateRegistry:
    """The run's registry; updates that history knows as accepted are in it again after a restart."""
    if run.updates is None:
        run.updates = UpdateRegistry()
        for known in run.updates_state.values():
            if not run.running:
                break  # nothing is under way there any more
            if known.stage == ACCEPTED:
                update = Update(known.update_id, None, ACCEPTED)
                update.accepted_id = known.event_id
                run.updates.updates[known.update_id] = update
            elif known.stage == ADMITTED:
                # Its request is in history, where the worker reads it: it is not sent.
                run.updates.updates[known.update_id] = Update(known.update_id, None)
    return run.updates


def find(run: Run, update_id: str, load: Callable[[UpdateState], Outcome]) -> Update | None:
    """The update by its id: under way, or as history has it (`load` reads its outcome there)."""
    live = registry(run).updates.get(update_id)
    if live is not None:
        return live
    known = run.updates_state.get(update_id)
    if known is None:
        return None
    update = Update(update_id, None, known.stage)
    update.accepted_id = known.accepted_id or known.event_id
    if known.stage == COMPLETED:
        update.outcome = load(known)
    elif not run.running:
        update.stage = update.prior = COMPLETED
        update.outcome = Outcome(failure=CLOSED_BEFORE_COMPLETED)
    return update


def admit(tx: Transaction, run: Run, request: Request) -> Update:
    """Make the update known to the leader and see that a workflow task will carry it."""
    if run.state.task_attempt >= FAIL_FAST_ATTEMPT:
        raise failed_precondition(
            "Unable to perform workflow execution update due to Workflow Task in failed state."
        )
    if run.state.paused:
        raise failed_precondition("Workflow is paused. Cannot update the workflow.")
    live = registry(run)
    limits = tx.env.limits
    pending = sum(1 for u in live.updates.values() if u.stage != COMPLETED)
    if limits.updates_in_flight_max and pending >= limits.updates_in_flight_max:
        raise ServiceError(
            Code.RESOURCE_EXHAUSTED,
            "limit on number of concurrent in-flight updates has been reached "
            f"({limits.updates_in_flight_max})",
        )
    total = len(run.updates_state) + pending
    if limits.updates_total_max and total >= limits.updates_total_max:
        raise failed_precondition(
            "The limit on the total number of distinct updates in this workflow has been reached "
            f"({limits.updates_total_max}). Make sure any duplicate updates share an Update ID so the server "
            "can deduplicate them, and consider rejecting updates that you aren't going to process"
        )
    update = Update(request.meta.update_id, request)
    live.updates[update.id] = update
    if run.state.task is None and not run.state.first_backoff_until:
        workflow_task.schedule(tx, run, WFT_SPECULATIVE)
    return update


def admit_again(run: Run, request: Request, links: Iterable[Link], origin: int = REAPPLIED) -> None:
    """Write UpdateAdmitted: it had been admitted on a branch of the run that did not last."""
    update_id = request.meta.update_id
    again = run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED,
        workflow_execution_update_admitted_event_attributes=history.WorkflowExecutionUpdateAdmittedEventAttributes(
            request=request,
            origin=origin,  # type: ignore[arg-type]
        ),
        links=links,
    )
    run.put_update(UpdateState(update_id, ADMITTED, again.event_id, run.batch_first))
    if run.updates is not None:
        known = run.updates.updates.get(update_id)
        if known is None:
            run.updates.updates[update_id] = Update(update_id, None)
        elif known.stage == ADMITTED:
            known.request = None  # the worker reads it in history


def messages(run: Run) -> list[Message]:
    """What the workflow task that has just been started carries: a request for every update not yet sent."""
    if run.updates is None and not run.updates_state:
        return []
    task = run.state.task
    assert task is not None
    assert task.started_id
    out = []
    for update in registry(run).updates.values():
        if update.stage != ADMITTED or update.error is not None or update.request is None:
            continue
        update.sent = task.stamp
        message = Message(
            id=f"{update.id}/request", protocol_instance_id=update.id, event_id=task.started_id - 1
        )
        message.body.Pack(update.request)
        out.append(message)
    return out


# ---- the worker's answers


def handle(run: Run, message: Message) -> None:
    """One protocol message of a completed workflow task. BadMessage where it does not fit."""
    try:
        _handle(run, message)
    except DecodeError:
        raise BadMessage(f"the body of message {message.id} is not a {message.body.TypeName()}") from None


def _handle(run: Run, message: Message) -> None:
    live = registry(run)
    update = live.updates.get(message.protocol_instance_id)
    body = message.body
    if update is None:
        update = _resurrect(run, message)
    if update is None:
        raise BadMessage(
            f"update {message.protocol_instance_id} wasn't found on the server. "
            "This is most likely a transient error which will be resolved automatically by retries"
        )
    if body.Is(Acceptance.DESCRIPTOR):
        accept(run, update, Acceptance.FromString(body.value))
    elif body.Is(Rejection.DESCRIPTOR):
        _reject(run, update, Rejection.FromString(body.value).failure)
    elif body.Is(Response.DESCRIPTOR):
        _respond(run, update, Response.FromString(body.value))
    else:
        raise BadMessage(f"Message type {body.TypeName()} not supported")


def _resurrect(run: Run, message: Message) -> Update | None:
    """A worker accepts an update that this leader has never seen (it was sent by a leader that died)."""
    body = message.body
    if not body.Is(Acceptance.DESCRIPTOR) and not body.Is(Rejection.DESCRIPTOR):
        return None
    request = (
        Acceptance.FromString(body.value).accepted_request
        if body.Is(Acceptance.DESCRIPTOR)
        else Rejection.FromString(body.value).rejected_request
    )
    if not request.HasField("input"):
        return None
    update = Update(message.protocol_instance_id, request)
    registry(run).updates[update.id] = update
    return update


def accept(run: Run, update: Update, acceptance: Acceptance) -> None:
    """Write UpdateAccepted."""
    if update.stage != ADMITTED:
        raise BadMessage(
            f"invalid state transition attempted for Update {update.id}: received Acceptance message "
            f"while in stage {update_pb2.UpdateWorkflowExecutionLifecycleStage.Name(update.stage)}"  # type: ignore[arg-type]
        )
    request = acceptance.accepted_request if acceptance.HasField("accepted_request") else update.request
    attributes = history.WorkflowExecutionUpdateAcceptedEventAttributes(
        protocol_instance_id=update.id,
        accepted_request_message_id=acceptance.accepted_request_message_id,
        accepted_request_sequencing_event_id=acceptance.accepted_request_sequencing_event_id,
    )
    known = run.updates_state.get(update.id)
    if request is not None and (known is None or known.stage != ADMITTED):
        # What a reset admitted is in history already.
        attributes.accepted_request.CopyFrom(request)
    links = list(request.links) if request is not None else []
    event = run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        workflow_execution_update_accepted_event_attributes=attributes,
        links=links,
    )
    update.stage = ACCEPTED
    update.accepted_id = event.event_id
    run.state.update_count += 1
    run.put_update(
        UpdateState(
            update.id,
            ACCEPTED,
            event.event_id,
            run.batch_first,
            event.event_id,
            acceptance.accepted_request_message_id,
        )
    )
    registry(run).note(update)


def _reject(run: Run, update: Update, failure: Failure) -> None:
    """No event: the caller alone hears of it."""
    if update.stage != ADMITTED:
        raise BadMessage(
            f"invalid state transition attempted for Update {update.id}: received Rejection message"
        )
    update.stage = COMPLETED
    update.error = None  # of a run that closed in the same step
    update.outcome = Outcome(failure=failure)
    if update.id in run.updates_state:
        run.drop_update(update.id)  # a reset had admitted it
    registry(run).note(update)


def _respond(run: Run, update: Update, response: Response) -> None:
    """Write UpdateCompleted."""
    if update.stage != ACCEPTED:
        raise BadMessage(
            f"invalid state transition attempted for Update {update.id}: received Response message while in "
            f"stage {update_pb2.UpdateWorkflowExecutionLifecycleStage.Name(update.stage)}"  # type: ignore[arg-type]
        )
    event = run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED,
        workflow_execution_update_completed_event_attributes=history.WorkflowExecutionUpdateCompletedEventAttributes(
            meta=response.meta, accepted_event_id=update.accepted_id, outcome=response.outcome
        ),
    )
    update.stage = COMPLETED
    update.outcome = response.outcome
    update.completed_id = event.event_id
    run.put_update(UpdateState(update.id, COMPLETED, event.event_id, run.batch_first, update.accepted_id))
    registry(run).note(update)


def reject_unprocessed(run: Run, stamp: int) -> None:
    """A worker that completes a task without a word on an update it was sent does not know updates."""
    if run.updates is None:
        return
    for update in list(run.updates.updates.values()):
        if update.stage == ADMITTED and update.sent == stamp and update.error is None:
            _reject(run, update, UNPROCESSED)


def abort_all(run: Run, continuing: bool) -> None:
    """The run closes: accepted updates fail, others get an error (that says try again if a run follows)."""
    if run.updates is None:
        return
    for update in run.updates.updates.values():
        if update.stage == COMPLETED or update.error is not None:
            continue
        if update.stage == ACCEPTED:
            update.stage = COMPLETED
            update.outcome = Outcome(failure=CLOSED_BEFORE_COMPLETED)
        elif continuing:
            update.error = ServiceError(
                Code.ABORTED, "workflow operation can not be applied because workflow is closing"
            )
        else:
            update.error = ServiceError(Code.NOT_FOUND, ABORTED_BY_CLOSING)
        run.updates.note(update)


def only_rejections(messages_in: list[Message]) -> bool:
    """Whether a completion answers updates with rejections alone."""
    return all(m.body.Is(Rejection.DESCRIPTOR) for m in messages_in)


def outcome_of(event: history.HistoryEvent) -> Outcome:
    """The outcome that an UpdateCompleted event holds."""
    return event.workflow_execution_update_completed_event_attributes.outcome
