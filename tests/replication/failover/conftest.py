"""Two or three regions' meta groups and a namespace, for tests of single rules."""

from __future__ import annotations

from replication.failover.commands import Begin, Create, Drain, StartFencing
from replication.failover.meta import MetaState
from replication.failover.records import FORMAT, Config, LedgerRow, Limits, Marker, Mode, Point, Switch
from replication.versions import next_version

NS = "orders"
SHARDS = (1, 2)
MARKERS = {shard: Marker(Point(7, 10 * shard)) for shard in SHARDS}


def row(version: int, name: str = NS, *, hlc: int = 0, operator: str = "", base: int = 0) -> LedgerRow:
    mode = Mode.FORCED if base else Mode.CREATE
    return LedgerRow(FORMAT, name, version, mode, base, version % 100, operator, "", "", b"", hlc)


def meta_state(region: int = 1, *names: str, regions: tuple[int, ...] = (1, 2, 3)) -> MetaState:
    """A region that knows namespaces of region 1, at version 1."""
    state = MetaState(region)
    for name in names or (NS,):
        assert state.apply(Create(Config(1, 1, regions), row(1, name))).accepted
    return state


def begin(number: int = 1, *names: str, target: int = 2, base: int = 1, request: str = "") -> Begin:
    switches = tuple(Switch(name, base, next_version(target, base)) for name in names or (NS,))
    return Begin(number, target, switches, SHARDS, request or f"request {number}", "ann", "", Limits(), 1000)


def draining(*names: str) -> MetaState:
    """Region 1, whose handover 1 to region 2 waits for acknowledgements."""
    state = meta_state(1, *names)
    for command in (begin(1, *names), StartFencing(1, 2000), Drain(1, MARKERS, {})):
        assert state.apply(command).accepted
    return state
