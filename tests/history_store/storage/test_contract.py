"""What every storage promises (history_store/storage/contract.py), one suite for all of them."""

import copy
import random
import threading

import pytest

from history_store.storage.contract import Entry, GroupLog, HardState, Round, StorageFull
from history_store.storage.keeper import LogGap
from history_store.storage.memory import MemoryStorage
from history_store.visibility.record import DeleteRecord, ExecutionRecord


def key(group: int, kind: bytes, rest: bytes) -> bytes:
    return group.to_bytes(4, "big") + kind + rest


def entries(term: int, first: int, last: int, data: bytes = b"x") -> list[Entry]:
    return [Entry(term, index, 0, data + str(index).encode()) for index in range(first, last + 1)]


def record(run: str, workflow_type: str = "T", status: int = 1) -> ExecutionRecord:
    return ExecutionRecord(
        "ns", "w-" + run, run, workflow_type, status, 10, 10, 0, "q", 3, 100, 1, 0, b"", b""
    )


def shown(storage) -> list[tuple[str, int]]:
    connection = storage.visibility_connection()
    try:
        return connection.execute(
            "SELECT run_id, status FROM visibility_executions ORDER BY run_id"
        ).fetchall()
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------------- log


def test_a_new_storage_has_no_groups(disk):
    assert disk.storage.load() == {}
    assert disk.storage.get(key(1, b"a", b"")) is None
    assert list(disk.storage.scan(b"", b"\xff" * 9)) == []


@pytest.mark.parametrize("end", ["close_and_open", "kill_and_open"])
def test_what_was_written_is_found_again(disk, end):
    state = HardState(3, 7, 4)
    disk.storage.write(
        Round(entries=[(1, entries(2, 1, 3)), (2, entries(3, 1, 2))], hard_states=[(1, state)])
    )
    disk.storage.write(Round(entries=[(1, entries(3, 4, 5))]))
    found = getattr(disk, end)().load()
    assert found == {
        1: GroupLog(state, 0, 0, 0, 0, entries(2, 1, 3) + entries(3, 4, 5)),
        2: GroupLog(HardState(), 0, 0, 0, 0, entries(3, 1, 2)),
    }


def test_entry_fields_come_back_as_they_were(disk):
    written = [Entry(1, 1, 0, b""), Entry(1, 2, 1, b"\x00\xff\n"), Entry(2**40, 3, 2, bytes(100_000))]
    disk.storage.write(Round(entries=[(2**32 - 1, written)]))
    log = disk.kill_and_open().load()[2**32 - 1]
    assert log.entries == written
    assert [type(entry) for entry in log.entries] == [Entry] * 3


def test_an_entry_replaces_the_one_at_its_index_and_all_after_it(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 9))]))
    disk.storage.write(Round(entries=[(1, entries(2, 4, 5, b"new"))]))
    assert disk.kill_and_open().load()[1].entries == entries(1, 1, 3) + entries(2, 4, 5, b"new")


def test_one_round_may_append_twice_to_a_group(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 4)), (1, entries(2, 3, 6))]))
    assert disk.kill_and_open().load()[1].entries == entries(1, 1, 2) + entries(2, 3, 6)


def test_replaced_entries_stay_replaced_when_the_newer_row_is_compacted_first(disk):
    """Group 2 keeps the first row alive, in which group 1 still has its replaced entries 7 and 8."""
    storage = disk.storage
    storage.write(Round(entries=[(1, entries(1, 1, 8)), (2, entries(1, 1, 1))]))
    storage.write(Round(entries=[(1, entries(2, 6, 6))]))
    for _ in range(3):
        storage.write(Round(compact=[(1, 6, 2)], applied=[(1, 6, 2, b"")]))
        storage.write(Round(rows=[(key(1, b"a", b"x"), b"y")], applied=[(1, 6, 2, b"")]))
    log = disk.kill_and_open().load()
    assert (log[1].compacted, log[1].entries) == (6, [])
    assert log[2].entries == entries(1, 1, 1)


