"""Request ids of starts say whose poll it was, to the region in which it was."""

from uuid import UUID, uuid4

from cluster.hosting.tasks.starts import is_without_poll, named_for, named_without_poll, node_of


def test_a_start_names_its_node_to_its_own_region() -> None:
    named = named_for(str(uuid4()), 300, 7)
    assert UUID(named).version == 8
    assert node_of(named, 7) == 300
    assert node_of(named, 8) == 0, "another region has a node of that number, and never heard of it"
    assert not is_without_poll(named)


def test_a_start_without_a_poll_is_nobodys() -> None:
    named = named_without_poll(str(uuid4()))
    assert is_without_poll(named)
    assert node_of(named, 0) == 0
    assert node_of(str(uuid4()), 0) == 0
