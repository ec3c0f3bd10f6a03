"""The log between regions as node.toml describes it: opened, looked at, and made.

Cassandra's driver is an extra and costs memory, so it is imported when there is something to connect to.
"""

from __future__ import annotations

import logging
import os
import ssl
from typing import TYPE_CHECKING

from replication.log.contract import LogDenied, LogError, LogRefused, LogUnavailable, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.hosting.config.node_config import NodeConfig
    from replication.log.cassandra.store import Made, Options
    from replication.log.contract import LogStore

INIT = "`holdfast replication log init --config FILE`"


class LogNotUsable(Exception):
    """The log cannot be used as it is described: what is wrong, and what to do."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(what)
        self.do = do


def options_of(
    config: NodeConfig,
    login: tuple[str, str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Options:
    """How Cassandra is connected to. LogRefused: that is not to be had on this machine.

    `login`: user and password in the place of the node's own.
    """
    cassandra = config.cassandra
    assert cassandra is not None, "the log is on Cassandra"
    # The driver tells of each of its tries to connect again, twice a second. What matters is told by us.
    logging.getLogger("cassandra").setLevel(logging.CRITICAL)
    try:
        from replication.log.cassandra.store import Options
    except ImportError as error:
        why = f"Cassandra's driver is not installed ({error}): pip install 'holdfast[cassandra]'"
        raise LogRefused(why) from None
    try:
        user, password = login or (cassandra.user or "", cassandra.password(environment))
    except ValueError as error:
        raise LogRefused(str(error)) from None
    tls = None
    if cassandra.tls_ca is not None:
        try:
            tls = ssl.create_default_context(cafile=cassandra.tls_ca)
            if cassandra.tls_cert is not None:
                tls.load_cert_chain(cassandra.tls_cert, cassandra.tls_key)
        except OSError as error:  # an SSLError is one
            why = f"cassandra.tls_ca, tls_cert and tls_key cannot be used: {error}. Correct them."
            raise LogRefused(why) from None
    return Options(
        config.region.name,
        [point.removeprefix("[").removesuffix("]") for point in cassandra.contact_points],
        keyspace=cassandra.keyspace,
        port=cassandra.port,
        tls=tls,
        user=user,
        password=password,
    )


async def open_log(config: NodeConfig) -> LogStore:
    """Connect, and see that the tables are those of this release. LogError."""
    options = options_of(config)
    from replication.log.cassandra import store

    found = await store.connect(options)
    try:
        await found.check_schema()
    except BaseException:
        await found.close()
        raise
    return found


async def examine(config: NodeConfig) -> None:
    """Open the log and close it. LogNotUsable."""
    try:
        await (await open_log(config)).close()
    except LogError as error:
        raise explained(config, error) from None


async def create(config: NodeConfig, copies: Mapping[str, int], login: tuple[str, str] | None = None) -> Made:
    """Make keyspace and tables for these regions, where they are missing. LogNotUsable.

    `login`: user and password of whoever may do that, in the place of the node's own.
    """
    try:
        options = options_of(config, login)
        from replication.log.cassandra import store

        return await store.create_schema(options, copies)
    except LogDenied as error:
        do = "name a user who may make keyspaces and tables with --user"
        raise LogNotUsable(f"Cassandra refuses: {error}", do) from None
    except LogUnavailable as error:
        do = "see that Cassandra runs in all regions, and that its nodes know each other; then run this again"
        raise LogNotUsable(f"the tables cannot be made everywhere: {error}", do) from None
    except LogError as error:
        raise explained(config, error) from None


def explained(config: NodeConfig, error: LogError) -> LogNotUsable:
    """What an error of the log means to who wrote the file, and what to do."""
    cassandra = config.cassandra
    assert cassandra is not None, "the log is on Cassandra"
    where = f"{', '.join(cassandra.contact_points)}, port {cassandra.port}"
    if isinstance(error, LogDenied):
        what = f"Cassandra at {where} does not let {cassandra.user or 'a client without a user'} in: {error}"
        rights = f"it needs SELECT and MODIFY on the keyspace {cassandra.keyspace}"
        return LogNotUsable(what, f"correct cassandra.user and its password; {rights}")
    if isinstance(error, SchemaMismatch):
        version = "version" in str(error)
        do = f"make them, once, for all regions: {INIT}"
        if version:
            do = "run the release that made them, or name another cassandra.keyspace in all regions"
        return LogNotUsable(f"the tables of the log are not as they have to be: {error}", do)
    if isinstance(error, LogUnavailable):
        do = "start Cassandra, or correct cassandra.contact_points, port and tls_ca"
        return LogNotUsable(f"Cassandra at {where} does not answer: {error}", do)
    if "there is no data centre" in str(error):
        do = "name data centres like the regions (in cassandra-rackdc.properties), or correct the region"
        return LogNotUsable(str(error), do)
    what, _, do = str(error).partition(". ")
    return LogNotUsable(what, do.removesuffix(".") or "correct [cassandra]")
