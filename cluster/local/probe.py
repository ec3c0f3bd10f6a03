"""Asks a node's gRPC health service whether it serves, with nothing but a socket.

A client library would double what the supervisor weighs, for one call of fifty bytes. So this speaks just
enough HTTP/2 for one unary call in the clear: everything is sent at once, and of what comes back
only the first DATA frame matters. The front's own frames are not used: importing them imports the front.
"""

from __future__ import annotations

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x7  # types of frames, RFC 9113
END_STREAM, END_HEADERS = 0x1, 0x4
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
            return _answer(connection, time.monotonic() + timeout_s) == SERVING
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
            PREFACE,
            _frame(SETTINGS, 0, 0, b""),
            _frame(HEADERS, END_HEADERS, 1, head),
            _frame(DATA, END_STREAM, 1, body),
        )
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed; lengths below 127 need no continuation."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _answer(connection: socket.socket, deadline: float) -> bytes | None:
    """The first message of the response; None if the call ended without one. TimeoutError."""
    received = b""
    while len(received) < RESPONSE_BYTES_MAX:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
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
            if kind == DATA:
                return payload[5:]
            if kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
                return None
    return None