def test_a_gap_is_refused_and_nothing_of_the_round_is_kept(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 3))]))
    before = disk.storage.load()
    bad = [
        [(1, entries(1, 5, 6))],
        [(2, entries(1, 2, 2))],
        [(1, [*entries(1, 4, 4), *entries(1, 6, 6)])],
        [(1, entries(1, 0, 1))],
        [(1, entries(1, 4, 5)), (1, entries(1, 7, 7))],
    ]
    for appended in bad:
        with pytest.raises(LogGap):
            disk.storage.write(Round(entries=appended, rows=[(key(1, b"a", b""), b"v")]))
    assert disk.storage.get(key(1, b"a", b"")) is None
    assert {1: disk.kill_and_open().load()[1]} == {1: before[1]}


# ------------------------------------------------------------------------------------- hard state, compaction


def test_a_vote_and_a_term_are_durable_by_themselves(disk):
    disk.storage.write(Round(hard_states=[(1, HardState(5, 0, 0))]))
    disk.storage.write(Round(hard_states=[(1, HardState(5, 2, 0)), (2, HardState(1, 1, 0))]))
    log = disk.kill_and_open().load()
    assert log[1].hard_state == HardState(5, 2, 0)
    assert log[2].hard_state == HardState(1, 1, 0)


def test_a_commit_index_is_kept_at_the_latest_with_the_rows(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 5))], hard_states=[(1, HardState(1, 1, 2))]))
    disk.storage.write(Round(hard_states=[(1, HardState(1, 1, 4))]))
    disk.storage.write(Round(applied=[(1, 4, 1, b"")]))
    found = disk.kill_and_open().load()[1]
    assert found.hard_state[:2] == (1, 1)
    assert 2 <= found.hard_state.commit <= 4
    assert found.applied == 4


def test_a_hard_state_outlives_the_log_row_it_came_with(disk):
    storage = disk.storage
    storage.write(
        Round(entries=[(1, entries(4, 1, 2))], hard_states=[(1, HardState(4, 3, 0)), (2, HardState(9, 9, 0))])
    )
    for index in (1, 2):
        storage.write(Round(applied=[(1, index, 4, b"c")], compact=[(1, index, 4)]))
        storage.write(Round(applied=[(1, index, 4, b"c")], rows=[(key(1, b"a", b""), b"v")]))
    log = disk.kill_and_open().load()
    assert log[1].hard_state[:2] == (4, 3)
    assert log[2].hard_state[:2] == (9, 9)
    assert (log[1].applied, log[1].applied_term, log[1].conf) == (2, 4, b"c")


def test_compaction_drops_the_front_and_remembers_where(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 6))]))
    disk.storage.write(Round(applied=[(1, 4, 1, b"voters")], compact=[(1, 3, 1)]))
    disk.storage.write(Round(compact=[(1, 2, 1)]))  # an older one changes nothing
    log = disk.kill_and_open().load()[1]
    assert log == GroupLog(HardState(), 4, 1, 3, 1, entries(1, 4, 6), b"voters")
    disk.storage.write(Round(entries=[(1, entries(1, 7, 8))]))
    assert disk.kill_and_open().load()[1].entries == entries(1, 4, 8)


def test_a_snapshot_beyond_the_log_replaces_it(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 5)), (2, entries(1, 1, 1))]))
    disk.storage.write(
        Round(compact=[(1, 100, 3)], applied=[(1, 100, 3, b"")], entries=[(1, entries(3, 101, 102))])
    )
    log = disk.kill_and_open().load()[1]
    assert (log.compacted, log.compacted_term, log.entries) == (100, 3, entries(3, 101, 102))


def test_a_snapshot_that_contradicts_the_log_voids_what_is_behind_it(disk):
    """Raft, section 7: only if our entry at the snapshot's index has its term may later ones stay."""
    disk.storage.write(Round(entries=[(1, entries(1, 1, 9)), (2, entries(1, 1, 1))]))
    disk.storage.write(Round(compact=[(1, 5, 2)], applied=[(1, 5, 2, b"")]))
    assert disk.kill_and_open().load()[1].entries == []
    disk.storage.write(Round(entries=[(1, entries(2, 6, 7))]))
    assert disk.kill_and_open().load()[1].entries == entries(2, 6, 7)


