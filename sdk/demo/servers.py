"""What the demo runs on and kills: a local region, of which a shard's leader dies, or a single server."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from sdk.demo.evidence import NANOSECONDS, Death
from sdk.demo.region import LocalRegion, Place, RegionError
from sdk.demo.takeover import Takeover
from sdk.demo.waits import Waits
from sdk.testing import DevServer

LEADER_MAX_S = 120.0  # a second is usual; a test machine may be busy
LOOK_AGAIN_S = 0.01
ASK_AGAIN_S = 1.0

Say = Callable[[str], None]


class Servers(ABC):
    """Where the run is, from `start` to `stop`."""

    namespace = "default"

    @property
    @abstractmethod
    def address(self) -> str:
        """Where the run is looked at: a node that survives."""

    @property
    def endpoints(self) -> list[str]:
        """Where client and worker connect, nearest first."""
        return [self.address]

    @abstractmethod
    async def start(self, workflow_id: str) -> None:
        """Start; `address` is one by which this workflow can be reached in spite of the death to come."""

    @abstractmethod
    async def stop(self) -> None:
        """End every process. May be called after a start that failed."""

    @abstractmethod
    async def kill(self, before: list[HistoryEvent], flying: list[str]) -> Death:
        """SIGKILL what serves the run, and return when the run is served again."""

    @abstractmethod
    async def recover(self) -> None:
        """Bring back what was killed by `kill`, and is still dead."""

    @abstractmethod
    async def seen(self) -> Takeover | None:
        """After the run: what was seen of the shard, if that is to be told."""

    @abstractmethod
    def log(self) -> str:
        """The end of what the servers logged."""

    async def connect(self) -> Client:
        """A client of the official SDK."""
        return await Client.connect(self.address, namespace=self.namespace)


class SingleServer(Servers):
    """`holdfast server start-dev`: it is killed, and started again on the same file."""

    def __init__(self, directory: Path, say: Say) -> None:
        self._server = DevServer(db_path=directory / "holdfast.db")
        self._log = directory / "server.log"
        self._say = say

    @property
    def address(self) -> str:
        """The only one."""
        return self._server.address

    async def start(self, workflow_id: str) -> None:  # noqa: ARG002 - one server serves every workflow
        """Start the server."""
        await self._server.__aenter__()
        self._say(
            f"server: process {self._server.pid} at {self._server.address}, data in {self._server.db_path}"
        )

    async def stop(self) -> None:
        """End it."""
        self._log.write_text(self._server.log())
        await self._server.__aexit__(None, None, None)

    async def kill(self, before: list[HistoryEvent], flying: list[str]) -> Death:
        """Kill it and start it."""
        death = Death("server", self._server.pid, time.time_ns(), before, flying)
        await self._server.kill()
        self._say(
            f"kill -9 {death.pid}: the server is dead; the worker has {', '.join(flying)} in its hands (free)"
        )
        await self._server.start()
        death.successor, death.back_ns = self._server.pid, time.time_ns()
        self._say(
            f"server: process {death.successor} on the same file and port; the worker lived on and reconnects"
        )
        return death

    async def recover(self) -> None:
        """It is back."""

    async def seen(self) -> None:
        """There is no shard to speak of."""

    def log(self) -> str:
        """Its log."""
        return self._server.log()


class Region(Servers):
    """Nodes that keep each other's shards: the leader of the run's is killed, and another takes over."""

    def __init__(self, region: LocalRegion, say: Say, *, keep: bool) -> None:
        self._region = region
        self._say = say
        self._keep = keep
        self._workflow_id = ""
        self._where = region.regions[0]  # the region that serves the run
        self._homes: dict[str, str] = {}  # by region, the node that worker and client are connected to
        self._waits: Waits | None = None
        self._before: Place | None = None
        self._after: Place | None = None
        self._death: Death | None = None
        self._entries_at_death = self._entries_without_it = self._entries_caught_up = 0
        self._caught_up_s = 0.0

    @property
    def _home(self) -> str:
        return self._homes[self._where]

    @property
    def address(self) -> str:
        """Of a node that does not lead the run's shard."""
        return self._address(self._home)

    @property
    def endpoints(self) -> list[str]:
        """That node, and the others."""
        return list(dict.fromkeys([self.address, *self._region.addresses(self._where)]))

    def _address(self, node: str) -> str:
        return self._region.nodes[node].address

    async def start(self, workflow_id: str) -> None:
        """Start the nodes, and choose where to connect."""
        await self._boot(workflow_id)
        await self._settle(self._where)

    async def _boot(self, workflow_id: str) -> None:
        self._workflow_id = workflow_id
        await self._region.start()
        for node in self._region.nodes.values():
            self._say(f"node {node.name}: process {node.pid} at {node.address}")

    async def _settle(self, region: str) -> None:
        place = await self._region.locate(self._region.addresses(region)[0], self._workflow_id)
        self._homes[region] = next(name for name in self._region.of(region) if name != place.leader)
        self._say(
            f"in region {region} the run belongs to shard {place.shard}, which {place.leader} leads; "
            f"clients connect to {self._homes[region]}"
        )

    async def stop(self) -> None:
        """End every node."""
        if self._waits is not None:
            self._waits.cancel()
        await self._region.stop(delete=not self._keep)

    async def kill(self, before: list[HistoryEvent], flying: list[str]) -> Death:
        """Kill the leader of the run's shard; return when another leads."""
        self._before = place = await self._led_elsewhere()
        victim = place.node
        others = [name for name in self._region.of(self._where) if name != victim]
        clients = [await self._client(name) for name in others]
        self._waits = Waits(clients, self._workflow_id)
        await self._waits.start()
        here = await self._region.locate(self._address(victim), self._workflow_id, here=True)
        self._entries_at_death = here.committed or 0
        death = Death("server", self._region.nodes[victim].pid, 0, before, flying, node=victim)
        death.killed_ns = await self._region.kill(victim)
        self._say(
            f"kill -9 {death.pid}: node {victim} is dead, the leader of the run's shard; "
            f"the worker has {', '.join(flying)} in its hands (free)"
        )
        self._after = await self._led_by_another(victim)
        death.back_ns = time.time_ns()
        death.successor = self._region.nodes[self._after.node].pid
        self._death = death
        self._say(
            f"node {self._after.node} leads the shard now, "
            f"{(death.back_ns - death.killed_ns) / NANOSECONDS:.2f} s after the kill; the run goes on there"
        )
        return death

    async def recover(self) -> None:
        """Start the killed node, and watch it catch up."""
        assert self._death is not None
        assert self._waits is not None
        victim = self._death.node
        await self._waits.stop()
        new = await self._region.locate(self.address, self._workflow_id)
        self._entries_without_it = wanted = new.committed or 0
        self._say(f"the run went on while {victim} was dead; {victim} is started again")
        began = time.monotonic()
        await self._region.restart(victim)
        self._entries_caught_up = reached = await self._reached(victim, wanted)
        self._caught_up_s = took = time.monotonic() - began
        self._say(
            f"node {victim}: process {self._region.nodes[victim].pid} has caught up, from entry "
            f"{self._entries_at_death} of the shard's log to {reached}, {took:.2f} s after the order to start"
        )

    async def seen(self) -> Takeover:
        """What was seen since the leader's death, and the history as every node tells it."""
        assert self._before is not None
        assert self._after is not None
        assert self._death is not None
        assert self._waits is not None
        histories = {}
        for name in self._region.nodes:
            client = await self._client(name)
            history = await client.get_workflow_handle(self._workflow_id).fetch_history()
            histories[name] = list(history.events)
        return Takeover(
            shard=self._before.shard,
            killed=self._death.node,
            led_before=self._before.leader,
            led_after=self._after.leader,
            leaderless_s=(self._death.back_ns - self._death.killed_ns) / NANOSECONDS,
            calls=self._waits.calls,
            entries_at_death=self._entries_at_death,
            entries_without_it=self._entries_without_it,
            entries_caught_up=self._entries_caught_up,
            caught_up_s=self._caught_up_s,
            histories=histories,
        )

    def log(self) -> str:
        """Every node's."""
        return self._region.log()

    # ------------------------------------------------------------------------------------------ inside

    async def _client(self, node: str) -> Client:
        return await Client.connect(self._address(node), namespace=self.namespace)

    async def _led_elsewhere(self) -> Place:
        """Where the run is, once its leader is not the node that worker and client are connected to.

        Leadership moves by itself when nodes are unevenly loaded. If it has come to that node, it is
        asked to move on; a request may be overtaken by another move, so it is repeated.
        """
        others = itertools.cycle([name for name in self._region.of(self._where) if name != self._home])
        until = time.monotonic() + LEADER_MAX_S
        ask_at = 0.0
        while True:
            place = await self._region.locate(self.address, self._workflow_id)
            now = time.monotonic()
            if place.node != self._home:
                return place
            if now > until:
                raise RegionError(
                    f"{self._home}, which the worker is connected to, leads the run's shard, "
                    f"and nobody took it over in {LEADER_MAX_S:g} s"
                )
            if now >= ask_at:
                ask_at = now + ASK_AGAIN_S
                with suppress(RegionError):  # that node may be behind: the next one is asked
                    await self._region.transfer(self.address, place.shard, next(others))
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _led_by_another(self, victim: str) -> Place:
        until = time.monotonic() + LEADER_MAX_S
        while True:
            try:
                place = await self._region.locate(self.address, self._workflow_id)
            except RegionError:
                if time.monotonic() > until:
                    raise
            else:
                if place.node != victim:
                    return place
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _reached(self, node: str, wanted: int) -> int:
        """Wait until a node knows so many entries to be committed; how many it knows then."""
        until = time.monotonic() + LEADER_MAX_S
        while True:
            place = await self._region.locate(self._address(node), self._workflow_id, here=True)
            if (place.committed or 0) >= wanted or time.monotonic() > until:
                return place.committed or 0
            await asyncio.sleep(LOOK_AGAIN_S)
