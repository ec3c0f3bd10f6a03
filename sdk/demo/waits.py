"""What clients notice of a node's death: unmodified SDK clients that ask about a run again and again.

Each client is connected to one node, and asks for the run's description; only the leader of the run's shard
can answer that. The SDK's own retries are on, as they are by default: what it hides from an application is
not counted as an error here either, but the time that it takes is counted as waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from temporalio.client import Client
from temporalio.service import RPCError

PAUSE_S = 0.01  # between a client's calls


@dataclass(frozen=True)
class Call:
    """One call, as its client saw it."""

    began_ns: int  # since 1970
    ended_ns: int
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long the client waited."""
        return (self.ended_ns - self.began_ns) / 1e9


class Waits:
    """Calls until `stop`."""

    def __init__(self, clients: Sequence[Client], workflow_id: str) -> None:
        self._clients = clients
        self._workflow_id = workflow_id
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.calls: list[Call] = []

    async def start(self) -> None:
        """Begin; every client's first call has been answered when this returns. RPCError."""
        for client in self._clients:
            await client.get_workflow_handle(self._workflow_id).describe()
        self._tasks = [asyncio.ensure_future(self._ask(client)) for client in self._clients]

    async def stop(self) -> list[Call]:
        """Let every client's last call end; all calls."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        return self.calls

    def cancel(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self, client: Client) -> None:
        handle = client.get_workflow_handle(self._workflow_id)
        while not self._stopping:
            began, error = time.time_ns(), ""
            try:
                await handle.describe()
            except RPCError as failed:
                error = f"{failed.status.name}: {failed.message}"
            self.calls.append(Call(began, time.time_ns(), error))
            await asyncio.sleep(PAUSE_S)