def test_a_fully_compacted_log_goes_on_after_many_restarts(disk):
    for index in range(1, 6):
        disk.storage.write(Round(entries=[(1, entries(1, index, index))]))
        disk.storage.write(Round(compact=[(1, index, 1)], applied=[(1, index, 1, b"")]))
        disk.storage.write(Round(compact=[], applied=[(1, index, 1, b"")]))
        log = disk.close_and_open().load()[1]
        assert (log.compacted, log.entries) == (index, [])


# ------------------------------------------------------------------------------------------------------ rows


def test_rows_are_put_replaced_and_deleted(disk):
    for kind in (b"a", b"h", b"z"):
        one, two = key(1, kind, b"1"), key(1, kind, b"2")
        disk.storage.write(Round(rows=[(one, b"v1"), (two, b"v2")]))
        disk.storage.write(Round(rows=[(one, b""), (two, None), (key(1, kind, b"never"), None)]))
        assert disk.storage.get(one) == b""
        assert disk.storage.get(two) is None
    assert [k[4:5] for k, _ in disk.kill_and_open().scan(b"", b"\xff")] == [b"a", b"h", b"z"]


def test_the_later_of_two_writes_of_one_key_wins(disk):
    a, b = key(1, b"a", b"1"), key(1, b"h", b"2")
    disk.storage.write(Round(rows=[(a, b"1"), (a, None), (b, None), (b, b"2"), (b, b"3")]))
    assert (disk.storage.get(a), disk.storage.get(b)) == (None, b"3")


def test_large_values(disk):
    rows = [
        (key(1, kind, b"%d" % size), bytes([size % 251]) * size)
        for kind in (b"a", b"h")
        for size in (1000, 5000, 3_000_000)
    ]
    disk.storage.write(Round(rows=rows))
    assert sorted(disk.kill_and_open().scan(b"", b"\xff")) == sorted(rows)


@pytest.mark.parametrize("limit", [0, 1, 7, 255, 256, 257, 700])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_are_ordered_and_cut(disk, limit, reverse):
    rng = random.Random(limit * 2 + reverse)
    rows = {
        key(
            rng.randrange(3), rng.choice([b"a", b"g", b"h", b"i", b"\xff"]), rng.randbytes(rng.randrange(4))
        ): rng.randbytes(5)
        for _ in range(1500)
    }
    disk.storage.write(Round(rows=list(rows.items())))
    bounds = [
        (b"", b"\xff" * 8), (key(1, b"h", b""), key(1, b"i", b"")),
        (key(1, b"h", b"\x10"), key(1, b"h", b"\x80")), (key(0, b"g", b""), key(0, b"h", b"\x22")),
        (key(1, b"a", b""), key(1, b"b", b"")), (key(1, b"", b""), key(2, b"", b"")),
        (key(1, b"i", b""), key(2, b"", b"")), (key(2, b"h", b""), key(3, b"", b"")),
        (key(2, b"", b""), key(2, b"h", b"")),
        (key(5, b"a", b""), key(1, b"a", b"")), (key(0, b"h", b"")[:4], key(2, b"h", b"\x01")),
    ]  # fmt: skip
    for start, end in bounds:
        expected = sorted((k, v) for k, v in rows.items() if start <= k < end)
        if reverse:
            expected.reverse()
        assert list(disk.storage.scan(start, end, limit, reverse)) == expected[: limit or None], (start, end)


def test_a_long_scan_sees_one_moment(disk):
    rows = [(key(1, b"a", b"%04d" % i), b"old") for i in range(2000)]
    disk.storage.write(Round(rows=rows))
    scan = disk.storage.scan(b"", b"\xff")
    first = next(scan)
    disk.storage.write(Round(rows=[(k, b"new") for k, _ in rows]))
    assert disk.storage.get(rows[0][0]) == b"new"
    assert [first, *scan] == rows
    assert {v for _, v in disk.storage.scan(b"", b"\xff")} == {b"new"}


def test_a_scan_that_outlives_its_storage_gives_its_connection_back(disk):
    disk.storage.write(Round(rows=[(key(1, b"a", b"%04d" % i), b"v") for i in range(1000)]))
    scans = [disk.storage.scan(b"", b"\xff") for _ in range(4)]
    for scan in scans:
        next(scan)
    for scan in scans[:3]:
        assert len(list(scan)) == 999
    disk.close_and_open()
    del scans, scan
    assert len(list(disk.storage.scan(b"", b"\xff"))) == 1000


