"""What disks, people and other programs do to a file, and what we say to that."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from history_store.storage import files
from history_store.storage.contract import (
    Entry,
    HardState,
    Round,
    RowCorrupt,
    StorageBroken,
    StorageCorrupt,
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
)
from history_store.storage.sqlite import SqliteStorage

ROOT = Path(__file__).parents[3]
SMALL = 1 << 18  # a journal's length that fits on a small disk


def row(number: int, kind: bytes = b"a") -> bytes:
    return b"\0\0\0\1" + kind + b"%05d" % number


def filled(path: Path, rounds: int = 30, *, close: bool = True) -> SqliteStorage:
    storage = SqliteStorage(path, journal_bytes=SMALL)
    for n in range(1, rounds + 1):
        rows = [(row(n * 10 + i, kind), b"value %d " % n * 20) for i in range(10) for kind in (b"a", b"h")]
        storage.write(
            Round(entries=[(1, [Entry(1, n, 0, b"entry %d " % n * 20)])], rows=rows, applied=[(1, n, 1, b"")])
        )
    if close:
        storage.close()
    return storage


def crashed(path: Path, rounds: int = 30) -> Path:
    """Files as a kill leaves them: everything is still in SQLite's write-ahead log. Returns that log."""
    live = path.with_name("live.db")
    storage = filled(live, rounds, close=False)
    for suffix in files.DATA_SUFFIXES:
        shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
    storage.close()
    return Path(f"{path}-wal")


def refused(path: Path, kind: type[StorageError], *words: str) -> str:
    with pytest.raises(kind) as caught:
        SqliteStorage(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message


# ------------------------------------------------------------------------------------------ not our file


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x.db").touch()
    refused(tmp_path / "x.db", StorageCorrupt, "empty", "truncated")
    assert (tmp_path / "x.db").stat().st_size == 0


@pytest.mark.parametrize("size", [1, 99, 100, 5000, 100_000])
def test_garbage_is_refused_and_left_as_it_is(tmp_path, size):
    path = tmp_path / "x.db"
    garbage = random.Random(size).randbytes(size)
    path.write_bytes(garbage)
    refused(path, StorageCorrupt, "not a Holdfast data file")
    assert path.read_bytes() == garbage


def test_the_file_of_another_application_is_refused(tmp_path):
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    refused(path, StorageCorrupt, "another application")


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "x.db"
    filled(path, 2)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={files.FORMAT_VERSION + 1}")
    connection.close()
    refused(path, StorageCorrupt, "written by a newer Holdfast", f"format {files.FORMAT_VERSION + 1}")


def test_a_file_of_another_node_is_refused(tmp_path):
    path = tmp_path / "x.db"
    SqliteStorage(path, cluster_id="blue", node_id=3).close()
    with pytest.raises(StorageCorrupt, match="belongs to node 3 of cluster blue"):
        SqliteStorage(path, cluster_id="green", node_id=3)
    storage = SqliteStorage(path)
    assert storage.identity[:2] == ("blue", 3)
    storage.close()


def test_a_file_that_is_made_anew_is_another_one(tmp_path):
    path = tmp_path / "x.db"
    names = []
    for disk in ("", "", "given"):
        storage = SqliteStorage(path, cluster_id="blue", node_id=3, disk=disk)
        names.append(storage.identity.disk)
        storage.close()
        again = SqliteStorage(path, disk="another")
        assert again.identity.disk == names[-1]
        again.close()
        path.unlink()
    assert len(set(names)) == 3
    assert names[2] == "given"


def test_a_log_without_its_file_is_refused(tmp_path):
    crashed(tmp_path / "x.db")
    (tmp_path / "x.db").unlink()
    refused(tmp_path / "x.db", StorageCorrupt, "missing", "-wal")


def test_a_kill_while_the_file_was_made_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / "x.db-new").write_bytes(b"half a file")
    (tmp_path / "x.db-new-journal").write_bytes(b"half a journal")
    filled(tmp_path / "x.db", 1)
    assert sorted(os.listdir(tmp_path)) == ["x.db", "x.db-lock"]


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "x.db"
    filled(path, 60)
    size = path.stat().st_size
    os.truncate(path, int(size * keep))
    refused(path, StorageCorrupt)


