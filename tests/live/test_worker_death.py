"""A worker process that is killed: what it had is another worker's at once, not after a time-out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import worker_death
from benchmarks.raw_client import Connection, connect
from chaos.live.server import Server

pytestmark = pytest.mark.live

# Half of the time-out that gives the tasks to others in the end cannot be one; less may be a busy machine.
WAIT_MS_MAX = 500.0 * worker_death.TIME_OUT_S


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