def test_readers_beside_the_writer_see_whole_rounds(disk):
    """Each round writes its number to all rows of both tables; a read must never find two numbers."""
    keys = [key(1, kind, b"%03d" % i) for kind in (b"a", b"h") for i in range(100)]
    disk.storage.write(Round(rows=[(k, b"0") for k in keys]))
    done = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(1, 60):
                disk.storage.write(Round(rows=[(k, b"%d" % number) for k in keys]))
                disk.storage.maintain()
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    highest = 0
    while not done.is_set():
        seen = {int(v) for _, v in disk.storage.scan(b"", b"\xff")}
        assert len(seen) == 1
        one = int(disk.storage.get(keys[0]) or b"")
        assert highest <= min(seen) <= one
        highest = one
    thread.join()
    assert failures == []


# ------------------------------------------------------------------------------------------ folds and images


def test_a_fold_stores_rows_and_what_they_are_exact_for(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 9))], hard_states=[(1, HardState(1, 1, 9))]))
    disk.storage.fold(
        Round(
            rows=[(key(1, b"a", b"x"), b"v")], visibility=[record("r1")],
            applied=[(1, 9, 1, b"c")], compact=[(1, 7, 1)],
        )
    )  # fmt: skip
    disk.storage.write(Round(entries=[(1, entries(1, 10, 11))]))
    assert disk.storage.get(key(1, b"a", b"x")) == b"v"
    found = disk.kill_and_open().load()[1]
    assert found == GroupLog(HardState(1, 1, 9), 9, 1, 7, 1, entries(1, 8, 11), b"c")
    assert shown(disk.storage) == [("r1", 1)]


def test_a_fold_has_nothing_that_must_be_ordered_among_appends(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 3))]))
    for batch in (
        Round(entries=[(1, entries(1, 4, 4))]),
        Round(hard_states=[(1, HardState(2, 1, 0))]),
        Round(wipe=[1]),
        Round(compact=[(1, 4, 1)]),
        Round(compact=[(1, 3, 2)]),
    ):
        with pytest.raises(ValueError, match=r"through write|use write"):
            disk.storage.fold(batch)
    disk.storage.fold(Round(compact=[(1, 3, 1)]))
    disk.storage.write(Round(entries=[(1, entries(1, 4, 4))]))
    assert disk.kill_and_open().load()[1].entries == entries(1, 4, 4)


def test_a_wipe_takes_all_rows_of_one_group_before_new_ones_are_put(disk):
    rows = [
        (key(g, kind, b"%d" % i), b"old") for g in (0, 1, 2) for kind in (b"a", b"h", b"\xff") for i in (1, 2)
    ]
    disk.storage.write(Round(rows=rows))
    new = [(key(1, b"a", b"2"), b"new"), (key(1, b"h", b"3"), b"new")]
    disk.storage.write(Round(wipe=[1], rows=new))
    expected = sorted([row for row in rows if row[0][3] != 1] + new)
    assert list(disk.storage.scan(b"", b"\xff" * 9)) == expected
    assert list(disk.kill_and_open().scan(b"", b"\xff" * 9)) == expected


def test_an_image_from_elsewhere_replaces_rows_and_the_whole_log(disk):
    """Also entries behind it whose branch seems to be the same."""
    old, new = key(1, b"a", b"old"), key(1, b"a", b"new")
    disk.storage.write(Round(entries=[(1, entries(1, 1, 9))], rows=[(old, b"v")]))
    disk.storage.write(
        Round(
            wipe=[1], rows=[(new, b"v")], compact=[(1, 5, 1)], applied=[(1, 5, 1, b"c")],
            entries=[(1, entries(2, 6, 6))],
        )
    )  # fmt: skip
    log = disk.kill_and_open().load()[1]
    assert (log.compacted, log.applied, log.entries) == (5, 5, entries(2, 6, 6))
    disk.storage.write(Round(wipe=[1], compact=[(1, 5, 1)], applied=[(1, 5, 1, b"c")]))
    assert disk.storage.get(new) is None
    assert disk.kill_and_open().load()[1].entries == []


