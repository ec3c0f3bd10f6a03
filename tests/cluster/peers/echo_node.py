"""A node in a process of its own: prints its port, reads the other's, echoes what it is sent."""

from __future__ import annotations

import asyncio
import random
import sys

import uvloop

from cluster.peers.contract import Identity, Message
from cluster.peers.stream import StreamPeers
from cluster.peers.tcp import TcpNetwork
from tests.cluster.peers.worlds import PATIENT


class Echo:
    peers: StreamPeers

    def message(self, node_id: int, message: Message) -> None:
        self.peers.send(node_id, message)

    def up(self, node_id: int, incarnation: str) -> None:
        """Waits for messages."""

    def down(self, node_id: int) -> None:
        """Waits for up."""


async def main(incarnation: str, port: int) -> None:
    echo = Echo()
    identity = Identity("c", "r", 2, "r/2", incarnation)
    echo.peers = StreamPeers(identity, echo, TcpNetwork(), rng=random.Random(2), limits=PATIENT)
    await echo.peers.start("127.0.0.1", port)
    print(echo.peers.port, flush=True)
    echo.peers.set_peers({1: ("127.0.0.1", int(sys.stdin.readline()))})
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
