"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_the_page_of_rpcs_is_up_to_date() -> None:
    made = subprocess.run([sys.executable, "-m", "docs.generate.rpcs", "--check"], cwd=REPO, check=False)
    assert made.returncode == 0, "docs/rpcs.md is not what the code says: run `make docs`"
