"""Judges a run of Temporal's suite: counts it, sets it against the known failures, writes the page about it.

`expected.toml` names each test that is known to fail, with the reason. A failure that is not in it is
*unexplained* and makes the run fail; an entry that passes is *stale* and is shown, so the list only shrinks.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTCOMES = ("passed", "failed", "flaky", "skipped")


@dataclass(frozen=True)
class Reason:
    """Why some tests do not pass: a short name, a sentence, and the tests."""

    name: str
    text: str
    tests: tuple[str, ...]
    reachable: bool  # False: nothing this server could do would make them pass (a key, another interpreter)

    def covers(self, test: str) -> bool:
        """Match a test by its id, by the function of a parametrised one, or by a prefix that ends in `*`."""
        return any(
            test == entry or test.startswith((entry + "[", entry + "::")) or _prefix(entry, test)
            for entry in self.tests
        )


def _prefix(entry: str, test: str) -> bool:
    return entry.endswith("*") and test.startswith(entry[:-1])


@dataclass
class Tally:
    """Counts of one file, of the tests that touch a server and of the others."""

    server: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)


@dataclass
class Verdict:
    """What a run comes to."""

    files: dict[str, Tally]
    explained: list[tuple[str, Reason, str]]
    unexplained: list[tuple[str, str]]
    flaky: list[str]
    stale: list[str]
    skipped: dict[str, list[str]]
    unreachable: int

    @property
    def ok(self) -> bool:
        """A run is good when each failure has its reason, and there was something to fail."""
        return not self.unexplained and bool(self.files)

    def total(self, side: str) -> Counter[str]:
        """Add up one side, `server` or `other`, over all files."""
        return sum((getattr(tally, side) for tally in self.files.values()), Counter())


def load_reasons(path: Path) -> list[Reason]:
    """Read the list of known failures."""
    with path.open("rb") as file:
        entries = tomllib.load(file).get("reason", [])
    return [
        Reason(entry["name"], entry["text"], tuple(entry["tests"]), entry.get("reachable", True))
        for entry in entries
    ]


def judge(tests: dict[str, dict[str, Any]], reasons: list[Reason]) -> Verdict:
    """Set a run's outcomes against the known failures."""
    verdict = Verdict({}, [], [], [], [], {}, 0)
    for test, result in sorted(tests.items()):
        outcome = result["outcome"]
        tally = verdict.files.setdefault(test.partition("::")[0], Tally())
        (tally.server if result["touches_server"] else tally.other)[outcome] += 1
        reason = next((reason for reason in reasons if reason.covers(test)), None)
        if outcome == "failed" and reason is None:
            verdict.unexplained.append((test, result["detail"]))
        elif outcome == "failed" and reason is not None:
            verdict.explained.append((test, reason, result["detail"]))
        elif outcome == "flaky":
            verdict.flaky.append(test)
        elif outcome == "skipped":
            verdict.skipped.setdefault(result["detail"], []).append(test)
        elif reason is not None:
            verdict.stale.append(test)
        gone = outcome == "skipped" or (outcome == "failed" and reason is not None and not reason.reachable)
        verdict.unreachable += gone and result["touches_server"]
    return verdict


def summary(verdict: Verdict) -> str:
    """Say in a few lines what a run comes to, with each unexplained failure by name."""
    server, other = verdict.total("server"), verdict.total("other")
    good = server["passed"] + server["flaky"]
    reachable = server.total() - verdict.unreachable
    share = f" ({100 * good / reachable:.1f} % of {reachable} reachable)" if reachable else ""
    lines = [
        f"touching the server: {server.total()} tests, {good} passed{share}, "
        f"{server['failed']} failed, {server['skipped']} skipped",
        f"others: {other.total()} tests, {other['passed']} passed, {other['failed']} failed, "
        f"{other['skipped']} skipped",
    ]
    lines += [f"flaky (passed when run again alone): {test}" for test in verdict.flaky]
    lines += [f"stale (in expected.toml, but it passes): {test}" for test in verdict.stale]
    lines += [f"unexplained: {test}\n    {_one_line(detail, 160)}" for test, detail in verdict.unexplained]
    return "\n".join(lines)


