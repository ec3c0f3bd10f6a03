"""The region suite's short form: every fault once on three real nodes under load, and nobody notices.

The long form is `make chaos REGION=1`. Another seed each time; a failure prints the command that repeats it.
Where the machine lacks something (a mount of our own, toxiproxy) the report says what was skipped and why.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest

from chaos.live.region import (
    CUT_OUT,
    FULL_DISK,
    KILL,
    PARTITION,
    PAUSE,
    RESTART,
    SLOW_DISK,
    SLOW_NETWORK,
)

FAULTS = (KILL, PAUSE, RESTART, CUT_OUT, PARTITION, FULL_DISK, SLOW_DISK, SLOW_NETWORK)
ACKNOWLEDGED_MIN = 500  # fewer, and the run has tested little
RUN_S_MAX = 1400.0  # of a busy machine; some 80 s are usual

pytestmark = pytest.mark.live


@pytest.mark.timeout(1500)
def test_a_region_does_not_blink(request: pytest.FixtureRequest) -> None:
    given: int | None = request.config.getoption("--seed")
    seed = given if given is not None else random.Random(os.environ["SIM_BASE_SEED"]).getrandbits(32)
    command = [sys.executable, "-m", "chaos.live.region", "--kills", "1", "--short", "--json"]
    command += ["--seed", str(seed), "--pace", "6", *(f"--fault={fault}" for fault in FAULTS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False)
    report: dict[str, Any] = json.loads(result.stdout or "{}")
    assert report.get("verdict") == "ok", f"{result.stderr}\n{json.dumps(report, indent=1)}"
    assert result.returncode == 0
    tried = {felt["fault"] for felt in report["faults"]}
    assert tried | report["skipped"].keys() >= set(FAULTS), report
    assert report["acknowledged"] >= ACKNOWLEDGED_MIN, report
    assert report["linearizable"]["verdict"] == "ok", report
