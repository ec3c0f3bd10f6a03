"""Deeds: what one run does to another, wherever the shard of the other is led.

Theory of operation. An action has two halves. The source half (actions.py) runs where the asking run's shard
is led; it gathers all that the other half needs into a `Deed` and asks. The target half is here: it is given
the deed and nothing else, changes the target run and says what came of it. `Deeds.ask` is the one door
between them. Where one node leads both shards it is a plain call; otherwise the deed travels as the call
`METHOD`, by the machinery that sends clients' calls to leaders (forward.py).

Ordering contract. An outcome is told only when all that it rests on is committed in the target's shard, and
what was read there was read by a leader that a quorum confirmed. Whatever is less than that is `Again`: it
may have happened, so it is asked again, and the target knows the deed by its request id. Deeds of one request
id that leave this node go one after another: the end of a child must not overtake its start.

Not here: how long an action is tried again (actions.py), and how a leader is found (forward.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never, cast

import msgspec
import structlog
from temporalio.api.common.v1.message_pb2 import Header, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import failed_cause_pb2, workflow_pb2
from temporalio.api.sdk.v1.user_metadata_pb2 import UserMetadata

from cluster.frontend.plain import PlainCall
from cluster.hosting.calls.attempt import Attempt
from cluster.hosting.calls.remote import RemoteConnection
from cluster.hosting.groups.group import NotLeading, nobody
from cluster.hosting.shards.meta import not_found
from history_store.engine import children, close, inputs, start
from history_store.engine import state as st
from history_store.engine.errors import Code, ServiceError
from history_store.engine.start import Started

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Connection, Handler
    from cluster.hosting.groups.group import Waiter
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import CurrentRun

log = structlog.get_logger("deeds")

METHOD = "/holdfast.internal.v1.Deeds/Do"
FORMAT = 1  # first byte of a deed and of an outcome; fields with defaults may be added at the end within it

ASK_S = 2.0  # for an answer of another node; asking again costs little, and a hung node answers nobody
ASKS_MAX = 4_096  # deeds on their way to other nodes; more wait here, where they are small
PATIENT_ASKS_MAX = 64  # of them look for a leader 33 times a second; the rest once a second
CLOCK_SKEW_NS = 60_000_000_000  # between nodes, far more than their clocks should ever differ

EXISTS = failed_cause_pb2.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
NO_NAMESPACE = failed_cause_pb2.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
SIGNAL_NOT_FOUND = (
    failed_cause_pb2.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
)
SIGNAL_LIMIT = failed_cause_pb2.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_SIGNAL_COUNT_LIMIT_EXCEEDED
CANCEL_NOT_FOUND = (
    failed_cause_pb2.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
)
TERMINATE = workflow_pb2.PARENT_CLOSE_POLICY_TERMINATE
FAILED_ONLY = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
REJECT = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
TERMINATE_IF_RUNNING = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
HISTORY_SERVICE = "history-service"


# ---- what is asked: protobuf messages are objects here and bytes on the wire


class Target(msgspec.Struct, array_like=True, gc=False):
    """Whom a deed is for, and how it is known again."""

    namespace_id: str
    workflow_id: str
    request_id: str
    born: int  # when the action was first asked for, nanoseconds since the epoch
    known: bool  # the asking node knows the target's namespace


class StartChild(Target, tag="start_child", gc=False):
    """Start a child. Done names the run that was started, by this try or an earlier one."""

    run_id: str  # of the child, if it is this try that starts it
    reuse_policy: int
    started: Started
    user_metadata: UserMetadata | None = None


class ChildClosed(Target, tag="child_closed", gc=False):
    """Tell a parent how its child's chain ended. The request id is the chain's first run."""

    parent_run_id: str
    initiated_id: int
    status: int
    payload: bytes  # the closing event's attributes
    last_run_id: str


class CloseChild(Target, tag="close_child", gc=False):
    """A parent closed: terminate the child, or ask it to cancel. The request id is that of its start."""

    first_run_id: str  # of the child; "" if its parent never heard of it
    policy: int
    parent_workflow_id: str
    parent_run_id: str
    initiated_id: int


class Signal(Target, tag="signal", gc=False):
    """Signal another workflow."""

    run_id: str  # "": the current one
    from_workflow_id: str
    from_run_id: str
    child_only: bool
    name: str
    input: Payloads | None = None
    header: Header | None = None


class Cancel(Target, tag="cancel", gc=False):
    """Ask another workflow to cancel."""

    run_id: str  # "": the current one
    from_workflow_id: str
    from_run_id: str
    child_only: bool
    reason: str
    initiated_id: int


Deed = StartChild | ChildClosed | CloseChild | Signal | Cancel


# ---- what came of it


class Done(msgspec.Struct, array_like=True, tag="done", gc=False):
    """It is done, and committed."""

    run_id: str = ""


class Refused(msgspec.Struct, array_like=True, tag="refused", gc=False):
    """It cannot be done, and that is for good: the cause as the failed event of its kind names it."""

    cause: int


class Pause(IntEnum):
    """How soon to ask again."""

    NONE = 0
    SHORT = 1
    LONG = 2  # nothing but an operator or another release will help


class Again(NamedTuple):
    """Whether it is done is not known. Ask again."""

    why: str
    pause: Pause


Outcome = Done | Refused | Again
Then = Callable[[Outcome], None]


def _to_bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


_pack = msgspec.msgpack.Encoder(enc_hook=_to_bytes).encode
_deed = msgspec.msgpack.Decoder(Deed, dec_hook=lambda kind, data: kind.FromString(data)).decode
_outcome = msgspec.msgpack.Decoder(Done | Refused).decode
_HEAD = bytes((FORMAT,))


def encode(message: Deed | Done | Refused) -> bytes:
    """As it travels."""
    return _HEAD + _pack(message)


def decode(data: bytes) -> Deed:
    """UNIMPLEMENTED if another release wrote it, in a form that this one does not know."""
    if data[:1] == _HEAD:
        try:
            deed: Deed = _deed(memoryview(data)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ServiceError(Code.UNIMPLEMENTED, f"this node cannot read the deed: {error}") from error
        return deed
    raise ServiceError(
        Code.UNIMPLEMENTED, f"this node reads deeds of format {FORMAT}, not {data[:1].hex() or 'none'}"
    )


def decode_outcome(data: bytes) -> Outcome:
    """Again if another release wrote it, in a form that this one does not know."""
    if data[:1] == _HEAD:
        try:
            outcome: Done | Refused = _outcome(memoryview(data)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return Again(f"this node cannot read the answer: {error}", Pause.LONG)
        return outcome
    return Again(f"this node reads answers of format {FORMAT} only", Pause.LONG)


# ---- calls without a client


class NoConnection:
    """What a call of the node's own came on: it is never closed."""

    peer = "internal"
    closed = False

    def on_close(self, callback: Callable[[], None]) -> None:
        """It never is."""


