"""The judge of compatibility runs: what counts as explained, stale, flaky, reachable."""

import io
import tarfile
from pathlib import Path

import pytest

from tests.compat import doorway, report, suite

REASONS = [
    report.Reason("later", "Comes later.", ("t/a.py::test_x", "t/b.py::test_p*"), True),
    report.Reason("key", "Needs a key.", ("t/c.py::test_k",), False),
]


def result(outcome: str, *, touches: bool = True, detail: str = "boom") -> dict[str, object]:
    return {"outcome": outcome, "touches_server": touches, "seconds": 0.1, "detail": detail}


def test_a_failure_with_a_reason_does_not_fail_the_run() -> None:
    verdict = report.judge(
        {"t/a.py::test_x[1]": result("failed"), "t/a.py::test_y": result("passed")}, REASONS
    )
    assert verdict.ok
    assert [name for name, _, _ in verdict.explained] == ["t/a.py::test_x[1]"]


def test_a_failure_without_a_reason_fails_the_run_and_is_named() -> None:
    verdict = report.judge({"t/a.py::test_xx": result("failed", detail="a | b\n<c>")}, REASONS)
    assert not verdict.ok
    assert "unexplained: t/a.py::test_xx" in report.summary(verdict)
    assert "`t/a.py::test_xx`: a \\| b &lt;c>" in report.page(verdict, {})


def test_an_empty_run_proves_nothing() -> None:
    assert not report.judge({}, REASONS).ok


def test_an_expected_failure_that_passes_is_stale() -> None:
    verdict = report.judge({"t/b.py::test_part": result("passed")}, REASONS)
    assert verdict.ok
    assert verdict.stale == ["t/b.py::test_part"]


def test_skipped_and_unreachable_tests_leave_the_denominator() -> None:
    tests = {
        "t/c.py::test_k": result("failed"),
        "t/c.py::test_s": result("skipped", detail="not on this machine"),
        "t/c.py::test_f": result("flaky"),
        "t/c.py::test_o": result("passed"),
        "t/c.py::test_q": result("passed", touches=False),
    }
    verdict = report.judge(tests, REASONS)
    assert verdict.unreachable == 2
    assert "**2 of 2 reachable tests that touch a server pass (100.0 %).**" in report.page(
        verdict, {"a": "b"}
    )
    assert "| t/c.py | 4 | 2 | 1 | 1 | 1 | 1 | 0 |" in report.page(verdict, {})


def test_a_region_is_compared_by_name_and_has_its_section_of_the_page() -> None:
    alone = {"t/a.py::test_y": result("passed"), "t/a.py::test_z": result("failed"), "t/a": result("passed")}
    region = {"t/a.py::test_y": result("failed"), "t/a.py::test_z": result("passed")}
    assert report.differences(alone, region) == (["t/a.py::test_y"], ["t/a.py::test_z"])
    section = report.region_section(report.judge(region, REASONS), {"suite": "s"})
    assert "* fails there only: `t/a.py::test_y`: boom" in section
    page = report.page(report.judge(alone, REASONS), {})
    whole = report.with_region(page, section)
    assert report.region_of(whole) == section
    assert report.with_region(whole, section) == whole
    assert report.with_region(page, report.region_of(whole)) == whole
    assert report.with_region(whole, "") == page


def test_a_door_leads_to_the_region_unless_other_settings_are_wanted() -> None:
    settings = set(suite.DYNAMIC_CONFIG)
    usual = [
        "server",
        "start-dev",
        "--port",
        "7001",
        "--headless",
        "--dynamic-config-value",
        suite.DYNAMIC_CONFIG[0],
    ]
    assert doorway.port_of(usual, settings) == 7001
    for other in (["--db-filename", "x"], ["--dynamic-config-value", "a=1"], ["--namespace", "mine"]):
        assert doorway.port_of([*usual, *other], settings) == 0
    assert doorway.port_of(["server", "start-test", "7001"], settings) == 0


def test_the_checked_in_list_is_well_formed() -> None:
    reasons = report.load_reasons(Path(__file__).with_name("expected.toml"))
    every = [test for reason in reasons for test in reason.tests]
    assert len(every) == len(set(every))
    assert all(reason.text.endswith(".") for reason in reasons)


def test_tiers_partition_the_suite() -> None:
    assert suite.selection({1}) == list(suite.TIER_1)
    assert suite.selection({1, 2}) == [
        "tests",
        "--ignore=tests/test_activity.py",
        "--ignore=tests/nexus",
        "--ignore=tests/contrib",
    ]
    assert "--ignore=tests/test_client.py" in suite.selection({2})


def test_an_archive_is_unpacked_without_its_top_directory_and_without_the_sdk(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("top/tests/conftest.py", "top/pyproject.toml", "top/temporalio/client.py"):
            info = tarfile.TarInfo(name)
            text = f'version = "{suite.VERSION}"\n'.encode()
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    suite.download(archive.as_uri(), tmp_path / "out")
    assert suite.is_suite(tmp_path / "out")
    assert not (tmp_path / "out" / "temporalio").exists()


def test_a_second_server_of_one_process_is_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(doorway, "_HELD", [])
    assert doorway.is_first()
    assert not doorway.is_first()
    (held,) = doorway._HELD
    held.close()  # the first has ended
    assert doorway.is_first()
    doorway._HELD[-1].close()
