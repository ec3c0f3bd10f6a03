"""The files of a node's disk: written by one release as a kill leaves them, and read by another."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

from history_store.storage import files
from history_store.storage.contract import Entry, HardState, Round
from history_store.storage.sqlite import SqliteStorage
from history_store.visibility import record
from tests.formats.samples import Filler, plain

NAME = "holdfast.db"
GROUP = 3
_KEY = GROUP.to_bytes(4, "big")


def write(directory: Path) -> bytes:
    """A node's files, packed: a round in the database, one in the journal only."""
    path = directory / NAME
    storage = SqliteStorage(
        path, cluster_id="cluster", node_id=2, checkpoint_bytes=1 << 16, journal_bytes=1 << 16
    )
    entries = [Entry(1, index, 0, b"entry %d" % index) for index in range(1, 6)]
    shown = Filler().value(record.ExecutionRecord)
    storage.write(
        Round(
            entries=[(GROUP, entries[:3])],
            hard_states=[(GROUP, HardState(1, 2, 3))],
            rows=[(_KEY + b"rrun", b"core"), (_KEY + b"hevents", b"batch"), (_KEY + b"qtask", b"task")],
            visibility=[shown],
            applied=[(GROUP, 2, 1, b"members")],
            compact=[(GROUP, 1, 1)],
        )
    )
    storage.write(Round(entries=[(GROUP, entries[3:])], hard_states=[(GROUP, HardState(2, 0, 4))]))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for suffix in files.DATA_SUFFIXES:
            source = path.with_name(path.name + suffix)
            if source.exists() and source.stat().st_size:
                archive.add(source, source.name)
    storage.close()
    return packed.getvalue()


def unpack(packed: Path, directory: Path) -> Path:
    """The files again. Answers where the database is."""
    with tarfile.open(packed, mode="r:xz") as archive:
        for member in archive.getmembers():
            source = archive.extractfile(member)
            assert source is not None
            with source, (directory / member.name).open("wb") as target:
                shutil.copyfileobj(source, target)
    return directory / NAME


def read(path: Path) -> dict[str, Any]:
    """What a node that starts with these files knows, as JSON can hold it."""
    storage = SqliteStorage(path)
    try:
        found = storage.load()[GROUP]
        connection = storage.visibility_connection()
        try:
            shown = [run_id for (run_id,) in connection.execute("SELECT run_id FROM visibility_executions")]
        finally:
            connection.close()
        return {
            "identity": [storage.identity.cluster_id, storage.identity.node_id],
            "entries": plain(found.entries),
            "hard state": plain(found.hard_state),
            "applied": plain([found.applied, found.applied_term, found.conf]),
            "compacted": plain([found.compacted, found.compacted_term]),
            "rows": plain(list(storage.scan(_KEY, (GROUP + 1).to_bytes(4, "big")))),
            "run ids shown": shown,
        }
    finally:
        storage.close()
