"""What one embedded server is told at its start: a plain record, cheap to import.

The command line fills it (`cluster.admin`), the server reads it (`cluster.hosting.process.server`). It
imports nothing of ours, so that `holdfast --help` pays for no server.
Every field is documented in docs/operations.md; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

PORT_DEFAULT = 7233
SHARDS_DEFAULT = 4
SHARDS_MAX = 1024  # each is a Raft group with its own bookkeeping; more buys nothing on one node
MESSAGE_BYTES_MAX_DEFAULT = 64 << 20  # what DescribeNamespace advertises as a blob has to fit in a message

FRONTS = ("h2", "grpcio")
LOG_FORMATS = ("pretty", "json", "text")
LOG_LEVELS = ("debug", "info", "warn", "error", "never")
SEARCH_ATTRIBUTE_TYPES = ("Text", "Keyword", "KeywordList", "Int", "Double", "Bool", "Datetime")


@dataclass(slots=True)
class ServerOptions:
    """Settings of one `holdfast server start-dev`; the values are checked before it is built."""

    ip: str = "127.0.0.1"  # address to listen on, of the gRPC port and the metrics port
    port: int = PORT_DEFAULT  # 0 = the kernel chooses
    namespaces: list[str] = field(default_factory=lambda: ["default"])  # exist when it is ready; no repeats
    db_path: str | None = None  # the data file; None = memory, gone with the process
    search_attributes: dict[str, str] = field(default_factory=dict)  # name -> one of SEARCH_ATTRIBUTE_TYPES
    dynamic_config: dict[str, object] = field(default_factory=dict)  # key -> JSON value; unknown: a warning
    log_level: str = "warn"  # one of LOG_LEVELS
    log_format: str = "pretty"  # one of LOG_FORMATS
    front: str = "h2"  # one of FRONTS
    shards: int = SHARDS_DEFAULT  # Raft groups of a new data file; an existing file keeps its own number
    metrics_port: int | None = None  # Prometheus text over HTTP; None = not served
    tls_cert: str | None = None  # PEM file; with tls_key, the gRPC port speaks TLS only
    tls_key: str | None = None  # PEM file
    tls_ca: str | None = None  # PEM file; set = a client must show a certificate signed by it
    message_bytes_max: int = MESSAGE_BYTES_MAX_DEFAULT  # largest gRPC message taken in
    on_ready: Callable[[int], None] | None = None  # called once, with the gRPC port, when the server answers
