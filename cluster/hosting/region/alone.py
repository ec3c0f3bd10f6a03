"""What operators may ask of a server that is a region by itself: the answers have the same form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.hosting.region import views
from cluster.hosting.region.administration import METHOD, VERBS, Answer, read
from cluster.hosting.region.health import Problem, Watch, named
from history_store.engine.errors import Code, ServiceError, failed_precondition

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Handler
    from cluster.hosting.node import Node

NAME = "this server"
_encode = msgspec.json.Encoder().encode


class Alone:
    """The administration of a node without others."""

    def __init__(self, node: Node, version: str, address: Callable[[], str]) -> None:
        """`address`: of its gRPC port, once it listens."""
        self._node = node
        self._watch = Watch()
        self._version = version
        self._address = address
        self._started_ns = node.clock.now_ns()

    def handlers(self) -> dict[str, Handler]:
        """For clients."""
        return {METHOD: self._do}

    def _do(self, call: Call) -> bytes:
        request = read(call.request)
        match request.do:
            case "health":
                return _encode(self._health())
            case "nodes":
                return _encode(self._nodes())
            case "shards":
                return _encode(self._shards())
            case _:
                pass
        if request.do in VERBS:
            raise failed_precondition(
                "this server is alone, there is no region: start one (`holdfast local up`, or "
                "`holdfast server start` on several machines)"
            )
        raise ServiceError(Code.UNIMPLEMENTED, f"this release cannot {request.do!r}")

    def _health(self) -> Answer:
        refusal = self._node.committer.refusal
        found = list(self._damaged())
        if refusal is not None:
            what = f"it takes no writes: {refusal.message}"
            found.append(Problem("refuses", what, NAME, "make room on its disk, or mend it"))
        return views.problems(self._watch.look(found, self._node.clock.now_ns()))

    def _damaged(self) -> Iterator[Problem]:
        damages = self._node.damages
        restore = f"stop it, and see whether its disk is good. {damages.advice}"
        if damages.file:
            yield Problem("damaged file", f"the data file is damaged: {damages.file}", NAME, restore)
        groups = sorted(damages.damaged(), key=lambda group: group.id)
        if groups:
            which = named([group.id for group in groups])
            what = f"rows of {which} are damaged on its disk, and they are not served: {groups[0].damage}"
            yield Problem("damaged rows", what, NAME, restore)
        if damages.log_problems:
            what = f"the log on its disk is damaged, and it would not start again: {damages.log_problems[0]}"
            yield Problem("damaged log", what, NAME, f"copy what you need from it first; then {restore}")

    def _nodes(self) -> Answer:
        groups = [group for group in self._node.committer.groups.values() if not group.damage]
        shards = len(self._node.committer.groups) - 1  # without the meta group
        one: dict[str, Any] = {
            "id": 1, "name": NAME, "state": "active", "up": True, "machine": "", "peers": "", "metrics": "",
            "leads": len(groups), "replicas": shards, "wanted": shards, "load": None,
            "slow": False, "joined_ns": self._started_ns, "version": self._version, "grpc": self._address(),
        }  # fmt: skip
        return {"nodes": [one], "complete": True}

    def _shards(self) -> Answer:
        slots: dict[int, list[list[int]]] = {group: [] for group in sorted(self._node.committer.groups)}
        for slot, group in enumerate(self._node.slot_owners):
            ranges = slots[group]
            if ranges and ranges[-1][1] == slot - 1:
                ranges[-1][1] = slot
            else:
                ranges.append([slot, slot])
        damage = {group.id: group.damage for group in self._node.committer.groups.values()}
        shown = [
            {
                "id": group, "state": "damaged" if damage[group] else "serving", "slots": ranges,
                "slot_count": sum(last - first + 1 for first, last in ranges),
                "leader": None if damage[group] else NAME, "wanted": [NAME], "voters": [NAME],
                "learners": [], "behind": [], "down": [], "settled": True, "waits": damage[group],
            }
            for group, ranges in slots.items()
        ]  # fmt: skip
        return {"shards": shown}
