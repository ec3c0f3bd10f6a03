"""What a client may write into its search attributes, and what each refusal says."""

from __future__ import annotations

import json

import pytest
from temporalio.api.common.v1 import Payload, SearchAttributes

from history_store.engine.errors import Code, ServiceError
from history_store.visibility import attributes as sa

REGISTERED = {"K": 2, "KL": 7, "T": 1, "I": 3, "D": 4, "B": 5, "DT": 6}


def payload(value: object, **metadata: bytes) -> Payload:
    return Payload(metadata={"encoding": b"json/plain", **metadata}, data=json.dumps(value).encode())


def attributes(**fields: object) -> SearchAttributes:
    return SearchAttributes(indexed_fields={name: payload(value) for name, value in fields.items()})


@pytest.mark.parametrize(
    ("name", "value", "decoded"),
    [
        ("K", "x", "x"), ("K", ["x"], "x"), ("K", None, None), ("K", [], None),
        ("KL", ["a", "b"], ["a", "b"]),
        ("T", "some words", "some words"), ("I", 5, 5), ("I", -(2**63), -(2**63)), ("D", 5, 5.0),
        ("D", 1.5, 1.5),
        ("B", True, True), ("DT", "1970-01-01T00:00:01.000000002Z", 1_000_000_002), ("K", [None], None),
    ],
)  # fmt: skip
def test_values(name: str, value: object, decoded: object) -> None:
    assert sa.decode(payload(value), REGISTERED[name]) == decoded
    given = attributes(**{name: value})
    sa.validate(given, REGISTERED)
    assert given.indexed_fields[name].metadata["type"] == sa.TYPE_NAMES[REGISTERED[name]].encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K", 5), ("K", ["a", "b"]), ("KL", "a"), ("KL", ["a", 5]), ("KL", [None]), ("T", True), ("I", 1.5),
        ("I", "5"), ("I", True), ("I", 2**63), ("D", "1.5"), ("D", False), ("B", 1), ("B", "true"),
        ("DT", "yesterday"), ("DT", 5), ("K", {"a": 1}),
    ],
)  # fmt: skip
def test_wrong_values(name: str, value: object) -> None:
    with pytest.raises(ServiceError) as caught:
        sa.validate(attributes(**{name: value}), REGISTERED)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message == (
        f"invalid value for search attribute {name} of type {sa.TYPE_NAMES[REGISTERED[name]]}: {value}"
    )


def test_unknown_and_forbidden_names() -> None:
    for name, message in (
        ("Nope", "Namespace default has no mapping defined for search attribute Nope"),
        ("TemporalNope", "Namespace default has no mapping defined for search attribute TemporalNope"),
        ("WorkflowId", "WorkflowId attribute can't be set in SearchAttributes"),
        ("TemporalWorkerDeployment", "TemporalWorkerDeployment attribute can't be set in SearchAttributes"),
    ):
        with pytest.raises(ServiceError) as caught:
            sa.validate(attributes(**{name: "x"}), REGISTERED)
        assert caught.value.message == message
    sa.validate(attributes(TemporalChangeVersion=["v1"], BatcherUser="me"), REGISTERED)


def test_a_wrong_type_in_the_metadata_is_corrected() -> None:
    given = SearchAttributes(indexed_fields={"K": payload("x", type=b"Int")})
    sa.validate(given, REGISTERED)
    assert given.indexed_fields["K"].metadata["type"] == b"Keyword"
    given = SearchAttributes(indexed_fields={"K": payload("x", type=b"INDEXED_VALUE_TYPE_KEYWORD")})
    sa.validate(given, REGISTERED)
    assert given.indexed_fields["K"].metadata["type"] == b"INDEXED_VALUE_TYPE_KEYWORD"


def test_other_encodings() -> None:
    null = Payload(metadata={"encoding": b"binary/null"})
    assert sa.decode(null, sa.INT) is None
    sa.validate(SearchAttributes(indexed_fields={"I": null}), REGISTERED)
    for broken in (
        Payload(metadata={"encoding": b"binary/plain"}, data=b"5"),
        Payload(metadata={"encoding": b"json/plain"}, data=b"{"),
        Payload(metadata={"encoding": b"json/plain"}, data=b"[" * 100_000),
        Payload(metadata={"encoding": b"json/plain"}, data=b"\xff"),
        Payload(metadata={"encoding": b"json/plain"}),
    ):
        with pytest.raises(ServiceError, match="invalid value for search attribute I of type Int"):
            sa.validate(SearchAttributes(indexed_fields={"I": broken}), REGISTERED)


def test_limits() -> None:
    with pytest.raises(ServiceError, match="search attribute K value size 2049 exceeds size limit 2048"):
        sa.validate(attributes(K="x" * 2047), REGISTERED)
    many = {f"K{n}": 2 for n in range(101)}
    with pytest.raises(ServiceError, match="number of search attributes 101 exceeds limit 100"):
        sa.validate(attributes(**dict.fromkeys(many, "x")), many)
    with pytest.raises(ServiceError, match=r"total size of search attributes \d+ exceeds size limit 40960"):
        sa.validate(attributes(**dict.fromkeys([f"K{n}" for n in range(30)], "x" * 2000)), many)


def test_reserved_names() -> None:
    assert all(sa.is_reserved(name) for name in ("WorkflowId", "BuildIds", "Memo", "TemporalAnything"))
    assert not sa.is_reserved("CustomerId")
