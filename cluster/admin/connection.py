"""How a command finds a server and talks to it: flags, environment, configuration file, errors.

A setting comes from the first of: the flag, HOLDFAST_*, TEMPORAL_*, Temporal's client configuration
file, the local cluster of the current directory. A context (`--context`) is a file in the form of
Temporal's client configuration, and takes the place of TEMPORAL_* and that file. The client is the
`temporalio` package's own, so what works for an application works here.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cluster.admin.addresses import DO_DEFAULT, DO_LOCAL, Target, of_the_region, parsed
from cluster.admin.output import Exit, F, Failure
from cluster.admin.unary import DO_TLS, HUNG_UP, HUNG_UP_TLS, WANTS_ANOTHER, WANTS_CERTIFICATE

if TYPE_CHECKING:
    from temporalio.service import ServiceClient

R = TypeVar("R")

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT = timedelta(seconds=10)
CONNECT_ERROR_MAX = 200  # characters of the client library's words
ADDRESS_DEFAULT = "127.0.0.1:7233"
NAMESPACE_DEFAULT = "default"
LOCAL_CONTEXT = Path(".holdfast/context.toml")  # written by `holdfast local up`, removed by `down`


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection flags as given; None = not given."""

    address: str | None = None
    namespace: str | None = None
    api_key: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None
    context: str | None = None


def connection_options(function: F) -> F:
    """Add the connection flags to a command, as one parameter `connection`."""

    @functools.wraps(function)  # which also carries over the options that decorators below have added
    def wrapped(*args: Any, **given: Any) -> Any:
        names = Connection.__dataclass_fields__
        taken = {name: given.pop(f"connection_{name}") for name in names}
        return function(*args, connection=Connection(**taken), **given)

    path = click.Path(exists=True, dir_okay=False)
    options = (
        (
            "--address",
            {
                "help": "Server, as host:port; or nodes of a region, with commas, the first of which that "
                f"answers is asked. [default: {ADDRESS_DEFAULT}]"
            },
        ),
        ("--namespace", {"help": f"Namespace. [default: {NAMESPACE_DEFAULT}]"}),
        ("--api-key", {"help": "Sent as bearer token."}),
        ("--tls", {"is_flag": True, "help": "Use TLS, with the system's authorities."}),
        (
            "--tls-ca",
            {"type": path, "help": "PEM file of the authority that signed the server's certificate."},
        ),
        ("--tls-cert", {"type": path, "help": "PEM file of the client's certificate."}),
        ("--tls-key", {"type": path, "help": "PEM file of the client's private key."}),
        ("--tls-server-name", {"help": "Name to expect in the server's certificate."}),
        ("--context", {"type": path, "help": "File that says where the server is; `local up` writes one."}),
    )
    result: Callable[..., Any] = wrapped
    for flag, settings in reversed(options):
        name = flag.removeprefix("--").replace("-", "_")
        variable = f"HOLDFAST_{name.upper()}"
        result = click.option(flag, f"connection_{name}", envvar=variable, **settings)(result)
    return result  # type: ignore[return-value]


def resolve(connection: Connection) -> Target:
    """Fill what the flags leave open. Failure or click.UsageError if it cannot be used."""
    from temporalio.service import TLSConfig

    try:
        config, file = _configuration(connection)
    except (RuntimeError, ValueError, OSError) as error:
        raise Failure(
            f"Temporal's client configuration cannot be used: {str(error).rstrip()}",
            "mend the file (--context or TEMPORAL_CONFIG_FILE names it) or unset the TEMPORAL_* variable",
            Exit.USAGE,
        ) from None
    tls = config.get("tls")
    if any((connection.tls_ca, connection.tls_cert, connection.tls_key, connection.tls_server_name)):
        if bool(connection.tls_cert) != bool(connection.tls_key):
            raise click.UsageError("--tls-cert and --tls-key belong together: give both or neither")
        tls = TLSConfig(
            server_root_ca_cert=_read(connection.tls_ca),
            client_cert=_read(connection.tls_cert),
            client_private_key=_read(connection.tls_key),
            domain=connection.tls_server_name,
        )
    elif connection.tls:
        tls = True
    addresses = parsed(connection.address or config.get("target_host") or ADDRESS_DEFAULT)
    if connection.address is None and file is not None:
        addresses = of_the_region(file, addresses[0])
    return Target(
        addresses,
        str(connection.namespace or config.get("namespace") or NAMESPACE_DEFAULT),
        tls,
        connection.api_key or config.get("api_key"),
        config.get("rpc_metadata"),
        DO_LOCAL if file == LOCAL_CONTEXT and connection.address is None else DO_DEFAULT,
    )


def _configuration(connection: Connection) -> tuple[dict[str, Any], Path | None]:
    """What files and TEMPORAL_* variables say, and the file that may know the other nodes.

    RuntimeError, ValueError or OSError if they cannot be used.
    """
    from temporalio.envconfig import ClientConfig

    file = connection.context
    if file is not None:
        return dict(ClientConfig.load_client_connect_config(config_file=file, disable_env=True)), Path(file)
    config = dict(ClientConfig.load_client_connect_config())
    if connection.address is None and not config.get("target_host") and LOCAL_CONTEXT.is_file():
        local = ClientConfig.load_client_connect_config(config_file=str(LOCAL_CONTEXT), disable_env=True)
        return config | {"target_host": local.get("target_host")}, LOCAL_CONTEXT
    named = os.environ.get("TEMPORAL_CONFIG_FILE")
    return config, Path(named) if named else None


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


