"""Addresses as people write them: "host:port", with brackets around an IPv6 host."""

from __future__ import annotations

from typing import Final

FORM: Final = "host:port, like 10.0.0.1:7301 or [::1]:7301"


def split_address(text: str) -> tuple[str, int]:
    """Host (without brackets) and port (1 to 65535). ValueError with a sentence."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has to be {FORM}, with a port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """The reverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
