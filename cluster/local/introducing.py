"""Regions of a local cluster come to know each other: by the commands that an operator gives.

What a region knows already, removed or not, is left alone, so that it may be asked for at every `up`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from cluster.local.plan import HOST, LocalError, Plan, RegionPlan

HOLDFAST: Final = (sys.executable, "-P", "-m", "cluster.admin.main")
AGAIN_S: Final = 0.2
COMMAND_MAX_S: Final = 120.0  # it says itself why it fails, and sooner


def introduce(plan: Plan, patience_s: float, tell: Callable[[str], None]) -> None:
    """All regions to all others. LocalError if one will not, or cannot for so long."""
    for at, region in enumerate(plan.regions[:-1]):
        known = {row["name"] for row in _asked(region, patience_s, "list")["regions"]}
        for other in plan.regions[at + 1 :]:
            if other.name not in known:
                addresses = [f"{HOST}:{node.peers}" for node in other.nodes]
                _asked(region, patience_s, "add", *addresses, "--timeout", f"{patience_s:g}s")
                tell(f"{region.name} and {other.name} know each other")


def _asked(region: RegionPlan, patience_s: float, *words: str) -> dict[str, Any]:
    """What a region says to `holdfast region ...`; asked again while it is still coming up."""
    until = time.monotonic() + patience_s
    address = ",".join(node.address for node in region.nodes)
    command = [*HOLDFAST, "region", *words, "--address", address, "--json"]
    # What is set for commands of the caller's, like another server's address or TLS, is not for these.
    mine = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "TEMPORAL_"))
    }
    while True:
        done = subprocess.run(  # noqa: S603 - our own program
            command, capture_output=True, text=True, check=False, env=mine, timeout=COMMAND_MAX_S + patience_s
        )
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer
        if time.monotonic() >= until:
            what, _, do = done.stderr.strip().partition("\n")
            raise LocalError(
                f"region {region.name} cannot be introduced: {what.removeprefix('error: ')}",
                do.strip().removeprefix("do: ") or "`holdfast region add` does what is left",
            )
        time.sleep(AGAIN_S)  # noqa: TID251 - waits for other processes, which no clock of ours moves