def page(verdict: Verdict, about: dict[str, str]) -> str:
    """Write docs/compatibility.md."""
    server, other = verdict.total("server"), verdict.total("other")
    good = server["passed"] + server["flaky"]
    reachable = server.total() - verdict.unreachable
    lines = [
        "# Compatibility",
        "",
        "<!-- Made by `make compat` (tests/compat/run.py) from a run's report. Do not edit. -->",
        "",
        "Temporal's own test suite of its Python SDK, unmodified, is run against this server. This page says",
        "what passes, what does not, and why. A failure without a stated reason is called *unexplained*, and",
        "makes `make compat` fail.",
        "",
        *(f"* {key}: {value}" for key, value in about.items()),
        "",
        f"**{good} of {reachable} reachable tests that touch a server pass"
        + (f" ({100 * good / reachable:.1f} %).**" if reachable else ".**"),
        "Reachable is what is left of the "
        f"{server.total()} selected after {verdict.unreachable} that skip themselves or need something that",
        "no server can give (an API key, a newer interpreter). A test touches a server when it asks for the",
        f"suite's `env`, `client` or `worker` fixture; the {other.total()} others pass or fail without one,",
        "and are counted apart.",
        "",
        "## By file",
        "",
        "| file | touch the server | passed | failed | skipped | others | passed | failed |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(name, tally.server, tally.other) for name, tally in sorted(verdict.files.items())),
        _row("**all**", server, other),
        "",
        *_reasons_section(verdict),
        *_list_section("Unexplained", [f"`{name}`: {_cell(text)}" for name, text in verdict.unexplained]),
        *_list_section("Passed only when repeated alone", [f"`{name}`" for name in verdict.flaky]),
        *_list_section(
            "Skipped by the suite itself",
            [f"{len(names)}: {_cell(text)}" for text, names in sorted(verdict.skipped.items())],
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


REGION_HEADING = "## On a region of several nodes"


def region_section(verdict: Verdict, about: dict[str, str]) -> str:
    """What the page says of a run against a region."""
    server = verdict.total("server")
    good = server["passed"] + server["flaky"]
    reachable = server.total() - verdict.unreachable
    lines = [
        REGION_HEADING,
        "",
        "The same suite against a region on one machine: each connection of a test leads to one of the",
        "nodes, in turn. (Tests that start a server of their own, with settings or beside another, have one",
        "here as well.) A test passes there exactly if it passes on one node, but for those named here.",
        "",
        *(f"* {key}: {value}" for key, value in about.items()),
        "",
        f"**{good} of {reachable} reachable tests that touch a server pass.**",
        "",
        *(f"* fails there only: `{name}`: {_cell(text)}" for name, text in verdict.unexplained),
        *(f"* passed only when repeated alone: `{name}`" for name in verdict.flaky),
        *(f"* passes there only: `{name}`" for name in verdict.stale),
    ]
    return "\n".join(lines).rstrip() + "\n"


def region_of(page_text: str) -> str:
    """The section of a page that tells of a region; "" if it has none."""
    start = page_text.find(REGION_HEADING)
    if start < 0:
        return ""
    end = page_text.find("\n## ", start)
    return page_text[start:].rstrip() + "\n" if end < 0 else page_text[start:end].rstrip() + "\n"


def with_region(page_text: str, section: str) -> str:
    """The page with this section in place of its own, at its end."""
    rest = page_text.replace(region_of(page_text), "") if region_of(page_text) else page_text
    return rest.rstrip() + "\n" + (f"\n{section}" if section else "")


def differences(alone: dict[str, Any], region: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Tests that pass on one node and not in a region, and those of which it is the other way round."""
    both = [(name, alone[name]["outcome"], region[name]["outcome"]) for name in sorted(alone.keys() & region)]
    worse = [name for name, was, now in both if was != "failed" == now]
    better = [name for name, was, now in both if was == "failed" != now]
    return worse, better


def _row(name: str, server: Counter[str], other: Counter[str]) -> str:
    cells = [server.total(), server["passed"] + server["flaky"], server["failed"], server["skipped"]]
    cells += [other.total(), other["passed"], other["failed"]]
    return f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |"


def _reasons_section(verdict: Verdict) -> list[str]:
    by_reason: dict[str, list[tuple[str, Reason, str]]] = {}
    for failure in verdict.explained:
        by_reason.setdefault(failure[1].name, []).append(failure)
    lines = ["## What fails, and why", ""] if by_reason else []
    for name, failures in sorted(by_reason.items()):
        lines += [f"### {name}", "", failures[0][1].text, ""]
        lines += [f"* `{test}`" for test, _, _ in failures]
        lines += [""]
    return lines


def _list_section(title: str, entries: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"* {entry}" for entry in entries), ""] if entries else []


def _one_line(text: str, characters_max: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= characters_max else flat[: characters_max - 1] + "…"


def _cell(text: str) -> str:
    return _one_line(text, 200).replace("|", "\\|").replace("<", "&lt;")
