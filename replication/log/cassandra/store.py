"""The port on Cassandra: prepared statements at LOCAL_QUORUM, nothing else.

Theory of operation. One session a process. Its profiles differ in where the coordinator is: `local` in the
own data centre, `source:<region>` in another one, where a quorum of *that* centre answers; `ledger` is local
with more patience. A data centre has the name of its region. Regions come and go while the session lasts: the
profile of another one is made when it is asked through for the first time. A quorum that wrote and a quorum
that reads in one centre have a node in common; between centres nothing is promised, and hints are not counted
on.

The driver repeats nothing: what fails is LogUnavailable, an unknown outcome, and who asked decides. (Within a
region it sends a request to a second node while the first is slow.) A password or a right that is missing is
unknown as well, since an operator may give it; refused is what the tables do not allow, and a row that is too
large. No statement is a transaction, no statement deletes, and all may be repeated.

A read that fails asks for fewer rows the next time: over an ocean, what is behind may be more than arrives in
time, and asking for the same again would never end.

Settings that matter, as measured: TCP_NODELAY (a write of 4 KB takes 44 ms without), protocol 4 (5 loses its
place when a header arrives in pieces), reconnection every half second (the default goes to ten minutes), and
heartbeats of two seconds (a host that stands still is noticed after four).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    Unauthorized,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.policies import (
    ConstantReconnectionPolicy,
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    NoSpeculativeExecutionPolicy,
    RoundRobinPolicy,
    TokenAwarePolicy,
)
from cassandra.protocol import ErrorMessage
from cassandra.query import tuple_factory

from replication.frames import Frame, Stream, bucket_of
from replication.log.cassandra import statements
from replication.log.cassandra.bridge import Bridge, Rows
from replication.log.contract import (
    READ_FRAMES_MAX,
    SCHEMA_VERSION,
    Ack,
    Head,
    LedgerHint,
    LedgerRow,
    LogClosed,
    LogDenied,
    LogRefused,
    LogUnavailable,
    Mode,
    SchemaMismatch,
    Slice,
    day_of,
)
from replication.log.rows import Row, rows_of, slice_of

LOCAL = "local"
LEDGER = "ledger"
SCHEMA = "schema"
# Nothing is asked through it. It has the driver keep connections to all nodes of all regions: one that was of
# no interest to any profile is not known to be up, and would be in no plan of a profile that comes later.
EVERYWHERE = "everywhere"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Where Cassandra is, and how long it is waited for."""

    region: str
    contact_points: Sequence[str]  # addresses of nodes in the own region, some of them
    keyspace: str = "holdfast"
    port: int = 9042
    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    # A healthy write takes milliseconds; readers have other places to ask.
    request_timeout_s: float = 2.0
    # A person waits for the ledger, and has nowhere else to ask.
    ledger_timeout_s: float = 5.0
    # Ask a second host of the own region if the first is slower than most ever are.
    speculative_delay_s: float = 0.1
    # An operator's statement: all nodes of all regions have to learn of a table.
    schema_timeout_s: float = 30.0
    # Requests under way: a thousand keep a host busy, and are far below its 32,768 ids.
    in_flight_max: int = 1024


def _profile(options: Options, region: str, timeout_s: float, level: int) -> Any:
    # Another region's answer takes longer than the delay as a rule: everything would be asked twice.
    far = region != options.region
    second = ConstantSpeculativeExecutionPolicy(options.speculative_delay_s, 1)
    return ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(region)),
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=level,
        serial_consistency_level=ConsistencyLevel.LOCAL_SERIAL,
        request_timeout=timeout_s,
        row_factory=tuple_factory,
        speculative_execution_policy=NoSpeculativeExecutionPolicy() if far else second,
    )


