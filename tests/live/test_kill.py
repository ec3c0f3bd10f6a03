"""The kill suite's short form: ten SIGKILLs under load, and nothing acknowledged may be missing.

The long form is `make chaos KILLS=200`. Another seed each time; a failure prints the command that repeats it.
"""

from __future__ import annotations

import os
import random

import pytest

from chaos.checkers.verdict import Verdict
from chaos.live.kill import run_suite, show

KILLS = 10
ACKNOWLEDGED_MIN = 200  # fewer, and the run has tested little

pytestmark = pytest.mark.live


@pytest.mark.timeout(1500)
async def test_what_was_acknowledged_survives_ten_kills(request: pytest.FixtureRequest) -> None:
    given: int | None = request.config.getoption("--seed")
    seed = given if given is not None else random.Random(os.environ["SIM_BASE_SEED"]).getrandbits(32)
    report = await run_suite(KILLS, seed)
    assert report.verdict is Verdict.OK, show(report)
    assert sum(row["ok"] for row in report.operations.values()) >= ACKNOWLEDGED_MIN, show(report)
    assert report.faults["crash image"], show(report)
