"""Raft's behaviour as transcripts: `pytest tests/transcripts --rewrite` writes them anew; read the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts.datadriven import replay
from tests.transcripts.raft_interaction import Interaction

TRANSCRIPTS = sorted((Path(__file__).parent / "raft").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    now = replay(path, Interaction())
    if request.config.getoption("--rewrite"):
        path.write_text(now)
    assert path.read_text() == now


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
