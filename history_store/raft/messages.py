"""What replicas of one group say to each other, and how the core says no to its caller.

Messages are immutable and encode as msgpack arrays (`encode`, `decode`), so that hosting can put them in
its frames as they are. A message does not name its group; the frame around it does.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from history_store.storage.contract import Entry

NOBODY = 0
# The hint of a rejected append: no entries will do, send an image.
NEEDS_IMAGE = -1

# Entry kinds (storage's contract names the numbers).
DATA = 0
NOOP = 1
CONF_CHANGE = 2


class Kind(IntEnum):
    """What a message is about."""

    PROPOSE = 1  # a follower's client wants this appended; term 0
    APPEND = 2  # entries after (index, log_term); commit is the leader's
    APPEND_RESPONSE = 3  # index: what is durable here; or reject: index does not match, try at hint
    VOTE = 4
    VOTE_RESPONSE = 5
    PRE_VOTE = 6  # would you vote for me at this term? binds nobody
    PRE_VOTE_RESPONSE = 7
    HEARTBEAT = 8  # I lead; round numbers the question "do I still?"
    HEARTBEAT_RESPONSE = 9
    SNAPSHOT = 10  # to hosting: send your image to `to`; to the core: the image has arrived whole
    TIMEOUT_NOW = 11  # stand for election at once: the leader hands over to you, or gives up
    READ_INDEX = 12  # a follower's read; term 0
    READ_INDEX_RESPONSE = 13


class SnapshotMeta(NamedTuple):
    """Which state an image is: everything up to an entry, and the members as of then."""

    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here
    term: int
    conf: bytes


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message. Fields that a kind does not use keep their defaults."""

    kind: Kind
    to: int
    sender: int
    term: int = 0
    index: int = 0  # APPEND: the entry before `entries`; votes: the candidate's last; responses: see Kind
    log_term: int = 0  # the term of the entry at `index` (rejected appends: at `hint`)
    commit: int = (
        0  # the sender's commit mark (heartbeats, reads: as far as the receiver is known to have it)
    )
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    hint: int = 0  # rejected appends: where to try next; votes: the term of the entry at `commit`
    round: int = 0  # heartbeats: which question this asks or answers
    force: bool = False  # votes: the leader itself asked for this election
    quiet: bool = False  # heartbeats: nothing is going on; stop your timer
    snapshot: SnapshotMeta | None = None
    context: bytes = b""  # reads: whose


class ReadState(NamedTuple):
    """A read may be served once everything up to `index` is applied."""

    context: bytes
    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """A message from msgpack. Raises `msgspec.DecodeError` on anything else (the peer's fault)."""
    return _decoder.decode(data)


class RaftError(Exception):
    """Base of the core's refusals. All are definite: what was asked for did not happen."""


class NotLeader(RaftError):
    """Only a leader takes this. `leader_hint` is who leads as far as we know, 0 if we do not."""

    def __init__(self, leader_hint: int) -> None:
        super().__init__(
            f"not the leader; try {leader_hint}" if leader_hint else "not the leader; none is known"
        )
        self.leader_hint = leader_hint


class ProposalDropped(RaftError):
    """The leader cannot take it now: too much is uncommitted, or leadership is being handed over."""


class ConfChangeRefused(ProposalDropped):
    """The membership change makes no sense now; the message says why."""
