"""The tables behind List and Count, and how a commit's operations become their rows.

Theory of operation. One row an execution in `visibility_executions`, real columns for system fields, and
one entry in `visibility_values` for every value of every search attribute, so that any attribute can be
searched by index.

*Scope*: the small number of a pair (namespace, TemporalNamespaceDivision). Every index starts with it, so
what the server keeps for itself (another division) is not even looked at by ordinary queries.
*Order key*: one integer that sorts as the default order does. Closed: the close time. Open: the start time
plus 2^62, which puts open executions before closed ones, newest first. Equal close times are told apart by
start time and run id when a page is read. Entries of `visibility_values` carry it behind the value, so that
a page of "attribute = x" is a walk along one index, without sorting.
*Slot*: the hash slot of the workflow id. A node answers for the slots of its shards, and may have records of
others: of shards that are on their way to it, or that have left it. `visibility_by_order` ends with it, so
that to leave those out costs no look at the rows.
*Attributes*: the same values again as JSON in the row (key: the number of the pair (name, type)), for what
no index answers (IS NULL, not equal, ORDER BY) and to know what to take out of `visibility_values` when the
row changes.

Every sqlite step hands over the GIL, so a batch of any size is a handful of statements: one that reads what
is there as a single JSON value, and multi-row writes whose texts repeat, so that the connection's statement
cache finds them. An update leaves workflow id, type, start time, parent and root alone (a run never changes
them), and with them their indexes: closing an execution moves one index entry, and those of its attributes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import msgspec
from google.protobuf.message import DecodeError as ProtobufDecodeError
from temporalio.api.common.v1 import SearchAttributes

from history_store.engine.keys import slot_of
from history_store.visibility import attributes as sa
from history_store.visibility import mending
from history_store.visibility.literals import clamp, sortable_double, storable_text, words
from history_store.visibility.record import DeleteRecord, ExecutionRecord, VisibilityOp

OPEN_BASE = 1 << 62  # order keys from here on are of open executions
REGULAR_NS = 1 << 38  # four and a half minutes; closed executions that took longer are "irregular"
# Word for word what visibility_by_irregular is limited to. (The plus: it is not to be taken for a range.)
IRREGULAR = f"order_key - start_time NOT BETWEEN 0 AND {REGULAR_NS} AND +order_key < {OPEN_BASE}"

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS visibility_scopes (
        id INTEGER PRIMARY KEY,
        namespace_id TEXT NOT NULL,
        division TEXT NOT NULL,
        UNIQUE (namespace_id, division))""",
    """CREATE TABLE IF NOT EXISTS visibility_names (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        type INTEGER NOT NULL,
        UNIQUE (name, type))""",
    # memo and search_attributes are last: they are big, and filters do not look at them
    """CREATE TABLE IF NOT EXISTS visibility_executions (
        id INTEGER PRIMARY KEY,
        scope INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        run_id TEXT NOT NULL,
        workflow_id TEXT NOT NULL,
        workflow_type TEXT NOT NULL,
        start_time INTEGER NOT NULL,
        status INTEGER NOT NULL,
        order_key INTEGER NOT NULL,
        execution_time INTEGER,
        close_time INTEGER,
        execution_duration INTEGER,
        task_queue TEXT,
        history_length INTEGER NOT NULL,
        history_size_bytes INTEGER NOT NULL,
        state_transition_count INTEGER NOT NULL,
        parent_workflow_id TEXT,
        parent_run_id TEXT,
        root_workflow_id TEXT,
        root_run_id TEXT,
        attributes TEXT,
        memo BLOB NOT NULL,
        search_attributes BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS visibility_values (
        scope INTEGER NOT NULL,
        name INTEGER NOT NULL,
        value NOT NULL,
        order_key INTEGER NOT NULL,
        id INTEGER NOT NULL,
        PRIMARY KEY (scope, name, value, order_key, id)) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX IF NOT EXISTS visibility_by_run ON visibility_executions (run_id, scope)",
    # The one index whose entries move when an execution closes. It is wide, so that filters and groups on the
    # usual fields are answered in the index, and rows are fetched for the page only.
    """CREATE INDEX IF NOT EXISTS visibility_by_order
        ON visibility_executions (scope, order_key, start_time, status, workflow_type, slot)""",
    # For ranges of start times in the default order, see `spans`. Short executions never get in.
    f"""CREATE INDEX IF NOT EXISTS visibility_by_irregular
        ON visibility_executions (scope, order_key, start_time, status, workflow_type)
        WHERE {IRREGULAR}""",
    # Running executions are at the head of the order, completed ones are everywhere: the rest is rare.
    # (A condition that is no range: the planner would walk the range instead of looking up the status.)
    """CREATE INDEX IF NOT EXISTS visibility_by_status
        ON visibility_executions (scope, status, order_key) WHERE status NOT IN (1, 2)""",
    "CREATE INDEX IF NOT EXISTS visibility_by_type ON visibility_executions (scope, workflow_type)",
    "CREATE INDEX IF NOT EXISTS visibility_by_workflow ON visibility_executions (scope, workflow_id)",
    "CREATE INDEX IF NOT EXISTS visibility_by_start ON visibility_executions (scope, start_time)",
    """CREATE INDEX IF NOT EXISTS visibility_by_parent
        ON visibility_executions (scope, parent_workflow_id) WHERE parent_workflow_id IS NOT NULL""",
    # most executions are their own root: those are found by workflow id
    """CREATE INDEX IF NOT EXISTS visibility_by_root
        ON visibility_executions (scope, root_workflow_id)
        WHERE root_workflow_id IS NOT NULL AND root_workflow_id <> workflow_id""",
)

# One value, one step: [highest id, scopes of these namespaces, all names, rows of these runs].
_READ = """SELECT json_array(
    (SELECT coalesce(max(id), 0) FROM visibility_executions),
    (SELECT json_group_array(json_array(id, namespace_id, division)) FROM visibility_scopes
        WHERE namespace_id IN (SELECT value FROM json_each(?1))),
    (SELECT json_group_array(json_array(id, name, type)) FROM visibility_names),
    (SELECT json_group_array(json_array(run_id, id, scope, order_key, attributes))
        FROM visibility_executions WHERE run_id IN (SELECT value FROM json_each(?2))))"""

COLUMNS = (
    "id", "scope", "slot", "run_id", "workflow_id", "workflow_type", "start_time",
    "parent_workflow_id", "parent_run_id", "root_workflow_id", "root_run_id",
    "status", "order_key", "execution_time", "close_time", "execution_duration", "task_queue",
    "history_length", "history_size_bytes", "state_transition_count",
    "attributes", "memo", "search_attributes",
)  # fmt: skip
_CHANGING = COLUMNS[11:]  # what a run may change in its life
# OR FAIL: a statement of many rows that may fail half way would keep a copy of every page it touches, to take
# itself back. Nobody needs that here: after any error the whole transaction is taken back.
_INSERT = (
    "INSERT OR FAIL INTO visibility_executions (" + ", ".join(COLUMNS) + ") VALUES ",  # noqa: S608 our names
    f"({', '.join('?' * len(COLUMNS))})",
    "",
)
_UPDATE = (
    "UPDATE OR FAIL visibility_executions SET "  # noqa: S608 our names
    + ", ".join(f"{name} = v.column{place}" for place, name in enumerate(_CHANGING, 1))
    + " FROM (VALUES ",
    f"({', '.join('?' * (len(_CHANGING) + 1))})",
    f") v WHERE visibility_executions.id = v.column{len(_CHANGING) + 1}",
)
_UPDATE_ONE = "UPDATE visibility_executions SET " + " = ?, ".join(_CHANGING) + " = ? WHERE id = ?"  # noqa: S608
_INSERT_VALUES = ("INSERT OR IGNORE INTO visibility_values VALUES ", "(?, ?, ?, ?, ?)", "")
# An OR of whole keys: SQLite looks each up. (A row value IN a list would scan the table.)
_DELETE_VALUES = (
    "DELETE FROM visibility_values WHERE ",
    "(scope = ? AND name = ? AND value = ? AND order_key = ? AND id = ?)",
    "",
)
_ENTRY = 5  # columns of visibility_values
_CHUNKS = (64, 16, 4, 1)  # few distinct statement texts, so that the statement cache holds them

Stored = int | str
Attributes = dict[str, Stored | list[Stored]]
Entry = tuple[int, int, Stored, int, int]  # a row of visibility_values


class _Existing(msgspec.Struct, array_like=True, gc=False):
    run_id: str
    id: int
    scope: int
    order_key: int
    attributes: str | None


class _Read(msgspec.Struct, array_like=True):
    highest: int
    scopes: list[tuple[int, str, str]]
    names: list[tuple[int, str, int]]
    rows: list[_Existing]


_decode_read = msgspec.json.Decoder(_Read).decode
_decode_attributes = msgspec.json.Decoder(dict[int, int | str | list[int | str]]).decode
_encode = msgspec.json.Encoder().encode


def create(connection: sqlite3.Connection) -> None:
    """Make tables and indexes where they do not exist, and bring old ones up to date. Does not commit."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(visibility_executions)")}
    if columns and "slot" not in columns:
        _add_slots(connection)
    for statement in _SCHEMA:
        # SQLite keeps the text as it is. Without the layout the whole schema fits on one page (4 KiB).
        connection.execute(" ".join(statement.split()))


