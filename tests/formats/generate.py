"""Writes down the formats as they are: `python -m tests.formats.generate`, from a clean checkout.

Once for each number of `FORMATS`, before the release that first has it. What has been written is never
written again, since it stands for what is on disks and on the wire; of formats that are new within a number,
samples are added. A format that changes begins with a new number.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.membership import FORMATS
from tests.formats import disk, wire
from tests.formats.samples import fields, plain, samples

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "formats"
WIRE_SEEDS = range(1, 21)


def main() -> int:
    """Write the directory of the present number, or what it lacks."""
    directory = FIXTURES / str(FORMATS)
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for sample in samples():
        data = sample.write()
        found[sample.name] = {"bytes": data.hex(), "read": plain(sample.read(data))}
    _add(directory / "samples.json", found)
    _add(directory / "fields.json", fields())
    _add(directory / "wire.json", plain(wire.record(WIRE_SEEDS)))
    packed = directory / "disk.tar.xz"
    if not packed.exists():
        with tempfile.TemporaryDirectory() as scratch:
            packed.write_bytes(disk.write(Path(scratch)))
    with tempfile.TemporaryDirectory() as scratch:
        _add(directory / "disk.json", disk.read(disk.unpack(packed, Path(scratch))))
    return 0


def _add(path: Path, found: Mapping[str, object]) -> None:
    """JSON with a line for each entry, so that a difference can be read. What is there stays."""
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**found, **known}.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    raise SystemExit(main())
