"""What the engine writes, event for event: each scene is played on a node and told as it happens.

A scene is a function in scene_*.py; what it tells is compared with scenes/NAME.txt, which is to be read.
`--rewrite` writes the files anew: read the difference before you commit it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.cluster.hosting.play import Play
from tests.history_store.engine import (
    scene_activities,
    scene_chains,
    scene_closed,
    scene_families,
    scene_starts,
    scene_tasks,
    scene_updates,
)
from tests.history_store.engine.story import Story

HERE = Path(__file__).parent / "scenes"
MODULES = (
    scene_activities, scene_chains, scene_closed, scene_families, scene_starts, scene_tasks, scene_updates,
)  # fmt: skip
Scene = Callable[[Story], Awaitable[None]]
SCENES: dict[str, Scene] = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
}


@pytest.mark.parametrize("name", sorted(SCENES))
async def test_scene(name: str, play: Play, request: pytest.FixtureRequest) -> None:
    story = Story(play)
    await SCENES[name](story)
    told = (SCENES[name].__doc__ or "").strip() + "\n" + story.text()
    path = HERE / f"{name}.txt"
    if request.config.getoption("--rewrite"):
        path.write_text(told)
    assert told == (path.read_text() if path.exists() else ""), f"see {path}; --rewrite accepts it"


def test_no_scene_is_left_over() -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == set(SCENES)
