"""What the SDK worker of the benchmarks runs: a module of its own, as the SDK's guides have it.

Its sandbox imports the workflow's module anew for every run, so nothing else belongs in it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow


def _start(number: int) -> workflow.ActivityHandle[str]:
    return workflow.start_activity(
        "noop", f"{number}", start_to_close_timeout=timedelta(seconds=60), result_type=str
    )


@workflow.defn
class InSequence:
    """Runs activities one after another."""

    @workflow.run
    async def run(self, count: int) -> str:
        for number in range(count):
            await _start(number)
        return "done"


@workflow.defn
class AtOnce:
    """Runs activities all at the same time."""

    @workflow.run
    async def run(self, count: int) -> str:
        await asyncio.gather(*(_start(number) for number in range(count)))
        return "done"