def test_an_image_is_of_one_moment(disk):
    rows = [(key(1, kind, b"%04d" % i), b"old") for kind in (b"a", b"h", b"z") for i in range(300)]
    others = [(key(g, b"a", b""), b"not mine") for g in (0, 2, 2**32 - 1)]
    disk.storage.write(Round(rows=rows + others, applied=[(1, 7, 3, b"conf")]))
    with disk.storage.image(1) as image:
        first = next(image.rows)
        disk.storage.write(Round(rows=[(k, b"new") for k, _ in rows], applied=[(1, 8, 3, b"conf")]))
        assert (image.applied, image.applied_term, image.conf) == (7, 3, b"conf")
        assert [first, *image.rows] == rows
    with disk.storage.image(1) as image:
        assert image.applied == 8
    with disk.storage.image(2**32 - 1) as image:
        assert list(image.rows) == [others[2]]
    with disk.storage.image(77) as image:
        assert (image.applied, list(image.rows)) == (0, [])


def test_appends_and_folds_of_two_threads(disk, rng):
    """One thread appends, the other folds what has been appended so far; then the process ends."""
    storage = disk.storage
    storage.load()
    done = [0] * 4  # last durable index of each group
    failures: list[BaseException] = []
    stop = threading.Event()
    folded = [0] * 4

    def fold() -> None:
        try:
            while not stop.is_set():
                upto = list(done)
                batch = Round(visibility=[record("r", status=2)])
                for group in range(1, 4):
                    if upto[group] > folded[group]:
                        batch.applied.append((group, upto[group], 1, b""))
                        batch.compact.append((group, upto[group] - rng.randrange(3) * (group > 1), 1))
                        value = b"%d" % upto[group]
                        batch.rows += [
                            (key(group, kind, b"%02d" % i), value) for kind in (b"a", b"h") for i in range(20)
                        ]
                        folded[group] = upto[group]
                batch.compact = [(g, i, t) for g, i, t in batch.compact if i > 0]
                storage.fold(batch)
                storage.maintain()
        except BaseException as error:
            failures.append(error)

    dice = random.Random(rng.random())
    thread = threading.Thread(target=fold)
    thread.start()
    for number in range(400):
        batch = Round()
        for group in dice.sample([1, 2, 3], dice.randrange(1, 4)):
            first = done[group] + 1
            batch.entries.append(
                (group, entries(1, first, first + dice.randrange(3), bytes(dice.choice([1, 3000]))))
            )
        if number % 50 == 0:
            batch.hard_states.append((1, HardState(2 + number, 1, 0)))
        storage.write(batch)
        for group, added in batch.entries:
            done[group] = added[-1].index
        if number % 90 == 89:
            storage.write(Round(rows=[(key(9, b"a", b""), b"%d" % number)]))
    stop.set()
    thread.join()
    assert failures == []
    logs = disk.kill_and_open().load()
    for group in range(1, 4):
        log = logs[group]
        assert log.compacted + len(log.entries) == done[group]
        assert [entry.index for entry in log.entries] == list(range(log.compacted + 1, done[group] + 1))
        assert log.applied == folded[group]
        if folded[group]:
            assert {v for _, v in disk.storage.scan(key(group, b"", b""), key(group + 1, b"", b""))} == {
                b"%d" % folded[group]
            }
    assert logs[1].hard_state[:2] == (352, 1)
    assert disk.storage.get(key(9, b"a", b"")) == b"359"


# ------------------------------------------------------------------------------------------------ projection


def test_the_projection_is_written_with_the_round(disk):
    disk.storage.write(Round(visibility=[record("r1"), record("r2")], rows=[(key(1, b"a", b""), b"v")]))
    assert shown(disk.storage) == [("r1", 1), ("r2", 1)]
    disk.storage.write(Round(visibility=[record("r1", status=2), DeleteRecord("ns", "r2"), record("r3")]))
    assert shown(disk.kill_and_open()) == [("r1", 2), ("r3", 1)]


