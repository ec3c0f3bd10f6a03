"""What a node of another region is called here: one number, made of its region's index and its own id.

A region numbers its nodes by itself, so an id alone says nothing abroad. Own nodes keep their ids, which
stay below `FIRST`; a node of another region is `index << 16 | id`. So whatever is keyed by a peer
(sessions, queues, states) holds both kinds, and nobody takes one for the other: what an own node may do is
done for ids below `FIRST` only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_BITS: Final = 16
FIRST: Final = 1 << _BITS  # ids of own nodes are below it
INDEX_MAX: Final = 99  # of a region; the smallest is 1


class Other(NamedTuple):
    """Another region, as far as it takes to know its nodes from impostors."""

    name: str
    cluster_id: str


def abroad(index: int, node: int) -> int:
    """What node `node` of the region with this index is called elsewhere."""
    assert 1 <= index <= INDEX_MAX
    assert 0 < node < FIRST
    return index << _BITS | node


def home(peer: int) -> tuple[int, int]:
    """The inverse: a region's index and the node's id there. Index 0: an own node."""
    return peer >> _BITS, peer & (FIRST - 1)


def called(peer: int) -> str:
    """A peer in a sentence: "node 2", or "node 2 of region 7"."""
    index, node = home(peer)
    return f"node {node} of region {index}" if index else f"node {node}"


def label(peer: int) -> int | str:
    """A peer in a line of a log: an own node's id, or region and id like "7:2"."""
    index, node = home(peer)
    return f"{index}:{node}" if index else node
