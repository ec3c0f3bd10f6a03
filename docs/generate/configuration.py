"""Writes docs/configuration.md: every key of node.toml, read from the schema.

python -m docs.generate.configuration          write the page
python -m docs.generate.configuration --check  exit 1 if the page is not what the schema says
"""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.hosting.config.node_config import OPTIONAL_SECTIONS, SECTIONS, settings

PAGE = Path(__file__).parents[1] / "configuration.md"
HEAD = """# Configuration of a node

Made from the schema by `make docs`; do not edit. A node of a region is started with
`holdfast server start --config node.toml`. `holdfast config check node.toml` checks a file, and of several
files whether they fit together; `holdfast config show node.toml` shows every value and where it comes from.
What is wrong is told as a whole, and nothing is started: unknown keys, values that are not allowed, keys that
contradict each other.

Paths are relative to the file's own directory. The least of a file, for the first of three nodes:

```toml
[node]
name = "a/1"
data_dir = "data"

[region]
name = "a"
nodes = ["a/1=10.0.0.1:7301", "a/2=10.0.0.2:7301", "a/3=10.0.0.3:7301"]

[listen]
host = "10.0.0.1"
```

A node that comes later has `join = ["10.0.0.1:7301"]` in the place of `nodes`.
"""


def page() -> str:
    """The page's text."""
    text = HEAD
    for section, schema in SECTIONS.items():
        about = (schema.__doc__ or "").partition(":")[2].strip()
        optional = " The section may be absent." if section in OPTIONAL_SECTIONS else ""
        text += f"\n## [{section}]\n\n{about[0].upper()}{about[1:]}{optional}\n\n"
        text += "| key | default | allowed | meaning |\n|---|---|---|---|\n"
        for setting in settings():
            if setting.section == section:
                default = "**required**" if setting.required else setting.shown_default()
                if default and not setting.required and not setting.default_words:
                    default = f"`{default}`"
                cells = (f"`{setting.name}`", default, setting.allowed, setting.description)
                text += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return text


def main() -> int:
    """Write or check."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text() == wanted else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
