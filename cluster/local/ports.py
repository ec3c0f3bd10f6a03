"""Free ports of loopback that stay free while their node is down.

The kernel's ephemeral range is avoided: a port from it may become the local end of somebody's connection
between a node's death and its restart. The search begins at a random place, so that clusters that are planned
at the same time do not choose the same ports.
"""

from __future__ import annotations

import random
import socket
from typing import Final

FIRST: Final = 15000
LAST: Final = 32000  # Linux's ephemeral ports begin at 32768, those of others at 49152


def free_ports(count: int, rng: random.Random) -> list[int]:
    """So many ports that nobody listens on, in one row if possible. OSError if there are not so many."""
    found: list[int] = []
    start = rng.randrange(FIRST, LAST - 10 * count)
    for port in [*range(start, LAST), *range(FIRST, start)]:
        if is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports from {FIRST} to {LAST}")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: a connection of a former server that lingers is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