def _add_slots(connection: sqlite3.Connection) -> None:
    """Tables of before there were slots. Takes some seconds a million executions."""
    connection.create_function("slot_of", 2, slot_of, deterministic=True)
    connection.execute("DROP INDEX visibility_by_order")  # it is made anew, with slots
    connection.execute("ALTER TABLE visibility_executions ADD COLUMN slot INTEGER NOT NULL DEFAULT 0")
    connection.execute(
        "UPDATE visibility_executions AS e SET slot = slot_of(s.namespace_id, e.workflow_id)"
        " FROM visibility_scopes s WHERE s.id = e.scope"
    )


def apply(connection: sqlite3.Connection, ops: Sequence[VisibilityOp]) -> None:
    """Bring the projection up to date with a commit's operations, in their order. Does not commit."""
    if not ops:
        return
    latest: dict[tuple[str, str], VisibilityOp] = {}  # a record is whole, so the last one decides
    renewed: set[tuple[str, str]] = set()  # deleted on the way: what comes after may differ in everything
    for op in ops:
        key = (op.namespace_id, op.run_id)
        latest[key] = op
        if isinstance(op, DeleteRecord):
            renewed.add(key)
    try:
        _bring(connection, latest, renewed)
    except (msgspec.DecodeError, sqlite3.DatabaseError) as error:
        # A record that is there is not what was written. Nothing is made of it, and what is to be is at hand.
        if not mending.may_mend(error):
            raise
        mending.clear(connection, latest)
        _bring(connection, latest, renewed)


