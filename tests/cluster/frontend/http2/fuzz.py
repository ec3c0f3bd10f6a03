"""What a fuzzer drives: one conversation with a connection, and what must hold after any of them.

By hand, guided by coverage, for as long as you like (needs atheris):

    python -m tests.cluster.frontend.http2.fuzz [-max_total_time=600] [corpus directory]
"""

from __future__ import annotations

import asyncio
import sys

from cluster.frontend.contract import Call
from cluster.frontend.http2 import Limits
from tests.cluster.frontend.http2 import wire


def head(path: str) -> bytes:
    """A request head that touches no table, so that it may stand anywhere."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return b"".join(b"\x10" + bytes((len(k),)) + k + bytes((len(v),)) + v for k, v in fields)


async def converse(data: bytes, cuts: list[int]) -> None:
    """Say `data`, cut into pieces of these sizes and a rest; then hang up."""
    open_calls: list[Call] = []

    def opened(call: Call) -> None:
        def over() -> None:
            open_calls.remove(call)

        open_calls.append(call)
        call.on_cancel = over

    async def task(call: Call) -> bytes:
        await asyncio.sleep(0)
        return call.request

    def chat(call: Call) -> None:
        call.on_message = lambda m: call.finish(b"") if m is None else call.write(m)

    limits = Limits(connection_bytes_max=200_000, total_bytes_max=400_000)
    methods = {
        "Echo": lambda call: call.request,
        "Park": opened,
        "Task": task,
        "Chat": chat,
        "Big": lambda call: bytes(100_000),
    }
    peer = wire.Peer(methods, {"Chat"}, limits=limits, greet=False)  # type: ignore[arg-type]
    position = 0
    for size in (*cuts, len(data)):
        peer.send(data[position : position + size])
        position += size
        assert peer.connection.held >= 0
        assert peer.connection.held <= 200_000 + (1 << 17)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    peer.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert peer.connection.closed
    assert not open_calls, "a parked call was not told of its end"
    assert peer.connection.held == peer.front.held == 0
    assert peer.front._accepted_total == 0
    leftover = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    assert not leftover, leftover


def main() -> None:
    import atheris

    atheris.instrument_all()

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        cuts = [provider.ConsumeIntInRange(1, 60) for _ in range(3)]
        opening = wire.PREFACE + wire.settings() if provider.ConsumeBool() else b""
        asyncio.run(converse(opening + provider.ConsumeBytes(1 << 16), cuts))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
