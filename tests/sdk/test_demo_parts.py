"""The demo's parts without processes: documents, the stand-in, an endpoint, the ledger, and the judge."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from sdk.demo.documents import DocumentsError, Library, passages_of, terms
from sdk.demo.evidence import Death, checks_of, lost, steps_of, totals_of
from sdk.demo.failovers import Beat, Failover, Travels, failover_checks, longest_wait_s
from sdk.demo.ledger import Entry, Ledger, State, paid
from sdk.demo.messages import Draft, Finding, Note, Outline, Passage, Reading, Source, Verdict, Writing
from sdk.demo.model import Endpoint, Refused, StandIn, choose, nearest
from sdk.demo.region import unary
from sdk.demo.takeover import Takeover, takeover_checks
from sdk.demo.timeline import bar, ids
from sdk.demo.waits import Call

PAGE = """# Storage

What was acknowledged is on the disk. It survives
a kill of the process at any instant.

```
code is left out, whatever it says of disks and kills
```

* A timer that was due while nobody served fires at the start.
* Backups are taken with the server's own command, never with cp.

| a table | is left out too, with all of its words |
"""


def test_passages_have_lines_headings_and_no_code() -> None:
    first, second, third = passages_of("page.md", PAGE)
    assert (first.line, first.heading, first.place) == (3, "Storage", "page.md:3")
    assert first.text.endswith("It survives a kill of the process at any instant.")
    assert (second.line, third.line) == (10, 11)


def test_search_check_and_source(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/page.md").write_text(PAGE)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/page.md").write_text(PAGE)
    library = Library(tmp_path)
    assert library.documents == ["below/page.md"]
    found = library.search("Which kills survive?", 5)
    assert [passage.line for passage in found] == [3]
    assert not library.search("Which kills survive?", 5, ["below/page.md:3"])
    assert library.quotes("below/page.md", "It survives a kill of the process")
    assert not library.quotes("below/page.md", "It survives a kill of the disk")
    assert not library.quotes("../page.md", "It survives")
    assert library.source("below/page.md").bytes == len(PAGE)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DocumentsError, match=r"has no \.md"):
        Library(tmp_path)
    (tmp_path / "short.md").write_text("too short")
    with pytest.raises(DocumentsError, match="no paragraph"):
        Library(tmp_path)


def test_the_stand_in_quotes_and_never_invents(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    library = Library(tmp_path)
    found = nearest(
        [Finding(passage.text, passage.document, passage.line) for passage in library.passages],
        terms("timer fires"),
        3,
    )
    assert [finding.line for finding in found] == [10]


@pytest.mark.parametrize(
    ("environment", "offline", "name"),
    [
        ({}, False, "stand-in (ranks sentences, offline)"),
        ({"OPENAI_API_KEY": "k"}, True, "stand-in (ranks sentences, offline)"),
        ({"OPENAI_API_KEY": "k"}, False, "gpt-4o-mini at https://api.openai.com/v1"),
        (
            {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h/v1/", "OPENAI_MODEL": "m"},
            False,
            "m at http://h/v1",
        ),
    ],
)
def test_the_environment_chooses_the_model(environment: dict[str, str], offline: bool, name: str) -> None:
    assert choose(environment, offline=offline).name == name


def test_an_endpoint_has_to_be_http() -> None:
    with pytest.raises(ValueError, match="OPENAI_BASE_URL"):
        choose({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "file:///etc"})


class Completions:
    """An endpoint that answers what it is told to and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                self.asked.append((dict(handler.headers), body))
                status, text = self.answers.pop(0)
                answer = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 7}}
                content = json.dumps(answer if status == 200 else {"error": text}).encode()
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content)

            def log_message(handler, format: str, *arguments: Any) -> None:  # noqa: A002 - its signature
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def completions() -> Iterator[Completions]:
    made = Completions()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


PASSAGES = [Passage("page.md", 3, "Storage", "What was acknowledged is on the disk.")]


