"""What a user's program imports; knows the wire and nothing behind it.

    from sdk import connect

    client = await connect(["eu.example.com:7233", "us.example.com:7233"], namespace="orders")

What is exported here is loaded when it is asked for: a workflow's sandbox that imports another module of this
package does not run this one's imports again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdk.connecting import connect, endpoints_of
    from sdk.endpoints import EndpointState

__all__ = ["EndpointState", "connect", "endpoints_of"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdk import connecting

    return getattr(connecting, name)