def test_a_truncated_file_is_seen_beside_a_write_ahead_log(tmp_path):
    path = tmp_path / "x.db"
    filled(path, 60)
    storage = SqliteStorage(path)
    storage.write(Round(rows=[(row(1), b"new")]))
    for suffix in files.DATA_SUFFIXES:
        shutil.copy(f"{path}{suffix}", tmp_path / f"y.db{suffix}")
    storage.close()
    os.truncate(tmp_path / "y.db", 3 * 4096)
    refused(tmp_path / "y.db", StorageCorrupt, "truncated")


def test_a_torn_end_of_the_write_ahead_log_loses_only_what_was_not_acknowledged(tmp_path, rng):
    """The log is cut anywhere; what is left is a prefix of whole rounds."""
    path = tmp_path / "x.db"
    wal = crashed(path)
    os.truncate(wal, rng.randrange(wal.stat().st_size // 2, wal.stat().st_size))
    storage = SqliteStorage(path)
    log = storage.load()[1]
    assert log.applied == len(log.entries)
    assert len(list(storage.scan(b"", b"\xff"))) == 20 * log.applied
    assert storage.verify() == []
    storage.close()


def test_a_torn_last_transaction_is_normal(tmp_path):
    path = tmp_path / "x.db"
    wal = crashed(path)
    data = bytearray(wal.read_bytes())
    data[-4000] ^= 0xFF  # in the very last frame: a commit that did not get to its sync
    wal.write_bytes(data)
    storage = SqliteStorage(path)
    assert len(storage.load()[1].entries) == 29
    storage.close()


def test_a_flipped_byte_in_the_write_ahead_log_is_not_taken_for_its_end(tmp_path, rng):
    path = tmp_path / "x.db"
    wal = crashed(path)
    data = bytearray(wal.read_bytes())
    at = rng.choice([rng.randrange(8, 32), rng.randrange(32, len(data) // 2)])
    data[at] ^= 1 << rng.randrange(8)
    wal.write_bytes(data)
    refused(path, StorageCorrupt, "damaged", "acknowledged rounds")
    assert wal.read_bytes() == data  # the evidence stays


def test_flipped_bytes_are_never_served(tmp_path, rng):
    """Whatever is flipped, reading gives what was written, or an error that names the file."""
    path = tmp_path / "x.db"
    filled(path)
    storage = SqliteStorage(path)
    log, rows = storage.load(), dict(storage.scan(b"", b"\xff"))
    storage.close()
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 50])):
        data[rng.randrange(4096, len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)
    try:
        storage = SqliteStorage(path)
    except StorageCorrupt as error:
        assert str(path) in str(error)  # noqa: PT017 either outcome is right
        return
    try:
        found = storage.load()
        assert found == log
        for key, value in rows.items():
            got = storage.get(key)
            if (
                got != value
            ):  # a key whose place in the tree is damaged cannot be found; a full check sees that
                assert got is None
                assert storage.verify() != []
        for key, value in storage.scan(b"", b"\xff"):
            assert rows[key] == value
    except StorageCorrupt as error:
        assert str(path) in str(error)  # noqa: PT017 either outcome is right
        # What to do depends on who else has it, and the storage does not know: in a region a backup is wrong.
        assert isinstance(error, RowCorrupt | StorageDamaged)  # noqa: PT017
        assert "backup" not in str(error)  # noqa: PT017
    finally:
        storage.close()


def test_a_damaged_log_row_is_named(tmp_path):
    path = tmp_path / "x.db"
    filled(path, 5)
    with sqlite3.connect(path) as connection:
        (body,) = connection.execute("SELECT body FROM log WHERE sequence=3").fetchone()
        connection.execute("UPDATE log SET body=? WHERE sequence=3", (body[:-1] + b"!",))
    connection.close()
    storage = SqliteStorage(path)
    with pytest.raises(StorageCorrupt, match=r"log row 3 .*checksum"):
        storage.load()
    storage.close()


def test_a_missing_log_row_is_named(tmp_path):
    path = tmp_path / "x.db"
    filled(path, 5)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM log WHERE sequence=3")
    connection.close()
    storage = SqliteStorage(path)
    with pytest.raises(StorageCorrupt, match=r"log row 4 .*group 1: entry 4 does not follow entry 2"):
        storage.load()
    storage.close()


# -------------------------------------------------------------------------------------------- no space


def grow_until_full(storage: SqliteStorage, start: int) -> int:
    n = start
    with pytest.raises(StorageFull, match="no space left"):  # noqa: PT012 which round it is cannot be known
        while n < start + 2000:
            storage.write(
                Round(
                    rows=[(row(n), bytes(3000)), (row(n, b"h"), bytes(3000))],
                    entries=[(1, [Entry(1, n, 0, b"x")])],
                )
            )
            storage.maintain()
            n += 1
    return n


def check_full(storage: SqliteStorage, failed: int) -> None:
    """Nothing of the failed round is there, and everything before it is."""
    assert storage.get(row(failed)) is None
    assert storage.get(row(failed, b"h")) is None
    assert storage.get(row(failed - 1)) == bytes(3000)
    assert storage.load()[1].entries[-1].index == failed - 1


def test_a_full_file_refuses_and_goes_on_when_there_is_space(tmp_path):
    storage = SqliteStorage(tmp_path / "x.db", pages_max=200)
    failed = grow_until_full(storage, 1)
    check_full(storage, failed)
    storage.write(Round(rows=[(row(n, kind), None) for n in range(1, 40) for kind in (b"a", b"h")]))
    storage.write(Round(rows=[(row(failed), b"now")], entries=[(1, [Entry(1, failed, 0, b"x")])]))
    assert storage.get(row(failed)) == b"now"
    assert storage.verify() == []
    storage.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; needs the right to mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_refuses_and_goes_on_when_there_is_space(small_disk):
    path = small_disk / "x.db"
    (small_disk / "ballast").write_bytes(bytes(700_000))
    storage = SqliteStorage(path, journal_bytes=SMALL)
    failed = grow_until_full(storage, 1)
    check_full(storage, failed)
    (small_disk / "ballast").unlink()
    storage.write(Round(rows=[(row(failed), b"now")], entries=[(1, [Entry(1, failed, 0, b"x")])]))
    assert storage.get(row(failed)) == b"now"
    storage.close()
    storage = SqliteStorage(path, journal_bytes=SMALL)
    assert storage.load()[1].entries[-1].index == failed
    assert storage.verify() == []
    storage.close()


def test_a_disk_that_is_full_at_start_says_so(small_disk):
    (small_disk / "ballast").write_bytes(bytes(2 * 1024 * 1024 - 8192 - 4096))
    with pytest.raises(StorageFull, match="no space left"):
        SqliteStorage(small_disk / "x.db")
    (small_disk / "ballast").unlink()
    with pytest.raises(StorageFull, match=r"no space left for .*x\.db-log \(16384 KiB are set aside"):
        SqliteStorage(small_disk / "x.db")
    assert sorted(os.listdir(small_disk)) == ["x.db", "x.db-lock"]
    SqliteStorage(small_disk / "x.db", journal_bytes=SMALL).close()


# ------------------------------------------------------------------------------------------ not writable


def as_nobody(code: str, *arguments: str) -> str:
    """Run Python as a user who may write nothing here (root may write everything)."""
    if os.geteuid() != 0:
        program = code
    else:
        drop = "import os\nos.setgid(65534); os.setuid(65534)\n"
        program = f"from history_store.storage.sqlite import *\n{drop}{code}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


OPEN = """
import sys
from history_store.storage.sqlite import SqliteStorage
try:
    SqliteStorage(sys.argv[1]).close()
except Exception as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


@pytest.fixture
def open_path(tmp_path):
    for place in (tmp_path, *tmp_path.parents[:3]):
        if place != Path("/tmp"):
            place.chmod(0o755)
    return tmp_path / "x.db"


def test_a_directory_that_cannot_be_written(open_path):
    open_path.parent.chmod(0o555)
    said = as_nobody(OPEN, str(open_path))
    assert said.startswith("StorageReadOnly")
    assert "Make the file and its directory writable" in said


def test_a_file_that_cannot_be_written(open_path):
    filled(open_path, 2)
    open_path.chmod(0o444)
    Path(f"{open_path}-lock").chmod(0o666)
    open_path.parent.chmod(0o777)
    said = as_nobody(OPEN, str(open_path))
    if os.geteuid() == 0:
        assert said.startswith("StorageReadOnly")
        assert str(open_path) in said


def test_a_read_only_file_system(small_disk):
    filled(small_disk / "x.db", 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(small_disk / "x.db", StorageReadOnly, "cannot be written")


def test_a_directory_that_does_not_exist(tmp_path):
    refused(tmp_path / "nowhere" / "x.db", StorageReadOnly, "does not exist", "Create it")


# ---------------------------------------------------------------------------------------------- two users


def test_a_second_process_is_refused_at_once_and_told_who(tmp_path):
    path = tmp_path / "x.db"
    storage = filled(path, 2, close=False)
    said = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    ).stdout  # fmt: skip
    assert said.startswith("StorageLocked")
    assert f"{path} is in use by process {os.getpid()} on " in said
    storage.write(Round(rows=[(row(1), b"still mine")]))
    storage.close()
    SqliteStorage(path).close()


def test_a_second_storage_in_one_process_is_refused_also_by_another_name(tmp_path):
    path = tmp_path / "x.db"
    storage = SqliteStorage(path)
    (tmp_path / "link.db").symlink_to(path)
    for name in (path, tmp_path / "link.db"):
        with pytest.raises(StorageLocked):
            SqliteStorage(name)
    storage.close()


def test_a_failed_open_lets_go_of_the_lock(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"garbage" * 100)
    refused(path, StorageCorrupt)
    path.unlink()
    SqliteStorage(path).close()


# ---------------------------------------------------------------------------------------- input and output


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """A library that makes fdatasync and pwrite of chosen files fail while a flag file exists."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    place = tmp_path_factory.mktemp("shim")
    source = place / "fail.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <errno.h>\n"
        "#include <stdlib.h>\n#include <unistd.h>\n"
        "static int bad(void) { int e = errno;"
        ' int r = access(getenv("FAIL_FLAG"), F_OK) == 0; errno = e; return r; }\n'
        "#define FAIL(name) int name(int fd) { static int (*real)(int);"
        " if (!real) real = dlsym(RTLD_NEXT, #name); if (bad()) { errno = EIO; return -1; }"
        " return real(fd); }\n"
        "FAIL(fsync)\nFAIL(fdatasync)\n"
        "ssize_t pwrite64(int fd, const void *b, size_t n, off_t o)"
        " { static ssize_t (*real)(int, const void *, size_t, off_t);"
        ' if (!real) real = dlsym(RTLD_NEXT, "pwrite64"); if (bad()) { errno = EIO; return -1; }'
        " return real(fd, b, n, o); }\n"
    )
    library = place / "fail.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("rows", ["", "rows=[(bytes(5), b'v')], "])
def test_a_failed_sync_stops_the_storage_for_good(tmp_path, shim, rows):
    """After a failed fsync nobody knows what is on the disk, and a second one proves nothing."""
    flag = tmp_path / "flag"
    program = """
import os, sys
from history_store.storage.contract import *
from history_store.storage.sqlite import SqliteStorage
storage = SqliteStorage(sys.argv[1])
storage.write(Round(entries=[(1, [Entry(1, 1, 0, b"one")])]))
open(os.environ["FAIL_FLAG"], "w").close()
for _ in range(2):
    try:
        storage.write(Round(ROWSentries=[(1, [Entry(1, 2, 0, b"two")])]))
    except StorageBroken as error:
        print(error)
    os.path.exists(os.environ["FAIL_FLAG"]) and os.unlink(os.environ["FAIL_FLAG"])
storage.maintain()
storage.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program.replace("ROWS", rows), str(tmp_path / "x.db")],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FAIL_FLAG": str(flag), "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("whether it was written is not known" in line for line in lines)
    storage = SqliteStorage(tmp_path / "x.db")
    assert [entry.index for entry in storage.load()[1].entries] in ([1], [1, 2])
    storage.close()


def test_a_broken_storage_says_so_again(tmp_path):
    storage = filled(tmp_path / "x.db", 2, close=False)
    storage._broken = "it broke"
    with pytest.raises(StorageBroken, match="it broke"):
        storage.write(Round(rows=[(row(1), b"")]))
    storage.close()


@pytest.mark.parametrize("where", ["applied", "rows"])
def test_a_caller_that_raises_inside_a_round_harms_nobody_else(tmp_path, where):
    """A programming error is not a broken disk: it is raised as it is, and the next round works."""
    storage = filled(tmp_path / "x.db", 1, close=False)
    bad = Round(rows=[(row(900), b"v")])
    if where == "applied":
        bad.applied = [(1, object(), 1, b"")]  # type: ignore[list-item]
    else:
        bad.rows.append((row(901), object()))  # type: ignore[arg-type]
    with pytest.raises((TypeError, sqlite3.Error)):
        storage.write(bad)
    assert storage.get(row(900)) is None
    storage.write(Round(rows=[(row(902), b"v")]))
    assert storage.get(row(902)) == b"v"
    storage.close()


# -------------------------------------------------------------------------------------- what stays behind


def log_rows(storage: SqliteStorage) -> int:
    """How many log rows there are, in the database and in the journal only."""
    count: int = storage._writer.execute("SELECT count(*) FROM log").fetchone()[0]
    return count + len(storage._pending)


def test_log_rows_go_when_they_are_compacted_and_an_idle_group_does_not_keep_them(tmp_path):
    storage = SqliteStorage(tmp_path / "x.db")
    storage.write(Round(entries=[(9, [Entry(1, 1, 0, b"idle")])], hard_states=[(9, HardState(1, 1, 1))]))
    for n in range(1, 200):
        storage.write(Round(entries=[(1, [Entry(1, n, 0, b"x")])], hard_states=[(1, HardState(1, 1, n))]))
        if n % 10 == 0:
            storage.write(Round(rows=[(row(1), b"%d" % n)], applied=[(1, n, 1, b"")], compact=[(1, n, 1)]))
    assert log_rows(storage) <= 22
    storage.close()
    storage = SqliteStorage(tmp_path / "x.db")
    logs = storage.load()
    assert len(logs[9].entries) == 1
    assert len(logs[1].entries) == 9
    storage.close()


def test_a_round_that_says_nothing_new_writes_nothing(tmp_path):
    storage = SqliteStorage(tmp_path / "x.db")
    storage.write(Round(entries=[(1, [Entry(1, 1, 0, b"x")])], hard_states=[(1, HardState(1, 1, 0))]))
    before = log_rows(storage)
    size, mark = os.stat(tmp_path / "x.db-wal").st_size, storage._journal.mark
    storage.write(Round())
    storage.write(Round(hard_states=[(1, HardState(1, 1, 1))]))
    assert log_rows(storage) == before
    assert (os.stat(tmp_path / "x.db-wal").st_size, storage._journal.mark) == (size, mark)
    storage.close()


@pytest.mark.parametrize("value_bytes", [20, 5000, 100_000])
@pytest.mark.parametrize("before", ["nothing", "small neighbours", "rows all over"])
@pytest.mark.parametrize("maintained", [True, False])
def test_the_write_ahead_log_stays_short_whether_or_not_anybody_maintains(
    tmp_path, before, value_bytes, maintained
):
    """Whatever was written before, from which its length is estimated."""
    limit, draw = 1 << 17, random.Random(1)
    path = tmp_path / "x.db"
    storage = SqliteStorage(path, checkpoint_bytes=limit, journal_bytes=SMALL)
    rounds = {
        "nothing": [],
        "small neighbours": [[row(10 * n + i) for i in range(10)] for n in range(400)],
        "rows all over": [[row(draw.randrange(100_000))] for _ in range(150)],
    }[before]
    longest = 0
    for n, keys in enumerate(rounds + [[row(n, b"h")] for n in range(120)]):
        storage.write(Round(rows=[(key, bytes(20 if n < len(rounds) else value_bytes)) for key in keys]))
        if maintained:
            storage.maintain()
        longest = max(longest, os.stat(f"{path}-wal").st_size)
    storage.close()
    assert longest < limit * (2 if maintained else 6) + 2 * value_bytes


class NoCheckpoints:
    """A connection to a disk that has room for the write-ahead log, but not for the file."""

    def __init__(self, connection):
        self.connection = connection
        self.tried = 0

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, text, *arguments):
        if "wal_checkpoint" in text:
            self.tried += 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self.connection.execute(text, *arguments)


def test_a_checkpoint_that_cannot_be_made_is_not_tried_at_every_round(tmp_path):
    """Each try copies what there is room for, and others wait for the disk meanwhile."""
    storage = SqliteStorage(tmp_path / "x.db", checkpoint_bytes=1 << 18, journal_bytes=SMALL)
    real, full = storage._writer, NoCheckpoints(storage._writer)
    storage._writer = full
    for n in range(200):
        storage.write(Round(rows=[(row(n), bytes(5000))]))
        storage.maintain()
    assert 5 < full.tried < 40
    storage._writer = real
    for n in range(200, 260):
        storage.write(Round(rows=[(row(n), bytes(5000))]))
        storage.maintain()
    assert storage._wal.pages < (1 << 18) / 4096
    storage.close()


def test_damage_that_a_long_scan_alone_finds_is_told_as_damage(tmp_path):
    """What reads short scans has the page in its cache; the connection of a long one meets it on disk."""
    storage = filled(tmp_path / "x.db", 60, close=False)
    storage._checkpoint()
    assert len(list(storage.scan(row(0), row(99999), 200))) == 200
    ((root,),) = storage._writer.execute("SELECT rootpage FROM sqlite_master WHERE name='rows'").fetchall()
    with open(storage.path, "r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(StorageCorrupt, match="reading rows"):
        list(storage.scan(row(0), row(99999)))
    storage._broken = "its file is damaged"  # nothing more is written to it
    storage.close()


def test_a_scan_of_large_rows_is_read_as_it_is_used(tmp_path):
    """An image of a shard is such a scan, and 256 rows of it may be half a gigabyte."""
    storage = SqliteStorage(tmp_path / "x.db", journal_bytes=SMALL)
    large = [(row(n), bytes(1 << 20)) for n in range(30)]
    storage.write(Round(rows=large))
    tracemalloc.start()
    try:
        found = sum(len(value) for _, value in storage.scan(row(0), row(99999)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    storage.close()
    assert found == 30 << 20
    assert peak < 6 << 20


def test_closing_leaves_one_file_and_the_lock(tmp_path):
    filled(tmp_path / "x.db", 3)
    assert sorted(os.listdir(tmp_path)) == ["x.db", "x.db-lock"]
