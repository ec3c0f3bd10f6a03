"""Search attributes: which exist, what type they have, what a payload of one means, and what a writer may
set.

Three families, as in Temporal: *system* ones are fields of every execution, *predefined* ones travel in the
SearchAttributes map but are named by the server, *custom* ones are registered per namespace. `validate` is
for whoever accepts a map from a client; `decode` is for whoever reads one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from temporalio.api.common.v1 import Payload, SearchAttributes

from history_store.engine.errors import ServiceError, invalid
from history_store.visibility.literals import INT64_MAX, INT64_MIN, parse_datetime

# temporal.api.enums.v1.IndexedValueType, by number
TEXT = 1
KEYWORD = 2
INT = 3
DOUBLE = 4
BOOL = 5
DATETIME = 6
KEYWORD_LIST = 7

TYPE_NAMES: Mapping[int, str] = {
    TEXT: "Text",
    KEYWORD: "Keyword",
    INT: "Int",
    DOUBLE: "Double",
    BOOL: "Bool",
    DATETIME: "Datetime",
    KEYWORD_LIST: "KeywordList",
}
TYPES_BY_NAME: Mapping[str, int] = {
    **{name: number for number, name in TYPE_NAMES.items()},
    **{
        f"INDEXED_VALUE_TYPE_{spelling}": number
        for spelling, number in (
            ("TEXT", TEXT),
            ("KEYWORD", KEYWORD),
            ("INT", INT),
            ("DOUBLE", DOUBLE),
            ("BOOL", BOOL),
            ("DATETIME", DATETIME),
            ("KEYWORD_LIST", KEYWORD_LIST),
        )
    },
}

SYSTEM: Mapping[str, int] = {
    "WorkflowId": KEYWORD,
    "RunId": KEYWORD,
    "WorkflowType": KEYWORD,
    "StartTime": DATETIME,
    "ExecutionTime": DATETIME,
    "CloseTime": DATETIME,
    "ExecutionStatus": KEYWORD,
    "TaskQueue": KEYWORD,
    "HistoryLength": INT,
    "ExecutionDuration": INT,
    "StateTransitionCount": INT,
    "HistorySizeBytes": INT,
    "ParentWorkflowId": KEYWORD,
    "ParentRunId": KEYWORD,
    "RootWorkflowId": KEYWORD,
    "RootRunId": KEYWORD,
}

NAMESPACE_DIVISION = "TemporalNamespaceDivision"

PREDEFINED: Mapping[str, int] = {
    "TemporalChangeVersion": KEYWORD_LIST,
    "BinaryChecksums": KEYWORD_LIST,
    "BuildIds": KEYWORD_LIST,
    "BatcherNamespace": KEYWORD,
    "BatcherUser": KEYWORD,
    "TemporalScheduledStartTime": DATETIME,
    "TemporalScheduledById": KEYWORD,
    "TemporalSchedulePaused": BOOL,
    NAMESPACE_DIVISION: KEYWORD,
    "TemporalPauseInfo": KEYWORD_LIST,
    "TemporalReportedProblems": KEYWORD_LIST,
    "TemporalWorkerDeploymentVersion": KEYWORD,
    "TemporalWorkflowVersioningBehavior": KEYWORD,
    "TemporalWorkerDeployment": KEYWORD,
    "TemporalUsedWorkerDeploymentVersions": KEYWORD_LIST,
    "TemporalExternalPayloadCount": INT,
    "TemporalExternalPayloadSizeBytes": INT,
}

# Predefined, but only the server itself may set them.
SERVER_ONLY = frozenset(
    {
        "TemporalWorkerDeploymentVersion",
        "TemporalWorkflowVersioningBehavior",
        "TemporalWorkerDeployment",
        "TemporalUsedWorkerDeploymentVersions",
        "TemporalExternalPayloadCount",
        "TemporalExternalPayloadSizeBytes",
    }
)

_OTHER_RESERVED = frozenset({"NamespaceId", "MemoEncoding", "Memo", "VisibilityTaskKey"})

MAX_COUNT = 100
MAX_VALUE_BYTES = 2 * 1024
MAX_TOTAL_BYTES = 40 * 1024

Value = str | int | float | bool | list[str]


class DecodeError(ValueError):
    """A payload that is not a value of its attribute's type."""


