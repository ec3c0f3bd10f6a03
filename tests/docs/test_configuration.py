"""The page of a node's configuration says what the schema says, and its example is a configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cluster.hosting.config.node_config import load

REPO = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "docs.generate.configuration", "--check"], cwd=REPO, check=False
    )
    assert made.returncode == 0, "docs/configuration.md is not what the schema says: run `make docs`"


def test_the_example_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (REPO / "docs/configuration.md").read_text(), re.DOTALL)
    file = tmp_path / "node.toml"
    file.write_text(example)
    config = load(file)
    assert config.node.data_dir == str(tmp_path / "data")
    joining = re.sub(
        r"^nodes = .*$", 'join = ["10.0.0.1:7301"]', example.replace("a/1", "a/4"), flags=re.MULTILINE
    )
    file.write_text(joining)
    assert load(file).seeds == (("10.0.0.1", 7301),)
