"""What is said to be wrong with a region, from what its steward knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.hosting.region.health import Known, Problem, Watch, find, named
from cluster.hosting.replicas.repair import LOG
from cluster.membership import (
    FORMAT,
    GroupReport,
    NodeHealth,
    NodeRecord,
    NodeState,
    Plan,
    Refusal,
    Table,
    first_table,
    plan_drain,
    plan_remove,
    plan_replicas,
)
from history_store.raft.configuration import Configuration


@dataclass
class Scene:
    """A region of nodes that are well, of which things are then changed."""

    nodes: int = 3
    shards: int = 2
    table: Table = field(default_factory=Table)
    health: dict[int, NodeHealth] = field(default_factory=dict)
    reports: dict[int, GroupReport] = field(default_factory=dict)
    leaderless: list[int] = field(default_factory=list)
    waits: dict[int, str] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, dict[int, str]] = field(default_factory=dict)
    log_failures: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        records = [
            NodeRecord(FORMAT, 0, f"a/{i}", f"h{i}:1", "", "", f"m{i}", NodeState.ACTIVE, 1, "")
            for i in range(1, self.nodes + 1)
        ]
        self.take(first_table(records, self.shards, 3, "c", "a", 1))
        self.health = {i: NodeHealth() for i in range(1, self.nodes + 1)}
        for group in self.table.groups():
            voters = tuple(sorted(self.table.replicas_of(group)))
            learners = tuple(sorted(self.table.learners_of(group)))
            self.reports[group] = GroupReport(voters[0], Configuration(voters=voters, learners=learners))

    def take(self, plan: Plan | Refusal) -> None:
        assert isinstance(plan, Plan), str(plan)
        self.table.apply(plan.rows)

    def find(self) -> list[str]:
        found = find(
            Known(
                self.table, self.health, self.reports, self.leaderless, self.waits, self.refusals, {},
                self.damaged, self.log_failures,
            )
        )  # fmt: skip
        assert all(problem.do and problem.where for problem in found)
        assert len({problem.key for problem in found}) == len(found)
        return [problem.what for problem in found]


def test_nothing_is_wrong() -> None:
    assert Scene().find() == []


def test_a_node_is_down_and_the_groups_go_on() -> None:
    scene = Scene()
    scene.health[2] = NodeHealth(up=False)
    assert scene.find() == ["a/2 is down: it is not heard from"]


def test_a_majority_is_gone() -> None:
    scene = Scene()
    scene.health = {1: NodeHealth(), 2: NodeHealth(up=False), 3: NodeHealth(up=False)}
    scene.reports.clear()
    scene.leaderless = [1, 2]
    what = scene.find()
    assert what[0] == "shards 1, 2: no majority, since a/2, a/3 cannot be reached"
    assert len(what) == 3


def test_no_leader_although_the_nodes_are_there() -> None:
    scene = Scene()
    del scene.reports[1]
    assert scene.find() == [], "an election, or a hand-over"
    scene.leaderless = [1]
    assert scene.find() == ["shard 1: no leader"]


def test_what_nodes_say_of_themselves() -> None:
    scene = Scene(nodes=4)
    scene.health[1] = NodeHealth(slow=True, deaf=1, cut_off=True)
    scene.health[2] = NodeHealth(load=0.97)
    scene.health[4] = NodeHealth(draining=True)
    scene.refusals = {3: "no space left on device"}
    scene.log_failures = {2: "NoHostAvailable"}
    scene.health[3] = NodeHealth(draining=True)  # who cannot write leads nothing
    assert scene.find() == [
        "a/1 is slow: its disk answers late",
        "a/1 cannot talk to 1 of the nodes that others can talk to",
        "a/2 cannot write to the log between regions: NoHostAvailable",
        "a/2 is overloaded: 97% of a core",
        "a/3 takes no writes: no space left on device",
        "a/4 is being stopped",
    ]


def test_draining_and_leaving() -> None:
    scene = Scene(nodes=4)
    scene.take(plan_drain(scene.table, 1))
    leads = sum(report.leader == 1 for report in scene.reports.values())
    assert leads
    assert scene.find() == [f"a/1 drains and still leads {leads} groups"]
    for group, report in scene.reports.items():
        scene.reports[group] = report._replace(leader=report.conf.voters[-1])
    assert scene.find() == ["a/1 is drained"]
    scene.take(plan_remove(scene.table, 4))
    assert any(what.startswith("a/4 is being removed and still has ") for what in scene.find())


def test_replicas_that_are_missing_behind_or_not_placed() -> None:
    scene = Scene(nodes=4)
    group = next(group for group in (1, 2) if 1 in scene.table.replicas_of(group))
    report = scene.reports[group]
    without = tuple(i for i in report.conf.voters if i != 1)
    scene.reports[group] = report._replace(leader=without[0], conf=Configuration(voters=without))
    assert scene.find() == [f"a/1 has no vote yet in shard {group}: it is being made"]
    scene.waits = {group: "not caught up yet: a/1"}
    assert scene.find() == [f"a/1 has no vote yet in shard {group}: not caught up yet: a/1"]
    scene.waits, scene.reports[group] = {}, report._replace(behind=frozenset({1}))
    assert scene.find() == [f"a/1 is behind in shard {group}"]
    scene.health[1] = NodeHealth(up=False)
    assert scene.find() == ["a/1 is down: it is not heard from"]


def test_more_replicas_are_wanted_than_there_are_machines() -> None:
    scene = Scene()
    scene.take(plan_replicas(scene.table, 5, force=True))
    assert scene.find() == ["the meta group and shards 1, 2: 3 of 5 replicas are placed"]


def test_a_thousand_groups_in_a_sentence() -> None:
    assert named([3]) == "shard 3"
    assert named(list(range(1, 1001))) == "shards 1, 2, 3, 4, 5, 6, 7, 8 and 992 more"


def test_since_when() -> None:
    watch = Watch()
    slow, down = Problem("slow 1", "", "", ""), Problem("down 2", "", "", "", since_ns=7)
    assert [p.since_ns for p in watch.look([slow, down], 10)] == [10, 7]
    assert [p.since_ns for p in watch.look([slow, down._replace(since_ns=9)], 20)] == [10, 7]
    assert watch.look([down], 30)[0].since_ns == 7
    assert [p.since_ns for p in watch.look([slow], 40)] == [40], "it was over, and began again"


def test_damage_is_told_with_what_is_done_about_it() -> None:
    """A damaged replica counts as behind, since it cannot lead, and that is not told twice."""
    scene = Scene()
    scene.damaged = {2: {1: "row 01 is not what was written", LOG: "log row 7 is not what it was"}}
    scene.reports[1] = scene.reports[1]._replace(behind=frozenset((2,)))
    assert scene.find() == [
        "a/2: rows of shard 1 are damaged on its disk: row 01 is not what was written",
        "a/2: the log on its disk is damaged, and it would not start again: log row 7 is not what it was",
    ]
