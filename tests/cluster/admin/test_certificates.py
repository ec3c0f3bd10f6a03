"""Certificates of nodes are tried out, and who is refused by TLS is told what to do."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from structlog.testing import capture_logs

from cluster.admin import certificates, doctor
from cluster.frontend.http2.front import Http2Front
from cluster.frontend.http2.tls import server_context
from cluster.hosting.config.node_config import load
from cluster.hosting.region import joining
from cluster.peers.contract import Unreachable
from tests.cluster.peers.certificates import Authority, Pair

Run = Callable[..., Result]


def node_file(directory: Path, name: str, pair: Pair, ca: Path, *, grpc: Pair | None = None) -> Path:
    """The node.toml of one of two nodes on 127.0.0.1."""
    number = int(name[-1])
    text = (
        f'[node]\nname = "{name}"\ndata_dir = "data{number}"\n[region]\nname = "a"\nreplicas = 1\n'
        'nodes = ["a/1=127.0.0.1:7301", "a/2=127.0.0.1:7302"]\n'
        f"[listen]\ngrpc = 740{number}\npeers = 730{number}\n"
        f'[tls.peers]\ncert = "{pair.certificate}"\nkey = "{pair.key}"\nca = "{ca}"\n'
    )
    if grpc is not None:
        text += f'[tls.grpc]\ncert = "{grpc.certificate}"\nkey = "{grpc.key}"\n'
    file = directory / f"{number}.toml"
    file.write_text(text)
    return file


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


def test_certificates_of_one_authority_are_right(holdfast: Run, tmp_path: Path, ours: Authority) -> None:
    files = [
        str(node_file(tmp_path, name, ours.issue(name[-1]), ours.certificate, grpc=ours.issue("g")))
        for name in ("a/1", "a/2")
    ]
    result = holdfast("config", "check", *files)
    assert result.exit_code == 0, result.stdout
    assert doctor.check_certificates(load(Path(files[0]))).verdict == "ok"


def test_a_certificate_of_another_authority_is_found(
    holdfast: Run, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    file = node_file(tmp_path, "a/1", theirs.issue("foreign"), ours.certificate)
    result = holdfast("config", "check", str(file))
    assert result.exit_code == 1
    assert "another node with these files would not be let in, dialed as 127.0.0.1: " in result.stdout
    assert "unable to get local issuer certificate" in result.stdout
    assert "tls.peers.ca" in result.stdout
    assert ": ok" not in result.stdout
    found = doctor.check_certificates(load(file))
    assert (found.verdict, found.do) == ("fail", certificates.DO)


def test_one_that_is_over_is_found(tmp_path: Path, ours: Authority) -> None:
    file = node_file(tmp_path, "a/1", ours.issue("old", days=-1), ours.certificate)
    assert "certificate has expired" in certificates.of_one(load(file))[0]


def test_a_certificate_for_another_host_is_found(tmp_path: Path, ours: Authority) -> None:
    file = node_file(tmp_path, "a/1", ours.issue("n"), ours.certificate)
    file.write_text(file.read_text().replace("127.0.0.1", "10.1.2.3"))
    assert "dialed as 10.1.2.3" in certificates.of_one(load(file))[0]


def test_nodes_of_two_authorities_are_found(
    holdfast: Run, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    files = [
        str(node_file(tmp_path, name, one.issue(name[-1]), one.certificate))
        for name, one in (("a/1", ours), ("a/2", theirs))
    ]
    assert [holdfast("config", "check", file).exit_code for file in files] == [0, 0]
    result = holdfast("config", "check", *files)
    assert result.exit_code == 1
    assert "a/1 and a/2 would not let each other in" in result.stdout


def test_a_key_of_another_certificate_is_found(tmp_path: Path, ours: Authority) -> None:
    mixed = Pair(ours.issue("one").certificate, ours.issue("two").key)
    good = ours.issue("n")
    (problem,) = certificates.of_one(load(node_file(tmp_path, "a/1", mixed, ours.certificate)))
    assert "is not the key of the certificate" in problem
    (problem,) = certificates.of_one(load(node_file(tmp_path, "a/1", good, ours.certificate, grpc=mixed)))
    assert problem.startswith("[tls.grpc]: the certificates cannot be used")


# ------------------------------------------------------------------------------------------ commands


@pytest.fixture
def port(tmp_path: Path, ours: Authority) -> Iterator[int]:
    """Of a front that wants a certificate."""
    loop, mine = asyncio.new_event_loop(), ours.issue("server")
    front = Http2Front({})
    context = server_context(str(mine.certificate), str(mine.key), str(ours.certificate))
    loop.run_until_complete(front.start("127.0.0.1", 0, context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield front.port
    asyncio.run_coroutine_threadsafe(front.drain(0.0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("command", [("cluster", "health"), ("shard", "list"), ("cluster", "version")])
def test_a_command_without_a_certificate_says_which_flags(
    holdfast: Run, ours: Authority, port: int, command: tuple[str, ...]
) -> None:
    result = holdfast(*command, "--address", f"127.0.0.1:{port}", "--tls-ca", str(ours.certificate))
    told = result.stdout + result.stderr
    assert result.exit_code == 1
    assert "it wants a client's certificate (--tls-cert and --tls-key)" in told
    assert "do: correct the flags: --tls-ca is" in told


@pytest.mark.parametrize("command", [("cluster", "health"), ("shard", "transfer", "1", "--to", "a/1")])
def test_a_command_with_a_foreign_certificate_says_so_in_a_sentence(
    holdfast: Run, ours: Authority, theirs: Authority, port: int, command: tuple[str, ...]
) -> None:
    foreign = theirs.issue("stranger")
    flags = ["--tls-ca", str(ours.certificate), "--tls-cert", str(foreign.certificate)]
    result = holdfast(*command, "--address", f"127.0.0.1:{port}", *flags, "--tls-key", str(foreign.key))
    told = result.stdout + result.stderr
    assert result.exit_code == 1, "it was refused for certain"
    assert "it does not take this client's certificate" in told
    assert "hyper" not in told
    assert "do: correct the flags" in told


# ------------------------------------------------------------------------------------------ joining


async def test_who_is_hung_up_on_at_the_door_is_told_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "COMPLAIN_S", 0.0)
    asked = 0

    class HungUp:
        async def ask(self, address: Any, request: bytes) -> joining.Told:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise asyncio.CancelledError
            raise Unreachable("the other side hung up")

    monkeypatch.setattr(joining, "ask", lambda *_, **__: b"")
    asker: Any = HungUp()
    record: Any = None
    with capture_logs() as said, pytest.raises(asyncio.CancelledError):
        await joining.join(asker, [("127.0.0.1", 1)], record, random.Random(1))
    assert "tls.peers.ca" in said[0]["do"]
