"""Rules for single fields, the same in a client's request and in a worker's command.

Each function raises INVALID_ARGUMENT in Temporal's words, or returns. The wording is part of the contract:
SDKs, the CLI and people's scripts look for it. Functions on the hot path test plain attributes and allocate
nothing unless something is wrong.
"""

from __future__ import annotations

import re

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Priority, SearchAttributes
from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.enums.v1 import TaskQueueKind, VersioningBehavior
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import VersioningOverride

from history_store.engine.durations import check_and_cap
from history_store.engine.errors import invalid
from history_store.engine.limits import CommandLimits

FAIRNESS_KEY_BYTES_MAX = 64
# Partitions of a task queue are named so; users may not.
RESERVED_TASK_QUEUE_PREFIX = "/_sys/"
INTERNAL_TASK_QUEUE_PREFIX = "temporal-sys-per-ns-"
INTERNAL_TASK_QUEUE = "temporal-sys-worker-controller-per-ns-tq"
# Temporal keeps a deployment as a workflow whose id is this prefix, the name, a delimiter and the build id,
# and gives name and build id half of what remains of an identifier each.
_DEPLOYMENT_ID_PREFIX_BYTES = 39

_STICKY = int(TaskQueueKind.TASK_QUEUE_KIND_STICKY)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII).fullmatch
# Go's parser takes these as well; clients have come to rely on stranger things.
_UUID_UNUSUAL = re.compile(
    r"(?i:urn:uuid:)[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|\{[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}"
    r"|[0-9a-fA-F]{32}",
    re.ASCII,
).fullmatch


