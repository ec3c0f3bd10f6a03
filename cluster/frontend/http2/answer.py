"""What we send in HEADERS frames: constant blocks for the usual response, and encoded ones for statuses."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from typing import Final

from cluster.frontend.http2.hpack import literal

# ":status 200" is static index 8; "content-type" is index 31, used as the name of a literal without indexing.
RESPONSE_HEADERS: Final = b"\x88\x0f\x10\x10application/grpc"
OK_TRAILERS: Final = literal(b"grpc-status", b"0")
GZIP_HEADER: Final = literal(b"grpc-encoding", b"gzip")

_NAME = re.compile(r"[0-9a-z_.\-]+").fullmatch
_VALUE = re.compile(r"[\x20-\x7e]*").fullmatch
_FIELD_OVERHEAD: Final = 32
# What the peer counts beside the texts: five fields, their names, and the two constant values.
_STATUS_BYTES: Final = 5 * _FIELD_OVERHEAD + 100


def percent_encode(message: str) -> str:
    """grpc-message's own encoding: printable ASCII except the percent sign stays."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02X}"
        for byte in message.encode(errors="replace")
    )


def metadata_block(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Our metadata as literals. ValueError names what gRPC does not allow (this is a bug of the
    handler's).
    """
    block = b""
    for name, value in pairs:
        if _NAME(name) is None or name.startswith("grpc-"):
            raise ValueError(f"metadata key {name!r} is not allowed")
        if name.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            block += literal(name.encode(), b64encode(raw).rstrip(b"="))
        elif isinstance(value, str) and _VALUE(value) is not None:
            block += literal(name.encode(), value.encode())
        else:
            raise ValueError(f"metadata value of {name!r} must be printable ASCII text")
    return block


def status_block(code: int, message: str, details: bytes | None, bytes_max: int) -> bytes:
    """Trailers that say how a call failed, in at most `bytes_max` as the peer counts them.

    What does not fit is dropped in the order of its worth: first the details, then the end of the message.
    """
    block = literal(b"grpc-status", str(int(code)).encode())
    room = bytes_max - _STATUS_BYTES
    text = percent_encode(message)
    if len(text) > room:
        # A cut inside a percent escape would be a wrong one.
        text = re.sub(r"%.?$", "", text[: max(room - 3, 0)]) + "..."
    if text:
        block += literal(b"grpc-message", text.encode())
    if details is not None:
        coded = b64encode(details).rstrip(b"=")
        if len(coded) + len(text) <= room:
            block += literal(b"grpc-status-details-bin", coded)
    return block
