"""How long tests of real processes wait, and for what: for states, on a machine that may be slow or busy.

What takes a second here may take a minute where others compute, too. A limit is there to end a test that
hangs, and says nothing about speed. The same goes for what a region says of its machine: that a disk answers
late or a core is used up is true on such a machine, and no fault of the region's.
"""

from __future__ import annotations

from typing import Any, Final

PATIENCE_S: Final = 240.0
OF_THE_MACHINE: Final = ("is slow: its disk answers late", "is overloaded: ")


def faults(health: dict[str, Any]) -> list[str]:
    """What `holdfast cluster health --json` found wrong with the region itself."""
    said = [str(problem["what"]) for problem in health["problems"]]
    return [what for what in said if not any(words in what for words in OF_THE_MACHINE)]
