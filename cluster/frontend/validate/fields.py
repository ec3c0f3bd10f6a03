"""Checks of fields that many requests share: executions, links, callbacks, versions, sizes.

All raise INVALID_ARGUMENT in Temporal's words unless they say otherwise. `present` is whether the message
field was set at all: reading a field that is not yields an empty message.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message
from temporalio.api.common.v1 import Callback, Link, Payload, RetryPolicy, SearchAttributes, WorkflowExecution
from temporalio.api.deployment.v1 import WorkerDeploymentOptions, WorkerDeploymentVersion
from temporalio.api.enums.v1 import TaskQueueKind, WorkerVersioningMode
from temporalio.api.taskqueue.v1 import TaskQueue

from history_store.engine import retry
from history_store.engine.errors import Code, ServiceError, invalid
from history_store.engine.field_rules import (
    byte_length,
    check_deployment_version,
    check_search_attributes_count,
    check_search_attributes_size,
    check_task_queue,
    check_user_task_queue,
    is_uuid,
    too_long,
)
from history_store.engine.limits import Limits

SHOWN_MAX = 100  # characters of a value that an error repeats

_STICKY = int(TaskQueueKind.TASK_QUEUE_KIND_STICKY)
_VERSIONED = int(WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED)


def over(limit: str, found: int, most: int) -> ServiceError:
    """Temporal's sentence about a limit, and behind it what was found and what is allowed."""
    return invalid(f"{limit} exceeds limit. ({found}/{most})")


def bad_run_id(run_id: str) -> ServiceError:
    """Temporal's two words, and what was given."""
    return invalid(f"Invalid RunId. ({run_id[:SHOWN_MAX]!r} is no UUID)")


def check_execution(execution: WorkflowExecution, *, present: bool) -> None:
    """A workflow, and maybe one run of it."""
    if not present:
        raise invalid("Execution is not set on request.")
    if not execution.workflow_id:
        raise invalid("WorkflowId is not set on request.")
    if execution.run_id and not is_uuid(execution.run_id):
        raise bad_run_id(execution.run_id)


def check_workflow_id(workflow_id: str, limits: Limits) -> None:
    """The id of a workflow that is to be started."""
    if not workflow_id:
        raise invalid("WorkflowId is not set on request.")
    if too_long(workflow_id, limits.id_bytes_max):
        raise invalid(
            f"WorkflowId exceeds maximum allowed length ({byte_length(workflow_id)}/{limits.id_bytes_max})"
        )


def check_identity(identity: str, limits: Limits) -> None:
    """Who is calling."""
    if too_long(identity, limits.id_bytes_max):
        raise over("Identity length", byte_length(identity), limits.id_bytes_max)


def check_request_id(request_id: str, limits: Limits) -> None:
    """The id by which a repeated request is known; without one the server makes it."""
    if too_long(request_id, limits.id_bytes_max):
        raise over("RequestId length", byte_length(request_id), limits.id_bytes_max)


def check_namespace_name(name: str, limits: Limits) -> None:
    """The name of a namespace."""
    if too_long(name, limits.id_bytes_max):
        raise over("Namespace length", byte_length(name), limits.id_bytes_max)


def check_task_token(token: bytes) -> None:
    """A task token that must be there. What it says is for whoever made it."""
    if not token:
        raise invalid("Task token not set on request.")


def check_enum(value: int, known: Sequence[int], label: str) -> None:
    """A value of an enum this server knows; a newer client may send others."""
    if value not in known:
        raise invalid(f"unknown {label}: {value}")


def check_long_poll(deadline_s: float | None) -> None:
    """A long poll needs a deadline: without one nobody would know when to stop waiting."""
    if deadline_s is None:
        raise invalid("Context timeout is not set.")


def check_user_queue(queue: TaskQueue, limits: Limits, *, present: bool) -> None:
    """A task queue that new work is sent to."""
    if not present:
        raise invalid("taskQueue is not set")
    check_user_task_queue(queue, limits)


def check_polled_queue(queue: TaskQueue, limits: Limits, *, present: bool, root: bool = True) -> None:
    """A task queue that is polled or asked about."""
    if not present:
        raise invalid("taskQueue is not set")
    check_task_queue(queue, limits, root=root)


def check_blob(blob: Message, bytes_max: int) -> None:
    """Input, details and the like."""
    if blob.ByteSize() > bytes_max:
        raise over("Blob data size", blob.ByteSize(), bytes_max)


def check_memo(memo: Message, limits: Limits) -> None:
    """A memo."""
    if memo.ByteSize() > limits.memo_bytes_max:
        raise over("Memo size", memo.ByteSize(), limits.memo_bytes_max)


def check_search_attributes(attributes: SearchAttributes, limits: Limits) -> None:
    """Number and sizes. Which names exist, and of what type, is for whoever knows the namespace."""
    check_search_attributes_count(attributes, limits)
    check_search_attributes_size(attributes, limits)


def check_retry_policy(policy: RetryPolicy) -> None:
    """A retry policy; its unset fields get their defaults in place."""
    retry.complete(policy)


