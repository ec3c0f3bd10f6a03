"""A small server of our own choosing for the commands: it answers what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.message import Message
from temporalio.api.workflowservice.v1 import GetSystemInfoResponse

SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse(status=SERVING)

M = TypeVar("M", bound=Message)
Said = Message | bytes | tuple[grpc.StatusCode, str]
Answer = Said | Callable[[bytes], Said]


class Scripted(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic only in its stubs
    """Real gRPC on a real socket; the answers are a table from method name to message or status."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "GetSystemInfo": GetSystemInfoResponse(server_version="1.29.0"),
            "Check": SERVING,
        }
        self.asked: list[tuple[str, bytes]] = []
        self.address = ""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        name = handler_call_details.method.rpartition("/")[2]

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append((name, request))
            chosen = self.answers.get(name, (grpc.StatusCode.UNIMPLEMENTED, f"{name} is not scripted"))
            said = chosen(request) if callable(chosen) else chosen
            if isinstance(said, tuple):
                context.abort(*said)
            return said if isinstance(said, bytes) else said.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)

    def request(self, name: str, kind: type[M]) -> M:
        """The last request of this name."""
        return kind.FromString(next(body for asked, body in reversed(self.asked) if asked == name))


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    handler = Scripted()
    with ThreadPoolExecutor(max_workers=4) as pool:
        server = grpc.server(pool, handlers=[handler])
        handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield handler
        server.stop(grace=None).wait()


@pytest.fixture
def holdfast(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the program in this process, with an empty environment of its own."""
    from cluster.admin.main import holdfast as program

    for name in ("HOLDFAST_ADDRESS", "HOLDFAST_NAMESPACE", "TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "")

    def run(*arguments: str, **settings: Any) -> Result:
        return CliRunner().invoke(program, list(arguments), prog_name="holdfast", **settings)

    return run