def _bring(
    connection: sqlite3.Connection, latest: dict[tuple[str, str], VisibilityOp], renewed: set[tuple[str, str]]
) -> None:
    namespaces = {namespace_id for namespace_id, _ in latest}
    runs = {run_id for _, run_id in latest}
    parameters = (_encode(list(namespaces)).decode(), _encode(list(runs)).decode())
    batch = _Batch(connection, _decode_read(connection.execute(_READ, parameters).fetchone()[0]))
    for key, op in latest.items():
        old = batch.existing.get(key)
        if old is not None and key in renewed:
            batch.remove(old)
            old = None
        if not isinstance(op, DeleteRecord):
            batch.put(op, old)
    batch.write()


def renew(connection: sqlite3.Connection, records: Sequence[ExecutionRecord]) -> None:
    """Write these anew, whatever is there of their runs. Slow; see `mending`. Does not commit."""
    mending.clear(connection, [(record.namespace_id, record.run_id) for record in records])
    apply(connection, records)


def expected(
    record: ExecutionRecord, scopes: Mapping[tuple[str, str], int], names: Mapping[tuple[str, int], int]
) -> tuple[tuple[object, ...], list[tuple[int, int, Stored, int]]] | None:
    """The columns behind the id that a record has, and its entries without the id.

    `scopes` and `names` are the projection's, by what they stand for. None: it has none of the record's yet.
    """
    decode = _decoded_once if len(record.search_attributes) <= _REMEMBERED_BYTES else _decoded
    division, found = decode(record.search_attributes) if record.search_attributes else ("", [])
    scope = scopes.get((record.namespace_id, division))
    if scope is None or any((name, value_type) not in names for name, value_type, _ in found):
        return None
    attributes = {str(names[name, value_type]): value for name, value_type, value in found}
    encoded = _encode(attributes).decode() if attributes else None
    key = order_key(record)
    entries = [entry[:4] for entry in _entries(scope, key, 0, attributes)]
    return (scope, *_fixed(record), *_changing(record, key, encoded)), entries


