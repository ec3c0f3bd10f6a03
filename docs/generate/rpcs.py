"""Writes docs/rpcs.md: every RPC of the public API and what this release does with it, read from the code.

python -m docs.generate.rpcs          write the page
python -m docs.generate.rpcs --check  exit 1 if the page is not what the code says
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from cluster.frontend.services import everything
from cluster.frontend.services.unimplemented import states

PAGE = Path(__file__).parents[1] / "rpcs.md"
HEAD = """# Every RPC, and what this release does with it

Made from the code by `make docs`; do not edit. An RPC that is not served answers UNIMPLEMENTED with a
sentence that says so. How far the served ones agree with Temporal is measured by its own test suite: see
[compatibility](compatibility.md).

"""

NOTES = {"PollNexusTaskQueue": "waits and ends empty: no Nexus task exists in this release"}


def page() -> str:
    """The page's text."""
    everything()
    rows = sorted(states())
    count = Counter(state for _, state, _ in rows)
    text = HEAD + ", ".join(f"{number} {state}" for state, number in sorted(count.items())) + ".\n"
    for state, title in (("implemented", "Served"), ("later", "Not yet")):
        text += f"\n## {title}\n\n| RPC | |\n|---|---|\n"
        for name, found, reason in rows:
            if found == state:
                text += f"| {name} | {reason or NOTES.get(name, '')} |\n"
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
