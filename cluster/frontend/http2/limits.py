"""Every limit of the HTTP/2 front, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

_KIB = 1 << 10
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer, and all peers together, may ask of this process."""

    # One message, in and out, uncompressed. Temporal's own default is 4 MiB; histories of 50 MiB exist.
    message_bytes_max: int = 64 * _MIB

    # A request's header list as RFC 7541 counts it; a larger one is refused, and the connection lives on.
    header_bytes_max: int = 16 * _KIB
    # Its coded block; a larger one ends the connection. Decoding is Python: 16 KiB of hostile Huffman code
    # cost 0.7 ms, so blocks over 4 KiB also count against the peer's calm. The SDKs send the namespace's name
    # as a header, so an absurdly long one is a user's mistake that must not hurt the other calls.
    header_block_bytes_max: int = 64 * _KIB
    # Our trailers. gRPC's C core and hyper refuse more than 16 KiB by default; a peer that announces less
    # gets less.
    trailer_bytes_max: int = 15 * _KIB

    # Calls at once on one connection; clients queue or open another connection beyond it.
    streams_max: int = 1000
    # What a peer may send ahead of our acknowledgement.
    stream_window_bytes: int = 1 * _MIB
    connection_window_bytes: int = 8 * _MIB

    # Bytes held for calls that are not over: half-sent requests, requests being worked on, unsent responses,
    # and CALL_BYTES each for the call itself. Over the connection's share, the call is refused; over the
    # total, the connection that holds most is closed. A single message is always allowed, whatever the share
    # says.
    connection_bytes_max: int = 128 * _MIB
    total_bytes_max: int = 512 * _MIB

    # One peer is one address; a proxy or NAT in front makes many clients look like one.
    connections_max: int = 20_000
    connections_per_peer_max: int = 5_000

    # TLS handshake; then preface and first SETTINGS; then any frame or header block that has begun.
    handshake_timeout_s: float = 10.0
    # A request that has begun and whose next byte does not come; a response that is not read any further.
    stall_timeout_s: float = 30.0
    # A silent peer is pinged after this long, and closed when it does not answer for as long again.
    keepalive_s: float = 30.0
    # Connections are asked to leave after this age (None: never), and closed this much later.
    connection_age_max_s: float | None = None
    connection_age_grace_s: float = 70.0  # a long poll is 60 s: it may still end by itself

    # Legal frames that only cost us (resets, pings, settings, empty frames): a leaky bucket of these two.
    calm_per_s: float = 200.0
    calm_burst: float = 2000.0

    # Responses from this size are compressed, if the client takes gzip. At level 1 64 KiB of history cost 0.5
    # ms.
    gzip_bytes_min: int = 64 * _KIB

    def __post_init__(self) -> None:
        """Relations that the code relies on."""
        assert self.connection_window_bytes >= self.stream_window_bytes
        assert self.stream_window_bytes >= 2 * 16_384, "a window must hold more than one frame"
        assert self.message_bytes_max >= 16_384, "what fits one frame is not measured again"
        assert self.header_block_bytes_max >= self.header_bytes_max >= 4096
        assert self.total_bytes_max >= self.connection_bytes_max
        assert self.gzip_bytes_min >= 1


# What a call that waits costs beside its request: the call, its task, its timer (measured: 2 KB a parked
# poll).
CALL_BYTES = 2048
