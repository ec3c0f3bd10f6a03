"""A worker process that is killed: what it had is another worker's at once, not after a time-out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import worker_death
from benchmarks.raw_client import Connection, connect
from chaos.live.server import Server

pytestmark = pytest.mark.live

# A workflow task's time-out and a sticky queue's are 10 s each; half of that cannot be one of them.
WAIT_MS_MAX = 5_000.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "data.db")
    await made.start()
    yield made
    await made.kill()


@pytest.mark.parametrize("case", [worker_death.held, worker_death.cached])
async def test_the_next_worker_has_the_tasks_at_once(
    server: Server, case: Callable[[str, Connection, int], Awaitable[list[float]]]
) -> None:
    host, _, port = server.address.rpartition(":")
    connection = await connect(host, int(port))
    try:
        waited = await case(server.address, connection, 5)
    finally:
        connection.close()
    assert len(waited) == 5
    assert max(waited) < WAIT_MS_MAX
    assert await server.stop() == 0, server.said()
    assert server.complaints() == []
