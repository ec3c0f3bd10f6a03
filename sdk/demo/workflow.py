"""The agent: plan, research in parallel, check the quotations, ask a human, write the report.

An ordinary workflow of Temporal's Python SDK. It holds no code for crashes: whatever dies, the next
worker replays the history up to here and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from sdk.demo.activities import Tools
    from sdk.demo.messages import (
        WORKFLOW_TYPE,
        Approval,
        Citation,
        Draft,
        Note,
        Outline,
        Passage,
        Plan,
        Progress,
        Reading,
        Report,
        Search,
        Verdict,
        Writing,
    )

MODEL_CALL_MAX = timedelta(seconds=90)  # a slow endpoint, a long answer
MODEL_CALL_RETRIES = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=4)

# A search may take long, so it heartbeats: that tells a slow one from one whose worker died.
SEARCH_MAX = timedelta(seconds=60)
HEARTBEAT_MAX = timedelta(seconds=2)
TOOL_MAX = timedelta(minutes=5)  # a document may be on a slow disk; and the demo holds some tools
TOOL_RETRIES = RetryPolicy(initial_interval=timedelta(milliseconds=250), backoff_coefficient=2.0)

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@workflow.defn(name=WORKFLOW_TYPE)
class Research:
    """One question, one run."""

    def __init__(self) -> None:
        self._stage = "planning"
        self._plan = Plan([])
        self._outline = Outline([])
        self._verdicts: list[Verdict] = []
        self._approval: Approval | None = None

    @workflow.run
    async def run(self, question: str) -> Report:
        """Answer the question from the documents."""
        self._plan = await model_call(Tools.plan, question, "plan")

        self._stage = "researching"
        researched = await asyncio.gather(
            *(
                self._pursue(question, query, number)
                for number, query in enumerate(self._plan.queries, start=1)
            )
        )
        notes = [note for note, _ in researched]
        more = [passage for _, passages in researched for passage in passages]
        self._outline = await model_call(Tools.outline, Draft(question, notes, more), "outline")

        self._stage = "checking"
        self._verdicts = list(
            await asyncio.gather(
                *(
                    tool(Tools.check, Citation(number, finding), f"check-{number}")
                    for number, finding in enumerate(self._outline.findings, start=1)
                )
            )
        )

        self._stage = "waiting for approval"
        await workflow.wait_condition(lambda: self._approval is not None)
        assert self._approval is not None

        self._stage = "writing"
        names = list(dict.fromkeys(each.document for each in self._outline.findings))
        sources = await tool(Tools.sources, names, "sources")
        if not self._approval.granted:
            self._stage = "done"
            refused = f"Not approved by {self._approval.by}; no report."
            return Report(False, refused, self._outline.findings, sources)
        await tool(Tools.recheck, self._outline.findings, "recheck")
        writing = Writing(question, self._outline, self._verdicts, sources)
        text = await model_call(Tools.write, writing, "write")
        await tool(Tools.deliver, text, "deliver")
        self._stage = "done"
        return Report(True, text, self._outline.findings, sources)

    @workflow.signal
    def approve(self, approval: Approval) -> None:
        """The human's word; the first one counts."""
        if self._approval is None:
            self._approval = approval

    @workflow.query
    def progress(self) -> Progress:
        """Where the agent is, and what it would like to have approved."""
        return Progress(self._stage, self._plan.queries, self._outline.findings, self._verdicts)

    async def _pursue(self, question: str, query: str, number: int) -> tuple[Note, list[Passage]]:
        """Search, read, and search once more for what reading brought up."""
        passages = await retrieve(Search(query), f"retrieve-{number}")
        note = await model_call(Tools.read, Reading(question, query, passages), f"read-{number}")
        seen = [passage.place for passage in passages]
        again = Search(note.follow_up, seen, may_be_held=True)
        return note, await retrieve(again, f"follow-up-{number}")


async def retrieve(search: Search, name: str) -> list[Passage]:
    """Search the documents; free, and repeated soon after its worker died."""
    return await workflow.execute_activity_method(
        Tools.retrieve,
        search,
        activity_id=name,
        start_to_close_timeout=SEARCH_MAX,
        heartbeat_timeout=HEARTBEAT_MAX,
        retry_policy=TOOL_RETRIES,
    )


async def tool(
    method: Callable[[Tools, Argument], Awaitable[Result]], argument: Argument, name: str
) -> Result:
    """Run another tool; free, and repeated until it succeeds."""
    return await workflow.execute_activity_method(
        method, argument, activity_id=name, start_to_close_timeout=TOOL_MAX, retry_policy=TOOL_RETRIES
    )


async def model_call(
    method: Callable[[Tools, Argument], Awaitable[Result]], argument: Argument, name: str
) -> Result:
    """Ask the model. The name becomes the activity's id, and so part of the call's idempotency key."""
    return await workflow.execute_activity_method(
        method,
        argument,
        activity_id=name,
        start_to_close_timeout=MODEL_CALL_MAX,
        retry_policy=MODEL_CALL_RETRIES,
    )
