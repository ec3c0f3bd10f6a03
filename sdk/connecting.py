"""`connect`: a client of Temporal's SDK that knows several endpoints and survives the loss of some of them.

    client = await connect(["eu.example.com:7233", "us.example.com:7233"], namespace="orders")
    worker = Worker(client, task_queue="orders", workflows=[Order])

It is `temporalio.client.Client`, made by `Client.connect` with what was given, and connected by way of a
relay in this process (relay.py), which the SDK takes for its HTTP CONNECT proxy. The relay lives as long as
the client does: it ends when nobody holds the client, or a handle or worker made of it, any more.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import (
    ConnectConfig,
    HttpConnectProxyConfig,
    RPCError,
    RPCStatusCode,
    ServiceClient,
    TLSConfig,
)

from sdk.endpoints import Endpoints, EndpointState
from sdk.relay import ASK_MAX_S, Relay, Security

ENDPOINTS_MAX = 16  # each is watched while it carries calls

# What a server says that does not serve; every other answer shows that it does.
NOT_WELL = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.INTERNAL,
)

_relays: weakref.WeakKeyDictionary[ServiceClient, Relay] = weakref.WeakKeyDictionary()


async def connect(
    endpoints: Sequence[str],
    *,
    namespace: str = "default",
    prefer: Literal["given", "nearest"] = "given",
    tls: bool | TLSConfig | None = None,
    api_key: str | None = None,
    rpc_metadata: Mapping[str, str | bytes] | None = None,
    runtime: Runtime | None = None,
    **settings: Any,
) -> Client:
    """Connect to the first endpoint that is well, or, with `prefer="nearest"`, to the nearest of them.

    `endpoints` are host:port. With TLS each has to show a certificate for its own host, or for `tls.domain`
    if that is given. `settings` are those of `temporalio.client.Client.connect`: data converter,
    interceptors, plugins, retries and the rest. Raises what that raises, and ValueError or TypeError for
    what does not go together.
    """
    addresses = _checked(endpoints)
    for name in ("http_connect_proxy_config", "dns_load_balancing_config"):
        if settings.get(name) is not None:
            raise ValueError(
                f"{name} and several endpoints do not go together: connections are led by `connect`"
            )
    metadata = dict(rpc_metadata or {})
    secured = bool(tls) or (tls is None and api_key is not None)  # as the SDK has it
    security = _security(tls) if secured else None

    def watcher(address: str) -> ConnectConfig:
        return ConnectConfig(
            address,
            api_key=api_key,
            tls=tls if secured else False,
            rpc_metadata=metadata,
            lazy=True,
            runtime=runtime,
        )

    relay = Relay(
        Endpoints(addresses, nearest=prefer == "nearest"),
        security,
        _Watchers({address: watcher(address) for address in addresses}).ask,
    )
    await asyncio.to_thread(relay.start, measured=prefer == "nearest")
    authority = security.name if security and security.name else addresses[0]
    try:
        client = await Client.connect(
            authority if ":" in authority else f"{authority}:443",
            namespace=namespace,
            tls=False,
            api_key=api_key,
            rpc_metadata=metadata,
            runtime=runtime,
            **{**settings, "http_connect_proxy_config": HttpConnectProxyConfig(relay.address)},
        )
    except BaseException:
        relay.close()
        raise
    _relays[client.service_client] = relay
    weakref.finalize(client.service_client, relay.close)
    return client


def endpoints_of(client: Client) -> list[EndpointState]:
    """How the endpoints of a client are that `connect` made, best first."""
    relay = _relays.get(client.service_client)
    if relay is None:
        raise ValueError("this client was not made by sdk.connect")
    return relay.states()


class _Watchers:
    """One SDK connection to each endpoint, for its health check; never by way of the relay."""

    def __init__(self, configs: Mapping[str, ConnectConfig]) -> None:
        self._configs = configs
        self._clients: dict[str, ServiceClient] = {}

    async def ask(self, address: str) -> str:
        """Why the endpoint does not serve; empty if it does."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = await ServiceClient.connect(self._configs[address])
        try:
            serves = await client.check_health(timeout=timedelta(seconds=ASK_MAX_S))
        except RPCError as error:
            return f"{error.status.name}: {error.message}" if error.status in NOT_WELL else ""
        except RuntimeError as error:  # the SDK's word for: no connection
            return str(error)
        return "" if serves else "it does not serve"


def _checked(endpoints: Sequence[str]) -> list[str]:
    """The addresses, if they are addresses. ValueError."""
    if isinstance(endpoints, str):
        raise TypeError(f"endpoints are a list of addresses, not one: [{endpoints!r}]")
    addresses = list(dict.fromkeys(endpoints))
    if not 1 <= len(addresses) <= ENDPOINTS_MAX:
        raise ValueError(f"there have to be 1 to {ENDPOINTS_MAX} endpoints, not {len(addresses)}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
            raise ValueError(f"{address!r} is no address like host:7233")
    return addresses


def _security(tls: bool | TLSConfig | None) -> Security:
    """TLS as the SDK would speak it."""
    given = tls if isinstance(tls, TLSConfig) else TLSConfig()
    if given.verification_server_name is not None:
        raise ValueError("verification_server_name is not supported: give `domain`")
    if (given.client_cert is None) != (given.client_private_key is None):
        raise ValueError("client_cert and client_private_key belong together")
    trusted = given.server_root_ca_cert
    context = ssl.create_default_context(cadata=trusted.decode() if trusted is not None else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if given.client_cert is not None and given.client_private_key is not None:
        # Python reads them from files only; these are ours alone, and gone when this returns.
        with tempfile.TemporaryDirectory(prefix="sdk-tls-") as directory:
            certificate, key = Path(directory, "certificate.pem"), Path(directory, "key.pem")
            certificate.write_bytes(given.client_cert)
            key.write_bytes(given.client_private_key)
            context.load_cert_chain(certificate, key)
    return Security(context, given.domain)