def _cluster(options: Options) -> Any:
    here, quorum = options.region, ConsistencyLevel.LOCAL_QUORUM
    timeout_s = options.request_timeout_s
    local = _profile(options, here, timeout_s, quorum)
    profiles = {
        LOCAL: local,
        EXEC_PROFILE_DEFAULT: local,  # what prepares statements
        LEDGER: _profile(options, here, options.ledger_timeout_s, quorum),
        SCHEMA: _profile(options, here, options.schema_timeout_s, ConsistencyLevel.EACH_QUORUM),
        EVERYWHERE: ExecutionProfile(RoundRobinPolicy()),
    }
    return Cluster(
        list(options.contact_points),
        port=options.port,
        execution_profiles=profiles,
        protocol_version=4,
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        compression=False,
        reconnection_policy=ConstantReconnectionPolicy(0.5, max_attempts=None),
        connect_timeout=2,
        max_schema_agreement_wait=options.schema_timeout_s,
        # At a node that stands still each statement would cost a timeout. One that does not know it says so,
        # and is told.
        prepare_on_all_hosts=False,
        idle_heartbeat_interval=2,
        idle_heartbeat_timeout=2,
        ssl_context=options.tls,
        auth_provider=PlainTextAuthProvider(options.user, options.password) if options.user else None,
    )


# After these nobody knows. (An InvalidRequest, which is a DriverException, is definite; catch it first.) An
# error of a node that the driver has no class for comes as the message that it was.
_UNKNOWN = (NoHostAvailable, DriverException, ConnectionException, ErrorMessage, OSError)


def _unavailable(error: BaseException) -> LogUnavailable:
    causes = list(error.errors.values()) if isinstance(error, NoHostAvailable) else [error]
    for cause in causes:
        if isinstance(cause, AuthenticationFailed | Unauthorized):
            return LogDenied(f"{type(cause).__name__}: {cause}")
    return LogUnavailable(f"{type(error).__name__}: {error}")


class Made(NamedTuple):
    """What making the tables changed."""

    made: bool  # False: they were there
    added: tuple[str, ...]  # regions that a keyspace which was there has copies in from now on


def _create_schema(options: Options, replicas: Mapping[str, int]) -> Made:
    cluster = _cluster(options)
    try:
        session = cluster.connect(wait_for_all_pools=True)
        present = _present_version(session, options.keyspace)
        _check_version(present)
        _check_centres(cluster, replicas)
        keyspace, *tables = statements.schema(options.keyspace, replicas)
        _agree(session.execute(keyspace, execution_profile=SCHEMA))
        added = _add_copies(session, options.keyspace, replicas)
        for statement in tables:
            _agree(session.execute(statement, execution_profile=SCHEMA))
        return Made(present is None, added)
    except InvalidRequest as error:
        raise LogRefused(str(error)) from error
    except _UNKNOWN as error:
        raise _unavailable(error) from error
    finally:
        cluster.shutdown()


def _check_centres(cluster: Any, replicas: Mapping[str, int]) -> None:
    """Copies need nodes to be on. LogRefused."""
    nodes = Counter(host.datacenter for host in cluster.metadata.all_hosts())
    for region, copies in replicas.items():
        if not nodes[region]:
            there = ", ".join(_centres(cluster))
            raise LogRefused(f"there is no data centre {region}; there are {there}")
        if nodes[region] < copies:
            raise LogRefused(f"data centre {region} has fewer nodes ({nodes[region]}) than copies ({copies})")


def _add_copies(session: Any, keyspace: str, replicas: Mapping[str, int]) -> tuple[str, ...]:
    """Have a keyspace that was there cover all these regions. What copies it has are left as they are."""
    (row,) = session.execute(statements.queries(keyspace)["copies"], execution_profile=LEDGER).all()
    present = {name: int(count) for name, count in row[0].items() if name != "class"}
    added = tuple(region for region in replicas if region not in present)
    if added:
        altered = statements.altered(keyspace, {**replicas, **present})
        _agree(session.execute(altered, execution_profile=SCHEMA))
    return added


def _present_version(session: Any, keyspace: str) -> int | None:
    """What the tables are now; None if there are none."""
    try:
        rows = session.execute(statements.queries(keyspace)["schema_version"], execution_profile=LEDGER).all()
    except InvalidRequest:
        return None
    return rows[0][0] if rows else None


def _check_version(version: int | None) -> None:
    if version not in (None, SCHEMA_VERSION):
        raise SchemaMismatch(f"the tables have version {version}; this release needs {SCHEMA_VERSION}")


