"""One try of a call, as its handler sees it.

When it is lost, since its shard has another leader, the handler is told that the client has gone, what it
still answers is ignored, and the next attempt begins.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.frontend.status import status_of
from cluster.hosting.calls.remote import ForeignCall, RemoteCall
from cluster.hosting.calls.run_names import READING, name_run
from cluster.hosting.groups.group import NotLeading, NotReadable
from cluster.hosting.shards.gates import NotActive
from history_store.engine.errors import Code, ServiceError
from history_store.rare import reached
from replication.failover.gates import Admission, Verdict
from replication.failover.gates import Call as Wants

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Connection, Handler
    from cluster.hosting.calls.abroad import Route
    from cluster.hosting.calls.forward import Forward
    from cluster.hosting.groups.group import Group
    from cluster.hosting.shards.host import ShardHost
    from history_store.visibility.sql import Slots

MUTATION = Wants.MUTATION  # a member of an enumeration is looked up slowly

# Of what an earlier try did such an error says nothing: the state explains it, as that try may have left it,
# or there is no room for another.
IN_DOUBT = frozenset((Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED))


class Entered:
    """What a call meets while it is handled."""

    __slots__ = ("confirmed", "namespace_id", "run_id", "shards", "stamp", "wants")

    def __init__(self) -> None:
        self.wants = MUTATION  # of the namespace; its handler knows better
        self.namespace_id = ""
        self.stamp: Callable[[int], None] | None = None  # told which shard answers a read
        self.shards: list[ShardHost] = []
        self.confirmed: list[Group] = []  # led here by the word of a quorum that was asked since it came
        self.run_id = ""  # the run that was meant, where the call named none


class Attempt:
    """One try of a call, as its handler sees it (a `contract.Call`)."""

    __slots__ = (
        "_entered",
        "_forward",
        "_handler",
        "_task",
        "_work",
        "again",
        "call",
        "checked",
        "deadline",
        "done",
        "group",
        "on_cancel",
        "on_message",
        "parked",
        "parked_until",
        "released",
        "remote",
        "route",
        "tries",
        "until",
    )

    def __init__(self, forward: Forward, call: Call, handler: Handler, until: float) -> None:
        self._forward = forward
        self.call = call
        self._handler = handler
        self._entered = Entered()
        self._task: asyncio.Task[None] | None = None
        self._work: Coroutine[Any, Any, bytes | None] | None = None  # what the task is to do
        self.deadline = call.deadline
        self.done = False
        self.again = False  # an earlier try was lost, and may have taken effect
        self.checked = False  # the namespace it names was looked for in the newest table
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None
        self.remote: tuple[int, int] | None = None  # (node, number) of a call that was sent on
        self.group = 0  # whose leader it was sent to
        self.tries = 0  # to find a leader, in vain
        self.route: Route | None = None  # to another region, when it was sent to one
        self.parked = 0  # the number by which it has been parked here, if it has
        self.parked_until = 0  # however often it is refused: nanoseconds of the loop's time
        self.released = False  # it was parked, and its turn has come
        self.until = until

    # ---- contract.Call

    @property
    def request(self) -> bytes:
        """The message; what is put in its place counts for later attempts, too."""
        return self.call.request

    @request.setter
    def request(self, message: bytes) -> None:
        self.call.request = message

    @property
    def method(self) -> str:
        """Full method name."""
        return self.call.method

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The client's."""
        return self.call.metadata

    @property
    def connection(self) -> Connection:
        """The client's connection."""
        return self.call.connection

    def finish(self, body: bytes) -> None:
        """Answer."""
        if not self.done:
            self._end()
            self.on_cancel = None
            self.call.finish(body)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Answer with a status."""
        if self.done:
            return
        self._end()
        self.on_cancel = None
        name = self.method.rpartition("/")[2]
        if not self.again or code not in IN_DOUBT or name.startswith(READING):
            self.call.fail(code, message, details)
        else:
            reached("refusal in doubt after an earlier try")
            why = f"an earlier try, which was lost, may have been the one that did it; now: {message}"
            self.call.fail(int(Code.UNAVAILABLE), why)

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Metadata for the answer."""
        self.call.set_metadata(initial=initial, trailing=trailing)

    def write(self, body: bytes) -> None:
        """Unary calls only come here."""
        raise NotImplementedError(f"{self.method} is no stream")

    # ---- what it is about

    @property
    def namespace_id(self) -> str:
        """The namespace of the shard that it met last; "" before."""
        return self._entered.namespace_id

    @property
    def is_poll(self) -> bool:
        """Whether a worker waits for a task."""
        return self._entered.wants is Wants.POLL

    @property
    def is_workers(self) -> bool:
        """Whether it came on a connection whose polls wait in another region."""
        return self._forward.abroad.works_there(self.connection)

    def unless_delivered(self, undone: Callable[[], None]) -> None:
        """If the answer turns out to have come to nobody, undo what was done for it."""
        if isinstance(self.call, ForeignCall):
            self.call.undone = undone

    # ---- its life

    def run(self) -> None:
        """Call the handler and see to its answer."""
        node = self._forward.node
        self.call.on_cancel = self._cancelled
        before, node.entered = node.entered, self._entered
        try:
            result = self._handler(self)
        except NotLeading as error:
            self._leave()
            self._forward.elsewhere(self, error)
            return
        except NotActive as error:
            self._leave()
            self._forward.abroad.not_active(self, error)
            return
        except NotReadable as error:
            self._leave()
            error.group.when_readable(partial(self._readable, error.group))
            return
        except ServiceError as error:
            if self._forward.may_be_news(self, error):
                return
            self._fail_with(error)
            return
        except Exception as error:  # noqa: BLE001 - the caller hears of it, and the log
            self._fail_with(error)
            return
        finally:
            node.entered = before
        if result is None:
            if not self.done:
                for shard in self._entered.shards:
                    shard.attempts[self] = None
                if isinstance(self.call, RemoteCall | ForeignCall):
                    self.call.run_id = self._entered.run_id
        elif isinstance(result, bytes):
            self.finish(result)
        else:
            self._work = result
            self._task = asyncio.ensure_future(self._drive(result))

    async def _drive(self, coroutine: Coroutine[Any, Any, bytes | None]) -> None:
        try:
            body = await coroutine
        except (NotLeading, NotReadable) as error:
            if not self.done:
                self._forward.elsewhere(self, error if isinstance(error, NotLeading) else NotLeading(0))
        except NotActive as error:
            if not self.done:
                self._forward.abroad.not_active(self, error)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_with(error)
        else:
            if body is not None:
                self.finish(body)

    def _fail_with(self, error: Exception) -> None:
        if not self.done:
            self.fail(*status_of(error, self.method, self.connection.peer))

    def _readable(self, group: Group, error: ServiceError | None) -> None:
        if self.done:
            return
        if isinstance(error, NotLeading):
            self._forward.elsewhere(self, error)
        elif error is not None:
            self._fail_with(error)
        else:
            self._entered.confirmed.append(group)
            self.run()

    def _leave(self) -> None:
        for shard in self._entered.shards:
            shard.attempts.pop(self, None)
        self._entered.shards.clear()

    def _end(self) -> None:
        self.done = True
        self._leave()
        self._forward.ended(self)

    def _stop(self) -> None:
        if self._task is not None and self._work is not None:
            self._task.cancel()
            if inspect.getcoroutinestate(self._work) == inspect.CORO_CREATED:
                self._work.close()  # it never begins, and nobody else would say so

    def _cancelled(self) -> None:
        """The client has gone, or its time is up."""
        if self.done:
            return
        self._end()
        self._stop()
        self._tell()

    def _tell(self) -> None:
        told, self.on_cancel = self.on_cancel, None
        if told is not None:
            told()

    def lost(self, *, moved: bool = False) -> None:
        """The shard has another leader: whether this try did anything is not known. Try again there.

        `moved`: another region serves the namespace. What waits for long is to find it all the same.
        """
        if self.done:
            return
        self.done = True
        self._leave()
        self._forward.ended(self)
        self._stop()
        self._tell()  # the handler forgets the call, as if the client had gone
        if self._entered.run_id:
            name_run(self.call, self._entered.run_id)
            reached("call tried again for the run it met first")
        reached("call tried again")
        if moved and isinstance(self.call, RemoteCall):
            nobody = Admission(Verdict.PARK, 0, 0)  # the node that has the client finds out who serves it
            self.call.elsewhere(NotActive(self.namespace_id, nobody), in_doubt=True)
            return
        again = Attempt(self._forward, self.call, self._handler, self._forward.patience(self.deadline))
        again.again = True
        self.call.on_cancel = again._cancelled
        self._forward.later(again)


def scattered(call: Call) -> bool:
    """Whether another node asks for what this one knows itself."""
    if isinstance(call, Attempt):
        call = call.call
    return isinstance(call, RemoteCall) and call.scattered


def slots_asked(call: Call) -> Slots | None:
    """The slots whose part of the answer another node asks for; None: a client asks for all of it."""
    if isinstance(call, Attempt):
        call = call.call
    return call.slots if isinstance(call, RemoteCall) else None
