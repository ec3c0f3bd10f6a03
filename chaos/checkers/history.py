"""What concurrent clients asked of workflows and what they were answered, with the times of both.

An operation without an answer has an unknown outcome: its client got an indefinite error, or the recording
ended first. It may take effect at any time after it was invoked, or never. A definite error that says "it did
not happen" is the answer `Failed`.

A recorded file is JSON lines: a header, one line for each operation in the order of their ends, and a last
line that counts them. Where the count is missing or wrong, something was not recorded, and no judge can say
`ok`: the lost line may be the write that explains a read, or the one that none explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

FORMAT = 1


class Status(StrEnum):
    """How a run stands, as far as the model tells runs apart."""

    RUNNING = "running"
    COMPLETED = "completed"
    TERMINATED = "terminated"


class Reason(StrEnum):
    """Why a well-formed call was refused because of the workflow's state."""

    NOT_FOUND = "not_found"  # no such run; a client that cannot tell says this for a closed one, too
    CLOSED = "closed"  # the run is closed already
    REJECTED = "rejected"  # the workflow's own validator refused the update


# ----------------------------------------------------------------------------------- what is asked


class Start(msgspec.Struct, frozen=True, tag_field="call", tag="start", omit_defaults=True):
    """Start the workflow. Attempts with one request id are one start."""

    request_id: str
    reuse: bool = True  # False: the id of a closed run may not be used again


class Signal(msgspec.Struct, frozen=True, tag_field="call", tag="signal", omit_defaults=True):
    """Send a signal; `closes` = the workflow completes some time after it got it."""

    request_id: str
    run_id: str = ""  # empty, here and below: the current run
    closes: bool = False


class Update(msgspec.Struct, frozen=True, tag_field="call", tag="update", omit_defaults=True):
    """Add a number above 0 to the run's value, which begins at 0, and answer the sum."""

    update_id: str
    add: int = 1
    run_id: str = ""

    def __post_init__(self) -> None:
        """Sums only grow: that is what lets the judge leave out orders."""
        if self.add <= 0:
            raise ValueError(f"an update adds a number above 0, not {self.add}")


class Describe(msgspec.Struct, frozen=True, tag_field="call", tag="describe", omit_defaults=True):
    """Read the run, by whatever call shows it."""

    run_id: str = ""


class Terminate(msgspec.Struct, frozen=True, tag_field="call", tag="terminate", omit_defaults=True):
    """End the run."""

    run_id: str = ""


Call = Start | Signal | Update | Describe | Terminate

# -------------------------------------------------------------------------------- what is answered


class Started(msgspec.Struct, frozen=True, tag_field="answer", tag="started"):
    """The run that this request id made."""

    run_id: str


class AlreadyStarted(msgspec.Struct, frozen=True, tag_field="answer", tag="already_started"):
    """Another start made the current run."""

    run_id: str = ""  # empty = the error did not say


class Signaled(msgspec.Struct, frozen=True, tag_field="answer", tag="signaled"):
    """The signal is durable."""


class Updated(msgspec.Struct, frozen=True, tag_field="answer", tag="updated", omit_defaults=True):
    """The update took effect. `value` is the sum it made; None = accepted, but the sum was not waited for.

    The workflow must add in the task that accepts: the model knows one moment for both.
    """

    value: int | None = None


class Described(msgspec.Struct, frozen=True, tag_field="answer", tag="described", omit_defaults=True):
    """What was shown of a run. -1 = not looked at."""

    status: Status
    run_id: str = ""  # empty = not looked at
    signals: int = -1
    value: int = -1
    events: int = -1  # the length of the event history
    # False where a workflow task was under way: signals that came meanwhile are buffered, and no event shows
    # them yet.
    exact: bool = True


class Terminated(msgspec.Struct, frozen=True, tag_field="answer", tag="terminated"):
    """This call ended the run."""


class Refused(msgspec.Struct, frozen=True, tag_field="answer", tag="refused"):
    """The state of the workflow does not allow it; nothing changed."""

    reason: Reason


class Failed(msgspec.Struct, frozen=True, tag_field="answer", tag="failed", omit_defaults=True):
    """A definite error that says nothing about the workflow: it did not happen."""

    error: str = ""


