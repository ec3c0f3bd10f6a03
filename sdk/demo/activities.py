"""The agent's tools: what touches the world. Some cost money (`messages.MODEL_CALLS`), the others are free.

Two things here serve the demo and no agent, and the demo says so: `check` fails at first for some
quotations, and some tools can be held by a file, so that what happens meets them in flight every time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from sdk.demo.documents import Library
from sdk.demo.ledger import Entry, Ledger, State
from sdk.demo.messages import (
    Citation,
    Draft,
    Finding,
    Note,
    Outline,
    Passage,
    Plan,
    Reading,
    Search,
    Source,
    Verdict,
    Writing,
)
from sdk.demo.model import Answer, Model, Refused

PASSAGES_MAX = 8  # of one search
HEADINGS_MAX = 24  # that the model sees before it plans
HELD_CHECK_S = 0.1
HOLD_FOLLOW_UPS = "hold-follow-ups"
HOLD_SOURCES = "hold-sources"
HOLD_RECHECK = "hold-recheck"
HOLD_DELIVER = "hold-deliver"

# Attempts of `check` that the demo makes fail, by the number of the quotation.
CHECKS_FAILING = {1: 2, 2: 1}

Result = TypeVar("Result")


class Tools:
    """The activities, with what they need."""

    def __init__(self, library: Library, model: Model, directory: Path) -> None:
        """`directory` holds the ledger and the files that hold tools."""
        self._library = library
        self._model = model
        self._directory = directory
        self._ledger = Ledger(directory / "ledger.jsonl")

    @activity.defn
    async def plan(self, question: str) -> Plan:
        """Ask the model what to look for, given the headings near the question."""
        near = [passage.heading for passage in self._library.search(question, HEADINGS_MAX)]
        headings = list(dict.fromkeys(heading for heading in near if heading))
        return await self._paid(lambda key: self._model.plan(key, question, headings))

    @activity.defn
    async def retrieve(self, search: Search) -> list[Passage]:
        """Search the documents."""
        if search.may_be_held:
            await self._held_by(HOLD_FOLLOW_UPS)
        return self._library.search(search.query, PASSAGES_MAX, search.not_again)

    @activity.defn
    async def read(self, reading: Reading) -> Note:
        """Ask the model what the passages say."""
        return await self._paid(lambda key: self._model.read(key, reading))

    @activity.defn
    async def outline(self, draft: Draft) -> Outline:
        """Ask the model which findings matter."""
        return await self._paid(lambda key: self._model.outline(key, draft))

    @activity.defn
    async def check(self, citation: Citation) -> Verdict:
        """See whether a quotation is in its document, word for word."""
        if activity.info().attempt <= CHECKS_FAILING.get(citation.number, 0):
            raise ApplicationError("the checking service is busy (the demo makes it so)", type="Unavailable")
        finding = citation.finding
        return Verdict(finding.place, self._library.quotes(finding.document, finding.text))

    @activity.defn
    async def sources(self, names: list[str]) -> list[Source]:
        """Describe the documents of the bibliography."""
        await self._held_by(HOLD_SOURCES)
        known = set(self._library.documents)
        return [self._library.source(name) for name in names if name in known]

    @activity.defn
    async def recheck(self, findings: list[Finding]) -> int:
        """See how many quotations still are as they were: documents may change while a human thinks."""
        await self._held_by(HOLD_RECHECK)
        return sum(self._library.quotes(finding.document, finding.text) for finding in findings)

    @activity.defn
    async def deliver(self, report: str) -> str:
        """Put the report where its readers look. Again and again is as good as once."""
        await self._held_by(HOLD_DELIVER)
        path = self._directory / "report.md"
        path.write_text(report)
        return str(path)

    @activity.defn
    async def write(self, writing: Writing) -> str:
        """Ask the model for the report."""
        return await self._paid(lambda key: self._model.write(key, writing))

    async def _paid(self, call: Callable[[str], Awaitable[Answer[Result]]]) -> Result:
        """Make a model call, with its line in the ledger before and another after it."""
        info = activity.info()
        key = f"{info.workflow_run_id}/{info.activity_id}"
        self._note(key, State.ASKED)
        try:
            answer = await call(key)
        except Refused as refusal:
            self._note(key, State.REFUSED)
            raise ApplicationError(
                str(refusal), type="ModelRefused", non_retryable=not refusal.worth_a_retry
            ) from None
        self._note(key, State.ANSWERED, answer.tokens)
        return answer.value

    def _note(self, key: str, state: State, tokens: int = 0) -> None:
        info = activity.info()
        self._ledger.write(
            Entry(key, info.activity_type, info.attempt, state, self._model.name, os.getpid(), tokens)
        )

    async def _held_by(self, name: str) -> None:
        """Wait, with heartbeats, while the demo holds this tool."""
        while (self._directory / name).exists():
            activity.heartbeat()
            await asyncio.sleep(HELD_CHECK_S)
