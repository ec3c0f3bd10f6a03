"""What node.toml says of the log between regions: which one there is, and how it is connected to.

Secrets are not in the file: it names the file or the environment variable that has the password, which is
read when it is needed (`CassandraSection.password`) and shown nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from cluster.hosting.config.fields import FILE_FORM, HOST, PemFile, Port, about

CONTACT_POINTS_MAX: Final = 32
CASSANDRA_FILES: Final = ("password_file", "tls_ca", "tls_cert", "tls_key")


class ReplicationSection(Struct, frozen=True, kw_only=True):
    """[replication]: how what a region writes comes to other regions."""

    log: Annotated[
        Literal["embedded", "cassandra"],
        about(
            "The log between regions. embedded: the nodes of a region hold what others have not read yet, "
            "and hand it out; there is nothing else to run. cassandra: it is also written to Apache "
            "Cassandra, as [cassandra] says. The same on all nodes of all regions.",
            form='"embedded" or "cassandra"',
        ),
    ] = "embedded"


class CassandraSection(Struct, frozen=True, kw_only=True):
    """[cassandra]: the log between regions on Apache Cassandra; read if replication.log is "cassandra"."""

    contact_points: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"^{HOST}\Z")], ...],
        about(
            "Some of the Cassandra nodes of this region; the others are found through them. A region's data "
            "centre has the region's name.",
            bounds={"min_length": 1, "max_length": CONTACT_POINTS_MAX},
            form=f"a list of at most {CONTACT_POINTS_MAX} host names or IP addresses",
            example='["10.0.0.5", "10.0.0.6"]',
        ),
    ]
    port: Annotated[
        Port,
        about(
            "Port of Cassandra's native protocol.",
        ),
    ] = 9042
    keyspace: Annotated[
        str,
        about(
            "Keyspace of the log; `holdfast replication log init` makes it. The same in all regions.",
            bounds={"pattern": r"^[a-z][a-z0-9_]{0,47}\Z"},
            form="lower-case letters, digits and _ (at most 48)",
        ),
    ] = "holdfast"
    user: Annotated[
        str | None,
        about(
            "Whom to log in as. Needs the rights SELECT and MODIFY on the keyspace; who makes it needs more.",
            form="a role of Cassandra's",
            default="nobody: it asks for no password",
        ),
    ] = None
    password_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        about(
            "File with the password of `user` and nothing else. This, or `password_env`.",
            form="the path of a file",
            default="no such file",
        ),
    ] = None
    password_env: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")] | None,
        about(
            "Environment variable with the password of `user`. This, or `password_file`.",
            form="the name of an environment variable",
            default="no such variable",
        ),
    ] = None
    tls_ca: Annotated[
        PemFile | None,
        about(
            "Authority that has to have signed the certificates of Cassandra's nodes. With it the connection "
            "is TLS.",
            form=FILE_FORM,
            default="no TLS",
        ),
    ] = None
    tls_cert: Annotated[
        PemFile | None,
        about(
            "Certificate shown to Cassandra; with `tls_key` and `tls_ca`.",
            form=FILE_FORM,
            default="none is shown",
        ),
    ] = None
    tls_key: Annotated[
        PemFile | None,
        about(
            "Private key of `tls_cert`.",
            form=FILE_FORM,
            default="none",
        ),
    ] = None

    def password(self, environment: Mapping[str, str]) -> str:
        """The password; "" without a user. ValueError with a sentence if it is not where it should be."""
        if self.user is None:
            return ""
        if self.password_file is not None:
            try:
                found = Path(self.password_file).read_text().strip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"cassandra.password_file = {self.password_file!r} cannot be read: {error}. Mend it."
                ) from None
            if not found:
                raise ValueError(
                    f"cassandra.password_file = {self.password_file!r} is empty. Write the password into it."
                )
            return found
        assert self.password_env is not None, "the rules ask for one of them"
        found = environment.get(self.password_env, "")
        if not found:
            raise ValueError(
                f"cassandra.password_env = {self.password_env!r}: there is no such environment variable, or "
                "it is empty. Set it."
            )
        return found
