"""Stands in for the dev server: every connection to the port it is told leads to a node of a region.

The suite starts this as it would start Temporal's server; the runner has started the region
(`--region 3`), and names its nodes in `HOLDFAST_COMPAT_NODES`. Connections go to one node after the other,
each process beginning with another one. A server that is wanted with other settings than the region's (a
data file, namespaces, limits), or beside another one, is a dev server of its own, as without a region.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import IO, Any

NODES = "HOLDFAST_COMPAT_NODES"  # host:port, separated by commas
SETTINGS = "HOLDFAST_COMPAT_SETTINGS"  # what the region was started with, one a line
PROGRAM = "HOLDFAST_COMPAT_PROGRAM"
READ_BYTES = 1 << 18
# With an argument, and of no meaning to a region that runs.
WITH_ARGUMENT = frozenset(("--port", "--ip", "--log-level", "--log-format", "--ui-port", "--namespace"))
# What the SDK's core library adds of its own accord.
OF_THE_SDK = frozenset(
    (
        "frontend.enableServerVersionCheck=false",
        "frontend.enableUpdateWorkflowExecution=true",
        "frontend.enableUpdateWorkflowExecutionAsyncAccepted=true",
    )
)
WITHOUT = frozenset(("--headless",))
_HELD: list[IO[Any]] = []


def port_of(arguments: list[str], settings: set[str]) -> int:
    """Where a way to the region is wanted; 0: a server with settings of its own is."""
    if arguments[:2] != ["server", "start-dev"]:
        return 0
    port, rest = 0, iter(arguments[2:])
    for flag in rest:
        if flag in WITHOUT:
            continue
        value = next(rest, "")
        if flag == "--port":
            port = int(value)
        fits = flag in WITH_ARGUMENT and (flag != "--namespace" or value == "default")
        if not fits and not (flag == "--dynamic-config-value" and value in settings | OF_THE_SDK):
            return 0
    return port


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything that comes goes on, the end too."""
    try:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def opened(port: int, nodes: list[str]) -> asyncio.Server:
    """A door that already listens; port 0: any that is free."""
    turn = cycle(nodes)
    for _ in range(os.getpid() % len(nodes)):
        next(turn)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in nodes:
            host, _, number = next(turn).rpartition(":")
            try:
                to_reader, to_writer = await asyncio.open_connection(host, int(number))
            except OSError:
                continue  # it is not there: the next one
            await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
            return
        writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port)


async def serve(port: int, nodes: list[str]) -> None:
    """Until the process is ended."""
    door = await opened(port, nodes)
    await door.serve_forever()


def is_first() -> bool:
    """Whether this is the only server that runs for the process that started it.

    One more beside it is meant to be another server, and not another way to the same region.
    """
    # Held for as long as this process lives; whoever comes later leaves the file as it is.
    mine = (Path(tempfile.gettempdir()) / f"holdfast-compat-{os.getppid()}.lock").open("a")
    try:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        mine.close()
        return False
    _HELD.append(mine)
    return True


def main() -> None:
    """Serve the region, or become a dev server."""
    arguments = sys.argv[1:]
    port = port_of(arguments, set(os.environ[SETTINGS].splitlines()))
    if not port or not is_first():
        program = os.environ[PROGRAM]
        os.execv(program, [program, *arguments])
    asyncio.run(serve(port, os.environ[NODES].split(",")))


if __name__ == "__main__":
    main()
