"""Who waits for what other nodes answer to a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cluster.hosting.calls.forward import Forward
    from history_store.engine.errors import ServiceError

SCATTER_S = 2.0  # what other nodes get to tell what they know; who does not answer is left out


class Hearer(Protocol):
    """Who asked another node something."""

    def heard(self, node_id: int, body: bytes | None, error: ServiceError | None = None) -> None:
        """It has answered, or cannot: it said why, or it (or a node that was not asked) is gone."""


class Gathering:
    """What other nodes answer to one question."""

    __slots__ = ("_done", "_forward", "_timer", "answers", "waits_for")

    def __init__(self, forward: Forward, waits_for: set[int], done: Callable[[list[bytes]], None]) -> None:
        self._forward = forward
        self._done: Callable[[list[bytes]], None] | None = done
        self.waits_for = waits_for
        self.answers: list[bytes] = []
        self._timer = forward.loop.call_later(SCATTER_S, self._end)

    def heard(self, node_id: int, body: bytes | None, error: ServiceError | None = None) -> None:  # noqa: ARG002
        """One has answered, or cannot."""
        self.waits_for.discard(node_id)
        if body is not None:
            self.answers.append(body)
        self.look()

    def look(self) -> None:
        """Whether all have."""
        if not self.waits_for:
            self._end()

    def _end(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._timer.cancel()
            self._forward.forget(self)
            done(self.answers)