def order_key(record: ExecutionRecord) -> int:
    """The integer that sorts as the default order does (largest first)."""
    if record.close_time:
        return min(max(record.close_time, 0), OPEN_BASE - 1)
    return OPEN_BASE + min(max(record.start_time, 0), OPEN_BASE - 1)


def stored(value: sa.Value, value_type: int) -> Stored | list[Stored]:
    """A decoded value as the projection keeps it."""
    if isinstance(value, list):
        return [storable_text(item) for item in dict.fromkeys(value)]
    if isinstance(value, str):
        text = storable_text(value)
        return list[Stored](words(text)) if value_type == sa.TEXT else text
    if value_type == sa.DOUBLE:
        return sortable_double(float(value))
    return int(value)


@lru_cache(maxsize=64)
def _statement(parts: tuple[str, str, str], rows: int) -> str:
    if parts is _UPDATE and rows == 1:
        return _UPDATE_ONE  # half the work of a join with one row
    head, row, tail = parts
    return head + (" OR " if parts is _DELETE_VALUES else ", ").join([row] * rows) + tail


def _execute_rows(
    connection: sqlite3.Connection, parts: tuple[str, str, str], items: Sequence[object], width: int
) -> None:
    """`items`: the rows' values one after the other, `width` of them a row."""
    done, rows = 0, len(items) // width
    for chunk in _CHUNKS:
        while rows - done >= chunk:
            connection.execute(_statement(parts, chunk), items[done * width : (done + chunk) * width])
            done += chunk


@dataclass(slots=True)
class _Batch:
    """What one apply knows and has to write."""

    connection: sqlite3.Connection
    read: _Read
    existing: dict[tuple[str, str], _Existing] = field(default_factory=dict)
    scopes: dict[tuple[str, str], int] = field(default_factory=dict)
    names: dict[tuple[str, int], int] = field(default_factory=dict)
    inserts: list[object] = field(default_factory=list)  # rows' values, one after the other
    updates: list[object] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    dead: list[Entry] = field(default_factory=list)
    born: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        namespace_of = {number: namespace_id for number, namespace_id, _ in self.read.scopes}
        self.scopes = {
            (namespace_id, division): number for number, namespace_id, division in self.read.scopes
        }
        self.names = {(name, value_type): number for number, name, value_type in self.read.names}
        for row in self.read.rows:
            namespace_id = namespace_of.get(row.scope)
            if namespace_id is not None:  # else: the same run id in a namespace this batch is not about
                self.existing[namespace_id, row.run_id] = row

    def remove(self, old: _Existing) -> None:
        self.removed.append(old.id)
        self.dead.extend(_entries(old.scope, old.order_key, old.id, _old_attributes(old)))

    def put(self, record: ExecutionRecord, old: _Existing | None) -> None:
        division, attributes = self._attributes(record.search_attributes)
        encoded = _encode(attributes).decode() if attributes else None
        scope = self._scope(record.namespace_id, division)
        key = order_key(record)
        if old is not None and old.scope != scope:
            self.remove(old)  # indexes start with the scope: an update would not move it
            old = None
        if old is None:
            self.read.highest = row_id = self.read.highest + 1
            self.born.extend(_entries(scope, key, row_id, attributes))
            self.inserts += (row_id, scope, *_fixed(record), *_changing(record, key, encoded))
        else:
            row_id = old.id
            self.updates += (*_changing(record, key, encoded), row_id)
            if encoded == old.attributes:
                if encoded is not None and key != old.order_key:  # it closed: all entries move
                    self.dead.extend(_entries(scope, old.order_key, row_id, attributes))
                    self.born.extend(_entries(scope, key, row_id, attributes))
            else:
                before = set(_entries(scope, old.order_key, row_id, _old_attributes(old)))
                after = set(_entries(scope, key, row_id, attributes))
                self.dead.extend(before - after)
                self.born.extend(after - before)

    def write(self) -> None:
        if self.dead:
            self.dead.sort()  # values of one name (and type) are all numbers or all texts
            _execute_rows(self.connection, _DELETE_VALUES, list(chain.from_iterable(self.dead)), _ENTRY)
        if self.removed:
            self.connection.execute(
                "DELETE FROM visibility_executions WHERE id IN (SELECT value FROM json_each(?))",
                (_encode(self.removed).decode(),),
            )
        _execute_rows(self.connection, _UPDATE, self.updates, len(_CHANGING) + 1)
        _execute_rows(self.connection, _INSERT, self.inserts, len(COLUMNS))
        if self.born:
            self.born.sort()
            _execute_rows(self.connection, _INSERT_VALUES, list(chain.from_iterable(self.born)), _ENTRY)

    def _attributes(self, encoded: bytes) -> tuple[str, Attributes]:
        """The division, and the other attributes by the number of their name."""
        if not encoded:
            return "", {}
        division, found = _decoded_once(encoded) if len(encoded) <= _REMEMBERED_BYTES else _decoded(encoded)
        names = self.names
        return division, {
            str(names.get((name, value_type)) or self._name(name, value_type)): value
            for name, value_type, value in found
        }

    def _scope(self, namespace_id: str, division: str) -> int:
        number = self.scopes.get((namespace_id, division))
        if number is None:
            number = self._insert(
                "INSERT INTO visibility_scopes (namespace_id, division) VALUES (?, ?)", namespace_id, division
            )
            self.scopes[namespace_id, division] = number
        return number

    def _name(self, name: str, value_type: int) -> int:
        number = self.names.get((name, value_type))
        if number is None:
            number = self._insert("INSERT INTO visibility_names (name, type) VALUES (?, ?)", name, value_type)
            self.names[name, value_type] = number
        return number

    def _insert(self, statement: str, *parameters: object) -> int:
        number = self.connection.execute(statement, parameters).lastrowid
        assert number is not None
        return number


