"""The region suite: break one node of three under load, again and again, and see whether anybody notices.

    python -m chaos.live.region --kills 10 --seed 7

Three real processes on this machine, clients and workers on each. Every round does something to one node (the
victim), heals it, and goes on when all is well again. Clients of the other nodes must not see an error; those
of the victim must work again when it does. At the end everything is read back and judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec

from chaos.checkers import history as checked
from chaos.checkers import linearizability
from chaos.checkers.verdict import Verdict
from chaos.live.checker import Judgement
from chaos.live.client import Client, Refused
from chaos.live.history import Final
from chaos.live.readback import digests, read_history, read_list, read_run
from chaos.live.region_judge import judge_region
from chaos.live.region_measure import BEFORE_S, Felt, measure, spread
from chaos.live.region_nodes import META, NODES, RegionNodes, enter_namespace
from chaos.live.region_record import Traces, traces_of
from chaos.live.region_workload import RegionWorkload
from chaos.live.toxiproxy import LOSSY, SLOW, server
from cluster.local import LocalError

KILL, PAUSE, RESTART, FULL_DISK, SLOW_DISK = "kill", "pause", "restart", "full disk", "slow disk"
CUT_OUT, CUT_IN, PARTITION, PAIR = "cut from victim", "cut to victim", "partition", "cut between two"
SLOW_NETWORK, LOST_BYTES = "slow network", "lost bytes"
OTHERS = (
    PAUSE, RESTART, CUT_OUT, CUT_IN, PARTITION, PAIR, FULL_DISK, SLOW_DISK, SLOW_NETWORK, LOST_BYTES,
)  # fmt: skip
TOXICS = {SLOW_NETWORK: SLOW, LOST_BYTES: LOSSY}
SLOW_DISK_S = 0.6  # that each write takes
PACE = 10.0
WARM_S = 1.0
BACK_S_MAX = 120.0  # of a busy machine
READS_AT_ONCE = 8
SLOW_MS = 3_000.0  # an answer that took longer is named
RECOVERY_MS_GOAL, RECOVERY_P50_MS_GOAL = 2000.0, 1000.0

Say = Callable[[str], None]


@dataclass
class Report:
    """What a run of the suite did and found."""

    seed: int
    kills: int
    short: bool
    nodes: int = NODES
    verdict: Verdict = Verdict.UNKNOWN
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    goals_missed: list[str] = field(
        default_factory=list
    )  # speed is no promise: it does not change the verdict
    faults: list[Felt] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    linearizable: dict[str, Any] = field(default_factory=dict)
    raw_errors: dict[str, int] = field(default_factory=dict)
    excused: list[str] = field(default_factory=list)  # errors of clients while the whole machine stood still
    stalled_s: float = 0.0  # for how long it did
    runs: int = 0
    acknowledged: int = 0
    executions: int = 0
    seconds: float = 0.0
    directory: str = ""  # with everything, kept unless the verdict is `ok`

    @property
    def replay(self) -> str:
        """The command that does the same again (the nodes' own timing apart)."""
        short = " --short" if self.short else ""
        nodes = f" --nodes {self.nodes}" if self.nodes != NODES else ""
        return f"python -m chaos.live.region --kills {self.kills} --seed {self.seed}{nodes}{short}"

    def recovery(self) -> dict[str, dict[str, float]]:
        """By fault, in milliseconds."""
        kinds = dict.fromkeys(felt.fault for felt in self.faults)
        return {
            kind: spread(
                [f.recovery_ms for f in self.faults if f.fault == kind and f.recovery_ms is not None]
            )
            for kind in kinds
        }

    def conclude(self) -> None:
        """All is in."""
        if self.problems:
            self.verdict = Verdict.BROKEN
        else:
            self.verdict = Verdict.UNKNOWN if self.doubts else Verdict.OK
        for felt in self.faults:
            if felt.recovery_ms is None or felt.recovery_ms > RECOVERY_MS_GOAL:
                self.goals_missed.append(f"{felt.fault} of {felt.victim}: back after {felt.recovery_ms} ms")
        p50 = self.recovery().get(KILL, {}).get("p50", 0.0)
        if p50 > RECOVERY_P50_MS_GOAL:
            self.goals_missed.append(f"p50 of the recoveries from kills is {p50} ms")

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "suite": "region", "arena": "live", "seed": self.seed, "verdict": self.verdict.value,
            "recovery_ms": self.recovery(), "goals_missed": self.goals_missed,
            "faults": [felt.as_dict() for felt in self.faults], "skipped": self.skipped,
            "linearizable": self.linearizable, "raw_errors": self.raw_errors, "runs": self.runs,
            "excused": self.excused, "stalled_s": round(self.stalled_s, 1),
            "acknowledged": self.acknowledged, "executions": self.executions,
            "seconds": round(self.seconds, 1), "problems": self.problems, "doubts": self.doubts,
            "report": self.directory, "replay": self.replay,
        }  # fmt: skip


