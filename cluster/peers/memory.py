"""A network in memory, for simulations: streams as TCP's, with delay, loss, cuts and crashes from a seed.

It carries bytes, not messages, so that what runs on it is the real thing: frames, handshakes, sessions,
pings. Streams are ordered and lossless while they are up, as TCP's are: a lost packet makes a stream wait, or
breaks it; a cut makes it wait until healed, and goes one way only unless both are cut.

Machines have names, and a name is the host part of an address. What a process does with sockets goes through
its machine's `MemoryHost`. A process that is killed hangs up as the kernel would do for it; a machine that is
switched off says nothing. A process that is paused does not read; its kernel still takes connections, and
bytes as long as it has room for them.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import random
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from cluster.peers.contract import Accepting, Address
from cluster.peers.virtual_time import Process, VirtualLoop

# What the kernels of both sides take before a writer hears of it.
_KERNEL_BYTES: Final = 256 << 10
_SYN_AGAIN_S: Final = 1.0
_RETRANSMIT_S: Final = (0.2, 1.0)
_PORT_FIRST: Final = 40_000

# What travels beside bytes.
_END: Final = b""  # the sender hung up
_RESET: Final = None

# The network is no process: what it does goes on when one is paused or killed.
_NOBODY: Final = contextvars.Context()


class Path:
    """How packets fare from one machine to another; change it at any time."""

    def __init__(self) -> None:
        self.delay_s: tuple[float, float] = (0.0002, 0.001)
        self.bytes_per_s: float = 0.0  # 0: as much as you like
        self.loss: float = 0.0  # the share of writes that need a retransmission
        self.breaks: float = 0.0  # the share of writes at which the connection is reset
        self.cut_since: float | None = None
        self.stalled: list[MemoryTransport] = []  # whose first packet waits for the cut to end


class MemoryNetwork:
    """Everything between the machines. `fragments`: the share of reads that see only a part of what came."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, *, fragments: float = 0.05) -> None:
        self.loop = loop
        self.rng = rng
        self.fragments = fragments
        self._machines: dict[str, _Machine] = {}
        self._paths: dict[tuple[str, str], Path] = {}

    def host(self, name: str, process: Process) -> MemoryHost:
        """The sockets of a process on the machine of this name; its end is their end."""
        machine = self.machine(name)
        assert machine.on, f"machine {name} is switched off"
        host = MemoryHost(self, machine, process)
        process.on_kill.append(host.killed)
        return host

    # ------------------------------------------------------------------ faults

    def path(self, source: str, target: str) -> Path:
        """From one machine to another."""
        path = self._paths.get((source, target))
        if path is None:
            path = self._paths[source, target] = Path()
        return path

    def cut(self, source: str, target: str) -> None:
        """Packets of this direction get lost until healed."""
        path = self.path(source, target)
        if path.cut_since is None:
            path.cut_since = self.loop.time()

    def heal(self, source: str, target: str) -> None:
        """They arrive again: each stream goes on when its sender tries the next time."""
        path = self.path(source, target)
        if path.cut_since is None:
            return
        waited_s = self.loop.time() - path.cut_since
        path.cut_since = None
        stalled, path.stalled = path.stalled, []
        for transport in stalled:
            # Retransmissions back off by doubling: the next is no further away than the cut was long.
            again_s = self.rng.uniform(0.0, min(waited_s, _RETRANSMIT_S[1]))
            self.loop.call_later(again_s, transport.travel, context=_NOBODY)

    def partition(self, *sides: Iterable[str]) -> None:
        """Cut everything between machines of different sides, both ways; heal what is within one."""
        side_of = {name: at for at, side in enumerate(sides) for name in side}
        for source, one in side_of.items():
            for target, other in side_of.items():
                if one != other:
                    self.cut(source, target)
                elif source != target:
                    self.heal(source, target)

    def heal_all(self) -> None:
        """No cut anywhere."""
        for source, target in list(self._paths):
            self.heal(source, target)

    def switch_off(self, name: str) -> None:
        """The machine loses power: its processes die, and nobody is told."""
        machine = self.machine(name)
        machine.on = False
        for host in list(machine.hosts):
            host.process.kill()

    def switch_on(self, name: str) -> None:
        """It boots: processes may be started, and who still sends to old ones is told that they are gone."""
        machine = self.machine(name)
        machine.on = True
        orphans, machine.orphans = machine.orphans, []
        for transport in orphans:
            transport.reset_remote()

    # ------------------------------------------------------------------ for what is below

    def machine(self, name: str) -> _Machine:
        """By name; made when first asked for."""
        machine = self._machines.get(name)
        if machine is None:
            machine = self._machines[name] = _Machine(name)
        return machine

    def delay_s(self, source: str, target: str) -> float:
        """Of one packet."""
        return self.rng.uniform(*self.path(source, target).delay_s)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether packets of this direction get lost."""
        path = self._paths.get((source, target))
        return path is not None and path.cut_since is not None


class _Machine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.on = True
        self.hosts: list[MemoryHost] = []
        self.listeners: dict[int, MemoryListener] = {}
        self.next_port = _PORT_FIRST
        self.orphans: list[MemoryTransport] = []  # whose end went with the power

    def port(self) -> int:
        self.next_port += 1
        return self.next_port


class MemoryListener:
    """contract.Listener."""

    def __init__(self, host: MemoryHost, port: int, accepting: Accepting) -> None:
        self.host = host
        self.port = port
        self._accepting = accepting
        host.machine.listeners[port] = self

    def close(self) -> None:
        """Accept no more. Connections stay."""
        if self.host.machine.listeners.get(self.port) is self:
            del self.host.machine.listeners[self.port]

    def accept(self, transport: MemoryTransport) -> None:
        """In the process that listens: take a connection."""
        protocol = self._accepting()
        if protocol is None:
            transport.abort()
        else:
            transport.begin(protocol)


class MemoryHost:
    """contract.Network, as one process sees it."""

    def __init__(self, network: MemoryNetwork, machine: _Machine, process: Process) -> None:
        self.network = network
        self.machine = machine
        self.process = process
        self.transports: dict[MemoryTransport, None] = {}
        machine.hosts.append(self)

    async def listen(self, host: str, port: int, accepting: Accepting) -> MemoryListener:
        """OSError: the port is taken."""
        assert host in ("", self.machine.name), "a process listens on its own machine"
        if port in self.machine.listeners:
            raise OSError(errno.EADDRINUSE, f"{self.machine.name}:{port} is taken")
        return MemoryListener(self, port or self.machine.port(), accepting)

    async def connect(self, address: Address, protocol: asyncio.BufferedProtocol) -> None:
        """Hangs while packets get lost, as TCP does for minutes. OSError: nobody listens."""
        network = self.network
        here, there = self.machine.name, address[0]
        while True:
            await asyncio.sleep(network.delay_s(here, there))
            machine = network.machine(there)
            if machine.on and not network.is_cut(here, there) and not network.is_cut(there, here):
                break
            await asyncio.sleep(_SYN_AGAIN_S)
        listener = machine.listeners.get(address[1])
        back_s = network.delay_s(there, here)
        if listener is None:
            await asyncio.sleep(back_s)
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on {there}:{address[1]}")
        mine = MemoryTransport(self, address)
        theirs = MemoryTransport(listener.host, (here, self.machine.port()))
        mine.remote, theirs.remote = theirs, mine
        network.loop.call_soon(listener.accept, theirs, context=listener.host.process.context.copy())
        try:
            await asyncio.sleep(back_s)
        except asyncio.CancelledError:
            mine.abort()
            raise
        mine.begin(protocol)

    def killed(self) -> None:
        """The process is dead."""
        self.machine.hosts.remove(self)
        for listener in list(self.machine.listeners.values()):
            if listener.host is self:
                listener.close()
        transports, self.transports = self.transports, {}
        for transport in transports:
            transport.die(silent=not self.machine.on)


class MemoryTransport(asyncio.Transport):
    """One end of a stream: what its process writes, and what has come for it to read."""

    def __init__(self, host: MemoryHost, remote_address: Address) -> None:
        super().__init__({"peername": remote_address})
        self.host = host
        self.network = host.network
        self.remote: MemoryTransport
        self._protocol: Any = None
        self._closing = False
        self._gone = False  # this end is no more; what it wrote may still be under way
        self._high = 64 << 10
        self._writing_paused = False
        # Towards the other end: what, and when it arrives unless something happens.
        self._way: deque[tuple[bytes | None, float]] = deque()
        self._way_bytes = 0
        self._moving = False  # the first has a timer, or waits for a cut to end or for room
        # From the other end, arrived and not read.
        self._inbox: deque[bytes | None] = deque()
        self._inbox_bytes = 0
        self._reading_paused = False
        self._read_soon = False
        host.transports[self] = None

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        """It is connected, and this is who handles it. In its process."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._wake_reader()

    # ------------------------------------------------------------------ asyncio.Transport

    def write(self, data: Any) -> None:
        """Send."""
        if self._closing or self._gone or not data:
            return
        self._send(bytes(data))
        if not self._writing_paused and self.get_write_buffer_size() > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernels have not taken."""
        return max(0, self._way_bytes - _KERNEL_BYTES)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to tell the writer to wait; it may go on below a quarter of it."""
        assert low is None, "a quarter of high"
        self._high = 64 << 10 if high is None else high

    def pause_reading(self) -> None:
        """Leave it in the kernel."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Read on."""
        self._reading_paused = False
        self._wake_reader()

    def is_closing(self) -> bool:
        """Whether this end has hung up."""
        return self._closing or self._gone

    def close(self) -> None:
        """Hang up after what was written."""
        if not self._closing and not self._gone:
            self._closing = True
            self._send(_END)
            self._lose(None)

    def abort(self) -> None:
        """Hang up; what was written and is under way may arrive or not."""
        if not self._gone:
            self._closing = True
            self._hang_up()
            self._lose(None)

    # ------------------------------------------------------------------ the end of it

    def die(self, *, silent: bool) -> None:
        """Its process is dead; `silent`: its machine, too."""
        self._gone = True
        self._inbox.clear()
        self._inbox_bytes = 0
        if silent:
            self._way.clear()
            self.host.machine.orphans.append(self)
        else:
            self._hang_up()

    def reset_remote(self) -> None:
        """The machine is back, and knows of no such connection."""
        self._send(_RESET)

    def _hang_up(self) -> None:
        """A part of what is under way arrives, and then the end."""
        keep = self.network.rng.randint(0, len(self._way))
        while len(self._way) > keep:
            data, _ = self._way.pop()
            self._way_bytes -= len(data or b"")
        self._send(_RESET)

    def _lose(self, error: Exception | None) -> None:
        """This end is gone; tell its protocol."""
        if self._gone:
            return
        self._gone = self._closing = True
        self._inbox.clear()
        self._inbox_bytes = 0
        self.host.transports.pop(self, None)
        if self._protocol is not None:
            context = self.host.process.context.copy()
            self.network.loop.call_soon(self._protocol.connection_lost, error, context=context)

    # ------------------------------------------------------------------ under way

    def _send(self, data: bytes | None) -> None:
        network = self.network
        now = network.loop.time()
        path = network.path(self.host.machine.name, self.remote.host.machine.name)
        due = now + network.rng.uniform(*path.delay_s)
        if path.loss and network.rng.random() < path.loss:
            due += network.rng.uniform(*_RETRANSMIT_S)
        if path.breaks and network.rng.random() < path.breaks:
            network.loop.call_soon(self._broken, context=_NOBODY)
        if self._way:
            due = max(due, self._way[-1][1])
        if path.bytes_per_s and data:
            due += len(data) / path.bytes_per_s
        self._way.append((data, due))
        self._way_bytes += len(data or b"")
        if not self._moving:
            self._moving = True
            network.loop.call_at(due, self.travel, context=_NOBODY)

    def _broken(self) -> None:
        """Something in between has forgotten the connection."""
        for end in (self, self.remote):
            if not end._gone:
                end._hang_up()
                end._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    def travel(self) -> None:
        """The first packet is about to arrive."""
        self._moving = False
        source, target = self.host.machine.name, self.remote.host.machine.name
        path = self.network.path(source, target)
        if not self._way:
            return
        if path.cut_since is not None:
            self._moving = True
            path.stalled.append(self)
            return
        remote = self.remote
        if not remote.host.machine.on:
            return  # nobody will ever answer, until the machine is back
        now = self.network.loop.time()
        while self._way and self._way[0][1] <= now:
            if remote._inbox_bytes > _KERNEL_BYTES:
                return  # the reader wakes us when there is room
            data, _ = self._way.popleft()
            self._way_bytes -= len(data or b"")
            remote._arrived(data)
        if self._way:
            self._moving = True
            self.network.loop.call_at(self._way[0][1], self.travel, context=_NOBODY)
        if self._writing_paused and self.get_write_buffer_size() <= self._high >> 2 and not self._gone:
            self._writing_paused = False
            context = self.host.process.context.copy()
            self.network.loop.call_soon(self._protocol.resume_writing, context=context)

    def _arrived(self, data: bytes | None) -> None:
        if self._gone:
            if data and not self.remote._gone:
                self.remote._send_back_reset()
            return
        self._inbox.append(data)
        self._inbox_bytes += len(data or b"")
        self._wake_reader()

    def _send_back_reset(self) -> None:
        """We sent to an end that is gone."""
        delay_s = self.network.delay_s(self.remote.host.machine.name, self.host.machine.name)
        self.network.loop.call_later(delay_s, self._arrived, _RESET, context=_NOBODY)

    # ------------------------------------------------------------------ reading, in its process

    def _wake_reader(self) -> None:
        if self._protocol is None or self._read_soon or self._reading_paused or not self._inbox:
            return
        self._read_soon = True
        self.network.loop.call_soon(self._read, context=self.host.process.context.copy())

    def _read(self) -> None:
        self._read_soon = False
        rng = self.network.rng
        while self._inbox and not self._gone and not self._reading_paused:
            data = self._inbox.popleft()
            if data is _RESET:
                self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            elif data == _END:
                self._protocol.eof_received()
                self.close()
            else:
                self._inbox.appendleft(data)
                if not self._read_some() or (
                    self.network.fragments and rng.random() < self.network.fragments
                ):
                    break
        self._wake_reader()
        if not self.remote._moving and self.remote._way and self._inbox_bytes <= _KERNEL_BYTES:
            self.remote._moving = True
            self.network.loop.call_soon(self.remote.travel, context=_NOBODY)

    def _read_some(self) -> bool:
        """What has come, as far as there is room for it; sometimes less. Whether the protocol lived."""
        room = memoryview(self._protocol.get_buffer(-1))
        limit = min(len(room), self._inbox_bytes)
        rng = self.network.rng
        if self.network.fragments and rng.random() < self.network.fragments:
            limit = rng.randint(1, limit)
        size = 0
        while size < limit and self._inbox[0]:
            data = self._inbox.popleft()
            assert data, "neither an end nor a reset"
            part = data[: limit - size]
            room[size : size + len(part)] = part
            size += len(part)
            if len(part) < len(data):
                self._inbox.appendleft(data[len(part) :])
        self._inbox_bytes -= size
        try:
            self._protocol.buffer_updated(size)
        except Exception as error:  # noqa: BLE001 - as asyncio: it costs the connection, and is reported
            context = {"message": "buffer_updated failed", "exception": error, "transport": self}
            self.network.loop.call_exception_handler(context)
            self.abort()
            return False
        return True
