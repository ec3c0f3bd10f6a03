"""Two regions that the demo's namespace is moved between, and the pulse by which it is felt.

The namespace begins in a, whose client starts the run. The first worker is near a; when it is killed, the
next one starts near b, and the namespace comes after it by a graceful failover. Then b dies as a whole:
client and worker know both regions (`sdk.connect`) and go on by way of a, where the namespace is taken by
force. When b is back, and has caught up, the namespace goes home gracefully.

**The pulse** is a second run that nobody works on; a client sends it a numbered signal some times a second,
with the SDK's default settings, through all of this. What was acknowledged is known by number, so loss and
doubling are counted, and when the signals stop is how long a failover is felt.

Between regions replication is asynchronous: what b acknowledged in its very last moments may die with it.
The demo measures that distance, and kills when a has all that the run's clients were told: it holds the
pulse, and says how long a took to have everything. So it shows a loss of nothing because there was nothing
on the way, and not because there never is.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.replication.v1 import ClusterReplicationConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from sdk import connect
from sdk.demo.evidence import Death
from sdk.demo.failovers import Beat, Failover, Travels, beats_in
from sdk.demo.region import LocalRegion, RegionError
from sdk.demo.servers import Region, Say
from sdk.demo.takeover import Takeover
from sdk.demo.waits import Call

NAMESPACE = "research"
RETENTION_S = 24 * 3600
BEAT_S = 0.05
SAME_MAX_S = 120.0  # until a region has what the other has; a few milliseconds are usual
LOOK_AGAIN_S = 0.02
PULSE_ID = "pulse"
PULSE_QUEUE = "nobody"


class Pulse:
    """Signals to a run, one after the other."""

    def __init__(self, client: Client) -> None:
        self._handle = client.get_workflow_handle(PULSE_ID)
        self._beating = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.beats: list[Beat] = []

    def start(self) -> None:
        """Begin, or go on."""
        self._beating.set()
        if self._task is None:
            self._task = asyncio.ensure_future(self._beat())

    async def hold(self) -> None:
        """Send no more; returns when none is under way."""
        self._idle.clear()
        self._beating.clear()
        await self._idle.wait()

    def cancel(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()

    async def acknowledged_after(self, moment_ns: int) -> int:
        """Wait for a signal that was acknowledged after this; when that was."""
        async with asyncio.timeout(SAME_MAX_S):
            while True:
                for beat in reversed(self.beats):
                    if beat.call.ended_ns < moment_ns:
                        break
                    if not beat.call.error:
                        return min(
                            each.call.ended_ns
                            for each in self.beats
                            if each.call.ended_ns >= moment_ns and not each.call.error
                        )
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _beat(self) -> None:
        for number in range(1_000_000):
            if not self._beating.is_set():
                self._idle.set()
                await self._beating.wait()
            began, error = time.time_ns(), ""
            try:
                await self._handle.signal("beat", number)
            except RPCError as failed:
                error = f"{failed.status.name}: {failed.message}"
            self.beats.append(Beat(number, Call(began, time.time_ns(), error)))
            await asyncio.sleep(BEAT_S)


class TwoRegions(Region):
    """A region that serves the run, and one that takes it over."""

    namespace = NAMESPACE

    def __init__(self, region: LocalRegion, say: Say, *, keep: bool) -> None:
        super().__init__(region, say, keep=keep)
        self.failovers: list[Failover] = []
        self.regions: dict[int, str] = {}
        self._near = self._where  # of which region client and worker are
        self._pulse: Pulse | None = None
        self._rpo_events = self._rpo_beats = 0

    @property
    def endpoints(self) -> list[str]:
        """Every node of both regions, those of the near one first."""
        return self._known_to(self._near)

    async def start(self, workflow_id: str) -> None:
        """Start both, and the namespace in both."""
        await self._boot(workflow_id)
        other = self._other(self._where)
        self.regions = await self._region.indexes(self._where)
        client = await Client.connect(self._region.addresses(self._where)[0], namespace=NAMESPACE)
        wanted = RegisterNamespaceRequest(
            namespace=NAMESPACE,
            is_global_namespace=True,
            workflow_execution_retention_period=Duration(seconds=RETENTION_S),
            clusters=[ClusterReplicationConfig(cluster_name=name) for name in (self._where, other)],
            active_cluster_name=self._where,
        )
        await client.workflow_service.register_namespace(wanted)
        for region in (self._where, other):
            await self._known(region)
            await self._settle(region)
        self._say(f"namespace {NAMESPACE}: in regions {self._where} and {other}, active in {self._where}")
        await client.start_workflow("Pulse", id=PULSE_ID, task_queue=PULSE_QUEUE)
        self._pulse = Pulse(await connect(self._known_to(other), namespace=NAMESPACE))
        self._pulse.start()

    def relocate(self) -> None:
        """Who is started from now on is near the other region."""
        self._near = self._other(self._near)

    async def stop(self) -> None:
        """End everything."""
        if self._pulse is not None:
            self._pulse.cancel()
        await super().stop()

    async def move(self, before: list[HistoryEvent]) -> None:
        """Fail over gracefully to the other region."""
        await self._gracefully(self._other(self._where), before)

    async def lose(self, before: list[HistoryEvent], flying: list[str]) -> Death:
        """Kill every node of the region that serves the run; force the other to take it."""
        assert self._pulse is not None
        victim, heir = self._where, self._other(self._where)
        await self._pulse.hold()
        known = await self._history(victim, PULSE_ID)
        began = time.monotonic()
        await self._same(heir, before, known)
        self._say(
            f"region {heir} has all that {victim} acknowledged; "
            f"it took {time.monotonic() - began:.3f} s to see that"
        )
        death = Death("region", self._region.nodes[self._home].pid, 0, before, flying, node=victim)
        death.killed_ns = time.time_ns()
        gone_ns = await self._region.kill_all(victim)
        self._say(
            f"kill -9 of every node of region {victim}, which served the run: it is gone as a whole; "
            f"the worker has {', '.join(flying)} in its hands (free)"
        )
        self._pulse.start()
        told = await self._region.failover(heir, "forced", heir)
        self._where = heir
        await self._note("forced", victim, heir, told, gone_ns, before)
        death.back_ns = self.failovers[-1].ended_ns
        death.successor = self._region.nodes[self._home].pid
        self._rpo_events = len(before) - _common(before, await self._history(heir, self._workflow_id))
        there = beats_in(await self._history(heir, PULSE_ID))
        self._rpo_beats = sum(not there[number] for number in beats_in(known))
        self._say(
            f"lost with region {victim} (RPO): {self._rpo_events} events of the run, {self._rpo_beats} of "
            f"{len(beats_in(known))} acknowledged signals"
        )
        return death

    async def restore(self, before: list[HistoryEvent]) -> None:
        """Start the dead region's nodes on their data, and go back there gracefully."""
        back = self._other(self._where)
        began = time.monotonic()
        await self._region.restart_all(back)
        self._say(
            f"region {back} is back, {time.monotonic() - began:.2f} s after the order to start its nodes"
        )
        await self._gracefully(back, before)

    async def seen(self) -> Takeover:
        """As for one region; the nodes of the other are asked when they have had time to know."""
        await self._same(self._other(self._where), await self._history(self._where, self._workflow_id), [])
        return await super().seen()

    async def travels(self) -> Travels:
        """What was seen of all this."""
        assert self._pulse is not None
        await self._pulse.hold()
        pulse = await self._history(self._where, PULSE_ID)
        await self._same(self._other(self._where), [], pulse)
        return Travels(
            self.failovers, self.regions, self._pulse.beats, pulse, self._rpo_events, self._rpo_beats
        )

    # ------------------------------------------------------------------------------------------ inside

    def _known_to(self, near: str) -> list[str]:
        home = self._address(self._homes[near])
        far = self._region.addresses(self._other(near))
        return list(dict.fromkeys([home, *self._region.addresses(near), *far]))

    def _other(self, region: str) -> str:
        return next(name for name in self._region.regions if name != region)

    async def _gracefully(self, to: str, before: list[HistoryEvent]) -> None:
        source = self._where
        began_ns = time.time_ns()
        told = await self._region.failover(to, "graceful", source)
        self._where = to
        await self._note("graceful", source, to, told, began_ns, before)

    async def _note(
        self,
        mode: str,
        source: str,
        target: str,
        told: dict[str, Any],
        began_ns: int,
        before: list[HistoryEvent],
    ) -> None:
        """Write a failover down, once it is felt to be over."""
        assert self._pulse is not None
        ended_ns = time.time_ns()
        handover = told.get("handover")
        facts: dict[str, Any] = handover if isinstance(handover, dict) and mode == "graceful" else told
        paused, lag = facts.get("paused_ms"), facts.get("lag_ms")
        served_ns = await self._pulse.acknowledged_after(ended_ns if mode == "graceful" else began_ns)
        made = Failover(
            mode=mode,
            source=source,
            target=target,
            version=int(facts["version"]),
            began_ns=began_ns,
            ended_ns=ended_ns,
            paused_s=paused / 1000 if isinstance(paused, int) else None,
            lag_s=lag / 1000 if isinstance(lag, int) else None,
            behind=facts.get("entries"),
            before=before,
            first_ns=served_ns,
        )
        self.failovers.append(made)
        if mode == "graceful":
            held = f"; writes were held for {made.paused_s:.3f} s" if made.paused_s is not None else ""
            self._say(
                f"failover: {source} → {target}, graceful{held}; {target} writes with version {made.version}"
            )
        else:
            self._say(
                f"failover: {source} → {target}, forced; {target} writes with version {made.version}; "
                f"a signal was acknowledged again {made.outage_s:.2f} s after the last node of {source} died"
            )

    async def _known(self, region: str) -> None:
        """Until a region knows the namespace."""
        client = await Client.connect(self._region.addresses(region)[0])
        async with asyncio.timeout(SAME_MAX_S):
            while True:
                try:
                    await client.workflow_service.describe_namespace(
                        DescribeNamespaceRequest(namespace=NAMESPACE)
                    )
                except RPCError:
                    await asyncio.sleep(LOOK_AGAIN_S)
                else:
                    return

    async def _same(self, region: str, run: list[HistoryEvent], pulse: list[HistoryEvent]) -> None:
        """Until a region has these histories."""
        try:
            async with asyncio.timeout(SAME_MAX_S):
                for workflow_id, wanted in ((self._workflow_id, run), (PULSE_ID, pulse)):
                    while _common(wanted, await self._history(region, workflow_id)) < len(wanted):  # noqa: ASYNC110 - its progress is asked, not told
                        await asyncio.sleep(LOOK_AGAIN_S)
        except TimeoutError:
            raise RegionError(
                f"region {region} does not have what it should after {SAME_MAX_S:g} s"
            ) from None

    async def _history(self, region: str, workflow_id: str) -> list[HistoryEvent]:
        """As a node of that region tells it."""
        client = await self._client(self._homes[region])
        try:
            return list((await client.get_workflow_handle(workflow_id).fetch_history()).events)
        except RPCError:
            return []


def _common(wanted: list[HistoryEvent], found: list[HistoryEvent]) -> int:
    """How many events both begin with."""
    for count, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            return count
    return min(len(wanted), len(found))
