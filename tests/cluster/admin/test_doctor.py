"""`holdfast doctor`: each check on a machine made to have the trouble."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cluster.admin import doctor
from cluster.admin.doctor import Verdict
from history_store.storage.files import DATA_SUFFIXES
from history_store.storage.sqlite import SqliteStorage

Run = Callable[..., Result]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_fit_machine(holdfast: Run, tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    result = holdfast("doctor", "--db-filename", str(database), "--port", str(free_port()), "--json")
    answer = json.loads(result.stdout)
    names = [check["check"] for check in answer["checks"]]
    assert names == ["python", "uvloop", "disk", "space", "files", "port", "clock", "database"]
    assert not [check for check in answer["checks"] if check["verdict"] == "fail"]
    assert result.exit_code == 0
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_a_file_that_is_not_ours_fails(holdfast: Run, tmp_path: Path) -> None:
    database = tmp_path / "letter.txt"
    database.write_text("Dear Sir or Madam")
    result = holdfast("doctor", "--db-filename", str(database), "--port", str(free_port()))
    assert result.exit_code == 1
    assert "is not a Holdfast data file" in result.stdout
    assert "\ndatabase: " in result.stdout, "and it says what to do"
    assert database.read_text() == "Dear Sir or Madam"


def test_a_node_is_examined_where_its_configuration_says(holdfast: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        grpc, peers, there, absent = free_port(), free_port(), other.getsockname()[1], free_port()
        node = tmp_path / "node.toml"
        node.write_text(
            f"""
            [node]
            name = "a/1"
            data_dir = "data/a1"
            [region]
            name = "a"
            nodes = ["a/1=127.0.0.1:{peers}", "a/2=127.0.0.1:{there}", "a/3=127.0.0.1:{absent}"]
            [listen]
            grpc = {grpc}
            peers = {peers}
            """
        )
        result = holdfast("doctor", "--config", str(node), "--json")
    assert result.exit_code == 0, result.output
    checks = json.loads(result.stdout)["checks"]
    said = [(one["verdict"], one["found"]) for one in checks if one["check"] in ("port", "peer")]
    assert said[:3] == [
        ("ok", f"127.0.0.1:{grpc} is free"),
        ("ok", f"127.0.0.1:{peers} is free"),
        ("ok", f"a/2 answers at 127.0.0.1:{there}"),
    ]
    assert said[3][0] == "warn"
    assert f"a/3 does not answer at 127.0.0.1:{absent}" in said[3][1]
    assert any(str(tmp_path / "data" / "a1") in one["found"] for one in checks if one["check"] == "database")
    assert not (tmp_path / "data").exists(), "it leaves nothing behind"


def test_a_node_of_a_configuration_has_no_other_ports(holdfast: Run, tmp_path: Path) -> None:
    result = holdfast("doctor", "--config", str(tmp_path / "node.toml"), "--port", "7233")
    assert result.exit_code == 2
    assert "name it alone" in result.stderr


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        found = doctor.check_port("127.0.0.1", other.getsockname()[1])
    assert found.verdict is Verdict.WARN
    assert "in use" in found.found


def test_an_address_that_is_not_this_machines_fails() -> None:
    found = doctor.check_port("192.0.2.1", 7233)  # TEST-NET-1: nobody has it
    assert found.verdict is Verdict.FAIL
    assert "--ip" in found.do


def test_a_directory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    found = doctor.check_fsync(tmp_path / "absent")
    assert found.verdict is Verdict.FAIL
    assert "cannot write" in found.found


def test_a_clock_behind_the_data_file_is_a_warning(tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    database.touch()
    status = database.stat()
    os.utime(database, (status.st_atime, status.st_mtime + 3600))
    assert doctor.check_clock(database).verdict is Verdict.WARN


def test_a_data_file_of_ours_is_well_in_use_or_not(tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    storage = SqliteStorage(database)
    try:
        assert f"in use by process {os.getpid()}" in doctor.check_database(database).found
    finally:
        storage.close()
    found = doctor.check_database(database)
    assert (found.verdict, "MiB" in found.found) == (Verdict.OK, True)
    assert "journal" not in found.found


def test_what_an_unclean_end_left_is_examined_too(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "live.db")
    for suffix in DATA_SUFFIXES:
        shutil.copy(f"{tmp_path / 'live.db'}{suffix}", f"{tmp_path / 'x.db'}{suffix}")
    storage.close()
    found = doctor.check_database(tmp_path / "x.db")
    assert found.verdict is Verdict.OK
    assert "not closed cleanly" in found.found
    os.truncate(tmp_path / "x.db-log", 100)
    found = doctor.check_database(tmp_path / "x.db")
    assert found.verdict is Verdict.FAIL
    assert "x.db-log is damaged" in found.found


@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_is_not_well_says_what_to_do(verdict: Verdict, tmp_path: Path) -> None:
    for result in doctor.examine(tmp_path / "x.db", "127.0.0.1", free_port()):
        if result.verdict is verdict and verdict is not Verdict.OK:
            assert result.do
