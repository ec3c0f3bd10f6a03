"""Time for tests of the log: it stands still until nobody has anything to do, then jumps ahead."""

import asyncio
import heapq
import itertools


class Timeline:
    """Milliseconds. Coroutines that wait for anything else than `sleep` are not expected."""

    def __init__(self) -> None:
        self.time = 0
        self._order = itertools.count()
        self._alarms: list[tuple[int, int, asyncio.Future[None]]] = []

    def now(self) -> int:
        return self.time

    async def sleep(self, milliseconds: int) -> None:
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._alarms, (self.time + milliseconds, next(self._order), alarm))
        await alarm

    async def run(self, until: int) -> None:
        """Let time pass, until `until`."""
        await self._let_run()
        while self._alarms and self._alarms[0][0] <= until:
            self.time, _, alarm = heapq.heappop(self._alarms)
            if not alarm.done():
                alarm.set_result(None)
                await self._let_run()
        self.time = until

    async def _let_run(self) -> None:
        # What an alarm wakes takes a few turns of the loop to come to its next sleep: one a nested task.
        for _ in range(6):
            await asyncio.sleep(0)
