"""What every service method shares: decoding, checks, the namespace, and answering at the commit.

A method is a function of (services, call, request) that returns bytes, a coroutine of bytes, or None when it
keeps the call and answers later (see cluster.frontend.contract). `rpc` registers it under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message
from temporalio.api.errordetails.v1.message_pb2 import NotFoundFailure

from cluster.frontend.services.passing import enter, wants_of
from cluster.frontend.status import status_details, status_of
from cluster.frontend.validate import CHECKS
from cluster.hosting.tasks.tokens import TaskToken, task_token
from history_store.engine.errors import Code, ServiceError, invalid
from history_store.engine.inputs import not_running
from replication.failover.gates import Call as Wants

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Handler
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from cluster.hosting.shards.meta import Namespace
    from history_store.engine.limits import Limits
    from history_store.engine.run import Run, Transaction

WORKFLOW_SERVICE = "temporal.api.workflowservice.v1.WorkflowService"
OPERATOR_SERVICE = "temporal.api.operatorservice.v1.OperatorService"

Part = TypeVar("Part")
Method = Callable[["Services", "Call", Any], "bytes | Coroutine[Any, Any, bytes] | None"]
METHODS: dict[str, tuple[type[Message], Method]] = {}


def rpc(request: type[Message], service: str = WORKFLOW_SERVICE) -> Callable[[Method], Method]:
    """Register the function as the RPC that its request type is named for."""

    def register(method: Method) -> Method:
        name = request.DESCRIPTOR.name.removesuffix("Request")
        METHODS[f"/{service}/{name}"] = (request, method)
        return method

    return register


# Those that are about a namespace rather than inside one.
OF_NAMESPACES = frozenset(
    (
        "RegisterNamespace",
        "DescribeNamespace",
        "UpdateNamespace",
        "DeprecateNamespace",
        "DeleteNamespace",
    )
)


# Errors that tell what a run, or a name, has become.
OF_THE_STATE = frozenset((Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION))


def _namespaced(name: str, request: type[Message]) -> bool:
    """Whether the request works inside a namespace, which must exist: that error wins over all others."""
    own = name.rpartition("/")[2] in OF_NAMESPACES
    return (
        not own
        and name.startswith(f"/{WORKFLOW_SERVICE}")
        and "namespace" in request.DESCRIPTOR.fields_by_name
    )


def _id_of(request: type[Message]) -> Callable[[Any, Callable[[], str]], bool] | None:
    """What gives a request the id that its caller left out; None if it has none. True: it did."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name:
        return None

    def fill(request: Any, new_id: Callable[[], str]) -> bool:
        if request.request_id:
            return False
        request.request_id = new_id()
        return True

    return fill


def _name_update(request: Any, new_id: Callable[[], str]) -> bool:
    meta = request.request.meta
    if meta.update_id:
        return False
    meta.update_id = new_id()
    return True


def _name_operations(request: Any, new_id: Callable[[], str]) -> bool:
    named = False
    for operation in request.operations:
        if operation.HasField("start_workflow") and not operation.start_workflow.request_id:
            operation.start_workflow.request_id = new_id()
            named = True
        if operation.HasField("update_workflow"):
            named = _name_update(operation.update_workflow, new_id) or named
    return named


_IDS = {
    "UpdateWorkflowExecutionRequest": _name_update,
    "ExecuteMultiOperationRequest": _name_operations,
}


