"""What every front promises its handlers and its clients, asked of each by a real grpcio client."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2

from cluster.frontend.contract import Call, Handler
from cluster.frontend.grpcio_front import GrpcioFront
from cluster.frontend.http2 import Http2Front, Limits
from history_store.engine.errors import Code, Indefinite, ServiceError, failed_precondition

MIB = 1 << 20
Serve = Callable[..., Awaitable[grpc.aio.Channel]]


@pytest.fixture(params=["http2", "grpcio"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    closing: list[Any] = []

    async def start(
        methods: dict[str, Handler], streaming: set[str] = frozenset(), limits: Limits | None = None
    ) -> grpc.aio.Channel:
        kind = Http2Front if request.param == "http2" else GrpcioFront
        front = kind(
            {f"/t.T/{name}": h for name, h in methods.items()},
            {f"/t.T/{s}" for s in streaming},
            limits=limits,
        )
        await front.start("127.0.0.1", 0)
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{front.port}",
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        channel.front = front
        closing.append((channel, front))
        return channel

    yield start
    for channel, front in closing:
        await channel.close()
        await front.drain(1)


def unary(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.unary_unary(f"/t.T/{name}")


async def refused(call: Awaitable[bytes]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_the_three_ways_to_answer(serve: Serve) -> None:
    def plain(call: Call) -> bytes:
        return b"plain " + call.request

    async def coroutine(call: Call) -> bytes:
        async with asyncio.timeout(60):  # needs a current task, from the first line on
            await asyncio.sleep(0)
        return b"coroutine " + call.request

    def later(call: Call) -> None:
        asyncio.get_running_loop().call_soon(call.finish, b"later " + call.request)

    channel = await serve({"Plain": plain, "Coroutine": coroutine, "Later": later})
    assert await unary(channel, "Plain")(b"1") == b"plain 1"
    assert await unary(channel, "Coroutine")(b"2") == b"coroutine 2"
    assert await unary(channel, "Later")(b"3") == b"later 3"
    assert await unary(channel, "Plain")(b"") == b"plain "


async def test_only_the_first_answer_counts(serve: Serve) -> None:
    def eager(call: Call) -> None:
        call.finish(b"first")
        assert call.done
        call.finish(b"second")
        call.fail(Code.INTERNAL, "third")

    assert await unary(await serve({"M": eager}), "M")(b"") == b"first"


async def test_service_errors_are_statuses_with_details(serve: Serve) -> None:
    detail = error_details_pb2.ErrorInfo(reason="R", domain="d")

    def refuse(call: Call) -> bytes:
        raise failed_precondition("nicht möglich: 100% \u20ac\n", detail)

    async def refuse_later(call: Call) -> bytes:
        await asyncio.sleep(0)
        raise ServiceError(Code.NOT_FOUND, "gone")

    def unsure(call: Call) -> None:
        raise Indefinite("the leader was lost")

    channel = await serve({"Refuse": refuse, "Later": refuse_later, "Unsure": unsure})
    error = await refused(unary(channel, "Refuse")(b""))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "nicht möglich: 100% \u20ac\n"
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (9, error.details())
    unpacked = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(unpacked)
    assert unpacked == detail

    error = await refused(unary(channel, "Later")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert "grpc-status-details-bin" not in dict(error.trailing_metadata())
    error = await refused(unary(channel, "Unsure")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the leader was lost")


async def test_other_exceptions_are_internal_and_logged(serve: Serve) -> None:
    def broken(call: Call) -> bytes:
        raise KeyError("secret")

    async def broken_later(call: Call) -> bytes:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    def wrong(call: Call) -> Any:
        return "text"

    channel = await serve({"Broken": broken, "Later": broken_later, "Wrong": wrong})
    with structlog.testing.capture_logs() as logs:
        for name, text in (("Broken", "KeyError"), ("Later", "ZeroDivisionError"), ("Wrong", "TypeError")):
            error = await refused(unary(channel, name)(b""))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error.details() == f"internal error: {text}"
    assert [(entry["event"], entry["method"]) for entry in logs] == [
        ("handler failed", "/t.T/Broken"),
        ("handler failed", "/t.T/Later"),
        ("handler failed", "/t.T/Wrong"),
    ]
    assert all(isinstance(entry["exc_info"], Exception) for entry in logs)


async def test_unknown_method(serve: Serve) -> None:
    error = await refused(unary(await serve({}), "Nope")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "unknown method /t.T/Nope")


async def test_what_a_call_knows(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    def look(call: Call) -> bytes:
        seen.update(call.metadata)
        seen.update(
            method=call.method,
            deadline=call.deadline,
            peer=call.connection.peer,
            now=asyncio.get_running_loop().time(),
        )
        call.set_metadata(initial=[("x-first", "1")], trailing=[("x-last", "2"), ("x-raw-bin", b"\0\xff")])
        return b""

    channel = await serve({"M": look})
    metadata = (("x-text", "a b"), ("x-twice", "1"), ("x-twice", "2"), ("x-raw-bin", b"\x00\x01\xff"))
    call = unary(channel, "M")(b"", timeout=600, metadata=metadata)
    await call
    assert (seen["x-text"], seen["x-twice"], seen["x-raw-bin"]) == ("a b", "1,2", b"\x00\x01\xff")
    assert seen["method"] == "/t.T/M"
    # gRPC sends a long time-out in whole units, rounded up: now and then 601 seconds for 600.
    assert 300 < seen["deadline"] - seen["now"] <= 601.1
    assert seen["peer"].startswith("127.0.0.1:")
    assert not {"te", "content-type", "grpc-timeout", "grpc-encoding"} & seen.keys()
    assert dict(await call.initial_metadata())["x-first"] == "1"
    trailing = dict(await call.trailing_metadata())
    assert (trailing["x-last"], trailing["x-raw-bin"]) == ("2", b"\0\xff")
    await unary(channel, "M")(b"")
    assert seen["deadline"] is None


@pytest.mark.parametrize(
    "pair", [("x-a", "1\r\nx-evil: 2"), ("X-A", "1"), ("a b", "1"), ("grpc-status", "0"), ("x-a", b"raw")]
)
async def test_metadata_that_grpc_forbids_is_refused(serve: Serve, pair: tuple[str, Any]) -> None:
    def smuggle(call: Call) -> bytes:
        with pytest.raises(ValueError, match="metadata"):
            call.set_metadata(trailing=[pair])
        return b"refused"

    assert await unary(await serve({"M": smuggle}), "M")(b"") == b"refused"


async def test_a_deadline_ends_the_call_and_tells_the_handler(serve: Serve) -> None:
    arrived, told = asyncio.Event(), asyncio.Event()

    def parked(call: Call) -> None:
        arrived.set()
        call.on_cancel = told.set

    async def waiting(call: Call) -> bytes:
        arrived.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            told.set()
            raise
        return b""

    channel = await serve({"Parked": parked, "Waiting": waiting})
    for name in ("Parked", "Waiting"):
        arrived.clear()
        told.clear()
        timeout = 0.05
        while not arrived.is_set():  # a busy machine may not even have sent it by then
            error = await refused(unary(channel, name)(b"", timeout=timeout))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            timeout *= 2
        await asyncio.wait_for(told.wait(), 60)


async def test_cancellation_tells_the_handler(serve: Serve) -> None:
    started, told = asyncio.Event(), asyncio.Event()
    calls: list[Call] = []

    def parked(call: Call) -> None:
        calls.append(call)
        call.on_cancel = told.set
        started.set()

    call = unary(await serve({"M": parked}), "M")(b"")
    await asyncio.wait_for(started.wait(), 60)
    assert not calls[0].done
    call.cancel()
    await asyncio.wait_for(told.wait(), 60)
    assert calls[0].done
    calls[0].finish(b"nobody listens")


@pytest.mark.parametrize("end", ["finish", "finish with megabytes", "fail", "cancel", "deadline"])
async def test_a_call_that_is_done_holds_nothing(serve: Serve, end: str) -> None:
    """What waits for its end mostly holds the call, and that its request: the collector may be far away."""

    class Waiter:
        """Of a parked call."""

    async def gone(waiter: weakref.ref[Waiter]) -> None:
        while waiter() is not None:
            await asyncio.sleep(0.001)

    parked: asyncio.Queue[tuple[Call, weakref.ref[Waiter]]] = asyncio.Queue()

    def park(call: Call) -> None:
        waiter = Waiter()
        call.on_cancel = partial(lambda *_: None, waiter, call)
        parked.put_nowait((call, weakref.ref(waiter)))

    channel = await serve({"M": park})
    gc.collect()
    gc.disable()
    try:
        answer = unary(channel, "M")(bytes(100_000), timeout=0.5 if end == "deadline" else None)
        call, waiter = await asyncio.wait_for(parked.get(), 60)
        assert waiter() is not None
        if end == "cancel":
            answer.cancel()
        elif end == "fail":
            call.fail(int(Code.NOT_FOUND), "no")
        elif end != "deadline":
            call.finish(bytes(3 * MIB if end == "finish with megabytes" else 3))
        del call
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await answer
        await asyncio.wait_for(gone(waiter), 60)
    finally:
        gc.enable()


async def test_big_messages(serve: Serve) -> None:
    channel = await serve({"Echo": lambda call: call.request, "Size": lambda call: b"%d" % len(call.request)})
    body = bytes(range(256)) * (24 * MIB // 256)
    assert await unary(channel, "Echo")(body) == body
    assert await unary(channel, "Size")(bytes(64 * MIB)) == b"%d" % (64 * MIB)
    error = await refused(unary(channel, "Size")(bytes(64 * MIB + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "67108865 vs. 67108864" in error.details()


async def test_the_message_limit_is_an_option(serve: Serve) -> None:
    channel = await serve(
        {"Echo": lambda call: call.request, "Big": lambda call: bytes(20_001)},
        limits=Limits(message_bytes_max=20_000),
    )
    assert len(await unary(channel, "Echo")(bytes(20_000))) == 20_000
    for name, size in (("Echo", 20_001), ("Big", 0)):
        error = await refused(unary(channel, name)(bytes(size)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "20001 vs. 20000" in error.details()


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
@pytest.mark.parametrize("size", [10, 5000, 300_000, 3 * MIB])
async def test_compressed_requests_and_responses(
    serve: Serve, size: int, compression: grpc.Compression
) -> None:
    channel = await serve({"Echo": lambda call: call.request})
    body = (b"compressible " * (size // 13 + 1))[:size]
    assert await unary(channel, "Echo")(body, compression=compression) == body


async def test_a_gzip_bomb_is_refused(serve: Serve) -> None:
    channel = await serve(
        {"Size": lambda call: b"%d" % len(call.request)}, limits=Limits(message_bytes_max=MIB)
    )
    error = await refused(unary(channel, "Size")(bytes(8 * MIB), compression=grpc.Compression.Gzip))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_server_stream(serve: Serve) -> None:
    def count(call: Call) -> None:
        for number in range(int(call.request)):
            call.write(b"%d" % number * 30_000)
        call.finish(b"")

    async def count_and_fail(call: Call) -> None:
        call.write(b"one")
        await asyncio.sleep(0)
        raise ServiceError(Code.ABORTED, "enough")

    channel = await serve({"Count": count, "Fail": count_and_fail}, {"Count", "Fail"})
    messages = [message async for message in channel.unary_stream("/t.T/Count")(b"9")]
    assert messages == [b"%d" % number * 30_000 for number in range(9)]
    assert [m async for m in channel.unary_stream("/t.T/Count")(b"0")] == []
    failing = channel.unary_stream("/t.T/Fail")(b"")
    assert await failing.read() == b"one"
    error = await refused(failing.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "enough")


async def test_a_stream_both_ways(serve: Serve) -> None:
    def chat(call: Call) -> None:
        def answer(message: bytes | None) -> None:
            if message is None:
                call.finish(b"")
            else:
                call.write(b"re: " + message)

        call.on_message = answer
        answer(call.request)

    stream = (await serve({"Chat": chat}, {"Chat"})).stream_stream("/t.T/Chat")()
    for text in (b"one", b"two", b"three" * 20_000):
        await stream.write(text)
        assert await stream.read() == b"re: " + text
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_watcher_that_goes_away_is_told_to_the_handler(serve: Serve) -> None:
    told = asyncio.Event()

    def watch(call: Call) -> None:
        call.on_cancel = told.set
        call.write(b"now")

    stream = (await serve({"Watch": watch}, {"Watch"})).unary_stream("/t.T/Watch")(b"")
    assert await stream.read() == b"now"
    stream.cancel()
    await asyncio.wait_for(told.wait(), 60)


async def test_many_calls_at_once(serve: Serve) -> None:
    parked: list[Call] = []
    all_here = asyncio.Event()

    def park(call: Call) -> None:
        parked.append(call)
        if len(parked) == 900:
            all_here.set()

    channel = await serve({"Park": park, "Echo": lambda call: call.request})
    calls = [unary(channel, "Park")(b"%d" % i) for i in range(900)]
    await asyncio.wait_for(all_here.wait(), 60)
    assert await unary(channel, "Echo")(b"still here") == b"still here"
    for call in parked:
        call.finish(call.request)
    assert [int(await call) for call in calls] == list(range(900))


async def test_draining_lets_calls_end(serve: Serve) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> bytes:
        started.set()
        await release.wait()
        return b"in time"

    channel = await serve({"Slow": slow})
    call = unary(channel, "Slow")(b"")
    await started.wait()
    drained = asyncio.ensure_future(channel.front.drain(60))
    await asyncio.sleep(0.05)
    release.set()
    assert await call == b"in time"
    await asyncio.wait_for(drained, 60)


async def test_draining_ends_at_its_grace(serve: Serve) -> None:
    started = asyncio.Event()

    async def never(call: Call) -> bytes:
        started.set()
        await asyncio.get_running_loop().create_future()
        return b""

    channel = await serve({"Never": never})
    call = unary(channel, "Never")(b"")
    await started.wait()
    await asyncio.wait_for(channel.front.drain(0.1), 60)
    assert (await refused(call)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_an_address_in_use_is_an_oserror(serve: Serve) -> None:
    channel = await serve({})
    front = type(channel.front)({})
    with pytest.raises(OSError, match=r".*"):
        await front.start("127.0.0.1", channel.front.port)
