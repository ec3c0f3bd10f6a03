"""`holdfast demo`, or `python -m sdk.demo`: reads the command line, shows what happens, tells the verdict.

The story goes to stderr; report, timeline and verdict, or one JSON object, to stdout. Exit code 0: everything
held; 1: it did not, or the demo could not be played; 2: usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from sdk.demo.director import DemoError, Director, Outcome, Settings
from sdk.demo.documents import DocumentsError, Library, project
from sdk.demo.failovers import Travels, longest_wait_s
from sdk.demo.messages import Approval, Progress
from sdk.demo.model import Model, StandIn, choose
from sdk.demo.takeover import Takeover
from sdk.demo.timeline import show_checks, show_takeover, show_timeline, show_totals, show_travels
from sdk.testing import DevServerError

QUESTION_DEFAULT = "What is on disk before a request is acknowledged, and what survives a SIGKILL?"
QUESTION_CHARACTERS_MAX = 1000
WIDTH_WITHOUT_TERMINAL = 130
NODES = (1, 3, 5)  # two nodes survive nobody's death
NODES_DEFAULT = 3
REGIONS = (1, 2)
LOGS = ("embedded", "cassandra")

EPILOG = """\
Examples:
  holdfast demo
  holdfast demo --documents ~/notes --question "What did we decide about retries?"
  holdfast demo --approve --json > result.json
  holdfast demo --log cassandra
  holdfast demo --regions 1
  holdfast demo --nodes 1
  OPENAI_API_KEY=… OPENAI_MODEL=gpt-4o-mini holdfast demo

Without OPENAI_API_KEY the model is a stand-in that ranks the documents' own sentences, and nothing
leaves this machine. With it, passages of the documents go to OPENAI_BASE_URL (default: OpenAI's own).
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="holdfast demo",
        description="A research agent answers a question from documents. On the way its worker is killed "
        "with SIGKILL, then the node that leads the run's shard, and then the whole region that serves it; "
        "in between, the run moves between regions. At the end: the report, the run's timeline from the "
        "event history, and whether any model call was paid twice.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--question", default=QUESTION_DEFAULT, help="what to answer (default: %(default)r)")
    made.add_argument(
        "--documents", type=Path, metavar="DIR", help="folder of .md, .txt and .rst files (default: ours)"
    )
    made.add_argument(
        "--nodes",
        type=int,
        choices=NODES,
        default=NODES_DEFAULT,
        help="nodes of a region; 1: a single server (default: %(default)s)",
    )
    made.add_argument(
        "--regions",
        type=int,
        choices=REGIONS,
        help="regions that it runs on; with one, no region dies (default: 2; of a single server: 1)",
    )
    made.add_argument(
        "--log", choices=LOGS, default=LOGS[0], help="the log between regions (default: %(default)s)"
    )
    made.add_argument("--approve", action="store_true", help="approve the draft without asking")
    made.add_argument("--offline", action="store_true", help="use the stand-in even with OPENAI_API_KEY set")
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave data, history, ledger, logs there")
    made.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object on stdout")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Play; returns the exit code."""
    made = parser()
    given = made.parse_args(arguments)
    if not given.question.strip() or len(given.question) > QUESTION_CHARACTERS_MAX:
        made.error(f"--question has to have 1 to {QUESTION_CHARACTERS_MAX} characters")
    if given.keep and given.keep.exists() and (not given.keep.is_dir() or any(given.keep.iterdir())):
        made.error(f"--keep {given.keep} has to be new, or an empty folder")
    regions = given.regions or (1 if given.nodes == 1 else 2)
    if given.nodes == 1 and regions != 1:
        made.error("--regions 2 and --nodes 1 do not go together: a region has 3 nodes or 5")
    if given.log != LOGS[0] and regions == 1:
        made.error(f"--log {given.log} is the log between regions, and there is one region")
    given.regions = regions
    story = console(sys.stderr)
    try:
        model = choose(os.environ, offline=given.offline)
        library = Library(given.documents) if given.documents else project()
        outcome = asyncio.run(play(given, story, model, library))
    except (DocumentsError, ValueError) as error:
        made.error(str(error))
    except (DemoError, DevServerError) as error:
        print(f"holdfast demo: {error}", file=sys.stderr)  # noqa: T201 - a command's word
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("holdfast demo: interrupted", file=sys.stderr)  # noqa: T201 - as above
        return 1
    if given.as_json:
        print(json.dumps(as_json(outcome, given.question, model, library), ensure_ascii=False))  # noqa: T201 - data
    else:
        show(console(sys.stdout), outcome)
    return 0 if outcome.ok else 1


async def play(given: argparse.Namespace, story: Console, model: Model, library: Library) -> Outcome:
    """One performance, in a directory that goes away unless it is to be kept."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    story.print(f"question:  {given.question}", markup=False)
    story.print(f"documents: {len(library.documents)} of {library.folder}", markup=False)
    story.print(f"model:     {model.name}", markup=False)
    if not isinstance(model, StandIn):
        story.print("           passages of the documents are sent there", style="yellow")
    settings = Settings(
        given.question,
        given.documents,
        given.offline,
        not isinstance(model, StandIn),
        given.nodes,
        given.regions,
        given.log,
        given.keep is not None,
    )
    with ExitStack() as cleaning:
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            directory = given.keep
        else:
            directory = Path(cleaning.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))

        def say(line: str) -> None:
            style = "bold red" if line.startswith("kill") else None
            style = "bold yellow" if line.startswith("failover") else style
            story.print(line, markup=False, style=style)

        cleaning.enter_context(_telling(say))

        async def ask(progress: Progress) -> Approval:
            return await approval(story, progress, asking=not given.approve and sys.stdin.isatty())

        outcome = await Director(directory.resolve(), settings, say, ask).perform()
        if given.keep:
            folder = "region" if given.regions == 1 else "regions"
            servers = "holdfast.db, server.log" if given.nodes == 1 else f"{folder} (data and logs)"
            story.print(f"kept in {directory}: {servers}, history.json, ledger.jsonl, worker.log")
        return outcome


@contextmanager
def _telling(say: Callable[[str], None]) -> Iterator[None]:
    """What clients notice of their endpoints is part of the story; what the SDK logs besides is not."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"a client notices: {record.getMessage()}")

    quiet = TelemetryFilter(core_level="ERROR", other_level="ERROR")
    with suppress(RuntimeError):  # this process has a runtime already
        Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=quiet))))
    relays, teller = logging.getLogger("sdk.relay"), Teller(logging.WARNING)
    relays.addHandler(teller)
    relays.propagate = False
    try:
        yield
    finally:
        relays.removeHandler(teller)