class Services:
    """The node as its RPCs see it."""

    def __init__(self, node: Node, limits: Limits, long_poll_s: float) -> None:
        self.node = node
        self.meta = node.meta
        self.loop = node.loop
        self.limits = limits
        self.long_poll_s = long_poll_s
        self.on_close: list[Callable[[], None]] = []  # called when the server stops
        self._parts: dict[Any, Any] = {}

    def part(self, kind: Callable[[Services], Part]) -> Part:
        """What one area of RPCs keeps for itself, made at its first use."""
        found: Part | None = self._parts.get(kind)
        if found is None:
            found = self._parts[kind] = kind(self)
        return found

    def handlers(self) -> dict[str, Handler]:
        """Every RPC by its full name."""
        return {name: self._handler(name, request, method) for name, (request, method) in METHODS.items()}

    def _handler(self, name: str, request_type: type[Message], method: Method) -> Handler:
        parse = request_type.FromString
        check = CHECKS.get(name.rpartition("/")[2])
        limits = self.limits
        resolve = self.meta.get if _namespaced(name, request_type) else None
        name_it = _IDS.get(request_type.DESCRIPTOR.name) or _id_of(request_type)
        wants = wants_of(name.rpartition("/")[2])
        plain = wants is Wants.MUTATION  # the calls that come most often
        by_token = "task_token" in request_type.DESCRIPTOR.fields_by_name  # which names its namespace itself

        def handle(call: Call) -> bytes | Coroutine[Any, Any, bytes] | None:
            try:
                request = parse(call.request)
            except DecodeError:
                raise invalid(f"the request is not a {request_type.DESCRIPTOR.full_name}") from None
            namespace = None
            if resolve is not None and (not by_token or request.namespace):  # type: ignore[attr-defined]
                namespace = resolve(request.namespace)  # type: ignore[attr-defined]
            if check is not None:
                check(request, limits)
            if name_it is not None and self.node.forward is not None and name_it(request, self.node.new_id):
                call.request = request.SerializeToString()  # so that a second attempt is the same request
            if namespace is not None and (not plain or self.node.passage(namespace.id) is not None):
                enter(self.node, call, request, namespace.id, wants)
            try:
                return method(self, call, request)
            except ServiceError as error:
                if error.code not in OF_THE_STATE or not self.node.committer.unsettled:
                    raise
                refused = error
            self._refuse_when_settled(call, refused)
            return None

        return handle

    def _refuse_when_settled(self, call: Call, refused: ServiceError) -> None:
        """What made the node refuse may be proposed and not yet committed: then nobody may hear of it yet."""
        waits = self.node.committer.unsettled

        def settled(error: ServiceError | None) -> None:
            waits.pop()
            if error is not None or not waits:
                fail(call, error or refused)

        for group in list(waits):
            group.when_committed(settled)

    # ---- namespaces and runs

    def task_token(self, request: Any) -> TaskToken:
        """The token of a request, which must be of the request's namespace."""
        token = task_token(request.task_token)
        namespace = self.meta.by_id.get(token.namespace_id)
        if namespace is None:
            raise invalid("Error deserializing task token.")
        if namespace.name != request.namespace:
            raise invalid("Operation requested with a token from a different namespace.")
        return token

    def namespace(self, name: str) -> Namespace:
        """The namespace of a request."""
        return self.meta.get(name)

    def run(self, namespace_id: str, workflow_id: str, run_id: str = "") -> tuple[ShardHost, Run]:
        """The run a request names. NOT_FOUND if there is none."""
        shard, run = self.node.run_of(namespace_id, workflow_id, run_id)
        if run is None:
            raise workflow_not_found(workflow_id)
        return shard, run

    def open_run(
        self, namespace_id: str, workflow_id: str, run_id: str = "", first_run_id: str = ""
    ) -> tuple[ShardHost, Run]:
        """The run, which must be open (and of the chain that `first_run_id` began, if given)."""
        shard, run = self.run(namespace_id, workflow_id, run_id)
        if first_run_id and run.state.first_run_id != first_run_id:
            raise execution_not_found()
        if not run.running:
            raise not_running()
        return shard, run

    # ---- transactions

    def transact(
        self,
        call: Call,
        shard: ShardHost,
        namespace_id: str,
        change: Callable[[Transaction], bytes | Callable[[], bytes]],
    ) -> None:
        """Run `change` in a transaction; answer with what it returned when that is committed.

        What `change` raises undoes it. If it changed nothing, nothing is proposed, but the answer still waits
        for what was proposed before: it may tell of it.
        """
        tx = shard.begin(namespace_id)
        try:
            body = change(tx)
        except BaseException:
            shard.abort(tx)
            raise
        reply = answering(call, body)
        if tx.runs or tx.rows:
            shard.commit(tx, reply)
        else:
            shard.group.when_committed(reply)


def answering(call: Call, body: bytes | Callable[[], bytes]) -> Callable[[ServiceError | None], None]:
    """A waiter that answers the call."""

    def reply(error: ServiceError | None) -> None:
        if error is not None:
            fail(call, error)
        elif isinstance(body, bytes):
            call.finish(body)
        else:
            finish(call, body)

    return reply


def finish(call: Call, body: Callable[[], bytes]) -> None:
    """Answer with what `body` makes, or with what it raises: outside a handler nobody else would answer."""
    try:
        answer = body()
    except Exception as error:  # noqa: BLE001 - the call hears of it, and the log
        call.fail(*status_of(error, call.method, call.connection.peer))
    else:
        call.finish(answer)


def fail(call: Call, error: ServiceError) -> None:
    """Answer with an error."""
    call.fail(int(error.code), error.message, status_details(error))


def workflow_not_found(workflow_id: str) -> ServiceError:
    """No such run."""
    return ServiceError(Code.NOT_FOUND, f"workflow not found for ID: {workflow_id}", NotFoundFailure())


def execution_not_found() -> ServiceError:
    """The run is there, but not of the chain that the request means."""
    return ServiceError(Code.NOT_FOUND, "workflow execution not found", NotFoundFailure())


def unimplemented(name: str, why: str) -> ServiceError:
    """An RPC that is not part of this release."""
    return ServiceError(Code.UNIMPLEMENTED, f"{name} is not part of this release of Holdfast: {why}")
