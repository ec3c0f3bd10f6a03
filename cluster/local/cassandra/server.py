"""One small Cassandra node on loopback: its files, the command that starts it, and whether it answers.

Every node has an address of its own and the ordinary ports. One compiler tier halves the
start, 192 MB of heap are comfort, and `commitlog_sync: batch` keeps what a killed process acknowledged.
"""

from __future__ import annotations

import socket
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CONF: Final = Path(__file__).with_name("conf")
HEAP: Final = "-Xmx192m"
CQL_PORT: Final = 9042
STORAGE_PORT: Final = 7000  # between nodes
CONFIG_FILE: Final = "cassandra.yaml"
# Become the program that is named, without CAP_IPC_LOCK (14; 24 is PR_CAPBSET_DROP): as root Cassandra's
# mlockall would succeed, and fault in the whole heap.
BECOME: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 14, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
# Of the native protocol, version 4: a frame's header, and the kinds that ask and say what is supported.
OPTIONS: Final = b"\x04\x00\x00\x00\x05\x00\x00\x00\x00"
SUPPORTED: Final = 0x06
HEADER_BYTES: Final = 9


def token_of(number: int, count: int) -> int:
    """The token of the n-th of so many nodes (from 1 on): given, so that all can start at once."""
    return number * (1 << 63) // (count + 1)


def configure(
    directory: Path,
    centre: str,
    address: str,
    token: int,
    seeds: Sequence[str],
    *,
    cluster_name: str,
    hints: bool,
    clients: str = "",
) -> None:
    """Write a node's files. `clients`: lines of cassandra.yaml that say who may connect; "": everybody."""
    (directory / "tmp").mkdir(parents=True, exist_ok=True)
    values = {
        "cluster_name": cluster_name,
        "token": token,
        "address": address,
        "seeds": ",".join(f"{seed}:{STORAGE_PORT}" for seed in seeds),
        "directory": directory,
        "hints": "true" if hints else "false",
        "clients": clients,
    }
    text = string.Template((CONF / "cassandra.yaml.in").read_text()).substitute(values)
    (directory / CONFIG_FILE).write_text(text)
    (directory / "rackdc.properties").write_text(f"dc={centre}\nrack=r1\n")


def command(directory: Path, java: str, jars: Path, jmx_port: int) -> list[str]:
    """What starts the node whose files are in `directory`."""
    return [
        *(sys.executable, "-I", "-S", "-c", BECOME),
        java,
        *(CONF / "jvm.options").read_text().split(),
        HEAP,
        f"-Dcassandra.config=file://{directory}/{CONFIG_FILE}",
        f"-Dcassandra-rackdc.properties=file://{directory}/rackdc.properties",
        f"-Dlogback.configurationFile={CONF}/logback.xml",
        f"-Dcassandra.storagedir={directory}",
        f"-Dcassandra.logdir={directory}",
        f"-Djava.io.tmpdir={directory / 'tmp'}",
        f"-Dcassandra.jmx.local.port={jmx_port}",
        "-cp",
        ":".join(sorted(str(jar) for jar in jars.glob("*.jar"))),
        "org.apache.cassandra.service.CassandraDaemon",
    ]


def answers(address: str, port: int = CQL_PORT, timeout_s: float = 1.0) -> bool:
    """Whether a node takes clients, in the clear; False as well if nobody answers in time."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            connection.sendall(OPTIONS)
            head = b""
            while len(head) < HEADER_BYTES:
                more = connection.recv(HEADER_BYTES - len(head))
                if not more:
                    return False
                head += more
            return head[4] == SUPPORTED
    except OSError:
        return False
