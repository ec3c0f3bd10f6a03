"""A pytest plugin that runs inside Temporal's suite: writes a JSON report, knows which tests need a server.

It is loaded with `-p holdfast_compat` into the suite's own environment, which holds nothing of this project;
so it imports pytest and the standard library only. More than a third of the suite passes with nothing
listening at all, so a bare number of passes says little: a test counts as *server-touching* when it asks for
one of the suite's fixtures `env`, `client` or `worker`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

SERVER_FIXTURES = frozenset({"env", "client", "worker"})
DETAIL_CHARACTERS_MAX = 1500

_tests: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the one option: where the report goes."""
    parser.addoption("--compat-report", default=None, help="write the JSON report to this file")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note on each test whether it touches a server; xdist carries user properties home with the report."""
    for item in items:
        touches = not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        item.user_properties.append(("touches_server", touches))


def _detail(report: Any) -> str:
    """Say in one or two lines what went wrong (or why the test was skipped)."""
    long = report.longrepr
    if isinstance(long, tuple):
        return str(long[2]).removeprefix("Skipped: ")
    crash = getattr(long, "reprcrash", None)
    text = crash.message if crash is not None else str(long)
    return text[:DETAIL_CHARACTERS_MAX]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Fold the three phases of a test into one outcome; the worst one wins."""
    known = _tests.setdefault(
        report.nodeid, {"outcome": "passed", "touches_server": True, "seconds": 0.0, "detail": ""}
    )
    known["touches_server"] = dict(report.user_properties).get("touches_server", known["touches_server"])
    known["seconds"] = round(known["seconds"] + report.duration, 3)
    if report.failed:
        known["outcome"] = "failed"
        known["detail"] = known["detail"] or f"{report.when}: {_detail(report)}"
    elif report.skipped and known["outcome"] == "passed":
        # An expected failure (xfail) arrives as a skip; it is a pass of what the suite asks for.
        if hasattr(report, "wasxfail"):
            known["detail"] = f"xfail: {report.wasxfail}"
        else:
            known["outcome"], known["detail"] = "skipped", _detail(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a file that cannot even be imported, so that its tests do not vanish from the count."""
    if report.failed and report.nodeid not in _tests:
        _tests[report.nodeid] = {
            "outcome": "failed",
            "touches_server": True,
            "seconds": 0.0,
            "detail": f"collection: {str(report.longrepr)[-DETAIL_CHARACTERS_MAX:]}",
        }


def _write(config: pytest.Config) -> None:
    path = config.getoption("--compat-report")
    if path is None or hasattr(config, "workerinput"):
        return
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump({"tests": dict(sorted(_tests.items()))}, file, indent=1)
    os.replace(partial, path)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report before the suite's own hook may end the process."""
    _write(session.config)
