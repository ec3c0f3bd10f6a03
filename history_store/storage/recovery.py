"""From one life of a storage to the next: what an unclean end left is taken over, a new journal begins.

The database says whether there must be a journal, and which (table journal). Each step leaves files that the
next open understands, if the process ends right behind it:

1. Live, a journal of that epoch: its records become log rows, and in the same transaction the database is
   closed. Without that file, or with another one, it is refused.
2. Closed: a file of the last epoch is left over, it has nothing that the database has not. A file of the next
   epoch without a record is one whose life never began. Any other is somebody's data, and refused.
3. The next epoch is drawn: only now, so that two copies of one database go different ways.
4. The new file is made, then the database is live. The first record comes after that.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from history_store.storage import files, journal, tables
from history_store.storage.contract import StorageCorrupt, StorageDamaged, StorageError
from history_store.storage.journal import Journal
from history_store.storage.tables import JournalState


def begin(connection: sqlite3.Connection, database: Path, size: int) -> tuple[Journal, JournalState]:
    """Recover what there is to recover, and begin a journal."""
    path = database.with_name(database.name + files.JOURNAL_SUFFIX)
    state = state_of(connection, database)
    if state.live:
        state = _recover(connection, database, path, state)
    elif path.exists():
        _check_leftover(database, path, state)
    with suppress(FileNotFoundError):
        path.unlink()
    state = state._replace(next_epoch=tables.draw_epoch())
    tables.put_journal(connection, state)  # by itself it is a transaction
    made = Journal(path, state.next_epoch, size)
    try:
        state = JournalState(made.epoch, 0, 1, made.mark.number, made.mark.offset)
        tables.put_journal(connection, state)
    except BaseException:
        made.close()
        raise
    return made, state


def ended(state: JournalState) -> JournalState:
    """What the database says once it has all that was in the journal."""
    return JournalState(state.epoch)


def state_of(connection: sqlite3.Connection, database: Path) -> JournalState:
    """What the database says of its journal."""
    state = tables.journal_state(connection)
    if state is None:
        raise StorageDamaged(
            f"{database} is damaged: what it says about its journal (table journal) is not what was written"
        )
    return state


def verify(connection: sqlite3.Connection, database: Path, known: JournalState, made: Journal) -> list[str]:
    """What is wrong with the journal in use, in sentences. Nobody may append meanwhile."""
    try:
        if state_of(connection, database) != known:
            return [f"{database}: table journal is not what was written"]
        found = journal.records(made.path, known.epoch, known.floor, known.place)
    except StorageError as error:
        return [str(error)]
    if known.floor + len(found) != made.mark.number:
        return [f"{made.path}: record {known.floor + len(found)} cannot be read"]
    return []


def _recover(connection: sqlite3.Connection, database: Path, path: Path, state: JournalState) -> JournalState:
    if not path.exists():
        raise StorageDamaged(
            f"{path} is missing: {database} was not closed, and the rounds that were acknowledged last are "
            "in that file. Put it back, if it is still somewhere"
        )
    found = journal.records(path, state.epoch, state.floor, state.place)
    closed = ended(state)
    connection.execute("BEGIN IMMEDIATE")
    tables.put_log(connection, [(record.sequence, record.body) for record in found])
    tables.put_journal(connection, closed)
    connection.execute("COMMIT")
    return closed


def _check_leftover(database: Path, path: Path, state: JournalState) -> None:
    """A journal beside a database that needs none: ours and empty of news, or somebody else's."""
    epoch, data = journal.read_epoch(path)
    if epoch == state.epoch or (epoch == state.next_epoch and journal.is_empty(data, epoch)):
        return
    raise StorageCorrupt(
        f"{path} belongs to another database, or to another time of {database}, and has rounds that this one "
        "has not. Put back the database that it belongs to, or move it away"
    )
