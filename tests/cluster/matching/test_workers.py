"""The registry of worker heartbeats: what is kept, for how long, and how it is found."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import WorkerStatus
from temporalio.api.errordetails.v1 import NotFoundFailure
from temporalio.api.worker.v1 import WorkerHeartbeat
from temporalio.api.workflowservice.v1 import CountWorkersRequest, DescribeWorkerRequest, ListWorkersRequest

from cluster.matching import workers
from cluster.matching.worker_query import compile_query
from cluster.matching.workers import WorkerRegistry
from history_store.engine.errors import Code, ServiceError


class Time:
    now = 1_000_000_000_000

    def now_ns(self) -> int:
        return self.now


def heartbeat(key: str = "k1", queue: str = "q1", status: int = 1) -> WorkerHeartbeat:
    beat = WorkerHeartbeat(
        worker_instance_key=key,
        worker_identity="me@host",
        task_queue=queue,
        sdk_name="temporal-python",
        sdk_version="1.31.0",
        status=status,  # type: ignore[arg-type]
    )
    beat.host_info.host_name = "host-1"
    beat.deployment_version.build_id = "b1"
    beat.deployment_version.deployment_name = "d1"
    beat.start_time.FromJsonString("2026-01-02T03:04:05Z")
    return beat


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def registry(time: Time) -> WorkerRegistry:
    return WorkerRegistry(time)


def keys(registry: WorkerRegistry, query: str = "", namespace_id: str = "n") -> list[str]:
    response = registry.list_workers(namespace_id, ListWorkersRequest(query=query))
    assert [info.worker_heartbeat.worker_instance_key for info in response.workers_info] == [
        worker.worker_instance_key for worker in response.workers
    ]
    return [worker.worker_instance_key for worker in response.workers]


def test_the_last_heartbeat_is_what_is_known(registry: WorkerRegistry) -> None:
    registry.record("n", [heartbeat(queue="old")])
    registry.record("n", [heartbeat(queue="new"), heartbeat("k2")])
    described = registry.describe_worker("n", DescribeWorkerRequest(worker_instance_key="k1"))
    assert described.worker_info.worker_heartbeat == heartbeat(queue="new")
    assert keys(registry) == ["k1", "k2"]
    assert keys(registry, namespace_id="other") == []
    listed = registry.list_workers("n", ListWorkersRequest()).workers[0]
    assert (listed.host_name, listed.task_queue, listed.deployment_version.build_id) == (
        "host-1",
        "new",
        "b1",
    )
    assert listed.start_time == heartbeat().start_time


def test_what_a_worker_did_not_say_is_not_made_up(registry: WorkerRegistry) -> None:
    registry.record("n", [WorkerHeartbeat(worker_instance_key="bare")])
    listed = registry.list_workers("n", ListWorkersRequest()).workers[0]
    assert not listed.HasField("start_time")
    assert not listed.HasField("deployment_version")


def test_an_unknown_worker_is_not_found(registry: WorkerRegistry) -> None:
    with pytest.raises(ServiceError) as caught:
        registry.describe_worker("n", DescribeWorkerRequest(worker_instance_key="nobody"))
    assert caught.value.code == Code.NOT_FOUND
    assert caught.value.message == "Worker nobody not found"
    assert isinstance(caught.value.detail, NotFoundFailure)


def test_workers_leave_by_shutdown_silence_and_deletion(registry: WorkerRegistry, time: Time) -> None:
    registry.record("n", [heartbeat("a"), heartbeat("b"), heartbeat("c")])
    registry.record("n", [heartbeat("a", status=WorkerStatus.WORKER_STATUS_SHUTDOWN)])
    assert keys(registry) == ["b", "c"]
    registry.forget("n", "b")
    registry.forget("n", "b")
    assert keys(registry) == ["c"]
    time.now += workers.ENTRY_TTL_NS
    registry.record("n", [heartbeat("d")])
    assert keys(registry) == ["c", "d"]
    time.now += 1
    assert keys(registry) == ["d"]
    registry.forget_namespace("n")
    assert len(registry) == 0
    assert registry._bytes == 0
    assert not registry._keys


def test_the_oldest_go_when_there_are_too_many(
    registry: WorkerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MAX_ENTRIES", 3)
    registry.record("n", [heartbeat(key) for key in "abcd"])
    registry.record("n", [heartbeat("b"), heartbeat("e")])
    assert keys(registry) == ["b", "d", "e"]
    monkeypatch.setattr(workers, "MAX_BYTES", 2 * (workers.ENTRY_OVERHEAD_BYTES + 200))
    registry.record("n", [heartbeat("f")])
    assert keys(registry) == ["e", "f"]


def test_pages_follow_each_other_without_gap(registry: WorkerRegistry) -> None:
    registry.record("n", [heartbeat(f"k{number}") for number in range(7)])
    found, token, pages = [], b"", 0
    while True:
        page = registry.list_workers("n", ListWorkersRequest(page_size=3, next_page_token=token))
        found += [worker.worker_instance_key for worker in page.workers]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert found == [f"k{number}" for number in range(7)]
    assert pages == 3


@pytest.mark.parametrize("token", [b"x", b"[]", b'{"l": 1}', b"{}", b"\xff", b"[" * 100_000])
def test_a_bad_page_token_is_refused(registry: WorkerRegistry, token: bytes) -> None:
    with pytest.raises(ServiceError, match="invalid next_page_token") as caught:
        registry.list_workers("n", ListWorkersRequest(next_page_token=token))
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_system_workers_show_only_on_request(registry: WorkerRegistry) -> None:
    registry.record("n", [heartbeat("user"), heartbeat("system", queue="temporal-sys-batcher")])
    assert keys(registry) == ["user"]
    assert registry.count_workers("n", CountWorkersRequest()).count == 1
    assert registry.count_workers("n", CountWorkersRequest(include_system_workers=True)).count == 2
    assert registry.count_workers("n", CountWorkersRequest(query="TaskQueue = 'none'")).count == 0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("TaskQueue = 'q1'", True),
        ("TaskQueue != 'q1'", False),
        ("WorkerInstanceKey = 'k1' AND WorkerIdentity = 'me@host'", True),
        ("HostName STARTS_WITH 'host'", True),
        ("HostName NOT STARTS_WITH 'host'", False),
        ("DeploymentName = 'd1' AND BuildId = 'b1'", True),
        ("SdkName IN ('temporal-go', 'temporal-python')", True),
        ("SdkVersion = '1.30.0' OR SdkVersion = '1.31.0'", True),
        ("Status = 'Running'", True),
        ("WorkerStatus = 'ShuttingDown'", False),
        ("SdkName IS NULL", False),
        ("SdkName IS NOT NULL", True),
        ("HeartbeatTime IS NULL", True),
        ("StartTime IS NULL", False),
        ("StartTime = '2026-01-02T03:04:05Z'", True),
        ("StartTime = '2026-01-02T04:04:05+01:00'", True),
        ("StartTime > '2026-01-02T03:04:05Z'", False),
        ("StartTime >= 1767323045000000000", True),
        ("StartTime BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-03T00:00:00Z'", True),
        ("StartTime NOT BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-03T00:00:00Z'", False),
        ("HeartbeatTime BETWEEN 0 AND 1", False),
        ("NOT (TaskQueue = 'q1')", False),
        ("  ", True),
    ],
)
def test_a_query_finds_the_workers_it_names(query: str, expected: bool) -> None:
    assert compile_query(query)(heartbeat()) is expected


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("Colour = 'red'", "Colour"),
        ("taskqueue = 'q1'", "taskqueue"),
        ("TaskQueue > 'q1'", "TaskQueue"),
        ("TaskQueue = 5", "TaskQueue"),
        ("TaskQueue = ''", "TaskQueue"),
        ("TaskQueue BETWEEN 'a' AND 'b'", "TaskQueue"),
        ("StartTime = 'yesterday'", "StartTime"),
        ("StartTime = 1.5", "StartTime"),
        ("StartTime STARTS_WITH '2026'", "StartTime"),
        ("StartTime IN ('2026-01-02T03:04:05Z')", "StartTime"),
        ("TaskQueue = 'q1' ORDER BY TaskQueue", "ORDER BY"),
        ("ORDER BY TaskQueue", "ORDER BY"),
        ("TaskQueue = 'q1' LIMIT 10", "LIMIT"),
        ("TaskQueue =", "position"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(query: str, names: str) -> None:
    with pytest.raises(ServiceError, match=names) as caught:
        compile_query(query)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_a_status_of_a_newer_sdk_is_its_number() -> None:
    assert compile_query("Status = '77'")(heartbeat(status=77))