async def test_an_endpoint_is_asked_with_its_key(completions: Completions) -> None:
    model = Endpoint(completions.address, "secret", "m")
    completions.answers.append((200, 'Sure! {"queries": ["one", "two"]} Anything else?'))
    answer = await model.plan("run/plan", "What?", ["Storage"])
    assert (answer.value.queries, answer.tokens) == (["one", "two"], 7)
    headers, body = completions.asked[0]
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Idempotency-Key"] == "run/plan"
    assert body["model"] == "m"
    assert "Storage" in body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("text", "findings", "follow_up"),
    [
        (
            '{"findings": [{"passage": 0, "quote": "is on the disk"}], "follow_up": "what disk"}',
            [Finding("is on the disk", "page.md", 3)],
            "what disk",
        ),
        ('{"findings": [{"passage": 9, "quote": "x"}, "y", {"passage": 0}]}', [], "aspect"),
        ("I would rather not say.", [], "aspect"),
        ('{"findings": 5, "follow_up": ', [], "aspect"),
    ],
    ids=["good", "wrong passages", "no JSON", "broken JSON"],
)
async def test_a_poor_answer_is_taken_as_it_is(
    completions: Completions, text: str, findings: list[Finding], follow_up: str
) -> None:
    """It is paid, so it is never asked for again."""
    completions.answers.append((200, text))
    model = Endpoint(completions.address, "secret", "m")
    note = (await model.read("k", Reading("What?", "aspect", PASSAGES))).value
    assert note == Note("aspect", findings, follow_up)


async def test_outline_and_report_of_an_endpoint(completions: Completions) -> None:
    model = Endpoint(completions.address, "secret", "m")
    findings = [Finding("first", "a.md", 1), Finding("second", "b.md", 2)]
    completions.answers += [(200, '{"chosen": [1, 1, 7]}'), (200, "It is so [b.md:2].")]
    outline = (await model.outline("k", Draft("What?", [Note("q", findings, "f")], []))).value
    assert outline == Outline([findings[1]])
    writing = Writing("What?", outline, [Verdict("b.md:2", True)], [Source("b.md", "0" * 64, 5)])
    assert (await model.write("k", writing)).value.startswith("It is so [b.md:2].\n\nSources:\n- b.md")


@pytest.mark.parametrize(("status", "again"), [(429, True), (503, True), (401, False)])
async def test_a_refusal_says_whether_to_try_again(
    completions: Completions, status: int, again: bool
) -> None:
    completions.answers.append((status, "no"))
    with pytest.raises(Refused, match=str(status)) as refused:
        await Endpoint(completions.address, "secret", "m").plan("k", "What?", [])
    assert refused.value.worth_a_retry is again


async def test_an_endpoint_that_is_not_there_is_a_refusal() -> None:
    with socket.socket() as bound:  # and never listening
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    with pytest.raises(Refused, match="cannot reach") as refused:
        await Endpoint(address, "secret", "m").plan("k", "What?", [])
    assert refused.value.worth_a_retry


def entry(key: str, state: State, attempt: int = 1) -> Entry:
    return Entry(key, key.partition("/")[2], attempt, state, "m", 1, 0)


