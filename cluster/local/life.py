"""The life of one supervised node, decided without a clock or a process.

The supervisor tells what happened and when (`now`: seconds of a steady clock); what it has to do comes back
as effects. A node that ends by itself is started again, later each time; one that was killed on request
stays dead until somebody asks for it.

    stopped ──start──► starting ──serves──► running ◄──resume── paused
                          ▲  │                 │  └────pause──────▲
                    due   │  └──ended──► failed ◄──ended──┘
                          └──────────────┘
    starting, running, paused ──kill, stop, restart──► stopping ──ended──► killed, stopped, starting
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

BACKOFF_FIRST_S: Final = 0.25  # after the first death; doubles with each that follows soon
BACKOFF_MAX_S: Final = 10.0
STEADY_S: Final = 30.0  # a node that lived so long was well: its death is the first again
STOP_MAX_S: Final = (
    15.0  # from SIGTERM to SIGKILL; a node drains calls and closes its files in a fraction of it
)
BAD_CONFIG_EXIT: Final = 2  # what `holdfast server start` ends with; trying again cannot help


class Phase(StrEnum):
    """Where in its life a node is."""

    STARTING = "starting"  # a process, not serving yet
    RUNNING = "running"  # it has served
    PAUSED = "paused"  # SIGSTOP
    STOPPING = "stopping"  # was sent a signal and has not ended
    KILLED = "killed"  # ended on request; stays so
    FAILED = "failed"  # ended by itself; starts again at `retry_at`, if it has one
    STOPPED = "stopped"  # never started, or the cluster is down


ALIVE: Final = frozenset({Phase.STARTING, Phase.RUNNING, Phase.PAUSED, Phase.STOPPING})


@dataclass(frozen=True, slots=True)
class Signal:
    """Send this to the process."""

    number: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process, then call `spawned`."""


Effect = Signal | Spawn


class Refused(Exception):
    """A command that makes no sense in this phase; nothing was done. The words say why, `do` what to do."""

    def __init__(self, why: str, do: str) -> None:
        super().__init__(why)
        self.do = do