async def approval(story: Console, progress: Progress, *, asking: bool) -> Approval:
    """Show the draft, and ask whoever sits at the terminal; without one, or with --approve, it is granted."""
    story.print("the agent asks: may it write the report from these quotations?", style="bold")
    checked = zip(progress.outline, progress.verdicts, strict=True)
    for number, (finding, verdict) in enumerate(checked, start=1):
        mark = "found word for word" if verdict.found else "NOT found word for word"
        story.print(f"  {number}. {finding.text} [{finding.place}: {mark}]", markup=False)
    if not asking:
        story.print("approved (by --approve, or because stdin is no terminal)")
        return Approval(True, "nobody: unattended")
    story.print("approve? [Y/n] ", end="", markup=False)
    line = await line_of_stdin()  # empty: the terminal was closed, and that is no yes
    granted = line.strip().lower() in ("y", "yes") or line == "\n"
    story.print("approved" if granted else "not approved")
    return Approval(granted, os.environ.get("USER") or "the human at the terminal")


async def line_of_stdin() -> str:
    """One line from the terminal, on the event loop: a thread in `input` could not be interrupted."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def readable() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), readable)
    try:
        return await line
    finally:
        loop.remove_reader(sys.stdin.fileno())


def console(stream: Any) -> Console:
    """Where there is no terminal there is no width, and a timeline does not fit into rich's 80 columns."""
    return Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)


def show(out: Console, outcome: Outcome) -> None:
    """Report, timeline, verdict."""
    out.rule("report")
    out.print(Markdown(outcome.report.text))
    out.rule("timeline, from the event history")
    travels = outcome.travels
    show_timeline(out, outcome.steps, outcome.deaths, travels)
    out.rule("what was proved")
    show_checks(out, outcome.checks)
    out.print()
    show_totals(out, outcome.totals, outcome.deaths)
    if outcome.takeover is not None:
        show_takeover(out, outcome.takeover)
    if travels is not None:
        show_travels(out, travels)
    verdict = "everything held" if outcome.ok else "NOT everything held"
    out.print(Text(verdict, "bold green" if outcome.ok else "bold red"))


def as_json(outcome: Outcome, question: str, model: Model, library: Library) -> dict[str, Any]:
    """The result for programs."""
    totals = asdict(outcome.totals)
    lost = totals.pop("lost_s")
    return {
        "ok": outcome.ok,
        "question": question,
        "documents": {"folder": str(library.folder), "count": len(library.documents)},
        "model": {"name": model.name, "stand_in": isinstance(model, StandIn)},
        "run_id": outcome.run_id,
        "approved": outcome.report.approved,
        "report": outcome.report.text,
        "findings": [asdict(finding) for finding in outcome.report.findings],
        "deaths": [
            {
                "who": death.who,
                "node": death.node or None,
                "signal": "SIGKILL",
                "pid": death.pid,
                "successor": death.successor,
                "killed_ns": death.killed_ns,
                "events_before": len(death.before),
                "in_flight": death.in_flight,
                "lost_s": seconds,
            }
            for death, seconds in zip(outcome.deaths, lost, strict=True)
        ],
        "totals": {**totals, "lost_s": sum(lost)},
        "takeover": None if outcome.takeover is None else takeover_json(outcome.takeover),
        "failovers": None if outcome.travels is None else travels_json(outcome.travels),
        "checks": [asdict(check) for check in outcome.checks],
        "timeline": [{**asdict(step), "seconds": step.seconds} for step in outcome.steps],
    }


def takeover_json(takeover: Takeover) -> dict[str, Any]:
    """What was seen of the shard, without the histories and the single calls."""
    return {
        "shard": takeover.shard,
        "killed": takeover.killed,
        "led_before": takeover.led_before,
        "led_after": takeover.led_after,
        "leaderless_s": takeover.leaderless_s,
        "calls": len(takeover.calls),
        "calls_failed": len(takeover.errors),
        "longest_wait_s": takeover.longest_wait_s,
        "caught_up_s": takeover.caught_up_s,
    }


def travels_json(travels: Travels) -> dict[str, Any]:
    """What was seen of failovers, without histories and single signals."""
    made = []
    for each in travels.failovers:
        fields = asdict(replace(each, before=[]))
        del fields["before"]
        felt = {"outage_s": each.outage_s, "longest_wait_s": longest_wait_s(travels.beats, each)}
        made.append({**fields, **felt, "events_before": len(each.before)})
    return {
        "regions": {name: index for index, name in travels.names.items()},
        "made": made,
        "signals": len(travels.beats),
        "rpo": {"events": travels.rpo_events, "signals": travels.rpo_beats},
    }


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The SDK's native threads outlive it, and may abort a process that takes its interpreter down in order.
    os._exit(code)
