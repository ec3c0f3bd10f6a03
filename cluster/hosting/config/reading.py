"""Reads TOML tables against msgspec structs and complains in sentences; knows no particular setting.

The schema is data: each field's type, constraints (`msgspec.Meta`), description and default. From it come the
checks, the words for what is allowed, and the rows that `holdfast config show` and docs/configuration.md are
made of, so the three cannot disagree.

`Meta(extra=...)` of a field may hold `form` (what is allowed, in words, where the constraints do not say it
well), `unit` (of a number), `default` (in words, for a default that is found out at the start) and `example`
(TOML).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

VALUE_CHARACTERS_MAX = 80  # of a value repeated in a complaint
_ENTRY = re.compile(r"`\$\[(\d+)\]")  # where in a list, as msgspec says it

Sections = Mapping[str, type[msgspec.Struct]]


class Setting(msgspec.Struct, frozen=True):
    """One key of the file, as it is documented."""

    section: str  # "raft"; "tls.peers"
    name: str
    required: bool
    default: Any  # a TOML value; None = absent
    default_words: str  # "" = the default is `default`
    allowed: str  # "a whole number from 1 to 5"
    description: str
    example: str  # TOML, or ""

    @property
    def key(self) -> str:
        """The key with its section: "raft.tick_ms"."""
        return f"{self.section}.{self.name}"

    def shown_default(self) -> str:
        """The default as a person reads it; "" if there is none."""
        if self.default_words:
            return self.default_words
        return "" if self.required or self.default in (None, []) else toml_value(self.default)


def settings(sections: Sections) -> list[Setting]:
    """Every key of every section, in the schema's order."""
    return [_setting(section, field) for section, field in _fields(sections)]