class Life:
    """One node. Every method that returns effects expects them to be carried out in order."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.phase = Phase.STOPPED
        self.since = now  # when the phase began
        self.pid: int | None = None  # set exactly while there is a process
        self.spawned_at = now
        self.restarts = 0  # times it was started again after it had ended by itself
        self.deaths = 0  # ends by itself in a row, without a steady life in between
        self.exit_code: int | None = None  # of the last process that ended; negative: the signal
        self.retry_at: float | None = None  # only in FAILED; None there = not tried again
        self._deadline: float | None = None  # only in STOPPING: when SIGTERM was not enough
        self._next = Phase.STOPPED  # only in STOPPING: where the end of the process leads
        self._before = Phase.RUNNING  # only in PAUSED: where resuming leads

    @property
    def alive(self) -> bool:
        """There is a process, or there is about to be one."""
        return self.phase in ALIVE

    # -------------------------------------------------------------------------------- what happens to it

    def spawned(self, pid: int, now: float) -> None:
        """The process of the last Spawn exists."""
        assert self.pid is None, "one process at a time"
        self.pid = pid
        self.spawned_at = now

    def serves(self, now: float) -> None:
        """Its health service said SERVING. Late news of a process that is no longer starting is ignored."""
        if self.phase is Phase.STARTING:
            self._enter(Phase.RUNNING, now)

    def ended(self, code: int, now: float) -> list[Effect]:
        """The process is gone; `code` as subprocess has it: negative for a signal."""
        assert self.alive, "what ended was running"
        self.pid = None
        self.exit_code = code
        if self.phase is Phase.STOPPING:
            self._deadline = None
            self._enter(self._next, now)
            return [Spawn()] if self._next is Phase.STARTING else []
        self.deaths = 1 if now - self.spawned_at >= STEADY_S else self.deaths + 1
        self.retry_at = None if code == BAD_CONFIG_EXIT else now + backoff_s(self.deaths)
        self._enter(Phase.FAILED, now)
        return []

    def timer(self) -> float | None:
        """When `due` has to be called, if nothing happens before."""
        return self.retry_at if self.phase is Phase.FAILED else self._deadline

    def due(self, now: float) -> list[Effect]:
        """Time passed: whatever the timer was for, if it is time."""
        at = self.timer()
        if at is None or now < at:
            return []
        if self.phase is Phase.FAILED:
            self.restarts += 1
            return self._start(now)
        self._deadline = None
        return [Signal(signal.SIGKILL)]

    # ------------------------------------------------------------------------------- what is asked of it

    def start(self, now: float) -> list[Effect]:
        """Start it, if there is no process. Its deaths are forgotten: somebody asked."""
        if self.alive:
            raise Refused(f"{self.name} is {self.phase}", "`holdfast local status` shows all nodes")
        self.deaths = 0
        return self._start(now)

    def kill(self, number: int, now: float) -> list[Effect]:
        """End it with this signal, and leave it dead."""
        if self.phase is Phase.FAILED:
            self._enter(Phase.KILLED, now)
            return []
        if not self.alive:
            raise Refused(
                f"{self.name} is {self.phase} already", f"`holdfast local restart {self.name}` starts it"
            )
        return self._stop(number, Phase.KILLED, None, now)

    def pause(self, now: float) -> list[Effect]:
        """Hold it with SIGSTOP: it keeps its connections and answers nothing."""
        if self.phase not in (Phase.STARTING, Phase.RUNNING):
            raise Refused(f"{self.name} is {self.phase}", self._way_out())
        self._before = self.phase
        self._enter(Phase.PAUSED, now)
        return [Signal(signal.SIGSTOP)]

    def resume(self, now: float) -> list[Effect]:
        """Let it go on."""
        if self.phase is not Phase.PAUSED:
            raise Refused(f"{self.name} is {self.phase}, not paused", self._way_out())
        self._enter(self._before, now)
        return [Signal(signal.SIGCONT)]

    def restart(self, now: float) -> list[Effect]:
        """End it gracefully if it lives, and start it again."""
        if not self.alive:
            return self.start(now)
        self.deaths = 0
        return self._stop(signal.SIGTERM, Phase.STARTING, now + STOP_MAX_S, now)

    def stop(self, now: float, stop_max_s: float = STOP_MAX_S) -> list[Effect]:
        """End it gracefully: the cluster goes down."""
        if not self.alive:
            self._enter(Phase.STOPPED, now)
            return []
        return self._stop(signal.SIGTERM, Phase.STOPPED, now + stop_max_s, now)

    # -------------------------------------------------------------------------------------------- inside

    def _start(self, now: float) -> list[Effect]:
        self._enter(Phase.STARTING, now)
        return [Spawn()]

    def _stop(self, number: int, then: Phase, deadline: float | None, now: float) -> list[Effect]:
        paused = self.phase is Phase.PAUSED
        self._next = then
        self._deadline = deadline
        self._enter(Phase.STOPPING, now)
        # A stopped process hears nothing but SIGKILL until it goes on.
        goes_on = [Signal(signal.SIGCONT)] if paused and number != signal.SIGKILL else []
        return [Signal(number), *goes_on]

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self.since = now
        if phase is not Phase.FAILED:
            self.retry_at = None

    def _way_out(self) -> str:
        if self.phase is Phase.PAUSED:
            return f"`holdfast local resume {self.name}` lets it go on"
        if self.phase in (Phase.KILLED, Phase.FAILED, Phase.STOPPED):
            return f"`holdfast local restart {self.name}` starts it"
        return "`holdfast local status` shows all nodes"


def backoff_s(deaths: int) -> float:
    """How long after the n-th death in a row (n >= 1) a node is started again."""
    assert deaths >= 1
    return float(min(BACKOFF_FIRST_S * 2 ** min(deaths - 1, 16), BACKOFF_MAX_S))