def _entries(
    scope: int, key: int, row_id: int, attributes: Attributes | dict[int, Stored | list[Stored]]
) -> Iterable[Entry]:
    for name, value in attributes.items():
        if isinstance(value, list):
            for item in value:
                yield scope, int(name), item, key, row_id
        else:
            yield scope, int(name), value, key, row_id


def _old_attributes(old: _Existing) -> Attributes | dict[int, Stored | list[Stored]]:
    return {} if old.attributes is None else _decode_attributes(old.attributes)


def _decoded(encoded: bytes) -> tuple[str, list[tuple[str, int, Stored | list[Stored]]]]:
    """The division, and name, type and stored value of the other attributes.

    What cannot be read is left out: it was validated when it was accepted, and a commit cannot be refused.
    """
    found: list[tuple[str, int, Stored | list[Stored]]] = []
    division = ""
    try:
        fields = SearchAttributes.FromString(encoded).indexed_fields
    except ProtobufDecodeError:
        return "", found
    for name, payload in sorted(fields.items()):
        value_type = sa.metadata_type(payload) or sa.PREDEFINED.get(name, 0) or _guessed_type(payload.data)
        try:
            value = sa.decode(payload, value_type)
        except sa.DecodeError:
            continue
        if value is None:
            continue
        if name == sa.NAMESPACE_DIVISION:
            division = storable_text(value) if isinstance(value, str) else ""
        else:
            found.append((storable_text(name), value_type, stored(value, value_type)))
    return division, found


# Most executions close with the attributes they began with, and many have the same. (1 MB at most.)
_REMEMBERED_BYTES = 256
_decoded_once = lru_cache(maxsize=1024)(_decoded)


def _guessed_type(data: bytes) -> int:
    """For a payload that does not say its type: what its JSON looks like."""
    match data[:1]:
        case b"[":
            return sa.KEYWORD_LIST
        case b'"':
            return sa.KEYWORD
        case b"t" | b"f":
            return sa.BOOL
        case _:
            return sa.INT if data.lstrip(b"-").isdigit() else sa.DOUBLE


def _fixed(record: ExecutionRecord) -> tuple[object, ...]:
    """The columns from slot to root_run_id."""
    return (
        slot_of(record.namespace_id, record.workflow_id),
        record.run_id, record.workflow_id, record.workflow_type, clamp(record.start_time),
        record.parent_workflow_id or None, record.parent_run_id or None,
        record.root_workflow_id or None, record.root_run_id or None,
    )  # fmt: skip


def _changing(record: ExecutionRecord, key: int, attributes: str | None) -> tuple[object, ...]:
    """The columns of _CHANGING."""
    is_open = not record.close_time
    return (
        record.status, key, record.execution_time or None, record.close_time or None,
        None if is_open else clamp(record.execution_duration), record.task_queue or None,
        record.history_length, record.history_size_bytes, record.state_transition_count,
        attributes, record.memo, record.search_attributes,
    )  # fmt: skip
