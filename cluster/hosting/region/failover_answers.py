"""What a region answers to others about failover, where its meta group is led.

A notice is answered when what it told is committed: an answer says what the region knows for good. Answers
are made from the committed state alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import structlog

from cluster.hosting.region.failover import pair_of
from cluster.hosting.region.failover_words import (
    Failed,
    Held,
    MayHold,
    Notice,
    Noticed,
    Operate,
    Operated,
    Survey,
)
from history_store.engine.errors import Code, ServiceError
from replication.failover.switching import acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.hosting.region.asking import Asker
    from cluster.hosting.region.failover import Failover
    from cluster.hosting.region.failover_words import RegionAnswer, RegionQuestion

log = structlog.get_logger("failover")


class Answers:
    """One per node."""

    def __init__(
        self, failover: Failover, operate: Callable[[bytes, Callable[[Operated | Failed], None]], None]
    ) -> None:
        """`operate`: does what an operator wants of this region, and calls back."""
        self._failover = failover
        self._meta = failover.meta
        self._operate = operate
        failover.asking.on_asked = self.asked

    def asked(self, question: RegionQuestion, asker: Asker) -> None:
        """Another region asks."""

        def answer(word: RegionAnswer) -> None:
            self._failover.asking.answer(asker, word)

        match question:
            case Notice():
                self._noticed(question, answer)
            case Survey():
                self._failover.surveyor.survey(asker.region, question, answer)
            case MayHold():
                answer(Held(self._meta.name_problem(question.name, question.id)))
            case Operate():
                self._operate(question.request, answer)
            case _:
                assert_never(question)

    def _noticed(self, notice: Notice, answer: Callable[[RegionAnswer], None]) -> None:
        failover = self._failover
        for word in notice.shared:
            failover.take_shared(word)
        failover.learn([*notice.rows, *(row for word in notice.shared for row in word.ledger)])
        names = {row.namespace_id for row in notice.rows} | {word.id for word in notice.shared}

        def durable(error: ServiceError | None) -> None:
            if error is not None:
                answer(Failed(int(error.code), error.message))
                return
            state = self._meta.committed
            configs: dict[str, tuple[int, int]] = {}
            newer = []
            for word in notice.shared:
                record = state.namespaces.get(word.id)
                told = word.config.failover_version, word.config.config_version
                configs[word.id] = told if record is None else pair_of(record)
                if record is not None and record.config > word.config:
                    newer.append(failover.shared(record, with_ledger=False))
            truths = acknowledge(state, sorted(names | set(notice.ask)))
            answer(Noticed(truths, configs, tuple(newer)))

        try:
            self._meta.when_committed(durable)
        except ServiceError as error:
            answer(Failed(int(Code.UNAVAILABLE), error.message))
