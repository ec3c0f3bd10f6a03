"""The worker process: an unmodified Temporal SDK worker with the agent's workflow and tools.

    python -m sdk.demo.worker --address 127.0.0.1:7233,127.0.0.1:7333 --directory DIR [--offline]

It ends by SIGKILL, in the demo, and otherwise when the process that started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from temporalio.worker import Worker

from sdk import connect
from sdk.demo.activities import Tools
from sdk.demo.documents import Library, project
from sdk.demo.messages import TASK_QUEUE
from sdk.demo.model import choose
from sdk.demo.workflow import Research

STARTER_CHECK_S = 0.5


async def work(
    addresses: list[str], namespace: str, directory: Path, documents: Path | None, offline: bool
) -> None:
    """Poll until the starter is gone."""
    starter = os.getppid()
    library = Library(documents) if documents else project()
    tools = Tools(library, choose(os.environ, offline=offline), directory)
    client = await connect(addresses, namespace=namespace)
    worker = Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[Research],
        activities=[
            tools.plan,
            tools.retrieve,
            tools.read,
            tools.outline,
            tools.check,
            tools.sources,
            tools.recheck,
            tools.write,
            tools.deliver,
        ],
    )
    async with worker:
        while os.getppid() == starter:  # noqa: ASYNC110 - a process's end is no event of this loop
            await asyncio.sleep(STARTER_CHECK_S)
    os._exit(1)


def main() -> None:
    """Read the command line and work."""
    parser = argparse.ArgumentParser(prog="python -m sdk.demo.worker", description="The demo's worker.")
    parser.add_argument("--address", required=True, help="one or several, with commas, nearest first")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--offline", action="store_true")
    given = parser.parse_args()
    asyncio.run(
        work(given.address.split(","), given.namespace, given.directory, given.documents, given.offline)
    )


if __name__ == "__main__":
    main()
