"""The commands of the Raft transcripts, over replicas in memory.

Nothing happens by itself: messages wait until they are delivered, Readys until they are taken, writes until
they are synced. Node n's election timeout is election_ticks + n - 1 ticks, so that nothing depends on dice.

    nodes 3 [joiners=1] [learners=(3)] [prevote=off] [checkquorum=off] [lease=on] [quiet=3]
            [inflight=2] [entries=2]
    campaign N · propose N DATA · transfer N TO · read N NAME · tick N [TICKS] · wake N
    compact N [behind=K] · snapshot-failed N TO · crash N [landed=yes] · restart N
    change N [v4] [l5] [r3] [transition=explicit|implicit]      no changes = leave the joint configuration
    ready N · synced N · deliver [N …] [drop=(1,2)] · stabilize [N …] · status [N …] · log N · progress N
    quietly COMMAND                                             without what it says, unless that is a refusal
"""

from __future__ import annotations

from history_store.raft import (
    CONF_CHANGE,
    NOOP,
    Change,
    ChangeOp,
    ConfChange,
    Config,
    Configuration,
    Kind,
    Message,
    RaftError,
    Ready,
    Transition,
    decode_change,
    decode_configuration,
)
from history_store.storage.contract import Entry
from tests.history_store.raft.world import Replica
from tests.transcripts.datadriven import Command

_OPS = {"v": ChangeOp.ADD_VOTER, "l": ChangeOp.ADD_LEARNER, "r": ChangeOp.REMOVE}


def show_entry(entry: Entry) -> str:
    place = f"{entry.index}/{entry.term}"
    if entry.kind == NOOP:
        return f"{place} (no-op)"
    if entry.kind == CONF_CHANGE:
        letters = {op: letter for letter, op in _OPS.items()}
        changes = " ".join([letters[op] + str(node) for op, node in decode_change(entry.data).changes])
        return f"{place} (members: {changes or 'leave joint'})"
    return f"{place} {entry.data.decode()!r}"


def show_entries(entries: tuple[Entry, ...] | list[Entry]) -> str:
    return "[" + ", ".join([show_entry(entry) for entry in entries]) + "]"


def show_conf(conf: Configuration) -> str:
    text = "voters " + (",".join(map(str, conf.voters)) or "none")
    if conf.outgoing:
        text += " and " + ",".join(map(str, conf.outgoing))
    if conf.learners:
        text += " learners " + ",".join(map(str, conf.learners))
    if conf.learners_next:
        text += " becoming learners " + ",".join(map(str, conf.learners_next))
    return text


def show_message(message: Message) -> str:
    kind = message.kind
    head = f"{message.sender}->{message.to} {kind.name}"
    if message.term:
        head += f" term {message.term}"
    if kind is Kind.APPEND:
        head += f" after {message.index}/{message.log_term} commit {message.commit}"
        return head + (f" {show_entries(message.entries)}" if message.entries else "")
    if kind in (Kind.VOTE, Kind.PRE_VOTE):
        return head + f" last {message.index}/{message.log_term}" + (" forced" if message.force else "")
    if kind in (Kind.VOTE_RESPONSE, Kind.PRE_VOTE_RESPONSE):
        return head + (" refused" if message.reject else " granted")
    if kind is Kind.APPEND_RESPONSE:
        return head + (
            f" rejects {message.index}, try {message.hint}" if message.reject else f" has {message.index}"
        )
    if kind is Kind.HEARTBEAT:
        return head + f" round {message.round} commit {message.commit}" + (" quiet" if message.quiet else "")
    if kind is Kind.HEARTBEAT_RESPONSE:
        return head + f" round {message.round}"
    if message.snapshot is not None:
        meta = message.snapshot
        return head + f" image {meta.index}/{meta.term} {show_conf(decode_configuration(meta.conf))}"
    if message.context:
        head += f" {message.context.decode()}"
    return head + (f" at {message.index}" if kind is Kind.READ_INDEX_RESPONSE else "")


