"""What the front page shows is what a newcomer types first: it is run as it stands there."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from sdk.testing import DevServer

pytestmark = pytest.mark.live

README = Path(__file__).parents[2] / "README.md"


async def test_the_first_example_runs_as_a_file_of_its_own(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = (code for code in examples if "Worker(" in code)
    assert '"localhost:7233"' in example
    async with DevServer() as server:
        file = tmp_path / "hello.py"
        file.write_text(example.replace("localhost:7233", server.address))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
    assert out.decode() == "Hello, world\n", err.decode()
