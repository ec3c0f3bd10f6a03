"""How two regions come to know each other, and how one forgets the other.

An operator gives one of them an address of the other. Who leads the meta group here calls there, as a
stranger, and its call is answered by who leads the meta group there. Nothing is written before both have
judged the other (membership/linking.py): first the other region is asked whether it would, and says who it
is; then this one judges; then the other writes, then this one. What remains undone if that is interrupted
is done when the command is given again, or by the one that wrote (regions.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.hosting.config.addresses import join_address, split_address
from cluster.membership import Plan, Refusal, RemoteRecord, Table, card, plan_introduce, plan_part
from cluster.peers.abroad import FIRST, INDEX_MAX
from cluster.peers.contract import PeerError
from history_store.engine.errors import Code, ServiceError, failed_precondition, invalid

if TYPE_CHECKING:
    from cluster.hosting.region.joining import Told
    from cluster.hosting.region.regions import Regions
    from cluster.peers.contract import Address

ADDRESSES_MAX = 16  # in one request; each may take some seconds to be found silent

Answer = dict[str, Any]
MakePlan = Callable[[Table], Plan | Refusal]


class Introductions:
    """The part of the administration that is about other regions."""

    def __init__(
        self,
        regions: Regions,
        table: Callable[[], Table],
        lead: Callable[[], Awaitable[None]],
        change: Callable[[MakePlan, bool], Awaitable[Plan]],
    ) -> None:
        """`lead`: go on only where the meta group is led; `change`: plan there, and propose unless told not
        to (True)."""
        self._regions = regions
        self._table = table
        self._lead = lead
        self._change = change

    async def introduce(self, at: Sequence[str]) -> Answer:
        """Two regions write each other down. FAILED_PRECONDITION: neither has; UNAVAILABLE: one may have."""
        if not 0 < len(at) <= ADDRESSES_MAX:
            raise invalid(f"from 1 to {ADDRESSES_MAX} addresses of nodes of the other region")
        addresses = [_address(text) for text in at]
        await self._lead()
        address, other = await self._would(addresses)
        await self._change(lambda table: plan_introduce(table, other), True)
        other = await self._has(address)
        found = await self._change(lambda table: plan_introduce(table, other), False)
        return {
            "why": found.why, "changed": bool(found.rows), "region": other.name, "index": other.index
        }  # fmt: skip

    async def _would(self, addresses: list[Address]) -> tuple[Address, RemoteRecord]:
        """Who answers at one of the addresses, and would have us. Nothing was written when this fails."""
        silent = []
        request = self._met(dry_run=True)
        for address in addresses:
            try:
                told = await self._regions.ask(address, request)
            except PeerError as error:
                silent.append(_plain(str(error)))
                continue
            if told.code == Code.OK:
                return address, self._card_of(told, address)
            if told.final:
                raise failed_precondition(told.message)
            if told.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED):
                raise failed_precondition(
                    f"the nodes at {join_address(*address)} are of a release that knows of no other regions: "
                    "upgrade them first"
                )
            silent.append(f"{join_address(*address)} says that {_plain(told.message)}")
        raise failed_precondition(
            f"the other region does not answer ({'; '.join(silent)}): see that its nodes run and that this "
            "region's nodes reach their peers' port, and give the command again"
        )

    def _met(self, *, dry_run: bool) -> bytes:
        """The request that tells another region of this one."""
        said = {"do": "met", "remote": card(self._table())}
        return msgspec.json.encode(said | ({"dry_run": True} if dry_run else {}))

    async def _has(self, address: Address) -> RemoteRecord:
        """The other region writes us down."""
        try:
            told = await self._regions.ask(address, self._met(dry_run=False))
        except PeerError as error:
            if error.definite:
                raise failed_precondition(f"{_plain(str(error))}: give the command again") from None
            raise ServiceError(Code.UNAVAILABLE, f"{error}; it may have happened there") from None
        if told.final:
            raise failed_precondition(told.message)
        if told.code != Code.OK:
            raise ServiceError(Code.UNAVAILABLE, f"{told.message}; it may have happened there")
        return self._card_of(told, address)

    def _card_of(self, told: Told, address: Address) -> RemoteRecord:
        try:
            return read_card(msgspec.json.decode(told.body)["card"])
        except (msgspec.MsgspecError, ValueError, KeyError) as error:
            raise failed_precondition(
                f"what answers at {join_address(*address)} is no region of this release "
                f"({_plain(str(error))}): correct the address"
            ) from None

    async def met(self, other: RemoteRecord | None, *, dry_run: bool) -> Answer:
        """Another region says who it is, and hears who this one is."""
        try:
            said = read_card(msgspec.to_builtins(other))
        except ValueError as error:
            raise invalid(f"a region that introduces itself says who it is, not this: {error}") from None
        await self._change(lambda table: plan_introduce(table, said), dry_run)
        return {"card": msgspec.to_builtins(card(self._table()))}

    async def part(self, name: str) -> Answer:
        """Nothing is exchanged with a region any more."""
        found = await self._change(lambda table: plan_part(table, name), False)
        return {"why": found.why, "changed": bool(found.rows), "region": name}

    def shown(self) -> list[Answer]:
        """The regions as they are seen from this node, this one first."""
        table, regions = self._table(), self._regions
        assert table.region is not None, "a region that is made"
        own = card(table)
        rows = [_row(own, "here", [node.id for node in own.nodes], "")]
        for index, remote in sorted(table.remotes.items()):
            up = regions.nodes_up(index)
            state = "removed" if remote.removed else "up" if up else "down"
            rows.append(_row(remote, state, up, "" if up else regions.refusals.get(index, "")))
        return rows


def _row(record: RemoteRecord, state: str, up: list[int], problem: str) -> Answer:
    return {
        "name": record.name,
        "index": record.index,
        "state": state,
        "nodes": [
            {"id": one.id, "peers": one.peers_address, "grpc": one.grpc_address, "up": one.id in up}
            for one in record.nodes
        ],
        "cluster_id": record.cluster_id,
        "problem": problem,
    }


def _address(text: str) -> Address:
    try:
        return split_address(text)
    except ValueError as error:
        raise invalid(f"{text!r} is no address: {error}") from None


def _plain(sentence: str) -> str:
    """Without what divides a refusal from what to do about it."""
    return sentence.replace(": ", ", ")


def read_card(said: Any) -> RemoteRecord:
    """What another region says of itself. ValueError: it makes no sense, and must not be written down."""
    try:
        found = msgspec.convert(said, RemoteRecord)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    ids = [one.id for one in found.nodes]
    if not (0 < found.index <= INDEX_MAX and found.name and found.cluster_id):
        raise ValueError(f"a region {found.name!r} with the index {found.index}")
    if not ids or len(set(ids)) < len(ids) or not all(0 < node < FIRST for node in ids):
        raise ValueError(f"region {found.name} has the nodes {ids}")
    for one in found.nodes:
        split_address(one.peers_address)
    return found
