"""The probe against a real gRPC server, and against everything that is none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.local.probe import serving

SERVICE = "temporal.api.workflowservice.v1.WorkflowService"
Status = health_pb2.HealthCheckResponse


@contextmanager
def grpc_server(statuses: dict[str, Any] | None) -> Iterator[int]:
    """A server of grpcio; without statuses, one that has no health service."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool)
        if statuses is not None:
            servicer = health.HealthServicer()
            for name, status in statuses.items():
                servicer.set(name, status)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("statuses", "answer"),
    [
        ({SERVICE: Status.SERVING}, True),
        ({SERVICE: Status.NOT_SERVING}, False),
        ({"": Status.SERVING}, False),
        (None, False),
    ],
)
def test_a_grpc_server(statuses: dict[str, Any] | None, answer: bool) -> None:
    with grpc_server(statuses) as port:
        assert serving("127.0.0.1", port, timeout_s=60.0) is answer


@contextmanager
def socket_server(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                handle(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100_000, bytes.fromhex("0000010000000000010a")],
)
def test_something_else_that_answers(answer: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(ConnectionError):  # the probe had enough
            connection.sendall(answer)

    with socket_server(handle) as port:
        assert not serving("127.0.0.1", port, timeout_s=60.0)


def test_an_answer_in_single_bytes() -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = bytes.fromhex("000000040000000000")
        headers = bytes.fromhex("00000101040000000188")
        data = bytes.fromhex("0000070000000000010000000002") + b"\x08\x01"
        for byte in settings + headers + data:
            connection.sendall(bytes([byte]))

    with socket_server(handle) as port:
        assert serving("127.0.0.1", port, timeout_s=60.0)


def test_an_answer_without_end() -> None:
    """Frames for ever, none of them the answer: the time is for the whole, not for each."""

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(OSError):
            while True:
                connection.sendall(bytes.fromhex("000000040000000000"))

    with socket_server(handle) as port:
        assert not serving("127.0.0.1", port, timeout_s=0.2)


def test_nobody_and_one_who_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert not serving("127.0.0.1", silent.getsockname()[1])
        silent.listen()
        began = time.monotonic()
        assert not serving("127.0.0.1", silent.getsockname()[1], timeout_s=0.05)
        assert time.monotonic() - began < 60.0
