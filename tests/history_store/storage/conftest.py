"""Both implementations behind one handle, with the two ways a process ends: closed, and killed."""

import shutil
from pathlib import Path

import pytest

from history_store.storage import files
from history_store.storage.contract import Storage
from history_store.storage.memory import MemoryStorage
from history_store.storage.sqlite import SqliteStorage


class Disk:
    """One storage and what is left of it when its process ends."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.path = directory / "node.db"
        self.copies = 0
        self.storage: Storage = self.open()

    def open(self) -> Storage:
        if self.kind == "memory":
            return MemoryStorage()
        return SqliteStorage(self.path, checkpoint_bytes=1 << 16, journal_bytes=1 << 16)

    def close_and_open(self) -> Storage:
        if isinstance(self.storage, MemoryStorage):
            self.storage.crash()
        else:
            self.storage.close()
            self.storage = self.open()
        return self.storage

    def kill_and_open(self) -> Storage:
        """What a SIGKILL leaves is what is in the files now."""
        if isinstance(self.storage, MemoryStorage):
            self.storage.crash()
            return self.storage
        self.copies += 1
        left = self.directory / f"copy{self.copies}.db"
        for suffix in files.DATA_SUFFIXES:
            source = self.path.with_name(self.path.name + suffix)
            if source.exists():
                shutil.copy(source, left.with_name(left.name + suffix))
        self.storage.close()
        self.path = left
        self.storage = self.open()
        return self.storage


@pytest.fixture(params=["memory", "sqlite"])
def disk(request: pytest.FixtureRequest, tmp_path: Path):
    disk = Disk(request.param, tmp_path)
    yield disk
    disk.storage.close()
