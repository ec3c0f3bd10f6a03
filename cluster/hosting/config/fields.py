"""What keys of node.toml are made of: forms of names and addresses, how a key is described and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta

REGION_NAME: Final = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
NODE_NAME: Final = rf"{REGION_NAME}/[A-Za-z0-9]([A-Za-z0-9._-]{{0,62}})?"
HOST: Final = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]{0,252}))"
ADDRESS: Final = rf"{HOST}:[0-9]{{1,5}}"

FILE_FORM: Final = "the path of a PEM file"

Port = Annotated[int, Meta(ge=1, le=65535)]
PemFile = Annotated[str, Meta(min_length=1)]


def about(description: str, *, bounds: Mapping[str, Any] | None = None, **extra: str) -> Meta:
    """A key's meaning, its bounds in msgspec's words, and `extra` as reading.py explains it."""
    return Meta(description=description, extra=dict(extra), **(bounds or {}))


def within(least: int, most: int) -> dict[str, int]:
    """The bounds of a whole number."""
    return {"ge": least, "le": most}
