"""What the levels of the log let through."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from cluster.hosting.process import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("warn", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
        ("never", []),
    ],
)
def test_levels(level: str, written: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level, "json")
    log = structlog.get_logger("room")
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(log, name)("said")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == written
    assert all(line["room"] == "room" for line in lines)
