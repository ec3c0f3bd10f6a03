"""What is checked about the files before SQLite touches them, and who may touch them.

SQLite repairs silently where we must not be silent. Two cases matter. It treats a bad frame in the middle of
its write-ahead log as the torn end of a crash, and forgets every acknowledged round behind it. And it fills
a database file that is too short with zeros. Both are seen here, from the published file formats, before it
opens the file.

A torn end is normal. A commit is synced before the next begins, so at most the last transaction can be torn:
a bad frame with a whole transaction behind it, and a frame behind that, was not torn but damaged later. Frame
checksums are chained through the *stored* checksums, so what comes behind a damaged frame can still be told
from leftovers of an older log. What cannot be told from a crash is a write-ahead log cut off at its end.

The lock is `flock` on a file of its own: locks on the database file itself are SQLite's, and closing any
descriptor of that file would drop them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from history_store.storage.contract import (
    StorageBroken,
    StorageCorrupt,
    StorageDamaged,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
)

APPLICATION_ID = 0x484F4C44  # "HOLD"
FORMAT_VERSION = 3  # 2: rounds are in a journal of our own first (journal.py); 3: the projection has slots
JOURNAL_SUFFIX = "-log"
CONDEMNED_SUFFIX = "-damaged"
# What data there may be beside a name, in use and after a crash; after a clean end only the first.
DATA_SUFFIXES = ("", "-wal", JOURNAL_SUFFIX)

_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_WAL_HEADER = struct.Struct(">8I")  # magic, format, page size, checkpoint, salt 1, salt 2, checksum 1, 2
_FRAME_HEADER = struct.Struct(">6I")  # page, pages after commit or 0, salt 1, salt 2, checksum 1, 2
_WAL_MAGIC = 0x377F0682  # plus 1 when checksums are of big-endian words
_MASK = 0xFFFFFFFF


class FileLock:
    """The right of one process to a database file, for as long as the object is not released."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + "-lock")
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise open_error(error, self._path) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 200).decode("utf-8", "replace").strip()
            os.close(self._fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StorageBroken(
                    f"{self._path} cannot be locked: {error.strerror}. Use a local disk"
                ) from error
            raise StorageLocked(
                f"{path} is in use by {holder or 'another process'}. Stop that process, or use another file"
            ) from error
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a lock that does not say who holds it is a lock all the same
                os.close(self._fd)
                raise open_error(error, self._path) from error

    def release(self) -> None:
        """Let others in. The file stays: removing it would race with somebody who has just opened it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_error(error: OSError, path: Path) -> StorageReadOnly | StorageFull | StorageBroken:
    """What an error of open or write of one of our files means."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return StorageReadOnly(
                f"{path} cannot be made: the directory {path.parent} does not exist. Create it"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StorageReadOnly(
                f"{path} cannot be written ({error.strerror}). "
                f"Make the file and its directory writable for this user (id {os.geteuid()})"
            )
        case errno.ENOSPC | errno.EDQUOT:
            return StorageFull(f"no space left for {path}. Free some and start again")
        case _:
            return StorageBroken(
                f"{path} cannot be opened: {error.strerror}. See the kernel's log for disk errors"
            )


def sync_directory(path: Path) -> None:
    """Make a name durable: a file that is synced under a name that is not can be lost whole."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------- inspection


@dataclass(slots=True)
class _WalScan:
    """What a write-ahead log holds."""

    page_bytes: int = 0
    pages: int = 0  # of the database as of the last whole transaction; 0 = the log has none
    numbers: set[int] = field(default_factory=set)  # pages that whole transactions wrote


def inspect(path: Path) -> None:
    """Refuse a file that is not ours, is of a newer version, or has lost something. It must exist."""
    _check_condemned(path)
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if not os.access(path, os.W_OK):
            raise StorageReadOnly(
                f"{path} cannot be written by this user (id {os.geteuid()}). Change its permissions"
            )
        size = path.stat().st_size
    except OSError as error:
        raise open_error(error, path) from error
    if not header:
        raise StorageDamaged(f"{path} is empty, and a Holdfast data file never is: it was truncated")
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise StorageDamaged(f"{path} is not a Holdfast data file: its first bytes are not SQLite's")
    (application,) = struct.unpack_from(">I", header, 68)
    (version,) = struct.unpack_from(">I", header, 60)
    if application != APPLICATION_ID:
        raise StorageCorrupt(
            f"{path} is a SQLite file of another application (id {application:#x}). Name another file"
        )
    if version > FORMAT_VERSION:
        raise StorageCorrupt(
            f"{path} was written by a newer Holdfast (format {version}, this one knows {FORMAT_VERSION}). "
            "Start it with that version"
        )
    page_bytes = struct.unpack_from(">H", header, 16)[0]
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    scan = _scan_wal(path.with_name(path.name + "-wal"))
    pages = scan.pages or struct.unpack_from(">I", header, 28)[0]
    if page_bytes < 512 or (scan.pages and scan.page_bytes != page_bytes):
        raise StorageDamaged(f"{path} is damaged at byte 16: page size {page_bytes} is impossible")
    missing = set(range(size // page_bytes + 1, pages + 1)) - scan.numbers
    if missing:
        raise StorageDamaged(
            f"{path} is truncated: it is {size} bytes long and should have {pages} pages of {page_bytes} "
            f"bytes; page {min(missing)} is missing"
        )


def condemn(path: Path, why: str) -> None:
    """Note beside the file that it is damaged, so that it is refused at its next start, whatever is read."""
    note = path.with_name(path.name + CONDEMNED_SUFFIX)
    with suppress(OSError):  # a disk that takes nothing more: it will be met again
        with note.open("w") as file:
            file.write(why)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)


def _check_condemned(path: Path) -> None:
    note = path.with_name(path.name + CONDEMNED_SUFFIX)
    if note.exists():
        why = note.read_text(errors="replace").strip() or "no reason was noted"
        raise StorageDamaged(f"{path} was found damaged while it was in use ({note}): {why}")


def remove_data(path: Path) -> None:
    """Remove a file that is not open, and all that belongs to it."""
    for suffix in (*DATA_SUFFIXES, "-shm", "-lock", CONDEMNED_SUFFIX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _scan_wal(path: Path) -> _WalScan:
    """Read the write-ahead log; `StorageCorrupt` when recovery would drop an acknowledged transaction."""
    scan = _WalScan()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return scan
    except OSError as error:
        raise open_error(error, path) from error
    if len(data) <= _WAL_HEADER.size:
        return scan
    magic, _, page_bytes, _, salt1, salt2, sum1, sum2 = _WAL_HEADER.unpack_from(data)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _WAL_MAGIC or _checksum(data[:24], order, 0, 0) != (sum1, sum2):
        if not any(data[: _WAL_HEADER.size]):
            return scan
        raise StorageDamaged(f"{path} is damaged in its header: acknowledged rounds in it cannot be read")
    scan.page_bytes = page_bytes
    step = _FRAME_HEADER.size + page_bytes
    good = True  # all frames so far are whole
    suspicious = 0  # offset of the first bad frame
    ended = False  # a transaction has ended behind a bad frame
    pending: set[int] = set()
    for offset in range(_WAL_HEADER.size, len(data) - step + 1, step):
        page, pages, found1, found2, next1, next2 = _FRAME_HEADER.unpack_from(data, offset)
        if (found1, found2) == (salt1, salt2):
            check = _checksum(data[offset : offset + 8], order, sum1, sum2)
            whole = (next1, next2) == _checksum(data[offset + 24 : offset + step], order, *check)
        else:
            whole = False
        if ended and whole:
            raise StorageDamaged(
                f"{path} is damaged at byte {suspicious}: acknowledged rounds behind that cannot be read"
            )
        if good and not whole:
            good, suspicious = False, offset
        if good:
            pending.add(page)
            if pages:
                scan.numbers |= pending
                scan.pages = pages
                pending.clear()
        else:
            ended = bool(pages) and (found1, found2) == (salt1, salt2)
        sum1, sum2 = next1, next2
    return scan


def _checksum(data: bytes, order: str, sum1: int, sum2: int) -> tuple[int, int]:
    """SQLite's checksum of a write-ahead log, over pairs of 32-bit words."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        sum1 = (sum1 + first + sum2) & _MASK
        sum2 = (sum2 + second + sum1) & _MASK
    return sum1, sum2
