"""Frames as rows of the log and back, for all implementations of the port.

A frame has one row, or several if it is larger than a row should be; a frame is there when all its rows are.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from replication.frames import Frame, chunks_of, join_chunks
from replication.log.contract import Slice


class Row(NamedTuple):
    """One row. `first_seq` and `chunk` are its key in the partition; all rows of a frame say how many."""

    first_seq: int
    chunk: int
    count: int  # type: ignore[assignment]  # the column's name; tuple.count is not used here
    chunks: int  # how many rows the frame has
    hlc: int
    digest: bytes
    content: bytes  # a chunk of it

    @property
    def last_seq(self) -> int:
        """The last number of the frame."""
        return self.first_seq + self.count - 1


def rows_of(frame: Frame) -> list[Row]:
    """The rows of a frame."""
    chunks = chunks_of(frame)
    return [
        Row(frame.first_seq, chunk, frame.count, len(chunks), frame.hlc, frame.digest, content)
        for chunk, content in enumerate(chunks)
    ]


def slice_of(rows: Iterable[Row], frames_max: int) -> Slice:
    """The first frames that are whole, of rows in the order of their keys."""
    frames: list[Frame] = []
    highest = 0
    for first_seq, group in groupby(rows, attrgetter("first_seq")):
        found = list(group)
        row = found[0]
        if len(frames) < frames_max and len(found) == row.chunks:
            content = join_chunks(each.content for each in found)
            frames.append(Frame(first_seq, row.count, row.hlc, content, row.digest))
        highest = max(highest, row.last_seq)
    return Slice(tuple(frames), highest)