def _agree(result: Any) -> None:
    """A table that is used before all nodes know it would be refused by some."""
    if not result.response_future.is_schema_agreed:
        raise LogUnavailable("the nodes do not agree on the tables yet; run this again")


async def create_schema(options: Options, replicas: Mapping[str, int]) -> Made:
    """Make keyspace and tables where they are missing: an operator's step, never two at once.

    `replicas` are the copies in each region. Every region has to be reached. Raises LogUnavailable (run it
    again), LogRefused, and SchemaMismatch if there are tables of another release.
    """
    return await asyncio.to_thread(_create_schema, options, replicas)


def _centres(cluster: Any) -> list[str]:
    """The data centres that there are, as far as is known."""
    return sorted({host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter})


def _connect(options: Options) -> tuple[Any, Any, dict[str, Any]]:
    cluster = _cluster(options)
    try:
        # With any one connection it would return, which may be one to another region.
        session = cluster.connect(wait_for_all_pools=True)
        session.default_fetch_size = None  # one page: what may be long has a limit of its own
        prepared = {}
        for name, query in statements.queries(options.keyspace).items():
            prepared[name] = session.prepare(query)
            prepared[name].is_idempotent = True
    except InvalidRequest as error:
        cluster.shutdown()
        raise SchemaMismatch(f"keyspace {options.keyspace}: {error}") from error
    except _UNKNOWN as error:
        centres = _centres(cluster)
        cluster.shutdown()
        if centres and options.region not in centres:
            there = ", ".join(centres)
            raise LogRefused(f"there is no data centre {options.region}; there are {there}") from error
        raise _unavailable(error) from error
    return cluster, session, prepared


async def connect(options: Options) -> CassandraLog:
    """The log of a region. Raises LogUnavailable, SchemaMismatch, and LogRefused if the region is none."""
    cluster, session, prepared = await asyncio.to_thread(_connect, options)
    return CassandraLog(options, cluster, Bridge(session, options.in_flight_max), prepared)


