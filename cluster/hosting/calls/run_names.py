"""Which run a call means that names none: the current one, as the first try of it found it.

Another try of the same call must not change a run that has taken that one's place since.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from temporalio.api.workflowservice.v1 import request_response_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from cluster.frontend.contract import Call

# Calls that change nothing have no earlier effects.
READING = ("Describe", "Get", "List", "Count", "Poll", "Query")


class _Names(NamedTuple):
    """How the requests of one method name a run."""

    kind: type[Message]
    field: str  # that has the run id; "" = the request has it itself

    def of(self, request: Any) -> Any:
        """The message that has `run_id`."""
        return getattr(request, self.field) if self.field else request


@cache
def _names(method: str) -> _Names | None:
    """Of a call that changes the run it names, or the current one if it names none."""
    name = method.rpartition("/")[2]
    kind: type[Message] | None = getattr(request_response_pb2, f"{name}Request", None)
    if kind is None or name.startswith(READING):
        return None
    fields = kind.DESCRIPTOR.fields_by_name
    for field in ("workflow_execution", "execution"):
        if field in fields:
            return _Names(kind, field)
    return _Names(kind, "") if {"workflow_id", "run_id"} <= set(fields) else None


def name_run(call: Call, run_id: str) -> None:
    """Another try means the run that the first one met, and not one that took its place since."""
    names = _names(call.method)
    if names is not None:
        request = names.kind.FromString(call.request)
        named = names.of(request)
        if not named.run_id:
            named.run_id = run_id
            call.request = request.SerializeToString()


def names_no_run(call: Call) -> bool:
    """Whether it would change whichever run is the current one."""
    names = _names(call.method)
    return names is not None and not names.of(names.kind.FromString(call.request)).run_id
