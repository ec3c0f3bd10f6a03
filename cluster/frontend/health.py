"""grpc.health.v1: whether the server, and each of its services, is ready to serve."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from google.protobuf.message import DecodeError

from cluster.frontend.contract import Call, Handler
from cluster.frontend.schema import message_class
from history_store.engine.errors import Code, ServiceError, invalid

_Request: Final[Any] = message_class("grpc.health.v1.HealthCheckRequest")
_Response: Final[Any] = message_class("grpc.health.v1.HealthCheckResponse")

SERVICE: Final = "grpc.health.v1.Health"


class Serving(IntEnum):
    """A service's state; the numbers are the wire's."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3  # told to watchers of a service that does not exist (yet)


class Health:
    """The states, and those who watch them. The empty name stands for the server as a whole."""

    def __init__(self) -> None:
        self._states: dict[str, Serving] = {"": Serving.NOT_SERVING}
        self._watchers: dict[str, dict[Call, None]] = {}

    @property
    def methods(self) -> dict[str, Handler]:
        """For a front's `methods`."""
        return {f"/{SERVICE}/Check": self._check, f"/{SERVICE}/Watch": self._watch}

    @property
    def streaming(self) -> frozenset[str]:
        """For a front's `streaming`."""
        return frozenset((f"/{SERVICE}/Watch",))

    @property
    def watchers(self) -> int:
        """How many watch."""
        return sum(map(len, self._watchers.values()))

    def set(self, service: str, state: Serving) -> None:
        """Change a service's state, and tell its watchers."""
        if self._states.get(service) == state:
            return
        self._states[service] = state
        for call in list(self._watchers.get(service, ())):
            call.write(_answer(state))

    def shut_down(self) -> None:
        """Nothing serves any more: load balancers stop sending before the front drains. Watches end."""
        for service in self._states:
            self.set(service, Serving.NOT_SERVING)
        for calls in list(self._watchers.values()):
            for call in list(calls):
                call.finish(b"")
        self._watchers.clear()

    def _check(self, call: Call) -> bytes:
        service = _service(call)
        state = self._states.get(service)
        if state is None:
            raise ServiceError(Code.NOT_FOUND, f"unknown service {service!r}")
        return _answer(state)

    def _watch(self, call: Call) -> None:
        service = _service(call)
        self._watchers.setdefault(service, {})[call] = None
        call.on_cancel = self._forget(service, call)
        call.write(_answer(self._states.get(service, Serving.SERVICE_UNKNOWN)))

    def _forget(self, service: str, call: Call) -> Callable[[], None]:
        def forget() -> None:
            watchers = self._watchers.get(service)
            if watchers is not None:
                watchers.pop(call, None)
                if not watchers:
                    del self._watchers[service]

        return forget


def _service(call: Call) -> str:
    try:
        service: str = _Request.FromString(call.request).service
    except DecodeError as error:
        raise invalid(f"HealthCheckRequest: {error}") from None
    return service


def _answer(state: Serving) -> bytes:
    body: bytes = _Response(status=int(state)).SerializeToString()
    return body
