"""The scrub: reads what nobody reads, slowly, so that damage is found while others have what was damaged.

A piece a second, on a thread, at a rate that costs less than half a percent of a core; a lap over 10 GB takes
six hours. What is damaged is told to whose rows they are (repair.py). A damaged log row is in memory still,
whole, but this node would not start again: it is told to be replaced before it has to. A record that List
shows is made of its run's core row: where it is not like that it is written anew, and nobody else is asked.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cluster.membership import META_GROUP
from history_store.storage.contract import RowCorrupt, StorageCorrupt, StorageError
from history_store.visibility import audit

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from cluster.hosting.replicas.repair import Damages
    from history_store.storage.contract import Round
    from history_store.storage.scrub import Checked
    from history_store.visibility.record import ExecutionRecord

log = structlog.get_logger("storage")

PERIOD_S = 1.0
BYTES_PER_S = 512 << 10
RENEWED_AT_ONCE = 16  # records; the others are found by the next lap
# After an image a record may be of a later entry than the row, until that entry is stored here as well.
SUSPECT_S = 30.0


class Scrub:
    """Of one node."""

    def __init__(self, node: Node, damages: Damages) -> None:
        self.bytes_per_s = BYTES_PER_S  # 0 = never
        self.laps = 0
        self.read_bytes = 0
        self.found = 0  # rows, log rows, records and pages that were not what was written
        self._node = node
        self._damages = damages
        self._place = b""
        self._shown: set[int] = set()  # generations whose records were all shown when the piece was begun
        self._told = ""  # why it cannot read
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin."""
        self._arm()

    def close(self) -> None:
        """End."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self.bytes_per_s and not self._closed:
            self._timer = self._node.loop.call_later(PERIOD_S, self._turn)

    def _turn(self) -> None:
        self._shown = set(self._generations())
        if not self._node.threads:
            self._read_now()
            return
        work = self._node.loop.run_in_executor(None, self._read)
        work.add_done_callback(self._was_read)

    def _read(self) -> Checked:
        return self._node.storage.check(self._place, int(self.bytes_per_s * PERIOD_S))

    def _read_now(self) -> None:
        done: asyncio.Future[Checked] = self._node.loop.create_future()
        try:
            done.set_result(self._read())
        except StorageError as error:
            done.set_exception(error)
        self._was_read(done)

    def _was_read(self, work: asyncio.Future[Checked]) -> None:
        if work.cancelled():
            return
        error = work.exception()
        if self._closed:
            return
        if error is not None:
            if not isinstance(error, StorageError):
                raise error
            self._failed(error)
            return
        self._told = ""
        checked = work.result()
        self._place = checked.place
        self.read_bytes += checked.read_bytes
        self.laps += not checked.place
        for key in checked.damaged:
            self._row(key)
        self.found += len(checked.problems)
        self._damages.log_is(checked.problems, lap_began=checked.place == b"r")
        suspects = [key for key in checked.unlike if _generation(key) in self._shown]
        if suspects:
            self._node.loop.call_later(SUSPECT_S, self._renew, suspects[:RENEWED_AT_ONCE])
        self._arm()

    def _failed(self, error: StorageError) -> None:
        if not isinstance(error, StorageCorrupt):
            if str(error) != self._told:
                log.warning("the data cannot be checked; trying on", why=str(error))
            self._told = str(error)
            self._arm()  # busy, or no more files: later
            return
        self.found += 1
        self._damages.file_is(error)

    # ---- what was found

    def _row(self, key: bytes) -> None:
        generation = _generation(key)
        error = RowCorrupt(f"row {key.hex()} is not what was written on the disk", key)
        for group in self._node.committer.groups.values():
            if group.rows.generation == generation:
                self.found += bool(group.damage)  # the first one is `Damages.met`
                group.damaged(error)
                return
        self.found += 1
        # Of an image that is arriving or of rows that are being deleted: whoever reads it sees it.
        log.warning("a row that is not in use is damaged", row=key.hex())

    def _generations(self) -> dict[int, Group]:
        """Rows that the projection shows, all of them."""
        return {
            group.rows.generation: group
            for group in self._node.committer.groups.values()
            if group.id != META_GROUP and not group.rows.records_wait
        }

    def _renew(self, keys: list[bytes]) -> None:
        """Records of these runs are not what the rows say: those are right, they have checksums."""
        if keys and not self._closed:
            self._node.committer.store(partial(self._fill, keys), lambda: None)

    def _fill(self, keys: list[bytes], batch: Round) -> None:
        """What is still so: nothing is being stored now, so a row and its record are of one moment."""
        records: list[ExecutionRecord] = []
        groups, storage = self._generations(), self._node.storage
        for key in keys:
            group = groups.get(_generation(key))
            gone = group.rows.gone if group is not None else None
            if group is None or (gone is not None and int.from_bytes(key[5:7], "big") in gone):
                continue  # another image came, or another shard has it
            with suppress(StorageCorrupt):  # a row's damage is the replica's own affair
                value = storage.get(key)
                record = audit.record_in(value) if value is not None else None
                if record is not None:
                    records.append(record)
        connection = storage.visibility_connection()
        connection.text_factory = bytes
        try:
            damaged = audit.unlike(connection, records)
        finally:
            connection.close()
        for record in damaged:
            log.warning("a record that List shows was damaged, and is written anew", run=record.run_id)
        self.found += len(damaged)
        batch.renewed += damaged


def _generation(key: bytes) -> int:
    return int.from_bytes(key[:4], "big")
