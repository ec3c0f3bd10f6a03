"""Stands in for a node: serves gRPC health with grpcio, and misbehaves as files beside its node.toml say.

exit        end at once with the code in it, and a word on stderr
stubborn    do not hear SIGTERM
deaf        serve, but say NOT_SERVING
"""

from __future__ import annotations

import signal
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> int:
    file = Path(sys.argv[-1])
    config = tomllib.loads(file.read_text())
    print(f"{config['node']['name']} begins", flush=True)
    code = file.with_name("exit")
    if code.exists():
        print(f"holdfast: told to end with {code.read_text()}", file=sys.stderr, flush=True)
        return int(code.read_text())

    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    ended = threading.Event()
    if file.with_name("stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool)
        servicer = health.HealthServicer()
        deaf = file.with_name("deaf").exists()
        status = health_pb2.HealthCheckResponse
        servicer.set(
            "temporal.api.workflowservice.v1.WorkflowService", status.NOT_SERVING if deaf else status.SERVING
        )
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"127.0.0.1:{config['listen']['grpc']}")
        server.start()
        while not ended.wait(0.1):  # a wait without end would not let Python's signal handler run
            pass
        server.stop(None).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
