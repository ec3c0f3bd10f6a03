"""Where Cassandra comes from (jars.py), with a repository of two small files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.local.cassandra import jars
from cluster.local.cassandra.jars import MissingError

ONE, TWO = "org/one/1/one-1.jar", "org/two/2/two-2.jar"
MIRROR = """<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors>
  <mirror><id>x</id><mirrorOf>other</mirrorOf><url>http://other</url></mirror>
  <mirror><id>y</id><mirrorOf>{of}</mirrorOf><url>http://mirror/maven/</url></mirror>
</mirrors></settings>"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, Path]:
    """A list, a cache, and Maven's own directory; the repository is `remote`."""
    lines = ["# a comment"]
    for path, content in ((ONE, b"one"), (TWO, b"two")):
        file = tmp_path / "remote" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {path}")
    monkeypatch.setenv(jars.REPOSITORY, (tmp_path / "remote").as_uri() + "/")
    return "\n".join(lines), tmp_path / "cache", tmp_path / "maven"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_are_fetched_once(places: tuple[str, Path, Path], tmp_path: Path):
    found = jars.folder(*places)
    assert contents(found) == {"one-1.jar": b"one", "two-2.jar": b"two"}
    (tmp_path / "remote" / ONE).unlink()
    assert jars.folder(*places) == found


def test_one_that_is_not_what_it_should_be_is_refused(places: tuple[str, Path, Path], tmp_path: Path):
    (tmp_path / "remote" / TWO).write_bytes(b"tow")
    with pytest.raises(MissingError, match=r"two-2\.jar .* is not what it should be"):
        jars.folder(*places)


def test_one_that_is_not_to_be_had_is_named(places: tuple[str, Path, Path], tmp_path: Path):
    (tmp_path / "remote" / TWO).unlink()
    with pytest.raises(MissingError, match=r"two-2\.jar cannot be had"):
        jars.folder(*places)


def test_mavens_own_copy_is_taken_if_it_is_whole(places: tuple[str, Path, Path], tmp_path: Path):
    for path, content in ((ONE, b"one"), (TWO, b"half")):
        local = tmp_path / "maven/repository" / path
        local.parent.mkdir(parents=True)
        local.write_bytes(content)
    (tmp_path / "remote" / ONE).unlink()
    assert contents(jars.folder(*places)) == {"one-1.jar": b"one", "two-2.jar": b"two"}


def test_what_another_release_left_is_removed(places: tuple[str, Path, Path]):
    (jars.folder(*places) / "one-0.jar").write_bytes(b"old")
    assert set(contents(jars.folder(*places))) == {"one-1.jar", "two-2.jar"}


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ("central", "http://mirror/maven"),
        ("*", "http://mirror/maven"),
        ("external:*, !private", "http://mirror/maven"),
        ("*,!central", jars.CENTRAL),
        ("private", jars.CENTRAL),
    ],
)
def test_the_mirror_that_maven_is_told_of(
    of: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(jars.REPOSITORY, raising=False)
    assert jars.repository(tmp_path) == jars.CENTRAL
    (tmp_path / "settings.xml").write_text(MIRROR.format(of=of))
    assert jars.repository(tmp_path) == expected
    monkeypatch.setenv(jars.REPOSITORY, "http://mine/")
    assert jars.repository(tmp_path) == "http://mine"


def test_the_list_names_each_jar_once_with_a_digest():
    wanted = jars.wanted(jars.LIST.read_text())
    assert "org/apache/cassandra/cassandra-all/5.0.9/cassandra-all-5.0.9.jar" in wanted
    assert len({path.rpartition("/")[2] for path in wanted}) == len(wanted) > 90
    assert all(len(bytes.fromhex(digest)) == 32 for digest in wanted.values())


def fake_java(place: Path, version: str) -> Path:
    program = place / "bin/java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-01' >&2\n")
    program.chmod(0o755)
    return program


def test_a_java_of_the_right_release_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = fake_java(tmp_path / "home", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert jars.java(tmp_path) == str(program)


def test_where_none_is_to_be_had_all_that_were_seen_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = fake_java(tmp_path / "home", "25.0.1")
    monkeypatch.setattr(jars, "_javas", lambda: iter([str(program)]))
    monkeypatch.setattr(jars, "JAVA_WHEEL", "/nowhere/at/all.whl")
    with pytest.raises(MissingError, match=rf"needs Java 17; {program} is 25\.0\.1"):
        jars.java(tmp_path)
