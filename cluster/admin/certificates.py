"""Whether the certificates of node.toml files do what they are for: tried out, in memory, without a network.

The contexts are those that a node makes at its start. A node dials itself with them, and each of several
nodes dials each other: who would not be let in is known before anything is started.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.hosting.config.node_config import NodeConfig

DO = (
    "The certificate of every node has to be valid, for the host that others dial, and signed by one "
    "authority, which tls.peers.ca names in the files of all"
)


def of_one(config: NodeConfig) -> list[str]:
    """What is wrong with the certificates of one file, in sentences."""
    from cluster.frontend.http2.tls import server_context
    from cluster.peers.tls import TlsError, load_tls

    found = []
    peers, grpc = config.tls.peers, config.tls.grpc
    if peers is not None:
        try:
            load_tls(peers.cert, peers.key, peers.ca)
        except TlsError as error:
            found.append(f"[tls.peers]: {error}. Correct the paths, or make the files anew")
        else:
            found += _between(config, config)
    if grpc is not None:
        try:
            server_context(grpc.cert, grpc.key, grpc.client_ca)
        except OSError as error:
            why = error.strerror or error
            found.append(
                f"[tls.grpc]: the certificates cannot be used: {why}. See that cert and key are PEM files "
                "that belong together, and client_ca is one"
            )
    return found


def of_several(configs: Sequence[NodeConfig]) -> list[str]:
    """Which nodes would not let each other in; of files that are right by themselves."""
    able = [one for one in configs if one.tls.peers is not None and not of_one(one)]
    pairs = [(one, other) for one in able for other in able if one is not other]
    return [problem for one, other in pairs for problem in _between(one, other)]


def _between(dials: NodeConfig, answers: NodeConfig) -> list[str]:
    from cluster.hosting.config.addresses import split_address
    from cluster.peers.tls import load_tls, rehearse

    assert dials.tls.peers is not None, "only nodes with TLS are asked about"
    assert answers.tls.peers is not None, "only nodes with TLS are asked about"
    here, there = (load_tls(one.cert, one.key, one.ca) for one in (dials.tls.peers, answers.tls.peers))
    host, _ = split_address(answers.advertise.peers)
    try:
        rehearse(here, there, host)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or error.reason or str(error)
        if dials is answers:
            what = f"[tls.peers]: another node with these files would not be let in, dialed as {host}: {why}"
        else:
            what = f"{dials.node.name} and {answers.node.name} would not let each other in: {why}"
        return [f"{what}. {DO}"]
    return []
