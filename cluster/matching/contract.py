"""What matching asks of the rooms around it: tasks, pollers, the shards behind them, and a clock.

Matching knows nothing of workflows, shards or the wire. A task knows how to be started, a poller is something
to start it for, and a source knows which durable tasks are still waiting. Hosting implements all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

PRIORITY_FIRST = 1
PRIORITY_DEFAULT = 3
PRIORITY_LAST = 5

NodeId: TypeAlias = int  # of a node of the region, as in Raft


class QueueKind(IntEnum):
    """Temporal's TaskQueueType (the numbers are the wire's)."""

    WORKFLOW = 1
    ACTIVITY = 2
    NEXUS = 3


class QueueKey(NamedTuple):
    """One task queue. A sticky queue is a queue like others, with a name of its own."""

    namespace_id: str
    kind: int  # a QueueKind
    name: str


class NotNow(Exception):
    """A task cannot be started at present (its shard takes no writes): task and poll wait on."""


class Clock(Protocol):
    """Where matching takes the time from."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch; it must not run backwards by more than rates can bear."""


class Connection(Protocol):
    """A client's connection, as far as matching cares. Hashable, by identity."""

    @property
    def closed(self) -> bool:
        """Whether it is gone; it never comes back."""


class Poller(Protocol):
    """One open poll call. Hashable, by identity: two polls of one worker are two pollers."""

    @property
    def identity(self) -> str:
        """The worker's name, as people see it in DescribeTaskQueue."""

    @property
    def connection(self) -> Connection:
        """The connection the poll came on; it tells which process is waiting."""

    @property
    def worker_instance_key(self) -> str:
        """The worker's unique key, "" if its SDK sends none."""

    @property
    def versioning(self) -> object:
        """Build id and deployment of the worker: carried to `PollerInfo`, never looked into."""

    @property
    def rate_per_second(self) -> float | None:
        """The dispatch limit the worker asked for its whole queue; None if it asked for none."""


class Task(Protocol):
    """Something a worker is to be given, once.

    (priority, sequence) is its place in its queue and its name there: two tasks of a queue never share it.
    """

    @property
    def queue(self) -> QueueKey:
        """The queue it waits in."""

    @property
    def priority(self) -> int:
        """PRIORITY_FIRST to PRIORITY_LAST; the lower number is served first."""

    @property
    def sequence(self) -> int:
        """Order within a priority; unique, comparable across shards (about nanoseconds of creation)."""

    @property
    def durable(self) -> bool:
        """Whether a shard keeps it until it is started, so that memory may drop it and fetch it again."""

    @property
    def created_ns(self) -> int:
        """When it was created, in nanoseconds since the epoch."""

    def start(self, poller: Poller) -> bool:
        """Record that it is started and answer the poll. False: it is void, nothing was answered.

        It may call back into matching (offer, withdraw, poll, cancel_poll, connection_closed). NotNow.
        """

    def reroute(self) -> None:
        """Its sticky queue has lost its last worker: offer it elsewhere (its row leaves this queue)."""


class Source(Protocol):
    """The shards of this node, as a store of waiting durable tasks."""

    def fetch(self, queue: QueueKey, limit: int) -> list[Task]:
        """The first `limit` durable tasks in (priority, sequence) order, whether or not memory holds them.

        Fewer than `limit` means that these are all. A task is visible here from before it is offered until it
        is started or void; one that was started but whose commit is under way may or may not be included.
        """

    def count(self, queue: QueueKey) -> int:
        """How many durable tasks wait in it."""


class Host(Protocol):
    """What the exchange of tasks between nodes asks of the node it runs in."""

    def send(self, node: NodeId, message: list[object]) -> None:
        """Send a message to a peer that is up: in order, at once or at the end of the turn, never failing.

        What is sent after a message that was lost must be lost too, until `peer_up` was called again.
        """

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> object:
        """Call once, after so many seconds."""

    def poll_fields(self, poller: Poller) -> list[object]:
        """What the node that starts a task for this poll must know of it; what msgpack can carry."""

    def start_lent(self, task: Task, node: NodeId, poll_id: int, fields: list[object]) -> bool:
        """Record that a task is started for a poll of another node, as `Task.start` does for one of ours.

        True: `Exchange.deliver` or `Exchange.void` follows, for this node and poll. False: the task is void.
        It may call back into matching, and into the exchange. NotNow.
        """

    def answer(self, poller: Poller, node: NodeId, body: bytes, receipt: object) -> bool:
        """Give a poll of ours its task, which `node` started. False: nobody listens any more.

        `receipt` is what `node` needs to take the task back (`Exchange.give_back`), as it chose to write it.
        """

    def undelivered(self, node: NodeId, receipt: object, *, certain: bool) -> None:
        """A task that was started for a poll of `node` did not reach its worker: give it back.

        Not certain: the node vanished before it could say whether it did.
        """
