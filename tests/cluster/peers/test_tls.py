"""Mutual TLS: who has no certificate of the region's authority does not get as far as hello."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cluster.peers.contract import PeerError, Unanswered, Unreachable
from cluster.peers.strangers import ask_stranger
from cluster.peers.tls import Tls, TlsError, load_tls
from tests.cluster.peers.worlds import Node, SocketWorld


def ask_with(tls: Tls, client: Tls | ssl.SSLContext | None, *, host: str = "") -> tuple[Any, Node]:
    """Start a node with TLS and ask it as this client."""

    async def main() -> tuple[Any, Node]:
        world = SocketWorld(random.Random(0), tls)
        node = await world.start(1)
        address = world.address(1)
        try:
            return await ask_stranger((host or address[0], address[1]), [1, "in"], 2.0, tls=client), node
        except PeerError as error:
            return error, node
        finally:
            await world.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def loaded(pair: Any, authority: Any, **options: Any) -> Tls:
    return load_tls(str(pair.certificate), str(pair.key), str(authority.certificate), **options)


def test_who_has_a_certificate_is_answered(tls: Tls) -> None:
    assert ask_with(tls, tls)[0] == [2, 1, "", "in"]
    assert ask_with(tls, tls.client)[0] == [2, 1, "", "in"]


def test_who_has_none_or_another_authoritys_is_not(tls: Tls, authorities: Any, log: list[Any]) -> None:
    ours, other = authorities
    bare = ssl.create_default_context(cafile=str(ours.certificate))
    foreign = ssl.create_default_context(cafile=str(ours.certificate))
    pair = other.issue("foreign")
    foreign.load_cert_chain(pair.certificate, pair.key)
    expired = ssl.create_default_context(cafile=str(ours.certificate))
    pair = ours.issue("expired", days=-1)
    expired.load_cert_chain(pair.certificate, pair.key)
    for client in (bare, foreign, expired, None):
        answer, node = ask_with(tls, client)
        assert isinstance(answer, Unreachable | Unanswered), answer
        assert answer.definite
        assert node.events == []
    complaints = [line["why"] for line in log if line["event"] == "a TLS handshake failed"]
    assert len(complaints) == 4
    for word in ("did not return a certificate", "unable to get local issuer", "expired"):
        assert any(word in why for why in complaints), (word, complaints)


def test_a_node_of_another_authority_is_not_trusted(tls: Tls, authorities: Any) -> None:
    _, other = authorities
    answer, _ = ask_with(loaded(other.issue("impostor"), other), tls)
    assert isinstance(answer, Unreachable)
    assert "certificate verify failed" in str(answer)


def test_the_name_dialed_is_checked_unless_another_is_given(tls: Tls, authorities: Any) -> None:
    ours, _ = authorities
    answer, _ = ask_with(tls, tls, host="localhost")
    assert isinstance(answer, Unreachable)
    assert "ostname mismatch" in str(answer)
    named = loaded(ours.issue("named"), ours, server_name="holdfast.test")
    assert ask_with(tls, named, host="localhost")[0] == [2, 1, "", "in"]


def test_a_node_without_tls_says_what_the_caller_did(tls: Tls, log: list[Any]) -> None:
    answer, _ = ask_with(None, tls)  # type: ignore[arg-type]
    assert isinstance(answer, Unreachable)
    assert any("configure it on both sides" in line.get("why", "") for line in log)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (("missing", "key", "ca"), r"cannot read the certificate .*missing: No such file"),
        (("certificate", "missing", "ca"), r"cannot read the key .*missing: No such file"),
        (("certificate", "key", "missing"), r"cannot read the authority .*missing: No such file"),
        (("certificate", "key", "text"), r"the authority .*text is not in PEM form"),
        (("certificate", "key", "key"), r"the authority .*key holds no certificate"),
        (("certificate", "other key", "ca"), r"the key .* is not the key of the certificate"),
        (("certificate", "certificate", "ca"), r"damaged, or one was given for the other"),
        (("certificate", "broken", "ca"), r"damaged, or one was given for the other"),
        (("certificate", "encrypted", "ca"), r"the key is encrypted"),
    ],
)
def test_files_that_cannot_be_used(
    authorities: Any, tmp_path: Path, files: tuple[str, str, str], sentence: str
) -> None:
    from cryptography.hazmat.primitives import serialization

    ours, _ = authorities
    pair, other = ours.issue("one"), ours.issue("another")
    paths = {
        "certificate": pair.certificate, "key": pair.key, "ca": ours.certificate, "other key": other.key,
        "missing": tmp_path / "missing", "text": tmp_path / "text", "broken": tmp_path / "broken",
        "encrypted": tmp_path / "encrypted",
    }  # fmt: skip
    paths["text"].write_text("hello")
    paths["broken"].write_text(pair.key.read_text().replace("M", "!"))
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    paths["encrypted"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsError, match=sentence):
        load_tls(*(str(paths[name]) for name in files))
