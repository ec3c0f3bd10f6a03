"""Logging of the process: one line says who, what and where, on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "never": 100}
_LAST = 50  # the highest that structlog filters by; "never" drops what is left


def configure(level: str, form: str) -> None:
    """`level` and `form` as the server's options name them."""
    number = _LEVELS[level]
    renderer: Any
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=form == "pretty" and sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[
            *([_drop] if number > _LAST else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if form == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(min(number, _LAST)),
        logger_factory=_Named,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=number, format="%(asctime)s [%(levelname)s] %(name)s %(message)s", stream=sys.stderr
    )


class _Named(structlog.PrintLogger):
    """Prints to standard error and remembers its room."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr)
        self.name = name


def _drop(_logger: Any, _method: str, _event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    raise structlog.DropEvent


def _name(logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["room"] = getattr(logger, "name", "")
    return event