def test_a_projection_that_fails_takes_the_round_with_it(disk):
    disk.storage.write(Round(entries=[(1, entries(1, 1, 1))]))
    broken = record("r9")
    broken.start_time = "never"  # type: ignore[assignment]
    with pytest.raises(Exception):  # noqa: B017 whatever the projection says
        disk.storage.write(
            Round(
                entries=[(1, entries(1, 2, 2))],
                rows=[(key(1, b"a", b""), b"v")],
                visibility=[record("r8"), broken],
            )
        )
    assert disk.storage.get(key(1, b"a", b"")) is None
    assert shown(disk.storage) == []
    disk.storage.write(Round(entries=[(1, entries(2, 2, 2))], visibility=[record("r8")]))
    assert disk.kill_and_open().load()[1].entries == entries(1, 1, 1) + entries(2, 2, 2)
    assert shown(disk.storage) == [("r8", 1)]


def test_the_projection_is_read_from_another_thread_and_cannot_be_written(disk):
    disk.storage.write(Round(visibility=[record("r1")]))
    found = []
    thread = threading.Thread(target=lambda: found.append(shown(disk.storage)))
    thread.start()
    thread.join()
    assert found == [[("r1", 1)]]
    connection = disk.storage.visibility_connection()
    with pytest.raises(Exception, match="readonly"):
        connection.execute("DELETE FROM visibility_executions")
    connection.close()


def test_size_grows_with_the_data(disk):
    before = disk.storage.size_bytes()
    disk.storage.write(Round(rows=[(key(1, b"h", b"x"), bytes(500_000))]))
    assert disk.storage.size_bytes() >= before + 500_000


def test_replaced_entries_outlive_those_before_them(disk):
    """The round of 3 to 4 stays for group 2 when that of 1 to 2 has gone; 2 to 3 replaced them."""
    disk.storage.write(Round(entries=[(1, entries(1, 1, 2))]))
    disk.storage.write(Round(entries=[(1, entries(1, 3, 4)), (2, entries(1, 1, 1))]))
    disk.storage.write(Round(entries=[(1, entries(2, 2, 3)), (3, entries(1, 1, 1))]))
    disk.storage.write(Round(compact=[(1, 1, 1)], applied=[(1, 1, 1, b"")]))
    disk.storage.write(Round(applied=[(1, 1, 1, b"")]))  # what may go, goes with the next change
    for _ in range(2):
        found = disk.kill_and_open().load()
        assert found[1].entries == entries(2, 2, 3)
        disk.storage.write(Round(applied=[(1, 1, 1, b"")]))
    disk.storage.write(Round(compact=[(1, 3, 2)], applied=[(1, 3, 2, b"")]))
    disk.storage.write(Round(entries=[(1, entries(2, 4, 4))], applied=[(1, 3, 2, b"")]))
    found = disk.kill_and_open().load()
    assert found[1].entries == entries(2, 4, 4)
    assert found[2].entries == found[3].entries == entries(1, 1, 1)


# ------------------------------------------------------------------------------------------ against a model


