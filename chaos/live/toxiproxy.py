"""Real toxiproxy before the nodes, where this machine has it: a slow network, and one that loses bytes.

    TOXIPROXY_SERVER=/path/to/toxiproxy-server, or `toxiproxy-server` on the PATH (Shopify/toxiproxy, 2.x)

It stands between our own proxy, which knows who dials whom, and each node. It knows only who is dialed, so
its faults are those of everything that others send to a node, and of the pings that come back.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, Final

HOST: Final = "127.0.0.1"
SERVER: Final = "TOXIPROXY_SERVER"  # in the environment
START_S: Final = 120.0  # of a busy machine
CALL_S: Final = 60.0
LOOK_S: Final = 0.05
DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of an HTTP proxy

# What is added to a node's proxy in both directions: (kind, attributes).
Toxic = tuple[str, dict[str, int]]
SLOW: Final[tuple[Toxic, ...]] = (
    ("latency", {"latency": 120, "jitter": 40}),
    ("slicer", {"average_size": 600, "size_variation": 300, "delay": 50}),
)
LOSSY: Final[tuple[Toxic, ...]] = (("timeout", {"timeout": 0}),)


def server() -> str:
    """Where the program is; "" if this machine has none."""
    return os.environ.get(SERVER, "") or shutil.which("toxiproxy-server") or ""


class Toxiproxy:
    """One server with a proxy for each node."""

    def __init__(self, program: str, port: int, seed: int) -> None:
        self._program = program
        self._port = port
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, places: dict[str, tuple[int, int]]) -> None:
        """Listen: name -> (port, port of the node). RuntimeError: it does not come up."""
        self._process = await asyncio.create_subprocess_exec(
            self._program, "-host", HOST, "-port", str(self._port), "-seed", str(self._seed),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        until = asyncio.get_running_loop().time() + START_S
        while True:
            try:
                await self._do("GET", "version")
                break
            except OSError:
                if self._process.returncode is not None or asyncio.get_running_loop().time() > until:
                    raise RuntimeError(f"{self._program} does not answer on port {self._port}") from None
            await asyncio.sleep(LOOK_S)
        for name, (port, target) in places.items():
            listen, upstream = f"{HOST}:{port}", f"{HOST}:{target}"
            await self._do("POST", "proxies", name=_name(name), listen=listen, upstream=upstream)

    async def poison(self, node: str, toxics: tuple[Toxic, ...]) -> None:
        """Add these to all that others send to the node."""
        for kind, attributes in toxics:
            for stream in ("upstream", "downstream"):
                await self._do(
                    "POST", f"proxies/{_name(node)}/toxics", name=f"{kind}-{stream}", type=kind,
                    stream=stream, attributes=attributes,
                )  # fmt: skip

    async def heal(self) -> None:
        """No toxics any more."""
        await self._do("POST", "reset")

    async def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()

    async def _do(self, method: str, path: str, **body: object) -> Any:
        return await asyncio.to_thread(self._ask, method, path, body)

    def _ask(self, method: str, path: str, body: dict[str, object]) -> Any:
        request = urllib.request.Request(
            f"http://{HOST}:{self._port}/{path}", json.dumps(body).encode() if body else None, method=method
        )
        try:
            with DIRECT.open(request, timeout=CALL_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"toxiproxy refused {method} {path}: {error.read().decode()}") from None
        return json.loads(text) if text else None


def _name(node: str) -> str:
    """A node's name without what means something in a URL."""
    return node.replace("/", "-")
