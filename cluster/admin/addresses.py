"""Which server a command talks to: the addresses that it may be at, and the first of them that answers.

A region has several nodes, and a command is wanted most when one of them is dead. So an address may be
several, with commas; and a context file may say, beside the address that Temporal's clients read, where the
other nodes of that region are:

    [profile.default]
    address = "127.0.0.1:7233"

    [holdfast.nodes]
    a = ["127.0.0.1:7233", "127.0.0.1:7243", "127.0.0.1:7253"]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.admin.unary import call

if TYPE_CHECKING:
    from temporalio.service import TLSConfig

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse(status=SERVING)
PROBE_S = 1.5  # for one address of several; a node that is held takes connections and answers nothing
PORT_MAX = 65535
DO_DEFAULT = (
    "start one (`holdfast server start-dev`, `holdfast local up`), "
    "or name another with --address or HOLDFAST_ADDRESS"
)
DO_LOCAL = (
    "`holdfast local status` shows the nodes of the local cluster, `holdfast local restart NODE` starts one; "
    "or name another server with --address or HOLDFAST_ADDRESS"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A server, or several nodes of one region, any of which will do."""

    addresses: tuple[str, ...]  # host:port, at least one
    namespace: str
    tls: TLSConfig | bool | None = None
    api_key: str | None = None
    metadata: dict[str, Any] | None = None
    do: str = DO_DEFAULT  # what to do if none of them answers

    @property
    def named(self) -> str:
        """The addresses in a sentence."""
        *most, last = self.addresses
        return f"{', '.join(most)} or {last}" if most else last

    @property
    def fields(self) -> dict[str, Any]:
        """Header fields of a call."""
        fields = dict(self.metadata or {})
        if self.api_key:
            fields["authorization"] = f"Bearer {self.api_key}"
        return fields

    async def pick(self) -> str:
        """The first address whose server serves; else the first that answers; else the first.

        With one address nobody is asked: the call itself will tell.
        """
        if len(self.addresses) == 1:
            return self.addresses[0]
        answering = []
        for address in self.addresses:
            try:
                status = await call(address, self.tls, HEALTH_METHOD, b"", self.fields, PROBE_S)
            except (OSError, TimeoutError):
                continue
            if status.body == SERVING:
                return address
            answering.append(address)
        return (answering or self.addresses)[0]


def parsed(text: str) -> tuple[str, ...]:
    """Addresses with commas between them. click.UsageError if one of them is none."""
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in addresses or (text,):
        host, _, port = address.rpartition(":")
        if not host:
            raise click.UsageError(f"address {address!r} has no port: write host:port")
        if not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
            raise click.UsageError(f"address {address!r}: a port is a number from 1 to {PORT_MAX}")
    return addresses


def of_the_region(file: Path, address: str) -> tuple[str, ...]:
    """This address, and those that the file has of the other nodes of its region."""
    try:
        nodes = tomllib.loads(file.read_text())["holdfast"]["nodes"]
        found = next(list(one) for one in nodes.values() if address in one)
        return parsed(",".join([address, *(other for other in found if other != address)]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, click.UsageError):
        return (address,)  # it is no file of ours; whether it can be used at all is for others to say
