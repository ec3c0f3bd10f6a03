"""Children across a failover: a start that is tried again finds the child that it made, or makes the same
one.

The parent's shard and the child's are read through different logs, so at a failover the parent may know that
its child has started while the child is not here, or the child may be here and the parent's branch that
wanted it has lost. Names that are made from the event that initiated the child settle the first; comparing
that event with the parent's current branch finds the second.
"""

from __future__ import annotations

import hashlib

from replication.merge.history import History, contains


def child_request_id(parent_run: str, initiated_id: int, initiated_version: int) -> str:
    """The request id of the child's start: the same in every region, for ever. 32 hexadecimal digits."""
    name = f"child-request/{parent_run}/{initiated_id}/{initiated_version}"
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def child_run_id(parent_run: str, initiated_id: int, initiated_version: int) -> str:
    """The run id of the child, in the form of a UUID (version 8: made from a hash)."""
    name = f"child-run/{parent_run}/{initiated_id}/{initiated_version}"
    digest = bytearray(hashlib.blake2b(name.encode(), digest_size=16).digest())
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_orphan(parent: History, initiated_id: int, initiated_version: int) -> bool:
    """Whether the event that initiated the child is not on this branch, its parent's current one."""
    return not contains(parent, initiated_id, initiated_version)