def test_the_ledger_counts_what_may_have_been_paid(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.entries() == []
    lines = [
        entry("r/plan", State.ASKED),
        entry("r/plan", State.ANSWERED),
        entry("r/read", State.ASKED),
        entry("r/read", State.REFUSED),
        entry("r/read", State.ASKED, 2),
        entry("r/write", State.ASKED),  # its worker died: nobody knows, so it counts
    ]
    for line in lines:
        ledger.write(line)
    assert ledger.entries() == lines
    assert paid(lines) == {"r/plan": 1, "r/read": 1, "r/write": 1}


# ------------------------------------------------------------------------------------------------- the judge


def event(number: int, kind: int, seconds: float = 0.0) -> HistoryEvent:
    made = HistoryEvent(event_id=number, event_type=kind)  # type: ignore[arg-type]
    made.event_time.FromNanoseconds(int((seconds or number) * 1e9))
    return made


def activity_events(first: int, name: str, kind: str, attempt: int = 1) -> list[HistoryEvent]:
    scheduled = event(first, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    scheduled.activity_task_scheduled_event_attributes.activity_id = name
    scheduled.activity_task_scheduled_event_attributes.activity_type.name = kind
    started = event(first + 1, EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED)
    started.activity_task_started_event_attributes.scheduled_event_id = first
    started.activity_task_started_event_attributes.attempt = attempt
    completed = event(first + 2, EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
    completed.activity_task_completed_event_attributes.scheduled_event_id = first
    return [scheduled, started, completed]


def good_run() -> tuple[list[HistoryEvent], list[Entry], list[Death]]:
    signaled = event(8, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
    signaled.workflow_execution_signaled_event_attributes.signal_name = "approve"
    begun = event(1, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    begun.workflow_execution_started_event_attributes.attempt = 1
    ended = event(12, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED)
    ended.workflow_execution_completed_event_attributes.workflow_task_completed_event_id = 11
    events = [
        begun,
        *activity_events(2, "plan", "plan"),
        *activity_events(5, "follow-up-1", "retrieve", attempt=2),
        signaled,
        *activity_events(9, "sources", "sources"),
        ended,
    ]
    deaths = [
        Death("worker", 10, int(5.5e9), events[:5], ["follow-up-1"], 11),
        Death("server", 20, int(9.5e9), events[:9], ["sources"], 21),
    ]
    return events, [entry("r/plan", State.ASKED), entry("r/plan", State.ANSWERED)], deaths


def broken(events: list[HistoryEvent], entries: list[Entry], deaths: list[Death]) -> list[str]:
    return [check.what for check in checks_of("r", events, entries, deaths) if not check.ok]


def test_a_good_run_is_found_good() -> None:
    assert broken(*good_run()) == []


def test_a_call_paid_twice_is_found() -> None:
    events, entries, deaths = good_run()
    assert broken(events, [*entries, entry("r/plan", State.ASKED)], deaths) == [
        "no model call was paid twice"
    ]


def test_a_call_that_the_history_does_not_have_is_found() -> None:
    events, entries, deaths = good_run()
    assert broken(events, [*entries, entry("r/read-1", State.ASKED)], deaths) == [
        "what was paid is what the history has"
    ]
    assert "what was paid is what the history has" in broken(events, [], deaths)


def test_a_repeated_model_activity_is_found() -> None:
    events, entries, deaths = good_run()
    events[2].activity_task_started_event_attributes.attempt = 2
    assert "no model activity was tried again, but where the endpoint refused" in broken(
        events, entries, deaths
    )


def test_a_history_that_lost_or_changed_an_event_is_found() -> None:
    events, entries, deaths = good_run()
    changed = HistoryEvent()
    changed.CopyFrom(events[3])
    changed.event_time.seconds += 1
    deaths[0].before = [*events[:3], changed]
    assert broken(events, entries, deaths) == ["the worker's death took nothing from the history"]


def test_a_lost_or_doubled_answer_is_found() -> None:
    events, entries, deaths = good_run()
    what = "the answer that the dead server acknowledged is there, once"
    assert what in broken([each for each in events if each.event_id != 8], entries, deaths)
    assert what in broken([*events[:8], events[7], *events[8:]], entries, deaths)


def test_a_model_call_in_flight_is_found() -> None:
    events, entries, deaths = good_run()
    deaths[1].in_flight = ["plan"]
    assert "no model call was in flight when the server died" in broken(events, entries, deaths)


def test_a_run_without_deaths_proves_nothing() -> None:
    events, entries, _ = good_run()
    assert len(broken(events, entries, [])) == 4


def test_a_workflow_task_that_waited_for_its_time_out_is_told_and_no_fault() -> None:
    events, entries, deaths = good_run()
    scheduled = event(90, EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED)
    scheduled.workflow_task_scheduled_event_attributes.attempt = 1
    ended = event(91, EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT)
    ended.workflow_task_timed_out_event_attributes.scheduled_event_id = 90
    late = [*events[:-1], scheduled, ended, events[-1]]
    assert broken(late, entries, deaths) == []
    assert "1 workflow tasks waited" in checks_of("r", late, entries, deaths)[0].found
    failed = event(91, EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)
    failed.workflow_task_failed_event_attributes.scheduled_event_id = 90
    assert broken([*events[:-1], scheduled, failed, events[-1]], entries, deaths) == ["the run completed"]


def test_time_lost_is_until_the_run_goes_on() -> None:
    events, _, deaths = good_run()
    assert [lost(events, death) for death in deaths] == [0.5, 0.5]


def test_a_refused_call_is_no_retry_of_a_tool() -> None:
    events, entries, deaths = good_run()
    events[2].activity_task_started_event_attributes.attempt = 2
    entries = [entry("r/plan", State.ASKED), entry("r/plan", State.REFUSED), *entries]
    assert broken(events, entries, deaths) == []
    totals = totals_of(events, entries, deaths)
    assert (totals.model_calls_paid, totals.model_calls_refused, totals.retries) == (1, 1, 1)


async def test_two_quotations_of_one_place_are_told_apart() -> None:
    findings = [Finding("It is so.", "a.md", 1), Finding("Made up.", "a.md", 1)]
    verdicts = [Verdict("a.md:1", True), Verdict("a.md:1", False)]
    report = (await StandIn().write("k", Writing("What?", Outline(findings), verdicts, []))).value
    assert "1. It is so. [a.md:1]\n2. Made up. [a.md:1] (not found word for word)" in report


def test_every_event_is_in_one_step() -> None:
    events, _, _ = good_run()
    steps = steps_of(events)
    assert [step.events for step in steps] == [[1], [2, 3, 4], [5, 6, 7], [8], [9, 10, 11], [12]]
    assert [step.kind for step in steps] == ["event", "model call", "tool", "event", "tool", "event"]
    assert steps[2].attempt == 2


def test_ids_and_bars() -> None:
    assert ids([5, 6, 7]) == "5-7"
    assert ids([12, 31, 32]) == "12,31-32"
    assert bar(0, 0, 100, "x") == "x"
    assert bar(100, 100, 100, "x") == " " * 31 + "x"


async def test_the_stand_in_says_so_when_it_finds_nothing() -> None:
    model = StandIn()
    outline = (await model.outline("k", Draft("What?", [], []))).value
    report = (await model.write("k", Writing("What?", outline, [], []))).value
    assert "Nothing: no sentence" in report


# -------------------------------------------------------------------------------------- the shard's leader


def good_takeover(**changed: Any) -> Takeover:
    events, _, _ = good_run()
    seen: dict[str, Any] = {
        "shard": 3,
        "killed": "a/2",
        "led_before": "a/2",
        "led_after": "a/1",
        "leaderless_s": 0.5,
        "calls": [Call(0, 10**9), Call(10**9, 2 * 10**9 - 1)],
        "entries_at_death": 70,
        "entries_without_it": 79,
        "entries_caught_up": 80,
        "caught_up_s": 1.0,
        "histories": {"a/1": events, "a/2": events, "a/3": events},
    }
    return Takeover(**{**seen, **changed})


def test_a_good_takeover_is_found_good() -> None:
    events, _, _ = good_run()
    takeover = good_takeover()
    assert all(check.ok for check in takeover_checks(takeover, events))
    assert takeover.longest_wait_s == 1.0


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"led_before": "a/3"}, "the killed node led the run's shard"),
        ({"led_after": "a/2"}, "the run went on under another leader"),
        ({"led_after": None}, "the run went on under another leader"),
        ({"calls": [Call(0, 1, "UNAVAILABLE: gone")]}, "clients of the other nodes waited, and got no error"),
        ({"calls": []}, "clients of the other nodes waited, and got no error"),
        ({"entries_caught_up": 78}, "the killed node caught up when it came back"),
        ({"entries_at_death": 79}, "the killed node caught up when it came back"),
        ({"histories": {"a/1": [], "a/2": []}}, "every node tells the same history"),
        ({"histories": {"a/1": good_run()[0]}}, "every node tells the same history"),
    ],
)
def test_a_takeover_that_was_none_is_found(changed: dict[str, Any], what: str) -> None:
    events, _, _ = good_run()
    checks = takeover_checks(good_takeover(**changed), events)
    assert [check.what for check in checks if not check.ok] == [what]


# ------------------------------------------------------------------------------------------ two regions


def good_travels(**changed: Any) -> tuple[Travels, list[HistoryEvent]]:
    """Nine events in a, two in b, one in a again."""
    events, _, _ = good_run()
    for each in events:
        each.version = 1 if each.event_id < 10 else 2 if each.event_id < 12 else 101
    failovers = [
        Failover("graceful", "a", "b", 2, 10, 20, 0.1, 0.0, 0, events[:9], 20),
        Failover("forced", "b", "a", 101, 30, 40, None, 0.0, 0, events[:11], 45),
    ]
    beats = [Beat(0, Call(1, 2)), Beat(1, Call(12, 19)), Beat(2, Call(29, 35)), Beat(3, Call(50, 60))]
    seen: dict[str, Any] = {
        "failovers": failovers,
        "names": {1: "a", 2: "b"},
        "beats": beats,
        "pulse": [signaled(number) for number in range(4)],
        "rpo_events": 0,
        "rpo_beats": 0,
    }
    return Travels(**{**seen, **changed}), events


def signaled(number: int) -> HistoryEvent:
    made = event(number + 1, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
    made.workflow_execution_signaled_event_attributes.input.payloads.add(data=str(number).encode())
    return made


def test_good_travels_are_found_good() -> None:
    travels, events = good_travels()
    assert [check.what for check in failover_checks(travels, events) if not check.ok] == []
    assert [longest_wait_s(travels.beats, each) for each in travels.failovers] == [7e-9, 6e-9]
    assert [each.outage_s for each in travels.failovers] == [0.1, 15e-9]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"rpo_events": 1}, "nothing acknowledged was lost with the region"),
        ({"rpo_beats": 1}, "nothing acknowledged was lost with the region"),
        ({"pulse": [signaled(0)]}, "every signal that was acknowledged on the way is there, once"),
        (
            {"pulse": [signaled(number) for number in (0, 1, 2, 3, 3)]},
            "every signal that was acknowledged on the way is there, once",
        ),
        ({"beats": []}, "every signal that was acknowledged on the way is there, once"),
        (
            {"beats": [Beat(0, Call(12, 19, "UNAVAILABLE: no"))]},
            "clients waited for failovers, and got no error",
        ),
        ({"names": {1: "b", 2: "a"}}, "each event was written by the region that served then"),
        ({"failovers": []}, "each event was written by the region that served then"),
    ],
)
def test_travels_that_were_none_are_found(changed: dict[str, Any], what: str) -> None:
    travels, events = good_travels(**changed)
    assert [check.what for check in failover_checks(travels, events) if not check.ok] == [what]


