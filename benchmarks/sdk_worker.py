"""A worker of the unmodified Python SDK, a process of its own: arguments ADDRESS, QUEUE and SANDBOX.

`unsandboxed` goes without the SDK's sandbox, in which it imports the workflow's module anew for every run.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner


@activity.defn
async def noop(text: str) -> str:
    """Do nothing."""
    return text


def _start(number: int) -> workflow.ActivityHandle[str]:
    return workflow.start_activity(noop, f"{number}", start_to_close_timeout=timedelta(seconds=60))


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


async def main(address: str, queue: str, sandbox: str = "") -> None:
    """Work until killed; say `ready` when polling has begun."""
    client = await Client.connect(address)
    runner = UnsandboxedWorkflowRunner() if sandbox == "unsandboxed" else SandboxedWorkflowRunner()
    async with Worker(
        client,
        task_queue=queue,
        workflows=[InSequence, AtOnce],
        activities=[noop],
        workflow_runner=runner,
    ):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
