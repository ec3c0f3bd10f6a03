"""`sdk.connect` as a user has it: the official client and worker, servers that die, stop and come back.

The servers know nothing of each other here, so each has its own runs; runs that outlive the region that
they were started in are the demo's (test_demo.py).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from temporalio import activity, workflow
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.service import HttpConnectProxyConfig, RPCError, RPCStatusCode, TLSConfig
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from sdk import connect, endpoints_of
from sdk.testing import DevServer

HOME_MAX_S = 120.0  # three questions, a second apart; a test machine may be busy
QUEUE = "greetings"

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@activity.defn
async def greet(name: str) -> str:
    return f"hello {name}"


@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(greet, name, start_to_close_timeout=timedelta(seconds=60))


@asynccontextmanager
async def working(client: Client) -> AsyncIterator[None]:
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Greeting],
        activities=[greet],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        yield


async def greeted(client: Client, name: str) -> None:
    """A run from its start to its result: client and worker reach the same server."""
    handle = await client.start_workflow(Greeting.run, name, id=name, task_queue=QUEUE)
    assert await handle.result() == f"hello {name}"


async def runs_of(server: DevServer) -> set[str]:
    client = await server.connect()
    return {run.id async for run in client.list_workflows()}


async def until_home(client: Client, near: DevServer) -> None:
    """Calls move with the first that is made after the client was told to leave."""
    async with asyncio.timeout(HOME_MAX_S):
        while not (first := endpoints_of(client)[0]).connections or first.address != near.address:
            await client.count_workflows()
            await asyncio.sleep(0.01)


async def test_an_endpoint_dies_and_comes_back_and_nobody_sees_an_error() -> None:
    async with DevServer() as near, DevServer() as far:
        client = await connect([near.address, far.address])
        async with working(client):
            await greeted(client, "at home")
            await near.kill()
            await greeted(client, "away")
            assert [state.address for state in endpoints_of(client)] == [far.address, near.address]
            assert endpoints_of(client)[1].lost
        handle = await client.start_workflow(Greeting.run, "nobody", id="unserved", task_queue="none")
        waiting = asyncio.ensure_future(handle.result())
        await near.restart()
        await until_home(client, near)
        async with working(client):
            await greeted(client, "at home again")
        # What was in flight there was not cut: it ends where it began.
        assert not waiting.done()
        await (await far.connect()).get_workflow_handle("unserved").terminate()
        with pytest.raises(WorkflowFailureError):
            await waiting
        assert await runs_of(near) == {"at home", "at home again"}
        assert await runs_of(far) == {"away", "unserved"}


async def test_an_endpoint_that_falls_silent_is_left() -> None:
    """It is stopped: its connections stay, and nothing comes. The SDK's own keep-alive is off."""
    async with DevServer() as near, DevServer() as far:
        client = await connect([near.address, far.address], keep_alive_config=None)
        async with working(client):
            await greeted(client, "at home")
            os.kill(near.pid, signal.SIGSTOP)
            try:
                await greeted(client, "away")
                assert endpoints_of(client)[-1].lost
            finally:
                os.kill(near.pid, signal.SIGCONT)
        assert "away" in await runs_of(far)


async def test_without_any_endpoint_the_error_names_them_all_and_one_that_comes_is_found() -> None:
    async with DevServer() as one, DevServer() as other:
        client = await connect([one.address, other.address])
        await one.kill()
        await other.kill()
        with pytest.raises(RPCError) as caught:
            await client.count_workflows()
        assert caught.value.status == RPCStatusCode.UNAVAILABLE
        for server in (one, other):
            assert f"{server.address}: connection refused" in caught.value.message
        await other.restart()
        async with working(client):
            await greeted(client, "at the other")
        with pytest.raises(RuntimeError, match="no endpoint can be reached"):
            await connect([one.address])


async def test_the_nearest_is_chosen_by_measure() -> None:
    async with DevServer() as server, slow(server) as distant:
        client = await connect([distant, server.address], prefer="nearest")
        first, second = endpoints_of(client)
        assert (first.address, second.address) == (server.address, distant)
        assert first.connections
        assert (first.round_trip_s or 9) < (second.round_trip_s or 0)
        client = await connect([distant, server.address])
        assert endpoints_of(client)[0].address == distant
        assert endpoints_of(client)[0].connections