class CassandraLog:
    """The port. Made by `connect`."""

    def __init__(self, options: Options, cluster: Any, bridge: Bridge, prepared: dict[str, Any]) -> None:
        self._options = options
        self._cluster = cluster
        self._bridge = bridge
        self._prepared = prepared
        self._closed = False
        self._sources: dict[str, asyncio.Future[None]] = {}  # by region: its profile is made
        self._rows_max: dict[str, int] = {}  # of one read, by profile, since one failed there

    @property
    def region(self) -> str:
        """The region that this belongs to."""
        return self._options.region

    async def _execute(self, name: str, *parameters: object, profile: str = LOCAL) -> Rows:
        if self._closed:
            raise LogClosed("the log is closed")
        try:
            return await self._bridge.execute(self._prepared[name], parameters, profile)
        except InvalidRequest as error:
            raise LogRefused(str(error)) from error
        except _UNKNOWN as error:
            raise LogClosed("the log was closed") if self._closed else _unavailable(error) from error

    async def _profile_of(self, via: str | None, default: str = LOCAL) -> str:
        if via is None or via == self.region:
            return default
        name = f"source:{via}"
        if via not in self._sources:
            if via not in _centres(self._cluster):
                raise LogRefused(f"{via} is no region that this log knows")
            self._sources[via] = asyncio.ensure_future(asyncio.to_thread(self._add_source, via, name))
        await asyncio.shield(self._sources[via])
        return name

    def _add_source(self, region: str, name: str) -> None:
        """Make the profile, and connections there. Without any now: they come when its nodes do."""
        options = self._options
        profile = _profile(options, region, options.request_timeout_s, ConsistencyLevel.LOCAL_QUORUM)
        with suppress(OperationTimedOut):  # it is added before the wait
            self._cluster.add_execution_profile(name, profile, pool_wait_timeout=options.request_timeout_s)

    async def check_schema(self) -> None:
        """Raises SchemaMismatch unless the tables are those of SCHEMA_VERSION, with copies in this region."""
        rows = cast("list[tuple[Mapping[str, str]]]", await self._execute("copies"))
        if not rows or self.region not in rows[0][0]:
            raise SchemaMismatch(f"keyspace {self._options.keyspace} has no copies in {self.region}")
        versions = cast("list[tuple[int]]", await self._execute("schema_version"))
        if not versions:
            raise SchemaMismatch("the tables were not finished: run the operator's step again")
        _check_version(versions[0][0])

    async def append(self, stream: Stream, frame: Frame) -> None:
        """Write a committed frame, its rows one after the other."""
        bucket = bucket_of(frame.first_seq)
        for row in rows_of(frame):
            await self._execute("append", *stream, bucket, *row)

    async def read(
        self, stream: Stream, want: int, *, frames_max: int = READ_FRAMES_MAX, via: str | None = None
    ) -> Slice:
        """Frames from `want` on, of its partition."""
        profile = await self._profile_of(via)
        key = (*stream, bucket_of(want), want)
        limit = min(frames_max, self._rows_max.get(profile, frames_max))
        try:
            rows = _as(Row, await self._execute("read", *key, limit, profile=profile))
            if rows and rows[0].chunks > limit:  # so that the first frame is whole
                rows = _as(Row, await self._execute("read", *key, rows[0].chunks, profile=profile))
        except LogUnavailable:
            self._rows_max[profile] = max(1, limit // 4)
            raise
        if profile in self._rows_max:
            self._rows_max[profile] = max(self._rows_max[profile], 2 * limit)
        return slice_of(rows, frames_max)

    async def put_head(self, head: Head) -> None:
        """Say how far a stream is."""
        stream = head.stream
        values = (stream.incarnation, head.exported, head.oldest, head.hlc)
        await self._execute("put_head", stream.region, stream.shard, *values)

    async def head(self, region: str, shard: int, *, via: str | None = None) -> Head | None:
        """What the shard of a region said last."""
        rows = await self._execute("head", region, shard, profile=await self._profile_of(via))
        for incarnation, exported, oldest, hlc in cast("list[tuple[int, int, int, int]]", rows):
            return Head(Stream(region, shard, incarnation), exported, oldest, hlc)
        return None

    async def put_ack(self, ack: Ack) -> None:
        """Say how far this region is with a stream."""
        region, shard, incarnation = ack.stream
        await self._execute("put_ack", region, shard, ack.region, incarnation, ack.seq, ack.hlc)

    async def acks(self, region: str, shard: int) -> list[Ack]:
        """What each region said last."""
        rows = cast("list[tuple[int, str, int, int]]", await self._execute("acks", region, shard))
        return [Ack(Stream(region, shard, row[0]), *row[1:]) for row in rows]

    async def append_ledger(self, row: LedgerRow) -> None:
        """Write a row of the ledger, then the hint."""
        values = (row.namespace_id, row.version, row.mode.value, row.base, row.target, row.origin)
        more = (row.operator, row.reason, row.handover_id, row.cut_digest, row.hlc)
        await self._execute("append_ledger", *values, *more, profile=LEDGER)
        hint = (row.origin, day_of(row.hlc), row.hlc, row.namespace_id, row.version)
        await self._execute("append_recent", *hint, profile=LEDGER)

    async def read_ledger(self, namespace_id: str, *, via: str | None = None) -> list[LedgerRow]:
        """All rows of a namespace, the highest version first."""
        profile = await self._profile_of(via, LEDGER)
        rows = cast("list[Any]", await self._execute("read_ledger", namespace_id, profile=profile))
        return [LedgerRow(row[0], row[1], _mode(row[2]), *row[3:]) for row in rows]

    async def ledger_feed(self, origin: str, day: int, after_hlc: int) -> list[LedgerHint]:
        """What a region added to the ledger on a day, later than a time: the first 5000."""
        return _as(LedgerHint, await self._execute("ledger_feed", origin, day, after_hlc))

    async def close(self) -> None:
        """End the session."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._cluster.shutdown)


def _mode(word: str) -> Mode:
    try:
        return Mode(word)
    except ValueError:
        raise LogRefused(f"the ledger has a row of mode {word!r}, which this release does not know") from None


def _as(kind: type[T], rows: Rows) -> list[T]:
    """Rows as named tuples: the columns of the query are its fields, in their order."""
    return [kind(*row) for row in rows]