class Suite:
    """One run."""

    def __init__(self, directory: Path, report: Report, only: Sequence[str], pace: float, say: Say) -> None:
        self._directory = directory
        self._report = report
        self._only = only
        self._say = say
        self._pace = pace
        self._rng = random.Random(report.seed)
        self.nodes = RegionNodes(directory / "region", self._rng, report.nodes, server())
        self.workload = RegionWorkload(self._rng, self.nodes.addresses, pace)
        self._hold_s = 1.5 if report.short else 3.0
        self._pause_s = 2.5 if report.short else 5.0
        self._after_s = 1.5 if report.short else 2.5

    async def run(self) -> None:
        """Everything: load, faults, healing, reading back, judgement."""
        report = self._report
        try:
            await self.nodes.start()
            await self.workload.start()
            await asyncio.sleep(WARM_S)
            for number, fault in enumerate(self._order()):
                await self._round(fault, first=number == 0)
            await self._end()
        except LocalError as error:
            report.problems.append(f"{error} ({error.do})")
        finally:
            with contextlib.suppress(LocalError):
                report.problems += self.nodes.complaints()
            await self.workload.stop()
            await self.nodes.stop()
        report.doubts += self.workload.failures
        report.raw_errors = self.workload.raw_errors
        report.excused = self.workload.excused
        report.stalled_s = sum(late for _, late in self.workload.stalls)

    def _order(self) -> list[str]:
        """Kills, and every other fault among them: once in the short form, twice in the long one."""
        report = self._report
        rest = [*OTHERS] * (1 if report.short else 2)
        if self.nodes.toxiproxy is None:
            report.skipped |= dict.fromkeys(
                TOXICS, "needs toxiproxy-server on the PATH or as TOXIPROXY_SERVER"
            )
        if self.nodes.disk is None:
            report.skipped[FULL_DISK] = "needs unshare and mount"
        order = [KILL] * report.kills + [fault for fault in rest if fault not in report.skipped]
        if self._only:
            return [fault for fault in order if fault in self._only]
        first, *more = order
        self._rng.shuffle(more)
        return [first, *more]

    # ---- one fault

    async def _round(self, fault: str, *, first: bool) -> None:
        nodes, workload = self.nodes, self.workload
        names = list(nodes.addresses)
        await asyncio.sleep(BEFORE_S)
        leaders = await nodes.leaders(names[0])
        if fault == FULL_DISK:
            victim = nodes.disk_node
        elif (first or self._rng.random() < 0.4) and META in leaders:
            victim = leaders[META]
        else:
            victim = self._rng.choice(names)
        leads = sum(leader == victim for leader in leaders.values())
        loop = asyncio.get_running_loop()
        felt = Felt(fault, victim, leads, leaders.get(META) == victim, loop.time())
        self._report.faults.append(felt)
        workload.faults += 1
        workload.disturbed.set()
        workload.victims = {victim}
        await self._break(felt, [name for name in names if name != victim])
        felt.healed = felt.healed or loop.time()
        await self._victim_works(felt)
        await asyncio.sleep(self._after_s)  # so that the calm after it is seen, too
        felt.ended = loop.time()
        workload.victims = set()
        workload.disturbed.clear()
        measure(felt, workload.marks, 2 * self._pace * (len(names) - 1))  # a start and an end
        self._say(
            f"{fault:16} {victim} (leads {felt.leads}{', meta' if felt.meta else ''}): "
            f"back after {felt.recovery_ms} ms, latency up to {felt.latency_ms_max:.0f} ms "
            f"(starts {felt.start_ms_max:.0f}), {felt.errors} errors; "
            f"its own clients {felt.victim_errors}, back {felt.victim_back_ms} ms"
        )

    async def _break(self, felt: Felt, others: list[str]) -> None:
        nodes, victim, hold = self.nodes, felt.victim, self._hold_s
        match felt.fault:
            case "kill":
                await nodes.kill(victim)
                await asyncio.sleep(hold)
                await nodes.restart(victim)
            case "pause":
                await nodes.pause(victim)
                await asyncio.sleep(self._pause_s)
                await nodes.resume(victim)
            case "restart":
                await nodes.restart(victim)
            case "full disk":
                await nodes.fill_disk()
                await asyncio.sleep(hold + 0.5)
                nodes.free_disk()
            case "slow disk":
                nodes.slow_disk(victim, SLOW_DISK_S)
                await asyncio.sleep(self._pause_s + 1.0)
                nodes.slow_disk(victim, 0.0)
            case "slow network" | "lost bytes":
                await nodes.poison(victim, TOXICS[felt.fault])
                await asyncio.sleep(hold + 0.5)
                await nodes.poison(victim, ())
            case _:
                await nodes.cut(*ways(felt.fault, victim, others))
                await asyncio.sleep(hold + 0.5)
                await nodes.cut()

    async def _victim_works(self, felt: Felt) -> None:
        """Wait until a client of the victim that began after the healing has its answer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BACK_S_MAX
        while loop.time() < until:
            for mark in reversed(self.workload.marks):
                if mark.at < felt.healed:
                    break
                if mark.node == felt.victim and not mark.error and mark.at - mark.took >= felt.healed:
                    return
            await asyncio.sleep(0.02)
        self._report.problems.append(
            f"{felt.fault}: a client of {felt.victim} does not work {BACK_S_MAX:g} s after it was healed"
        )

    # ---- the end

    async def _end(self) -> None:
        report, workload = self._report, self.workload
        await workload.settle()
        client = Client(next(iter(self.nodes.addresses.values())))
        try:
            final = Final(listed=await read_list(client))
            runs = await read_traces(client, final, workload)
        except Refused as refused:
            report.doubts.append(f"the healed region could not be read: {refused}")
            return
        finally:
            await client.close()
        record = workload.record
        report.runs, report.executions = len(runs), len(record.executions)
        report.acknowledged = sum(wish.acknowledged for wish in record.wishes)
        found: Judgement = judge_region(record, runs, final)
        checked.save(workload.recorder.operations, self._directory / "history.jsonl")
        (self._directory / "record.json").write_bytes(msgspec.json.encode([record, runs]))
        linear = linearizability.check(checked.Record(workload.recorder.operations))
        report.linearizable = {
            "verdict": linear.verdict.value, "operations": linear.operations,
            "unknown_outcomes": linear.unknown_outcomes, "workflow_ids": linear.workflow_ids,
        }  # fmt: skip
        report.problems += found.problems
        report.doubts += found.doubts
        if linear.verdict is Verdict.BROKEN:
            report.problems += [str(problem) for problem in linear.problems]
        elif linear.verdict is Verdict.UNKNOWN:
            report.doubts += linear.doubts


def ways(fault: str, victim: str, others: Sequence[str]) -> list[tuple[str, str]]:
    """What a fault of the network cuts."""
    out = [(victim, other) for other in others]
    into = [(other, victim) for other in others]
    match fault:
        case "cut from victim":
            return out
        case "cut to victim":
            return into
        case "partition":
            return out + into
        case "cut between two":
            return [out[0], into[0]]
        case _:
            raise ValueError(f"{fault!r} is no fault of the network")


async def read_traces(client: Client, final: Final, workload: RegionWorkload) -> list[Traces]:
    """Every run that List shows, and every workflow that was started. What cannot be read goes to `final`."""
    wanted = {(workflow_id, run_id) for workflow_id, run_id, _ in final.listed}
    listed = {workflow_id for workflow_id, _ in wanted}
    wanted |= {(w.workflow_id, "") for w in workload.record.wishes if w.workflow_id not in listed}
    gate = asyncio.Semaphore(READS_AT_ONCE)
    runs: list[Traces] = []

    async def read(workflow_id: str, run_id: str) -> None:
        async with gate:
            try:
                state = await read_run(client, workflow_id, run_id)
                events = await read_history(client, workflow_id, state.run_id)
            except Refused as refused:
                if refused.code.name != "NOT_FOUND":
                    final.unread.append(f"{workflow_id}: {refused}")
                return
        assert len(digests(events)) >= len(state.digests), "events only grow"
        final.runs.append(state)
        runs.append(traces_of(state, events))

    await asyncio.gather(*(read(*which) for which in sorted(wanted)))
    return runs


async def run_suite(
    kills: int, seed: int, *, short: bool = False, only: Sequence[str] = (), pace: float = PACE,
    say: Say = lambda _: None, keep: bool = False, nodes: int = NODES,
) -> Report:  # fmt: skip
    """Run it in a directory of its own, which is kept unless the verdict is `ok`, or if `keep` says so."""
    report = Report(seed, kills, short, nodes)
    directory = Path(tempfile.mkdtemp(prefix="holdfast-region-"))
    began = time.monotonic()
    try:
        await Suite(directory, report, only, pace, say).run()
    finally:
        report.seconds = time.monotonic() - began
        report.conclude()
        if report.verdict is Verdict.OK and not keep:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            report.directory = str(directory)
            (directory / "report.json").write_text(json.dumps(report.as_dict(), indent=2))
    return report


def show(report: Report) -> str:
    """The report for people."""
    lines = [
        f"region: {report.verdict.value}, {len(report.faults)} faults in {report.seconds:.0f} s, "
        f"seed {report.seed}"
    ]
    for kind, row in report.recovery().items():
        of = [felt for felt in report.faults if felt.fault == kind]
        latency = max(felt.latency_ms_max for felt in of)
        lines.append(f"  {kind:16} back after {row} ms; latency of others up to {latency:.0f} ms")
    slow = [felt for felt in report.faults if felt.latency_ms_max > SLOW_MS]
    lines += [f"  slow             {felt.fault} of {felt.victim}: {felt.notes[0]}" for felt in slow]
    lines += [f"  skipped          {fault}: {why}" for fault, why in report.skipped.items()]
    lines.append(f"  read back        {report.runs} runs, {report.executions} executions of activities")
    lines.append(f"  acknowledged     {report.acknowledged}; linearizable: {report.linearizable}")
    lines.append(f"  raw clients      {report.raw_errors}")
    lines += [f"  machine stood still for {report.stalled_s:.1f} s: {error}" for error in report.excused]
    lines += [f"  GOAL MISSED      {goal}" for goal in report.goals_missed]
    lines += [f"  BROKEN           {problem}" for problem in report.problems]
    lines += [f"  UNKNOWN          {doubt}" for doubt in report.doubts]
    if report.directory:
        lines.append(f"  everything       {report.directory}")
    lines.append(f"  again            {report.replay}")
    return "\n".join(lines)


@click.command()
@click.option(
    "--kills", type=click.IntRange(min=1), default=10, show_default=True, help="How often to kill a node."
)
@click.option("--seed", type=int, help="Of every random choice. Without: a fresh one.")
@click.option("--short", is_flag=True, help="Every other fault once, and shorter.")
@click.option("--nodes", type=click.IntRange(3, 9), default=NODES, show_default=True, help="Of the region.")
@click.option("--fault", "only", multiple=True, help="Only these.")
@click.option("--pace", default=PACE, show_default=True, help="Workflows a second and node.")
@click.option("--keep", is_flag=True, help="Keep logs and record whatever the verdict is.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
def main(
    kills: int, seed: int | None, short: bool, nodes: int, only: tuple[str, ...], pace: float, keep: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Break nodes of a region under load and judge what was acknowledged. Exit 0 only for `ok`."""
    enter_namespace("chaos.live.region")
    seed = secrets.randbits(32) if seed is None else seed
    click.echo(f"seed {seed}, {kills} kills", err=True)
    say: Say = lambda text: click.echo(text, err=True)  # noqa: E731
    suite = run_suite(kills, seed, short=short, only=only, pace=pace, say=say, keep=keep, nodes=nodes)
    report = asyncio.run(suite)
    click.echo(json.dumps(report.as_dict()) if as_json else show(report))
    sys.exit(report.verdict is not Verdict.OK)


if __name__ == "__main__":
    main()
