"""What a replica can be in its term, and which messages only some roles send."""

from __future__ import annotations

from enum import Enum

from history_store.raft.messages import Kind


class Role(Enum):
    """What a replica is in its term. Learners are followers that do not stand."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


# Sent by a leader of the term, and only by it.
FROM_LEADER = frozenset((Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT))
# Promises: not before what they promise is durable. A vote *request* is among them, since it says how long
# our log is; after a crash that lost the log's end, an answer to the old request must not elect us.
AFTER_DURABLE = frozenset((Kind.APPEND_RESPONSE, Kind.VOTE, Kind.VOTE_RESPONSE))
# Late ones of these are no reason to wake a quiet group.
RESPONSES = frozenset(
    (Kind.APPEND_RESPONSE, Kind.HEARTBEAT_RESPONSE, Kind.VOTE_RESPONSE, Kind.PRE_VOTE_RESPONSE)
)
# A candidate's questions carry the term it asks about.
VOTE_REQUESTS = frozenset((Kind.VOTE, Kind.PRE_VOTE))
