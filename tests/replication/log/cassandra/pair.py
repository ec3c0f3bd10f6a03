"""Two regions of one Cassandra, as the suite of the port wants them."""

from __future__ import annotations

import asyncio
import itertools

from replication.log.contract import LogStore

_names = itertools.count()


class CassandraLogs:
    """Two regions of one cluster."""

    def __init__(self, a: LogStore, b: LogStore) -> None:
        self.a = a
        self.b = b

    def name(self, word: str) -> str:
        return f"{word}{next(_names)}"

    async def pause(self) -> None:
        await asyncio.sleep(0.02)
