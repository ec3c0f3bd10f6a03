"""`holdfast server start-dev`: Temporal's dev-server flags, read into `ServerOptions`.

The SDKs start this program themselves and kill it with SIGKILL, so it starts fast, becomes the server
in its own process and leaves nothing behind. Flags of things that this release does not have (the
web console, the HTTP gateway) are accepted, because callers pass them, and said so in the log.
"""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import click

from cluster.admin.output import Exit, Failure, Group, json_option, leave
from cluster.admin.start_command import start
from cluster.hosting.config.options import (
    FRONTS,
    LOG_FORMATS,
    LOG_LEVELS,
    MESSAGE_BYTES_MAX_DEFAULT,
    PORT_DEFAULT,
    SEARCH_ATTRIBUTE_TYPES,
    SHARDS_DEFAULT,
    SHARDS_MAX,
    ServerOptions,
)

NAMESPACE_DEFAULT = "default"
NAMESPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # what Temporal's own command line lets pass

# Flags that are taken and change nothing, and why: said in the log when one is given.
WITHOUT_EFFECT = {
    "http_port": "--http-port: this release has no HTTP gateway; gRPC only",
    "ui_port": "--ui-port: this release has no web UI",
    "ui_ip": "--ui-ip: this release has no web UI",
    "ui_public_path": "--ui-public-path: this release has no web UI",
    "ui_asset_path": "--ui-asset-path: this release has no web UI",
    "ui_codec_endpoint": "--ui-codec-endpoint: this release has no web UI",
    "sqlite_pragma": "--sqlite-pragma: the data file's settings are part of the durability promise",
}


@click.group(cls=Group)
def server() -> None:
    """Run a server.

    \b
    Example:
      holdfast server start-dev --db-filename ./holdfast.db
    """


server.add_command(start)


def parse_dynamic_config(values: Iterable[str]) -> dict[str, object]:
    """Read KEY=VALUE pairs; a value is JSON (a string needs its quotes)."""
    result: dict[str, object] = {}
    for pair in values:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r}: write KEY=VALUE", param_hint="--dynamic-config-value")
        try:
            result[key] = json.loads(text)
        except ValueError as error:
            raise click.BadParameter(
                f"{pair!r}: the value has to be JSON ({error}); a string needs quotes",
                param_hint="--dynamic-config-value",
            ) from None
    return result


def parse_search_attributes(values: Iterable[str]) -> dict[str, str]:
    """Read Name=Type pairs; types are taken in any case, as Temporal does."""
    types = {name.lower(): name for name in SEARCH_ATTRIBUTE_TYPES}
    result: dict[str, str] = {}
    for pair in values:
        name, equals, kind = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r}: write Name=Type", param_hint="--search-attribute")
        if kind.lower() not in types:
            known = ", ".join(SEARCH_ATTRIBUTE_TYPES)
            raise click.BadParameter(f"{pair!r}: the type is one of {known}", param_hint="--search-attribute")
        if result.setdefault(name, types[kind.lower()]) != types[kind.lower()]:
            raise click.BadParameter(
                f"{name!r} is given twice, with two types", param_hint="--search-attribute"
            )
    return result


def parse_namespaces(values: Iterable[str]) -> list[str]:
    """The namespaces to have; `default` first, always, and none twice."""
    names = [NAMESPACE_DEFAULT]
    for name in values:
        if not NAMESPACE_NAME.fullmatch(name):
            raise click.BadParameter(
                f"{name!r}: letters, digits, '.', '_' and '-', at most 255 of them", param_hint="--namespace"
            )
        if name not in names:
            names.append(name)
    return names


def without_effect(ctx: click.Context) -> list[str]:
    """What to say about the flags on this command line that change nothing."""
    given = click.core.ParameterSource.COMMANDLINE
    return [words for name, words in WITHOUT_EFFECT.items() if ctx.get_parameter_source(name) is given]


def log_lines(notes: Iterable[str], log_level: str, log_format: str) -> None:
    """Say it in the log's form on stderr; the server's own log is set up later, by the server."""
    if log_level in ("error", "never"):
        return
    for note in notes:
        click.echo(
            json.dumps({"level": "warn", "msg": note}) if log_format == "json" else f"WARN  {note}", err=True
        )


