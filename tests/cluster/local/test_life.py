"""The life of a supervised node, event for event, on a clock that the test moves."""

from __future__ import annotations

import random
import signal

import pytest

from cluster.local.life import (
    BAD_CONFIG_EXIT,
    STEADY_S,
    STOP_MAX_S,
    Effect,
    Life,
    Phase,
    Refused,
    Signal,
    Spawn,
    backoff_s,
)

KILL = Signal(signal.SIGKILL)
TERM = Signal(signal.SIGTERM)
STOP = Signal(signal.SIGSTOP)
CONT = Signal(signal.SIGCONT)


def phase_of(life: Life) -> Phase:
    """The phase, without the type checker's belief that it stays."""
    return life.phase


@pytest.fixture
def running() -> Life:
    life = Life("a/1", 0.0)
    assert life.start(0.0) == [Spawn()]
    life.spawned(100, 0.0)
    assert phase_of(life) is Phase.STARTING
    life.serves(1.0)
    assert phase_of(life) is Phase.RUNNING
    return life


def test_one_that_ends_by_itself_is_started_again_later_each_time(running: Life) -> None:
    now, waits = 2.0, []
    for death in range(8):
        assert running.ended(1, now) == []
        assert phase_of(running) is Phase.FAILED
        at = running.timer()
        assert at is not None
        waits.append(at - now)
        assert running.due(at - 0.001) == []
        assert running.due(at) == [Spawn()]
        now = at
        running.spawned(101 + death, now)
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 10, 10]
    assert running.restarts == 8


def test_after_a_steady_life_a_death_is_the_first_again(running: Life) -> None:
    running.ended(1, 2.0)
    at = running.timer()
    assert at is not None
    running.due(at)
    running.spawned(101, at)
    running.ended(-9, at + STEADY_S)
    assert running.timer() == at + STEADY_S + backoff_s(1)


def test_one_whose_configuration_is_wrong_is_not_tried_again(running: Life) -> None:
    running.ended(BAD_CONFIG_EXIT, 2.0)
    assert phase_of(running) is Phase.FAILED
    assert running.timer() is None
    assert running.start(3.0) == [Spawn()]


def test_one_that_was_killed_on_request_stays_dead(running: Life) -> None:
    assert running.kill(signal.SIGKILL, 2.0) == [KILL]
    assert phase_of(running) is Phase.STOPPING
    assert running.ended(-9, 2.1) == []
    assert phase_of(running) is Phase.KILLED
    assert running.timer() is None
    assert running.exit_code == -9
    with pytest.raises(Refused, match="killed already"):
        running.kill(signal.SIGKILL, 3.0)
    assert running.restart(3.0) == [Spawn()]


def test_killing_one_that_waits_to_be_started_keeps_it_from_that(running: Life) -> None:
    running.ended(1, 2.0)
    assert running.kill(signal.SIGKILL, 2.1) == []
    assert phase_of(running) is Phase.KILLED
    assert running.timer() is None


def test_a_paused_one_has_to_go_on_to_hear_sigterm(running: Life) -> None:
    assert running.pause(2.0) == [STOP]
    assert running.kill(signal.SIGTERM, 3.0) == [TERM, CONT]


def test_a_paused_one_is_killed_as_it_is(running: Life) -> None:
    running.pause(2.0)
    assert running.kill(signal.SIGKILL, 3.0) == [KILL]


def test_one_paused_while_it_starts_goes_on_starting(running: Life) -> None:
    running.ended(1, 2.0)
    running.due(3.0)
    running.spawned(101, 3.0)
    running.pause(3.1)
    running.serves(3.2)  # an answer that was under way
    assert phase_of(running) is Phase.PAUSED
    assert running.resume(4.0) == [CONT]
    assert phase_of(running) is Phase.STARTING


def test_pause_and_resume_have_their_time(running: Life) -> None:
    with pytest.raises(Refused, match="running, not paused"):
        running.resume(2.0)
    running.pause(2.0)
    with pytest.raises(Refused, match="is paused") as refused:
        running.pause(2.0)
    assert "resume" in refused.value.do


def test_a_restart_ends_it_first_and_kills_what_does_not_end(running: Life) -> None:
    assert running.restart(10.0) == [TERM]
    assert running.timer() == 10.0 + STOP_MAX_S
    assert running.due(10.0 + STOP_MAX_S) == [KILL]
    assert running.timer() is None
    assert running.ended(-9, 30.0) == [Spawn()]
    assert phase_of(running) is Phase.STARTING
    assert running.restarts == 0, "asked for, not by itself"


def test_a_stop_ends_everything(running: Life) -> None:
    assert running.stop(2.0) == [TERM]
    assert running.ended(0, 2.5) == []
    assert phase_of(running) is Phase.STOPPED
    assert running.stop(3.0) == []


def test_a_stop_overrules_a_restart(running: Life) -> None:
    running.restart(2.0)
    running.stop(3.0)
    assert running.ended(0, 3.1) == []
    assert phase_of(running) is Phase.STOPPED


def test_whatever_happens_the_life_is_consistent(rng: random.Random) -> None:
    """Random events, with a model of the process: one at a time, and no signal goes to nobody."""
    life = Life("a/1", 0.0)
    process: int | None = None
    held = wants_kill = False
    now, pids = 0.0, 0

    def carry_out(effects: list[Effect]) -> None:
        nonlocal process, held, wants_kill, pids
        for effect in effects:
            if isinstance(effect, Spawn):
                assert process is None
                pids += 1
                process, held, wants_kill = pids, False, False
                life.spawned(pids, now)
            else:
                assert process is not None, effect
                held = effect == STOP or (held and effect != CONT)
                wants_kill = wants_kill or effect in (KILL, TERM)

    for _ in range(300):
        now += rng.expovariate(1.0)
        event = rng.choice(
            ["start", "kill", "term", "pause", "resume", "restart", "stop", "end", "serve", "time"]
        )
        try:
            match event:
                case "kill" | "term":
                    carry_out(life.kill(signal.SIGKILL if event == "kill" else signal.SIGTERM, now))
                case "start" | "pause" | "resume" | "restart" | "stop":
                    carry_out(getattr(life, event)(now))
                case "end":
                    if process is not None and (wants_kill or rng.random() < 0.3):
                        process, held, code = None, False, rng.choice([0, 1, -9, BAD_CONFIG_EXIT])
                        carry_out(life.ended(code, now))
                case "serve":
                    if process is not None and not held:
                        life.serves(now)
                case _:
                    carry_out(life.due(now))
        except Refused:
            pass
        assert life.pid == process
        assert life.alive == (process is not None)
        assert held == (life.phase is Phase.PAUSED) or life.phase is Phase.STOPPING
        assert life.retry_at is None or life.phase is Phase.FAILED
        timer = life.timer()
        assert timer is None or life.phase in (Phase.FAILED, Phase.STOPPING)
    carry_out(life.stop(now))
    if process is not None:
        carry_out(life.ended(0, now))
    assert phase_of(life) is Phase.STOPPED
