"""The director: starts servers and worker, kills at chosen points, starts again, and judges.

The kills land at the same points every time, because the director watches the run and holds it there:

* The worker dies when every model call so far is paid and in the history (five, with the stand-in), and only
  follow-up searches, which are free, are in flight. A file holds those searches until the worker is dead.
* The server (in a region: the node that leads the run's shard) dies after it acknowledged the human's answer,
  while the worker has a free tool in its hands and one model call is still to come. A file holds that tool
  until the run is served again.
* The namespace moves to another region, gracefully, while the human thinks. The whole region dies when what
  the worker has in its hands is another free tool, and the model call that writes the report is still to
  come; and it comes back, and the namespace with it, while the last tool is held.

Why the points are chosen so: an activity that is in flight when its worker dies is run again, by Temporal's
contract (at least once), and a model call among them would be paid again. Nobody can promise otherwise for
a call into another system; what is promised is that nothing *finished* is ever done again.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Replayer

from sdk import connect
from sdk.demo.activities import HOLD_DELIVER, HOLD_FOLLOW_UPS, HOLD_RECHECK, HOLD_SOURCES
from sdk.demo.evidence import Check, Death, Step, Totals, checks_of, steps_of, totals_of
from sdk.demo.failovers import Travels, failover_checks
from sdk.demo.ledger import Ledger, paid
from sdk.demo.messages import TASK_QUEUE, Approval, Progress, Report
from sdk.demo.region import LocalRegion, RegionError
from sdk.demo.regions import NAMESPACE, TwoRegions
from sdk.demo.servers import Region, Say, Servers, SingleServer
from sdk.demo.takeover import Takeover, takeover_checks
from sdk.demo.workflow import Research

STAGE_WAIT_MAX_S = 240.0  # a stage takes a second or two with the stand-in; a test machine may be busy
MODEL_WAIT_MAX_S = 600.0  # an endpoint may be slow, and refuse at first
LOOK_AGAIN_S = 0.05
LOG_TAIL_BYTES = 3000
WORKFLOW_ID = "demo-research"
REGIONS = ("a", "b")

Found = TypeVar("Found")

Ask = Callable[[Progress], Awaitable[Approval]]


class DemoError(Exception):
    """The demo could not go on; the message ends with what the processes logged."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    question: str
    documents: Path | None  # None: the project's own
    offline: bool
    endpoint: bool  # a real model: waits are longer
    nodes: int  # of a region; 1: a single server
    regions: int
    log: str  # between regions: embedded, cassandra
    keep: bool  # the directory stays


@dataclass(frozen=True)
class Outcome:
    """Everything that was recorded, judged."""

    run_id: str
    report: Report
    steps: list[Step]
    deaths: list[Death]
    totals: Totals
    checks: list[Check]
    takeover: Takeover | None  # of a region
    travels: Travels | None  # of several

    @property
    def ok(self) -> bool:
        """Whether everything held."""
        return all(check.ok for check in self.checks)


