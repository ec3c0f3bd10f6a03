"""The connection flags of TLS, against a server that insists on a client's certificate."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Run = Callable[..., Result]


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


def issue(
    directory: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> Any:
    """A certificate for localhost and the server's name, signed by the issuer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("holdfast.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
    )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return pair, (certificate, key)


@pytest.fixture
def secured(scripted: Any, tmp_path: Path) -> Iterator[tuple[str, Pair, Pair]]:
    """Address, authority and client's pair of a server that speaks mutual TLS."""
    authority, issuer = issue(tmp_path, "authority", None)
    server_pair, _ = issue(tmp_path, "server", issuer)
    client_pair, _ = issue(tmp_path, "client", issuer)
    credentials = grpc.ssl_server_credentials(
        [(server_pair.key.read_bytes(), server_pair.certificate.read_bytes())],
        root_certificates=authority.certificate.read_bytes(),
        require_client_auth=True,
    )
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool, handlers=[scripted])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}", authority, client_pair
        server.stop(grace=None).wait()


def test_with_a_certificate_it_is_let_in(holdfast: Run, secured: tuple[str, Pair, Pair]) -> None:
    address, authority, client = secured
    flags = [
        "--tls-ca",
        str(authority.certificate),
        "--tls-cert",
        str(client.certificate),
        "--tls-key",
        str(client.key),
    ]
    result = holdfast("cluster", "version", "--address", address, *flags, "--json")
    assert json.loads(result.stdout)["server"] == "1.29.0", result.stderr
    flags += ["--tls-server-name", "holdfast.test"]
    assert holdfast("cluster", "version", "--address", address, *flags).exit_code == 0
    flags[-1] = "other.test"
    assert holdfast("cluster", "version", "--address", address, *flags).exit_code == 1


def test_without_a_certificate_it_is_not(holdfast: Run, secured: tuple[str, Pair, Pair]) -> None:
    address, authority, _ = secured
    result = holdfast("cluster", "version", "--address", address, "--tls-ca", str(authority.certificate))
    assert result.exit_code == 1
    assert f"no server answers at {address}" in result.stderr


def test_a_certificate_without_its_key_is_a_usage_error(
    holdfast: Run, secured: tuple[str, Pair, Pair]
) -> None:
    address, _, client = secured
    result = holdfast("cluster", "version", "--address", address, "--tls-cert", str(client.certificate))
    assert result.exit_code == 2
    assert "belong together" in result.stderr
