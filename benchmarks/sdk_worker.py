"""A worker of the unmodified Python SDK, a process of its own: arguments ADDRESS, QUEUE and SANDBOX.

`unsandboxed` goes without the SDK's sandbox, in which it imports the workflow's module anew for every run.
"""

from __future__ import annotations

import asyncio
import sys

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from benchmarks.sdk_workflows import AtOnce, InSequence


@activity.defn
async def noop(text: str) -> str:
    """Do nothing."""
    return text


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
