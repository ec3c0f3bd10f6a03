"""The .cql files as statements: names filled in, comments left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from string import Template

from replication.log.contract import SCHEMA_VERSION

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*$", re.MULTILINE)
# What may stand unquoted in a statement: keyspaces are not bound, but written into it.
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,47}")
_REGION = re.compile(r"[\w.-]{1,64}")


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


def _check_keyspace(keyspace: str) -> str:
    if not _IDENTIFIER.fullmatch(keyspace):
        raise ValueError(f"{keyspace!r} is no name of a keyspace: lower case letters, digits, _, at most 48")
    return keyspace


def schema(keyspace: str, replicas: Mapping[str, int]) -> list[str]:
    """The statements that make keyspace and tables; `replicas` are the copies in each region.

    Raises ValueError for names that are none.
    """
    names = {
        "keyspace": _check_keyspace(keyspace),
        "replication": _replication(replicas),
        "version": str(SCHEMA_VERSION),
    }
    text = Template(_COMMENT.sub("", _text("schema.cql"))).substitute(names)
    return [statement for piece in text.split(";") if (statement := piece.strip())]


def altered(keyspace: str, replicas: Mapping[str, int]) -> str:
    """The statement that gives a keyspace these copies. ValueError, as `schema`."""
    return f"ALTER KEYSPACE {_check_keyspace(keyspace)} WITH replication = {_replication(replicas)}"


def _replication(replicas: Mapping[str, int]) -> str:
    for region in replicas:
        if not _REGION.fullmatch(region):
            raise ValueError(f"{region!r} is no name of a data centre")
    classes = ["'class': 'NetworkTopologyStrategy'", *(f"'{dc}': {count}" for dc, count in replicas.items())]
    return "{" + ", ".join(classes) + "}"


def queries(keyspace: str) -> dict[str, str]:
    """All statements to prepare, by name. Raises ValueError if the keyspace is none."""
    _check_keyspace(keyspace)
    _, *parts = _NAME.split(_text("queries.cql"))
    names, texts = parts[::2], parts[1::2]
    return {
        name: Template(_COMMENT.sub("", text)).substitute(keyspace=keyspace).strip().rstrip(";")
        for name, text in zip(names, texts, strict=True)
    }
