"""Certificates of a test: an authority, one for each node's address, one for clients."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Signs what it is asked to. `directory` holds ca.pem and what is signed: key, certificate, authority."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        unsigned = self._unsigned("authority", self._key).add_extension(x509.BasicConstraints(True, 0), True)
        self._certificate = unsigned.sign(self._key, hashes.SHA256())
        (directory / "ca.pem").write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _unsigned(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def sign(self, name: str, addresses: Iterable[str] = ()) -> Path:
        """A file with key, certificate and authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        unsigned = self._unsigned(name, key).add_extension(x509.BasicConstraints(False, None), True)
        if names:
            unsigned = unsigned.add_extension(x509.SubjectAlternativeName(names), False)
        certificate = unsigned.sign(self._key, hashes.SHA256())
        parts = [
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
            (self.directory / "ca.pem").read_bytes(),
        ]
        path = self.directory / f"{name}.pem"
        path.write_bytes(b"".join(parts))
        return path

    def client(self, certificate: Path | None) -> ssl.SSLContext:
        """What a client connects with: trusts this authority only, and shows `certificate`."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context
