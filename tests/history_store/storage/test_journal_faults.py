"""What becomes of a storage when something happens to its journal: lost, foreign, damaged, no room."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from history_store.storage import files, tables
from history_store.storage.contract import (
    Entry,
    HardState,
    Round,
    StorageCorrupt,
    StorageFull,
)
from history_store.storage.journal import BLOCK_BYTES, newest, read_epoch
from history_store.storage.sqlite import SqliteStorage

ROOT = Path(__file__).parents[3]
SMALL = 1 << 16


def append(storage: SqliteStorage, first: int, last: int, data: bytes = b"x") -> None:
    for index in range(first, last + 1):
        storage.write(
            Round(entries=[(1, [Entry(1, index, 0, data)])], hard_states=[(1, HardState(1, 1, index))])
        )


def crashed(path: Path, rounds: int = 5) -> None:
    """Files as a kill leaves them, the rounds in the journal only."""
    live = path.with_name("live.db")
    storage = SqliteStorage(live, journal_bytes=SMALL)
    append(storage, 1, rounds)
    copy(live, path)
    storage.close()


def copy(source: Path, target: Path) -> None:
    for suffix in files.DATA_SUFFIXES:
        if Path(f"{source}{suffix}").exists():
            shutil.copy(f"{source}{suffix}", f"{target}{suffix}")


def indexes(storage: SqliteStorage) -> list[int]:
    log = storage.load().get(1)
    return [entry.index for entry in log.entries] if log else []


def opened(path: Path) -> list[int]:
    storage = SqliteStorage(path, journal_bytes=SMALL)
    assert storage.verify() == []
    found = indexes(storage)
    storage.close()
    assert not Path(f"{path}-log").exists()
    return found


def refused(path: Path, *words: str) -> None:
    before = {
        name: Path(f"{path}{name}").read_bytes() for name in ("", "-log") if Path(f"{path}{name}").exists()
    }
    with pytest.raises(StorageCorrupt) as caught:
        SqliteStorage(path, journal_bytes=SMALL)
    for word in (f"{path}-log", *words):
        assert word in str(caught.value)
    for name in before:
        if name:  # the evidence stays
            assert Path(f"{path}{name}").read_bytes() == before[name]


# ------------------------------------------------------------------------------- which file is the right one


def test_what_is_in_the_journal_only_survives_a_kill_and_is_folded_at_the_next_start(tmp_path):
    crashed(tmp_path / "x.db")
    assert opened(tmp_path / "x.db") == [1, 2, 3, 4, 5]
    assert opened(tmp_path / "x.db") == [1, 2, 3, 4, 5]


def test_a_missing_journal_is_refused(tmp_path):
    crashed(tmp_path / "x.db")
    Path(f"{tmp_path / 'x.db'}-log").rename(tmp_path / "aside")
    refused(tmp_path / "x.db", "is missing", "was not closed", "Put it back")
    (tmp_path / "aside").rename(f"{tmp_path / 'x.db'}-log")
    assert opened(tmp_path / "x.db") == [1, 2, 3, 4, 5]


def test_a_journal_without_its_database_is_refused(tmp_path):
    crashed(tmp_path / "x.db")
    for suffix in ("", "-wal"):
        Path(f"{tmp_path / 'x.db'}{suffix}").unlink()
    refused(tmp_path / "x.db", "is missing, but its log")


def test_the_journal_of_another_database_is_refused(tmp_path):
    crashed(tmp_path / "x.db")
    crashed(tmp_path / "y.db")
    shutil.copy(tmp_path / "y.db-log", tmp_path / "x.db-log")
    refused(tmp_path / "x.db", "belongs to another database")
    SqliteStorage(tmp_path / "z.db").close()
    shutil.copy(tmp_path / "y.db-log", tmp_path / "z.db-log")
    refused(tmp_path / "z.db", "belongs to another database")


def test_files_of_two_times_do_not_go_together(tmp_path):
    """The database of an old backup beside the journal of today, and the other way around."""
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, journal_bytes=SMALL)
    append(storage, 1, 3)
    storage.close()
    shutil.copy(path, tmp_path / "backup.db")
    storage = SqliteStorage(path, journal_bytes=SMALL)
    storage.load()
    append(storage, 4, 5)
    copy(path, tmp_path / "today.db")
    storage.close()
    storage = SqliteStorage(path, journal_bytes=SMALL)
    storage.load()
    append(storage, 6, 6)
    copy(path, tmp_path / "tomorrow.db")
    storage.close()
    shutil.copy(tmp_path / "today.db-log", tmp_path / "backup.db-log")
    refused(tmp_path / "backup.db", "has rounds that this one has not")
    shutil.copy(tmp_path / "today.db-log", tmp_path / "tomorrow.db-log")
    refused(tmp_path / "tomorrow.db", "another time")
    assert opened(path) == [1, 2, 3, 4, 5, 6]


def test_what_a_kill_amid_closing_leaves_is_no_stranger(tmp_path):
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, journal_bytes=SMALL)
    append(storage, 1, 3)
    shutil.copy(f"{path}-log", tmp_path / "ended")
    storage.close()
    shutil.copy(tmp_path / "ended", f"{path}-log")  # folded, and not yet removed
    Path(f"{path}-log-new").write_bytes(b"half of one")
    assert opened(path) == [1, 2, 3]


def test_two_copies_of_one_database_go_different_ways(tmp_path):
    SqliteStorage(tmp_path / "x.db").close()
    shutil.copy(tmp_path / "x.db", tmp_path / "y.db")
    crashed_as = {}
    for name in ("x.db", "y.db"):
        storage = SqliteStorage(tmp_path / name, journal_bytes=SMALL)
        storage.load()
        append(storage, 1, 2)
        copy(tmp_path / name, tmp_path / f"left-{name}")
        crashed_as[name] = read_epoch(Path(f"{tmp_path / name}-log"))[0]
        storage.close()
    assert len(set(crashed_as.values())) == 2
    shutil.copy(tmp_path / "left-y.db-log", tmp_path / "left-x.db-log")
    refused(tmp_path / "left-x.db", "belongs to another database")


def test_a_file_of_the_version_without_a_journal_is_brought_to_this_one(tmp_path):
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, journal_bytes=SMALL)
    append(storage, 1, 3)
    storage.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE journal")
        connection.execute("PRAGMA user_version=1")
    connection.close()
    assert opened(path) == [1, 2, 3]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (files.FORMAT_VERSION,)
    connection.close()
    header = path.read_bytes()[60:64]
    assert int.from_bytes(header, "big") == files.FORMAT_VERSION, "what an older program looks at"


# ------------------------------------------------------------------------------------------------ damage


def test_a_torn_end_of_the_journal_loses_only_the_round_that_was_under_way(tmp_path, rng):
    path = tmp_path / "x.db"
    crashed(path)
    offset, _ = newest(Path(f"{path}-log"))[-1]
    with open(f"{path}-log", "r+b") as file:
        file.seek(offset + rng.randrange(60))
        file.write(rng.randbytes(100))
    assert opened(path) == [1, 2, 3, 4]


def test_damage_before_the_end_of_the_journal_is_refused(tmp_path, rng):
    path = tmp_path / "x.db"
    crashed(path)
    offset, _ = newest(Path(f"{path}-log"))[rng.randrange(4)]
    data = bytearray(Path(f"{path}-log").read_bytes())
    data[offset + rng.randrange(60)] ^= 1 << rng.randrange(8)
    Path(f"{path}-log").write_bytes(data)
    refused(path, "is damaged", "acknowledged rounds are behind it")


def test_a_truncated_journal_is_refused(tmp_path):
    path = tmp_path / "x.db"
    crashed(path)
    os.truncate(f"{path}-log", 5 * BLOCK_BYTES)
    refused(path, "is damaged", "should have 65536")


def test_a_full_check_sees_damage_in_the_journal(tmp_path):
    storage = SqliteStorage(tmp_path / "x.db", journal_bytes=SMALL)
    append(storage, 1, 3)
    assert storage.verify() == []
    offset, _ = newest(Path(f"{tmp_path / 'x.db'}-log"))[-1]
    with open(f"{tmp_path / 'x.db'}-log", "r+b") as file:
        file.seek(offset + 50)
        file.write(b"?")
    assert "record 3 cannot be read" in storage.verify()[0]
    storage.close()


def test_a_damaged_note_about_the_journal_is_refused(tmp_path):
    path = tmp_path / "x.db"
    crashed(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE journal SET floor=floor+1")
    connection.close()
    with pytest.raises(StorageCorrupt, match="table journal"):
        SqliteStorage(path)


# -------------------------------------------------------------------------------------------- no room


def test_a_journal_that_is_full_is_folded_by_the_next_round(tmp_path):
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, journal_bytes=SMALL)
    append(storage, 1, 100)
    storage.write(Round(entries=[(1, [Entry(1, 101, 0, bytes(3 * SMALL))])]))  # longer than all of it
    append(storage, 102, 103)
    size = storage.size_bytes()
    assert size >= SMALL
    copy(path, tmp_path / "y.db")
    storage.close()
    assert opened(tmp_path / "y.db") == list(range(1, 104))


def test_while_rows_find_no_room_appends_do_and_nothing_is_lost(tmp_path):
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, pages_max=120, journal_bytes=SMALL)
    append(storage, 1, 3)
    big = Round(rows=[(b"\0\0\0\1a%d" % i, bytes(3000)) for i in range(200)])
    with pytest.raises(StorageFull):
        storage.fold(big)
    append(storage, 4, 6)
    copy(path, tmp_path / "y.db")
    with pytest.raises(StorageFull):  # the journal is full as well now
        append(storage, 7, 1000, bytes(30_000))
    assert storage.get(big.rows[0][0]) is None
    last = indexes(storage)[-1]
    storage._writer.execute("PRAGMA max_page_count=100000")
    storage.fold(big)
    append(storage, last + 1, last + 3)
    storage.close()
    assert opened(path) == list(range(1, last + 4))
    assert opened(tmp_path / "y.db") == [1, 2, 3, 4, 5, 6]


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/types.h>
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t done = real(fd, b, n, o);
    if (unlink(getenv("FAIL_FLAG")) == 0) { errno = ENOSPC; return -1; }
    return done;
}
"""
PROGRAM = """
import os, shutil, sys
from history_store.storage.contract import *
from history_store.storage.sqlite import SqliteStorage
storage = SqliteStorage(sys.argv[1])
storage.load()
def write(index):
    storage.write(Round(entries=[(1, [Entry(1, index, 0, b"x")])]))
write(1)
open(os.environ["FAIL_FLAG"], "w").close()
try:
    write(2)
except StorageFull as error:
    print(error)
for suffix in ("", "-wal", "-log"):
    shutil.copy(sys.argv[1] + suffix, sys.argv[2] + suffix)
write(2)
write(3)
storage.close()
"""


