"""TLS between nodes: both sides show a certificate of the region's authority, or there is no connection."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FLIGHTS = 3  # of each side: more than a handshake of TLS 1.3 has


class TlsError(Exception):
    """The files cannot be used; the sentence names the file and what is wrong with it."""


class Tls(NamedTuple):
    """What a node needs to accept and to dial."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    server_name: str = ""  # that certificates of peers are checked for; "": the host that was dialed


def load_tls(certificate: str, key: str, ca: str, *, server_name: str = "") -> Tls:
    """Contexts from PEM files: this node's certificate (with its chain) and key, and the authority that signs
    the certificates of all nodes. `server_name`: a name that every node's certificate carries, if they do not
    carry the hosts under which the nodes are dialed. TlsError: a file cannot be used."""
    for what, path in (("certificate", certificate), ("key", key), ("authority", ca)):
        _readable(what, path)
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise TlsError(f"the authority {ca} holds no certificate in PEM form") from None
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            raise TlsError(_why(error, certificate, key)) from None
        contexts.append(context)
    return Tls(contexts[0], contexts[1], server_name)


def rehearse(dials: Tls, answers: Tls, host: str) -> None:
    """Shake hands in memory, as a node that dials `host` with one that answers there. ssl.SSLError: they
    would not let each other in."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = dials.client.wrap_bio(back, there, server_hostname=dials.server_name or host)
    server = answers.server.wrap_bio(there, back, server_side=True)
    for side in (client, server) * FLIGHTS:
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _readable(what: str, path: str) -> None:
    try:
        if "-----BEGIN" not in Path(path).read_text(errors="replace"):
            raise TlsError(f"the {what} {path} is not in PEM form")
    except OSError as error:
        raise TlsError(f"cannot read the {what} {path}: {error.strerror}") from None


def _no_password() -> str:
    raise TlsError("the key is encrypted: a node that restarts by itself cannot ask for a password")


def _why(error: ssl.SSLError, certificate: str, key: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key {key} is not the key of the certificate {certificate}"
    if "PEM lib" in str(error):
        return f"the certificate {certificate} or the key {key} is damaged, or one was given for the other"
    return f"the certificate {certificate} and the key {key} cannot be used: {error.reason or error}"
