"""The kill suite: break the server's process under load, again and again, and judge what it acknowledged.

    python -m chaos.live.kill --kills 200 --seed 7
    python -m chaos.live.kill --judge DIRECTORY        look again at what a run recorded

Each round lets clients and workers at the server for a random time, does something to it, kills it with
SIGKILL, and starts it again on the same file. From time to time the data files are photographed while the
server stands still amid its work, and a second server must open the photograph and have everything that was
acknowledged until then; some photographs also lose a random part of the journal's tail.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from chaos.checkers.verdict import Verdict
from chaos.live import history as recorded
from chaos.live.checker import Judgement, judge
from chaos.live.client import Client, Refused
from chaos.live.history import History
from chaos.live.readback import read_everything
from chaos.live.server import PROGRAM, Server, ServerError, tear_tail
from chaos.live.workload import Workload

LOAD_S = (0.05, 1.0)
FROZEN_S = (0.05, 0.6)
STARTING_S = (0.0, 0.6)
ROUNDS_A_PHOTOGRAPH = 4  # about; fewer in a long run, since each reads back everything
PHOTOGRAPHS_MAX = 24

Say = Callable[[str], None]


@dataclass
class Report:
    """What a run of the suite did and found."""

    seed: int
    kills: int
    verdict: Verdict = Verdict.UNKNOWN
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    operations: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    recovery_ms: dict[str, float] = field(default_factory=dict)
    runs: int = 0
    events: int = 0
    seconds: float = 0.0
    report: str = ""  # the directory with everything, kept unless the verdict is `ok`

    @property
    def replay(self) -> str:
        """The command that does the same again (the server's own timing apart)."""
        return f"python -m chaos.live.kill --kills {self.kills} --seed {self.seed}"

    def take(self, found: Judgement, where: str) -> None:
        """Add a judgement; the worst one counts."""
        self.problems += [f"{where}: {problem}" for problem in found.problems]
        self.doubts += [f"{where}: {doubt}" for doubt in found.doubts]

    def conclude(self) -> None:
        """All judgements are in."""
        if self.problems:
            self.verdict = Verdict.BROKEN
        elif self.doubts:
            self.verdict = Verdict.UNKNOWN
        else:
            self.verdict = Verdict.OK

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "suite": "kill", "arena": "live", "seed": self.seed, "verdict": self.verdict.value,
            "operations": self.operations, "faults": dict(self.faults), "recovery_ms": self.recovery_ms,
            "runs": self.runs, "events": self.events, "seconds": round(self.seconds, 1),
            "problems": self.problems, "doubts": self.doubts, "report": self.report, "replay": self.replay,
        }  # fmt: skip


class Suite:
    """One run."""

    def __init__(self, directory: Path, report: Report, program: tuple[str, ...], say: Say) -> None:
        self._directory = directory
        self._report = report
        self._say = say
        self._rng = random.Random(report.seed)
        self._program = program
        self.history = History()
        self.server = Server(directory / "data.db", program)
        self.workload = Workload(random.Random(self._rng.random()), self.history)
        self._photographs = 0

    async def run(self) -> None:
        """Everything: load, faults, healing, reading back, judgement."""
        every = max(ROUNDS_A_PHOTOGRAPH, self._report.kills // PHOTOGRAPHS_MAX)
        try:
            self.workload.attach(await self.server.start())
            self.workload.start()
            for number in range(self._report.kills):
                await self._round(photograph=number % every == every // 2)
                if (number + 1) % 20 == 0:
                    done = sum(1 for each in self.history.operations if each.acknowledged)
                    self._say(f"{number + 1} kills, {done} operations acknowledged")
            await self._heal_and_judge()
        except ServerError as error:
            self._report.problems.append(str(error))
        finally:
            await self.workload.stop()
            await self.server.kill()
        self._report.problems += self.server.complaints()
        self._report.doubts += self.workload.failures
        self._report.operations = recorded.counts(self.history.operations)
        self._report.recovery_ms = _spread(self.server.ready_ms)

    async def _round(self, *, photograph: bool) -> None:
        rng, faults = self._rng, self._report.faults
        await asyncio.sleep(rng.uniform(*LOAD_S))
        if photograph:
            await self._photograph(torn=self._photographs % 3 == 2)
            await asyncio.sleep(rng.uniform(*LOAD_S) / 4)
        fault = rng.choices(("kill", "freeze", "freeze and kill", "kill at start"), (6, 2, 1, 2))[0]
        faults[fault] += 1
        if fault in ("freeze", "freeze and kill"):
            self.server.freeze()
            await asyncio.sleep(rng.uniform(*FROZEN_S))
            if fault == "freeze":
                self.server.thaw()
                await asyncio.sleep(rng.uniform(*LOAD_S) / 2)
        await self.server.kill()
        await self.workload.detach()
        if fault == "kill at start":
            await self.server.spawn()
            await asyncio.sleep(rng.uniform(*STARTING_S))
            await self.server.kill()
        self.workload.attach(await self.server.start())

    async def _photograph(self, *, torn: bool) -> None:
        """Copy the files amid the work; what another server makes of them is judged at once."""
        self._photographs += 1
        directory = self._directory / f"photograph-{self._photographs}"
        self.server.freeze()
        try:
            position = self.history.now()
            database = self.server.photograph(directory)
        finally:
            self.server.thaw()
        what = "torn tail" if torn else "crash image"
        self._report.faults[what] += 1
        if torn:
            was, left = tear_tail(database, self._rng)
            what = f"{what}, {left} of {was} rounds left"
        until = self.history.until(position)
        until.alarms.clear()  # those are the other server's
        server = Server(database, self._program)
        try:
            client = Client(await server.start())
            final = await read_everything(client, until)
            await client.close()
            found = judge(until, final, tail_lost=torn)
            self._report.problems += server.complaints()
        except ServerError as error:
            found = Judgement(Verdict.BROKEN, [f"it does not open: {error}"], [])
        else:
            if found.verdict is not Verdict.OK:
                recorded.save(until, final, directory)
        finally:
            await server.kill()
        self._report.take(found, f"photograph {self._photographs} ({what})")
        if found.verdict is Verdict.OK:
            shutil.rmtree(directory)

    async def _heal_and_judge(self) -> None:
        try:
            await self.workload.settle()
            client = Client(self.server.address)
            final = await read_everything(client, self.history)
            await client.close()
        except Refused as refused:
            self._report.doubts.append(f"the healed server could not be read: {refused}")
            return
        recorded.save(self.history, final, self._directory)
        self._report.runs = len(final.runs)
        self._report.events = sum(len(run.events) for run in final.runs)
        self._report.take(judge(self.history, final), "at the end")
        await self.workload.detach()
        if (code := await self.server.stop()) != 0:
            self._report.problems.append(f"SIGTERM ended it with {code}: {self.server.said()}")


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2], 1),
        "p99": round(ordered[round(last * 0.99)], 1),
        "max": round(ordered[last], 1),
    }


