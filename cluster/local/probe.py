"""Asks a node's gRPC health service whether it serves, with nothing but a socket.

A client library would cost the supervisor ten times its own memory for one call of seventeen bytes. So this
speaks just enough HTTP/2 for one unary call in the clear: everything is sent at once, and of what comes back
only the first DATA frame matters.
"""

from __future__ import annotations

import socket
import struct

from cluster.frontend.http2 import frames

SERVICE = b"temporal.api.workflowservice.v1.WorkflowService"
PATH = b"/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
RESPONSE_BYTES_MAX = 65536  # an answer has some hundred; more is no health service
HEADER_BYTES = 9


def serving(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether the node's WorkflowService is SERVING; False as well if nobody answers in time."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(_request(f"{host}:{port}".encode()))
            return _answer(connection) == SERVING
    except OSError:
        return False


def _request(authority: bytes) -> bytes:
    message = b"\x0a" + bytes([len(SERVICE)]) + SERVICE  # HealthCheckRequest{service}
    body = struct.pack(">BI", 0, len(message)) + message
    # HPACK without tables: 0x83 and 0x86 are the static ":method: POST" and ":scheme: http".
    head = b"\x83\x86" + b"".join(
        _literal(name, value)
        for name, value in (
            (b":path", PATH),
            (b":authority", authority),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    return b"".join(
        (
            frames.PREFACE,
            frames.settings({}),
            frames.header(len(head), frames.HEADERS, frames.END_HEADERS, 1),
            head,
            frames.header(len(body), frames.DATA, frames.END_STREAM, 1),
            body,
        )
    )


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed; lengths below 127 need no continuation."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _answer(connection: socket.socket) -> bytes | None:
    """The first message of the response; None if the call ended without one."""
    received = b""
    while len(received) < RESPONSE_BYTES_MAX:
        more = connection.recv(4096)
        if not more:
            return None
        received += more
        while len(received) >= HEADER_BYTES:
            length = int.from_bytes(received[:3], "big")
            kind, flags = received[3], received[4]
            if len(received) < HEADER_BYTES + length:
                break
            payload, received = (
                received[HEADER_BYTES : HEADER_BYTES + length],
                received[HEADER_BYTES + length :],
            )
            if kind == frames.DATA:
                return payload[5:]
            if kind in (frames.RST_STREAM, frames.GOAWAY) or (
                kind == frames.HEADERS and flags & frames.END_STREAM
            ):
                return None
    return None
