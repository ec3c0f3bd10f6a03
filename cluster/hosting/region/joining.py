"""How a node comes into its region, and says there what it is: questions to nodes without a session.

A process without data asks to join, and gets the region's identity and an id of its own. The key that it
draws first becomes its data's name, so that asking again after a lost answer, or a crash, makes no second
node. Every node announces itself at each start: addresses, machine, version, and what its data is called. A
voter that lost its data would vote a second time in terms in which it has voted: the others refuse a node
whose data has another name than they know, and the announcement says so to its operator.

Questions go to the peers' port as a stranger's, whoever gets one sends it on to where the meta group is led.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from cluster.hosting.config.addresses import split_address
from cluster.hosting.region.administration import INTERNAL_METHOD, Standing, ask
from cluster.peers.contract import PeerError, Refused
from cluster.peers.strangers import ask_stranger
from history_store.engine.errors import Code

if TYPE_CHECKING:
    import random

    from cluster.frontend.contract import Handler
    from cluster.membership import NodeRecord
    from cluster.peers.contract import Address, Message, Network, StrangerConnection

log = structlog.get_logger("region")

ASK, ANSWER = 1, 2  # [ASK, request], [ANSWER, code, answer or message]
ANSWER_S = 4.0
RETRY_MIN_S = 0.1
RETRY_MAX_S = 2.0
COMPLAIN_S = 10.0
HUNG_UP = "hung up"  # of the words in which a connection says how it ended
TLS_HINT = (
    "if it lasts, see whether tls.peers is in the files of all nodes, or of none, and whether the authority "
    "there (tls.peers.ca) signed the certificates of all: `holdfast config check` of all files together"
)
KEY_FILE = "join-key"


class NotAdmitted(Exception):
    """The region will not have this node; the sentence says why, and what to do. Definite."""


class Place(NamedTuple):
    """What a node is in its region."""

    cluster_id: str
    node_id: int
    peers: dict[int, Address]  # the nodes, itself included


class Told(NamedTuple):
    """An answer: OK and JSON, or another code and a sentence."""

    code: int
    body: bytes
    message: str

    @property
    def final(self) -> bool:
        """Whether it is a refusal; everything else may pass, a node of an older release among it."""
        return self.code == Code.FAILED_PRECONDITION


# ------------------------------------------------------------------------------------------------ answering


class _Strangers:
    """Their connection, as calls have one: no handler of theirs hangs anything on it."""

    peer = "a stranger"
    closed = False

    def on_close(self, callback: Callable[[], None]) -> None:
        """It never closes."""


STRANGERS = _Strangers()


class InnerCall:
    """A call that came on no connection of a client (a `contract.Call`)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        request: bytes,
        answer: Callable[[Told], None],
        method: str = INTERNAL_METHOD,
    ) -> None:
        self.request = request
        self.deadline: float | None = loop.time() + ANSWER_S
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None
        self.method = method
        self.metadata: Mapping[str, str | bytes] = {}
        self.connection = STRANGERS
        self._answer = answer
        self._timer = loop.call_at(self.deadline, self._expire)

    def finish(self, body: bytes) -> None:
        """Answer."""
        self._end(Told(Code.OK, body, ""))

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:  # noqa: ARG002 - as every call
        """Answer with a status."""
        self._end(Told(code, b"", message))

    def _expire(self) -> None:
        cancel, self.on_cancel = self.on_cancel, None
        self._end(Told(Code.DEADLINE_EXCEEDED, b"", "nobody answered in time"))
        if cancel is not None:
            cancel()

    def _end(self, told: Told) -> None:
        if not self.done:
            self.done = True
            self.on_cancel = self.on_message = None
            self._timer.cancel()
            self._answer(told)

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Nobody reads any."""

    def write(self, body: bytes) -> None:
        """One answer a call."""
        raise NotImplementedError("no stream")


class Doorkeeper:
    """Hands what strangers ask to the node's handler, which finds the region's leader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.handler: Handler | None = None  # None: the node is not there yet

    def __call__(self, connection: StrangerConnection, message: Message, /) -> None:
        """contract.StrangerReceiver."""
        if len(message) < 2 or message[0] != ASK or not isinstance(message[1], bytes):
            connection.close()
            return

        def answer(told: Told) -> None:
            connection.send([ANSWER, int(told.code), told.body if told.code == Code.OK else told.message])

        self.ask(message[1], answer)

    def ask(self, request: bytes, answer: Callable[[Told], None]) -> None:
        """Put a question to this node."""
        if self.handler is None:
            answer(Told(Code.UNAVAILABLE, b"", "the node is starting"))
        else:
            self.handler(InnerCall(self._loop, request, answer))