def show_ready(ready: Ready) -> list[str]:
    lines = []
    if ready.soft_state is not None:
        lines.append(f"{ready.soft_state.role.name} leader {ready.soft_state.leader or 'unknown'}")
    if ready.hard_state is not None:
        hard = ready.hard_state
        lines.append(f"hard state term {hard.term} vote {hard.vote} commit {hard.commit}")
    if ready.snapshot is not None:
        lines.append(f"install image {ready.snapshot.index}/{ready.snapshot.term}")
    if ready.entries:
        lines.append(f"write {show_entries(ready.entries)}")
    if ready.committed_entries:
        lines.append(f"apply {show_entries(ready.committed_entries)}")
    lines.extend([f"read {state.context.decode()} at {state.index}" for state in ready.read_states])
    lines.extend([f"send {show_message(message)}" for message in ready.messages])
    lines.extend([f"then {show_message(message)}" for message in ready.messages_after])
    return lines + ([] if ready.must_sync else ["no sync needed"])


class Interaction:
    """One transcript's group."""

    def __init__(self) -> None:
        self.replicas: dict[int, Replica] = {}
        self.network: list[Message] = []

    def __call__(self, command: Command) -> str:
        handler = getattr(self, "do_" + command.name.replace("-", "_"), None)
        assert handler is not None, f"line {command.line}: no such command: {command.name}"
        try:
            answer: str | None = handler(command)
        except RaftError as error:
            answer = f"{type(error).__name__}: {error}"
        return answer or "ok"

    def replica(self, command: Command, position: int = 0) -> Replica:
        return self.replicas[int(command.args[position])]

    def chosen(self, command: Command) -> list[int]:
        wanted = [int(arg) for arg in command.args] or list(self.replicas)
        return [node for node in wanted if self.replicas[node].node is not None]

    # ------------------------------------------------------------------------------------- doing

    def do_nodes(self, command: Command) -> None:
        options = {name: values[0] for name, values in command.options.items()}
        count = int(command.args[0])
        learners = tuple([int(node) for node in command.options.get("learners", ())])
        voters = tuple([node for node in range(1, count + 1) if node not in learners])
        for node in range(1, count + int(options.get("joiners", "0")) + 1):
            config = Config(
                node,
                voters=voters if node <= count else (),
                learners=learners if node <= count else (),
                pre_vote=options.get("prevote") != "off",
                check_quorum=options.get("checkquorum") != "off",
                lease_reads=options.get("lease") == "on",
                quiet_after_ticks=int(options.get("quiet", "0")),
                inflight_messages_max=int(options.get("inflight", "256")),
                append_entries_max=int(options.get("entries", "1024")),
            )
            self.replicas[node] = Replica(config, lambda _, extra=node - 1: extra)  # type: ignore[misc]

    def do_campaign(self, command: Command) -> str:
        return "" if self.replica(command).up.campaign() else "refused"

    def do_propose(self, command: Command) -> str:
        return f"index {self.replica(command).up.propose(command.args[1].encode())}"

    def do_transfer(self, command: Command) -> None:
        self.replica(command).up.transfer_leader(int(command.args[1]))

    def do_read(self, command: Command) -> None:
        self.replica(command).up.read_index(command.args[1].encode())

    def do_tick(self, command: Command) -> None:
        for _ in range(int(command.args[1]) if len(command.args) > 1 else 1):
            self.replica(command).up.tick()

    def do_wake(self, command: Command) -> None:
        self.replica(command).up.wake()

    def do_compact(self, command: Command) -> str:
        replica = self.replica(command)
        # The rows become durable with no more than their own write.
        replica.disk.image = type(replica.image)(**vars(replica.image))
        replica.compact(int(command.options.get("behind", ("0",))[0]))
        return f"compacted to {replica.up.compacted}"

    def do_change(self, command: Command) -> str:
        names = {"explicit": Transition.JOINT_EXPLICIT, "implicit": Transition.JOINT_IMPLICIT}
        transition = names.get(command.options.get("transition", ("",))[0], Transition.AUTO)
        changes = tuple([Change(_OPS[word[0]], int(word[1:])) for word in command.args[1:]])
        return f"index {self.replica(command).up.propose_conf_change(ConfChange(changes, transition))}"

    def do_crash(self, command: Command) -> None:
        self.replica(command).crash(write_landed="landed" in command.options)

    def do_restart(self, command: Command) -> None:
        self.replica(command).start()

    def do_snapshot_failed(self, command: Command) -> None:
        self.replica(command).up.report_snapshot(int(command.args[1]), arrived=False)

    # ------------------------------------------------------------------------------------ moving

    def _collect(self, replica: Replica) -> None:
        self.network.extend(replica.outbox)
        replica.outbox.clear()

    def _ready(self, node: int) -> list[str]:
        replica = self.replicas[node]
        if not replica.up.has_ready():
            return [
                f"{node}: nothing is ready" if replica.writing is None else f"{node}: a write is under way"
            ]
        ready = replica.up.ready()
        replica.take(ready)
        self._collect(replica)
        replica.applied.clear()
        replica.read_states.clear()
        return [f"{node}: {line}" for line in show_ready(ready)]

    def do_ready(self, command: Command) -> str:
        return "\n".join(self._ready(int(command.args[0])))

    def _synced(self, node: int) -> list[str]:
        replica = self.replicas[node]
        replica.applied.clear()
        replica.end()
        self._collect(replica)
        applied = show_entries(replica.applied)
        return [f"{node}: applies {applied}"] if replica.applied else []

    def do_synced(self, command: Command) -> str:
        return "\n".join(self._synced(int(command.args[0])))

    def do_deliver(self, command: Command) -> str:
        chosen = self.chosen(command)
        dropped = {int(node) for node in command.options.get("drop", ())}
        lines = []
        batch, self.network = self.network, []
        for message in batch:
            if message.to in dropped or self.replicas[message.to].node is None:
                lines.append(f"lost {show_message(message)}")
            elif message.to in chosen:
                lines.append(show_message(message))
                target = self.replicas[message.to]
                if message.snapshot is not None:
                    image = self.replicas[message.sender].images[message.snapshot]
                    target.images[message.snapshot] = type(image)(**vars(image))
                target.up.step(message)
            else:
                self.network.append(message)
        return "\n".join(lines)

    def do_stabilize(self, command: Command) -> str:
        lines: list[str] = []
        for _ in range(100):
            moved = False
            for node in self.chosen(command):
                replica = self.replicas[node]
                if replica.writing is not None or replica.up.has_ready():
                    moved = True
                    if replica.writing is None:
                        lines += self._ready(node)
                    lines += self._synced(node)
            delivered = self.do_deliver(command)
            if delivered:
                moved = True
                lines.append(delivered)
            if not moved:
                return "\n".join(lines) or "nothing to do"
        raise AssertionError("it does not come to rest")

    def do_quietly(self, command: Command) -> str:
        rest = Command(command.args[0], command.args[1:], command.options, command.line)
        answer = self(rest)
        return answer if "Refused" in answer or "Dropped" in answer else ""

    # ----------------------------------------------------------------------------------- showing

    def do_status(self, command: Command) -> str:
        lines = []
        for node in self.chosen(command):
            up = self.replicas[node].up
            lines.append(
                f"{node}: {up.role.name} term {up.term} leader {up.leader or 'unknown'} last {up.last_index} "
                f"stable {up.stable} commit {up.committed} applied {up.handed} {show_conf(up.conf)}"
                + (" quiet" if up.is_quiet else "")
            )
        return "\n".join(lines)

    def do_log(self, command: Command) -> str:
        up = self.replica(command).up
        entries = "\n".join([show_entry(entry) for entry in up._core.log.entries])
        return f"after {up.compacted}:\n{entries}" if entries else f"after {up.compacted}: empty"

    def do_progress(self, command: Command) -> str:
        up = self.replica(command).up
        return "\n".join(
            [
                f"{node}: {progress.flow.name} match {progress.match} next {progress.next}"
                + (f" unanswered {len(progress.window)}" if progress.window else "")
                for node, progress in up._core.progress.items()
            ]
        )
