"""The loop of simulations: time that nobody waits for, processes that stop and die."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import Any

import pytest

from cluster.peers import virtual_time
from cluster.peers.virtual_time import Stalled, VirtualLoop


def play(scene: Any, seed: int = 1) -> Any:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return await scene(loop)

    return virtual_time.run(main(), random.Random(seed))


def test_an_hour_passes_at_once() -> None:
    async def scene(loop: VirtualLoop) -> float:
        await asyncio.sleep(3000)
        return loop.time()

    assert play(scene) == pytest.approx(3000)


def test_waiting_for_nothing_is_an_error_and_waiting_too_long_a_time_out() -> None:
    async def forever() -> None:
        while True:
            await asyncio.sleep(1)

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop(random.Random(1))
    task = loop.create_task(never())
    with pytest.raises(Stalled):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    with pytest.raises(TimeoutError):
        virtual_time.run(forever(), random.Random(1), limit_s=10)


async def count(loop: VirtualLoop, seen: list[float]) -> None:
    try:
        while True:
            await asyncio.sleep(1.0)
            seen.append(loop.time())
    finally:
        seen.append(-1.0)


def test_a_paused_process_does_nothing_until_it_goes_on() -> None:
    async def scene(loop: VirtualLoop) -> None:
        seen: list[float] = []
        called: list[float] = []
        process = loop.process("p")
        task = process.spawn(count(loop, seen))
        process.call(loop.call_later, 3.0, lambda: called.append(loop.time()))
        await asyncio.sleep(2.5)
        process.pause()
        process.call(loop.call_soon, lambda: called.append(-loop.time()))
        await asyncio.sleep(5)
        assert seen == [1.0, 2.0]
        assert called == []
        process.resume()
        await asyncio.sleep(2.25)
        assert seen == [1.0, 2.0, 7.5, 8.5, 9.5]
        assert called == [-7.5, 7.5], "late timers come when it goes on, in their order"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(scene)


def test_a_dead_process_does_not_even_clean_up() -> None:
    seen: list[float] = []

    async def scene(loop: VirtualLoop) -> None:
        process = loop.process("p")
        process.spawn(count(loop, seen))
        nested = process.call(asyncio.create_task, count(loop, seen))
        killed: list[str] = []
        process.on_kill.append(lambda: killed.append("once"))
        await asyncio.sleep(1.5)
        process.kill()
        process.kill()
        nested.cancel()
        await asyncio.sleep(10)
        assert seen == [1.0, 1.0]
        assert killed == ["once"]

    play(scene)


def test_which_task_goes_first_is_the_seeds_choice() -> None:
    def order(seed: int) -> str:
        async def scene(loop: VirtualLoop) -> str:
            steps: list[str] = []

            async def three(name: str) -> None:
                for _ in range(3):
                    steps.append(name)
                    await asyncio.sleep(0)

            await asyncio.gather(three("a"), three("b"))
            return "".join(steps)

        result: str = play(scene, seed)
        return result

    assert len({order(seed) for seed in range(40)}) > 6  # of the eight that three rounds of two allow
    assert [order(seed) for seed in range(40)] == [order(seed) for seed in range(40)]


STORY = """
import random, sys
from tests.cluster.peers.test_storm import storm
print(storm(random.Random(int(sys.argv[1])), 6.0))
"""


def test_two_processes_with_one_seed_see_the_same() -> None:
    def told(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", STORY, "7"],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return done.stdout

    assert told("1") == told("2")
    assert len(told("1")) > 1000
