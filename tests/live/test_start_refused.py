"""A data file that cannot be used: the process says why and what to do, ends with 1, and touches nothing."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.live.server import PROGRAM, Server

pytestmark = pytest.mark.live

END_S_MAX = 300.0  # of a busy machine: it ends by itself, at once
READ_ONLY = (
    'mount -t tmpfs tmpfs "$1" && cp "$2" "$1"/data.db && mount -o remount,ro "$1" && shift 2 && exec "$@"'
)


def refused(database: Path, *words: str, before: tuple[str, ...] = ()) -> str:
    """Start on the file; it must refuse in time, in words. Returns them."""
    command = [*before, *PROGRAM, "server", "start-dev", "--port", "0", "--db-filename", str(database)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=END_S_MAX, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert str(database) in result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """A data file of a server that was stopped."""
    server = Server(tmp_path / "data.db")
    await server.start()
    assert await server.stop() == 0, server.said()
    return server.database


def test_a_file_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam, " * 100)
    before = digest(path)
    refused(path, "is not a Holdfast data file")
    assert digest(path) == before


def test_another_application_s_database(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    before = digest(path)
    refused(path, "another application")
    assert digest(path) == before


async def test_a_newer_version_s_file(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    before = digest(database)
    refused(database, "newer Holdfast", "format 99")
    assert digest(database) == before


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
async def test_a_truncated_file(database: Path, keep: float) -> None:
    os.truncate(database, int(database.stat().st_size * keep))
    before = digest(database)
    refused(database, "Restore it from a backup")
    assert digest(database) == before


async def test_a_missing_file_beside_its_log(tmp_path: Path) -> None:
    server = Server(tmp_path / "data.db")
    await server.start()
    await server.kill()
    server.database.unlink()
    refused(server.database, "-wal", "missing")


async def test_a_file_that_another_server_uses(tmp_path: Path) -> None:
    server = Server(tmp_path / "data.db")
    await server.start()
    try:
        refused(server.database, f"in use by process {server.pid}")
        assert server.running
    finally:
        assert await server.stop() == 0, server.said()


async def test_the_file_of_a_killed_server_is_free(tmp_path: Path) -> None:
    server = Server(tmp_path / "data.db")
    await server.start()
    await server.kill()
    await server.start()
    assert await server.stop() == 0, server.said()


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" / "data.db", "does not exist")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
async def test_a_file_without_write_permission(database: Path) -> None:
    database.chmod(0o444)
    refused(database, "cannot be written")


def can_mount() -> bool:
    """Whether this machine lets us have a file system of our own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs unshare and mount")
async def test_a_read_only_file_system(database: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    refused(
        mounted / "data.db",
        "cannot be written",
        before=("unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(mounted), str(database)),
    )


async def test_refusals_are_json_free_and_short(tmp_path: Path) -> None:
    """One sentence of what and one of what to do: nobody should have to search for it in a log."""
    path = tmp_path / "x.db"
    path.touch()
    lines = refused(path, "empty").strip().splitlines()
    assert len(lines) <= 3, lines
    assert sys.executable not in lines[0]
