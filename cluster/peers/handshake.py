"""The first frame in each direction: who is there, and whether the two may talk. Pure.

The dialer says Hello, the other side answers Welcome or Refused and a sentence. Refusing is the accepting
side's business; the sentence goes to both logs, since it is mostly the dialer's configuration that is wrong.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TypeVar

import msgspec

from cluster.peers.abroad import FIRST, Other, abroad, called
from cluster.peers.contract import Identity, Message
from cluster.peers.frames import HELLO, WELCOME, Fault


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Fields may be added at the end, with defaults; older nodes pass over them."""

    version_min: int
    version_max: int
    identity: Identity
    expected: int  # the node that the dialer means to reach; 0: whoever is there


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The answer of a node that will talk."""

    version: int
    identity: Identity


def hello(mine: Identity, versions: tuple[int, int], expected: int) -> Message:
    """What a dialer says."""
    return [HELLO, *msgspec.to_builtins(Hello(*versions, mine, expected))]


def welcome(version: int, mine: Identity) -> Message:
    """What the accepting side answers."""
    return [WELCOME, *msgspec.to_builtins(Welcome(version, mine))]


def read_hello(message: Message) -> Hello:
    """Fault: it is none."""
    if message[0] != HELLO:
        raise Fault(f"a first frame of kind {message[0]!r}, which is no hello")
    return _convert(message, Hello)


def read_welcome(message: Message) -> Welcome:
    """Fault: it is none."""
    if message[0] != WELCOME:
        raise Fault(f"an answer of kind {message[0]!r} to a hello")
    return _convert(message, Welcome)


_Kind = TypeVar("_Kind", Hello, Welcome)


def _convert(message: Message, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.convert(message[1:], kind)
    except msgspec.ValidationError as error:
        raise Fault(f"a {kind.__name__.lower()} that makes no sense: {error}") from None


def common_version(mine: tuple[int, int], said: Hello) -> int:
    """The highest version that both speak; 0: there is none."""
    version = min(mine[1], said.version_max)
    return version if version >= max(mine[0], said.version_min) else 0


def is_abroad(mine: Identity, other: Identity) -> bool:
    """Whether it says that it is a node of another region."""
    return other.node_id != 0 and other.region != mine.region and other.cluster_id != mine.cluster_id


def number_of(mine: Identity, other: Identity) -> int:
    """By what number we know a node that we talk to."""
    return abroad(other.index, other.node_id) if is_abroad(mine, other) else other.node_id


def objection(
    mine: Identity,
    versions: tuple[int, int],
    said: Hello,
    peers: Container[int],
    disks: Mapping[int, str],
    strangers: bool,
    regions: Mapping[int, Other],
) -> str:
    """Why we will not talk to who said this, and what to do about it; "" if we will.

    `peers`: the nodes we know of; `disks`: the data that they are known to have; `strangers`: whether callers
    without a node id are answered; `regions`: others that we know, by index."""
    other = said.identity
    if is_abroad(mine, other) and other.index:
        return _objection_abroad(mine, versions, said, regions)
    here = f"node {mine.name!r} (id {mine.node_id})"
    there = f"node {other.name!r} (id {other.node_id})" if other.node_id else f"caller {other.name!r}"
    stranger = other.node_id == 0
    if other.cluster_id != mine.cluster_id and not (stranger and not other.cluster_id):
        return (
            f"{there} belongs to cluster {other.cluster_id!r} and {here} to cluster {mine.cluster_id!r}: "
            "correct the address that was dialed, or give the node its own cluster's data directory"
        )
    if other.region != mine.region and not (stranger and not other.region):
        return (
            f"{there} belongs to region {other.region!r} and {here} to region {mine.region!r}: "
            "correct the address that was dialed, or the region in the node's configuration"
        )
    if not common_version(versions, said):
        return _no_common_version(there, here, versions, said)
    if said.expected not in (0, mine.node_id):
        return (
            f"{there} dialed {called(said.expected)} and reached {here}: "
            f"correct the address of {called(said.expected)}"
        )
    if stranger:
        return "" if strangers else f"{here} answers nodes of its region only"
    if other.node_id == mine.node_id:
        return (
            f"{there} has the same id as {here}: if a node dialed its own address, correct that; if two "
            "processes run with copies of one data directory, stop one and let it join as a new node"
        )
    if other.node_id not in peers:
        return (
            f"{there} is not among the nodes that {here} knows: if it was just added this passes by itself; "
            "if it was removed, stop it"
        )
    if disks.get(other.node_id, "") not in ("", other.disk):
        return other_data(other.name, other.node_id)
    return ""


def _objection_abroad(
    mine: Identity, versions: tuple[int, int], said: Hello, regions: Mapping[int, Other]
) -> str:
    """As `objection`, of a node of another region. Which nodes that has now it knows better than we."""
    other = said.identity
    here = f"node {mine.name!r} of region {mine.region!r}"
    there = f"node {other.name!r} of region {other.region!r}"
    if regions.get(other.index) != Other(other.region, other.cluster_id):
        return (
            f"{there} belongs to cluster {other.cluster_id!r} and has the index {other.index}, and "
            f"{here} knows of no such region: if it dialed a wrong address, or region.name is wrong, correct "
            "that; if the two regions are to work together, `holdfast region add` introduces them; if one "
            "was removed from the other, remove it there, too"
        )
    if not common_version(versions, said):
        return _no_common_version(there, here, versions, said)
    if not mine.index or said.expected not in (0, abroad(mine.index, mine.node_id)):
        return (
            f"{there} dialed {called(said.expected)} and reached {here}, which is node {mine.node_id} "
            f"of region {mine.index}: that passes by itself once its region has heard of the nodes here; or "
            "give `holdfast region add` there again"
        )
    if other.node_id >= FIRST:
        return f"{there} has the id {other.node_id}: a region that others know has ids below {FIRST}"
    return ""


def _no_common_version(there: str, here: str, versions: tuple[int, int], said: Hello) -> str:
    return (
        f"{there} speaks protocol versions {said.version_min} to {said.version_max}, {here} speaks "
        f"{versions[0]} to {versions[1]}: upgrade one release at a time"
    )


def other_data(name: str, node_id: int) -> str:
    """Of a node that comes without the data that it has voted with."""
    return (
        f"node {name!r} (id {node_id}) has lost its data, or was given another data directory: give it "
        f"back its own; or `holdfast node replace {name}`, and start it again with an empty data directory: "
        "it joins anew"
    )


def two_processes(caller: Identity, mine: Identity) -> str:
    """Of a node that already talks to us from another process."""
    return (
        f"node {mine.name!r} (id {mine.node_id}) talks to another process that is node {caller.node_id}: "
        "if the node is being restarted this passes by itself; if two processes run with copies of one data "
        "directory, stop one and let it join as a new node"
    )
