"""The journal: rounds that only append to Raft logs, in a file of our own beside the database.

Theory of operation. The file is made once a life of the storage, written full of zeros and synced, so that an
append changes no metadata: it is one `pwrite` into blocks that exist, on a descriptor that is synchronous
(O_DSYNC) and, where the file system can, direct. One system call a round, one hand-over of the GIL. Records
begin at block borders; no block that holds an acknowledged record is ever written again before the database
has what is in it.

Records lie in a ring. A *fold* (sqlite.py) puts what is still needed of all records up to now into the
database, and with it, in the same transaction, the *floor*: the number of the first record that is not
covered, and where it is or will be. Blocks before the floor are free from then on.

Each life has an *epoch*, a random number that the database drew for it. It is in the file's head and in every
record, so another database's file, or one of another time, is not mistaken for ours; nor is what is left of
an earlier lap, whose numbers are below the floor.

A round is synced before the next begins. So at most the last record can be torn, and it was never
acknowledged: a bad record with a later one behind it, anywhere in the file, was damaged after it was whole.
The file never changes its length, so one that is too short has lost something, too.
What cannot be told from a crash is a last record that was damaged in its own blocks.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from history_store.storage import files, frames
from history_store.storage.contract import StorageBroken, StorageCorrupt, StorageDamaged, StorageFull

BLOCK_BYTES = 4096
BYTES_MIN = 16 * BLOCK_BYTES
FORMAT_VERSION = 1

_MAGIC = b"HOLDLOG\n"
_HEAD = struct.Struct("<I8sIQQ")  # crc of what follows, magic, version, epoch, length of the file
_RECORD_MAGIC = b"rnd1"
_RECORD = struct.Struct("<I4sIQQQ")  # crc of what follows and of the frame's head, magic, length, epoch, ...
# ... number, sequence; then the frame (frames.py), whose own checksum covers the rest of it
_COVERED = _RECORD.size + frames.HEAD_BYTES
_ZEROS_BYTES = 1 << 20
_BUFFER_BYTES_MIN = 1 << 16
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class Mark(NamedTuple):
    """A place between two records."""

    number: int  # of the record that comes next
    offset: int  # where it is, unless it does not fit there: then it is behind the file's head
    position: int  # the same, counted over all laps; means something in one life only


class Record(NamedTuple):
    """One round, as the file has it."""

    number: int
    offset: int
    sequence: int
    body: bytes


class Journal:
    """The file of one life, open for appending. One thread at a time."""

    def __init__(self, path: Path, epoch: int, size: int) -> None:
        """Make the file; an older one is replaced. Its blocks exist when this returns."""
        self.path = path
        self.epoch = epoch
        self._capacity = max(size, BYTES_MIN) // BLOCK_BYTES * BLOCK_BYTES - BLOCK_BYTES
        self._number = 1
        self._position = 0  # where the next record comes, counted over all laps
        self._floor = 0  # the position up to which the database has everything
        self._grow(_BUFFER_BYTES_MIN)
        self._fd = _make(path, epoch, self._capacity + BLOCK_BYTES)

    @property
    def mark(self) -> Mark:
        """Where the next record comes."""
        return Mark(self._number, self._offset(self._position), self._position)

    def append(self, sequence: int, body: bytearray) -> bool:
        """Write a round durably. False: there is no room for it before the next fold, or ever."""
        needed = _RECORD.size + len(body)
        padded = -(-needed // BLOCK_BYTES) * BLOCK_BYTES
        position = self._position
        left = self._capacity - position % self._capacity
        if padded > left:  # a record does not go around the corner
            position += left
        if position + padded - self._floor > self._capacity:
            return False
        if padded > len(self._buffer):
            self._grow(padded)
        view = self._view
        _RECORD.pack_into(view, 0, 0, _RECORD_MAGIC, len(body), self.epoch, self._number, sequence)
        view[_RECORD.size : needed] = body
        view[:4] = crc32(view[4:_COVERED]).to_bytes(4, "little")
        self._write(padded, self._offset(position))
        self._number += 1
        self._position = position + padded
        return True

    def release(self, mark: Mark) -> None:
        """The database has everything before the mark."""
        self._floor = max(self._floor, mark.position)

    def close(self) -> None:
        """Give the descriptor back; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """The database has everything and says so durably."""
        self.close()
        with suppress(OSError):  # the next open knows the epoch for one that has ended
            self.path.unlink()

    def _offset(self, position: int) -> int:
        return BLOCK_BYTES + position % self._capacity

    def _grow(self, size: int) -> None:
        self._buffer = mmap.mmap(-1, -(-size // _BUFFER_BYTES_MIN) * _BUFFER_BYTES_MIN)  # begins at a page
        self._view = memoryview(self._buffer)

    def _write(self, size: int, offset: int) -> None:
        written = 0
        try:
            while written < size:
                written += os.pwrite(self._fd, self._view[written:size], offset + written)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._forget(offset)
                raise StorageFull(
                    f"no space left while writing a round: {self.path}. "
                    "Nothing of it was written; free some space"
                ) from error
            raise _broken(self.path, error) from error

    def _forget(self, offset: int) -> None:
        """Make sure that a round that was refused is not found later. (Some file systems copy on write.)"""
        try:
            self._view[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
            os.pwrite(self._fd, self._view[:BLOCK_BYTES], offset)
        except OSError as error:
            raise _broken(self.path, error) from error


def _broken(path: Path, error: OSError) -> StorageBroken:
    return StorageBroken(
        f"{path}: {error.strerror} (while writing a round); whether it was written is not known. "
        "Check the disk, then restart the node: it recovers from its log"
    )


def _make(path: Path, epoch: int, size: int) -> int:
    """Make the file under another name first, so that it is whole or not there. Returns its descriptor."""
    new = path.with_name(path.name + "-new")
    head = bytearray(BLOCK_BYTES)
    _HEAD.pack_into(head, 0, 0, _MAGIC, FORMAT_VERSION, epoch, size)
    head[:4] = crc32(head[4 : _HEAD.size]).to_bytes(4, "little")
    fd = -1
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)  # says at once if there is no room
        zeros = bytes(_ZEROS_BYTES)
        for offset in range(0, size, _ZEROS_BYTES):  # blocks that were only reserved cost an append metadata
            _write_all(fd, zeros[: size - offset], offset)
        _write_all(fd, head, 0)
        os.fsync(fd)
        os.close(fd)
        fd = _open(new, head)
        new.rename(path)
        files.sync_directory(path.parent)
    except OSError as error:
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            new.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"no space left for {path} ({size >> 10} KiB are set aside for the log). "
                "Free some and start again"
            ) from error
        raise files.open_error(error, path) from error
    return fd


def _open(path: Path, head: bytes | bytearray) -> int:
    """A descriptor whose writes are durable when they return. Tried out on the head."""
    flags = os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC
    with mmap.mmap(-1, BLOCK_BYTES) as block:
        block[:] = bytes(head)
        for direct in (_DIRECT, 0):
            fd = -1
            try:
                fd = os.open(path, flags | direct)
                os.pwrite(fd, block, 0)
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                if not direct or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
            else:
                return fd
    raise AssertionError("the second way returns or raises")


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


# ----------------------------------------------------------------------------------------------- reading


def read_epoch(path: Path) -> tuple[int, bytes]:
    """The file's epoch and all its bytes; `StorageCorrupt` if it is not a journal, or not all of one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise files.open_error(error, path) from error
    if len(data) < _HEAD.size:
        raise _damaged(path, f"it is {len(data)} bytes long and has no head")
    crc, magic, version, epoch, size = _HEAD.unpack_from(data)
    if magic != _MAGIC or crc != crc32(data[4 : _HEAD.size]):
        raise _damaged(path, "its head is not what was written")
    if version != FORMAT_VERSION:
        raise StorageCorrupt(
            f"{path} was written by a newer Holdfast (format {version}, this one knows {FORMAT_VERSION}). "
            "Start it with that version"
        )
    if len(data) != size:
        raise _damaged(path, f"it is {len(data)} bytes long and should have {size}")
    return epoch, data


def records(path: Path, epoch: int, floor: int, offset: int) -> list[Record]:
    """The records from number `floor` on, in order; its place is `offset`.

    `StorageCorrupt` if the file is another one, or if a record is missing that was acknowledged.
    """
    found_epoch, data = read_epoch(path)
    if found_epoch != epoch:
        raise StorageCorrupt(
            f"{path} belongs to another database, or to another time of this one. "
            "Put back the file that was copied together with the database"
        )
    found: list[Record] = []
    number, at = floor, offset
    while True:
        record = _read(data, at, epoch, number) or _read(data, BLOCK_BYTES, epoch, number)
        if record is None:
            break
        found.append(record)
        number += 1
        at = record.offset + -(-(_RECORD.size + len(record.body)) // BLOCK_BYTES) * BLOCK_BYTES
    later = max((number for _, number in _numbers(data, epoch)), default=0)
    if later > number:
        raise _damaged(
            path, f"record {number} at byte {at} cannot be read, and acknowledged rounds are behind it"
        )
    return found


def is_empty(data: bytes, epoch: int) -> bool:
    """Whether no record was ever written to this file."""
    return next(_numbers(data, epoch), None) is None


def newest(path: Path) -> list[tuple[int, int]]:
    """(offset, number) of all records that the file shows, oldest first: for tests that damage it."""
    epoch, data = read_epoch(path)
    return sorted(_numbers(data, epoch), key=lambda place: place[1])


def _read(data: bytes, offset: int, epoch: int, number: int) -> Record | None:
    """The record of this number at this place, if it is there and whole."""
    if offset + _COVERED > len(data):
        return None
    crc, magic, length, found_epoch, found, sequence = _RECORD.unpack_from(data, offset)
    if (magic, found_epoch, found) != (_RECORD_MAGIC, epoch, number):
        return None
    body = data[offset + _RECORD.size : offset + _RECORD.size + length]
    if crc != crc32(data[offset + 4 : offset + _COVERED]) or len(body) != length:
        return None
    if not frames.is_whole(sequence, body):
        return None
    return Record(number, offset, sequence, body)


def _numbers(data: bytes, epoch: int) -> Iterator[tuple[int, int]]:
    """(offset, number) of whatever has the head of a record of ours, whole or torn."""
    for offset in range(BLOCK_BYTES, len(data) - _COVERED, BLOCK_BYTES):
        if data[offset + 4 : offset + 8] != _RECORD_MAGIC:
            continue
        crc, _, _, found_epoch, number, _ = _RECORD.unpack_from(data, offset)
        if found_epoch == epoch and crc == crc32(data[offset + 4 : offset + _COVERED]):
            yield offset, number


def _damaged(path: Path, what: str) -> StorageDamaged:
    return StorageDamaged(f"{path} is damaged: {what}")