NO_CONNECTION = NoConnection()


class InternalCall(PlainCall):
    """A call that the node makes itself (a `contract.Call`)."""

    __slots__ = ("_on_answer",)

    def __init__(
        self, method: str, request: bytes, deadline: float, on_answer: Callable[[bytes | ServiceError], None]
    ) -> None:
        super().__init__(method, request, deadline)
        self._on_answer = on_answer

    @property
    def connection(self) -> Connection:
        """One that never closes."""
        return NO_CONNECTION

    def finish(self, body: bytes) -> None:
        """The answer."""
        if not self.done:
            self.end()
            self._on_answer(body)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:  # noqa: ARG002
        """No answer, but a status."""
        if not self.done:
            self.end()
            self._on_answer(ServiceError(Code(code), message))

    def expire(self) -> None:
        """Its time is up: whoever works on it need not, and DEADLINE_EXCEEDED is the answer."""
        if not self.done:
            if self.on_cancel is not None:
                self.on_cancel()
            self.fail(Code.DEADLINE_EXCEEDED, "no answer in time")


# A namespace that is not found is one that the target's node has not heard of yet (see `Deeds._answer`).
_PASSING = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.NOT_FOUND)


def again(error: ServiceError) -> Again:
    """What an error means to whoever asked."""
    if error.code == Code.DEADLINE_EXCEEDED:
        return Again(error.message, Pause.NONE)
    passing = error.code in _PASSING
    return Again(error.message, Pause.SHORT if passing else Pause.LONG)


# ---- the door


