"""The log between regions of a local cluster, on Cassandra: planned, prepared, and its tables made.

One node for each region, whose data centre has the region's name. What it needs, jars and a Java, is fetched
when it is not there; the supervisor runs it as it runs the cluster's nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.local.cassandra import jars
from cluster.local.cassandra.server import (
    CONFIG_FILE,
    CQL_PORT,
    STORAGE_PORT,
    command,
    configure,
    token_of,
)
from cluster.local.introducing import HOLDFAST
from cluster.local.plan import LOG_DIRECTORY, LocalError, LogPlan, Plan
from cluster.local.ports import free_ports, is_free

if TYPE_CHECKING:
    import random

Report = Callable[[str], None]

NETWORKS_TRIED: Final = 100
AGAIN_S: Final = 0.5
COMMAND_MAX_S: Final = 120.0
COPIES: Final = "1"  # a node each


def planned_logs(regions: Sequence[str], rng: random.Random) -> list[LogPlan]:
    """A Cassandra node for each region, at addresses that nobody uses. LocalError."""
    if sys.platform != "linux":
        raise LocalError(
            "--log cassandra: a network of addresses on loopback is Linux's", "leave --log out", usage=True
        )
    jmx = free_ports(len(regions), rng)
    for _ in range(NETWORKS_TRIED):
        network = f"127.{rng.randrange(64, 192)}.{rng.randrange(1, 255)}"
        addresses = [f"{network}.{number}" for number in range(1, len(regions) + 1)]
        if all(is_free(port, host) for host in addresses for port in (CQL_PORT, STORAGE_PORT)):
            return [
                LogPlan(f"{LOG_DIRECTORY}/{region}", region, address, port)
                for region, address, port in zip(regions, addresses, jmx, strict=True)
            ]
    raise LocalError("no free network on loopback for Cassandra", "`ss -ltn` shows what is taken")


def prepare(directory: Path, plan: Plan, tell: Report) -> None:
    """Have what the plan's Cassandra nodes need, and write their files. LocalError."""
    if not plan.logs:
        return
    absent = jars.absent()
    if absent:
        tell(f"fetching Cassandra: {absent} jars, once")
    try:
        java = jars.java()
        folder = jars.folder()
    except jars.MissingError as error:
        raise LocalError(
            str(error),
            f"install Java {jars.JAVA}; name a Maven repository that can be reached with "
            f"{jars.REPOSITORY}; or leave --log out",
        ) from None
    seeds = [one.address for one in plan.logs]
    for number, one in enumerate(plan.logs, start=1):
        files = one.files(directory)
        if not (files / CONFIG_FILE).exists():  # it is for people to edit
            token = token_of(number, len(plan.logs))
            configure(files, one.region, one.address, token, seeds, cluster_name="holdfast-local", hints=True)
        words = command(files, java, folder, one.jmx)
        one.command(directory).write_text(json.dumps(words, indent=1))


def make_tables(directory: Path, plan: Plan, patience_s: float, tell: Report) -> None:
    """Make the tables, if they are missing, by the command that an operator gives. LocalError."""
    region = plan.regions[0]
    names = ",".join(one.region for one in plan.logs)
    words = ["--config", str(region.nodes[0].config(directory)), "--regions", names, "--copies", COPIES]
    whole = [*HOLDFAST, "replication", "log", "init", *words, "--json"]
    until = time.monotonic() + patience_s
    while True:
        done = subprocess.run(  # noqa: S603 - our own program
            whole,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **plan.environment},
            timeout=COMMAND_MAX_S,
        )
        if done.returncode == 0:
            if json.loads(done.stdout)["made"]:
                tell(f"the tables of the log between {names.replace(',', ', ')} are made")
            return
        try:
            said = json.loads(done.stderr.splitlines()[-1])
        except (ValueError, IndexError):
            raise LocalError(
                f"the tables of the log cannot be made: {done.stderr[-300:]}", "see the logs"
            ) from None
        if time.monotonic() >= until or done.returncode != 1:
            raise LocalError(f"the tables of the log cannot be made: {said['error']}", said["do"])
        time.sleep(AGAIN_S)  # noqa: TID251 - nodes hear of each other in a second or two
