"""Which server a command asks, and that one dead node of a region keeps nobody from asking the others."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from cluster.admin import addresses
from cluster.admin.addresses import Target, of_the_region, parsed
from cluster.admin.unary import reason
from cluster.local.plan import context_toml, planned, ports_from

Run = Callable[..., Result]
DEAD = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PROBE_S", 60.0)


def asked_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    address: str = json.loads(result.stdout)["address"]
    return address


def test_the_first_that_answers_is_asked(holdfast: Run, scripted: Any) -> None:
    given = f"{DEAD}, {scripted.address}"
    assert asked_of(holdfast("cluster", "version", "--address", given, "--json")) == scripted.address
    scripted.answers["Check"] = b"\x08\x02"  # it does not serve, but nobody else answers at all
    assert asked_of(holdfast("cluster", "version", "--address", given, "--json")) == scripted.address


def test_a_node_that_is_held_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PROBE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as held:  # takes connections and answers nothing
        there = f"127.0.0.1:{held.getsockname()[1]}"
        assert asyncio.run(Target((DEAD, there), "default").pick()) == DEAD, "for its own error to be told"


def test_if_none_answers_all_are_named(holdfast: Run) -> None:
    result = holdfast("shard", "list", "--address", f"{DEAD},127.0.0.1:2")
    assert result.exit_code == 1
    assert "no server answers at 127.0.0.1:1 or 127.0.0.1:2: connection refused" in result.stderr


def test_a_context_knows_the_other_nodes(holdfast: Run, scripted: Any, tmp_path: Path) -> None:
    context = tmp_path / "context.toml"
    context.write_text(
        f'[profile.default]\naddress = "{DEAD}"\n[holdfast.nodes]\na = ["{DEAD}", "{scripted.address}"]\n'
    )
    assert asked_of(holdfast("cluster", "version", "--context", str(context), "--json")) == scripted.address
    there = holdfast("cluster", "version", "--context", str(context), "--address", DEAD, "--json")
    assert there.exit_code == 1, "who names an address means that one"


def test_the_context_of_a_local_cluster_names_its_nodes(tmp_path: Path) -> None:
    plan = planned(("a",), 3, ports_from(7300, 3), ("program",), {})
    context = tmp_path / "context.toml"
    context.write_text(context_toml(plan))
    assert of_the_region(context, "127.0.0.1:7310") == ("127.0.0.1:7310", "127.0.0.1:7300", "127.0.0.1:7320")
    assert of_the_region(context, "10.0.0.1:7310") == ("10.0.0.1:7310",), "an address of another cluster"
    assert tomllib.loads(context.read_text())["profile"]["default"]["address"] == "127.0.0.1:7300"


@pytest.mark.parametrize(
    "text",
    ["", "[holdfast]", "[holdfast]\nnodes = 3", "[holdfast.nodes]\na = 7", "]", "[holdfast.nodes]\na=[1]"],
)
def test_any_other_file_adds_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    assert of_the_region(file, DEAD) == (DEAD,)


@pytest.mark.parametrize("text", ["", "host", ":7233", "host:", "host:x", "host:0", "host:65536", "a:1,b"])
def test_what_is_no_address_is_usage(holdfast: Run, text: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(text)
    if text:
        assert holdfast("cluster", "health", "--address", text).exit_code == 2


def test_six_is_an_address_too() -> None:
    assert parsed("[::1]:7233, a:1") == ("[::1]:7233", "a:1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "there is no host of this name"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "the TLS handshake failed"),
        (ConnectionResetError(), "the TLS handshake failed"),
        (ConnectionRefusedError(111, "refused"), "connection refused"),
        (TimeoutError(), "timed out"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_why_nobody_answered_is_told_in_words(error: OSError, words: str) -> None:
    assert reason(error).startswith(words)


def test_the_version_of_the_program(holdfast: Run) -> None:
    result = holdfast("--version")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "holdfast")
