"""Real Cassandra nodes on loopback, one for each data centre, started, broken and ended by a test.

Clients need a certificate and a password. No node keeps hints, so what one missed it never gets. A start
takes some six seconds; a node has 300 MB.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import DCAwareRoundRobinPolicy

from cluster.local.cassandra import jars
from cluster.local.cassandra.jars import MissingError
from cluster.local.cassandra.server import command, configure, token_of
from replication.log.cassandra.store import Options
from tests.replication.log.cassandra.certificates import Authority

START_S_MAX = 180
# Clients show a certificate and say a password. Between the nodes it is plain.
CLIENTS = """
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: true
  accepted_protocols: [TLSv1.3]
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: {certificate}
  truststore: {authority}
"""
FIRST = ("cassandra", "cassandra")  # who is there when Cassandra is new; logs in at QUORUM of all regions
OPERATOR = ("operator", "a word")  # as anybody else, at LOCAL_QUORUM
USER = ("holdfast", "a pass word")  # what the log connects as


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Nodes:
    """The nodes of one cluster, by data centre. MissingError: the machine lacks what they need."""

    def __init__(self, directory: Path, centres: Sequence[str]) -> None:
        if sys.platform != "linux":
            raise MissingError("no Cassandra: a network of addresses on loopback is Linux's")
        self._java = jars.java()
        self._jars = jars.folder()
        self._directory = directory
        # A network of the process's own, so that two runs do not meet.
        net = f"127.{64 + os.getpid() % 128}"
        self.addresses = {centre: f"{net}.{number}.1" for number, centre in enumerate(centres, 1)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._login = FIRST
        self.authority = Authority(directory / "certificates")
        self._client = self.authority.sign("client")

    def options(self, region: str, **more: Any) -> Options:
        """How the log of a region connects: `USER` and a certificate, unless `more` says otherwise."""
        user, password = USER
        given: dict[str, Any] = {
            "tls": self.authority.client(self._client),
            "user": user,
            "password": password,
        }
        return Options(region, [self.addresses[region]], **(given | more))

    def operator(self, region: str, **more: Any) -> Options:
        """How an operator connects."""
        return self.options(region, user=OPERATOR[0], password=OPERATOR[1], **more)

    def start(self) -> None:
        """Start all, and wait until each answers and knows the others."""
        for number, centre in enumerate(self.addresses, 1):
            self._configure(centre, token_of(number, len(self.addresses)))
            self.launch(centre)
        self.wait_until_ready(*self.addresses)
        self._add_users()

    def _add_users(self) -> None:
        # With a copy in every region, or nobody can log in while another one is down.
        copies = ", ".join(f"'{centre}': 1" for centre in self.addresses)
        replication = f"{{'class': 'NetworkTopologyStrategy', {copies}}}"
        role = "CREATE ROLE {0} WITH PASSWORD = '{1}' AND LOGIN = true AND SUPERUSER = {2}"
        self.execute(
            next(iter(self.addresses)),
            f"ALTER KEYSPACE system_auth WITH replication = {replication}",
            role.format(*OPERATOR, "true"),
            role.format(*USER, "false"),
        )
        self._login = OPERATOR

    def let_in(self, user: str, keyspace: str, *rights: str) -> None:
        """Give a user rights on the tables of a keyspace."""
        grants = [f"GRANT {right} ON KEYSPACE {keyspace} TO {user}" for right in rights]
        self.execute(next(iter(self.addresses)), *grants)

    def execute(self, centre: str, *texts: str) -> Any:
        """Run statements as the operator at one node. Returns the rows of the last."""
        profile = ExecutionProfile(
            load_balancing_policy=DCAwareRoundRobinPolicy(centre), request_timeout=START_S_MAX
        )
        cluster = Cluster(
            [self.addresses[centre]],
            protocol_version=4,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            ssl_context=self.authority.client(self._client),
            auth_provider=PlainTextAuthProvider(*self._login),
        )
        try:
            session = cluster.connect()
            return [session.execute(text).all() for text in texts][-1]
        finally:
            cluster.shutdown()

    def _configure(self, centre: str, token: int) -> None:
        certificate = self.authority.sign(f"node-{centre}", [self.addresses[centre]])
        configure(
            self._directory / centre,
            centre,
            self.addresses[centre],
            token,
            list(self.addresses.values()),
            cluster_name="holdfast-test",
            hints=False,
            clients=CLIENTS.format(certificate=certificate, authority=self.authority.directory / "ca.pem"),
        )

    def launch(self, centre: str) -> None:
        """Start a node, for the first time or with what it has."""
        directory = self._directory / centre
        with (directory / "cassandra.log").open("ab") as log:
            self._processes[centre] = subprocess.Popen(
                command(directory, self._java, self._jars, _free_port()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )

    def wait_until_ready(self, *centres: str) -> None:
        """Wait until these answer clients, and know all other nodes."""
        deadline = time.monotonic() + START_S_MAX
        for centre in centres:
            while not self._is_ready(centre):
                code = self._processes[centre].poll()
                assert code is None, f"{centre} ended with {code}: {self._log(centre)}"
                assert time.monotonic() < deadline, f"{centre} does not answer: {self._log(centre)}"
                time.sleep(0.2)

    def _is_ready(self, centre: str) -> bool:
        try:
            known = self.execute(centre, "SELECT COUNT(*) FROM system.peers_v2")[0][0]
        except (NoHostAvailable, DriverException):
            return False
        return bool(known == len(self.addresses) - 1)

    def _log(self, centre: str) -> str:
        return (self._directory / centre / "cassandra.log").read_text(errors="replace")[-2000:]

    def resident_mb(self, centre: str) -> int:
        """Memory of a node."""
        status = Path(f"/proc/{self._processes[centre].pid}/status").read_text()
        (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
        return int(kilobytes) >> 10

    def freeze(self, centre: str) -> None:
        """The node stands still."""
        self._processes[centre].send_signal(signal.SIGSTOP)

    def thaw(self, centre: str) -> None:
        """It goes on."""
        self._processes[centre].send_signal(signal.SIGCONT)

    def kill(self, centre: str) -> None:
        """The node is gone, without a word. `launch` brings it back."""
        self._processes[centre].kill()
        self._processes[centre].wait()

    def stop(self) -> None:
        """End all; what they wrote is of no use to anybody."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
