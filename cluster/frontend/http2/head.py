"""A request's head: its fields validated once, and everything a call needs to know from them.

Heads are cached by the connection and shared by all calls that sent the same fields, so a `Head` never
changes after it is made; what is expensive and rarely wanted (the metadata mapping) is computed when first
asked for.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cluster.frontend.contract import Handler
from cluster.frontend.http2.frames import FRAME_BYTES_MAX
from cluster.frontend.http2.hpack import Field

# What a head turned out to be. Anything but GRPC is answered without a handler.
GRPC: Final = 0
MALFORMED: Final = 1  # RFC 9113 section 8.1.1: reset the stream
UNKNOWN_METHOD: Final = 2
NOT_GRPC: Final = 3  # an ordinary HTTP request
OVERSIZED: Final = 4

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch  # a token without capitals
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search  # control characters except the tab
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# Fields that are the transport's own business and not metadata. grpcio hides the same.
_TRANSPORT_FIELDS: Final = frozenset(
    (b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding")
)
_PSEUDO: Final = {b":path": 1, b":method": 2, b":scheme": 4, b":authority": 8}
_PSEUDO_REQUIRED: Final = 1 | 2 | 4
_TIMEOUT_UNITS: Final = {72: 3600.0, 77: 60.0, 83: 1.0, 109: 1e-3, 117: 1e-6, 110: 1e-9}  # H M S m u n
_TIMEOUT_MAX_S: Final = 365 * 86400.0  # clients say "none" with absurd numbers; timers dislike those
_CONTENT_TYPE: Final = b"application/grpc"

_EMPTY: Final[Mapping[str, str | bytes]] = MappingProxyType({})


class Head:
    """What a request's fields say. `fields` never includes grpc-timeout, which differs from call to call."""

    __slots__ = (
        "_metadata",
        "accepts_gzip",
        "content_length",
        "encoding",
        "fields",
        "handler",
        "http_method",
        "inline_bytes_max",
        "kind",
        "path",
        "streaming",
    )

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self.kind = GRPC
        self.path = b""
        self.http_method = b""
        self.handler: Handler | None = None
        self.streaming = False
        self.content_length: int | None = None
        self.encoding: bytes | None = None
        self.accepts_gzip = False
        self.inline_bytes_max = FRAME_BYTES_MAX  # a response up to this (prefix included) goes out as it is
        self._metadata: Mapping[str, str | bytes] | None = None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The caller's metadata. A text key sent twice is joined by a comma; of a binary one, the last
        counts.
        """
        if self._metadata is None:
            self._metadata = _metadata(self.fields)
        return self._metadata


def _metadata(fields: Sequence[Field]) -> Mapping[str, str | bytes]:
    out: dict[str, str | bytes] = {}
    for field in fields:
        name = field.name
        if name[:1] == b":" or name in _TRANSPORT_FIELDS:
            continue
        key = name.decode("ascii")
        if key.endswith("-bin"):
            try:
                out[key] = b64decode(field.value + b"==")
            except binascii.Error:
                out[key] = b""
        else:
            text = field.value.decode("latin-1")
            before = out.get(key)
            out[key] = text if before is None else f"{before!s},{text}"
    return MappingProxyType(out) if out else _EMPTY


def timeout_s(text: bytes) -> float | None:
    """grpc-timeout in seconds; None if it is not one."""
    unit = _TIMEOUT_UNITS.get(text[-1]) if 2 <= len(text) <= 9 and text[:-1].isdigit() else None
    return None if unit is None else min(int(text[:-1]) * unit, _TIMEOUT_MAX_S)


def split_timeout(fields: list[Field]) -> tuple[list[Field], bytes | None]:
    """The fields without grpc-timeout, and its text."""
    if fields and fields[-1].name == b"grpc-timeout":  # where most clients put it
        return fields[:-1], fields[-1].value
    for index, field in enumerate(fields):
        if field.name == b"grpc-timeout":
            return fields[:index] + fields[index + 1 :], field.value
    return fields, None


MALFORMED_HEAD: Final = Head(())
MALFORMED_HEAD.kind = MALFORMED


def parse(fields: Sequence[Field]) -> Head:
    """Validate the fields (RFC 9113 section 8.2 and 8.3, and gRPC's own rules) and read them."""
    head = Head(fields)
    seen = 0
    regular = False
    content_type = b""
    for field in fields:
        name, value = field.name, field.value
        if _BAD_VALUE(value) is not None:
            head.kind = MALFORMED
        if name[:1] == b":":
            bit = _PSEUDO.get(name, 0)
            if regular or not bit or seen & bit:
                head.kind = MALFORMED
            seen |= bit
            if bit == 1:
                head.path = value
            elif bit == 2:
                head.http_method = value
            continue
        regular = True
        if name == b"content-type":
            content_type = value
        elif not _regular(head, name, value):
            head.kind = MALFORMED
    if head.kind == GRPC:
        if seen & _PSEUDO_REQUIRED != _PSEUDO_REQUIRED or not head.path:
            head.kind = MALFORMED
        elif head.http_method != b"POST" or not _is_grpc(content_type):
            head.kind = NOT_GRPC
    return head


def _regular(head: Head, name: bytes, value: bytes) -> bool:
    """Read one ordinary field; False if it is not allowed."""
    if name == b"te":
        return value == b"trailers"
    if name == b"content-length":
        if not value.isdigit() or len(value) > 12:
            return False
        head.content_length = int(value)
    elif name == b"grpc-encoding":
        head.encoding = None if value == b"identity" else value
    elif name == b"grpc-accept-encoding":
        head.accepts_gzip = b"gzip" in [part.strip() for part in value.split(b",")]
    # A second grpc-timeout is the only one that gets here; which one counts would be a guess.
    return name not in _CONNECTION_FIELDS and name != b"grpc-timeout" and _NAME(name) is not None


def _is_grpc(content_type: bytes) -> bool:
    return content_type[:16] == _CONTENT_TYPE and content_type[16:17] in (b"", b"+", b";")