# ------------------------------------------------------------------------------------------------ asking


class Asker:
    """Asks nodes by their addresses."""

    def __init__(self, network: Network, *, cluster_id: str, region: str, name: str) -> None:
        self._network = network
        self._cluster_id, self._region, self._name = cluster_id, region, name

    async def ask(self, address: Address, request: bytes) -> Told:
        """One question. PeerError."""
        answer = await ask_stranger(
            address, [ASK, request], ANSWER_S + 1, network=self._network, cluster_id=self._cluster_id,
            region=self._region, name=self._name,
        )  # fmt: skip
        if len(answer) < 3 or answer[0] != ANSWER:
            return Told(Code.UNKNOWN, b"", "the answer makes no sense")
        code, body = answer[1], answer[2]
        return Told(code, body, "") if code == Code.OK else Told(code, b"", str(body))


async def join(asker: Asker, seeds: Iterable[Address], record: NodeRecord, rng: random.Random) -> Place:
    """Ask until one of the seeds answers. NotAdmitted."""
    seeds = list(seeds)
    assert seeds, "somebody has to be asked"
    request = ask("join", record=record)
    loop = asyncio.get_running_loop()
    complain_at, wait_s = loop.time() + COMPLAIN_S / 5, RETRY_MIN_S
    while True:
        refused, why = 0, ""
        for seed in seeds:
            try:
                told = await asker.ask(seed, request)
            except PeerError as error:
                refused += isinstance(error, Refused)
                why = str(error)
                continue
            if told.code == Code.OK:
                return _place(told.body)
            if told.final:
                raise NotAdmitted(told.message)
            why = told.message
        if refused == len(seeds):
            raise NotAdmitted(why)
        if loop.time() >= complain_at:
            hint = {"do": TLS_HINT} if HUNG_UP in why or "SSL" in why else {}
            log.warning("no node of region.join lets us in yet; trying on", why=why, **hint)
            complain_at = loop.time() + COMPLAIN_S
        await asyncio.sleep(wait_s * rng.uniform(0.5, 1.0))
        wait_s = min(wait_s * 2, RETRY_MAX_S)


def _place(body: bytes) -> Place:
    found: dict[str, Any] = msgspec.json.decode(body)
    peers = {int(node_id): split_address(address) for node_id, address in found["peers"].items()}
    return Place(found["cluster_id"], found["node_id"], peers)


async def stands(asker: Asker, others: Sequence[Address], name: str) -> Standing:
    """What a first member without data is to the others: the region may have been made long ago."""
    request = ask("stands", node=name)
    told = await asyncio.gather(*(asker.ask(one, request) for one in others), return_exceptions=True)
    found = set()
    for answer in told:
        if isinstance(answer, BaseException):
            if not isinstance(answer, PeerError):
                raise answer
        elif answer.code == Code.OK:
            found.add(Standing(msgspec.json.decode(answer.body)["stands"]))
    # Who has not heard of its removal is asked again at the next start; who knows of no region says FIRST.
    return next((one for one in (Standing.LOST, Standing.NEW) if one in found), Standing.FIRST)


def lost_data(name: str) -> str:
    """What the operator of a node without its data is told."""
    return (
        f"{name} has lost its data, or was given another data directory: give it back its own; or, if that "
        f"is gone, `holdfast node replace {name}` on another node, and start this one again: it joins anew"
    )


JOINED_FILE = "joined"


def has_joined(directory: Path) -> bool:
    """Whether a first member has come again as another node: its list of first members counts no more."""
    return (directory / JOINED_FILE).exists()


def mark_joined(directory: Path) -> None:
    """Note it, before there is data under another id. OSError."""
    (directory / JOINED_FILE).write_text("this node was replaced, and has joined its region again\n")


