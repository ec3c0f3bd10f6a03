"""One contract, three worlds: `arena(scene)` plays an async scene in one of them.

In memory a scene is played with every seed of the batch; on sockets, where time is real, with the first.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from cluster.peers import virtual_time
from cluster.peers.tls import Tls, load_tls
from tests.cluster.peers.worlds import MemoryWorld, SocketWorld, World

Scene = Callable[[Any], Coroutine[Any, Any, None]]
Arena = Callable[[Scene], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    replay: int | None = metafunc.config.getoption("--seed")
    batch = random.Random(int(os.environ["SIM_BASE_SEED"]))
    count: int = metafunc.config.getoption("--seeds")
    seeds = [batch.getrandbits(32) for _ in range(count)] if replay is None else [replay]
    kinds = getattr(metafunc.function, "kinds", ("tcp", "tls", "memory"))
    cases = [(kind, seed) for kind in kinds for seed in (seeds if kind == "memory" else seeds[:1])]
    metafunc.parametrize("case", cases, ids=[f"{kind}-{seed}" for kind, seed in cases])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
    if report.failed and case:
        test = item.nodeid.partition("[")[0]
        report.sections.append(("reproduce with", f"pytest '{test}' -k {case[0]} --seed={case[1]}"))
    return report


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ours, and another one."""
    pytest.importorskip("cryptography", reason="makes the certificates of the tests")
    from tests.cluster.peers.certificates import Authority

    directory: Path = tmp_path_factory.mktemp("certificates")
    return Authority(directory, "ours"), Authority(directory, "other")


@pytest.fixture(scope="session")
def tls(authorities: Any) -> Tls:
    ours, _ = authorities
    node = ours.issue("node")
    return load_tls(str(node.certificate), str(node.key), str(ours.certificate))


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def arena(case: tuple[str, int], request: pytest.FixtureRequest) -> Arena:
    kind, seed = case
    rng = random.Random(seed)

    async def play(scene: Scene, make: Callable[[], World]) -> None:
        unforeseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
        world = make()
        try:
            await scene(world)
        finally:
            await world.close()
        assert not unforeseen, unforeseen

    def on_memory(scene: Scene) -> None:
        virtual_time.run(play(scene, lambda: MemoryWorld(rng)), random.Random(seed))

    def on_sockets(scene: Scene) -> None:
        contexts = request.getfixturevalue("tls") if kind == "tls" else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(play(scene, lambda: SocketWorld(rng, contexts)))

    return on_memory if kind == "memory" else on_sockets