def test_a_signal_that_gave_up_while_no_region_served_is_told_and_no_fault() -> None:
    travels, events = good_travels(beats=[Beat(0, Call(1, 2)), Beat(9, Call(31, 39, "UNAVAILABLE: no"))])
    checks = failover_checks(travels, events)
    assert all(check.ok for check in checks)
    assert "1 gave up" in checks[-1].found


def test_an_event_of_the_wrong_region_and_a_changed_history_are_found() -> None:
    travels, events = good_travels()
    changed = [HistoryEvent.FromString(each.SerializeToString()) for each in events]
    changed[9].version = 1
    broken_ones = [check.what for check in failover_checks(travels, changed) if not check.ok]
    assert broken_ones == ["each event was written by the region that served then"]
    changed[3].event_time.seconds += 1
    broken_ones = [check.what for check in failover_checks(travels, changed) if not check.ok]
    assert "the failover a → b took nothing from the history" in broken_ones


def test_a_step_knows_the_versions_of_its_events() -> None:
    _, events = good_travels()
    assert [step.versions for step in steps_of(events)] == [[1], [1], [1], [1], [1, 2], [101]]


@pytest.mark.parametrize(
    ("frames", "answer"),
    [
        # headers, the message in two frames, trailers
        ([(1, 4, b"\x88"), (0, 0, b"\0\0\0\0\4he"), (0, 0, b"re"), (1, 5, b"\x88")], b"here"),
        ([(1, 5, b"\x88")], None),
        ([(7, 0, b"\0" * 8)], None),
        ([], None),
    ],
    ids=["answered", "refused", "sent away", "cut off"],
)
async def test_one_call_by_hand(frames: list[tuple[int, int, bytes]], answer: bytes | None) -> None:
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += await reader.readuntil(b"a question")
        for kind, flags, payload in frames:
            writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + payload)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await unary(f"127.0.0.1:{port}", b"/a/Method", b"a question") == answer
    assert asked.startswith(b"PRI * HTTP/2.0")
    assert b"/a/Method" in asked