def test_an_append_that_finds_no_space_is_not_there_and_can_be_tried_again(tmp_path):
    """A file system that copies on write may have no room for blocks that exist."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "full.c", tmp_path / "full.so"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    flag, path, left = tmp_path / "flag", tmp_path / "x.db", tmp_path / "left.db"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(left)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FAIL_FLAG": str(flag), "LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no space left while writing a round" in done.stdout
    assert opened(left) == [1]
    assert opened(path) == [1, 2, 3]


# ------------------------------------------------------------------------------------------ two threads


def test_appends_do_not_wait_for_a_fold(tmp_path, monkeypatch):
    """Another program holds SQLite's lock, so the fold takes as long as we like."""
    monkeypatch.setattr(tables, "BUSY_MS", 300_000)
    path = tmp_path / "x.db"
    storage = SqliteStorage(path)
    append(storage, 1, 1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    folded = threading.Event()

    def fold() -> None:
        applied = [(1, 1, 1, b""), (2, 0, 0, b"")]
        storage.fold(Round(rows=[(b"\0\0\0\1a", b"v")], applied=applied, compact=[(1, 1, 1)]))
        folded.set()

    thread = threading.Thread(target=fold)
    thread.start()
    while not storage._storing.locked():
        pass
    storage.write(Round(hard_states=[(1, HardState(7, 3, 1)), (2, HardState(8, 4, 0))]))
    for index in range(2, 41):
        storage.write(Round(entries=[(1, [Entry(7, index, 0, b"x")])]))
    assert not folded.is_set()
    storage.maintain()
    holder.execute("ROLLBACK")
    holder.close()
    thread.join()
    copy(path, tmp_path / "y.db")
    storage.fold(Round(applied=[(1, 40, 7, b"")], compact=[(1, 38, 7)]))  # the votes' round is not needed now
    copy(path, tmp_path / "z.db")
    storage.close()
    for name, compacted in (("y.db", 1), ("z.db", 38)):
        storage = SqliteStorage(tmp_path / name)
        logs = storage.load()
        assert (logs[1].compacted, logs[1].hard_state[:2], logs[2].hard_state[:2]) == (
            compacted,
            (7, 3),
            (8, 4),
        )
        assert [entry.index for entry in logs[1].entries] == list(range(compacted + 1, 41))
        storage.close()


def test_rounds_that_nobody_needs_any_more_never_get_to_the_database(tmp_path):
    storage = SqliteStorage(tmp_path / "x.db")
    append(storage, 1, 50)
    storage.fold(Round(applied=[(1, 50, 1, b"")], compact=[(1, 48, 1)]))
    assert [row[0] for row in storage._writer.execute("SELECT sequence FROM log")] == [49, 50]
    append(storage, 51, 52)
    storage.fold(Round(applied=[(1, 52, 1, b"")], compact=[(1, 52, 1)]))
    assert storage._writer.execute("SELECT count(*) FROM log").fetchone() == (0,)
    assert storage._pending == {}
    storage.close()