@asynccontextmanager
async def slow(server: DevServer) -> AsyncIterator[str]:
    async with forwarding(server, delay_s=0.2) as port:
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def forwarding(
    server: DevServer, *, delay_s: float = 0.0, security: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A port in front of a server."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(delay_s)
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=security)
    yield listening.sockets[0].getsockname()[1]
    listening.close()


class Authority:
    """Signs certificates of servers and clients."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
        self.certificate = self._signed(
            self._name, self._key, x509.BasicConstraints(ca=True, path_length=None)
        )

    def pair(self, name: str) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        general = x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._signed(subject, key, x509.SubjectAlternativeName([general])), encoded

    def server(self, name: str) -> ssl.SSLContext:
        """Of a server with this name, that wants certificates of its clients."""
        for file, data in zip(("certificate", "key"), self.pair(name), strict=True):
            (self._directory / file).write_bytes(data)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self._directory / "certificate", self._directory / "key")
        made.load_verify_locations(cadata=self.certificate.decode())
        made.verify_mode = ssl.CERT_REQUIRED
        made.set_alpn_protocols(["h2"])
        return made

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> bytes:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        signed = made.add_extension(extension, critical=False).sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


async def test_each_endpoint_has_a_certificate_of_its_own_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.pair("a client")
    given = TLSConfig(
        server_root_ca_cert=authority.certificate, client_cert=certificate, client_private_key=key
    )
    async with (
        DevServer() as one,
        DevServer() as other,
        forwarding(one, security=authority.server("localhost")) as first,
        forwarding(other, security=authority.server("127.0.0.1")) as second,
    ):
        ends = [f"localhost:{first}", f"127.0.0.1:{second}"]
        client = await connect(ends, tls=given, api_key="a key")
        async with working(client):
            await greeted(client, "at home")
            await one.kill()
            await greeted(client, "away")
        assert await runs_of(other) == {"away"}
        await one.restart()
        wrong = f"127.0.0.1:{first}"  # whose certificate is localhost's
        with pytest.raises(RuntimeError, match=f"{wrong}: .*certificate"):
            await connect([wrong], tls=given)
        given.domain = "localhost"
        await connect([wrong], tls=given)


class Noting(Interceptor):
    def __init__(self) -> None:
        self.started: list[str] = []

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        noting = self

        class Outbound(OutboundInterceptor):
            async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle:  # noqa: A002
                noting.started.append(input.id)
                return await super().start_workflow(input)

        return Outbound(next)


async def test_what_the_sdk_knows_is_handed_on_and_a_client_that_is_gone_takes_its_relay_with_it() -> None:
    noting = Noting()
    before = {thread.ident for thread in threading.enumerate()}
    async with DevServer(namespaces=["orders"]) as server:
        client = await connect([server.address], namespace="orders", interceptors=[noting], identity="me")
        assert (client.namespace, client.identity) == ("orders", "me")
        handle = await client.start_workflow("Order", id="order-17", task_queue="orders")
        assert noting.started == ["order-17"]
        with pytest.raises(ValueError, match="not made by"):
            endpoints_of(await server.connect())
        relays = [one for one in threading.enumerate() if one.name == "sdk.relay" and one.ident not in before]
        assert len(relays) == 1
        del client
        gc.collect()
        assert relays[0].is_alive(), "a handle holds it"
        await handle.describe()
        del handle
        gc.collect()
        assert not relays[0].is_alive()


@pytest.mark.parametrize(
    ("endpoints", "settings", "words"),
    [
        ([], {}, "1 to 16"),
        ("eu:7233", {}, "a list"),
        (["eu"], {}, "no address"),
        (["https://eu:7233"], {}, "no address"),
        (["eu:0"], {}, "no address"),
        (["eu:7233"], {"http_connect_proxy_config": HttpConnectProxyConfig("p:1")}, "do not go together"),
        (["eu:7233"], {"tls": TLSConfig(verification_server_name="eu")}, "domain"),
        (["eu:7233"], {"tls": TLSConfig(client_cert=b"")}, "belong together"),
    ],
)
async def test_what_does_not_go_together_is_said(
    endpoints: list[str], settings: dict[str, object], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        await connect(endpoints, **settings)  # type: ignore[arg-type]
