"""`holdfast config`: is a node.toml right, and what does it say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.admin.output import Exit, Failure, Group, json_option, leave, print_json, print_table

if TYPE_CHECKING:
    from cluster.hosting.config.node_config import NodeConfig

FILE = click.Path(path_type=Path)


@click.group(cls=Group)
def config() -> None:
    """Check and show the configuration of nodes.

    \b
    Example:
      holdfast config check node.toml
    """


@config.command()
@click.argument("files", metavar="FILE...", type=FILE, nargs=-1, required=True)
@click.option("--offline", is_flag=True, help="Only look at the files; connect to nothing.")
@json_option
def check(files: tuple[Path, ...], offline: bool, as_json: bool) -> None:
    """Check node.toml files, each by itself and all against each other.

    Of several files: whether they describe one region (name, first members, timing), and whether
    names, addresses, directories and ports of one host are taken only once. Where the log between
    regions is on Cassandra, it is connected to, and its tables are looked at. Starts and changes
    nothing; free ports and valid certificates are for the start to find out. Exit 1 if something
    is wrong.

    \b
    Examples:
      holdfast config check node.toml
      holdfast config check node.toml --offline
      holdfast config check a1.toml a2.toml a3.toml --json
    """
    from cluster.hosting.config.agreement import disagreements
    from cluster.hosting.config.node_config import ConfigError, load

    configs: list[NodeConfig] = []
    results: list[dict[str, Any]] = []
    for file in files:
        try:
            loaded = load(file)
        except ConfigError as error:
            results.append({"file": str(file), "node": None, "problems": error.problems})
            continue
        configs.append(loaded)
        found = [] if offline else log_problems(loaded)
        results.append({"file": str(file), "node": loaded.node.name, "problems": found})
    between = disagreements(configs) if len(configs) > 1 else []
    failed = bool(between) or any(result["problems"] for result in results)
    if as_json:
        print_json({"ok": not failed, "files": results, "problems": between})
    else:
        for result in results:
            if not result["problems"]:
                click.echo(f"{result['file']}: node {result['node']}: ok")
            for problem in result["problems"]:
                click.echo(f"{result['file']}: {problem}")
        for problem in between:
            click.echo(problem)
    leave(Exit.FAILED if failed else Exit.DONE)


def log_problems(config: NodeConfig) -> list[str]:
    """What is wrong with the log between regions, as a node would find it at its start."""
    if config.replication.log == "embedded":
        return []
    from cluster.hosting.process.region_log import LogNotUsable, examine

    try:
        asyncio.run(examine(config))
    except LogNotUsable as error:
        return [f"{error}. {error.do[0].upper()}{error.do[1:]}."]
    return []


@config.command()
@click.argument("file", metavar="[FILE]", type=FILE, required=False)
@json_option
def show(file: Path | None, as_json: bool) -> None:
    """Show every setting: its value, where that comes from, what is allowed, and its meaning.

    Without FILE, the defaults. A value comes from the file, is the default, or is derived (found
    out from other settings or from the machine). Exit 2 if FILE cannot be used.

    \b
    Examples:
      holdfast config show
      holdfast config show node.toml --json
    """
    rows = rows_of(loaded_or_exit(file) if file is not None else None)
    if as_json:
        print_json({"file": None if file is None else str(file), "settings": rows})
        return
    from cluster.hosting.config.reading import toml_value

    value = "default" if file is None else "value"
    table = [
        [
            row["key"],
            row["default"]
            if file is None
            else ""
            if row["value"] in (None, [])
            else toml_value(row["value"]),
            *([] if file is None else [row["source"]]),
            row["allowed"],
            row["description"],
        ]
        for row in rows
    ]
    print_table(["key", value, *([] if file is None else ["from"]), "allowed", "meaning"], table)


def rows_of(loaded: NodeConfig | None) -> list[dict[str, Any]]:
    """Every setting, with the value it has in this configuration; without one, with its default."""
    from cluster.hosting.config.node_config import settings

    rows = []
    for setting in settings():
        value: Any = setting.default
        source = "required" if setting.required else "derived" if setting.default_words else "default"
        if loaded is not None:
            section: Any = loaded
            for word in setting.section.split("."):
                section = getattr(section, word, None)
            value = getattr(section, setting.name, None)
            source = "absent" if section is None else source
            source = "file" if setting.key in loaded.given else source
        elif source == "derived":
            value = None
        rows.append(
            {
                "key": setting.key,
                "value": list(value) if isinstance(value, tuple) else value,
                "source": source,
                "default": setting.shown_default(),
                "allowed": setting.allowed,
                "description": setting.description,
            }
        )
    return rows


def loaded_or_exit(file: Path) -> NodeConfig:
    """The configuration; Failure with exit 2 and every problem, if it cannot be used."""
    from cluster.hosting.config.node_config import ConfigError, load

    try:
        return load(file)
    except ConfigError as error:
        lines = "\n  ".join(error.problems)
        raise Failure(
            f"{file} cannot be used:\n  {lines}",
            "correct the file; `holdfast config show` lists every key with its meaning",
            Exit.USAGE,
        ) from None