def byte_length(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def too_long(text: str, bytes_max: int) -> bool:
    """Whether a text has more bytes of UTF-8 than allowed."""
    return len(text) > bytes_max or (not text.isascii() and len(text.encode()) > bytes_max)


def is_uuid(text: str) -> bool:
    """Whether a run id can be one."""
    return _UUID(text) is not None or _UUID_UNUSUAL(text) is not None


def check_task_queue_name(name: str, limits: CommandLimits, *, root: bool) -> None:
    """A name of a task queue; `root` refuses the names of partitions."""
    if too_long(name, limits.id_bytes_max):
        raise invalid("taskQueue length exceeds limit")
    if root and name.startswith(RESERVED_TASK_QUEUE_PREFIX):
        raise invalid(f"task queue name cannot start with reserved prefix {RESERVED_TASK_QUEUE_PREFIX}")


def check_task_queue(queue: TaskQueue, limits: CommandLimits, *, root: bool = True) -> None:
    """A task queue that a worker polls or a caller asks about."""
    if not queue.name:
        raise invalid("missing task queue name")
    check_task_queue_name(queue.name, limits, root=root)
    if queue.kind == _STICKY and queue.normal_name:
        check_task_queue_name(queue.normal_name, limits, root=False)


def check_user_task_queue(queue: TaskQueue, limits: CommandLimits, parent: str = "") -> None:
    """A task queue that work is sent to; the server's own are open only to work that runs on one of them."""
    check_task_queue(queue, limits)
    name = queue.name
    if name.startswith("temporal-sys-") and _is_internal(name) and not _is_internal(parent):
        where = f" (in parent component task queue: {parent})" if parent else ""
        raise invalid(f"cannot use internal per-namespace task queue:{name}{where}")


def _is_internal(name: str) -> bool:
    return name.startswith(INTERNAL_TASK_QUEUE_PREFIX) or name == INTERNAL_TASK_QUEUE


def check_duration(value: Duration, complaint: str) -> None:
    """A duration that must not be negative; a too long one is cut in place. The fault follows `complaint`."""
    problem = check_and_cap(value)
    if problem is not None:
        raise invalid(complaint + problem)


def check_priority(priority: Priority) -> None:
    """Priority and fairness of work."""
    if priority.priority_key < 0:
        raise invalid("priority key can't be negative")
    if too_long(priority.fairness_key, FAIRNESS_KEY_BYTES_MAX):
        raise invalid("fairness key length exceeds limit")
    if priority.fairness_weight < 0:
        raise invalid("must be greater than zero")


def check_search_attributes_count(attributes: SearchAttributes, limits: CommandLimits) -> None:
    """How many search attributes there are. Which of them exist is for whoever knows the namespace."""
    count = len(attributes.indexed_fields)
    if count > limits.search_attributes_max:
        raise invalid(f"number of search attributes {count} exceeds limit {limits.search_attributes_max}")


def check_search_attributes_size(attributes: SearchAttributes, limits: CommandLimits) -> None:
    """How large each value is, and all of them."""
    value_max = limits.search_attribute_bytes_max
    for name, payload in attributes.indexed_fields.items():
        if len(payload.data) > value_max:
            raise invalid(
                f"search attribute {name} value size {len(payload.data)} exceeds size limit {value_max}"
            )
    total = attributes.ByteSize()
    total_max = limits.search_attributes_bytes_max
    if total > total_max:
        raise invalid(f"total size of search attributes {total} exceeds size limit {total_max}")


def check_deployment_name(name: str, id_bytes_max: int) -> None:
    """The name of a worker deployment."""
    _check_deployment_field("WorkerDeploymentName", name, id_bytes_max)


def check_deployment_version(version: WorkerDeploymentVersion, id_bytes_max: int) -> None:
    """A worker deployment and the build of it."""
    check_deployment_name(version.deployment_name, id_bytes_max)
    _check_deployment_field("BuildID", version.build_id, id_bytes_max)


def _check_deployment_field(field: str, value: str, id_bytes_max: int) -> None:
    if not value:
        raise invalid(f"{field} cannot be empty")
    if too_long(value, (id_bytes_max - _DEPLOYMENT_ID_PREFIX_BYTES) // 2):
        raise invalid(f"size of {field} larger than the maximum allowed")
    if field == "WorkerDeploymentName":
        for delimiter in (".", ":"):
            if delimiter in value:
                raise invalid(f"worker deployment name cannot contain '{delimiter}'")
    if value.startswith("__"):
        raise invalid(f"{field} cannot start with '__'")


def check_versioning_override(override: VersioningOverride) -> None:
    """An order to run on a certain version. Whether it exists is for whoever knows the task queue."""
    kind = override.WhichOneof("override")
    if kind == "auto_upgrade":
        if not override.auto_upgrade:
            raise invalid("auto-upgrade override must be true")
    elif kind == "pinned":
        if not override.pinned.HasField("version"):
            raise invalid("must provide version if override is pinned.")
        if override.pinned.behavior == 0:
            raise invalid("must specify pinned override behavior if override is pinned.")
    elif kind == "one_time":
        if not override.one_time.HasField("target_deployment_version"):
            raise invalid("must provide target deployment version if override is one-time.")
    else:
        _check_legacy_override(override)


def _check_legacy_override(override: VersioningOverride) -> None:
    """The first form of the override, still sent by older clients."""
    behavior = override.behavior
    has_deployment = override.HasField("deployment")
    if behavior == VersioningBehavior.VERSIONING_BEHAVIOR_PINNED:
        if has_deployment:
            if not override.deployment.series_name:
                raise invalid("deployment name cannot be empty")
            if "." in override.deployment.series_name or ":" in override.deployment.series_name:
                raise invalid("deployment name cannot contain '.' or ':'")
            if not override.deployment.build_id:
                raise invalid("deployment build ID cannot be empty")
        elif not override.pinned_version:
            raise invalid("must provide deployment (deprecated) or pinned version if behavior is 'PINNED'")
        elif "." not in override.pinned_version and ":" not in override.pinned_version:
            raise invalid(
                f'invalid version string "{override.pinned_version}", '
                'expected format is "<deployment_name>.<build_id>"'
            )
    elif behavior == VersioningBehavior.VERSIONING_BEHAVIOR_AUTO_UPGRADE:
        if has_deployment:
            raise invalid("only provide deployment if behavior is 'PINNED'")
        if override.pinned_version:
            raise invalid("only provide pinned version if behavior is 'PINNED'")
    elif behavior == VersioningBehavior.VERSIONING_BEHAVIOR_UNSPECIFIED:
        raise invalid("override behavior is required")
    else:
        raise invalid(f"override behavior {int(behavior)} not recognized")