Answer = Started | AlreadyStarted | Signaled | Updated | Described | Terminated | Refused | Failed


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt of one client. `answer` is None where its outcome is unknown, and then `returned` is, too.

    Invariant: invoked < returned. Times are of one clock; any unit.
    """

    client: str
    workflow_id: str
    call: Call
    invoked: int
    returned: int | None = None
    answer: Answer | None = None

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        if (self.returned is None) is not (self.answer is None):
            raise ValueError("an operation has returned if, and only if, it has an answer")
        if self.returned is not None and self.returned < self.invoked:
            raise ValueError(f"returned at {self.returned}, before it was invoked at {self.invoked}")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    clock: str  # histories of one clock can be judged together; that of a counter is its own


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operations: int


class Record(msgspec.Struct):
    """A history as it was recorded. Doubts say what may be missing in it."""

    operations: list[Operation]
    doubts: list[str] = []


class Attempt:
    """An operation under way. Left without an answer, its outcome is unknown."""

    __slots__ = ("_call", "_client", "_done", "_invoked", "_recorder", "_workflow_id")

    def __init__(self, recorder: Recorder, client: str, workflow_id: str, call: Call) -> None:
        self._recorder = recorder
        self._client = client
        self._workflow_id = workflow_id
        self._call = call
        self._done = False
        self._invoked = recorder.now()

    def __enter__(self) -> Self:
        self._recorder.open.add(self)
        return self

    def answer(self, answer: Answer) -> None:
        """The answer came just now. A later answer of the same attempt is a mistake of the client's."""
        assert not self._done, "an attempt is answered once"
        self._end(self._recorder.now(), answer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever ended the block: without an answer, nobody knows."""
        if not self._done:
            self.give_up()

    def give_up(self) -> None:
        """Record the outcome as unknown."""
        self._end(None, None)

    def _end(self, returned: int | None, answer: Answer | None) -> None:
        self._done = True
        self._recorder.open.discard(self)
        self._recorder.add(
            Operation(self._client, self._workflow_id, self._call, self._invoked, returned, answer)
        )


class Recorder:
    """Takes down what the clients of one process do.

        with recorder.op("client-1", "workflow-7", Signal("signal-9")) as attempt:
            await ...
            attempt.answer(Signaled())

    `clock` answers rising integers; without one, positions are counted, which orders the operations of one
    process. Processes of one machine can share `time.monotonic_ns`, named in `clock_name`. With a `file`,
    each operation is written when it ends; the caller closes the file after `close`.
    """

    def __init__(
        self, file: BinaryIO | None = None, clock: Callable[[], int] | None = None, clock_name: str = ""
    ) -> None:
        assert (clock is None) is (clock_name == ""), "a clock has a name, so that readers know it again"
        self.now = clock or count(1).__next__
        self.operations: list[Operation] = []
        self.open: set[Attempt] = set()
        self._closed = False
        self._file = file
        self._encode = msgspec.json.Encoder().encode
        self._write(_Header(FORMAT, clock_name or "counter"))

    def op(self, client: str, workflow_id: str, call: Call) -> Attempt:
        """An operation begins with this call and ends with the block."""
        return Attempt(self, client, workflow_id, call)

    def add(self, operation: Operation) -> None:
        """Take an operation that has ended."""
        assert not self._closed, "an operation ended after the recorder was closed"
        self.operations.append(operation)
        self._write(operation)

    def close(self) -> None:
        """End the recording: what is still under way has an unknown outcome."""
        for attempt in list(self.open):
            attempt.give_up()
        self._closed = True
        self._write(_End(len(self.operations)))

    def _write(self, line: msgspec.Struct) -> None:
        if self._file is not None:
            self._file.write(self._encode(line) + b"\n")


def save(operations: Sequence[Operation], path: Path) -> None:
    """Write a complete history of one counter."""
    encode = msgspec.json.Encoder().encode
    lines: list[msgspec.Struct] = [_Header(FORMAT, "counter"), *operations, _End(len(operations))]
    path.write_bytes(b"".join([encode(line) + b"\n" for line in lines]))


def load(paths: Sequence[Path]) -> Record:
    """Read what one or several recorders wrote.

    Raises ValueError where a file is no history, or of another format, or where clocks cannot be compared.
    """
    record = Record([])
    clocks = [_load(path, record) for path in paths]
    if len(paths) > 1 and (len(set(clocks)) > 1 or clocks[0] == "counter"):
        raise ValueError(f"these histories have no clock in common: {', '.join(clocks)}")
    return record


def _load(path: Path, record: Record) -> str:
    lines = path.read_bytes().splitlines()
    try:
        header = msgspec.json.decode(lines[0] if lines else b"", type=_Header)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} does not begin as a history does: {error}") from None
    if header.format != FORMAT:
        raise ValueError(f"{path} has format {header.format}; this version reads {FORMAT}")
    decode = msgspec.json.Decoder(Operation).decode
    operations: list[Operation] = []
    ended: int | None = None
    for number, line in enumerate(lines[1:], 2):
        if ended is not None:
            record.doubts.append(f"{path}:{number}: something follows the end")
            break
        try:
            if line.startswith(b'{"operations"'):
                ended = msgspec.json.decode(line, type=_End).operations
            else:
                operations.append(decode(line))
        except msgspec.MsgspecError as error:
            record.doubts.append(f"{path}:{number}: not readable: {error}")
    if ended is None:
        record.doubts.append(f"{path}: the recording has no end: its recorder was not closed")
    elif ended != len(operations):
        record.doubts.append(f"{path}: {ended} operations were recorded, but {len(operations)} are there")
    record.operations += operations
    return header.clock
