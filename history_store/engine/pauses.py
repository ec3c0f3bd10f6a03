"""The search attribute that shows what is paused in a run (TemporalPauseInfo)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import Payload, SearchAttributes

if TYPE_CHECKING:
    from history_store.engine.run import Run

PAUSE_INFO = "TemporalPauseInfo"


def show(run: Run) -> None:
    """Bring the attribute up to date with the paused activities of an open run."""
    if not run.running:
        return
    types = sorted({activity.activity_type for activity in run.activities.values() if activity.paused})
    attributes = SearchAttributes.FromString(run.state.search_attributes)
    if types:
        payload = Payload(data=json.dumps([f"property:activityType={name}" for name in types]).encode())
        payload.metadata["encoding"] = b"json/plain"
        payload.metadata["type"] = b"KeywordList"
        attributes.indexed_fields[PAUSE_INFO].CopyFrom(payload)
    elif PAUSE_INFO in attributes.indexed_fields:
        del attributes.indexed_fields[PAUSE_INFO]
    else:
        return
    run.state.search_attributes = attributes.SerializeToString()
    run.visible = True
