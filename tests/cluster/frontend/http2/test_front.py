"""The front on real sockets: HTTP/1.1 and TLS on the same port, caps, and neighbours who do not notice."""

from __future__ import annotations

import asyncio
import datetime
import errno
import ipaddress
import os
import resource
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.frontend.contract import Call
from cluster.frontend.http2 import Http2Front, Limits
from tests.cluster.frontend.http2 import wire

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def echo(call: Call) -> bytes:
    return call.request


def http1(method: str, path: str) -> tuple[int, str, bytes] | None:
    return (200, "text/plain; version=0.0.4", b"up 1\n") if path == "/metrics" else None


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
async def front(limits: Limits) -> AsyncIterator[Http2Front]:
    front = Http2Front({"/t.T/Echo": echo}, limits=limits, http1=http1)
    await front.start("127.0.0.1", 0)
    yield front
    await front.drain(0.2)


@pytest.fixture
async def open_socket(front: Http2Front) -> AsyncIterator[Open]:
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def ask(front: Http2Front, body: bytes = b"hello") -> bytes:
    """One call over a connection of its own."""
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{front.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        answer: bytes = await channel.unary_unary("/t.T/Echo")(body, timeout=60)
        return answer


async def get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[bytes, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, b"" if request.startswith(b"HEAD") else await reader.readexactly(length)


async def test_http1_on_the_same_port(open_socket: Open) -> None:
    reader, writer = await open_socket()
    for method, path, status, body in (
        ("GET", "/healthz", b"200 OK", b"ok\n"),
        ("GET", "/metrics", b"200 OK", b"up 1\n"),
        ("HEAD", "/metrics", b"200 OK", b""),
        ("POST", "/healthz", b"404 Not Found", None),
        ("GET", "/", b"404 Not Found", None),
    ):
        head, got = await get(
            reader, writer, f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc".encode()
        )
        assert status in head
        if body is None:
            assert b"Temporal SDK" in got
        else:
            assert got == body
    head, _ = await get(reader, writer, b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert b"connection: close" in head
    assert await reader.read() == b""


async def test_pipelined_and_cut_http1(open_socket: Open) -> None:
    reader, writer = await open_socket()
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n" * 2:
        writer.write(bytes((byte,)))
        await writer.drain()
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (await reader.read()).count(b"ok\n") == 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"SSH-2.0-x\r\n",
        b"GET /\r\n\r\n",
        b"GET /x HTTP/1.1" + b"x" * 9000,
    ],
)
async def test_garbage_is_closed_at_once(front: Http2Front, open_socket: Open, garbage: bytes) -> None:
    reader, writer = await open_socket()
    writer.write(garbage)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    assert await ask(front) == b"hello"


@pytest.mark.parametrize("host", ["localhost", "", "::1"])
async def test_addresses(host: str) -> None:
    front = Http2Front({})
    try:
        await front.start(host, 0)
    except OSError as error:
        if host != "::1":
            raise
        pytest.skip(f"no IPv6 here: {error}")
    reader, writer = await asyncio.open_connection(host or "127.0.0.1", front.port)
    assert (await get(reader, writer, b"GET /healthz HTTP/1.1\r\n\r\n"))[1] == b"ok\n"
    other = Http2Front({})
    with pytest.raises(OSError, match="in use"):
        await other.start(host, front.port)
    writer.close()
    await writer.wait_closed()
    await front.drain(1)


async def test_chunked_bodies_are_declined(open_socket: Open) -> None:
    reader, writer = await open_socket()
    head, _ = await get(reader, writer, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
    assert b"411 Length Required" in head


@pytest.mark.parametrize("limits", [Limits(connections_per_peer_max=3)])
async def test_connections_per_peer(front: Http2Front, open_socket: Open) -> None:
    allowed = [await open_socket() for _ in range(3)]
    for _, writer in allowed:
        writer.write(wire.PREFACE + wire.settings())
    for reader, _ in allowed:
        assert await reader.readexactly(9)
    reader, _ = await open_socket()
    assert await reader.read() == b""  # one too many: closed at once
    allowed[0][1].transport.abort()
    for _ in range(100):
        reader, writer = await open_socket()
        writer.write(wire.PREFACE + wire.settings())
        try:
            if await reader.read(9):
                break
        except ConnectionResetError:
            continue
    else:
        pytest.fail("the place that became free was not given away")


@pytest.mark.parametrize("limits", [Limits(handshake_timeout_s=0.2)])
async def test_who_says_nothing_is_cut_off(open_socket: Open) -> None:
    silent, _ = await open_socket()
    half, writer = await open_socket()
    writer.write(b"GET /healthz HT")
    assert await asyncio.wait_for(asyncio.gather(silent.read(), half.read(), return_exceptions=True), 60)


async def test_two_thousand_connections_some_slow_some_mad(front: Http2Front, open_socket: Open) -> None:
    """Everybody else does not notice: an echo still takes a few milliseconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4500:
        pytest.skip(f"this process may open {hard} files, and two thousand connections need 4,500")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4500), hard))
    half_request = wire.frame(wire.HEADERS, 4, 1, b"\x83\x86\x84")[:-3]
    openings = (
        wire.PREFACE + wire.settings(),  # idle, as workers between polls are
        wire.PREFACE[:9],
        wire.PREFACE + wire.settings() + half_request,
        b"GET /healthz HTTP/1.1\r\n",
        b"\xff" * 40,
        b"",
    )
    big = Http2Front({"/t.T/Echo": echo})
    await big.start("127.0.0.1", 0)
    writers = []
    for number in range(2000):
        _, writer = await asyncio.open_connection("127.0.0.1", big.port)
        writer.write(openings[number % len(openings)])
        writers.append(writer)
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{big.port}") as channel:
        call = channel.unary_unary("/t.T/Echo")
        await call(b"warm")
        times = []
        for number in range(100):
            for writer in writers[number::100]:
                writer.transport.write(b"x")  # a byte of nonsense from twenty of them
            begin = loop.time()
            assert await call(b"still here") == b"still here"
            times.append(loop.time() - begin)
    # One of the quickest, with a wide margin: this machine may be doing other things.
    assert sorted(times)[10] < 0.25
    for writer in writers:
        writer.transport.abort()
    await big.drain(1)


async def test_running_out_of_files_is_survived(front: Http2Front, open_socket: Open) -> None:
    real = front._sockets[0]

    class Exhausted:
        count = 0

        def accept(self) -> None:
            self.count += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def fileno(self) -> int:
            return real.fileno()

    exhausted = Exhausted()
    front._accept(exhausted)  # type: ignore[arg-type]
    assert exhausted.count == 1, "tried again at once, which would be a busy loop"
    reader, writer = await open_socket()  # waits in the backlog
    front._resume_accepting(real)
    assert (await get(reader, writer, b"GET /healthz HTTP/1.1\r\n\r\n"))[1] == b"ok\n"


def certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    crt, pem = directory / "localhost.crt", directory / "localhost.key"
    crt.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return crt, pem


async def test_tls(tmp_path: Path) -> None:
    crt, pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, pem)
    front = Http2Front({"/t.T/Echo": echo})
    await front.start("127.0.0.1", 0, context)
    credentials = grpc.ssl_channel_credentials(crt.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{front.port}", credentials) as channel:
        body = bytes(range(256)) * 10_000
        assert await channel.unary_unary("/t.T/Echo")(body, timeout=60) == body

        trusting = ssl.create_default_context(cafile=str(crt))
        trusting.set_alpn_protocols(["http/1.1"])
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=trusting)
        assert (await get(reader, writer, b"GET /healthz HTTP/1.1\r\n\r\n"))[1] == b"ok\n"
        writer.transport.abort()
    await front.drain(60)
    assert front._accepted_total == 0

    # Neither plain text nor silence gets through the handshake, nor holds a place after it.
    front = Http2Front({"/t.T/Echo": echo}, limits=Limits(handshake_timeout_s=0.3))
    await front.start("127.0.0.1", 0, context)
    plain, plain_writer = await asyncio.open_connection("127.0.0.1", front.port)
    plain_writer.write(wire.PREFACE)
    silent, silent_writer = await asyncio.open_connection("127.0.0.1", front.port)
    await asyncio.wait_for(asyncio.gather(plain.read(), silent.read(), return_exceptions=True), 60)
    plain_writer.transport.abort()
    silent_writer.transport.abort()
    await front.drain(60)
    assert front._accepted_total == 0


async def test_parked_polls_are_cheap(front: Http2Front) -> None:
    """Two thousand parked calls on ten connections cost what the budget says they cost, or less."""
    parked: list[Call] = []
    peers = [wire.Peer({"Poll": lambda call: parked.append(call)})]  # type: ignore[func-returns-value]
    peers += [wire.Peer(front=peers[0].front) for _ in range(9)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for peer in peers:
            peer.send(*(peer.request(s, method="Poll", grpc_timeout="70S") for s in range(1, 401, 2)))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(parked) == 2000
    assert grown / 2000 < 2048
    for call in parked:
        call.finish(b"")
    assert peers[0].front.held == 0
