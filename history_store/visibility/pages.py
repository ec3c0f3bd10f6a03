"""Pages of a list: the token that says where the next one begins, and one page of several nodes' parts.

A *position* is what a row sorts by: the values of the order's terms, the run id last, so that no two rows of
a list have the same one. It says nothing of where the row is stored, and neither does a page token, which is
the position of the last row shown, a digest of namespace and query, and a check sum: any node can go on
where another has stopped, and any other token is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

import msgspec

from history_store.engine.errors import ServiceError, invalid
from history_store.visibility import syntax

Position = tuple[int | str | None, ...]
Item = TypeVar("Item")

_TOKEN_VERSION = b"\x01"
_DIGEST = 8
_INT_END = 1 << 63  # of SQLite's integers


@dataclass(slots=True)
class Part(Generic[Item]):
    """The first rows behind a page token that one node has of the slots it was asked for, in order."""

    items: list[Item]
    positions: list[Position]  # of each item
    more: bool  # others follow them here


def merge(
    parts: Sequence[Part[Item]], descending: Sequence[bool], size: int
) -> tuple[list[Item], Position | None]:
    """A page of all parts' rows; and the position of its last row, unless nothing follows.

    `descending`: the directions of the order's terms (`search.directions`). A missing value comes last in
    either. The page has less than `size` rows where a part that has more was cut before that.
    """
    if len(parts) == 1:
        (part,) = parts
        items, positions, more = part.items[:size], part.positions[:size], part.more
        more = more or len(part.items) > size
        return items, positions[-1] if more else None
    rows = [
        (position, item, part.more and place == len(part.items))
        for part in parts
        for place, (position, item) in enumerate(zip(part.positions, part.items, strict=True), 1)
    ]
    for term in reversed(range(len(descending))):  # sorting is stable: the first term last
        _sort(rows, term, descending[term])
    page: list[Item] = []
    for place, (position, item, is_cut) in enumerate(rows, 1):
        page.append(item)
        if is_cut or (len(page) == size and place < len(rows)):  # behind a cut, other rows may come first
            return page, position
    return page, None


def _sort(rows: list[tuple[Position, Item, bool]], term: int, descending: bool) -> None:
    def rank(row: tuple[Position, Item, bool]) -> tuple[bool, int | str]:
        value = row[0][term]
        return (value is None) != descending, 0 if value is None else value

    rows.sort(key=rank, reverse=descending)


# ------------------------------------------------------------------------------------------- page tokens


def digest(namespace_id: str, query: str | syntax.Query) -> bytes:
    """What a token has of the list it belongs to."""
    text = query.strip() if isinstance(query, str) else repr(query)
    return blake2b(f"{namespace_id}\n{text}".encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def write_token(list_digest: bytes, position: Position) -> bytes:
    """The token of the page behind this position."""
    body = _TOKEN_VERSION + list_digest + msgspec.msgpack.encode(position)
    return body + blake2b(body, digest_size=_DIGEST).digest()


def read_token(token: bytes, list_digest: bytes) -> list[object]:
    """The position again; ServiceError (INVALID_ARGUMENT) if it is not one of this list."""
    body, check_sum = token[:-_DIGEST], token[-_DIGEST:]
    if blake2b(body, digest_size=_DIGEST).digest() != check_sum or body[:1] != _TOKEN_VERSION:
        raise bad_token()
    if body[1 : 1 + _DIGEST] != list_digest:
        raise invalid("Invalid NextPageToken: it was made for another query or namespace.")
    try:
        values = msgspec.msgpack.decode(body[1 + _DIGEST :], type=list[int | str | None])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_token() from None
    # Anybody can make a check sum: what no row has is not to reach the database.
    if not values or any(isinstance(value, int) and not -_INT_END <= value < _INT_END for value in values):
        raise bad_token()
    return list(values)


def bad_token() -> ServiceError:
    """It was not made here."""
    return invalid("Invalid NextPageToken.")
