"""The timeline in the terminal: every event of the history, with attempts, durations and the deaths."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sdk.demo.evidence import NANOSECONDS, Check, Death, Step, Totals
from sdk.demo.failovers import REGIONS_MAX, Failover, Travels, longest_wait_s
from sdk.demo.takeover import Takeover

BAR_CELLS = 32
STYLES = {"model call": "magenta", "tool": "cyan", "workflow task": "bright_black", "event": "white"}


def show_timeline(
    console: Console, steps: Sequence[Step], deaths: Sequence[Death], travels: Travels | None
) -> None:
    """One line for what belongs together, in the order of time."""
    names = travels.names if travels is not None else {}
    failovers = travels.failovers if travels is not None else ()
    zero = min(step.begin_ns for step in steps)
    whole = max(1, max(step.end_ns for step in steps) - zero)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("at", True),
        ("events", True),
        *([("region", False)] if names else []),
        ("what", False),
        ("attempt", True),
        ("took", True),
    ):
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "what")
    table.add_column("when", no_wrap=True)
    lines: list[tuple[int, Step | Death | Failover]] = [(step.begin_ns, step) for step in steps]
    lines += [(death.killed_ns, death) for death in deaths]
    lines += [(failover.began_ns, failover) for failover in failovers]

    def row(*cells: RenderableType, where: str, style: str = "") -> None:
        at, events, *rest = cells
        table.add_row(at, events, *([where] if names else []), *rest, style=style)

    for at, line in sorted(lines, key=lambda each: each[0]):
        offset = f"{(at - zero) / NANOSECONDS:.3f} s"
        if isinstance(line, Death):
            pids = ("", "") if line.who == "region" else (f" {line.pid}", f"; {line.successor} takes over")
            found = f"SIGKILL: {line.name}{pids[0]} dies{pids[1]}"
            end = max(line.back_ns, line.killed_ns)
            took = f"{(end - line.killed_ns) / NANOSECONDS:.3f} s"
            crossed = bar(line.killed_ns - zero, end - zero, whole, "x")
            row(offset, "", found, "", took, crossed, where="", style="bold red")
            continue
        if isinstance(line, Failover):
            crossed = bar(line.began_ns - zero, line.ended_ns - zero, whole, "»")
            way = f"{line.source}→{line.target}"
            found = f"{line.mode} failover to {line.target}, version {line.version}"
            row(offset, "", found, "", f"{line.outage_s:.3f} s", crossed, where=way, style="bold yellow")
            continue
        style = STYLES[line.kind]
        shown = Text(f"{line.kind}: {line.name}" if line.kind in ("model call", "tool") else line.name, style)
        if line.last_failure:
            shown.append(f"  (attempt {line.attempt - 1}: {line.last_failure})", "yellow")
        if line.outcome not in ("", "completed"):
            shown.append(f"  {line.outcome}", "red")
        took = f"{line.seconds:.3f} s" if len(line.events) > 1 else ""
        attempt = Text(str(line.attempt) if line.attempt else "", "yellow" if line.attempt > 1 else "")
        cells = Text(bar(line.begin_ns - zero, line.end_ns - zero, whole, "━"), style)
        where = "→".join(dict.fromkeys(names.get(each % REGIONS_MAX, "?") for each in line.versions))
        row(offset, ids(line.events), shown, attempt, took, cells, where=where)
    console.print(table)


def ids(events: Sequence[int]) -> str:
    """Event ids, the runs among them drawn together: "5-7", "12,31,32" as "12,31-32"."""
    parts: list[list[int]] = []
    for event in events:
        if parts and parts[-1][-1] == event - 1:
            parts[-1].append(event)
        else:
            parts.append([event])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def bar(begin: int, end: int, whole: int, mark: str) -> str:
    """Where in the run it was: at least one cell."""
    first = min(BAR_CELLS - 1, begin * BAR_CELLS // whole)
    last = min(BAR_CELLS - 1, end * BAR_CELLS // whole)
    return " " * first + mark * max(1, last - first + 1)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """What had to be so, and whether it was."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    table.add_column(style="dim")
    for check in checks:
        table.add_row(
            Text("ok", "green") if check.ok else Text("BROKEN", "bold red"), check.what, check.found
        )
    console.print(table)


def show_totals(console: Console, totals: Totals, deaths: Sequence[Death]) -> None:
    """The sums."""
    console.print(
        f"{totals.model_calls_paid} model calls paid for {totals.model_activities} model activities"
        + (f" ({totals.tokens:,} tokens)" if totals.tokens else "")
        + (f", {totals.model_calls_refused} refused" if totals.model_calls_refused else "")
        + f"; {totals.retries} retries of free tools; {totals.events} events in {totals.duration_s:.1f} s",
        style="bold",
    )
    for death, seconds in zip(deaths, totals.lost_s, strict=True):
        console.print(f"{death.the_name}'s death cost {seconds:.2f} s until the run went on")


def show_takeover(console: Console, takeover: Takeover) -> None:
    """What clients noticed, and how the killed node is."""
    console.print(
        f"{takeover.led_after} led the shard {takeover.leaderless_s:.2f} s after {takeover.killed} was "
        f"killed; no client of the others waited longer than {takeover.longest_wait_s:.2f} s"
    )
    console.print(
        f"{takeover.killed} was back and had caught up {takeover.caught_up_s:.2f} s after its start"
    )


def show_travels(console: Console, travels: Travels) -> None:
    """What clients noticed of failovers, and what one of them cost."""
    for each in travels.failovers:
        waited = f"the longest wait of a client's signal was {longest_wait_s(travels.beats, each):.2f} s"
        if each.mode == "graceful":
            held = f"writes were held for {each.paused_s:.3f} s, " if each.paused_s is not None else ""
            console.print(f"graceful failover {each.source} → {each.target}: {held}{waited}")
            continue
        lag = f", known to be behind by {each.behind} entries" if each.behind is not None else ""
        console.print(
            f"region {each.source} died as a whole{lag}; forced failover to {each.target}: "
            f"{each.outage_s:.2f} s from its last node's death until a signal was acknowledged (RTO); "
            f"{travels.rpo_events} events and {travels.rpo_beats} acknowledged signals lost (RPO)"
        )
    console.print(f"{len(travels.beats)} signals on the way, one after the other")
