"""How long SQLite's write-ahead log is, without asking: SQLite tells only by copying it.

A log that grows unseen is copied all at once one day, and the disk stands still for others meanwhile. So its
length is estimated from above where that is cheap: pages of values that fill pages are counted; small rows
share pages in a proportion that the last checkpoint showed; and a file that has become longer than it was
says exactly how much is in it, since SQLite writes from its beginning after each full checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

PAGE_BYTES = 4096  # of the database
_FRAME_BYTES = PAGE_BYTES + 24  # https://www.sqlite.org/fileformat2.html, section 4.1
_SHARED_MIN, _SHARED_MAX = 0.05, 4.0  # many small rows to a page; a b-tree that splits


class WalLength:
    """Of the log beside one database. `pages` is the estimate, in pages of the database."""

    def __init__(self, database: Path) -> None:
        self._path = Path(f"{database}-wal")
        self._file_bytes = self._stat()  # the longest since it was last cut
        self._filled = 0.0  # pages, of values that fill pages
        self._small = 0.0  # changes that share pages
        self._shared = 1.0  # pages such a change touches
        self._exact = 0.0  # at the last look, if the file has grown since the last checkpoint
        self._refused = 0  # bytes that the file had when a checkpoint could not be made
        self._left = 0  # by the last checkpoint, since somebody still reads what it would overwrite
        self._found = 0  # in the log then, if it does not begin anew

    @property
    def pages(self) -> float:
        """About how many pages a checkpoint would copy."""
        return max(self._left + self._filled + self._small * self._shared, self._exact)

    def wrote(self, changes: float, filled_bytes: int) -> None:
        """A transaction touched so many places, and wrote so many bytes of values that share no page."""
        self._small += changes
        self._filled += filled_bytes / PAGE_BYTES
        now = self._stat()
        if now > self._file_bytes:
            self._exact = (now - self._refused) / _FRAME_BYTES
        if now:
            self._file_bytes = now

    def copied(self, frames: int, copied: int) -> None:
        """A checkpoint found so many pages in the log, and copied so many of them."""
        if self._small > 1:
            shared = (frames - self._found - self._filled) / self._small
            self._shared = min(max(shared, _SHARED_MIN), _SHARED_MAX)
        self._left = frames - copied
        self._found = frames if self._left else 0
        self._refused = 0
        self._filled = self._small = self._exact = 0.0

    def failed(self) -> None:
        """A checkpoint could not be made. What is there is safe; try again after as much has been written."""
        self._left = 0
        self._refused = self._file_bytes
        self._filled = self._small = self._exact = 0.0

    def _stat(self) -> int:
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0
