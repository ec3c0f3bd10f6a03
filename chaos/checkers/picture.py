"""Operations as bars along time, for a person who wants to see why they cannot be ordered."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chaos.checkers.history import Operation

BAR_COLUMNS = 48
BARE = frozenset({"request_id", "update_id", "reason"})  # fields that need no name


def words(value: msgspec.Struct | None) -> str:
    """A call or an answer in a few words."""
    if value is None:
        return "?"
    fields: dict[str, object] = msgspec.to_builtins(value)
    parts = [str(fields.pop("call", fields.pop("answer", "")))]
    for name, each in fields.items():
        parts.append(str(each) if name in BARE else f"{name}={each}")
    return " ".join(parts)


def draw(window: Sequence[Operation], culprit: Operation, before: Sequence[Operation]) -> list[str]:
    """Lines of text: what returned just before, then a bar for each operation that overlaps the culprit.

    Bars show order, not lengths: every invocation and return has its own column. `>` = may still take effect.
    """
    moments = sorted(
        {each.invoked for each in window} | {each.returned for each in window if each.returned is not None}
    )
    wide = max(1, min(6, BAR_COLUMNS // max(1, len(moments))))
    column = {moment: place * wide for place, moment in enumerate(moments)}
    end = len(moments) * wide
    client = max((len(each.client) for each in [*window, *before]), default=0)
    lines = [f"  {each.client:{client}}  {_said(each)}" for each in before]
    if before:
        lines.append("  then:")
    for each in window:
        first = column[each.invoked]
        last = end if each.returned is None else column[each.returned]
        bar = "|" + "-" * (last - first - 1) + (">" if each.returned is None else "|")
        mark = "*" if each is culprit else " "
        lines.append(f"{mark} {each.client:{client}}  {' ' * first}{bar}{' ' * (end - last)}  {_said(each)}")
    return lines


def _said(operation: Operation) -> str:
    until = "" if operation.returned is None else str(operation.returned)
    return f"{words(operation.call)} -> {words(operation.answer)}  [{operation.invoked}, {until}]"