def draw_key(directory: Path, draw: Callable[[], str]) -> str:
    """The key of a directory that has no data yet; on disk before anybody hears of it. OSError."""
    import os

    path = directory / KEY_FILE
    if path.exists():
        found = path.read_text().strip()
        if found:
            return found
    new = path.with_name(KEY_FILE + "-new")
    key = draw()
    with new.open("w") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return key


def forget_key(directory: Path) -> None:
    """The data is made and has the key for its name. If it is ever lost, another key has to be drawn."""
    (directory / KEY_FILE).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ announcing


class Announcer:
    """Tells the region what this node is, until the table that comes back says so.

    That somebody took it is not enough: what the process before this one said may have been on its way for
    longer, and be written later.
    """

    def __init__(
        self,
        record: NodeRecord,
        doorkeeper: Doorkeeper,
        asker: Asker,
        others: Callable[[], list[Address]],
        seeds: Sequence[Address],
        is_known: Callable[[], bool],
        written: Callable[[], NodeRecord | None],
        on_refused: Callable[[NotAdmitted], None],
        rng: random.Random,
    ) -> None:
        """`others`: where to ask; `seeds`: who is asked in any case, once; `is_known`: whether the region is
        made, as far as this node knows; `written`: what the table here has of this node."""
        self._record = record
        self._request = ask("announce", record=record)
        self._doorkeeper = doorkeeper
        self._asker = asker
        self._others = others
        self._seeds = seeds
        self._is_known = is_known
        self._written = written
        self._on_refused = on_refused
        self._rng = rng
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin, unless it is under way."""
        if self._closed or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.get_running_loop().create_task(self._announce(), name="announce")
        self._task.add_done_callback(self._ended)

    def look(self) -> None:
        """The table has changed: begin anew if it says something else of this node than this process."""
        if self._written() is not None and not self._is_written():
            self.start()

    def close(self) -> None:
        """End."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, NotAdmitted):
            self._on_refused(error)
        elif error is not None:
            context = {"message": "announcing this node failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    async def _announce(self) -> None:
        wait_s, taken = RETRY_MIN_S, False
        while not (taken and self._is_written()):
            if await self._round():
                wait_s, taken = RETRY_MAX_S, True  # it is coming
            if not (taken and self._is_written()):
                await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            # Before the region is made somebody waits for us to speak.
            wait_s = min(wait_s * 2, RETRY_MAX_S) if self._is_known() else RETRY_MIN_S

    def _is_written(self) -> bool:
        found, said = self._written(), self._record
        return found is not None and found == replace(
            said, format=found.format, state=found.state, joined_ns=found.joined_ns
        )

    async def _round(self) -> bool:
        """Ask; True when it is written down. NotAdmitted."""
        known = self._is_known()
        seeds, self._seeds = self._seeds, ()
        others = self._others()
        if seeds:
            others = list(seeds)
        elif known:  # one will do: it knows where to send it
            others = self._rng.sample(others, min(1, len(others)))
        questions = [asyncio.ensure_future(self._asker.ask(one, self._request)) for one in others]
        if not seeds:
            questions.append(asyncio.ensure_future(self._ask_here()))
        for question in questions:
            question.add_done_callback(_heed)
        refused = []
        try:
            for answer in asyncio.as_completed(questions):
                try:
                    told = await answer
                except PeerError as error:
                    refused += [str(error)] if isinstance(error, Refused) else []
                    continue
                if told.final:
                    raise NotAdmitted(told.message)
                # Before the region is made every first member is to hear it.
                if told.code == Code.OK and not msgspec.json.decode(told.body).get("later"):
                    return True
        finally:
            for question in questions:
                question.cancel()
        if refused and len(refused) == len(others) and (seeds or not known):
            raise NotAdmitted(refused[0])
        return False

    async def _ask_here(self) -> Told:
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

        def answer(told: Told) -> None:
            if not future.done():
                future.set_result(told)

        self._doorkeeper.ask(self._request, answer)
        return await future


def _heed(question: asyncio.Task[Told]) -> None:
    """Nobody may be waiting for it any more."""
    if not question.cancelled():
        question.exception()
