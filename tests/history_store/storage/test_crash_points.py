"""The process dies at every system call that changes a file, one after the other, half of the writes done.

A library in front of the C library counts those calls and ends the process at the chosen one. `driver` runs
the same short life of a storage again and again, in forked processes, each of which dies one call later than
the one before, and opens what it left. What was acknowledged must be there, and at most the round under way.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from history_store.storage.contract import Entry, HardState, Round
from history_store.storage.sqlite import SqliteStorage

ROOT = Path(__file__).parents[3]
SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/types.h>
static long left = -1;
void die_at(long call) { left = call; }
static int now(void) { return left > 0 && --left == 0; }
#define REAL(type, name, ...) \\
    static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
    if (now()) { real(fd, b, n > 4096 ? n / 8192 * 4096 : 0, o); _exit(9); }
    return real(fd, b, n, o);
}
int fsync(int fd) { REAL(int, fsync, int); if (now()) _exit(9); return real(fd); }
int fdatasync(int fd) { REAL(int, fdatasync, int); if (now()) _exit(9); return real(fd); }
int ftruncate64(int fd, off_t n) {
    REAL(int, ftruncate64, int, off_t); if (now()) _exit(9); return real(fd, n);
}
int unlink(const char *p) { REAL(int, unlink, const char *); if (now()) _exit(9); return real(p); }
int rename(const char *a, const char *b) {
    REAL(int, rename, const char *, const char *); if (now()) _exit(9); return real(a, b);
}
"""


def round_of(number: int) -> Round:
    """Every fourth round has rows, and compacts; every third is long."""
    data = b"%d:" % number + bytes(9000 if number % 3 == 0 else 10)
    batch = Round(entries=[(1, [Entry(1, number, 0, data)]), (2, [Entry(1, number, 0, b"")])])
    batch.hard_states = [(2, HardState(number // 2, 1, 0))]
    if number % 4 == 0:
        batch.rows = [(b"\0\0\0\1" + kind, b"%d" % number) for kind in (b"a", b"h")]
        batch.applied = [(1, number, 1, b"")]
        batch.compact = [(1, number, 1)]
    return batch


def live(path: Path, said: int) -> None:
    """What dies: 28 rounds in two lives, the journal going around, folds; each round is said when durable."""
    number = 0
    for _ in range(2):
        storage = SqliteStorage(path, journal_bytes=1)
        log = storage.load().get(1)
        number = log.compacted + len(log.entries) if log else 0
        for _ in range(14):
            number += 1
            storage.write(round_of(number))
            os.write(said, b"%d\n" % number)
            if number % 7 == 0:
                storage.fold(Round(rows=[(b"\0\0\0\2z", b"%d" % number)], compact=[(2, number - 3, 1)]))
                os.write(said, b"-%d\n" % number)
        storage.close()


def check(path: Path, acknowledged: int, folded: int) -> None:
    storage = SqliteStorage(path, journal_bytes=1)
    logs = storage.load()
    if acknowledged:
        last = logs[1].compacted + len(logs[1].entries)
        assert last in (acknowledged, acknowledged + 1)
        assert logs[2].compacted + len(logs[2].entries) == last
        assert logs[2].hard_state.term == last // 2
        for entry in logs[1].entries:
            assert int(entry.data.split(b":")[0]) == entry.index
        assert logs[1].applied == last - last % 4
        assert int(storage.get(b"\0\0\0\1h") or 0) == logs[1].applied
        assert int(storage.get(b"\0\0\0\2z") or 0) in (
            folded,
            acknowledged if acknowledged % 7 == 0 else folded,
        )
    assert storage.verify() == []
    storage.close()
    assert not Path(f"{path}-log").exists()


def driver(directory: Path) -> int:
    """Returns how many calls there are to die at."""
    import ctypes

    die_at = ctypes.CDLL(None).die_at
    for call in range(1, 2000):
        place = directory / str(call)
        place.mkdir()
        path = place / "x.db"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                die_at(ctypes.c_long(call))
                live(path, writer)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 3)
        os.close(writer)
        with os.fdopen(reader) as file:
            said = [int(line) for line in file]
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 9), f"call {call}: the child ended with {code}"
        try:
            check(path, max([0, *said]), -min([0, *said]))
        except BaseException:
            print(f"died at call {call} having said {said}; files in {place}", file=sys.stderr)
            raise
        shutil.rmtree(place)
        if code == 0:
            return call
    raise AssertionError("it never ended")


def test_death_at_every_call_that_changes_a_file(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "die.c", tmp_path / "die.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tmp_path  # no power fails here: three times as fast
    with tempfile.TemporaryDirectory(dir=memory) as place:
        done = subprocess.run(
            [sys.executable, "-W", "error", __file__, place], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100, "most of its calls were not seen"


if __name__ == "__main__":
    print(driver(Path(sys.argv[1])))
