"""A peer that is a real process: stopped, resumed, killed, restarted."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import uvloop

from tests.cluster.peers.worlds import PATIENT, SocketWorld

REPO = Path(__file__).parents[3]


class Child:
    """Node 2."""

    @classmethod
    async def start(cls, incarnation: str, port: int, of: int) -> Child:
        child = cls()
        child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.peers.echo_node", incarnation, str(port), cwd=REPO,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        child.port = int(await child.process.stdout.readline())
        child.process.stdin.write(f"{of}\n".encode())
        return child

    process: asyncio.subprocess.Process
    port: int

    async def kill(self) -> None:
        self.process.kill()
        await self.process.communicate()


def test_stopped_resumed_killed_and_restarted() -> None:
    async def main() -> None:
        world = SocketWorld(random.Random(1), None)
        world.limits = PATIENT
        one = await world.start(1)
        child = await Child.start("first", 0, one.peers.port)
        try:
            one.peers.set_peers({2: ("127.0.0.1", child.port)})
            await world.until(lambda: one.peers.is_up(2))
            assert one.peers.send(2, [1, b"x" * 100_000])
            await world.until(lambda: one.messages(2) == [[1, b"x" * 100_000]])
            loop = asyncio.get_running_loop()

            child.process.send_signal(signal.SIGSTOP)
            began = loop.time()
            assert one.peers.send(2, [2])
            await world.until(lambda: not one.peers.is_up(2))
            assert PATIENT.dead_s * 0.8 < loop.time() - began
            await asyncio.sleep(PATIENT.handshake_s * 2)
            child.process.send_signal(signal.SIGCONT)
            await world.until(lambda: one.peers.send(2, [3]) and [3] in one.messages(2))

            await asyncio.sleep(PATIENT.dead_s)  # what was tried while it was stopped has passed
            await world.until(lambda: one.peers.is_up(2))
            await child.kill()
            await world.until(lambda: not one.peers.is_up(2))
            assert "nothing was heard" not in one.peers.states()[0].problem, "the kernel says so at once"
            child = await Child.start("second", child.port, one.peers.port)
            await world.until(lambda: one.peers.is_up(2))
            assert one.events[-1] == ("up", 2, "second")
        finally:
            await child.kill()
            await world.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
