"""A node to play with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.cluster.hosting.play import Play


@pytest_asyncio.fixture
async def play() -> AsyncIterator[Play]:
    made = Play()
    yield made
    await made.close()