class Deeds:
    """Asks for deeds, and does them on this node's shards."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.loop = node.loop
        self._doer = Doer(node)
        self._sent: dict[str, list[tuple[ShardHost, Deed, Then]]] = {}  # by request id: what waits for it
        self._queued: deque[tuple[ShardHost, Deed, Then]] = deque()
        self._emptying = False

    def handlers(self) -> dict[str, Handler]:
        """What `Forward.handlers` needs, besides the services'. No front is to offer it to clients."""
        return {METHOD: self.serve}

    def ask(self, source: ShardHost, deed: Deed, then: Then) -> None:
        """Have it done: `then` hears once what came of it, or nothing if `source` is retired meanwhile."""
        if self._sent:
            behind = self._sent.get(deed.request_id)
            if behind is not None:
                behind.append((source, deed, then))
                return
        result: tuple[ShardHost, Done | Refused, int | None] | None = None
        try:
            here = self._here(deed)
            if here is not None:
                result = (here, *self._doer.do(here, deed))
        except NotLeading:
            pass
        except ServiceError as error:
            then(again(error))
            return
        except Exception as error:
            log.exception("a deed failed", request=deed.request_id)
            then(Again(repr(error), Pause.LONG))
            return
        if result is None:
            self._send(source, deed, then)
            return
        here, outcome, index = result
        if index and here.group.raft.is_alone and source.group.raft.is_alone:
            index = 0  # one disk for both, in one order: what it rests on is durable before its record is

        def committed(lost: ServiceError | None) -> None:
            if lost is None:
                then(outcome)
            else:  # whether it is done, the next leader knows
                self._send(source, deed, then)

        here.group.when_committed(committed, patient=True, index=index)

    def _here(self, deed: Deed) -> ShardHost | None:
        """The target's shard, if this node leads it for certain, and knows the namespace. NotLeading."""
        if not deed.known and self.node.forward is not None:
            return None  # it may have been registered elsewhere a moment ago: an attempt finds out
        shard = self.node.shard_of(deed.namespace_id, deed.workflow_id)
        if not shard.serves(deed.namespace_id):
            return None  # a call finds the region that serves it
        group = shard.group
        return shard if group.raft.is_alone or group.readable else None

    def _send(self, source: ShardHost, deed: Deed, then: Then) -> None:
        """Ask whoever leads the target's shard, once: for `ASK_S` seconds."""
        forward = self.node.forward
        if forward is None:
            then(Again("the shard has no leader at present", Pause.SHORT))
            return
        if len(self._sent) >= ASKS_MAX:
            self._queued.append((source, deed, then))
            return
        now = self.loop.time()
        patient = len(self._sent) < PATIENT_ASKS_MAX
        self._sent[deed.request_id] = []

        def handle(call: Call) -> None:
            if source.retired:  # the next leader asks in its own name, and knows more than we do
                raise ServiceError(Code.CANCELLED, "another node leads the shard that asks")
            self._answer(call, deed)

        def answered(answer: bytes | ServiceError) -> None:
            timer.cancel()
            self._queued.extend(self._sent.pop(deed.request_id))
            if self._queued and not self._emptying:
                self._emptying = True
                self.loop.call_soon(self._empty)
            if not source.retired:
                then(again(answer) if isinstance(answer, ServiceError) else decode_outcome(answer))

        call = InternalCall(METHOD, encode(deed), now + ASK_S, answered)
        timer = self.loop.call_later(ASK_S, call.expire)
        Attempt(forward, call, handle, now + ASK_S if patient else now).run()

    def _empty(self) -> None:
        """Ask for what had to wait."""
        self._emptying = False
        for _ in range(len(self._queued)):
            if len(self._sent) >= ASKS_MAX:
                return
            source, deed, then = self._queued.popleft()
            if not source.retired:
                self.ask(source, deed, then)

    def serve(self, call: Call) -> None:
        """Another node asks."""
        if not isinstance(call.connection, RemoteConnection):
            raise ServiceError(Code.UNIMPLEMENTED, f"unknown method {METHOD}")
        self._answer(call, decode(call.request))

    def _answer(self, call: Call, deed: Deed) -> None:
        """Do it here, and answer the call. NotLeading, NotReadable.

        NOT_FOUND if the namespace is not known here but perhaps elsewhere: an attempt that hears it waits
        until this node knows all that the region knows, and comes once more.
        """
        target = self.node.shard_of(deed.namespace_id, deed.workflow_id)
        # Every call comes to a handler as an attempt: the front's, other nodes' and our own.
        sure = not deed.known and cast("Attempt", call).checked
        if deed.namespace_id not in self.node.meta.by_id and not sure:
            raise not_found(deed.namespace_id)
        outcome, index = self._doer.do(target, deed)

        def committed(lost: ServiceError | None) -> None:
            if lost is None:
                call.finish(encode(outcome))
            else:
                call.fail(int(lost.code), lost.message)

        target.group.when_committed(committed, index=index)