class Server:
    """A connected server, the namespace in question, and calls whose errors are for people."""

    def __init__(self, client: ServiceClient, address: str, namespace: str) -> None:
        self.client = client
        self.address = address
        self.namespace = namespace

    async def call(self, method: Callable[..., Awaitable[R]], request: Any, *, changes: bool = False) -> R:
        """Make one RPC. `changes`: it changes something, so a lost answer is indefinite (exit 3)."""
        from temporalio.service import RPCError

        try:
            return await method(request, retry=False, timeout=CALL_TIMEOUT)
        except RPCError as error:
            raise explain(error, self.address, self.namespace, changes) from None


def explain(error: Any, address: str, namespace: str, changes: bool) -> Failure:
    """What a failed RPC means for the person who asked."""
    from temporalio.service import RPCStatusCode

    do = {
        RPCStatusCode.UNAVAILABLE: f"ask the server at {address} how it is: `holdfast cluster health`",
        RPCStatusCode.DEADLINE_EXCEEDED: f"the server at {address} is slow; see its log",
        RPCStatusCode.NOT_FOUND: f"see whether the name and the namespace ({namespace!r}) are right",
        RPCStatusCode.UNAUTHENTICATED: "give --api-key or --tls-cert and --tls-key",
        RPCStatusCode.PERMISSION_DENIED: "ask whoever runs the server for the right to do this",
        RPCStatusCode.UNIMPLEMENTED: "this server does not have it: `holdfast cluster version`",
    }.get(error.status, "")
    if error.status is RPCStatusCode.NOT_FOUND and error.message.startswith("Namespace "):
        do = "`holdfast namespace list` shows what there is, `holdfast namespace create NAME` makes one"
    text = f"{error.message} ({error.status.name})"
    lost = (
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.UNKNOWN,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.DATA_LOSS,
    )
    if changes and error.status in lost:
        look = "look before you try again"
        if error.status is RPCStatusCode.UNAVAILABLE:
            look += "; `holdfast cluster health` says what is wrong"
        return Failure(f"{text}; it may have happened", look, Exit.INDEFINITE)
    return Failure(text, do)


# What the client library's errors have in them, and what that means. The first that fits is told.
_CONNECT_ERRORS = (
    ("ConnectionRefused", "connection refused"),
    ("dns error", "there is no host of this name"),
    ("InvalidCertificate", "its certificate is not one that is trusted here (--tls-ca, --tls-server-name)"),
    ("CertificateRequired", WANTS_CERTIFICATE),
    ("received fatal alert", WANTS_ANOTHER),
    ("tls handshake eof", "it speaks no TLS (leave --tls out)"),
    ("InvalidContentType", "it speaks no TLS (leave --tls out)"),
    ("ConnectionReset", HUNG_UP),
    ("connection closed", HUNG_UP),
    ("BrokenPipe", HUNG_UP),
    ("FRAME_SIZE_ERROR", HUNG_UP),
    ("http2 error", HUNG_UP),
    ("TimedOut", "timed out"),
    ("deadline has elapsed", "timed out"),
    ("Timeout expired", "timed out"),
)


def _why_not(error: Exception, *, tls: bool) -> str:
    """The client library's error without its inner structure."""
    text = str(error)
    told = next((words for mark, words in _CONNECT_ERRORS if mark in text), None)
    if told is HUNG_UP and tls:
        return HUNG_UP_TLS
    return told or text.removeprefix("Failed client connect: ")[:CONNECT_ERROR_MAX] or "timed out"


async def connect(connection: Connection) -> Server:
    """Reach the server (GetSystemInfo answers) or fail with what to do."""
    from temporalio.service import ConnectConfig, RPCError, ServiceClient

    target = resolve(connection)
    address = await target.pick()
    config = ConnectConfig(
        target_host=address,
        api_key=target.api_key,
        tls=target.tls,
        rpc_metadata=target.metadata or {},
        connect_timeout=timedelta(seconds=CONNECT_TIMEOUT_S),
    )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
            client = await ServiceClient.connect(config)
    except RPCError as error:
        raise explain(error, address, target.namespace, changes=False) from None
    except (RuntimeError, ValueError, TimeoutError) as error:
        why = _why_not(error, tls=bool(target.tls))
        do = DO_TLS if why in (WANTS_CERTIFICATE, WANTS_ANOTHER, HUNG_UP_TLS) else target.do
        raise Failure(f"no server answers at {target.named}: {why}", do) from None
    return Server(client, address, target.namespace)


def run(work: Coroutine[Any, Any, R]) -> R:
    """Drive a command's coroutine to its end; Ctrl-C leaves with 130, as shells expect."""
    os.environ.setdefault("RUST_BACKTRACE", "0")
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
