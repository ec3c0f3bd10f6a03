"""Consensus core of one group: a pure state machine that is stepped, ticked and asked for what is ready.

The core never waits, reads a clock, rolls a die of its own, or touches a disk or a socket. Hosting does,
under this contract. (`node` is a RawNode; "durable" means that `Storage.write` returned.)

 1. One thread calls one node. `ready()` gives a Ready; write it; `advance(ready)` when it is durable. One
    Ready is out at a time; meanwhile `propose`, `step`, `tick`, `read_index`, `take_messages` and
    `take_committed` go on.
 2. `hard_state`, `entries` and `snapshot` of one Ready become durable together, before `advance`. Entries
    replace what the disk has at their first index and behind it. If `must_sync` is False, the Ready may be
    advanced at once, and what hard state it has (a commit mark) may go with any later write, never after a
    newer one.
 3. `messages` (and `take_messages`) may leave at once, also while the leader's own disk is still writing
    the same entries.
 4. `messages_after` leave only after the Ready they came with is durable: they promise it (votes, "I have
    it").
 5. Committed entries (`Ready.committed_entries`, `advance`, `take_committed`) come in order, each once.
    They are durable here before they are handed out, so rows never get ahead of the log. Nobody outside
    hears of an entry before `committed` covers it; a leader may tell of what it proposed in its term then.
 6. A batch of committed entries ends with a membership change if it has one; `node.conf_bytes` is then the
    membership as of the batch's end. Store it with `applied`. After a restart, entries behind `applied` are
    handed out again.
 7. `compact(index, term)` only when the rows up to `index` are durable. The disk's log may be compacted in
    the same write.
 8. A message of kind SNAPSHOT among `messages` is a request: send that peer an image of the rows, as of the
    index named or later, however it suits (chunks, resumed). Where it has arrived whole, call `step` with
    the SNAPSHOT message, its metadata that of the image. `report_snapshot` tells the leader how it went,
    where it failed in any case.
 9. `Ready.snapshot`: replace all rows by the image, `applied` and `compacted` by its index, and drop the
    *whole* log, entries above that index included (they belonged to another branch), in one durable write,
    before `entries`.
10. Ticks follow a steady clock. After a pause (a stopped process), give the missed ticks, or one election
    timeout of them, before anything else: a lease is counted in ticks.
11. A read with ReadState(context, index) may be served when everything up to `index` is applied. Reads
    asked for in an earlier term, or before a change of `soft_state`, may never be answered: fail them
    (definite: nothing happened).
12. On losing leadership (`soft_state`), what was proposed and not handed out is *indefinite*: it may yet be
    committed.
13. Message from a peer: check that the sender is who it says, that the frame is whole; then `step`.
    Duplicated, delayed, lost and reordered messages are all right; altered ones are not. A node id, once
    used, is never given to another disk.
14. A quiet group has no timers. When the node of its leader seems gone, `wake()` it.
"""

from history_store.raft.config import Config, Dice
from history_store.raft.configuration import (
    Change,
    ChangeOp,
    ConfChange,
    Configuration,
    Transition,
    decode_change,
    decode_configuration,
)
from history_store.raft.messages import (
    CONF_CHANGE,
    DATA,
    NOBODY,
    NOOP,
    ConfChangeRefused,
    Kind,
    Message,
    NotLeader,
    ProposalDropped,
    RaftError,
    ReadState,
    SnapshotMeta,
    decode,
    encode,
)
from history_store.raft.node import RawNode, Ready, SoftState
from history_store.raft.roles import Role

__all__ = [
    "CONF_CHANGE",
    "DATA",
    "NOBODY",
    "NOOP",
    "Change",
    "ChangeOp",
    "ConfChange",
    "ConfChangeRefused",
    "Config",
    "Configuration",
    "Dice",
    "Kind",
    "Message",
    "NotLeader",
    "ProposalDropped",
    "RaftError",
    "RawNode",
    "ReadState",
    "Ready",
    "Role",
    "SnapshotMeta",
    "SoftState",
    "Transition",
    "decode",
    "decode_change",
    "decode_configuration",
    "encode",
]
