"""A server that is alone answers what is asked of regions, as far as it can."""

from __future__ import annotations

import json

import pytest

from tests.cluster.admin.test_dev_server import run, started


@pytest.mark.live
def test_a_dev_server_is_a_region_of_one() -> None:
    with started("--shards", "3") as (_, ready):
        at = ("--address", f"127.0.0.1:{ready['port']}")
        assert json.loads(run("cluster", "health", "--json", *at).stdout) == {"ok": True, "problems": []}
        (node,) = json.loads(run("cluster", "nodes", "--json", *at).stdout)["nodes"]
        assert (node["name"], node["grpc"], node["leads"]) == ("this server", at[1], 4)
        shards = json.loads(run("shard", "list", "--json", *at).stdout)["shards"]
        assert [shard["id"] for shard in shards] == [0, 1, 2, 3]
        assert sum(shard["slot_count"] for shard in shards) == 16384
        refused = run("node", "drain", "a/1", *at)
        assert refused.returncode == 1
        assert "this server is alone" in refused.stderr
        assert "holdfast local up" in refused.stderr