def banner(options: ServerOptions, port: int) -> str:
    """What a person sees when the server answers."""
    from importlib.metadata import version

    shown_ip = "localhost" if options.ip in ("127.0.0.1", "0.0.0.0", "::", "::1") else options.ip  # noqa: S104 - display
    lines = [
        f"holdfast {version('holdfast')}",
        "",
        f"Server:     {shown_ip}:{port}" + (" (TLS)" if options.tls_cert else ""),
        f"Namespaces: {', '.join(options.namespaces)}",
        f"Data:       {options.db_path or 'in memory (keep it with --db-filename FILE)'}",
    ]
    if options.metrics_port:
        lines.append(f"Metrics:    http://{shown_ip}:{options.metrics_port}/metrics")
    return "\n".join(lines)


def announce(options: ServerOptions, port: int, as_json: bool) -> None:
    """Tell that the server answers: words on stderr, or one line of JSON on stdout."""
    if not as_json:
        click.echo(banner(options, port) + "\n", err=True)
        return
    ready = {
        "address": f"{options.ip}:{port}",
        "port": port,
        "namespaces": options.namespaces,
        "db_filename": options.db_path,
        "metrics_port": options.metrics_port,
    }
    click.echo(json.dumps(ready))
    sys.stdout.flush()


PORT = click.IntRange(0, 65535)


@server.command("start-dev", context_settings={"show_default": True})
@click.option("--port", "-p", type=PORT, default=PORT_DEFAULT, help="Port of the gRPC API; 0 = any free one.")
@click.option("--ip", default="127.0.0.1", help="Address to listen on; 0.0.0.0 = all.")
@click.option(
    "--namespace",
    "-n",
    "namespaces",
    multiple=True,
    help="Have this namespace, besides `default`. Repeatable.",
)
@click.option(
    "--db-filename", "-f", "db_path", type=click.Path(dir_okay=False), help="Data file. Without: memory only."
)
@click.option(
    "--search-attribute",
    "search_attributes",
    multiple=True,
    metavar="NAME=TYPE",
    help="Register it. Repeatable.",
)
@click.option(
    "--dynamic-config-value",
    "dynamic_config",
    multiple=True,
    metavar="KEY=VALUE",
    help="JSON value. Repeatable.",
)
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    default="warn",
    help="Least level logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS, case_sensitive=False),
    default="pretty",
    help="Form of the log.",
)
@click.option("--log-config", is_flag=True, help="Print the settings on stderr before starting.")
@click.option("--metrics-port", type=PORT, help="Serve Prometheus metrics there. Without: not served.")
@click.option(
    "--front", type=click.Choice(FRONTS), default="h2", help="HTTP/2 of our own, or grpcio's (an extra)."
)
@click.option(
    "--shards",
    type=click.IntRange(1, SHARDS_MAX),
    default=SHARDS_DEFAULT,
    help="History shards of a new data file.",
)
@click.option(
    "--tls-cert",
    type=click.Path(exists=True, dir_okay=False),
    help="PEM certificate; with --tls-key, serve TLS.",
)
@click.option(
    "--tls-key", type=click.Path(exists=True, dir_okay=False), help="PEM private key of --tls-cert."
)
@click.option(
    "--tls-ca",
    type=click.Path(exists=True, dir_okay=False),
    help="PEM; clients must show a certificate of it.",
)
@click.option(
    "--message-bytes-max",
    type=click.IntRange(min=65536),
    default=MESSAGE_BYTES_MAX_DEFAULT,
    help="Largest message.",
)
@click.option("--headless", is_flag=True, help="Accepted: this release is always without a web UI.")
@click.option("--http-port", type=PORT, help="Accepted, no effect: no HTTP gateway in this release.")
@click.option("--ui-port", type=PORT, help="Accepted, no effect: no web UI in this release.")
@click.option("--ui-ip", help="Accepted, no effect: no web UI in this release.")
@click.option("--ui-public-path", help="Accepted, no effect: no web UI in this release.")
@click.option("--ui-asset-path", help="Accepted, no effect: no web UI in this release.")
@click.option("--ui-codec-endpoint", help="Accepted, no effect: no web UI in this release.")
@click.option(
    "--sqlite-pragma", multiple=True, metavar="PRAGMA=VALUE", help="Accepted, no effect: durability stays on."
)
@json_option
@click.pass_context
def start_dev(ctx: click.Context, /, as_json: bool, log_config: bool, **given: Any) -> None:
    """Run a whole server in this process: one port, one data file (or memory).

    There is no web UI in this release; its flags are accepted so that scripts written for
    Temporal's dev server run unchanged. The server stops at SIGINT or SIGTERM; what it
    acknowledged is on disk, so SIGKILL loses nothing either.

    With --json one line on stdout tells address and port as soon as the server answers.

    \b
    Examples:
      holdfast server start-dev
      holdfast server start-dev --db-filename ./holdfast.db --namespace orders
      holdfast server start-dev --port 0 --json --search-attribute CustomerId=Keyword
    """
    options = read_options(given)
    log_lines(without_effect(ctx), options.log_level, options.log_format)
    options.on_ready = lambda port: announce(options, port, as_json)
    if log_config:
        click.echo(repr(options), err=True)
    run(options)


