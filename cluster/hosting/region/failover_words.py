"""What nodes say to each other about failover: questions and answers, as they travel.

    [SHARD_ASK, number, shard, question]            to the shard's leader, in the own region
    [SHARD_SAID, number, answer]
    [REGION_ASK, number, region, node, question]    to any node of another region, which hands it on to where
                                                    its meta group is led; `region` and `node` ask
    [REGION_SAID, number, answer]                   to the node that asked
    [SEEN, {namespace: version}]                    to where the own meta group is led

Questions and answers are msgpack, each an array that begins with its name. New fields go to the end and have
defaults. What cannot be read is not answered, and the one who asks takes it for lost.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from replication.failover.readiness import ShardLag
from replication.failover.records import Config, LedgerRow, Marker, Point, Source

SHARD_ASK, SHARD_SAID, REGION_ASK, REGION_SAID, SEEN = 80, 81, 82, 83, 84
KINDS = frozenset((SHARD_ASK, SHARD_SAID, REGION_ASK, REGION_SAID, SEEN))

Ranges = tuple[tuple[int, int], ...]


# ---- to a shard of the own region


class Tell(msgspec.Struct, array_like=True, frozen=True, tag="tell"):
    """Do this, in your log."""

    command: bytes  # as replication.failover.commands encodes it


class Stand(msgspec.Struct, array_like=True, frozen=True, tag="stand"):
    """Where do you stand, durably, with what other regions tell?"""

    namespaces: tuple[str, ...] = ()  # whose gates, and whose runs, are asked about


class Followed(msgspec.Struct, array_like=True, frozen=True, tag="followed"):
    """It is done, durably."""

    marker: Marker | None
    versions: dict[str, int]
    cuts: dict[str, dict[Source, Point]]
    inherited: bool = False  # the fence is older than the shard: its parent's marker is enough
    children: dict[int, Ranges] = {}  # into which the shard was split before


class Stands(msgspec.Struct, array_like=True, frozen=True, tag="stands"):
    """Where a shard stands."""

    cursors: dict[Source, Point]
    lags: dict[Source, ShardLag]
    fences: dict[Source, bytes]  # of handovers that have not ended: as commands.encode has them
    versions: dict[str, int]
    lacks: tuple[str, ...]  # namespaces whose earlier runs have not all come
    children: dict[int, Ranges] = {}


class Failed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    """It was not done, or nobody knows."""

    code: int
    message: str


# ---- between regions


class Shared(msgspec.Struct, array_like=True, frozen=True, tag="shared"):
    """A namespace as its register has it."""

    id: str
    config: Config
    ledger: tuple[LedgerRow, ...] = ()  # for a region that may not know it at all


class Notice(msgspec.Struct, array_like=True, frozen=True, tag="notice"):
    """Learn this, and say what you know once it is durable."""

    rows: tuple[LedgerRow, ...] = ()
    shared: tuple[Shared, ...] = ()
    ask: tuple[str, ...] = ()  # only say what you know of these


class Noticed(msgspec.Struct, array_like=True, frozen=True, tag="noticed"):
    """What a region knows."""

    truths: dict[str, int]
    configs: dict[str, tuple[int, int]]  # the pair that orders a register, of those in the notice
    newer: tuple[Shared, ...] = ()  # registers that are larger here


class Survey(msgspec.Struct, array_like=True, frozen=True, tag="survey"):
    """What have you applied of our shards?"""

    shards: dict[int, Ranges]  # ours
    namespaces: dict[str, int]  # and the versions that are given up


class Applied(msgspec.Struct, array_like=True, frozen=True, tag="applied"):
    """Of one of the asking region's shards: what all of ours that have its keys have applied, durably."""

    marker: Marker
    lag: ShardLag
    newer: dict[str, int] = {}


class Surveyed(msgspec.Struct, array_like=True, frozen=True, tag="surveyed"):
    """The answer to Survey. A shard that is missing: some of ours did not answer."""

    shards: dict[int, Applied]
    healthy: bool
    bootstrapping: bool


class MayHold(msgspec.Struct, array_like=True, frozen=True, tag="may hold"):
    """Could you hold a namespace of this id and name?"""

    id: str
    name: str


class Held(msgspec.Struct, array_like=True, frozen=True, tag="held"):
    """The answer to MayHold: "" if so, otherwise why not."""

    why: str


class Operate(msgspec.Struct, array_like=True, frozen=True, tag="operate"):
    """What an operator wants, as JSON; the region that is asked decides it."""

    request: bytes


class Operated(msgspec.Struct, array_like=True, frozen=True, tag="operated"):
    """What the operator is answered, as JSON."""

    answer: bytes


ShardQuestion: TypeAlias = Tell | Stand
ShardAnswer: TypeAlias = Followed | Stands | Failed
RegionQuestion: TypeAlias = Notice | Survey | MayHold | Operate
RegionAnswer: TypeAlias = Noticed | Surveyed | Held | Operated | Failed
Word: TypeAlias = ShardQuestion | ShardAnswer | RegionQuestion | RegionAnswer

encode = msgspec.msgpack.Encoder().encode
shard_question: msgspec.msgpack.Decoder[ShardQuestion] = msgspec.msgpack.Decoder(ShardQuestion)
shard_answer: msgspec.msgpack.Decoder[ShardAnswer] = msgspec.msgpack.Decoder(ShardAnswer)
region_question: msgspec.msgpack.Decoder[RegionQuestion] = msgspec.msgpack.Decoder(RegionQuestion)
region_answer: msgspec.msgpack.Decoder[RegionAnswer] = msgspec.msgpack.Decoder(RegionAnswer)
