"""Our gRPC front: HTTP/2 in plain Python on asyncio, strict about peers and cheap per call."""

from cluster.frontend.http2.front import Http2Front
from cluster.frontend.http2.limits import Limits

__all__ = ["Http2Front", "Limits"]