def read_options(given: dict[str, Any]) -> ServerOptions:
    """The command line's values as the server takes them; BadParameter or UsageError if they contradict."""
    if bool(given["tls_cert"]) != bool(given["tls_key"]):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both or neither")
    if given["tls_ca"] and not given["tls_cert"]:
        raise click.UsageError("--tls-ca asks clients for certificates, which needs --tls-cert and --tls-key")
    return ServerOptions(
        ip=given["ip"],
        port=given["port"],
        namespaces=parse_namespaces(given["namespaces"]),
        db_path=given["db_path"],
        search_attributes=parse_search_attributes(given["search_attributes"]),
        dynamic_config=parse_dynamic_config(given["dynamic_config"]),
        log_level=given["log_level"],
        log_format=given["log_format"],
        front=given["front"],
        shards=given["shards"],
        metrics_port=given["metrics_port"],
        tls_cert=given["tls_cert"],
        tls_key=given["tls_key"],
        tls_ca=given["tls_ca"],
        message_bytes_max=given["message_bytes_max"],
    )


def run(options: ServerOptions) -> None:
    """Be the server until a signal ends it, then exit with its code."""
    leave_rich_out()
    from cluster.hosting.process.server import serve
    from cluster.hosting.replicas.repair import RESTORE
    from history_store.storage.contract import RowCorrupt, StorageDamaged, StorageError

    try:
        code = serve(options)
    except (StorageDamaged, RowCorrupt) as error:
        raise Failure(str(error), RESTORE) from None
    except StorageError as error:
        what, _, do = str(error).partition(". ")  # its messages end with what to do
        raise Failure(what, do or "see `holdfast doctor --db-filename FILE`") from None
    except OSError as error:
        raise cannot_start(error) from None
    leave(Exit.DONE if code == 0 else Exit.FAILED)


def leave_rich_out() -> None:
    """Keep structlog from importing rich.

    It takes rich, where installed, for coloured tracebacks and does without otherwise. A server has no use
    for them, and they cost a tenth of its start and 4 MB for as long as it runs.
    """
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: "there is no such module"


def cannot_start(error: OSError) -> Failure:
    """What an operating system's refusal at the start means, and what to do."""
    import ssl

    words = error.strerror or str(error)
    if isinstance(error, ssl.SSLError):
        do = "see that --tls-cert and --tls-key are PEM files that belong together, and --tls-ca is one"
        return Failure(f"the certificates cannot be used: {words}", do)
    do = "see `holdfast doctor`"
    if error.errno == errno.EADDRINUSE:
        do = "free the port (`ss -ltnp` shows who has it), or take another with --port or --metrics-port"
    elif error.errno == errno.EADDRNOTAVAIL:
        do = "name an address of this machine with --ip; 0.0.0.0 is all of them"
    elif error.errno == errno.EACCES:
        do = "take a port above 1023 with --port: lower ones need a privilege"
    return Failure(words if "cannot listen" in words else f"the server cannot start: {words}", do)
