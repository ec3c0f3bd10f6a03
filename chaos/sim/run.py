"""One run: a region, its clients and workers, faults, then peace, and the verdict.

    python -m chaos.sim.run --seed 7 --trace  one seed, with all that happened
    python -m chaos.sim.run --seeds 500       many fresh ones, in as many processes as there are cores

The same seed gives the same run, to the last answer: the "unseed" that is printed is a digest of all of it.
A batch counts the rare branches of the code that its runs came to, and a large one must have been to all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from chaos.checkers.history import Record
from chaos.checkers.linearizability import check
from chaos.checkers.verdict import Verdict
from chaos.sim import program
from chaos.sim.clients import Caller, Client
from chaos.sim.faults import Faults
from chaos.sim.judges import Watch, compare_replicas, judge_histories, list_runs, read_back
from chaos.sim.record import GRACE_S, Notes
from chaos.sim.trace import Trace, told
from chaos.sim.workers import POLL_S, Worker
from chaos.sim.world import Shape, World
from cluster.hosting.config.node_config import RaftSection
from cluster.peers import virtual_time
from cluster.peers.virtual_time import VirtualLoop
from history_store import rare

BEGIN_S = 30.0  # for a new region to serve
WHOLE_S = 60.0  # for one that was healed
FINISH_S = 60.0  # for what was begun to end
LOOK_S = 0.25
SHOWN_PROBLEMS = 6
SAY_SEEDS = 50
STEPS_MAX = 200_000
RUNNING = 1
ALL_RARE_SEEDS = 200  # so many must come to every rare branch
# Some runs are about images that are on their way when something breaks, which is very rare otherwise.
IMAGES = frozenset(("lag",))
ABOUT_IMAGES = 0.12
ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "replication", "history_store")


@dataclass(frozen=True)
class Options:
    """What a run is like, besides its seed."""

    seconds: float = 18.0  # virtual, of faults
    faults: frozenset[str] | None = None  # None: the seed draws
    nodes: int = 0  # 0: the seed draws
    keep: bool = False  # the whole trace
    hasty: bool = False  # end at the first problem: for who wants to know only whether there is one


@dataclass
class Report:
    """What came of a run."""

    seed: int
    unseed: str
    problems: list[str]
    virtual_s: float
    operations: int = 0
    runs: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    rare: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Simulation:
    """A run under way."""

    def __init__(self, loop: VirtualLoop, seed: int, options: Options, trace: Trace) -> None:
        self.seed = seed
        self.options = options
        self.trace = trace
        rng = self.rng = random.Random(f"{seed}/run")
        more = random.Random(f"{seed}/shape")
        raft = RaftSection(
            tick_ms=rng.choice((20, 50)),
            log_bytes_max=rng.choice((16 << 10, 64 << 10, 4 << 20)),
            snapshot_chunk_bytes=more.choice((512, 4 << 10, 256 << 10)),
        )
        self.kinds = options.faults
        if self.kinds is None and more.random() < ABOUT_IMAGES:
            self.kinds = IMAGES
            raft = replace(raft, log_bytes_max=16 << 10, snapshot_chunk_bytes=512)
        shards = rng.choice((1, 2, 3))
        nodes = options.nodes or more.choice((3, 3, 3, 5))
        # With as many as there can be nodes each has all; otherwise some lack some.
        replicas = more.choice((3, 5))
        shape = Shape(nodes=nodes, shards=shards, replicas=replicas, raft=raft)
        self.world = World(loop, seed, trace, shape)
        self.notes = Notes(trace)
        self.clients: list[Client] = []
        self.workers: list[Worker] = []
        self.faults: Faults | None = None
        self._labels = 0
        loop.set_exception_handler(self._uncaught)

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG002
        error = context.get("exception")
        self.trace.problem(f"nobody caught: {context.get('message')}: {told(error)}")

    def _label(self, what: str) -> str:
        self._labels += 1
        return f"{what}{self._labels}"

    def _new_worker(self) -> None:
        label = self._label("worker")
        worker = Worker(self.world, self.notes, random.Random(f"{self.seed}/{label}"), label)
        self.workers.append(worker)
        worker.start()

    def _hang_up(self) -> None:
        callers: list[Caller] = [*self.clients, *self.workers]
        self.rng.choice(callers).hang_up()

    # ---- the run

    async def run(self) -> None:
        """From the first start to the last word."""
        world, trace = self.world, self.trace
        watch = Watch(world)
        world.start()
        if not await world.until_whole(BEGIN_S):
            trace.problem("a new region does not begin to serve")
            return
        watching = asyncio.ensure_future(watch.run())
        talking = self._begin_load()
        await asyncio.sleep(1.0)
        self.faults = Faults(
            world, random.Random(f"{self.seed}/faults"), self.workers, self._new_worker, self._hang_up,
            self.kinds,
        )  # fmt: skip
        attacking = asyncio.ensure_future(self.faults.run())
        await self._while_under_attack()
        attacking.cancel()
        await asyncio.gather(attacking, return_exceptions=True)
        await self.faults.stop()
        if self._hurried:
            return
        await self._settle(talking)
        watch.look()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if not trace.problems:
            await asyncio.sleep(POLL_S + 1.0)  # every poll must have ended once
            await self._end()

    @property
    def _hurried(self) -> bool:
        return self.options.hasty and bool(self.trace.problems)

    async def _while_under_attack(self) -> None:
        loop = self.world.loop
        until = loop.time() + self.options.seconds
        while loop.time() < until and not self._hurried:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(min(LOOK_S, until - loop.time()))

    def _begin_load(self) -> list[asyncio.Task[None]]:
        rng = self.rng
        ids = [f"workflow-{number}" for number in range(rng.choice((2, 4, 8)))]
        pause_s = rng.choice((0.1, 0.2, 0.4))
        updates = rng.random() < 0.65
        for _ in range(rng.choice((3, 5))):
            label = self._label("client")
            mine = random.Random(f"{self.seed}/{label}")
            client = Client(self.world, self.notes, mine, label, ids, pause_s, updates=updates)
            self.clients.append(client)
        for _ in range(rng.choice((2, 4))):
            self._new_worker()
        return [asyncio.ensure_future(client.run()) for client in self.clients]

    async def _settle(self, talking: list[asyncio.Task[None]]) -> None:
        """Peace: everything must become whole, and everything begun must end."""
        world, trace, notes = self.world, self.trace, self.notes
        trace.note("peace")
        world.heal()
        for client in self.clients:
            client.stopping = True
        for task in talking:
            try:
                await task
            except Exception as error:  # noqa: BLE001 - it is a verdict
                trace.problem(f"a client failed: {error!r}")
        assert self.faults is not None, "there were some"
        await self.faults.resume()
        if not await world.until_whole(WHOLE_S):
            trace.problem(f"the region does not become whole again: {self._state()}")
            return
        await asyncio.sleep(GRACE_S)
        notes.healthy_since = world.loop.time()
        judge = Client(world, notes, random.Random(f"{self.seed}/judge"), "judge", [], 1.0)
        try:
            await self._finish(judge)
            judge_histories(notes, await read_back(judge, notes))
        finally:
            judge.hang_up()
        await compare_replicas(world)
        notes.recorder.close()
        judgement = check(Record(list(notes.recorder.operations)), steps_max=STEPS_MAX)
        if judgement.verdict is Verdict.BROKEN:
            for each in judgement.problems[:2]:
                trace.problem(str(each))
        for doubt in judgement.doubts:
            trace.problem(f"not judged: {doubt}")  # which is no pass

    async def _finish(self, judge: Client) -> None:
        """Ask every run to close, and wait until all have."""
        loop = self.world.loop
        until = loop.time() + FINISH_S
        running = {run: what for run, what in (await list_runs(judge)).items() if what[1] == RUNNING}
        for workflow_id in sorted({workflow_id for workflow_id, _ in running.values()}):
            if not workflow_id.startswith(program.CHILD):
                await judge.signal(workflow_id, program.CLOSE)
        while running:
            await asyncio.sleep(0.5)
            running = {run: what for run, what in (await list_runs(judge)).items() if what[1] == RUNNING}
            if running and loop.time() > until:
                for run_id, (workflow_id, _) in sorted(running.items())[:3]:
                    _, events = await judge.read_history(workflow_id, run_id)
                    last = [f"{event.event_id} {event.event_type}" for event in events[-4:]]
                    self.trace.problem(f"{workflow_id} {run_id} does not finish; its last events: {last}")
                return

    def _state(self) -> str:
        found = []
        for node in self.world.nodes.values():
            groups = (
                {n: (g.raft.role.name, g.raft.term, g.raft.leader) for n, g in node.groups().items()}
                if node.serves
                else {}
            )
            found.append(f"{node.name} running={node.running} serves={node.serves} {groups}")
        return "; ".join(found)

    async def _end(self) -> None:
        """An orderly end leaves nothing behind."""
        for worker in list(self.workers):
            await worker.stop()
        for client in self.clients:
            client.hang_up()
        stops = [asyncio.ensure_future(node.stop()) for node in self.world.nodes.values()]
        for node, stopped in zip(self.world.nodes.values(), await asyncio.gather(*stops), strict=True):
            if not stopped:
                self.trace.problem(f"{node.name} of a healthy region does not stop when told to")


def simulate(
    seed: int, options: Options | None = None, meddle: Callable[[Simulation], None] | None = None
) -> Report:
    """Run one seed. `meddle` may change what was made before it begins (for the tests of the judges)."""
    options = options or Options()
    now: list[Callable[[], float]] = [lambda: 0.0]
    made: list[Simulation] = []
    end_s = 0.0

    async def main() -> None:
        nonlocal end_s
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        now[0] = loop.time
        simulation = Simulation(loop, seed, options, trace)
        made.append(simulation)
        if meddle is not None:
            meddle(simulation)
        try:
            await simulation.run()
        finally:
            end_s = loop.time()
            simulation.world.end()

    with rare.counting() as reached, Trace(lambda: now[0](), keep=options.keep) as trace:
        try:
            virtual_time.run(main(), random.Random(f"{seed}/loop"), limit_s=600.0)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the run's verdict
            trace.problem(f"the run failed: {error!r}")
    report = Report(seed, trace.unseed, trace.problems, end_s, rare=reached, lines=list(trace.lines))
    if made:
        report.operations = len(made[0].notes.recorder.operations)
        report.runs = len(made[0].notes.runs)
        report.faults = made[0].faults.done if made[0].faults is not None else {}
        made[0].world.scrap()
    return report


def _one(seed: int, options: Options) -> Report:
    report = simulate(seed, options)
    if report.ok:
        report.lines = []
    return report


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="chaos.sim.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="one seed, with its trace")
    parser.add_argument("--seeds", type=int, default=200, help="so many")
    parser.add_argument("--first", type=int, help="the first of them; otherwise they are fresh")
    parser.add_argument("--seconds", type=float, default=Options.seconds)
    parser.add_argument("--nodes", type=int, default=0, help="3 or 5; otherwise the seed draws")
    parser.add_argument("--faults", help="kinds, separated by commas; otherwise the seed draws them")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    kinds = frozenset(given.faults.split(",")) if given.faults else None
    options = Options(given.seconds, kinds, given.nodes, given.trace)
    if given.seed is not None:
        report = _one(given.seed, options) if not given.trace else simulate(given.seed, options)
        for line in report.lines if given.trace else []:
            sys.stdout.write(line + "\n")
        _show(report)
        return 0 if report.ok else 1
    first = given.first if given.first is not None else secrets.randbits(32)
    return _batch(range(first, first + given.seeds), options, given.jobs)


def _batch(seeds: range, options: Options, jobs: int) -> int:
    """Many runs. Answers the exit code."""
    say = sys.stdout.write
    say(f"{len(seeds)} seeds from {seeds.start}\n")
    bad = 0
    runs: Counter[str] = Counter()  # by rare branch: how many came there
    with ProcessPoolExecutor(jobs) as pool:
        waits = [pool.submit(_one, seed, options) for seed in seeds]
        for number, future in enumerate(as_completed(waits), start=1):
            report = future.result()
            runs.update(report.rare.keys())
            if not report.ok:
                bad += 1
                _show(report)
                say(f"  replay: python -m chaos.sim.run --seed {report.seed} --trace\n")
            if number % SAY_SEEDS == 0:
                say(f"{number} seeds, {bad} bad\n")
            sys.stdout.flush()
    say("rare branches, and how many runs came there:\n")
    missed = []
    for name in rare_branches():
        say(f"{runs[name]:7} {name}\n")
        if not runs[name]:
            missed.append(name)
    say(f"{len(seeds)} seeds, {bad} bad\n")
    if missed and len(seeds) >= ALL_RARE_SEEDS and options.faults is None:
        say(f"nobody came to: {', '.join(missed)}\n")
        return 1
    return 1 if bad else 0


def rare_branches() -> list[str]:
    """All that the code names."""
    names: list[str] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path != Path(rare.__file__):
                names += re.findall(r'\breached\(\s*"([^"]+)"', path.read_text())
    return sorted(names)


def _show(report: Report) -> None:
    said = "ok" if report.ok else "BAD"
    sys.stdout.write(
        f"seed {report.seed} unseed {report.unseed}: {said}, {report.virtual_s:.1f} virtual s, "
        f"{report.operations} operations, {report.runs} runs, faults {report.faults}\n"
    )
    for problem in list(dict.fromkeys(report.problems))[:SHOWN_PROBLEMS]:
        sys.stdout.write(f"  {problem}\n")


if __name__ == "__main__":
    sys.exit(main())
