"""Real Cassandra nodes on loopback, one for each data centre, started and ended by a test.

$HOLDFAST_CASSANDRA_JARS names a folder with the jars of Cassandra 5 (`org.apache.cassandra:cassandra-all` and
what it depends on, as `mvn dependency:copy-dependencies` gathers them). A start takes about five seconds and
300 MB a node.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import DCAwareRoundRobinPolicy

CONF = Path(__file__).parent / "conf"
JARS = "HOLDFAST_CASSANDRA_JARS"
START_S_MAX = 120
CAP_IPC_LOCK = 14
PR_CAPBSET_DROP = 24


def why_not() -> str:
    """Why there can be no Cassandra here; empty if there can."""
    folder = os.environ.get(JARS, "")
    if not folder:
        return f"no Cassandra: {JARS} is not set"
    if not list(Path(folder).glob("cassandra-all-*.jar")):
        return f"no Cassandra: {folder} has no cassandra-all-*.jar"
    return "" if shutil.which("java") else "no Cassandra: there is no java"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Nodes:
    """The nodes of one cluster, by data centre."""

    def __init__(self, directory: Path, centres: Sequence[str]) -> None:
        self._directory = directory
        # A network of the process's own, so that two runs do not meet.
        net = f"127.{64 + os.getpid() % 128}"
        self.addresses = {centre: f"{net}.{number}.1" for number, centre in enumerate(centres, 1)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all, and wait until each answers and knows the others."""
        for number, centre in enumerate(self.addresses, 1):
            self._configure(centre, number * (1 << 63) // (len(self.addresses) + 1))
            self._launch(centre)
        deadline = time.monotonic() + START_S_MAX
        for centre in self.addresses:
            while not self._is_ready(centre):
                code = self._processes[centre].poll()
                assert code is None, f"{centre} ended with {code}: {self._log(centre)}"
                assert time.monotonic() < deadline, f"{centre} does not answer: {self._log(centre)}"
                time.sleep(0.2)

    def _configure(self, centre: str, token: int) -> None:
        directory = self._directory / centre
        (directory / "tmp").mkdir(parents=True)
        values = {
            "token": token,
            "address": self.addresses[centre],
            "seeds": ",".join(f"{address}:7000" for address in self.addresses.values()),
            "directory": directory,
        }
        text = string.Template((CONF / "cassandra.yaml.in").read_text()).substitute(values)
        (directory / "cassandra.yaml").write_text(text)
        (directory / "rackdc.properties").write_text(f"dc={centre}\nrack=r1\n")

    def _launch(self, centre: str) -> None:
        directory = self._directory / centre
        jars = sorted(str(jar) for jar in Path(os.environ[JARS]).glob("*.jar"))
        command = [
            "java",
            *(CONF / "jvm.options").read_text().split(),
            "-Xmx192m",
            f"-Dcassandra.config=file://{directory}/cassandra.yaml",
            f"-Dcassandra-rackdc.properties=file://{directory}/rackdc.properties",
            f"-Dlogback.configurationFile={CONF}/logback.xml",
            f"-Dcassandra.storagedir={directory}",
            f"-Dcassandra.logdir={directory}",
            f"-Djava.io.tmpdir={directory}/tmp",
            f"-Dcassandra.jmx.local.port={_free_port()}",
            "-cp",
            ":".join(jars),
            "org.apache.cassandra.service.CassandraDaemon",
        ]
        prctl = ctypes.CDLL(None).prctl
        with (directory / "cassandra.log").open("ab") as log:
            self._processes[centre] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
                # As root its mlockall would succeed, and fault in the whole heap.
                preexec_fn=lambda: prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0),
            )

    def _is_ready(self, centre: str) -> bool:
        """Whether clients are answered, and all other nodes are known."""
        profile = ExecutionProfile(load_balancing_policy=DCAwareRoundRobinPolicy(centre))
        cluster = Cluster(
            [self.addresses[centre]], protocol_version=4, execution_profiles={EXEC_PROFILE_DEFAULT: profile}
        )
        try:
            known = cluster.connect().execute("SELECT COUNT(*) FROM system.peers_v2").one()[0]
        except NoHostAvailable:
            return False
        finally:
            cluster.shutdown()
        return bool(known == len(self.addresses) - 1)

    def _log(self, centre: str) -> str:
        return (self._directory / centre / "cassandra.log").read_text(errors="replace")[-2000:]

    def freeze(self, centre: str) -> None:
        """The node stands still."""
        self._processes[centre].send_signal(signal.SIGSTOP)

    def thaw(self, centre: str) -> None:
        """It goes on."""
        self._processes[centre].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all; what they wrote is of no use to anybody."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
