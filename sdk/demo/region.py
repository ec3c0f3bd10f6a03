"""Local regions of node processes, by way of the program `holdfast`, and what a node says of a shard.

Nothing here imports the server: regions are started, nodes are killed, and namespaces fail over as a user
would do it at a terminal. Who leads a shard is no business of Temporal's API, so that one question goes to
the server's administration service; it is asked with a few frames of HTTP/2 made by hand, because the SDK's
client makes no calls but Temporal's, and a demo is no reason to depend on a second gRPC library.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdk.testing import command_of_holdfast

ADMINISTRATION = b"/holdfast.admin.v1.AdminService/Do"
ASK_MAX_S = 15.0  # a node that knows no leader looks for one for ten seconds
LOG_TAIL_BYTES = 2000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x7  # types of frames, RFC 9113
END_STREAM, END_HEADERS = 0x1, 0x4
HEADER_BYTES = 9
PREFIX_BYTES = 5  # of a message in gRPC: compressed or not, length


class RegionError(Exception):
    """The region did not do what was asked; says why."""


@dataclass(frozen=True)
class RegionNode:
    """A node of a region."""

    name: str  # like "a/1"
    address: str  # of its gRPC API, host:port
    pid: int


@dataclass(frozen=True)
class Place:
    """Where a workflow is, as one node says."""

    shard: int
    leader: str | None  # node name; None: the one that was asked knows of none
    node: str  # the one that says so
    committed: int | None  # index of the last entry of the shard's log that it knows to be committed


class LocalRegion:
    """`holdfast local up` in a directory of its own; ended by `stop`, and by nothing else."""

    def __init__(
        self,
        directory: Path,
        nodes: int,
        *,
        regions: Sequence[str] = ("a",),
        log: str = "embedded",
        namespace: str = "default",
    ) -> None:
        self._directory = directory
        self._count = nodes
        self._log = log
        self._killing: asyncio.Task[str] | None = None
        self.regions = tuple(regions)
        self.namespace = namespace
        self.nodes: dict[str, RegionNode] = {}

    async def start(self) -> None:
        """Start it and wait until every node serves. RegionError."""
        wanted = ["--nodes", str(self._count)]
        if len(self.regions) > 1:
            wanted += ["--regions", ",".join(self.regions), "--log", self._log]
        topology = json.loads(await self._local("up", *wanted, "--json"))
        self.nodes = {
            node["name"]: RegionNode(node["name"], node["grpc"], node["pid"])
            for region in topology["regions"]
            for node in region["nodes"]
        }

    def of(self, region: str) -> list[str]:
        """The names of a region's nodes."""
        return [name for name in self.nodes if name.startswith(f"{region}/")]

    def addresses(self, region: str) -> list[str]:
        """Where a region's nodes serve."""
        return [self.nodes[name].address for name in self.of(region)]

    async def stop(self, *, delete: bool) -> None:
        """End every node. `delete`: data and logs go, too."""
        if not self._directory.exists():
            return
        with suppress(RegionError):  # nothing to end: it was interrupted before there was anything
            await self._killed()
            await self._local("down", *(["--delete"] if delete else []))

    async def kill(self, name: str) -> int:
        """SIGKILL; the node stays dead. Returns when its process is gone, and that time (ns since 1970)."""
        with _end_of(self.nodes[name].pid) as ended:
            self._killing = asyncio.ensure_future(self._local("kill", name))
            if ended is not None:
                await asyncio.wait((ended, self._killing), return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._killed()
            return time.time_ns()

    async def kill_all(self, region: str) -> int:
        """SIGKILL every node of a region; when the last one is gone (ns since 1970). RegionError."""
        await asyncio.gather(*(self._local("kill", name) for name in self.of(region)))
        return time.time_ns()

    async def restart(self, name: str) -> None:
        """Start a killed node on its data and wait until it serves. RegionError."""
        await self._killed()
        told = json.loads(await self._local("restart", name, "--json"))
        self.nodes[name] = RegionNode(name, self.nodes[name].address, told["pid"])

    async def restart_all(self, region: str) -> None:
        """Start all nodes of a region at once: one alone is no majority, and serves nobody. RegionError."""
        await asyncio.gather(*(self.restart(name) for name in self.of(region)))

    async def indexes(self, region: str) -> dict[int, str]:
        """The regions by the index that versions name them by, as this one says. RegionError."""
        told = await self._holdfast("region", "list", "--json", *self._by(region))
        return {each["index"]: each["name"] for each in json.loads(told)["regions"]}

    async def failover(self, to: str, mode: str, by: str) -> dict[str, Any]:
        """Have the namespace be active in another region; `by` is the region that is asked. RegionError."""
        command = ["namespace", "failover", self.namespace, "--to", to, "--mode", mode, "--yes", "--json"]
        told: dict[str, Any] = json.loads(await self._holdfast(*command, *self._by(by)))
        return told

    async def locate(self, address: str, workflow_id: str, *, here: bool = False) -> Place:
        """Ask a node where a workflow is; the shard's leader answers, or with `here` the node itself.

        RegionError if nobody answers, or nobody leads the shard for `ASK_MAX_S`.
        """
        question = {"do": "locate", "namespace": self.namespace, "workflow": workflow_id, "here": here}
        return Place(**await self._ask(address, question, f"where {workflow_id} is"))

    async def transfer(self, address: str, shard: int, to: str) -> None:
        """Ask that a node lead a shard; `locate` shows when it does. RegionError if it is refused."""
        question = {"do": "transfer", "shard": shard, "to": to}
        await self._ask(address, question, f"that {to} is to lead shard {shard}")

    def log(self) -> str:
        """The end of what every node wrote."""
        tails = []
        for name in self.nodes:
            file = self._directory / name / "node.log"
            text = file.read_text(errors="replace") if file.exists() else ""
            tails.append(f"{name}:\n{text[-LOG_TAIL_BYTES:]}")
        return "\n".join(tails)

    # ------------------------------------------------------------------------------------------ inside

    async def _ask(self, address: str, question: dict[str, Any], what: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ASK_MAX_S):
                answer = await unary(address, ADMINISTRATION, json.dumps(question).encode())
        except (OSError, TimeoutError) as error:
            raise RegionError(f"{address} does not say {what}: {error!r}") from None
        if answer is None:
            raise RegionError(f"{address} does not say {what}")
        told: dict[str, Any] = json.loads(answer)
        return told

    def _by(self, region: str) -> list[str]:
        return ["--address", ",".join(self.addresses(region))]

    async def _killed(self) -> None:
        """Wait until the order to kill has been carried out."""
        if self._killing is not None:
            killing, self._killing = self._killing, None
            await killing

    async def _local(self, *arguments: str) -> str:
        """Run `holdfast local`; what it wrote to stdout. RegionError with what it said otherwise."""
        return await self._holdfast("local", *arguments, "--dir", str(self._directory))

    async def _holdfast(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command_of_holdfast(),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for us: we end what we started, in order
        )
        talk = asyncio.ensure_future(process.communicate())
        try:
            out, said = await asyncio.shield(talk)
        except asyncio.CancelledError:
            await talk  # what has begun is finished, so that `down` finds it whole
            raise
        if process.returncode != 0:
            words = " ".join(arguments[:2])
            raise RegionError(f"holdfast {words}: {said.decode(errors='replace').strip()}")
        return out.decode()


@contextmanager
def _end_of(pid: int) -> Iterator[asyncio.Future[None] | None]:
    """A future that is done when the process ends; None where the system cannot tell."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        yield None
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


# --------------------------------------------------------------------------------------- one gRPC call


async def unary(address: str, path: bytes, message: bytes) -> bytes | None:
    """Make one gRPC call in the clear; the answer, or None if it ended without one. OSError."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(_request(address.encode(), path, message))
        return await _answer(reader)
    except asyncio.IncompleteReadError:
        return None
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _request(authority: bytes, path: bytes, message: bytes) -> bytes:
    # HPACK without tables: 0x83 and 0x86 are the static ":method: POST" and ":scheme: http".
    head = b"\x83\x86" + b"".join(
        _literal(name, value)
        for name, value in (
            (b":path", path),
            (b":authority", authority),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"%dS" % ASK_MAX_S),
        )
    )
    body = struct.pack(">BI", 0, len(message)) + message
    frames = ((SETTINGS, 0, 0, b""), (HEADERS, END_HEADERS, 1, head), (DATA, END_STREAM, 1, body))
    return PREFACE + b"".join(
        len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream) + payload
        for kind, flags, stream, payload in frames
    )


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed; lengths below 127 need no continuation."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


async def _answer(reader: asyncio.StreamReader) -> bytes | None:
    """The message of the response: what its DATA frames hold together. IncompleteReadError."""
    body = b""
    while True:
        head = await reader.readexactly(HEADER_BYTES)
        kind, flags = head[3], head[4]
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == DATA:
            body += payload
        if kind in (RST_STREAM, GOAWAY):
            return None
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            return body[PREFIX_BYTES:] if len(body) >= PREFIX_BYTES else None