class WorkerProcess:
    """The worker as a child process; its log is one file over all of its lives."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self._directory / "worker.log"

    def start(self, servers: Servers) -> int:
        """Start it; returns its process id at once, before it polls."""
        assert self._process is None
        command = [sys.executable, "-m", "sdk.demo.worker", "--address", ",".join(servers.endpoints)]
        command += ["--namespace", servers.namespace]
        command += ["--directory", str(self._directory)]
        if self._settings.documents:
            command += ["--documents", str(self._settings.documents)]
        if self._settings.offline:
            command.append("--offline")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ours
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> int:
        """SIGKILL, and wait until it is gone; returns how it ended, 0 if there was none."""
        if self._process is None:
            return 0
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return code


def servers_of(directory: Path, settings: Settings, say: Say) -> Servers:
    """What is to be played on."""
    if settings.nodes == 1:
        return SingleServer(directory, say)
    if settings.regions == 1:
        return Region(LocalRegion(directory / "region", settings.nodes), say, keep=settings.keep)
    regions = LocalRegion(
        directory / "regions", settings.nodes, regions=REGIONS, log=settings.log, namespace=NAMESPACE
    )
    return TwoRegions(regions, say, keep=settings.keep)


class Director:
    """One performance, in one directory."""

    def __init__(self, directory: Path, settings: Settings, say: Say, ask: Ask) -> None:
        self._directory = directory
        self._settings = settings
        self._say = say
        self._ask = ask
        self._servers = servers_of(directory, settings, say)
        self._regions = self._servers if isinstance(self._servers, TwoRegions) else None
        self._holds = [HOLD_FOLLOW_UPS, HOLD_SOURCES]
        if self._regions is not None:
            self._holds += [HOLD_RECHECK, HOLD_DELIVER]
        self._worker = WorkerProcess(directory, settings)
        self._wait_max_s = MODEL_WAIT_MAX_S if settings.endpoint else STAGE_WAIT_MAX_S
        self.deaths: list[Death] = []

    async def perform(self) -> Outcome:
        """From the first start to the verdict. Its children are gone when this returns or raises."""
        for hold in self._holds:
            (self._directory / hold).touch()
        try:
            await self._servers.start(WORKFLOW_ID)
            return await self._play()
        except (TimeoutError, WorkflowFailureError, RPCError) as error:
            raise DemoError(f"{error or 'time is up'}\n{self._logs()}") from error
        except RegionError as error:
            raise DemoError(str(error)) from error
        finally:
            self._worker.kill()
            await self._servers.stop()

    async def _play(self) -> Outcome:
        pid = self._worker.start(self._servers)
        self._say(f"worker: process {pid}, Temporal's Python SDK, unmodified")
        client = await connect(self._servers.endpoints, namespace=self._servers.namespace)
        handle = await client.start_workflow(
            Research.run, self._settings.question, id=WORKFLOW_ID, task_queue=TASK_QUEUE
        )
        await self._kill_worker(pid)
        approval = await self._approval(handle)
        if self._regions is not None:
            await self._regions.move(await self._history())
        await self._kill_server(handle, approval)
        if self._regions is not None:
            await self._kill_region(self._regions)
        report = await self._in_time("the report", handle.result())
        if self._regions is None:
            await self._servers.recover()
        return await self._judge(report)

    async def _kill_worker(self, pid: int) -> None:
        """Wait until nothing but follow-up searches is in flight, one for each query; kill; start another."""
        flying = await self._wait("the follow-up searches", lambda: self._in_flight("follow-up"))
        before = await self._history()
        calls = sum(paid(Ledger(self._directory / "ledger.jsonl").entries()).values())
        self._say(f"{calls} model calls made and paid; in flight: {', '.join(flying)} (free)")
        death = Death("worker", pid, time.time_ns(), before, flying)
        code = self._worker.kill()
        assert code == -signal.SIGKILL, f"the worker ended by itself, with {code}"
        self._say(f"kill -9 {pid}: the worker is dead")
        self._release(HOLD_FOLLOW_UPS)
        if self._regions is not None:
            self._regions.relocate()
        death.successor = self._worker.start(self._servers)
        death.back_ns = time.time_ns()
        self.deaths.append(death)
        self._say(f"worker: process {death.successor} starts with nothing but the server's history")

    async def _approval(self, handle: WorkflowHandle[Research, Report]) -> Approval:
        """Wait for the draft and have the human look at it."""

        async def drafted() -> Progress | None:
            progress = await handle.query(Research.progress)
            return progress if progress.stage == "waiting for approval" else None

        return await self._ask(await self._wait("the draft", drafted))

    async def _kill_server(self, handle: WorkflowHandle[Research, Report], approval: Approval) -> None:
        """Send the answer; when the worker is at it, kill who acknowledged it."""
        await handle.signal(Research.approve, approval)
        self._say("the server acknowledged the answer")
        flying = await self._wait("the tool `sources`", lambda: self._in_flight("sources"))
        self.deaths.append(await self._servers.kill(await self._history(), flying))
        self._release(HOLD_SOURCES)

    async def _kill_region(self, regions: TwoRegions) -> None:
        """Kill all that serves the run; bring it back when the run has gone on elsewhere."""
        flying = await self._wait("the tool `recheck`", lambda: self._in_flight("recheck"))
        await regions.recover()
        self.deaths.append(await regions.lose(await self._history(), flying))
        self._release(HOLD_RECHECK)
        await self._wait("the tool `deliver`", lambda: self._in_flight("deliver"))
        self._say("the model has written the report, served by the other region")
        await regions.restore(await self._history())
        self._release(HOLD_DELIVER)

    async def _judge(self, report: Report) -> Outcome:
        handle = await self._handle()
        run_id = (await handle.describe()).run_id
        history = await handle.fetch_history()
        (self._directory / "history.json").write_text(history.to_json())
        events = list(history.events)
        entries = Ledger(self._directory / "ledger.jsonl").entries()
        replay = await Replayer(workflows=[Research]).replay_workflow(history, raise_on_replay_failure=False)
        replayed = Check(
            "the SDK replays the history to the same end",
            replay.replay_failure is None,
            str(replay.replay_failure or "no difference"),
        )
        takeover = await self._servers.seen()
        travels = await self._regions.travels() if self._regions is not None else None
        seen = [] if takeover is None else takeover_checks(takeover, events)
        seen += [] if travels is None else failover_checks(travels, events)
        return Outcome(
            run_id,
            report,
            steps_of(events),
            self.deaths,
            totals_of(events, entries, self.deaths),
            [*checks_of(run_id, events, entries, self.deaths), *seen, replayed],
            takeover,
            travels,
        )

    # ------------------------------------------------------------------------------------------ inside

    async def _handle(self) -> WorkflowHandle[Research, Report]:
        """The run, as the region has it that serves it."""
        client = await self._servers.connect()
        return client.get_workflow_handle_for(Research.run, WORKFLOW_ID)

    async def _in_flight(self, kind: str) -> list[str] | None:
        """The activities in flight, if they are all those of this kind and nothing else is under way."""
        handle = await self._handle()
        described = (await handle.describe()).raw_description
        started = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        pending = described.pending_activities
        flying = [each.activity_id for each in pending if each.state == started]
        if not flying or len(flying) != len(pending) or described.HasField("pending_workflow_task"):
            return None
        if not all(name.startswith(kind) for name in flying):
            return None
        queries = (await handle.query(Research.progress)).queries
        expected = len(queries) if kind == "follow-up" else 1
        return sorted(flying) if len(flying) == expected else None

    async def _wait(self, what: str, look: Callable[[], Awaitable[Found | None]]) -> Found:
        """Look until it is there."""

        async def watch() -> Found:
            while (found := await look()) is None:
                if not self._worker.alive():
                    raise DemoError(f"the worker ended by itself\n{self._logs()}")
                await asyncio.sleep(LOOK_AGAIN_S)
            return found

        return await self._in_time(what, watch())

    async def _in_time(self, what: str, awaited: Awaitable[Found]) -> Found:
        try:
            async with asyncio.timeout(self._wait_max_s):
                return await awaited
        except TimeoutError:
            raise TimeoutError(f"waited {self._wait_max_s:.0f} s for {what}") from None

    async def _history(self) -> list[HistoryEvent]:
        return list((await (await self._handle()).fetch_history()).events)

    def _release(self, hold: str) -> None:
        (self._directory / hold).unlink()

    def _logs(self) -> str:
        worker = self._worker.log.read_text(errors="replace") if self._worker.log.exists() else ""
        server = self._servers.log()
        return f"worker's log:\n{worker[-LOG_TAIL_BYTES:]}\nserver's log:\n{server[-LOG_TAIL_BYTES:]}"