async def run_suite(
    kills: int, seed: int, program: tuple[str, ...] = PROGRAM, say: Say = lambda _: None
) -> Report:
    """Run it in a directory of its own, which is kept unless the verdict is `ok`."""
    report = Report(seed, kills)
    directory = Path(tempfile.mkdtemp(prefix="holdfast-kill-"))
    began = time.monotonic()
    try:
        await Suite(directory, report, program, say).run()
    finally:
        report.seconds = time.monotonic() - began
        report.conclude()
        if report.verdict is Verdict.OK:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            report.report = str(directory)
            (directory / "report.json").write_text(json.dumps(report.as_dict(), indent=2))
    return report


def show(report: Report) -> str:
    """The report for people."""
    lines = [
        f"kill: {report.verdict.value}, {report.kills} kills in {report.seconds:.0f} s, seed {report.seed}"
    ]
    faults = ", ".join(f"{count} {name}" for name, count in sorted(report.faults.items()))
    lines.append(f"  faults      {faults}")
    for kind, row in report.operations.items():
        lines.append(f"  {kind:17} {row['ok']:6} ok {row['fail']:5} refused {row['indefinite']:5} indefinite")
    lines.append(f"  read back   {report.runs} runs, {report.events} events")
    lines.append(f"  restart     {report.recovery_ms}")
    lines += [f"  BROKEN      {problem}" for problem in report.problems]
    lines += [f"  UNKNOWN     {doubt}" for doubt in report.doubts]
    if report.report:
        lines.append(f"  everything  {report.report}")
    lines.append(f"  again       {report.replay}")
    return "\n".join(lines)


@click.command()
@click.option(
    "--kills", type=click.IntRange(min=1), default=10, show_default=True, help="How often to kill it."
)
@click.option("--seed", type=int, help="Of every random choice. Without: a fresh one.")
@click.option("--holdfast", "program", help="The program to start. Without: this installation.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
@click.option(
    "--judge", "directory", type=click.Path(exists=True, file_okay=False), help="Judge a kept record."
)
def main(kills: int, seed: int | None, program: str | None, as_json: bool, directory: str | None) -> None:
    """Kill the server under load and judge what it acknowledged. Exit 0 only for `ok`."""
    if directory is not None:
        found = judge(*recorded.load(Path(directory)))
        click.echo("\n".join([found.verdict.value, *found.problems, *found.doubts]))
        sys.exit(found.verdict is not Verdict.OK)
    seed = secrets.randbits(32) if seed is None else seed
    click.echo(f"seed {seed}, {kills} kills", err=True)
    command = (program,) if program else PROGRAM
    report = asyncio.run(run_suite(kills, seed, command, lambda text: click.echo(text, err=True)))
    click.echo(json.dumps(report.as_dict()) if as_json else show(report))
    sys.exit(report.verdict is not Verdict.OK)


if __name__ == "__main__":
    main()