class Model:
    """The contract, in the plainest words that run."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.groups: dict[int, GroupLog] = {}
        self.rows: dict[bytes, bytes] = {}
        self.voids = False  # the last round replaced a log

    def round(self) -> Round:
        rng, batch = self.rng, Round()
        self.voids = False
        for group in rng.sample(range(1, 5), rng.randrange(5)):
            log = self.groups.setdefault(group, GroupLog(HardState(1, 1, 0), 0, 0, 0, 0, []))
            last = log.compacted + len(log.entries)
            term = log.hard_state.term
            action = rng.random()
            if action < 0.15:
                term += rng.randrange(1, 3)
                log.hard_state = HardState(term, rng.randrange(4), log.hard_state.commit)
            if action < 0.7:
                first = (
                    rng.randint(max(log.compacted, last - 4) + 1, last + 1)
                    if rng.random() < 0.2 and action < 0.15
                    else last + 1
                )
                added = [
                    Entry(term, i, rng.randrange(3), rng.randbytes(rng.randrange(40)))
                    for i in range(first, first + rng.randrange(1, 6))
                ]
                log.entries = log.entries[: first - log.compacted - 1] + added
                batch.entries.append((group, added))
            elif action < 0.9 and log.entries:
                at = rng.randrange(len(log.entries))
                index, term = log.entries[at].index, log.entries[at].term
                batch.compact.append((group, index, term))
                batch.applied.append((group, index, term, b"c%d" % index))
                log.applied, log.applied_term, log.conf = index, term, b"c%d" % index
                log.compacted, log.compacted_term, log.entries = index, term, log.entries[at + 1 :]
            elif action < 0.95:
                self.voids = True
                if rng.random() < 0.5:
                    batch.wipe.append(group)
                    for k in [k for k in self.rows if k.startswith(group.to_bytes(4, "big"))]:
                        del self.rows[k]
                index, term = rng.randint(log.compacted + 1, last + 5), log.hard_state.term + 1
                log.hard_state = HardState(term, 0, index)
                batch.compact.append((group, index, term))
                batch.applied.append((group, index, term, b"s"))
                log.applied, log.applied_term, log.conf = index, term, b"s"
                log.compacted, log.compacted_term, log.entries = index, term, []
            batch.hard_states.append((group, log.hard_state))
        if rng.random() < 0.5:
            for _ in range(rng.choice([1, 3, 20, 200])):
                k = key(rng.randrange(4), rng.choice([b"a", b"h", b"q"]), b"%d" % rng.randrange(300))
                value = rng.randbytes(rng.choice([0, 10, 100, 3000])) if rng.random() < 0.8 else None
                batch.rows.append((k, value))
                if value is None:
                    self.rows.pop(k, None)
                else:
                    self.rows[k] = value
        return batch

    def check(self, storage) -> None:
        found = storage.load()
        for group, log in self.groups.items():
            got = found.get(group, GroupLog(HardState(), 0, 0, 0, 0, []))
            assert got.entries == log.entries
            assert (got.applied, got.applied_term, got.compacted, got.compacted_term, got.conf) == (
                log.applied, log.applied_term, log.compacted, log.compacted_term, log.conf)  # fmt: skip
            if got.hard_state != HardState() or log.hard_state != HardState(1, 1, 0):
                assert got.hard_state[:2] == log.hard_state[:2]
        assert list(storage.scan(b"", b"\xff" * 9)) == sorted(self.rows.items())
        for k in [key(1, b"h", b"%d" % i) for i in range(0, 300, 37)]:
            assert storage.get(k) == self.rows.get(k)


def test_a_void_takes_the_whole_log_of_one_group_and_no_rows(disk):
    row = key(1, b"a", b"x")
    disk.storage.write(Round(entries=[(1, entries(1, 1, 9)), (2, entries(1, 1, 3))], rows=[(row, b"v")]))
    for index in (5, 5):
        disk.storage.write(
            Round(void=[1], compact=[(1, index, 1)], applied=[(1, index, 1, b"c")],
                  hard_states=[(1, HardState(4, 2, 5))])
        )  # fmt: skip
        logs = disk.kill_and_open().load()
        assert logs[1] == GroupLog(HardState(4, 2, 5), 5, 1, 5, 1, [], b"c")
        assert logs[2].entries == entries(1, 1, 3)
        assert disk.storage.get(row) == b"v"
        disk.storage.write(Round(entries=[(1, entries(1, 6, 9))]))
    with pytest.raises(ValueError, match="through write"):
        disk.storage.fold(Round(void=[1]))


def test_any_history_of_rounds_and_ends(disk, rng):
    model = Model(rng)
    for _ in range(120):
        before = copy.deepcopy((model.groups, model.rows))
        batch = model.round()
        if isinstance(disk.storage, MemoryStorage) and rng.random() < 0.1:
            disk.storage.fail_next(StorageFull("full"))
            with pytest.raises(StorageFull):
                disk.storage.write(batch)
            if rng.random() < 0.5:
                model.groups, model.rows = before
                continue
        if rng.random() < 0.5 and not model.voids:
            disk.storage.write(Round(entries=batch.entries, hard_states=batch.hard_states))
            batch.entries, batch.hard_states = [], []
            disk.storage.fold(batch)
        else:
            disk.storage.write(batch)
        disk.storage.maintain()
        if rng.random() < 0.08:
            model.check(getattr(disk, rng.choice(["close_and_open", "kill_and_open"]))())
    model.check(disk.kill_and_open())
