"""Records in rows: what is written is what changed, what is read is what was written."""

from __future__ import annotations

import msgspec
import pytest

from replication.merge import Anchor, Origin, Record, Settled, merge
from replication.merge.rows import RowError, changes, from_rows, to_rows

from .conftest import STARTED, TASK, buffered, events, path, record_of, signal, standby, tomb

RICH = record_of(
    events(1, 1, [STARTED, signal("s", "k"), signal("t")]),
    events(1, 2, [TASK], path((1, 1))),
    events(2, 2, [STARTED, STARTED], run="q"),
    events(3, 2, [STARTED], run="y"),
    tomb(4, 2, run="z"),
    events(9, 2, [TASK], path((5, 2)), run="y"),
    buffered(5, 1, [signal("b", "l")]),
    Settled(Origin(2, 0, 1, 6), 6, 2, Anchor("y", 1, 2), ("l", "m")),
)


def test_a_record_survives_its_rows() -> None:
    assert from_rows(to_rows(RICH)) == RICH
    assert from_rows(reversed(to_rows(RICH))) == RICH
    for parked in ((9, 10), (10, 9)):
        record = record_of(*(events(seq, 1, [TASK], path((seq, 1))) for seq in parked))
        assert from_rows(to_rows(record)) == record
    assert to_rows(Record()) == []
    assert from_rows([]) == Record()


def test_only_what_changed_is_written() -> None:
    record = record_of(events(1, 1, [STARTED, signal("s", "k")]))
    after = merge(record, events(2, 1, [signal("t", "l")], path((2, 1))), standby(1)).record
    written = changes(record, after)
    assert [key for key, value in written if value is not None] == [b"rx", b"ix" + (1).to_bytes(8, "big")]
    assert changes(after, after) == []
    gone = merge(after, tomb(3, 1), standby(1)).record
    assert {key for key, value in changes(after, gone) if value is None} == {
        key for key, _ in to_rows(after)
    } - {b"h"}


def test_a_later_format_is_refused_by_name() -> None:
    rows = [(key, msgspec.msgpack.encode((2, None))) for key, _ in to_rows(RICH)]
    with pytest.raises(RowError, match="of format 2; this release reads 1"):
        from_rows(rows)


def test_an_unknown_kind_of_event_is_refused() -> None:
    rows = dict(to_rows(record_of(events(1, 1, [STARTED]))))
    number, body = msgspec.msgpack.decode(rows[b"rx"])
    body[0][0][3] = 99
    rows[b"rx"] = msgspec.msgpack.encode((number, body))
    with pytest.raises(RowError, match="Invalid enum value 99"):
        from_rows(rows.items())


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(b"?", b"")], "of no kind"),
        ([(b"h", b"\xc1")], "cannot be read"),
        ([row for row in to_rows(RICH) if row[0] != b"h"], "not the first of them"),
        ([row for row in to_rows(RICH) if row[0] != b"rx"], "do not belong together"),
    ],
)
def test_damaged_rows_are_refused(rows: list[tuple[bytes, bytes]], why: str) -> None:
    with pytest.raises(RowError, match=why):
        from_rows(rows)
