"""Temporal's SDKs for Go, TypeScript and Java, unmodified, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.live.server import Server
from tests.compat.sdks import programs

pytestmark = [pytest.mark.live, pytest.mark.timeout(programs.PREPARE_S_MAX + programs.RUN_S_MAX)]

# What every program checks, at least.
EVERYWHERE = frozenset(
    {
        "activity-retry",
        "activity-heartbeat-details",
        "activity-failure",
        "activity-cancel-heartbeat",
        "activity-fan-out",
        "signal-query",
        "signal-with-start",
        "update",
        "update-with-start",
        "child",
        "child-cancel",
        "continue-as-new",
        "timers",
        "local-activity",
        "search-attributes",
        "memo",
        "describe",
        "terminate",
        "time-out",
        "already-started",
        "reset",
        "patch",
        "async-completion",
        "external-workflow",
        "worker-stop",
    }
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "data.db")
    await made.start()
    yield made
    await made.kill()


@pytest.mark.parametrize("language", programs.PROGRAMS)
async def test_everything_a_program_uses(language: str, server: Server) -> None:
    program = programs.PROGRAMS[language]
    try:
        outcomes = await asyncio.to_thread(programs.run, program, server.address)
    except programs.MissingError as missing:
        pytest.skip(f"{language}: {missing}")
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert {outcome.name for outcome in outcomes} >= EVERYWHERE
    assert await server.stop() == 0, server.said()
    assert server.complaints() == []
