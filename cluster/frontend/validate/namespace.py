"""Checks of requests about namespaces, search attributes and Nexus endpoints."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import ArchivalState, IndexedValueType
from temporalio.api.nexus.v1 import EndpointSpec
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    CreateNexusEndpointRequest,
    DeleteNamespaceRequest,
    DeleteNexusEndpointRequest,
    GetNexusEndpointRequest,
    ListNexusEndpointsRequest,
    ListSearchAttributesRequest,
    RemoveSearchAttributesRequest,
    UpdateNexusEndpointRequest,
)
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DescribeNamespaceRequest,
    ListNamespacesRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)

from cluster.frontend.validate import fields
from history_store.engine.durations import check_and_cap, to_ns
from history_store.engine.errors import ServiceError, invalid
from history_store.engine.field_rules import check_task_queue_name, is_uuid, too_long
from history_store.engine.limits import Limits

ENDPOINT_NAME = r"^[a-zA-Z][a-zA-Z0-9\-]*[a-zA-Z0-9]$"
_is_endpoint_name = re.compile(r"[a-zA-Z][a-zA-Z0-9\-]*[a-zA-Z0-9]", re.ASCII).fullmatch
_ENABLED = int(ArchivalState.ARCHIVAL_STATE_ENABLED)

# Names the server itself writes or once wrote, and every name that begins with "Temporal".
RESERVED_SEARCH_ATTRIBUTES = frozenset(
    {
        "WorkflowId", "RunId", "WorkflowType", "StartTime", "ExecutionTime", "CloseTime", "ExecutionStatus",
        "TaskQueue", "HistoryLength", "ExecutionDuration", "StateTransitionCount", "HistorySizeBytes",
        "ParentWorkflowId", "ParentRunId", "RootWorkflowId", "RootRunId", "BinaryChecksums", "BuildIds",
        "BatcherNamespace", "BatcherUser", "NamespaceId", "MemoEncoding", "Memo", "VisibilityTaskKey",
    }
)  # fmt: skip
_RESERVED_PREFIX = "Temporal"
_VALUE_TYPES = {
    int(value): IndexedValueType.Name(value).removeprefix("INDEXED_VALUE_TYPE_")
    for value in IndexedValueType.values()
}


# ------------------------------------------------------------------------------------------- namespaces


def check_register(request: RegisterNamespaceRequest, limits: Limits) -> None:
    """RegisterNamespace. Regions and the active one are for whoever knows them."""
    if not request.namespace:
        raise invalid("Namespace not set on request.")
    fields.check_namespace_name(request.namespace, limits)
    _check_retention(request.workflow_execution_retention_period, limits)
    _check_archival(request.history_archival_state, request.history_archival_uri)
    _check_archival(request.visibility_archival_state, request.visibility_archival_uri)


def check_update_namespace(request: UpdateNamespaceRequest, limits: Limits) -> None:
    """UpdateNamespace."""
    if not request.namespace:
        raise invalid("Namespace not set on request.")
    fields.check_namespace_name(request.namespace, limits)
    if request.HasField("config"):
        config = request.config
        if config.HasField("workflow_execution_retention_ttl"):
            _check_retention(config.workflow_execution_retention_ttl, limits)


def check_describe_namespace(request: DescribeNamespaceRequest, limits: Limits) -> None:
    """DescribeNamespace: by name or by id."""
    if request.namespace and request.id:
        raise invalid("GetNamespace operation failed. Both ID and Name specified in request.")
    if not request.namespace and not request.id:
        raise invalid("Namespace not set on request.")
    fields.check_namespace_name(request.namespace, limits)


def check_deprecate_namespace(request: DeprecateNamespaceRequest, limits: Limits) -> None:
    """DeprecateNamespace."""
    if not request.namespace:
        raise invalid("Namespace not set on request.")
    fields.check_namespace_name(request.namespace, limits)


def check_list_namespaces(request: ListNamespacesRequest, _limits: Limits) -> None:
    """ListNamespaces."""
    if request.page_size < 0:
        raise invalid("Invalid PageSize.")


def check_delete_namespace(request: DeleteNamespaceRequest, limits: Limits) -> None:
    """DeleteNamespace (the operator's): by name or by id."""
    if request.namespace and request.namespace_id:
        raise invalid("Only one of namespace name or Id should be set on request.")
    if not request.namespace and not request.namespace_id:
        raise invalid("Namespace not set on request.")
    fields.check_namespace_name(request.namespace, limits)
    problem = check_and_cap(request.namespace_delete_delay)
    if problem is not None:
        raise invalid(f"invalid NamespaceDeleteDelay: {problem}")


def _check_retention(retention: Duration, limits: Limits) -> None:
    if check_and_cap(retention) is not None or to_ns(retention) < limits.retention_ns_min:
        raise invalid("A valid retention period is not set on request.")


def _check_archival(state: int, uri: str) -> None:
    if state == _ENABLED and not uri:
        raise invalid("Invalid to enable archival without specifying a uri.")


# ------------------------------------------------------------------------------------ search attributes


def is_reserved(name: str) -> bool:
    """Whether users may not define a search attribute of this name."""
    return name in RESERVED_SEARCH_ATTRIBUTES or name.startswith(_RESERVED_PREFIX)


def check_add_attributes(request: AddSearchAttributesRequest, _limits: Limits) -> None:
    """AddSearchAttributes. One that exists already is no error."""
    if not request.search_attributes:
        raise invalid("SearchAttributes are not set on request.")
    for name, value_type in request.search_attributes.items():
        if not name:
            raise invalid("Search attribute name is not set on request.")
        if is_reserved(name):
            raise invalid(f"Search attribute {name} is reserved by system.")
        if value_type not in _VALUE_TYPES:
            raise invalid(f"Unknown search attribute type: {value_type}.")
        if value_type == 0:
            raise invalid(
                "Unable to create search attributes: "
                "cannot have more than 0 search attribute of type Unspecified."
            )
    _check_attributes_namespace(request.namespace)


def check_remove_attributes(request: RemoveSearchAttributesRequest, _limits: Limits) -> None:
    """RemoveSearchAttributes."""
    if not request.search_attributes:
        raise invalid("SearchAttributes are not set on request.")
    _check_attributes_namespace(request.namespace)
    for name in request.search_attributes:
        if is_reserved(name):
            raise invalid(f"Unable to remove non-custom search attributes: {name}.")


def check_list_attributes(request: ListSearchAttributesRequest, _limits: Limits) -> None:
    """ListSearchAttributes."""
    _check_attributes_namespace(request.namespace)


def _check_attributes_namespace(namespace: str) -> None:
    if not namespace:
        raise invalid("Namespace is not set on request.")


# -------------------------------------------------------------------------------------- nexus endpoints


def check_create_endpoint(request: CreateNexusEndpointRequest, limits: Limits) -> None:
    """CreateNexusEndpoint. That the target's namespace exists is for whoever knows."""
    _refuse(_endpoint_issues(request.spec, limits))


def check_update_endpoint(request: UpdateNexusEndpointRequest, limits: Limits) -> None:
    """UpdateNexusEndpoint."""
    _refuse(_endpoint_issues(request.spec, limits))
    _refuse(_version_issues(request.id, request.version))


def check_delete_endpoint(request: DeleteNexusEndpointRequest, _limits: Limits) -> None:
    """DeleteNexusEndpoint."""
    _refuse(_version_issues(request.id, request.version))


def check_get_endpoint(request: GetNexusEndpointRequest, _limits: Limits) -> None:
    """GetNexusEndpoint."""
    _refuse(_id_issues(request.id))


def check_list_endpoints(request: ListNexusEndpointsRequest, limits: Limits) -> None:
    """ListNexusEndpoints."""
    if request.page_size < 0:
        raise invalid("page_size is negative")
    if request.page_size > limits.nexus_endpoints_page_max:
        raise invalid(f"page_size exceeds limit of {limits.nexus_endpoints_page_max}")


def _refuse(issues: list[str]) -> None:
    if issues:
        raise invalid(", ".join(issues))


def _id_issues(endpoint_id: str) -> list[str]:
    if not endpoint_id:
        return ["endpoint ID not set"]
    if not is_uuid(endpoint_id):
        return [f'malformed endpoint ID: "invalid UUID length: {len(endpoint_id)}"']
    return []


def _version_issues(endpoint_id: str, version: int) -> list[str]:
    issues = _id_issues(endpoint_id)
    if version <= 0:
        issues.append("endpoint version is non-positive")
    return issues


def _endpoint_issues(spec: EndpointSpec, limits: Limits) -> list[str]:
    """All that is wrong with an endpoint, for one message."""
    issues: list[str] = []
    if not spec.name:
        issues.append("endpoint name not set")
    else:
        if too_long(spec.name, limits.nexus_endpoint_name_bytes_max):
            issues.append(f"endpoint name exceeds length limit of {limits.nexus_endpoint_name_bytes_max}")
        if _is_endpoint_name(spec.name) is None:
            shown = ENDPOINT_NAME.replace("\\", "\\\\")
            issues.append(f'endpoint name must match the regex: "{shown}"')
    kind = spec.target.WhichOneof("variant")
    if kind is None:
        return [*issues, "empty target variant"]
    if kind == "worker":
        issues += _worker_target_issues(spec, limits)
    else:
        issues += _external_target_issues(spec.target.external.url, limits)
    if (
        spec.HasField("description")
        and spec.description.ByteSize() > limits.nexus_endpoint_description_bytes_max
    ):
        issues.append(f"description size exceeds limit of {limits.nexus_endpoint_description_bytes_max}")
    return issues


def _worker_target_issues(spec: EndpointSpec, limits: Limits) -> list[str]:
    issues = []
    target = spec.target.worker
    if not target.namespace:
        issues.append("target namespace not set")
    try:
        if not target.task_queue:
            raise invalid("taskQueue is not set")
        check_task_queue_name(target.task_queue, limits, root=True)
    except ServiceError as error:
        issues.append(f'invalid target task queue: "{error.message}"')
    return issues


def _external_target_issues(url: str, limits: Limits) -> list[str]:
    if not url:
        return ["empty target URL"]
    if too_long(url, limits.nexus_endpoint_url_bytes_max):
        return [f"target URL length exceeds limit of {limits.nexus_endpoint_url_bytes_max}"]
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        return [f"invalid target URL: {error}"]
    if scheme not in ("http", "https"):
        return [f'invalid target URL scheme: "{scheme}", expected http or https']
    return []