def check_user_metadata(summary: Payload, details: Payload, limits: Limits) -> None:
    """What a user interface shows about an execution."""
    for label, payload, bytes_max in (
        ("summary", summary, limits.user_metadata_summary_bytes_max),
        ("details", details, limits.user_metadata_details_bytes_max),
    ):
        size = payload.ByteSize()
        if size > bytes_max:
            raise invalid(f"user_metadata.{label} exceeds size limit. Length={size} Limit={bytes_max}")


def refuse_time_skipping() -> ServiceError:
    """A namespace of a running server has no clock that could be moved."""
    return ServiceError(Code.UNIMPLEMENTED, "The Time-Skipping feature is not enabled for namespace.")


# ------------------------------------------------------------------------------------- links and callbacks

# What each kind of link must name: attribute and how Temporal calls it.
_LINK_FIELDS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "workflow_event": (
        "workflow event",
        (("namespace", "namespace field"), ("workflow_id", "workflow ID field"), ("run_id", "run ID field")),
    ),
    "batch_job": ("batch job", (("job_id", "job ID"),)),
    "nexus_operation": (
        "nexus operation",
        (
            ("namespace", "namespace field"),
            ("operation_id", "operation ID field"),
            ("run_id", "run ID field"),
        ),
    ),
    "activity": (
        "activity",
        (("namespace", "namespace field"), ("activity_id", "activity ID field"), ("run_id", "run ID field")),
    ),
    "workflow": (
        "workflow",
        (("namespace", "namespace field"), ("workflow_id", "workflow ID field"), ("run_id", "run ID field")),
    ),
}


def check_links(links: Sequence[Link], limits: Limits) -> None:
    """Links to what caused a request."""
    if len(links) > limits.links_max:
        raise invalid(f"cannot attach more than {limits.links_max} links per request, got {len(links)}")
    for link in links:
        _check_link(link, limits)


def _check_link(link: Link, limits: Limits) -> None:
    size = link.ByteSize()
    if size > limits.link_bytes_max:
        raise invalid(f"link exceeds allowed size of {limits.link_bytes_max}, got {size}")
    kind = link.WhichOneof("variant")
    if kind is None or kind not in _LINK_FIELDS:
        raise invalid("unsupported link variant")
    name, fields = _LINK_FIELDS[kind]
    variant = getattr(link, kind)
    for field, label in fields:
        if not getattr(variant, field):
            raise invalid(f"{name} link must not have an empty {label}")
    if kind == "workflow_event":
        event = link.workflow_event.event_ref
        if event.event_type == 0 and event.event_id != 0:
            raise invalid(
                "workflow event link ref cannot have an unspecified event type and a non-zero event ID"
            )


def check_links_and_callbacks(links: Sequence[Link], callbacks: Sequence[Callback], limits: Limits) -> None:
    """Callbacks, and the links of the request and its callbacks together; one in both counts once."""
    if not callbacks:
        if links:
            check_links(links, limits)
        return
    check_callbacks(callbacks, limits)
    of_callbacks = [link for callback in callbacks for link in callback.links]
    repeated = [link for callback in callbacks if callback.HasField("nexus") for link in callback.links]
    check_links([link for link in links if link not in repeated] + of_callbacks, limits)


def check_callbacks(callbacks: Sequence[Callback], limits: Limits) -> None:
    """Where to report the end of an execution. Which addresses are allowed is for whoever delivers."""
    if len(callbacks) > limits.callbacks_max:
        raise invalid(f"cannot attach more than {limits.callbacks_max} callbacks to an execution")
    for callback in callbacks:
        kind = callback.WhichOneof("variant")
        if kind == "internal":
            continue
        if kind != "nexus":
            raise ServiceError(Code.UNIMPLEMENTED, f"unknown callback variant: {kind or 'none'}")
        if too_long(callback.nexus.url, limits.callback_url_bytes_max):
            raise invalid(
                f"invalid url: url length longer than max length allowed of {limits.callback_url_bytes_max}"
            )
        size = sum(byte_length(key) + byte_length(value) for key, value in callback.nexus.header.items())
        if size > limits.callback_header_bytes_max:
            raise invalid(
                "invalid header: header size longer than max allowed size of "
                f"{limits.callback_header_bytes_max}"
            )


# ------------------------------------------------------------------------------------------- versioning


def check_versioning(
    build_id: str,
    use_versioning: bool,
    options: WorkerDeploymentOptions,
    queue: TaskQueue,
    limits: Limits,
    *,
    has_options: bool,
) -> None:
    """What a worker says about its version when it polls or completes; `use_versioning` is the older way."""
    if (use_versioning or has_options) and queue.kind == _STICKY and not queue.normal_name:
        raise invalid(
            "NormalName must be set on sticky queue when UseVersioning is true or DeploymentOptions are set."
        )
    if build_id:
        if too_long(build_id, limits.build_id_bytes_max):
            raise invalid("Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID.")
    elif use_versioning:
        raise invalid("WorkerVersionStamp must be present if UseVersioning is true.")
    if has_options and options.worker_versioning_mode == _VERSIONED:
        if not options.deployment_name or not options.build_id:
            raise invalid("Deployment name and build id must be set together.")
        version = WorkerDeploymentVersion(deployment_name=options.deployment_name, build_id=options.build_id)
        check_deployment_version(version, limits.id_bytes_max)
