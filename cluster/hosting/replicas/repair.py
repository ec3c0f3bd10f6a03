"""Rows that are not what was written: the replica is not served, never leads, and gets them from its leader.

Theory of operation. Every row carries a checksum, which each read checks; a follower's rows, which nobody
reads, are read by the scrub (scrubbing.py). A damaged row makes its whole replica *damaged*: what else is,
nobody knows. That is noted in the book, and then

* it is served here no more: who asks is sent to another replica. If it led, it hands over.
* it votes and acknowledges as before. Votes and the log have checksums of their own, were whole when they
  were read at the start, and are in memory since: nothing of what this node promised is lost. Silence would
  make one damaged row cost a vote of three. But it never stands (`RawNode.bar`).
* it asks its leader for an image of the rows alone, which comes under a new generation (snapshots.py), takes
  the place of the damaged ones in one write, and has the entries behind it applied again from the log, which
  is kept for that long. Then the note is gone, and it may lead.

Without another replica nobody has these rows: the shard is refused with DATA_LOSS, and the others go on. A
damaged *file* (SQLite finds it malformed) is another matter: log and votes are in it, too. The node condemns
it and ends, and does not open it again; where it is alone it goes on with what can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from cluster.hosting.groups.damage import note
from history_store.raft import RaftError
from history_store.storage.contract import RowCorrupt, StorageCorrupt

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from cluster.hosting.replicas.snapshots import Snapshots

log = structlog.get_logger("storage")

WANT_ROWS = 47  # [WANT_ROWS, group, index]: an image of the rows as of that entry, or later
CHECK_S = 1.0
LOG = -1  # in the place of a group: the log of all of them

# What to do about a damaged file, where nobody else has what it had.
RESTORE = (
    "Restore it from a backup, or, if the data is not needed, "
    "move it away together with its -wal, -shm, -log and -damaged files"
)


def replacing(name: str, directory: str = "its data directory") -> str:
    """What to do about a damaged file of a region's node: it is to be another node from then on."""
    return (
        "Do not restore a backup: the other nodes count on what this one has promised since. "
        f"They have what it had: on one of them `holdfast node replace {name}`; then "
        f"move {directory} away, and start this node again: it joins by itself"
    )


class Damages:
    """Of one node: what is damaged, and what is done about it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.repaired = 0  # replicas, since the start
        self.met = 0  # times that a replica came to be damaged
        self.log_problems: list[str] = []
        self.file = ""  # what is wrong with the data file as a whole, which a node that is alone still reads
        self.advice = RESTORE
        self.on_found: Callable[[], None] = _nothing  # a replica is damaged, and not served
        self.images: Snapshots | None = None  # None: the node is alone
        self.send: Callable[[int, list[Any]], bool] = lambda _node, _message: False
        self.is_up: Callable[[int], bool] = lambda _node: False
        self._timer: asyncio.TimerHandle | None = None
        node.committer.damages = self

    def start(self) -> None:
        """Take up what was found before the node was started."""
        for group in self.damaged():
            log.error("rows of a shard are damaged on this disk", group=group.id, what=group.damage)
        self._arm()

    def close(self) -> None:
        """Do no more."""
        if self._timer is not None:
            self._timer.cancel()

    def damaged(self) -> list[Group]:
        """Replicas whose rows are not to be served."""
        return [group for group in self._node.committer.groups.values() if group.damage]

    def found(self, group: Group, error: StorageCorrupt) -> None:
        """A group's rows are damaged, and it has stopped to lead."""
        self.met += 1
        if not isinstance(error, RowCorrupt) and self.images is not None:
            self.condemn(error)
            return
        alone = self.images is None
        doing = f"it is not served any more. {self.advice}" if alone else "they are fetched from its leader"
        log.error("rows of a shard are damaged on this disk", group=group.id, what=group.damage, doing=doing)
        row = note(group)

        def fill(batch: Any) -> None:
            if group.damage:
                batch.rows.append(row)

        self._node.committer.store(fill, lambda: None)
        self.on_found()
        self.check()
        self._arm()

    def file_is(self, error: StorageCorrupt) -> None:
        """The scrub found the file as a whole damaged."""
        log.error("the data file is damaged", why=str(error), do=self.advice)
        self.file = str(error)
        if self.images is not None:
            self.condemn(error)

    def condemn(self, error: StorageCorrupt) -> None:
        """The file as a whole is damaged. The others have what it had; this node is not to be one of them."""
        self._node.committer.stop_for(error)

    def log_is(self, problems: list[str], *, lap_began: bool) -> None:
        """What the scrub found of the log on disk, which was read before it was damaged, and is in memory."""
        if problems and problems != self.log_problems:
            log.error(
                "the log on disk is damaged; this node would not start again", what=problems, do=self.advice
            )
        if lap_began:
            self.log_problems = problems

    def told(self) -> list[tuple[int, str]]:
        """What is damaged, for the region: (group, what); -1 is the log."""
        rows = [(group.id, group.damage) for group in self.damaged()]
        return [*rows, (LOG, "; ".join(self.log_problems[:3]))] if self.log_problems else rows

    def mended(self, group: Group) -> None:
        """It has rows that are whole."""
        self.repaired += 1
        log.warning("the rows of a shard are whole again", group=group.id)

    # ---- until then

    def _arm(self) -> None:
        if self._timer is None and self.images is not None and self.damaged():
            self._timer = self._node.loop.call_later(CHECK_S, self._again)

    def _again(self) -> None:
        self._timer = None
        self.check()
        self._arm()

    def check(self) -> None:
        """Ask again for what has not come."""
        if self.images is None:
            return
        for group in self.damaged():
            raft = group.raft
            if raft.is_leader:
                self._hand_over(group)
            elif raft.leader and not self.images.comes(group):
                self.send(raft.leader, [WANT_ROWS, group.id, raft.handed])

    def _hand_over(self, group: Group) -> None:
        to = group.raft.heir(self.is_up)
        if not to:
            return
        try:
            group.raft.transfer_leader(to)
        except RaftError as error:
            log.info("leadership cannot be handed over", group=group.id, to=to, why=str(error))
        self._node.committer.mark(group)

    def received(self, node_id: int, message: list[Any]) -> None:
        """A peer's replica is damaged, and it wants our rows."""
        group = self._node.committer.groups.get(message[1])
        if group is None or not group.leading or self.images is None:
            return
        if node_id in group.raft.conf.members:
            self.images.asked(group, node_id, message[2])


def _nothing() -> None:
    """Nobody wants to know."""