def is_reserved(name: str) -> bool:
    """Whether no custom attribute may have this name."""
    return name in SYSTEM or name in PREDEFINED or name in _OTHER_RESERVED or name.startswith("Temporal")


def metadata_type(payload: Payload) -> int:
    """The type a payload says it has; 0 if it says none that exists."""
    return TYPES_BY_NAME.get(payload.metadata.get("type", b"").decode("utf-8", "replace"), 0)


def decode(payload: Payload, value_type: int) -> Value | None:
    """The value as Python sees it; dates are nanoseconds since the epoch. None means "take the attribute
    away".

    A list of one stands for its element where the type is no list, as old SDKs send it. DecodeError
    otherwise.
    """
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null":
        return None
    if encoding not in (b"json/plain", b""):
        raise DecodeError(f"encoding {encoding.decode('utf-8', 'replace')!r}")
    try:
        value = msgspec.json.decode(payload.data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DecodeError(str(error)) from None
    if value is None or value == []:
        return None
    if value_type == KEYWORD_LIST:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise DecodeError("not a list of strings")
    if isinstance(value, list):
        if len(value) != 1:
            raise DecodeError("a list of values is not allowed for this type")
        value = value[0]
    return _scalar(value, value_type)


def _scalar(value: object, value_type: int) -> Value | None:
    match value_type, value:
        case _, None:
            return None
        case ((2 | 1), str()):
            return value
        case 5, bool():
            return value
        case 3, int() if not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX:
            return value
        case 4, (int() | float()) if not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise DecodeError("number out of range") from None
        case 6, str():
            try:
                return parse_datetime(value)
            except ValueError:
                raise DecodeError("not an RFC 3339 date") from None
        case _:
            raise DecodeError(f"not a value of type {TYPE_NAMES.get(value_type, value_type)}")


def shown(payload: Payload) -> str:
    """The value for an error message: decoded if it can be, cut if it is long."""
    try:
        text = str(msgspec.json.decode(payload.data))
    except (msgspec.DecodeError, ValueError, RecursionError):
        text = f"value from <{len(payload.data)} bytes>"
    return text if len(text) <= 200 else text[:200] + "…"


def validate(
    search_attributes: SearchAttributes, registered: Mapping[str, int], namespace: str = "default"
) -> None:
    """Refuse what a client may not write, in Temporal's words; note each attribute's type in its payload's
    metadata.

    `registered`: the namespace's custom attributes. A type the client noted already is replaced if it
    differs: the registered one is what readers go by.
    """
    fields = search_attributes.indexed_fields
    if not fields:
        return
    if len(fields) > MAX_COUNT:
        raise invalid(f"number of search attributes {len(fields)} exceeds limit {MAX_COUNT}")
    for name in sorted(fields):
        payload = fields[name]
        value_type = _writable_type(name, registered, namespace)
        try:
            decode(payload, value_type)
        except DecodeError:
            described = f"{name} of type {TYPE_NAMES[value_type]}"
            raise invalid(f"invalid value for search attribute {described}: {shown(payload)}") from None
        if len(payload.data) > MAX_VALUE_BYTES:
            raise invalid(
                f"search attribute {name} value size {len(payload.data)} exceeds size limit {MAX_VALUE_BYTES}"
            )
        if metadata_type(payload) != value_type:
            payload.metadata["type"] = TYPE_NAMES[value_type].encode()
    if (size := search_attributes.ByteSize()) > MAX_TOTAL_BYTES:
        raise invalid(f"total size of search attributes {size} exceeds size limit {MAX_TOTAL_BYTES}")


def _writable_type(name: str, registered: Mapping[str, int], namespace: str) -> int:
    if (value_type := registered.get(name)) is not None:
        return value_type
    if name in SYSTEM or name in SERVER_ONLY:
        raise invalid(f"{name} attribute can't be set in SearchAttributes")
    if (value_type := PREDEFINED.get(name)) is not None:
        return value_type
    raise _unmapped(name, namespace)


def _unmapped(name: str, namespace: str) -> ServiceError:
    return invalid(f"Namespace {namespace} has no mapping defined for search attribute {name}")