# ---- the target half


class Refusal(Exception):
    """The target cannot have it: `cause` is for the failed event, `index` as in `Doer.do`."""

    def __init__(self, cause: int, index: int | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.index = index


class Doer:
    """Does deeds: each is one transaction on the target's shard, or none if it was done before."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def do(self, target: ShardHost, deed: Deed) -> tuple[Done | Refused, int | None]:
        """What came of it, and the index it rests on: it is true once that is committed (None: all so far).

        Raises ServiceError if it was not done and may be later.
        """
        try:
            return self._do(target, deed), None
        except Refusal as refusal:
            return Refused(refusal.cause), refusal.index

    def _do(self, target: ShardHost, deed: Deed) -> Done:
        match deed:
            case StartChild():
                return self._start_child(target, deed)
            case ChildClosed():
                return self._child_closed(target, deed)
            case CloseChild():
                return self._close_child(target, deed)
            case Signal():
                return self._signal(target, deed)
            case Cancel():
                return self._cancel(target, deed)
            case _:
                assert_never(deed)

    # ---- children

    def _start_child(self, target: ShardHost, deed: StartChild) -> Done:
        namespace = self.node.meta.by_id.get(deed.namespace_id)
        if namespace is None:
            raise Refusal(NO_NAMESPACE, 0)
        now = target.current(deed.namespace_id, deed.workflow_id)
        ours = _started_before(target, deed, now) if now is not None else ""
        if ours:
            return Done(ours)
        tx = target.begin(deed.namespace_id)
        try:
            if now is not None:
                _make_room(target, tx, deed, now)
            child = start.create(
                tx,
                deed.namespace_id,
                deed.run_id,
                deed.started,
                deed.request_id,
                user_metadata=deed.user_metadata,
                version=tx.version,
            )
            if now is not None:
                child.state.earlier_starts = now.passed_on()
        except BaseException:
            target.abort(tx)
            raise
        target.commit(tx, nobody)
        return Done(deed.run_id)

    def _child_closed(self, target: ShardHost, deed: ChildClosed) -> Done:
        parent = target.find(deed.namespace_id, deed.workflow_id, deed.parent_run_id)
        while parent is not None and not parent.running and parent.state.reset_run_id:
            # A reset put another run in its place, which goes on with the child.
            parent = target.find(deed.namespace_id, deed.workflow_id, parent.state.reset_run_id)
        child = parent.children.get(deed.initiated_id) if parent is not None and parent.running else None
        if parent is None or child is None or child.run_id not in ("", deed.request_id):
            return Done()  # it has been told, or is no more

        def tell(tx: Transaction) -> Waiter:
            children.child_closed(
                tx, parent, child, deed.status, deed.payload, deed.request_id, deed.last_run_id
            )
            return nobody

        target.change(parent, tell)
        return Done()

    def _close_child(self, target: ShardHost, deed: CloseChild) -> Done:
        now = target.current(deed.namespace_id, deed.workflow_id)
        if now is None or now.status != st.RUNNING:
            return Done()
        # A parent that never heard of its child knows its start alone; others may follow that run by now.
        first = deed.first_run_id or _started_before(target, deed, now)
        if now.start_request_id != deed.request_id and (not first or now.first_run_id != first):
            return Done()  # the id means another workflow by now
        run = target.find(deed.namespace_id, deed.workflow_id, now.run_id)
        assert run is not None, "the current run is there"

        def end(tx: Transaction) -> Waiter:
            if deed.policy == TERMINATE:
                close.terminate(tx, run, "by parent close policy", None, HISTORY_SERVICE)
            else:
                inputs.request_cancel(
                    tx,
                    run,
                    HISTORY_SERVICE,
                    deed.request_id,
                    "by parent close policy",
                    external=WorkflowExecution(
                        workflow_id=deed.parent_workflow_id, run_id=deed.parent_run_id
                    ),
                    initiated_id=deed.initiated_id,
                )
            return nobody

        target.change(run, end)
        return Done()

    # ---- signals and cancel requests

    def _signal(self, target: ShardHost, deed: Signal) -> Done:
        run = target.find(deed.namespace_id, deed.workflow_id, deed.run_id)
        if run is None:
            raise Refusal(SIGNAL_NOT_FOUND)
        if any(deed.request_id in earlier.signal_ids for earlier in _since_born(target, run, deed)):
            return Done()
        if not run.running or (deed.child_only and not _is_parent(deed, run)):
            raise Refusal(SIGNAL_NOT_FOUND)

        def send(tx: Transaction) -> Waiter:
            try:
                inputs.signal(
                    tx,
                    run,
                    deed.name,
                    deed.input,
                    deed.header,
                    HISTORY_SERVICE,
                    deed.request_id,
                    external=_from(deed),
                )
            except ServiceError as error:
                limit = error.code == Code.RESOURCE_EXHAUSTED
                raise Refusal(SIGNAL_LIMIT if limit else SIGNAL_NOT_FOUND) from error
            return nobody

        target.change(run, send)
        return Done()

    def _cancel(self, target: ShardHost, deed: Cancel) -> Done:
        run = target.find(deed.namespace_id, deed.workflow_id, deed.run_id)
        if run is None or (deed.child_only and not _is_parent(deed, run)):
            raise Refusal(CANCEL_NOT_FOUND)
        asked = (earlier.state.cancel_request_id for earlier in _since_born(target, run, deed))
        if deed.request_id in asked or not run.running:
            return Done()

        def send(tx: Transaction) -> Waiter:
            inputs.request_cancel(
                tx,
                run,
                HISTORY_SERVICE,
                deed.request_id,
                deed.reason,
                external=_from(deed),
                initiated_id=deed.initiated_id,
            )
            return nobody

        target.change(run, send)
        return Done()


def _started_before(target: ShardHost, deed: StartChild | CloseChild, now: CurrentRun) -> str:
    """The run that the deed of this id started ("" if it did not), also if others follow it now."""
    if begun := now.started_by(deed.request_id):
        return begun
    if now.first_run_id in ("", now.run_id):
        return ""
    first = target.find(deed.namespace_id, deed.workflow_id, now.first_run_id)
    return now.first_run_id if first is not None and first.state.start_request_id == deed.request_id else ""


def _make_room(target: ShardHost, tx: Transaction, deed: StartChild, now: CurrentRun) -> None:
    """See whether the reuse policy lets the child start although the id is known; end what is in its way."""
    policy = deed.reuse_policy
    running = now.status == st.RUNNING
    if running and policy == TERMINATE_IF_RUNNING:
        run = target.find(deed.namespace_id, deed.workflow_id, now.run_id)
        assert run is not None, "the current run is there"
        close.give_way(tx, tx.open(run), deed.run_id)
    elif running or policy == REJECT or (policy == FAILED_ONLY and now.status == st.COMPLETED):
        seen = target.find(deed.namespace_id, deed.workflow_id, now.run_id)
        raise Refusal(EXISTS, seen.proposed if seen is not None else None)


def _since_born(target: ShardHost, run: Run, deed: Signal | Cancel) -> Iterator[Run]:
    """The run, and those before it that an earlier try may have found in its place."""
    yield run
    while (
        not deed.run_id
        and run.state.continued_from_run_id
        and run.state.start_time + CLOCK_SKEW_NS >= deed.born
    ):
        earlier = target.find(deed.namespace_id, deed.workflow_id, run.state.continued_from_run_id)
        if earlier is None:
            return
        run = earlier
        yield run


def _is_parent(deed: Signal | Cancel, run: Run) -> bool:
    state = run.state
    return state.parent_workflow_id == deed.from_workflow_id and state.parent_run_id == deed.from_run_id


def _from(deed: Signal | Cancel) -> WorkflowExecution:
    return WorkflowExecution(workflow_id=deed.from_workflow_id, run_id=deed.from_run_id)
