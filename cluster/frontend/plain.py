"""Connections and calls that no HTTP/2 stands behind: from another node, of a node's own, or invented."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

_log: Final = structlog.get_logger("frontend")


class PlainConnection:
    """A client's connection (a `contract.Connection`), which somebody else tells when it closes."""

    __slots__ = ("_callbacks", "closed", "peer")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.closed = False
        self._callbacks: list[Callable[[], None]] = []

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when it is gone."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        """It is gone."""
        self.closed = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the others are to hear, too
                _log.exception("what hung on a connection could not be told that it closed")


class PlainCall:
    """What all calls have that are no streams and come without metadata; the rest is a `contract.Call`."""

    __slots__ = ("deadline", "done", "method", "on_cancel", "on_message", "request")

    def __init__(self, method: str, request: bytes, deadline: float | None) -> None:
        self.method = method
        self.request = request
        self.deadline = deadline
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """None."""
        return {}

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Nobody reads it."""

    def end(self) -> None:
        """It is done: nobody waits for it any more."""
        self.done = True
        self.on_cancel = self.on_message = None

    def cancel(self) -> None:
        """Whoever asked has gone, or its time is up: its handler hears of it."""
        if not self.done:
            told = self.on_cancel
            self.end()
            if told is not None:
                told()

    def write(self, body: bytes) -> None:
        """It is no stream."""
        raise NotImplementedError(f"{self.method} is no stream")
