"""Who belongs to a group, and how that changes: voters, learners, and the joint state between two sets.

A change of one voter goes straight to the next configuration (their majorities overlap). A change of more
passes through a joint configuration, in which every decision needs a majority of both sets, and leaves it
with a second entry. A voter that becomes a learner stays a voter of the outgoing half until then
(`learners_next`).

Lineage: Raft section 6; Ongaro's thesis, chapter 4; etcd-io/raft confchange/. As in etcd, a change takes
effect when its entry is applied, not when it is appended, and the next one may be proposed only after that.
Invariants: no node is both voter and learner; learners_next are voters of the outgoing half only.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from history_store.raft.messages import NOBODY, ConfChangeRefused


class ChangeOp(IntEnum):
    """What happens to one node."""

    ADD_VOTER = 1
    ADD_LEARNER = 2
    REMOVE = 3


class Transition(IntEnum):
    """Whether to go through a joint configuration."""

    AUTO = 0  # straight if at most one voter changes, else JOINT_IMPLICIT
    JOINT_IMPLICIT = 1  # joint; the leader proposes to leave as soon as it is in
    JOINT_EXPLICIT = 2  # joint; stays until a change without changes is proposed


class Change(NamedTuple):
    """One node of a change."""

    op: ChangeOp
    node_id: int


class ConfChange(msgspec.Struct, frozen=True, array_like=True):
    """What an entry of kind CONF_CHANGE carries. No changes = leave the joint configuration."""

    changes: tuple[Change, ...] = ()
    transition: Transition = Transition.AUTO
    context: bytes = b""  # hosting's own, e.g. the new node's address

    def encode(self) -> bytes:
        """The change as an entry's data."""
        return _encoder.encode(self)


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """The members of a group. Node ids are sorted, so that equal configurations are equal bytes."""

    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()  # not empty = joint
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()  # become learners when the joint configuration is left
    auto_leave: bool = False

    def encode(self) -> bytes:
        """The configuration as the log's readers keep it."""
        return _encoder.encode(self)

    @property
    def members(self) -> tuple[int, ...]:
        """Everybody who gets entries, sorted."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def is_voter(self, node_id: int) -> bool:
        """Whether the node's vote counts in either half."""
        return node_id in self.voters or node_id in self.outgoing

    def check(self) -> Configuration:
        """Assert the invariants; answer itself."""
        assert not set(self.voters) & set(self.learners), "a node is voter and learner"
        assert not set(self.outgoing) & set(self.learners), "a node is outgoing voter and learner"
        assert set(self.learners_next) <= set(self.outgoing), "a future learner must be leaving its vote"
        assert not set(self.learners_next) & set(self.voters), "a future learner votes in the new half"
        for ids in (self.voters, self.outgoing, self.learners, self.learners_next):
            assert list(ids) == sorted(set(ids)), "node ids are sorted and appear once"
        if not self.outgoing:
            assert not self.learners_next, "only a joint configuration has future learners"
            assert not self.auto_leave, "only a joint configuration can be left"
        return self


_encoder = msgspec.msgpack.Encoder()
_change_decoder = msgspec.msgpack.Decoder(ConfChange)
_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def decode_change(data: bytes) -> ConfChange:
    """An entry's data as a change."""
    return _change_decoder.decode(data)


def decode_configuration(data: bytes) -> Configuration:
    """What `Configuration.encode` wrote."""
    return _configuration_decoder.decode(data).check()


def changed(conf: Configuration, change: ConfChange) -> Configuration:
    """The configuration after a change. Raises ConfChangeRefused where it makes no sense."""
    if not change.changes:
        return _leave(conf)
    if conf.outgoing:
        raise ConfChangeRefused("the group is between two memberships; that change must be finished first")
    voters, learners = set(conf.voters), set(conf.learners)
    seen: set[int] = set()
    for op, node_id in change.changes:
        if node_id <= NOBODY:
            raise ConfChangeRefused(f"node id {node_id} cannot exist")
        if node_id in seen:
            raise ConfChangeRefused(f"node {node_id} is changed twice in one change")
        seen.add(node_id)
        voters.discard(node_id)
        learners.discard(node_id)
        if op is ChangeOp.ADD_VOTER:
            voters.add(node_id)
        elif op is ChangeOp.ADD_LEARNER:
            learners.add(node_id)
    if not voters:
        raise ConfChangeRefused(
            "the change would leave no voter, and nobody could ever decide anything again"
        )
    straight = change.transition is Transition.AUTO and len(voters ^ set(conf.voters)) <= 1
    if straight:
        return Configuration(
            voters=tuple(sorted(voters)),
            learners=tuple(sorted(learners)),
        ).check()
    return Configuration(
        voters=tuple(sorted(voters)),
        outgoing=conf.voters,
        learners=tuple(sorted(learners - set(conf.voters))),
        learners_next=tuple(sorted(learners & set(conf.voters))),
        auto_leave=change.transition is not Transition.JOINT_EXPLICIT,
    ).check()


def _leave(conf: Configuration) -> Configuration:
    if not conf.outgoing:
        raise ConfChangeRefused("the group is not between two memberships; there is nothing to leave")
    return Configuration(
        voters=conf.voters,
        learners=tuple(sorted({*conf.learners, *conf.learners_next})),
    ).check()
