"""Options changed from outside while a run is open: attached callbacks, versioning override, priority."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import Priority
from temporalio.api.enums.v1 import event_type_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history
from temporalio.api.workflow.v1.message_pb2 import VersioningOverride, WorkflowExecutionOptions

from history_store.engine.errors import failed_precondition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from temporalio.api.common.v1.message_pb2 import Callback, Link

    from history_store.engine.run import Run, Transaction

OPTIONS_UPDATED = event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED
PINNED = workflow_pb2.VERSIONING_BEHAVIOR_PINNED
PRIORITY_PARTS = ("priority_key", "fairness_key", "fairness_weight")
OVERRIDE_PATHS = frozenset(
    ("versioning_override", "versioning_override.behavior", "versioning_override.deployment")
)


def attach(
    tx: Transaction,
    run: Run,
    identity: str,
    request_id: str,
    callbacks: Sequence[Callback],
    links: Sequence[Link],
) -> None:
    """A start request that found the run open leaves its request id, callbacks and links with it, once."""
    state = run.state
    if request_id in state.request_ids:
        return
    limit = tx.env.limits.callbacks_max
    if len(state.completion_callbacks) + len(callbacks) > limit:
        raise failed_precondition(
            f"cannot attach more than {limit} callbacks to a workflow "
            f"({len(state.completion_callbacks)} callbacks already attached)"
        )
    event = run.outside_event(
        OPTIONS_UPDATED,
        workflow_execution_options_updated_event_attributes=history.WorkflowExecutionOptionsUpdatedEventAttributes(
            attached_request_id=request_id, attached_completion_callbacks=callbacks, identity=identity
        ),
        links=links,
        worker_may_ignore=True,  # SDKs fail on an event they do not know, but for this
    )
    apply(run, event)


def apply(run: Run, event: history.HistoryEvent) -> None:
    """What an options event changes in the state. While it is buffered, its request id refers to event 0."""
    attributes = event.workflow_execution_options_updated_event_attributes
    state = run.state
    if attributes.attached_request_id:
        state.request_ids[attributes.attached_request_id] = (OPTIONS_UPDATED, event.event_id)
    if attributes.attached_completion_callbacks:
        state.completion_callbacks += tuple(
            callback.SerializeToString() for callback in attributes.attached_completion_callbacks
        )
    if attributes.unset_versioning_override:
        state.versioning_override = b""
    elif attributes.HasField("versioning_override"):
        state.versioning_override = attributes.versioning_override.SerializeToString()
    if attributes.HasField("priority"):
        state.priority = attributes.priority.SerializeToString()  # an empty one takes it away


def current(run: Run) -> WorkflowExecutionOptions:
    """The options as they are now."""
    options = WorkflowExecutionOptions()
    if run.state.versioning_override:
        options.versioning_override.ParseFromString(run.state.versioning_override)
    if run.state.priority:
        options.priority.ParseFromString(run.state.priority)
    return options


def merge(
    into: WorkflowExecutionOptions, wanted: WorkflowExecutionOptions, paths: Iterable[str]
) -> WorkflowExecutionOptions:
    """Copy what the mask names (its paths are checked before). An override is replaced as a whole."""
    named = set(paths)
    if named & OVERRIDE_PATHS:
        if wanted.HasField("versioning_override"):
            into.versioning_override.CopyFrom(wanted.versioning_override)
        else:
            into.ClearField("versioning_override")
    if "priority" in named:
        if wanted.HasField("priority"):
            into.priority.CopyFrom(wanted.priority)
        else:
            into.ClearField("priority")
    for part in PRIORITY_PARTS:
        if f"priority.{part}" in named:
            setattr(into.priority, part, getattr(wanted.priority, part))
    return into


def update(
    tx: Transaction, run: Run, wanted: WorkflowExecutionOptions, paths: Iterable[str], identity: str
) -> tuple[WorkflowExecutionOptions, bool]:
    """Change what the mask names. Returns the options as they are then, and whether anything changed."""
    assert run.tx is tx, "the run is opened first"
    override = wanted.versioning_override
    if override.HasField("pinned") and override.pinned.behavior and not override.pinned.HasField("version"):
        wanted = _pinned_to_current(run, wanted)
    before = current(run)
    after = merge(current(run), wanted, paths)
    if after == before:
        return after, False
    attributes = history.WorkflowExecutionOptionsUpdatedEventAttributes(identity=identity)
    if after.HasField("versioning_override"):
        attributes.versioning_override.CopyFrom(after.versioning_override)
    else:
        attributes.unset_versioning_override = True
    if after.HasField("priority"):
        attributes.priority.CopyFrom(after.priority)
    elif before.HasField("priority"):
        attributes.priority.CopyFrom(Priority())
    event = run.outside_event(
        OPTIONS_UPDATED,
        workflow_execution_options_updated_event_attributes=attributes,
        worker_may_ignore=True,
    )
    apply(run, event)
    return after, True


def _pinned_to_current(run: Run, wanted: WorkflowExecutionOptions) -> WorkflowExecutionOptions:
    """An override that pins without saying to what means the version that the run is pinned to already."""
    state = run.state
    now = VersioningOverride.FromString(state.versioning_override)
    filled = WorkflowExecutionOptions()
    filled.CopyFrom(wanted)
    version = filled.versioning_override.pinned.version
    if now.HasField("pinned"):
        version.CopyFrom(now.pinned.version)
    elif state.versioning_behavior == PINNED and state.build_id:
        version.deployment_name = state.worker_deployment_name
        version.build_id = state.build_id
    else:
        behavior = workflow_pb2.VersioningBehavior.Name(state.versioning_behavior)  # type: ignore[arg-type]
        raise failed_precondition(
            "must specify a specific pinned override version because workflow with id "
            f"{state.workflow_id} has behavior {behavior} and is not yet pinned to any version"
        )
    return filled
