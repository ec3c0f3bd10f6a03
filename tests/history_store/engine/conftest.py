"""A node to play with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.cluster.hosting import mirror
from tests.cluster.hosting.play import Play


@pytest_asyncio.fixture
async def play() -> AsyncIterator[Play]:
    made = Play()
    yield made
    if made.heir is None:
        await mirror.check(made)
    await made.close()
