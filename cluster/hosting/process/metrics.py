"""What the node says of itself in numbers, as Prometheus text: read when asked, nothing counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cluster.hosting.node import Node
    from cluster.hosting.region.exporting import Exporting
    from cluster.hosting.region.late_log import LateLog


class NodeCollector(Collector):
    """The node's figures at this moment."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        """Every metric family."""
        committer = self._node.committer
        yield CounterMetricFamily(
            "holdfast_rounds", "Durable writes (one fsync each)", value=committer.rounds
        )
        yield CounterMetricFamily(
            "holdfast_entries", "Transactions committed through the Raft logs", value=committer.entries
        )
        yield GaugeMetricFamily(
            "holdfast_write_refused",
            "1 while the disk takes no writes",
            value=int(committer.refusal is not None),
        )
        yield GaugeMetricFamily(
            "holdfast_storage_bytes", "Size of the data file", value=self._node.storage.size_bytes()
        )
        scrub = self._node.scrub
        yield CounterMetricFamily(
            "holdfast_scrubbed_bytes",
            "Data read to see whether it is what was written",
            value=scrub.read_bytes,
        )
        yield CounterMetricFamily(
            "holdfast_damaged_rows", "Rows found that were not what was written", value=scrub.found
        )
        yield GaugeMetricFamily(
            "holdfast_damaged_replicas",
            "Replicas that are not served, since rows of theirs are damaged",
            value=len(self._node.damages.damaged()),
        )
        yield GaugeMetricFamily(
            "holdfast_task_queues", "Task queues in memory", value=len(self._node.matching)
        )
        yield GaugeMetricFamily(
            "holdfast_open_queries", "Queries not yet answered", value=len(self._node.queries.open)
        )
        pending = GaugeMetricFamily(
            "holdfast_shard_unstored_entries",
            "Committed entries whose rows are not stored yet",
            labels=["shard"],
        )
        cached = GaugeMetricFamily(
            "holdfast_shard_runs_cached", "Runs held decoded in memory", labels=["shard"]
        )
        for shard in self._node.shards:
            pending.add_metric([str(shard.group.id)], shard.rows.pending_entries)
            cached.add_metric([str(shard.group.id)], len(shard.cache))
        yield pending
        yield cached


class LogCollector(Collector):
    """How the log between regions is written, of a node that writes one."""

    def __init__(self, log: LateLog, exporting: Callable[[], Mapping[int, Exporting]]) -> None:
        self._log = log
        self._exporting = exporting

    def collect(self) -> Iterable[Metric]:
        """Every metric family."""
        failure = self._log.failure
        yield GaugeMetricFamily(
            "holdfast_log_open", "1 once the log between regions was reached", value=int(self._log.is_open)
        )
        yield GaugeMetricFamily(
            "holdfast_log_failing", "1 while the log between regions takes nothing", value=int(bool(failure))
        )
        yield GaugeMetricFamily(
            "holdfast_log_failing_since_seconds",
            "When the log between regions began to take nothing, in Unix time; 0: it takes writes",
            value=failure.since_ns / 1e9 if failure is not None else 0,
        )
        behind = GaugeMetricFamily(
            "holdfast_log_behind_entries",
            "Entries that are committed and not in the log between regions yet",
            labels=["shard"],
        )
        again = CounterMetricFamily(
            "holdfast_log_writes_again",
            "Writes to the log between regions that were made again, since the shard is led here",
            labels=["shard"],
        )
        for shard, exporting in self._exporting().items():
            behind.add_metric([str(shard)], exporting.behind)
            again.add_metric([str(shard)], exporting.retried)
        yield behind
        yield again


class MetricsServer:
    """Answers GET /metrics on a port of its own."""

    def __init__(self, node: Node, more: Iterable[Collector] = ()) -> None:
        self._registry = CollectorRegistry()
        for collector in (NodeCollector(node), *more):
            self._registry.register(collector)
        self._server: asyncio.Server | None = None

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    async def start(self, host: str, port: int) -> None:
        """Listen. OSError if the port is taken."""
        self._server = await asyncio.start_server(self._serve, host, port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            path = head.split(b" ", 2)[1] if head.count(b" ") > 1 else b""
            found = path.split(b"?")[0] == b"/metrics"
            body = self.text() if found else b"only /metrics is here\n"
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                % (
                    b"200 OK" if found else b"404 Not Found",
                    CONTENT_TYPE_LATEST.encode() if found else b"text/plain",
                    len(body),
                    body,
                )
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a client that does not speak HTTP
        finally:
            writer.close()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
