"""`holdfast server start-dev`: what its flags mean, and that reading them is quick."""

from __future__ import annotations

import errno
import json
import ssl
import subprocess
import sys

import click
import pytest

from cluster.admin.server_commands import announce, cannot_start, read_options, start_dev, without_effect
from cluster.hosting.config.options import ServerOptions
from cluster.hosting.process.server import listening


def options(*arguments: str) -> ServerOptions:
    context = start_dev.make_context("start-dev", list(arguments))
    return read_options(context.params)


def test_without_flags_it_is_the_documented_default() -> None:
    assert options() == ServerOptions()


def test_the_sdk_starts_it_as_temporals_dev_server() -> None:
    found = options(
        *("--port", "4711", "--namespace", "default", "--ip", "127.0.0.1"),
        *("--log-format", "pretty", "--log-level", "warn"),
        *("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=50"),
        *("--dynamic-config-value", 'system.refreshNexusEndpointsMinWait="0s"'),
        *("--headless", "--db-filename", "/tmp/x.db", "--search-attribute", "Customer=Keyword"),
    )
    assert found.port == 4711
    assert found.namespaces == ["default"]
    assert found.db_path == "/tmp/x.db"
    assert found.search_attributes == {"Customer": "Keyword"}
    assert found.dynamic_config == {
        "limit.historyCount.suggestContinueAsNew": 50,
        "system.refreshNexusEndpointsMinWait": "0s",
    }


def test_the_default_namespace_exists_whatever_is_named() -> None:
    assert options("-n", "orders", "-n", "orders", "--namespace", "stock").namespaces == [
        "default",
        "orders",
        "stock",
    ]


def test_types_of_search_attributes_are_taken_in_any_case() -> None:
    assert options("--search-attribute", "A=keywordlist").search_attributes == {"A": "KeywordList"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dynamic-config-value", "limit.x"], "write KEY=VALUE"),
        (["--dynamic-config-value", "limit.x=abc"], "has to be JSON"),
        (["--search-attribute", "A=Number"], "the type is one of Text, Keyword"),
        (["--search-attribute", "A"], "write Name=Type"),
        (["--search-attribute", "A=Int", "--search-attribute", "A=Text"], "given twice"),
        (["--namespace", "with space"], "letters, digits"),
        (["--port", "70000"], "is not in the range"),
        (["--shards", "0"], "is not in the range"),
        (["--tls-cert", __file__], "belong together"),
        (["--tls-ca", __file__], "needs --tls-cert"),
        (["--log-level", "loud"], "is not one of"),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_says_what_to_write(arguments: list[str], words: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        options(*arguments)
    assert words in caught.value.format_message()
    assert caught.value.exit_code == 2


def test_flags_of_what_is_not_here_are_taken_and_said_so() -> None:
    arguments = [
        "--ui-port",
        "8233",
        "--http-port",
        "7243",
        "--sqlite-pragma",
        "journal_mode=off",
        "--headless",
    ]
    context = start_dev.make_context("start-dev", arguments)
    said = "\n".join(without_effect(context))
    assert "no web UI" in said
    assert "no HTTP gateway" in said
    assert "durability" in said
    assert without_effect(start_dev.make_context("start-dev", [])) == []


def test_the_ready_line_tells_address_and_port(capsys: pytest.CaptureFixture[str]) -> None:
    announce(ServerOptions(port=0, namespaces=["default", "orders"]), 4711, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["address"] == "127.0.0.1:4711"
    assert err == ""
    announce(ServerOptions(db_path="x.db"), 7233, as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "localhost:7233" in err
    assert "x.db" in err


def test_reading_the_flags_imports_neither_server_nor_client() -> None:
    """The SDKs wait five seconds for the server; its own imports are enough."""
    program = (
        "import sys\n"
        "from cluster.admin.main import holdfast\n"
        "from cluster.admin.server_commands import start_dev, read_options\n"
        "read_options(start_dev.make_context('start-dev', ['--port', '0']).params)\n"
        "costly = ('rich', 'temporalio', 'asyncio', 'google', 'grpc')\n"
        "print([name for name in costly if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_server_does_without_rich() -> None:
    program = (
        "import sys\n"
        "from cluster.admin.server_commands import leave_rich_out\n"
        "leave_rich_out()\n"
        "import structlog\n"
        "structlog.get_logger().warning('a line', error='x')\n"
        "print('rich.console' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_python_without_assertions_is_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-O", "-m", "cluster.admin.main", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "run Python without -O" in run.stderr


@pytest.mark.parametrize(
    ("error", "words", "do"),
    [
        (OSError(errno.EADDRINUSE, "address already in use"), "cannot listen on 127.0.0.1:7233", "--port"),
        (OSError(errno.EADDRNOTAVAIL, "no such address"), "cannot listen on", "--ip"),
        (PermissionError(errno.EACCES, "permission denied"), "cannot listen on", "above 1023"),
    ],
)
def test_a_refusal_at_the_start_says_what_to_do(error: OSError, words: str, do: str) -> None:
    with pytest.raises(OSError) as refused, listening("127.0.0.1", 7233):
        raise error
    failure = cannot_start(refused.value)
    assert words in failure.message
    assert do in failure.do
    assert failure.exit_code == 1


def test_certificates_that_cannot_be_used_are_called_that() -> None:
    failure = cannot_start(ssl.SSLError(9, "PEM lib"))
    assert "certificates cannot be used: PEM lib" in failure.message
    assert "--tls-cert" in failure.do
