"""The workers that told of themselves: the registry behind RecordWorkerHeartbeat, ListWorkers and their kin.

A heartbeat is kept, serialized, until a newer one of its worker comes, until the worker says that it has shut
down, or until it is five minutes old. Nothing is on disk: workers repeat themselves within a minute. Entries
are in the order in which they were last heard of, so that expiry looks only at the front and needs no timer.

We differ from Temporal in one thing: it never evicts what was heard of within the last minute, and so has no
bound; here the oldest goes whenever there are too many entries or too many bytes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from temporalio.api.enums.v1 import WorkerStatus
from temporalio.api.errordetails.v1 import NotFoundFailure
from temporalio.api.worker.v1 import WorkerHeartbeat, WorkerInfo, WorkerListInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkersRequest,
    CountWorkersResponse,
    DescribeWorkerRequest,
    DescribeWorkerResponse,
    ListWorkersRequest,
    ListWorkersResponse,
)

from cluster.matching.contract import Clock
from cluster.matching.worker_query import compile_query
from history_store.engine.errors import Code, ServiceError, invalid

ENTRY_TTL_NS = 300_000_000_000  # Temporal's matching.workerRegistryEntryTTL
MAX_ENTRIES = 1_000_000  # over all namespaces; Temporal's matching.workerRegistryMaxEntries
MAX_BYTES = 64 * 1024 * 1024  # of serialized heartbeats, over all namespaces
# What an entry costs beside its heartbeat (keys, tuple, three slots of dictionaries), so that many small
# heartbeats are bounded as well as few large ones.
ENTRY_OVERHEAD_BYTES = 400
SYSTEM_QUEUE_PREFIX = "temporal-sys-"  # workers of such a queue are the server's own, shown only on request

assert ENTRY_TTL_NS > 0
assert MAX_BYTES > 4 * 1024 * 1024, "one heartbeat of the largest message must fit"

_Key = tuple[str, str]  # (namespace id, worker instance key)
_Entry = tuple[int, bytes, bool]  # (when it was heard of, heartbeat, whether a system worker)


class WorkerRegistry:
    """What workers of all namespaces last said of themselves. Event-loop only."""

    def __init__(self, clock: Clock) -> None:
        self._now_ns = clock.now_ns
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()  # least recently heard of first
        self._keys: dict[str, dict[str, None]] = {}  # namespace id -> its workers' keys
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, namespace_id: str, heartbeats: Iterable[WorkerHeartbeat]) -> None:
        """Take heartbeats in (from RecordWorkerHeartbeat, a poll or ShutdownWorker)."""
        now_ns = self._now_ns()
        for heartbeat in heartbeats:
            key = (namespace_id, heartbeat.worker_instance_key)
            self._drop(key)
            if heartbeat.status == WorkerStatus.WORKER_STATUS_SHUTDOWN:
                continue
            body = heartbeat.SerializeToString()
            is_system = heartbeat.task_queue.startswith(SYSTEM_QUEUE_PREFIX)
            self._entries[key] = (now_ns, body, is_system)
            self._keys.setdefault(namespace_id, {})[key[1]] = None
            self._bytes += len(body) + ENTRY_OVERHEAD_BYTES
        self._evict(now_ns)

    def forget(self, namespace_id: str, worker_instance_key: str) -> None:
        """A worker has shut down."""
        self._drop((namespace_id, worker_instance_key))

    def forget_namespace(self, namespace_id: str) -> None:
        """A namespace is gone."""
        for worker_instance_key in list(self._keys.get(namespace_id, ())):
            self._drop((namespace_id, worker_instance_key))

    def list_workers(self, namespace_id: str, request: ListWorkersRequest) -> ListWorkersResponse:
        """One page of the workers that match, by worker instance key."""
        after = _read_token(request.next_page_token)
        if request.page_size < 0:
            raise invalid("page_size must not be negative")
        response = ListWorkersResponse()
        last_key = ""
        matching = self._matching(namespace_id, request.query, request.include_system_workers, after)
        for number, heartbeat in enumerate(matching):
            if request.page_size and number == request.page_size:
                response.next_page_token = _write_token(last_key)
                break
            last_key = heartbeat.worker_instance_key
            response.workers_info.append(WorkerInfo(worker_heartbeat=heartbeat))
            response.workers.append(_list_info(heartbeat))
        return response

    def count_workers(self, namespace_id: str, request: CountWorkersRequest) -> CountWorkersResponse:
        """How many workers match."""
        matching = self._matching(namespace_id, request.query, request.include_system_workers, None)
        return CountWorkersResponse(count=sum(1 for _ in matching))

    def describe_worker(self, namespace_id: str, request: DescribeWorkerRequest) -> DescribeWorkerResponse:
        """The last heartbeat of one worker."""
        self._evict(self._now_ns())
        key = request.worker_instance_key
        entry = self._entries.get((namespace_id, key))
        if entry is None:
            raise ServiceError(Code.NOT_FOUND, f"Worker {key} not found", NotFoundFailure())
        response = DescribeWorkerResponse()
        response.worker_info.worker_heartbeat.ParseFromString(entry[1])
        return response

    def _matching(
        self, namespace_id: str, query: str, include_system: bool, after: str | None
    ) -> Iterator[WorkerHeartbeat]:
        """The heartbeats that match, by key, from the first key behind `after`."""
        predicate = compile_query(query)
        self._evict(self._now_ns())
        keys = self._keys.get(namespace_id, ())
        for key in sorted(keys if after is None else [key for key in keys if key > after]):
            _, body, is_system = self._entries[namespace_id, key]
            if is_system and not include_system:
                continue
            heartbeat = WorkerHeartbeat.FromString(body)
            if predicate(heartbeat):
                yield heartbeat

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= len(entry[1]) + ENTRY_OVERHEAD_BYTES
        namespace_id, worker_instance_key = key
        keys = self._keys[namespace_id]
        del keys[worker_instance_key]
        if not keys:
            del self._keys[namespace_id]

    def _evict(self, now_ns: int) -> None:
        """Drop what has expired, and the oldest of what is too much."""
        entries = self._entries
        expired_ns = now_ns - ENTRY_TTL_NS
        while entries:
            key = next(iter(entries))
            if entries[key][0] >= expired_ns and len(entries) <= MAX_ENTRIES and self._bytes <= MAX_BYTES:
                return
            self._drop(key)


def _list_info(heartbeat: WorkerHeartbeat) -> WorkerListInfo:
    host = heartbeat.host_info
    info = WorkerListInfo(
        worker_instance_key=heartbeat.worker_instance_key,
        worker_identity=heartbeat.worker_identity,
        task_queue=heartbeat.task_queue,
        sdk_name=heartbeat.sdk_name,
        sdk_version=heartbeat.sdk_version,
        status=heartbeat.status,
        host_name=host.host_name,
        worker_grouping_key=host.worker_grouping_key,
        process_id=host.process_id,
        plugins=heartbeat.plugins,
        drivers=heartbeat.drivers,
    )
    # A field that was not sent must not appear as a present, empty one.
    if heartbeat.HasField("deployment_version"):
        info.deployment_version.CopyFrom(heartbeat.deployment_version)
    if heartbeat.HasField("start_time"):
        info.start_time.CopyFrom(heartbeat.start_time)
    return info


def _write_token(last_key: str) -> bytes:
    return json.dumps({"l": last_key}).encode()


def _read_token(token: bytes) -> str | None:
    if not token:
        return None
    try:
        after = json.loads(token)["l"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise invalid("invalid next_page_token") from None
    if not isinstance(after, str):
        raise invalid("invalid next_page_token")
    return after
