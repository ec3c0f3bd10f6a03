"""An asyncio event loop without clock and sockets, and processes on it that can be paused and killed.

For simulations: time moves when everybody waits, so an hour of time-outs costs what its callbacks cost, and
the same coroutine takes the same steps in the same order on two loops with the same seed.

A process is a mark in the context (contextvars) of everything that it schedules: tasks, timers and callbacks
inherit it. Pausing one (SIGSTOP) holds back whatever bears its mark, late timers included; killing one
(SIGKILL) drops it, and nothing of it runs any more, `finally` neither.

It touches `_ready`, `_scheduled` and `_run_once` of asyncio's loop; the tests pin what it relies on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import inspect
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, TypeVarTuple

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_PROCESS: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)


class Stalled(AssertionError):
    """Every task waits and no timer is set, or time does not go on: nothing can ever happen again."""


class Process:
    """One process of a simulated machine; made by VirtualLoop.process."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.on_kill: list[Callable[[], None]] = []  # what the rest of the machine does about it
        self._loop = loop
        self._held: list[asyncio.Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []

    def spawn(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """A task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call at once, as this process."""
        return self.context.copy().run(function, *arguments)

    def pause(self) -> None:
        """Nothing of it runs until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """What became due meanwhile runs now: first what came from outside, then timers, each in its order.

        So does a loop that was stopped in its wait: it reads its sockets before it looks at the clock.
        """
        self.paused = False
        held, self._held = self._held, []
        self._loop.ready.extend(handle for handle in held if not isinstance(handle, asyncio.TimerHandle))
        self._loop.ready.extend(handle for handle in held if isinstance(handle, asyncio.TimerHandle))

    def kill(self) -> None:
        """Nothing of it runs any more. Called by itself, it goes on to its next await."""
        if self.dead:
            return
        self.dead = True
        self._held.clear()
        self._loop.bury(self)
        for callback in self.on_kill:
            callback()

    def hold(self, handle: asyncio.Handle) -> None:
        """Instead of running it; for the loop."""
        if not self.dead:
            self._held.append(handle)


class _Handle(asyncio.Handle):
    """Runs if its process does."""

    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_PROCESS)  # type: ignore[attr-defined]
        if process is not None and (process.paused or process.dead):
            process.hold(self)
        else:
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    """Runs if its process does."""

    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_PROCESS)  # type: ignore[attr-defined]
        if process is not None and (process.paused or process.dead):
            process.hold(self)
        else:
            super()._run()


LEFT_S: Final = 60.0  # for what `run` cancels at its end
TURNS_MAX: Final = 200_000  # of the loop without time going on: something runs in circles


class _Idle(selectors.SelectSelector):
    """A selector with nothing to select. Waiting on it is what moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stalled(f"stalled at t={self.now_s:.3f} s")
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Stalled(f"running in circles at t={self.now_s:.3f} s")
        if timeout > 0.0:
            self._turns = 0
            # At least a little: a wait too short for the sum to show it would be waited for for ever.
            self.now_s = max(self.now_s + timeout, math.nextafter(self.now_s, math.inf))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. `rng`: which of several runnable tasks goes first."""

    def __init__(self, rng: random.Random) -> None:
        self._idle = _Idle()
        self._rng = rng
        self._ready: Any
        self._scheduled: Any
        self._of: dict[asyncio.Task[Any], Process] = {}
        self._dead: list[asyncio.Task[Any]] = []
        super().__init__(self._idle)
        self.set_task_factory(_task_of_a_process)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._idle.now_s

    def process(self, name: str) -> Process:
        """A new process; names may repeat."""
        return Process(self, name)

    @property
    def ready(self) -> Any:
        """The handles that run next."""
        return self._ready

    def call_soon(
        self,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """As asyncio's, for a process."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's, for a process."""
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def tasks_of(self, process: Process) -> list[asyncio.Task[Any]]:
        """Those that are not over."""
        return [task for task, owner in self._of.items() if owner is process]

    def adopt(self, task: asyncio.Task[Any], process: Process) -> None:
        """Remember whose it is, for the day it is killed."""
        self._of[task] = process
        task.add_done_callback(lambda done: self._of.pop(done, None) and None)

    def bury(self, process: Process) -> None:
        """Keep the dead's tasks as they are: collected, they would run their `finally`."""
        for task, owner in list(self._of.items()):
            if owner is process:
                del self._of[task]
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self._dead.append(task)

    def close(self) -> None:
        """The end of the world: now nobody sees what the dead still do."""
        for task in self._dead:
            _end(task.get_coro())
        super().close()
        self._ready.clear()
        self._scheduled.clear()

    def _run_once(self) -> None:
        # Which of several runnable tasks goes first is luck in production, so it is the seed's choice here.
        # Plain callbacks keep their places: call_soon promises the order in which they were registered.
        batch = list(self._ready)
        places = [at for at, handle in enumerate(batch) if _wakes_a_task(handle)]
        if len(places) > 1:
            drawn = self._rng.sample([batch[at] for at in places], len(places))
            for at, handle in zip(places, drawn, strict=True):
                batch[at] = handle
            self._ready.clear()
            self._ready.extend(batch)
        super()._run_once()  # type: ignore[misc]


def _end(coroutine: Any) -> None:
    """Close it; and what it was given to await, if it never began: nobody else will."""
    frame = coroutine.cr_frame
    given = (
        list(frame.f_locals.values()) if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED else []
    )
    with contextlib.suppress(BaseException):
        coroutine.close()
    for one in given:
        if inspect.iscoroutine(one):
            _end(one)


def _wakes_a_task(handle: Any) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)


def _task_of_a_process(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    context = options.get("context")
    process = context.get(_PROCESS) if context is not None else _PROCESS.get()
    if process is not None and isinstance(loop, VirtualLoop):
        loop.adopt(task, process)
    return task


def run(main: Coroutine[Any, Any, _Result], rng: random.Random, *, limit_s: float = 3600.0) -> _Result:
    """Run to the end in virtual time, and everything that it left with it. TimeoutError: not over by then."""
    loop = VirtualLoop(rng)
    try:
        return loop.run_until_complete(asyncio.wait_for(main, limit_s))
    finally:
        left = [task for task in asyncio.all_tasks(loop) if task not in loop._dead]
        for task in left:
            task.cancel()
        if left:
            with contextlib.suppress(Stalled):
                loop.run_until_complete(asyncio.wait(left, timeout=LEFT_S))
        loop.close()
