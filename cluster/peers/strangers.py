"""Talk with somebody who is no node: a process that wants to join a region, or the admin CLI."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from cluster.peers import handshake
from cluster.peers.contract import (
    VERSIONS,
    Address,
    Identity,
    Limits,
    Message,
    Network,
    PeerError,
    Refused,
    Unanswered,
    Unreachable,
)
from cluster.peers.frames import REFUSED, FrameReader, control, decode, encode, seal
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import Tls

if TYPE_CHECKING:
    from cluster.peers.links import Accepted


class Stranger:
    """contract.StrangerConnection."""

    def __init__(self, link: Accepted) -> None:
        assert link.identity is not None, "a stranger has said that it is one"
        self._link = link
        self.identity = link.identity
        self.host = link.host
        self.gone = False

    def send(self, message: Message) -> bool:
        """Answer. False: the connection is gone, or does not read what it was sent."""
        link = self._link
        if self.gone or link.over:
            return False
        encoded = encode(message)
        if len(encoded) + link.transport.get_write_buffer_size() > link.limits.stranger_answer_bytes_max:
            return False
        link.write(seal([encoded]))
        return True

    def close(self) -> None:
        """Hang up once what was sent is out."""
        if not self.gone and not self._link.over:
            self._link.over = True
            self._link.transport.close()


class _Asking(FrameReader):
    """The other end of a stranger's connection."""

    def __init__(self, said: Message, question: Message, answer_bytes_max: int) -> None:
        super().__init__(answer_bytes_max)
        self._said = said
        self._question = question
        self.asked = False
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(control(self._said))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fault(f"the connection broke: {exc}" if exc is not None else "the other side hung up")

    def eof_received(self) -> bool:
        return False

    def _body(self, body: memoryview) -> None:
        messages = decode(body)
        if messages[0][0] == REFUSED and len(messages[0]) > 1:
            self._fail(Refused(str(messages[0][1])))
        elif not self.asked:
            handshake.read_welcome(messages[0])
            assert self.transport is not None, "it was read from"
            self.asked = True
            self.transport.writelines(seal([encode(self._question)]))
        elif not self.answer.done():
            self.answer.set_result(messages[0])

    def _fault(self, sentence: str) -> None:
        self._fail(Unanswered(sentence) if self.asked else Unreachable(sentence))

    def _fail(self, error: PeerError) -> None:
        self.over = True
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody may be waiting any more


async def ask_stranger(
    address: Address,
    message: Message,
    timeout_s: float,
    *,
    tls: Tls | ssl.SSLContext | None = None,
    network: Network | None = None,
    cluster_id: str = "",
    region: str = "",
    name: str = "",
    answer_bytes_max: int = Limits().stranger_answer_bytes_max,
) -> Message:
    """Ask a node something without being one, and return the first message it answers.

    cluster_id and region are checked by the node unless they are "". Raises PeerError: Refused and
    Unreachable are definite, the question was not received; Unanswered is not."""
    identity = Identity(cluster_id=cluster_id, region=region, node_id=0, name=name, incarnation="")
    asking = _Asking(handshake.hello(identity, VERSIONS, 0), message, answer_bytes_max)
    try:
        async with asyncio.timeout(timeout_s):
            await (network or TcpNetwork(tls)).connect(address, asking)
            return await asking.answer
    except TimeoutError:
        sentence = f"{address[0]}:{address[1]} did not answer within {timeout_s:g} s"
        raise (Unanswered(sentence) if asking.asked else Unreachable(sentence)) from None
    except OSError as error:
        raise Unreachable(f"cannot connect to {address[0]}:{address[1]}: {error}") from error
    finally:
        asking.over = True
        if asking.transport is not None:
            asking.transport.abort()
