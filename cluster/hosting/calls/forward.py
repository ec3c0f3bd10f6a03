"""Calls in a region: served where the shard's leader is, and tried again when it moves.

A call comes to any node. Its handler runs there; where it needs a shard that another node leads, the same
request goes to that node as it came (one hop), and the handler runs there, with a `RemoteConnection` in
place of the client's. If leadership moves meanwhile, whoever took the call from the client asks the new
leader, until the client's deadline: request ids and task tokens make that the same request, not a second.

Two nodes that cannot talk to each other may both be able to talk to a third. A call that finds no way to its
leader for a while is therefore given to some other node, which may hand it on once more (a relay).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import structlog
from temporalio.api.errordetails.v1.message_pb2 import NamespaceNotFoundFailure

from cluster.hosting.calls.abroad import Abroad
from cluster.hosting.calls.attempt import Attempt
from cluster.hosting.calls.barrier import Barrier
from cluster.hosting.calls.gathering import Gathering
from cluster.hosting.calls.parked import Parking
from cluster.hosting.calls.remote import (
    ANSWER,
    CALL,
    CANCEL,
    CONSISTENCY,
    ELSEWHERE,
    ERROR,
    FOREIGN,
    HUNG_UP,
    LOST,
    MATTERING,
    MET,
    PART,
    SCATTER,
    STRONG,
    UNDELIVERED,
    ForeignCall,
    RemoteCall,
    RemoteConnection,
)  # fmt: skip
from cluster.hosting.calls.run_names import name_run, names_no_run
from cluster.hosting.groups.group import NotLeading
from history_store.engine.errors import Code, ServiceError
from history_store.rare import reached

if TYPE_CHECKING:
    from cluster.frontend.contract import Call, Connection, Handler
    from cluster.hosting.calls.gathering import Hearer
    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from history_store.visibility.sql import Slots

log = structlog.get_logger("forward")

RETRY_S = 0.03  # between tries while a shard has no leader that we know of
PATIENCE_S = 4.0  # what a call gets to find one: an SDK's own next try has to fit in its ten seconds
RELAY_TRIES = 10  # after so many in vain another node is asked to hand the call on; then they count anew
NO_GROUP = -1  # of a call that is not for some shard's leader
NO_LEADER = (
    "the shard that is to answer has no leader at present (are a majority of its nodes up? "
    "see `holdfast cluster health`); whether an earlier try took effect is not known"
)
MET_S = 1.0  # a call that has waited for so long tells its client's node which run it has met
MARGIN_S = 0.2  # before the client's deadline, so that it hears why


class Forward:
    """Sends calls on to other nodes, and serves theirs."""

    def __init__(self, node: Node, send: Callable[[int, list[Any]], bool]) -> None:
        self.node = node
        self.loop = node.loop
        self._send_here = send
        self.abroad = Abroad(self)
        self.parking = Parking(self)
        self.handlers: Mapping[str, Handler] = {}  # those of the node, not wrapped
        self.served: dict[tuple[int, int], RemoteCall | ForeignCall] = {}
        self.forwarded = 0
        self._numbers = 0
        self._leaders: dict[int, int] = {}  # by group, who led it last as far as is known here
        self._sent: dict[int, Attempt] = {}
        self._asked: dict[int, Hearer] = {}
        self._connections: dict[Connection, int] = {}  # of our clients, by the number peers know them by
        self._remote: dict[tuple[int, int], RemoteConnection] = {}
        self._behind: dict[int, deque[list[Any]]] = {}  # by node: what its queue has no room for
        self._looks = False  # at calls that wait

    def wrap(self, handler: Handler) -> Handler:
        """The handler as the front calls it."""

        def handle(call: Call) -> None:
            Attempt(self, call, handler, self.patience(call.deadline)).run()

        return handle

    def patience(self, deadline: float | None) -> float:
        """Until when a call that has no leader from now on looks for one.

        It begins anew when a call that a leader had taken loses it: a long poll may be a minute old then.
        """
        until = self.loop.time() + PATIENCE_S
        return until if deadline is None else min(until, deadline - MARGIN_S)

    def send(self, to: int, message: list[Any]) -> bool:
        """To a node of this region, or to the address of another's. False: it does not leave."""
        return self._send_here(to, message) if to < FOREIGN else self.abroad.send(to, message)

    # ---- the node that has the client

    def elsewhere(self, attempt: Attempt, error: NotLeading) -> None:
        """The shard is not led here: send the call on, or wait until somebody leads."""
        to, group, call = error.leader, error.group, attempt.call
        if isinstance(call, RemoteCall):
            # The node that has the client looks for the leader, unless it finds no way to it.
            away = to not in (0, self.node.node_id, call.node_id)
            if not (call.hops and away and self._pass_on(attempt, to, group)):
                call.lost(in_doubt=attempt.again, group=group, leader=to)
            return
        if to not in (0, self.node.node_id) and self._pass_on(attempt, to, group):
            return
        attempt.tries += 1
        if attempt.tries >= RELAY_TRIES:
            attempt.tries = 0
            others = [peer for peer in self.node.peers() if peer not in (to, self._leaders.get(group))]
            if others and self._pass_on(attempt, self.node.choose(others), group, hops=1):
                return
        self.later(attempt)

    def relay(self, call: Call) -> bool:
        """Let some other node answer a client's call in our place: it may reach whom we cannot."""
        if not isinstance(call, Attempt) or isinstance(call.call, RemoteCall):
            return False
        others = self.node.peers()
        return bool(others) and self._pass_on(call, self.node.choose(others), NO_GROUP)

    def send_abroad(self, attempt: Attempt, address: int) -> bool:
        """Give the call to a node of another region. False: it cannot be reached."""
        route = attempt.route
        assert route is not None, "that says where it goes, and why"
        if not self._pass_on(attempt, address, NO_GROUP, version=route.version):
            return False
        self.abroad.met(attempt, address)
        return True

    def _pass_on(self, attempt: Attempt, to: int, group: int, *, hops: int = 0, version: int = 0) -> bool:
        """Give the call to another node. False: it cannot be reached."""
        self._numbers += 1
        number = self._numbers
        deadline = attempt.deadline
        left_ms = -1 if deadline is None else max(1, int((deadline - self.loop.time()) * 1000))
        connection = attempt.connection
        message = [CALL, number, attempt.method, attempt.request, left_ms, self.number_of(connection),
                   connection.peer]  # fmt: skip
        metadata = {key: attempt.metadata[key] for key in MATTERING if key in attempt.metadata}
        if version:
            message += (hops, {**metadata, CONSISTENCY: STRONG}, version)
        elif metadata:
            message += (hops, metadata)
        elif hops:
            message.append(hops)
        if not self.send(to, message):
            return False
        self.forwarded += 1
        attempt.remote = (to, number)
        attempt.group = group
        self._sent[number] = attempt
        return True

    def leader_changed(self, group: Group) -> None:
        """Calls that were sent to the leader before may never be answered: ask who leads now."""
        number, leader, here = group.id, group.raft.leader, self.node.node_id
        if leader:
            self._leaders[number] = leader
        for attempt in list(self._sent.values()):
            remote = attempt.remote
            if attempt.group != number or remote is None or remote[0] in (leader, here):
                continue
            if names_no_run(attempt.call):
                continue  # another try might change another run: this one's answer is waited for
            self.ended(attempt)
            attempt.again = True
            attempt.until = self.patience(attempt.deadline)
            self.later(attempt)

    def end_polls(self) -> None:
        """The node stops: answer polls that wait in another region, or for one, with nothing."""
        for attempt in [*self._sent.values(), *self.parking.waiting()]:
            if attempt.is_poll:
                attempt.finish(b"")

    def may_be_news(self, attempt: Attempt, error: ServiceError) -> bool:
        """A namespace that is not known here may have been registered at another node a moment ago.

        True: the attempt waits until this node knows all that the region knew when the call came.
        """
        if attempt.checked or not isinstance(error.detail, NamespaceNotFoundFailure):
            return False
        attempt.checked = True

        def current(late: ServiceError | None) -> None:
            if not attempt.done:
                if late is not None:
                    attempt._fail_with(late)
                else:
                    attempt.run()

        Barrier(self.node, [self.node.meta.group], current).begin()
        return True

    def number_of(self, connection: Connection) -> int:
        """By which other nodes know a client's connection; they hear when it closes."""
        number = self._connections.get(connection)
        if number is None:
            self._numbers += 1
            number = self._connections[connection] = self._numbers
            connection.on_close(lambda: self._hung_up(connection))
        return number

    def _hung_up(self, connection: Connection) -> None:
        number = self._connections.pop(connection, None)
        if number is not None:
            for peer in self.node.peers():
                self.tell(peer, [HUNG_UP, number])
            self.abroad.hung_up(number)

    def later(self, attempt: Attempt, why: str = NO_LEADER) -> None:
        """Nobody leads, as far as we know: try again soon, for as long as the client waits."""
        call = attempt.call
        if isinstance(call, RemoteCall):
            call.lost(in_doubt=attempt.again)
            return
        if self.loop.time() >= attempt.until:
            attempt.fail(int(Code.UNAVAILABLE), why)
            return
        self.loop.call_later(RETRY_S, self._again, attempt)

    def _ask_leader(self, attempt: Attempt, node_id: int, group: int, leader: int) -> None:
        """A node does not lead the group, and says who does as far as it knows (0: nobody)."""
        if leader in (0, node_id):
            self.later(attempt)
            return
        self.node.leader_hints[group] = leader
        if leader != self.node.node_id and leader not in self.node.peers():
            self.elsewhere(attempt, NotLeading(leader, group))
        elif attempt.tries:
            self.later(attempt)  # whoever is asked names somebody else: until they agree
        else:
            attempt.tries += 1
            self.loop.call_soon(self._again, attempt)

    def _again(self, attempt: Attempt) -> None:
        if not attempt.done:
            attempt.run()

    def ended(self, attempt: Attempt) -> None:
        """The attempt is over: if another node works on it, that is in vain."""
        if attempt.parked:
            self.parking.ended(attempt)
        if attempt.remote is not None:
            node_id, number = attempt.remote
            attempt.remote = None
            if self._sent.pop(number, None) is not None:
                self.tell(node_id, [CANCEL, number])

    # ---- peers

    def tell(self, node_id: int, message: list[Any]) -> None:
        """Send what is said once; while the queue to that node is full it waits for room.

        Nobody asks again while the two nodes can talk, and when they cannot, all of this is void.
        """
        behind = self._behind.get(node_id)
        if behind is not None:
            behind.append(message)
        elif not self.send(node_id, message) and self._reaches(node_id):
            behind = self._behind[node_id] = deque((message,))
            self.loop.call_later(RETRY_S, self._tell_rest, node_id, behind)

    def _reaches(self, address: int) -> bool:
        return address in self.node.peers() if address < FOREIGN else self.abroad.reaches(address)

    def _tell_rest(self, node_id: int, behind: deque[list[Any]]) -> None:
        if self._behind.get(node_id) is not behind:
            return  # the node went down meanwhile
        while behind and self.send(node_id, behind[0]):
            behind.popleft()
        if behind:
            self.loop.call_later(RETRY_S, self._tell_rest, node_id, behind)
        else:
            del self._behind[node_id]

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        kind, number = message[0], message[1]
        if kind == ANSWER:
            attempt = self._sent.pop(number, None)
            if attempt is not None:
                attempt.remote = None
                if len(message) > 3:
                    attempt.set_metadata(initial=[(key, value) for key, value in message[3]])
                attempt.finish(message[2])
            elif node_id >= FOREIGN:
                self.tell(node_id, [UNDELIVERED, number])
            elif number in self._asked:
                self._asked.pop(number).heard(node_id, message[2])
        elif kind == CALL:
            (self._serve if node_id < FOREIGN else self._serve_foreign)(node_id, message)
        elif kind == SCATTER:
            self._tell(node_id, message)
        elif kind == PART:
            self._tell_part(node_id, message)
        elif kind == ERROR:
            attempt = self._sent.pop(number, None)
            if attempt is not None:
                attempt.remote = None
                attempt.fail(message[2], message[3], message[4])
            elif number in self._asked:
                error = ServiceError(Code(message[2]), message[3])
                self._asked.pop(number).heard(node_id, None, error)
        elif kind == LOST:
            attempt = self._sent.pop(number, None)
            if attempt is not None:
                attempt.remote = None
                if message[2]:  # it had a leader
                    attempt.again = True
                    attempt.until = self.patience(attempt.deadline)
                if message[5] is not None:
                    attempt.request = message[5]
                self._ask_leader(attempt, node_id, message[3], message[4])
        elif kind == MET:
            attempt = self._sent.get(number)
            if attempt is not None:
                name_run(attempt.call, message[2])
        elif kind == CANCEL:
            call = self.served.pop((node_id, number), None)
            if call is not None:
                call.cancel()
        elif kind == ELSEWHERE:
            self._refused(node_id, message)
        elif kind == UNDELIVERED:
            self.abroad.undelivered(node_id, number)
        elif kind == HUNG_UP:
            connection = self._remote.pop((node_id, number), None)
            if connection is not None:
                connection.close()

    def connection_of(self, node_id: int, number: int, peer: str) -> RemoteConnection:
        """A client's connection to another node, as one object for all its calls."""
        key = (node_id, number)
        found = self._remote.get(key)
        if found is None:
            found = self._remote[key] = RemoteConnection(key, peer)
        return found

    def _serve(self, node_id: int, message: list[Any]) -> None:
        _, number, method, request, left_ms, connection, peer, *more = message
        deadline = None if left_ms < 0 else self.loop.time() + left_ms / 1000
        call = RemoteCall(
            self, node_id, number, method, request, deadline, self.connection_of(node_id, connection, peer),
            more[1] if len(more) > 1 else None,
        )  # fmt: skip
        call.hops = more[0] if more else 0
        handler = self.handlers.get(method)
        if handler is None:
            call.fail(int(Code.UNIMPLEMENTED), f"{method} is not part of the release that this node runs")
            return
        self.served[node_id, number] = call
        Attempt(self, call, handler, 0.0).run()
        if not self._looks:
            self._looks = True
            self.loop.call_later(MET_S, self._tell_met)

    def _tell_met(self) -> None:
        """Tell of calls that wait which run it is: if this node dies, they go on at the next leader.

        Without that they could not: they would change a run that has taken that one's place.
        """
        for call in self.served.values():
            if call.run_id and call.seen and names_no_run(call):
                self.tell(call.node_id, [MET, call.number, call.run_id])
                call.run_id = ""
            call.seen = True
        self._looks = bool(self.served)
        if self._looks:
            self.loop.call_later(MET_S, self._tell_met)

    def _serve_foreign(self, address: int, message: list[Any]) -> None:
        """A node of another region asks: look for the leader, as for a client of this node's."""
        _, number, method, request, left_ms, connection, peer, _, metadata, version = message
        deadline = None if left_ms < 0 else self.loop.time() + left_ms / 1000
        call = ForeignCall(
            self, address, number, method, request, deadline, self.connection_of(address, connection, peer),
            metadata, version,
        )  # fmt: skip
        handler = self.handlers.get(method) if self.abroad.may_ask(method) else None
        if handler is None:
            call.fail(int(Code.UNIMPLEMENTED), f"{method} is not part of the release of the active region")
            return
        self.served[address, number] = call
        Attempt(self, call, handler, self.patience(call.deadline)).run()

    def _refused(self, node_id: int, message: list[Any]) -> None:
        """Where the call was sent, its namespace is not served."""
        _, number, in_doubt, request, *fields = message
        attempt = self._sent.pop(number, None)
        if attempt is None:
            return
        attempt.remote = None
        attempt.again = attempt.again or in_doubt
        if request is not None:
            attempt.request = request
        error = self.abroad.refusal(fields)
        if node_id < FOREIGN:
            self.abroad.not_active(attempt, error)
        else:
            self.abroad.sent_back(attempt, error)

    def scatter(self, call: Call, done: Callable[[list[bytes]], None]) -> None:
        """Ask all other nodes the same; `done` hears what those that could answered. Not for changes that
        must not be made twice, and not for what must be complete.
        """
        peers = self.node.peers()
        gathering = Gathering(self, set(peers), done)
        for peer in peers:
            self._numbers += 1
            if self.send(peer, [SCATTER, self._numbers, call.method, call.request]):
                self._asked[self._numbers] = gathering
            else:
                gathering.waits_for.discard(peer)
        gathering.look()

    def forget(self, gathering: Hearer) -> None:
        """It hears no more."""
        for number in [number for number, found in self._asked.items() if found is gathering]:
            del self._asked[number]

    def _tell(self, node_id: int, message: list[Any]) -> None:
        _, number, method, request = message
        connection = self.connection_of(node_id, 0, f"node {node_id}")
        call = RemoteCall(self, node_id, number, method, request, None, connection)
        call.scattered = True
        handler = self.handlers.get(method)
        if handler is None:
            call.fail(int(Code.UNIMPLEMENTED), f"{method} is not known here")
            return
        self.served[node_id, number] = call
        Attempt(self, call, handler, 0.0).run()

    def ask(self, node_id: int, call: Call, slots: Slots, hearer: Hearer) -> int:
        """Ask one node for its part of a call's answer: that of these slots. The question's number; 0: it
        cannot be reached.
        """
        self._numbers += 1
        number = self._numbers
        left_ms = -1 if call.deadline is None else max(1, int((call.deadline - self.loop.time()) * 1000))
        known = self.node.meta.group.committed
        if not self.send(node_id, [PART, number, call.method, call.request, left_ms, slots, known]):
            return 0
        self._asked[number] = hearer
        return number

    def ask_no_more(self, node_id: int, number: int) -> None:
        """The answer is not wanted any more."""
        if self._asked.pop(number, None) is not None:
            self.tell(node_id, [CANCEL, number])

    def _tell_part(self, node_id: int, message: list[Any]) -> None:
        _, number, method, request, left_ms, slots, known = message
        deadline = None if left_ms < 0 else self.loop.time() + left_ms / 1000
        connection = self.connection_of(node_id, 0, f"node {node_id}")
        call = RemoteCall(self, node_id, number, method, request, deadline, connection)
        call.slots = tuple((first, last) for first, last in slots)
        handler = self.handlers.get(method)
        if handler is None:
            call.fail(int(Code.UNIMPLEMENTED), f"{method} is not known here")
            return
        self.served[node_id, number] = call
        attempt = Attempt(self, call, handler, 0.0)
        meta = self.node.meta.group
        if meta.committed >= known:
            attempt.run()
            return

        def current(late: ServiceError | None) -> None:
            if not attempt.done and not call.done:
                if late is not None:
                    attempt._fail_with(late)
                else:
                    attempt.run()

        # Whoever asks knows of a namespace or an attribute, perhaps, of which this node is yet to hear.
        Barrier(self.node, [meta], current).begin()

    def down(self, node_id: int) -> None:
        """The node is gone, with its clients and with what we asked of it."""
        self._behind.pop(node_id, None)
        for key in [key for key in self.served if key[0] == node_id]:
            self.served.pop(key).cancel()
        for key in [key for key in self._remote if key[0] == node_id]:
            self._remote.pop(key).close()
        for hearer in dict.fromkeys(self._asked.values()):
            hearer.heard(node_id, None)
        for number in [
            number for number, attempt in self._sent.items() if attempt.remote == (node_id, number)
        ]:
            attempt = self._sent.pop(number)
            attempt.remote = None
            attempt.again = True
            if names_no_run(attempt.call):
                reached("call lost with the leader's node")
                # It may have changed a run that only the dead knew: another try might change the next one.
                who = "the shard's leader" if node_id < FOREIGN else "the way to the active region"
                attempt.fail(int(Code.UNAVAILABLE), f"{who} has gone, and whether it was done is not known")
            elif node_id < FOREIGN:
                attempt.until = self.patience(attempt.deadline)
                self.later(attempt)
            else:
                self.abroad.way_lost(attempt)