def read(
    sections: Sections, optional: Collection[str], tables: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Convert the values of a file.

    `optional` names the sections that may be absent as a whole. Returns the values by section and key, only
    those that the file gives and that are allowed (an absent optional section has no entry); and the
    problems: key or section -> a sentence that says what is wrong, and one that says what to do.
    """
    problems: dict[str, str] = {}
    found = _found(sections, tables, problems)
    types = {(section, field.name): field for section, field in _fields(sections)}
    values: dict[str, dict[str, Any]] = {}
    for section, schema in sections.items():
        if section in optional and section not in found:
            continue
        values[section] = {}
        for name, value in found.get(section, {}).items():
            key = f"{section}.{name}"
            field = types.get((section, name))
            if field is None:
                problems[key] = _unknown(section, name, value, list(types))
                continue
            try:
                values[section][name] = msgspec.convert(value, _field_type(schema, name))
            except msgspec.ValidationError as error:
                problems[key] = _not_allowed(_setting(section, field), value, _entry(value, error))
        for owner, field in _fields({section: schema}):
            if field.required and field.name not in found.get(section, {}):
                problems[f"{section}.{field.name}"] = _missing(_setting(owner, field))
    return values, problems


def complaint(key: str, value: Any, what: str, do: str) -> str:
    """One sentence of what is wrong and one of what to do: `raft.tick_ms = 5: what. Do.`"""
    return f"{key} = {shown(value)}: {what}. {do}."


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def shown(value: Any) -> str:
    """A value in a complaint, cut where it is long."""
    text = toml_value(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"


def nearest(word: str, known: list[str]) -> str | None:
    """What a person who wrote `word` probably meant."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else None


# ------------------------------------------------------------------------------------------------ inside


def _found(
    sections: Sections, tables: Mapping[str, Any], problems: dict[str, str], above: str = ""
) -> dict[str, Mapping[str, Any]]:
    """The tables of the file that are sections; what is none becomes a problem."""
    found: dict[str, Mapping[str, Any]] = {}
    for word, value in tables.items():
        section = f"{above}{word}"
        inner = any(known.startswith(f"{section}.") for known in sections)
        if section not in sections and not inner:
            problems[section] = _no_section(section, value, sections)
        elif not isinstance(value, dict):
            known = next(known for known in sections if known == section or known.startswith(f"{section}."))
            problems[section] = complaint(
                section,
                value,
                f"{section} is no key",
                f"Write [{known}] on a line of its own, and keys below it",
            )
        elif section in sections:
            found[section] = value
        else:
            found |= _found(sections, value, problems, f"{section}.")
    return found


def _no_section(section: str, value: Any, sections: Sections) -> str:
    known = list(sections)
    if not isinstance(value, dict):
        word = section.rpartition(".")[2]
        owners = [one for one in known if word in sections[one].__struct_fields__]
        do = f"Write it below [{owners[0]}]" if owners else "`holdfast config show` lists all keys"
        return complaint(section, value, "there is no such key", do)
    meant = nearest(section, known)
    do = f"Did you mean [{meant}]?" if meant else f"There are {', '.join(f'[{one}]' for one in known)}."
    return f"[{section}]: there is no such section. {do}"


def _unknown(section: str, name: str, value: Any, known: list[tuple[str, str]]) -> str:
    meant = nearest(name, [key for owner, key in known if owner == section])
    elsewhere = [owner for owner, key in known if key == name]
    if meant is None and elsewhere:
        do = f"Write it below [{elsewhere[0]}]"
    elif meant is None:
        do = "`holdfast config show` lists all keys"
    else:
        return f"{section}.{name} = {shown(value)}: [{section}] has no such key. Did you mean {meant}?"
    return complaint(f"{section}.{name}", value, f"[{section}] has no such key", do)


def _entry(value: Any, error: msgspec.ValidationError) -> str:
    """The entry of a list that is not allowed, in words; "" if it is the value itself."""
    place = _ENTRY.search(str(error))
    if place is None or not isinstance(value, list):
        return ""
    return f", and {shown(value[int(place[1])])} is not of that form"


def _not_allowed(setting: Setting, value: Any, entry: str) -> str:
    default = setting.shown_default()
    do = f"Change it, or leave it out: the default is {default}" if default else "Change it"
    if not default and not setting.required:
        do = "Change it, or leave it out"
    return complaint(setting.key, value, f"it has to be {setting.allowed}{entry}", do)


def _missing(setting: Setting) -> str:
    example = setting.example or "…"
    return (
        f"{setting.key} is missing: it has to be {setting.allowed}. "
        f"Write {setting.name} = {example} below [{setting.section}]."
    )


def _fields(sections: Sections) -> Iterator[tuple[str, inspect.Field]]:
    for section, schema in sections.items():
        information = inspect.type_info(schema)
        assert isinstance(information, inspect.StructType)
        yield from ((section, field) for field in information.fields)


def _field_type(schema: type[msgspec.Struct], name: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(schema) if field.name == name)


def _setting(section: str, field: inspect.Field) -> Setting:
    kind = field.type
    description, extra = "", {}
    if isinstance(kind, inspect.Metadata):
        description = (kind.extra_json_schema or {}).get("description", "")
        extra = kind.extra or {}
        kind = kind.type
    assert description, f"{section}.{field.name} is not described"
    default = None if field.default is msgspec.NODEFAULT else field.default
    return Setting(
        section=section,
        name=field.name,
        required=field.required,
        default=list(default) if isinstance(default, tuple) else default,
        default_words=extra.get("default", ""),
        allowed=extra.get("form") or _words(kind, extra.get("unit", "")),
        description=description,
        example=extra.get("example", ""),
    )


def _words(kind: inspect.Type, unit: str) -> str:
    """What a type allows, in words."""
    if isinstance(kind, inspect.Metadata):
        return _words(kind.type, unit)
    if isinstance(kind, inspect.UnionType):  # None stands for "not given", which TOML cannot write
        (kind,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
        return _words(kind, unit)
    if isinstance(kind, inspect.LiteralType):
        values = [toml_value(value) for value in kind.values]
        return f"{', '.join(values[:-1])} or {values[-1]}"
    if isinstance(kind, inspect.IntType):
        assert kind.ge is not None, "a number says its range"
        assert kind.le is not None, "a number says its range"
        return f"a whole number from {kind.ge} to {kind.le}" + (f" ({unit})" if unit else "")
    raise AssertionError(f"say in words what is allowed: Meta(extra={{'form': …}}) for {kind}")
