"""The test hooks of the storage in memory."""

import pytest

from history_store.storage.contract import Entry, HardState, Round, StorageBroken, StorageFull
from history_store.storage.memory import MemoryStorage

KEY = b"\0\0\0\1ax"


def test_a_definite_failure_leaves_nothing_and_the_next_write_works():
    storage = MemoryStorage()
    storage.fail_next(StorageFull("no space"))
    with pytest.raises(StorageFull, match="no space"):
        storage.write(Round(rows=[(KEY, b"1")]))
    assert storage.get(KEY) is None
    storage.write(Round(rows=[(KEY, b"2")]))
    assert storage.get(KEY) == b"2"
    storage.close()


@pytest.mark.parametrize("applied", [False, True])
def test_an_indefinite_failure_stops_the_storage_until_it_is_restarted(applied):
    storage = MemoryStorage()
    storage.fail_next(StorageBroken("the disk is gone"), applied=applied)
    for _ in range(2):
        with pytest.raises(StorageBroken, match="the disk is gone"):
            storage.write(Round(entries=[(1, [Entry(1, 1, 0, b"x")])]))
    storage.crash()
    assert (1 in storage.load() and len(storage.load()[1].entries) == 1) is applied
    storage.write(Round(entries=[(1, [Entry(2, 1, 0, b"y")])]))
    storage.close()


def test_a_crash_forgets_a_commit_index_that_needed_no_write():
    storage = MemoryStorage()
    storage.write(Round(entries=[(1, [Entry(1, 1, 0, b"x")])], hard_states=[(1, HardState(1, 1, 0))]))
    storage.write(Round(hard_states=[(1, HardState(1, 1, 1))]))
    assert storage.load()[1].hard_state.commit == 1
    storage.crash()
    assert storage.load()[1].hard_state == HardState(1, 1, 0)
    storage.close()


def test_two_storages_do_not_share_a_projection():
    one, two = MemoryStorage(), MemoryStorage()
    readers = [one.visibility_connection(), two.visibility_connection()]
    names = [reader.execute("PRAGMA database_list").fetchall() for reader in readers]
    assert one._uri != two._uri
    assert len(names) == 2
    for connection in (*readers, one, two):
        connection.close()
